//! What the guest says of itself (sd_notify(3), over vsock): that it is up. systemd in the guest is told where by the credential
//! `vmm.notify_socket`, and wirevm's agent knows. A connection of the guest's to that port of the host ends here, and in no socket.
//!
//! **Invariant: what the guest says costs bounded memory.**

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

pub(crate) use wirevm_agent::NOTIFY_PORT;

/// Connections that are read at once; a further one takes the place of the oldest.
pub(crate) const STREAMS_MAX: usize = 4;
/// How much one may say, in bytes.
const WORDS_MAX: usize = 4096;

/// The connections of the guest's to this port, each with what was said on it.
#[derive(Debug, Default)]
pub(crate) struct GuestWords {
    streams: [Option<(UnixStream, Vec<u8>)>; STREAMS_MAX],
    next: usize,
    /// Those that the loop may still watch: it looks what to wait for between two events.
    over: Vec<UnixStream>,
}

impl GuestWords {
    /// The other end of a new connection.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn open(&mut self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // The guest's device has one thread for all connections.
        theirs.set_nonblocking(true)?;
        let free = self.streams.iter().position(Option::is_none).unwrap_or_else(|| {
            self.next = (self.next + 1) % STREAMS_MAX;
            self.next
        });
        self.end(free);
        self.streams[free] = Some((ours, Vec::new()));
        Ok(theirs)
    }

    /// What is to be waited for.
    pub(crate) fn wait_for(&self) -> [Option<RawFd>; STREAMS_MAX] {
        std::array::from_fn(|at| self.streams[at].as_ref().map(|(stream, _)| stream.as_raw_fd()))
    }

    /// Reads what is there on connection number `at`. True: the guest says that it is up.
    pub(crate) fn read(&mut self, at: usize) -> bool {
        let Some((stream, said)) = self.streams.get_mut(at).and_then(Option::as_mut) else { return false };
        let mut bytes = [0; 512];
        let over = match stream.read(&mut bytes) {
            Ok(0) => true,
            Ok(len) => {
                said.extend(&bytes[..len]);
                said.len() >= WORDS_MAX
            }
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        // A line is said once it has its end, or all is said.
        let whole = if over {
            said.len()
        } else {
            said.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
        };
        let up = said[..whole].split(|byte| *byte == b'\n').any(|line| line == b"READY=1");
        if over || up {
            self.end(at);
        }
        up
    }

    fn end(&mut self, at: usize) {
        self.over = self.streams[at].take().map(|(stream, _)| stream).into_iter().collect();
        // systemd waits for this end after each thing that it says, and does nothing meanwhile.
        self.over.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Whether that, said piece by piece on one connection, says that the guest is up; and whether the connection is still there.
    fn say(pieces: &[&[u8]], close: bool) -> (bool, bool) {
        let mut words = GuestWords::default();
        let mut guest = words.open().unwrap();
        assert_eq!(guest.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "it does not wait");
        let mut up = false;
        for piece in pieces {
            // It may have been closed on the guest.
            let _ = guest.write_all(piece);
            up |= words.read(0);
        }
        if close {
            drop(guest);
            up |= words.read(0);
        }
        (up, words.wait_for()[0].is_some())
    }

    #[test]
    fn a_guest_is_up_when_it_says_so() {
        assert_eq!(say(&[b"READY=1\n"], false), (true, false));
        assert_eq!(say(&[b"X_SYSTEMD_SIGNALS_LEVEL=2\nREA", b"DY=1\nSTATUS=x"], false), (true, false));
        assert_eq!(say(&[b"READY=1"], false), (false, true), "there may be more of that line");
        assert_eq!(say(&[b"READY=1"], true), (true, false));
        for other in
            [&b"READY=0\n"[..], b"NOTREADY=1\n", b"READY=10\n", b"STOPPING=1\n", b"\n\n", b"\0READY=1\n"]
        {
            assert_eq!(say(&[other], true), (false, false), "{other:?}");
        }
    }

    #[test]
    fn who_has_said_all_sees_the_end_of_the_connection_at_once() {
        let mut words = GuestWords::default();
        let mut guest = words.open().unwrap();
        guest.write_all(b"X_SYSTEMD_HOSTNAME=web").unwrap();
        assert!(!words.read(0));
        // As sd_notify(3) does over vsock, which then waits.
        guest.shutdown(Shutdown::Write).unwrap();
        assert!(!words.read(0));
        assert_eq!(guest.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn who_says_too_much_is_heard_no_more() {
        let long = [b'x'; 512];
        assert_eq!(say(&[&long[..]; 7], false), (false, true));
        assert_eq!(say(&[&long[..]; 9], false), (false, false));
        let mut words = GuestWords::default();
        let guests: Vec<_> = (0..20).map(|_| words.open().unwrap()).collect();
        assert_eq!(words.wait_for().iter().flatten().count(), STREAMS_MAX);
        let watched = words.wait_for().map(Option::unwrap);
        drop(guests);
        for (at, fd) in watched.into_iter().enumerate() {
            assert!(!words.read(at));
            assert_eq!(words.wait_for()[at], None);
            // The loop takes it out of its set, and then it may be closed.
            assert!(std::fs::exists(format!("/proc/self/fd/{fd}")).unwrap(), "it is watched still");
        }
        assert!(!words.read(STREAMS_MAX));
        assert_eq!(words.wait_for(), [None; STREAMS_MAX]);
    }
}
