//! The guest's agent, here on the host: it serves on a Unix socket.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::{TempDir, wirevm, wirevm_path};

/// The agent under test: `$WIREVM_AGENT`, else the one beside the program under test.
pub fn agent_path() -> PathBuf {
    if let Some(path) = std::env::var_os("WIREVM_AGENT") {
        return path.into();
    }
    let path = wirevm_path().with_file_name("wirevm-agent");
    assert!(path.exists(), "{} is not there: run cargo build -p wirevm-agent first", path.display());
    path
}

/// An agent that serves in a directory of its own, and ends when this is dropped.
pub struct Agent {
    child: Child,
    /// For what a test needs beside it.
    pub dir: TempDir,
}

impl Agent {
    /// Starts one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let dir = TempDir::new();
        let mut command = Command::new(agent_path());
        let child = command.args(["--serve", "--unix"]).arg(dir.path("agent")).stdin(Stdio::null()).spawn();
        let agent = Self { child: child.expect("the agent starts"), dir };
        wait_for_socket(&agent.socket());
        agent
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path("agent")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A connection to it.
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).expect("the agent listens")
    }

    /// `wirevm exec` on it with these options before the `--`, and this command.
    pub fn exec(&self, options: &[&str], command: &[&str]) -> Command {
        exec_at(&self.socket(), options, command)
    }

    /// The same, run to its end with this on standard input.
    pub fn output(&self, options: &[&str], command: &[&str], stdin: &[u8]) -> Output {
        output(&mut self.exec(options, command), stdin)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// `wirevm exec` on an agent that serves at this socket.
pub fn exec_at(socket: &std::path::Path, options: &[&str], command: &[&str]) -> Command {
    let mut exec = wirevm();
    exec.arg("exec").arg("--unix").arg(socket).args(options).arg("--").args(command);
    exec
}

/// Runs a command to its end with this on standard input.
pub fn output(command: &mut Command, stdin: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut pipe = child.stdin.take().expect("piped");
    let stdin = stdin.to_vec();
    // A command that reads nothing of it leaves it so.
    let writer = std::thread::spawn(move || drop(pipe.write_all(&stdin)));
    let output = child.wait_with_output().expect("our child");
    writer.join().expect("it only writes");
    output
}

/// Waits until somebody listens there.
#[track_caller]
pub fn wait_for_socket(path: &std::path::Path) {
    let until = Instant::now() + Duration::from_secs(20);
    while UnixStream::connect(path).is_err() {
        assert!(Instant::now() < until, "nobody listens at {}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}
