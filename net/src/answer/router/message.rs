//! Router solicitations and advertisements in their frames.

use std::net::Ipv6Addr;

use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv6Message, Icmpv6Packet, IpProtocol,
    Ipv6Packet, Ipv6Repr, NdiscOption, NdiscOptionRepr, NdiscPrefixInfoFlags, NdiscPrefixInformation,
    NdiscRepr, NdiscRouterFlags,
};

use super::Router;
use crate::answer::ANSWER_MAX;
use crate::{Domain, HEADER_LEN, HostV6};

const ETHERNET_LEN: usize = 14;
const IPV6_LEN: usize = 40;
/// A router advertisement without options (RFC 4861 §4.2).
const ADVERT_LEN: usize = 16;

/// The hop limit of neighbour discovery: nobody has forwarded it (RFC 4861 §3.1).
const HOP_LIMIT: u8 = 255;
/// The hop limit for what the guest sends (IANA's IP option numbers, "Current recommended default TTL").
const GUEST_HOP_LIMIT: u8 = 64;
/// A lifetime without end (RFC 4861 §4.6.2, RFC 8106 §5.1).
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// The option of the resolvers, which smoltcp does not know (RFC 8106 §5.1).
const RDNSS: u8 = 25;

/// The option of the search domains (RFC 8106 §5.2).
const DNSSL: u8 = 31;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`, in the first byte of the header (virtio 1.2 §5.1.6).
const NEEDS_CSUM: u8 = 1;

/// True where `bytes`, a frame's from its Ethernet type on, may be a router solicitation.
#[inline]
pub(crate) fn may_be_solicitation(bytes: &[u8]) -> bool {
    bytes.len() > 2 + IPV6_LEN
        && bytes[..2] == [0x86, 0xdd]
        && bytes[8] == u8::from(IpProtocol::Icmpv6)
        && bytes[2 + IPV6_LEN] == u8::from(Icmpv6Message::RouterSolicit)
}

/// Who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    mac: EthernetAddress,
    address: Ipv6Addr,
}

impl Asker {
    /// Everybody on the link.
    pub(super) const ALL: Self = Self { mac: EthernetAddress([0x33, 0x33, 0, 0, 0, 1]), address: ALL_NODES };
}

/// Who asks with the router solicitation in `frame` (whole, with its header), unless there is no valid one (RFC 4861 §6.1.1)
/// to all routers or to `router`.
pub(super) fn asker(frame: &[u8], router: Ipv6Addr) -> Option<Asker> {
    let (header, frame) = frame.split_at_checked(HEADER_LEN)?;
    // The flags and the kind of segments: a solicitation is never segmented.
    let &[flags, 0, ..] = header else { return None };
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv6 {
        return None;
    }
    let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
    let ip = Ipv6Repr::parse(&packet).ok()?;
    let to_us = [ALL_ROUTERS, router].contains(&ip.dst_addr);
    if ip.next_header != IpProtocol::Icmpv6 || ip.hop_limit != HOP_LIMIT || !to_us {
        return None;
    }
    let message = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    // Who leaves the checksum to us has put a part of it there.
    let right = flags & NEEDS_CSUM != 0 || message.verify_checksum(&ip.src_addr, &ip.dst_addr);
    if message.msg_type() != Icmpv6Message::RouterSolicit || message.msg_code() != 0 || !right {
        return None;
    }
    let NdiscRepr::RouterSolicit { lladdr } = NdiscRepr::parse(&message).ok()? else { return None };
    match ip.src_addr {
        Ipv6Addr::UNSPECIFIED if lladdr.is_some() => None,
        address if address.is_unicast_link_local() && frame.src_addr().is_unicast() => {
            Some(Asker { mac: frame.src_addr(), address })
        }
        // Without an address that an answer could go to.
        _ => Some(Asker::ALL),
    }
}

/// The options of an advertisement.
#[derive(Default)]
pub(super) struct Options(Vec<u8>);

impl Options {
    /// The link's own: its Ethernet address, and its MTU in bytes.
    pub(super) fn push_link(&mut self, mac: EthernetAddress, mtu: u16) {
        self.push(&NdiscOptionRepr::SourceLinkLayerAddr(mac.into()));
        self.push(&NdiscOptionRepr::Mtu(mtu.into()));
    }

    /// The subnet of `host`.
    pub(super) fn push_prefix(&mut self, host: HostV6, flags: NdiscPrefixInfoFlags) {
        self.push(&NdiscOptionRepr::PrefixInformation(NdiscPrefixInformation {
            prefix_len: host.prefix(),
            flags,
            valid_lifetime: FOR_EVER,
            preferred_lifetime: FOR_EVER,
            prefix: host.network(),
        }));
    }

    /// The resolvers, if there are any.
    pub(super) fn push_dns(&mut self, dns: &[Ipv6Addr]) {
        if dns.is_empty() {
            return;
        }
        // Two bytes that are reserved, then the lifetime.
        let mut data = vec![0; 2];
        data.extend((FOR_EVER.secs() as u32).to_be_bytes());
        data.extend(dns.iter().flat_map(Ipv6Addr::octets));
        self.push(&NdiscOptionRepr::Unknown { type_: RDNSS, length: 1 + 2 * dns.len() as u8, data: &data });
    }

    /// The search domains, if there are any.
    pub(super) fn push_search(&mut self, search: &[Domain]) {
        if search.is_empty() {
            return;
        }
        let mut data = vec![0; 2];
        data.extend((FOR_EVER.secs() as u32).to_be_bytes());
        data.extend(search.iter().flat_map(Domain::octets));
        // Whole units of 8 octets, the two of type and length among them.
        data.resize((data.len() + 2).next_multiple_of(8) - 2, 0);
        let length = ((data.len() + 2) / 8) as u8;
        self.push(&NdiscOptionRepr::Unknown { type_: DNSSL, length, data: &data });
    }

    fn push(&mut self, option: &NdiscOptionRepr<'_>) {
        let start = self.0.len();
        self.0.resize(start + option.buffer_len(), 0);
        option.emit(&mut NdiscOption::new_unchecked(&mut self.0[start..]));
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl Router {
    /// Writes the advertisement, a whole frame with its header, and returns its length. `lifetime` is in seconds.
    pub(super) fn emit(&self, to: Asker, lifetime: u16, answer: &mut [u8; ANSWER_MAX]) -> usize {
        answer.fill(0);
        let message_len = ADVERT_LEN + self.options.len();
        let len = HEADER_LEN + ETHERNET_LEN + IPV6_LEN + message_len;
        let mut frame = EthernetFrame::new_unchecked(&mut answer[HEADER_LEN..len]);
        EthernetRepr { src_addr: self.mac, dst_addr: to.mac, ethertype: EthernetProtocol::Ipv6 }
            .emit(&mut frame);
        let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
        Ipv6Repr {
            src_addr: self.address,
            dst_addr: to.address,
            next_header: IpProtocol::Icmpv6,
            payload_len: message_len,
            hop_limit: HOP_LIMIT,
        }
        .emit(&mut packet);
        let mut message = Icmpv6Packet::new_unchecked(packet.payload_mut());
        message.set_msg_type(Icmpv6Message::RouterAdvert);
        message.set_current_hop_limit(GUEST_HOP_LIMIT);
        // No DHCPv6 here: neither addresses nor anything else come that way.
        message.set_router_flags(NdiscRouterFlags::empty());
        message.set_router_lifetime(Duration::from_secs(lifetime.into()));
        message.payload_mut().copy_from_slice(&self.options);
        message.fill_checksum(&self.address, &to.address);
        len
    }
}
