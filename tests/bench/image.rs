//! Part 9: from Enter to the exit status of `true` in a guest: of a directory and of an image, beside virtme-ng on the same kernel.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::agent::agent_path;
use harness::netns::Netns;
use harness::stock::resources;
use harness::{TempDir, wirevm};

use crate::Options;
use crate::compare::{Aim, Better, beside};
use crate::report::{Goal, Row, Table};
use crate::rounds::{Turns, take_turns};

const MEMORY: &str = "512M";
const LIMIT: &str = "180";

/// Who is timed, in the order of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// `run --image DIR`: a root of busybox alone, made once and cached since.
    Image,
    /// `run --root /`: this host's own root, by virtio-fs.
    Root,
    /// The same with virtme-ng and its QEMU.
    VirtmeNg,
}

impl Who {
    const ALL: [Self; 3] = [Self::Image, Self::Root, Self::VirtmeNg];

    fn name(self) -> &'static str {
        match self {
            Self::Image => "wirevm --image",
            Self::Root => "wirevm --root /",
            Self::VirtmeNg => "vng",
        }
    }

    fn command(self, world: &World) -> Command {
        let kernel = world.kernel.to_str().expect("a path in UTF-8");
        let program = wirevm();
        let program = program.get_program().to_str().expect("a path in UTF-8");
        let mut command = Command::new("timeout");
        command.args(["-k", "1", LIMIT]);
        match self {
            Self::Image | Self::Root => {
                let (option, root) =
                    if self == Self::Image { ("--image", &*world.root) } else { ("--root", Path::new("/")) };
                command.args([program, "run", "--kernel", kernel, "--memory", MEMORY, "--net", "none"]);
                command.arg(option).arg(root).args(["--", "true"]);
            }
            Self::VirtmeNg => {
                command.args(["vng", "--run", kernel, "--cpus", "1", "--memory", MEMORY, "--", "true"]);
            }
        }
        // virtme-ng makes an initramfs of busybox.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:{}", resources().display()));
        command.env("XDG_CACHE_HOME", world.files.path("cache")).env("WIREVM_AGENT", agent_path());
        command
    }
}

struct World {
    files: TempDir,
    /// In its package, beside its modules.
    kernel: PathBuf,
    /// Of busybox.
    root: PathBuf,
}

impl World {
    fn new() -> Result<Self, String> {
        let files = TempDir::new();
        let kernel = kernel()?;
        let root = files.path("root");
        let bin = root.join("bin");
        std::fs::create_dir_all(&bin)
            .and_then(|()| std::fs::copy(resources().join("busybox"), bin.join("busybox")))
            .and_then(|_| symlink("busybox", bin.join("true")))
            .map_err(|error| format!("cannot make a root: {error}"))?;
        Ok(Self { files, kernel, root })
    }
}

/// The lab's own, a Debian kernel for any machine: virtme-ng wants a module (9p) that the cloud kernel of the other guests has not.
fn kernel() -> Result<PathBuf, String> {
    let directory = resources().join("lab/kernel/boot");
    let names = std::fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut kernels = names
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")));
    kernels.next().ok_or_else(|| format!("there is no kernel in {}: run make lab", directory.display()))
}

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    harness::stock::can_run()?;
    let rounds = options.rounds(3);
    let world = World::new()?;
    let host = Netns::with_own_run()?;
    let mut notes = vec![
        format!("1 vCPU, {MEMORY}, no NIC; the image is in its cache"),
        "vng: to its end, for of a Debian kernel it does not hear the command's status".to_owned(),
    ];
    let mut who: Vec<_> = Who::ALL.into_iter().filter(|who| who.name().contains(&options.only)).collect();
    if Command::new("vng").arg("--version").stdout(Stdio::null()).status().is_err() {
        who.retain(|who| *who != Who::VirtmeNg);
        notes.push("there is no vng to compare with: pip install virtme-ng".to_owned());
    }
    let names: Vec<_> = who.iter().map(|who| who.name().to_owned()).collect();
    // Programs are read, and the image is made.
    for who in &who {
        let _ = time(*who, &world, &host);
    }
    let kept = options.out.as_deref().map(|out| out.join("image.rounds"));
    let Turns { figures, failures } = take_turns(rounds, &names, kept.as_deref(), |at| {
        time(who[at], &world, &host).map(|took| [Some(took.as_secs_f64())])
    });
    let cells: Vec<_> = figures.iter().map(|of| of[0].clone()).collect();
    let theirs = who.iter().position(|who| *who == Who::VirtmeNg);
    let goal = theirs.filter(|at| *at > 0).and_then(|at| {
        beside(&cells[0], &[(Who::VirtmeNg.name(), &cells[at])], Better::Less, Aim::Ahead).map(Goal::Beside)
    });
    Ok(Table {
        title: format!("A command in a guest: Debian's kernel for any machine, median of {rounds} (min-max)"),
        columns: names,
        rows: vec![Row { what: "start to the exit status of true".to_owned(), unit: "s", cells, goal }],
        notes: [notes, failures].concat(),
    })
}

fn time(who: Who, world: &World, host: &Netns) -> Result<Duration, String> {
    let command = who.command(world);
    let mut inside = host.command(command.get_program().to_str().expect("a path in UTF-8"));
    inside.args(command.get_args());
    inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let began = Instant::now();
    let output = inside.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let took = began.elapsed();
    match output.status.code() {
        Some(0) => Ok(took),
        // With a console that is a module, as Debian's, virtme-ng runs the command and does not hear how it ended.
        Some(255) if who == Who::VirtmeNg => Ok(took),
        status => {
            let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
            Err(format!(
                "status {status:?}: {}",
                said.concat().lines().rev().take(5).collect::<Vec<_>>().join(" | ")
            ))
        }
    }
}
