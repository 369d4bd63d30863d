//! The fields of the virtio-net header that leave work to the host (virtio 1.3 §5.1.6).

use crate::{HEADER_LEN, Offloads};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is partial.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_ECN`: the TCP packet has CWR set.
const GSO_ECN: u8 = 0x80;

/// What a header says. Offsets are in bytes from the start of the Ethernet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u8,
    pub(super) gso_type: u8,
    /// Bytes of payload of each segment.
    pub(super) gso_size: u16,
    /// Where the sum starts.
    pub(super) csum_start: u16,
    /// Where the checksum is stored, counted from `csum_start`.
    pub(super) csum_offset: u16,
}

/// How a packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gso {
    Tcp4,
    Tcp6,
    Udp,
}

impl Header {
    pub(super) fn read(bytes: &[u8; HEADER_LEN]) -> Self {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        }
    }

    /// True if the host is to finish the checksum.
    pub(super) fn needs_csum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// True if the host is to cut the packet into segments.
    pub(super) fn is_cut(&self) -> bool {
        self.gso_type != 0
    }

    /// How the packet is to be cut; none for kinds that no NIC of ours offers, such as UDP fragmentation (`GSO_UDP`) and tunnels.
    pub(super) fn gso(&self) -> Option<Gso> {
        match self.gso_type {
            5 => Some(Gso::Udp),
            tcp => match tcp & !GSO_ECN {
                1 => Some(Gso::Tcp4),
                4 => Some(Gso::Tcp6),
                _ => None,
            },
        }
    }

    /// Where the sum starts, in bytes from the start of this header.
    pub(super) fn sums_from(&self) -> usize {
        HEADER_LEN + usize::from(self.csum_start)
    }

    /// Where the checksum is stored, in bytes from the start of this header.
    pub(super) fn sum_at(&self) -> usize {
        self.sums_from() + usize::from(self.csum_offset)
    }

    /// The header of a segment that leaves only its checksum to the wire.
    pub(super) fn csum_only(&self) -> [u8; HEADER_LEN] {
        let ([a, b], [c, d]) = (self.csum_start.to_le_bytes(), self.csum_offset.to_le_bytes());
        [NEEDS_CSUM, 0, 0, 0, 0, 0, a, b, c, d, 0, 0]
    }
}

impl Gso {
    /// True if a wire that can do `offloads` cuts such packets itself.
    pub(super) fn is_in(self, offloads: Offloads) -> bool {
        match self {
            Self::Tcp4 => offloads.tso4,
            Self::Tcp6 => offloads.tso6,
            Self::Udp => offloads.uso,
        }
    }
}
