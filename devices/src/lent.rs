//! Eventfds that were lent to another process. An eventfd is one for all that have it, so that the other process can fill it, or take
//! away that it does not block: who writes to one looks first whether it has room, and who reads from one whether there is something.
//!
//! One who fills it between the look and the write has that write wait: nothing else holds for an eventfd, which has no write that fails
//! instead. Who waits for a thread that talks to such a process does so for a bounded time.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

fn is(event: &EventFd, flags: PollFlags) -> bool {
    // SAFETY: it is open for as long as it is borrowed.
    let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    poll(&mut [PollFd::new(&event, flags)], Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Whether it was written, and not read since.
pub(crate) fn is_pending(event: &EventFd) -> bool {
    is(event, PollFlags::IN)
}

/// Writes it; one that is full is pending as it is.
///
/// # Errors
/// The eventfd's.
pub(crate) fn raise(event: &EventFd) -> io::Result<()> {
    if is(event, PollFlags::OUT) { event.write(1) } else { Ok(()) }
}

/// Has it not be pending any more.
pub(crate) fn clear(event: &EventFd) {
    if is_pending(event) {
        let _ = event.read();
    }
}

/// Has whoever reads it empty, or writes it full, wait.
#[cfg(test)]
pub(crate) fn block(event: &EventFd) {
    // SAFETY: it is open for as long as it is borrowed.
    let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    rustix::io::ioctl_fionbio(event, false).unwrap();
}
