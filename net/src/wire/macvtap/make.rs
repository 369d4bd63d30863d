//! Making a macvtap on a NIC, or adopting one that is there, and giving the host a place beside it.

use super::Macvtap;
use crate::error::{HostError, MacvtapError, ParentProblem};
use crate::host::netlink::AddressOnLink;
use crate::host::sysfs::Sysfs;
use crate::host::wire_link::Role;
use crate::host::{Change, Host, Link, LinkId, NewMacvlan, Refusal, Wiring};
use crate::wire::made::{self, Made, Parts};
use crate::wire::one_address::carries_one_address;
use crate::{Backend, Error, HostAddress, Mac, MacvtapConfig, MacvtapMode, NetConfig};

/// Makes the macvtap that `config` asks for and attaches to it.
pub(crate) fn open(config: &MacvtapConfig, all: &NetConfig, host: &Host) -> Result<Made, Error> {
    let &NetConfig { mac, mtu, queues, .. } = all;
    let mut wiring = Wiring::begin(host, all.netns.as_ref())?;
    let name = config.parent.as_str();
    let link = wiring.netlink().link(name).map_err(asking(format!("the link {name}")))?;
    let link = link.ok_or_else(|| MacvtapError::NoParent { name: name.to_owned() })?;
    let adopt = link.kind == "macvtap";
    let parent = match link.lower.filter(|_| adopt) {
        Some(lower) => {
            wiring.netlink().link_by_index(lower).map_err(asking(format!("the parent of {name}")))?
        }
        None => Some(&link).filter(|_| !adopt).cloned(),
    };
    check_mtu(mtu, parent.as_ref().unwrap_or(&link))?;
    let mode = if adopt { link.macvlan.unwrap_or_default() } else { config.mode };
    if !config.hosts.is_empty() {
        check_hosts(&mut wiring, config, mode, parent.as_ref())?;
    }
    let made = if adopt {
        adopt_link(&mut wiring, config, &link, mac, mtu)?
    } else {
        make_link(&mut wiring, config, &link, mac, mtu)?
    };
    let mut own = None;
    let on = parent.as_ref().map(|parent| parent.id.clone());
    if let Some(parent) = parent.filter(|_| !config.hosts.is_empty()) {
        own = Some(make_host_macvlan(&mut wiring, &parent, mode, &config.hosts, mtu)?);
    }
    let made = again(&mut wiring, &made)?;
    let (macvtap, others) = Macvtap::attach(&made, adopt, queues.number(), &wiring)?;
    wiring.release_lock();
    if let Some(trap) = trap(config, mode) {
        wiring.notice(trap);
    }
    if !macvtap.follows_groups() {
        wiring.notice(format!(
            "without CAP_NET_RAW the guest receives only the groups that the host has joined: for its IPv6 and mDNS, \
             sudo ip link set dev {} allmulticast on",
            made.id
        ));
    }
    let mac = Mac::new(macvtap.mac()).map_err(|why| Error::value("mac", made.id.to_string(), why))?;
    let mtu = u16::try_from(made.mtu).unwrap_or(*crate::MTU.end());
    let mut parts = Parts::new(&made.id.name, mac, mtu, macvtap.offloads());
    (parts.spec.asks, parts.stays) = (true, adopt);
    parts.links.push(wiring.wire_link(&made.id, Role::Guest));
    parts.links.extend(on.map(|nic| wiring.wire_link(&nic, Role::Parent)));
    parts.links.extend(own.map(|macvlan| wiring.wire_link(&macvlan, Role::Host)));
    Ok(Made { ends: made::ends(macvtap, others), parts, wiring })
}

/// The well-known trap of each mode, in words, unless the user has seen to it.
fn trap(config: &MacvtapConfig, mode: MacvtapMode) -> Option<String> {
    const CUT_OFF: &str = "the host itself cannot reach this guest, nor the guest the host";
    Some(match (mode, config.hosts.is_empty()) {
        (MacvtapMode::Bridge, true) => {
            format!("{CUT_OFF}: host=ADDRESS/LENGTH gives the host a place beside it")
        }
        (MacvtapMode::Vepa, _) => {
            format!(
                "{CUT_OFF} or another one on the NIC, but by a switch that sends frames back (reflective relay)"
            )
        }
        (MacvtapMode::Private, _) => format!("{CUT_OFF} or another one on the NIC"),
        (MacvtapMode::Source, _) => format!(
            "{CUT_OFF}; another one on the NIC, by a switch that sends frames back (reflective relay) if source= lists it"
        ),
        (MacvtapMode::Passthru, _) => format!(
            "the guest has all of {}: what the host had by it, it has no more until the guest ends",
            config.parent
        ),
        (MacvtapMode::Bridge, false) => return None,
    })
}

fn asking(what: String) -> impl FnOnce(Refusal) -> HostError {
    move |refusal| HostError::Ask { what, refusal }
}

/// The link as it is now.
fn again(wiring: &mut Wiring, link: &LinkId) -> Result<Link, Error> {
    let found = wiring.netlink().link_by_index(link.index).map_err(asking(format!("the link {link}")))?;
    Ok(found.ok_or_else(|| HostError::LinkGone { name: link.name.clone() })?)
}

fn check_mtu(mtu: Option<u16>, parent: &Link) -> Result<(), Error> {
    match mtu {
        Some(mtu) if u32::from(mtu) > parent.mtu => {
            Err(HostError::MtuLimit { mtu, link: parent.id.name.clone(), limit: parent.mtu }.into())
        }
        _ => Ok(()),
    }
}

/// What can be told before the kernel refuses it with a bare number.
fn check_parent(
    wiring: &mut Wiring,
    parent: &Link,
    mode: MacvtapMode,
    mac: Option<Mac>,
) -> Result<(), Error> {
    let problem = |problem| Err(MacvtapError::BadParent { parent: parent.id.name.clone(), problem }.into());
    if !parent.ethernet {
        return problem(ParentProblem::NotEthernet);
    }
    if Sysfs::open().is_ok_and(|sysfs| sysfs.is_wireless(&parent.id)) {
        return problem(ParentProblem::Wireless);
    }
    let links = wiring.netlink().links().map_err(asking("the host's links".to_owned()))?;
    // The kernel has a macvtap on a macvlan be beside that, on its NIC.
    if let Some(on) =
        carries_one_address(parent, &links).filter(|on| on.id != parent.id || on.macvlan.is_none())
    {
        return problem(ParentProblem::OneAddress { on: on.id.name.clone(), kind: on.kind.clone() });
    }
    let master = links.iter().find(|link| Some(link.id.index) == parent.master);
    // A port of a VRF is free for a macvtap; of these it is not.
    if let Some(master) =
        master.filter(|link| ["bridge", "bond", "team", "openvswitch"].contains(&&*link.kind))
    {
        let (of, kind) = (master.id.name.clone(), master.kind.clone());
        return problem(ParentProblem::Port { of, kind });
    }
    let nic = nic_of(parent);
    let on_it = || links.iter().filter(|link| link.macvlan.is_some() && nic.is_some() && link.lower == nic);
    if let Some(other) = on_it().find(|link| link.macvlan == Some(MacvtapMode::Passthru)) {
        return problem(ParentProblem::Taken { by: other.id.name.clone() });
    }
    if let Some(other) = on_it().next().filter(|_| mode == MacvtapMode::Passthru) {
        return problem(ParentProblem::Shared { with: other.id.name.clone() });
    }
    if let Some(mac) = mac.filter(|_| mode != MacvtapMode::Passthru) {
        check_mac(wiring, mac, parent, &links, None)?;
    }
    Ok(())
}

/// The index of the NIC that a macvtap on `parent` is on: the kernel has one on a macvlan be beside that. None where it is out of
/// sight.
fn nic_of(parent: &Link) -> Option<u32> {
    if parent.macvlan.is_some() { parent.lower } else { Some(parent.id.index) }
}

/// Refuses `mac` where a link of `links` beside a macvtap on `parent` has it, other than `itself`, or the NIC, or what is on that
/// where it is a bridge.
fn check_mac(
    wiring: &mut Wiring,
    mac: Mac,
    parent: &Link,
    links: &[Link],
    itself: Option<&LinkId>,
) -> Result<(), Error> {
    let nic = nic_of(parent);
    let is_beside = |link: &&Link| link.macvlan.is_some() && nic.is_some() && link.lower == nic;
    let beside = links.iter().filter(|link| Some(&link.id) != itself && is_beside(link));
    if let Some(other) = beside.chain([parent]).find(|link| link.mac == Some(mac.octets())) {
        return Err(HostError::MacTaken { mac, by: other.id.name.clone() }.into());
    }
    match links.iter().find(|link| Some(link.id.index) == nic) {
        Some(nic) => wiring.check_mac(mac, &nic.id, &[]),
        None => Ok(()),
    }
}

/// The host's addresses on a link of its own. A subnet of the parent's may be cut up: the longer prefix wins, so a part of it,
/// in which the guests' addresses are, is reached beside them, and the rest as before.
fn check_hosts(
    wiring: &mut Wiring,
    config: &MacvtapConfig,
    mode: MacvtapMode,
    parent: Option<&Link>,
) -> Result<(), Error> {
    let refused = |why| {
        let host = config.hosts.first().map(HostAddress::to_string).unwrap_or_default();
        Err(Error::value("host", host, why))
    };
    if !matches!(mode, MacvtapMode::Bridge | MacvtapMode::Vepa) {
        return refused("the macvtap's mode keeps the host's macvlan and the guest apart");
    }
    let Some(parent) = parent else {
        return refused("the macvtap's parent is in another network namespace");
    };
    let all = wiring.netlink().addresses().map_err(asking("the host's addresses".to_owned()))?;
    for &address in &config.hosts {
        let cuts = |other: &AddressOnLink| other.link == parent.id.index && address.prefix() > other.prefix;
        let same = all.iter().find(|other| other.address == address.address());
        let overlaps = |other: &&AddressOnLink| address.overlaps(other.subnet, other.prefix) && !cuts(other);
        let Some(other) = same.or_else(|| all.iter().find(overlaps)) else { continue };
        let on = wiring.netlink().link_by_index(other.link).map_err(asking("a link".to_owned()))?;
        let (on, theirs) =
            (on.map_or(String::new(), |on| on.id.name), format!("{}/{}", other.address, other.prefix));
        let parents = other.link == parent.id.index && other.address != address.address();
        return Err(match parents {
            true => MacvtapError::WholeSubnet { address, on, theirs }.into(),
            false => HostError::AddressTaken { address, on, theirs }.into(),
        });
    }
    Ok(())
}

fn make_link(
    wiring: &mut Wiring,
    config: &MacvtapConfig,
    parent: &Link,
    mac: Option<Mac>,
    mtu: Option<u16>,
) -> Result<LinkId, Error> {
    check_parent(wiring, parent, config.mode, mac)?;
    let passthru = config.mode == MacvtapMode::Passthru;
    let random = || Mac::random().map_err(|source| HostError::RandomMac { source });
    let asked = match mac {
        None if !passthru => Some(random()?),
        mac => mac,
    };
    // First, so that it goes down last, without a link that it carries: else it forgets to be no longer promiscuous. Several
    // wirevm may be on a NIC that one of them set up.
    wiring.share_up(parent)?;
    let new = NewMacvlan {
        link: unused(wiring)?,
        parent: parent.id.clone(),
        tap: true,
        mode: config.mode,
        mac: asked.filter(|_| !passthru),
        mtu: mtu.map(u32::from).filter(|&mtu| mtu != parent.mtu),
        sources: config.sources.clone(),
    };
    let link = new.link.clone();
    if passthru {
        // The kernel forgets them when the NIC gets the guest's address, and again when it gets back its own.
        let neighbours = wiring.netlink().neighbours_of(&parent.id);
        for neighbour in neighbours.map_err(asking(format!("the neighbours of {}", parent.id)))? {
            wiring.keep(Change::GiveNeighbour(parent.id.clone(), neighbour))?;
        }
    }
    let undo = Some(Change::DeleteLink(link.clone()));
    wiring.make(Change::AddMacvlan(new), undo, "the guest's link on the NIC")?;
    if let Some(mac) = asked.filter(|_| passthru) {
        // The kernel gives the NIC its own address back with the link's end.
        let change = Change::Mac(link.clone(), mac.octets());
        wiring.make(change, None, "with passthru, the NIC has the guest's address")?;
    }
    wiring.make_quiet(&link, "else the host solicits under the guest's own address")?;
    wiring.make(Change::Up(link.clone()), None, "a link that is down drops every frame")?;
    Ok(link)
}

fn adopt_link(
    wiring: &mut Wiring,
    config: &MacvtapConfig,
    link: &Link,
    mac: Option<Mac>,
    mtu: Option<u16>,
) -> Result<LinkId, Error> {
    let adopted = |key| Err(MacvtapError::Adopted { name: link.id.name.clone(), key }.into());
    if config.mode != MacvtapMode::default() && Some(config.mode) != link.macvlan {
        return adopted("mode");
    }
    if !config.sources.is_empty() {
        return adopted("source");
    }
    let links = wiring.links()?;
    let parent = links.iter().find(|parent| Some(parent.id.index) == link.lower);
    if let (Some(mac), Some(parent)) = (mac, parent)
        && link.macvlan != Some(MacvtapMode::Passthru)
    {
        check_mac(wiring, mac, parent, &links, Some(&link.id))?;
    }
    if let Some(before) = link.mac {
        let mac = mac.map_or(before, Mac::octets);
        let change = |mac| Change::Mac(link.id.clone(), mac);
        let why = "the guest has the same address";
        if mac == before {
            // Recorded all the same, for the guest may change it.
            wiring.keep(change(before))?;
        } else {
            wiring.make(change(mac), Some(change(before)), why)?;
        }
    }
    wiring.set_link(link, true, mtu, &[])?;
    Ok(link.id.clone())
}

/// Gives the host a macvlan of its own on the guest's NIC: two links on one NIC reach each other, the NIC itself and a link on
/// it do not. The routers of the LAN the host hears on the NIC itself; on this link, a guest could be one too.
///
/// Returns it.
fn make_host_macvlan(
    wiring: &mut Wiring,
    parent: &Link,
    mode: MacvtapMode,
    hosts: &[HostAddress],
    mtu: Option<u16>,
) -> Result<LinkId, Error> {
    let link = unused(wiring)?;
    let new = NewMacvlan {
        link: link.clone(),
        parent: parent.id.clone(),
        tap: false,
        mode,
        mac: None,
        mtu: mtu.map(u32::from).filter(|&mtu| mtu != parent.mtu),
        sources: Vec::new(),
    };
    let undo = Some(Change::DeleteLink(link.clone()));
    wiring.make(Change::AddMacvlan(new), undo, "the host's place beside the guest")?;
    wiring.refuse_routers(&link);
    for &address in hosts {
        let change = Change::AddAddress(link.clone(), address);
        wiring.make(change, None, "the host's address towards the guest")?;
    }
    wiring.make(Change::Up(link.clone()), None, "a link that is down drops every frame")?;
    Ok(link)
}

/// A name and an index that no link has: both are recorded before the link is made.
fn unused(wiring: &mut Wiring) -> Result<LinkId, Error> {
    Ok(wiring.netlink().unused_link().map_err(asking("the host's links".to_owned()))?)
}
