//! What the first look lets through, and the exact limits of options and of room.

use super::*;

#[test]
fn the_first_look_lets_through_what_may_be_a_request_alone() {
    let from_type = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = frame(&message(DhcpMessageType::Discover))[HEADER_LEN + 12..].to_vec();
        change(&mut bytes);
        may_be_request(&bytes)
    };
    assert!(from_type(&|_| {}) && from_type(&|bytes| bytes[8] = 0x40), "not fragmented, or not to be");
    for (what, at, value) in [
        ("not IPv4", 1, 6),
        ("options", 2, 0x46),
        ("more fragments", 8, 0x20),
        ("a fragment's offset", 8, 1),
        ("the least of an offset", 9, 1),
        ("not UDP", 11, 6),
        ("another port", 25, 68),
        ("another port", 24, 1),
    ] {
        assert!(!from_type(&|bytes| bytes[at] = value), "{what}");
    }
    let whole = &frame(&message(DhcpMessageType::Discover))[HEADER_LEN + 12..];
    assert!(may_be_request(&whole[..26]));
    assert!((0..26).all(|len| !may_be_request(&whole[..len])));
}

#[test]
fn a_fragment_is_no_request_though_its_sum_is_right() {
    for (at, value) in [(6, 0x20), (6, 1), (7, 1)] {
        let mut frame = frame(&message(DhcpMessageType::Discover));
        frame[HEADER_LEN + 14 + at] = value;
        Ipv4Packet::new_unchecked(&mut frame[HEADER_LEN + 14..]).fill_checksum();
        assert_eq!(verdict(&frame), Verdict::Pass, "{at}: {value:x}");
    }
    let mut frame = frame(&message(DhcpMessageType::Discover));
    frame[HEADER_LEN + 14 + 6] = 0x40;
    Ipv4Packet::new_unchecked(&mut frame[HEADER_LEN + 14..]).fill_checksum();
    assert!(matches!(verdict(&frame), Verdict::Reply(_)), "not to be fragmented");
}

/// The options of the offer to a client with an identifier of so many bytes, if it has one.
fn offered(lease: &Lease, len: usize) -> Vec<(u8, Vec<u8>)> {
    let options = [DhcpOption { kind: 61, data: &[0xab; 255][..len] }];
    let options = if len > 0 { &options[..] } else { &[] };
    let discover = DhcpRepr { additional_options: options, ..message(DhcpMessageType::Discover) };
    let mut reply = [0; ANSWER_MAX];
    let Verdict::Reply(reply_len) = lease.answer(&frame(&discover), &mut reply) else { panic!("no reply") };
    let packet = DhcpPacket::new_checked(&reply[HEADER_LEN + 14 + 20 + 8..reply_len]).unwrap();
    packet.options().map(|option| (option.kind, option.data.to_vec())).collect()
}

#[test]
fn the_routes_and_the_domains_share_the_room_beside_an_identifier() {
    let host = "10.0.0.1/32".parse::<crate::HostAddress>().unwrap().v4().unwrap();
    let search: [Domain; 1] = ["example.org".parse().unwrap()];
    let lease = Lease::to(Mac::new(GUEST_MAC).unwrap(), GUEST, host, HOST_MAC, 1400)
        .with_dns(&DNS)
        .with_search(&search);
    // 249 bytes, less 14 of routes behind a header of 2, less the 13 of the domain.
    const BOTH: usize = 249 - 14 - 2 - 13;
    for (len, routes, domains) in [
        (0, true, true),
        (BOTH, true, true),
        (BOTH + 1, true, false),
        (235, true, false),
        // Without the routes there is room for the domain.
        (236, false, true),
        (237, false, false),
        (255, false, false),
    ] {
        let options = offered(&lease, len);
        let has = |kind| options.iter().any(|option| option.0 == kind);
        assert_eq!((has(121), has(119)), (routes, domains), "an identifier of {len} bytes");
        assert!(len == 0 || options.contains(&(61, vec![0xab; len])), "it comes back whole");
    }
}

#[test]
fn an_answer_fits_a_space_as_long_as_it_and_no_shorter_one() {
    let (mut backend, _peer) = wire();
    let discover = frame(&message(DhcpMessageType::Discover));
    send(&mut backend, &discover, 30);
    let len = recv(&mut backend, 2000).unwrap().len();
    send(&mut backend, &discover, 30);
    assert_eq!(Answer::parse(&recv(&mut backend, len).unwrap()).repr().0, DhcpMessageType::Offer);
    send(&mut backend, &discover, 30);
    assert_eq!(recv(&mut backend, len - 1).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
}
