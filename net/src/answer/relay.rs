//! A DNS server for the guest where the host's own is out of its reach: queries at the host's address on the link are handed on to a
//! resolver on the host's loopback (systemd-resolved's, Docker's, a dnsmasq), and its answers back: over UDP here, over TCP in
//! `connections.rs`.
//!
//! What the guest sends is hostile. A query over UDP is handed on as it is but for its ID, and only if it is one (RFC 1035 §4.1.1) and
//! not long;
//! [`WAITING`] at most wait for their answers, so that a guest keeps no more of the resolver busy. Only what comes in by the guest's
//! link is heard, and an answer leaves by that link only.

mod connections;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use self::connections::Connections;
use crate::sys;

/// Where DNS servers listen (RFC 1035 §4.2).
pub(crate) const PORT: u16 = 53;
/// How many queries may wait for answers, and for how long: resolvers ask again after 5 s (resolv.conf(5)).
const WAITING: usize = 64;
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest query: one frame.
const QUERY_MAX: usize = 1472;
/// The longest datagram.
const ANSWER_MAX: usize = 65_535;
/// As many datagrams are taken from a socket before something else has its turn.
const BURST: usize = 16;
/// A message's header (RFC 1035 §4.1.1).
const HEADER_LEN: usize = 12;

/// The relay of one link. Dropped, nobody listens there any more.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Of all sockets.
    epoll: OwnedFd,
    /// One for each of the host's addresses.
    ears: Vec<UdpSocket>,
    /// To the resolver, and from nobody else.
    resolver: UdpSocket,
    connections: Connections,
    waiting: [Option<Waiting>; WAITING],
    buffer: Vec<u8>,
}

/// A query that was handed on.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Its ID as the resolver knows it, and as the guest does.
    id: [u8; 2],
    own_id: [u8; 2],
    from: SocketAddr,
    ear: usize,
    since: Instant,
}

impl Relay {
    /// Listens at the addresses `hosts` for what comes in by the link of that index, and hands it on to `resolver`.
    ///
    /// # Errors
    /// `AddrInUse` where somebody listens there already, `PermissionDenied` without `CAP_NET_BIND_SERVICE`.
    pub(crate) fn open(index: u32, hosts: &[IpAddr], resolver: IpAddr) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut ears = Vec::new();
        for &host in hosts {
            let ear = socket(host, SocketType::DGRAM)?;
            sys::bind_to_link(ear.as_fd(), index)?;
            bind(&ear, &SocketAddr::new(host, PORT))?;
            ears.push(UdpSocket::from(ear));
        }
        let connections = Connections::listen(index, hosts, resolver)?;
        let to_resolver = socket(resolver, SocketType::DGRAM)?;
        connect(&to_resolver, &SocketAddr::new(resolver, PORT))?;
        let resolver = UdpSocket::from(to_resolver);
        let all = ears.iter().chain([&resolver]).map(AsFd::as_fd);
        for socket in all.chain(connections.listeners()) {
            epoll::add(&epoll, socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        Ok(Self { epoll, ears, resolver, connections, waiting: [None; WAITING], buffer: vec![0; ANSWER_MAX] })
    }

    /// Readable when there is something to hand on.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Hands on what there is, and no more than some of it at once.
    pub(crate) fn hand_on(&mut self) {
        for ear in 0..self.ears.len() {
            for _ in 0..BURST {
                match self.ears[ear].recv_from(&mut self.buffer[..=QUERY_MAX]) {
                    Ok((len, from)) => self.ask(ear, len, from),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Of an answer that could not be sent.
                    Err(_) => {}
                }
            }
        }
        for _ in 0..BURST {
            match self.resolver.recv(&mut self.buffer) {
                Ok(len) => self.answer(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Nobody listens at the resolver's port: the guest asks again.
                Err(_) => {}
            }
        }
        self.connections.hand_on(&self.epoll);
    }

    /// Hands a query of so many bytes on to the resolver, if it is one and there is a place for it.
    fn ask(&mut self, ear: usize, len: usize, from: SocketAddr) {
        let now = Instant::now();
        let is_free = |one: &Option<Waiting>| one.is_none_or(|one| now.duration_since(one.since) > PATIENCE);
        let Some(place) = self.waiting.iter().position(is_free) else { return };
        let query = &mut self.buffer[..len];
        if !is_query(query) {
            return;
        }
        let own_id = [query[0], query[1]];
        // Not to be guessed, and the place is in it.
        let mut id = [0; 2];
        if sys::random(&mut id).is_err() {
            return;
        }
        id[1] = id[1] & !(WAITING as u8 - 1) | place as u8;
        query[..2].copy_from_slice(&id);
        // What does not go, the guest sends again.
        if self.resolver.send(query).is_ok() {
            self.waiting[place] = Some(Waiting { id, own_id, from, ear, since: now });
        }
    }

    /// Hands an answer of so many bytes to who asked.
    fn answer(&mut self, len: usize) {
        let answer = &mut self.buffer[..len];
        let &mut [a, b, flags, ..] = answer else { return };
        let waiting = &mut self.waiting[usize::from(b) % WAITING];
        let Some(asked) = waiting.take_if(|asked| asked.id == [a, b] && flags & IS_ANSWER != 0) else {
            return;
        };
        answer[..2].copy_from_slice(&asked.own_id);
        let _ = self.ears[asked.ear].send_to(answer, asked.from);
    }
}

/// In the third byte of a message: it is an answer, and the kind of query, 0 for a standard one.
const IS_ANSWER: u8 = 0x80;
const KIND: u8 = 0x78;

/// Whether this is one question of the usual kind.
fn is_query(message: &[u8]) -> bool {
    (HEADER_LEN..=QUERY_MAX).contains(&message.len())
        && message[2] & (IS_ANSWER | KIND) == 0
        && message[4..6] == [0, 1]
}

fn socket(of: IpAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if of.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, None)?;
    if of.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}
