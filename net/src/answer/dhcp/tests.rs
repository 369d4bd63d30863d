mod limits;

use std::io;

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DhcpOption, DhcpPacket, DhcpRepr, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet,
    Ipv4Repr, UdpPacket, UdpRepr,
};
use vm_memory::VolatileSlice;

use super::*;
use crate::{Autoconf, Backend, HEADER_LEN, IovBuffer, RxFilter, Sent, SocketBackend, SocketPeer};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xff];
const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const DNS: [Ipv4Addr; 4] =
    [HOST, Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(7, 7, 7, 7)];
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const ID: u32 = 0x1234_5678;

fn lease() -> Lease {
    let host = HostV4::new(HOST, 24).unwrap();
    Lease::new(Mac::new(GUEST_MAC).unwrap(), host, HOST_MAC, 1400).unwrap().with_dns(&DNS)
}

/// A message of the guest.
fn message(kind: DhcpMessageType) -> DhcpRepr<'static> {
    DhcpRepr {
        message_type: kind,
        transaction_id: ID,
        secs: 3,
        client_hardware_address: EthernetAddress(GUEST_MAC),
        client_ip: NOBODY,
        your_ip: NOBODY,
        server_ip: NOBODY,
        router: None,
        subnet_mask: None,
        relay_agent_ip: NOBODY,
        broadcast: false,
        requested_ip: None,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    }
}

/// The guest's frame with that message, header first.
fn frame(message: &DhcpRepr<'_>) -> Vec<u8> {
    let from = message.client_ip;
    frame_between(message, from, if from == NOBODY { Ipv4Addr::BROADCAST } else { HOST })
}

/// The same as another station's: its client's own frame.
fn frame_of_client(message: &DhcpRepr<'_>) -> Vec<u8> {
    let mut frame = frame(message);
    frame[HEADER_LEN + 6..HEADER_LEN + 12].copy_from_slice(&message.client_hardware_address.0);
    frame
}

fn frame_between(message: &DhcpRepr<'_>, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let len = message.buffer_len();
    let mut bytes = vec![0; HEADER_LEN + 14 + 20 + 8 + len];
    let sums = ChecksumCapabilities::default();
    let mut ethernet = EthernetFrame::new_unchecked(&mut bytes[HEADER_LEN..]);
    EthernetRepr {
        src_addr: EthernetAddress(GUEST_MAC),
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Ipv4,
    }
    .emit(&mut ethernet);
    let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
    let (next_header, payload_len) = (IpProtocol::Udp, 8 + len);
    Ipv4Repr { src_addr: from, dst_addr: to, next_header, payload_len, hop_limit: 64 }
        .emit(&mut packet, &sums);
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    UdpRepr { src_port: 68, dst_port: 67 }.emit(
        &mut datagram,
        &from.into(),
        &to.into(),
        len,
        |payload| message.emit(&mut DhcpPacket::new_unchecked(payload)).unwrap(),
        &sums,
    );
    bytes
}

/// An answer, taken apart: its addresses, and the DHCP message.
struct Answer {
    to: (EthernetAddress, Ipv4Addr),
    message: Vec<u8>,
}

impl Answer {
    /// Takes a frame apart that must be well-formed, with right checksums, from the server to the client's port.
    fn parse(frame: &[u8]) -> Self {
        assert_eq!(frame[..HEADER_LEN], [0; HEADER_LEN], "nothing is left to finish");
        let ethernet = EthernetFrame::new_checked(&frame[HEADER_LEN..]).unwrap();
        assert_eq!(ethernet.src_addr(), EthernetAddress(HOST_MAC));
        let packet = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
        let sums = ChecksumCapabilities::default();
        let ip = Ipv4Repr::parse(&packet, &sums).unwrap();
        assert_eq!((ip.src_addr, ip.next_header), (HOST, IpProtocol::Udp));
        assert_eq!(usize::from(packet.total_len()), ethernet.payload().len(), "no bytes behind it");
        let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
        assert_ne!(datagram.checksum(), 0);
        let udp = UdpRepr::parse(&datagram, &ip.src_addr.into(), &ip.dst_addr.into(), &sums).unwrap();
        assert_eq!((udp.src_port, udp.dst_port), (67, 68));
        assert!(datagram.payload().len() >= 300, "BOOTP clients drop what is shorter");
        Self { to: (ethernet.dst_addr(), ip.dst_addr), message: datagram.payload().to_vec() }
    }

    fn packet(&self) -> DhcpPacket<&[u8]> {
        DhcpPacket::new_checked(&self.message[..]).unwrap()
    }

    fn repr(&self) -> (DhcpMessageType, u32, Ipv4Addr, Option<u32>) {
        // Not smoltcp's own reading of it, which takes no client's identifier of seven bytes but an Ethernet address.
        let (packet, options) = (self.packet(), self.options());
        assert_eq!(packet.client_hardware_address(), EthernetAddress(GUEST_MAC));
        let find = |kind| options.iter().find(|option| option.0 == kind).map(|option| &option.1[..]);
        assert_eq!(find(54), Some(&HOST.octets()[..]), "the server's identifier");
        let seconds = find(51).map(|data| u32::from_be_bytes(data.try_into().unwrap()));
        let &[kind] = find(53).unwrap() else { panic!("{options:?}") };
        (kind.into(), packet.transaction_id(), packet.your_ip(), seconds)
    }

    fn options(&self) -> Vec<(u8, Vec<u8>)> {
        self.packet().options().map(|option| (option.kind, option.data.to_vec())).collect()
    }
}

fn verdict(frame: &[u8]) -> Verdict {
    lease().answer(frame, &mut [0; ANSWER_MAX])
}

fn answer(frame: &[u8]) -> Answer {
    let mut reply = [0; ANSWER_MAX];
    match lease().answer(frame, &mut reply) {
        Verdict::Reply(len) => Answer::parse(&reply[..len]),
        verdict => panic!("{verdict:?}"),
    }
}

const TO_GUEST: (EthernetAddress, Ipv4Addr) = (EthernetAddress(GUEST_MAC), GUEST);
const TO_ALL: (EthernetAddress, Ipv4Addr) = (EthernetAddress::BROADCAST, Ipv4Addr::BROADCAST);
const DAY: Option<u32> = Some(86_400);

#[test]
fn a_discover_is_offered_all_that_the_guest_needs() {
    let id = [0xff, 1, 2, 3];
    let options = [DhcpOption { kind: 61, data: &id }];
    let discover = DhcpRepr { additional_options: &options, ..message(DhcpMessageType::Discover) };
    let offer = answer(&frame(&discover));
    assert_eq!(offer.to, TO_GUEST);
    assert_eq!(offer.repr(), (DhcpMessageType::Offer, ID, GUEST, DAY));
    assert_eq!(
        offer.options(),
        [
            (53, vec![2]),
            (54, HOST.octets().to_vec()),
            (51, 86_400u32.to_be_bytes().to_vec()),
            (61, id.to_vec()),
            (1, vec![255, 255, 255, 0]),
            (3, HOST.octets().to_vec()),
            (26, 1400u16.to_be_bytes().to_vec()),
            (6, vec![172, 31, 0, 1, 9, 9, 9, 9, 8, 8, 8, 8]),
            (28, vec![172, 31, 0, 255]),
        ],
        "the mask before the router, the identifier as it came"
    );
    let discover = DhcpRepr { broadcast: true, ..discover };
    assert_eq!(answer(&frame(&discover)).to, TO_ALL, "as the flag asks");
}

#[test]
fn a_request_is_acknowledged_in_each_state_or_refused() {
    let other = Ipv4Addr::new(172, 31, 0, 9);
    let request = message(DhcpMessageType::Request);
    let selecting =
        |wanted| DhcpRepr { requested_ip: Some(wanted), server_identifier: Some(HOST), ..request.clone() };
    let rebooting = |wanted| DhcpRepr { requested_ip: Some(wanted), ..request.clone() };
    let renewing = |has| DhcpRepr { client_ip: has, ..request.clone() };
    for right in [selecting(GUEST), rebooting(GUEST), renewing(GUEST)] {
        let ack = answer(&frame(&right));
        assert_eq!((ack.to, ack.repr()), (TO_GUEST, (DhcpMessageType::Ack, ID, GUEST, DAY)), "{right:?}");
        assert_eq!(ack.packet().client_ip(), right.client_ip);
    }
    for wrong in [selecting(other), rebooting(other), renewing(other)] {
        let nak = answer(&frame(&wrong));
        assert_eq!((nak.to, nak.repr()), (TO_ALL, (DhcpMessageType::Nak, ID, NOBODY, None)), "{wrong:?}");
        assert_eq!(nak.options().len(), 2, "nothing but the kind and the server");
    }
    let rebinding = frame_between(&renewing(GUEST), GUEST, Ipv4Addr::BROADCAST);
    assert_eq!(answer(&rebinding).to, TO_GUEST);
    // RFC 2131 has no address here; the one that is there is not where the answer goes.
    let confused = DhcpRepr { client_ip: other, ..selecting(GUEST) };
    assert_eq!(answer(&frame(&confused)).to, TO_GUEST);
    let confused = DhcpRepr { client_ip: other, ..message(DhcpMessageType::Discover) };
    assert_eq!(answer(&frame(&confused)).to, TO_GUEST);
    assert_eq!(verdict(&frame(&request)), Verdict::Pass, "it asks for no address at all");
}

#[test]
fn an_inform_is_told_the_rest_at_its_own_address() {
    let own = Ipv4Addr::new(172, 31, 0, 77);
    let inform = DhcpRepr { client_ip: own, ..message(DhcpMessageType::Inform) };
    let ack = answer(&frame(&inform));
    assert_eq!(ack.to, (EthernetAddress(GUEST_MAC), own));
    assert_eq!(ack.repr(), (DhcpMessageType::Ack, ID, NOBODY, None));
    assert!(ack.options().iter().any(|(kind, _)| *kind == 3));
}

#[test]
fn what_wants_no_answer_ends_here() {
    for kind in [DhcpMessageType::Decline, DhcpMessageType::Release] {
        let message = DhcpRepr { server_identifier: Some(HOST), requested_ip: Some(GUEST), ..message(kind) };
        assert_eq!(verdict(&frame(&message)), Verdict::Silent);
    }
}

#[test]
fn what_is_not_for_us_passes() {
    let discover = message(DhcpMessageType::Discover);
    let elsewhere = Some(Ipv4Addr::new(172, 31, 0, 3));
    let selects_another = DhcpRepr {
        requested_ip: elsewhere,
        server_identifier: elsewhere,
        ..message(DhcpMessageType::Request)
    };
    let nested =
        DhcpRepr { client_hardware_address: EthernetAddress([2, 0, 0, 0, 0, 2]), ..discover.clone() };
    let relayed = DhcpRepr { relay_agent_ip: HOST, ..discover.clone() };
    for (what, message) in
        [("another server", selects_another), ("another client", nested), ("a relay", relayed)]
    {
        assert_eq!(verdict(&frame(&message)), Verdict::Pass, "{what}");
    }
    let far = frame_between(&discover, GUEST, Ipv4Addr::new(10, 0, 0, 1));
    assert_eq!(verdict(&far), Verdict::Pass, "to a server far away");
    let (ethernet, ip, udp, dhcp) = (HEADER_LEN, HEADER_LEN + 14, HEADER_LEN + 34, HEADER_LEN + 42);
    for (what, at, value) in [
        ("segments", 1, 1),
        ("another's frame", ethernet + 11, 7),
        ("a group's frame", ethernet + 6, 3),
        ("not IPv4", ethernet + 12, 0x86),
        ("checksum of IPv4", ip + 10, 0x55),
        ("checksum of UDP", udp + 6, 0x55),
        ("a server's port", udp + 1, 67),
        ("a reply", dhcp, 2),
        ("no Ethernet", dhcp + 1, 6),
        ("a long address", dhcp + 2, 16),
        ("no magic", dhcp + 236, 0),
        ("no such kind", dhcp + 242, 77),
    ] {
        let mut frame = frame(&discover);
        assert!(matches!(verdict(&frame), Verdict::Reply(_)));
        frame[at] = value;
        if at >= udp && what != "checksum of UDP" {
            frame[udp + 6..udp + 8].fill(0); // No checksum, so that what was changed decides.
        }
        assert_eq!(verdict(&frame), Verdict::Pass, "{what}");
    }
    let whole = frame(&discover);
    for len in 0..whole.len() {
        assert_eq!(verdict(&whole[..len]), Verdict::Pass, "cut at {len}");
    }
}

#[test]
fn a_checksum_left_to_us_is_not_looked_at() {
    let mut frame = frame(&message(DhcpMessageType::Discover));
    frame[HEADER_LEN + 40] ^= 0x55;
    assert_eq!(verdict(&frame), Verdict::Pass);
    frame[0] = 1;
    assert!(matches!(verdict(&frame), Verdict::Reply(_)));
}

#[test]
fn an_identifier_of_another_kind_of_hardware_comes_back_as_it_is() {
    let id = [2, 0, 0, 0, 0, 0, 0];
    let options = [DhcpOption { kind: 61, data: &id }];
    let offer =
        answer(&frame(&DhcpRepr { additional_options: &options, ..message(DhcpMessageType::Discover) }));
    assert_eq!(offer.repr(), (DhcpMessageType::Offer, ID, GUEST, DAY));
    assert!(offer.options().contains(&(61, id.to_vec())));
}

#[test]
fn a_bridge_in_the_guest_is_the_client_unless_the_nic_is_or_another_one() {
    let lease = lease();
    let [bridge, second] = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]].map(EthernetAddress);
    let ask = |lease: &Lease, kind, client_hardware_address| {
        let mut reply = [0; ANSWER_MAX];
        let asked = DhcpRepr { client_hardware_address, ..message(kind) };
        match lease.answer(&frame_of_client(&asked), &mut reply) {
            Verdict::Reply(len) => {
                let answer = Answer::parse(&reply[..len]);
                let packet = DhcpPacket::new_checked(&answer.message[..]).unwrap();
                assert_eq!(
                    (answer.to, packet.client_hardware_address()),
                    ((client_hardware_address, GUEST), client_hardware_address)
                );
                true
            }
            verdict => {
                assert!(verdict == Verdict::Pass || kind == DhcpMessageType::Release);
                false
            }
        }
    };
    let discover = DhcpMessageType::Discover;
    // On whichever queue pair.
    let pairs = [lease.clone(), lease];
    assert!(ask(&pairs[0], discover, bridge) && ask(&pairs[1], discover, bridge));
    assert!(!ask(&pairs[1], discover, second), "a guest's guest");
    assert!(!ask(&pairs[0], DhcpMessageType::Release, bridge) && ask(&pairs[1], discover, second));
    assert!(ask(&pairs[0], discover, EthernetAddress(GUEST_MAC)), "the NIC, always");
    assert!(ask(&pairs[1], discover, bridge) && !ask(&pairs[0], discover, second));
}

#[test]
fn the_longest_identifier_has_room() {
    let options = [DhcpOption { kind: 61, data: &[0xab; 255] }];
    let discover = DhcpRepr { additional_options: &options, ..message(DhcpMessageType::Discover) };
    let offer = answer(&frame(&discover));
    assert!(offer.options().contains(&(61, vec![0xab; 255])));
    assert!(offer.options().iter().any(|(kind, _)| *kind == 28), "what comes behind it too");
}

#[test]
fn a_guest_is_told_where_to_look_for_names_as_far_as_there_is_room() {
    let domains =
        ["example.org", &["x".repeat(60), "y".repeat(50)].join(".")].map(|text| text.parse().unwrap());
    let lease = lease().with_search(&domains);
    let list = domains.iter().flat_map(Domain::octets).collect::<Vec<_>>();
    let most = 249 - list.len();
    for (len, told) in [(0, true), (3, true), (most, true), (most + 1, false), (255, false)] {
        let options = [DhcpOption { kind: 61, data: &[0xab; 255][..len] }];
        let options = if len > 0 { &options[..] } else { &[] };
        let discover = DhcpRepr { additional_options: options, ..message(DhcpMessageType::Discover) };
        let mut reply = [0; ANSWER_MAX];
        let Verdict::Reply(reply_len) = lease.answer(&frame(&discover), &mut reply) else {
            panic!("no reply")
        };
        let packet = DhcpPacket::new_checked(&reply[HEADER_LEN + 14 + 20 + 8..reply_len]).unwrap();
        let option = |kind| packet.options().find(|option| option.kind == kind).map(|option| option.data);
        assert_eq!(option(119), told.then_some(&list[..]), "an identifier of {len} bytes");
        // All three servers but beside the very longest identifiers, where there is no room.
        assert_eq!(option(6).unwrap().len(), if len < 250 { 12 } else { 8 });
        assert!(option(28).is_some(), "what comes behind the identifier is whole");
    }
}

#[test]
fn a_guest_alone_in_its_subnet_is_told_the_way_to_its_router() {
    let (host, mac) =
        ("10.0.0.1/32".parse::<crate::HostAddress>().unwrap().v4().unwrap(), Mac::new(GUEST_MAC).unwrap());
    let lease = Lease::to(mac, Ipv4Addr::new(192, 168, 7, 2), host, HOST_MAC, 1400).with_dns(&DNS);
    for (len, told) in [(3, true), (235, true), (236, false), (255, false)] {
        let options = [DhcpOption { kind: 61, data: &[0xab; 255][..len] }];
        let discover = DhcpRepr { additional_options: &options, ..message(DhcpMessageType::Discover) };
        let mut reply = [0; ANSWER_MAX];
        let Verdict::Reply(reply_len) = lease.answer(&frame(&discover), &mut reply) else {
            panic!("no reply")
        };
        let message = &reply[HEADER_LEN + 14 + 20 + 8..reply_len];
        let packet = DhcpPacket::new_checked(message).unwrap();
        assert_eq!(packet.your_ip(), Ipv4Addr::new(192, 168, 7, 2));
        let option = |kind| packet.options().find(|option| option.kind == kind).map(|option| option.data);
        assert_eq!((option(1), option(3)), (Some(&[255; 4][..]), Some(&[10, 0, 0, 1][..])));
        let routes = [32, 10, 0, 0, 1, 0, 0, 0, 0, 0, 10, 0, 0, 1];
        assert_eq!(option(121), told.then_some(&routes[..]), "an identifier of {len} bytes");
    }
}

fn wire() -> (Autoconf<SocketBackend>, SocketPeer) {
    let (backend, peer) = SocketBackend::pair().unwrap();
    peer.socket().set_nonblocking(true).unwrap();
    (Autoconf::new(backend, Some(lease()), None), peer)
}

/// Sends a frame in two buffers, cut at `cut`.
fn send(backend: &mut dyn Backend, frame: &[u8], cut: usize) -> Sent {
    let mut copy = frame.to_vec();
    let (first, second) = copy.split_at_mut(cut);
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(first)) && iov.push(VolatileSlice::from(second)));
    backend.send(&iov).unwrap()
}

fn recv(backend: &mut dyn Backend, space: usize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0xaa; space];
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(&mut frame[..])));
    let len = backend.recv(&mut iov)?;
    drop(iov);
    frame.truncate(len);
    Ok(frame)
}

#[test]
fn the_answer_is_received_once_and_nobody_else_hears_of_it() {
    let (mut backend, peer) = wire();
    let discover = frame(&message(DhcpMessageType::Discover));
    for cut in [HEADER_LEN, 30, 0, 100] {
        assert_eq!(send(&mut backend, &discover, cut), Sent::Answered);
        let offer = Answer::parse(&recv(&mut backend, 2000).unwrap());
        assert_eq!(offer.repr().0, DhcpMessageType::Offer);
    }
    let release = DhcpRepr { server_identifier: Some(HOST), ..message(DhcpMessageType::Release) };
    assert_eq!(send(&mut backend, &frame(&release), 50), Sent::Gone);
    assert_eq!(recv(&mut backend, 2000).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(peer.recv().unwrap_err().kind(), io::ErrorKind::WouldBlock, "the host saw none of it");
    assert!(backend.vhost_fd().is_none());
}

#[test]
fn a_nic_whose_address_the_guest_has_changed_is_the_client_and_the_host_end_knows() {
    let (mut backend, peer) = wire();
    let [changed, other] = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];
    let filter = RxFilter::new(Mac::new(changed).unwrap());
    backend.set_filter(&filter).unwrap();
    assert_eq!(peer.filter(), Some(filter));
    // Whoever is beside the NIC takes the only other place.
    for mac in [other, changed] {
        let client_hardware_address = EthernetAddress(mac);
        let discover = DhcpRepr { client_hardware_address, ..message(DhcpMessageType::Discover) };
        assert_eq!(send(&mut backend, &frame_of_client(&discover), 30), Sent::Answered, "{mac:?}");
    }
}

#[test]
fn one_answer_waits_and_it_is_the_newest() {
    let (mut backend, _peer) = wire();
    for id in 1..=1000 {
        let discover = DhcpRepr { transaction_id: id, ..message(DhcpMessageType::Discover) };
        assert_eq!(send(&mut backend, &frame(&discover), 20), Sent::Answered);
    }
    assert_eq!(Answer::parse(&recv(&mut backend, 2000).unwrap()).repr().1, 1000);
    assert_eq!(recv(&mut backend, 2000).unwrap_err().kind(), io::ErrorKind::WouldBlock);

    let discover = frame(&message(DhcpMessageType::Discover));
    assert_eq!(send(&mut backend, &discover, 20), Sent::Answered);
    assert_eq!(recv(&mut backend, 100).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    assert_eq!(recv(&mut backend, 2000).unwrap_err().kind(), io::ErrorKind::WouldBlock, "it is lost");
}

#[test]
fn what_is_longer_than_an_ethernet_frame_is_no_question() {
    let (mut backend, peer) = wire();
    let mut discover = frame(&message(DhcpMessageType::Discover));
    discover.resize(HEADER_LEN + 14 + 1500, 0);
    assert_eq!(send(&mut backend, &discover, 30), Sent::Answered);
    discover.push(0);
    assert_eq!(send(&mut backend, &discover, 30), Sent::Gone);
    assert_eq!(peer.recv().unwrap(), discover);
}

#[test]
fn other_frames_pass_as_they_are() {
    let (mut backend, peer) = wire();
    let far = frame_between(&message(DhcpMessageType::Discover), GUEST, Ipv4Addr::new(10, 0, 0, 1));
    let mut fragment = frame(&message(DhcpMessageType::Discover));
    fragment[HEADER_LEN + 20] |= 0x20;
    for frame in [vec![7; 60], vec![7; 14], vec![0; 3000], far, fragment] {
        assert_eq!(send(&mut backend, &frame, frame.len() / 2), Sent::Gone);
        assert_eq!(peer.recv().unwrap(), frame);
        peer.send(&frame).unwrap();
        assert_eq!(recv(&mut backend, 4000).unwrap(), frame);
    }
}

/// What is true of every frame that is answered, by its fixed places, and of every answer.
fn check(frame: &[u8]) {
    let mut reply = [0; ANSWER_MAX];
    let Verdict::Reply(len) = lease().answer(frame, &mut reply) else { return };
    let answer = Answer::parse(&reply[..len]);
    let (_, id, address, _) = answer.repr();
    assert!([EthernetAddress(GUEST_MAC), EthernetAddress::BROADCAST].contains(&answer.to.0));
    assert!([NOBODY, GUEST].contains(&address));
    let at = |offset: usize, len: usize| &frame[HEADER_LEN + offset..][..len];
    assert_eq!(at(6, 6), GUEST_MAC);
    assert_eq!((at(12, 2), at(23, 1), at(34, 4)), (&[8, 0][..], &[17][..], &[0, 68, 0, 67][..]));
    assert_eq!((at(42, 3), at(46, 4), at(66, 4)), (&[1, 1, 6][..], &id.to_be_bytes()[..], &[0; 4][..]));
    assert_eq!((at(70, 6), at(278, 4)), (&GUEST_MAC[..], &[0x63, 0x82, 0x53, 0x63][..]));
}

proptest! {
    #[test]
    fn no_bytes_panic(frame in proptest::collection::vec(any::<u8>(), 0..700)) {
        check(&frame);
    }

    #[test]
    fn no_frame_close_to_a_request_panics_or_is_answered_wrongly(
        kind in 0..10u8,
        options in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..12)), 0..6),
        changes in proptest::collection::vec((0..320usize, any::<u8>()), 0..4),
        checksums: bool,
    ) {
        let options: Vec<_> = options.iter().map(|(kind, data)| DhcpOption { kind: *kind, data }).collect();
        let message = DhcpRepr { additional_options: &options, ..message(DhcpMessageType::Discover) };
        let mut frame = frame(&message);
        frame[HEADER_LEN + 42 + 242] = kind;
        if !checksums {
            frame[HEADER_LEN + 40..HEADER_LEN + 42].fill(0);
        }
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        check(&frame);
        let (mut backend, _peer) = wire();
        let answered = send(&mut backend, &frame, frame.len() / 3) == Sent::Answered;
        prop_assert_eq!(answered, matches!(verdict(&frame), Verdict::Reply(_)), "the first look misses none");
        let _ = recv(&mut backend, 2000);
    }
}
