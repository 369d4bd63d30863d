//! The `key=value` of a spec, and what several kinds understand alike.

use std::str::FromStr;

use super::{MTU, Repeat, WireKind};
use crate::error::SpecError;
use crate::{Error, HostAddress, LinkName};

/// The `key=value` that are not yet understood, in the order that they were given: each of them one of its kind.
pub(super) struct Keys<'a> {
    kind: WireKind,
    given: Vec<(&'static str, &'a str)>,
}

impl<'a> Keys<'a> {
    /// Those of `text`, what follows the first comma of a spec of `kind`.
    pub(super) fn parse(kind: WireKind, text: Option<&'a str>) -> Result<Self, Error> {
        let mut given = Vec::new();
        for item in text.into_iter().flat_map(|text| text.split(',')) {
            let (name, value) = match item.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (item, None),
            };
            let is_of_others = || super::keys().iter().any(|key| key.name == name);
            let (key, value) = match (kind.key(name), value) {
                (Some(key), Some(value)) => (key, value),
                (Some(key), None) if key.alone => (key, "on"),
                (Some(_), None) => return Err(SpecError::NotAKey { item: item.to_owned() }.into()),
                (None, None) if !is_of_others() => {
                    return Err(SpecError::NotAKey { item: item.to_owned() }.into());
                }
                (None, _) => {
                    let (kind, known) = (kind.word(), kind.key_names());
                    return Err(SpecError::UnknownKey { kind, key: name.to_owned(), known }.into());
                }
            };
            if value.is_empty() {
                return Err(malformed(name, "", "it has no value", key.remedy()));
            }
            let is_repeated = given.iter().any(|(other, _)| *other == key.name);
            if is_repeated && key.repeat == Repeat::Once {
                return Err(SpecError::KeyTwice { key: name.to_owned() }.into());
            }
            given.push((key.name, value));
        }
        Ok(Self { kind, given })
    }

    /// Takes out the value of a key that may be there once, understood by `understand`.
    pub(super) fn take<T>(
        &mut self,
        name: &'static str,
        understand: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Result<Option<T>, Error> {
        Ok(self.take_all(name, understand)?.pop())
    }

    /// Takes out the values of a key that may be there several times.
    pub(super) fn take_all<T>(
        &mut self,
        name: &'static str,
        understand: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Result<Vec<T>, Error> {
        let values: Vec<_> =
            self.given.extract_if(.., |(given, _)| *given == name).map(|(_, value)| value).collect();
        let refusal = |value: &str, why| match self.kind.key(name) {
            Some(key) => malformed(name, value, why, key.remedy()),
            None => Error::value(name, value.to_owned(), why),
        };
        values.into_iter().map(|value| understand(value).map_err(|why| refusal(value, why))).collect()
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
}

/// The refusal of a value that is not written as it must be.
fn malformed(key: &str, value: &str, why: &'static str, remedy: String) -> Error {
    SpecError::Value { key: key.to_owned(), value: value.to_owned(), why, remedy: Some(remedy) }.into()
}

/// The link named behind the kind's `=`, for a kind that does without.
pub(super) fn kind_link(kind: WireKind, name: Option<&str>) -> Result<Option<LinkName>, Error> {
    let remedy = || format!("write --net {}", kind.row().example);
    let refusal = |name: &str, why| malformed(kind.word(), name, why, remedy());
    name.map(|name| name.parse().map_err(|why| refusal(name, why))).transpose()
}

/// The link named behind the kind's `=`, for a kind that needs one.
pub(super) fn required_kind_link(kind: WireKind, name: Option<&str>) -> Result<LinkName, Error> {
    kind_link(kind, name)?.ok_or(no_place(kind))
}

/// The refusal of a spec with nothing behind the kind's `=`.
pub(super) fn no_place(kind: WireKind) -> Error {
    SpecError::NoPlace { kind: kind.word(), example: kind.row().example }.into()
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
