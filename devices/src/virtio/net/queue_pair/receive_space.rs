//! The room that a driver posts for frames to receive: how much there must be, how it is gathered, and how a frame fills it.

use std::collections::VecDeque;

use net::{HEADER_LEN, Iov, IovBuffer, Offloads};
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

/// The chains that were taken off the ring and have no frame yet, and their buffers. What a turn leaves the next one begins with: to
/// gather the room for a large frame takes more than to receive a small one into it.
pub(super) struct InHand {
    pub(super) buffers: IovBuffer,
    pub(super) posted: VecDeque<Posted>,
}

impl InHand {
    /// Without any. Allocates all that there can be.
    pub(super) fn new() -> Self {
        // Each chain has a buffer at least.
        Self { buffers: IovBuffer::new(), posted: VecDeque::with_capacity(IovBuffer::MAX) }
    }

    /// Puts all of them back on their ring.
    pub(super) fn give_back(&mut self, ring: &mut VirtQueue) {
        self.posted.drain(..).for_each(|_| ring.undo_pop());
        drop(self.buffers.start());
    }

    /// Forgets them: their ring is another one now.
    pub(super) fn forget(&mut self) {
        self.posted.clear();
        drop(self.buffers.start());
    }
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
    use net::SocketPeer;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::super::{QueuePair, double};
    use super::*;
    use crate::virtio::device::ActiveQueue;
    use crate::virtio::mock::{Buffer, MockRing};
    use crate::virtio::net::mailbox::PairQueue;
    use crate::virtio::queue::F_VERSION_1;

    const ROOM: u64 = 2048;

    /// A pair that has four buffers in hand, and its receive ring.
    fn with_four_in_hand() -> (QueuePair, MockRing, SocketPeer) {
        let (mut pair, [mut rx, _], peer) = double::pair();
        pair.parts.space = ReceiveSpace::new(1 << VIRTIO_NET_F_MRG_RXBUF, None);
        for at in 0..4 {
            rx.add(&[Buffer::writable(double::DATA + at * ROOM, ROOM as u32)]).unwrap();
        }
        rx.publish();
        pair.process();
        assert_eq!((pair.in_hand.posted.len(), pair.state().receive.next_avail), (4, 4));
        let buffers = pair.in_hand.buffers.resume(&pair.parts.memory);
        assert_eq!(buffers.len() as u64, 4 * ROOM);
        buffers.keep();
        (pair, rx, peer)
    }

    /// Has a frame of this byte received, and says into which of the buffers at `data`.
    fn received(
        pair: &mut QueuePair,
        rx: &mut MockRing,
        peer: &SocketPeer,
        data: u64,
        byte: u8,
    ) -> Option<u64> {
        let frame = [[0; HEADER_LEN].as_slice(), &[byte; 60]].concat();
        peer.send(&frame).unwrap();
        pair.wake();
        pair.process();
        assert_eq!(rx.reap().map(|(_, len)| len), Some(72));
        let memory: &GuestMemoryMmap = &pair.parts.memory;
        (0..4).find(|at| memory.read_obj::<u8>(GuestAddress(data + at * ROOM + 71)).unwrap() == byte)
    }

    #[test]
    fn what_is_in_hand_is_there_in_the_next_turn_and_on_its_ring_in_a_pause() {
        let (mut pair, mut rx, peer) = with_four_in_hand();
        assert_eq!(received(&mut pair, &mut rx, &peer, double::DATA, 1), Some(0));
        assert_eq!((pair.in_hand.posted.len(), pair.state().receive.next_avail), (3, 4));
        assert_eq!(received(&mut pair, &mut rx, &peer, double::DATA, 2), Some(1));
        pair.pause().unwrap();
        assert_eq!((pair.in_hand.posted.len(), pair.state().receive.next_avail), (0, 2));
        pair.resume().unwrap();
        assert_eq!(received(&mut pair, &mut rx, &peer, double::DATA, 3), Some(2));
        rx.add(&[Buffer::writable(double::DATA, ROOM as u32)]);
        rx.publish();
        assert_eq!(received(&mut pair, &mut rx, &peer, double::DATA, 4), Some(3));
        assert_eq!(received(&mut pair, &mut rx, &peer, double::DATA, 5), Some(0), "behind those in hand");
    }

    #[test]
    fn what_is_in_hand_is_forgotten_with_its_ring() {
        let (mut pair, _, peer) = with_four_in_hand();
        pair.reset_queue(PairQueue::Receive);
        let memory = pair.parts.memory.clone();
        let (base, data) = (0x3000, 0x4000);
        let mut rx = MockRing::new(&memory, base, 8, false);
        let ring = VirtQueue::new(rx.setup(), F_VERSION_1, &memory).unwrap();
        let kick = pair.parts.rx.kick.clone();
        pair.enable_queue(PairQueue::Receive, ActiveQueue { index: 0, ring, kick }, true);
        rx.add(&[Buffer::writable(data, ROOM as u32)]);
        rx.publish();
        assert_eq!(received(&mut pair, &mut rx, &peer, data, 1), Some(0));
        let old = memory.read_obj::<u64>(GuestAddress(double::DATA + 64)).unwrap();
        assert_eq!(old, 0, "the driver has its buffers back");
    }

    #[test]
    fn what_is_in_hand_without_its_buffers_is_gathered_anew() {
        let (mut pair, mut rx, peer) = with_four_in_hand();
        drop(pair.in_hand.buffers.start());
        assert_eq!(received(&mut pair, &mut rx, &peer, double::DATA, 1), Some(0));
        assert_eq!((pair.in_hand.posted.len(), pair.state().receive.next_avail), (3, 4));
    }

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
