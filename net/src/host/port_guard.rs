//! What a guest may send into a bridge, whoever made the bridge: rules at the ingress of its port, in a table of their own that
//! goes with this process. They hold for all that is behind the port: the host, which is on the bridge with its own addresses
//! where it has an uplink and lives by the router advertisements of the LAN, the other guests, and the LAN.
//!
//! The guest's addresses of IP are its own affair, for the LAN gives them. It may have any but those that the host has on the
//! bridge, and its routers there, when the guest starts.

use std::net::IpAddr;

use super::announce::hears_routers;
use super::nft::frame::{FrameMatch, Icmp, Icmpv6, Tag};
use super::nft::{Chain, Family, Hook, Kind, Match, OwnTable, Rule, Table, Verdict};
use super::{LinkId, Refusal, Wiring};
use crate::config::vlans::Vlans;
use crate::error::{BridgeError, HostError};
use crate::{Error, Mac};

/// As many addresses of the host and its routers are kept from the guest, so that a table is never too large for one request.
const KEPT: usize = 64;

/// Groups that are not among the reserved ones: a spanning tree for each VLAN, and discovery, as switches of Cisco have them.
const CISCO_GROUPS: [[u8; 6]; 2] = [[1, 0, 0x0c, 0xcc, 0xcc, 0xcc], [1, 0, 0x0c, 0xcc, 0xcc, 0xcd]];

/// The ports at which clients of DHCP wait (RFC 2131 §4.1, RFC 8415 §7.2): only a server, or a relay, sends there.
const DHCP_CLIENTS: [u16; 2] = [68, 546];

/// Before other chains see the frame (`NF_IP_PRI_RAW`).
const PRIORITY: i32 = -300;

/// The table for the guest `mac` at `port`, to which the addresses `kept` do not belong. Of the tags of its VLANs the bridge decides.
///
/// It sees each frame that the port brings before any other part of the host does, the bridge and its spanning tree included. (A
/// chain of the family `bridge` sees neither the frames that a bridge keeps for itself nor, once the link is renamed, any of that
/// link's.)
fn table(port: &LinkId, mac: Mac, vlans: Option<&Vlans>, kept: &[IpAddr]) -> Table {
    use FrameMatch::{
        Advertises, ArpMacOtherThan, InVlans, SourceOtherThan, Tagged, TaggedInside, To, ToReservedGroup,
        UdpTo,
    };
    let mac = mac.octets();
    let mut rules = Vec::new();
    let mut drop_of = |one, why| rules.push(Rule { matches: vec![one], verdict: Verdict::Drop, why });
    let mut drop = |one, why| drop_of(Match::Frame(one), why);
    drop(SourceOtherThan(mac), "the guest sends under its own address");
    drop(ToReservedGroup, "it is no bridge or switch, with a spanning tree or links to bundle");
    for group in CISCO_GROUPS {
        drop(To(group), "nor one with messages of its maker's own");
    }
    for tag in [Tag::Customer, Tag::Service] {
        // The kernel takes the first tag off before it asks.
        let one = if vlans.is_some() { TaggedInside(tag) } else { Tagged(tag) };
        drop(one, "it is in the VLAN that its port is in");
    }
    for others in vlans.map(Vlans::others).unwrap_or_default() {
        drop(InVlans(others), "these VLANs are not the guest's");
    }
    drop(
        FrameMatch::Icmpv6(Icmpv6::RouterAdvertisement),
        "the guest shall not make itself the router of others",
    );
    drop(FrameMatch::Icmpv6(Icmpv6::Redirect), "nor send them to other routers");
    drop(FrameMatch::Icmp(Icmp::Redirect), "nor over IPv4");
    for port in DHCP_CLIENTS {
        drop(UdpTo(port), "nor give them addresses");
    }
    drop(ArpMacOtherThan(mac), "it says of no other station where an address is");
    for &address in kept {
        let why = "what the host or its router has is not the guest's";
        match address {
            IpAddr::V4(v4) => {
                drop_of(Match::ArpSender(v4, 32), why);
                drop_of(Match::Source(address, 32), why);
            }
            IpAddr::V6(v6) => {
                drop_of(Match::Frame(Advertises(v6)), why);
                drop_of(Match::Source(address, 128), why);
            }
        }
    }
    Table {
        family: Family::Netdev,
        name: Table::name_for(&port.name),
        sets: Vec::new(),
        chains: vec![Chain {
            name: "guard",
            kind: Kind::Filter,
            hook: Hook::Ingress,
            device: Some(port.clone()),
            priority: PRIORITY,
            why: "where the guest's frames arrive",
            rules,
        }],
    }
}

impl Wiring {
    /// Guards `bridge` and all on it from what the guest `mac` at `port` sends, before the port is up. It may send the tags of
    /// `vlans`, on which the bridge decides.
    ///
    /// # Errors
    /// The kernel refuses the rules.
    pub(crate) fn guard_port(
        &mut self,
        port: &LinkId,
        bridge: &LinkId,
        mac: Mac,
        vlans: Option<&Vlans>,
    ) -> Result<(), Error> {
        let kept = self.addresses_to_keep(bridge)?;
        let made = OwnTable::make_told(&table(port, mac, vlans, &kept), self);
        self.guard.push(made.map_err(|refusal| BridgeError::Guard { port: port.name.clone(), refusal })?);
        Ok(())
    }

    /// Takes the rules away, to be made anew for another bridge.
    pub(crate) fn lift_guard(&mut self) {
        self.guard.clear();
    }

    /// The host's addresses on `bridge`, and those of its routers there.
    fn addresses_to_keep(&mut self, bridge: &LinkId) -> Result<Vec<IpAddr>, Error> {
        let asked = |refusal: Refusal| HostError::Ask {
            what: format!("the host's addresses and routes on {bridge}"),
            refusal,
        };
        let own = self.netlink.addresses().map_err(asked)?;
        let routes = self.netlink.routes_over(bridge).map_err(asked)?.routes;
        let own = own.iter().filter(|own| own.link == bridge.index).map(|own| own.address);
        let mut all: Vec<_> = routes.iter().filter_map(|route| route.gateway()).chain(own).collect();
        all.sort_unstable();
        all.dedup();
        all.truncate(KEPT);
        Ok(all)
    }

    /// Notices where the host takes router advertisements from `link`, on which nothing keeps the guest's away.
    pub(crate) fn warn_of_routers(&mut self, link: &LinkId) {
        if hears_routers(link) {
            self.notice(format!(
                "the host takes router advertisements on {link}, the guest's too, which can make it the host's router; have it \
                 take none: sudo sysctl -w net.ipv6.conf.{link}.accept_ra=0"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VlanRange;

    #[test]
    fn a_table_is_lines_for_the_shell() {
        let port = LinkId { index: 7, name: "wirevm0".to_owned() };
        let lines = |vlans: Option<&Vlans>| {
            let kept = ["10.0.0.1", "fe80::1"].map(|address| address.parse().unwrap());
            let table = table(&port, "02:00:00:00:00:01".parse().unwrap(), vlans, &kept);
            table.steps().into_iter().map(|step| step.command).collect::<Vec<_>>()
        };
        let without = lines(None);
        assert_eq!(
            without[..3],
            [
                "nft add table netdev wirevm-wirevm0",
                "nft 'add chain netdev wirevm-wirevm0 guard { type filter hook ingress device \"wirevm0\" priority -300; }'",
                "nft 'add rule netdev wirevm-wirevm0 guard ether saddr != 02:00:00:00:00:01 counter drop'",
            ]
        );
        for rule in [
            "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00",
            "ether daddr 01:00:0c:cc:cc:cd",
            "ether type 8021q",
            "ether type 8021ad",
            "icmpv6 type nd-router-advert",
            "icmp type redirect",
            "udp dport 68",
            "udp dport 546",
            "arp saddr ether != 02:00:00:00:00:01",
            "arp saddr ip 10.0.0.1/32",
            "ip saddr 10.0.0.1/32",
            "icmpv6 type nd-neighbor-advert @th,64,128 0xfe800000000000000000000000000001",
            "ip6 saddr fe80::1/128",
        ] {
            let line = format!("nft 'add rule netdev wirevm-wirevm0 guard {rule} counter drop'");
            assert!(without.contains(&line), "{rule}: {without:#?}");
        }
        let trunk = Vlans::Trunk { tagged: vec![VlanRange { first: 20, last: 30 }], native: Some(4094) };
        let with = lines(Some(&trunk)).join("\n");
        for others in ["vlan id 1-19 ", "vlan id 31-4093 "] {
            assert!(with.contains(&format!("guard {others}counter drop")), "{others}: {with}");
        }
        assert!(with.contains("meta protocol 8021q counter") && !with.contains("ether type"), "{with}");
    }
}
