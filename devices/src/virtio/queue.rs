//! The device's side of a split virtqueue (virtio 1.2 §2.7), thin over [`virtio_queue::Queue`].
//!
//! **Invariant: the driver's memory is read once.** An index, a ring entry or a descriptor is copied out, checked, and used
//! from the copy, for the driver can change it at any moment. (To fetch ahead is to read more, and to use none of it.) What
//! does not hold is an [`Error`], never a panic, and no walk is longer than the table it walks.
//!
//! Used buffers are written by [`push_used`](VirtQueue::push_used) and shown by [`publish`](VirtQueue::publish), not one by
//! one: all buffers of a mergeable frame must appear together (§5.1.6.4), and each showing costs a fence.

use std::sync::atomic::{Ordering, fence};

use net::{Iov, IovBuffer, prefetch};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, VolatileArrayRef, VolatileMemory, VolatileRef, VolatileSlice,
};

/// `VIRTIO_F_VERSION_1`: a driver that knows more than the legacy interface (virtio 1.2 §6).
pub const F_VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// `VIRTIO_F_EVENT_IDX`: each side says at which index it wants to hear from the other (§2.7.7, §2.7.10).
pub const F_EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// `VIRTIO_F_INDIRECT_DESC`: a descriptor may stand for a table of descriptors (§2.7.5.3).
pub const F_INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Bytes of one descriptor (§2.7.5).
const DESCRIPTOR_LEN: usize = 16;
/// Descriptors that a table can hold with each of them reachable: `next` has 16 bits.
const MAX_TABLE: usize = 1 << 16;

/// How many chains ahead of the one in hand what it names is asked for; the chains themselves are twice as far ahead.
const AHEAD: u16 = 8;
/// How much it asks for of a table or buffer: a frame's headers, or the table of a frame in as many pages.
const FETCH: usize = 256;

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
    /// More buffers than fit the frame being gathered ([`IovBuffer::MAX`]).
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

/// A queue's rings, and guest memory for its buffers, looked up once for a burst of frames: to find an address anew for each
/// word of a ring costs more than all else that a small frame takes here. Guest memory stays as it is while a device is active.
#[derive(Clone, Copy)]
pub struct Mapped<'m> {
    memory: &'m GuestMemoryMmap,
    /// The first and the last region, by their starts: all that a machine with one hole has.
    regions: [(u64, VolatileSlice<'m>); 2],
    descriptors: VolatileArrayRef<'m, Descriptor>,
    avail_ring: VolatileSlice<'m>,
    used_ring: VolatileSlice<'m>,
    /// The entries of the two rings: as many as descriptors, which is the queue's size.
    heads: VolatileArrayRef<'m, u16>,
    used: VolatileArrayRef<'m, u64>,
}

impl<'m> Mapped<'m> {
    /// `len` bytes at `addr`, if they are in one region.
    #[inline]
    fn slice(&self, addr: u64, len: usize) -> Result<VolatileSlice<'m>, GuestMemoryError> {
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

    /// The used index that the driver was last shown, by whoever carries the frames.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub fn used_index(&self, memory: &GuestMemoryMmap) -> Result<u16, Error> {
        Ok(load(&self.map(memory)?.used_ring, 2, Ordering::Acquire)?)
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

    /// Where in a ring the entry of an index is. The size is a power of two, so this is the remainder, without the division.
    fn place(&self, index: u16) -> usize {
        usize::from(index & (self.size() - 1))
    }

    /// Takes the next chain of a queue that the device reads, as [`next`](Self::next), and asks for what the chains after it are
    /// made of, so that the processor waits for the driver's lines while the kernel has the frames before them. Each is asked for
    /// when what names it has come: descriptors, then tables, then the headers of frames. It asks only; what is wrong with a
    /// chain is found when it is gathered. Who takes by this takes by nothing else.
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

    /// The head at place `at` of the available ring.
    fn available(&self, rings: &Mapped<'_>, at: u16) -> u16 {
        u16::from_le(rings.heads.load(self.place(at)))
    }

    /// Asks for the first descriptors of the chains from `next` on.
    fn fetch(&mut self, rings: &Mapped<'_>, next: u16) {
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
        Ok(load(&rings.avail_ring, 2, Ordering::Relaxed)? != self.avail)
    }

    /// Asks the driver to kick once there is more than was known, and looks again. False where there is, for it may have been
    /// added just before the driver could see that a kick is wanted.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub fn arm(&mut self, rings: &Mapped<'_>) -> Result<bool, Error> {
        self.kicks_wanted = true;
        let (offset, value) = match self.queue.event_idx_enabled() {
            // `avail_event`: the entry behind the last one known (§2.7.10.1).
            true => (4 + 8 * usize::from(self.size()), self.avail),
            false => (0, 0),
        };
        rings.used_ring.store(value.to_le(), offset, Ordering::Relaxed).map_err(GuestMemoryError::from)?;
        // The driver adds, then looks whether to kick; here it is the wish, then the look. With a full fence on both sides, one
        // of the two sees the other.
        fence(Ordering::SeqCst);
        Ok(!self.has_more(rings)?)
    }

    /// Puts the chain that was last taken back: "not now". As many can go back as were taken and not used.
    pub fn undo_pop(&mut self) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }

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
        fence(Ordering::SeqCst);
        let wanted = if self.queue.event_idx_enabled() {
            let used_event = 4 + 2 * usize::from(self.size());
            need_event(load(&rings.avail_ring, used_event, Ordering::Relaxed)?, new, old)
        } else {
            let flags = load(&rings.avail_ring, 0, Ordering::Relaxed)?;
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if !wanted {
            self.signalled = new;
        }
        Ok(wanted)
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

/// `len` entries of a ring from `at` on.
fn entries<T: ByteValued>(
    memory: &GuestMemoryMmap,
    at: u64,
    len: usize,
) -> Result<VolatileArrayRef<'_, T>, GuestMemoryError> {
    let at = GuestAddress(at);
    let (region, at) = memory.to_region_addr(at).ok_or(GuestMemoryError::InvalidGuestAddress(at))?;
    Ok(region.get_array_ref(at.0 as usize, len)?)
}

/// Loads the word at `offset` of a ring.
fn load(ring: &VolatileSlice<'_>, offset: usize, order: Ordering) -> Result<u16, GuestMemoryError> {
    Ok(u16::from_le(ring.load(offset, order)?))
}

/// Whether going from index `old` to `new` passes `event` (§2.7.7.2, §2.7.10.1). All three run over all 65536 values.
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

    use super::*;
    use crate::virtio::mock::{Buffer, MockRing};

    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
    const SIZE: u16 = 8;
    const RING: u64 = 0x1000;
    const TABLE: u64 = 0x8000;
    const DATA: u64 = 0x9000;
    const END: u64 = 0x10000;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), END as usize)]).unwrap()
    }

    fn ring(features: u64) -> (GuestMemoryMmap, MockRing, VirtQueue) {
        let memory = memory();
        let ring = MockRing::new(&memory, RING, SIZE, features & F_EVENT_IDX != 0);
        let queue = VirtQueue::new(ring.setup(), features, &memory).unwrap();
        (memory, ring, queue)
    }

    /// Pops the only chain, which is wrong, and says how.
    fn wrong(features: u64, lie: impl FnOnce(&mut MockRing)) -> Error {
        let (memory, mut driver, mut queue) = ring(features);
        lie(&mut driver);
        driver.publish();
        let chain = match queue.pop(&queue.map(&memory).unwrap()) {
            Ok(chain) => chain.unwrap(),
            Err(error) => return error,
        };
        queue.gather(&queue.map(&memory).unwrap(), chain, |_, _| Ok(())).unwrap_err()
    }

    proptest! {
        /// §2.7.7.2 in words: the interrupt is due if the index that the driver named was passed.
        #[test]
        fn need_event_is_whether_the_event_was_passed(old: u16, added in 0u16..300, near in 0u16..600) {
            let event = old.wrapping_sub(150).wrapping_add(near);
            let passed = (0..added).any(|step| old.wrapping_add(step) == event);
            prop_assert_eq!(need_event(event, old.wrapping_add(added), old), passed);
        }
    }

    #[test]
    fn chains_come_and_go_over_the_wrap_of_the_indices() {
        for features in [0, F_EVENT_IDX] {
            let (memory, mut driver, mut queue) = ring(features);
            driver.start_at(65530);
            queue.set_state(QueueState { next_avail: 65530, next_used: 65530 });
            assert!(queue.pop(&queue.map(&memory).unwrap()).unwrap().is_none());
            for round in 0..20u32 {
                let head = driver.add(&[Buffer::readable(DATA, 4), Buffer::readable(DATA + 8, 8)]).unwrap();
                assert!(driver.publish(), "the ring was empty");
                let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
                assert_eq!(chain.head, head);
                let mut room = IovBuffer::new();
                let mut iov = room.start();
                assert_eq!(queue.readable(&queue.map(&memory).unwrap(), chain, &mut iov).unwrap(), 2);
                assert_eq!((iov.len(), iov.buffers()), (12, 2));
                queue.push_used(&queue.map(&memory).unwrap(), head, round);
                assert_eq!(driver.pending(), 0, "written, not shown");
                driver.want_interrupts(true);
                assert!(queue.publish(&queue.map(&memory).unwrap()).unwrap());
                assert!(!queue.publish(&queue.map(&memory).unwrap()).unwrap(), "nothing new");
                assert_eq!(driver.reap(), Some((head, round)));
                assert!(queue.pop(&queue.map(&memory).unwrap()).unwrap().is_none());
            }
            assert_eq!(queue.state(), QueueState { next_avail: 14, next_used: 14 });
        }
    }

    #[test]
    fn empty_means_that_the_driver_kicks_and_busy_that_it_need_not() {
        for features in [0, F_EVENT_IDX] {
            let (memory, mut driver, mut queue) = ring(features);
            assert!(queue.pop(&queue.map(&memory).unwrap()).unwrap().is_none());
            driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
            assert!(driver.publish(), "the queue said that it is empty");
            queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
            driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
            assert!(!driver.publish(), "the queue is being worked on");
            queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
            queue.undo_pop();
            driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
            assert!(!driver.publish(), "there is a chain that waits for the host");
            assert_eq!(
                queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap().head,
                1,
                "what was put back comes first"
            );
            queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
            assert!(queue.pop(&queue.map(&memory).unwrap()).unwrap().is_none());
            driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
            assert!(driver.publish(), "empty once more");
        }
    }

    #[test]
    fn an_interrupt_comes_when_the_driver_wants_it() {
        for features in [0, F_EVENT_IDX] {
            let (memory, mut driver, mut queue) = ring(features);
            for wanted in [true, false, true] {
                let head = driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
                driver.publish();
                driver.want_interrupts(wanted);
                queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
                queue.push_used(&queue.map(&memory).unwrap(), head, 0);
                assert_eq!(queue.publish(&queue.map(&memory).unwrap()).unwrap(), wanted);
                driver.reap().unwrap();
            }
        }
    }

    #[test]
    fn an_interrupt_covers_the_whole_batch() {
        let (memory, mut driver, mut queue) = ring(F_EVENT_IDX);
        driver.want_interrupts(true);
        for _ in 0..3 {
            driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
        }
        driver.publish();
        while let Some(chain) = queue.pop(&queue.map(&memory).unwrap()).unwrap() {
            queue.push_used(&queue.map(&memory).unwrap(), chain.head, 0);
        }
        assert!(
            queue.publish(&queue.map(&memory).unwrap()).unwrap(),
            "the first of three was the one asked for"
        );
        assert_eq!(driver.pending(), 3);
    }

    #[test]
    fn indirect_tables_may_end_a_chain_of_descriptors() {
        let (memory, mut driver, mut queue) = ring(F_INDIRECT_DESC);
        let buffers: Vec<_> = (0..20).map(|i| Buffer::writable(DATA + 32 * i, 16)).collect();
        driver.add_indirect(TABLE, &buffers).unwrap();
        driver.add(&[Buffer::readable(DATA, 4), Buffer::readable(TABLE, 32)]).unwrap();
        driver.lie_descriptor(2, Buffer::readable(TABLE, 32), INDIRECT | WRITE, 0);
        driver.publish();
        let mut room = IovBuffer::new();
        let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
        let mut iov = room.start();
        assert_eq!(
            queue.writable(&queue.map(&memory).unwrap(), chain, &mut iov).unwrap(),
            1,
            "longer than the queue, and one descriptor"
        );
        assert_eq!((iov.len(), iov.buffers()), (320, 20));
        drop(iov);

        let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
        let mut seen = Vec::new();
        let walk = queue.gather(&queue.map(&memory).unwrap(), chain, |buffer, writable| {
            seen.push((buffer.len(), writable));
            Ok(())
        });
        // The first table entry goes on to the second, whose `next` leads out of a table of two.
        assert!(matches!(walk, Err(Error::DescriptorIndex(2))), "{walk:?}");
        assert_eq!(seen, [(4, false), (16, true), (16, true)]);
    }

    #[test]
    fn buffers_may_span_regions_and_be_empty() {
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x8000)])
                .unwrap();
        let mut driver = MockRing::new(&memory, RING, SIZE, false);
        let mut queue = VirtQueue::new(driver.setup(), 0, &memory).unwrap();
        driver.add(&[Buffer::readable(0x7ff0, 32), Buffer::readable(u64::MAX, 0)]).unwrap();
        driver.publish();
        let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
        let mut room = IovBuffer::new();
        let mut iov = room.start();
        queue.readable(&queue.map(&memory).unwrap(), chain, &mut iov).unwrap();
        assert_eq!(iov.len(), 32);
    }

    #[test]
    fn a_chain_with_more_buffers_than_a_frame_can_have_is_refused() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40000)]).unwrap();
        let mut driver = MockRing::new(&memory, RING, SIZE, false);
        let mut queue = VirtQueue::new(driver.setup(), F_INDIRECT_DESC, &memory).unwrap();
        let many = |count| vec![Buffer::readable(DATA, 1); count];
        driver.add_indirect(0x10000, &many(IovBuffer::MAX)).unwrap();
        driver.add_indirect(0x20000, &many(IovBuffer::MAX + 1)).unwrap();
        driver.publish();
        let mut room = IovBuffer::new();
        let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
        queue.readable(&queue.map(&memory).unwrap(), chain, &mut room.start()).unwrap();
        let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
        let refused = queue.readable(&queue.map(&memory).unwrap(), chain, &mut room.start());
        assert!(matches!(refused, Err(Error::ChainLength(1) | Error::TooManyBuffers(1))), "{refused:?}");
    }

    #[test]
    fn lies_about_chains_are_told_apart() {
        let data = Buffer::readable(DATA, 16);
        let add = |ring: &mut MockRing, buffer, flags, next| {
            ring.add(&[data]).unwrap();
            ring.lie_descriptor(0, buffer, flags, next);
        };
        macro_rules! wrong {
            ($error:pat, $features:expr, $lie:expr) => {
                let error = wrong($features, $lie);
                assert!(matches!(error, $error), "{error:?}");
            };
        }
        wrong!(Error::ChainLength(0), 0, |ring| add(ring, data, NEXT, 0));
        wrong!(Error::DescriptorIndex(8), 0, |ring| add(ring, data, NEXT, SIZE));
        wrong!(Error::DescriptorIndex(8), 0, |ring| ring.lie_available(SIZE));
        wrong!(Error::Buffer(0, _), 0, |ring| add(ring, Buffer::readable(END - 15, 16), 0, 0));
        wrong!(Error::Buffer(0, _), 0, |ring| add(ring, Buffer::readable(u64::MAX - 3, 16), 0, 0));
        wrong!(Error::Buffer(0, _), 0, |ring| add(ring, Buffer::readable(DATA, u32::MAX), 0, 0));
        wrong!(Error::Direction(0), 0, |ring| {
            ring.add(&[Buffer::writable(DATA, 16), Buffer::readable(DATA, 16)]).unwrap();
        });

        wrong!(Error::Indirect(0), 0, |ring| add(ring, Buffer::readable(TABLE, 16), INDIRECT, 0));
        for (len, flags) in [(0, INDIRECT), (24, INDIRECT), (u32::MAX - 15, INDIRECT), (16, INDIRECT | NEXT)]
        {
            wrong!(Error::Indirect(0), F_INDIRECT_DESC, |ring| {
                add(ring, Buffer::readable(TABLE, len), flags, 0)
            });
        }
        wrong!(Error::Buffer(0, _), F_INDIRECT_DESC, |ring| {
            add(ring, Buffer::readable(u64::MAX - 7, 16), INDIRECT, 0)
        });
        wrong!(Error::Indirect(0), F_INDIRECT_DESC, |ring| {
            ring.add_indirect(TABLE, &[data]).unwrap();
            // The queue's own table, whose first descriptor is the indirect one: a table in a table.
            add(ring, Buffer::readable(RING, 16), INDIRECT, 0);
            ring.lie_descriptor(0, Buffer::readable(RING, 16), INDIRECT, 0);
        });
    }

    #[test]
    fn a_loop_in_an_indirect_table_ends() {
        // The longest table, all in memory, so that nothing but the loop is wrong.
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let mut driver = MockRing::new(&memory, RING, SIZE, false);
        let mut queue = VirtQueue::new(driver.setup(), F_INDIRECT_DESC, &memory).unwrap();
        driver.add_indirect(TABLE, &[Buffer::readable(DATA, 0)]).unwrap();
        memory.write_obj(Descriptor::new(DATA, 0, NEXT, 0), GuestAddress(TABLE)).unwrap();
        driver.lie_descriptor(0, Buffer::readable(TABLE, 16 * MAX_TABLE as u32), INDIRECT, 0);
        driver.publish();
        let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
        assert!(matches!(
            queue.gather(&queue.map(&memory).unwrap(), chain, |_, _| Ok(())),
            Err(Error::ChainLength(0))
        ));
    }

    #[test]
    fn an_available_ring_that_lies_is_an_error() {
        let (memory, mut driver, mut queue) = ring(0);
        driver.lie_avail_idx(SIZE + 1);
        assert!(matches!(
            queue.pop(&queue.map(&memory).unwrap()),
            Err(Error::AvailIndex { to: 9, used: 0, size: SIZE })
        ));

        let (memory, mut driver, mut queue) = ring(0);
        driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
        driver.publish();
        queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
        driver.lie_avail_idx(0);
        assert!(matches!(queue.pop(&queue.map(&memory).unwrap()), Err(Error::AvailIndex { to: 0, .. })));

        let (memory, mut driver, mut queue) = ring(0);
        driver.lie_available(SIZE);
        driver.publish();
        let error = queue.pop(&queue.map(&memory).unwrap());
        assert!(matches!(error, Err(Error::DescriptorIndex(8))), "no chain has this head: {error:?}");

        let (memory, mut driver, mut queue) = ring(0);
        for _ in 0..SIZE {
            driver.lie_available(0);
        }
        driver.publish();
        while queue.pop(&queue.map(&memory).unwrap()).unwrap().is_some() {}
        driver.lie_available(0);
        driver.publish();
        let error = queue.pop(&queue.map(&memory).unwrap());
        assert!(matches!(error, Err(Error::AvailIndex { .. })), "nothing was given back: {error:?}");
    }

    #[test]
    fn a_setup_that_makes_no_sense_is_refused() {
        let memory = memory();
        let good = *MockRing::new(&memory, RING, SIZE, true).setup();
        let try_setup = |setup: QueueSetup| VirtQueue::new(&setup, F_EVENT_IDX, &memory).map(drop);
        try_setup(good).unwrap();
        for size in [0, 3, 40000] {
            assert!(matches!(try_setup(QueueSetup { size, ..good }), Err(Error::Size(_))));
        }
        let used = 6 + 8 * u64::from(SIZE);
        try_setup(QueueSetup { used_ring: END - used - 2, ..good }).unwrap();
        for bad in [
            QueueSetup { size: SIZE, ..Default::default() },
            QueueSetup { desc_table: 0, ..good },
            QueueSetup { desc_table: RING + 8, ..good },
            QueueSetup { avail_ring: RING + 1, ..good },
            QueueSetup { used_ring: RING + 2, ..good },
            QueueSetup { desc_table: END, ..good },
            QueueSetup { avail_ring: u64::MAX - 1, ..good },
            QueueSetup { used_ring: END - used + 2, ..good },
        ] {
            assert!(matches!(try_setup(bad), Err(Error::Address(..))), "{bad:x?}");
        }
    }
}
