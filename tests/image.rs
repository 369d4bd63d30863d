//! Guests that are made of an image or of a directory, and the command that a run is for.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use harness::agent::{agent_path, output};
use harness::netns::Netns;
use harness::{TempDir, Vm, guest, handmade, need, puts, wirevm};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};

guest!(hello: puts!("hello\\n"));

const SOON: Duration = Duration::from_secs(20);

/// `wirevm run`, with an image cache of its own.
fn run(dir: &TempDir, mut command: Command, args: &[&str]) -> Command {
    command.env("XDG_CACHE_HOME", dir.path("cache")).env("WIREVM_AGENT", agent_path()).arg("run").args(args);
    command
}

/// Names in the cache.
fn cached(dir: &TempDir) -> Vec<String> {
    let names = fs::read_dir(dir.path("cache/wirevm")).into_iter().flatten().flatten();
    names.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// It must fail with status 1, say all of `words` and a remedy, and leave nothing in the cache.
#[track_caller]
fn refused(dir: &TempDir, args: &[&str], words: &[&str]) {
    let output = run(dir, wirevm(), args).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
    for word in words.iter().chain(&["error: ", "\n  try:   "]) {
        assert!(text.contains(word), "{args:?}: {word:?} is not in:\n{text}");
    }
    assert_eq!(cached(dir), [""; 0], "{args:?}");
}

/// An archive of this directory's files.
fn tar(tree: &Path, to: &Path) {
    let made = Command::new("tar").arg("-C").arg(tree).arg("-cf").arg(to).arg(".").status();
    assert!(made.unwrap().success());
}

#[test]
fn what_makes_no_guest_is_refused_and_leaves_nothing() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    let kernel = kernel.to_str().unwrap();
    fs::create_dir_all(dir.path("tree/bin")).unwrap();
    fs::write(dir.path("tree/bin/file"), vec![7; 100_000]).unwrap();
    tar(&dir.path("tree"), &dir.path("image.tar"));
    let bytes = fs::read(dir.path("image.tar")).unwrap();
    let short = dir.file("short.tar", &bytes[..bytes.len() / 2]);
    let text = dir.file("text", "no image at all\n".repeat(100));
    let empty = dir.file("empty", "");
    let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let image = path(&dir.path("image.tar"));
    let none = ["--kernel", kernel, "--net", "none"];
    let refused = |more: &[&str], words: &[&str]| refused(&dir, &[&none[..], more].concat(), words);
    refused(&["--image", "/no/such/image"], &["/no/such/image", "No such file"]);
    refused(&["--image", &path(&text)], &["text"]);
    refused(&["--image", &path(&short)], &["short.tar"]);
    refused(&["--image", &path(&empty)], &["empty"]);
    refused(&["--image", &image, "--vsock", "off"], &["reached by a vsock", "drop --vsock"]);
    refused(&["--image", &image, "--modules", "/no/such/modules"], &["/no/such/modules"]);
    refused(&["--root", "/no/such/root"], &["cannot share /no/such/root"]);
    refused(&["--root", &path(&text)], &["not a directory"]);
    let tree = path(&dir.path("tree"));
    refused(&["--root", &tree, "--rw", "/usr"], &["/usr is not in ", "the guest's root"]);

    let mut command = run(&dir, wirevm(), &[&none[..], &["--image", &image]].concat());
    let output = command.env("WIREVM_AGENT", "/no/such/agent").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/no/such/agent") && said.contains("make build"), "{said}");

    for (args, words) in [
        (&["run", "--kernel", kernel, "--", "true"][..], "--image"),
        (&["run", "--image", &image, "--root", "/"], "cannot be used with"),
        (&["run", "--image", &image, "--initrd", kernel], "cannot be used with"),
        (&["run", "--image", &image, "--rw", "/usr"], "cannot be used with"),
        (&["run", "--kernel", kernel, "--rw", "/usr"], "--root"),
        (&["run", "--kernel", kernel, "--env", "A=b"], "--image"),
        (&["run", "--kernel", kernel, "--wait-ready", "5"], "--detach"),
        (&["run", "--image", &image, "--env", "=b"], "it has no name"),
        (&["run"], "--kernel"),
    ] {
        let output = wirevm().args(args).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(words), "{args:?}: {said}");
    }
}

#[test]
fn who_waits_for_an_image_can_give_up() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    let pipe = dir.path("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let args = ["--net", "none", "--kernel", kernel.to_str().unwrap(), "--image", pipe.to_str().unwrap()];
    let mut child = run(&dir, wirevm(), &args).stdin(Stdio::null()).spawn().unwrap();
    // Opened once it reads, which it does until this ends.
    let mut image = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    image.write_all(&[0; 1000]).unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    // One that has ended is not killed any more.
    let _ = child.kill();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::INT.as_raw()));
    assert_eq!(cached(&dir), [""; 0]);
}

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

#[test]
fn a_guest_that_never_says_that_it_is_up_is_ended_in_time() {
    let (dir, netns) = (TempDir::new(), need!(Netns::with_own_run()));
    let wait = |kernel: &Path, seconds: &str| {
        let mut command = netns.command(harness::wirevm_path().to_str().unwrap());
        command.args(["run", "--detach", "--wait-ready", seconds, "--kernel"]).arg(kernel);
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, said) = wait(&handmade::kernel(&dir, forever()), "1");
    assert!(status == Some(1) && said.contains("not said within 1 s that it is up"), "{status:?}: {said}");
    assert!(said.contains("--wait-ready"), "{said}");
    // One that ends first is its own end, however long anybody would wait.
    let (status, said) = wait(&handmade::kernel(&dir, hello()), &u64::MAX.to_string());
    assert_eq!((status, said.as_str()), (Some(0), ""));
}

/// A run of an image on this kernel, whose guest has no agent, in a place of its own; its console goes to the file `console`.
fn without_agent(dir: &TempDir, kernel: &Path) -> Command {
    fs::create_dir_all(dir.path("tree/bin")).unwrap();
    tar(&dir.path("tree"), &dir.path("image.tar"));
    fs::create_dir_all(dir.path("run")).unwrap();
    fs::set_permissions(dir.path("run"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = run(dir, wirevm(), &["--name", "web", "--net", "none", "--kernel"]);
    command.arg(kernel).arg("--image").arg(dir.path("image.tar")).arg("--console").arg(dir.path("console"));
    command.env("WIREVM_RUNTIME_DIR", dir.path("run"));
    command
}

/// The process of this run that waits for the guest's agent.
fn attached(vm: &Vm) -> Pid {
    let children = format!("/proc/{0}/task/{0}/children", vm.pid());
    let until = Instant::now() + SOON;
    loop {
        let pids = fs::read_to_string(&children).unwrap_or_default();
        let is_it = |pid: &&str| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|words| words.windows(6).any(|at| at == b"attach"))
        };
        if let Some(pid) = pids.split_whitespace().find(is_it) {
            return Pid::from_raw(pid.parse().unwrap()).unwrap();
        }
        assert!(Instant::now() < until, "nobody waits for the agent\n{}", vm.state());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Has a process stand still, as one whose reader does.
fn stand_still(pid: Pid) {
    kill_process(pid, Signal::STOP).unwrap();
    let stat = || fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
    let until = Instant::now() + SOON;
    while !stat().contains(") T ") {
        assert!(Instant::now() < until, "it goes on: {}", stat());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_run_whose_guest_has_no_agent_yet_ends_by_a_signal() {
    let dir = TempDir::new();
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut vm = Vm::start(&mut without_agent(&dir, &handmade::kernel(&dir, forever())));
        attached(&vm);
        vm.signal(signal);
        vm.ends_with(status, SOON);
    }
    // One that does not heed it has its time, and then the guest has.
    let mut command = without_agent(&dir, &handmade::kernel(&dir, forever()));
    let mut vm = Vm::start(command.args(["--stop-timeout", "1"]));
    stand_still(attached(&vm));
    vm.signal(Signal::TERM);
    vm.ends_with(125, SOON);
}

#[test]
fn a_machine_that_is_killed_is_told_as_that_though_a_command_waits_for_it() {
    let dir = TempDir::new();
    let mut vm = Vm::start(&mut without_agent(&dir, &handmade::kernel(&dir, forever())));
    attached(&vm);
    kill_process(Pid::from_raw(vm.machine_pid() as i32).unwrap(), Signal::KILL).unwrap();
    vm.ends_with(1, SOON);
    vm.expect_message("SIGKILL", SOON);
    assert!(!vm.messages().contains("--vsock"), "{}", vm.state());
}

// Some 2^31 cycles of the clock: about a second.
guest!(a_while:
    "rdtsc", "shl rdx, 32", "or rax, rdx", "mov rcx, rax",
    "2: pause", "rdtsc", "shl rdx, 32", "or rax, rdx", "sub rax, rcx", "shr rax, 31", "jz 2b");

#[test]
fn the_command_s_process_has_its_time_after_the_guest_s_end_unless_somebody_wants_an_end() {
    let dir = TempDir::new();
    let wirevm = |args: &[&str]| {
        let output = wirevm().args(args).env("WIREVM_RUNTIME_DIR", dir.path("run")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let start = || {
        let vm = Vm::start(&mut without_agent(&dir, &handmade::kernel(&dir, a_while())));
        let attached = attached(&vm);
        stand_still(attached);
        let until = Instant::now() + SOON;
        while vm.try_machine_pid().is_some() {
            assert!(Instant::now() < until, "the guest goes on\n{}", vm.state());
            std::thread::sleep(Duration::from_millis(20));
        }
        (vm, attached)
    };
    let (mut vm, attached) = start();
    // Longer than where somebody wants an end.
    std::thread::sleep(Duration::from_secs(3));
    assert!(wirevm(&["ls"]).contains("web"), "{}", vm.state());
    kill_process(attached, Signal::CONT).unwrap();
    vm.ends_with(125, SOON);
    vm.expect_message("error: no machine named web runs", SOON);

    let (mut vm, _) = start();
    wirevm(&["stop", "web"]);
    vm.ends_with(125, SOON);
    let (mut vm, _) = start();
    vm.signal(Signal::TERM);
    vm.ends_with(125, SOON);
}

mod stock {
    use super::*;
    use harness::stock::{self, resources};

    /// A root with busybox.
    fn busybox(dir: &TempDir) -> PathBuf {
        let tree = dir.path("root");
        for made in ["bin", "etc", "tmp"] {
            fs::create_dir_all(tree.join(made)).unwrap();
        }
        fs::copy(resources().join("busybox"), tree.join("bin/busybox")).unwrap();
        for applet in
            ["sh", "cat", "id", "ip", "hostname", "sleep", "env", "pwd", "touch", "ls", "mount", "sha256sum"]
        {
            symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
        fs::write(tree.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
            .unwrap();
        tree
    }

    struct World {
        dir: TempDir,
        netns: Netns,
        /// In its package, beside its modules.
        kernel: PathBuf,
    }

    impl World {
        fn new() -> Result<Self, String> {
            let kernel = fs::canonicalize(stock::newest()?.kernel).unwrap();
            Ok(Self { dir: TempDir::new(), netns: Netns::with_own_run()?, kernel })
        }

        fn wirevm(&self) -> Command {
            self.netns.command(harness::wirevm_path().to_str().unwrap())
        }

        fn run(&self, args: &[&str]) -> Command {
            let kernel = ["--kernel", self.kernel.to_str().unwrap()];
            run(&self.dir, self.wirevm(), &[&kernel[..], args].concat())
        }

        fn says(&self, args: &[&str]) -> (Option<i32>, String, String) {
            text(&self.wirevm().args(args).stdin(Stdio::null()).output().unwrap())
        }
    }

    fn text(output: &Output) -> (Option<i32>, String, String) {
        let [out, err] =
            [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
        (output.status.code(), out, err)
    }

    #[test]
    fn a_command_in_an_image_has_its_streams_its_network_and_its_status() {
        let world = need!(World::new());
        tar(&busybox(&world.dir), &world.dir.path("image.tar"));
        let image = world.dir.path("image.tar");
        let image = image.to_str().unwrap();
        let script = "echo out; echo err >&2; cat; hostname; echo $A; ip -4 -o addr show eth0; exit 7";
        let args = ["--name", "web", "--image", image, "--net", "tap,host=172.31.0.1/24", "-e", "A=b c"];
        let made = output(&mut world.run(&[&args[..], &["--", "sh", "-c", script]].concat()), b"in\n");
        let (status, out, err) = text(&made);
        assert_eq!((status, err.as_str()), (Some(7), "err\n"), "{out}");
        assert!(out.starts_with("out\nin\nweb\nb c\n") && out.contains("inet 172.31.0.2/24"), "{out}");
        let entries = cached(&world.dir);
        assert!(matches!(&entries[..], [name] if name.ends_with(".erofs")), "{entries:?}");
        assert_eq!(world.says(&["ls", "--json"]).1.trim(), "{\"machines\":[]}");

        // From the cache; what is not there, and what a signal ends.
        let none = ["--image", image, "--net", "none", "--"];
        let missing = output(&mut world.run(&[&none[..], &["no-such-command"]].concat()), b"");
        assert_eq!(text(&missing).0, Some(127), "{:?}", text(&missing));
        let killed = output(&mut world.run(&[&none[..], &["sh", "-c", "kill -TERM $$"]].concat()), b"");
        assert_eq!(text(&killed).0, Some(143), "{:?}", text(&killed));
        assert_eq!(cached(&world.dir), entries);
    }

    #[test]
    fn a_detached_one_is_up_when_the_command_returns_and_a_directory_is_a_root() {
        let world = need!(World::new());
        let root = busybox(&world.dir);
        fs::create_dir(root.join("shared")).unwrap();
        fs::write(root.join("shared/from-host"), "hello\n").unwrap();
        let (root, shared) = (root.to_str().unwrap(), root.join("shared"));
        let args = ["--name", "web", "--detach", "--wait-ready", "170", "--net", "none", "--root", root];
        let rw = ["--rw", shared.to_str().unwrap(), "--", "sh", "-c", "echo began; sleep 1000"];
        let (status, out, err) = text(&output(&mut world.run(&[&args[..], &rw].concat()), b""));
        if err.contains("there is no virtiofsd") {
            return println!("skipped: there is no virtiofsd");
        }
        assert_eq!((status, out.as_str()), (Some(0), "web\n"), "{err}{}", world.says(&["logs", "web"]).1);
        // At once: it is up.
        let script =
            "cat /shared/from-host && echo x >/shared/from-guest && echo y >/etc/new && cat /etc/new";
        let (status, out, err) = world.says(&["exec", "web", "--", "sh", "-c", script]);
        assert_eq!((status, out.as_str()), (Some(0), "hello\ny\n"), "{err}");
        assert_eq!(fs::read_to_string(shared.join("from-guest")).unwrap(), "x\n");
        assert!(!Path::new(root).join("etc/new").exists(), "what the guest writes is in its memory");
        assert!(world.says(&["logs", "web"]).1.contains("began\n"));
        let shown = world.says(&["show", "web"]).1;
        assert!(shown.contains(&format!("root       {root}\n")) && !shown.contains("/proc/self"), "{shown}");
        let (status, _, err) = world.says(&["stop", "web", "--timeout", "60"]);
        assert_eq!(status, Some(0), "{err}");
    }
}
