//! The feature bits of a NIC (virtio 1.2 §5.1.3), and the host's offloads that some of them stand for.
//!
//! Not offered is `VIRTIO_NET_F_RSS`: the host's kernel chooses the queue of a frame that it brings, and brings an answer where the
//! question went out. Another choice would take a BPF program in a tap (`TUNSETSTEERINGEBPF`), a right to load it, and has no way
//! into a macvtap.
//!
//! Not offered is `VIRTIO_NET_F_VQ_NOTF_COAL` either: with [`VIRTIO_NET_F_NOTF_COAL`] the driver sets all queues of a direction at once,
//! which is what `ethtool -C` does. For each queue by itself it would take a command that is read back, and other values after the
//! reset of a queue than before; a Linux driver would use it for `adaptive-rx`, which asks the device anew with each change of load.

use net::Offloads;
use virtio_bindings::virtio_net::*;

use crate::virtio::queue::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_RESET, F_VERSION_1};

/// The bits that say what the driver takes in the frames it receives, and that it may switch while it runs (§5.1.6.5.6).
const GUEST: [u32; 5] = [
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
];

/// The bits of the control queue's commands (§5.1.3), whatever the backends can do.
const CONTROL: [u32; 6] = [
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_NOTF_COAL,
];

/// What all of several backends can do.
pub(super) fn common(all: impl Iterator<Item = Offloads>) -> Offloads {
    let every = Offloads { csum: true, tso4: true, tso6: true, uso: true };
    all.fold(every, |a, b| Offloads {
        csum: a.csum & b.csum,
        tso4: a.tso4 & b.tso4,
        tso6: a.tso6 & b.tso6,
        uso: a.uso & b.uso,
    })
}

/// The feature bits (§5.1.3, USO of virtio 1.3) of a card of so many pairs whose backends can
/// do `can`, and whose largest packet may be known (`mtu`). A bit is offered together with those
/// that it needs (§5.1.3.1), so large packets come with checksums or not at all.
pub(super) fn offer(mtu: bool, can: Offloads, pairs: usize) -> u64 {
    let mut features = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_IN_ORDER | F_RING_RESET;
    let mut offer = |condition: bool, bits: &[u32]| {
        if condition {
            features |= mask(bits);
        }
    };
    offer(true, &[VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_SPEED_DUPLEX]);
    offer(true, &CONTROL);
    offer(pairs > 1, &[VIRTIO_NET_F_MQ]);
    offer(mtu, &[VIRTIO_NET_F_MTU]);
    offer(can.csum, &[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS]);
    offer(can.csum && can.tso4, &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO4]);
    offer(can.csum && can.tso6, &[VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_GUEST_TSO6]);
    offer(can.csum && can.uso, &[VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6]);
    features
}

/// What the driver leaves to the host in the frames that it sends, by the bits that it `accepted`.
pub(super) fn host_offloads(accepted: u64) -> Offloads {
    let has = |bit: u32| accepted & 1 << bit != 0;
    let csum = has(VIRTIO_NET_F_CSUM);
    Offloads {
        csum,
        tso4: csum && has(VIRTIO_NET_F_HOST_TSO4),
        tso6: csum && has(VIRTIO_NET_F_HOST_TSO6),
        uso: csum && has(VIRTIO_NET_F_HOST_USO),
    }
}

/// What the driver takes in the frames it receives, by the `bits` that it accepted or has set since. A bit without those it
/// needs (§5.1.3.1) counts as not there: the host then does more work than it had to, and the driver gets nothing it cannot
/// read.
pub(super) fn guest_offloads(bits: u64) -> Offloads {
    let has = |bit: u32| bits & 1 << bit != 0;
    let csum = has(VIRTIO_NET_F_GUEST_CSUM);
    Offloads {
        csum,
        tso4: csum && has(VIRTIO_NET_F_GUEST_TSO4),
        tso6: csum && has(VIRTIO_NET_F_GUEST_TSO6),
        uso: csum && has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
    }
}

/// Whether a driver of these `accepted` features may set exactly `bits` of what it takes in the frames it receives.
pub(super) fn may_set(bits: u64, accepted: u64) -> bool {
    bits & !(mask(&GUEST) & accepted) == 0
}

fn mask(bits: &[u32]) -> u64 {
    bits.iter().fold(0, |all, bit| all | 1 << bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true, uso: true };
    const NONE: Offloads = Offloads { csum: false, tso4: false, tso6: false, uso: false };

    /// Each offload alone.
    fn each() -> [Offloads; 4] {
        [
            Offloads { csum: true, ..NONE },
            Offloads { tso4: true, ..NONE },
            Offloads { tso6: true, ..NONE },
            Offloads { uso: true, ..NONE },
        ]
    }

    #[test]
    fn what_all_can_do_is_what_each_can() {
        assert_eq!(common([ALL, ALL].into_iter()), ALL);
        for one in each() {
            assert_eq!(common([ALL, one].into_iter()), one);
            assert_eq!(common([one, ALL, ALL].into_iter()), one);
            assert_eq!(common([one, NONE].into_iter()), NONE);
        }
    }

    #[test]
    fn large_frames_go_with_checksums_or_not_at_all() {
        let large = [VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO];
        let csum = mask(&[VIRTIO_NET_F_CSUM]);
        assert_eq!(host_offloads(0), NONE);
        assert_eq!(host_offloads(csum), Offloads { csum: true, ..NONE });
        assert_eq!(host_offloads(csum | mask(&large)), ALL);
        assert_eq!(host_offloads(!csum), NONE);
        for (bit, one) in large.into_iter().zip(&each()[1..]) {
            assert_eq!(host_offloads(mask(&[bit])), NONE, "bit {bit}");
            assert_eq!(host_offloads(csum | mask(&[bit])), Offloads { csum: true, ..*one }, "bit {bit}");
        }
    }
}
