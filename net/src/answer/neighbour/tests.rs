use std::net::Ipv4Addr;

use proptest::prelude::*;
use vm_memory::VolatileSlice;

use super::*;
use crate::IovBuffer;

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GATEWAY_MAC: [u8; 6] = [6, 0, 0, 0, 0, 1];
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x400, 0xff, 0xfe00, 1);
const NOBODY6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn gateway() -> Gateway {
    Gateway::new(Mac::new(GUEST_MAC).unwrap(), vec![HOST.into(), HOST6.into()])
}

/// One of which nobody told what is at the host's end.
fn gateway_of_all() -> Gateway {
    Gateway::new(Mac::new(GUEST_MAC).unwrap(), Vec::new())
}

fn ethernet(ethertype: EthernetProtocol, payload_len: usize, emit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN + ETHERNET_LEN + payload_len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[HEADER_LEN..]);
    let (src_addr, dst_addr) = (EthernetAddress(GUEST_MAC), EthernetAddress::BROADCAST);
    EthernetRepr { src_addr, dst_addr, ethertype }.emit(&mut frame);
    emit(frame.payload_mut());
    bytes
}

fn arp(operation: ArpOperation, from: Ipv4Addr, wanted: Ipv4Addr) -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(GUEST_MAC),
        source_protocol_addr: from,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: wanted,
    };
    ethernet(EthernetProtocol::Arp, ARP_LEN, |payload| arp.emit(&mut ArpPacket::new_unchecked(payload)))
}

/// An ICMPv6 message of the guest.
fn message(message: &NdiscRepr<'_>, from: Ipv6Addr, to: Ipv6Addr, hop_limit: u8) -> Vec<u8> {
    let message = Icmpv6Repr::Ndisc(*message);
    let payload_len = message.buffer_len();
    let ip =
        Ipv6Repr { src_addr: from, dst_addr: to, next_header: IpProtocol::Icmpv6, payload_len, hop_limit };
    ethernet(EthernetProtocol::Ipv6, IPV6_LEN + payload_len, |payload| {
        let mut packet = Ipv6Packet::new_unchecked(payload);
        ip.emit(&mut packet);
        let mut icmp = Icmpv6Packet::new_unchecked(packet.payload_mut());
        message.emit(&from, &to, &mut icmp, &ChecksumCapabilities::default());
    })
}

fn solicit(from: Ipv6Addr, wanted: Ipv6Addr) -> Vec<u8> {
    let lladdr = (!from.is_unspecified()).then_some(EthernetAddress(GUEST_MAC).into());
    let solicit = NdiscRepr::NeighborSolicit { target_addr: wanted, lladdr };
    message(&solicit, from, solicited_node(wanted), NOT_FORWARDED)
}

fn answer(gateway: &Gateway, frame: &[u8]) -> Option<Vec<u8>> {
    let mut reply = [0xaa; REPLY_MAX];
    gateway.answer(frame, &mut reply).map(|len| reply[..len].to_vec())
}

/// An answer's ARP, of which the Ethernet addresses must be those of the gateway and the guest.
fn arp_answer(gateway: &Gateway, frame: &[u8]) -> Option<ArpRepr> {
    let reply = answer(gateway, frame)?;
    assert_eq!(reply[..HEADER_LEN], [0; HEADER_LEN], "nothing is left to finish");
    assert_eq!(reply[HEADER_LEN..][..14], [&GUEST_MAC[..], &GATEWAY_MAC, &[8, 6]].concat());
    assert_eq!(reply.len(), HEADER_LEN + 14 + 28);
    Some(ArpRepr::parse(&ArpPacket::new_checked(&reply[HEADER_LEN + 14..]).unwrap()).unwrap())
}

/// A valid advertisement: its Ethernet and IPv6 destination, its source and its message.
type Advertised = ([u8; 6], Ipv6Addr, Ipv6Addr, NdiscNeighborFlags, Ipv6Addr);

fn advertised(gateway: &Gateway, frame: &[u8]) -> Option<Advertised> {
    let reply = answer(gateway, frame)?;
    assert_eq!(reply[..HEADER_LEN], [0; HEADER_LEN], "nothing is left to finish");
    let ethernet = EthernetFrame::new_checked(&reply[HEADER_LEN..]).unwrap();
    assert_eq!((ethernet.src_addr().0, ethernet.ethertype()), (GATEWAY_MAC, EthernetProtocol::Ipv6));
    let packet = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
    assert_eq!((packet.hop_limit(), packet.next_header()), (255, IpProtocol::Icmpv6));
    assert_eq!(packet.total_len(), ethernet.payload().len(), "no bytes behind it");
    let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let message = Icmpv6Repr::parse(&from, &to, &icmp, &ChecksumCapabilities::default()).unwrap();
    let Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr }) = message else {
        panic!("{message:?}");
    };
    assert_eq!(lladdr, Some(EthernetAddress(GATEWAY_MAC).into()), "RFC 4861 §7.2.4");
    Some((ethernet.dst_addr().0, to, from, flags, target_addr))
}

#[test]
fn the_gateways_mac_is_nobody_elses_and_stable() {
    for first in [0, 2, 4, 6, 0xfc, 0xfe] {
        let guest = Mac::new([first, 1, 2, 3, 4, 5]).unwrap();
        let gateway = Gateway::new(guest, Vec::new());
        assert_eq!(gateway.mac()[0] & 3, 2, "locally administered, one NIC's");
        assert_ne!(gateway.mac(), guest.octets());
        assert_eq!(gateway.mac(), Gateway::new(guest, vec![HOST.into()]).mac());
    }
    assert_eq!((gateway().mac(), gateway().link_local), (GATEWAY_MAC, LINK_LOCAL));
}

#[test]
fn arp_is_answered_for_the_host() {
    let reply = arp_answer(&gateway(), &arp(ArpOperation::Request, GUEST, HOST)).unwrap();
    let expected = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(GATEWAY_MAC),
        source_protocol_addr: HOST,
        target_hardware_addr: EthernetAddress(GUEST_MAC),
        target_protocol_addr: GUEST,
    };
    assert_eq!(reply, expected);
}

#[test]
fn arp_is_answered_for_the_host_only_and_the_guest_keeps_its_address() {
    let asks = |from, wanted| arp_answer(&gateway(), &arp(ArpOperation::Request, from, wanted)).is_some();
    assert!(!asks(GUEST, OTHER), "nobody is there");
    assert!(!asks(NOBODY, GUEST), "a probe: the address is free (RFC 5227 §2.1.1)");
    assert!(asks(NOBODY, HOST), "a probe: this one is not");
    assert!(!asks(GUEST, GUEST), "an announcement");
    assert!(!asks(HOST, HOST), "another's announcement of our address is no question");
    assert!(arp_answer(&gateway(), &arp(ArpOperation::Reply, GUEST, HOST)).is_none());

    let all =
        |from, wanted| arp_answer(&gateway_of_all(), &arp(ArpOperation::Request, from, wanted)).is_some();
    assert!(all(GUEST, OTHER) && all(GUEST, HOST));
    assert!(!all(NOBODY, GUEST) && !all(GUEST, GUEST));
    for nobody in [NOBODY, Ipv4Addr::BROADCAST, Ipv4Addr::LOCALHOST, Ipv4Addr::new(224, 0, 0, 1)] {
        assert!(!all(GUEST, nobody), "{nobody}");
    }
}

#[test]
fn an_asker_that_is_many_is_not_answered() {
    let mut from_all = arp(ArpOperation::Request, GUEST, HOST);
    from_all[HEADER_LEN + 6] = 0xff;
    assert_eq!(answer(&gateway(), &from_all), None, "the frame's source");
    let mut to_all = arp(ArpOperation::Request, GUEST, HOST);
    to_all[HEADER_LEN + 14 + 8] = 0xff;
    assert_eq!(answer(&gateway(), &to_all), None, "the sender in the question");
    let mut segmented = arp(ArpOperation::Request, GUEST, HOST);
    segmented[1] = 1;
    assert_eq!(answer(&gateway(), &segmented), None);
}

#[test]
fn a_solicitation_is_answered_for_the_host_and_the_gateway() {
    use NdiscNeighborFlags as Flags;
    for wanted in [HOST6, LINK_LOCAL] {
        let told = advertised(&gateway(), &solicit(GUEST6, wanted)).unwrap();
        let flags = Flags::ROUTER | Flags::SOLICITED | Flags::OVERRIDE;
        assert_eq!(told, (GUEST_MAC, GUEST6, wanted, flags, wanted));
    }
    // Whether it is still there is asked of it alone.
    let solicit = NdiscRepr::NeighborSolicit { target_addr: HOST6, lladdr: None };
    assert!(advertised(&gateway(), &message(&solicit, GUEST6, HOST6, 255)).is_some());
}

#[test]
fn duplicate_address_detection_finds_our_addresses_and_no_other() {
    for gateway in [gateway(), gateway_of_all()] {
        assert_eq!(advertised(&gateway, &solicit(NOBODY6, GUEST6)), None, "the guest may have it");
        let told = advertised(&gateway, &solicit(NOBODY6, LINK_LOCAL)).unwrap();
        let flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
        assert_eq!(told, ([0x33, 0x33, 0, 0, 0, 1], ALL_NODES, LINK_LOCAL, flags, LINK_LOCAL));
    }
    let probe = NdiscRepr::NeighborSolicit { target_addr: HOST6, lladdr: None };
    assert!(advertised(&gateway(), &message(&probe, NOBODY6, solicited_node(HOST6), 255)).is_some());
    assert_eq!(advertised(&gateway(), &message(&probe, NOBODY6, HOST6, 255)), None, "RFC 4861 §7.1.1");
    let lladdr = Some(EthernetAddress(GUEST_MAC).into());
    let named = NdiscRepr::NeighborSolicit { target_addr: HOST6, lladdr };
    let named = message(&named, NOBODY6, solicited_node(HOST6), 255);
    assert_eq!(advertised(&gateway(), &named), None, "RFC 4861 §7.1.1");
}

#[test]
fn a_solicitation_is_answered_for_nobody_else() {
    assert_eq!(advertised(&gateway(), &solicit(GUEST6, OTHER6)), None);
    assert!(advertised(&gateway_of_all(), &solicit(GUEST6, OTHER6)).is_some());
    for gateway in [gateway(), gateway_of_all()] {
        assert_eq!(advertised(&gateway, &solicit(GUEST6, GUEST6)), None);
        for nobody in [NOBODY6, Ipv6Addr::LOCALHOST, ALL_NODES] {
            assert_eq!(advertised(&gateway, &solicit(GUEST6, nobody)), None, "{nobody}");
        }
        assert_eq!(advertised(&gateway, &solicit(ALL_NODES, LINK_LOCAL)), None);
        let asks = NdiscRepr::NeighborSolicit { target_addr: LINK_LOCAL, lladdr: None };
        let forwarded = message(&asks, GUEST6, LINK_LOCAL, 254);
        assert_eq!(advertised(&gateway, &forwarded), None, "it comes from further away");
        let mut udp = solicit(GUEST6, LINK_LOCAL);
        udp[HEADER_LEN + 14 + 6] = 17;
        assert_eq!(advertised(&gateway, &udp), None, "it is no ICMPv6");
        let advert = NdiscRepr::RouterSolicit { lladdr: None };
        assert_eq!(advertised(&gateway, &message(&advert, GUEST6, ALL_NODES, 255)), None);
    }
}

#[test]
fn a_checksum_counts_unless_it_is_left_to_us() {
    let mut wrong = solicit(GUEST6, HOST6);
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    assert_eq!(advertised(&gateway(), &wrong), None);
    wrong[0] = NEEDS_CSUM;
    assert!(advertised(&gateway(), &wrong).is_some());
}

#[test]
fn a_group_has_an_ethernet_address() {
    for (address, mac) in [
        ("224.0.0.251", Some([0x01, 0x00, 0x5e, 0, 0, 251])),
        ("239.255.255.250", Some([0x01, 0x00, 0x5e, 0x7f, 255, 250])),
        ("255.255.255.255", Some([0xff; 6])),
        ("ff02::1:ff00:2", Some([0x33, 0x33, 0xff, 0, 0, 2])),
        ("10.0.0.2", None),
        ("fd00::2", None),
    ] {
        assert_eq!(multicast(address.parse().unwrap()), mac.map(EthernetAddress), "{address}");
    }
}

fn keep(replies: &mut Replies, frame: &mut [u8]) -> bool {
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(frame)));
    replies.answer(&gateway(), &iov)
}

fn next(replies: &mut Replies, space: &mut [u8]) -> Option<io::Result<usize>> {
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(space)));
    replies.recv(&mut iov)
}

#[test]
fn answers_wait_in_order_and_not_without_end() {
    let mut replies = Replies::new();
    let mut space = [0; 200];
    assert!(next(&mut replies, &mut space).is_none());
    assert!(!keep(&mut replies, &mut arp(ArpOperation::Request, GUEST, OTHER)));
    assert!(keep(&mut replies, &mut arp(ArpOperation::Request, GUEST, HOST)));
    assert!(keep(&mut replies, &mut solicit(GUEST6, HOST6)));
    assert_eq!(next(&mut replies, &mut space).unwrap().unwrap(), HEADER_LEN + 14 + 28);
    assert_eq!(space[HEADER_LEN + 12..][..2], [8, 6]);
    let error = next(&mut replies, &mut [0; HEADER_LEN + 14 + 71]).unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    assert!(next(&mut replies, &mut space).is_none(), "what did not fit is lost");
    for mut question in [arp(ArpOperation::Request, GUEST, HOST), solicit(GUEST6, HOST6)] {
        assert!(keep(&mut replies, &mut question) && keep(&mut replies, &mut question));
        let len = next(&mut replies, &mut space).unwrap().unwrap();
        assert_eq!(
            next(&mut replies, &mut vec![0; len]).unwrap().unwrap(),
            len,
            "it fits without a byte more"
        );
    }

    let kept = (0..100).filter(|_| keep(&mut replies, &mut arp(ArpOperation::Request, GUEST, HOST))).count();
    assert_eq!(kept, WAITING_MAX);
    let waited = std::iter::from_fn(|| next(&mut replies, &mut space)).count();
    assert_eq!(waited, WAITING_MAX);
    let mut large = arp(ArpOperation::Request, GUEST, HOST);
    large.resize(QUESTION_MAX, 0);
    assert!(keep(&mut replies, &mut large), "padded, as Ethernet may");
    large.push(0);
    assert!(!keep(&mut replies, &mut large));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for gateway in [gateway(), gateway_of_all()] {
            let _ = answer(&gateway, &bytes);
        }
    }

    #[test]
    fn nothing_close_to_a_question_panics_and_an_answer_is_the_gateways(
        which in 0..3usize,
        changes in proptest::collection::vec((12..120usize, any::<u8>()), 0..8),
        options in proptest::collection::vec(any::<u8>(), 0..64),
        cut in 0..40usize,
        unsummed in any::<bool>(),
    ) {
        let mut frame = [
            arp(ArpOperation::Request, GUEST, HOST), solicit(GUEST6, HOST6), solicit(NOBODY6, LINK_LOCAL),
        ][which].clone();
        if which > 0 {
            frame.extend(&options);
            let len = u16::try_from(frame.len() - HEADER_LEN - 14 - 40).unwrap();
            frame[HEADER_LEN + 14 + 4..][..2].copy_from_slice(&len.to_be_bytes());
        }
        for (at, byte) in changes {
            if let Some(there) = frame.get_mut(at) {
                *there = byte;
            }
        }
        frame[0] = u8::from(unsummed);
        frame.truncate(frame.len() - cut);
        if let Some(reply) = answer(&gateway_of_all(), &frame) {
            prop_assert_eq!(&reply[HEADER_LEN + 6..][..6], &GATEWAY_MAC[..]);
            prop_assert!(reply[HEADER_LEN] & 1 == 0 || reply[HEADER_LEN..][..2] == [0x33, 0x33]);
        }
    }
}
