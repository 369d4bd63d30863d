//! DHCP messages (RFC 2131, RFC 2132, RFC 3442, RFC 3397), as a client has them.

use std::net::Ipv4Addr;
use std::time::Duration;

/// The fixed part of a message, with the magic number that ends it.
const FIXED_LEN: usize = 240;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Entries of a list that are taken.
const LIST_MAX: usize = 16;

mod option {
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const HOSTNAME: u8 = 12;
    pub(super) const DOMAIN: u8 = 15;
    pub(super) const MTU: u8 = 26;
    pub(super) const REQUESTED: u8 = 50;
    pub(super) const LEASE: u8 = 51;
    pub(super) const KIND: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const WANTED: u8 = 55;
    pub(super) const T1: u8 = 58;
    pub(super) const T2: u8 = 59;
    pub(super) const SEARCH: u8 = 119;
    pub(super) const ROUTES: u8 = 121;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Ack = 5,
    Nak = 6,
}

/// What the client says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) kind: Kind,
    pub(super) transaction: u32,
    pub(super) mac: [u8; 6],
    /// The address that it has, when it renews.
    pub(super) has: Option<Ipv4Addr>,
    /// The address that it would have.
    pub(super) wants: Option<Ipv4Addr>,
    /// The server whose offer it takes.
    pub(super) server: Option<Ipv4Addr>,
}

impl Question {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_LEN];
        // A request, of Ethernet, with addresses of 6 bytes.
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[4..8].copy_from_slice(&self.transaction.to_be_bytes());
        match self.has {
            Some(address) => bytes[12..16].copy_from_slice(&address.octets()),
            // Without an address it hears what is sent to all.
            None => bytes[10] = 0x80,
        }
        bytes[28..34].copy_from_slice(&self.mac);
        bytes[FIXED_LEN - 4..].copy_from_slice(&MAGIC);
        let mut put = |option: u8, value: &[u8]| {
            bytes.extend([option, value.len() as u8]);
            bytes.extend(value);
        };
        put(option::KIND, &[self.kind as u8]);
        if let Some(address) = self.wants {
            put(option::REQUESTED, &address.octets());
        }
        if let Some(server) = self.server {
            put(option::SERVER, &server.octets());
        }
        use option::{DNS, DOMAIN, HOSTNAME, LEASE, MASK, MTU, ROUTER, ROUTES, SEARCH, T1, T2};
        put(option::WANTED, &[MASK, ROUTER, DNS, HOSTNAME, DOMAIN, MTU, LEASE, T1, T2, SEARCH, ROUTES]);
        bytes.push(255);
        bytes.resize(bytes.len().max(300), 0);
        bytes
    }
}

/// A route: to this, with this mask, over this gateway (0.0.0.0: none, it is on the link).
pub(super) type Route = (Ipv4Addr, Ipv4Addr, Ipv4Addr);

/// Whether an interface can have this address with this mask: one bits, then zero bits; and the address one of a host.
fn is_a_host_s(address: Ipv4Addr, mask: Ipv4Addr) -> bool {
    let (bits, rest) = (address.to_bits(), !mask.to_bits());
    // RFC 6890: not of this network, nor loopback, nor of the multicast addresses and what follows them.
    let is_unicast = !matches!(address.octets()[0], 0 | 127 | 224..);
    // Of a subnet that has more than two, the first and the last are none.
    let is_an_end = rest > 1 && (bits & rest == 0 || bits & rest == rest);
    rest & rest.wrapping_add(1) == 0 && is_unicast && !is_an_end
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) kind: Kind,
    pub(super) address: Ipv4Addr,
    pub(super) mask: Ipv4Addr,
    pub(super) routes: Vec<Route>,
    pub(super) dns: Vec<Ipv4Addr>,
    pub(super) search: Vec<String>,
    pub(super) hostname: Option<String>,
    pub(super) mtu: Option<u16>,
    pub(super) server: Option<Ipv4Addr>,
    pub(super) lease: Duration,
    /// When to ask for more of the server, and when of any.
    pub(super) renew: Duration,
    pub(super) rebind: Duration,
}

impl Answer {
    /// The answer to `question` in a message; none where it is something else, or gives what no host can have.
    pub(super) fn parse(bytes: &[u8], question: &Question) -> Option<Self> {
        let (fixed, options) = bytes.split_at_checked(FIXED_LEN)?;
        let is_ours = fixed[0] == 2
            && fixed[4..8] == question.transaction.to_be_bytes()
            && fixed[28..34] == question.mac
            && fixed[FIXED_LEN - 4..] == MAGIC;
        if !is_ours {
            return None;
        }
        let kind = match find(options, option::KIND)?[..] {
            [2] => Kind::Offer,
            [5] => Kind::Ack,
            [6] => Kind::Nak,
            _ => return None,
        };
        let find = |option| find(options, option);
        let addresses = |option| find(option).map(|value| addresses(&value)).unwrap_or_default();
        let seconds = |option| {
            let value: Option<[u8; 4]> = find(option).and_then(|value| value.try_into().ok());
            value.map(|value| Duration::from_secs(u32::from_be_bytes(value).into()))
        };
        let address = Ipv4Addr::from(<[u8; 4]>::try_from(&fixed[16..20]).ok()?);
        let mask = addresses(option::MASK).first().copied().unwrap_or(Ipv4Addr::new(255, 255, 255, 0));
        if kind != Kind::Nak && !is_a_host_s(address, mask) {
            return None;
        }
        // Without a time it is for good, and no time is shorter than what a person would notice.
        let lease = seconds(option::LEASE)
            .unwrap_or(Duration::from_secs(u32::MAX.into()))
            .max(Duration::from_secs(30));
        let rebind = seconds(option::T2).filter(|&time| time < lease).unwrap_or(lease / 8 * 7);
        let renew = seconds(option::T1).filter(|&time| time < rebind).unwrap_or(rebind.min(lease / 2));
        let routers = addresses(option::ROUTER);
        // Where there are these, the routers do not count (RFC 3442).
        let routes =
            find(option::ROUTES).and_then(|value| classless(&value)).filter(|routes| !routes.is_empty());
        let default = |router: &Ipv4Addr| (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, *router);
        let text = |option| find(option).and_then(|value| name(&value));
        let domain = text(option::DOMAIN).into_iter().collect();
        Some(Self {
            kind,
            address,
            mask,
            routes: routes.unwrap_or_else(|| routers.iter().take(1).map(default).collect()),
            dns: addresses(option::DNS),
            search: find(option::SEARCH)
                .map(|value| domains(&value))
                .filter(|list| !list.is_empty())
                .unwrap_or(domain),
            hostname: text(option::HOSTNAME),
            mtu: find(option::MTU)
                .and_then(|value| Some(u16::from_be_bytes(value.try_into().ok()?)))
                .filter(|&mtu| mtu >= 576),
            server: addresses(option::SERVER).first().copied(),
            lease,
            renew: renew.max(lease.min(Duration::from_secs(60)) / 4),
            rebind,
        })
    }
}

/// The value of an option, whose parts make one (RFC 3396).
fn find(mut options: &[u8], wanted: u8) -> Option<Vec<u8>> {
    let mut found: Option<Vec<u8>> = None;
    while let Some((&option, rest)) = options.split_first() {
        options = match option {
            0 => rest,
            255 => break,
            _ => {
                let Some((&len, rest)) = rest.split_first() else { break };
                let Some((value, rest)) = rest.split_at_checked(len.into()) else { break };
                if option == wanted {
                    found.get_or_insert_default().extend(value);
                }
                rest
            }
        };
    }
    found
}

fn addresses(value: &[u8]) -> Vec<Ipv4Addr> {
    let address = |bytes: &[u8]| Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]);
    value.chunks_exact(4).take(LIST_MAX).map(address).collect()
}

/// Option 121: the length of a prefix, as many of its bytes as that takes, a gateway.
fn classless(mut value: &[u8]) -> Option<Vec<Route>> {
    let mut routes = Vec::new();
    while let Some((&len, rest)) = value.split_first() {
        if len > 32 || routes.len() == LIST_MAX {
            return None;
        }
        let (prefix, rest) = rest.split_at_checked(len.div_ceil(8).into())?;
        let (gateway, rest) = rest.split_first_chunk::<4>()?;
        let mut to = [0; 4];
        to[..prefix.len()].copy_from_slice(prefix);
        let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0));
        routes.push((Ipv4Addr::from(to) & mask, mask, Ipv4Addr::from(*gateway)));
        value = rest;
    }
    Some(routes)
}

/// Option 119: names as DNS has them (RFC 1035 §4.1.4), where a pointer counts from the option's first byte.
fn domains(value: &[u8]) -> Vec<String> {
    let (mut list, mut at) = (Vec::new(), 0);
    while at < value.len() && list.len() < LIST_MAX {
        let Some((domain, next)) = domain(value, at) else { break };
        list.extend(name(domain.as_bytes()));
        at = next;
    }
    list
}

/// The name at `at`, and where the next one begins.
fn domain(value: &[u8], mut at: usize) -> Option<(String, usize)> {
    let (mut text, mut next) = (String::new(), None);
    // Each label or pointer takes a turn, so that a circle ends.
    for _ in 0..128 {
        match *value.get(at)? {
            0 => return Some((text, next.unwrap_or(at + 1))),
            len @ 1..=63 => {
                let label = value.get(at + 1..at + 1 + usize::from(len))?;
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(std::str::from_utf8(label).ok()?);
                at += 1 + usize::from(len);
            }
            high @ 192.. => {
                let low = *value.get(at + 1)?;
                next.get_or_insert(at + 2);
                at = usize::from(high & 63) << 8 | usize::from(low);
            }
            _ => return None,
        }
    }
    None
}

/// Text that is a name: it goes to `/etc/resolv.conf`, and names the guest.
fn name(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!text.is_empty() && text.len() <= 253 && text.bytes().all(is_name)).then(|| text.to_owned())
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
