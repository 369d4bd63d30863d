//! nftables in the kernel: tables of ours, and what the chains of others do.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::net::IpAddr;

use netlink_bindings::nftables::{
    self, Chained, CtKeys, ExprOps, IterableExprAttrs, MetaKeys, Nfgenmsg, SetFlags, TableFlags,
};
use netlink_bindings::traits::NetlinkChained;
use netlink_socket2::NetlinkSocket;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};

use super::what::{self, Fate, Way};
use super::words;
use super::{Elements, Family, Hook, Rule, Table};
use crate::host::Refusal;

/// What a set is of, as nft(8) numbers it: the kernel keeps it for whoever lists the set.
const INTEGER: u32 = 4;
const IPV4_ADDRESS: u32 = 7;
const IPV6_ADDRESS: u32 = 8;
const PORT: u32 = 13;

/// Of a set whose elements are put there by rules, for some time.
const TIMEOUT: u32 = SetFlags::Timeout as u32 | SetFlags::Eval as u32;

/// What nft(8) keeps with a set of `typeof ct id`, and needs to show it as such (its `src/mnl.c`): types, lengths and values, of
/// the key's byte order (2, the host's), and of the expression that it is of: 12, `ct`, with the key 23, `id`, in neither direction.
const TYPEOF_CT_ID: [u8; 28] = {
    let [a, b, c, d] = (CtKeys::CtId as u32).to_ne_bytes();
    [0, 4, 2, 0, 0, 0, 3, 20, 0, 4, 12, 0, 0, 0, 1, 12, 0, 4, a, b, c, d, 1, 4, 0xff, 0xff, 0xff, 0xff]
};

/// A socket to nftables, in the network namespace that the thread was in at the first request.
///
/// **A table that it makes is its own** (`NFT_TABLE_F_OWNER`): nobody else changes it, not even `nft flush ruleset`, and it
/// goes when the socket is closed, also after `kill -9`.
pub(crate) struct Nft {
    socket: NetlinkSocket,
}

/// A chain of anybody's on the forward hook, which routed packets pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwardChain {
    /// `ip`, `ip6` or `inet`.
    pub(crate) family: &'static str,
    pub(crate) table: String,
    pub(crate) name: String,
    /// What no rule decides that asks for something is dropped: by its policy, or by a rule for all, of it or of a chain that it
    /// sends all to.
    pub(crate) drops: bool,
    /// From or to which subnets a rule lets pass: address and length of the prefix.
    pub(crate) accepts: Vec<(IpAddr, u8)>,
    /// The other chains of its table.
    pub(crate) others: Vec<String>,
    /// A rule of its table speaks of the link.
    pub(crate) knows_link: bool,
}

impl Nft {
    pub(crate) fn new() -> Self {
        Self { socket: NetlinkSocket::new() }
    }

    /// Makes a table with all in it, or nothing: `EEXIST` where there is a table of that name.
    pub(crate) fn make(&mut self, table: &Table) -> Result<(), Refusal> {
        self.put(table, false)
    }

    /// Makes a table in place of the one of that name, at once: no packet passes between them.
    pub(crate) fn replace(&mut self, table: &Table) -> Result<(), Refusal> {
        self.put(table, true)
    }

    fn put(&mut self, table: &Table, replaces: bool) -> Result<(), Refusal> {
        let family = header(table.family.number());
        let name = table.name.as_bytes();
        self.batch(|batch| {
            if replaces {
                batch.request().op_deltable_do(&family).encode().push_name_bytes(name);
            }
            let mut request = batch.request().set_create().set_excl().op_newtable_do(&family);
            request.encode().push_name_bytes(name).push_flags(TableFlags::Owner as u32);
            for (id, set) in table.sets.iter().enumerate() {
                let (of, len, timeout, flags) = match set.of {
                    Elements::Addresses { ipv6: false, minutes } => (IPV4_ADDRESS, 4, minutes, TIMEOUT),
                    Elements::Addresses { ipv6: true, minutes } => (IPV6_ADDRESS, 16, minutes, TIMEOUT),
                    Elements::Connections => (INTEGER, 4, 0, SetFlags::Eval as u32),
                    Elements::Ports { .. } => (PORT, 2, 0, SetFlags::Map as u32),
                };
                let mut request = batch.request().set_create().op_newset_do(&family);
                let attributes = request.encode().push_table_bytes(name).push_name_bytes(set.name.as_bytes());
                let attributes = attributes.push_flags(flags).push_key_type(of).push_key_len(len);
                let attributes = match set.of {
                    Elements::Ports { .. } => attributes.push_data_type(of).push_data_len(len),
                    Elements::Addresses { .. } | Elements::Connections => attributes,
                };
                let attributes = attributes.nested_desc().push_size(set.size).end_nested();
                // The number is the transaction's.
                let attributes = attributes.push_id(id as u32 + 1);
                match set.of {
                    // Big-endian, though the bindings do not say so.
                    Elements::Addresses { .. } => {
                        drop(attributes.push_timeout((u64::from(timeout) * 60_000).to_be()));
                    }
                    Elements::Connections => drop(attributes.push_userdata(&TYPEOF_CT_ID)),
                    Elements::Ports { from, to } => {
                        drop(attributes);
                        let mut request = batch.request().set_create().op_newsetelem_do(&family);
                        let list =
                            request.encode().push_table_bytes(name).push_set_bytes(set.name.as_bytes());
                        let mut list = list.nested_elements();
                        for (from, to) in words::ports(from, to, set.size) {
                            let pair = list.nested_elem();
                            let pair = pair.nested_key().push_value(&from.to_be_bytes()).end_nested();
                            list = pair.nested_data().push_value(&to.to_be_bytes()).end_nested().end_nested();
                        }
                    }
                }
            }
            for chain in &table.chains {
                let mut request = batch.request().set_create().op_newchain_do(&family);
                let attributes =
                    request.encode().push_table_bytes(name).push_name_bytes(chain.name.as_bytes());
                let hook =
                    attributes.nested_hook().push_num(chain.hook.number()).push_priority(chain.priority);
                let hook = match &chain.device {
                    Some(link) => hook.push_dev_bytes(link.name.as_bytes()),
                    None => hook,
                };
                hook.end_nested().push_type_bytes(chain.kind.word().as_bytes());
            }
            for (chain, rule) in table.rules() {
                let mut request = batch.request().set_create().set_append().op_newrule_do(&family);
                let attributes =
                    request.encode().push_table_bytes(name).push_chain_bytes(chain.name.as_bytes());
                let mut list = attributes.nested_expressions();
                for one in &rule.matches {
                    list = one.encode(list, table.family);
                }
                rule.verdict.encode(list).end_nested();
            }
        })
    }

    /// Adds rules at the end of a chain of a table that this socket made, all or none.
    pub(crate) fn append(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        rules: &[Rule],
    ) -> Result<(), Refusal> {
        let header = header(family.number());
        self.batch(|batch| {
            for rule in rules {
                let mut request = batch.request().set_create().set_append().op_newrule_do(&header);
                let attributes =
                    request.encode().push_table_bytes(table.as_bytes()).push_chain_bytes(chain.as_bytes());
                let mut list = attributes.nested_expressions();
                for one in &rule.matches {
                    list = one.encode(list, family);
                }
                rule.verdict.encode(list).end_nested();
            }
        })
    }

    /// Removes a table with all in it; `ENOENT` where there is none such.
    pub(crate) fn remove(&mut self, family: Family, name: &str) -> Result<(), Refusal> {
        let family = header(family.number());
        self.batch(|batch| {
            batch.request().op_deltable_do(&family).encode().push_name_bytes(name.as_bytes());
        })
    }

    /// How many packets that came in by the link of that index the rules of a table of ours have dropped, or those of one chain of
    /// it. They count what they drop and nothing else.
    pub(crate) fn dropped(
        &mut self,
        family: Family,
        name: &str,
        chain: Option<&str>,
        link: u32,
    ) -> Result<u64, Refusal> {
        usable()?;
        let mut request = nftables::Request::new().op_getrule_dump(&header(family.number()));
        request.encode().push_table_bytes(name.as_bytes());
        let mut replies = self.socket.request(&request)?;
        let mut dropped = 0_u64;
        while let Some((_, rule)) = replies.recv().transpose()? {
            if chain.is_some_and(|chain| text(rule.get_chain().ok()) != chain) {
                continue;
            }
            let expressions: Vec<_> = rule.get_expressions().into_iter().flatten().flatten().collect();
            let expressions: Vec<_> =
                expressions.into_iter().map(|nftables::ExprListAttrs::Elem(one)| one).collect();
            // A table of the family `netdev` sees nothing but what comes in or goes out by its link.
            if family == Family::Netdev || asks_for_in_link(&expressions, link) {
                let counts = expressions.iter().filter_map(|one| match one.get_data() {
                    Ok(ExprOps::Counter(counter)) => counter.get_packets().ok(),
                    _ => None,
                });
                dropped = counts.fold(dropped, u64::saturating_add);
            }
        }
        Ok(dropped)
    }

    /// The chains of every table on the forward hook, and what they do with what `link` sends and gets. `EPERM` without
    /// `CAP_NET_ADMIN`.
    pub(crate) fn forward_chains(&mut self, link: &str) -> Result<Vec<ForwardChain>, Refusal> {
        usable()?;
        let request = nftables::Request::new().op_getchain_dump(&header(libc::NFPROTO_UNSPEC as u8));
        let mut replies = self.socket.request(&request)?;
        let (mut forward, mut all) = (Vec::new(), Vec::new());
        while let Some((header, chain)) = replies.recv().transpose()? {
            let Some(family) = routed_family(header.nfgen_family) else { continue };
            let (table, name) = (text(chain.get_table().ok()), text(chain.get_name().ok()));
            all.push((family, table.clone(), name.clone()));
            if chain
                .get_hook()
                .and_then(|hook| hook.get_num())
                .is_ok_and(|hook| hook == Hook::Forward.number())
            {
                let drops = chain.get_policy().is_ok_and(|policy| policy == libc::NF_DROP as u32);
                let (others, accepts) = (Vec::new(), Vec::new());
                forward.push(ForwardChain { family, table, name, drops, accepts, others, knows_link: false });
            }
        }
        for chain in &mut forward {
            let others =
                all.iter().filter(|(family, table, _)| (*family, table) == (chain.family, &chain.table));
            chain.others = others.map(|(_, _, name)| name.clone()).collect();
            self.read_rules(chain, link)?;
        }
        Ok(forward)
    }

    /// Looks at the rules of the chain's table.
    fn read_rules(&mut self, chain: &mut ForwardChain, link: &str) -> Result<(), Refusal> {
        let family = [libc::NFPROTO_IPV4, libc::NFPROTO_IPV6, libc::NFPROTO_INET].map(|family| family as u8);
        let family = family.into_iter().find(|&family| routed_family(family) == Some(chain.family));
        let mut request = nftables::Request::new().op_getrule_dump(&header(family.unwrap_or_default()));
        request.encode().push_table_bytes(chain.table.as_bytes());
        let mut replies = self.socket.request(&request)?;
        let mut chains: HashMap<String, Vec<Way>> = HashMap::new();
        while let Some((_, rule)) = replies.recv().transpose()? {
            let expressions: Vec<_> = rule.get_expressions().into_iter().flatten().flatten().collect();
            let expressions: Vec<IterableExprAttrs<'_>> =
                expressions.into_iter().map(|nftables::ExprListAttrs::Elem(one)| one).collect();
            chain.knows_link |= speaks_of(&expressions, link);
            chain.accepts.extend(what::accepted(&expressions));
            chains.entry(text(rule.get_chain().ok())).or_default().extend(what::of_all(&expressions));
        }
        chain.drops = match what::fate(&chains, &chain.name) {
            Fate::Drop => true,
            Fate::Accept => false,
            Fate::Open => chain.drops,
        };
        Ok(())
    }

    /// Sends what `fill` says as one transaction, which is done whole or not at all.
    fn batch(&mut self, fill: impl FnOnce(&mut Chained<'_>)) -> Result<(), Refusal> {
        usable()?;
        let mut subsystem = header(libc::AF_UNSPEC as u8);
        subsystem.set_res_id(libc::NFNL_SUBSYS_NFTABLES as u16);
        // As many as any batch here has requests: the numbers only tell the answers apart.
        let first = self.socket.reserve_seq(1 << 10);
        let mut batch = Chained::new(first);
        batch.request().op_batch_begin_do(&subsystem);
        fill(&mut batch);
        batch.request().op_batch_end_do(&subsystem);
        let batch = Batch(batch.finalize());
        Ok(self.socket.request_chained(&batch)?.recv_all()?)
    }
}

/// The requests of a transaction. The crate's own type finds begin and end, which old kernels do not acknowledge, by
/// comparing the addresses of functions, and a compiler may give one function two and two functions one.
struct Batch(nftables::ChainedFinal<'static>);

impl NetlinkChained for Batch {
    fn protonum(&self) -> u16 {
        self.0.protonum()
    }

    fn payload(&self) -> &[u8] {
        self.0.payload()
    }

    /// One more where it is a multiple of 64: the socket takes such a chain for answered before the first answer.
    fn chain_len(&self) -> usize {
        let len = self.0.chain_len();
        len + usize::from(len.is_multiple_of(64))
    }

    fn get_index(&self, seq: u32) -> Option<usize> {
        NetlinkChained::get_index(&self.0, seq)
    }

    fn name(&self, index: usize) -> &'static str {
        self.0.name(index)
    }

    fn supports_ack(&self, index: usize) -> Option<bool> {
        (index < self.chain_len()).then(|| (1..self.0.chain_len() - 1).contains(&index))
    }
}

/// The kernel's answer where it has no nftables at all, which the crate's socket would call `EPERM`.
pub(crate) fn usable() -> Result<(), Refusal> {
    let made =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER));
    made.map(drop).map_err(|errno| Refusal::from(io::Error::from(errno)))
}

impl Family {
    fn number(self) -> u8 {
        (match self {
            Self::Inet => libc::NFPROTO_INET,
            Self::Netdev => libc::NFPROTO_NETDEV,
        }) as u8
    }
}

impl Hook {
    /// `enum nf_inet_hooks` and `enum nf_dev_hooks` (`linux/netfilter.h`).
    fn number(self) -> u32 {
        match self {
            Self::Ingress | Self::Prerouting => 0,
            Self::Egress => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// The family's word, for those whose chains routed packets pass.
fn routed_family(number: u8) -> Option<&'static str> {
    match i32::from(number) {
        libc::NFPROTO_IPV4 => Some("ip"),
        libc::NFPROTO_IPV6 => Some("ip6"),
        libc::NFPROTO_INET => Some("inet"),
        _ => None,
    }
}

/// True where a rule compares the name of a packet's link with `link`, or with a beginning of it (`tap*`).
fn speaks_of(expressions: &[IterableExprAttrs<'_>], link: &str) -> bool {
    let names = [MetaKeys::Iifname as u32, MetaKeys::Oifname as u32];
    expressions.windows(2).any(|pair| match (pair[0].get_data(), pair[1].get_data()) {
        (Ok(ExprOps::Meta(meta)), Ok(ExprOps::Cmp(compare))) => {
            let value = compare.get_data().and_then(|data| data.get_value()).unwrap_or_default();
            let is_name = meta.get_key().is_ok_and(|key| names.contains(&key));
            // A whole name is compared with its end.
            is_name
                && match value.iter().position(|&byte| byte == 0) {
                    Some(end) => value[..end] == *link.as_bytes(),
                    None => link.as_bytes().starts_with(value),
                }
        }
        _ => false,
    })
}

/// True where a rule asks whether a packet came in by the link of that index.
fn asks_for_in_link(expressions: &[IterableExprAttrs<'_>], link: u32) -> bool {
    expressions.windows(2).any(|pair| match (pair[0].get_data(), pair[1].get_data()) {
        (Ok(ExprOps::Meta(meta)), Ok(ExprOps::Cmp(compare))) => {
            let value = compare.get_data().and_then(|data| data.get_value()).unwrap_or_default();
            meta.get_key().is_ok_and(|key| key == MetaKeys::Iif as u32) && *value == link.to_ne_bytes()
        }
        _ => false,
    })
}

fn header(family: u8) -> Nfgenmsg {
    Nfgenmsg { nfgen_family: family, ..Nfgenmsg::default() }
}

pub(super) fn text(text: Option<&CStr>) -> String {
    text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}
