//! The `key=value` of a spec, and what several kinds understand alike.

use std::str::FromStr;

use super::{MTU, WireConfig, bridge, fd, macvtap, tap, tun};
use crate::error::SpecError;
use crate::{Error, HostAddress, LinkName};

/// The keys that may stand alone, and mean `on` then.
const FLAGS: [&str; 1] = ["nat"];

/// The `key=value` that are not yet understood, in the order that they were given.
pub(super) struct Keys<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Keys<'a> {
    /// Those of `text`, what follows the first comma of a spec.
    pub(super) fn parse(text: Option<&'a str>) -> Result<Self, Error> {
        let mut keys = Vec::new();
        for item in text.into_iter().flat_map(|text| text.split(',')) {
            let (key, value) = match item.split_once('=') {
                Some(pair) => pair,
                None if FLAGS.contains(&item) => (item, "on"),
                None => return Err(SpecError::NotAKey { item: item.to_owned() }.into()),
            };
            if value.is_empty() {
                return Err(Error::value(key, String::new(), "it has no value"));
            }
            keys.push((key, value));
        }
        Ok(Self(keys))
    }

    /// Takes a key's value out, understood by `understand`.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        understand: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Result<Option<T>, Error> {
        let mut values = self.take_all(key, understand)?;
        match values.len() {
            0 | 1 => Ok(values.pop()),
            _ => Err(SpecError::KeyTwice { key: key.to_owned() }.into()),
        }
    }

    /// Takes the values of a key out that may be there several times, but not twice with the same value.
    pub(super) fn take_all<T>(
        &mut self,
        key: &'static str,
        understand: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Result<Vec<T>, Error> {
        let mut values = Vec::new();
        let mut understood = Ok(());
        self.0.retain(|&(this, value)| {
            if this != key {
                return true;
            }
            match understand(value) {
                Ok(value) => values.push(value),
                Err(why) if understood.is_ok() => understood = Err(Error::value(key, value.to_owned(), why)),
                Err(_) => {}
            }
            false
        });
        understood.map(|()| values)
    }

    /// Takes `host=` out: at most one of each family.
    pub(super) fn take_hosts(&mut self) -> Result<Vec<HostAddress>, Error> {
        let hosts = self.take_all("host", HostAddress::from_str)?;
        if let [first, second, ..] = hosts[..]
            && (hosts.len() > 2 || first.address().is_ipv4() == second.address().is_ipv4())
        {
            let why = "there is one for IPv4 and one for IPv6 at most";
            return Err(Error::value("host", hosts[hosts.len() - 1].to_string(), why));
        }
        Ok(hosts)
    }

    /// Refuses what nobody took.
    pub(super) fn finish(self, wire: &WireConfig) -> Result<(), Error> {
        let known = match wire {
            WireConfig::Tap(_) => tap::KEYS,
            WireConfig::Bridge(_) => bridge::KEYS,
            WireConfig::Macvtap(_) => macvtap::KEYS,
            WireConfig::Tun(_) => tun::KEYS,
            WireConfig::Fd(_) => fd::KEYS,
        };
        match self.0.first() {
            Some((key, _)) => {
                Err(SpecError::UnknownKey { kind: wire.kind(), key: (*key).to_owned(), known }.into())
            }
            None => Ok(()),
        }
    }
}

/// The link that stands behind the kind's `=`, where a kind does without.
pub(super) fn place(kind: &'static str, place: Option<&str>) -> Result<Option<LinkName>, Error> {
    let parse = |name: &str| name.parse().map_err(|why| Error::value(kind, name.to_owned(), why));
    place.map(parse).transpose()
}

/// The link that stands behind the kind's `=`, where a kind needs one; `example` is a spec that has it.
pub(super) fn needed_place(
    kind: &'static str,
    name: Option<&str>,
    example: &'static str,
) -> Result<LinkName, Error> {
    Ok(place(kind, name)?.ok_or(SpecError::NoPlace { kind, example })?)
}

/// A decimal number, digits only: no sign, as Rust's own parser allows.
pub(super) fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

pub(super) fn mtu(text: &str) -> Result<u16, &'static str> {
    number(text).filter(|mtu| MTU.contains(mtu)).ok_or("an MTU is from 68 to 65521 bytes")
}

pub(super) fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off"),
    }
}
