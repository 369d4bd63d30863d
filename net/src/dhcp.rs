//! wirevm as the guest's DHCP server (RFC 2131), so that any distribution comes up without configuration.
//!
//! There is one client, the NIC itself, and one address for it, so there is no table of leases and nothing expires. What
//! the guest sends is hostile: the frame is copied once, and only the copy is looked at, for the guest may still write the
//! original.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{
    DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame,
    EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use crate::{Backend, HEADER_LEN, HostAddress, Iov, Mac, Offloads, Sent};

/// How long the guest may keep the address, in seconds. It is the only one to have it; a day makes it ask now and then.
const LEASE_SECONDS: u32 = 24 * 60 * 60;

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const UDP_LEN: usize = 8;
/// The largest DHCP message that every client takes: 576 bytes of IP packet (RFC 2131 §2).
const MESSAGE_MAX: usize = 576 - IPV4_LEN - UDP_LEN;
/// The least that a BOOTP relay or client takes (RFC 1542 §2.1).
const MESSAGE_MIN: usize = 300;
const REPLY_MAX: usize = HEADER_LEN + ETHERNET_LEN + IPV4_LEN + UDP_LEN + MESSAGE_MAX;
/// A request is one unfragmented Ethernet frame; what is larger is none.
const REQUEST_MAX: usize = HEADER_LEN + ETHERNET_LEN + 1500;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const MAGIC: u32 = 0x6382_5363;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`, in the first byte of the header (virtio 1.2 §5.1.6).
const NEEDS_CSUM: u8 = 1;

/// The numbers of the options that smoltcp does not know or does not put in the right order (RFC 2132).
mod option {
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const MTU: u8 = 26;
    pub(super) const BROADCAST: u8 = 28;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const CLIENT_ID: u8 = 61;
}

/// What the guest is told.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    client: EthernetAddress,
    server: EthernetAddress,
    guest: Ipv4Addr,
    host: HostAddress,
    mtu: u16,
}

impl Lease {
    /// For the NIC `mac`, the address after `host`, and `host` as its router and server, whose link has the Ethernet
    /// address `host_mac`; `mtu` is in bytes. None where the subnet has no other address.
    pub fn new(mac: Mac, host: HostAddress, host_mac: [u8; 6], mtu: u16) -> Option<Self> {
        let guest = host.guest()?;
        let (client, server) = (EthernetAddress(mac.octets()), EthernetAddress(host_mac));
        Some(Self { client, server, guest, host, mtu })
    }

    /// The guest's address.
    pub fn guest(&self) -> Ipv4Addr {
        self.guest
    }
}

/// A backend with a DHCP server in front of it, for the one NIC at its other end.
///
/// The guest's DHCP messages to everybody or to the host's address are answered, or end here where the RFC wants silence
/// (`DHCPRELEASE`, `DHCPDECLINE`). Every other frame goes through as it is: also what is not valid DHCP, what another
/// client behind the guest asks (a bridge in the guest: `chaddr` or the source is not this NIC's), what is relayed, and
/// what the guest says to another server. An answer goes to this guest and nowhere else, for it only ever comes out of
/// [`recv`](Backend::recv).
///
/// One answer waits at most: a client that asks again wants the newest.
pub struct Dhcp<B> {
    backend: B,
    lease: Lease,
    reply: [u8; REPLY_MAX],
    /// Bytes of `reply` that wait to be received; 0 for none.
    reply_len: usize,
}

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is not for us.
    Pass,
    /// It ends here without an answer.
    Silent,
    /// The answer is ready, with this length.
    Reply(usize),
}

impl<B: Backend> Dhcp<B> {
    /// Puts a server that gives `lease` in front of `backend`.
    pub fn new(backend: B, lease: Lease) -> Self {
        Self { backend, lease, reply: [0; REPLY_MAX], reply_len: 0 }
    }

    /// Looks at a frame that may be DHCP. Apart, so that the path of every other frame stays small.
    #[cold]
    fn answer(&mut self, frame: &Iov<'_>) -> Verdict {
        let mut copy = [0; REQUEST_MAX];
        if frame.len() > copy.len() {
            return Verdict::Pass;
        }
        let len = frame.read_at(0, &mut copy);
        let verdict = self.lease.answer(&copy[..len], &mut self.reply);
        if let Verdict::Reply(len) = verdict {
            self.reply_len = len;
        }
        verdict
    }
}

/// True where the frame is IPv4 without options, whole, UDP to port 67, by its first bytes: one look at a few of them.
#[inline]
fn may_be_dhcp(frame: &Iov<'_>) -> bool {
    const SERVER: [u8; 2] = SERVER_PORT.to_be_bytes();
    // The Ethernet type, the IPv4 header, the UDP ports.
    let mut bytes = [0; 2 + IPV4_LEN + 4];
    if frame.read_at(HEADER_LEN + 12, &mut bytes) < bytes.len() {
        return false;
    }
    // More fragments, or an offset; "don't fragment" is allowed.
    let fragment = bytes[8] & 0x3f != 0 || bytes[9] != 0;
    bytes[..3] == [0x08, 0x00, 0x45] && bytes[11] == 17 && bytes[24..] == SERVER && !fragment
}

impl<B: Backend> Backend for Dhcp<B> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.backend.fd()
    }

    #[inline]
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        if may_be_dhcp(frame) {
            match self.answer(frame) {
                Verdict::Pass => {}
                Verdict::Silent => return Ok(Sent::Gone),
                Verdict::Reply(_) => return Ok(Sent::Answered),
            }
        }
        self.backend.send(frame)
    }

    #[inline]
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        if self.reply_len == 0 {
            return self.backend.recv(space);
        }
        let len = std::mem::take(&mut self.reply_len);
        if space.len() < len {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        Ok(space.write_at(0, &self.reply[..len]))
    }

    fn offloads(&self) -> Offloads {
        self.backend.offloads()
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.backend.set_offloads(accepted)
    }

    // `vhost_fd` stays none: the kernel would carry the guest's questions past us.
}

/// What a request says, as far as it matters here. Of an option that is there twice the first counts.
struct Request<'a> {
    kind: DhcpMessageType,
    id: u32,
    broadcast: bool,
    /// `ciaddr`: the address that the client has and can be reached at; all zeroes for none.
    address: Ipv4Addr,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// A message of `client` itself to a server; none where it is malformed, relayed, or of another.
    fn parse<T: AsRef<[u8]>>(packet: &'a DhcpPacket<T>, client: EthernetAddress) -> Option<Self> {
        packet.check_len().ok()?;
        let ethernet =
            packet.hardware_type() == smoltcp::wire::ArpHardware::Ethernet && packet.hardware_len() == 6;
        let ours = packet.client_hardware_address() == client && packet.relay_agent_ip().is_unspecified();
        if packet.opcode() != DhcpOpCode::Request || packet.magic_number() != MAGIC || !ethernet || !ours {
            return None;
        }
        let find = |kind| packet.options().find(|option| option.kind == kind).map(|option| option.data);
        let address = |kind| find(kind).map(|data| <[u8; 4]>::try_from(data).map(Ipv4Addr::from)).transpose();
        let &[kind] = find(option::MESSAGE_TYPE)? else { return None };
        Some(Self {
            kind: kind.into(),
            id: packet.transaction_id(),
            broadcast: packet.flags().contains(DhcpFlags::BROADCAST),
            address: packet.client_ip(),
            wanted: address(option::REQUESTED_ADDRESS).ok()?,
            server: address(option::SERVER).ok()?,
            client_id: find(option::CLIENT_ID),
        })
    }
}

impl Lease {
    /// Answers `frame`, whole and with its header, into `reply`.
    fn answer(&self, frame: &[u8], reply: &mut [u8; REPLY_MAX]) -> Verdict {
        self.try_answer(frame, reply).unwrap_or(Verdict::Pass)
    }

    /// None: it is not a valid request of this client to us.
    fn try_answer(&self, frame: &[u8], reply: &mut [u8; REPLY_MAX]) -> Option<Verdict> {
        let (header, frame) = frame.split_at_checked(HEADER_LEN)?;
        // The flags and the kind of segments: a request is never segmented.
        let &[flags, 0, ..] = header else { return None };
        let frame = EthernetFrame::new_checked(frame).ok()?;
        if frame.ethertype() != EthernetProtocol::Ipv4 || frame.src_addr() != self.client {
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
        let to_us = [Ipv4Addr::BROADCAST, self.host.broadcast(), self.host.address()].contains(&ip.dst_addr);
        if ip.next_header != IpProtocol::Udp || !to_us {
            return None;
        }
        let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
        let udp = UdpRepr::parse(&datagram, &ip.src_addr.into(), &ip.dst_addr.into(), &sums).ok()?;
        if (udp.src_port, udp.dst_port) != (CLIENT_PORT, SERVER_PORT) {
            return None;
        }
        let message = DhcpPacket::new_checked(datagram.payload()).ok()?;
        let request = Request::parse(&message, self.client)?;
        self.decide(&request).map(|kind| match kind {
            Some(kind) => Verdict::Reply(self.emit(&request, kind, reply)),
            None => Verdict::Silent,
        })
    }

    /// RFC 2131 §4.3: the kind of answer; none inside for silence, none outside for a message to another server.
    fn decide(&self, request: &Request<'_>) -> Option<Option<DhcpMessageType>> {
        let to_another = request.server.is_some_and(|server| server != self.host.address());
        let verdict = |right| Some(if right { DhcpMessageType::Ack } else { DhcpMessageType::Nak });
        Some(match request.kind {
            DhcpMessageType::Discover => Some(DhcpMessageType::Offer),
            _ if to_another => return None,
            DhcpMessageType::Request => match (request.wanted, request.address) {
                // Selecting our offer, or after a reboot.
                (Some(wanted), _) => verdict(wanted == self.guest),
                (None, Ipv4Addr::UNSPECIFIED) => return None,
                // Renewing or rebinding.
                (None, address) => verdict(address == self.guest),
            },
            // It has its address from elsewhere and asks for the rest; the answer goes to that address.
            DhcpMessageType::Inform if !request.address.is_unspecified() => Some(DhcpMessageType::Ack),
            DhcpMessageType::Decline => {
                log::warn!("the guest declines {}: somebody else answers for it", self.guest);
                None
            }
            DhcpMessageType::Release => None,
            _ => return None,
        })
    }

    /// Writes the answer, a whole frame with its header, and returns its length.
    fn emit(&self, request: &Request<'_>, kind: DhcpMessageType, reply: &mut [u8; REPLY_MAX]) -> usize {
        let (refused, asked_only) = (kind == DhcpMessageType::Nak, request.kind == DhcpMessageType::Inform);
        let (mask, host) = (self.host.mask().octets(), self.host.address());
        let (broadcast, mtu) = (self.host.broadcast().octets(), self.mtu.to_be_bytes());
        // The mask is before the router, as RFC 2132 §3.3 wants; and RFC 6842 wants the client's identifier back.
        let router = host.octets();
        let mut options = [DhcpOption { kind: 0, data: &[] }; 5];
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
        if !refused && self.host.prefix() <= 30 {
            add(option::BROADCAST, &broadcast);
        }
        let leases = !refused && !asked_only;
        let answer = DhcpRepr {
            message_type: kind,
            transaction_id: request.id,
            secs: 0,
            client_hardware_address: self.client,
            client_ip: if refused { Ipv4Addr::UNSPECIFIED } else { request.address },
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
            Ipv4Addr::UNSPECIFIED if request.broadcast => Ipv4Addr::BROADCAST,
            Ipv4Addr::UNSPECIFIED => self.guest,
            address => address,
        };
        let message_len = answer.buffer_len().max(MESSAGE_MIN);
        self.emit_frame(&answer, message_len, to, reply)
    }

    fn emit_frame(
        &self,
        answer: &DhcpRepr<'_>,
        message_len: usize,
        to: Ipv4Addr,
        reply: &mut [u8; REPLY_MAX],
    ) -> usize {
        reply.fill(0);
        let sums = ChecksumCapabilities::default();
        let ethernet = EthernetRepr {
            src_addr: self.server,
            dst_addr: if to.is_broadcast() { EthernetAddress::BROADCAST } else { self.client },
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
            // It has room for the options: at most 290 bytes besides a client's identifier of at most 255.
            let emitted = answer.emit(&mut DhcpPacket::new_unchecked(message));
            debug_assert!(emitted.is_ok());
        };
        let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
        udp.emit(&mut datagram, &ip.src_addr.into(), &to.into(), message_len, emit, &sums);
        HEADER_LEN + ETHERNET_LEN + IPV4_LEN + UDP_LEN + message_len
    }
}
