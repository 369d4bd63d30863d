use std::net::Ipv4Addr;

use super::*;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A socket that is silent when nothing comes, after a while.
fn bound() -> UdpSocket {
    let socket = UdpSocket::bind((LOOPBACK, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// A relay with one ear, and what is at its ends: the guest, and the resolver.
fn relay() -> (Relay, UdpSocket, UdpSocket) {
    let (guest, theirs) = (bound(), bound());
    let [ear, resolver] = [(); 2].map(|()| {
        let socket = bound();
        socket.set_nonblocking(true).unwrap();
        socket
    });
    guest.connect(ear.local_addr().unwrap()).unwrap();
    resolver.connect(theirs.local_addr().unwrap()).unwrap();
    theirs.connect(resolver.local_addr().unwrap()).unwrap();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let connections = Connections::listen(0, &[], LOOPBACK).unwrap();
    let (waiting, buffer) = ([None; WAITING], vec![0; ANSWER_MAX]);
    (Relay { epoll, ears: vec![ear], resolver, connections, waiting, buffer }, guest, theirs)
}

/// A query of that ID.
fn query(id: u16) -> Vec<u8> {
    [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1]].concat()
}

/// What answers it.
fn answer(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= IS_ANSWER;
    answer.push(0xab);
    answer
}

/// The next datagram.
fn next(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2000];
    let len = socket.recv(&mut buffer).unwrap();
    buffer[..len].to_vec()
}

fn is_silent(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    let error = socket.recv(&mut [0; 1]).err();
    socket.set_nonblocking(false).unwrap();
    error.is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Has the guest ask so, and what the resolver is asked.
fn ask(relay: &mut Relay, guest: &UdpSocket, resolver: &UdpSocket, query: &[u8]) -> Vec<u8> {
    guest.send(query).unwrap();
    relay.hand_on();
    next(resolver)
}

#[test]
fn each_query_has_a_place_and_an_id_of_its_own_and_all_are_answered() {
    let (mut relay, guest, resolver) = relay();
    let asked: Vec<_> = (0..WAITING as u16)
        .map(|place| {
            let asked = ask(&mut relay, &guest, &resolver, &query(0x1200 + place));
            assert_eq!(usize::from(asked[1]) % WAITING, usize::from(place));
            assert_eq!(asked[2..], query(0)[2..], "but for its ID it is the same");
            asked
        })
        .collect();
    assert!(asked.iter().any(|asked| asked[1] >= WAITING as u8), "the rest is not to be guessed");
    // There is no place for one more.
    guest.send(&query(7)).unwrap();
    relay.hand_on();
    assert!(is_silent(&resolver));
    for (place, asked) in asked.iter().enumerate().rev() {
        resolver.send(&answer(asked)).unwrap();
        relay.hand_on();
        assert_eq!(next(&guest), answer(&query(0x1200 + place as u16)));
    }
    assert!(relay.waiting.iter().all(Option::is_none));
}

#[test]
fn only_the_answer_to_a_query_goes_to_the_guest_and_once() {
    let (mut relay, guest, resolver) = relay();
    let asked = ask(&mut relay, &guest, &resolver, &query(1));
    let [mut high, mut place, mut rest] = [(); 3].map(|()| answer(&asked));
    high[0] ^= 1;
    place[1] ^= 1;
    rest[1] ^= 0x80;
    for wrong in [&high[..], &place, &rest, &asked, &answer(&asked)[..2], b""] {
        resolver.send(wrong).unwrap();
        relay.hand_on();
        assert!(is_silent(&guest), "{wrong:02x?}");
    }
    resolver.send(&answer(&asked)).unwrap();
    resolver.send(&answer(&asked)).unwrap();
    relay.hand_on();
    assert_eq!(next(&guest), answer(&query(1)));
    assert!(is_silent(&guest));
}

#[test]
fn the_place_of_one_without_an_answer_is_free_after_a_while() {
    let (mut relay, guest, resolver) = relay();
    for id in 0..WAITING as u16 {
        ask(&mut relay, &guest, &resolver, &query(id));
    }
    let ago = |time| Instant::now().checked_sub(time).unwrap();
    relay.waiting[5].as_mut().unwrap().since = ago(PATIENCE / 2);
    relay.waiting[9].as_mut().unwrap().since = ago(PATIENCE + Duration::from_millis(1));
    let asked = ask(&mut relay, &guest, &resolver, &query(0xabcd));
    assert_eq!(asked[1] % WAITING as u8, 9);
    guest.send(&query(1)).unwrap();
    relay.hand_on();
    assert!(is_silent(&resolver), "the others wait for their answers");
}

#[test]
fn a_resolver_that_was_not_there_is_heard_when_it_is() {
    let (mut relay, guest, resolver) = relay();
    let asked = ask(&mut relay, &guest, &resolver, &query(1));
    let [at, from] = [resolver.local_addr().unwrap(), relay.resolver.local_addr().unwrap()];
    drop(resolver);
    // The refusal waits before the answer.
    relay.resolver.send(&query(2)).unwrap();
    let resolver = UdpSocket::bind(at).unwrap();
    resolver.send_to(&answer(&asked), from).unwrap();
    relay.hand_on();
    assert_eq!(next(&guest), answer(&query(1)));
}

#[test]
fn a_query_is_one_question_and_short() {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    assert!(is_query(&query) && !is_query(&query[..11]) && !is_query(&[]));
    query.resize(QUERY_MAX, 0);
    assert!(is_query(&query));
    query.push(0);
    assert!(!is_query(&query), "too long");
    for (at, value) in [(2, 0x81), (2, 0x28), (2, 0x10), (5, 0), (5, 2), (4, 1)] {
        let mut other = query[..12].to_vec();
        other[at] = value;
        assert!(!is_query(&other), "{at}: {value:x}");
    }
}
