//! Descriptors that are held ready: to take back what was changed takes some, and that must go also where a start failed because
//! there were no more.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// As many as all of an undo has open at once, and some: the lock, the namespace, a record and one to be written, a socket, a
/// directory and a file in it.
const LEN: usize = 16;

/// The descriptors, for all wires of a [`Host`](super::Host) that have something to take back.
#[derive(Debug, Default)]
pub(crate) struct FdReserve(Mutex<Vec<OwnedFd>>);

impl FdReserve {
    /// Holds them, until [`release`](Self::release) or until nobody has the reserve.
    ///
    /// # Errors
    /// There are not so many.
    pub(crate) fn hold(&self) -> io::Result<()> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while held.len() < LEN {
            held.push(eventfd(0, EventfdFlags::CLOEXEC)?);
        }
        Ok(())
    }

    /// Lets go of them: from now on they are for whoever takes back.
    pub(crate) fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
