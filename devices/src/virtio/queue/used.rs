//! The used ring: what the device has used, when the driver sees it, and when it wants an interrupt for it.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestMemoryError, GuestMemoryMmap};

use super::mapped::load;
use super::{Error, Mapped, VirtQueue, full_fence, need_event};

impl VirtQueue {
    /// The used index that the driver was last shown, by whoever carries the frames.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub fn used_index(&self, memory: &GuestMemoryMmap) -> Result<u16, Error> {
        Ok(load(&self.map(memory)?.used_ring, 2, Ordering::Acquire)?)
    }

    /// Writes that the chain at `head` is used, with `len` bytes written into it, without showing it yet. `head` is a
    /// popped chain's.
    pub fn push_used(&mut self, rings: &Mapped<'_>, head: u16, len: u32) {
        let next = self.queue.next_used();
        // `virtq_used_elem`: the chain's id, then its length, 32 bits each (§2.7.8).
        let used = u64::from(head) | u64::from(len) << 32;
        rings.used.store(self.place(next), used.to_le());
        self.queue.set_next_used(next.wrapping_add(1));
    }

    /// Shows the driver all that was pushed since the last time. True: the driver wants an interrupt for it, and gets one now.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub fn publish(&mut self, rings: &Mapped<'_>) -> Result<bool, Error> {
        self.show(rings)?;
        let wanted = self.wants_interrupt(rings)?;
        self.signalled = self.shown;
        Ok(wanted)
    }

    /// Shows the driver all that was pushed since the last time, and leaves it to later whether to interrupt it.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub fn show(&mut self, rings: &Mapped<'_>) -> Result<(), Error> {
        let new = self.queue.next_used();
        if self.shown != new {
            // Release: the driver that sees the index sees the entries and the bytes in the buffers.
            rings.used_ring.store(new.to_le(), 2, Ordering::Release).map_err(GuestMemoryError::from)?;
            self.shown = new;
        }
        Ok(())
    }

    /// Chains that the driver was shown since it was last interrupted, or wanted not to be.
    pub fn unsignalled(&self) -> u16 {
        self.shown.wrapping_sub(self.signalled)
    }

    /// Whether the driver wants an interrupt for what it was [shown](Self::show). What it has taken note of meanwhile, it wants
    /// none for any more; without EVENT_IDX it cannot say that.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub fn wants_interrupt(&mut self, rings: &Mapped<'_>) -> Result<bool, Error> {
        let (old, new) = (self.signalled, self.shown);
        if old == new {
            return Ok(false);
        }
        // The driver sets its wish, then looks at the index once more; here it is the index, then the wish. With a full
        // fence on both sides, one of the two sees the other (§2.7.7.2).
        full_fence();
        let wanted = self.is_wanted(rings, old, new)?;
        if !wanted {
            self.signalled = new;
        }
        Ok(wanted)
    }

    /// Whether the driver seems to want no interrupt for the next chain that is used, and so to look by itself. It may change its mind.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub fn is_polled(&self, rings: &Mapped<'_>) -> Result<bool, Error> {
        Ok(!self.is_wanted(rings, self.signalled, self.shown.wrapping_add(1))?)
    }

    /// Whether the driver's wish, as it is, is for an interrupt after what was used from `old` on and before `new`.
    fn is_wanted(&self, rings: &Mapped<'_>, old: u16, new: u16) -> Result<bool, Error> {
        Ok(if self.queue.event_idx_enabled() {
            let used_event = 4 + 2 * usize::from(self.size());
            need_event(load(&rings.avail_ring, used_event, Ordering::Relaxed)?, new, old)
        } else {
            let flags = load(&rings.avail_ring, 0, Ordering::Relaxed)?;
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        })
    }
}
