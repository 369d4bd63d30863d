//! The bridge: a tap of our own as a port of a bridge of the host, so that the guest is on the same wire as the other ports.
//!
//! A bridge that is not there is made: without spanning tree, so that a port forwards at once, and with an Ethernet address
//! that stays, while the kernel's own choice is that of a port, which changes when the port leaves. All wirevm that are on it
//! share it (the records `bridge:NUMBER` and `uplink:NUMBER:NUMBER`, for names change), and it goes with the last one. A bridge that
//! was there stays.

pub(in crate::wire) mod follow;
mod passing;
mod port;
mod settings;
pub(crate) mod uplink;
mod vlans;

use self::port::Port;
use crate::error::{BridgeError, ChangeKind, HostError};
use crate::host::belongings::Moved;
use crate::host::firewall::bridged_notices;
use crate::host::sysfs::Sysfs;
use crate::host::wire_link::Role;
use crate::host::{Change, Host, Link, LinkId, Wiring};
use crate::wire::made::{self, Made, Parts};
use crate::wire::tuntap;
use crate::{Backend, BridgeConfig, Error, MTU, Mac, NetConfig, Tap, TunMode};

/// Makes a tap for the NIC `mac` and joins it to the bridge.
pub(crate) fn open(config: &BridgeConfig, mac: Mac, all: &NetConfig, host: &Host) -> Result<Made, Error> {
    let (mtu, queues) = (all.mtu, all.queues.number());
    let mut wiring = Wiring::begin(host, all.netns.as_ref())?;
    let uplink = config.uplink.as_ref();
    let uplink =
        uplink.map(|nic| uplink::check(&mut wiring, nic.as_str(), config.name.as_str())).transpose()?;
    check_mac(&mut wiring, mac, config, uplink.as_ref())?;
    bridged_notices(config.name.as_str()).into_iter().for_each(|notice| wiring.notice(notice));
    let bridge = join(&mut wiring, config, uplink.as_ref(), true)?;
    if !wiring.has_shared(&record_of(&bridge.id)) {
        keep_mac(&mut wiring, &bridge)?;
    }
    if let Some(vlans) = &config.vlans {
        vlans::check(&mut wiring, vlans, &bridge.id, uplink.as_ref())?;
    }
    if let Some(nic) = &uplink {
        join_uplink(&mut wiring, nic, &bridge.id, None)?;
    }
    // As it is now: the uplink may have changed its MTU.
    let bridge = wiring.link(&bridge.id.name)?;

    let (tap, others) = Tap::open_queues(None, queues, &wiring)?;
    // Here, so that a failure drops the wiring before the tap.
    let mut wiring = wiring;
    let name = tap.name().to_owned();
    let command = tuntap::line(TunMode::Tap, &name, queues);
    wiring.tell(command, "the guest's end of the wire; it goes when we go");
    let link = wiring.link(&name)?;
    wiring.has_port(&link.id);

    Port { config, all, mac }.plug(&mut wiring, &bridge, &link)?;

    let mtu = check_mtu(&mut wiring, &bridge.id, &link.id, mtu)?;
    let nic = uplink.as_ref().map(|nic| &nic.id);
    let told = passing::notices(&mut wiring, &bridge.id, &link.id, config, nic)?;
    told.into_iter().for_each(|notice| wiring.notice(notice));
    wiring.release_lock();
    let mut parts = Parts::new(&name, mac, mtu, tap.offloads());
    parts.links.push(wiring.wire_link(&link.id, Role::Guest));
    parts.links.push(wiring.wire_link(&bridge.id, Role::Bridge));
    parts.links.extend(uplink.map(|nic| wiring.wire_link(&nic.id, Role::Uplink)));
    Ok(Made { ends: made::ends(tap, others), parts, wiring })
}

/// Has a bridge of somebody else's that has no port keep its Ethernet address: when its last port leaves, the kernel has it be
/// 00:00:00:00:00:00 unless somebody has set it (`br_stp_recalculate_bridge_id`). That it was set stays: nothing takes it back.
fn keep_mac(wiring: &mut Wiring, bridge: &Link) -> Result<(), Error> {
    let Some(own) = bridge.mac.filter(|mac| *mac != [0; 6]) else { return Ok(()) };
    let has_ports = wiring.links()?.iter().any(|link| link.master == Some(bridge.id.index));
    if has_ports || Sysfs::open().is_ok_and(|sysfs| sysfs.has_set_address(&bridge.id)) {
        return Ok(());
    }
    let keep = Change::Mac(bridge.id.clone(), own);
    wiring.make(keep, None, "it keeps its own, also when its last port leaves")?;
    wiring.notice(format!(
        "{bridge} has no port, and its Ethernet address is set to what it is, for good: the kernel would clear it with the last port",
        bridge = bridge.id
    ));
    Ok(())
}

/// Refuses a `mac` that is on the bridge already, or at the NIC that is to join it.
fn check_mac(
    wiring: &mut Wiring,
    mac: Mac,
    config: &BridgeConfig,
    uplink: Option<&Link>,
) -> Result<(), Error> {
    let joining: Vec<_> = uplink.map(|nic| &nic.id).into_iter().collect();
    match (wiring.find_link(config.name.as_str())?, uplink) {
        (Some(bridge), _) => wiring.check_mac(mac, &bridge.id, &joining),
        (None, Some(nic)) => wiring.check_mac(mac, &nic.id, &[]),
        (None, None) => Ok(()),
    }
}

/// The record of a bridge that wirevm made.
fn record_of(bridge: &LinkId) -> String {
    format!("bridge:{}", bridge.index)
}

/// The record of a NIC that wirevm joined to a bridge.
fn uplink_record_of(bridge: &LinkId, nic: &LinkId) -> String {
    format!("uplink:{}:{}", bridge.index, nic.index)
}

/// The numbers of the NICs that wirevm joined to a bridge.
fn uplinks_of(wiring: &Wiring, bridge: &LinkId) -> Result<Vec<u32>, Error> {
    let numbers = wiring.shared(&format!("uplink:{}:", bridge.index))?;
    Ok(numbers.iter().filter_map(|number| number.parse().ok()).collect())
}

/// The bridge, made where it is absent, and set up for as long as we are there where it is down and `sets_up`; what other wirevm have
/// made of
/// it is ours too from now on.
fn join(
    wiring: &mut Wiring,
    config: &BridgeConfig,
    uplink: Option<&Link>,
    sets_up: bool,
) -> Result<Link, Error> {
    let name = config.name.as_str();
    match wiring.find_link(name)? {
        Some(link) if link.bridge.is_none() => {
            // The tun driver has two kinds of link under one name.
            let kind = link.tun.map_or(link.kind, |tun| tun.mode.to_string());
            let can_join = uplink::check(wiring, name, "br0").is_ok();
            return Err(BridgeError::NotABridge { name: name.to_owned(), kind, can_join }.into());
        }
        Some(link) => {
            wiring.join(&record_of(&link.id))?;
            if sets_up {
                wiring.share_up(&link)?;
            }
        }
        None => {
            let asked = |refusal| HostError::Ask { what: "the host's links".to_owned(), refusal };
            let unused = wiring.netlink().unused_link().map_err(asked)?;
            let id = LinkId { name: name.to_owned(), ..unused };
            wiring.share(&record_of(&id), |wiring: &mut Wiring| make(wiring, config, &id, uplink))?;
        }
    }
    let link = wiring.link(name)?;
    for index in uplinks_of(wiring, &link.id)? {
        wiring.join(&uplink_record_of(&link.id, &LinkId { index, name: String::new() }))?;
    }
    if let Some(vlans) = &config.vlans
        && link.bridge.is_none_or(|bridge| !bridge.vlan_filtering)
    {
        // Every port is in the default VLAN, so that nothing changes for the others.
        if !wiring.has_shared(&record_of(&link.id)) {
            return Err(BridgeError::NoVlans { vlans: vlans.to_string(), bridge: name.to_owned() }.into());
        }
        let why = "each port in its VLAN";
        wiring.make(Change::FilterVlans(link.id), None, why)?;
    }
    wiring.link(name)
}

/// Takes part in the uplink, which moves where no wirevm has moved it; one that was a port already stays as it is.
fn join_uplink(wiring: &mut Wiring, nic: &Link, bridge: &LinkId, moved: Option<Moved>) -> Result<(), Error> {
    if nic.master.is_some() {
        return Ok(());
    }
    let record = uplink_record_of(bridge, &nic.id);
    let is_ours = wiring.has_shared(&record_of(bridge));
    let moving = |wiring: &mut Wiring| {
        uplink::move_to(wiring, nic, bridge, moved.clone())?;
        if is_ours {
            settings::take_over_mtu(wiring, nic, bridge);
        }
        Ok(())
    };
    if !wiring.share(&record, moving)? {
        // Somebody took it out of the bridge that another wirevm joined it to: this time it is ours alone.
        moving(wiring)?;
    }
    Ok(())
}

fn make(wiring: &mut Wiring, config: &BridgeConfig, id: &LinkId, uplink: Option<&Link>) -> Result<(), Error> {
    let name = config.name.as_str();
    // The host's address stays what its neighbours know.
    let mac = match uplink.and_then(|nic| nic.mac).and_then(|mac| Mac::new(mac).ok()) {
        Some(mac) => mac,
        None => Mac::random().map_err(|source| HostError::RandomMac { source })?,
    };
    let filter = config.vlans.is_some();
    let word = if filter { " vlan_filtering 1" } else { "" };
    let command =
        format!("ip link add name {name} address {mac} type bridge stp_state 0 forward_delay 0{word}");
    let undo = Some(Change::DeleteLink(id.clone()));
    let why = "the switch that its ports share; it goes with the last wirevm on it";
    let kind = if filter { ChangeKind::BridgeVlans } else { ChangeKind::Bridge };
    wiring.make_by(|netlink| netlink.add_bridge(id, mac.octets(), filter), kind, command, undo, why)?;
    match uplink {
        Some(nic) => settings::take_over(wiring, &nic.id, id),
        None => {
            for (key, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")] {
                let key = format!("net/ipv6/conf/{name}/{key}");
                // `/proc/sys` is read-only in many containers.
                let why = "no IPv6 address for the host that nobody asked for";
                let set = wiring.set_value(key, value, why);
                if let Err(error) = set {
                    wiring.notice(format!(
                        "the host may get an IPv6 address on {name}: {}",
                        error.with_cause()
                    ));
                }
            }
        }
    }
    wiring.make(Change::Up(id.clone()), None, "a link that is down drops every frame")
}

/// The MTU for the guest: what was wanted, or as much as all on the way carry.
fn check_mtu(wiring: &mut Wiring, bridge: &LinkId, tap: &LinkId, wanted: Option<u16>) -> Result<u16, Error> {
    let links = wiring.links()?;
    let on_the_way = links.iter().filter(|link| {
        link.id.index == bridge.index || link.master == Some(bridge.index) && link.id.index != tap.index
    });
    // A port before the bridge: its MTU is the reason for that of the bridge.
    let least = on_the_way.min_by_key(|link| (link.mtu, link.id.index == bridge.index));
    let (link, limit) = least.map_or((bridge.name.clone(), 0), |link| (link.id.name.clone(), link.mtu));
    match wanted {
        Some(mtu) if limit < mtu.into() => Err(HostError::MtuLimit { mtu, link, limit }.into()),
        Some(mtu) => Ok(mtu),
        None => Ok(u16::try_from(limit).unwrap_or(*MTU.end()).min(*MTU.end())),
    }
}
