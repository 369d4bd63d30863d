//! A bridge that is there again after it was deleted, and an uplink that was plugged in again: the guest's end is a port of the new
//! one as it was of the old one.

use super::port::Port;
use super::{join, join_uplink, keep_mac, record_of, uplink, uplink_record_of, uplinks_of, vlans};
use crate::error::HostError;
use crate::host::{Link, LinkId, Wiring};
use crate::{BridgeConfig, Error, Mac, NetConfig};

/// What the guest's end of a bridge's wire is a port of now.
pub(in crate::wire) struct Rejoined {
    pub(in crate::wire) bridge: LinkId,
    pub(in crate::wire) uplink: Option<LinkId>,
}

/// Makes `port`, the guest's end, a port of the bridge that has the config's name now, and the uplink too where there is one and it
/// is free. In the wiring's network namespace.
///
/// # Errors
/// The bridge is gone again, or the kernel refuses a step. What was done of it is taken back at the end, as all is.
pub(in crate::wire) fn rejoin(
    wiring: &mut Wiring,
    config: &BridgeConfig,
    all: &NetConfig,
    mac: Mac,
    port: &LinkId,
) -> Result<Rejoined, Error> {
    // Others hear of it at the same time.
    let done = wiring.take_lock().and_then(|()| try_rejoin(wiring, config, all, mac, port));
    wiring.release_lock();
    done
}

fn try_rejoin(
    wiring: &mut Wiring,
    config: &BridgeConfig,
    all: &NetConfig,
    mac: Mac,
    port: &LinkId,
) -> Result<Rejoined, Error> {
    // One that is gone again is not made by us.
    wiring.link(config.name.as_str())?;
    let uplink = free_uplink(wiring, config);
    // Whoever makes it is about to set it up.
    let bridge = join(wiring, config, uplink.as_ref(), false)?;
    if !wiring.has_shared(&record_of(&bridge.id)) {
        keep_mac(wiring, &bridge)?;
    }
    if let Some(nic) = &uplink {
        join_uplink(wiring, nic, &bridge.id, None)?;
    }
    let bridge = wiring.link(&bridge.id.name)?;
    let link = by_index(wiring, port)?;
    Port { config, all, mac }.plug_again(wiring, &bridge, &link)?;
    Ok(Rejoined { bridge: bridge.id, uplink: uplink.map(|nic| nic.id) })
}

/// Has the NIC that has the uplink's name now join `bridge`, whose uplink was unplugged. What the host had on the old one is on the
/// bridge, and goes to this one at the end. In the wiring's network namespace.
///
/// # Errors
/// It cannot be a port, or the kernel refuses a step.
pub(in crate::wire) fn rejoin_uplink(
    wiring: &mut Wiring,
    config: &BridgeConfig,
    bridge: &LinkId,
) -> Result<Option<LinkId>, Error> {
    let done = wiring.take_lock().and_then(|()| try_rejoin_uplink(wiring, config, bridge));
    wiring.release_lock();
    done
}

fn try_rejoin_uplink(
    wiring: &mut Wiring,
    config: &BridgeConfig,
    bridge: &LinkId,
) -> Result<Option<LinkId>, Error> {
    let Some(name) = &config.uplink else { return Ok(None) };
    let nic = uplink::check(wiring, name.as_str(), &bridge.name)?;
    let moved = wiring.moved_to(bridge);
    join_uplink(wiring, &nic, bridge, moved)?;
    // Another wirevm may have moved it.
    for index in uplinks_of(wiring, bridge)? {
        wiring.join(&uplink_record_of(bridge, &LinkId { index, name: String::new() }))?;
    }
    if let Some(vlans) = &config.vlans {
        let bridge = by_index(wiring, bridge)?;
        vlans::tag_uplinks(wiring, &bridge, vlans)?;
    }
    Ok(Some(nic.id))
}

/// The config's uplink, where there is one that can join.
fn free_uplink(wiring: &mut Wiring, config: &BridgeConfig) -> Option<Link> {
    let name = config.uplink.as_ref()?;
    let checked = uplink::check(wiring, name.as_str(), config.name.as_str());
    checked.inspect_err(|error| log::debug!("the uplink stays out: {}", error.with_cause())).ok()
}

fn by_index(wiring: &mut Wiring, id: &LinkId) -> Result<Link, Error> {
    let asked = |refusal| HostError::Ask { what: format!("the link {id}"), refusal };
    let found = wiring.netlink().link_by_index(id.index).map_err(asked)?;
    Ok(found.ok_or_else(|| HostError::LinkGone { name: id.name.clone() })?)
}
