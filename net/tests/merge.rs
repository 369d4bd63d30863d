//! Several frames as one packet: which go together, and that what is cut from it is what they were. No network is needed.

mod merge_edges;
mod packets;
mod trains;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use net::{Backend, FrameHead, HEADER_LEN, Iov, IovBuffer, Offloads, Run, Sent, SoftOffload};
use packets::{CWR, FIN, PSH, Packet, finished};
use proptest::prelude::*;
use trains::{DF, canonical, repair, train, trains};
use vm_memory::VolatileSlice;

const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true, uso: true };
const NONE: Offloads = Offloads { csum: false, tso4: false, tso6: false, uso: false };
const MTU: u16 = 9000;

/// The first bytes of a frame; none where it goes alone.
fn head(frame: &[u8]) -> Option<FrameHead> {
    let (mut bytes, mut room, mut head) = (frame.to_vec(), IovBuffer::new(), FrameHead::empty());
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(&mut bytes[..])));
    head.read(&iov).then_some(head)
}

/// The frames as they go out: each packet, and of which frames it is.
fn merged(frames: &[Vec<u8>], kinds: Offloads, mtu: u16) -> Vec<(Vec<u8>, &[Vec<u8>])> {
    let (mut packets, mut at) = (Vec::new(), 0);
    while at < frames.len() {
        let first = head(&frames[at]);
        let run = first.and_then(|first| Some((first, Run::begin(&first, kinds, mtu)?)));
        let Some((first, mut run)) = run else {
            packets.push((frames[at].clone(), &frames[at..=at]));
            at += 1;
            continue;
        };
        let mut next = at + 1;
        while let Some(frame) = frames.get(next)
            && let Some(head) = head(frame)
        {
            let before = format!("{run:?}");
            if !run.add(&first, &head) {
                assert_eq!(format!("{run:?}"), before);
                break;
            }
            assert!(first.may_go_with(&head));
            next += 1;
            assert_eq!(run.frames(), next - at);
        }
        let of = &frames[at..next];
        let skip = run.headers_len();
        let packet = match of {
            [alone] => alone.clone(),
            of => {
                let mut packet = run.headers(&first)[..skip].to_vec();
                of.iter().for_each(|frame| packet.extend(&frame[skip..]));
                packet
            }
        };
        packets.push((packet, of));
        at = next;
    }
    packets
}

fn counts(frames: &[Vec<u8>]) -> Vec<usize> {
    merged(frames, ALL, MTU).iter().map(|(_, of)| of.len()).collect()
}

/// A change of the second of four frames, and how many go together then.
struct Row {
    what: &'static str,
    /// For which packets: of IPv6 or IPv4, of TCP or UDP, of either where there is none.
    v6: Option<bool>,
    tcp: Option<bool>,
    /// Sums and lengths are right afterwards.
    right: bool,
    change: fn(&Packet, &mut Vec<u8>),
    counts: &'static [usize],
}

const NETWORK: usize = HEADER_LEN + 14;

/// Where the header of TCP or UDP is.
fn transport(packet: &Packet) -> usize {
    HEADER_LEN + packet.transport()
}

#[test]
fn what_differs_goes_alone() {
    const APART: &[usize] = &[1, 1, 2];
    const V4: Option<bool> = Some(false);
    const V6: Option<bool> = Some(true);
    const UDP: Option<bool> = Some(false);
    const TCP: Option<bool> = Some(true);
    let row = |what, v6, tcp, right, change, counts| Row { what, v6, tcp, right, change, counts };
    let flags = |what, change| row(what, None, TCP, true, change, APART);
    let rows = [
        row("nothing", None, None, true, |_, _| {}, &[4]),
        row("the destination's MAC", None, None, true, |_, frame| frame[12] ^= 2, APART),
        row("the source's MAC", None, None, true, |_, frame| frame[23] ^= 2, APART),
        row("no checksum is left", None, None, true, |_, frame| frame[0] = 0, APART),
        row("a flag of the header", None, None, true, |_, frame| frame[0] |= 2, APART),
        row("it is cut already", None, None, true, |_, frame| frame[1] = 5, APART),
        row("hdr_len", None, None, true, |_, frame| frame[3] = 1, APART),
        row("csum_start", None, None, true, |_, frame| frame[6] ^= 1, APART),
        row("csum_offset", None, None, true, |_, frame| frame[8] ^= 1, APART),
        row(
            "the partial sum",
            None,
            None,
            false,
            |packet, frame| frame[transport(packet) + packet.csum_offset()] ^= 1,
            APART,
        ),
        row("another type", None, None, false, |_, frame| frame[NETWORK - 1] ^= 1, APART),
        row("TOS", V4, None, true, |_, frame| frame[NETWORK + 1] ^= 4, APART),
        row("ECN", V4, None, true, |_, frame| frame[NETWORK + 1] ^= 1, APART),
        row("the identification", V4, None, true, |_, frame| frame[NETWORK + 5] ^= 1, APART),
        row("DF", V4, None, true, |_, frame| frame[NETWORK + 6] |= DF, APART),
        row("a reserved flag", V4, None, true, |_, frame| frame[NETWORK + 6] |= 0x80, APART),
        row("more fragments", V4, None, true, |_, frame| frame[NETWORK + 6] |= 0x20, APART),
        row("a fragment's offset", V4, None, true, |_, frame| frame[NETWORK + 7] |= 1, APART),
        row("TTL", V4, None, true, |_, frame| frame[NETWORK + 8] -= 1, APART),
        row("the protocol", V4, None, true, |_, frame| frame[NETWORK + 9] ^= 1, APART),
        row("the header's sum", V4, None, false, |_, frame| frame[NETWORK + 10] ^= 1, APART),
        row("the source", V4, None, true, |_, frame| frame[NETWORK + 15] ^= 1, APART),
        row("the destination", V4, None, true, |_, frame| frame[NETWORK + 19] ^= 1, APART),
        row("the version", V4, None, true, |_, frame| frame[NETWORK] = 0x55, APART),
        row("options that there are not", V4, None, true, |_, frame| frame[NETWORK] = 0x46, APART),
        row("a length", V4, None, false, |_, frame| frame[NETWORK + 3] ^= 1, APART),
        row("a class", V6, None, true, |_, frame| frame[NETWORK] ^= 1, APART),
        row("ECN", V6, None, true, |_, frame| frame[NETWORK + 1] ^= 0x10, APART),
        row("the flow label", V6, None, true, |_, frame| frame[NETWORK + 3] ^= 1, APART),
        row("the length", V6, None, false, |_, frame| frame[NETWORK + 5] ^= 1, APART),
        row("the next header", V6, None, true, |_, frame| frame[NETWORK + 6] = 60, APART),
        row("the hop limit", V6, None, true, |_, frame| frame[NETWORK + 7] -= 1, APART),
        row("the source", V6, None, true, |_, frame| frame[NETWORK + 23] ^= 1, APART),
        row("the destination", V6, None, true, |_, frame| frame[NETWORK + 39] ^= 1, APART),
        row("the version", V6, None, true, |_, frame| frame[NETWORK] = 0x47, APART),
        row("the source's port", None, None, true, |packet, frame| frame[transport(packet) + 1] ^= 1, APART),
        row(
            "the destination's port",
            None,
            None,
            true,
            |packet, frame| frame[transport(packet) + 3] ^= 1,
            APART,
        ),
        row("a shorter one", None, UDP, true, |_, frame| frame.truncate(frame.len() - 1), &[2, 2]),
        row("a longer one", None, UDP, true, |_, frame| frame.push(1), &[1, 2, 1]),
        row("a tail", None, None, false, |_, frame| frame.push(1), APART),
        row(
            "none",
            None,
            UDP,
            true,
            |packet, frame| frame.truncate(HEADER_LEN + packet.headers_len()),
            APART,
        ),
        row("UDP's length", None, UDP, false, |packet, frame| frame[transport(packet) + 5] ^= 1, APART),
        row("the sequence", None, TCP, true, |packet, frame| frame[transport(packet) + 7] ^= 1, APART),
        row(
            "the acknowledgement",
            None,
            TCP,
            true,
            |packet, frame| frame[transport(packet) + 11] ^= 1,
            APART,
        ),
        row("the window", None, TCP, true, |packet, frame| frame[transport(packet) + 15] ^= 1, APART),
        row("the urgent pointer", None, TCP, true, |packet, frame| frame[transport(packet) + 19] ^= 1, APART),
        row("a reserved bit", None, TCP, true, |packet, frame| frame[transport(packet) + 12] |= 1, APART),
        row(
            "options beyond the end",
            None,
            TCP,
            true,
            |packet, frame| frame[transport(packet) + 12] = 0xf0,
            APART,
        ),
        row("no whole header", None, TCP, true, |packet, frame| frame[transport(packet) + 12] = 0x40, APART),
        row("PSH", None, TCP, true, |packet, frame| frame[transport(packet) + 13] |= PSH, &[2, 2]),
        flags("FIN", |packet, frame| frame[transport(packet) + 13] |= FIN),
        flags("SYN", |packet, frame| frame[transport(packet) + 13] |= 2),
        flags("RST", |packet, frame| frame[transport(packet) + 13] |= 4),
        flags("URG", |packet, frame| frame[transport(packet) + 13] |= 0x20),
        flags("CWR", |packet, frame| frame[transport(packet) + 13] |= CWR),
        flags("ECE", |packet, frame| frame[transport(packet) + 13] |= 0x40),
        flags("no ACK", |packet, frame| frame[transport(packet) + 13] &= !0x10),
    ];
    let (mut of_all, mut done) = ([[0; 2]; 2], 0);
    for Row { what, v6, tcp, right, change, counts: expected } in rows {
        for (is_v6, is_tcp) in [(false, false), (false, true), (true, false), (true, true)] {
            if v6.is_some_and(|v6| v6 != is_v6) || tcp.is_some_and(|tcp| tcp != is_tcp) {
                continue;
            }
            // With a size that leaves room for what a header may claim to have in it.
            let (packet, mut frames) = train(is_v6, is_tcp, 4, 100);
            change(&packet, &mut frames[1]);
            if right {
                repair(&packet, &mut frames[1]);
            }
            assert_eq!(counts(&frames), expected, "{what}, IPv6 {is_v6}, TCP {is_tcp}");
            of_all[usize::from(is_v6)][usize::from(is_tcp)] += 1;
            done += 1;
        }
    }
    assert!(done > 100 && of_all.as_flattened().iter().all(|rows| *rows > 20), "{of_all:?}");
}

#[test]
fn what_all_have_alike_is_of_none() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let counts_of = |change: &dyn Fn(&mut Packet)| {
            let mut packet = train(v6, tcp, 4, 100).0;
            change(&mut packet);
            counts(&packet.segments(100).iter().map(Packet::partial).collect::<Vec<_>>())
        };
        assert_eq!(counts_of(&|packet| packet.tags = vec![0x8100]), [4], "a VLAN tag");
        assert_eq!(counts_of(&|packet| packet.tags = vec![0x88a8]), [1; 4], "a tag of a provider");
        assert_eq!(counts_of(&|packet| packet.tags = vec![0x8100, 0x8100]), [1; 4], "two tags");
        if v6 {
            assert_eq!(counts_of(&|packet| packet.extensions = vec![(60, 0)]), [1; 4], "an extension header");
        } else {
            assert_eq!(counts_of(&|packet| packet.options = 1), [1; 4], "options");
            let mut frames = train(v6, tcp, 4, 100).1;
            for frame in &mut frames {
                frame[NETWORK + 6] |= DF;
                frame[NETWORK + 4..NETWORK + 6].fill(0);
                repair(&train(v6, tcp, 4, 100).0, frame);
            }
            assert_eq!(counts(&frames), [4], "DF, and always the same identification");
        }
        if tcp {
            assert_eq!(counts_of(&|packet| packet.tcp_options = 10), [4], "options of TCP");
            assert_eq!(counts_of(&|packet| packet.flags |= 0x40), [4], "ECE");
            assert_eq!(counts_of(&|packet| packet.flags |= PSH), [4], "PSH on the last");
            assert_eq!(counts_of(&|packet| packet.flags |= FIN), [3, 1], "FIN on the last");
            assert_eq!(counts_of(&|packet| packet.flags |= CWR), [1, 3], "CWR on the first");
        } else {
            for (port, goes) in
                [(66u16, &[4][..]), (67, &[1; 4]), (4789, &[1; 4]), (6081, &[1; 4]), (8472, &[1; 4])]
            {
                let (packet, mut frames) = train(v6, tcp, 4, 100);
                for frame in &mut frames {
                    frame[transport(&packet) + 2..][..2].copy_from_slice(&port.to_be_bytes());
                    repair(&packet, frame);
                }
                assert_eq!(
                    counts(&frames),
                    goes,
                    "a request for an address, which a backend answers, or a tunnel: {port}"
                );
            }
        }
    }
}

#[test]
fn a_packet_has_its_limits() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let (_, many) = train(v6, tcp, 150, 20);
        assert_eq!(counts(&many), [64, 64, 22], "frames");
        let (packet, large) = train(v6, tcp, 8, 8900);
        let whole = merged(&large, ALL, MTU);
        assert_eq!(whole.iter().map(|(_, of)| of.len()).collect::<Vec<_>>(), [7, 1], "64 KiB");
        let len = (packet.headers_len() - packet.network() + 8900) as u16;
        for (mtu, together) in [(len, 7), (len - 1, 1)] {
            assert_eq!(merged(&large, ALL, mtu)[0].1.len(), together, "the MTU");
        }
        let (_, small) = train(v6, tcp, 4, 7);
        assert_eq!(counts(&small).len(), if tcp { 4 } else { 1 }, "segments that are not cut");
        let own = Offloads { tso4: tcp && !v6, tso6: tcp && v6, uso: !tcp, csum: true };
        let others = Offloads { tso4: !own.tso4, tso6: !own.tso6, uso: !own.uso, csum: true };
        for (kinds, together) in [(own, 7), (others, 1)] {
            assert_eq!(merged(&large, kinds, MTU)[0].1.len(), together, "kinds");
        }
    }
}

/// What a wire that does nothing itself is sent.
struct Kept(File, Arc<Mutex<Vec<Vec<u8>>>>);

impl Backend for Kept {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        let mut bytes = vec![0; frame.len()];
        frame.read_at(0, &mut bytes);
        self.1.lock().unwrap().push(bytes);
        Ok(Sent::Gone)
    }

    fn offloads(&self) -> Offloads {
        NONE
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

/// The frames that are cut from a packet.
fn cut(packet: &[u8]) -> Vec<Vec<u8>> {
    let kept = Arc::<Mutex<Vec<_>>>::default();
    let mut wire =
        SoftOffload::wrap(Box::new(Kept(File::open("/dev/null").unwrap(), Arc::clone(&kept))), ALL);
    let (mut bytes, mut room) = (packet.to_vec(), IovBuffer::new());
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(&mut bytes[..])));
    wire.send(&iov).unwrap();
    std::mem::take(&mut *kept.lock().unwrap())
}

proptest! {
    #[test]
    fn what_is_cut_from_a_packet_is_what_was_sent(frames in trains()) {
        let mut all = Vec::new();
        for (packet, of) in merged(&frames, ALL, MTU) {
            all.extend_from_slice(of);
            match of {
                [alone] => prop_assert_eq!(&packet, alone),
                of => {
                    prop_assert!(packet[0] == 1 && packet[1] != 0 && of.len() <= 64);
                    let cut: Vec<_> = cut(&packet).into_iter().map(canonical).collect();
                    let sent: Vec<_> = of.iter().cloned().map(finished).map(canonical).collect();
                    prop_assert!(cut == sent, "{:?}\nand\n{:?}", cut, sent);
                }
            }
        }
        prop_assert!(all == frames);
    }

    #[test]
    fn no_headers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), start in 0..3usize, kind in 0..5usize) {
        let mut frame = train(kind & 1 == 0, kind & 2 == 0, 1, 30).1.remove(0);
        let at = [0, 2, 24][start];
        frame.truncate(at);
        frame.extend(bytes);
        let frames = [frame.clone(), frame.clone(), frame];
        prop_assert_eq!(merged(&frames, ALL, MTU).iter().map(|(_, of)| of.len()).sum::<usize>(), 3);
    }
}
