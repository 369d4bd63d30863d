//! A TCP or UDP packet that is to be cut: where its headers are, and how they differ from segment to segment.

use std::ops::Range;

use super::checksum::{add, fold, sum};
use super::header::{Gso, Header};

/// The longest transport header, in bytes: TCP with all its options.
pub(super) const TRANSPORT_MAX: usize = 60;

/// The smallest TCP segment, in bytes of payload, as Linux has it (`TCP_MIN_GSO_SIZE`). Segments of one byte would turn one frame into
/// 65000.
const TCP_SIZE_MIN: usize = 8;
/// The most datagrams that one packet may be cut into, as Linux has it (`UDP_MAX_SEGMENTS`).
const DATAGRAMS_MAX: usize = 128;

const ETHERNET_LEN: usize = 14;
const IPV6_LEN: usize = 40;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The IPv6 extension headers that may precede TCP or UDP: hop-by-hop options, routing, destination options. Each is 8 bytes long, plus
/// 8 times its second byte (RFC 8200 §4). A fragment header is not among them, because a fragment cannot be cut.
const EXTENSIONS: [u8; 3] = [0, 43, 60];

/// Offset of the flags in a TCP header, and the flags that not every segment gets (RFC 9293 §3.1, RFC 3168 §6.1.2).
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A packet to be cut, by what its headers said when they were read. Offsets are in bytes from the start of the Ethernet header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segments {
    network: usize,
    transport: usize,
    payload: usize,
    /// Length of the frame.
    end: usize,
    /// Bytes of payload in each segment; the last may have fewer.
    size: usize,
    ip: Ip,
    kind: Transport,
    /// Offset of the checksum in the transport header.
    csum_offset: usize,
    /// The driver's partial checksum minus the length of the packet; each segment adds its own length.
    partial: u16,
}

#[derive(Debug, PartialEq, Eq)]
enum Ip {
    V4 { id: u16 },
    V6,
}

#[derive(Debug, PartialEq, Eq)]
enum Transport {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

impl Segments {
    /// Reads the headers of a frame of `end` bytes. `head` is its first bytes, up to [`TRANSPORT_MAX`] past `csum_start` or to its end.
    /// None if the frame is not what its virtio-net `header` says, or would be cut too small.
    pub(super) fn of(head: &[u8], end: usize, header: &Header, gso: Gso) -> Option<Self> {
        let (network, ip, protocol, transport) = packet(head)?;
        let expected = match gso {
            Gso::Tcp4 => matches!(ip, Ip::V4 { .. }) && protocol == TCP,
            Gso::Tcp6 => ip == Ip::V6 && protocol == TCP,
            Gso::Udp => protocol == UDP,
        };
        // A driver must leave the checksum of such a packet to the host too (virtio 1.3 §5.1.6.2.1).
        if !expected || !header.needs_csum() || usize::from(header.csum_start) != transport {
            return None;
        }
        let behind = head.get(transport..)?;
        let (kind, headers, csum_offset, length) = match gso {
            Gso::Udp => (Transport::Udp, 8, 6, word(behind, 4)?),
            Gso::Tcp4 | Gso::Tcp6 => {
                let fixed = behind.first_chunk::<20>()?;
                let sequence = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
                let headers = usize::from(fixed[12] >> 4) * 4;
                if headers < fixed.len() {
                    return None;
                }
                let length = fold((end - transport) as u64);
                (Transport::Tcp { sequence, flags: fixed[TCP_FLAGS] }, headers, 16, length)
            }
        };
        let (payload, size) = (transport + headers, usize::from(header.gso_size));
        if payload > head.len() || usize::from(header.csum_offset) != csum_offset {
            return None;
        }
        let least = match kind {
            Transport::Udp => (end - payload).div_ceil(DATAGRAMS_MAX).max(1),
            Transport::Tcp { .. } => TCP_SIZE_MIN,
        };
        let partial = add(word(behind, csum_offset)?, !length);
        (size >= least).then_some(Self {
            network,
            transport,
            payload,
            end,
            size,
            ip,
            kind,
            csum_offset,
            partial,
        })
    }

    /// How many segments there are: at least one.
    pub(super) fn count(&self) -> usize {
        (self.end - self.payload).div_ceil(self.size).max(1)
    }

    /// Length of the headers, which every segment starts with.
    pub(super) fn headers_len(&self) -> usize {
        self.payload
    }

    /// True if a checksum of 0 means that there is none, as in UDP.
    pub(super) fn zero_is_none(&self) -> bool {
        self.kind == Transport::Udp
    }

    /// Turns `headers`, those of the packet or of another segment, into those of segment `index`, with a partial checksum. Returns
    /// where its payload is in the frame.
    pub(super) fn write(&self, index: usize, headers: &mut [u8]) -> Range<usize> {
        let before = index * self.size;
        let piece = self.payload + before..self.end.min(self.payload + before + self.size);
        // A hostile frame can be a few bytes longer than 64 KiB; then the length wraps, as it does in the kernel.
        let len_from = |offset: usize| (self.payload - offset + piece.len()) as u16;
        match self.ip {
            Ip::V4 { id } => {
                put(headers, self.network + 2, len_from(self.network));
                // The kernel counts the identification up even with "don't fragment" set, where any value would do.
                put(headers, self.network + 4, id.wrapping_add(index as u16));
                put(headers, self.network + 10, 0);
                let sum = sum(&headers[self.network..self.transport]);
                put(headers, self.network + 10, !sum);
            }
            Ip::V6 => put(headers, self.network + 4, len_from(self.network + IPV6_LEN)),
        }
        match self.kind {
            Transport::Tcp { sequence, flags } => {
                let sequence = sequence.wrapping_add(before as u32);
                headers[self.transport + 4..][..4].copy_from_slice(&sequence.to_be_bytes());
                let first_only = if index == 0 { 0 } else { CWR };
                let last_only = if piece.end == self.end { 0 } else { FIN | PSH };
                headers[self.transport + TCP_FLAGS] = flags & !first_only & !last_only;
            }
            Transport::Udp => put(headers, self.transport + 4, len_from(self.transport)),
        }
        put(headers, self.transport + self.csum_offset, add(self.partial, len_from(self.transport)));
        piece
    }
}

/// The offset of a frame's IP header, its version, the protocol behind it and the offset of that protocol's header. None if the
/// frame is not IP or `head` is too short.
fn packet(head: &[u8]) -> Option<(usize, Ip, u8, usize)> {
    let mut network = ETHERNET_LEN;
    loop {
        match word(head, network - 2)? {
            // VLAN tags (802.1Q, 802.1ad).
            0x8100 | 0x88a8 => network += 4,
            0x0800 => {
                let header = head.get(network..)?.first_chunk::<20>()?;
                let len = usize::from(header[0] & 15) * 4;
                let ip = Ip::V4 { id: u16::from_be_bytes([header[4], header[5]]) };
                return (len >= 20).then_some((network, ip, header[9], network + len));
            }
            0x86dd => {
                let header = head.get(network..)?.first_chunk::<IPV6_LEN>()?;
                let (mut next, mut at) = (header[6], network + IPV6_LEN);
                while EXTENSIONS.contains(&next) {
                    let extension = head.get(at..)?.first_chunk::<2>()?;
                    next = extension[0];
                    at += 8 + usize::from(extension[1]) * 8;
                }
                return Some((network, Ip::V6, next, at));
            }
            _ => return None,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

/// Stores a word in network byte order.
pub(super) fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..][..2].copy_from_slice(&word.to_be_bytes());
}
