//! The address of one NIC: asked for, set, renewed, and asked for anew when its wire comes back (RFC 2131 §4.4).

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::system::sethostname;

use super::message::{Answer, Kind, Question};
use super::resolver;
use crate::session::timespec;
use crate::sys::{self, Setting};

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// How long an answer is waited for at first; then twice as long each time, up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(32);
/// After so many tries without an answer the network counts as tried.
const TRIES: u32 = 4;
/// After so many tries for the address that it had it asks for any.
const TRIES_BEFORE: u32 = 2;
/// How long it waits after a failure that may pass.
const AGAIN: Duration = Duration::from_secs(5);

/// Why there is no address.
enum Failed {
    /// There is no such NIC any more.
    Gone,
    /// This may be otherwise the next time.
    ForNow(String),
}

struct Nic<'a> {
    name: &'a str,
    mac: [u8; 6],
    socket: OwnedFd,
    /// Hears of each change of a link.
    links: OwnedFd,
    not_ready: Option<OwnedFd>,
    names_guest: bool,
    transaction: u32,
    /// How often the carrier had changed when it was last seen there.
    changes: u32,
}

/// What a wait ended with.
enum Woken {
    Answer(Answer, Ipv4Addr),
    /// The link has its carrier again, perhaps of another wire.
    Wired,
    Time,
}

/// Keeps an address on `nic` as long as that is there, and lets go of `not_ready` once it has one or has tried. Returns why it ends.
pub(super) fn keep(name: &str, not_ready: Option<OwnedFd>, names_guest: bool) -> String {
    let why = |what: &'static str| move |why: io::Error| format!("cannot {what}: {why}");
    let run = || -> Result<(), String> {
        let socket = sys::any_socket().map_err(why("ask for it"))?;
        let links =
            sys::netlink(libc::NETLINK_ROUTE, libc::RTMGRP_LINK as u32).map_err(why("watch its link"))?;
        // Addresses of IPv6 come by advertisements, also where the guest forwards.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "1");
        sys::set_interface(&socket, name, Setting::Up).map_err(why("bring it up"))?;
        let mac = mac_of(name).ok_or("it has no Ethernet address")?;
        let transaction = seed(mac);
        let mut nic = Nic { name, mac, socket, links, not_ready, names_guest, transaction, changes: 0 };
        let mut before = None;
        loop {
            let failed = match nic.once(before) {
                Ok(had) => {
                    before = had;
                    continue;
                }
                Err(failed) => failed,
            };
            nic.not_ready = None;
            before = None;
            if let Failed::ForNow(why) = failed {
                crate::log(format_args!("{name}: {why}"));
                if nic.wait(None, Instant::now() + AGAIN).is_ok() {
                    continue;
                }
            }
            return Err("it is gone".to_owned());
        }
    };
    run().err().unwrap_or_default()
}

fn mac_of(name: &str) -> Option<[u8; 6]> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/address")).ok()?;
    let bytes: Vec<_> =
        text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

fn seed(mac: [u8; 6]) -> u32 {
    let now = Instant::now();
    let mut random = [0; 4];
    // Early there may be no randomness, and none is waited for.
    let _ = fs::File::open("/dev/urandom").and_then(|mut file| io::Read::read_exact(&mut file, &mut random));
    let address = u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]);
    u32::from_ne_bytes(random) ^ address ^ now.elapsed().subsec_nanos()
}

impl Nic<'_> {
    fn question(&mut self, kind: Kind) -> Question {
        self.transaction = self.transaction.wrapping_add(1);
        Question { kind, transaction: self.transaction, mac: self.mac, has: None, wants: None, server: None }
    }

    /// Gets an address, and holds it as long as it can: then there is the one to ask for first.
    fn once(&mut self, before: Option<Ipv4Addr>) -> Result<Option<Ipv4Addr>, Failed> {
        let (answer, since) = self.acquire(before)?;
        self.apply(&answer, before)?;
        self.not_ready = None;
        self.hold(answer, since)
    }

    /// Asks until there is an answer: for the address that it had, where it had one.
    fn acquire(&mut self, before: Option<Ipv4Addr>) -> Result<(Answer, Instant), Failed> {
        let mut wait = FIRST_WAIT;
        let mut again = before;
        let mut tries = 0u32;
        loop {
            tries = tries.saturating_add(1);
            let began = Instant::now();
            let socket = self.client(None)?;
            let mut question = match again {
                Some(_) => self.question(Kind::Request),
                None => self.question(Kind::Discover),
            };
            question.wants = again;
            send(&socket, question, Ipv4Addr::BROADCAST);
            match self.wait(Some((&socket, &question)), began + wait)? {
                Woken::Answer(Answer { kind: Kind::Ack, .. }, _) if again.is_none() => {}
                Woken::Answer(answer, _) if answer.kind == Kind::Ack => return Ok((answer, began)),
                Woken::Answer(Answer { kind: Kind::Offer, address, server, .. }, from) => {
                    let mut question = self.question(Kind::Request);
                    (question.wants, question.server) = (Some(address), Some(server.unwrap_or(from)));
                    send(&socket, question, Ipv4Addr::BROADCAST);
                    if let Woken::Answer(answer, _) =
                        self.wait(Some((&socket, &question)), Instant::now() + wait)?
                        && answer.kind == Kind::Ack
                    {
                        return Ok((answer, began));
                    }
                }
                // The address is another wire's.
                Woken::Answer(..) => {
                    again = None;
                    continue;
                }
                Woken::Wired => {
                    wait = FIRST_WAIT;
                    continue;
                }
                Woken::Time => {}
            }
            if tries >= TRIES {
                self.not_ready = None;
            }
            if again.is_some() && tries >= TRIES_BEFORE {
                // A server that knows nothing of it may say nothing (RFC 2131 §4.3.2).
                again = None;
                wait = FIRST_WAIT;
                continue;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Holds a lease as long as it is renewed. Then there is none, and the address to ask for first.
    fn hold(&mut self, mut answer: Answer, mut since: Instant) -> Result<Option<Ipv4Addr>, Failed> {
        loop {
            let (renew, rebind, end) = (since + answer.renew, since + answer.rebind, since + answer.lease);
            if let Woken::Wired = self.wait(None, renew)? {
                return Ok(Some(answer.address));
            }
            // Of the server, then of any.
            let renewed = loop {
                let now = Instant::now();
                if now >= end {
                    break None;
                }
                let (to, until) = match answer.server {
                    Some(server) if now < rebind => (server, rebind),
                    _ => (Ipv4Addr::BROADCAST, end),
                };
                let socket = self.client(Some(answer.address))?;
                let mut question = self.question(Kind::Request);
                question.has = Some(answer.address);
                send(&socket, question, to);
                // Half of what is left, but not too often (RFC 2131 §4.4.5).
                let patience = ((until - now) / 2)
                    .max(Duration::from_secs(5))
                    .min(until - now + Duration::from_millis(1));
                match self.wait(Some((&socket, &question)), now + patience)? {
                    Woken::Answer(answer, _) => break (answer.kind == Kind::Ack).then_some((answer, now)),
                    Woken::Wired => return Ok(Some(answer.address)),
                    Woken::Time => {}
                }
            };
            match renewed {
                Some((new, now)) => {
                    let before = Some(answer.address);
                    self.apply(&new, before)?;
                    (answer, since) = (new, now);
                }
                None => {
                    let _ =
                        sys::set_interface(&self.socket, self.name, Setting::Address(Ipv4Addr::UNSPECIFIED));
                    return Ok(None);
                }
            }
        }
    }

    /// A socket to ask by, as long as an answer is waited for: nothing else of the guest's is kept from the port.
    fn client(&self, address: Option<Ipv4Addr>) -> Result<UdpSocket, Failed> {
        let open = || {
            let socket = rustix::net::socket_with(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::DGRAM,
                rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
                None,
            )?;
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::sockopt::set_socket_broadcast(&socket, true)?;
            sys::bind_to_interface(&socket, self.name)?;
            let address = std::net::SocketAddrV4::new(address.unwrap_or(Ipv4Addr::UNSPECIFIED), CLIENT_PORT);
            rustix::net::bind(&socket, &address)?;
            Ok(UdpSocket::from(socket))
        };
        open().map_err(|why: io::Error| Failed::ForNow(format!("cannot ask for an address: {why}")))
    }

    /// Waits for an answer, the link's carrier, or `until`.
    fn wait(&mut self, asked: Option<(&UdpSocket, &Question)>, until: Instant) -> Result<Woken, Failed> {
        loop {
            if self.is_wired_anew()? {
                return Ok(Woken::Wired);
            }
            let left = timespec(until.saturating_duration_since(Instant::now()));
            let mut fds = vec![PollFd::new(&self.links, PollFlags::IN)];
            fds.extend(asked.map(|(socket, _)| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)));
            if poll(&mut fds, Some(&left)) == Ok(0) {
                return Ok(Woken::Time);
            }
            let mut bytes = [0; 4096];
            while rustix::io::read(&self.links, &mut bytes).is_ok_and(|len| len > 0) {}
            let Some((socket, question)) = asked else { continue };
            while let Ok((len, from)) = socket.recv_from(&mut bytes) {
                let from = match from {
                    std::net::SocketAddr::V4(from) if from.port() == SERVER_PORT => *from.ip(),
                    _ => continue,
                };
                if let Some(answer) = Answer::parse(&bytes[..len], question) {
                    return Ok(Woken::Answer(answer, from));
                }
            }
        }
    }

    /// Whether the link has its carrier, and had not all the time since this was last true; an error once there is no such link. The
    /// kernel counts each change, also those that are over before anybody hears of them.
    fn is_wired_anew(&mut self) -> Result<bool, Failed> {
        let link = format!("/sys/class/net/{}", self.name);
        let changes = fs::read_to_string(format!("{link}/carrier_changes"));
        let changes: u32 = changes.ok().and_then(|text| text.trim().parse().ok()).ok_or(Failed::Gone)?;
        // One that somebody has set down fails.
        let is_wired = fs::read(format!("{link}/carrier")).is_ok_and(|carrier| carrier.starts_with(b"1"));
        let anew = is_wired && self.changes != changes;
        if anew {
            self.changes = changes;
        }
        Ok(anew)
    }

    /// Sets all that the server says. `before` is the address that it has.
    fn apply(&self, answer: &Answer, before: Option<Ipv4Addr>) -> Result<(), Failed> {
        if let Some(mtu) = answer.mtu {
            let _ = sys::set_interface(&self.socket, self.name, Setting::Mtu(mtu));
        }
        let set = |setting| {
            sys::set_interface(&self.socket, self.name, setting)
                .map_err(|why| Failed::ForNow(format!("cannot set its address: {why}")))
        };
        if before != Some(answer.address) {
            set(Setting::Address(answer.address))?;
        }
        set(Setting::Netmask(answer.mask))?;
        let on_link = |gateway: Ipv4Addr| gateway & answer.mask == answer.address & answer.mask;
        for &(to, mask, gateway) in &answer.routes {
            let route = |to, mask, gateway| sys::add_route(&self.socket, self.name, to, mask, gateway);
            // One outside the subnet, as of a NIC that is alone in its own, is to be told as on the link. Those that are there stay.
            if !gateway.is_unspecified() && !on_link(gateway) {
                let _ = route(gateway, Ipv4Addr::BROADCAST, Ipv4Addr::UNSPECIFIED);
            }
            match route(to, mask, gateway) {
                Err(why) if why.kind() != io::ErrorKind::AlreadyExists => {
                    crate::log(format_args!(
                        "{}: cannot add the route to {to} over {gateway}: {why}",
                        self.name
                    ));
                }
                _ => {}
            }
        }
        resolver::tell(self.name, &answer.dns, &answer.search);
        if let (true, Some(hostname)) = (self.names_guest, &answer.hostname) {
            let _ = sethostname(hostname.as_bytes());
        }
        Ok(())
    }
}

fn send(socket: &UdpSocket, question: Question, to: Ipv4Addr) {
    // What does not get out is asked again.
    let _ = socket.send_to(&question.to_bytes(), (to, SERVER_PORT));
}
