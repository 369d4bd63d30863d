//! `bridge=NAME`

use std::fmt;

use super::WireKind;
use super::keys::{Keys, on_or_off, required_kind_link};
use super::vlans::Vlans;
use crate::{Error, LinkName};

/// A tap on a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// The bridge, created if it does not exist.
    pub name: LinkName,
    /// The NIC of the host that joins the bridge; not the bridge itself.
    pub uplink: Option<LinkName>,
    /// The guest's VLANs; none to have the bridge's default.
    pub vlans: Option<Vlans>,
    /// The guest's port passes nothing to and from other isolated ports of the bridge.
    pub isolated: bool,
}

impl BridgeConfig {
    pub(super) fn parse(name: Option<&str>, keys: &mut Keys<'_>) -> Result<Self, Error> {
        let name = required_kind_link(WireKind::Bridge, name)?;
        let uplink: Option<LinkName> = keys.take("uplink", str::parse)?;
        let vlans = Vlans::take(keys)?;
        let isolated = keys.take("isolated", on_or_off)?.unwrap_or(false);
        if let Some(uplink) = uplink.as_ref().filter(|&uplink| *uplink == name) {
            return Err(Error::value("uplink", uplink.to_string(), "this is the bridge itself"));
        }
        Ok(Self { name, uplink, vlans, isolated })
    }

    pub(super) fn write_spec(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "={}", self.name)?;
        if let Some(uplink) = &self.uplink {
            write!(f, ",uplink={uplink}")?;
        }
        if let Some(vlans) = &self.vlans {
            vlans.write_spec(f)?;
        }
        if self.isolated {
            f.write_str(",isolated=on")?;
        }
        Ok(())
    }
}
