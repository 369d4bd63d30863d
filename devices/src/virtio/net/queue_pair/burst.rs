//! How much one direction moves before the other has its turn, and how the driver hears of it.

use super::counters::{Counters, count};
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::queue::{Error, Mapped};

/// Chains that are shown to the driver together, with one interrupt at most. A frame to be sent is one; a large one received
/// takes many, so that counting frames would show the driver nothing before all of its ring is used, and then each would wait
/// for the other in turn. Batches of 16 cost 3% more of the thread's time, and larger ones gain nothing.
pub(super) const BATCH: u64 = 64;
/// Chains that one direction uses before the other, and a stop, get their turn. To go on later costs to gather the room for a
/// large frame anew, and to ask for events a system call.
pub(super) const BURST: u64 = 256;
/// Bytes after which they get it as well: some hundred microseconds of large frames.
pub(super) const BURST_BYTES: u64 = 1 << 20;

/// Shows the driver what the burst used, and interrupts it if it wants that: then, true.
pub(super) fn signal_used(
    queue: &mut ActiveQueue,
    rings: &Mapped<'_>,
    interrupt: &dyn Interrupt,
    counters: &Counters,
) -> Result<bool, Error> {
    let wanted = queue.ring.publish(rings)?;
    if wanted {
        count(&counters.interrupts, 1);
        count(&counters.calls, 1);
        if let Err(error) = interrupt.queue(queue.index) {
            log::warn!("cannot interrupt the guest: {error}");
        }
    }
    Ok(wanted)
}
