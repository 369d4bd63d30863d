//! What keeps a bridge from passing the guest's frames though all was made as it was asked for: a sentence for each, with what
//! helps. A bridge that somebody made, and its ports, are set by him, and are left as they are.

use crate::config::vlans::VlanRange;
use crate::error::HostError;
use crate::host::netlink::{Bridge, Port, PortState, Stp};
use crate::host::{Link, LinkId, Wiring};
use crate::wire::one_address::carries_one_address;
use crate::{BridgeConfig, Error};

/// As many ports are told one by one.
const TOLD: usize = 3;

/// Why a port passes nothing to the guest, or takes nothing from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    /// Nobody has set it up.
    Down,
    /// There is no carrier.
    NoCarrier,
    /// Somebody has set its state.
    Disabled,
    /// It takes frames from those addresses alone that somebody has told the bridge of (802.1X).
    Locked,
    /// Only frames of its own address go by it.
    OneAddress,
    /// It is isolated, and so is the guest's.
    Isolated,
    /// The spanning tree protocol keeps it from making a loop.
    Blocking,
    /// It is in none of the guest's VLANs, of which this is the first.
    OtherVlan(VlanRange),
}

impl Problem {
    /// True where a bridge may have such ports beside others, as it should.
    fn is_usual(self) -> bool {
        matches!(self, Self::Blocking | Self::OtherVlan(_))
    }

    /// Of `port`: what is so, and what helps.
    fn words(self, port: &LinkId) -> String {
        match self {
            Self::Down => format!("it is down: sudo ip link set dev {port} up"),
            Self::NoCarrier => "it has no carrier: plug its cable in, or set its other end up".to_owned(),
            Self::Disabled => {
                format!("somebody has disabled it: sudo bridge link set dev {port} state forwarding")
            }
            Self::Locked => format!(
                "it is locked to the addresses that the bridge was told of: sudo bridge link set dev {port} locked off, or \
                 authenticate who is there"
            ),
            Self::OneAddress => format!(
                "it carries frames of its own address only: without the bridge, --net macvtap={port} or --net tap,nat"
            ),
            Self::Isolated => format!(
                "both are isolated (isolated=on): sudo bridge link set dev {port} isolated off, or isolated=off"
            ),
            Self::Blocking => format!(
                "the spanning tree protocol blocks it, for there is another way to the same network: bridge link show dev {port}"
            ),
            Self::OtherVlan(vlan) => {
                format!("it is not in the guest's VLAN {vlan}: sudo bridge vlan add dev {port} vid {vlan}")
            }
        }
    }
}

/// What is wrong with a port that somebody else made, as seen from a guest in the first of `vlans`, where the port is in the second.
fn problem(link: &Link, port: Port, links: &[Link], vlans: (&[VlanRange], &[u16])) -> Option<Problem> {
    if !link.up {
        return Some(Problem::Down);
    }
    if !link.carrier {
        return Some(Problem::NoCarrier);
    }
    match port.state {
        // Until the kernel has seen its carrier, which takes it a moment, it is in this state by itself.
        PortState::Disabled if link.running => return Some(Problem::Disabled),
        PortState::Blocking => return Some(Problem::Blocking),
        PortState::Disabled | PortState::Learning | PortState::Listening | PortState::Forwarding => {}
    }
    if port.locked {
        return Some(Problem::Locked);
    }
    if port.isolated {
        return Some(Problem::Isolated);
    }
    if carries_one_address(link, links).is_some() {
        return Some(Problem::OneAddress);
    }
    let (of_guest, of_port) = vlans;
    let is_shared = of_guest.iter().any(|range| of_port.iter().any(|&vlan| range.contains(vlan)));
    of_guest.first().filter(|_| !is_shared).map(|&first| Problem::OtherVlan(first))
}

/// What a guest at `port` of `bridge` should know, once all is up, as `config` has it. `uplink`: the port that was asked for.
pub(super) fn notices(
    wiring: &mut Wiring,
    bridge: &LinkId,
    port: &LinkId,
    config: &BridgeConfig,
    uplink: Option<&LinkId>,
) -> Result<Vec<String>, Error> {
    let links = wiring.links()?;
    let link = links.iter().find(|link| link.id.index == bridge.index);
    let Some((bridge, of_bridge)) = link.and_then(|link| Some((&link.id, link.bridge?))) else {
        return Ok(Vec::new());
    };
    let mut notices: Vec<_> = spanning_tree(bridge, of_bridge).into_iter().collect();
    // None at all where the bridge does not have them.
    let of_guest: Vec<_> = match &config.vlans {
        _ if !of_bridge.vlan_filtering => Vec::new(),
        Some(vlans) => vlans.all().collect(),
        None => {
            Some(of_bridge.default_pvid).filter(|&vlan| vlan != 0).map(VlanRange::one).into_iter().collect()
        }
    };
    if of_bridge.vlan_filtering && of_guest.is_empty() {
        notices.push(format!(
            "{bridge} filters VLANs and has none for new ports (vlan_default_pvid 0), so the guest reaches nobody: say in which \
             it is, vlan=ID"
        ));
    }
    let asked = |refusal| HostError::Ask { what: format!("the VLANs of {bridge}"), refusal };
    let vlans = (!of_guest.is_empty()).then(|| wiring.netlink().port_vlans());
    let vlans = vlans.transpose().map_err(asked)?.unwrap_or_default();
    let of_port = |link: &Link| vlans.get(&link.id.index).map_or(&[][..], Vec::as_slice);

    // Other guests' ends tell nothing: their programs may not run.
    let others = links.iter().filter(|link| link.master == Some(bridge.index) && link.tun.is_none());
    let ports: Vec<_> = others
        .filter(|link| link.id.index != port.index)
        .filter_map(|link| {
            let has = link.port?;
            // It matters between two such ports.
            let isolated = has.isolated && config.isolated;
            let found = Port { isolated, ..has };
            Some((link, problem(link, found, &links, (&of_guest, of_port(link)))))
        })
        .collect();
    let is_uplink = |link: &Link| uplink.is_some_and(|uplink| uplink.index == link.id.index);
    let one_passes = ports.iter().any(|(_, problem)| problem.is_none());
    let told = ports.iter().filter_map(|(link, problem)| Some((*link, (*problem)?)));
    let told: Vec<_> =
        told.filter(|(link, problem)| !problem.is_usual() || !one_passes || is_uplink(link)).collect();
    notices.extend(told.iter().take(TOLD).map(|(link, problem)| {
        format!(
            "nothing passes between the guest and {}, a port of {bridge}: {}",
            link.id,
            problem.words(&link.id)
        )
    }));
    if told.len() > TOLD {
        let more = told.len() - TOLD;
        notices.push(format!("nothing passes {more} more ports of {bridge}: bridge -d link; bridge vlan"));
    }
    Ok(notices)
}

/// What the spanning tree protocol does to a new port.
fn spanning_tree(bridge: &LinkId, of_bridge: Bridge) -> Option<String> {
    let since = match of_bridge.stp {
        Stp::Off => return None,
        // Listening, then learning, each so long.
        Stp::Kernel => format!("for the first {} seconds", (2 * of_bridge.forward_delay).div_ceil(100)),
        Stp::User => "until the host's program for that lets it".to_owned(),
    };
    Some(format!(
        "{bridge} runs the spanning tree protocol, so nothing passes at the guest's port {since}; where its ports make no loop: \
         sudo ip link set dev {bridge} type bridge stp_state 0"
    ))
}
