//! Tables of nftables (nft(8), kernel `net/netfilter/nf_tables_api.c`): described as data, made by netlink in one atomic
//! batch, and said as the `nft` lines that give the same table. Chains and rules of others are only read.
//!
//! **Only this module and `netlink.rs` know the netlink crates**: `expression.rs` and `frame.rs` encode what a rule says, `socket.rs`
//! asks the kernel. `ingress.rs`: the tables that see a link's frames first.

mod expression;
pub(crate) mod frame;
pub(crate) mod ingress;
mod socket;
mod what;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{LinkId, Step};

pub(crate) use socket::{ForwardChain, Nft};

/// A table of the family `inet`, which sees IPv4 and IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) chains: Vec<Chain>,
}

/// A base chain of policy accept, and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) hook: Hook,
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

/// Where on a packet's way a chain is (`linux/netfilter.h`, `enum nf_inet_hooks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

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
    /// Its source is in the subnet of this address and prefix length.
    Source(IpAddr, u8),
    /// Its destination is in the subnet of this address and prefix length.
    Destination(IpAddr, u8),
    /// Its destination is another address than this one, of the same family.
    OtherDestination(IpAddr),
    /// Its source is an address of this host.
    SourceIsLocal,
    /// Its destination is an address of this host.
    DestinationIsLocal,
    /// Its connection's destination was translated.
    DestinationTranslated,
    /// It is of a connection that has passed before, or is about one: an ICMP error, a helper's data connection.
    Known,
    /// It is of no connection, and not the first packet of one; so it is not translated either.
    Invalid,
    /// It is of this protocol, to this port.
    Port(crate::Protocol, u16),
    /// In an [`IngressTable`](ingress::IngressTable).
    Frame(frame::FrameMatch),
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The chains of other tables may still drop it.
    Accept,
    /// It is counted.
    Drop,
    /// The connection seems to come from an address of the link that it leaves by.
    Masquerade,
    /// The connection goes there instead.
    DestinationNat(SocketAddr),
}

impl Table {
    /// The lines that give the same table.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let table = &self.name;
        let why = "rules of our own, apart from all others; they go when we go";
        let mut steps = vec![Step { command: format!("nft add table inet {table}"), why }];
        for Chain { name, kind, hook, priority, why, rules } in &self.chains {
            let chain = format!("{table} {name} {{ type {kind} hook {hook} priority {priority}; }}");
            steps.push(Step { command: format!("nft 'add chain inet {chain}'"), why });
            steps.extend(rules.iter().map(|rule| Step {
                command: format!("nft 'add rule inet {table} {name} {rule}'"),
                why: rule.why,
            }));
        }
        steps
    }

    /// The line that removes a table with all in it.
    pub(crate) fn removal(name: &str) -> String {
        format!("nft delete table inet {name}")
    }

    fn rules(&self) -> impl Iterator<Item = (&Chain, &Rule)> {
        self.chains.iter().flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)))
    }
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.matches {
            write!(f, "{one} ")?;
        }
        self.verdict.fmt(f)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InLink(link) => write!(f, "iif \"{link}\""),
            Self::OutLink(link) => write!(f, "oif \"{link}\""),
            Self::OutOtherLink(link) => write!(f, "oif != \"{link}\""),
            Self::Ipv6(true) => f.write_str("meta nfproto ipv6"),
            Self::Ipv6(false) => f.write_str("meta nfproto ipv4"),
            Self::Source(address, prefix) => write!(f, "{} saddr {address}/{prefix}", family(address)),
            Self::Destination(address, prefix) => write!(f, "{} daddr {address}/{prefix}", family(address)),
            Self::OtherDestination(address) => write!(f, "{} daddr != {address}", family(address)),
            Self::SourceIsLocal => f.write_str("fib saddr type local"),
            Self::DestinationIsLocal => f.write_str("fib daddr type local"),
            Self::DestinationTranslated => f.write_str("ct status dnat"),
            Self::Known => f.write_str("ct state established,related"),
            Self::Invalid => f.write_str("ct state invalid"),
            Self::Port(protocol, port) => write!(f, "{protocol} dport {port}"),
            Self::Frame(one) => one.fmt(f),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("counter drop"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::DestinationNat(to) => write!(f, "dnat {} to {to}", family(&to.ip())),
        }
    }
}

/// The family's word of nft(8).
fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}
