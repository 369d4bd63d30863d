//! Questions about a frame where it arrives, in the words and the encoding of `nft` for the family `netdev`.

use std::fmt;
use std::net::Ipv6Addr;

use netlink_bindings::nftables::{CmpOps, MetaKeys, PayloadBase};

use super::expression::{Expressions, compare, masked, meta, of_protocol, payload};
use crate::VlanRange;

/// A question about a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FrameMatch {
    /// Its source is another address than this one.
    SourceOtherThan([u8; 6]),
    /// It is for what is on the same wire only, such as bridges' own messages (IEEE 802.1Q §8.6.3).
    ToReservedGroup,
    /// It is to this address.
    To([u8; 6]),
    /// It has a tag of this kind.
    Tagged(Tag),
    /// It has a customer's tag of one of these VLANs.
    InVlans(VlanRange),
    /// Behind a tag it has one more, of this kind.
    TaggedInside(Tag),
    /// It is an ICMP message of this type.
    Icmp(Icmp),
    /// It is an ICMPv6 message of this type.
    Icmpv6(Icmpv6),
    /// It is of UDP, to this port.
    UdpTo(u16),
    /// It is of ARP, and names another Ethernet address than this one for its sender.
    ArpMacOtherThan([u8; 6]),
    /// It says where this address is: a neighbour advertisement.
    Advertises(Ipv6Addr),
}

/// A kind of tags (IEEE 802.1Q), by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Customer = 0x8100,
    Service = 0x88a8,
}

/// A type of ICMP messages (RFC 792).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icmp {
    Redirect = 5,
}

/// A type of ICMPv6 messages (RFC 4861 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icmpv6 {
    RouterAdvertisement = 134,
    NeighbourAdvertisement = 136,
    Redirect = 137,
}

impl fmt::Display for FrameMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceOtherThan(address) => write!(f, "ether saddr != {}", mac(*address)),
            Self::ToReservedGroup => f.write_str("ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00"),
            Self::To(address) => write!(f, "ether daddr {}", mac(*address)),
            Self::Tagged(tag) => write!(f, "ether type {tag}"),
            Self::InVlans(vlans) => write!(f, "vlan id {vlans}"),
            Self::TaggedInside(tag) => write!(f, "meta protocol {tag}"),
            Self::Icmp(Icmp::Redirect) => f.write_str("icmp type redirect"),
            Self::Icmpv6(kind) => write!(f, "icmpv6 type {kind}"),
            Self::UdpTo(port) => write!(f, "udp dport {port}"),
            Self::ArpMacOtherThan(address) => write!(f, "arp saddr ether != {}", mac(*address)),
            // `icmpv6 taddr` is newer than many an nft.
            Self::Advertises(address) => {
                let kind = Icmpv6::NeighbourAdvertisement;
                write!(f, "icmpv6 type {kind} @th,64,128 {:#x}", u128::from(*address))
            }
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Customer => "8021q",
            Self::Service => "8021ad",
        })
    }
}

impl fmt::Display for Icmpv6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RouterAdvertisement => "nd-router-advert",
            Self::NeighbourAdvertisement => "nd-neighbor-advert",
            Self::Redirect => "nd-redirect",
        })
    }
}

fn mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

impl FrameMatch {
    pub(super) fn encode<'a>(&self, list: Expressions<'a>) -> Expressions<'a> {
        use PayloadBase::{LinkLayerHeader, NetworkHeader, TransportHeader};
        match self {
            Self::SourceOtherThan(address) => {
                compare(payload(ethernet(list), LinkLayerHeader, 6, 6), CmpOps::Neq, address)
            }
            Self::ToReservedGroup => {
                let list = payload(ethernet(list), LinkLayerHeader, 0, 6);
                compare(
                    masked(list, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]),
                    CmpOps::Eq,
                    &[1, 0x80, 0xc2, 0, 0, 0],
                )
            }
            Self::To(address) => compare(payload(ethernet(list), LinkLayerHeader, 0, 6), CmpOps::Eq, address),
            Self::Tagged(tag) => {
                let list = payload(ethernet(list), LinkLayerHeader, 12, 2);
                compare(list, CmpOps::Eq, &(*tag as u16).to_be_bytes())
            }
            Self::InVlans(vlans) => {
                let list = Self::Tagged(Tag::Customer).encode(list);
                // Without the priority and the drop eligible indicator.
                let list = masked(payload(list, LinkLayerHeader, 14, 2), &[0x0f, 0xff]);
                let VlanRange { first, last } = vlans;
                if first == last {
                    return compare(list, CmpOps::Eq, &first.to_be_bytes());
                }
                compare(compare(list, CmpOps::Gte, &first.to_be_bytes()), CmpOps::Lte, &last.to_be_bytes())
            }
            Self::TaggedInside(tag) => of_protocol(list, *tag as libc::c_int),
            Self::Icmp(kind) => {
                let list = l4_protocol(of_protocol(list, libc::ETH_P_IP), libc::IPPROTO_ICMP);
                compare(payload(list, TransportHeader, 0, 1), CmpOps::Eq, &[*kind as u8])
            }
            Self::Icmpv6(kind) => {
                let list = l4_protocol(of_protocol(list, libc::ETH_P_IPV6), libc::IPPROTO_ICMPV6);
                compare(payload(list, TransportHeader, 0, 1), CmpOps::Eq, &[*kind as u8])
            }
            Self::UdpTo(port) => {
                let list = l4_protocol(list, libc::IPPROTO_UDP);
                compare(payload(list, TransportHeader, 2, 2), CmpOps::Eq, &port.to_be_bytes())
            }
            Self::ArpMacOtherThan(address) => compare(
                payload(of_protocol(list, libc::ETH_P_ARP), NetworkHeader, 8, 6),
                CmpOps::Neq,
                address,
            ),
            Self::Advertises(address) => {
                let list = Self::Icmpv6(Icmpv6::NeighbourAdvertisement).encode(list);
                compare(payload(list, TransportHeader, 8, 16), CmpOps::Eq, &address.octets())
            }
        }
    }
}

/// Asks for a frame of Ethernet.
fn ethernet(list: Expressions<'_>) -> Expressions<'_> {
    compare(meta(list, MetaKeys::Iftype), CmpOps::Eq, &libc::ARPHRD_ETHER.to_ne_bytes())
}

fn l4_protocol(list: Expressions<'_>, protocol: i32) -> Expressions<'_> {
    compare(meta(list, MetaKeys::L4Proto), CmpOps::Eq, &[protocol as u8])
}
