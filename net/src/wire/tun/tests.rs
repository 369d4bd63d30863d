use proptest::prelude::*;

use super::*;
use crate::{SocketBackend, SocketPeer, SoftOffload};

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GATEWAY: [u8; 6] = [6, 0, 0, 0, 0, 1];

/// A tun of which the packets go to a socket.
fn tun() -> (Tun<SocketBackend>, SocketPeer) {
    let (packets, peer) = SocketBackend::pair().unwrap();
    peer.socket().set_nonblocking(true).unwrap();
    let guest = Mac::new(GUEST).unwrap();
    (Tun::new(packets, guest, Gateway::new(guest, vec![[10, 0, 0, 1].into()])), peer)
}

/// A header: flags, no segments, `hdr_len`, no size, `csum_start`, `csum_offset`, `num_buffers`.
fn header(flags: u8, hdr_len: u16, csum_start: u16) -> Vec<u8> {
    let ([a, b], [c, d]) = (hdr_len.to_le_bytes(), csum_start.to_le_bytes());
    vec![flags, 0, a, b, 0, 0, c, d, 6, 0, 1, 0]
}

fn frame(header: &[u8], ethertype: [u8; 2], packet: &[u8]) -> Vec<u8> {
    [header, &GATEWAY, &GUEST, &ethertype, packet].concat()
}

/// A packet of `len` bytes, IPv4 or IPv6, to the address of these bytes.
fn packet(len: usize, to: &[u8]) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
    let (first, at) = if to.len() == 4 { (0x45, 16) } else { (0x60, 24) };
    packet[0] = first;
    packet[6] = 17;
    packet[at..][..to.len()].copy_from_slice(to);
    packet
}

/// Cuts bytes into buffers at these places.
fn pieces<'a>(mut bytes: &'a mut [u8], cuts: &[usize]) -> Vec<&'a mut [u8]> {
    let mut pieces = Vec::new();
    for &cut in cuts {
        let (piece, rest) = bytes.split_at_mut(cut.min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

/// Calls `call` with the pieces of `bytes`, which are apart in memory.
fn with_iov<T>(bytes: &mut [u8], cuts: &[usize], call: impl FnOnce(&mut Iov<'_>) -> T) -> T {
    let mut apart: Vec<_> = pieces(bytes, cuts).into_iter().map(|piece| [piece, &mut [0]].concat()).collect();
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    for piece in &mut apart {
        let (_, piece) = piece.split_last_mut().unwrap();
        assert!(iov.push(VolatileSlice::from(piece)));
    }
    let result = call(&mut iov);
    drop(iov);
    for (piece, from) in pieces(bytes, cuts).into_iter().zip(apart) {
        piece.copy_from_slice(&from[..piece.len()]);
    }
    result
}

fn send(tun: &mut Tun<SocketBackend>, frame: &[u8], cuts: &[usize]) -> io::Result<Sent> {
    with_iov(&mut frame.to_vec(), cuts, |iov| tun.send(iov))
}

fn recv(tun: &mut Tun<SocketBackend>, space: usize, cuts: &[usize]) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xaa; space];
    let len = with_iov(&mut bytes, cuts, |iov| tun.recv(iov))?;
    assert!(bytes[len..].iter().all(|&byte| byte == 0xaa), "nothing is written behind the frame");
    bytes.truncate(len);
    Ok(bytes)
}

const TO_V4: &[u8] = &[10, 0, 0, 1];
const TO_V6: &[u8] = &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

#[test]
fn a_frame_goes_out_as_its_packet() {
    let (mut tun, peer) = tun();
    for (ethertype, to) in [(IPV4, TO_V4), (IPV6, TO_V6)] {
        let packet = packet(60, to);
        assert_eq!(send(&mut tun, &frame(&header(0, 0, 0), ethertype, &packet), &[]).unwrap(), Sent::Gone);
        assert_eq!(peer.recv().unwrap(), [header(0, 0, 0), packet].concat());
    }
    assert_eq!(tun.not_ip().load(Ordering::Relaxed), 0);
}

#[test]
fn what_the_header_counts_from_the_frame_moves_with_it() {
    let (mut tun, peer) = tun();
    let packet = packet(60, TO_V4);
    for (out, within) in [
        (header(NEEDS_CSUM, 54, 34), header(NEEDS_CSUM, 40, 20)),
        (header(NEEDS_CSUM, 0, 34), header(NEEDS_CSUM, 0, 20)),
        (header(0, 54, 0), header(0, 40, 0)),
        (header(2, 0, 0), header(2, 0, 0)),
    ] {
        let frame = frame(&out, IPV4, &packet);
        send(&mut tun, &frame, &[]).unwrap();
        assert_eq!(peer.recv().unwrap()[..HEADER_LEN], within);
        peer.send(&[&within, &packet[..]].concat()).unwrap();
        assert_eq!(recv(&mut tun, 200, &[]).unwrap()[..HEADER_LEN], out);
    }
    for (start, expected) in [(13, None), (14, Some(0))] {
        let sent = send(&mut tun, &frame(&header(NEEDS_CSUM, 0, start), IPV4, &packet), &[]);
        assert_eq!(sent.is_ok(), expected.is_some(), "a checksum of the Ethernet header is none");
        let start = peer.recv().ok().map(|sent| u16::from_le_bytes([sent[6], sent[7]]));
        assert_eq!(start, expected);
    }
    send(&mut tun, &frame(&header(0, 5, 7), IPV4, &packet), &[]).unwrap();
    assert_eq!(peer.recv().unwrap()[..HEADER_LEN], header(0, 0, 7), "a start without a checksum is nothing");
}

#[test]
fn segments_made_in_software_go_out_as_packets() {
    let csum = Offloads { csum: true, ..Offloads::default() };
    let (packets, peer) = SocketBackend::pair().unwrap();
    let guest = Mac::new(GUEST).unwrap();
    let gateway = Gateway::new(guest, vec![[10, 0, 0, 1].into()]);
    let tun = Tun::new(packets.with_offloads(csum), guest, gateway);
    let mut backend = SoftOffload::wrap(Box::new(tun), Offloads { uso: true, ..csum });
    // UDP, 20 bytes of payload of which 8 are in a datagram.
    let mut whole = packet(20 + 8 + 20, TO_V4);
    whole[9] = 17;
    let header = [NEEDS_CSUM, 5, 42, 0, 8, 0, 34, 0, 6, 0, 0, 0];
    with_iov(&mut frame(&header, IPV4, &whole), &[30, 20], |iov| backend.send(iov)).unwrap();
    for payload in [&whole[28..36], &whole[36..44], &whole[44..]] {
        let sent = peer.recv().unwrap();
        assert_eq!(sent[..HEADER_LEN], [NEEDS_CSUM, 0, 0, 0, 0, 0, 20, 0, 6, 0, 0, 0]);
        let packet = &sent[HEADER_LEN..];
        let len = 28 + payload.len();
        assert_eq!((packet[0], packet.len(), packet[3], packet[25]), (0x45, len, len as u8, len as u8 - 20));
        assert_eq!(&packet[28..], payload);
    }
}

#[test]
fn a_packet_comes_in_as_a_frame_to_the_guest() {
    let (mut tun, peer) = tun();
    for (ethertype, to, mac) in [
        (IPV4, TO_V4, GUEST),
        (IPV6, TO_V6, GUEST),
        (IPV4, &[224, 0, 0, 251], [0x01, 0x00, 0x5e, 0, 0, 251]),
        (IPV4, &[255; 4], [0xff; 6]),
        (IPV6, &[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]),
    ] {
        let packet = packet(60, to);
        peer.send(&[header(0, 0, 0), packet.clone()].concat()).unwrap();
        let expected = [&header(0, 0, 0)[..], &mac, &GATEWAY, &ethertype, &packet].concat();
        assert_eq!(recv(&mut tun, 200, &[]).unwrap(), expected, "{to:?}");
    }
    assert_eq!(recv(&mut tun, 200, &[]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    for nonsense in [&[][..], &[0x50; 40], &[0x45; 19], &[0x60; 39]] {
        peer.send(&[&header(0, 0, 0), nonsense].concat()).unwrap();
        assert_eq!(recv(&mut tun, 200, &[]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn a_packet_that_does_not_fit_behind_its_headers_is_lost() {
    let (mut tun, peer) = tun();
    let packet = packet(60, TO_V4);
    for (space, fits) in [(FRONT + 60, true), (FRONT + 59, false), (FRONT, false), (HEADER_LEN, false)] {
        peer.send(&[header(0, 0, 0), packet.clone()].concat()).unwrap();
        match recv(&mut tun, space, &[]) {
            Ok(frame) => assert!(fits && frame.len() == space),
            Err(error) => assert!(!fits && error.raw_os_error() == Some(libc::EMSGSIZE), "{error}"),
        }
    }
}

#[test]
fn what_is_not_ip_is_counted_and_goes_nowhere() {
    let (mut tun, peer) = tun();
    let good = packet(60, TO_V4);
    let tagged = [&[0, 5, 8, 0][..], &good].concat();
    let frames = [
        frame(&header(0, 0, 0), [0x81, 0], &tagged),
        frame(&header(0, 0, 0), [0x88, 0xcc], &good),
        frame(&header(0, 0, 0), IPV6, &good),
        frame(&header(0, 0, 0), IPV4, &packet(60, TO_V6)),
        frame(&header(0, 0, 0), IPV4, &[]),
        header(0, 0, 0),
    ];
    for (before, frame) in frames.iter().enumerate() {
        assert_eq!(tun.not_ip().load(Ordering::Relaxed), before as u64);
        assert_eq!(send(&mut tun, frame, &[]).unwrap(), Sent::Gone);
    }
    assert_eq!(tun.not_ip().load(Ordering::Relaxed), frames.len() as u64);
    assert_eq!(peer.recv().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn neighbours_are_answered_here_and_their_messages_go_nowhere() {
    let (mut tun, peer) = tun();
    let mut arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &GUEST, &[10, 0, 0, 2], &[0; 6], TO_V4].concat();
    assert_eq!(send(&mut tun, &frame(&header(0, 0, 0), ARP, &arp), &[7, 20]).unwrap(), Sent::Answered);
    let reply = recv(&mut tun, 200, &[5, 9]).unwrap();
    assert_eq!(reply[HEADER_LEN..][..22], *[&GUEST[..], &GATEWAY, &ARP, &[0, 1, 8, 0, 6, 4, 0, 2]].concat());
    assert_eq!(recv(&mut tun, 200, &[]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    arp[7] = 2;
    assert_eq!(send(&mut tun, &frame(&header(0, 0, 0), ARP, &arp), &[]).unwrap(), Sent::Gone);

    let mut icmp = packet(60, TO_V6);
    (icmp[6], icmp[7]) = (ICMPV6, 255);
    for kind in 133..=137 {
        icmp[IPV6_LEN] = kind;
        assert_eq!(send(&mut tun, &frame(&header(0, 0, 0), IPV6, &icmp), &[]).unwrap(), Sent::Gone);
    }
    assert_eq!(peer.recv().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(tun.not_ip().load(Ordering::Relaxed), 0);
    for (at, byte) in [(IPV6_LEN, 128), (IPV6_LEN, 132), (IPV6_LEN, 138), (7, 254), (6, 17)] {
        let mut other = icmp.clone();
        other[at] = byte;
        send(&mut tun, &frame(&header(0, 0, 0), IPV6, &other), &[]).unwrap();
        assert_eq!(peer.recv().unwrap()[HEADER_LEN..], other, "an echo, or from far away, or no ICMPv6");
    }
}

#[test]
fn a_guest_may_have_another_mac_but_not_its_gateways() {
    let (mut tun, peer) = tun();
    let other = [2, 0, 0, 0, 0, 9];
    tun.set_filter(&RxFilter::new(Mac::new(other).unwrap())).unwrap();
    let error = tun.set_filter(&RxFilter::new(Mac::new(GATEWAY).unwrap())).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    peer.send(&[header(0, 0, 0), packet(60, TO_V4)].concat()).unwrap();
    let front = [&other[..], &GATEWAY, &IPV4].concat();
    assert_eq!(recv(&mut tun, 200, &[]).unwrap()[HEADER_LEN..FRONT], front);
}

#[test]
fn a_frame_of_too_many_buffers_is_refused_whole() {
    let (mut tun, peer) = tun();
    let mut frame = frame(&header(0, 0, 0), IPV4, &packet(1100, TO_V4));
    let cuts = |first: usize| std::iter::once(first).chain(std::iter::repeat_n(1, IovBuffer::MAX - 2));
    let cuts = [cuts(FRONT + 1), cuts(FRONT)].map(Iterator::collect::<Vec<_>>);
    let refused = with_iov(&mut frame, &cuts[0], |iov| {
        assert_eq!(iov.buffers(), IovBuffer::MAX);
        tun.send(iov).is_err()
    });
    assert!(refused);
    assert_eq!(peer.recv().unwrap_err().kind(), io::ErrorKind::WouldBlock, "not even a part of it");
    assert_eq!(with_iov(&mut frame, &cuts[1], |iov| tun.send(iov)).unwrap(), Sent::Gone);
    assert_eq!(peer.recv().unwrap().len(), HEADER_LEN + 1100);
}

proptest! {
    #[test]
    fn frames_pass_whatever_their_buffers(
        len in 41..200usize,
        v6 in any::<bool>(),
        cuts in proptest::collection::vec(0..30usize, 0..12),
        room in 0..40usize,
    ) {
        let (mut tun, peer) = tun();
        let (ethertype, to) = if v6 { (IPV6, TO_V6) } else { (IPV4, TO_V4) };
        let packet = packet(len, to);
        send(&mut tun, &frame(&header(NEEDS_CSUM, 0, 34), ethertype, &packet), &cuts).unwrap();
        let out = peer.recv().unwrap();
        prop_assert_eq!(&out, &[header(NEEDS_CSUM, 0, 20), packet.clone()].concat());
        peer.send(&out).unwrap();
        let back = recv(&mut tun, FRONT + len + room, &cuts).unwrap();
        let expected = [&header(NEEDS_CSUM, 0, 34)[..], &GUEST, &GATEWAY, &ethertype, &packet].concat();
        prop_assert_eq!(back, expected);
    }

    #[test]
    fn no_frame_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        kind in 0..4usize,
        cuts in proptest::collection::vec(0..30usize, 0..6),
    ) {
        let (mut tun, peer) = tun();
        let mut frame = bytes.clone();
        if let Some(ethertype) = frame.get_mut(FRONT - 2..FRONT) {
            ethertype.copy_from_slice(&[IPV4, IPV6, ARP, [0x81, 0]][kind]);
        }
        let _ = send(&mut tun, &frame, &cuts);
        peer.send(&[&header(0, 0, 0), &bytes[..]].concat()).unwrap();
        let _ = recv(&mut tun, 300, &cuts);
    }
}
