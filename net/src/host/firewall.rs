//! What other rules of the host will still drop: a packet passes only where no table drops it, so what ours lets through a
//! firewall's may stop. Those rules are somebody's decision: they are read, told, and left alone.

use std::fs;
use std::io;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketType, socket};

use super::Refusal;
use super::nft::{ForwardChain, Nft};
use crate::{HostAddress, printable, sys};

/// A chain that drops packets on their way between links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Barrier {
    /// Of the packets that pass it: `ip`, `ip6`, or `inet` for both.
    family: &'static str,
    /// `the table ip filter, in its chain FORWARD`.
    pub(super) place: String,
    /// The line that lets a link's packets pass.
    pub(super) command: String,
}

/// What the rules of others will do with the packets between `link`, where the guest is in the subnets of `hosts`, and other links:
/// a sentence for each that drops them.
pub(crate) fn routed_notices(link: &str, hosts: &[HostAddress]) -> Vec<String> {
    let told = |barrier: Barrier| {
        let Barrier { place, command, .. } = barrier;
        format!(
            "{place}, drops what it does not know, and so what the guest sends and gets; let it through: {command}"
        )
    };
    match barriers(Passing::Routed(link, Guests::In(hosts))) {
        Ok(barriers) => barriers.into_iter().map(told).collect(),
        Err(refusal) => vec![format!("cannot look whether a firewall stops the guest: {refusal}")],
    }
}

/// What the rules for routed packets will do with the frames between the ports of `bridge`: a sentence for each that drops
/// them. Only where the kernel is told to have bridged frames pass those rules too (`bridge-nf-call-iptables`), as Docker does.
pub fn bridged_notices(bridge: &str) -> Vec<String> {
    let told = |Barrier { place, command, .. }| {
        format!("{BRIDGED}, and {place}, drops what it does not know; let them through: {command}")
    };
    bridged_barriers(bridge).into_iter().map(told).collect()
}

pub(super) const BRIDGED: &str =
    "bridged frames pass the rules for routed packets here (bridge-nf-call-iptables)";

/// The chains that drop what passes between the ports of `bridge`.
pub(super) fn bridged_barriers(bridge: &str) -> Vec<Barrier> {
    let (ipv4, ipv6) = (bridge_calls("ip"), bridge_calls("ip6"));
    if !ipv4 && !ipv6 {
        return Vec::new();
    }
    let mut found = barriers(Passing::Bridged(bridge)).unwrap_or_default();
    found.retain(|barrier| match barrier.family {
        "ip" => ipv4,
        "ip6" => ipv6,
        _ => true,
    });
    found
}

/// Which packets are asked about.
#[derive(Clone, Copy)]
pub(super) enum Passing<'a> {
    /// Between this link and others.
    Routed(&'a str, Guests<'a>),
    /// Between the ports of this bridge.
    Bridged(&'a str),
}

/// Where the guests are whose packets are routed.
#[derive(Clone, Copy)]
pub(super) enum Guests<'a> {
    /// In the subnets of these addresses of the host's.
    In(&'a [HostAddress]),
    /// In those that wirevm takes where it is told of none: all of them private.
    OfOurs,
}

impl Passing<'_> {
    fn link(&self) -> &str {
        match self {
            Self::Routed(link, _) | Self::Bridged(link) => link,
        }
    }

    /// True where all guests pass by their addresses, of the family `ip`, `ip6` or `inet`, if packets from or to these subnets do.
    fn pass_by(&self, family: &str, accepted: &[(IpAddr, u8)]) -> bool {
        match self {
            Self::Routed(_, Guests::In(hosts)) => {
                let is_of = |host: &&HostAddress| match family {
                    "ip" => host.v4().is_some(),
                    "ip6" => host.v6().is_some(),
                    _ => true,
                };
                let mut hosts = hosts.iter().filter(is_of).peekable();
                let has = |host: &HostAddress| {
                    accepted.iter().any(|&(to, len)| len <= host.prefix() && host.overlaps(to, len))
                };
                hosts.peek().is_some() && hosts.all(has)
            }
            Self::Routed(_, Guests::OfOurs) => accepted.iter().any(|(to, _)| match to {
                IpAddr::V4(to) => to.is_private(),
                IpAddr::V6(to) => to.is_unique_local(),
            }),
            // Whoever is on the LAN may be meant.
            Self::Bridged(_) => false,
        }
    }
}

/// The chains that drop what they do not know, and know nothing of the link.
pub(super) fn barriers(passing: Passing<'_>) -> Result<Vec<Barrier>, Refusal> {
    let mut found = Vec::new();
    for chain in Nft::new().forward_chains(passing.link())? {
        if chain.drops && !chain.knows_link && !passing.pass_by(chain.family, &chain.accepts) {
            let (table, name) = (printable(&chain.table), printable(&chain.name));
            let place = format!("the nftables table {} {table}, in its chain {name}", chain.family);
            found.push(Barrier { family: chain.family, place, command: command(&chain, passing) });
        }
    }
    for (family, program) in [("ip", "iptables-legacy"), ("ip6", "ip6tables-legacy")] {
        if legacy_drops(family, passing) {
            let place = format!("{program}'s table filter, in its chain FORWARD");
            found.push(Barrier { family, place, command: iptables(program, "FORWARD", passing) });
        }
    }
    Ok(found)
}

/// The line that lets packets pass the chain, by the program that keeps it.
fn command(chain: &ForwardChain, passing: Passing<'_>) -> String {
    let ForwardChain { family, table, name, others, .. } = chain;
    let link = passing.link();
    let program = if *family == "ip6" { "ip6tables" } else { "iptables" };
    match (table.as_str(), name.as_str()) {
        ("firewalld", _) => format!("sudo firewall-cmd --zone=trusted --add-interface={link}"),
        // Docker's chain for the rules of others, which it keeps.
        ("filter", "FORWARD") if others.iter().any(|other| other == "DOCKER-USER") => {
            iptables(program, "DOCKER-USER", passing)
        }
        ("filter", "FORWARD") => iptables(program, name, passing),
        // Whoever made them chose the names, which a shell is to be given.
        _ if !is_identifier(table) || !is_identifier(name) => "see sudo nft list ruleset".to_owned(),
        _ => {
            let insert =
                |rule: String| format!("sudo nft 'insert rule {family} {table} {name} {rule} accept'");
            let one = |way| insert(format!("{way} \"{link}\""));
            match passing {
                Passing::Routed(..) => {
                    let answers = insert(format!("oifname \"{link}\" ct state established,related"));
                    let forwarded = insert(format!("oifname \"{link}\" ct status dnat"));
                    format!("{}; {answers}; {forwarded}", one("iifname"))
                }
                Passing::Bridged(_) => one("iifname"),
            }
        }
    }
}

/// True for a name that nft(8) takes without quotes, and a shell between its own.
fn is_identifier(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-/".contains(&byte);
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(is_plain)
}

fn iptables(program: &str, chain: &str, passing: Passing<'_>) -> String {
    let link = passing.link();
    let insert = format!("sudo {program} -I {chain}");
    match passing {
        Passing::Routed(..) => format!(
            "{insert} -i {link} -j ACCEPT; {insert} -o {link} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT"
        ),
        Passing::Bridged(_) => format!("{insert} -i {link} -o {link} -j ACCEPT"),
    }
}

/// True where a table of the old iptables is loaded and drops what it does not know, and knows nothing of the link. A table
/// that is not loaded is not asked for: that would load it.
fn legacy_drops(family: &str, passing: Passing<'_>) -> bool {
    let ipv6 = family == "ip6";
    let names = if ipv6 { "ip6_tables_names" } else { "ip_tables_names" };
    // Of the thread's network namespace, which may be another one than the process's.
    let loaded = fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
    if !loaded.lines().any(|name| name == "filter") {
        return false;
    }
    let protocol = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let asked = socket(protocol, SocketType::DGRAM, None).map_err(io::Error::from);
    match asked.and_then(|socket| sys::iptables_filter(socket.as_fd(), ipv6)) {
        Ok((info, entries)) => {
            let table = Legacy { info: &info, entries: &entries, ipv6 };
            table.forward_drops().unwrap_or(false)
                && !table.speaks_of(passing.link())
                && !passing.pass_by(family, &table.accepts())
        }
        Err(error) => {
            log::debug!("cannot ask for the old iptables' table filter: {error}");
            false
        }
    }
}

/// A table of the old iptables as its socket option gives it (`linux/netfilter_ipv4/ip_tables.h`, `ip6_tables.h`).
struct Legacy<'a> {
    /// `struct ipt_getinfo`.
    info: &'a [u8],
    /// Many `struct ipt_entry`, each with its matches and its target.
    entries: &'a [u8],
    ipv6: bool,
}

impl Legacy<'_> {
    /// True where the policy of FORWARD is to drop; none where the bytes make no sense.
    fn forward_drops(&self) -> Option<bool> {
        // After the name and the valid hooks come, of five hooks each, where a chain begins and where its policy is.
        const POLICIES: usize = 32 + 4 + 5 * 4;
        const FORWARD: usize = 2;
        // The length of `xt_entry_target`, after which a standard target has its verdict: -NF_DROP - 1.
        const TARGET: usize = 32;
        const DROP: i32 = -1;
        let policy = number(self.info, POLICIES + 4 * FORWARD)? as usize;
        let target = usize::from(self.short(policy, self.target_offset())?);
        let at = policy.checked_add(target)?.checked_add(TARGET)?;
        Some(number(self.entries, at)? as i32 == DROP)
    }

    /// True where an entry names the link.
    fn speaks_of(&self, link: &str) -> bool {
        // The addresses and their masks are first, then the two names and their masks.
        let names = if self.ipv6 { 64 } else { 16 };
        self.starts().any(|entry| {
            [entry + names, entry + names + 16].into_iter().any(|at| {
                let name = self.entries.get(at..at + 16).unwrap_or_default();
                let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
                name == link.as_bytes() && !name.is_empty()
            })
        })
    }

    /// From or to which subnets an entry lets pass.
    fn accepts(&self) -> Vec<(IpAddr, u8)> {
        // -NF_ACCEPT - 1, after the length of the target and its name, which is empty for a verdict.
        const ACCEPT: i32 = -2;
        const TARGET: usize = 32;
        let len = if self.ipv6 { 16 } else { 4 };
        let mut found = Vec::new();
        for entry in self.starts() {
            let target = self.short(entry, self.target_offset()).map(|at| entry + usize::from(at));
            let Some(target) = target else { continue };
            let is_verdict = self.entries.get(target + 2) == Some(&0);
            if !is_verdict || number(self.entries, target + TARGET).map(|code| code as i32) != Some(ACCEPT) {
                continue;
            }
            // Source and destination, and then the masks of both.
            for at in [entry, entry + len] {
                let (Some(address), Some(mask)) =
                    (self.entries.get(at..at + len), self.entries.get(at + 2 * len..at + 3 * len))
                else {
                    continue;
                };
                let bits: u32 = mask.iter().map(|byte| byte.leading_ones()).sum();
                let address = match len {
                    4 => <[u8; 4]>::try_from(address).ok().map(|octets| Ipv4Addr::from(octets).into()),
                    _ => <[u8; 16]>::try_from(address).ok().map(|octets| Ipv6Addr::from(octets).into()),
                };
                found.extend(address.filter(|_| bits > 0).map(|address| (address, bits as u8)));
            }
        }
        found
    }

    /// Where each entry begins.
    fn starts(&self) -> impl Iterator<Item = usize> {
        iter::successors(Some(0), |&entry| {
            let len = self.short(entry, self.target_offset() + 2).filter(|&len| len != 0)?;
            Some(entry + usize::from(len))
        })
    }

    /// Where an entry says where its target is; where the next entry is follows.
    fn target_offset(&self) -> usize {
        if self.ipv6 { 136 + 4 } else { 84 + 4 }
    }

    fn short(&self, entry: usize, offset: usize) -> Option<u16> {
        let at = entry.checked_add(offset)?;
        let bytes = self.entries.get(at..at.checked_add(2)?)?;
        Some(u16::from_ne_bytes(bytes.try_into().ok()?))
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// True where bridged frames pass the rules for routed packets of a family: `ip` or `ip6`.
fn bridge_calls(family: &str) -> bool {
    let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
    fs::read_to_string(switch).is_ok_and(|value| value.trim() == "1")
}

#[cfg(test)]
mod tests;
