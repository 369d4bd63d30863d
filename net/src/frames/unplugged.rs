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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use vm_memory::VolatileSlice;

    use super::*;
    use crate::IovBuffer;

    fn send(backend: &mut dyn Backend, frame: &[u8]) -> io::Result<Sent> {
        let (mut frame, mut room) = (frame.to_vec(), IovBuffer::new());
        let mut iov = room.start();
        assert!(iov.push(VolatileSlice::from(&mut frame[..])));
        backend.send(&iov)
    }

    /// Whether `backend` says that nothing comes, and leaves the space as it is.
    fn is_silent(backend: &mut dyn Backend) -> bool {
        let (mut space, mut room) = ([7; 100], IovBuffer::new());
        let mut iov = room.start();
        assert!(iov.push(VolatileSlice::from(&mut space[..])));
        let received = backend.recv(&mut iov);
        drop(iov);
        received.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) && space == [7; 100]
    }

    #[test]
    fn nothing_passes_where_nothing_is_plugged_in() {
        let mut backend = Unplugged::new().unwrap();
        let error = send(&mut backend, &[1; 60]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETDOWN));
        assert!(is_silent(&mut backend));
    }

    #[test]
    fn a_way_out_brings_nothing_in_and_loses_what_finds_no_room() {
        let (device, host) = UnixDatagram::pair().unwrap();
        device.set_nonblocking(true).unwrap();
        device.send(b"for the other pair").unwrap();
        host.send(b"for the other pair").unwrap();
        let mut backend =
            SendOnly::new(device.into(), Offloads::default(), (Offloads::default(), 1500)).unwrap();
        assert!(is_silent(&mut backend));
        assert_eq!(send(&mut backend, b"a frame").unwrap(), Sent::Gone);
        let mut frame = [0; 100];
        assert_eq!((host.recv(&mut frame).unwrap(), host.recv(&mut frame).unwrap()), (18, 7));
        assert_eq!(&frame[..7], b"a frame");

        // Nobody would say when there is room again.
        let full = (0..10_000).find_map(|_| send(&mut backend, &[0; 1000]).err()).expect("it is bounded");
        assert_eq!(full.raw_os_error(), Some(libc::ENOBUFS));
        drop(host);
        let gone = send(&mut backend, &[0; 1000]).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ECONNREFUSED), "any other error is told as it is");
    }
}
