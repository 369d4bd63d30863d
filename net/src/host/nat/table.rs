//! The rules of NAT for the guest of one link, as a table.
//!
//! **Invariant: the host is a router for its guests only.** Forwarding is a switch of a link, which lets in whoever is behind it. So
//! what comes in by a link that was switched on for a guest, or goes to a guest, passes only where it belongs to a connection of a
//! guest's, or to a port that is forwarded. What the host forwarded before is not spoken of here, and passes as before.

use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::forwarding::Switched;
use super::super::nft::{Chain, Elements, End, Family, Hook, Kind, Match, Rule, Set, Table, ToPort, Verdict};
use super::super::{LinkId, guard};
use crate::{Forward, HostAddress};

/// Before any other chain sees the packet (`NF_IP_PRI_RAW`).
const PRIORITY_RAW: i32 = -300;
/// Where destinations are translated (`NF_IP_PRI_NAT_DST`).
const PRIORITY_DESTINATION: i32 = -100;
/// Where most chains are that let pass or not (`NF_IP_PRI_FILTER`).
const PRIORITY_FILTER: i32 = 0;
/// Where sources are translated (`NF_IP_PRI_NAT_SRC`).
const PRIORITY_SOURCE: i32 = 100;

/// The chain of who is passed on.
pub(super) const FORWARD: &str = "forward";

/// What keeps a link that was switched on for a guest from passing on anything else; at the end of [`FORWARD`].
pub(super) fn for_guests_only(switched: &Switched) -> Rule {
    let matches = vec![Match::Ipv6(switched.ipv6), Match::InLink(switched.link.clone())];
    Rule { matches, verdict: Verdict::Drop, why: "it passes packets on for guests only" }
}

/// The guest of one link, and what NAT does for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    /// The guest's end.
    pub(super) link: &'a LinkId,
    /// The host's addresses there.
    pub(super) hosts: &'a [HostAddress],
    /// The host's ports, and the address of the guest to which they lead.
    pub(super) forwards: &'a [(Forward, IpAddr)],
    /// The links that pass packets on for guests only.
    pub(super) switched: &'a [Switched],
    /// What comes in by the link is from the subnets of `hosts`.
    pub(super) guarded: bool,
    /// How many connections the guest may have at once.
    pub(super) connections: Option<u32>,
}

impl Plan<'_> {
    pub(super) fn table(self) -> Table {
        let connections = self.connections.map(|most| guard::connections(self.link, most));
        let (mut sets, mut chains): (Vec<_>, Vec<_>) = connections.into_iter().unzip();
        sets.extend(self.forwards.iter().enumerate().filter_map(|(index, (forward, _))| map(index, forward)));
        let name = Table::name_for(&self.link.name);
        let table = |chains| Table { family: Family::Inet, name, sets, chains };
        if self.forwards.is_empty() {
            chains.extend([self.passing(), self.sources()]);
            return table(chains);
        }
        let why = "where destinations are translated";
        let destinations = self.to_guest("prerouting", Hook::Prerouting, why);
        let own = self.to_guest("output", Hook::Output, "and those of the host's own connections");
        chains.extend([self.guard(), destinations, own, self.passing(), self.sources()]);
        table(chains)
    }

    /// Who is passed on: see the head of this file.
    fn passing(self) -> Chain {
        let rule = |matches, verdict, why| Rule { matches, verdict, why };
        let mut rules = vec![
            rule(vec![Match::Known], Verdict::Accept, "connections that were let pass"),
            rule(vec![Match::DestinationTranslated], Verdict::Accept, "ports that lead into a guest"),
            rule(
                vec![Match::InLink(self.link.clone()), Match::Invalid],
                Verdict::Drop,
                "what is of no connection would leave as it is",
            ),
            rule(
                vec![Match::OutLink(self.link.clone())],
                Verdict::Drop,
                "nobody else begins a connection with the guest",
            ),
        ];
        rules.extend(self.switched.iter().map(for_guests_only));
        Chain {
            name: FORWARD,
            kind: Kind::Filter,
            hook: Hook::Forward,
            device: None,
            priority: PRIORITY_FILTER,
            why: "the host is a router for guests only",
            rules,
        }
    }

    fn sources(self) -> Chain {
        let leaves = Match::OutLink(self.link.clone());
        let from_guest = |host: &HostAddress| Match::Source(host.network(), host.prefix());
        let away = |from| {
            let matches = vec![from, Match::OutOtherLink(self.link.clone())];
            let why = "the guest's connections leave under the host's address";
            Rule { matches, verdict: Verdict::Masquerade, why }
        };
        let mut rules: Vec<_> = match self.guarded {
            true => self.hosts.iter().map(|host| away(from_guest(host))).collect(),
            false => vec![away(Match::InLink(self.link.clone()))],
        };
        // What the host itself asked of its port goes to the guest under the host's address on the link: the guest cannot
        // answer 127.0.0.1. What the guest asked of it comes back to the guest, which would not know an answer of its own.
        for (matched, why) in
            iter::once((Match::SourceIsLocal, "the guest answers the host at its address here"))
                .chain(
                    self.hosts
                        .iter()
                        .map(|host| (from_guest(host), "the guest reaches itself by the host's port too")),
                )
                .filter(|_| !self.forwards.is_empty())
        {
            let matches = vec![leaves.clone(), Match::DestinationTranslated, matched];
            rules.push(Rule { matches, verdict: Verdict::Masquerade, why });
        }
        Chain {
            name: "postrouting",
            kind: Kind::Nat,
            hook: Hook::Postrouting,
            device: None,
            priority: PRIORITY_SOURCE,
            why: "where sources are translated",
            rules,
        }
    }

    /// The host's ports that lead into the guest.
    fn to_guest(self, name: &'static str, hook: Hook, why: &'static str) -> Chain {
        let forwards = self.forwards.iter().enumerate();
        // Nobody but the host itself is to reach an address of its loopback: not a neighbour, who may send a packet there too.
        let forwards = forwards.filter(|(_, (forward, _))| {
            hook == Hook::Output || !forward.address.is_some_and(|address| address.is_loopback())
        });
        let rules = forwards.map(|(index, (forward, guest))| {
            // Also of an address by name: the host may lose it.
            let mut matches = vec![Match::DestinationIsLocal];
            if let Some(address) = forward.address {
                matches.push(Match::Destination(address, if address.is_ipv4() { 32 } else { 128 }));
            }
            // A packet from ::1 leaves the host by no link.
            if hook == Hook::Output && guest.is_ipv6() && forward.address.is_none() {
                matches.insert(0, Match::Other(End::Destination, Ipv6Addr::LOCALHOST.into()));
            }
            matches.push(Match::Ports(forward.protocol, forward.host_ports()));
            let port = match forward.count {
                1 => ToPort::One(forward.guest_port),
                _ if forward.host_port == forward.guest_port => ToPort::Same,
                _ => ToPort::ByMap(forward.protocol, map_name(index)),
            };
            let verdict = Verdict::DestinationNat(*guest, port);
            let why = match forward.count {
                1 => "this port of the host leads into the guest",
                _ => "these ports of the host lead into the guest",
            };
            Rule { matches, verdict, why }
        });
        Chain {
            name,
            kind: Kind::Nat,
            hook,
            device: None,
            priority: PRIORITY_DESTINATION,
            why,
            rules: rules.collect(),
        }
    }

    /// With route_localnet on the link, which connections from 127.0.0.1 need, the guest could send to what listens on the
    /// host's loopback only. Answers to those are for another address still when this chain sees them.
    fn guard(self) -> Chain {
        let loopback = Match::Destination(Ipv4Addr::new(127, 0, 0, 0).into(), 8);
        let why = "keep the guest from what listens on 127.0.0.1";
        let matches = vec![Match::InLink(self.link.clone()), loopback];
        Chain {
            name: "guard",
            kind: Kind::Filter,
            hook: Hook::Prerouting,
            device: None,
            priority: PRIORITY_RAW,
            why: "what comes in, before all else",
            rules: vec![Rule { matches, verdict: Verdict::Drop, why }],
        }
    }
}

/// What has the guest's port for each of the host's, where these are many and others.
fn map(index: usize, forward: &Forward) -> Option<Set> {
    let Forward { host_port: from, guest_port: to, count, .. } = *forward;
    let why = "the guest's port for each port of the host";
    let set = Set { name: map_name(index), of: Elements::Ports { from, to }, size: count.into(), why };
    (count > 1 && from != to).then_some(set)
}

/// Of the map of the forward at `index`.
fn map_name(index: usize) -> String {
    format!("ports{index}")
}
