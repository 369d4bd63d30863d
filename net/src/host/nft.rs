//! Tables of nftables (nft(8), kernel `net/netfilter/nf_tables_api.c`): described as data, made by netlink in one atomic
//! batch, and said as the `nft` lines that give the same table. Chains and rules of others are only read.
//!
//! **Only this module and `netlink.rs` know the netlink crates.**

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_bindings::nftables::{
    self, Chained, CmpOps, CtKeys, ExprOps, FibFlags, IterableExprAttrs, MetaKeys, Nfgenmsg, PayloadBase,
    PushExprListAttrs, PushRuleAttrs, TableFlags, VerdictCode,
};
use netlink_bindings::traits::NetlinkChained;
use netlink_socket2::NetlinkSocket;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};

use super::{Refusal, Step};

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

/// A question about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// It came in by this link.
    InLink(String),
    /// It leaves by this link.
    OutLink(String),
    /// It leaves by another link than this one.
    OutOtherLink(String),
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
    /// It is of this protocol, to this port.
    Port(crate::Protocol, u16),
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
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
            Self::InLink(name) => write!(f, "iifname \"{name}\""),
            Self::OutLink(name) => write!(f, "oifname \"{name}\""),
            Self::OutOtherLink(name) => write!(f, "oifname != \"{name}\""),
            Self::Source(address, prefix) => write!(f, "{} saddr {address}/{prefix}", family(address)),
            Self::Destination(address, prefix) => write!(f, "{} daddr {address}/{prefix}", family(address)),
            Self::OtherDestination(address) => write!(f, "{} daddr != {address}", family(address)),
            Self::SourceIsLocal => f.write_str("fib saddr type local"),
            Self::DestinationIsLocal => f.write_str("fib daddr type local"),
            Self::DestinationTranslated => f.write_str("ct status dnat"),
            Self::Port(protocol, port) => write!(f, "{protocol} dport {port}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => f.write_str("drop"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::DestinationNat(to) => write!(f, "dnat {} to {to}", family(&to.ip())),
        }
    }
}

/// The family's word of nft(8).
fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// The registers that expressions hand values on in (`linux/netfilter/nf_tables.h`, `enum nft_registers`).
const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`; the bindings count it one too low.
const ADDRESS_TYPE: u32 = 3;
/// `IPS_DST_NAT` of a connection's status (`linux/netfilter/nf_conntrack_common.h`).
const DESTINATION_NAT_DONE: u32 = 1 << 5;
/// `NFT_NAT_DNAT`.
const NAT_OF_DESTINATION: u32 = 1;

type Expressions<'a> = PushExprListAttrs<PushRuleAttrs<&'a mut Vec<u8>>>;

/// Each as `nft` encodes it, so that `nft list` shows what [`Table::commands`] says.
impl Match {
    fn encode<'a>(&self, list: Expressions<'a>) -> Expressions<'a> {
        match self {
            Self::InLink(name) => compare(meta(list, MetaKeys::Iifname), CmpOps::Eq, &link_name(name)),
            Self::OutLink(name) => compare(meta(list, MetaKeys::Oifname), CmpOps::Eq, &link_name(name)),
            Self::OutOtherLink(name) => compare(meta(list, MetaKeys::Oifname), CmpOps::Neq, &link_name(name)),
            Self::Source(address, prefix) => in_subnet(list, *address, *prefix, [12, 8]),
            Self::Destination(address, prefix) => in_subnet(list, *address, *prefix, [16, 24]),
            Self::OtherDestination(address) => {
                let octets = octets(*address);
                let list = address_bytes(list, *address, [16, 24], octets.len());
                compare(list, CmpOps::Neq, &octets)
            }
            Self::SourceIsLocal => is_local(list, FibFlags::Saddr),
            Self::DestinationIsLocal => is_local(list, FibFlags::Daddr),
            Self::DestinationTranslated => {
                let ct = list.nested_elem().nested_data_ct();
                let list = ct.push_key(CtKeys::Status as u32).push_dreg(REGISTER).end_nested().end_nested();
                let mask = DESTINATION_NAT_DONE.to_ne_bytes();
                compare(masked(list, &mask), CmpOps::Neq, &[0; 4])
            }
            Self::Port(protocol, port) => {
                let list = compare(meta(list, MetaKeys::L4Proto), CmpOps::Eq, &[protocol.number()]);
                let list = payload(list, PayloadBase::TransportHeader, 2, 2);
                compare(list, CmpOps::Eq, &port.to_be_bytes())
            }
        }
    }
}

impl Verdict {
    fn encode<'a>(&self, list: Expressions<'a>) -> Expressions<'a> {
        match self {
            Self::Drop => {
                let immediate = list.nested_elem().nested_data_immediate().push_dreg(0);
                let verdict = immediate.nested_data().nested_verdict().push_code(VerdictCode::Drop as u32);
                verdict.end_nested().end_nested().end_nested().end_nested()
            }
            Self::Masquerade => list.nested_elem().push_name(c"masq").end_nested(),
            Self::DestinationNat(to) => {
                let list = immediate(list, REGISTER, &octets(to.ip()));
                let list = immediate(list, SECOND_REGISTER, &to.port().to_be_bytes());
                let nat = list.nested_elem().nested_data_nat().push_type(NAT_OF_DESTINATION);
                let nat = nat.push_family(nfproto(to.ip()).into());
                let nat = nat.push_reg_addr_min(REGISTER).push_reg_proto_min(SECOND_REGISTER);
                nat.end_nested().end_nested()
            }
        }
    }
}

fn meta(list: Expressions<'_>, key: MetaKeys) -> Expressions<'_> {
    list.nested_elem().nested_data_meta().push_key(key as u32).push_dreg(REGISTER).end_nested().end_nested()
}

fn compare<'a>(list: Expressions<'a>, op: CmpOps, value: &[u8]) -> Expressions<'a> {
    let compare = list.nested_elem().nested_data_cmp().push_sreg(REGISTER).push_op(op as u32);
    compare.nested_data().push_value(value).end_nested().end_nested().end_nested()
}

fn payload(list: Expressions<'_>, base: PayloadBase, offset: u32, len: u32) -> Expressions<'_> {
    let payload = list.nested_elem().nested_data_payload().push_dreg(REGISTER).push_base(base as u32);
    payload.push_offset(offset).push_len(len).end_nested().end_nested()
}

fn masked<'a>(list: Expressions<'a>, mask: &[u8]) -> Expressions<'a> {
    let bitwise = list.nested_elem().nested_data_bitwise().push_sreg(REGISTER).push_dreg(REGISTER);
    let bitwise = bitwise.push_len(mask.len() as u32).nested_mask().push_value(mask).end_nested();
    bitwise.nested_xor().push_value(&[0; 16][..mask.len()]).end_nested().end_nested().end_nested()
}

fn immediate<'a>(list: Expressions<'a>, register: u32, value: &[u8]) -> Expressions<'a> {
    let immediate = list.nested_elem().nested_data_immediate().push_dreg(register);
    immediate.nested_data().push_value(value).end_nested().end_nested().end_nested()
}

fn is_local(list: Expressions<'_>, which: FibFlags) -> Expressions<'_> {
    let fib = list.nested_elem().nested_data_fib().push_dreg(REGISTER);
    let list = fib.push_result(ADDRESS_TYPE).push_flags(which as u32).end_nested().end_nested();
    compare(list, CmpOps::Eq, &u32::from(libc::RTN_LOCAL).to_ne_bytes())
}

/// Asks for the family of `address` and loads `len` bytes of the packet's address at `offsets`, for IPv4 and for IPv6.
fn address_bytes(list: Expressions<'_>, address: IpAddr, offsets: [u32; 2], len: usize) -> Expressions<'_> {
    let offset = offsets[usize::from(address.is_ipv6())];
    let list = compare(meta(list, MetaKeys::Nfproto), CmpOps::Eq, &[nfproto(address)]);
    payload(list, PayloadBase::NetworkHeader, offset, len as u32)
}

fn in_subnet(list: Expressions<'_>, address: IpAddr, prefix: u8, offsets: [u32; 2]) -> Expressions<'_> {
    let prefix = usize::from(prefix);
    let mut network = octets(address);
    if prefix.is_multiple_of(8) {
        // Whole bytes: only those are loaded, and nothing is masked.
        let bytes = prefix / 8;
        return compare(address_bytes(list, address, offsets, bytes), CmpOps::Eq, &network[..bytes]);
    }
    let mask: Vec<u8> = (0..network.len()).map(|byte| mask_of_byte(prefix, byte)).collect();
    for (octet, mask) in network.iter_mut().zip(&mask) {
        *octet &= mask;
    }
    let list = address_bytes(list, address, offsets, network.len());
    compare(masked(list, &mask), CmpOps::Eq, &network)
}

/// The byte at `index` of the mask of a prefix.
fn mask_of_byte(prefix: usize, index: usize) -> u8 {
    let bits = prefix.saturating_sub(8 * index).min(8);
    !(0xff_u16 >> bits) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
fn nfproto(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::NFPROTO_IPV4 as u8 } else { libc::NFPROTO_IPV6 as u8 }
}

/// A link's name as the kernel compares it, padded with zeros.
fn link_name(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut bytes = [0; libc::IFNAMSIZ];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

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
    /// What no rule of it decides is dropped: by its policy, or by its last rule, which matches everything.
    pub(crate) drops: bool,
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
        let inet = header(libc::NFPROTO_INET as u8);
        let name = table.name.as_bytes();
        self.batch(|batch| {
            let mut request = batch.request().set_create().set_excl().op_newtable_do(&inet);
            request.encode().push_name_bytes(name).push_flags(TableFlags::Owner as u32);
            for chain in &table.chains {
                let mut request = batch.request().set_create().op_newchain_do(&inet);
                let attributes =
                    request.encode().push_table_bytes(name).push_name_bytes(chain.name.as_bytes());
                let hook = attributes.nested_hook().push_num(chain.hook as u32).push_priority(chain.priority);
                hook.end_nested().push_type_bytes(chain.kind.word().as_bytes());
            }
            for (chain, rule) in table.rules() {
                let mut request = batch.request().set_create().set_append().op_newrule_do(&inet);
                let attributes =
                    request.encode().push_table_bytes(name).push_chain_bytes(chain.name.as_bytes());
                let mut list = attributes.nested_expressions();
                for one in &rule.matches {
                    list = one.encode(list);
                }
                rule.verdict.encode(list).end_nested();
            }
        })
    }

    /// Removes a table with all in it; `ENOENT` where there is none such.
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), Refusal> {
        let inet = header(libc::NFPROTO_INET as u8);
        self.batch(|batch| {
            batch.request().op_deltable_do(&inet).encode().push_name_bytes(name.as_bytes());
        })
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
            if chain.get_hook().and_then(|hook| hook.get_num()).is_ok_and(|hook| hook == Hook::Forward as u32)
            {
                let drops = chain.get_policy().is_ok_and(|policy| policy == libc::NF_DROP as u32);
                forward.push(ForwardChain { family, table, name, drops, others: vec![], knows_link: false });
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
        let mut last_drops = false;
        while let Some((_, rule)) = replies.recv().transpose()? {
            let expressions: Vec<_> = rule.get_expressions().into_iter().flatten().flatten().collect();
            let expressions: Vec<IterableExprAttrs<'_>> =
                expressions.into_iter().map(|nftables::ExprListAttrs::Elem(one)| one).collect();
            chain.knows_link |= speaks_of(&expressions, link);
            if text(rule.get_chain().ok()) == chain.name {
                last_drops = drops_all(&expressions);
            }
        }
        chain.drops |= last_drops;
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

/// True where a rule drops or rejects every packet: nothing but counting and noting goes before.
fn drops_all(expressions: &[IterableExprAttrs<'_>]) -> bool {
    let Some((last, before)) = expressions.split_last() else { return false };
    let name = |one: &IterableExprAttrs<'_>| text(one.get_name().ok());
    let drops = match last.get_data() {
        Ok(ExprOps::Immediate(immediate)) => {
            let verdict = immediate.get_data().and_then(|data| data.get_verdict());
            verdict.and_then(|verdict| verdict.get_code()).is_ok_and(|code| code == VerdictCode::Drop as u32)
        }
        // The targets of iptables, inside a table of its.
        Ok(ExprOps::Target(target)) => ["DROP", "REJECT"].contains(&text(target.get_name().ok()).as_str()),
        _ => name(last) == "reject",
    };
    drops && before.iter().all(|one| ["counter", "log"].contains(&name(one).as_str()))
}

fn header(family: u8) -> Nfgenmsg {
    Nfgenmsg { nfgen_family: family, ..Nfgenmsg::default() }
}

fn text(text: Option<&CStr>) -> String {
    text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}
