//! The VLANs of a guest's port, and of the uplink.

use super::uplinks_of;
use crate::Error;
use crate::config::vlans::{VlanRange, Vlans};
use crate::error::{BridgeError, HostError};
use crate::host::{Change, Link, LinkId, VlanMember, Wiring};

/// Refuses a VLAN that a link of the host takes from a port before the bridge sees it.
pub(super) fn check(
    wiring: &mut Wiring,
    vlans: &Vlans,
    bridge: &LinkId,
    uplink: Option<&Link>,
) -> Result<(), Error> {
    let links = wiring.links()?;
    let is_port = |index: u32| {
        let port = links.iter().find(|link| link.id.index == index);
        port.is_some_and(|port| port.master == Some(bridge.index))
            || uplink.is_some_and(|nic| nic.id.index == index)
    };
    let taken = |link: &Link| {
        let vlan = link.vlan.filter(|vlan| vlans.all().any(|range| range.contains(*vlan)))?;
        link.lower.is_some_and(is_port).then_some(vlan)
    };
    match links.iter().find_map(|link| Some((link, taken(link)?))) {
        Some((by, vlan)) => Err(BridgeError::VlanTaken { vlan, by: by.id.name.clone() }.into()),
        None => Ok(()),
    }
}

/// Has `port` be in `vlans` and in no other, and the bridge's uplink in the same with their tags.
pub(super) fn put_into(
    wiring: &mut Wiring,
    bridge: &Link,
    port: &LinkId,
    vlans: &Vlans,
) -> Result<(), Error> {
    let default = bridge.bridge.map_or(0, |bridge| bridge.default_pvid);
    if let Some(vlan) = vlans.untagged().filter(|&vlan| vlan != default) {
        let why = "the guest's VLAN, which it sees without a tag";
        wiring.make(Change::AddVlan(port.clone(), VlanRange::one(vlan), VlanMember::Untagged), None, why)?;
    }
    for &range in vlans.tagged() {
        let why = "the guest's VLANs, which it sees with their tags";
        wiring.make(Change::AddVlan(port.clone(), range, VlanMember::Tagged), None, why)?;
    }
    if default != 0 && !vlans.all().any(|range| range.contains(default)) {
        let why = "where a port is by default";
        wiring.make(Change::RemoveVlan(port.clone(), default), None, why)?;
    }
    tag_uplinks(wiring, bridge, vlans)
}

/// Has the bridge's uplink in `vlans` with their tags.
pub(super) fn tag_uplinks(wiring: &mut Wiring, bridge: &Link, vlans: &Vlans) -> Result<(), Error> {
    let default = bridge.bridge.map_or(0, |bridge| bridge.default_pvid);
    // Of an uplink that was a port before us, somebody else has said its VLANs.
    for index in uplinks_of(wiring, &bridge.id)? {
        let asked = |refusal| HostError::Ask { what: "the bridge's uplink".to_owned(), refusal };
        let Some(nic) = wiring.netlink().link_by_index(index).map_err(asked)? else { continue };
        // In the default one is the host itself, without tags.
        for range in vlans.all().flat_map(|range| range.without(default)) {
            let why = "the VLAN goes out with its tag";
            wiring.make(Change::AddVlan(nic.id.clone(), range, VlanMember::Tagged), None, why)?;
        }
    }
    Ok(())
}
