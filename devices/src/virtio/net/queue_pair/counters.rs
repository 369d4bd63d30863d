//! What a pair counts.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

/// What went through a pair, seen from the guest. Only the pair's thread writes, so anybody can read at any time; bytes are
/// those of the frames, without the virtio header.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub tx_frames: AtomicU64,
    pub tx_bytes: AtomicU64,
    /// Frames that went nowhere, as a wire would lose them: those that follow, and what else the host refused.
    pub tx_dropped: AtomicU64,
    /// Those of them that were too long.
    pub tx_too_long: AtomicU64,
    /// Those of them that found the NIC's link down: nothing is plugged in.
    pub tx_link_down: AtomicU64,
    /// Those of them that the host refused because its own link is down or gone.
    pub tx_host_down: AtomicU64,
    /// Frames of those sent that went together with others, and the packets as which they went.
    pub tx_merged: AtomicU64,
    pub tx_packets: AtomicU64,
    /// Times that the guest's frames waited for the NIC's rate.
    pub tx_rate_waits: AtomicU64,
    pub rx_frames: AtomicU64,
    pub rx_bytes: AtomicU64,
    /// Frames that did not come to the driver: those that follow, and what it cannot read by what it accepted.
    pub rx_dropped: AtomicU64,
    /// Those of them that were longer than what the driver can post for a frame.
    pub rx_too_long: AtomicU64,
    /// Those of them that waited in vain for the driver to post more. (What waits behind them the host's link keeps, or drops and
    /// counts itself.)
    pub rx_no_buffer: AtomicU64,
    /// Those of them that the host failed to hand over.
    pub rx_unread: AtomicU64,
    /// Times that frames for the guest waited for the NIC's rate.
    pub rx_rate_waits: AtomicU64,
    /// Kicks of the driver that woke the pair's thread: several before it wakes are one.
    pub kicks: AtomicU64,
    pub interrupts: AtomicU64,
    /// System calls of the pair's thread: one for each frame or packet that it tried to send or receive, and those by which it waited and
    /// interrupted. What a command on the control queue takes is not among them.
    pub calls: AtomicU64,
}

impl Counters {
    /// Counts why a frame of the host's is lost.
    #[cold]
    pub(super) fn count_unread(&self, error: &io::Error) {
        let counter = match (Errno::from_io_error(error), error.kind()) {
            (Some(Errno::MSGSIZE), _) | (_, io::ErrorKind::FileTooLarge) => &self.rx_too_long,
            (_, io::ErrorKind::StorageFull) => &self.rx_no_buffer,
            _ => &self.rx_unread,
        };
        count(counter, 1);
    }

    /// Counts why the host refuses a frame.
    #[cold]
    pub(super) fn count_refused(&self, error: &io::Error) {
        let errno = Errno::from_io_error(error);
        match errno {
            // Of `net::Unplugged`.
            Some(Errno::NETDOWN) => count(&self.tx_link_down, 1),
            // Of a tap that is down, and of one that is deleted.
            Some(Errno::IO | Errno::BADFD) => count(&self.tx_host_down, 1),
            _ => {}
        }
    }
}

/// Adds without a locked instruction: there is one writer.
pub(in crate::virtio::net) fn count(counter: &AtomicU64, more: u64) {
    if more != 0 {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }
}
