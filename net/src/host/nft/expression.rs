//! What a rule asks and does, as the kernel's expressions (`linux/netfilter/nf_tables.h`): each as `nft` encodes it, so that
//! `nft list` shows what [`Table::steps`](super::Table::steps) says.

use std::net::IpAddr;

use netlink_bindings::nftables::{
    CmpOps, CtKeys, FibFlags, MetaKeys, PayloadBase, PushExprListAttrs, PushRuleAttrs, VerdictCode,
};

use super::{Match, Verdict};

/// The registers that expressions hand values on in (`linux/netfilter/nf_tables.h`, `enum nft_registers`).
const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`; the bindings count it one too low.
const ADDRESS_TYPE: u32 = 3;
/// `IPS_DST_NAT` of a connection's status (`linux/netfilter/nf_conntrack_common.h`).
const DESTINATION_NAT_DONE: u32 = 1 << 5;
/// `NF_CT_STATE_INVALID_BIT`, and `NF_CT_STATE_BIT` of two others (`linux/netfilter/nf_conntrack_common.h`).
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 1 << 1;
const RELATED: u32 = 1 << 2;
/// `NFT_NAT_DNAT`.
const NAT_OF_DESTINATION: u32 = 1;

pub(super) type Expressions<'a> = PushExprListAttrs<PushRuleAttrs<&'a mut Vec<u8>>>;

impl Match {
    pub(super) fn encode<'a>(&self, list: Expressions<'a>) -> Expressions<'a> {
        match self {
            Self::InLink(link) => compare(meta(list, MetaKeys::Iif), CmpOps::Eq, &link.index.to_ne_bytes()),
            Self::OutLink(link) => compare(meta(list, MetaKeys::Oif), CmpOps::Eq, &link.index.to_ne_bytes()),
            Self::OutOtherLink(link) => {
                compare(meta(list, MetaKeys::Oif), CmpOps::Neq, &link.index.to_ne_bytes())
            }
            Self::Ipv6(ipv6) => compare(meta(list, MetaKeys::Nfproto), CmpOps::Eq, &[nfproto(*ipv6)]),
            Self::Source(address, prefix) => in_subnet(list, *address, *prefix, [12, 8]),
            Self::Destination(address, prefix) => in_subnet(list, *address, *prefix, [16, 24]),
            Self::OtherDestination(address) => {
                let octets = octets(*address);
                let list = address_bytes(list, *address, [16, 24], octets.len());
                compare(list, CmpOps::Neq, &octets)
            }
            Self::SourceIsLocal => is_local(list, FibFlags::Saddr),
            Self::DestinationIsLocal => is_local(list, FibFlags::Daddr),
            Self::DestinationTranslated => of_connection(list, CtKeys::Status, DESTINATION_NAT_DONE),
            Self::Known => of_connection(list, CtKeys::State, ESTABLISHED | RELATED),
            Self::Invalid => of_connection(list, CtKeys::State, INVALID),
            Self::Port(protocol, port) => {
                let list = compare(meta(list, MetaKeys::L4Proto), CmpOps::Eq, &[protocol.number()]);
                let list = payload(list, PayloadBase::TransportHeader, 2, 2);
                compare(list, CmpOps::Eq, &port.to_be_bytes())
            }
            Self::Frame(one) => one.encode(list),
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
            Self::Masquerade => list.nested_elem().push_name(c"masq").end_nested(),
            Self::DestinationNat(to) => {
                let list = immediate(list, REGISTER, &octets(to.ip()));
                let list = immediate(list, SECOND_REGISTER, &to.port().to_be_bytes());
                let nat = list.nested_elem().nested_data_nat().push_type(NAT_OF_DESTINATION);
                let nat = nat.push_family(nfproto(to.is_ipv6()).into());
                let nat = nat.push_reg_addr_min(REGISTER).push_reg_proto_min(SECOND_REGISTER);
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

/// Asks for the family of `address` and loads `len` bytes of the packet's address at `offsets`, for IPv4 and for IPv6.
fn address_bytes(list: Expressions<'_>, address: IpAddr, offsets: [u32; 2], len: usize) -> Expressions<'_> {
    let offset = offsets[usize::from(address.is_ipv6())];
    let list = compare(meta(list, MetaKeys::Nfproto), CmpOps::Eq, &[nfproto(address.is_ipv6())]);
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

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
fn nfproto(ipv6: bool) -> u8 {
    if ipv6 { libc::NFPROTO_IPV6 as u8 } else { libc::NFPROTO_IPV4 as u8 }
}
