//! A queue's rings in guest memory, looked up once for a burst.

use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, VolatileArrayRef,
    VolatileMemory, VolatileSlice,
};

/// A queue's rings, and guest memory for its buffers, looked up once for a burst of frames: to find an address anew for each
/// word of a ring costs more than all else that a small frame takes here. Guest memory stays as it is while a device is active.
#[derive(Clone, Copy)]
pub struct Mapped<'m> {
    pub(super) memory: &'m GuestMemoryMmap,
    /// The first and the last region, by their starts: all that a machine with one hole has.
    pub(super) regions: [(u64, VolatileSlice<'m>); 2],
    pub(super) descriptors: VolatileArrayRef<'m, Descriptor>,
    pub(super) avail_ring: VolatileSlice<'m>,
    pub(super) used_ring: VolatileSlice<'m>,
    /// The entries of the two rings: as many as descriptors, which is the queue's size.
    pub(super) heads: VolatileArrayRef<'m, u16>,
    pub(super) used: VolatileArrayRef<'m, u64>,
}

impl<'m> Mapped<'m> {
    /// Guest memory.
    pub(in crate::virtio) fn memory(&self) -> &'m GuestMemoryMmap {
        self.memory
    }

    /// `len` bytes at `addr`, if they are in one region.
    #[inline]
    pub(super) fn slice(&self, addr: u64, len: usize) -> Result<VolatileSlice<'m>, GuestMemoryError> {
        for (start, region) in &self.regions {
            if let Some(offset) = addr.checked_sub(*start)
                && offset < region.len() as u64
            {
                return Ok(region.subslice(offset as usize, len)?);
            }
        }
        self.memory.get_slice(GuestAddress(addr), len)
    }
}

/// `len` entries of a ring from `at` on.
pub(super) fn entries<T: ByteValued>(
    memory: &GuestMemoryMmap,
    at: u64,
    len: usize,
) -> Result<VolatileArrayRef<'_, T>, GuestMemoryError> {
    let at = GuestAddress(at);
    let (region, at) = memory.to_region_addr(at).ok_or(GuestMemoryError::InvalidGuestAddress(at))?;
    Ok(region.get_array_ref(at.0 as usize, len)?)
}

/// Loads the word at `offset` of a ring.
pub(super) fn load(
    ring: &VolatileSlice<'_>,
    offset: usize,
    order: Ordering,
) -> Result<u16, GuestMemoryError> {
    Ok(u16::from_le(ring.load(offset, order)?))
}
