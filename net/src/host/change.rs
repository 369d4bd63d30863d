//! One change of the host: made by netlink or through `/proc/sys`, said as a command line, and kept in a record.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::belongings::Moved;
use super::{
    LinkAddress, LinkId, LinkNeighbour, LinkRoute, NamespaceId, Netlink, NewMacvlan, Peer, Refusal, Sysctl,
    VlanMember, announce, namespace, tun_settings,
};
use crate::error::ChangeKind;
use crate::{HostAddress, NetnsName, VlanRange};

/// A change of the host. Made a second time, it is refused or changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// Bytes.
    Mtu(LinkId, u32),
    AddAddress(LinkId, #[serde(with = "text")] HostAddress),
    RemoveAddress(LinkId, #[serde(with = "text")] HostAddress),
    AddPeer(LinkId, #[serde(with = "text")] Peer),
    RemovePeer(LinkId, #[serde(with = "text")] Peer),
    Up(LinkId),
    Down(LinkId),
    DeleteLink(LinkId),
    /// The link sends from the kernel's default queue, where it has one of ours.
    RemoveTbf(LinkId),
    /// The host makes itself no IPv6 address on the link.
    NoIpv6Address(LinkId),
    /// Its undo is `DeleteLink`, so it is never in a record.
    #[serde(skip)]
    AddMacvlan(NewMacvlan),
    /// An Ethernet address.
    Mac(LinkId, [u8; 6]),
    /// An address as another link had it.
    GiveAddress(LinkId, LinkAddress),
    TakeAddress(LinkId, LinkAddress),
    /// A route as another link had it.
    GiveRoute(LinkId, LinkRoute),
    TakeRoute(LinkId, LinkRoute),
    /// The link knows the router of a default route that another link has learned, until it learns it itself.
    LearnRoute(LinkId, LinkRoute),
    UnlearnRoute(LinkId, LinkRoute),
    /// A neighbour as another link had it.
    GiveNeighbour(LinkId, LinkNeighbour),
    TakeNeighbour(LinkId, LinkNeighbour),
    /// The neighbours on the link hear that these addresses are there, and the routers that they are asked for.
    Announce(LinkId, Vec<IpAddr>),
    /// A move that was made whole: the undos of its steps are made anew of what is on the link that it went to.
    Moved(Box<Moved>),
    /// The link leaves the bridge of that number, if it is a port of it.
    Leave(LinkId, u32),
    /// The first link joins the second, a bridge.
    Join(LinkId, LinkId),
    /// The bridge keeps the VLANs of its ports apart.
    FilterVlans(LinkId),
    AddVlan(LinkId, VlanRange, VlanMember),
    RemoveVlan(LinkId, u16),
    Sysctl(Sysctl),
    /// A tap or tun to which nobody is attached has these `IFF_*` flags, and no offloads.
    TunFlags(LinkId, i32),
    /// With such flags, it has this length in bytes of the header before each frame.
    TunHeader(LinkId, i32, usize),
    DeleteNamespace {
        name: String,
        id: NamespaceId,
    },
}

/// The links that a change needs, borrowed as they are to be.
macro_rules! links_of {
    ($change:expr $(, $mut:tt)?) => {
        match $change {
            Change::Mtu(link, _)
            | Change::AddAddress(link, _)
            | Change::RemoveAddress(link, _)
            | Change::AddPeer(link, _)
            | Change::RemovePeer(link, _)
            | Change::Up(link)
            | Change::Down(link)
            | Change::Mac(link, _)
            | Change::NoIpv6Address(link)
            | Change::DeleteLink(link)
            | Change::RemoveTbf(link)
            | Change::GiveAddress(link, _)
            | Change::TakeAddress(link, _)
            | Change::GiveRoute(link, _)
            | Change::TakeRoute(link, _)
            | Change::LearnRoute(link, _)
            | Change::UnlearnRoute(link, _)
            | Change::Announce(link, _)
            | Change::GiveNeighbour(link, _)
            | Change::TakeNeighbour(link, _)
            | Change::Leave(link, _)
            | Change::FilterVlans(link)
            | Change::AddVlan(link, ..)
            | Change::RemoveVlan(link, _)
            | Change::TunFlags(link, _)
            | Change::TunHeader(link, ..) => vec![link],
            Change::Join(port, bridge) => vec![port, bridge],
            Change::Moved(moved) => vec![&$($mut)? moved.from, &$($mut)? moved.to],
            Change::AddMacvlan(_) | Change::Sysctl(_) | Change::DeleteNamespace { .. } => vec![],
        }
    };
}

impl Change {
    pub(crate) fn make(&self, netlink: &mut Netlink) -> Result<(), Refusal> {
        match self {
            Self::Mtu(link, mtu) => netlink.set_mtu(link, *mtu),
            Self::AddAddress(link, address) => netlink.add_address(link, *address, address.address()),
            Self::RemoveAddress(link, address) => netlink.remove_address(link, *address, address.address()),
            Self::AddPeer(link, peer) => netlink.add_address(link, peer.host, peer.guest),
            Self::RemovePeer(link, peer) => netlink.remove_address(link, peer.host, peer.guest),
            Self::Up(link) => netlink.set_up(link, true),
            Self::Down(link) => netlink.set_up(link, false),
            Self::DeleteLink(link) => netlink.delete_link(link),
            Self::RemoveTbf(link) => netlink.remove_tbf(link),
            Self::NoIpv6Address(link) => netlink.set_no_ipv6_address(link),
            Self::AddMacvlan(new) => netlink.add_macvlan(new),
            Self::Mac(link, mac) => netlink.set_mac(link, *mac),
            Self::GiveAddress(link, address) => netlink.give_address(link, address),
            Self::TakeAddress(link, address) => netlink.take_address(link, address),
            Self::GiveRoute(link, route) => netlink.give_route(link, route),
            Self::TakeRoute(link, route) => netlink.take_route(link, route),
            Self::LearnRoute(link, route) => netlink.learn_route(link, route),
            Self::UnlearnRoute(link, route) => netlink.unlearn_route(link, route),
            Self::GiveNeighbour(link, neighbour) => netlink.give_neighbour(link, neighbour),
            Self::TakeNeighbour(link, neighbour) => netlink.take_neighbour(link, neighbour),
            Self::Announce(link, addresses) => announce::announce(netlink, link, addresses),
            Self::Moved(_) => Ok(()),
            Self::Leave(port, bridge) => netlink.leave(port, *bridge),
            Self::Join(port, bridge) => netlink.set_master(port, Some(bridge)),
            Self::FilterVlans(bridge) => netlink.filter_vlans(bridge),
            Self::AddVlan(port, vlans, member) => netlink.add_vlans(port, *vlans, *member),
            Self::RemoveVlan(port, vlan) => netlink.remove_vlan(port, *vlan),
            Self::Sysctl(sysctl) => sysctl.make(),
            Self::TunFlags(link, flags) => tun_settings::set(netlink, link, *flags, None),
            Self::TunHeader(link, flags, len) => tun_settings::set(netlink, link, *flags, Some(*len)),
            Self::DeleteNamespace { name, id } => Ok(namespace::delete(name, *id)?),
        }
    }

    /// Makes it as the undo of another one. Who was killed at it may have made it in part.
    pub(crate) fn make_as_undo(&self, netlink: &mut Netlink) -> Result<(), Refusal> {
        match (self, self.make(netlink)) {
            (Self::GiveAddress(link, address), Err(refusal)) if refusal.errno() == Some(libc::EEXIST) => {
                netlink.set_address(link, address)
            }
            (Self::TakeAddress(link, address), Err(refusal))
                if refusal.errno() == Some(libc::EADDRNOTAVAIL) =>
            {
                netlink.take_route_of(link, address).and(Err(refusal))
            }
            (_, made) => made,
        }
    }

    /// What sort of change it is for somebody whom the kernel refuses it.
    pub(crate) fn kind(&self) -> ChangeKind {
        match self {
            Self::AddMacvlan(_) => ChangeKind::Macvlan,
            Self::FilterVlans(_) | Self::AddVlan(..) | Self::RemoveVlan(..) => ChangeKind::BridgeVlans,
            Self::AddAddress(..) | Self::AddPeer(..) | Self::GiveAddress(..) => ChangeKind::Address,
            Self::Join(..) => ChangeKind::Join,
            Self::GiveRoute(..) => ChangeKind::Route,
            Self::Sysctl(sysctl) => match *sysctl.key.split('/').collect::<Vec<_>>() {
                ["net", family @ ("ipv4" | "ipv6"), "conf", _, "forwarding" | "force_forwarding"] => {
                    ChangeKind::Forwarding { ipv6: family == "ipv6" }
                }
                _ => ChangeKind::Sysctl,
            },
            _ => ChangeKind::Other,
        }
    }

    /// True for an undo that a later one of an earlier change, which failed, may take away again: made twice, it does no harm.
    pub(crate) fn is_to_be_repeated(&self) -> bool {
        match self {
            // A link that goes down forgets these.
            Self::GiveNeighbour(..) => true,
            Self::GiveAddress(_, address) => address.local.is_ipv6(),
            _ => false,
        }
    }

    /// The line that a person would type for it.
    pub(crate) fn command(&self) -> String {
        match self {
            Self::Mtu(link, mtu) => format!("ip link set dev {link} mtu {mtu}"),
            Self::AddAddress(link, address) => {
                format!("ip address add {address} dev {link}{}", nodad(address))
            }
            Self::RemoveAddress(link, address) => format!("ip address del {address} dev {link}"),
            Self::AddPeer(link, peer) => format!("ip address add {peer} dev {link}{}", nodad(&peer.host)),
            Self::RemovePeer(link, peer) => format!("ip address del {peer} dev {link}"),
            Self::Up(link) => format!("ip link set dev {link} up"),
            Self::Down(link) => format!("ip link set dev {link} down"),
            Self::DeleteLink(link) => format!("ip link del dev {link}"),
            Self::RemoveTbf(link) => format!("tc qdisc del dev {link} root"),
            Self::NoIpv6Address(link) => format!("ip link set dev {link} addrgenmode none"),
            Self::AddMacvlan(new) => new.command(),
            Self::Mac(link, [a, b, c, d, e, f]) => {
                format!("ip link set dev {link} address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
            }
            Self::GiveAddress(link, address) => {
                let nodad = if address.is_at_once() { " nodad" } else { "" };
                format!("ip address add {} dev {link}{nodad}", address.words())
            }
            Self::TakeAddress(link, address) => format!("ip address del {} dev {link}", address.name()),
            Self::GiveRoute(link, route) => {
                format!("ip{} route append {}", route.family_word(), route.words(link))
            }
            Self::TakeRoute(link, route) => {
                format!("ip{} route del {}", route.family_word(), route.words(link))
            }
            Self::LearnRoute(link, route) => {
                format!("ip -6 route append {}", route.stand_in().words(link))
            }
            Self::UnlearnRoute(link, route) => format!("ip -6 route del {}", route.words(link)),
            Self::GiveNeighbour(link, neighbour) => {
                format!("ip neighbour replace {} dev {link}", neighbour.words())
            }
            Self::TakeNeighbour(link, neighbour) => {
                format!("ip neighbour del {} dev {link}", neighbour.name())
            }
            Self::Announce(link, addresses) => announce::words(link, addresses),
            Self::Moved(moved) => format!("# what {} has goes back to {}", moved.to, moved.from),
            Self::Leave(port, _) => format!("ip link set dev {port} nomaster"),
            Self::Join(port, bridge) => format!("ip link set dev {port} master {bridge}"),
            Self::FilterVlans(bridge) => format!("ip link set dev {bridge} type bridge vlan_filtering 1"),
            Self::AddVlan(port, vlan, VlanMember::Untagged) => {
                format!("bridge vlan add dev {port} vid {vlan} pvid untagged")
            }
            Self::AddVlan(port, vlan, VlanMember::Tagged) => format!("bridge vlan add dev {port} vid {vlan}"),
            Self::RemoveVlan(port, vlan) => format!("bridge vlan del dev {port} vid {vlan}"),
            Self::Sysctl(sysctl) => sysctl.command(),
            // No program does it.
            Self::TunFlags(link, flags) => {
                format!("# {link} as it was: TUNSETIFF {}, TUNSETOFFLOAD 0", tun_settings::words(*flags))
            }
            Self::TunHeader(link, _, len) => format!("# {link} as it was: TUNSETVNETHDRSZ {len}"),
            Self::DeleteNamespace { name, .. } => format!("ip netns del {name}"),
        }
    }

    /// Whether it may be in a record: only what wirevm itself does.
    ///
    /// # Errors
    /// It may not: something in it that is a path, or becomes a part of one, is none of ours.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Sysctl(sysctl) => sysctl.check(),
            Self::DeleteNamespace { name, .. } => {
                let parsed = name.parse::<NetnsName>();
                parsed.map(drop).map_err(|why| format!("{name:?} is no namespace's name: {why}"))
            }
            _ => Ok(()),
        }
    }

    /// The links that it needs.
    pub(super) fn links(&self) -> Vec<&LinkId> {
        links_of!(self)
    }

    /// The same, to be found under other names.
    pub(super) fn links_mut(&mut self) -> Vec<&mut LinkId> {
        links_of!(self, mut)
    }

    /// The names of links in what it needs by name.
    pub(super) fn names(&self) -> Vec<&str> {
        match self {
            Self::Sysctl(sysctl) => sysctl.links(),
            _ => vec![],
        }
    }

    /// Has it need `now` where it needed `then` by name.
    pub(super) fn rename(&mut self, then: &str, now: &str) {
        if let Self::Sysctl(sysctl) = self {
            sysctl.rename(then, now);
        }
    }

    /// True where the refusal says that there is nothing (more) to change: somebody else did it, or deleted the link, or we
    /// were killed between the record and the change that it would undo.
    pub(crate) fn is_done(&self, refusal: &Refusal) -> bool {
        matches!(
            (self, refusal.errno()),
            // What is not heard is found out later.
            (_, Some(libc::ENODEV))
                | (Self::Announce(..) | Self::LearnRoute(..), _)
                | (
                    Self::Sysctl(_) | Self::DeleteNamespace { .. } | Self::TakeNeighbour(..),
                    Some(libc::ENOENT)
                )
                | (
                    Self::RemoveAddress(..) | Self::RemovePeer(..) | Self::TakeAddress(..),
                    Some(libc::EADDRNOTAVAIL)
                )
                | (Self::TakeRoute(..) | Self::UnlearnRoute(..), Some(libc::ESRCH))
                // There is none, or another one.
                | (Self::RemoveTbf(..), Some(libc::ENOENT | libc::EINVAL))
                | (Self::AddAddress(..) | Self::AddPeer(..) | Self::GiveRoute(..), Some(libc::EEXIST))
        )
    }
}

/// The word that has an IPv6 address used at once, without asking whether somebody has it (RFC 4862 §5.4): on a wire of
/// ours there is nobody but the guest, and for a second the host would not answer it.
fn nodad(address: &HostAddress) -> &'static str {
    if address.v6().is_some() { " nodad" } else { "" }
}

/// A value in a record as it is written on the command line.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> LinkId {
        LinkId { index: 7, name: "tap0".to_owned() }
    }

    fn sysctl(key: &str) -> Change {
        Change::Sysctl(Sysctl::new(key, "1").only_where(key, "0"))
    }

    /// Each kind of change, and the line that it is.
    fn all() -> Vec<(Change, &'static str)> {
        let [peer, peer6] =
            ["10.0.0.1 peer 10.0.0.2", "fd00::1 peer fd00::2"].map(|text| text.parse().unwrap());
        let [address, v6] = ["172.31.0.1/24", "fd00::1/64"].map(|text| text.parse().unwrap());
        let bridge = LinkId { index: 8, name: "br0".to_owned() };
        let neighbour = |address: &str, router| {
            let (address, mac) = (address.parse().unwrap(), [2, 0, 0, 0, 0, 9]);
            LinkNeighbour { address, mac, router, proxy: false }
        };
        let id = NamespaceId { dev: 4, inode: 4026531840, cookie: Some(1), seen: Some(2) };
        let delete_namespace = Change::DeleteNamespace { name: "vpn".to_owned(), id };
        vec![
            (Change::Mtu(link(), 9000), "ip link set dev tap0 mtu 9000"),
            (Change::AddAddress(link(), address), "ip address add 172.31.0.1/24 dev tap0"),
            (Change::RemoveAddress(link(), address), "ip address del 172.31.0.1/24 dev tap0"),
            (Change::AddAddress(link(), v6), "ip address add fd00::1/64 dev tap0 nodad"),
            (Change::RemoveAddress(link(), v6), "ip address del fd00::1/64 dev tap0"),
            (Change::AddPeer(link(), peer), "ip address add 10.0.0.1 peer 10.0.0.2 dev tap0"),
            (Change::RemovePeer(link(), peer), "ip address del 10.0.0.1 peer 10.0.0.2 dev tap0"),
            (Change::AddPeer(link(), peer6), "ip address add fd00::1 peer fd00::2 dev tap0 nodad"),
            (Change::Up(link()), "ip link set dev tap0 up"),
            (Change::Down(link()), "ip link set dev tap0 down"),
            (Change::DeleteLink(link()), "ip link del dev tap0"),
            (Change::RemoveTbf(link()), "tc qdisc del dev tap0 root"),
            (Change::NoIpv6Address(link()), "ip link set dev tap0 addrgenmode none"),
            (
                Change::GiveNeighbour(link(), neighbour("fd00::9", true)),
                "ip neighbour replace fd00::9 lladdr 02:00:00:00:00:09 nud permanent router dev tap0",
            ),
            (
                Change::TakeNeighbour(link(), neighbour("10.0.0.9", false)),
                "ip neighbour del 10.0.0.9 dev tap0",
            ),
            (
                Change::Announce(link(), vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()]),
                "# on tap0: gratuitous ARP and neighbour advertisements for 10.0.0.9, fd00::9, a router solicitation",
            ),
            (
                Change::GiveNeighbour(link(), LinkNeighbour { proxy: true, ..neighbour("10.0.0.9", false) }),
                "ip neighbour replace proxy 10.0.0.9 dev tap0",
            ),
            (Change::Leave(link(), 9), "ip link set dev tap0 nomaster"),
            (Change::Join(link(), bridge), "ip link set dev tap0 master br0"),
            (Change::FilterVlans(link()), "ip link set dev tap0 type bridge vlan_filtering 1"),
            (
                Change::AddVlan(link(), VlanRange::one(5), VlanMember::Untagged),
                "bridge vlan add dev tap0 vid 5 pvid untagged",
            ),
            (
                Change::AddVlan(link(), VlanRange { first: 5, last: 9 }, VlanMember::Tagged),
                "bridge vlan add dev tap0 vid 5-9",
            ),
            (Change::RemoveVlan(link(), 1), "bridge vlan del dev tap0 vid 1"),
            (delete_namespace, "ip netns del vpn"),
            (
                Change::TunFlags(link(), libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE),
                "# tap0 as it was: TUNSETIFF IFF_TUN|IFF_NO_PI|IFF_MULTI_QUEUE, TUNSETOFFLOAD 0",
            ),
            (Change::TunHeader(link(), libc::IFF_TAP, 10), "# tap0 as it was: TUNSETVNETHDRSZ 10"),
            (Change::Mac(link(), [2, 0, 0, 0, 0, 1]), "ip link set dev tap0 address 02:00:00:00:00:01"),
            (sysctl("net/ipv4/ip_forward"), "sysctl -w net.ipv4.ip_forward=1"),
            (sysctl("net/ipv4/conf/eth0.5/forwarding"), "sysctl -w net/ipv4/conf/eth0.5/forwarding=1"),
        ]
    }

    #[test]
    fn a_change_is_a_line_for_the_shell() {
        for (change, line) in all() {
            assert_eq!(change.command(), line);
        }
    }

    #[test]
    fn a_change_is_read_as_it_was_written() {
        for (change, _) in all() {
            let text = serde_json::to_string(&change).unwrap();
            assert!(!text.contains('\n'));
            assert_eq!(serde_json::from_str::<Change>(&text).unwrap(), change, "{text}");
        }
    }
}
