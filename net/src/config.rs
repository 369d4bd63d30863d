//! The grammar of `--net`: `KIND[=WHERE][,key=value]...`, where WHERE is the host's interface.
//!
//! What parses makes sense: the types have no place for a spec that does not, and parsing refuses it naming the key.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::{Error, HostAddress, LinkName, Mac};

/// The keys of every kind, for the words of an error.
const TAP_KEYS: &str = "host=, dhcp=, mac=, mtu=";

/// MTUs that a tap can have: IPv4's least (RFC 791) to the most of the kernel's tun driver, 65535 less an Ethernet header.
pub const MTU: RangeInclusive<u16> = 68..=65521;

/// One NIC, as `--net` says it:
///
/// ```text
/// tap[=NAME]            a tap: NAME where it exists (or made with that name), else a new one with a name of the kernel's
///   host=ADDR/LEN       the host's IPv4 address on the tap
///   dhcp=on|off         answer the guest's DHCP with the next address of that subnet (on; needs host=)
///   mac=ADDRESS         the guest's Ethernet address (random)
///   mtu=BYTES           the MTU of the tap and the guest, 68 to 65521 (the tap's own)
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Where the frames go.
    pub wire: Wire,
    /// The guest's Ethernet address; none for a random one, chosen by [`open`](crate::open).
    pub mac: Option<Mac>,
    /// The MTU of the host's link and the guest in bytes, within [`MTU`]; none to take the link's own.
    pub mtu: Option<u16>,
}

/// The kinds of wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    /// A tap.
    Tap(TapConfig),
}

impl Wire {
    /// The kind's word on the command line.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tap(_) => "tap",
        }
    }
}

/// A tap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapConfig {
    /// The tap to attach to, made where there is none; none to let the kernel name a new one.
    pub name: Option<LinkName>,
    /// The host's place on it.
    pub host: Option<Host>,
}

/// The host's place in a subnet that it shares with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    address: HostAddress,
    dhcp: bool,
}

impl Host {
    /// The host at `address`, answering the guest's DHCP if `dhcp`.
    ///
    /// # Errors
    /// Where `dhcp` has no address left to give: the subnet is a /32.
    pub fn new(address: HostAddress, dhcp: bool) -> Result<Self, Error> {
        if dhcp && address.guest().is_none() {
            let why =
                "a /32 leaves no address for DHCP to give the guest: add dhcp=off, or take a shorter prefix";
            return Err(Error::value("host", address.to_string(), why));
        }
        Ok(Self { address, dhcp })
    }

    /// Its address.
    pub fn address(self) -> HostAddress {
        self.address
    }

    /// True where wirevm answers the guest's DHCP.
    pub fn dhcp(self) -> bool {
        self.dhcp
    }
}

/// The `key=value` that are not yet understood.
struct Keys<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Keys<'a> {
    fn parse(text: &'a str) -> Result<Self, Error> {
        let mut keys = BTreeMap::new();
        for item in text.split(',') {
            let Some((key, value)) = item.split_once('=') else {
                return Err(Error::NotAKey { item: item.to_owned() });
            };
            if value.is_empty() {
                return Err(Error::value(key, String::new(), "it has no value"));
            }
            if keys.insert(key, value).is_some() {
                return Err(Error::KeyTwice { key: key.to_owned() });
            }
        }
        Ok(Self(keys))
    }

    /// Takes a key's value out, understood by `understand`.
    fn take<T>(
        &mut self,
        key: &'static str,
        understand: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.0.remove(key) else { return Ok(None) };
        understand(value).map(Some).map_err(|why| Error::value(key, value.to_owned(), why))
    }

    /// Refuses what nobody took.
    fn finish(self, kind: &'static str, known: &'static str) -> Result<(), Error> {
        match self.0.into_keys().next() {
            Some(key) => Err(Error::UnknownKey { kind, key: key.to_owned(), known }),
            None => Ok(()),
        }
    }
}

fn mtu(text: &str) -> Result<u16, &'static str> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let mtu = text.parse().ok().filter(|mtu| digits && MTU.contains(mtu));
    mtu.ok_or("an MTU is from 68 to 65521 bytes")
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off"),
    }
}

impl FromStr for NetConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (wire, keys) = match text.split_once(',') {
            Some((wire, keys)) => (wire, Keys::parse(keys)?),
            None => (text, Keys(BTreeMap::new())),
        };
        let (kind, place) = match wire.split_once('=') {
            Some((kind, place)) => (kind, Some(place)),
            None => (wire, None),
        };
        match kind {
            "tap" => tap(place, keys),
            _ => Err(Error::UnknownKind { kind: kind.to_owned() }),
        }
    }
}

fn tap(place: Option<&str>, mut keys: Keys<'_>) -> Result<NetConfig, Error> {
    let name = match place {
        Some(name) => Some(name.parse().map_err(|why| Error::value("tap", name.to_owned(), why))?),
        None => None,
    };
    let mac = keys.take("mac", str::parse)?;
    let mtu = keys.take("mtu", mtu)?;
    let address: Option<HostAddress> = keys.take("host", str::parse)?;
    let dhcp = keys.take("dhcp", on_or_off)?;
    keys.finish("tap", TAP_KEYS)?;
    let host = match (address, dhcp) {
        (Some(address), dhcp) => Some(Host::new(address, dhcp.unwrap_or(true))?),
        (None, Some(true)) => {
            let why = "it gives an address of the subnet that host= names, and there is no host=";
            return Err(Error::value("dhcp", "on".to_owned(), why));
        }
        (None, _) => None,
    };
    Ok(NetConfig { wire: Wire::Tap(TapConfig { name, host }), mac, mtu })
}

/// The spec again, in a form that parses to the same.
impl fmt::Display for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wire::Tap(TapConfig { name, host }) = &self.wire;
        f.write_str(self.wire.kind())?;
        if let Some(name) = name {
            write!(f, "={name}")?;
        }
        if let Some(host) = host {
            write!(f, ",host={}", host.address)?;
            if !host.dhcp {
                f.write_str(",dhcp=off")?;
            }
        }
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, ",mtu={mtu}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<NetConfig, Error> {
        text.parse()
    }

    #[test]
    fn each_key_means_what_it_says() {
        let config = parse("tap=tap0,mtu=9000,host=172.31.0.1/24,mac=02:00:00:00:00:01").unwrap();
        let Wire::Tap(tap) = &config.wire;
        assert_eq!(tap.name.as_ref().unwrap().as_str(), "tap0");
        let host = tap.host.unwrap();
        assert_eq!(host.address().to_string(), "172.31.0.1/24");
        assert!(host.dhcp(), "dhcp is on where host= is given");
        assert_eq!((config.mtu, config.mac.unwrap().octets()), (Some(9000), [2, 0, 0, 0, 0, 1]));

        let config = parse("tap").unwrap();
        assert_eq!((config.wire, config.mac, config.mtu), (Wire::Tap(TapConfig::default()), None, None));
        let Wire::Tap(tap) = parse("tap,host=172.31.0.1/24,dhcp=off").unwrap().wire;
        assert!(!tap.host.unwrap().dhcp());
        let Wire::Tap(tap) = parse("tap,host=172.31.0.1/32,dhcp=off").unwrap().wire;
        assert_eq!(tap.host.unwrap().address().prefix(), 32);
        assert!(parse("tap,dhcp=off").is_ok(), "what is off needs nothing");
        assert!(parse("tap,mtu=68").is_ok() && parse("tap,mtu=65521").is_ok());
    }

    /// The text of the refusal names `key`.
    fn refused(spec: &str, key: &str) {
        let error = parse(spec).expect_err(spec);
        assert!(error.is_usage(), "{spec}: {error}");
        let text = error.to_string();
        assert!(text.contains(key), "{spec}: {text:?} does not name {key:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_naming_the_key() {
        refused("", "\"\"");
        refused("macvtap=eth0", "macvtap");
        refused(" tap", "\" tap\"");
        refused("tap=", "tap=");
        refused("tap=a b", "tap=");
        refused("tap=sixteen-bytes-xx", "15 bytes");
        refused("tap,", "\"\"");
        refused("tap,dhcp", "dhcp");
        refused("tap,colour=red", "colour=");
        refused("tap,=x", "\"\"");
        refused("tap,mtu=", "mtu=");
        refused("tap,mtu=67", "mtu=67");
        refused("tap,mtu=65522", "65521");
        refused("tap,mtu=+1500", "mtu=");
        refused("tap,mtu=99999999999", "mtu=");
        refused("tap,mtu=1500,mtu=1500", "mtu=");
        refused("tap,mac=01:00:00:00:00:00", "mac=");
        refused("tap,host=10.0.0.0/24", "host=");
        refused("tap,host=10.0.0.1/32", "dhcp=off");
        refused("tap,dhcp=on", "host=");
        refused("tap,dhcp=maybe,host=10.0.0.1/24", "dhcp=");
    }

    #[test]
    fn a_refusal_says_what_there_is() {
        assert!(parse("veth").unwrap_err().remedy().unwrap().contains("tap"));
        assert!(parse("tap,colour=red").unwrap_err().remedy().unwrap().contains("host="));
    }

    fn specs() -> impl Strategy<Value = NetConfig> {
        let name = proptest::option::of("[!-~]{1,15}".prop_filter_map("a name", |name| name.parse().ok()));
        let address = (any::<[u8; 4]>(), 1..=32u8)
            .prop_filter_map("a host's", |(octets, prefix)| HostAddress::new(octets.into(), prefix).ok());
        let host = (address, any::<bool>())
            .prop_filter_map("a guest's", |(address, dhcp)| Host::new(address, dhcp).ok());
        let mac = any::<[u8; 6]>().prop_filter_map("a NIC's", |octets| Mac::new(octets).ok());
        (name, proptest::option::of(host), proptest::option::of(mac), proptest::option::of(MTU)).prop_map(
            |(name, host, mac, mtu)| NetConfig { wire: Wire::Tap(TapConfig { name, host }), mac, mtu },
        )
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_to_the_same(config in specs()) {
            prop_assert_eq!(parse(&config.to_string()).unwrap(), config);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse(&text);
        }

        #[test]
        fn no_text_close_to_a_spec_panics_and_what_parses_is_shown_again(
            text in "tap(=[a-z%/.]{0,17})?(,(host|dhcp|mac|mtu|x)(=[0-9a-f:./onf]{0,18})?){0,4}",
        ) {
            if let Ok(config) = parse(&text) {
                prop_assert_eq!(parse(&config.to_string()).unwrap(), config);
            }
        }
    }
}
