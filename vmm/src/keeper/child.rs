//! The machine's process, as its keeper knows it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, pidfd_open, pidfd_send_signal, waitpid,
};

/// A child of this process. Dropped, it is killed and waited for: nothing of it holds a link any more.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    /// Readable once it has ended.
    pidfd: OwnedFd,
    reaped: bool,
}

/// How a process ended, where not as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// By this signal.
    Signal(i32),
    /// By itself, with this status.
    Exit(i32),
}

impl Child {
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn new(pid: Pid) -> io::Result<Self> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).inspect_err(|_| {
            // It ends by itself, too, once its channel closes.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        })?;
        Ok(Self { pid, pidfd, reaped: false })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it has ended, and waits to be waited for.
    pub(crate) fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits no longer than `most` for that.
    pub(crate) fn ends_within(&self, most: Duration) -> bool {
        let until = Instant::now() + most;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout)) {
                Err(rustix::io::Errno::INTR) if !left.is_zero() => {}
                polled => return polled.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Nobody waits for its end any more: who takes over what is left of a process does.
    pub(crate) fn leave(&mut self) {
        self.reaped = true;
    }

    /// Kills it.
    pub(crate) fn kill(&self) {
        // It may have ended.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits for its end, and says how it ended.
    pub(crate) fn wait(&mut self) -> Death {
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(Some((_, status))) => {
                    self.reaped = true;
                    return death(status);
                }
                // Somebody has waited for it in our place; it has ended all the same.
                Ok(None) | Err(_) => {
                    self.reaped = true;
                    return Death::Exit(0);
                }
            }
        }
    }
}

fn death(status: WaitStatus) -> Death {
    match status.terminating_signal() {
        Some(signal) => Death::Signal(signal),
        None => Death::Exit(status.exit_status().unwrap_or(0)),
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            self.wait();
        }
    }
}

impl AsRawFd for Child {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

/// The name of a signal, as kill(1) has it.
pub(crate) fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGSYS => "SIGSYS",
        libc::SIGTERM => "SIGTERM",
        libc::SIGTRAP => "SIGTRAP",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn nobody_waits_without_end_for_a_process_that_does_not_end() {
        let mut sleeps = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let mut child = Child::new(Pid::from_child(&sleeps)).unwrap();
        assert!(!child.ends_within(Duration::from_millis(10)));
        child.kill();
        assert!(child.ends_within(Duration::from_secs(20)));
        // Who has left it leaves its end to others, too.
        child.leave();
        drop(child);
        assert_eq!(sleeps.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
