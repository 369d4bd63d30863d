//! `bridge=NAME`

use std::fmt;

use super::WireKind;
use super::keys::{Keys, number, on_or_off, required_kind_link};
use crate::{Error, LinkName};

/// A tap on a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// The bridge, created if it does not exist.
    pub name: LinkName,
    /// The NIC of the host that joins the bridge; not the bridge itself.
    pub uplink: Option<LinkName>,
    /// The guest's VLAN (IEEE 802.1Q), 1 to 4094.
    pub vlan: Option<u16>,
    /// The guest's port passes nothing to and from other isolated ports of the bridge.
    pub isolated: bool,
}

impl BridgeConfig {
    pub(super) fn parse(name: Option<&str>, keys: &mut Keys<'_>) -> Result<Self, Error> {
        let name = required_kind_link(WireKind::Bridge, name)?;
        let uplink: Option<LinkName> = keys.take("uplink", str::parse)?;
        let vlan = keys.take("vlan", |text| {
            number(text).filter(|vlan| (1..=4094).contains(vlan)).ok_or("a VLAN is from 1 to 4094")
        })?;
        let isolated = keys.take("isolated", on_or_off)?.unwrap_or(false);
        if let Some(uplink) = uplink.as_ref().filter(|&uplink| *uplink == name) {
            return Err(Error::value("uplink", uplink.to_string(), "this is the bridge itself"));
        }
        Ok(Self { name, uplink, vlan, isolated })
    }

    pub(super) fn write_spec(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "={}", self.name)?;
        if let Some(uplink) = &self.uplink {
            write!(f, ",uplink={uplink}")?;
        }
        if let Some(vlan) = self.vlan {
            write!(f, ",vlan={vlan}")?;
        }
        if self.isolated {
            f.write_str(",isolated=on")?;
        }
        Ok(())
    }
}
