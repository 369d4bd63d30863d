//! What a pair counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What went through a pair, seen from the guest. Only the pair's thread writes, so anybody can read at any time; bytes are
/// those of the frames, without the virtio header.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub tx_frames: AtomicU64,
    pub tx_bytes: AtomicU64,
    /// Frames that went nowhere, as a wire would lose them: the host refused them, or they were too long for it.
    pub tx_dropped: AtomicU64,
    /// Those of them that were too long.
    pub tx_too_long: AtomicU64,
    pub rx_frames: AtomicU64,
    pub rx_bytes: AtomicU64,
    /// Frames that the host could not hand over, that did not fit what the driver posted, or that it cannot read.
    pub rx_dropped: AtomicU64,
    /// Those of them that could not be read whole: the host failed, or they were larger than what the driver posted.
    pub rx_unread: AtomicU64,
    /// Kicks of the driver that woke the pair's thread: several before it wakes are one.
    pub kicks: AtomicU64,
    pub interrupts: AtomicU64,
    /// System calls of the pair's thread: one for each frame that it tried to send or receive, and those by which it waited and
    /// interrupted. What a command on the control queue takes is not among them.
    pub calls: AtomicU64,
}

/// Adds without a locked instruction: there is one writer.
pub(in crate::virtio::net) fn count(counter: &AtomicU64, more: u64) {
    if more != 0 {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }
}
