//! An eventfd as rustix wants it.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The descriptor of an eventfd, which knows no [`std::os::fd::AsFd`] itself.
pub(crate) fn of(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd owns the descriptor, and is borrowed for as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
