//! Telling the neighbours on a link that addresses are there: whoever knows them under another Ethernet address would send there
//! until he asks again, half a minute later. And asking for the routers: the kernel asks by itself only when a link comes up.
//!
//! Nobody answers an announcement, so that one that is lost or not allowed is no failure: it takes longer then, as without it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socket_with};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
};

use super::{LinkId, Netlink, Refusal, Sysctl};
use crate::sys::packet;

const ETHERNET_LEN: usize = 14;
const ARP_LEN: usize = 28;
const IPV6_LEN: usize = 40;
/// The hop limit of neighbour discovery: nobody has forwarded it (RFC 4861 §7.1).
const NOT_FORWARDED: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Tells the neighbours on `link` of those of `addresses` that it has, and asks for the routers where the kernel hears them.
/// Needs `CAP_NET_RAW`.
pub(super) fn announce(netlink: &mut Netlink, link: &LinkId, addresses: &[IpAddr]) -> Result<(), Refusal> {
    let Some(mac) = netlink.link_by_index(link.index)?.and_then(|link| link.mac) else { return Ok(()) };
    let has = netlink.addresses_of(link)?;
    let usable = addresses.iter().filter(|address| has.iter().any(|has| has.is_usable_as(**address)));
    let router = setting(link, "forwarding").is_some_and(|forwarding| forwarding != "0");
    let mut frames: Vec<_> = usable.map(|&address| announcement(mac, address, router)).collect();
    if hears_routers(link) {
        frames.push(solicitation(mac));
    }
    Ok(send_all(link, &frames)?)
}

/// What tells the neighbours of a guest: that its Ethernet address is here (RFC 903, as other hypervisors do it: a switch learns by
/// it whatever the guest's addresses), and that it has `addresses`.
pub(crate) fn of_guest(mac: [u8; 6], addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Vec<u8>> {
    let addresses = addresses.into_iter().map(|address| announcement(mac, address, false));
    std::iter::once(reverse_request(mac)).chain(addresses).collect()
}

/// Asks everybody which address `mac` has; nobody answers that any more.
fn reverse_request(mac: [u8; 6]) -> Vec<u8> {
    const RARP: u16 = 0x8035;
    const REQUEST: u16 = 3;
    let from = EthernetAddress(mac);
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Unknown(REQUEST),
        source_hardware_addr: from,
        source_protocol_addr: Ipv4Addr::UNSPECIFIED,
        target_hardware_addr: from,
        target_protocol_addr: Ipv4Addr::UNSPECIFIED,
    };
    ethernet(from, EthernetAddress::BROADCAST, EthernetProtocol::Unknown(RARP), ARP_LEN, |payload| {
        arp.emit(&mut ArpPacket::new_unchecked(payload));
    })
}

fn send_all(link: &LinkId, frames: &[Vec<u8>]) -> io::Result<()> {
    if frames.is_empty() {
        return Ok(());
    }
    // Protocol 0 receives no frame until it is bound, and little until it is closed.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    packet::bind(socket.as_fd(), link.index)?;
    for frame in frames {
        send(&socket, frame, SendFlags::DONTWAIT)?;
    }
    Ok(())
}

fn setting(link: &LinkId, key: &str) -> Option<String> {
    Sysctl::read(&format!("net/ipv6/conf/{}/{key}", link.name)).ok()
}

/// Whether the kernel takes what routers say on the link (`Documentation/networking/ip-sysctl.rst`, `accept_ra`).
pub(crate) fn hears_routers(link: &LinkId) -> bool {
    let is = |key, wanted| setting(link, key).as_deref() == Some(wanted);
    is("disable_ipv6", "0") && (is("accept_ra", "2") || is("accept_ra", "1") && is("forwarding", "0"))
}

/// Says to everybody that `mac` has `address`: an ARP request for it by itself (RFC 5227 §3), or a neighbour advertisement that
/// replaces what was known (RFC 4861 §7.2.6).
fn announcement(mac: [u8; 6], address: IpAddr, router: bool) -> Vec<u8> {
    let mac = EthernetAddress(mac);
    match address {
        IpAddr::V4(address) => {
            let arp = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr: mac,
                source_protocol_addr: address,
                target_hardware_addr: EthernetAddress([0; 6]),
                target_protocol_addr: address,
            };
            ethernet(mac, EthernetAddress::BROADCAST, EthernetProtocol::Arp, ARP_LEN, |payload| {
                arp.emit(&mut ArpPacket::new_unchecked(payload));
            })
        }
        IpAddr::V6(address) => {
            let is_router = if router { NdiscNeighborFlags::ROUTER } else { NdiscNeighborFlags::empty() };
            let advertisement = NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::OVERRIDE | is_router,
                target_addr: address,
                lladdr: Some(mac.into()),
            };
            discovery(mac, address, ALL_NODES, advertisement)
        }
    }
}

/// Asks the routers of the link, from no address: one of the link's may not be usable yet (RFC 4861 §4.1).
fn solicitation(mac: [u8; 6]) -> Vec<u8> {
    let mac = EthernetAddress(mac);
    discovery(mac, Ipv6Addr::UNSPECIFIED, ALL_ROUTERS, NdiscRepr::RouterSolicit { lladdr: None })
}

fn discovery(mac: EthernetAddress, from: Ipv6Addr, to: Ipv6Addr, message: NdiscRepr<'_>) -> Vec<u8> {
    let message = Icmpv6Repr::Ndisc(message);
    let ip = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit: NOT_FORWARDED,
    };
    let [.., a, b, c, d] = to.octets();
    let group = EthernetAddress([0x33, 0x33, a, b, c, d]);
    ethernet(mac, group, EthernetProtocol::Ipv6, IPV6_LEN + ip.payload_len, |payload| {
        let mut packet = Ipv6Packet::new_unchecked(payload);
        ip.emit(&mut packet);
        let mut payload = Icmpv6Packet::new_unchecked(packet.payload_mut());
        message.emit(&from, &to, &mut payload, &ChecksumCapabilities::default());
    })
}

fn ethernet(
    from: EthernetAddress,
    to: EthernetAddress,
    ethertype: EthernetProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET_LEN + len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    EthernetRepr { src_addr: from, dst_addr: to, ethertype }.emit(&mut frame);
    fill(frame.payload_mut());
    bytes
}

/// What is said, as a line that a shell passes over: no program of every system says it.
pub(super) fn words(link: &LinkId, addresses: &[IpAddr]) -> String {
    let list: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    let all = if list.is_empty() { "the routers".to_owned() } else { list.join(", ") };
    format!("# on {link}: gratuitous ARP and neighbour advertisements for {all}, a router solicitation")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn an_address_of_ipv4_is_announced_by_a_request_for_itself() {
        let frame = announcement(MAC, Ipv4Addr::new(192, 0, 2, 1).into(), false);
        let wanted = [
            &[0xff; 6][..],
            &MAC,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &MAC,
            &[192, 0, 2, 1],
            &[0; 6],
            &[192, 0, 2, 1],
        ];
        assert_eq!(frame, wanted.concat());
    }

    #[test]
    fn a_guest_is_announced_by_its_ethernet_address_whatever_else_is_known() {
        let [frame] = of_guest(MAC, None).try_into().unwrap();
        let wanted =
            [&[0xff; 6][..], &MAC, &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3], &MAC, &[0; 4], &MAC, &[0; 4]];
        assert_eq!(frame, wanted.concat());
        assert_eq!(of_guest(MAC, [Ipv4Addr::new(192, 0, 2, 1).into()]).len(), 2);
    }

    #[test]
    fn an_address_of_ipv6_is_announced_to_all_nodes() {
        for (router, flags) in [(false, 0x20), (true, 0xa0)] {
            let frame = announcement(MAC, "fd00::9".parse().unwrap(), router);
            assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
            assert_eq!((frame[20], frame[21], frame[54], frame[58]), (58, 255, 136, flags));
            assert_eq!(frame[22..38], frame[62..78], "it speaks for itself");
            assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 0, 9]);
            assert!(is_summed(&frame));
        }
    }

    #[test]
    fn routers_are_asked_without_an_address() {
        let frame = solicitation(MAC);
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 2]);
        assert_eq!((frame[20], frame[21], frame[54], frame.len()), (58, 255, 133, 62));
        assert_eq!(frame[22..38], [0; 16]);
        assert!(is_summed(&frame));
    }

    fn is_summed(frame: &[u8]) -> bool {
        let packet = Ipv6Packet::new_checked(&frame[ETHERNET_LEN..]).unwrap();
        let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        message.verify_checksum(&packet.src_addr(), &packet.dst_addr())
    }
}
