//! What a rule asks and does, as the kernel's expressions (`linux/netfilter/nf_tables.h`): each as `nft` encodes it, so that
//! `nft list` shows what [`Table::steps`](super::Table::steps) says.

use std::ffi::CStr;
use std::net::IpAddr;

use netlink_bindings::nftables::{
    CmpOps, CtKeys, FibFlags, MetaKeys, PayloadBase, PushExprListAttrs, PushRuleAttrs, VerdictCode,
};

use netlink_bindings::utils::{Pusher, align, finalize_nested_header, push_header, push_nested_header};

use super::{End, Family, LISTS, Match, ToPort, Verdict};

/// The registers that expressions hand values on in (`linux/netfilter/nf_tables.h`, `enum nft_registers`).
const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`; the bindings count it one too low.
const ADDRESS_TYPE: u32 = 3;
/// `IPS_DST_NAT` of a connection's status (`linux/netfilter/nf_conntrack_common.h`).
const DESTINATION_NAT_DONE: u32 = 1 << 5;
/// `NF_CT_STATE_INVALID_BIT`, and `NF_CT_STATE_BIT` of three others (`linux/netfilter/nf_conntrack_common.h`).
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 1 << 1;
const RELATED: u32 = 1 << 2;
const NEW: u32 = 1 << 3;
/// `NFT_NAT_DNAT`.
const NAT_OF_DESTINATION: u32 = 1;

pub(super) type Expressions<'a> = PushExprListAttrs<PushRuleAttrs<&'a mut Vec<u8>>>;

impl Match {
    pub(super) fn encode<'a>(&self, list: Expressions<'a>, family: Family) -> Expressions<'a> {
        match self {
            Self::Arp => of_protocol(list, libc::ETH_P_ARP),
            Self::InLink(link) => compare(meta(list, MetaKeys::Iif), CmpOps::Eq, &link.index.to_ne_bytes()),
            Self::OutLink(link) => compare(meta(list, MetaKeys::Oif), CmpOps::Eq, &link.index.to_ne_bytes()),
            Self::OutOtherLink(link) => {
                compare(meta(list, MetaKeys::Oif), CmpOps::Neq, &link.index.to_ne_bytes())
            }
            Self::Ipv6(ipv6) => of_protocol(list, if *ipv6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP }),
            Self::Source(address, prefix) => in_subnet(list, family, End::Source, *address, *prefix),
            Self::Destination(address, prefix) => {
                in_subnet(list, family, End::Destination, *address, *prefix)
            }
            Self::ArpSender(address, prefix) => {
                in_subnet(list, family, End::ArpSender, (*address).into(), *prefix)
            }
            Self::Other(end, address) => {
                let octets = octets(*address);
                let list = address_bytes(list, family, *end, address.is_ipv6(), octets.len());
                compare(list, CmpOps::Neq, &octets)
            }
            Self::Remember(end, ipv6, set) => {
                let list = address_bytes(list, family, *end, *ipv6, if *ipv6 { 16 } else { 4 });
                other(list, c"dynset", &remember(set))
            }
            Self::SourceIsLocal => is_local(list, FibFlags::Saddr),
            Self::DestinationIsLocal => is_local(list, FibFlags::Daddr),
            Self::DestinationTranslated => of_connection(list, CtKeys::Status, DESTINATION_NAT_DONE),
            Self::Known => of_connection(list, CtKeys::State, ESTABLISHED | RELATED),
            Self::NewBeyond(set, count) => {
                let list = of_connection(list, CtKeys::State, NEW);
                let ct = list.nested_elem().nested_data_ct().push_key(CtKeys::CtId as u32);
                let list = ct.push_dreg(REGISTER).end_nested().end_nested();
                let list = masked(list, &(LISTS - 1).to_be_bytes());
                // `NFTA_CONNLIMIT_COUNT`, and `_FLAGS`: `NFT_CONNLIMIT_F_INV`, more than that.
                let limit = [(1, count.to_be_bytes().to_vec()), (2, 1_u32.to_be_bytes().to_vec())];
                let limit =
                    [(EXPRESSION_NAME, b"connlimit\0".to_vec()), (EXPRESSION_DATA, attributes(&limit))];
                other(list, c"dynset", &[&remember(set)[..], &[(7, attributes(&limit))]].concat())
            }
            Self::Invalid => of_connection(list, CtKeys::State, INVALID),
            Self::Ports(protocol, ports) => {
                let list = compare(meta(list, MetaKeys::L4Proto), CmpOps::Eq, &[protocol.number()]);
                let list = payload(list, PayloadBase::TransportHeader, 2, 2);
                let (first, last) = (ports.start(), ports.end());
                if first == last {
                    return compare(list, CmpOps::Eq, &first.to_be_bytes());
                }
                let list = compare(list, CmpOps::Gte, &first.to_be_bytes());
                compare(list, CmpOps::Lte, &last.to_be_bytes())
            }
            Self::Frame(one) => one.encode(list),
            Self::Over { rate, burst } => {
                // `NFTA_LIMIT_RATE`, `_UNIT` (a second), `_BURST`, `_TYPE` (`NFT_LIMIT_PKTS`), and `_FLAGS` (`NFT_LIMIT_F_INV`).
                let [rate, unit] = [rate.get(), 1].map(|value| value.to_be_bytes().to_vec());
                let [burst, packets, over] = [*burst, 0, 1].map(|value| value.to_be_bytes().to_vec());
                other(list, c"limit", &[(1, rate), (2, unit), (3, burst), (4, packets), (5, over)])
            }
        }
    }
}

impl Verdict {
    pub(super) fn encode<'a>(&self, list: Expressions<'a>) -> Expressions<'a> {
        match self {
            Self::Accept => decide(list, VerdictCode::Accept),
            Self::Drop => {
                let list = list.nested_elem().nested_data_counter().end_nested().end_nested();
                decide(list, VerdictCode::Drop)
            }
            Self::Forward(link) => {
                let list = immediate(list, REGISTER, &link.index.to_ne_bytes());
                // `NFTA_FWD_SREG_DEV`.
                other(list, c"fwd", &[(1, REGISTER.to_be_bytes().to_vec())])
            }
            Self::Masquerade => list.nested_elem().push_name(c"masq").end_nested(),
            Self::DestinationNat(to, port) => {
                let mut list = immediate(list, REGISTER, &octets(*to));
                list = match port {
                    ToPort::Same => list,
                    ToPort::One(port) => immediate(list, SECOND_REGISTER, &port.to_be_bytes()),
                    ToPort::ByMap(_, map) => {
                        let load = list.nested_elem().nested_data_payload().push_dreg(SECOND_REGISTER);
                        let load =
                            load.push_base(PayloadBase::TransportHeader as u32).push_offset(2).push_len(2);
                        let list = load.end_nested().end_nested();
                        other(list, c"lookup", &look_up(map))
                    }
                };
                let nat = list.nested_elem().nested_data_nat().push_type(NAT_OF_DESTINATION);
                let nat = nat.push_family(nfproto(to.is_ipv6()).into()).push_reg_addr_min(REGISTER);
                let nat = match port {
                    ToPort::Same => nat,
                    ToPort::One(_) | ToPort::ByMap(..) => nat.push_reg_proto_min(SECOND_REGISTER),
                };
                nat.end_nested().end_nested()
            }
        }
    }
}

fn decide(list: Expressions<'_>, code: VerdictCode) -> Expressions<'_> {
    let immediate = list.nested_elem().nested_data_immediate().push_dreg(0);
    let verdict = immediate.nested_data().nested_verdict().push_code(code as u32);
    verdict.end_nested().end_nested().end_nested().end_nested()
}

/// Asks whether the packet's connection has any of these bits.
fn of_connection(list: Expressions<'_>, key: CtKeys, bits: u32) -> Expressions<'_> {
    let ct = list.nested_elem().nested_data_ct();
    let list = ct.push_key(key as u32).push_dreg(REGISTER).end_nested().end_nested();
    compare(masked(list, &bits.to_ne_bytes()), CmpOps::Neq, &[0; 4])
}

pub(super) fn meta(list: Expressions<'_>, key: MetaKeys) -> Expressions<'_> {
    list.nested_elem().nested_data_meta().push_key(key as u32).push_dreg(REGISTER).end_nested().end_nested()
}

pub(super) fn compare<'a>(list: Expressions<'a>, op: CmpOps, value: &[u8]) -> Expressions<'a> {
    let compare = list.nested_elem().nested_data_cmp().push_sreg(REGISTER).push_op(op as u32);
    compare.nested_data().push_value(value).end_nested().end_nested().end_nested()
}

pub(super) fn payload(list: Expressions<'_>, base: PayloadBase, offset: u32, len: u32) -> Expressions<'_> {
    let payload = list.nested_elem().nested_data_payload().push_dreg(REGISTER).push_base(base as u32);
    payload.push_offset(offset).push_len(len).end_nested().end_nested()
}

pub(super) fn masked<'a>(list: Expressions<'a>, mask: &[u8]) -> Expressions<'a> {
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

/// `NFTA_EXPR_NAME`, and `NFTA_EXPR_DATA`.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

/// What the register has is added to a set: `NFTA_DYNSET_SET_NAME`, `_OP` (`NFT_DYNSET_OP_ADD`), and `_SREG_KEY`.
fn remember(set: &str) -> [(u16, Vec<u8>); 3] {
    let number = |number: u32| number.to_be_bytes().to_vec();
    [(1, [set.as_bytes(), &[0]].concat()), (3, number(0)), (4, number(REGISTER))]
}

/// What the map has for the second register goes into the same: `NFTA_LOOKUP_SET`, `_SREG`, and `_DREG`. The bindings count these
/// otherwise than the kernel.
fn look_up(map: &str) -> [(u16, Vec<u8>); 3] {
    let register = || SECOND_REGISTER.to_be_bytes().to_vec();
    [(1, [map.as_bytes(), &[0]].concat()), (2, register()), (3, register())]
}

/// An expression that the bindings do not know: its attributes, by their numbers.
fn other<'a>(list: Expressions<'a>, name: &CStr, of: &[(u16, Vec<u8>)]) -> Expressions<'a> {
    let mut one = list.nested_elem().push_name(name);
    let buffer = one.as_vec_mut();
    let start = push_nested_header(buffer, EXPRESSION_DATA);
    buffer.extend(attributes(of));
    finalize_nested_header(buffer, start);
    one.end_nested()
}

/// Attributes by their numbers (netlink(7)).
fn attributes(of: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut buffer = Vec::new();
    for (number, value) in of {
        push_header(&mut buffer, *number, value.len() as u16);
        buffer.extend(value);
    }
    align(&mut buffer);
    buffer
}

/// Asks for the packet's protocol, behind any tag: its Ethernet type.
pub(super) fn of_protocol(list: Expressions<'_>, ethertype: libc::c_int) -> Expressions<'_> {
    compare(meta(list, MetaKeys::Protocol), CmpOps::Eq, &(ethertype as u16).to_be_bytes())
}

/// Asks for the protocol, as nft(8) does in a table of this family, and loads `len` bytes of the packet's address.
fn address_bytes(list: Expressions<'_>, family: Family, end: End, ipv6: bool, len: usize) -> Expressions<'_> {
    let list = match (end, family) {
        (End::ArpSender, _) => of_protocol(list, libc::ETH_P_ARP),
        (_, Family::Inet) => compare(meta(list, MetaKeys::Nfproto), CmpOps::Eq, &[nfproto(ipv6)]),
        (_, Family::Netdev) => of_protocol(list, if ipv6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP }),
    };
    let offset = match (end, ipv6) {
        (End::Source, false) => 12,
        (End::Source, true) => 8,
        (End::Destination, false) => 16,
        (End::Destination, true) => 24,
        (End::ArpSender, _) => 14,
    };
    payload(list, PayloadBase::NetworkHeader, offset, len as u32)
}

fn in_subnet(
    list: Expressions<'_>,
    family: Family,
    end: End,
    address: IpAddr,
    prefix: u8,
) -> Expressions<'_> {
    let (prefix, ipv6) = (usize::from(prefix), address.is_ipv6());
    let mut network = octets(address);
    if prefix != 0 && prefix.is_multiple_of(8) {
        // Whole bytes: only those are loaded, and nothing is masked.
        let bytes = prefix / 8;
        let list = address_bytes(list, family, end, ipv6, bytes);
        return compare(list, CmpOps::Eq, &network[..bytes]);
    }
    let mask: Vec<u8> = (0..network.len()).map(|byte| mask_of_byte(prefix, byte)).collect();
    for (octet, mask) in network.iter_mut().zip(&mask) {
        *octet &= mask;
    }
    let list = address_bytes(list, family, end, ipv6, network.len());
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
fn nfproto(ipv6: bool) -> u8 {
    if ipv6 { libc::NFPROTO_IPV6 as u8 } else { libc::NFPROTO_IPV4 as u8 }
}
