//! A further queue of a tap, tun or macvtap whose first one is a backend of its kind: frames, and nothing of the link's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::host::DeferredUndo;
use crate::{Backend, HEADER_LEN, Offloads, sys};

/// One more queue of a link. What is the link's and not the queue's (its offloads, its address, its groups) is set by the first
/// one.
#[derive(Debug)]
pub(crate) struct Queue {
    // Before `_found`: a link can be given back only after the last descriptor is closed.
    device: OwnedFd,
    _found: Option<Arc<DeferredUndo>>,
    offloads: Offloads,
    enabled: bool,
}

impl Queue {
    /// The queue of `device`, which is attached and set up, on a link that can do `offloads`; a persistent one is given back as
    /// `found`.
    pub(crate) fn new(device: OwnedFd, found: Option<Arc<DeferredUndo>>, offloads: Offloads) -> Self {
        Self { device, _found: found, offloads, enabled: true }
    }
}

impl Backend for Queue {
    fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// They are the link's: the first queue sets them.
    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        set_enabled(self.device.as_fd(), &mut self.enabled, enabled)
    }

    fn vhost_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }
}

/// Attaches or detaches the queue of `fd`, which is as `is` says: the kernel refuses to do it twice.
pub(crate) fn set_enabled(fd: BorrowedFd<'_>, is: &mut bool, enabled: bool) -> io::Result<()> {
    if *is == enabled {
        return Ok(());
    }
    match sys::tun_set_queue(fd, enabled) {
        // The link is deleted, and brings nothing anyhow.
        Err(_) if !enabled && sys::tun_get_iff(fd).is_err() => {}
        result => result?,
    }
    *is = enabled;
    if !enabled {
        // The tun driver has forgotten what waited; macvtap would bring it when the queue is attached again.
        drain(fd);
    }
    Ok(())
}

/// More frames than wait anywhere: who sends without end holds nobody up.
const WAITING_MAX: usize = 1 << 16;

/// Loses the frames that wait at `fd`. A read of the header alone takes the frame.
pub(crate) fn drain(fd: BorrowedFd<'_>) {
    for _ in 0..WAITING_MAX {
        if rustix::io::read(fd, &mut [0; HEADER_LEN]).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_queue_whose_link_is_deleted_is_detached_and_not_attached_again() {
        // What is no tun device says to each question what a deleted link does.
        let (device, host) = UnixDatagram::pair().unwrap();
        device.set_nonblocking(true).unwrap();
        let mut queue = Queue::new(device.into(), None, Offloads::default());
        host.send(&[1; 60]).unwrap();
        queue.set_enabled(true).unwrap();
        let waits = |queue: &Queue| rustix::io::read(queue.fd(), &mut [0; 100]).is_ok();
        assert!(waits(&queue), "it was enabled, and nothing happens");

        host.send(&[2; 60]).unwrap();
        host.send(&[3; 60]).unwrap();
        queue.set_enabled(false).unwrap();
        assert!(!waits(&queue), "what waited is lost");
        host.send(&[4; 60]).unwrap();
        queue.set_enabled(false).unwrap();
        queue.set_enabled(true).unwrap_err();
        assert!(!queue.enabled, "all is as before");
        assert!(waits(&queue));
    }
}
