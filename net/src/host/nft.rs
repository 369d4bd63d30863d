//! Tables of nftables (nft(8), kernel `net/netfilter/nf_tables_api.c`): described as data, made by netlink in one atomic
//! batch, and said as the `nft` lines that give the same table. Chains and rules of others are only read.
//!
//! **Only this module and `netlink.rs` know the netlink crates**: `expression.rs` and `frame.rs` encode what a rule says, `socket.rs`
//! asks the kernel. `words.rs` says each as nft(8) takes it; `owned.rs` has a table go with us; `what.rs`: what the rules of others do.

mod expression;
pub(crate) mod frame;
mod owned;
mod socket;
mod what;
mod words;

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU64;
use std::ops::RangeInclusive;

use super::LinkId;

pub(crate) use owned::OwnTable;
pub(crate) use socket::{ForwardChain, Nft};

/// A table of ours. It goes with the socket that made it; a chain at the ingress of a link stops nothing once the link is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) family: Family,
    pub(crate) name: String,
    pub(crate) sets: Vec<Set>,
    pub(crate) chains: Vec<Chain>,
}

/// What the chains of a table see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Packets of IPv4 and IPv6.
    Inet,
    /// Every frame that comes in or goes out by one link.
    Netdev,
}

/// What rules put there, so many at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) of: Elements,
    pub(crate) size: u32,
    /// What for, in a few words.
    pub(crate) why: &'static str,
}

/// What a set is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elements {
    /// Addresses ([`Match::Remember`]), each for so many minutes.
    Addresses { ipv6: bool, minutes: u32 },
    /// Lists of connections ([`Match::NewBeyond`]).
    Connections,
    /// From these ports on, a port for each ([`ToPort::ByMap`]): as many as the set's size.
    Ports { from: u16, to: u16 },
}

/// Which of a packet's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
    /// The sender's IPv4 address in an ARP packet (RFC 826).
    ArpSender,
}

/// A base chain of policy accept, and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) hook: Hook,
    /// The link whose frames it sees, in a table of the family `netdev`.
    pub(crate) device: Option<LinkId>,
    /// Among the chains of a hook the lowest is first.
    pub(crate) priority: i32,
    /// What for, in a few words.
    pub(crate) why: &'static str,
    pub(crate) rules: Vec<Rule>,
}

/// What a chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sees each packet.
    Filter,
    /// Sees the first packet of each connection, and says how all of them are translated.
    Nat,
}

/// Where on a packet's way a chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Of one link, before all others.
    Ingress,
    /// Of one link, after all others, before its queue.
    Egress,
    Prerouting,
    Forward,
    Output,
    Postrouting,
}

/// Over how many lists connections are spread: a byte's values.
pub(crate) const LISTS: u32 = 256;

/// What becomes of a packet that all of `matches` match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: Vec<Match>,
    pub(crate) verdict: Verdict,
    /// What for, in a few words.
    pub(crate) why: &'static str,
}

/// A question about a packet. A link is asked for by its index, so that a rule holds for it under another name too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// It came in by this link.
    InLink(LinkId),
    /// It leaves by this link.
    OutLink(LinkId),
    /// It leaves by another link than this one.
    OutOtherLink(LinkId),
    /// It is of IPv6 if true, else of IPv4.
    Ipv6(bool),
    /// It is of ARP.
    Arp,
    /// Its source is in the subnet of this address and prefix length.
    Source(IpAddr, u8),
    /// Its destination is in the subnet of this address and prefix length.
    Destination(IpAddr, u8),
    /// It is ARP, and the sender's address in the subnet of this address and prefix length.
    ArpSender(Ipv4Addr, u8),
    /// This end of it is another address than this one, of the same family.
    Other(End, IpAddr),
    /// This address of it, of IPv6 if true, is in the set of this name, or put there: not where the set is full.
    Remember(End, bool, &'static str),
    /// Its source is an address of this host.
    SourceIsLocal,
    /// Its destination is an address of this host.
    DestinationIsLocal,
    /// Its connection's destination was translated.
    DestinationTranslated,
    /// It is of a connection that has passed before, or is about one: an ICMP error, a helper's data connection.
    Known,
    /// It is the first packet of a connection, and there are more than so many on the list of the set of this name where it belongs
    /// by chance: one of [`LISTS`]. The kernel walks a list for each that comes, so that one for all would take long.
    NewBeyond(&'static str, u32),
    /// It is of no connection, and not the first packet of one; so it is not translated either.
    Invalid,
    /// It is of this protocol, to one of these ports.
    Ports(crate::Protocol, RangeInclusive<u16>),
    /// In a table of the family `netdev`.
    Frame(frame::FrameMatch),
    /// It is one of more than so many in a second, of which at most so many come at once.
    Over { rate: NonZeroU64, burst: u32 },
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The chains of other tables may still drop it.
    Accept,
    /// It is counted.
    Drop,
    /// It goes to this link, in a table of the family `netdev`: no chain after this one sees it.
    Forward(LinkId),
    /// The connection seems to come from an address of the link that it leaves by.
    Masquerade,
    /// The connection goes to this address instead.
    DestinationNat(IpAddr, ToPort),
}

/// The port of a connection whose destination is translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToPort {
    /// As it was.
    Same,
    /// This one.
    One(u16),
    /// What the map of this name has for it.
    ByMap(crate::Protocol, String),
}
