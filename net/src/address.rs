//! The names and addresses of a wire: values that cannot hold one that makes no sense.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::sys;
use crate::text::serde_as_text;

serde_as_text!(LinkName, Mac, NetnsName);

/// The name of a network interface: 1 to 15 bytes (`IFNAMSIZ`), as the kernel's `dev_valid_name` wants it and as the
/// `--net` grammar and a shell can say it: letters, digits and `.`, `_`, `-`, `+`, `=`, `@`, no `-` first, and none that the kernel
/// reserves.
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
            // The last two are switches of /proc/sys/net for all links.
            "." | ".." | "all" | "default" => Err("the kernel reserves this name"),
            _ if name.len() > 15 => Err("an interface name has at most 15 bytes"),
            _ if !is_a_word(name) => Err(
                "an interface name is letters, digits and any of . _ - + = @, and does not begin with '-'",
            ),
            _ => Ok(Self(name.to_owned())),
        }
    }
}

/// True where a shell takes the name as it is, and a program as no option.
fn is_a_word(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+=@".contains(&byte);
    name.bytes().all(is_plain) && !name.starts_with('-')
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

/// The name of a network namespace as `ip netns` has it, a file of `/run/netns`: characters as of a [`LinkName`], and `:`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetnsName(String);

impl NetnsName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetnsName {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "" => Err("a namespace name has at least one byte"),
            "." | ".." => Err("this is a directory's name"),
            _ if name.len() > 255 => Err("a namespace name has at most 255 bytes"),
            _ if !is_a_word(&name.replace(':', "_")) => Err(
                "a namespace name is letters, digits and any of . _ - + = @ :, and does not begin with '-'",
            ),
            _ => Ok(Self(name.to_owned())),
        }
    }
}

impl fmt::Display for NetnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
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
        for bad in [
            "",
            ".",
            "..",
            "all",
            "default",
            "sixteen-bytes-xx",
            "a b",
            "a/b",
            "a:b",
            "tap%d",
            "a,b",
            "t\u{e0}p",
            "a\n",
            "\0",
            "a;b",
            "-x",
            "$a",
            "a#b",
            "a'b",
            "a*",
        ] {
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
    fn a_namespace_is_a_file_name() {
        for good in ["vpn", "a:b", "...", &"x".repeat(255)] {
            assert_eq!(good.parse::<NetnsName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a,b", "a b", "\0", "a;b", "-x", &"x".repeat(256)] {
            assert!(bad.parse::<NetnsName>().is_err(), "{bad:?}");
        }
    }
}
