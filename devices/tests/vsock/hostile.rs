//! Drivers that lie: each costs its guest a connection or the device, and nothing else.

use std::io::{Read, Write};
use std::time::Instant;

use devices::virtio::mock::Buffer;
use proptest::prelude::*;

use crate::rig::*;

#[test]
fn a_lie_ends_its_connection_and_no_other() {
    let mut rig = Rig::started();
    rig.post(64);
    let (mut honest, host) = rig.connected();
    type Lie = fn(&mut Rig, Packet);
    let lies: [(&str, Lie); 7] = [
        ("a payload that is not there", |rig, packet| {
            rig.send_as(&Packet { op: RW, len: 9, ..packet }.bytes(), b"8 bytes!")
        }),
        ("a request for what is open", |rig, packet| rig.send(Packet { op: REQUEST, ..packet }, b"")),
        ("an answer to no question", |rig, packet| rig.send(Packet { op: RESPONSE, ..packet }, b"")),
        ("an operation that there is not", |rig, packet| rig.send(Packet { op: 99, ..packet }, b"")),
        ("no operation", |rig, packet| rig.send(Packet { op: 0, ..packet }, b"")),
        ("bytes behind the end", |rig, packet| {
            rig.send(Packet { op: SHUTDOWN, flags: NO_SEND, ..packet }, b"");
            rig.send(Packet { op: RW, ..packet }, b"more");
        }),
        ("more than it was promised room for", |rig, packet| {
            for _ in 0..300 {
                rig.send(Packet { op: RW, ..packet }, &[0; 4000]);
            }
        }),
    ];
    for (number, (what, lie)) in lies.into_iter().enumerate() {
        let guest = 6000 + number as u32;
        let (_program, _) = rig.requested(guest);
        lie(&mut rig, Packet::new(RW, guest, 53));
        loop {
            let (packet, _) = rig.receive();
            assert_eq!(packet.dst_port, guest, "{what}: {packet:?}");
            match packet.op {
                CREDIT_UPDATE => {}
                op => break assert_eq!(op, RST, "{what}"),
            }
        }
        // What it sent behind the lie is for nobody.
        while rig.receive_within(SHORT).is_some() {}
        rig.send(Packet::new(RW, 1024, host), b"fine");
        let mut said = [0; 4];
        honest.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"fine");
    }
}

#[test]
fn a_payload_is_as_long_as_its_header_says() {
    let mut rig = Rig::started();
    rig.post(64);
    let (mut program, host) = rig.connected();
    rig.send_as(&Packet { len: 4, ..Packet::new(RW, 1024, host) }.bytes(), b"fourmore");
    rig.send(Packet::new(RW, 1024, host), b"five!");
    let mut said = [0; 9];
    program.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"fourfive!");
}

#[test]
fn what_is_for_nobody_is_not_answered_and_other_sockets_are_refused() {
    let mut rig = Rig::started();
    rig.post(64);
    rig.send(Packet { dst_cid: 4, ..Packet::new(REQUEST, 1, 2) }, b"");
    rig.send(Packet { src_cid: 5, ..Packet::new(REQUEST, 1, 2) }, b"");
    rig.send(Packet::new(RST, 1, 2), b"");
    rig.expect_silence();
    rig.send(Packet { kind: 2, ..Packet::new(REQUEST, 1, 2) }, b"");
    rig.expect(RST);
    rig.send(Packet::new(CREDIT_REQUEST, 1, 2), b"");
    rig.expect(RST);
}

#[test]
fn a_guest_that_makes_no_room_is_heard_no_more_until_it_does() {
    let mut rig = Rig::started();
    // Each of these is to be answered by a reset.
    for number in 0..256 {
        rig.send(Packet::new(RW, number, 1), b"");
    }
    rig.expect_taken();
    for number in 256..300 {
        rig.send(Packet::new(RW, number, 1), b"");
    }
    std::thread::sleep(SHORT);
    assert_eq!(rig.tx.pending(), 0, "it takes more than it has answers for");
    rig.post(64);
    for number in 0..300 {
        assert_eq!(rig.expect(RST).dst_port, number);
    }
    rig.expect_taken();
}

#[test]
fn connections_that_come_and_go_unheard_leave_nothing() {
    let mut rig = Rig::started();
    rig.ports.open.lock().unwrap().insert(53);
    for _ in 0..2000 {
        rig.send(Packet::new(REQUEST, 7, 53), b"");
        // Its answer waits for room.
        let mut program = rig.program_that_came();
        rig.send(Packet::new(RST, 7, 53), b"");
        expect_end(&mut program);
    }
    rig.post(8);
    rig.expect_silence();
    rig.requested(8);
}

#[test]
fn a_guest_has_no_more_connections_than_there_may_be() {
    let mut rig = Rig::started();
    rig.post(64);
    let mut programs = Vec::new();
    for guest in 0..1024 {
        programs.push(rig.requested(guest).0);
    }
    rig.send(Packet::new(REQUEST, 2000, 53), b"");
    assert_eq!(rig.expect(RST).dst_port, 2000);
    expect_end(&mut rig.program("CONNECT 1024\n"));
    // One that ends makes room.
    rig.send(Packet::new(RST, 7, 53), b"");
    expect_end(&mut programs[7]);
    rig.requested(2001);
    // And those that wait for the host's answer are fewer still.
    let mut rig = Rig::started();
    rig.post(64);
    *rig.ports.silent.lock().unwrap() = true;
    for guest in 0..64 {
        rig.send(Packet::new(REQUEST, guest, 53), b"");
    }
    rig.expect_silence();
    rig.send(Packet::new(REQUEST, 64, 53), b"");
    assert_eq!(rig.expect(RST).dst_port, 64);
}

#[test]
fn a_program_that_reads_nothing_holds_up_no_other() {
    let mut rig = Rig::started();
    rig.post(64);
    let (_idle, response) = rig.connected_with();
    let full = noise(response.buf_alloc as usize, 4);
    for piece in full.chunks(4000) {
        rig.send(Packet::new(RW, 1024, response.src_port), piece);
    }
    while rig.receive_within(SHORT).is_some() {}
    let (mut program, _) = rig.requested(5000);
    program.write_all(b"in").unwrap();
    assert_eq!(rig.receive().1, b"in");
    rig.send(Packet::new(RW, 5000, 53), b"out");
    let mut said = [0; 3];
    program.read_exact(&mut said).unwrap();
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_works_after_it() {
    type Lie = fn(&mut Rig);
    let lies: [(&str, Lie); 4] = [
        ("a header that is cut off", |rig| rig.send_as(&[0; 43], b"")),
        ("a packet that the device is to write", |rig| {
            rig.tx.add(&[Buffer::writable(0x20_0000, 64)]);
            rig.tx.publish();
            rig.mmio().kick(1);
        }),
        ("room for a header alone", |rig| {
            rig.rx.add(&[Buffer::writable(0x10_0000, 44)]);
            rig.rx.publish();
            rig.send(Packet::new(RW, 1, 1), b"");
        }),
        ("an index that runs away", |rig| {
            rig.tx.lie_avail_idx(SIZE + 1);
            rig.mmio().kick(1);
        }),
    ];
    for (what, lie) in lies {
        let mut rig = Rig::started();
        lie(&mut rig);
        let until = Instant::now() + LONG;
        while !rig.mmio().needs_reset() {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        rig.start();
        rig.post(8);
        rig.connected();
    }
}

fn any_packet() -> impl Strategy<Value = (Packet, Vec<u8>)> {
    let port = || prop_oneof![0u32..4, Just(53), Just(1024), Just(1 << 30), any::<u32>()];
    let numbers =
        (any::<u32>(), prop_oneof![0u32..100_000, any::<u32>()], prop_oneof![0u32..100_000, any::<u32>()]);
    let header = (port(), port(), prop_oneof![8 => Just(1u16), 1 => any::<u16>()], 0u16..9, numbers);
    let payload = proptest::collection::vec(any::<u8>(), 0..600);
    let len = prop_oneof![4 => Just(None), 1 => any::<u32>().prop_map(Some)];
    (header, payload, len, prop_oneof![9 => Just(3u64), 1 => any::<u64>()]).prop_map(
        |((src_port, dst_port, kind, op, (flags, buf_alloc, fwd_cnt)), payload, len, src_cid)| {
            let len = len.unwrap_or(payload.len() as u32);
            let packet =
                Packet { src_cid, dst_cid: 2, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt };
            (packet, payload)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the guest says, the device takes it, and an honest connection works after it.
    #[test]
    fn nothing_that_a_guest_says_stops_the_device(packets in proptest::collection::vec(any_packet(), 1..60)) {
        let mut rig = Rig::started();
        rig.post(64);
        rig.ports.open.lock().unwrap().extend([0, 1, 2, 3, 53]);
        let _programs = [rig.program("CONNECT 1\n"), rig.program("CONNECT 1024\n")];
        for (packet, payload) in &packets {
            rig.send_as(&packet.bytes(), payload);
            while rig.receive_within(std::time::Duration::ZERO).is_some() {}
        }
        while rig.receive_within(std::time::Duration::from_millis(5)).is_some() {}
        prop_assert!(!rig.mmio().needs_reset());
        rig.send(Packet::new(REQUEST, 77, 53), b"");
        let found = (0..1000).find_map(|_| Some(rig.receive().0).filter(|packet| packet.dst_port == 77));
        prop_assert_eq!(found.unwrap().op, RESPONSE);
    }
}
