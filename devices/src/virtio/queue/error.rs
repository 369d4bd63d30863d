//! How a driver breaks the rules of its ring.

use vm_memory::GuestMemoryError;

/// How the driver broke the rules of its ring. The queue is of no use after it, until it is set up anew.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The size is zero, no power of two, or above the maximum.
    #[error("queue size {0} is not valid")]
    Size(u16),
    /// A ring has no address, a misaligned one (§2.7), or one that is not all in guest memory.
    #[error(
        "descriptor table {0:#x}, available ring {1:#x} or used ring {2:#x} is unset, misaligned or not in memory"
    )]
    Address(u64, u64, u64),
    /// The available index claims more buffers than the queue can hold, or went back.
    #[error("the available index went to {to} with {used} used in a queue of {size}")]
    AvailIndex {
        /// The index that the driver wrote.
        to: u16,
        /// How far the device is, as the driver was last shown.
        used: u16,
        /// The queue size.
        size: u16,
    },
    /// A descriptor index at or past the end of its table.
    #[error("descriptor {0} is past the end of its table")]
    DescriptorIndex(u32),
    /// The chain has more descriptors than its table, so it is a loop, or more than a frame may have buffers.
    #[error("the chain at descriptor {0} does not end")]
    ChainLength(u16),
    /// An indirect table that was not negotiated, is nested, is followed by another descriptor, or has a length that is
    /// zero, too large or not a multiple of 16 (§2.7.5.3).
    #[error("the chain at descriptor {0} misuses an indirect table")]
    Indirect(u16),
    /// A buffer in the wrong direction for its place or for this queue (§2.7.4.2).
    #[error("the chain at descriptor {0} has a buffer in the wrong direction")]
    Direction(u16),
    /// A buffer or a table that is not all in guest memory.
    #[error("the chain at descriptor {0} leaves guest memory")]
    Buffer(u16, #[source] GuestMemoryError),
    /// More buffers than fit the frame being gathered ([`IovBuffer::MAX`](net::IovBuffer::MAX)).
    #[error("the chain at descriptor {0} has too many buffers")]
    TooManyBuffers(u16),
    /// The chain has fewer bytes than every buffer of this device needs.
    #[error("the chain at descriptor {0} is too short")]
    TooShort(u16),
    /// The rings were in guest memory and are not any more.
    #[error("cannot access the rings")]
    Memory(#[from] GuestMemoryError),
    /// The same, as virtio-queue says it.
    #[error("cannot access the rings")]
    Ring(#[from] virtio_queue::Error),
}
