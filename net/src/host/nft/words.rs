//! Tables as the lines that nft(8) takes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{Chain, Elements, End, Family, Hook, Kind, LISTS, Match, Rule, Set, Table, ToPort, Verdict};
use crate::host::Step;

impl Table {
    /// A table's name for a link: unique in its family, and one that nft(8) takes without quotes.
    pub(crate) fn name_for(link: &str) -> String {
        let mut name = String::from("wirevm-");
        for byte in link.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' => name.push(byte.into()),
                other => name.push_str(&format!("_{other:02x}")),
            }
        }
        name
    }

    /// The lines that give the same table.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let table = format!("{} {}", self.family, self.name);
        let why = "rules of our own, apart from all others; they go when we go";
        let mut steps = vec![Step { command: format!("nft add table {table}"), why }];
        for Set { name, of, size, why } in &self.sets {
            let set = match of {
                Elements::Addresses { ipv6, minutes } => {
                    let of = if *ipv6 { "ipv6_addr" } else { "ipv4_addr" };
                    format!("type {of}; size {size}; flags dynamic,timeout; timeout {minutes}m;")
                }
                Elements::Connections => format!("typeof ct id; size {size}; flags dynamic;"),
                Elements::Ports { from, to } => {
                    let pairs = ports(*from, *to, *size).map(|(from, to)| format!("{from} : {to}"));
                    let pairs = pairs.collect::<Vec<_>>().join(", ");
                    format!("type inet_service : inet_service; size {size}; elements = {{ {pairs} }};")
                }
            };
            let what = if matches!(of, Elements::Ports { .. }) { "map" } else { "set" };
            steps.push(Step { command: format!("nft 'add {what} {table} {name} {{ {set} }}'"), why });
        }
        for Chain { name, kind, hook, device, priority, why, rules } in &self.chains {
            let device = device.as_ref().map(|link| format!(" device \"{link}\"")).unwrap_or_default();
            let chain = format!("{table} {name} {{ type {kind} hook {hook}{device} priority {priority}; }}");
            steps.push(Step { command: format!("nft 'add chain {chain}'"), why });
            steps.extend(rules.iter().map(|rule| Step {
                command: format!("nft 'add rule {table} {name} {rule}'"),
                why: rule.why,
            }));
        }
        steps
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = (&Chain, &Rule)> {
        self.chains.iter().flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Netdev => "netdev",
        })
    }
}

impl Kind {
    pub(super) fn word(self) -> &'static str {
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
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Prerouting => "prerouting",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

impl End {
    fn words(self, ipv6: bool) -> &'static str {
        match (self, ipv6) {
            (Self::Source, false) => "ip saddr",
            (Self::Source, true) => "ip6 saddr",
            (Self::Destination, false) => "ip daddr",
            (Self::Destination, true) => "ip6 daddr",
            (Self::ArpSender, _) => "arp saddr ip",
        }
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
            Self::Arp => f.write_str("meta protocol arp"),
            Self::Ipv6(true) => f.write_str("meta protocol ip6"),
            Self::Ipv6(false) => f.write_str("meta protocol ip"),
            Self::Source(address, prefix) => write!(f, "{} saddr {address}/{prefix}", family(address)),
            Self::Destination(address, prefix) => write!(f, "{} daddr {address}/{prefix}", family(address)),
            Self::ArpSender(address, prefix) => write!(f, "arp saddr ip {address}/{prefix}"),
            Self::Other(end, address) => write!(f, "{} != {address}", end.words(address.is_ipv6())),
            Self::Remember(end, ipv6, set) => write!(f, "add @{set} {{ {} }}", end.words(*ipv6)),
            Self::SourceIsLocal => f.write_str("fib saddr type local"),
            Self::DestinationIsLocal => f.write_str("fib daddr type local"),
            Self::DestinationTranslated => f.write_str("ct status dnat"),
            Self::Known => f.write_str("ct state established,related"),
            Self::NewBeyond(set, count) => {
                let mask = LISTS - 1;
                write!(f, "ct state new add @{set} {{ ct id & {mask} ct count over {count} }}")
            }
            Self::Invalid => f.write_str("ct state invalid"),
            Self::Ports(protocol, ports) => {
                let (first, last) = (ports.start(), ports.end());
                write!(f, "{protocol} dport {first}")?;
                if first == last { Ok(()) } else { write!(f, "-{last}") }
            }
            Self::Frame(one) => one.fmt(f),
            Self::Over { rate, burst } => write!(f, "limit rate over {rate}/second burst {burst} packets"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("counter drop"),
            Self::Forward(link) => write!(f, "fwd to \"{link}\""),
            Self::Masquerade => f.write_str("masquerade"),
            Self::DestinationNat(to, port) => {
                write!(f, "dnat {} to ", family(to))?;
                match (port, to) {
                    (ToPort::Same, _) => write!(f, "{to}"),
                    (ToPort::One(port), _) => write!(f, "{}", SocketAddr::new(*to, *port)),
                    (ToPort::ByMap(protocol, map), IpAddr::V4(to)) => {
                        write!(f, "{to}:{protocol} dport map @{map}")
                    }
                    (ToPort::ByMap(protocol, map), IpAddr::V6(to)) => {
                        write!(f, "[{to}]:{protocol} dport map @{map}")
                    }
                }
            }
        }
    }
}

/// The pairs of a map of so many ports.
pub(super) fn ports(from: u16, to: u16, size: u32) -> impl Iterator<Item = (u16, u16)> {
    (from..=u16::MAX).zip(to..=u16::MAX).take(size as usize)
}

/// The family's word of nft(8).
fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}
