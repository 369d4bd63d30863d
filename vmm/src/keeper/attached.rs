//! The command that a run is for: a process of its own (`wirevm attach`, which nobody types) has the standard streams of the run, and
//! relays them between the guest's main command and whoever started wirevm. Its exit status is the command's, and becomes the run's.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::termios::{Termios, isatty, tcgetattr};

use super::terminal;
use crate::{report, sys};

/// How long it may take to notice that the machine is gone, where somebody wants an end.
const PATIENCE: Duration = Duration::from_secs(2);

/// The process. Dropped, it is killed, and the terminal given back.
pub(crate) struct Attached {
    child: Child,
    /// Readable once it has ended.
    pidfd: OwnedFd,
    /// The terminal as it was: it is raw where the process has no chance to give it back.
    before: Option<Termios>,
    status: Option<u8>,
    /// It was sent a signal that ends things.
    told: bool,
}

impl Attached {
    /// Starts it, for the machine `name`; with `log`, that is its output, and it has no input.
    ///
    /// # Errors
    /// There are no processes or descriptors left.
    pub(crate) fn start(name: &str, log: Option<File>) -> io::Result<Self> {
        let stdin = io::stdin();
        let terminal = log.is_none() && isatty(&stdin) && isatty(io::stdout());
        let before = if terminal { tcgetattr(&stdin).ok() } else { None };
        let mut command = Command::new("/proc/self/exe");
        command.arg("attach").args(terminal.then_some("--terminal")).arg("--").arg(name);
        if let Some(log) = log {
            command.stdin(File::open("/dev/null")?).stdout(log.try_clone()?).stderr(log);
        }
        // The keeper's signals are blocked, and this one is to end by one also before the command gets them.
        sys::before_exec(&mut command, sys::unblock_signals);
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process has an id");
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => {
                // It is, soon.
                report::set_raw(before.clone());
                Ok(Self { child, pidfd, before, status: None, told: false })
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// What is to be waited for, until it has ended.
    pub(crate) fn waits_for(&self) -> Option<RawFd> {
        self.status.is_none().then(|| self.pidfd.as_raw_fd())
    }

    /// Its exit status, once it has ended.
    pub(crate) fn status(&mut self) -> Option<u8> {
        if self.status.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.status = Some(shells(status));
            self.give_terminal_back();
        }
        self.status
    }

    /// Whether a signal that asks for an end is the command's: the first one is, as long as it runs. It gets it, unless a terminal has
    /// sent it to both.
    pub(crate) fn takes(&mut self, signal: i32, by_terminal: bool) -> bool {
        if std::mem::replace(&mut self.told, true) || self.status().is_some() {
            return false;
        }
        let pass_on = |signal| pidfd_send_signal(&self.pidfd, signal).is_ok();
        by_terminal || Signal::from_named_raw(signal).is_some_and(pass_on)
    }

    /// The machine is gone, and somebody wants an end: waits until this process has noticed, for no longer than it may take, and gives
    /// its exit status.
    pub(crate) fn finish(&mut self) -> u8 {
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as _, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&timeout));
        match self.status() {
            Some(status) => status,
            None => {
                self.kill();
                wirevm_agent::STATUS_FAILED
            }
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.give_terminal_back();
    }

    fn give_terminal_back(&mut self) {
        if let Some(before) = self.before.take() {
            report::set_raw(None);
            terminal::give_back(&before);
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.status().is_none() {
            self.kill();
        }
    }
}

/// An exit status as shells have it: 128 and the number of the signal that ended the process.
fn shells(status: ExitStatus) -> u8 {
    let by_signal = status.signal().map(|signal| 128 | signal & 127);
    status
        .code()
        .or(by_signal)
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(wirevm_agent::STATUS_FAILED)
}
