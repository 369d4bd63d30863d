//! The buffers of a chain: each descriptor is copied out, checked, and used from the copy.

use net::{Iov, IovBuffer};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemoryBackend, VolatileMemory, VolatileSlice};

use super::{Chain, DESCRIPTOR_LEN, Error, Mapped, VirtQueue};

/// Descriptors that a table can hold with each of them reachable: `next` has 16 bits.
pub(super) const MAX_TABLE: usize = 1 << 16;

impl VirtQueue {
    /// Gathers a chain that the device only reads, as of a transmit queue; returns how many descriptors of the queue's
    /// table it takes.
    ///
    /// # Errors
    /// All that can be wrong with a chain; [`Error::Direction`] where the device could write a buffer.
    pub fn readable<'m>(&self, rings: &Mapped<'m>, chain: Chain, into: &mut Iov<'m>) -> Result<u16, Error> {
        self.gather(rings, chain, |buffer, writable| match writable {
            true => Err(Error::Direction(chain.head)),
            false => into.push(buffer).then_some(()).ok_or(Error::TooManyBuffers(chain.head)),
        })
    }

    /// Gathers a chain that the device only writes, as of a receive queue, behind what `into` holds already; returns how
    /// many descriptors of the queue's table it takes.
    ///
    /// # Errors
    /// All that can be wrong with a chain; [`Error::Direction`] where the device could not write a buffer;
    /// [`Error::TooManyBuffers`] once `into` is full, and then some of the chain's buffers are in it.
    pub fn writable<'m>(&self, rings: &Mapped<'m>, chain: Chain, into: &mut Iov<'m>) -> Result<u16, Error> {
        self.gather(rings, chain, |buffer, writable| match writable {
            false => Err(Error::Direction(chain.head)),
            true => into.push(buffer).then_some(()).ok_or(Error::TooManyBuffers(chain.head)),
        })
    }

    /// Calls `each(buffer, writable)` for the buffers of a chain, in order, those that the device writes last; returns how
    /// many descriptors of the queue's table it takes. A buffer that spans two regions of guest memory comes as two, one
    /// of no length does not come.
    ///
    /// # Errors
    /// All that can be wrong with a chain, and what `each` says. Buffers before the error were handed out.
    pub fn gather<'m>(
        &self,
        rings: &Mapped<'m>,
        chain: Chain,
        mut each: impl FnMut(VolatileSlice<'m>, bool) -> Result<(), Error>,
    ) -> Result<u16, Error> {
        let head = chain.head;
        let (mut table, mut entries) = (rings.descriptors.to_slice(), usize::from(self.size()));
        let (mut index, mut walked, mut own, mut seen_writable) = (usize::from(head), 0, 0, false);
        loop {
            if index >= entries {
                return Err(Error::DescriptorIndex(index as u32));
            }
            if walked == entries.min(IovBuffer::MAX) {
                return Err(Error::ChainLength(head));
            }
            walked += 1;
            let descriptor: Descriptor = table
                .get_ref(index * DESCRIPTOR_LEN)
                .map_err(|error| Error::Buffer(head, error.into()))?
                .load();

            if descriptor.refers_to_indirect_table() {
                let len = descriptor.len() as usize;
                let nested = own != 0;
                if !self.indirect || nested || descriptor.has_next() {
                    return Err(Error::Indirect(head));
                }
                if len == 0 || !len.is_multiple_of(DESCRIPTOR_LEN) || len / DESCRIPTOR_LEN > MAX_TABLE {
                    return Err(Error::Indirect(head));
                }
                // The write-only flag of this descriptor means nothing (§2.7.5.3.2).
                let at = descriptor.addr().0;
                table = rings.slice(at, len).map_err(|error| Error::Buffer(head, error))?;
                (entries, index) = (len / DESCRIPTOR_LEN, 0);
                (own, walked) = (walked, 0);
                continue;
            }

            let writable = descriptor.is_write_only();
            if seen_writable && !writable {
                return Err(Error::Direction(head));
            }
            seen_writable = writable;
            let (addr, len) = (descriptor.addr(), descriptor.len() as usize);
            match rings.slice(addr.0, len) {
                Ok(buffer) if len > 0 => each(buffer, writable)?,
                // Two regions, none, or nothing at all.
                _ => {
                    for buffer in rings.memory.get_slices(addr, len) {
                        each(buffer.map_err(|error| Error::Buffer(head, error))?, writable)?;
                    }
                }
            }
            if !descriptor.has_next() {
                // An indirect chain takes only the descriptors up to the one that names its table.
                return Ok(if own == 0 { walked } else { own } as u16);
            }
            index = descriptor.next().into();
        }
    }
}
