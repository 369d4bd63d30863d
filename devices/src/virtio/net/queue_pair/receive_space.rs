//! The room that a driver posts for frames to receive: how much there must be, how it is gathered, and how a frame fills it.

use std::collections::VecDeque;

use net::{HEADER_LEN, Iov, Offloads};
use virtio_bindings::virtio_net::*;

use crate::virtio::net::features::guest_offloads;
use crate::virtio::queue::{Chain, Error, Mapped, VirtQueue};

/// The room that a driver leaves for a large frame (§5.1.6.3.1): 65550 bytes and the header.
pub(super) const LARGE_ROOM: usize = HEADER_LEN + 65550;
/// The room that a driver leaves otherwise (§5.1.6.3.1): an Ethernet frame of 1514 bytes and the header.
const SMALL_ROOM: usize = HEADER_LEN + 1514;
/// Every type of segments that a host leaves to a driver: a bit for each `gso_type` (§5.1.6).
const TYPES: u8 = 1 << VIRTIO_NET_HDR_GSO_NONE
    | 1 << VIRTIO_NET_HDR_GSO_TCPV4
    | 1 << VIRTIO_NET_HDR_GSO_TCPV6
    | 1 << VIRTIO_NET_HDR_GSO_UDP_L4;
/// Offset of `num_buffers` in the header (§5.1.6).
const NUM_BUFFERS: usize = 10;

/// What a driver posts for one frame, and what of it it can read, by what it accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveSpace {
    /// A frame may take several chains (`VIRTIO_NET_F_MRG_RXBUF`); otherwise it takes one, whatever its size.
    mergeable: bool,
    /// Bytes into which every frame fits that the driver expects. Into less, a frame is received with
    /// [care](super::shortage::Shortage).
    need: usize,
    /// A checksum may be left to it.
    partial: bool,
    /// The types of segments that may be, of [`TYPES`].
    types: u8,
}

impl ReceiveSpace {
    /// The room under the `accepted` features, for packets of up to `mtu` bytes where that is known and the driver took note of it.
    pub fn new(accepted: u64, mtu: Option<u16>) -> Self {
        let has = |bits: &[u32]| bits.iter().any(|bit| accepted & 1 << bit != 0);
        let large = [
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_GUEST_USO6,
        ];
        let mtu = mtu.filter(|_| has(&[VIRTIO_NET_F_MTU]));
        let mtu = mtu.map_or(0, |mtu| HEADER_LEN + 18 + usize::from(mtu));
        let need = if has(&large) { LARGE_ROOM } else { SMALL_ROOM.max(mtu) };
        let Offloads { csum, tso4, tso6, uso } = guest_offloads(accepted);
        let types = [
            (true, VIRTIO_NET_HDR_GSO_NONE),
            (tso4, VIRTIO_NET_HDR_GSO_TCPV4),
            (tso6, VIRTIO_NET_HDR_GSO_TCPV6),
            (uso, VIRTIO_NET_HDR_GSO_UDP_L4),
        ];
        let types = types.into_iter().filter(|(can, _)| *can).fold(0, |all, (_, kind)| all | 1 << kind);
        Self { mergeable: has(&[VIRTIO_NET_F_MRG_RXBUF]), need, partial: csum, types }
    }

    /// Whether the driver can read the frame: one that waited on the host since a driver before this one may leave it more than
    /// it takes. (What it has switched off since may still come, for it did negotiate that.)
    pub(super) fn suits(&self, frame: &mut Iov<'_>) -> bool {
        // The kernel has only just written it: to read it at once is to wait for that.
        if self.partial && self.types == TYPES {
            return true;
        }
        let mut start = [0; 2];
        frame.read_at(0, &mut start);
        let [flags, kind] = start.map(u32::from);
        if !self.partial && flags == VIRTIO_NET_HDR_F_DATA_VALID {
            // To know the checksum good is of the same feature (§5.1.6.4.1).
            frame.write_at(0, &[0]);
        }
        (self.partial || flags & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0) && self.types & 1 << (kind & 7) != 0
    }
}

/// A receive chain whose buffers wait for a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Posted {
    chain: Chain,
    /// Bytes of room.
    len: usize,
    /// Descriptors that it takes of the queue's.
    descriptors: u16,
}

/// How much room there is for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// The driver has posted nothing.
    Nothing,
    /// Less than the largest frame takes, and the driver can post more.
    Short,
    /// For the largest frame, or all that there can be.
    Enough,
}

/// Tops `space` up with chains until the largest frame fits, as far as the driver has posted them.
pub(super) fn gather<'m>(
    ring: &mut VirtQueue,
    rings: &Mapped<'m>,
    needed: ReceiveSpace,
    space: &mut Iov<'m>,
    posted: &mut VecDeque<Posted>,
) -> Result<Room, Error> {
    while posted.is_empty() || needed.mergeable && space.len() < LARGE_ROOM {
        let Some(chain) = ring.next(rings)? else {
            if posted.is_empty() {
                return Ok(Room::Nothing);
            }
            // With every descriptor of the ring in hand there is nothing to wait for: a small ring takes small frames.
            let descriptors: u32 = posted.iter().map(|posted| u32::from(posted.descriptors)).sum();
            let all = descriptors >= u32::from(ring.size());
            return Ok(if all || space.len() >= needed.need { Room::Enough } else { Room::Short });
        };
        let len = space.len();
        let descriptors = match ring.writable(rings, chain, space) {
            Ok(descriptors) => descriptors,
            // A frame has no more buffers than this, so it has to do with those before.
            Err(Error::TooManyBuffers(_)) if !posted.is_empty() => {
                space.truncate(len);
                ring.undo_pop();
                break;
            }
            Err(error) => return Err(error),
        };
        let len = space.len() - len;
        // §5.1.6.3.1; and chains of no length would make a frame without end.
        if len < HEADER_LEN {
            return Err(Error::TooShort(chain.head));
        }
        posted.push_back(Posted { chain, len, descriptors });
    }
    Ok(Room::Enough)
}

/// Gives the driver the first `len` bytes of `space`: as many chains from the front of `posted` as they reach into, which is
/// at least one. Returns how many.
pub(super) fn fill(
    ring: &mut VirtQueue,
    rings: &Mapped<'_>,
    len: usize,
    space: &mut Iov<'_>,
    posted: &mut VecDeque<Posted>,
) -> u16 {
    let (mut left, mut chains, mut room) = (len, 0u16, 0);
    while left > 0
        && let Some(first) = posted.pop_front()
    {
        let part = left.min(first.len);
        ring.push_used(rings, first.chain.head, part as u32);
        left -= part;
        chains += 1;
        room += first.len;
    }
    // One without mergeable buffers as well (§5.1.6.4.1).
    space.write_at(NUM_BUFFERS, &chains.to_le_bytes());
    space.consume(room);
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mtu_counts_for_a_driver_that_took_note_of_it() {
        let need =
            |bits: &[u32], mtu| ReceiveSpace::new(bits.iter().fold(0, |all, bit| all | 1 << bit), mtu).need;
        assert_eq!(need(&[VIRTIO_NET_F_MTU], Some(9000)), 9030);
        assert_eq!(need(&[VIRTIO_NET_F_MTU], Some(1280)), SMALL_ROOM);
        assert_eq!(need(&[VIRTIO_NET_F_MTU], None), SMALL_ROOM);
        assert_eq!(need(&[], Some(9000)), SMALL_ROOM);
        assert_eq!(need(&[VIRTIO_NET_F_MTU, VIRTIO_NET_F_GUEST_USO6], Some(9000)), LARGE_ROOM);
    }
}
