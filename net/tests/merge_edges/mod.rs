//! What lies in every frame of a train alike, and the exact limits of a packet.

use net::{FrameHead, IovBuffer, Offloads, Run};
use vm_memory::VolatileSlice;

use crate::packets::{CWR, FIN, PSH, Packet};
use crate::trains::{DF, repair, train};
use crate::{ALL, HEADER_LEN, MTU, NETWORK, counts, head, merged, transport};

const EACH: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];
const ACK: u8 = 0x10;
const HEADER_SUM: std::ops::Range<usize> = NETWORK + 10..NETWORK + 12;

/// What is done to every frame.
struct Lie {
    what: &'static str,
    /// For which packets, as of a `Row`.
    v6: Option<bool>,
    tcp: Option<bool>,
    change: fn(&Packet, &mut Vec<u8>),
}

#[test]
fn what_lies_in_each_frame_alike_goes_alone() {
    const V4: Option<bool> = Some(false);
    const UDP: Option<bool> = Some(false);
    const TCP: Option<bool> = Some(true);
    let lie = |what, v6, tcp, change| Lie { what, v6, tcp, change };
    let flags = |what, change| lie(what, None, TCP, change);
    let lies = [
        lie("no checksum is left", None, None, |_, frame| frame[0] = 0),
        lie("a tail", None, None, |_, frame| frame.push(1)),
        lie("a missing end", None, None, |_, frame| frame.truncate(frame.len() - 1)),
        lie("no payload", None, None, |packet, frame| {
            frame.truncate(HEADER_LEN + packet.headers_len());
            repair(packet, frame);
        }),
        lie("UDP's length", None, UDP, |packet, frame| frame[transport(packet) + 5] ^= 1),
        lie("no whole header", None, TCP, |packet, frame| frame[transport(packet) + 12] = 0x40),
        lie("options past the end", None, TCP, |packet, frame| frame[transport(packet) + 12] = 0xf0),
        lie("csum_start", None, None, |_, frame| frame[6] ^= 1),
        lie("csum_offset", None, None, |_, frame| frame[8] ^= 1),
        lie("hdr_len", None, None, |_, frame| hint(frame, 1)),
        lie("the header's sum", V4, None, |_, frame| frame[NETWORK + 10] ^= 1),
        lie("a reserved flag of IP", V4, None, |packet, frame| {
            frame[NETWORK + 6] |= 0x80;
            repair(packet, frame);
        }),
        lie("more fragments", V4, None, |packet, frame| {
            frame[NETWORK + 6] |= 0x20;
            repair(packet, frame);
        }),
        lie("a fragment's offset", V4, None, |packet, frame| {
            frame[NETWORK + 7] |= 1;
            repair(packet, frame);
        }),
        lie("a reserved bit of TCP", None, TCP, |packet, frame| frame[transport(packet) + 12] |= 1),
        flags("FIN", |packet, frame| frame[transport(packet) + 13] |= FIN),
        flags("SYN", |packet, frame| frame[transport(packet) + 13] |= 2),
        flags("RST", |packet, frame| frame[transport(packet) + 13] |= 4),
        flags("URG", |packet, frame| frame[transport(packet) + 13] |= 0x20),
        flags("CWR", |packet, frame| frame[transport(packet) + 13] |= CWR),
    ];
    for Lie { what, v6, tcp, change } in lies {
        for (is_v6, is_tcp) in EACH {
            if v6.is_some_and(|v6| v6 != is_v6) || tcp.is_some_and(|tcp| tcp != is_tcp) {
                continue;
            }
            let (packet, mut frames) = train(is_v6, is_tcp, 4, 100);
            frames.iter_mut().for_each(|frame| change(&packet, frame));
            assert_eq!(counts(&frames), [1; 4], "{what}, IPv6 {is_v6}, TCP {is_tcp}");
        }
    }
}

/// Has `hdr_len` be as long as the frame, and so much more.
fn hint(frame: &mut [u8], more: usize) {
    let len = (frame.len() - HEADER_LEN + more) as u16;
    frame[2..4].copy_from_slice(&len.to_le_bytes());
}

#[test]
fn a_hint_is_as_long_as_the_frame_at_most() {
    for (v6, tcp) in EACH {
        let (_, mut frames) = train(v6, tcp, 4, 100);
        hint(&mut frames[1], 1);
        assert_eq!(counts(&frames), [1, 1, 2], "IPv6 {v6}, TCP {tcp}: one that is longer");
        frames.iter_mut().for_each(|frame| hint(frame, 0));
        assert_eq!(counts(&frames), [4], "IPv6 {v6}, TCP {tcp}");
    }
}

#[test]
fn a_header_sum_of_all_ones_goes_alone_for_the_kernel_writes_zero() {
    for tcp in [false, true] {
        let (packet, mut frames) = train(false, tcp, 4, 100);
        for frame in &mut frames {
            // To everybody: a MAC is no sum.
            frame[HEADER_LEN..HEADER_LEN + 6].fill(0xff);
            frame[NETWORK + 6] |= DF;
            frame[NETWORK + 4..NETWORK + 6].fill(0);
            repair(&packet, frame);
            // The sum as the identification leaves nothing to the sum.
            frame.copy_within(HEADER_SUM, NETWORK + 4);
            frame[HEADER_SUM].fill(0);
        }
        assert_eq!(counts(&frames), [4], "TCP {tcp}");
        frames[1][HEADER_SUM].fill(0xff);
        assert_eq!(counts(&frames), [1, 1, 2], "TCP {tcp}: of one");
        frames.iter_mut().for_each(|frame| frame[HEADER_SUM].fill(0xff));
        assert_eq!(counts(&frames), [1; 4], "TCP {tcp}: of all");
    }
}

#[test]
fn the_packet_is_what_a_driver_leaves_to_the_host_to_be_cut() {
    for (v6, tcp) in EACH {
        for (tags, flags, len) in [(vec![], ACK, 400), (vec![0x8100], ACK | PSH, 350)] {
            let packet = Packet { tags, flags, tcp_options: 3, ..Packet::new(v6, tcp, len) };
            let frames: Vec<_> = packet.segments(100).iter().map(Packet::partial).collect();
            let all = merged(&frames, ALL, MTU);
            assert_eq!(all.len(), 1);
            assert_eq!(all[0].0, packet.whole(100), "IPv6 {v6}, TCP {tcp}, {len} bytes");
            let kind = Run::begin(&head(&frames[0]).unwrap(), ALL, MTU).unwrap().kind();
            let expected = Offloads { csum: false, tso4: tcp && !v6, tso6: tcp && v6, uso: !tcp };
            assert_eq!(kind, expected, "IPv6 {v6}, TCP {tcp}");
        }
    }
}

#[test]
fn a_packet_is_no_longer_than_its_length_can_say() {
    for (v6, tcp) in EACH {
        let (packet, _) = train(v6, tcp, 1, 1);
        let most = 0xffff - (packet.headers_len() - packet.network());
        for (len, expected) in [(most, &[8][..]), (most + 1, &[7, 1])] {
            let packet = Packet { flags: ACK, ..Packet::new(v6, tcp, len) };
            let frames: Vec<_> = packet.segments(8900).iter().map(Packet::partial).collect();
            assert_eq!(counts(&frames), expected, "IPv6 {v6}, TCP {tcp}, {len} bytes");
        }
    }
}

#[test]
fn a_frame_without_payload_leads_nothing() {
    for (v6, tcp) in EACH {
        for (len, leads) in [(0, false), (8, true)] {
            let frame = Packet { flags: ACK, ..Packet::new(v6, tcp, len) }.partial();
            let run = Run::begin(&head(&frame).unwrap(), ALL, MTU);
            assert_eq!(run.is_some(), leads, "IPv6 {v6}, TCP {tcp}, {len} bytes");
        }
    }
}

fn read(head: &mut FrameHead, frame: &[u8]) -> bool {
    let (mut bytes, mut room) = (frame.to_vec(), IovBuffer::new());
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(&mut bytes[..])));
    head.read(&iov)
}

#[test]
fn a_frame_that_goes_alone_is_of_no_flow() {
    let (packet, frames) = train(false, false, 2, 100);
    let [first, second] = [0, 1].map(|at| head(&frames[at]).unwrap());
    assert!(first.may_go_with(&second));
    let mut elsewhere = frames[1].clone();
    elsewhere[NETWORK + 19] ^= 1;
    assert!(!first.may_go_with(&head(&elsewhere).unwrap()), "to another address");
    let none = FrameHead::empty();
    for (one, other) in [(&first, &none), (&none, &first), (&none, &none)] {
        assert!(!one.may_go_with(other));
    }
    // What is left of a longer one is no part of a shorter one.
    for frame in [&packet.plain()[..], &packet.whole(50), &[1], &[0], &[1, 2]] {
        let mut again = second;
        assert!(!read(&mut again, frame), "{} bytes", frame.len());
        assert!(!first.may_go_with(&again) && !again.may_go_with(&first), "{} bytes", frame.len());
    }
}
