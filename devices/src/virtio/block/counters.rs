//! What a disk's queue counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What went through a queue. Only its thread writes, so anybody can read at any time.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    /// Reads that succeeded, and their bytes.
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    /// Writes that succeeded, and their bytes.
    pub writes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub flushes: AtomicU64,
    /// Requests to discard or to write zeroes that succeeded.
    pub discards: AtomicU64,
    /// Requests that failed, or that made no sense.
    pub errors: AtomicU64,
}

/// Adds without a locked instruction: there is one writer.
pub(super) fn count(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}
