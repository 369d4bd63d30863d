//! How `tests/lab/lab` ends, with a QEMU that only seems to be one: what the lab's other users rely on.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::TempDir;
use rustix::process::{Pid, Signal, kill_process};

/// Opens the pipes that it is told of, does as `$ACT` says with the directory of the job as `$run`, and ends.
const QEMU: &str = r#"#!/bin/bash
for argument; do
    [[ $argument != local,path=*,mount_tag=job,* ]] || { run=${argument#local,path=} && run=${run%%,*}; }
done
exec >"$run/out.out" 3>"$run/err.out"
echo once >>"$COUNT"
eval "$ACT"
"#;

/// A copy of the lab, where nothing has to be fetched for it and QEMU is [`QEMU`].
struct Lab(TempDir);

impl Lab {
    fn new() -> Self {
        let dir = TempDir::new();
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for name in ["tests/lab", "resources", "bin"] {
            fs::create_dir_all(dir.path(name)).unwrap();
        }
        for name in ["lab", "session", "init"] {
            fs::copy(here.join("lab").join(name), dir.path("tests/lab").join(name)).unwrap();
        }
        for (name, text) in [("bin/qemu-system-x86_64", QEMU), ("resources/setup", "#!/bin/sh\n")] {
            fs::set_permissions(dir.file(name, text), Permissions::from_mode(0o755)).unwrap();
        }
        Self(dir)
    }

    /// Starts it with a QEMU that does `act`, for at most so many seconds.
    fn start_for(&self, seconds: u32, args: &[&str], act: &str) -> Child {
        let path = format!("{}:{}", self.0.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        let _ = fs::remove_file(self.0.path("count"));
        let mut command = Command::new(self.0.path("tests/lab/lab"));
        command
            .args(args)
            .env("PATH", path)
            .env("ACT", act)
            .env("COUNT", self.0.path("count"))
            .env("LAB_TIMEOUT", seconds.to_string())
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("LAB_OUT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        loop {
            match command.spawn() {
                // Another test forked while the script was written, and has not called exec yet.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::yield_now()
                }
                started => return started.expect("bash starts"),
            }
        }
    }

    /// How often QEMU was started.
    fn boots(&self) -> usize {
        fs::read_to_string(self.0.path("count")).map_or(0, |text| text.lines().count())
    }

    /// Starts it for two seconds.
    fn start(&self, args: &[&str], act: &str) -> Child {
        self.start_for(2, args, act)
    }

    /// Runs it for at most two seconds: its status, and both of its streams.
    fn run(&self, args: &[&str], act: &str) -> (Option<i32>, String, String) {
        ended(self.start(args, act))
    }
}

/// The status of what has ended, and both of its streams.
fn ended(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().expect("our child");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn its_status_is_the_command_s() {
    let lab = Lab::new();
    let act = ": >$run/begun; echo out; echo err >&3; echo 7 >$run/status";
    let (status, out, err) = lab.run(&["--", "a command"], act);
    assert_eq!((status, out.as_str(), err.as_str(), lab.boots()), (Some(7), "out\n", "err\n", 1));
    // As the command line said it.
    let act = ": >$run/begun; echo 0 >$run/status; . $run/job; printf '%s|' \"${lab_command[@]}\"";
    let (status, out, err) = lab.run(&["--", "echo", "two words", "it's"], act);
    assert_eq!((status, out.as_str()), (Some(0), "echo|two words|it's|"), "{err}");
}

#[test]
fn it_says_that_it_failed_itself() {
    let lab = Lab::new();
    let (status, _, err) = lab.run(&["--", "true"], ": >$run/begun");
    assert_eq!((status, lab.boots()), (Some(125), 1), "{err}");
    assert!(err.contains("error: the lab ended before the command did"), "{err}");
    // As long as the command has not begun, it tries again.
    let (status, _, err) = lab.run(&["--", "true"], "true");
    assert_eq!((status, lab.boots()), (Some(125), 3), "{err}");
    assert!(err.contains("error: the lab ended without running the command"), "{err}");
    let act = "[[ $(grep -c . $COUNT) == 1 ]] || { : >$run/begun; echo 0 >$run/status; }";
    let (status, _, err) = lab.run(&["--", "true"], act);
    assert_eq!((status, lab.boots()), (Some(0), 2), "{err}");
}

#[test]
fn a_processor_that_stands_still_ends_it() {
    let lab = Lab::new();
    let act = ": >$run/begun; echo >$run/alive.0; touch -d '3 minutes ago' $run/alive.1; exec sleep 1000";
    let (status, _, err) = ended(lab.start_for(60, &["--", "true"], act));
    assert_eq!((status, lab.boots()), (Some(125), 1), "{err}");
    assert!(err.contains("error: the lab lost a processor"), "{err}");
}

#[test]
fn a_processor_that_goes_on_does_not_end_it() {
    let lab = Lab::new();
    let act = ": >$run/begun; touch -d '3 minutes ago' $run/alive.0; sleep 4; echo >$run/alive.0; sleep 9; echo 0 >$run/status";
    let (status, _, err) = ended(lab.start_for(60, &["--", "true"], act));
    assert_eq!((status, lab.boots()), (Some(0), 1), "{err}");
}

#[test]
fn it_ends_when_its_time_is_over() {
    let lab = Lab::new();
    let (status, _, err) = lab.run(&["--", "true"], ": >$run/begun; exec sleep 1000");
    assert_eq!((status, lab.boots()), (Some(124), 1), "{err}");
    assert!(err.contains("error: the lab did not end within 2 s"), "{err}");
}

#[test]
fn a_signal_ends_it_and_its_qemu() {
    let lab = Lab::new();
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let act = ": >$run/begun; echo $$ >$COUNT.pid; exec sleep 1000";
        let _ = fs::remove_file(lab.0.path("count.pid"));
        let child = lab.start_for(20, &["--", "true"], act);
        let until = Instant::now() + Duration::from_secs(20);
        let qemu = loop {
            let pid = fs::read_to_string(lab.0.path("count.pid")).unwrap_or_default();
            if let Ok(pid) = pid.trim().parse::<u32>() {
                break pid;
            }
            assert!(Instant::now() < until, "it does not start QEMU");
            std::thread::sleep(Duration::from_millis(10));
        };
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        // It is gone, or about to be: somebody else's child by then.
        let gone = || !Path::new(&format!("/proc/{qemu}/cwd")).exists();
        while !gone() {
            assert!(Instant::now() < until, "QEMU stays");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    let lab = Lab::new();
    let (status, _, err) = lab.run(&["--nonsense"], "true");
    assert_eq!((status, lab.boots()), (Some(2), 0));
    assert!(err.contains("Exit status: the command's"), "{err}");
    // A shell needs a terminal.
    let (status, _, err) = lab.run(&[], "true");
    assert_eq!((status, lab.boots()), (Some(2), 0));
    assert!(err.contains("needs a terminal"), "{err}");
}
