//! The end of a wire that is not there: what a NIC has while its link is down.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::{Backend, Iov, Offloads, Sent};

/// Nothing is plugged in: every frame is lost with `ENETDOWN`, without a system call, and none comes.
#[derive(Debug)]
pub struct Unplugged {
    /// Never written.
    nothing: OwnedFd,
}

impl Unplugged {
    /// # Errors
    /// There is no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { nothing: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }
}

impl Backend for Unplugged {
    fn fd(&self) -> BorrowedFd<'_> {
        self.nothing.as_fd()
    }

    fn send(&mut self, _: &Iov<'_>) -> io::Result<Sent> {
        Err(io::Error::from_raw_os_error(libc::ENETDOWN))
    }

    fn recv(&mut self, _: &mut Iov<'_>) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Whatever is asked: nothing comes of it.
    fn offloads(&self) -> Offloads {
        Offloads { csum: true, tso4: true, tso6: true, uso: true }
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn drain(&mut self) {}
}

/// The way out for a queue pair past the last queue of its wire: what it sends goes out by a queue that another pair has, and
/// nothing comes in here.
#[derive(Debug)]
pub(crate) struct SendOnly {
    device: OwnedFd,
    /// Never written.
    nothing: OwnedFd,
    offloads: Offloads,
    merges: (Offloads, u16),
}

impl SendOnly {
    /// By `device`, a second descriptor of a queue that can do `offloads` and [`merges`](Backend::merges).
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(crate) fn new(device: OwnedFd, offloads: Offloads, merges: (Offloads, u16)) -> io::Result<Self> {
        let nothing = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { device, nothing, offloads, merges })
    }
}

impl Backend for SendOnly {
    /// One that never tells: what the device tells is the other pair's.
    fn fd(&self) -> BorrowedFd<'_> {
        self.nothing.as_fd()
    }

    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        match crate::sys::writev(self.device.as_fd(), frame) {
            // Nobody would tell when there is room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::from_raw_os_error(libc::ENOBUFS))
            }
            result => result.map(|_| Sent::Gone),
        }
    }

    fn recv(&mut self, _: &mut Iov<'_>) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn merges(&self) -> (Offloads, u16) {
        self.merges
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn drain(&mut self) {}
}
