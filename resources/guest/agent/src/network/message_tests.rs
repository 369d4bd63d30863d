use proptest::prelude::*;

use super::*;

const QUESTION: Question = Question {
    kind: Kind::Discover,
    transaction: 0x0102_0304,
    mac: [6, 1, 2, 3, 4, 5],
    has: None,
    wants: None,
    server: None,
};

/// An answer to that with these options.
fn answer(options: &[u8]) -> Vec<u8> {
    let mut bytes = QUESTION.to_bytes();
    bytes.truncate(FIXED_LEN);
    bytes[0] = 2;
    bytes[16..20].copy_from_slice(&[10, 0, 0, 2]);
    bytes.extend(options);
    bytes.push(255);
    bytes
}

fn parsed(options: &[u8]) -> Option<Answer> {
    Answer::parse(&answer(&[&[53, 1, 5], options].concat()), &QUESTION)
}

const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

#[test]
fn an_answer_has_what_its_options_say() {
    let options = [
        &[1, 4, 255, 255, 0, 0, 3, 8, 10, 0, 0, 1, 10, 0, 0, 9, 6, 8, 1, 1, 1, 1, 9, 9, 9, 9][..],
        &[12, 3, b'w', b'e', b'b', 15, 2, b'l', b'n', 26, 2, 5, 0, 51, 4, 0, 0, 14, 16, 54, 4, 10, 0, 0, 1],
    ]
    .concat();
    let seconds = Duration::from_secs;
    assert_eq!(
        parsed(&options),
        Some(Answer {
            kind: Kind::Ack,
            address: Ipv4Addr::new(10, 0, 0, 2),
            mask: Ipv4Addr::new(255, 255, 0, 0),
            routes: vec![(NONE, NONE, Ipv4Addr::new(10, 0, 0, 1))],
            dns: vec![Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(9, 9, 9, 9)],
            search: vec!["ln".into()],
            hostname: Some("web".into()),
            mtu: Some(1280),
            server: Some(Ipv4Addr::new(10, 0, 0, 1)),
            lease: seconds(3600),
            renew: seconds(1800),
            rebind: seconds(3150),
        })
    );
}

#[test]
fn what_no_host_can_have_is_no_answer() {
    let given = |address: [u8; 4], mask: [u8; 4]| {
        let mut bytes = answer(&[&[53, 1, 2, 1, 4][..], &mask].concat());
        bytes[16..20].copy_from_slice(&address);
        Answer::parse(&bytes, &QUESTION).is_some()
    };
    for mask in [[255, 0, 255, 0], [0, 255, 255, 255], [255, 255, 255, 1], [127, 0, 0, 0]] {
        assert!(!given([10, 0, 0, 2], mask), "{mask:?}");
    }
    for address in
        [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255], [10, 0, 0, 0], [10, 0, 0, 255]]
    {
        assert!(!given(address, [255, 255, 255, 0]), "{address:?}");
    }
    assert!(given([10, 0, 0, 255], [255, 255, 0, 0]) && given([10, 0, 0, 0], [255, 255, 255, 254]));
    assert!(given([10, 0, 0, 3], [255; 4]) && given([10, 1, 2, 3], [0; 4]));
    // A refusal gives none.
    let mut refused = answer(&[53, 1, 6]);
    refused[16..20].fill(0);
    assert_eq!(Answer::parse(&refused, &QUESTION).map(|answer| answer.kind), Some(Kind::Nak));
}

#[test]
fn classless_routes_go_before_routers() {
    let gateway = [10, 0, 0, 1];
    let value = [&[0][..], &gateway, &[9, 10, 128], &gateway, &[32, 10, 0, 0, 7], &[0; 4]].concat();
    let options = [&[3, 4, 10, 0, 0, 9, 121, value.len() as u8][..], &value].concat();
    assert_eq!(
        parsed(&options).unwrap().routes,
        [
            (NONE, NONE, gateway.into()),
            (Ipv4Addr::new(10, 128, 0, 0), Ipv4Addr::new(255, 128, 0, 0), gateway.into()),
            (Ipv4Addr::new(10, 0, 0, 7), Ipv4Addr::BROADCAST, NONE),
        ]
    );
    for bad in [&[33, 1, 1, 1, 1, 1, 1, 1, 1, 1][..], &[8, 10, 1]] {
        assert_eq!(classless(bad), None);
    }
}

#[test]
fn search_domains_are_names_with_pointers() {
    let value = *b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04";
    assert_eq!(domains(&value), ["eng.apple.com", "marketing.apple.com"]);
    // A pointer to itself, a name that is cut off, and what is no name.
    assert_eq!(domains(b"\xc0\x00"), [""; 0]);
    assert_eq!(domains(b"\x05app"), [""; 0]);
    assert_eq!(domains(b"\x03a\nb\x00"), [""; 0]);
}

#[test]
fn what_is_no_answer_is_none() {
    let right = answer(&[53, 1, 2]);
    assert_eq!(Answer::parse(&right, &QUESTION).unwrap().kind, Kind::Offer);
    for (at, why) in
        [(0, "a request"), (4, "of another transaction"), (28, "of another client"), (236, "no DHCP")]
    {
        let mut wrong = right.clone();
        wrong[at] ^= 3;
        assert_eq!(Answer::parse(&wrong, &QUESTION), None, "{why}");
    }
    assert_eq!(Answer::parse(&right[..239], &QUESTION), None);
    assert_eq!(Answer::parse(&answer(&[53, 1, 9]), &QUESTION), None);
}

#[test]
fn an_option_in_parts_is_one() {
    assert_eq!(parsed(&[6, 4, 1, 1, 1, 1, 0, 6, 4, 2, 2, 2, 2]).unwrap().dns.len(), 2);
    // A name that would write more lines of resolv.conf.
    assert_eq!(parsed(b"\x0f\x06a\nb c\n").unwrap().search, [""; 0]);
}

#[test]
fn times_are_ordered_whatever_a_server_says() {
    for (lease, t1, t2) in
        [(0u32, 0u32, 0u32), (60, 90, 80), (3600, 3599, 10), (u32::MAX, 1, 2), (40, 39, 39)]
    {
        let [a, b, c, d] = lease.to_be_bytes();
        let ([e, f, g, h], [i, j, k, l]) = (t1.to_be_bytes(), t2.to_be_bytes());
        let answer = parsed(&[51, 4, a, b, c, d, 58, 4, e, f, g, h, 59, 4, i, j, k, l]).unwrap();
        assert!(answer.renew >= Duration::from_secs(7), "{answer:?}");
        assert!(answer.lease >= Duration::from_secs(30) && answer.renew < answer.lease, "{answer:?}");
    }
}

proptest! {
    #[test]
    fn any_options_are_an_answer_or_none(options in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parsed(&options);
        let _ = domains(&options);
        let _ = classless(&options);
    }
}
