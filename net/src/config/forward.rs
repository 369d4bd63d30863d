//! `forward=[tcp:|udp:][ADDRESS:]PORT[-PORT]:PORT[-PORT]`: ports of the host that lead into the guest.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::keys::number;
use crate::Error;

/// The most ports of the host that one NIC takes: each is a descriptor of wirevm's.
const PORTS_MAX: u32 = 256;

/// Ports of the host that are forwarded to the guest, written `tcp:8080:80`, or `udp:192.0.2.5:8000-8010:9000-9010`; the n-th port of
/// the host leads to the n-th of the guest, and no port is 0. `8080:80` and `8080:80/udp` are understood too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Of all ports.
    pub protocol: Protocol,
    /// The host's address whose ports they are; none for every one of its addresses.
    pub address: Option<IpAddr>,
    /// The first port of the host.
    pub host_port: u16,
    /// The first port of the guest, on its address.
    pub guest_port: u16,
    /// How many ports there are in a row, from each first one on; 1 at least.
    pub count: u16,
}

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Forward {
    /// The ports of the host.
    pub fn host_ports(&self) -> RangeInclusive<u16> {
        range(self.host_port, self.count)
    }

    /// The ports of the guest.
    pub fn guest_ports(&self) -> RangeInclusive<u16> {
        range(self.guest_port, self.count)
    }

    /// The first port of the host that both take. One without an address takes the ports of every IPv4 address; if the guest has no
    /// IPv4, those of every IPv6 address instead, which only binding them finds out.
    pub fn shared_port(&self, other: &Self) -> Option<u16> {
        let same_address = match (self.address, other.address) {
            (Some(one), Some(another)) => one == another,
            (Some(one), None) | (None, Some(one)) => one.is_ipv4(),
            (None, None) => true,
        };
        let first = self.host_port.max(other.host_port);
        let shared = self.host_ports().contains(&first) && other.host_ports().contains(&first);
        (same_address && self.protocol == other.protocol && shared).then_some(first)
    }

    /// True where connections from the host's own 127.0.0.1 are to go to the guest.
    pub(crate) fn is_from_loopback(&self) -> bool {
        self.address.is_none_or(|address| address.is_loopback())
    }
}

/// Refuses `forwards` of which one is there without `nat`, or that take one port of the host twice, or too many.
pub(super) fn check(forwards: &[Forward], nat: bool) -> Result<(), Error> {
    let mut ports = 0;
    for (index, forward) in forwards.iter().enumerate() {
        ports += u32::from(forward.count);
        let twice = forwards[..index].iter().any(|other| other.shared_port(forward).is_some());
        let why = match () {
            () if !nat => "it needs nat",
            () if twice => "this port of the host is forwarded already",
            () if ports > PORTS_MAX => "a NIC has 256 ports of the host at most",
            () => continue,
        };
        return Err(Error::value("forward", forward.to_string(), why));
    }
    Ok(())
}

fn range(first: u16, count: u16) -> RangeInclusive<u16> {
    first..=first + (count - 1)
}

/// A range's first port and how many they are.
fn ports(text: &str) -> Option<(u16, u16)> {
    let port = |text| number(text).filter(|&port| port != 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (port(first)?, port(last)?);
    // From 1 on there are 65535 at most.
    Some((first, last.checked_sub(first)? + 1))
}

/// An address of the host that ports can be of.
fn address(text: &str) -> Result<IpAddr, &'static str> {
    const FORM: &str = "an address of the host is written 192.0.2.5, or [2001:db8::5]";
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = match bracketed {
        Some(text) => IpAddr::V6(text.parse().map_err(|_| FORM)?),
        None => IpAddr::V4(text.parse::<Ipv4Addr>().map_err(|_| FORM)?),
    };
    match address {
        _ if address.is_unspecified() => Err("for every address of the host, drop this one"),
        IpAddr::V6(v6) if v6.is_loopback() => {
            Err("what is sent to ::1 cannot leave the host: take 127.0.0.1, or drop the address")
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Err("take one that is not link-local"),
        _ if address.is_multicast() || address == Ipv4Addr::BROADCAST => Err("no host has this address"),
        _ => Ok(address),
    }
}

impl FromStr for Forward {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "expected ports from 1 to 65535, HOSTPORT:GUESTPORT, or two ranges FIRST-LAST of them, after tcp: or udp:";
        let before = text.split_once(':').and_then(|(word, rest)| Some((word.parse().ok()?, rest)));
        let behind = text.rsplit_once('/').and_then(|(rest, word)| Some((word.parse().ok()?, rest)));
        let (protocol, rest) = before.or(behind).unwrap_or((Protocol::Tcp, text));
        let (rest, guest) = rest.rsplit_once(':').ok_or(FORM)?;
        let (at, host) = match rest.rsplit_once(':') {
            Some((at, host)) => (Some(at), host),
            None => (None, rest),
        };
        let (host_port, count) = ports(host).ok_or(FORM)?;
        let (guest_port, of_guest) = ports(guest).ok_or(FORM)?;
        if count != of_guest {
            return Err("the guest has as many ports as the host: 8000-8010:9000-9010");
        }
        Ok(Self { protocol, address: at.map(address).transpose()?, host_port, guest_port, count })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, address, host_port, guest_port, count } = *self;
        write!(f, "{protocol}:")?;
        match address {
            Some(address) => write!(f, "{}", SocketAddr::new(address, host_port))?,
            None => write!(f, "{host_port}")?,
        }
        if count > 1 {
            let (host_last, guest_last) = (self.host_ports(), self.guest_ports());
            return write!(f, "-{}:{guest_port}-{}", host_last.end(), guest_last.end());
        }
        write!(f, ":{guest_port}")
    }
}

impl Protocol {
    /// Its number in an IP packet.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
        }
    }
}

impl FromStr for Protocol {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err("it is tcp or udp"),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(text: &str) -> Forward {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn ports_are_written_in_some_ways_and_shown_in_one() {
        for (text, shown) in [
            ("8080:80", "tcp:8080:80"),
            ("8080:80/udp", "udp:8080:80"),
            ("udp:53:5353", "udp:53:5353"),
            ("127.0.0.1:8080:80", "tcp:127.0.0.1:8080:80"),
            ("192.0.2.5:8000-8010:8000-8010/udp", "udp:192.0.2.5:8000-8010:8000-8010"),
            ("[2001:db8::1]:8080:80", "tcp:[2001:db8::1]:8080:80"),
            ("udp:[2001:db8::1]:65534-65535:1-2", "udp:[2001:db8::1]:65534-65535:1-2"),
            ("8000-8000:80-80", "tcp:8000:80"),
        ] {
            assert_eq!(forward(text).to_string(), shown);
            assert_eq!(forward(shown), forward(text));
        }
        let many = forward("8000-8010:9000-9010");
        assert_eq!((many.host_ports(), many.guest_ports(), many.count), (8000..=8010, 9000..=9010, 11));
        assert_eq!(forward("1-65535:1-65535").count, 65535);
    }

    #[test]
    fn what_is_no_port_or_address_is_refused() {
        for (text, why) in [
            ("8000-8010:9000-9011", "as many"),
            ("8000-8010:9000", "as many"),
            ("8010-8000:8010-8000", "expected ports"),
            ("0-5:0-5", "expected ports"),
            ("tcp:8080:80/udp", "expected ports"),
            ("2001:db8::1:8080:80", "an address"),
            ("[192.0.2.5]:8080:80", "an address"),
            ("localhost:8080:80", "an address"),
            ("0.0.0.0:8080:80", "drop this one"),
            ("[::]:8080:80", "drop this one"),
            ("[::1]:8080:80", "127.0.0.1"),
            ("[fe80::1]:8080:80", "link-local"),
            ("224.0.0.1:8080:80", "no host"),
        ] {
            let refusal = text.parse::<Forward>().unwrap_err();
            assert!(refusal.contains(why), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_hosts_own_connections_lead_to_the_guest_at_every_address_and_at_127_0_0_1() {
        for (text, is_from_loopback) in [
            ("8080:80", true),
            ("127.0.0.1:8080:80", true),
            ("udp:127.0.0.5:53:53", true),
            ("192.0.2.5:8080:80", false),
            ("[2001:db8::1]:8080:80", false),
        ] {
            assert_eq!(forward(text).is_from_loopback(), is_from_loopback, "{text}");
        }
    }

    #[test]
    fn two_take_one_port_where_ranges_and_addresses_meet() {
        let shared = |one: &str, another: &str| {
            let (one, another) = (forward(one), forward(another));
            assert_eq!(one.shared_port(&another), another.shared_port(&one));
            one.shared_port(&another)
        };
        assert_eq!(shared("8000-8010:8000-8010", "8010:80"), Some(8010));
        assert_eq!(shared("8000-8010:8000-8010", "7000-8000:1-1001"), Some(8000));
        assert_eq!(shared("8000-8010:8000-8010", "8011:80"), None);
        assert_eq!(shared("8000:80", "udp:8000:80"), None);
        assert_eq!(shared("8000:80", "127.0.0.1:8000:80"), Some(8000));
        assert_eq!(shared("192.0.2.5:8000:80", "127.0.0.1:8000:80"), None);
        assert_eq!(shared("192.0.2.5:8000:80", "192.0.2.5:7999-8001:1-3"), Some(8000));
        assert_eq!(shared("8000:80", "[2001:db8::1]:8000:80"), None);
    }
}
