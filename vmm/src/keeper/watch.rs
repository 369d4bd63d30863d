//! A descriptor that the loop watches at times, and at times not; and when it tries again to have one.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use event_manager::{Error, EventOps, EventSet, Events};

/// Whether the loop watches a descriptor, for what, and under which name.
#[derive(Debug)]
pub(crate) struct Watch {
    token: u32,
    set: EventSet,
    on: Option<RawFd>,
    /// It is a file, which cannot be watched (`EPERM`, epoll_ctl(2)): it is always ready.
    always: bool,
}

impl Watch {
    /// Not watched yet.
    pub(crate) fn new(token: u32, set: EventSet) -> Self {
        Self { token, set, on: None, always: false }
    }

    /// Has the loop watch `fd`, or nothing.
    ///
    /// # Errors
    /// There is no memory left for it.
    pub(crate) fn set(&mut self, fd: Option<RawFd>, ops: &mut EventOps) -> Result<(), Error> {
        if fd == self.on || (self.always && fd.is_some()) {
            return Ok(());
        }
        if let Some(old) = self.on.take() {
            ops.remove(Events::with_data_raw(old, self.token, self.set))?;
        }
        let Some(fd) = fd else { return Ok(()) };
        match ops.add(Events::with_data_raw(fd, self.token, self.set)) {
            Err(Error::Epoll(errno)) if errno.errno() == libc::EPERM => {
                self.always = true;
                Ok(())
            }
            added => added.map(|()| self.on = Some(fd)),
        }
    }

    /// Whether it cannot be watched, for it is always ready.
    pub(crate) fn is_always_ready(&self) -> bool {
        self.always
    }
}

/// When something is tried again that failed, for want of descriptors as a rule.
#[derive(Debug, Default)]
pub(crate) struct Retry(Option<Instant>);

impl Retry {
    const AFTER: Duration = Duration::from_secs(1);

    /// Whether it can be tried now.
    pub(crate) fn is_due(&self) -> bool {
        self.0.is_none_or(|at| at <= Instant::now())
    }

    /// It has failed: whether it had not before.
    pub(crate) fn failed(&mut self) -> bool {
        self.0.replace(Instant::now() + Self::AFTER).is_none()
    }

    /// It is done.
    pub(crate) fn done(&mut self) {
        self.0 = None;
    }

    /// When it is to be tried again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_said_once_and_tried_after_a_while() {
        let mut retry = Retry::default();
        assert!(retry.is_due() && retry.deadline().is_none());
        assert!(retry.failed() && !retry.is_due() && !retry.failed());
        assert!(retry.deadline().is_some_and(|at| at > Instant::now()));
        retry.0 = Some(Instant::now());
        assert!(retry.is_due());
        retry.done();
        assert!(retry.deadline().is_none() && retry.failed(), "a later one is said again");
    }
}
