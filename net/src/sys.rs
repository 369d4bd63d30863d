//! The system calls of this crate that no safe wrapper has: frames in and out, the ioctls of `/dev/net/tun`
//! (kernel `Documentation/networking/tuntap.rst`, `linux/if_tun.h`), and random bytes.
#![allow(unsafe_code)]

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Iov;

/// The descriptor is attached to an interface that is deleted: the wire is gone for good.
pub(crate) fn wire_is_gone() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADFD)
}

/// The frame is larger than the space for it, and is lost.
fn frame_too_large() -> io::Error {
    io::Error::from_raw_os_error(libc::EMSGSIZE)
}

/// Turns -1 into the error that `errno` names.
fn checked(result: isize) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

/// Sends one frame as one message of a socket.
pub(crate) fn sendmsg(fd: BorrowedFd<'_>, frame: &Iov<'_>) -> io::Result<usize> {
    let iovecs = frame.as_iovecs();
    // SAFETY: all zeroes is a `msghdr` without name, control data or buffers.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len();
    // SAFETY: as in `writev`; sendmsg does not write through `msg_iov`.
    checked(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_NOSIGNAL) })
}

/// Receives one frame as one message of a socket; a larger one than the space is `EMSGSIZE`, and lost.
pub(crate) fn recvmsg(fd: BorrowedFd<'_>, space: &mut Iov<'_>) -> io::Result<usize> {
    let len = space.len();
    let iovecs = space.as_iovecs();
    // SAFETY: as in `sendmsg`.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len();
    // SAFETY: as in `readv`; the iovecs themselves are only read.
    let read = checked(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, libc::MSG_TRUNC) })?;
    if read > len { Err(frame_too_large()) } else { Ok(read) }
}
