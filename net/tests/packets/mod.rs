//! Packets of TCP and UDP as a driver hands them over, whole or with work left to the host, and what is to come of them: made
//! anew from their fields, so that nothing here cuts or corrects.
// Each test file has this module, and uses what it needs of it.
#![allow(dead_code)]

use net::HEADER_LEN;
use proptest::collection::vec;
use proptest::prelude::*;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
pub(crate) const NEEDS_CSUM: u8 = 1;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const CWR: u8 = 0x80;

/// The sender's address, by which its frames are known.
pub(crate) const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) v6: bool,
    pub(crate) tcp: bool,
    /// Types of the VLAN tags.
    pub(crate) tags: Vec<u16>,
    /// Words of IPv4 options.
    pub(crate) options: usize,
    /// IPv6 extension headers: the type, and how many times 8 bytes it is longer than 8.
    pub(crate) extensions: Vec<(u8, u8)>,
    /// Words of TCP options.
    pub(crate) tcp_options: usize,
    pub(crate) id: u16,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    /// What the other fields are filled with.
    pub(crate) fill: u8,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    /// A plain one with a payload of `len` bytes, no two segments of which are the same.
    pub(crate) fn new(v6: bool, tcp: bool, len: usize) -> Self {
        let payload = (0..len).map(|at| (at ^ at >> 7) as u8).collect();
        let (tags, extensions) = (vec![], vec![]);
        let (id, sequence, flags) = (0xfffe, 0xffff_fc00, 0x10 | FIN | PSH | CWR);
        Self { v6, tcp, tags, options: 0, extensions, tcp_options: 0, id, sequence, flags, fill: 7, payload }
    }

    /// Where the IP header is, from the Ethernet header on.
    pub(crate) fn network(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Where the TCP or UDP header is.
    pub(crate) fn transport(&self) -> usize {
        let extensions = self.extensions.iter().map(|(_, more)| 8 + 8 * usize::from(*more)).sum::<usize>();
        self.network() + if self.v6 { 40 + extensions } else { 20 + 4 * self.options }
    }

    /// Where the payload is.
    pub(crate) fn headers_len(&self) -> usize {
        self.transport() + if self.tcp { 20 + 4 * self.tcp_options } else { 8 }
    }

    /// Where the checksum is in the transport header.
    pub(crate) fn csum_offset(&self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    /// The frame behind its virtio-net header, with 0 for the checksum of the transport, and the sum of the pseudo-header.
    fn frame(&self) -> (Vec<u8>, u16) {
        let mut frame = [OTHER, GUEST].concat();
        for (index, tag) in self.tags.iter().enumerate() {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, index as u8 + 1]);
        }
        let len = self.headers_len() - self.transport() + self.payload.len();
        let protocol = if self.tcp { 6 } else { 17 };
        let mut pseudo = vec![0, protocol];
        pseudo.extend((len as u16).to_be_bytes());
        let network = self.network();
        if self.v6 {
            let extensions: usize = self.transport() - network - 40;
            let next = self.extensions.iter().map(|(kind, _)| *kind).chain([protocol]);
            let mut next: Vec<u8> = next.collect();
            frame.extend([0x86, 0xdd, 0x60 | self.fill >> 4, self.fill << 4, 0, self.fill]);
            frame.extend(((extensions + len) as u16).to_be_bytes());
            frame.extend([next.remove(0), 64]);
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.fill, 1]);
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.fill, 2]);
            pseudo.extend(&frame[network + 8..]);
            for (next, (_, more)) in next.iter().zip(&self.extensions) {
                frame.extend([*next, *more, 1]);
                frame.extend(vec![0; 5 + 8 * usize::from(*more)]);
            }
        } else {
            frame.extend([0x08, 0x00, 0x45 + self.options as u8, self.fill]);
            frame.extend(((20 + 4 * self.options + len) as u16).to_be_bytes());
            frame.extend(self.id.to_be_bytes());
            frame.extend([self.fill & 0x40, 0, 64, protocol, 0, 0]);
            frame.extend([10, 0, self.fill, 1, 10, 0, self.fill, 2]);
            pseudo.extend(&frame[network + 12..]);
            frame.extend(vec![1; 4 * self.options]);
            let sum = !sum(&frame[network..]);
            frame[network + 10..][..2].copy_from_slice(&sum.to_be_bytes());
        }
        frame.extend([0x12, self.fill, 0x34, self.fill]);
        if self.tcp {
            frame.extend(self.sequence.to_be_bytes());
            frame.extend([
                1,
                2,
                3,
                self.fill,
                (5 + self.tcp_options as u8) << 4,
                self.flags,
                5,
                6,
                0,
                0,
                7,
                8,
            ]);
            frame.extend(vec![1; 4 * self.tcp_options]);
        } else {
            frame.extend((len as u16).to_be_bytes());
            frame.extend([0, 0]);
        }
        frame.extend(&self.payload);
        (frame, sum(&pseudo))
    }

    fn with_checksum(&self, header: [u8; HEADER_LEN], checksum: impl FnOnce(&[u8], u16) -> u16) -> Vec<u8> {
        let (frame, pseudo) = self.frame();
        let checksum = checksum(&frame[self.transport()..], pseudo);
        let mut frame = [&header[..], &frame].concat();
        frame[HEADER_LEN + self.transport() + self.csum_offset()..][..2]
            .copy_from_slice(&checksum.to_be_bytes());
        frame
    }

    /// The frame with nothing left to the host.
    pub(crate) fn plain(&self) -> Vec<u8> {
        self.with_checksum([0; HEADER_LEN], |transport, pseudo| match !add(sum(transport), pseudo) {
            0 => 0xffff,
            sum => sum,
        })
    }

    /// The frame with its checksum left to the host.
    pub(crate) fn partial(&self) -> Vec<u8> {
        self.left(0, 0, 0)
    }

    /// The frame to be cut into segments of `size` bytes of payload.
    pub(crate) fn whole(&self, size: u16) -> Vec<u8> {
        let kind = match (self.tcp, self.v6) {
            (false, _) => 5,
            (true, false) => 1,
            (true, true) => 4,
        };
        let ecn = if self.tcp && self.flags & CWR != 0 { 0x80 } else { 0 };
        self.left(kind | ecn, self.headers_len() as u16, size)
    }

    fn left(&self, kind: u8, headers: u16, size: u16) -> Vec<u8> {
        let ([a, b], [c, d]) = (headers.to_le_bytes(), size.to_le_bytes());
        let ([e, f], [g, h]) =
            ((self.transport() as u16).to_le_bytes(), (self.csum_offset() as u16).to_le_bytes());
        self.with_checksum([NEEDS_CSUM, kind, a, b, c, d, e, f, g, h, 0, 0], |_, pseudo| pseudo)
    }

    /// What is to come of it when it is cut into segments of `size` bytes of payload.
    pub(crate) fn segments(&self, size: u16) -> Vec<Packet> {
        let size = usize::from(size);
        let last = self.payload.len().div_ceil(size) - 1;
        let segment = |(index, payload): (usize, &[u8])| Packet {
            id: self.id.wrapping_add(index as u16),
            sequence: self.sequence.wrapping_add((index * size) as u32),
            flags: self.flags
                & if index == 0 { 0xff } else { !CWR }
                & if index == last { 0xff } else { !(FIN | PSH) },
            payload: payload.to_vec(),
            ..self.clone()
        };
        self.payload.chunks(size).enumerate().map(segment).collect()
    }

    /// A frame like this one with the checksum of TCP as one of the two that are the same: of a single frame the kernel makes 0 all
    /// ones, and of a segment it does not.
    pub(crate) fn canonical(&self, mut frame: Vec<u8>) -> Vec<u8> {
        let at = HEADER_LEN + self.transport() + 16;
        if self.tcp && frame.get(at..at + 2) == Some(&[0xff, 0xff]) {
            frame[at..at + 2].fill(0);
        }
        frame
    }
}

/// The frame that a wire makes of one that leaves a checksum to it.
pub(crate) fn finished(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[0] & NEEDS_CSUM != 0 {
        let start = HEADER_LEN + usize::from(u16::from_le_bytes([frame[6], frame[7]]));
        let at = start + usize::from(u16::from_le_bytes([frame[8], frame[9]]));
        let sum = match !sum(&frame[start..]) {
            0 => 0xffff,
            sum => sum,
        };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        frame[..HEADER_LEN].fill(0);
    }
    frame
}

fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// The sum of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])).fold(0, add)
}

/// Any packet with a payload of so many bytes, and a size of segment that makes at least two of it if it is longer than 8.
pub(crate) fn packets(payload: std::ops::Range<usize>) -> impl Strategy<Value = (Packet, u16)> {
    let extension = (proptest::sample::select(vec![0u8, 43, 60]), 0..3u8);
    let tags = proptest::sample::select(vec![vec![], vec![], vec![], vec![0x8100], vec![0x88a8, 0x8100]]);
    let headers = (any::<bool>(), any::<bool>(), tags, 0..11usize, vec(extension, 0..3), 0..11usize);
    let fields = (any::<u16>(), any::<u32>(), any::<u8>(), any::<u8>());
    let seed = (any::<u64>(), payload, 0..20u32);
    (headers, fields, seed).prop_map(|(headers, (id, sequence, flags, fill), (seed, len, pieces))| {
        let (v6, tcp, tags, options, extensions, tcp_options) = headers;
        let mut state = seed | 1;
        let payload = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let packet = Packet {
            v6,
            tcp,
            tags,
            options: if seed % 3 == 0 { options } else { 0 },
            extensions: if seed % 3 == 1 { extensions } else { vec![] },
            tcp_options,
            id,
            sequence,
            flags,
            fill,
            payload: payload.take(len).collect(),
        };
        // In many pieces or two, of any length, and in no more datagrams than there may be.
        let least = 8.max(len.div_ceil(128));
        let size =
            (len / (pieces as usize + 2) + (seed >> 60) as usize).min(len.saturating_sub(1)).max(least);
        (packet, size as u16)
    })
}
