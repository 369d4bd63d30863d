//! The socket device, with the mock driver at one end and plain programs at the other.

#[path = "../asleep/mod.rs"]
mod asleep;
mod hostile;
mod packet;
mod rig;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

use rig::*;

#[test]
fn a_program_and_the_guest_talk_both_ways() {
    let mut rig = Rig::started();
    rig.post(64);
    let (mut program, host) = rig.connected();
    program.write_all(b"to the guest").unwrap();
    let (packet, bytes) = rig.receive();
    assert_eq!((packet.op, packet.src_port, packet.dst_port), (RW, host, 1024));
    assert_eq!(bytes, b"to the guest");
    rig.send(Packet::new(RW, 1024, host), b"to the host");
    let mut said = [0; 11];
    program.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"to the host");
    // What follows the line in the same write is the guest's.
    let _ahead = rig.program("CONNECT 7\nahead");
    let request = rig.expect(REQUEST);
    rig.send(Packet::new(RESPONSE, 7, request.src_port), b"");
    assert_eq!(rig.receive().1, b"ahead");
}

#[test]
fn the_guest_finds_who_listens_at_a_port_and_nobody_elsewhere() {
    let mut rig = Rig::started();
    rig.post(64);
    let (mut program, _) = rig.requested(5000);
    rig.send(Packet::new(RW, 5000, 53), b"question");
    let mut said = [0; 8];
    program.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"question");
    program.write_all(b"answer").unwrap();
    assert_eq!(rig.receive().1, b"answer");

    rig.send(Packet::new(REQUEST, 5001, 54), b"");
    let reset = rig.expect(RST);
    assert_eq!((reset.src_port, reset.dst_port), (54, 5001));
}

/// Sends `bytes` as the guest does that keeps to the device's credit, and reads what comes meanwhile.
fn send_all(rig: &mut Rig, host: u32, bytes: &[u8], credit: &mut Credit) {
    for piece in bytes.chunks(3000) {
        while credit.room() < piece.len() as u32 {
            let (packet, _) = rig.receive();
            assert_eq!(packet.op, CREDIT_UPDATE);
            credit.hear(&packet);
        }
        credit.sent = credit.sent.wrapping_add(piece.len() as u32);
        rig.send(Packet::new(RW, 1024, host), piece);
    }
}

struct Credit {
    sent: u32,
    alloc: u32,
    forwarded: u32,
}

impl Credit {
    fn room(&self) -> u32 {
        self.alloc - self.sent.wrapping_sub(self.forwarded)
    }

    fn hear(&mut self, packet: &Packet) {
        (self.alloc, self.forwarded) = (packet.buf_alloc, packet.fwd_cnt);
    }
}

#[test]
fn megabytes_go_to_a_slow_program_by_the_credit_that_the_device_gives() {
    let mut rig = Rig::started();
    rig.post(64);
    let (mut program, response) = rig.connected_with();
    let mut credit = Credit { sent: 0, alloc: response.buf_alloc, forwarded: response.fwd_cnt };
    let bytes = noise(6 << 20, 1);
    let expected = bytes.clone();
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        let mut chunk = vec![0; 1777];
        while got.len() < expected.len() {
            let len = program.read(&mut chunk).unwrap();
            assert!(len > 0, "it ends after {}", got.len());
            got.extend_from_slice(&chunk[..len]);
        }
        assert!(got == expected);
    });
    let host = response.src_port;
    send_all(&mut rig, host, &bytes, &mut credit);
    reader.join().unwrap();
}

#[test]
fn megabytes_go_to_a_slow_guest_by_the_credit_that_it_gives() {
    let mut rig = Rig::started();
    rig.post(64);
    let (mut program, _) = rig.requested(5000);
    // Little of it, from now on.
    let alloc = 5000;
    rig.send(Packet { buf_alloc: alloc, ..Packet::new(CREDIT_UPDATE, 5000, 53) }, b"");
    let bytes = noise(3 << 20, 2);
    let sent = bytes.clone();
    let writer = thread::spawn(move || program.write_all(&sent).map(|()| program).unwrap());
    let (mut got, mut forwarded) = (Vec::new(), 0);
    while got.len() < bytes.len() {
        let (packet, payload) = rig.receive();
        match packet.op {
            RW => got.extend(payload),
            // It has no more to give than it reads.
            CREDIT_REQUEST => {}
            _ => panic!("{packet:?}"),
        }
        assert!(got.len() as u32 - forwarded <= alloc, "more than the guest has room for");
        if got.len() as u32 - forwarded == alloc || got.len() == bytes.len() {
            forwarded = got.len() as u32;
            let update =
                Packet { buf_alloc: alloc, fwd_cnt: forwarded, ..Packet::new(CREDIT_UPDATE, 5000, 53) };
            rig.send(update, b"");
        }
    }
    assert!(got == bytes);
    drop(writer.join().unwrap());
    rig.expect_gone();
}

#[test]
fn a_guest_without_credit_is_asked_once() {
    let mut rig = Rig::started();
    rig.post(64);
    let (mut program, _) = rig.requested(5000);
    let broke = Packet { buf_alloc: 0, ..Packet::new(CREDIT_UPDATE, 5000, 53) };
    rig.send(broke, b"");
    program.write_all(b"late").unwrap();
    rig.expect(CREDIT_REQUEST);
    rig.send(broke, b"");
    rig.expect_silence();
    rig.send(Packet { op: CREDIT_REQUEST, ..broke }, b"");
    rig.expect(CREDIT_UPDATE);
    rig.send(Packet { buf_alloc: 2, ..broke }, b"");
    assert_eq!(rig.receive().1, b"la");
    rig.send(Packet { buf_alloc: 4, ..broke }, b"");
    assert_eq!(rig.receive_after_requests().1, b"te");
}

#[test]
fn an_end_is_closed_one_way_and_the_other_goes_on() {
    let mut rig = Rig::started();
    rig.post(64);
    // The program first.
    let (mut program, host) = rig.connected();
    program.write_all(b"all").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.receive().1, b"all");
    assert_eq!(rig.expect(SHUTDOWN).flags, NO_SEND);
    rig.send(Packet::new(RW, 1024, host), b"still");
    rig.send(Packet { flags: NO_SEND, ..Packet::new(SHUTDOWN, 1024, host) }, b"");
    let mut said = String::new();
    program.read_to_string(&mut said).unwrap();
    assert_eq!(said, "still");
    // Neither sends any more: it is over.
    assert_eq!(rig.expect(SHUTDOWN).flags, NO_SEND | NO_RECEIVE);
    rig.send(Packet::new(RST, 1024, host), b"");
    rig.send(Packet::new(RW, 1024, host), b"who?");
    rig.expect(RST);

    // The guest first.
    let (mut program, host) = rig.connected();
    rig.send(Packet::new(RW, 1024, host), b"question");
    rig.send(Packet { flags: NO_SEND, ..Packet::new(SHUTDOWN, 1024, host) }, b"");
    let mut said = String::new();
    program.read_to_string(&mut said).unwrap();
    assert_eq!(said, "question");
    program.write_all(b"answer").unwrap();
    assert_eq!(rig.receive().1, b"answer");
    drop(program);
    rig.expect_gone();

    // A guest that reads no more.
    let (mut program, host) = rig.connected();
    rig.send(Packet { flags: NO_RECEIVE, ..Packet::new(SHUTDOWN, 1024, host) }, b"");
    let refused = (0..1000).find_map(|_| {
        thread::sleep(std::time::Duration::from_millis(1));
        program.write_all(b"x").err()
    });
    assert_eq!(refused.unwrap().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn what_the_guest_has_sent_before_it_closes_reaches_a_program_that_reads_later() {
    let mut rig = Rig::started();
    rig.post(64);
    let (mut program, response) = rig.connected_with();
    let host = response.src_port;
    // More than the socket has room for.
    let bytes = noise(response.buf_alloc as usize, 3);
    for piece in bytes.chunks(4000) {
        rig.send(Packet::new(RW, 1024, host), piece);
    }
    rig.send(Packet { flags: NO_SEND | NO_RECEIVE, ..Packet::new(SHUTDOWN, 1024, host) }, b"");
    while rig.receive().0.op != RST {}
    // The guest may use the same ports again meanwhile.
    rig.send(Packet::new(RW, 1024, host), b"who?");
    rig.expect(RST);
    let mut got = Vec::new();
    program.read_to_end(&mut got).unwrap();
    assert!(got == bytes);
    // Nothing is left of it: as many as there can be have room.
    let _programs: Vec<_> = (0..1024).map(|guest| rig.requested(guest).0).collect();
}

#[test]
fn a_program_that_is_gone_is_told_to_the_guest() {
    let mut rig = Rig::started();
    rig.post(64);
    let (program, host) = rig.connected();
    drop(program);
    rig.expect_gone();
    // What the guest sends until it hears that is nobody's.
    rig.send(Packet::new(RW, 1024, host), b"late");
    rig.send(Packet::new(RST, 1024, host), b"");
    rig.expect_silence();
    // One that does not forget it is told so.
    let (program, _) = rig.connected();
    drop(program);
    rig.expect_gone();
    rig.expect(RST);
}

#[test]
fn a_program_is_refused_where_the_guest_does_and_without_a_driver() {
    let mut rig = Rig::new();
    expect_end(&mut rig.program("CONNECT 1024\n"));
    rig.start();
    rig.post(64);
    let mut refused = rig.program("CONNECT 1024\n");
    let request = rig.expect(REQUEST);
    rig.send(Packet::new(RST, 1024, request.src_port), b"");
    expect_end(&mut refused);
    for nonsense in ["HELLO\n", "CONNECT x\n", "CONNECT 99999999999\n", "CONNECT 1111111111111111111111"] {
        expect_end(&mut rig.program(nonsense));
    }
    // One that goes before the guest has answered.
    let gone = rig.program("CONNECT 1024\n");
    rig.expect(REQUEST);
    drop(gone);
    rig.expect(RST);
}

#[test]
fn a_reset_closes_every_connection_and_the_next_driver_starts_anew() {
    let mut rig = Rig::started();
    rig.post(64);
    let (mut program, host) = rig.connected();
    let (mut other, _) = rig.requested(5000);
    rig.start();
    expect_end(&mut program);
    expect_end(&mut other);
    rig.post(64);
    rig.send(Packet::new(RW, 1024, host), b"before");
    rig.expect(RST);
    rig.connected();
}

#[test]
fn a_paused_device_touches_nothing_and_goes_on_where_it_was() {
    let mut rig = Rig::started();
    rig.post(64);
    let (mut program, host) = rig.connected();
    rig.threads.pause().unwrap();
    program.write_all(b"one").unwrap();
    rig.send(Packet::new(RW, 1024, host), b"two");
    let mut late = rig.program("CONNECT 80\n");
    rig.expect_silence();
    program.set_nonblocking(true).unwrap();
    assert_eq!(program.read(&mut [0; 4]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    program.set_nonblocking(false).unwrap();
    rig.threads.resume().unwrap();
    let mut said = [0; 3];
    program.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"two");
    let mut came = [rig.receive(), rig.receive()];
    came.sort_by_key(|(packet, _)| packet.op);
    assert_eq!((came[0].0.op, came[0].0.dst_port), (REQUEST, 80));
    assert_eq!(came[1].1, b"one");
    rig.send(Packet::new(RST, 80, came[0].0.src_port), b"");
    expect_end(&mut late);
}

#[test]
fn a_pause_in_the_middle_touches_no_ring_from_then_on() {
    let mut rig = Rig::started();
    rig.post(64);
    let (_program, host) = rig.connected();
    for _ in 0..50 {
        rig.expect_taken();
        // More than the device takes at once.
        for _ in 0..SIZE {
            rig.send_later(Packet::new(CREDIT_UPDATE, 1024, host));
        }
        rig.show_sent();
        rig.threads.pause().unwrap();
        let taken = rig.tx.pending();
        thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(rig.tx.pending(), taken);
        rig.threads.resume().unwrap();
    }
}

#[test]
fn an_event_is_noticed_whoever_sleeps() {
    // Rings of one entry's room at a time: each packet waits for the guest.
    let mut rig = Rig::started();
    rig.post(1);
    let (mut program, _) = rig.requested(5000);
    for round in 0..200u32 {
        while rig.irq.read().is_ok() {}
        rig.rx.want_interrupts(true);
        program.write_all(&round.to_le_bytes()).unwrap();
        let (packet, bytes) = rig.receive();
        assert_eq!((packet.op, bytes), (RW, round.to_le_bytes().to_vec()));
        let interrupted = (0..20_000).any(|_| {
            thread::sleep(std::time::Duration::from_millis(1));
            rig.irq.read().is_ok()
        });
        assert!(interrupted, "round {round}");
    }
}

#[test]
fn with_nothing_to_say_its_thread_sleeps() {
    let mut rig = Rig::new();
    let thread = asleep::thread_of(|hook| rig.threads.confine(hook).unwrap());
    assert!(asleep::sleeps(thread), "without a driver");
    rig.start();
    assert!(asleep::sleeps(thread), "without room");
    rig.post(8);
    assert!(asleep::sleeps(thread), "with room");
    let (mut program, host) = rig.connected();
    assert!(asleep::sleeps(thread), "connected");
    program.write_all(b"to the guest").unwrap();
    rig.receive();
    rig.send(Packet::new(RW, 1024, host), b"to the host");
    program.read_exact(&mut [0; 11]).unwrap();
    assert!(asleep::sleeps(thread), "afterwards");
    // A program that is in the middle of its line has a deadline.
    let _greets = rig.program("CONN");
    assert!(asleep::sleeps(thread), "with a deadline");
    asleep::interrupt(thread);
    assert!(asleep::sleeps(thread), "after a signal");
    program.write_all(b"!").unwrap();
    assert_eq!(rig.receive().1, b"!");
}

#[test]
fn what_programs_say_while_it_is_paused_waits() {
    let mut rig = Rig::started();
    rig.post(8);
    let mut programs = [rig.program("CONN"), rig.program("CONN")];
    // Both are let in, for this one is.
    let _third = rig.connected();
    rig.threads.pause().unwrap();
    programs[0].write_all(b"ECT x\n").unwrap();
    programs[1].write_all(b"ECT 1024\n").unwrap();
    programs[0].set_read_timeout(Some(SHORT)).unwrap();
    let error = programs[0].read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    rig.expect_silence();
    rig.threads.resume().unwrap();
    programs[0].set_read_timeout(Some(LONG)).unwrap();
    expect_end(&mut programs[0]);
    rig.expect_after_requests(REQUEST);
}

#[test]
fn after_a_reset_programs_are_turned_away_and_nothing_is_touched() {
    let mut rig = Rig::started();
    rig.post(8);
    let (mut program, _) = rig.connected();
    rig.mmio().reset();
    expect_end(&mut program);
    expect_end(&mut rig.program("CONNECT 1024\n"));
    rig.expect_silence();
}
