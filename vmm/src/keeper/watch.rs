//! A descriptor that the loop watches at times, and at times not.

use std::os::fd::RawFd;

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
