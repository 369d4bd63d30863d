//! A running `wirevm` and its guest's console.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::netns::Netns;

/// Bytes that a thread reads from a pipe while the test looks at them.
#[derive(Clone, Default)]
struct Stream(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<Seen>,
    more: Condvar,
}

/// What was read, and whether the pipe has ended.
#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stream {
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let stream = Self::default();
        let to = stream.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                // The master of a pseudo-terminal answers EIO once its other end is closed: the end, too.
                let len = pipe.read(&mut chunk).unwrap_or(0);
                let mut seen = to.0.state.lock().unwrap();
                seen.bytes.extend_from_slice(&chunk[..len]);
                seen.ended = len == 0;
                to.0.more.notify_all();
                if len == 0 {
                    break;
                }
            }
        });
        stream
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.state.lock().unwrap().bytes).into_owned()
    }

    /// Waits for `text` from `from` on; where it ends, or None once the pipe has ended or time is up.
    fn find(&self, from: usize, text: &str, until: Instant) -> Option<usize> {
        let mut seen = self.0.state.lock().unwrap();
        loop {
            let found = seen.bytes[from..].windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                return Some(from + at + text.len());
            }
            let left = until.saturating_duration_since(Instant::now());
            if seen.ended || left.is_zero() {
                return None;
            }
            seen = self.0.more.wait_timeout(seen, left).unwrap().0;
        }
    }

    fn ended(&self, until: Instant) {
        let mut seen = self.0.state.lock().unwrap();
        while !seen.ended && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            seen = self.0.more.wait_timeout(seen, left).unwrap().0;
        }
    }
}

/// What a command in the guest answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it printed, both streams, with plain line ends.
    pub text: String,
}

/// A running `wirevm`, killed when dropped. A failure shows its console, its messages and the links around it.
pub struct Vm {
    child: Child,
    stdin: Option<Box<dyn Write>>,
    console: Stream,
    messages: Stream,
    /// How much of the console [`Self::expect`] has consumed.
    seen: usize,
    netns: Option<Netns>,
    /// How long the end of the output may lag behind the process's. A terminal has no end while the test holds it.
    lag: Duration,
}

impl Vm {
    /// Starts `command` with its console on pipes.
    pub fn start(command: &mut Command) -> Self {
        let mut vm = Self::start_unread(command);
        vm.console = Stream::of(vm.child.stdout.take().expect("piped"));
        vm.messages = Stream::of(vm.child.stderr.take().expect("piped"));
        vm.lag = Duration::from_secs(2);
        vm
    }

    /// Starts `command` with its console on pipes that stay open, and nobody reads what it prints.
    pub fn start_unread(command: &mut Command) -> Self {
        Self::spawn(command.stderr(Stdio::piped()))
    }

    /// The same, and its messages go to `messages`.
    pub fn start_telling(command: &mut Command, messages: Stdio) -> Self {
        Self::spawn(command.stderr(messages))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Self {
            stdin: child.stdin.take().map(|stdin| Box::new(stdin) as _),
            console: Stream::default(),
            messages: Stream::default(),
            child,
            seen: 0,
            netns: None,
            lag: Duration::ZERO,
        }
    }

    /// Starts `command` on a terminal of its own, as a shell does in the foreground. The console is what the terminal
    /// shows, with wirevm's messages among it.
    pub fn start_on_terminal(command: &Command) -> (Self, Terminal) {
        Self::watched(Self::on_terminal(in_a_session(command)))
    }

    /// The same in our own session: it has a terminal and is not controlled by it. The scheduler weighs sessions against
    /// each other (sched(7)), so that what is compared must not differ in this.
    pub fn start_before_terminal(command: &Command) -> (Self, Terminal) {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        Self::watched(Self::on_terminal(same))
    }

    fn watched((mut vm, terminal, master): (Self, Terminal, File)) -> (Self, Terminal) {
        vm.console = Stream::of(master);
        vm.lag = Duration::from_millis(100);
        (vm, terminal)
    }

    /// The same on a terminal that shows nothing: nobody reads what is printed.
    pub fn start_on_stalled_terminal(command: &Command) -> (Self, Terminal) {
        let (vm, terminal, _) = Self::on_terminal(in_a_session(command));
        (vm, terminal)
    }

    fn on_terminal(mut command: Command) -> (Self, Terminal, File) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        unlockpt(&master).expect("its other end");
        let end = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("its other end");
        let stdio = || Stdio::from(end.try_clone().expect("a descriptor"));
        let child = command
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let write = File::from(master.try_clone().expect("a descriptor"));
        let vm = Self {
            stdin: Some(Box::new(write)),
            console: Stream::default(),
            messages: Stream::default(),
            child,
            seen: 0,
            netns: None,
            lag: Duration::ZERO,
        };
        (vm, Terminal(end), File::from(master))
    }

    /// Starts `wirevm` with `args`, [varied](crate::varied), in a network namespace.
    pub fn start_in(netns: &Netns, args: &[&str]) -> Self {
        Self::start_by(netns, &[], args)
    }

    /// The same by another program, which takes its command line behind its own.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start_by(netns: &Netns, by: &[&str], args: &[&str]) -> Self {
        let path = crate::wirevm_path();
        let path = path.to_str().expect("a path in UTF-8");
        let mut words = by.iter().copied().chain([path]);
        let mut command = netns.command(words.next().unwrap_or(path));
        let mut vm = Self::start(command.args(words).args(crate::varied(args)));
        vm.netns = Some(netns.clone());
        vm
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that the guest has printed.
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// All that wirevm has said itself.
    pub fn messages(&self) -> String {
        self.messages.text()
    }

    /// Waits until the console shows `text`, and returns all that it showed since the last call.
    #[track_caller]
    pub fn expect(&mut self, text: &str, timeout: Duration) -> String {
        let Some(end) = self.console.find(self.seen, text, Instant::now() + timeout) else {
            panic!("the console does not show {text:?} within {timeout:?}\n{}", self.state());
        };
        self.take(end)
    }

    /// The same where nothing depends on it: whether the console shows `text` in time.
    pub fn shows(&mut self, text: &str, timeout: Duration) -> bool {
        let end = self.console.find(self.seen, text, Instant::now() + timeout);
        end.map(|end| self.take(end)).is_some()
    }

    /// As [`Self::expect`], of a guest's shell; Enter is pressed each time that it is silent for long, and it is said if that
    /// helped: a serial port that waits for an interrupt goes on at an input, and an interrupt that was lost is a defect.
    #[track_caller]
    pub fn expect_from_shell(&mut self, text: &str, timeout: Duration) -> String {
        const SILENT: Duration = Duration::from_secs(20);
        let until = Instant::now() + timeout;
        let mut pressed = false;
        loop {
            let slice = until.min(Instant::now() + SILENT);
            let before = self.console.0.state.lock().unwrap().bytes.len();
            if let Some(end) = self.console.find(self.seen, text, slice) {
                if pressed {
                    println!(
                        "note: the console was silent for {SILENT:?}, and went on when Enter was pressed"
                    );
                }
                return self.take(end);
            }
            let over = matches!(self.child.try_wait(), Ok(Some(_)));
            if slice == until || over {
                return self.expect(text, Duration::ZERO);
            }
            if self.console.0.state.lock().unwrap().bytes.len() == before {
                self.type_in("\n");
                pressed = true;
            }
        }
    }

    /// What the console showed up to `end`, which is seen then.
    fn take(&mut self, end: usize) -> String {
        let shown =
            String::from_utf8_lossy(&self.console.0.state.lock().unwrap().bytes[self.seen..end]).into_owned();
        self.seen = end;
        shown
    }

    /// Waits until wirevm's own messages show `text`.
    #[track_caller]
    pub fn expect_message(&mut self, text: &str, timeout: Duration) {
        if self.messages.find(0, text, Instant::now() + timeout).is_none() {
            panic!("wirevm does not say {text:?} within {timeout:?}\n{}", self.state());
        }
    }

    /// Types `text` on the console.
    #[track_caller]
    pub fn type_in(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        if let Err(error) = stdin.write_all(text.as_bytes()) {
            // Its last words come a moment later.
            let _ = self.child.wait();
            panic!("wirevm does not read its standard input: {error}\n{}", self.state());
        }
    }

    /// Closes the console's input, as the end of a file does.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Runs a command in the guest's shell, and waits for it.
    #[track_caller]
    pub fn shell(&mut self, command: &str, timeout: Duration) -> Output {
        // The marks are written so that the echo of the line does not have them.
        self.type_in(&format!("echo @''begin; {{ {command}; }} 2>&1; echo @''end $?@\n"));
        self.expect_from_shell("@begin", timeout);
        let text = self.expect_from_shell("@end ", timeout);
        let status = self.expect_from_shell("@", timeout);
        let text = text.trim_start_matches(['\r', '\n']).trim_end_matches("@end ").replace('\r', "");
        Output { status: status.trim_end_matches('@').parse().expect("a status"), text }
    }

    /// Runs a command in the guest's shell that must succeed, and returns what it printed.
    #[track_caller]
    pub fn sh(&mut self, command: &str, timeout: Duration) -> String {
        let output = self.shell(command, timeout);
        assert!(output.status == 0, "the guest's {command:?} failed with {output:?}\n{}", self.state());
        output.text
    }

    /// Sends a signal to wirevm.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our child");
    }

    /// The process that runs the guest: the one child of the other that is the same program.
    #[track_caller]
    pub fn machine_pid(&self) -> u32 {
        self.try_machine_pid().unwrap_or_else(|| panic!("no process runs the guest\n{}", self.state()))
    }

    /// The same, once there is one.
    pub fn try_machine_pid(&self) -> Option<u32> {
        let program = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        let is_child = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // proc_pid_stat(5): the name in brackets, the state, the parent.
            let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
            parent == Some(&self.pid().to_string()) && program(*pid) == program(self.pid())
        };
        let all = std::fs::read_dir("/proc").expect("/proc").flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.find(is_child)
    }

    /// Lets a guest that prints without end fill all that lies between it and a reader who does not read.
    pub fn fills_its_output(&self) {
        std::thread::sleep(Duration::from_secs(1));
    }

    /// Waits for the end of wirevm, and returns its exit status.
    #[track_caller]
    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let until = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                let soon = Instant::now() + self.lag;
                self.console.ended(soon);
                self.messages.ended(soon);
                return status;
            }
            assert!(Instant::now() < until, "wirevm did not end within {timeout:?}\n{}", self.state());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end of wirevm, which must have this exit status.
    #[track_caller]
    pub fn ends_with(&mut self, status: i32, timeout: Duration) {
        let ended = self.wait(timeout);
        let text = || match ended.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("status {:?}", ended.code()),
        };
        assert!(ended.code() == Some(status), "wirevm ended with {}, not {status}\n{}", text(), self.state());
    }

    /// What a person needs to understand a failure.
    pub fn state(&self) -> String {
        let mut text = format!(
            "--- the guest's console\n{}\n--- wirevm's messages\n{}\n",
            self.console().trim_end(),
            self.messages().trim_end()
        );
        if let Some(netns) = &self.netns {
            let _ = writeln!(text, "--- links\n{}", netns.state().trim_end());
        }
        text
    }
}

/// The terminal that a [`Vm`] runs on.
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Its settings, all of them.
    pub fn settings(&self) -> String {
        let settings = tcgetattr(&self.0).expect("a terminal");
        format!("{settings:?}")
    }

    /// Gives it another size, which the kernel tells those in its foreground.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.0, size).expect("a terminal");
    }
}

/// `command` as the first of a session of its own, which its standard input controls.
fn in_a_session(command: &Command) -> Command {
    let mut setsid = Command::new("setsid");
    setsid.arg("--ctty").arg(command.get_program()).args(command.get_args());
    setsid.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    setsid
}

impl Drop for Vm {
    /// The process that runs the guest ends with the other, but a moment later.
    fn drop(&mut self) {
        let machine = self.try_machine_pid();
        let _ = self.child.kill();
        let _ = self.child.wait();
        let until = Instant::now() + Duration::from_secs(2);
        while machine.is_some_and(|pid| std::path::Path::new(&format!("/proc/{pid}/cwd")).is_symlink())
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
