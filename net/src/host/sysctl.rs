//! The kernel's settings under `/proc/sys`, of the network namespace.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::text::word;

/// A value under `/proc/sys`, of the network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sysctl {
    /// Below `/proc/sys`: `net/ipv4/ip_forward`.
    pub(crate) key: String,
    pub(crate) value: String,
    /// Only where each of these keys has this value: somebody else may have set another one since we did.
    pub(crate) only_where: Vec<(String, String)>,
}

/// What there is of a link's in a record: what wirevm switches on, and what a switch of these sets besides.
const IN_RECORDS: [&str; 5] = [
    "net/ipv4/conf/LINK/forwarding",
    "net/ipv4/conf/LINK/route_localnet",
    "net/ipv6/conf/LINK/forwarding",
    "net/ipv6/conf/LINK/force_forwarding",
    "net/ipv6/conf/LINK/accept_ra",
];

/// The name of the link whose setting a key is.
pub(super) fn link_of(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once("/conf/")?;
    let (link, _) = rest.split_once('/')?;
    Some(link).filter(|link| !["all", "default"].contains(link))
}

/// Whether such a key may be in a record.
fn check_key(key: &str) -> Result<(), String> {
    let is_such = |pattern: &&str| {
        let of = pattern.split_once("LINK").expect("each has it");
        let link = key.strip_prefix(of.0).and_then(|key| key.strip_suffix(of.1));
        link.is_some_and(|link| !["", ".", ".."].contains(&link) && !link.contains(['/', '\0']))
    };
    match IN_RECORDS.iter().any(is_such) {
        true => Ok(()),
        false => Err(format!("{key:?} is nothing that wirevm sets")),
    }
}

impl Sysctl {
    /// A change of `key` to `value`.
    pub(crate) fn new(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), value: value.to_owned(), only_where: Vec::new() }
    }

    /// The same, only where `key` has `value`.
    pub(crate) fn only_where(mut self, key: &str, value: &str) -> Self {
        self.only_where.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Whether it may be in a record.
    ///
    /// # Errors
    /// It may not: a key is not one that wirevm sets, or the value is none of these.
    pub(super) fn check(&self) -> Result<(), String> {
        let others = self.only_where.iter().map(|(key, _)| key);
        others.chain([&self.key]).try_for_each(|key| check_key(key))?;
        match self.value.parse::<u8>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("{:?} is no value of {}", self.value, self.key)),
        }
    }

    /// The names of the links whose settings these are.
    pub(super) fn links(&self) -> Vec<&str> {
        let keys = self.only_where.iter().map(|(key, _)| key).chain([&self.key]);
        let mut names: Vec<_> = keys.filter_map(|key| link_of(key)).collect();
        names.dedup();
        names
    }

    /// Has the settings of the link `then` be those of `now`.
    pub(super) fn rename(&mut self, then: &str, now: &str) {
        let keys = self.only_where.iter_mut().map(|(key, _)| key).chain([&mut self.key]);
        for key in keys.filter(|key| link_of(key) == Some(then)) {
            *key = key.replacen(&format!("/conf/{then}/"), &format!("/conf/{now}/"), 1);
        }
    }

    fn path(key: &str) -> PathBuf {
        PathBuf::from("/proc/sys").join(key)
    }

    /// The value that `key` has now.
    pub(crate) fn read(key: &str) -> Result<String, Refusal> {
        Ok(fs::read_to_string(Self::path(key))?.trim_end().to_owned())
    }

    /// Opens `key` as if to change it, and leaves it at that.
    ///
    /// # Errors
    /// Why it could not be changed, as an errno.
    pub(crate) fn try_to_open(key: &str) -> Result<(), i32> {
        let opened = fs::OpenOptions::new().write(true).open(Self::path(key));
        opened.map(drop).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
    }

    pub(super) fn make(&self) -> Result<(), Refusal> {
        for (key, value) in &self.only_where {
            if Self::read(key)? != *value {
                return Ok(());
            }
        }
        Ok(fs::write(Self::path(&self.key), &self.value)?)
    }

    /// As sysctl(8) takes it: where a link's name has a dot, the slashes stay.
    pub(super) fn command(&self) -> String {
        let key = if self.key.contains('.') { self.key.clone() } else { self.key.replace('/', ".") };
        format!("sysctl -w {}={}", word(&key), self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_sets_what_wirevm_sets_and_nothing_else() {
        let good = Sysctl::new("net/ipv4/conf/eth0.5/forwarding", "0");
        good.clone().only_where("net/ipv6/conf/all/forwarding", "0").check().unwrap();
        for key in [
            "/etc/passwd",
            "/proc/sys/net/ipv4/conf/eth0/forwarding",
            "../../etc/passwd",
            "kernel/core_pattern",
            "net/ipv4/ip_forward",
            "net/ipv4/conf/../../../kernel/core_pattern",
            "net/ipv4/conf/../forwarding",
            "net/ipv4/conf/a/../forwarding",
            "net/ipv4/conf//forwarding",
            "net/ipv4/conf/forwarding",
            "net/ipv4/conf/eth0/forwarding/x",
            "",
        ] {
            assert!(Sysctl::new(key, "0").check().is_err(), "{key}");
            assert!(good.clone().only_where(key, "0").check().is_err(), "{key}");
        }
        let mut renamed = good.clone().only_where("net/ipv4/conf/eth0.5/forwarding", "1");
        renamed = renamed.only_where("net/ipv4/conf/all/forwarding", "0");
        assert_eq!(renamed.links(), ["eth0.5"]);
        renamed.rename("eth0", "x");
        assert_eq!(renamed.links(), ["eth0.5"], "another one");
        renamed.rename("eth0.5", "conf");
        assert_eq!((renamed.key.as_str(), renamed.links()), ("net/ipv4/conf/conf/forwarding", vec!["conf"]));
        assert_eq!(renamed.only_where[1].0, "net/ipv4/conf/all/forwarding");
        for value in ["", "a command", "0\n1", "|/bin/sh"] {
            assert!(Sysctl::new(&good.key, value).check().is_err(), "{value:?}");
        }
    }
}
