//! The uplink: a NIC of the host becomes a port of the bridge, and its addresses and routes move to the bridge; for a port
//! gives all that it receives to its bridge, and the host would hear nothing on it any more.
//!
//! The host stays reachable but for a moment, by the order of the steps:
//!
//! 1. The bridge gets the addresses while the NIC still has them: a host may have an address on two links, and answers for it
//!    on either. Of IPv6 without asking the wire whether somebody has it, which would take a second. And it knows the neighbours
//!    that somebody told the NIC of.
//! 2. The bridge gets the routes of IPv4, after those of the NIC to the same places: until these go, nothing is sent by them.
//! 3. The NIC joins the bridge. From here on what arrives is heard on the bridge; what is sent still leaves by the NIC, as a
//!    port may, to every neighbour that the host knows. We wait until the bridge runs: until the kernel's own thread has seen
//!    its new carrier, the bridge loses what is sent by it, and the first question for a neighbour costs a second.
//! 4. The NIC loses its routes and addresses, last one first, so that the bridge's take their places one by one. IPv6 has its
//!    new routes only now, for two to the same place at once would share the traffic. What the kernel has learned from a router
//!    it must learn on the bridge: another route stands in until then.
//! 5. The neighbours hear under which Ethernet address the host is now, and the routers are asked to speak.
//!
//! Between 3 and the end of 4 the host may miss an answer: for as many requests of netlink as there are addresses and routes,
//! each some tens of microseconds. Then it asks for its neighbours anew, on the bridge. A bridge that we make has the NIC's
//! own Ethernet address, so that the neighbours need not ask for the host.
//!
//! The way back is the same backwards, and some ten milliseconds longer, for which the kernel waits while a port leaves
//! (`netdev_rx_handler_unregister` has RCU settle). The NIC must not send before that: the answers to its questions for
//! neighbours would be heard on the bridge, and it would ask again only a second later. Every step is recorded before the
//! step that it undoes: whenever we are killed, `clean` goes on from there.

use std::thread;
use std::time::{Duration, Instant};

use crate::Error;
use crate::error::{BridgeError, HostError, UplinkProblem};
use crate::host::announce::hears_routers;
use crate::host::belongings::{Belongings, MoveStep, Moved};
use crate::host::netlink::BoundRoute;
use crate::host::sysfs::Sysfs;
use crate::host::{Change, Link, LinkAddress, LinkId, Wiring};
use crate::wire::one_address::carries_one_address;

/// Kinds of link that no bridge takes (`IFF_NO_RX_HANDLER`), for all that they have an Ethernet address.
const NO_PORTS: [&str; 1] = ["vrf"];

/// Kinds of link that take the frames of the one that they are on, as a bridge would (`netdev_rx_handler_register`).
const TAKING_FRAMES: [&str; 5] = ["macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"];

/// Whether `nic` can be an uplink of the bridge `of`: what can be told before anything is changed.
pub(super) fn check(wiring: &mut Wiring, nic: &str, of: &str) -> Result<Link, Error> {
    let problem = |problem| Err(BridgeError::BadUplink { uplink: nic.to_owned(), problem }.into());
    let links = wiring.links()?;
    let Some(link) = links.iter().find(|link| link.id.name == nic) else {
        return problem(UplinkProblem::Absent);
    };
    if !link.ethernet {
        return problem(UplinkProblem::NotEthernet);
    }
    if link.bridge.is_some() {
        return problem(UplinkProblem::Bridge);
    }
    if Sysfs::open().is_ok_and(|sysfs| sysfs.is_wireless(&link.id)) {
        return problem(UplinkProblem::Wireless);
    }
    if let Some(master) = links.iter().find(|other| Some(other.id.index) == link.master)
        && master.id.name != of
    {
        let (of, kind) = (master.id.name.clone(), master.kind.clone());
        return problem(UplinkProblem::Port { of, kind });
    }
    if let Some(on) = carries_one_address(link, &links) {
        let itself = on.id == link.id;
        let (on, kind) = (on.id.name.clone(), on.kind.clone());
        return problem(UplinkProblem::OneAddress { on, kind, itself });
    }
    if NO_PORTS.contains(&link.kind.as_str()) {
        return problem(UplinkProblem::Kind { kind: link.kind.clone() });
    }
    let takes_frames = |other: &&Link| TAKING_FRAMES.contains(&other.kind.as_str());
    if let Some(on_it) = links.iter().filter(takes_frames).find(|other| other.lower == Some(link.id.index)) {
        let (with, kind) = (on_it.id.name.clone(), on_it.kind.clone());
        return problem(UplinkProblem::Shared { with, kind });
    }
    let routes = wiring.netlink().routes_over(&link.id);
    let mut routes =
        routes.map_err(|refusal| HostError::Ask { what: "the host's routes".to_owned(), refusal })?;
    match routes.others.pop() {
        Some(BoundRoute { words, over_link_alone }) if link.master.is_none() => {
            problem(UplinkProblem::Route { route: words, over_link_alone })
        }
        _ => Ok(link.clone()),
    }
}

/// Has `nic` join `bridge`, and moves its addresses and routes there. It has the place of another NIC that was `moved` there before,
/// and is gone: then what that one had goes to this one at the end.
pub(super) fn move_to(
    wiring: &mut Wiring,
    nic: &Link,
    bridge: &LinkId,
    moved: Option<Moved>,
) -> Result<(), Error> {
    let (from, to) = (&nic.id, bridge);
    let asked = |refusal| HostError::Ask { what: format!("the addresses and routes of {from}"), refusal };
    let mut all = Belongings::of(wiring.netlink(), from).map_err(asked)?;
    let before = Belongings::of(wiring.netlink(), to).map_err(asked)?;
    if !nic.up {
        wiring.bring_up(from)?;
    }
    all.arrival(from, to).into_iter().try_for_each(|step| make(wiring, step))?;
    // Some routes come with the addresses.
    let there = wiring.netlink().routes_over(to).map_err(asked)?.routes;
    all.routes.retain(|route| !there.iter().any(|other| other.is(route)));
    for step in all.departure(from, to) {
        let joins = matches!(step.change, Some(Change::Join(..)));
        make(wiring, step)?;
        if joins && nic.running {
            wait_until_running(wiring, to)?;
        }
    }
    let moved = match moved {
        Some(moved) => moved.of_another(from.clone()),
        None => Moved { from: from.clone(), to: to.clone(), before, moved: all.clone() },
    };
    wiring.keep(Change::Moved(Box::new(moved)))?;
    announce(wiring, to, &all.addresses);
    notices(wiring, from, to, &all);
    Ok(())
}

fn make(wiring: &mut Wiring, step: MoveStep) -> Result<(), Error> {
    match step.change {
        Some(change) => wiring.make(change, Some(step.undo), step.why),
        None => wiring.keep(step.undo),
    }
}

/// Tells the neighbours where the host is now, and has the routers speak on the bridge. Without that it takes longer.
fn announce(wiring: &mut Wiring, bridge: &LinkId, addresses: &[LinkAddress]) {
    let addresses = addresses.iter().map(|address| address.local).collect();
    let told = wiring.make(
        Change::Announce(bridge.clone(), addresses),
        None,
        "the neighbours hear of it, and the routers are asked",
    );
    if let Err(error) = told {
        wiring.notice(format!(
            "the neighbours find out for themselves that the host is on {bridge}: {}",
            error.with_cause()
        ));
    }
}

fn notices(wiring: &mut Wiring, from: &LinkId, to: &LinkId, all: &Belongings) {
    // The kernel hears of its own anew.
    let ends = |address: &&LinkAddress| address.has_end() && !address.is_autoconfigured();
    if let Some(address) = all.addresses.iter().find(ends) {
        wiring.notice(format!(
            "{} has a lifetime, and moved from {from} to {to}: who renews it (a DHCP client) must do so on {to}",
            address.local
        ));
    }
    if !all.learned.is_empty() && !hears_routers(to) {
        wiring.notice(format!(
            "{from} hears the routers of IPv6, and {to} does not: what they said ends in a while \
             (to have it hear them: sudo sysctl -w net.ipv6.conf.{to}.accept_ra=2)"
        ));
    }
}

/// Waits until the kernel sends by `link`, which has just got a carrier; not for ever.
fn wait_until_running(wiring: &mut Wiring, link: &LinkId) -> Result<(), Error> {
    let end = Instant::now() + Duration::from_secs(1);
    while !wiring.link(&link.name)?.running && Instant::now() < end {
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
