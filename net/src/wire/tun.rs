//! The tun: layer 3 on the host, and Ethernet still for the guest.
//!
//! A frame of the guest has its Ethernet header left out on the way to the host, and a packet of the host gets one on the
//! way in. Neither moves a byte of the packet: the system call gets a list of buffers that begins behind where the Ethernet
//! header is or will be, 26 bytes into the guest's own, with a virtio-net header of ours before it.
//!
//! What a virtio-net header says is counted from the frame's start, so it moves with it: `csum_start`, and `hdr_len` where
//! it is given, are less by 14 on the host's side (virtio 1.2 §5.1.6.2).
//!
//! **Invariant: Ethernet ends here.** ARP and neighbour discovery are answered or dropped; what is neither they nor IP is
//! counted and dropped. This is no guard: a guest may hide a message behind an extension header, or write while we look. But
//! the host has no neighbours on a tun, and takes no router from one of ours (`Wiring::refuse_routers`).

#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smoltcp::wire::EthernetAddress;
use vm_memory::VolatileSlice;

use crate::answer::neighbour::{self, Gateway, Replies};
use crate::config::guests;
use crate::error::HostError;
use crate::host::guard::Own;
use crate::host::wire_link::Role;
use crate::host::{Host, Peer, Wiring};
use crate::wire::made::{self, Made, Parts};
use crate::wire::routed::{self, End, Guest};
use crate::wire::tuntap::{self, TunDevice};
use crate::{
    Backend, Error, HEADER_LEN, HostAddress, Iov, IovBuffer, MTU, Mac, NetConfig, Offloads, RxFilter, Sent,
    TunConfig, TunMode,
};

const ETHERNET_LEN: usize = 14;
/// What precedes the packet in the guest's buffers.
const FRONT: usize = HEADER_LEN + ETHERNET_LEN;
const IPV6_LEN: usize = 40;
/// As much of a packet as tells its kind: an IPv6 header and the type of an ICMPv6 message behind it.
const LOOK: usize = IPV6_LEN + 1;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];
const ICMPV6: u8 = 58;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`, in the first byte of the header (virtio 1.2 §5.1.6).
const NEEDS_CSUM: u8 = 1;
/// Offset of `hdr_len` in the header.
const HDR_LEN: usize = 2;
/// Offset of `csum_start` in the header.
const CSUM_START: usize = 6;

/// Makes the wire of a tun for the NIC `mac`.
pub(crate) fn open(config: &TunConfig, mac: Mac, all: &NetConfig, host: &Host) -> Result<Made, Error> {
    let (mtu, queues) = (all.mtu, all.queues.number());
    let wiring = Wiring::begin(host, all.netns.as_ref())?;
    let (device, others) = TunDevice::open(TunMode::Tun, config.name.as_ref(), queues, &wiring)?;
    // Here, so that a failure drops the wiring before the tun: an address goes before its link does.
    let mut wiring = wiring;
    let name = device.name().to_owned();
    let stays = device.is_persistent();
    if !stays {
        let command = tuntap::line(TunMode::Tun, &name, queues);
        wiring.tell(command, "the guest's end of the wire; it goes when we go");
    }
    let link = wiring.netlink().link(&name);
    let link = link.map_err(|refusal| HostError::Ask { what: format!("the link {name}"), refusal })?;
    let link = link.ok_or_else(|| HostError::LinkGone { name: name.clone() })?;
    let guest_mtu = mtu.unwrap_or(u16::try_from(link.mtu).unwrap_or(*MTU.end()));
    // Somebody who made the tun has addressed it too, if he wanted to.
    let hosts = match &config.hosts[..] {
        [] if config.dhcp && !stays => routed::pick(&mut wiring, &link, guest_mtu.into())?,
        hosts => hosts.to_vec(),
    };
    let all_hosts = hosts.clone();
    if !stays {
        wiring.refuse_routers(&link.id);
    }
    if all.guard {
        let only = |host: &HostAddress| guests::only(&config.guests, *host, config.dhcp);
        let owns: Vec<_> = hosts.iter().map(|host| Own::new(*host, only(host))).collect();
        wiring.guard(&link, stays, &owns, false)?;
    }
    let (alone, in_subnets): (Vec<_>, Vec<_>) = hosts.iter().partition(|host| host.guest().is_none());
    wiring.check_guests(&config.guests)?;
    wiring.warn_of_other_routes(&link.id, &hosts)?;
    wiring.set_link(&link, stays, mtu, &in_subnets)?;
    for host in alone {
        if let Some(guest) = config.guest(host) {
            wiring.set_peer(&link, stays, Peer { host, guest })?;
        }
    }

    let mut gateway = Gateway::new(mac, hosts.iter().map(|host| host.address()).collect());
    // The host's own, so that the guest reaches it there; but any will do for a router.
    if let Some(address) = routed::link_local(&mut wiring, &link, &hosts)? {
        gateway = gateway.with_link_local(address);
    }
    let end = End { link: &link.id, mac: gateway.mac(), link_local: Some(gateway.link_local()) };
    let hosts = if config.dhcp { &hosts[..] } else { &[] };
    let guest = Guest {
        mac,
        mtu: guest_mtu,
        resolves: false,
        dns: &config.dns,
        given: &config.guests,
        has_dns_port: false,
    };
    let guest_config = routed::guest_config(&mut wiring, end, hosts, guest);
    wiring.release_lock();
    let mut parts = Parts::new(&name, mac, guest_mtu, device.offloads());
    parts.spec.gateway = Some(gateway);
    (parts.spec.lease, parts.spec.router, parts.forwarding) =
        (guest_config.lease, guest_config.router, guest_config.forwarding);
    parts.links.push(wiring.wire_link(&link.id, Role::Guest));
    (parts.hosts, parts.stays) = (all_hosts, stays);
    Ok(Made { ends: made::ends(device, others), parts, wiring })
}

/// Ethernet for the guest over a backend of packets: what `packets` sends and receives has no Ethernet header between its
/// virtio-net header and its packet.
pub(crate) struct Tun<B> {
    packets: B,
    guest: Mac,
    gateway: Gateway,
    replies: Replies,
    /// The list of buffers for the system call.
    buffers: IovBuffer,
    not_ip: Arc<AtomicU64>,
}

/// Where a frame of the guest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameTarget {
    /// To the host, as a packet.
    Packet,
    /// No further: it is about neighbours.
    Neighbour,
    /// Nowhere.
    Nowhere,
}

impl<B: Backend> Tun<B> {
    /// Puts `gateway` at the other end of the wire of the NIC `guest`, and `packets` behind it.
    pub(crate) fn new(packets: B, guest: Mac, gateway: Gateway) -> Self {
        let (replies, buffers, not_ip) = (Replies::new(), IovBuffer::new(), Arc::default());
        Self { packets, guest, gateway, replies, buffers, not_ip }
    }

    /// The same in front of another queue of the link, with answers of its own.
    pub(crate) fn beside<C: Backend>(&self, packets: C) -> Tun<C> {
        let not_ip = Arc::clone(&self.not_ip);
        Tun { not_ip, ..Tun::new(packets, self.guest, self.gateway.clone()) }
    }

    /// How many frames of the guest went nowhere, for they were not IP: counted on, wherever the tun is.
    pub(crate) fn not_ip(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.not_ip)
    }
}

/// The way of a frame by its first bytes, virtio-net header included.
#[inline]
fn target_of(head: &[u8]) -> FrameTarget {
    let Some((front, packet @ [first, ..])) = head.split_at_checked(FRONT) else {
        return FrameTarget::Nowhere;
    };
    let ethertype = [front[FRONT - 2], front[FRONT - 1]];
    match (ethertype, first >> 4) {
        (ARP, _) => FrameTarget::Neighbour,
        (IPV4, 4) => FrameTarget::Packet,
        // Neighbour discovery is what comes from a neighbour, and of these types (RFC 4861 §4, §6.1, §7.1).
        (IPV6, 6) if packet.len() == LOOK && packet[6..8] == [ICMPV6, 255] => match packet[IPV6_LEN] {
            133..=137 => FrameTarget::Neighbour,
            _ => FrameTarget::Packet,
        },
        (IPV6, 6) => FrameTarget::Packet,
        _ => FrameTarget::Nowhere,
    }
}

/// The header for the host of a frame that has this one; none where the checksum would begin in the Ethernet header.
fn header_out(mut header: [u8; HEADER_LEN]) -> Option<[u8; HEADER_LEN]> {
    if header[0] & NEEDS_CSUM != 0 {
        let start = field(&mut header, CSUM_START);
        *start = u16::from_le_bytes(*start).checked_sub(ETHERNET_LEN as u16)?.to_le_bytes();
    }
    // Only a hint of how much is headers, and 0 is none.
    let len = field(&mut header, HDR_LEN);
    *len = u16::from_le_bytes(*len).saturating_sub(ETHERNET_LEN as u16).to_le_bytes();
    Some(header)
}

/// The header for the guest of a packet that has this one.
fn header_in(mut header: [u8; HEADER_LEN]) -> [u8; HEADER_LEN] {
    if header[0] & NEEDS_CSUM != 0 {
        let start = field(&mut header, CSUM_START);
        *start = u16::from_le_bytes(*start).saturating_add(ETHERNET_LEN as u16).to_le_bytes();
    }
    let len = field(&mut header, HDR_LEN);
    if *len != [0, 0] {
        *len = u16::from_le_bytes(*len).saturating_add(ETHERNET_LEN as u16).to_le_bytes();
    }
    header
}

/// Two bytes of the header; it is little-endian for whoever negotiated `VIRTIO_F_VERSION_1`, and here so on every host.
fn field(header: &mut [u8; HEADER_LEN], offset: usize) -> &mut [u8; 2] {
    header[offset..].first_chunk_mut().expect("a field of the header")
}

/// The type of a packet and to whom it goes; none where it is not IP.
fn destination(packet: &[u8]) -> Option<([u8; 2], IpAddr)> {
    Some(match packet.first()? >> 4 {
        4 => (IPV4, IpAddr::from(*packet.get(16..)?.first_chunk::<4>()?)),
        6 => (IPV6, IpAddr::from(*packet.get(24..)?.first_chunk::<16>()?)),
        _ => return None,
    })
}

impl<B: Backend> Backend for Tun<B> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.packets.fd()
    }

    #[inline]
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        let mut head = [0; FRONT + LOOK];
        let len = frame.read_at(0, &mut head);
        match target_of(&head[..len]) {
            FrameTarget::Packet => {}
            FrameTarget::Neighbour => {
                let answered = self.replies.answer(&self.gateway, frame);
                return Ok(if answered { Sent::Answered } else { Sent::Gone });
            }
            FrameTarget::Nowhere => {
                self.not_ip.fetch_add(1, Ordering::Relaxed);
                return Ok(Sent::Gone);
            }
        }
        let header = head.first_chunk().copied().and_then(header_out);
        let mut header = header.ok_or(io::ErrorKind::InvalidInput)?;
        let header = VolatileSlice::from(&mut header[..]);
        match self.buffers.start_behind(header, frame, FRONT) {
            (packet, true) => self.packets.send(&packet),
            (_, false) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    #[inline]
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        if let Some(reply) = self.replies.recv(space) {
            return reply;
        }
        let mut header = [0; HEADER_LEN];
        // A buffer that stays out makes the space smaller, and that is all.
        let (mut packet, _) = self.buffers.start_behind(VolatileSlice::from(&mut header[..]), space, FRONT);
        let len = self.packets.recv(&mut packet)?;
        drop(packet);

        let mut head = [0; IPV6_LEN];
        let head_len = space.read_at(FRONT, &mut head).min(len.saturating_sub(HEADER_LEN));
        let (ethertype, to) = destination(&head[..head_len]).ok_or(io::ErrorKind::InvalidData)?;
        let to = neighbour::multicast(to).unwrap_or(EthernetAddress(self.guest.octets()));
        let mut front = [0; FRONT];
        front[..HEADER_LEN].copy_from_slice(&header_in(header));
        front[HEADER_LEN..][..6].copy_from_slice(&to.0);
        front[HEADER_LEN + 6..][..6].copy_from_slice(&self.gateway.mac());
        front[FRONT - 2..].copy_from_slice(&ethertype);
        space.write_at(0, &front);
        Ok(len + ETHERNET_LEN)
    }

    fn offloads(&self) -> Offloads {
        self.packets.offloads()
    }

    fn merges(&self) -> (Offloads, u16) {
        self.packets.merges()
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.packets.set_offloads(accepted)
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.packets.set_enabled(enabled)
    }

    fn set_carrier(&mut self, present: bool) {
        self.packets.set_carrier(present);
    }

    fn drain(&mut self) {
        self.packets.drain();
    }

    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        if filter.mac.octets() == self.gateway.mac() {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        self.guest = filter.mac;
        Ok(())
    }

    // `vhost_fd` stays none: the kernel would carry frames, and the host's end takes packets.
}
