//! A subnet and the host's address in it, IPv4 or IPv6: values that a host can really have on a link.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::text::serde_as_text;

serde_as_text!(HostAddress, HostV4, HostV6);

/// The host's address in a subnet, written `172.31.0.1/24` or `fd00::1/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostAddress {
    /// IPv4.
    V4(HostV4),
    /// IPv6.
    V6(HostV6),
}

impl HostAddress {
    /// `address` in the subnet of its first `prefix` bits.
    ///
    /// # Errors
    /// Says why a host cannot have it: see [`HostV4::new`] and [`HostV6::new`].
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, &'static str> {
        match address {
            IpAddr::V4(address) => HostV4::new(address, prefix).map(Self::V4),
            IpAddr::V6(address) => HostV6::new(address, prefix).map(Self::V6),
        }
    }

    /// The host's address.
    pub fn address(self) -> IpAddr {
        match self {
            Self::V4(host) => host.address.into(),
            Self::V6(host) => host.address.into(),
        }
    }

    /// The length of the subnet's prefix in bits: 1 to 32, or to 128.
    pub fn prefix(self) -> u8 {
        match self {
            Self::V4(host) => host.prefix,
            Self::V6(host) => host.prefix,
        }
    }

    /// The subnet's first address.
    pub fn network(self) -> IpAddr {
        match self {
            Self::V4(host) => host.network().into(),
            Self::V6(host) => host.network().into(),
        }
    }

    /// The IPv4 one, if it is.
    pub fn v4(self) -> Option<HostV4> {
        match self {
            Self::V4(host) => Some(host),
            Self::V6(_) => None,
        }
    }

    /// The IPv6 one, if it is.
    pub fn v6(self) -> Option<HostV6> {
        match self {
            Self::V4(_) => None,
            Self::V6(host) => Some(host),
        }
    }

    /// True where the two subnets share an address; never of two families.
    pub fn overlaps(self, address: IpAddr, prefix: u8) -> bool {
        match (self, address) {
            (Self::V4(host), IpAddr::V4(address)) => host.overlaps(address, prefix),
            (Self::V6(host), IpAddr::V6(address)) => host.overlaps(address, prefix),
            _ => false,
        }
    }

    /// The address for the guest: see [`HostV4::guest`] and [`HostV6::guest`].
    pub fn guest(self) -> Option<IpAddr> {
        match self {
            Self::V4(host) => host.guest().map(IpAddr::V4),
            Self::V6(host) => host.guest().map(IpAddr::V6),
        }
    }
}

/// A subnet of IPv4 and the host's address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostV4 {
    address: Ipv4Addr,
    prefix: u8,
}

impl HostV4 {
    /// `address` in the subnet of its first `prefix` bits.
    ///
    /// # Errors
    /// Says why a host cannot have it: the subnet's own address or its broadcast address (in a /31 both are hosts,
    /// RFC 3021, and a /32 is one host), loopback, multicast, or reserved.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self, &'static str> {
        let this = Self { address, prefix };
        if !(1..=32).contains(&prefix) {
            Err("the prefix length is from 1 to 32")
        } else if address.is_loopback() {
            Err("this is a loopback address, which never leaves the host")
        } else if address.is_multicast() {
            Err("this is a multicast address")
        } else if address.octets()[0] == 0 || address.octets()[0] >= 240 {
            Err("this is a reserved address")
        } else if prefix <= 30 && address == this.network() {
            Err("this is the address of the subnet itself; take the next one")
        } else if prefix <= 30 && address == this.broadcast() {
            Err("this is the broadcast address of the subnet; take another one")
        } else {
            Ok(this)
        }
    }

    /// The host's address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The length of the subnet's prefix in bits, 1 to 32.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The subnet's mask.
    pub fn mask(self) -> Ipv4Addr {
        mask_v4(self.prefix)
    }

    /// The subnet's first address.
    pub fn network(self) -> Ipv4Addr {
        self.address & self.mask()
    }

    /// The subnet's last address: for a prefix of up to 30 bits its broadcast address.
    pub fn broadcast(self) -> Ipv4Addr {
        self.address | !self.mask()
    }

    /// True where the two subnets share an address. `prefix` is 32 at most.
    pub fn overlaps(self, address: Ipv4Addr, prefix: u8) -> bool {
        let shorter = mask_v4(prefix.min(self.prefix));
        self.address & shorter == address & shorter
    }

    /// The address for the guest: the next one after the host's that a host can have, from the end of the subnet going
    /// on at its start; in a /31 the other one (RFC 3021); in a /32 there is none.
    pub fn guest(self) -> Option<Ipv4Addr> {
        match self.prefix {
            32 => None,
            31 => Some(Ipv4Addr::from(u32::from(self.address) ^ 1)),
            _ => {
                let next = Ipv4Addr::from(u32::from(self.address) + 1);
                let first = Ipv4Addr::from(u32::from(self.network()) + 1);
                Some(if next == self.broadcast() { first } else { next })
            }
        }
    }
}

/// A subnet of IPv6 and the host's address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostV6 {
    address: Ipv6Addr,
    prefix: u8,
}

impl HostV6 {
    /// `address` in the subnet of its first `prefix` bits.
    ///
    /// # Errors
    /// Says why a host cannot be given it: the subnet's own address, which is every router's (RFC 4291 §2.6.1; not so in
    /// a /127, RFC 6164), loopback, multicast, link-local, IPv4 in disguise, or reserved.
    pub fn new(address: Ipv6Addr, prefix: u8) -> Result<Self, &'static str> {
        let this = Self { address, prefix };
        if !(1..=128).contains(&prefix) {
            Err("the prefix length is from 1 to 128")
        } else if address.is_loopback() {
            Err("this is the loopback address, which never leaves the host")
        } else if address.is_multicast() {
            Err("this is a multicast address")
        } else if address.is_unicast_link_local() {
            Err("every link has a link-local address of its own; take one of fd00::/8, or of your own prefix")
        } else if address.segments()[..5] == [0; 5] {
            Err("this is a reserved address, or an IPv4 address in disguise")
        } else if prefix <= 126 && address == this.network() {
            Err("this is the address of the subnet itself, which is every router's; take the next one")
        } else {
            Ok(this)
        }
    }

    /// The host's address.
    pub fn address(self) -> Ipv6Addr {
        self.address
    }

    /// The length of the subnet's prefix in bits, 1 to 128.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The subnet's first address.
    pub fn network(self) -> Ipv6Addr {
        self.address & mask_v6(self.prefix)
    }

    /// True where the two subnets share an address. `prefix` is 128 at most.
    pub fn overlaps(self, address: Ipv6Addr, prefix: u8) -> bool {
        let shorter = mask_v6(prefix.min(self.prefix));
        self.address & shorter == address & shorter
    }

    /// An address for the guest: the next one after the host's, from the end of the subnet going on at its start; in a
    /// /127 the other one; in a /128 there is none. (On Ethernet a guest in a /64 makes its own, RFC 4862.)
    pub fn guest(self) -> Option<Ipv6Addr> {
        match self.prefix {
            128 => None,
            127 => Some(Ipv6Addr::from(u128::from(self.address) ^ 1)),
            _ => {
                let next = u128::from(self.address).checked_add(1).map(Ipv6Addr::from);
                let first = Ipv6Addr::from(u128::from(self.network()) + 1);
                Some(next.filter(|&next| self.overlaps(next, self.prefix)).unwrap_or(first))
            }
        }
    }
}

/// The mask of a prefix of 0 to 32 bits.
fn mask_v4(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

/// The mask of a prefix of 0 to 128 bits.
fn mask_v6(prefix: u8) -> Ipv6Addr {
    Ipv6Addr::from(u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0))
}

impl FromStr for HostAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str =
            "expected an address and the length of its subnet's prefix, 172.31.0.1/24 or fd00::1/64";
        let (address, prefix) = text.split_once('/').ok_or(FORM)?;
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(FORM);
        }
        Self::new(address.parse().map_err(|_| FORM)?, prefix.parse().map_err(|_| FORM)?)
    }
}

impl FromStr for HostV4 {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        HostAddress::from_str(text)?.v4().ok_or("expected an IPv4 address")
    }
}

impl FromStr for HostV6 {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        HostAddress::from_str(text)?.v6().ok_or("expected an IPv6 address")
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.prefix())
    }
}

impl fmt::Display for HostV4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HostAddress::V4(*self).fmt(f)
    }
}

impl fmt::Display for HostV6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HostAddress::V6(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> HostAddress {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn the_guest_has_the_next_address() {
        for (host, guest) in [
            ("172.31.0.1/24", Some("172.31.0.2")),
            ("172.31.0.254/24", Some("172.31.0.1")),
            ("172.31.0.253/24", Some("172.31.0.254")),
            ("10.0.0.1/30", Some("10.0.0.2")),
            ("10.0.0.2/30", Some("10.0.0.1")),
            ("10.0.0.2/31", Some("10.0.0.3")),
            ("10.0.0.3/31", Some("10.0.0.2")),
            ("10.0.0.0/31", Some("10.0.0.1")),
            ("10.0.0.3/32", None),
            ("10.0.255.254/16", Some("10.0.0.1")),
            ("fd00::1/64", Some("fd00::2")),
            ("fd00::ffff:ffff:ffff:ffff/64", Some("fd00::1")),
            ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/8", Some("fd00::1")),
            ("fd00::2/127", Some("fd00::3")),
            ("fd00::3/127", Some("fd00::2")),
            ("fd00::3/126", Some("fd00::1")),
            ("fd00::1/128", None),
        ] {
            let guest: Option<IpAddr> = guest.map(|guest| guest.parse().unwrap());
            assert_eq!(parse(host).guest(), guest, "{host}");
        }
    }

    #[test]
    fn a_host_address_is_one_that_a_host_can_have() {
        for bad in [
            "172.31.0.0/24",
            "172.31.0.255/24",
            "10.0.0.3/30",
            "10.0.0.1/0",
            "10.0.0.1/33",
            "10.0.0.1/+24",
            "10.0.0.1/",
            "10.0.0.1",
            "10.0.0/24",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "255.255.255.255/32",
            "0.0.0.0/24",
            "0.0.0.1/24",
            "",
            "/",
            "fd00::/64",
            "fd00::1",
            "fd00::1/0",
            "fd00::1/129",
            "::1/128",
            "::/64",
            "::ffff:10.0.0.1/120",
            "::10.0.0.1/120",
            "fe80::1/64",
            "fe80::1%eth0/64",
            "ff02::1/64",
        ] {
            assert!(bad.parse::<HostAddress>().is_err(), "{bad:?}");
        }
        assert!("fd00::/127".parse::<HostAddress>().is_ok(), "both are hosts");
    }

    #[test]
    fn subnets_overlap_where_one_holds_the_other() {
        for (ours, address, prefix, expected) in [
            ("172.31.4.1/24", "172.31.4.200", 24, true),
            ("172.31.4.1/24", "172.31.4.200", 32, true),
            ("172.31.4.1/24", "172.31.0.1", 16, true),
            ("172.31.4.1/24", "172.31.5.1", 24, false),
            ("172.31.4.1/24", "172.31.5.1", 32, false),
            ("172.31.4.1/24", "10.0.0.1", 0, true),
            ("172.31.4.1/24", "::", 0, false),
            ("fd00:1::1/64", "fd00:1::2", 128, true),
            ("fd00:1::1/64", "fd00::", 16, true),
            ("fd00:1::1/64", "fd00:1:0:1::1", 64, false),
            ("fd00:1::1/64", "::", 0, true),
            ("fd00:1::1/64", "0.0.0.0", 0, false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(parse(ours).overlaps(address, prefix), expected, "{ours} {address}/{prefix}");
        }
    }

    proptest! {
        #[test]
        fn the_guest_is_another_host_of_the_subnet(address: IpAddr, prefix in 0..=129u8) {
            let Ok(host) = HostAddress::new(address, prefix) else { return Ok(()) };
            let most = if address.is_ipv4() { 32 } else { 128 };
            prop_assert_eq!(host.guest().is_none(), prefix == most);
            let Some(guest) = host.guest() else { return Ok(()) };
            prop_assert_ne!(guest, address);
            prop_assert!(host.overlaps(guest, most));
            if let IpAddr::V4(guest) = guest {
                // In a shorter prefix the next one may be reserved.
                prop_assert!(prefix < 8 || HostV4::new(guest, prefix).is_ok());
            }
        }

        #[test]
        fn what_is_shown_parses_to_the_same(address: IpAddr, prefix in 0..=129u8) {
            if let Ok(host) = HostAddress::new(address, prefix) {
                prop_assert_eq!(host.to_string().parse(), Ok(host));
            }
        }
    }
}
