mod limits;

use std::io::{self, Seek, Write};
use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv6Message, Icmpv6Packet, IpProtocol, Ipv6Packet,
    Ipv6Repr, NdiscOption, NdiscOptionRepr,
};
use vm_memory::VolatileSlice;

use super::*;
use crate::answer::autoconf;
use crate::answer::listener::Listener;
use crate::{Autoconf, Backend, HEADER_LEN, IovBuffer, Sent, SocketBackend};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xff];
const GUEST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const HOST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xff);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const DNS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);
const SLLA: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 1];

fn router(host: &str, forwarding: Option<File>) -> Router {
    let host = host.parse::<crate::HostAddress>().unwrap().v6().unwrap();
    Router::new(HOST_MAC, HOST, host, 1400, &[DNS], &[], true).unwrap().with_forwarding(forwarding)
}

/// A router solicitation of the guest with these options, with its header.
fn solicitation(from: Ipv6Addr, to: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let len = 8 + options.len();
    let mut bytes = vec![0; HEADER_LEN + 14 + 40 + len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[HEADER_LEN..]);
    EthernetRepr {
        src_addr: EthernetAddress(GUEST_MAC),
        dst_addr: EthernetAddress([0x33, 0x33, 0, 0, 0, 2]),
        ethertype: EthernetProtocol::Ipv6,
    }
    .emit(&mut frame);
    let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
    Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: len,
        hop_limit: 255,
    }
    .emit(&mut packet);
    let payload = packet.payload_mut();
    payload[0] = 133;
    payload[8..].copy_from_slice(options);
    Icmpv6Packet::new_unchecked(payload).fill_checksum(&from, &to);
    bytes
}

/// An advertisement, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Advert {
    to: (EthernetAddress, Ipv6Addr),
    lifetime: u64,
    /// Prefix, its length, its flags.
    prefixes: Vec<(Ipv6Addr, u8, u8)>,
    mtu: Option<u32>,
    dns: Vec<u8>,
}

impl Advert {
    /// Takes a frame apart that must be well-formed, with a right checksum, as RFC 4861 §6.1.2 wants it.
    fn parse(frame: &[u8]) -> Self {
        assert_eq!(frame[..HEADER_LEN], [0; HEADER_LEN], "nothing is left to finish");
        let ethernet = EthernetFrame::new_checked(&frame[HEADER_LEN..]).unwrap();
        assert_eq!(ethernet.src_addr(), EthernetAddress(HOST_MAC));
        let packet = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
        assert_eq!(packet.total_len(), ethernet.payload().len(), "no bytes behind it");
        let ip = Ipv6Repr::parse(&packet).unwrap();
        assert_eq!((ip.src_addr, ip.next_header, ip.hop_limit), (HOST, IpProtocol::Icmpv6, 255));
        let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        assert!(message.verify_checksum(&ip.src_addr, &ip.dst_addr));
        assert_eq!((message.msg_type(), message.msg_code()), (Icmpv6Message::RouterAdvert, 0));
        assert_eq!((message.current_hop_limit(), message.router_flags().bits()), (64, 0));
        let (mut prefixes, mut mtu, mut dns, mut mac) = (Vec::new(), None, Vec::new(), None);
        let mut rest = message.payload();
        while !rest.is_empty() {
            let option = NdiscOption::new_checked(rest).unwrap();
            let option = NdiscOptionRepr::parse(&option).unwrap();
            match option {
                NdiscOptionRepr::SourceLinkLayerAddr(address) => mac = Some(address),
                NdiscOptionRepr::Mtu(value) => mtu = Some(value),
                NdiscOptionRepr::PrefixInformation(info) => {
                    let for_ever = u64::from(u32::MAX);
                    assert_eq!(info.valid_lifetime.secs(), for_ever);
                    assert_eq!(info.preferred_lifetime.secs(), for_ever);
                    prefixes.push((info.prefix, info.prefix_len, info.flags.bits()));
                }
                NdiscOptionRepr::Unknown { type_: 25, data, .. } => dns = data.to_vec(),
                other => panic!("{other:?}"),
            }
            rest = &rest[option.buffer_len()..];
        }
        assert_eq!(mac, Some(EthernetAddress(HOST_MAC).into()), "else the guest has to ask for it");
        let lifetime = message.router_lifetime().secs();
        Self { to: (ethernet.dst_addr(), ip.dst_addr), lifetime, prefixes, mtu, dns }
    }
}

fn verdict(frame: &[u8]) -> Verdict {
    router("fd00::1/64", None).answer(frame, &mut [0; ANSWER_MAX])
}

fn advert(router: &Router, frame: &[u8]) -> Advert {
    let mut answer = [0; ANSWER_MAX];
    match router.answer(frame, &mut answer) {
        Verdict::Reply(len) => Advert::parse(&answer[..len]),
        verdict => panic!("{verdict:?}"),
    }
}

const TO_GUEST: (EthernetAddress, Ipv6Addr) = (EthernetAddress(GUEST_MAC), GUEST);
const TO_ALL: (EthernetAddress, Ipv6Addr) = (EthernetAddress([0x33, 0x33, 0, 0, 0, 1]), ALL_NODES);

#[test]
fn a_solicitation_is_told_all_that_the_guest_needs() {
    let ours = router("fd00:0:0:7::1/64", None);
    let mut dns = vec![0, 0, 255, 255, 255, 255];
    dns.extend(DNS.octets());
    let expected = Advert {
        to: TO_GUEST,
        lifetime: 0,
        prefixes: vec![("fd00:0:0:7::".parse().unwrap(), 64, 0xc0)],
        mtu: Some(1400),
        dns,
    };
    assert_eq!(advert(&ours, &solicitation(GUEST, ALL_ROUTERS, &SLLA)), expected);
    assert_eq!(advert(&ours, &solicitation(GUEST, HOST, &[])), expected, "asked for itself");
    let unspecified = solicitation(Ipv6Addr::UNSPECIFIED, ALL_ROUTERS, &[]);
    assert_eq!(advert(&ours, &unspecified), Advert { to: TO_ALL, ..expected }, "it has no address yet");

    let host = HostV6::new("fd00::1".parse().unwrap(), 64).unwrap();
    let bare = Router::new(HOST_MAC, HOST, host, 1280, &[], &[], true).unwrap();
    assert_eq!(advert(&bare, &unspecified).dns, [0; 0]);
    assert!(Router::new(HOST_MAC, HOST, host, 1279, &[], &[], true).is_none(), "too small for IPv6");
    let many = Router::new(HOST_MAC, HOST, host, 65521, &[DNS; 9], &[], true).unwrap();
    assert_eq!(advert(&many, &unspecified).dns.len(), 6 + 3 * 16);
    let search = ["lan", "example.org"].map(|domain| domain.parse().unwrap());
    let told = Router::new(HOST_MAC, HOST, host, 1400, &[], &search, true).unwrap();
    let mut answer = [0; ANSWER_MAX];
    let len = told.advertise(&mut answer);
    // Type, units of 8 octets, reserved, for ever, the names (RFC 8106 §5.2).
    let option = b"\x1f\x04\0\0\xff\xff\xff\xff\x03lan\0\x07example\x03org\0\0\0\0\0\0\0";
    assert!(answer[..len].ends_with(option), "{:?}", &answer[len - 40..len]);
}

#[test]
fn a_guest_can_make_an_address_of_a_slash_64() {
    let told = |host: &str| {
        let router = router(host, None);
        let advert = advert(&router, &solicitation(GUEST, ALL_ROUTERS, &SLLA));
        let told = advert.prefixes.iter().map(|(prefix, len, flags)| format!("{prefix}/{len} {flags:x}"));
        (told.collect::<Vec<_>>(), router.has_slaac())
    };
    assert_eq!(told("fd00::1/64"), (vec!["fd00::/64 c0".into()], true));
    assert_eq!(told("fd00::7:0:0:0:1/48"), (vec!["fd00::/48 80".into(), "fd00:0:0:7::/64 c0".into()], true));
    assert_eq!(told("fd00::1/112"), (vec!["fd00::/112 80".into()], false));
    assert_eq!(told("fd00::1/128"), (vec![], false));
}

#[test]
fn a_guest_that_has_an_address_makes_none() {
    for host in ["fd00::1/48", "fd00::1/64"] {
        let host: crate::HostAddress = host.parse().unwrap();
        let ours = Router::new(HOST_MAC, HOST, host.v6().unwrap(), 1400, &[], &[], false).unwrap();
        let advert = advert(&ours, &solicitation(GUEST, ALL_ROUTERS, &SLLA));
        let on_link = ("fd00::".parse().unwrap(), host.prefix(), 0x80);
        assert_eq!((advert.prefixes, ours.has_slaac()), (vec![on_link], false));
    }
}

/// A file with this text, that nobody else sees.
fn file(text: &str) -> File {
    let fd = rustix::fs::memfd_create("forwarding", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn a_host_is_a_router_while_it_forwards() {
    let mut setting = file("1\n");
    let router = router("fd00::1/64", Some(setting.try_clone().unwrap()));
    let asked = solicitation(GUEST, ALL_ROUTERS, &SLLA);
    assert_eq!(advert(&router, &asked).lifetime, 65535);
    setting.rewind().unwrap();
    setting.write_all(b"0\n").unwrap();
    assert_eq!(advert(&router, &asked).lifetime, 0, "switched off meanwhile");
}

#[test]
fn what_is_not_for_us_passes() {
    let (ethernet, ip, icmp) = (HEADER_LEN, HEADER_LEN + 14, HEADER_LEN + 54);
    let right = || solicitation(GUEST, ALL_ROUTERS, &SLLA);
    for (what, at, value) in [
        ("segments", 1, 1),
        ("not IPv6", ethernet + 13, 0xde),
        ("not version 6", ip, 0x40),
        ("not ICMPv6", ip + 6, 17),
        ("forwarded", ip + 7, 254),
        ("another kind", icmp, 135),
        ("a code", icmp + 1, 1),
        ("checksum", icmp + 2, 0x55),
        ("an option without length", icmp + 9, 0),
        ("an option longer than the message", icmp + 9, 2),
    ] {
        let mut frame = right();
        assert!(matches!(verdict(&frame), Verdict::Reply(_)));
        frame[at] = value;
        if what != "checksum" && at >= icmp {
            frame[0] = 1; // The checksum is left to us, so that what was changed decides.
        }
        assert_eq!(verdict(&frame), Verdict::Pass, "{what}");
    }
    let far = solicitation(GUEST, DNS, &SLLA);
    assert_eq!(verdict(&far), Verdict::Pass, "to somebody else");
    let liar = solicitation(Ipv6Addr::UNSPECIFIED, ALL_ROUTERS, &SLLA);
    assert_eq!(verdict(&liar), Verdict::Pass, "without an address, but with an Ethernet address for it");
    let whole = right();
    for len in 0..whole.len() {
        assert_eq!(verdict(&whole[..len]), Verdict::Pass, "cut at {len}");
    }
}

fn send(backend: &mut dyn Backend, frame: &[u8]) -> Sent {
    let mut copy = frame.to_vec();
    let (first, second) = copy.split_at_mut(frame.len() / 2);
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(first)) && iov.push(VolatileSlice::from(second)));
    backend.send(&iov).unwrap()
}

fn recv(backend: &mut dyn Backend) -> io::Result<Vec<u8>> {
    let mut frame = vec![0xaa; 2000];
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(&mut frame[..])));
    let len = backend.recv(&mut iov)?;
    drop(iov);
    frame.truncate(len);
    Ok(frame)
}

fn is_empty(backend: &mut dyn Backend) -> bool {
    recv(backend).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn a_guest_that_asked_hears_of_its_router_again_in_time() {
    let (backend, peer) = SocketBackend::pair().unwrap();
    let mut backend = Autoconf::new(backend, None, Some(router("fd00::1/64", None)));
    backend.elapse(AGAIN);
    assert!(is_empty(&mut backend), "it never asked");

    let asked = solicitation(GUEST, ALL_ROUTERS, &SLLA);
    assert_eq!(send(&mut backend, &asked), Sent::Answered);
    assert_eq!(Advert::parse(&recv(&mut backend).unwrap()).to, TO_GUEST);
    backend.elapse(AGAIN / 2);
    assert!(is_empty(&mut backend), "it is not yet time");
    for _ in 0..2 {
        backend.elapse(AGAIN);
        peer.send(&[7; 60]).unwrap();
        assert_eq!(recv(&mut backend).unwrap(), [7; 60], "frames of others are first");
        assert_eq!(Advert::parse(&recv(&mut backend).unwrap()).to, TO_ALL);
        assert!(is_empty(&mut backend), "once");
    }
    peer.socket().set_nonblocking(true).unwrap();
    assert!(peer.recv().is_err(), "the host saw none of it");
}

#[test]
fn a_guest_that_asked_by_one_queue_hears_again_by_any() {
    let ((first, _one), (second, _two)) = (SocketBackend::pair().unwrap(), SocketBackend::pair().unwrap());
    let mut first = Autoconf::new(first, None, Some(router("fd00::1/64", None)));
    let mut second = first.beside(second);
    assert_eq!(send(&mut second, &solicitation(GUEST, ALL_ROUTERS, &SLLA)), Sent::Answered);
    assert!(is_empty(&mut first), "the answer comes where the question went");
    assert_eq!(Advert::parse(&recv(&mut second).unwrap()).to, TO_GUEST);
    first.elapse(AGAIN);
    assert_eq!(Advert::parse(&recv(&mut first).unwrap()).to, TO_ALL);
    assert!(is_empty(&mut first) && is_empty(&mut second), "once");
}

#[test]
fn the_time_between_is_less_than_the_lifetime() {
    assert!(AGAIN * 2 <= Duration::from_secs(LIFETIME.into()));
    // A DHCP client renews its lease after half of a day (RFC 2131 §4.4.5), and a frame is what it takes.
    assert!(Duration::from_secs(12 * 60 * 60) < Duration::from_secs(LIFETIME.into()));
}

/// What is true of every frame that is answered, and of every answer.
fn check(frame: &[u8]) {
    let mut answer = [0; ANSWER_MAX];
    let router = router("fd00::1/48", None);
    let Verdict::Reply(len) = router.answer(frame, &mut answer) else { return };
    let advert = Advert::parse(&answer[..len]);
    let at = |offset: usize, len: usize| &frame[HEADER_LEN + offset..][..len];
    assert_eq!((at(12, 2), at(20, 2), at(54, 2)), (&[0x86, 0xdd][..], &[58, 255][..], &[133, 0][..]));
    assert!(advert.to == TO_ALL || (at(6, 6), at(22, 16)) == (&advert.to.0.0, &advert.to.1.octets()));
    assert!(advert.to == TO_ALL || advert.to.1.is_unicast_link_local() && advert.to.0.is_unicast());
}

proptest! {
    #[test]
    fn no_bytes_panic(frame in proptest::collection::vec(any::<u8>(), 0..300)) {
        check(&frame);
    }

    #[test]
    fn no_frame_close_to_a_solicitation_panics_or_is_answered_wrongly(
        options in proptest::collection::vec((0..30u8, 0..4u8, proptest::collection::vec(any::<u8>(), 30)), 0..5),
        changes in proptest::collection::vec((0..120usize, any::<u8>()), 0..4),
        no_checksum: bool,
        unspecified: bool,
    ) {
        let option = |(kind, len, data): &(u8, u8, Vec<u8>)| {
            let mut bytes = vec![*kind, *len];
            bytes.extend(&data[..(usize::from(*len) * 8).saturating_sub(2)]);
            bytes
        };
        let options: Vec<u8> = options.iter().flat_map(option).collect();
        let from = if unspecified { Ipv6Addr::UNSPECIFIED } else { GUEST };
        let mut frame = solicitation(from, ALL_ROUTERS, &options);
        frame[0] = u8::from(no_checksum);
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        check(&frame);
        let (backend, _peer) = SocketBackend::pair().unwrap();
        let mut backend = Autoconf::new(backend, None, Some(router("fd00::1/64", None)));
        let answered = send(&mut backend, &frame) == Sent::Answered;
        prop_assert_eq!(answered, matches!(verdict(&frame), Verdict::Reply(_)), "the first look misses none");
    }
}

#[test]
fn where_the_kernel_carries_the_frames_the_listener_answers_and_says_when_to_look_again() {
    let (listens, guest) = UnixDatagram::pair().unwrap();
    listens.set_nonblocking(true).unwrap();
    guest.set_nonblocking(true).unwrap();
    let [(first, _first), (second, other)] = [(); 2].map(|()| SocketBackend::pair().unwrap());
    let listener = Some(Listener::over(listens.into()));
    let router = Some(router("fd00::1/64", None));
    let spare = Vec::<SocketBackend>::new();
    let mut queues = autoconf::in_front(first, vec![second], spare, None, router, listener);
    assert!(queues[0].asked_fd().is_some() && queues[1].asked_fd().is_none());
    assert_eq!(queues[0].answer(), None, "nobody has asked");

    // A packet socket's header has no number of buffers.
    const SHORTER: usize = 2;
    guest.send(&solicitation(GUEST, ALL_ROUTERS, &SLLA)[SHORTER..]).unwrap();
    let again = queues[0].answer().expect("it must hear of its router again");
    assert!(again > AGAIN / 2 && again <= AGAIN, "{again:?}");
    let mut reply = [0; 2000];
    let len = guest.recv(&mut reply[SHORTER..]).unwrap();
    assert_eq!(Advert::parse(&reply[..SHORTER + len]).to, TO_GUEST);
    assert_eq!(guest.recv(&mut reply).unwrap_err().kind(), io::ErrorKind::WouldBlock, "once");

    // What the guest sends by another queue that we carry after all is not answered twice.
    let mut frame = solicitation(GUEST, ALL_ROUTERS, &SLLA);
    let sent = frame.clone();
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(&mut frame[..])));
    assert_eq!(queues[1].send(&iov).unwrap(), Sent::Gone);
    assert_eq!(other.recv().unwrap(), sent);
}
