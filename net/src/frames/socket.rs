//! A backend without a host's network: the other end of the wire is a socket in somebody's hand.
//!
//! It needs no right and no `/dev/net/tun`, so that a device is tested with it anywhere. Each message of the socket is
//! one frame, header first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::{Backend, Iov, Offloads, RxFilter, Sent, sys};

/// One end of a `SOCK_SEQPACKET` pair, as a backend.
///
/// What a closed peer leaves behind is as a deleted tap: `EBADFD` from [`send`](Backend::send) and, after the frames
/// already sent, from [`recv`](Backend::recv).
#[derive(Debug)]
pub struct SocketBackend {
    socket: OwnedFd,
    offloads: Offloads,
    told: Arc<Mutex<Told>>,
}

/// What was last set: shared, for the backend is moved into a thread. No frame passes here.
#[derive(Debug, Default)]
struct Told {
    offloads: Option<Offloads>,
    filter: Option<RxFilter>,
    disabled: bool,
}

/// The other end of a [`SocketBackend`]: the wire.
#[derive(Debug)]
pub struct SocketPeer {
    socket: UnixDatagram,
    told: Arc<Mutex<Told>>,
}

impl SocketBackend {
    /// A connected pair. The backend never blocks; the peer blocks until it is told otherwise. The backend answers that
    /// it has no offloads.
    ///
    /// # Errors
    /// Those of `socketpair(2)`.
    pub fn pair() -> io::Result<(Self, SocketPeer)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, peer) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let peer = UnixDatagram::from(peer);
        peer.set_nonblocking(false)?;
        let told = Arc::<Mutex<Told>>::default();
        let backend = Self { socket, offloads: Offloads::default(), told: Arc::clone(&told) };
        Ok((backend, SocketPeer { socket: peer, told }))
    }

    /// The same, answering that the host end can do `offloads`.
    #[must_use]
    pub fn with_offloads(self, offloads: Offloads) -> Self {
        Self { offloads, ..self }
    }
}

impl SocketPeer {
    /// The socket: a `UnixDatagram` for its `send`, `recv`, timeouts and blocking mode, one frame a message, though the
    /// pair is `SOCK_SEQPACKET`, so that `recv` answers 0 when the backend is dropped.
    pub fn socket(&self) -> &UnixDatagram {
        &self.socket
    }

    /// Sends one frame, header first, to the backend.
    ///
    /// # Errors
    /// Those of `send(2)`.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }

    /// Waits for the next frame from the backend, header first.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub fn recv(&self) -> io::Result<Vec<u8>> {
        let mut frame = vec![0; 1 << 17];
        let len = self.socket.recv(&mut frame)?;
        frame.truncate(len);
        Ok(frame)
    }

    /// What [`Backend::set_offloads`] was last called with, if it was.
    pub fn accepted(&self) -> Option<Offloads> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).offloads
    }

    /// What [`Backend::set_filter`] was last called with, if it was.
    pub fn filter(&self) -> Option<RxFilter> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).filter.clone()
    }

    /// What [`Backend::set_enabled`] was last called with; enabled, where it was not.
    pub fn is_enabled(&self) -> bool {
        !self.told.lock().unwrap_or_else(PoisonError::into_inner).disabled
    }
}

impl Backend for SocketBackend {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        match sys::sendmsg(self.socket.as_fd(), frame) {
            Ok(_) => Ok(Sent::Gone),
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => Err(sys::wire_is_gone()),
            Err(error) => Err(error),
        }
    }

    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        match sys::recvmsg(self.socket.as_fd(), space) {
            Ok(0) => Err(sys::wire_is_gone()),
            // The peer is gone without having read all that was sent.
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => Err(sys::wire_is_gone()),
            result => result,
        }
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).offloads = Some(accepted);
        Ok(())
    }

    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).filter = Some(filter.clone());
        Ok(())
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).disabled = !enabled;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::VolatileSlice;

    use super::*;
    use crate::IovBuffer;

    fn send(backend: &mut SocketBackend, frame: &mut [u8]) -> io::Result<Sent> {
        let mut room = IovBuffer::new();
        let mut iov = room.start();
        assert!(iov.push(VolatileSlice::from(frame)));
        backend.send(&iov)
    }

    fn recv(backend: &mut SocketBackend, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        let mut room = IovBuffer::new();
        let mut iov = room.start();
        assert!(iov.push(VolatileSlice::from(first)) && iov.push(VolatileSlice::from(second)));
        backend.recv(&mut iov)
    }

    #[test]
    fn frames_pass_both_ways_one_a_message() {
        let (mut backend, peer) = SocketBackend::pair().unwrap();
        assert_eq!(send(&mut backend, &mut [1; 70_000]).unwrap(), Sent::Gone);
        assert_eq!(peer.recv().unwrap(), [1; 70_000]);

        peer.send(b"abcde").unwrap();
        peer.send(b"fg").unwrap();
        let (mut first, mut second) = ([0; 2], [0; 8]);
        assert_eq!(recv(&mut backend, &mut first, &mut second).unwrap(), 5);
        assert_eq!((&first, &second[..3]), (b"ab", &b"cde"[..]));
        assert_eq!(recv(&mut backend, &mut first, &mut second).unwrap(), 2);
        let error = recv(&mut backend, &mut first, &mut second).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_waits_can_be_lost() {
        let (mut backend, peer) = SocketBackend::pair().unwrap();
        (0..5).for_each(|frame| peer.send(&[frame; 100]).unwrap());
        backend.drain();
        let error = recv(&mut backend, &mut [0; 2], &mut [0; 200]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        peer.send(b"next").unwrap();
        assert_eq!(recv(&mut backend, &mut [0; 2], &mut [0; 8]).unwrap(), 4);
        // Of one whose peer is gone there is no end of nothing.
        drop(peer);
        backend.drain();
    }

    #[test]
    fn a_frame_larger_than_the_space_is_lost_with_an_error() {
        let (mut backend, peer) = SocketBackend::pair().unwrap();
        peer.send(b"abcde").unwrap();
        peer.send(b"fghi").unwrap();
        let (mut first, mut second) = ([0; 2], [0; 2]);
        let error = recv(&mut backend, &mut first, &mut second).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(recv(&mut backend, &mut first, &mut second).unwrap(), 4, "the next one is whole");
    }

    #[test]
    fn a_full_wire_says_not_now() {
        let (mut backend, peer) = SocketBackend::pair().unwrap();
        let error = std::iter::repeat_with(|| send(&mut backend, &mut [0; 60_000]))
            .take(100)
            .find_map(Result::err)
            .expect("the socket's buffer is bounded");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        peer.recv().unwrap();
        assert_eq!(send(&mut backend, &mut [0; 60_000]).unwrap(), Sent::Gone);
    }

    #[test]
    fn a_closed_peer_is_as_a_deleted_tap() {
        let (mut backend, peer) = SocketBackend::pair().unwrap();
        peer.send(b"last").unwrap();
        drop(peer);
        let (mut first, mut second) = ([0; 2], [0; 2]);
        assert_eq!(recv(&mut backend, &mut first, &mut second).unwrap(), 4);
        for error in [
            recv(&mut backend, &mut first, &mut second).unwrap_err(),
            send(&mut backend, &mut [0; 20]).unwrap_err(),
        ] {
            assert_eq!(error.raw_os_error(), Some(libc::EBADFD));
        }

        let (mut backend, peer) = SocketBackend::pair().unwrap();
        send(&mut backend, &mut [0; 20]).unwrap();
        drop(peer);
        let error = recv(&mut backend, &mut first, &mut second).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADFD), "also where it had not read all");
    }

    #[test]
    fn offloads_are_told_and_recorded() {
        let all = Offloads { csum: true, tso4: true, tso6: true, uso: true };
        let (backend, peer) = SocketBackend::pair().unwrap();
        let mut backend = backend.with_offloads(all);
        assert_eq!((backend.offloads(), peer.accepted()), (all, None));
        backend.set_offloads(Offloads { csum: true, ..Offloads::default() }).unwrap();
        assert_eq!(peer.accepted(), Some(Offloads { csum: true, ..Offloads::default() }));
        assert_eq!(backend.offloads(), all, "what it can does not change with what is set");
    }

    #[test]
    fn the_peer_knows_whether_the_queue_is_enabled() {
        let (mut backend, peer) = SocketBackend::pair().unwrap();
        assert!(peer.is_enabled(), "from the start");
        for enabled in [false, true, false] {
            backend.set_enabled(enabled).unwrap();
            assert_eq!(peer.is_enabled(), enabled);
        }
    }
}
