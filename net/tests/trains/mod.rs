//! Frames of several flows, one behind the other, as a guest may send them: some may go as one, and some lie.
// Each test file has this module, and uses what it needs of it.
#![allow(dead_code)]

use net::HEADER_LEN;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::packets::{PSH, Packet, packets};

/// The flag of IPv4 that says "don't fragment", in the byte of a [`Packet`] that fills the fields.
pub(crate) const DF: u8 = 0x40;
const ACK: u8 = 0x10;

/// A plain train: `count` frames of `size` bytes of payload, whose checksums are left to the host.
pub(crate) fn train(v6: bool, tcp: bool, count: usize, size: usize) -> (Packet, Vec<Vec<u8>>) {
    let packet = Packet { flags: ACK, ..Packet::new(v6, tcp, count * size) };
    let frames = packet.segments(size as u16).iter().map(Packet::partial).collect();
    (packet, frames)
}

/// Makes the sums and lengths of `frame`, which is laid out as `packet`, right again.
pub(crate) fn repair(packet: &Packet, frame: &mut [u8]) {
    let (network, transport) = (HEADER_LEN + packet.network(), HEADER_LEN + packet.transport());
    let len = (frame.len() - transport) as u16;
    let mut pseudo = vec![0, if packet.tcp { 6 } else { 17 }];
    pseudo.extend(len.to_be_bytes());
    if packet.v6 {
        frame[network + 4..network + 6].copy_from_slice(&len.to_be_bytes());
        pseudo.extend(&frame[network + 8..network + 40]);
    } else {
        let whole = (frame.len() - network) as u16;
        frame[network + 2..network + 4].copy_from_slice(&whole.to_be_bytes());
        frame[network + 10..network + 12].fill(0);
        let sum = !sum(&frame[network..transport]);
        frame[network + 10..network + 12].copy_from_slice(&sum.to_be_bytes());
        pseudo.extend(&frame[network + 12..network + 20]);
    }
    if !packet.tcp {
        frame[transport + 4..transport + 6].copy_from_slice(&len.to_be_bytes());
    }
    let at = transport + packet.csum_offset();
    frame[at..at + 2].copy_from_slice(&sum(&pseudo).to_be_bytes());
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// A frame without what may differ where it went as one with others: the identification of IPv4 where it may not be fragmented, and
/// which of its two zeros the checksum of TCP is.
pub(crate) fn canonical(mut frame: Vec<u8>) -> Vec<u8> {
    let mut network = HEADER_LEN + 14;
    while frame
        .get(network - 2..network)
        .is_some_and(|kind| [[0x81, 0], [0x88, 0xa8]].contains(&[kind[0], kind[1]]))
    {
        network += 4;
    }
    let (v4, v6) = ([0x08, 0], [0x86, 0xdd]);
    let kind = frame.get(network - 2..network).map(|kind| [kind[0], kind[1]]);
    let len = if kind == Some(v6) { 40 } else { 20 };
    let (protocol, transport) = match frame.get(network..network + len) {
        Some(header) if kind == Some(v4) => (header[9], network + 4 * usize::from(header[0] & 15)),
        Some(header) if kind == Some(v6) => (header[6], network + 40),
        _ => return frame,
    };
    if kind == Some(v4) && frame[network + 6] & DF != 0 {
        // What the identification does to the header's checksum goes with it.
        let id = u16::from_be_bytes([frame[network + 4], frame[network + 5]]);
        let checksum = u16::from_be_bytes([frame[network + 10], frame[network + 11]]);
        let without = u32::from(checksum) + u32::from(id);
        let without = ((without & 0xffff) + (without >> 16)) as u16 % 0xffff;
        frame[network + 10..network + 12].copy_from_slice(&without.to_be_bytes());
        frame[network + 4..network + 6].fill(0);
    }
    if let Some(checksum) = frame.get_mut(transport + 16..transport + 18)
        && protocol == 6
        && *checksum == [0xff; 2]
    {
        checksum.fill(0);
    }
    frame
}

/// What is done to one frame.
#[derive(Clone, Debug)]
enum Change {
    /// A byte of its headers, and with it sums and lengths, or not.
    Byte(usize, u8, bool),
    /// A bit of them, likewise.
    Bit(usize, u8, bool),
    /// A field of the virtio-net header.
    Work(usize, u8),
    /// Less or more of it.
    Cut(usize),
    Pad(usize),
    /// Its whole checksum, right or wrong.
    Whole(u8),
    /// It goes before the one before it, or is lost, or comes twice.
    Swap,
    Lose,
    Twice,
}

fn changes() -> impl Strategy<Value = (usize, Change)> {
    let change = prop_oneof![
        1 => (12..100usize, any::<u8>(), any::<bool>()).prop_map(|(at, byte, right)| Change::Byte(at, byte, right)),
        4 => (12..100usize, 0..8u8, any::<bool>()).prop_map(|(at, bit, right)| Change::Bit(at, bit, right)),
        1 => (0..12usize, any::<u8>()).prop_map(|(at, byte)| Change::Work(at, byte)),
        1 => (1..40usize).prop_map(Change::Cut),
        1 => (1..40usize).prop_map(Change::Pad),
        1 => (0..2u8).prop_map(Change::Whole),
        1 => Just(Change::Swap),
        1 => Just(Change::Lose),
        1 => Just(Change::Twice),
    ];
    (any::<usize>(), change)
}

/// The frames of one flow, of which some were changed.
fn flow() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let plain = prop_oneof![3 => Just(true), 1 => Just(false)];
    (packets(9..6000), plain, any::<bool>(), prop_oneof![2 => Just(vec![]), 3 => vec(changes(), 1..4)])
        .prop_map(|((packet, size), plain, fragmented, changes)| {
            let mut packet = packet;
            packet.flags &= if plain { ACK | PSH } else { 0xff };
            packet.fill = if fragmented { packet.fill & !DF } else { packet.fill | DF };
            if plain {
                (packet.options, packet.extensions) = (0, vec![]);
                packet.tags.truncate(1);
            }
            // No more frames than a ring holds.
            let size = size.max(packet.payload.len().div_ceil(60) as u16);
            let segments = packet.segments(size);
            let mut frames: Vec<_> = segments.iter().map(Packet::partial).collect();
            for (at, change) in changes {
                let at = at % frames.len();
                let frame = &mut frames[at];
                let header = |at: usize| HEADER_LEN + at % packet.headers_len();
                match change {
                    Change::Byte(at, byte, right) => {
                        if let Some(to) = frame.get_mut(header(at)) {
                            *to = byte;
                        }
                        if right && frame.len() >= HEADER_LEN + packet.headers_len() {
                            repair(&packet, frame);
                        }
                    }
                    Change::Bit(at, bit, right) => {
                        if let Some(to) = frame.get_mut(header(at)) {
                            *to ^= 1 << bit;
                        }
                        if right && frame.len() >= HEADER_LEN + packet.headers_len() {
                            repair(&packet, frame);
                        }
                    }
                    Change::Work(at, byte) => frame[at] = byte,
                    Change::Cut(len) => frame.truncate(frame.len().saturating_sub(len).max(26)),
                    Change::Pad(len) => frame.resize(frame.len() + len, 0xaa),
                    Change::Whole(wrong) => {
                        *frame = segments[at.min(segments.len() - 1)].plain();
                        frame[HEADER_LEN + packet.transport() + packet.csum_offset()] ^= wrong;
                    }
                    Change::Swap => frames.swap(at, at.saturating_sub(1)),
                    Change::Lose => {
                        if frames.len() > 1 {
                            frames.remove(at);
                        }
                    }
                    Change::Twice => {
                        let again = frame.clone();
                        frames.insert(at, again);
                    }
                }
            }
            // No gap for the kernel to find: its own frames are told from these by it.
            for frame in &mut frames {
                frame[HEADER_LEN + 6..HEADER_LEN + 12].copy_from_slice(&crate::packets::GUEST);
            }
            frames
        })
}

/// Frames of one flow to three, in turn, or one flow after the other.
pub(crate) fn trains() -> impl Strategy<Value = Vec<Vec<u8>>> {
    (vec(flow(), 1..4), vec(0..3usize, 0..24)).prop_map(|(flows, order)| {
        let mut flows: Vec<_> = flows.into_iter().map(Vec::into_iter).collect();
        let mut frames = Vec::new();
        for at in order {
            let at = at % flows.len();
            frames.extend(flows[at].by_ref().take(3));
        }
        flows.into_iter().for_each(|flow| frames.extend(flow));
        frames
    })
}
