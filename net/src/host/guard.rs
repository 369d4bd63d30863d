//! Holds a guest to its own addresses: on a wire that tells the guest its addresses, what comes from others is dropped and
//! counted, as soon as it comes in by the link, by an nftables table of the link's own.
//!
//! Each address that a guest sends from may become an entry of the host's neighbour table, which all links share, and so may each
//! that it sends to in its own subnet, where the host routes. So a guest has [`ADDRESSES`] of either at most.
//!
//! Each connection that a guest begins is an entry of the host's table of connections, where the host tracks them, which all share
//! too. So a guest has [`most_connections`] at once at most.
//!
//! The rules are the kernel's, not ours: they hold for frames that vhost-net carries, for a process that a guest has taken over, and
//! for a guest that writes its frame anew while it is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::nat::Nat;
use super::nft::{
    Chain, Elements, End, Family, Hook, Kind, LISTS, Match, OwnTable, Rule, Set, Table, Verdict,
};
use super::{Link, LinkId, Refusal, Sysctl, Wiring};
use crate::error::{HostError, ROOT};
use crate::{Error, HostAddress, Protocol};

/// How many addresses a guest may send from, or to in its own subnet, for [`MINUTES`]: a guest with privacy addresses (RFC 8981)
/// has some ten, and a host's neighbour table begins to be cleared at 128 (`gc_thresh1`, arp(7)).
const ADDRESSES: u32 = 64;
const MINUTES: u32 = 10;
/// A subnet that has no more addresses than that anyway.
const SMALL: u32 = 8;

/// Before destinations are translated, and after connections are looked up (`NF_IP_PRI_MANGLE`).
const PRIORITY_MANGLE: i32 = -150;

const SOURCES: &str = "sources";
const SOURCES6: &str = "sources6";
const TARGETS: &str = "targets";
const TARGETS6: &str = "targets6";

const OWN: &str = "an address of the guest's own";
const NOT_OWN: &str = "not the guest's address";
const FEW: &str = "only so many neighbours for the host";

/// A subnet of a wire, and what the guest has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    host: HostAddress,
    guest: Addresses,
}

/// The addresses of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addresses {
    One(IpAddr),
    /// All but the host's.
    Subnet,
    /// The host has no subnet here, so they are not known.
    Any,
}

impl Own {
    /// Of a guest that has `only` this address where the host has `host`, or none in particular.
    pub(crate) fn new(host: HostAddress, only: Option<IpAddr>) -> Self {
        let guest = match only {
            Some(only) => Addresses::One(only),
            None if host.guest().is_some() => Addresses::Subnet,
            None => Addresses::Any,
        };
        Self { host, guest }
    }

    fn is_ipv6(&self) -> bool {
        self.host.v6().is_some()
    }

    /// What `end` of a packet from the guest has.
    fn matches(&self, end: End) -> Vec<Match> {
        let set = if self.is_ipv6() { SOURCES6 } else { SOURCES };
        let remember = Match::Remember(end, self.is_ipv6(), set);
        match self.guest {
            Addresses::One(IpAddr::V4(guest)) if end == End::ArpSender => vec![Match::ArpSender(guest, 32)],
            Addresses::One(guest) => vec![Match::Source(guest, if guest.is_ipv4() { 32 } else { 128 })],
            Addresses::Subnet => {
                let (network, prefix) = (self.host.network(), self.host.prefix());
                let subnet = match network {
                    IpAddr::V4(network) if end == End::ArpSender => Match::ArpSender(network, prefix),
                    network => Match::Source(network, prefix),
                };
                vec![subnet, Match::Other(end, self.host.address()), remember]
            }
            Addresses::Any => vec![remember],
        }
    }

    /// What goes to others of the subnet, and so to neighbours of the host's; none where these are few.
    fn beside_host(&self) -> Option<Vec<Match>> {
        let (bits, host) = (if self.is_ipv6() { 128 } else { 32 }, self.host);
        let subnet = Match::Destination(host.network(), host.prefix());
        let wide = bits - u32::from(host.prefix()) > SMALL;
        wide.then(|| vec![subnet, Match::Other(End::Destination, host.address())])
    }
}

/// The table for the guest behind `link`, an Ethernet or not, which has these addresses.
fn table(link: &LinkId, ethernet: bool, owns: &[Own]) -> Table {
    let mut rules = of_family(owns, false);
    rules.extend(of_family(owns, true));
    if ethernet {
        for own in owns.iter().filter(|own| !own.is_ipv6()) {
            rules.push(accept(own.matches(End::ArpSender), OWN));
        }
        let probe = vec![Match::ArpSender(Ipv4Addr::UNSPECIFIED, 32)];
        rules.push(accept(probe, "whether somebody has an address (RFC 5227)"));
        rules.push(drop_of(vec![Match::Arp], NOT_OWN));
    }
    let set = |name, why| {
        let remembers = |one: &Match| matches!(one, Match::Remember(_, _, set) if *set == name);
        let is_used = rules.iter().any(|rule: &Rule| rule.matches.iter().any(remembers));
        let of = Elements::Addresses { ipv6: [SOURCES6, TARGETS6].contains(&name), minutes: MINUTES };
        is_used.then_some(Set { name: name.to_owned(), of, size: ADDRESSES, why })
    };
    let (from, to) = ("what the guest has sent from", "what the guest has sent to in its subnet");
    let sets = [set(SOURCES, from), set(SOURCES6, from), set(TARGETS, to), set(TARGETS6, to)];
    Table {
        family: Family::Netdev,
        name: Table::name_for(&link.name),
        sets: sets.into_iter().flatten().collect(),
        chains: vec![Chain {
            name: "guest",
            kind: Kind::Filter,
            hook: Hook::Ingress,
            device: Some(link.clone()),
            priority: 0,
            why: "what comes from the guest, before all else",
            rules,
        }],
    }
}

fn accept(matches: Vec<Match>, why: &'static str) -> Rule {
    Rule { matches, verdict: Verdict::Accept, why }
}

fn drop_of(matches: Vec<Match>, why: &'static str) -> Rule {
    Rule { matches, verdict: Verdict::Drop, why }
}

/// The rules for packets of one family.
fn of_family(owns: &[Own], ipv6: bool) -> Vec<Rule> {
    let targets = Match::Remember(End::Destination, ipv6, if ipv6 { TARGETS6 } else { TARGETS });
    let owns = || owns.iter().filter(move |own| own.is_ipv6() == ipv6);
    let mut rules = Vec::new();
    for own in owns() {
        if let Some(to_neighbours) = own.beside_host() {
            let matches =
                [&to_neighbours[..], &own.matches(End::Source), std::slice::from_ref(&targets)].concat();
            rules.push(accept(matches, FEW));
            rules.push(drop_of(to_neighbours, FEW));
        }
    }
    rules.extend(owns().map(|own| accept(own.matches(End::Source), OWN)));
    if ipv6 {
        let link_local = Match::Source(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10);
        let few = Match::Remember(End::Source, true, SOURCES6);
        rules.push(accept(vec![link_local, few], OWN));
        let nobody = Match::Source(Ipv6Addr::UNSPECIFIED.into(), 128);
        rules.push(accept(vec![nobody], "whether somebody has an address (RFC 4862 5.4)"));
    } else {
        let nobody = Match::Source(Ipv4Addr::UNSPECIFIED.into(), 32);
        rules.push(accept(
            vec![nobody, Match::Ports(Protocol::Udp, 67..=67)],
            "the guest asks for an address",
        ));
    }
    rules.push(drop_of(vec![Match::Ipv6(ipv6)], NOT_OWN));
    rules
}

/// Where the guest behind `link` begins connections: about `most` at once at most.
pub(super) fn connections(link: &LinkId, most: u32) -> (Set, Chain) {
    const NAME: &str = "connections";
    let why = "the guest's connections, on many short lists";
    let set = Set { name: NAME.to_owned(), of: Elements::Connections, size: LISTS, why };
    let matches = vec![Match::InLink(link.clone()), Match::NewBeyond(NAME, most / LISTS)];
    let chain = Chain {
        name: "new",
        kind: Kind::Filter,
        hook: Hook::Prerouting,
        device: None,
        priority: PRIORITY_MANGLE,
        why: "where the guest's connections begin",
        rules: vec![drop_of(matches, "not all of the host's table of connections")],
    };
    (set, chain)
}

/// How many connections a guest may have: a quarter of those that the host can track, and no more than can be counted quickly.
pub(super) fn most_connections() -> u32 {
    /// Where connections are not tracked yet.
    const USUAL: u32 = 1 << 14;
    let all = Sysctl::read("net/netfilter/nf_conntrack_max").ok().and_then(|all| all.parse::<u32>().ok());
    all.map_or(USUAL, |all| (all / 4).clamp(1 << 10, 1 << 15))
}

/// True where the host tracks connections in this network namespace already.
fn tracks_connections() -> bool {
    Sysctl::read("net/netfilter/nf_conntrack_count").is_ok_and(|count| count != "0")
}

impl Wiring {
    /// Holds the guest behind `link`, which `stays` after its backend or not, to the addresses that it has: those of `owns`, and
    /// what the user has on the link besides. Where the wire knows of none, nothing is done; where the kernel refuses, it is a
    /// notice. `nat`: another table bounds the guest's connections.
    pub(crate) fn guard(&mut self, link: &Link, stays: bool, owns: &[Own], nat: bool) -> Result<(), Error> {
        let mut owns = owns.to_vec();
        if stays {
            let others = self.addresses_of(link)?.into_iter();
            let others = others.filter(|other| {
                let known = owns.iter().any(|own| own.host == *other);
                let link_local = other.v6().is_some_and(|host| host.address().is_unicast_link_local());
                !known && !link_local
            });
            let others: Vec<_> = others.map(|host| Own::new(host, None)).collect();
            owns.extend(others);
        }
        if owns.is_empty() {
            return Ok(());
        }
        match OwnTable::make_told(&table(&link.id, link.ethernet, &owns), self) {
            Ok(made) => self.guard.push(made),
            Err(refusal) => {
                self.notice(unguarded(&link.id, &refusal));
                return Ok(());
            }
        }
        if !nat && tracks_connections() {
            let (set, chain) = connections(&link.id, most_connections());
            let (family, name) = (Family::Inet, Table::name_for(&link.id.name));
            match OwnTable::make_told(&Table { family, name, sets: vec![set], chains: vec![chain] }, self) {
                Ok(made) => self.guard.push(made),
                Err(refusal) => self.notice(unbounded(&link.id, &refusal)),
            }
        }
        Ok(())
    }

    /// How many frames that the guest sent by the link of that index our tables have dropped. What the kernel does not say counts
    /// as nothing.
    pub(crate) fn guarded(&mut self, link: u32) -> u64 {
        let nat = self.nat.iter_mut().map(Nat::rules_mut);
        let counts = self.guard.iter_mut().chain(nat).map(|table| {
            let asked = table.dropped(link);
            asked.inspect_err(|refusal| log::debug!("{table:?} does not say what it dropped: {refusal}"))
        });
        counts.flatten().fold(0, u64::saturating_add)
    }

    /// The addresses that somebody gave the host on the link.
    pub(crate) fn addresses_of(&mut self, link: &Link) -> Result<Vec<HostAddress>, Error> {
        let asked = |refusal| HostError::Ask { what: "the host's addresses".to_owned(), refusal };
        let all = self.netlink.addresses().map_err(asked)?;
        let of_link = all.into_iter().filter(|address| address.link == link.id.index);
        Ok(of_link.filter_map(|address| HostAddress::new(address.address, address.prefix).ok()).collect())
    }
}

/// What a person is told where the guest's connections are not counted.
pub(super) fn unbounded(link: &LinkId, refusal: &Refusal) -> String {
    format!(
        "{link}: the guest may fill the host's table of connections, for they cannot be counted: {refusal}. Have the kernel do it: sudo \
         modprobe nft_connlimit; or say guard=off"
    )
}

/// What a person is told where there is no guard.
fn unguarded(link: &LinkId, refusal: &Refusal) -> String {
    let remedy = match refusal.errno() {
        Some(libc::EPERM | libc::EACCES) => ROOT.to_owned(),
        Some(libc::EEXIST) => {
            format!("sudo nft delete table netdev {}, where nobody needs it", Table::name_for(&link.name))
        }
        _ => "have the kernel filter by nftables: sudo modprobe nf_tables".to_owned(),
    };
    format!(
        "{link}: the guest may send under any address, for the nftables table netdev {} cannot be made: {refusal}. {remedy}; or say \
         guard=off",
        Table::name_for(&link.name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(ethernet: bool, owns: &[(&str, Option<&str>)]) -> Vec<String> {
        let own = |(host, only): &(&str, Option<&str>)| {
            Own::new(host.parse().unwrap(), only.map(|only| only.parse().unwrap()))
        };
        let owns: Vec<_> = owns.iter().map(own).collect();
        let link = LinkId { index: 7, name: "tap0".to_owned() };
        let steps = table(&link, ethernet, &owns).steps().into_iter();
        let lines = steps.map(|step| step.command.replace("nft 'add rule netdev wirevm-tap0 guest ", ""));
        lines.map(|line| line.trim_end_matches('\'').to_owned()).collect()
    }

    #[test]
    fn a_guest_has_the_address_that_it_is_told() {
        assert_eq!(
            lines(true, &[("172.31.0.1/30", Some("172.31.0.2"))]),
            [
                "nft add table netdev wirevm-tap0",
                "nft 'add set netdev wirevm-tap0 sources6 { type ipv6_addr; size 64; flags dynamic,timeout; timeout 10m; }",
                "nft 'add chain netdev wirevm-tap0 guest { type filter hook ingress device \"tap0\" priority 0; }",
                "ip saddr 172.31.0.2/32 accept",
                "ip saddr 0.0.0.0/32 udp dport 67 accept",
                "meta protocol ip counter drop",
                "ip6 saddr fe80::/10 add @sources6 { ip6 saddr } accept",
                "ip6 saddr ::/128 accept",
                "meta protocol ip6 counter drop",
                "arp saddr ip 172.31.0.2/32 accept",
                "arp saddr ip 0.0.0.0/32 accept",
                "meta protocol arp counter drop",
            ]
        );
    }

    #[test]
    fn a_guest_that_is_not_told_has_its_subnet_but_not_the_hosts_address() {
        let lines = lines(false, &[("172.31.0.1/16", None), ("fd00::1/64", None)]);
        let expected = [
            "ip daddr 172.31.0.0/16 ip daddr != 172.31.0.1 ip saddr 172.31.0.0/16 ip saddr != 172.31.0.1 \
             add @sources { ip saddr } add @targets { ip daddr } accept",
            "ip daddr 172.31.0.0/16 ip daddr != 172.31.0.1 counter drop",
            "ip saddr 172.31.0.0/16 ip saddr != 172.31.0.1 add @sources { ip saddr } accept",
            "ip6 saddr fd00::/64 ip6 saddr != fd00::1 add @sources6 { ip6 saddr } accept",
        ];
        for line in expected {
            assert!(lines.iter().any(|one| one == line), "{line} in {lines:#?}");
        }
        assert!(!lines.iter().any(|line| line.contains("arp")), "there is none on a tun: {lines:#?}");
    }

    #[test]
    fn a_guest_whose_ipv6_address_is_given_makes_no_other() {
        let lines = lines(true, &[("fd00::1/64", Some("fd00::7"))]);
        assert!(lines.contains(&"ip6 saddr fd00::7/128 accept".to_owned()), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains("saddr fd00::/64")), "{lines:#?}");
    }

    #[test]
    fn where_there_is_no_subnet_the_number_of_addresses_is_bounded() {
        let alone = lines(true, &[("172.31.0.1/32", None)]);
        assert!(alone.contains(&"add @sources { ip saddr } accept".to_owned()), "{alone:#?}");
        assert!(alone.contains(&"add @sources { arp saddr ip } accept".to_owned()), "{alone:#?}");
        let peer = lines(false, &[("10.0.0.1/32", Some("192.168.7.2")), ("fd00::1/128", Some("fd00::9"))]);
        assert!(peer.contains(&"ip saddr 192.168.7.2/32 accept".to_owned()), "{peer:#?}");
        assert!(peer.contains(&"ip6 saddr fd00::9/128 accept".to_owned()), "{peer:#?}");
    }
}
