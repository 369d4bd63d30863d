//! `dns=ADDRESS` and `search=DOMAIN`: what the guest is told of names.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::keys::Keys;
use crate::Error;
use crate::text::serde_as_text;

serde_as_text!(Domain);

/// The most octets that all search domains together may take in a message (RFC 1035 §3.1): beside them a DHCP message has room for
/// all else.
const SEARCH_MAX: usize = 128;
/// The most servers of a family that are told: as many as resolvers look at.
const SERVERS_MAX: usize = 3;

/// What the guest is told of names, by DHCP and router advertisement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Its DNS servers, three of each family at most; none for those of the host, as far as a guest can reach them.
    pub servers: Vec<IpAddr>,
    /// The domains in which it looks for names that have no dot.
    pub search: Vec<Domain>,
}

/// A domain: labels of letters, digits, dashes and underscores with dots between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain(String);

impl Domain {
    /// Its labels, each behind its length, and the root's (RFC 1035 §3.1).
    pub(crate) fn octets(&self) -> Vec<u8> {
        let label = |label: &str| [&[label.len() as u8], label.as_bytes()].concat();
        self.0.split('.').flat_map(label).chain([0]).collect()
    }
}

impl FromStr for Domain {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(is_plain);
        let name = text.strip_suffix('.').unwrap_or(text);
        match name.split('.').all(is_label) {
            // The lengths and the root's octet are of the 255 that a name may have.
            true if name.len() <= 253 => Ok(Self(name.to_ascii_lowercase())),
            _ => Err("expected a domain, example.org"),
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl DnsConfig {
    /// Takes the keys of a wire that tells its guest addresses, unless `tells` is false.
    pub(super) fn take(keys: &mut Keys<'_>, tells: bool) -> Result<Self, Error> {
        const TWICE: &str = "it is there already";
        const NOT_TOLD: &str = "with dhcp=off the guest is told nothing";
        let expected = "expected an address that another machine can reach, 192.0.2.53";
        let server = |text: &str| {
            let address: IpAddr = text.parse().map_err(|_| expected)?;
            if is_reachable(&address) { Ok(address) } else { Err(expected) }
        };
        let this = Self {
            servers: keys.take_all("dns", server)?,
            search: keys.take_all("search", Domain::from_str)?,
        };
        for (index, server) in this.servers.iter().enumerate() {
            let before = &this.servers[..index];
            let of_family = before.iter().filter(|other| other.is_ipv4() == server.is_ipv4()).count();
            let why = match () {
                () if !tells => NOT_TOLD,
                () if before.contains(server) => TWICE,
                () if of_family == SERVERS_MAX => "there are three of a family at most",
                () => continue,
            };
            return Err(Error::value("dns", server.to_string(), why));
        }
        let mut octets = 0;
        for (index, domain) in this.search.iter().enumerate() {
            octets += domain.octets().len();
            let why = match () {
                () if !tells => NOT_TOLD,
                () if this.search[..index].contains(domain) => TWICE,
                () if octets > SEARCH_MAX => "all of them together are too long for a message",
                () => continue,
            };
            return Err(Error::value("search", domain.to_string(), why));
        }
        Ok(this)
    }

    pub(super) fn write_spec(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.servers.iter().try_for_each(|server| write!(f, ",dns={server}"))?;
        self.search.iter().try_for_each(|domain| write!(f, ",search={domain}"))
    }
}

/// Whether a guest can reach the server: not what is the host's alone, nor what needs an interface's name beside it.
pub(crate) fn is_reachable(server: &IpAddr) -> bool {
    let link_local = matches!(server, IpAddr::V6(server) if server.is_unicast_link_local());
    !(server.is_loopback() || server.is_unspecified() || server.is_multicast() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NetConfig, WireConfig};

    #[test]
    fn all_search_domains_together_are_no_longer_than_a_message_takes() {
        let label = |len| "y".repeat(len);
        // Each label has its length before it, and each name the root's behind it: 65 and 63 octets.
        let spec = |last| format!("tap,search={},search={}", label(63), label(last));
        let WireConfig::Tap(tap) = spec(61).parse::<NetConfig>().unwrap().wire else { panic!("no tap") };
        assert_eq!(tap.dns.search.iter().map(|domain| domain.octets().len()).sum::<usize>(), SEARCH_MAX);
        let refusal = spec(62).parse::<NetConfig>().unwrap_err().to_string();
        assert!(refusal.contains("too long for a message"), "{refusal}");
    }

    #[test]
    fn a_domain_is_labels() {
        let domain: Domain = "Example.org.".parse().unwrap();
        assert_eq!(
            (domain.to_string().as_str(), &domain.octets()[..]),
            ("example.org", &b"\x07example\x03org\0"[..])
        );
        let (label, long) =
            ("x".repeat(63), format!("{}.{}", vec!["y".repeat(63); 3].join("."), "z".repeat(61)));
        for good in ["lan", "_dns.example-1.org", &label, &long] {
            assert!(good.parse::<Domain>().is_ok(), "{good}");
        }
        for bad in ["", ".", "a..b", ".a", "a b", "a/b", "\u{e4}.org", &"x".repeat(64), &format!("{long}z")] {
            assert!(bad.parse::<Domain>().is_err(), "{bad}");
        }
    }
}
