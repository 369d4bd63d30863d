//! `bridge=NAME`

use std::fmt;

use super::keys::{Keys, needed_place, number};
use crate::{Error, LinkName};

pub(super) const KIND: &str = "bridge";
pub(super) const KEYS: &str = "uplink=, vlan=, mac=, mtu=, queues=, affinity=, poll=, vhost=, netns=";

/// A tap on a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// The bridge, made where there is none.
    pub name: LinkName,
    /// The NIC of the host that joins too; not the bridge itself.
    pub uplink: Option<LinkName>,
    /// The guest's VLAN (IEEE 802.1Q), 1 to 4094.
    pub vlan: Option<u16>,
}

impl BridgeConfig {
    pub(super) fn parse(name: Option<&str>, keys: &mut Keys<'_>) -> Result<Self, Error> {
        let name = needed_place(KIND, name, "bridge=br0")?;
        let uplink: Option<LinkName> = keys.take("uplink", str::parse)?;
        let vlan = keys.take("vlan", |text| {
            number(text).filter(|vlan| (1..=4094).contains(vlan)).ok_or("a VLAN is from 1 to 4094")
        })?;
        if let Some(uplink) = uplink.as_ref().filter(|&uplink| *uplink == name) {
            return Err(Error::value("uplink", uplink.to_string(), "this is the bridge itself"));
        }
        Ok(Self { name, uplink, vlan })
    }

    pub(super) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "={}", self.name)?;
        if let Some(uplink) = &self.uplink {
            write!(f, ",uplink={uplink}")?;
        }
        if let Some(vlan) = self.vlan {
            write!(f, ",vlan={vlan}")?;
        }
        Ok(())
    }
}
