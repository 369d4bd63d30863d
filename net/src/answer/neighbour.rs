//! Who is at the other end of a wire that has no neighbours: answers to ARP (RFC 826) and to neighbour solicitations of
//! IPv6 (RFC 4861), for a guest that sees Ethernet where there is only IP.
//!
//! The guest has one neighbour, its gateway, with a MAC that wirevm makes up and that never leaves this wire. What the
//! guest sends is hostile: the frame is copied once, and only the copy is looked at.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
};

use crate::answer::octets;
use crate::{HEADER_LEN, Iov, Mac};

const ETHERNET_LEN: usize = 14;
const ARP_LEN: usize = 28;
const IPV6_LEN: usize = 40;
/// A neighbour advertisement with the gateway's MAC (RFC 4861 §4.4).
const ADVERTISEMENT_LEN: usize = 32;
/// The hop limit of whatever was not forwarded (RFC 4861 §7.1.1).
const NOT_FORWARDED: u8 = 255;
/// A question is one unfragmented Ethernet frame; what is larger is none.
const QUESTION_MAX: usize = HEADER_LEN + ETHERNET_LEN + 1500;
const REPLY_MAX: usize = HEADER_LEN + ETHERNET_LEN + IPV6_LEN + ADVERTISEMENT_LEN;
/// Answers that wait at most. A guest that asks more without receiving asks again: so do all that lose a frame.
const WAITING_MAX: usize = 16;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`, in the first byte of the header (virtio 1.2 §5.1.6).
const NEEDS_CSUM: u8 = 1;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The guest's only neighbour, behind which everything else is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Gateway {
    #[serde(with = "octets")]
    mac: EthernetAddress,
    link_local: Ipv6Addr,
    hosts: Vec<IpAddr>,
}

impl Gateway {
    /// For the NIC `guest`: its MAC with another first byte, locally administered. It stands for the addresses `hosts`
    /// and its own link-local one, and, in a family of which there is none in `hosts`, for every address that the guest
    /// does not claim: then somebody else set the host's end up.
    pub(crate) fn new(guest: Mac, hosts: Vec<IpAddr>) -> Self {
        let mut octets = guest.octets();
        octets[0] = (octets[0] | 2) ^ 4;
        let [a, b, c, d, e, f] = octets;
        // RFC 4291, appendix A: the bit that says "universal" is inverted.
        let id = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        Self { mac: EthernetAddress(octets), link_local: id.into(), hosts }
    }

    /// The same with another link-local address: the host's own on its link, so that a guest reaches the host by it.
    pub(crate) fn with_link_local(self, address: Ipv6Addr) -> Self {
        Self { link_local: address, ..self }
    }

    /// Its link-local address: made of its MAC, unless it was given another one.
    pub(crate) fn link_local(&self) -> Ipv6Addr {
        self.link_local
    }

    /// Its MAC.
    pub(crate) fn mac(&self) -> [u8; 6] {
        self.mac.0
    }

    /// True where it answers for `wanted` when `from` asks.
    fn stands_for(&self, wanted: IpAddr, from: IpAddr) -> bool {
        // Who asks for its own address tells that it has it (RFC 5227 §3), and who has none asks whether it may take it
        // (§2.1.1; RFC 4862 §5.4.2): it may, unless it is one of ours.
        if wanted == from {
            return false;
        }
        if self.hosts.contains(&wanted) || wanted == self.link_local {
            return true;
        }
        let known = self.hosts.iter().any(|host| host.is_ipv4() == wanted.is_ipv4());
        let nobody = match wanted {
            IpAddr::V4(v4) => v4.is_broadcast() || v4.is_loopback(),
            IpAddr::V6(v6) => v6.is_loopback(),
        };
        let nobody = nobody || wanted.is_multicast() || wanted.is_unspecified();
        !known && !nobody && !from.is_unspecified()
    }

    /// Answers `frame`, whole and with its header, into `reply`, and returns the answer's length; none for silence.
    fn answer(&self, frame: &[u8], reply: &mut [u8; REPLY_MAX]) -> Option<usize> {
        let (header, frame) = frame.split_at_checked(HEADER_LEN)?;
        // The flags and the kind of segments: a question is never segmented.
        let &[flags, 0, ..] = header else { return None };
        let frame = EthernetFrame::new_checked(frame).ok()?;
        if !frame.src_addr().is_unicast() {
            return None;
        }
        reply.fill(0);
        match frame.ethertype() {
            EthernetProtocol::Arp => self.answer_arp(&frame, reply),
            EthernetProtocol::Ipv6 => self.answer_solicitation(&frame, flags & NEEDS_CSUM == 0, reply),
            _ => None,
        }
    }

    fn answer_arp(&self, frame: &EthernetFrame<&[u8]>, reply: &mut [u8; REPLY_MAX]) -> Option<usize> {
        let packet = ArpPacket::new_checked(frame.payload()).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        let ours = self.stands_for(target_protocol_addr.into(), source_protocol_addr.into());
        if !ours || !source_hardware_addr.is_unicast() {
            return None;
        }
        let answer = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: self.mac,
            source_protocol_addr: target_protocol_addr,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        let mut frame = self.start(source_hardware_addr, EthernetProtocol::Arp, reply);
        answer.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        Some(HEADER_LEN + ETHERNET_LEN + ARP_LEN)
    }

    /// `summed`: the checksum is there to be verified; else it was left to us, and is none yet.
    fn answer_solicitation(
        &self,
        frame: &EthernetFrame<&[u8]>,
        summed: bool,
        reply: &mut [u8; REPLY_MAX],
    ) -> Option<usize> {
        let mut sums = ChecksumCapabilities::default();
        sums.icmpv6 = if summed { Checksum::Both } else { Checksum::None };
        let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
        let ip = Ipv6Repr::parse(&packet).ok()?;
        let direct = (ip.next_header, ip.hop_limit) == (IpProtocol::Icmpv6, NOT_FORWARDED);
        if !direct || ip.src_addr.is_multicast() {
            return None;
        }
        let message = Icmpv6Packet::new_checked(packet.payload()).ok()?;
        let message = Icmpv6Repr::parse(&ip.src_addr, &ip.dst_addr, &message, &sums).ok()?;
        let Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, lladdr }) = message else {
            return None;
        };
        let probe = ip.src_addr.is_unspecified();
        // RFC 4861 §7.1.1: who has no address asks the group of the address, and can name no link-layer address for none.
        if probe && (lladdr.is_some() || ip.dst_addr != solicited_node(target_addr)) {
            return None;
        }
        if !self.stands_for(target_addr.into(), ip.src_addr.into()) {
            return None;
        }
        // RFC 4861 §7.2.4: who has no address hears it with everybody.
        let (to, asker) = match probe {
            true => (ALL_NODES, multicast(ALL_NODES.into())?),
            false => (ip.src_addr, frame.src_addr()),
        };
        let solicited = if probe { NdiscNeighborFlags::empty() } else { NdiscNeighborFlags::SOLICITED };
        let answer = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
            flags: NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE | solicited,
            target_addr,
            lladdr: Some(self.mac.into()),
        });
        let ip = Ipv6Repr {
            src_addr: target_addr,
            dst_addr: to,
            next_header: IpProtocol::Icmpv6,
            payload_len: ADVERTISEMENT_LEN,
            hop_limit: NOT_FORWARDED,
        };
        let mut frame = self.start(asker, EthernetProtocol::Ipv6, reply);
        let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet);
        let mut message = Icmpv6Packet::new_unchecked(packet.payload_mut());
        answer.emit(&ip.src_addr, &ip.dst_addr, &mut message, &ChecksumCapabilities::default());
        Some(HEADER_LEN + ETHERNET_LEN + IPV6_LEN + ADVERTISEMENT_LEN)
    }

    /// The frame of an answer, with its Ethernet header.
    fn start<'a>(
        &self,
        to: EthernetAddress,
        ethertype: EthernetProtocol,
        reply: &'a mut [u8; REPLY_MAX],
    ) -> EthernetFrame<&'a mut [u8]> {
        let mut frame = EthernetFrame::new_unchecked(&mut reply[HEADER_LEN..]);
        EthernetRepr { src_addr: self.mac, dst_addr: to, ethertype }.emit(&mut frame);
        frame
    }
}

/// The group in which an address is solicited (RFC 4291 §2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c].into()
}

/// The Ethernet address for all who listen to `address` (RFC 1112 §6.4, RFC 2464 §7); none where it is one host's.
pub(crate) fn multicast(address: IpAddr) -> Option<EthernetAddress> {
    match address {
        IpAddr::V4(v4) if v4.is_broadcast() => Some(EthernetAddress::BROADCAST),
        IpAddr::V4(v4) if v4.is_multicast() => {
            let [_, a, b, c] = v4.octets();
            Some(EthernetAddress([0x01, 0x00, 0x5e, a & 0x7f, b, c]))
        }
        IpAddr::V6(v6) if v6.is_multicast() => {
            let [.., a, b, c, d] = v6.octets();
            Some(EthernetAddress([0x33, 0x33, a, b, c, d]))
        }
        _ => None,
    }
}

/// Answers that wait until the guest receives.
pub(crate) struct Replies {
    waiting: VecDeque<([u8; REPLY_MAX], usize)>,
}

impl Replies {
    /// Room for [`WAITING_MAX`], allocated once.
    pub(crate) fn new() -> Self {
        Self { waiting: VecDeque::with_capacity(WAITING_MAX) }
    }

    /// Looks at a frame of the guest, header first, and keeps the answer that `gateway` has to it; false where it has
    /// none, or where too many wait.
    #[cold]
    pub(crate) fn answer(&mut self, gateway: &Gateway, frame: &Iov<'_>) -> bool {
        let (mut question, mut reply) = ([0; QUESTION_MAX], [0; REPLY_MAX]);
        if frame.len() > question.len() || self.waiting.len() == WAITING_MAX {
            return false;
        }
        let len = frame.read_at(0, &mut question);
        let answer = gateway.answer(&question[..len], &mut reply);
        self.waiting.extend(answer.map(|len| (reply, len)));
        answer.is_some()
    }

    /// Receives the oldest answer, as [`Backend::recv`](crate::Backend::recv) does; none where none waits.
    #[inline]
    pub(crate) fn recv(&mut self, space: &mut Iov<'_>) -> Option<io::Result<usize>> {
        let (reply, len) = self.waiting.pop_front()?;
        Some(match space.len() < len {
            true => Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
            false => Ok(space.write_at(0, &reply[..len])),
        })
    }
}
