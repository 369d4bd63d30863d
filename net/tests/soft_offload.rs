//! Checksums and segments in software, against packets that are made anew: no network is needed.

mod frames;
mod offload_limits;
mod packets;

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use net::{Backend, Iov, IovBuffer, Offloads, RxFilter, Sent, SoftOffload};
use packets::{Packet, finished, packets};
use proptest::collection::vec;
use proptest::prelude::*;
use smoltcp::wire::{IpAddress, UdpPacket};
use vm_memory::{Bytes, MmapRegion, VolatileMemory, VolatileSlice};

const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true, uso: true };
const NONE: Offloads = Offloads { csum: false, tso4: false, tso6: false, uso: false };
const CSUM: Offloads = Offloads { csum: true, ..NONE };

/// A wire that keeps what it is sent, as long as it takes more.
struct Kept {
    file: File,
    can: Offloads,
    sent: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    frames: Vec<Vec<u8>>,
    /// After so many more frames, this error once.
    fails: Option<(usize, io::ErrorKind)>,
    /// The length of frames that are answered.
    answers: usize,
    accepted: Option<Offloads>,
    /// The other calls.
    told: Vec<String>,
}

impl Kept {
    fn beside(can: Offloads) -> (Box<dyn Backend>, Arc<Mutex<Shelf>>) {
        let sent = Arc::<Mutex<Shelf>>::default();
        (Box::new(Self { file: File::open("/dev/null").unwrap(), can, sent: Arc::clone(&sent) }), sent)
    }

    /// With the rest in front of it.
    fn wrapped(can: Offloads) -> (Box<dyn Backend>, Arc<Mutex<Shelf>>) {
        let (kept, sent) = Self::beside(can);
        (SoftOffload::wrap(kept, ALL), sent)
    }

    fn tell(&self, what: String) -> io::Result<()> {
        self.sent.lock().unwrap().told.push(what);
        Ok(())
    }
}

impl Backend for Kept {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        let mut shelf = self.sent.lock().unwrap();
        match &mut shelf.fails {
            Some((0, kind)) => {
                let kind = *kind;
                shelf.fails = None;
                return Err(kind.into());
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        let mut bytes = vec![0; frame.len()];
        assert_eq!(frame.read_at(0, &mut bytes), bytes.len());
        let answered = bytes.len() == shelf.answers;
        shelf.frames.push(bytes);
        Ok(if answered { Sent::Answered } else { Sent::Gone })
    }

    fn offloads(&self) -> Offloads {
        self.can
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.sent.lock().unwrap().accepted = Some(accepted);
        Ok(())
    }

    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        self.tell(format!("mac {}", filter.mac))
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.tell(format!("enabled {enabled}"))
    }

    fn set_carrier(&mut self, present: bool) {
        self.tell(format!("carrier {present}")).unwrap();
    }

    fn drain(&mut self) {
        self.tell("drain".to_owned()).unwrap();
    }

    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        Ok(space.write_at(0, b"received"))
    }

    fn vhost_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }
}

/// Sends a frame that is in pieces of `piece` bytes, apart in memory.
fn send(backend: &mut dyn Backend, frame: &[u8], piece: usize) -> io::Result<Sent> {
    let mut apart: Vec<_> = frame.chunks(piece).map(|piece| [piece, &[0]].concat()).collect();
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    for piece in &mut apart {
        let (_, piece) = piece.split_last_mut().unwrap();
        assert!(iov.push(VolatileSlice::from(piece)));
    }
    backend.send(&iov)
}

fn taken(shelf: &Mutex<Shelf>) -> Vec<Vec<u8>> {
    std::mem::take(&mut shelf.lock().unwrap().frames)
}

#[test]
fn a_wire_that_can_do_what_is_promised_is_left_alone() {
    let tso4 = Offloads { tso4: true, ..CSUM };
    let odd = Offloads { csum: false, ..ALL };
    for (can, promised) in [(ALL, ALL), (CSUM, CSUM), (ALL, NONE), (NONE, NONE), (tso4, CSUM), (NONE, odd)] {
        let kept = SoftOffload::wrap(Kept::beside(can).0, promised);
        assert!(kept.vhost_fd().is_some() && kept.offloads() == can, "{can:?} {promised:?}");
    }
    for (can, promised) in [(NONE, ALL), (NONE, CSUM), (CSUM, tso4), (tso4, ALL), (odd, CSUM)] {
        let wrapped = SoftOffload::wrap(Kept::beside(can).0, promised);
        assert!(wrapped.vhost_fd().is_none() && wrapped.offloads() == ALL, "{can:?} {promised:?}");
    }
}

#[test]
fn a_wire_is_asked_for_what_it_can() {
    let (mut backend, shelf) = Kept::wrapped(Offloads { tso6: true, ..CSUM });
    backend.set_offloads(ALL).unwrap();
    assert_eq!(shelf.lock().unwrap().accepted, Some(Offloads { tso6: true, ..CSUM }));
    backend.set_offloads(Offloads { tso4: true, ..CSUM }).unwrap();
    assert_eq!(shelf.lock().unwrap().accepted, Some(CSUM));
}

#[test]
fn everything_but_frames_to_the_host_is_the_wires() {
    let (mut backend, shelf) = Kept::wrapped(NONE);
    backend.set_filter(&RxFilter::new("02:00:00:00:00:07".parse().unwrap())).unwrap();
    backend.set_enabled(false).unwrap();
    backend.set_carrier(true);
    backend.drain();
    let told = ["mac 02:00:00:00:00:07", "enabled false", "carrier true", "drain"];
    assert_eq!(shelf.lock().unwrap().told, told);
    assert_eq!(frames::recv(&mut *backend, 100).unwrap(), b"received");
}

#[test]
fn an_answer_to_a_segment_is_told() {
    let packet = Packet::new(false, false, 250);
    for can in [NONE, CSUM] {
        let (mut backend, shelf) = Kept::wrapped(can);
        shelf.lock().unwrap().answers = packet.plain().len() - 150;
        assert_eq!(send(&mut *backend, &packet.whole(100), 100).unwrap(), Sent::Answered, "by the first two");
        assert_eq!(send(&mut *backend, &packet.whole(90), 100).unwrap(), Sent::Gone);
    }
}

#[test]
fn what_the_wire_can_do_goes_on_as_it_is() {
    let (mut backend, shelf) = Kept::wrapped(Offloads { tso4: true, ..CSUM });
    let packet = Packet::new(false, true, 3000);
    for frame in [packet.plain(), packet.partial(), packet.whole(1000)] {
        send(&mut *backend, &frame, 100).unwrap();
        assert_eq!(taken(&shelf), [frame]);
    }
}

/// A frame of TCP from 10.0.0.1, port 1, to 10.0.0.2, port 2.
fn known(header: [u8; 12], ip: [u8; 6], sequence: [u8; 4], flags: u8, sum: [u8; 2], data: &[u8]) -> Vec<u8> {
    let [len, tail, id, more, sum_high, sum_low] = ip;
    let mut frame = header.to_vec();
    frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    frame.extend([0x45, 0, len, tail, id, more, 0x40, 0, 64, 6, sum_high, sum_low, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 1, 0, 2]);
    frame.extend(sequence);
    frame.extend([0, 0, 0, 9, 0x50, flags, 1, 0, sum[0], sum[1], 0, 0]);
    frame.extend(data);
    frame
}

#[test]
fn a_packet_is_cut_into_known_segments() {
    // NEEDS_CSUM, TCPV4 and ECN, hdr_len, gso_size, csum_start, csum_offset. CWR, ACK, PSH and FIN. The sum of the pseudo-header.
    let header = [1, 0x81, 54, 0, 8, 0, 34, 0, 16, 0, 0, 0];
    let start = [0xff, 0xff, 0xff, 0xf8];
    let whole = known(header, [0, 53, 0xff, 0xff, 0, 0], start, 0x99, [0x14, 0x2a], b"0123456789abc");
    let segments = |header, first, second| {
        [
            known(header, [0, 48, 0xff, 0xff, 0x26, 0xc6], start, 0x90, first, b"01234567"),
            known(header, [0, 45, 0, 0, 0x26, 0xc9], [0; 4], 0x19, second, b"89abc"),
        ]
    };
    let (mut backend, shelf) = Kept::wrapped(NONE);
    assert_eq!(send(&mut *backend, &whole, 7).unwrap(), Sent::Gone);
    assert_eq!(taken(&shelf), segments([0; 12], [0xcd, 0x74], [0x9e, 0x1c]));

    let (mut backend, shelf) = Kept::wrapped(CSUM);
    assert_eq!(send(&mut *backend, &whole, 7).unwrap(), Sent::Gone);
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    assert_eq!(taken(&shelf), segments(header, [0x14, 0x25], [0x14, 0x22]));
}

proptest! {
    #[test]
    fn a_packet_comes_out_as_its_segments((packet, size) in packets(9..20_000), piece in 1..5000usize) {
        let piece = piece.max(packet.whole(size).len().div_ceil(1000));
        let same = |frame| packet.canonical(frame);
        let (mut backend, shelf) = Kept::wrapped(NONE);
        prop_assert_eq!(send(&mut *backend, &packet.whole(size), piece).unwrap(), Sent::Gone);
        let sent: Vec<_> = taken(&shelf).into_iter().map(same).collect();
        let expected: Vec<_> = packet.segments(size).iter().map(|segment| same(segment.plain())).collect();
        prop_assert_eq!(sent, expected);

        let (mut backend, shelf) = Kept::wrapped(CSUM);
        prop_assert_eq!(send(&mut *backend, &packet.whole(size), piece).unwrap(), Sent::Gone);
        let sent: Vec<_> = taken(&shelf).into_iter().map(|frame| same(finished(frame))).collect();
        let expected: Vec<_> = packet.segments(size).iter().map(|segment| same(segment.plain())).collect();
        prop_assert_eq!(sent, expected);
    }

    #[test]
    fn a_checksum_that_is_left_is_finished((packet, _) in packets(0..3000), piece in 3..5000usize) {
        let (mut backend, shelf) = Kept::wrapped(NONE);
        send(&mut *backend, &packet.partial(), piece).unwrap();
        prop_assert_eq!(taken(&shelf), [packet.plain()]);
        send(&mut *backend, &packet.plain(), piece).unwrap();
        prop_assert_eq!(taken(&shelf), [packet.plain()]);
        // A packet that is one segment: nothing in it changes but its checksum.
        send(&mut *backend, &packet.whole(packet.payload.len().max(8) as u16), piece).unwrap();
        prop_assert_eq!(taken(&shelf), [packet.plain()]);
        let (mut backend, shelf) = Kept::wrapped(CSUM);
        send(&mut *backend, &packet.whole(60_000), piece).unwrap();
        prop_assert_eq!(taken(&shelf), [packet.partial()]);
    }

    #[test]
    fn whatever_a_guest_sends_is_bounded(
        (packet, size) in packets(2..3000),
        lies in vec((0..120usize, any::<u8>()), 0..12),
        cut in 0..3200usize,
        random in any::<bool>(),
        can in proptest::sample::select(vec![NONE, CSUM, Offloads { tso4: true, ..CSUM }]),
    ) {
        let mut frame = packet.whole(size);
        if random {
            let next = |byte: &u16| Some(byte.wrapping_mul(0x6255).wrapping_add(0x3619));
            let bytes = std::iter::successors(Some(size), next).map(|word| (word >> 8) as u8);
            frame.iter_mut().skip(12).zip(bytes).for_each(|(to, byte)| *to = byte);
        }
        for (at, byte) in lies {
            let at = at % frame.len();
            frame[at] = byte;
        }
        frame.truncate(cut.max(1));
        let (mut backend, shelf) = Kept::wrapped(can);
        let _ = send(&mut *backend, &frame, frame.len().div_ceil(1000));
        let sent = taken(&shelf);
        prop_assert!(sent.len() <= frame.len().div_ceil(8).max(128), "{} frames", sent.len());
        prop_assert!(sent.iter().all(|one| one.len() <= frame.len()));
    }
}

#[test]
fn headers_that_lie_lose_their_frame() {
    let (mut none, kept) = Kept::wrapped(NONE);
    let (mut csum, partial) = Kept::wrapped(CSUM);
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let packet = Packet { options: 1, extensions: vec![(60, 0)], ..Packet::new(v6, tcp, 1000) };
        let whole = packet.whole(100);
        let (network, transport, payload) =
            (12 + packet.network(), 12 + packet.transport(), 12 + packet.headers_len());
        let mut lies: Vec<(&str, Vec<(usize, u8)>)> = vec![
            ("no checksum is left", vec![(0, 0)]),
            ("fragments of UDP", vec![(1, 3)]),
            ("a tunnel", vec![(1, whole[1] | 0x20)]),
            ("no such kind", vec![(1, 2)]),
            ("no size", vec![(4, 0), (5, 0)]),
            ("a size that makes thousands", vec![(4, 7), (5, 0)]),
            ("a checksum from elsewhere", vec![(6, whole[6] + 4)]),
            ("a checksum from behind the end", vec![(6, 0xff), (7, 0xff)]),
            ("a checksum elsewhere", vec![(8, whole[8] + 2)]),
            ("a checksum behind the end", vec![(8, 0xff), (9, 0xff)]),
            ("not IP", vec![(network - 2, 0x88), (network - 1, 0xcc)]),
            (
                "the other IP",
                vec![
                    (network - 2, 0x86 ^ 0x08 ^ whole[network - 2]),
                    (network - 1, whole[network - 1] ^ 0xdd),
                ],
            ),
        ];
        if tcp {
            lies.push(("no TCP header", vec![(transport + 12, 0x40)]));
            lies.push(("the other TCP", vec![(1, whole[1] & 0x80 | 5 ^ (whole[1] & 5))]));
            lies.push(("UDP", vec![(1, 5), (8, 6)]));
        } else {
            lies.push(("congestion flags", vec![(1, 0x85)]));
            lies.push(("TCP", vec![(1, if v6 { 4 } else { 1 }), (8, 16)]));
        }
        if v6 {
            lies.push(("a fragment", vec![(network + 6, 44)]));
            lies.push(("a long extension", vec![(network + 41, 0xff)]));
            lies.push(("neither", vec![(network + 40, 1)]));
        } else {
            lies.push(("no IP header", vec![(network, 0x44), (6, whole[6] - 8)]));
            lies.push(("a long IP header", vec![(network, 0x4f)]));
            lies.push(("neither", vec![(network + 9, 1)]));
        }
        for (why, lie) in lies {
            let mut frame = whole.clone();
            lie.iter().for_each(|(at, byte)| frame[*at] = *byte);
            for backend in [&mut none, &mut csum] {
                assert!(send(&mut **backend, &frame, 500).is_err(), "v6 {v6}, tcp {tcp}: {why}");
            }
        }
        for len in (1..payload).filter(|len| *len != 12) {
            for backend in [&mut none, &mut csum] {
                assert!(
                    send(&mut **backend, &whole[..len], 500).is_err(),
                    "v6 {v6}, tcp {tcp}: cut to {len}"
                );
            }
        }
    }
    let packet = Packet::new(false, true, 100);
    for (why, at, word) in [
        ("starts in the Ethernet header", 6, 14u16),
        ("starts behind the end", 6, 154),
        ("ends behind it", 8, 119),
    ] {
        let mut frame = packet.partial();
        frame[at..at + 2].copy_from_slice(&word.to_le_bytes());
        assert!(send(&mut *none, &frame, 500).is_err(), "a checksum that {why}");
    }
    for frame in [packet.partial(), packet.whole(50)] {
        let large = [frame, vec![0; 65536]].concat();
        assert!(send(&mut *none, &large, 500).is_err(), "no frame is so large");
    }
    assert!(send(&mut *none, &Packet::new(false, false, 0).whole(0), 500).is_err(), "no size of nothing");
    assert_eq!((taken(&kept), taken(&partial)), (vec![], vec![]));
}

#[test]
fn a_packet_without_payload_is_one_segment() {
    let (mut backend, shelf) = Kept::wrapped(NONE);
    for tcp in [false, true] {
        let packet = Packet::new(true, tcp, 0);
        send(&mut *backend, &packet.whole(8), 100).unwrap();
        assert_eq!(taken(&shelf), [packet.plain()]);
    }
}

#[test]
fn segments_without_checksums_are_nothing_that_a_wire_can() {
    let (mut backend, shelf) = Kept::wrapped(Offloads { csum: false, ..ALL });
    let packet = Packet::new(false, true, 200);
    send(&mut *backend, &packet.whole(100), 100).unwrap();
    assert_eq!(taken(&shelf), packet.segments(100).iter().map(Packet::plain).collect::<Vec<_>>());
}

#[test]
fn there_are_no_more_datagrams_than_linux_takes() {
    let (mut backend, shelf) = Kept::wrapped(NONE);
    send(&mut *backend, &Packet::new(false, false, 1280).whole(10), 100).unwrap();
    assert_eq!(taken(&shelf).len(), 128);
    assert!(send(&mut *backend, &Packet::new(false, false, 1281).whole(10), 100).is_err());
    // Of TCP there are as many as the least size makes.
    send(&mut *backend, &Packet::new(false, true, 65_000).whole(8), 1000).unwrap();
    assert_eq!(taken(&shelf).len(), 8125);
}

#[test]
fn a_checksum_of_zero_is_told_where_it_means_something() {
    let (mut backend, shelf) = Kept::wrapped(NONE);
    for (tcp, cut) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut packet = Packet::new(false, tcp, 100);
        let at = 12 + packet.transport() + packet.csum_offset();
        let sent = |backend: &mut dyn Backend, packet: &Packet| {
            let frame = if cut { packet.whole(90) } else { packet.partial() };
            send(backend, &frame, 500).unwrap();
            taken(&shelf)[0][at..][..2].to_vec()
        };
        packet.payload[..2].fill(0);
        // With its checksum among the words, they come to all ones.
        let missing = sent(&mut *backend, &packet);
        packet.payload[..2].copy_from_slice(&missing);
        let expected = if tcp && cut { 0 } else { 0xff };
        assert_eq!(sent(&mut *backend, &packet), [expected; 2], "tcp {tcp}, cut {cut}");
    }
}

#[test]
fn a_packet_goes_on_where_the_wire_took_no_more() {
    let packet = Packet::new(true, true, 1000);
    let expected: Vec<_> = packet.segments(100).iter().map(Packet::plain).collect();
    for taken_before in 0..10 {
        let (mut backend, shelf) = Kept::wrapped(NONE);
        for again in [0, 2] {
            shelf.lock().unwrap().fails =
                Some((if again == 0 { taken_before } else { 0 }, io::ErrorKind::WouldBlock));
            let error = send(&mut *backend, &packet.whole(100), 100).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(shelf.lock().unwrap().frames.len(), taken_before);
        }
        send(&mut *backend, &packet.whole(100), 100).unwrap();
        assert_eq!(taken(&shelf), expected);
        send(&mut *backend, &packet.whole(100), 100).unwrap();
        assert_eq!(taken(&shelf), expected, "one that is the same is whole again");

        shelf.lock().unwrap().fails = Some((taken_before, io::ErrorKind::WouldBlock));
        send(&mut *backend, &packet.whole(100), 100).unwrap_err();
        taken(&shelf);
        let other = Packet { sequence: 1, ..packet.clone() };
        send(&mut *backend, &other.whole(100), 100).unwrap();
        assert_eq!(taken(&shelf).len(), 10, "and so is another one");
    }
}

#[test]
fn a_segment_that_is_refused_loses_the_rest() {
    let (mut backend, shelf) = Kept::wrapped(CSUM);
    shelf.lock().unwrap().fails = Some((3, io::ErrorKind::BrokenPipe));
    let packet = Packet::new(false, false, 1000);
    let error = send(&mut *backend, &packet.whole(100), 100).unwrap_err();
    assert_eq!((error.kind(), taken(&shelf).len()), (io::ErrorKind::BrokenPipe, 3));
    send(&mut *backend, &packet.whole(100), 100).unwrap();
    assert_eq!(taken(&shelf).len(), 10, "the next one is whole");
}

#[test]
fn a_frame_of_as_many_buffers_as_there_may_be_is_cut() {
    let packet = Packet::new(false, true, IovBuffer::MAX - 12 - 54);
    for can in [NONE, CSUM] {
        let (mut backend, shelf) = Kept::wrapped(can);
        send(&mut *backend, &packet.whole(100), 1).unwrap();
        let sent: Vec<_> = taken(&shelf).into_iter().map(finished).collect();
        assert_eq!(sent, packet.segments(100).iter().map(Packet::plain).collect::<Vec<_>>());
    }
    // Whole, it has one more with a header of ours in front of it.
    let packet = Packet::new(false, true, 20 * IovBuffer::MAX - 12 - 54);
    let (mut backend, shelf) = Kept::wrapped(CSUM);
    assert!(send(&mut *backend, &packet.whole(60_000), 20).is_err());
    send(&mut *backend, &packet.whole(10_000), 20).unwrap();
    assert_eq!(taken(&shelf).len(), 3);
}

#[test]
fn what_is_summed_is_what_is_sent() {
    let packet = Packet::new(false, false, 8000);
    let whole = packet.whole(1400);
    let memory = MmapRegion::<()>::new(1 << 16).unwrap();
    let (at, len) = (12 + packet.headers_len(), packet.payload.len());
    let (mut backend, shelf) = Kept::wrapped(NONE);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The guest, which goes on writing.
        scope.spawn(|| {
            let payload = memory.get_slice(at, len).unwrap();
            for byte in (0..=255).cycle().take_while(|_| !done.load(Ordering::Relaxed)) {
                payload.write_slice(&vec![byte; len], 0).unwrap();
            }
        });
        for frame in [whole, packet.partial()].iter().cycle().take(2000) {
            memory.get_slice(0, at).unwrap().write_slice(&frame[..at], 0).unwrap();
            let mut room = IovBuffer::new();
            let mut iov = room.start();
            assert!(iov.push(memory.get_slice(0, frame.len()).unwrap()));
            backend.send(&iov).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    for frame in taken(&shelf) {
        let datagram = UdpPacket::new_checked(&frame[12 + packet.transport()..]).unwrap();
        let [from, to] =
            [[10, 0, 7, 1], [10, 0, 7, 2]].map(|address| IpAddress::from(Ipv4Addr::from(address)));
        assert!(datagram.verify_checksum(&from, &to));
    }
}
