//! The names and addresses of a wire: values that cannot hold one that makes no sense.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::sys;

/// The name of a network interface: 1 to 15 bytes (`IFNAMSIZ`), as the kernel's `dev_valid_name` wants it and as the
/// `--net` grammar can say it: printable ASCII without `/`, `:`, `,` and `%`, and neither `.` nor `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinkName(String);

impl LinkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LinkName {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "" => Err("an interface name has at least one byte"),
            "." | ".." => Err("the kernel reserves this name"),
            _ if name.len() > 15 => Err("an interface name has at most 15 bytes"),
            _ if !name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:,%".contains(&byte)) => {
                Err("an interface name is printable ASCII without spaces, '/', ':', ',' or '%'")
            }
            _ => Ok(Self(name.to_owned())),
        }
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The Ethernet address of one NIC: never a group's (IEEE 802 I/G bit set), never all zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// An address, in the order of the wire.
    ///
    /// # Errors
    /// Says why it cannot be a NIC's.
    pub fn new(octets: [u8; 6]) -> Result<Self, &'static str> {
        match octets {
            [0, 0, 0, 0, 0, 0] => Err("all zeroes is no address"),
            [first, ..] if first & 1 != 0 => Err("this is a multicast address (the first byte is odd)"),
            _ => Ok(Self(octets)),
        }
    }

    /// A random one, locally administered (IEEE 802 U/L bit set): 46 bits of chance.
    ///
    /// # Errors
    /// Those of `getrandom(2)`.
    pub fn random() -> io::Result<Self> {
        let mut octets = [0; 6];
        sys::random(&mut octets)?;
        octets[0] = octets[0] & !1 | 2;
        Ok(Self(octets))
    }

    /// The six bytes, in the order of the wire.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str =
            "an Ethernet address is written as six pairs of hexadecimal digits, 02:00:00:00:00:01";
        let mut octets = [0; 6];
        let mut pairs = text.split(':');
        for octet in &mut octets {
            let pair =
                pairs.next().filter(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or(FORM)?;
        }
        if pairs.next().is_some() { Err(FORM) } else { Self::new(octets) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A subnet of IPv4 and the host's address in it, written `172.31.0.1/24`: one that a host can really have on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostAddress {
    address: Ipv4Addr,
    prefix: u8,
}

impl HostAddress {
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
        mask(self.prefix)
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
        let shorter = mask(prefix.min(self.prefix));
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

/// The mask of a prefix of 0 to 32 bits.
fn mask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

impl FromStr for HostAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "an IPv4 address and the length of its subnet's prefix is wanted, 172.31.0.1/24";
        let (address, prefix) = text.split_once('/').ok_or(FORM)?;
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(FORM);
        }
        Self::new(address.parse().map_err(|_| FORM)?, prefix.parse().map_err(|_| FORM)?)
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_as_the_kernel_wants_them() {
        for good in ["tap0", "t", "exactly15bytes.", "a=b", "..."] {
            assert_eq!(good.parse::<LinkName>().unwrap().as_str(), good);
        }
        for bad in
            ["", ".", "..", "sixteen-bytes-xx", "a b", "a/b", "a:b", "tap%d", "a,b", "t\u{e0}p", "a\n", "\0"]
        {
            assert!(bad.parse::<LinkName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_mac_is_one_nics() {
        let mac: Mac = "02:aB:00:00:00:01".parse().unwrap();
        assert_eq!((mac.octets(), mac.to_string().as_str()), ([2, 0xab, 0, 0, 0, 1], "02:ab:00:00:00:01"));
        for bad in [
            "",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:00:00:00:00:01",
            "02-00-00-00-00-01",
            "+2:00:00:00:00:01",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?}");
        }
        for _ in 0..100 {
            let first = Mac::random().unwrap().octets()[0];
            assert_eq!(first & 3, 2, "locally administered, one NIC's");
        }
        assert_ne!(Mac::random().unwrap(), Mac::random().unwrap());
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
        ] {
            let guest: Option<Ipv4Addr> = guest.map(|guest| guest.parse().unwrap());
            assert_eq!(host.parse::<HostAddress>().unwrap().guest(), guest, "{host}");
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
            "fd00::1/64",
            "",
            "/",
        ] {
            assert!(bad.parse::<HostAddress>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn subnets_overlap_where_one_holds_the_other() {
        let ours: HostAddress = "172.31.4.1/24".parse().unwrap();
        for (address, prefix, expected) in [
            ([172, 31, 4, 200], 24, true),
            ([172, 31, 4, 200], 32, true),
            ([172, 31, 0, 1], 16, true),
            ([172, 31, 5, 1], 24, false),
            ([172, 31, 5, 1], 32, false),
            ([10, 0, 0, 1], 0, true),
        ] {
            assert_eq!(ours.overlaps(address.into(), prefix), expected, "{address:?}/{prefix}");
        }
    }
}
