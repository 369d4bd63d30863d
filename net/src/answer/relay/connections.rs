//! DNS over TCP (RFC 7766), to which a guest turns where an answer does not fit: what one end of a connection says, the other is told.
//! No byte is looked at.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketType, bind, connect, listen, sockopt};

use super::{PORT, socket};
use crate::sys;

/// How many a guest has at once: of one more, the one that was silent for the longest gives way.
const CONNECTIONS: usize = 16;
/// So many bytes of an end wait for the other.
const CHUNK: usize = 4096;
/// As many chunks of an end are handed on before something else has its turn.
const BURST: usize = 4;

/// The connections of one link's guest.
#[derive(Debug)]
pub(super) struct Connections {
    /// One for each of the host's addresses.
    listeners: Vec<TcpListener>,
    resolver: SocketAddr,
    all: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    guest: End,
    resolver: End,
    /// When either said something last.
    last: Instant,
}

#[derive(Debug)]
struct End {
    stream: TcpStream,
    /// What the other end said, and this one has not taken yet.
    pending: Vec<u8>,
    /// It says no more, and the other end knows.
    ended: bool,
    watched: EventFlags,
}

impl Connections {
    /// Listens at the addresses `hosts` for what comes in by the link of that index.
    pub(super) fn listen(index: u32, hosts: &[IpAddr], resolver: IpAddr) -> io::Result<Self> {
        let listener = |&host| {
            let listener = socket(host, SocketType::STREAM)?;
            sys::bind_to_link(listener.as_fd(), index)?;
            // Connections of the one before may still be coming to their ends.
            sockopt::set_socket_reuseaddr(&listener, true)?;
            bind(&listener, &SocketAddr::new(host, PORT))?;
            listen(&listener, CONNECTIONS as i32)?;
            Ok(TcpListener::from(listener))
        };
        let listeners = hosts.iter().map(listener).collect::<io::Result<_>>()?;
        Ok(Self { listeners, resolver: SocketAddr::new(resolver, PORT), all: Vec::new() })
    }

    /// Where connections come in.
    pub(super) fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listeners.iter().map(AsFd::as_fd)
    }

    /// Takes what connections have come, which `epoll` watches from then on, and hands on what they say.
    pub(super) fn hand_on(&mut self, epoll: &OwnedFd) {
        for listener in &self.listeners {
            let Ok((guest, _)) = listener.accept() else { continue };
            // If it fails, the guest's end is closed.
            let Ok(new) = Connection::new(guest, self.resolver, epoll) else { continue };
            if self.all.len() == CONNECTIONS
                && let Some((silent, _)) = self.all.iter().enumerate().min_by_key(|(_, one)| one.last)
            {
                self.all.swap_remove(silent);
            }
            self.all.push(new);
        }
        self.all.retain_mut(|one| one.hand_on(epoll).unwrap_or(false));
    }
}

impl Connection {
    fn new(guest: TcpStream, resolver: SocketAddr, epoll: &OwnedFd) -> io::Result<Self> {
        guest.set_nonblocking(true)?;
        let to_resolver = socket(resolver.ip(), SocketType::STREAM)?;
        match connect(&to_resolver, &resolver) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let resolver = TcpStream::from(to_resolver);
        let (guest, resolver) = (End::new(guest, epoll)?, End::new(resolver, epoll)?);
        Ok(Self { guest, resolver, last: Instant::now() })
    }

    /// Hands on what there is; false where it is over.
    fn hand_on(&mut self, epoll: &OwnedFd) -> io::Result<bool> {
        let Self { guest, resolver, last } = self;
        if pass(guest, resolver)? | pass(resolver, guest)? {
            *last = Instant::now();
        }
        guest.watch(resolver, epoll)?;
        resolver.watch(guest, epoll)?;
        let is_broken = guest.stream.take_error()?.or(resolver.stream.take_error()?).is_some();
        let is_over = guest.ended && resolver.ended;
        Ok(!is_broken && !is_over)
    }
}

/// Has `to` be told what `from` says; true where it said something.
fn pass(from: &mut End, to: &mut End) -> io::Result<bool> {
    let mut has_said = false;
    for _ in 0..BURST {
        if to.pending.is_empty() && !from.ended {
            let mut chunk = [0; CHUNK];
            let Some(len) = unless_waiting(from.stream.read(&mut chunk))? else { break };
            has_said = true;
            from.ended = len == 0;
            if from.ended {
                to.stream.shutdown(Shutdown::Write)?;
            }
            to.pending.extend(&chunk[..len]);
        }
        if to.pending.is_empty() {
            break;
        }
        let Some(len) = unless_waiting(to.stream.write(&to.pending))? else { break };
        to.pending.drain(..len);
    }
    Ok(has_said)
}

/// None where it would have to wait.
fn unless_waiting(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => Ok(None),
        done => done.map(Some),
    }
}

impl End {
    fn new(stream: TcpStream, epoll: &OwnedFd) -> io::Result<Self> {
        let watched = EventFlags::IN;
        epoll::add(epoll, &stream, EventData::new_u64(0), watched)?;
        Ok(Self { stream, pending: Vec::new(), ended: false, watched })
    }

    /// Has `epoll` watch it for what it can do now: to say something if `other` has taken all, and to take what waits.
    fn watch(&mut self, other: &Self, epoll: &OwnedFd) -> io::Result<()> {
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::IN, other.pending.is_empty() && !self.ended);
        wanted.set(EventFlags::OUT, !self.pending.is_empty());
        if wanted != self.watched {
            epoll::modify(epoll, &self.stream, EventData::new_u64(0), wanted)?;
            self.watched = wanted;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    /// The connections to a resolver, where a guest asks, and the resolver.
    fn connections() -> (Connections, OwnedFd, SocketAddr, TcpListener) {
        let bound = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (listener, resolver) = (bound(), bound());
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let to = resolver.local_addr().unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        (Connections { listeners: vec![listener], resolver: to, all: Vec::new() }, epoll, at, resolver)
    }

    /// A guest's connection, and the resolver's end of it.
    fn connect(
        (all, epoll, at, resolver): &mut (Connections, OwnedFd, SocketAddr, TcpListener),
    ) -> (TcpStream, TcpStream) {
        let guest = TcpStream::connect(*at).unwrap();
        all.hand_on(epoll);
        let (asked, _) = resolver.accept().unwrap();
        for stream in [&guest, &asked] {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        (guest, asked)
    }

    fn is_closed(stream: &mut TcpStream) -> bool {
        match stream.read(&mut [0]) {
            Ok(len) => len == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    #[test]
    fn who_was_silent_for_the_longest_gives_way_to_one_more() {
        let mut relay = connections();
        let mut all: Vec<_> = (0..CONNECTIONS).map(|_| connect(&mut relay)).collect();
        assert_eq!(relay.0.all.len(), CONNECTIONS);
        // One end alone says something: of the first the guest, of the second the resolver.
        for (at, of_guest) in [(0, true), (1, false)] {
            let (guest, asked) = &mut all[at];
            let (from, to) = if of_guest { (guest, asked) } else { (asked, guest) };
            from.write_all(b"x").unwrap();
            relay.0.hand_on(&relay.1);
            to.read_exact(&mut [0]).unwrap();
        }
        let mut last = connect(&mut relay);
        assert_eq!(relay.0.all.len(), CONNECTIONS);
        assert!(is_closed(&mut all[2].0) && is_closed(&mut all[2].1), "the third");
        all.remove(2);
        for (guest, asked) in all.iter_mut().chain([&mut last]) {
            guest.write_all(b"y").unwrap();
            relay.0.hand_on(&relay.1);
            asked.read_exact(&mut [0]).unwrap();
        }
    }

    #[test]
    fn what_one_end_resets_is_over_for_the_other() {
        for of_guest in [true, false] {
            let mut relay = connections();
            let (guest, asked) = connect(&mut relay);
            // Who goes without having read what there is resets the connection.
            let (gone, mut left) = if of_guest { (guest, asked) } else { (asked, guest) };
            left.write_all(b"unread").unwrap();
            relay.0.hand_on(&relay.1);
            gone.peek(&mut [0]).unwrap();
            drop(gone);
            relay.0.hand_on(&relay.1);
            assert_eq!(relay.0.all.len(), 0, "guest {of_guest}");
            assert!(is_closed(&mut left), "guest {of_guest}");
        }
    }
}
