//! DHCP messages in their frames: what we understand of a request, and how an answer is laid out.

use std::net::Ipv4Addr;

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{
    ArpHardware, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress,
    EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use super::Lease;
use crate::HEADER_LEN;
use crate::answer::ANSWER_MAX;

/// How long the guest may keep the address, in seconds. It is the only one to have it; a day makes it ask now and then.
const LEASE_SECONDS: u32 = 24 * 60 * 60;

const ETHERNET_LEN: usize = 14;
pub(super) const IPV4_LEN: usize = 20;
const UDP_LEN: usize = 8;
/// The largest DHCP message that every client takes: 576 bytes of IP packet (RFC 2131 §2).
const MESSAGE_MAX: usize = ANSWER_MAX - HEADER_LEN - ETHERNET_LEN - IPV4_LEN - UDP_LEN;
/// The least that a BOOTP relay or client takes (RFC 1542 §2.1).
const MESSAGE_MIN: usize = 300;

/// What a client's identifier, the routes and the search domains may take together, in bytes: of the 308 for options, the others
/// take at most 53, headers and end included (message type 3, server 6, lease 6, mask 6, router 6, MTU 4, resolvers 14, broadcast 6,
/// end 1) and the headers of these three 6.
const CLIENT_ID_MAX: usize = 308 - 53 - 6;

pub(super) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const MAGIC: u32 = 0x6382_5363;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`, in the first byte of the header (virtio 1.2 §5.1.6).
const NEEDS_CSUM: u8 = 1;

/// The numbers of the options that smoltcp does not know or does not put in the right order (RFC 2132).
mod option {
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const MTU: u8 = 26;
    pub(super) const BROADCAST: u8 = 28;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const CLIENT_ID: u8 = 61;
    /// RFC 3397.
    pub(super) const SEARCH: u8 = 119;
    pub(super) const ROUTES: u8 = 121;
}

/// What a request says, as far as it matters here. Of an option that is there twice the first counts.
pub(super) struct Request<'a> {
    pub(super) kind: DhcpMessageType,
    pub(super) client: EthernetAddress,
    pub(super) id: u32,
    pub(super) broadcast: bool,
    /// `ciaddr`: the address that the client has and can be reached at. In messages that must not have one it is ignored.
    pub(super) address: Option<Ipv4Addr>,
    pub(super) wanted: Option<Ipv4Addr>,
    pub(super) server: Option<Ipv4Addr>,
    pub(super) client_id: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// A message of `client` itself to a server; none where it is malformed, relayed, or of another.
    fn parse<T: AsRef<[u8]>>(packet: &'a DhcpPacket<T>, client: EthernetAddress) -> Option<Self> {
        packet.check_len().ok()?;
        let ethernet = packet.hardware_type() == ArpHardware::Ethernet && packet.hardware_len() == 6;
        let ours = packet.client_hardware_address() == client && packet.relay_agent_ip().is_unspecified();
        if packet.opcode() != DhcpOpCode::Request || packet.magic_number() != MAGIC || !ethernet || !ours {
            return None;
        }
        let find = |kind| packet.options().find(|option| option.kind == kind).map(|option| option.data);
        let address = |kind| find(kind).map(|data| <[u8; 4]>::try_from(data).map(Ipv4Addr::from)).transpose();
        let &[kind] = find(option::MESSAGE_TYPE)? else { return None };
        let (kind, wanted) = (kind.into(), address(option::REQUESTED_ADDRESS).ok()?);
        let reachable = match kind {
            DhcpMessageType::Request => wanted.is_none(),
            kind => kind == DhcpMessageType::Inform,
        };
        let address_now = packet.client_ip();
        Some(Self {
            kind,
            client,
            id: packet.transaction_id(),
            broadcast: packet.flags().contains(DhcpFlags::BROADCAST),
            address: (reachable && !address_now.is_unspecified()).then_some(address_now),
            wanted,
            server: address(option::SERVER).ok()?,
            client_id: find(option::CLIENT_ID),
        })
    }
}

/// Calls `then` with the request in `frame` (whole, with its header), unless there is no valid one of this client to us.
pub(super) fn with_request<R>(
    frame: &[u8],
    lease: &Lease,
    then: impl FnOnce(&Request<'_>) -> Option<R>,
) -> Option<R> {
    let (header, frame) = frame.split_at_checked(HEADER_LEN)?;
    // The flags and the kind of segments: a request is never segmented.
    let &[flags, 0, ..] = header else { return None };
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let client = frame.src_addr();
    if frame.ethertype() != EthernetProtocol::Ipv4 || !client.is_unicast() {
        return None;
    }
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if packet.more_frags() || packet.frag_offset() != 0 {
        return None;
    }
    // Who leaves the checksum to us has put a part of it there.
    let mut sums = ChecksumCapabilities::default();
    sums.udp = if flags & NEEDS_CSUM == 0 { Checksum::Both } else { Checksum::None };
    let ip = Ipv4Repr::parse(&packet, &sums).ok()?;
    let to_us = [Ipv4Addr::BROADCAST, lease.host.broadcast(), lease.host.address()].contains(&ip.dst_addr);
    if ip.next_header != IpProtocol::Udp || !to_us {
        return None;
    }
    let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
    let udp = UdpRepr::parse(&datagram, &ip.src_addr.into(), &ip.dst_addr.into(), &sums).ok()?;
    if (udp.src_port, udp.dst_port) != (CLIENT_PORT, SERVER_PORT) {
        return None;
    }
    let message = DhcpPacket::new_checked(datagram.payload()).ok()?;
    let request = Request::parse(&message, client)?;
    match client == lease.client {
        true => lease.other.forget(),
        false if !lease.other.is(client) => return None,
        false => {}
    }
    then(&request)
}

impl Lease {
    /// Writes the answer, a whole frame with its header, and returns its length.
    pub(super) fn emit(
        &self,
        request: &Request<'_>,
        kind: DhcpMessageType,
        reply: &mut [u8; ANSWER_MAX],
    ) -> usize {
        let (refused, asked_only) = (kind == DhcpMessageType::Nak, request.kind == DhcpMessageType::Inform);
        let (mask, host) = (self.host.mask().octets(), self.host.address());
        let (broadcast, mtu) = (self.host.broadcast().octets(), self.mtu.to_be_bytes());
        // The mask is before the router, as RFC 2132 §3.3 wants; and RFC 6842 wants the client's identifier back.
        let router = host.octets();
        let mut options = [DhcpOption { kind: 0, data: &[] }; 7];
        let mut count = 0;
        let mut add = |kind, data| {
            options[count] = DhcpOption { kind, data };
            count += 1;
        };
        if let Some(id) = request.client_id {
            add(option::CLIENT_ID, id);
        }
        if !refused {
            add(option::MASK, &mask);
            add(option::ROUTER, &router);
            add(option::MTU, &mtu);
        }
        // Beside the longest identifiers there is no room for all the rest.
        let has_room = |len: usize| request.client_id.is_none_or(|id| id.len() + len <= CLIENT_ID_MAX);
        let dns = if has_room(0) { &self.dns[..] } else { &self.dns[..self.dns.len().min(8)] };
        if !refused && !dns.is_empty() {
            add(option::DNS, dns);
        }
        if !refused && self.host.prefix() <= 30 {
            add(option::BROADCAST, &broadcast);
        }
        // Alone in its subnet, the guest must be told that its router is on the link (RFC 3442): the way to the router, and
        // by it to everywhere. Most clients find out themselves.
        let [a, b, c, d] = router;
        let routes = [32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d];
        let alone = !refused && self.host.prefix() == 32 && has_room(routes.len());
        if alone {
            add(option::ROUTES, &routes);
        }
        let beside = if alone { routes.len() + 2 } else { 0 };
        if !refused && !self.search.is_empty() && has_room(self.search.len() + beside) {
            add(option::SEARCH, &self.search);
        }
        let leases = !refused && !asked_only;
        let answer = DhcpRepr {
            message_type: kind,
            transaction_id: request.id,
            secs: 0,
            client_hardware_address: request.client,
            client_ip: request.address.filter(|_| !refused).unwrap_or(Ipv4Addr::UNSPECIFIED),
            your_ip: if leases { self.guest } else { Ipv4Addr::UNSPECIFIED },
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: request.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(host),
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: leases.then_some(LEASE_SECONDS),
            renew_duration: None,
            rebind_duration: None,
            additional_options: &options[..count],
        };
        // RFC 2131 §4.1: to the address that the client has; else as it wishes, to all or to the address it gets.
        let to = match request.address {
            _ if refused => Ipv4Addr::BROADCAST,
            Some(address) => address,
            None if request.broadcast => Ipv4Addr::BROADCAST,
            None => self.guest,
        };
        let message_len = answer.buffer_len().clamp(MESSAGE_MIN, MESSAGE_MAX);
        self.emit_frame(&answer, message_len, to, reply)
    }

    fn emit_frame(
        &self,
        answer: &DhcpRepr<'_>,
        message_len: usize,
        to: Ipv4Addr,
        reply: &mut [u8; ANSWER_MAX],
    ) -> usize {
        reply.fill(0);
        let sums = ChecksumCapabilities::default();
        let ethernet = EthernetRepr {
            src_addr: self.server,
            dst_addr: if to.is_broadcast() {
                EthernetAddress::BROADCAST
            } else {
                answer.client_hardware_address
            },
            ethertype: EthernetProtocol::Ipv4,
        };
        let mut frame = EthernetFrame::new_unchecked(&mut reply[HEADER_LEN..]);
        ethernet.emit(&mut frame);
        let ip = Ipv4Repr {
            src_addr: self.host.address(),
            dst_addr: to,
            next_header: IpProtocol::Udp,
            payload_len: UDP_LEN + message_len,
            hop_limit: 64,
        };
        let packet = &mut frame.payload_mut()[..IPV4_LEN + UDP_LEN + message_len];
        let mut packet = Ipv4Packet::new_unchecked(packet);
        ip.emit(&mut packet, &sums);
        let udp = UdpRepr { src_port: SERVER_PORT, dst_port: CLIENT_PORT };
        let emit = |message: &mut [u8]| {
            // It has room for the options: 308 bytes, of which CLIENT_ID_MAX leaves what all others take.
            let emitted = answer.emit(&mut DhcpPacket::new_unchecked(message));
            debug_assert!(emitted.is_ok());
        };
        let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
        udp.emit(&mut datagram, &ip.src_addr.into(), &to.into(), message_len, emit, &sums);
        HEADER_LEN + ETHERNET_LEN + IPV4_LEN + UDP_LEN + message_len
    }
}
