//! `macvtap=LINK`

use std::fmt;
use std::str::FromStr;

use super::WireKind;
use super::keys::{Keys, required_kind_link};
use crate::{Error, HostAddress, LinkName, Mac};

/// A macvtap on a NIC of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacvtapConfig {
    /// The NIC on which a macvtap is created; or an existing macvtap, which is used.
    pub parent: LinkName,
    /// What the guest reaches, and what reaches the guest.
    pub mode: MacvtapMode,
    /// The host's addresses on a macvlan of its own on the same NIC, at most one of each family; only in the modes `bridge`
    /// and `vepa`, because the others separate the two.
    pub hosts: Vec<HostAddress>,
    /// The machines that may send to the guest: in mode `source` one or more, else none.
    pub sources: Vec<Mac>,
}

/// The modes of a macvlan or macvtap (`IFLA_MACVLAN_MODE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MacvtapMode {
    /// No frames between macvtaps of the same NIC.
    Private,
    /// Frames to another macvtap of the same NIC go through a switch that sends them back (reflective relay).
    Vepa,
    /// Frames to another macvtap of the same NIC go directly.
    #[default]
    Bridge,
    /// This macvtap is the NIC's only one, and has the NIC's address.
    Passthru,
    /// Frames are received only from the listed addresses.
    Source,
}

impl MacvtapConfig {
    pub(super) fn parse(name: Option<&str>, keys: &mut Keys<'_>) -> Result<Self, Error> {
        let parent = required_kind_link(WireKind::Macvtap, name)?;
        let mode = keys.take("mode", MacvtapMode::from_str)?.unwrap_or_default();
        let hosts = keys.take_hosts()?;
        let sources = keys.take_all("source", Mac::from_str)?;
        if let Some(host) = hosts.first()
            && !matches!(mode, MacvtapMode::Bridge | MacvtapMode::Vepa)
        {
            let why = "this mode separates the host's macvlan from the guest: use mode=bridge or vepa";
            return Err(Error::value("host", host.to_string(), why));
        }
        match (&sources[..], mode) {
            ([], MacvtapMode::Source) => {
                let why = "it admits only the machines that source= lists: add source=MAC";
                return Err(Error::value("mode", mode.to_string(), why));
            }
            ([], _) | (_, MacvtapMode::Source) => {}
            ([source, ..], _) => {
                return Err(Error::value("source", source.to_string(), "it needs mode=source"));
            }
        }
        if let Some(index) = (1..sources.len()).find(|&index| sources[..index].contains(&sources[index])) {
            return Err(Error::value("source", sources[index].to_string(), "it is given twice"));
        }
        Ok(Self { parent, mode, hosts, sources })
    }

    pub(super) fn write_spec(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "={}", self.parent)?;
        if self.mode != MacvtapMode::default() {
            write!(f, ",mode={}", self.mode)?;
        }
        for host in &self.hosts {
            write!(f, ",host={host}")?;
        }
        for source in &self.sources {
            write!(f, ",source={source}")?;
        }
        Ok(())
    }
}

impl FromStr for MacvtapMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "private" => Self::Private,
            "vepa" => Self::Vepa,
            "bridge" => Self::Bridge,
            "passthru" => Self::Passthru,
            "source" => Self::Source,
            _ => return Err("it is bridge, vepa, private, passthru or source"),
        })
    }
}

/// The word of `ip-link(8)`.
impl fmt::Display for MacvtapMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Bridge => "bridge",
            Self::Passthru => "passthru",
            Self::Source => "source",
        })
    }
}
