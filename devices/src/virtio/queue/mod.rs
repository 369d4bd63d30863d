//! The device's side of a split virtqueue (virtio 1.2 §2.7), thin over [`virtio_queue::Queue`].
//!
//! **Invariant: the driver's memory is read once.** An index, a ring entry or a descriptor is copied out, checked, and used
//! from the copy, for the driver can change it at any moment. (To fetch ahead is to read more, and to use none of it.) What
//! does not hold is an [`Error`], never a panic, and no walk is longer than the table it walks.
//!
//! Used buffers are written by [`push_used`](VirtQueue::push_used) and shown by [`publish`](VirtQueue::publish), not one by
//! one: all buffers of a mergeable frame must appear together (§5.1.6.4), and each showing costs a fence.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the queue, and its available ring |
//! | `ahead.rs` | the same, asking for what comes next before it is used |
//! | `chain.rs` | the buffers of a chain |
//! | `used.rs` | the used ring, and when the driver wants an interrupt |
//! | `mapped.rs` | the rings in memory, looked up for a burst |
//! | `error.rs` | how a driver breaks the rules |

mod ahead;
mod chain;
mod error;
mod mapped;
#[cfg(test)]
mod tests;
mod used;

use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

pub use self::error::Error;
pub use self::mapped::Mapped;
use self::mapped::{entries, load};

/// `VIRTIO_F_VERSION_1`: a driver that knows more than the legacy interface (virtio 1.2 §6).
pub const F_VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// `VIRTIO_F_EVENT_IDX`: each side says at which index it wants to hear from the other (§2.7.7, §2.7.10).
pub const F_EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// `VIRTIO_F_INDIRECT_DESC`: a descriptor may stand for a table of descriptors (§2.7.5.3).
pub const F_INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// `VIRTIO_F_IN_ORDER`: the device uses chains in the order in which the driver made them available (§2.7.9).
pub const F_IN_ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;
/// `VIRTIO_F_RING_RESET`: the driver can reset one queue, and set it up anew, while the device runs (§2.6.1).
pub const F_RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;

/// Bytes of one descriptor (§2.7.5).
const DESCRIPTOR_LEN: usize = 16;

/// Where the driver put a queue, as its transport's registers say. Nothing is checked yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSetup {
    /// Entries, a power of two.
    pub size: u16,
    /// Guest-physical address of the descriptor table, aligned to 16.
    pub desc_table: u64,
    /// Guest-physical address of the available ring, aligned to 2.
    pub avail_ring: u64,
    /// Guest-physical address of the used ring, aligned to 4.
    pub used_ring: u64,
}

/// How far the device is in a queue. Both run over all 65536 values; which events it asked for is in the rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// The entry of the available ring that it takes next.
    pub next_avail: u16,
    /// The entry of the used ring that it writes next.
    pub next_used: u16,
}

/// A descriptor chain taken off the available ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The index of its first descriptor, by which it is given back.
    pub head: u16,
}

/// One split virtqueue, and how far the device is in it.
#[derive(Debug)]
pub struct VirtQueue {
    queue: Queue,
    /// The available index as last read: up to here the ring is known without another look.
    avail: u16,
    /// Up to here the chains' first descriptors were asked for, and what they name, where that is ahead.
    fetched: u16,
    fetched_named: u16,
    /// The used index as last shown to the driver.
    shown: u16,
    /// The used index for which the driver was last interrupted, or wanted not to be.
    signalled: u16,
    /// Without EVENT_IDX: whether the driver is being asked to kick.
    kicks_wanted: bool,
    indirect: bool,
}

impl VirtQueue {
    /// A queue as the driver set it up, under the features it accepted.
    ///
    /// # Errors
    /// [`Error::Size`] and [`Error::Address`], where the setup makes no sense.
    pub fn new(setup: &QueueSetup, accepted: u64, memory: &GuestMemoryMmap) -> Result<Self, Error> {
        let QueueSetup { size, desc_table, avail_ring, used_ring } = *setup;
        let address = Error::Address(desc_table, avail_ring, used_ring);
        let mut queue = Queue::new(size).map_err(|_| Error::Size(size))?;
        // A register that was never written reads zero, and no driver puts a ring on the first page by intent.
        if desc_table == 0 || avail_ring == 0 || used_ring == 0 {
            return Err(address);
        }
        let placed = queue
            .try_set_desc_table_address(GuestAddress(desc_table))
            .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(avail_ring)))
            .and_then(|()| queue.try_set_used_ring_address(GuestAddress(used_ring)));
        queue.set_event_idx(accepted & F_EVENT_IDX != 0);
        queue.set_ready(true);
        if placed.is_err() || !queue.is_valid(memory) {
            return Err(address);
        }
        let indirect = accepted & F_INDIRECT_DESC != 0;
        let queue = Self {
            queue,
            avail: 0,
            fetched: 0,
            fetched_named: 0,
            shown: 0,
            signalled: 0,
            kicks_wanted: true,
            indirect,
        };
        // A ring over two regions would be in memory as well, but there is no reason to place one so.
        queue.map(memory).map(drop).map_err(|_| address)?;
        Ok(queue)
    }

    /// Entries in each ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Where the rings are.
    pub fn setup(&self) -> QueueSetup {
        QueueSetup {
            size: self.size(),
            desc_table: self.queue.desc_table(),
            avail_ring: self.queue.avail_ring(),
            used_ring: self.queue.used_ring(),
        }
    }

    /// How far the device is, between two bursts.
    pub fn state(&self) -> QueueState {
        QueueState { next_avail: self.queue.next_avail(), next_used: self.queue.next_used() }
    }

    /// Goes on where a device before this one stood, which had published all that it used.
    pub fn set_state(&mut self, state: QueueState) {
        let QueueState { next_avail, next_used } = state;
        self.queue.set_next_avail(next_avail);
        self.queue.set_next_used(next_used);
        (self.avail, self.fetched, self.fetched_named) = (next_avail, next_avail, next_avail);
        (self.shown, self.signalled) = (next_used, next_used);
    }

    /// Looks the rings up for a burst. All that takes a [`Mapped`] takes that of the same queue.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub fn map<'m>(&self, memory: &'m GuestMemoryMmap) -> Result<Mapped<'m>, Error> {
        let region = |region: Option<&'m GuestRegionMmap>| {
            let region = region.ok_or(GuestMemoryError::InvalidGuestAddress(GuestAddress(0)))?;
            Ok::<_, GuestMemoryError>((region.start_addr().0, region.as_volatile_slice()?))
        };
        let size = usize::from(self.size());
        let slice = |at, len| memory.get_slice(GuestAddress(at), len);
        let (desc_table, avail_ring, used_ring) =
            (self.queue.desc_table(), self.queue.avail_ring(), self.queue.used_ring());
        Ok(Mapped {
            memory,
            regions: [region(memory.iter().next())?, region(memory.iter().last())?],
            descriptors: entries(memory, desc_table, size)?,
            avail_ring: slice(avail_ring, 6 + 2 * size)?,
            used_ring: slice(used_ring, 6 + 8 * size)?,
            heads: entries(memory, avail_ring + 4, size)?,
            used: entries(memory, used_ring + 4, size)?,
        })
    }

    /// Takes the next chain. `None` means that the ring is empty *and* that the driver will kick when it is not any more.
    ///
    /// # Errors
    /// [`Error::AvailIndex`] and [`Error::DescriptorIndex`]. The chain itself is checked when it is gathered.
    pub fn pop(&mut self, rings: &Mapped<'_>) -> Result<Option<Chain>, Error> {
        match self.next(rings)? {
            None if self.arm(rings)? => Ok(None),
            None => self.next(rings),
            chain => Ok(chain),
        }
    }

    /// Takes the next chain. `None` means that the ring is empty, and no more: unless it was [armed](Self::arm), who waits must
    /// look.
    ///
    /// # Errors
    /// As for [`pop`](Self::pop).
    pub fn next(&mut self, rings: &Mapped<'_>) -> Result<Option<Chain>, Error> {
        let next = self.queue.next_avail();
        if next == self.avail && !self.look(rings)? {
            return Ok(None);
        }
        if self.kicks_wanted && !self.queue.event_idx_enabled() {
            self.queue.disable_notification(rings.memory)?;
            self.kicks_wanted = false;
        }
        self.fetch(rings, next);
        let head = self.available(rings, next);
        if head >= self.size() {
            return Err(Error::DescriptorIndex(head.into()));
        }
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(Chain { head }))
    }

    /// The head at place `at` of the available ring.
    pub(super) fn available(&self, rings: &Mapped<'_>, at: u16) -> u16 {
        u16::from_le(rings.heads.load(self.place(at)))
    }

    /// Where in a ring the entry of an index is. The size is a power of two, so this is the remainder, without the division.
    fn place(&self, index: u16) -> usize {
        usize::from(index & (self.size() - 1))
    }

    /// Reads how far the driver is; false where it has added nothing since the last time.
    fn look(&mut self, rings: &Mapped<'_>) -> Result<bool, Error> {
        // Acquire: the entries and descriptors that the index covers are read after it.
        let to = load(&rings.avail_ring, 2, Ordering::Acquire)?;
        let (used, size, next) = (self.shown, self.size(), self.avail);
        // One that has not moved was good before.
        if to.wrapping_sub(used) > size || to.wrapping_sub(next) > size {
            return Err(Error::AvailIndex { to, used, size });
        }
        self.avail = to;
        Ok(to != next)
    }

    /// True once the driver has added a chain behind the last one that was known, taken or not.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub fn has_more(&self, rings: &Mapped<'_>) -> Result<bool, Error> {
        Ok(self.added(rings)? > 0)
    }

    /// Asks the driver to kick once there is more than was known, and looks again. False where there is, for it may have been
    /// added just before the driver could see that a kick is wanted.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub fn arm(&mut self, rings: &Mapped<'_>) -> Result<bool, Error> {
        self.arm_after(rings, 1)
    }

    /// The same, once there are so many chains `more`; without EVENT_IDX, which alone can say that, once there is one.
    ///
    /// # Errors
    /// As for [`arm`](Self::arm).
    pub fn arm_after(&mut self, rings: &Mapped<'_>, more: u16) -> Result<bool, Error> {
        self.kicks_wanted = true;
        let more = if self.kicks_by_index() { more.max(1) } else { 1 };
        if self.kicks_by_index() {
            self.set_avail_event(rings, self.avail.wrapping_add(more - 1))?;
        } else {
            rings.used_ring.store(0u16, 0, Ordering::Relaxed).map_err(GuestMemoryError::from)?;
        }
        // The driver adds, then looks whether to kick; here it is the wish, then the look. With a full fence on both sides, one
        // of the two sees the other.
        full_fence();
        Ok(self.added(rings)? < more)
    }

    /// Asks the driver not to kick, for who looks by itself until it [arms](Self::arm) the ring again. One may come all the same.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub fn disarm(&mut self, rings: &Mapped<'_>) -> Result<(), Error> {
        if self.kicks_by_index() {
            // One that it has added: it kicks with the next one of that number.
            self.set_avail_event(rings, self.avail.wrapping_sub(1))?;
        } else if self.kicks_wanted {
            self.queue.disable_notification(rings.memory)?;
            self.kicks_wanted = false;
        }
        Ok(())
    }

    /// Whether the driver is told when to kick by an index, and not only whether.
    pub fn kicks_by_index(&self) -> bool {
        self.queue.event_idx_enabled()
    }

    /// `avail_event`: the entry of the available ring with which the driver is to kick (§2.7.10.1).
    fn set_avail_event(&self, rings: &Mapped<'_>, entry: u16) -> Result<(), Error> {
        let offset = 4 + 8 * usize::from(self.size());
        let stored = rings.used_ring.store(entry.to_le(), offset, Ordering::Relaxed);
        Ok(stored.map_err(GuestMemoryError::from)?)
    }

    /// How many chains the driver has added behind the last one that was known.
    fn added(&self, rings: &Mapped<'_>) -> Result<u16, Error> {
        Ok(load(&rings.avail_ring, 2, Ordering::Relaxed)?.wrapping_sub(self.avail))
    }

    /// Puts the chain that was last taken back: "not now". As many can go back as were taken and not used.
    pub fn undo_pop(&mut self) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }
}

/// Between what the driver is told and what it has done: all that was stored is seen by the others before anything else is loaded.
fn full_fence() {
    #[cfg(test)]
    tests::at_fence();
    fence(Ordering::SeqCst);
}

/// Whether going from index `old` to `new` passes `event` (§2.7.7.2, §2.7.10.1). All three run over all 65536 values.
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
