//! What is where in the BAR.

/// Bytes of guest address space that a device takes: the size of its BAR.
pub const BAR_LEN: u64 = 0x4000;
/// The most queues that fit: a page of vectors, of which one tells of configuration changes.
pub const QUEUES_MAX: usize = 255;

pub(super) const COMMON: u64 = 0;
pub(super) const COMMON_LEN: u64 = 60;
pub(super) const ISR: u64 = 0x400;
pub(super) const DEVICE: u64 = 0x800;
pub(super) const TABLE: u64 = 0x1000;
pub(super) const PENDING: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
/// `notify_off_multiplier`: each queue has an address of its own, which alone says which queue is meant.
pub(super) const NOTIFY_MULTIPLIER: u64 = 4;
