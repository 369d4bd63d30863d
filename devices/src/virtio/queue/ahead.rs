//! Asking for what the chains ahead are made of, so that the processor has it when they are taken.

use net::prefetch;
use virtio_queue::QueueT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{VolatileMemory, VolatileRef};

use super::{Chain, DESCRIPTOR_LEN, Error, Mapped, VirtQueue};

/// How many chains ahead of the one in hand what it names is asked for; the chains themselves are twice as far ahead.
const AHEAD: u16 = 8;
/// How much it asks for of a table or buffer: a frame's headers, or the table of a frame in as many pages.
const FETCH: usize = 256;

impl VirtQueue {
    /// Takes the next chain of a queue that the device reads, as [`next`](Self::next), and asks for what the chains after it are
    /// made of, so that the processor waits for the driver's lines while the kernel has the frames before them. Each is asked for
    /// when what names it has come: descriptors, then tables, then the headers of frames. It asks only; what is wrong with a
    /// chain is found when it is gathered. Use either this or
    /// [`next`](Self::next) and [`pop`](Self::pop) on a queue, never both.
    ///
    /// # Errors
    /// As for [`pop`](Self::pop).
    pub fn next_ahead(&mut self, rings: &Mapped<'_>) -> Result<Option<Chain>, Error> {
        let next = self.queue.next_avail();
        let chain = self.next(rings)?;
        let known = self.avail.wrapping_sub(next);
        // After `undo_pop`, it may be further ahead than this.
        for ahead in self.fetched_named.wrapping_sub(next)..known.min(AHEAD) {
            let at = next.wrapping_add(ahead);
            if let Some(descriptor) = self.first(rings, at) {
                fetch_named(rings, descriptor.load());
            }
            self.fetched_named = at.wrapping_add(1);
        }
        if self.indirect
            && AHEAD / 2 < known
            && let Some(descriptor) = self.first(rings, next.wrapping_add(AHEAD / 2))
            && let descriptor = descriptor.load()
            && descriptor.refers_to_indirect_table()
            && let Ok(first) = rings.slice(descriptor.addr().0, DESCRIPTOR_LEN)
            && let Ok(first) = first.get_ref::<Descriptor>(0)
        {
            fetch_named(rings, first.load());
        }
        Ok(chain)
    }

    /// Asks for the first descriptors of the chains from `next` on.
    pub(super) fn fetch(&mut self, rings: &Mapped<'_>, next: u16) {
        let known = self.avail.wrapping_sub(next);
        for ahead in self.fetched.wrapping_sub(next)..known.min(2 * AHEAD) {
            let at = next.wrapping_add(ahead);
            if let Some(descriptor) = self.first(rings, at) {
                prefetch(&descriptor.to_slice());
            }
            self.fetched = at.wrapping_add(1);
        }
    }

    /// The first descriptor of the chain at place `at` of the available ring.
    fn first<'m>(&self, rings: &Mapped<'m>, at: u16) -> Option<VolatileRef<'m, Descriptor>> {
        let head = usize::from(self.available(rings, at));
        (head < rings.descriptors.len()).then(|| rings.descriptors.ref_at(head))
    }
}

/// Asks for what a descriptor names, if the device is to read it.
fn fetch_named(rings: &Mapped<'_>, descriptor: Descriptor) {
    if !descriptor.is_write_only()
        && let Ok(named) = rings.slice(descriptor.addr().0, FETCH.min(descriptor.len() as usize))
    {
        prefetch(&named);
    }
}
