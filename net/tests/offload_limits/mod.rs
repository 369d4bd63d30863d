//! The exact limits of what is finished and cut.

use crate::packets::{Packet, finished};
use crate::{Kept, NONE, send, taken};

/// A packet of 64 KiB behind an Ethernet header with a VLAN tag.
const FRAME_MAX: usize = 12 + 18 + 65536;

#[test]
fn the_longest_frame_is_finished_and_one_byte_more_is_lost() {
    let (mut backend, shelf) = Kept::wrapped(NONE);
    let mut frame = Packet::new(false, false, 1000).partial();
    frame.resize(FRAME_MAX, 0xab);
    send(&mut *backend, &frame, 1000).unwrap();
    assert_eq!(taken(&shelf), [finished(frame.clone())]);
    frame.push(0xab);
    send(&mut *backend, &frame, 1000).unwrap_err();
    assert_eq!(taken(&shelf).len(), 0);
}

#[test]
fn the_longest_frame_is_cut_and_one_byte_more_is_lost() {
    for tcp in [false, true] {
        let packet = Packet::new(false, tcp, 1000);
        let (mut backend, shelf) = Kept::wrapped(NONE);
        let mut frame = packet.whole(1000);
        frame.resize(FRAME_MAX, 0xab);
        send(&mut *backend, &frame, 1000).unwrap();
        let headers = 12 + packet.headers_len();
        let sent = taken(&shelf);
        assert_eq!(sent.len(), (FRAME_MAX - headers).div_ceil(1000), "TCP {tcp}");
        let payload: Vec<_> = sent.iter().flat_map(|segment| &segment[headers..]).copied().collect();
        assert!(payload == frame[headers..], "TCP {tcp}");
        frame.push(0xab);
        send(&mut *backend, &frame, 1000).unwrap_err();
        assert_eq!(taken(&shelf).len(), 0, "TCP {tcp}");
    }
}

#[test]
fn a_sum_starts_behind_twenty_bytes_at_the_earliest() {
    let (mut backend, shelf) = Kept::wrapped(NONE);
    for start in [19, 20, 21u16] {
        let mut frame = Packet::new(false, false, 100).partial();
        frame[6..8].copy_from_slice(&start.to_le_bytes());
        let sent = send(&mut *backend, &frame, 500).is_ok();
        assert_eq!(sent, start >= 20, "{start}");
        let expected = if sent { vec![finished(frame)] } else { Vec::new() };
        assert_eq!(taken(&shelf), expected, "{start}");
    }
}

#[test]
fn a_sum_is_stored_within_the_frame() {
    let (mut backend, shelf) = Kept::wrapped(NONE);
    let packet = Packet::new(false, false, 101);
    for (behind, fits) in [(0, true), (1, false), (2, false)] {
        let mut frame = packet.partial();
        let offset = (frame.len() - 12 - packet.transport() - 2 + behind) as u16;
        frame[8..10].copy_from_slice(&offset.to_le_bytes());
        assert_eq!(send(&mut *backend, &frame, 500).is_ok(), fits, "{behind}");
        assert_eq!(taken(&shelf).len(), usize::from(fits), "{behind}");
    }
}
