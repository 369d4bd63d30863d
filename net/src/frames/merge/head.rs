//! The headers of one frame that may go with others, and whether two are of one flow.

use std::ops::Range;

use super::Kinds;
use crate::frames::soft_offload::checksum::{add, sum};
use crate::{HEADER_LEN, Iov};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` alone, and `VIRTIO_NET_HDR_GSO_NONE`: the first two bytes of a frame whose checksum is left to the
/// host (virtio 1.3 §5.1.6).
const PARTIAL: [u8; 2] = [1, 0];

const ETHERNET_LEN: usize = 14;
const VLAN_LEN: usize = 4;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Ports to which each datagram goes alone: of DHCP servers, for a backend may answer such a frame itself, which it knows by its length;
/// and of GENEVE and VXLAN (IANA's and Linux's own), whose end on this host would take a packet for one datagram before Linux 6.9.
const ALONE: [u16; 4] = [67, 4789, 6081, 8472];

/// Offsets in a TCP header (RFC 9293 §3.1).
const SEQUENCE: usize = 4;
const OFFSET: usize = 12;
const FLAGS: usize = 13;
const URGENT: usize = 18;
pub(super) const PSH: u8 = 0x08;
/// The flags that a segment in the middle of others may have: PSH, ACK, and ECE, which the kernel copies to each.
const PLAIN: u8 = PSH | 0x10 | 0x40;

/// The shortest TCP segment that Linux cuts, in bytes of payload (`TCP_MIN_GSO_SIZE`).
const TCP_SIZE_MIN: usize = 8;

/// The first bytes of a frame, virtio-net header included: read from guest memory once, and only this copy is looked at.
#[derive(Clone, Copy, Debug)]
pub struct FrameHead {
    bytes: [u8; Self::MAX],
    /// Length of the frame.
    len: usize,
}

impl FrameHead {
    /// As much as can be headers: Ethernet with a VLAN tag, IPv6, TCP with all its options.
    pub const MAX: usize = HEADER_LEN + ETHERNET_LEN + VLAN_LEN + IPV6_LEN + 60;

    /// Where frames of one flow have the same 8 bytes, whatever they are: of IPv4, the destination and the ports.
    const FLOW: Range<usize> = 42..50;

    /// That of no frame.
    #[inline]
    pub const fn empty() -> Self {
        Self { bytes: [0; Self::MAX], len: 0 }
    }

    /// Reads that of `frame`. False, and then it is that of no frame, where its virtio-net header tells that it goes alone.
    #[inline]
    pub fn read(&mut self, frame: &Iov<'_>) -> bool {
        let mut first = [0; PARTIAL.len()];
        self.len = 0;
        if frame.read_at(0, &mut first) < first.len() || first != PARTIAL {
            return false;
        }
        // What was there before stays behind a shorter one: the lengths in its headers tell where it ends.
        frame.read_at(0, &mut self.bytes);
        // The guest may have changed them meanwhile.
        let is_partial = self.bytes[..PARTIAL.len()] == PARTIAL;
        if is_partial {
            self.len = frame.len();
        }
        is_partial
    }

    /// False where `other` is certainly of another flow: the one look that most frames get.
    #[inline]
    pub fn may_go_with(&self, other: &Self) -> bool {
        self.len != 0 && other.len != 0 && self.bytes[Self::FLOW] == other.bytes[Self::FLOW]
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8; Self::MAX] {
        &self.bytes
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    #[inline]
    fn little_word(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]))
    }

    #[inline]
    fn long(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }
}

/// Where the headers of a frame are, in bytes from the start of its virtio-net header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) network: usize,
    pub(super) transport: usize,
    pub(super) payload: usize,
    pub(super) is_v6: bool,
    pub(super) is_tcp: bool,
}

impl Layout {
    /// That of a frame of one of these `kinds` that may go with others; none where it must go alone.
    #[inline]
    pub(super) fn of(head: &FrameHead, kinds: Kinds) -> Option<Self> {
        let mut network = HEADER_LEN + ETHERNET_LEN;
        if head.word(network - 2) == 0x8100 {
            network += VLAN_LEN;
        }
        let bytes = head.bytes();
        let (is_v6, protocol, transport, ends) = match (head.word(network - 2), bytes[network]) {
            (0x0800, 0x45) => {
                // "Don't fragment", or nothing: the rest is of fragments, or reserved.
                let whole = head.word(network + 6) & !0x4000 == 0;
                // The kernel writes 0 for all ones, which is the same sum and another frame.
                let right =
                    sum(&bytes[network..network + IPV4_LEN]) == 0xffff && head.word(network + 10) != 0xffff;
                let len = usize::from(head.word(network + 2));
                if !whole || !right {
                    return None;
                }
                (false, bytes[network + 9], network + IPV4_LEN, network + len)
            }
            (0x86dd, 0x60..=0x6f) => {
                let transport = network + IPV6_LEN;
                (true, bytes[network + 6], transport, transport + usize::from(head.word(network + 4)))
            }
            _ => return None,
        };
        let (is_tcp, headers, csum_offset) = match protocol {
            TCP => (true, usize::from(bytes[transport + OFFSET] >> 4) * 4, 16),
            UDP => (false, UDP_LEN, 6),
            _ => return None,
        };
        let this = Self { network, transport, payload: transport + headers, is_v6, is_tcp };
        let least = if is_tcp { TCP_LEN } else { UDP_LEN };
        let whole = headers >= least && ends == head.len() && this.payload < ends;
        let left = head.little_word(6) == transport - HEADER_LEN && head.little_word(8) == csum_offset;
        // Only a hint, but the kernel drops a frame that is shorter.
        let hinted = head.little_word(2) <= head.len() - HEADER_LEN;
        (this.is_in(kinds) && whole && left && hinted && this.is_plain(head)).then_some(this)
    }

    #[inline]
    fn is_in(&self, kinds: Kinds) -> bool {
        match (self.is_tcp, self.is_v6) {
            (false, _) => kinds.uso,
            (true, false) => kinds.tso4,
            (true, true) => kinds.tso6,
        }
    }

    /// What the transport header says is nothing special.
    #[inline]
    fn is_plain(&self, head: &FrameHead) -> bool {
        let (bytes, at) = (head.bytes(), self.transport);
        match self.is_tcp {
            true => bytes[at + FLAGS] & !PLAIN == 0 && bytes[at + OFFSET] & 0x0f == 0,
            false => usize::from(head.word(at + 4)) == head.len() - at && !ALONE.contains(&head.word(at + 2)),
        }
    }

    /// The bytes of payload of a frame.
    #[inline]
    pub(super) fn payload_len(&self, head: &FrameHead) -> usize {
        head.len() - self.payload
    }

    /// Where the checksum is.
    #[inline]
    pub(super) fn checksum(&self) -> usize {
        self.transport + if self.is_tcp { 16 } else { 6 }
    }

    /// Whether a frame has PSH, behind which nothing comes.
    #[inline]
    pub(super) fn pushes(&self, head: &FrameHead) -> bool {
        self.is_tcp && head.bytes()[self.transport + FLAGS] & PSH != 0
    }

    /// Whether a frame of such payloads can be cut.
    #[inline]
    pub(super) fn can_be_cut(&self, size: usize) -> bool {
        !self.is_tcp || size >= TCP_SIZE_MIN
    }

    /// The partial checksum without the length, which is part of it: what the frames of one flow have in common.
    #[inline]
    pub(super) fn pseudo_sum(&self, head: &FrameHead) -> u16 {
        let len = (head.len() - self.transport) as u16;
        // 0 and all ones are one number.
        match add(head.word(self.checksum()), !len) {
            0xffff => 0,
            sum => sum,
        }
    }

    /// Whether `next` is what the kernel would cut off as number `index` behind `first`, which has this layout, `before` bytes of
    /// payload on. As most of it must be the same as in `first`, it is not looked at by itself.
    #[inline]
    pub(super) fn continues(&self, first: &FrameHead, next: &FrameHead, index: usize, before: usize) -> bool {
        let (a, b, len) = (first.bytes(), next.bytes(), next.len());
        let same = |range: Range<usize>| a[range.clone()] == b[range];
        let &Self { network, transport, payload, is_v6, is_tcp } = self;
        // The work that is left, and that it is of a frame so long.
        if len <= payload || !same(6..10) || next.little_word(2) > len - HEADER_LEN {
            return false;
        }
        // Addresses and ports are one behind the other, for there are no options.
        let packets = match is_v6 {
            true => {
                usize::from(next.word(network + 4)) == len - transport
                    && same(HEADER_LEN..network + 4)
                    && same(network + 6..transport + 4)
            }
            false => {
                // With "don't fragment", the identification means nothing (RFC 6864 §4.1).
                let id = first.word(network + 4).wrapping_add(index as u16);
                let numbered = first.word(network + 6) != 0 || next.word(network + 4) == id;
                // Where the rest is the same, these three have the same sum in a header whose checksum is right.
                let sum = |head: &FrameHead| {
                    add(add(head.word(network + 2), head.word(network + 4)), head.word(network + 10))
                };
                usize::from(next.word(network + 2)) == len - network
                    && numbered
                    && sum(first) == sum(next)
                    && next.word(network + 10) != 0xffff
                    && same(HEADER_LEN..network + 2)
                    && same(network + 6..network + 10)
                    && same(network + 12..transport + 4)
            }
        };
        let transports = match is_tcp {
            true => {
                let sequence = first.long(transport + SEQUENCE).wrapping_add(before as u32);
                next.long(transport + SEQUENCE) == sequence
                    && same(transport + SEQUENCE + 4..transport + FLAGS)
                    && (a[transport + FLAGS] ^ b[transport + FLAGS]) & !PSH == 0
                    && same(transport + FLAGS + 1..transport + 16)
                    && same(transport + URGENT..payload)
            }
            false => usize::from(next.word(transport + 4)) == len - transport,
        };
        packets && transports && self.pseudo_sum(first) == self.pseudo_sum(next)
    }
}
