//! The fake driver that comes with the queue: it sets rings up in guest memory and plays the guest, for tests, fuzzers and
//! benchmarks. It keeps its books outside guest memory, and allocates nothing per chain.
//!
//! [`MockRing`] is the driver's side of a ring, honest until told otherwise: the methods that begin with `lie_` break the
//! rules. [`MockMmio`] is the driver's side of [`MmioTransport`](super::mmio::MmioTransport). Both panic where guest memory
//! is too small for them, as tests do.

use std::io;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::*;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::device::Interrupt;
use super::queue::{QueueSetup, need_event};
use crate::BusDevice;

/// Interrupts that nobody hears: of a driver that looks at its rings by itself.
#[derive(Clone, Copy, Debug)]
pub struct NoInterrupts;

impl Interrupt for NoInterrupts {
    fn queue(&self, _: u16) -> io::Result<()> {
        Ok(())
    }

    fn config(&self) -> io::Result<()> {
        Ok(())
    }

    fn needs_reset(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A piece of guest memory in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it; otherwise it reads it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: false }
    }

    /// A buffer that the device writes.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: true }
    }

    fn flags(self) -> u16 {
        if self.writable { VRING_DESC_F_WRITE as u16 } else { 0 }
    }
}

/// The driver's side of a split virtqueue.
pub struct MockRing {
    memory: GuestMemoryMmap,
    setup: QueueSetup,
    event_idx: bool,
    /// The descriptor after each: of the free list, or of its chain.
    next: Vec<u16>,
    /// How many descriptors the chain at each head has.
    chain: Vec<u16>,
    free_head: u16,
    free: u16,
    avail: u16,
    shown: u16,
    used: u16,
}

impl MockRing {
    /// Bytes of guest memory that a ring of `size` takes.
    pub fn bytes(size: u16) -> u64 {
        let size = u64::from(size);
        (16 * size + 6 + 2 * size).next_multiple_of(4) + 6 + 8 * size
    }

    /// An empty ring of `size` entries, a power of two, at `base`, which is aligned to 16.
    pub fn new(memory: &GuestMemoryMmap, base: u64, size: u16, event_idx: bool) -> Self {
        let entries = u64::from(size);
        let avail_ring = base + 16 * entries;
        let used_ring = (avail_ring + 6 + 2 * entries).next_multiple_of(4);
        let zeros = vec![0; Self::bytes(size) as usize];
        memory.write_slice(&zeros, GuestAddress(base)).expect("the ring is in guest memory");
        Self {
            memory: memory.clone(),
            setup: QueueSetup { size, desc_table: base, avail_ring, used_ring },
            event_idx,
            next: (1..=size).collect(),
            chain: vec![0; size.into()],
            free_head: 0,
            free: size,
            avail: 0,
            shown: 0,
            used: 0,
        }
    }

    /// Where it is, for the transport.
    pub fn setup(&self) -> &QueueSetup {
        &self.setup
    }

    /// How many descriptors are free.
    pub fn free(&self) -> u16 {
        self.free
    }

    /// Starts both indices of an empty ring at `index`; the device's must be set to the same.
    pub fn start_at(&mut self, index: u16) {
        (self.avail, self.shown, self.used) = (index, index, index);
        self.store(self.setup.avail_ring + 2, index);
        self.store(self.setup.used_ring + 2, index);
        self.want_interrupts(true);
    }

    /// Adds a chain, not shown yet, and returns its head; `None` if there are too few descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        let count = u16::try_from(buffers.len()).ok().filter(|count| (1..=self.free).contains(count))?;
        let head = self.free_head;
        let mut index = head;
        for (number, buffer) in buffers.iter().enumerate() {
            let more = number + 1 < buffers.len();
            let flags = buffer.flags() | if more { VRING_DESC_F_NEXT as u16 } else { 0 };
            let next = self.next[usize::from(index)];
            self.write_descriptor(self.setup.desc_table, index, *buffer, flags, if more { next } else { 0 });
            (self.free_head, index) = (next, next);
        }
        self.take(head, count);
        Some(head)
    }

    /// Adds a chain by an indirect table at `table`, not shown yet, and returns its head; `None` without a free
    /// descriptor.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Option<u16> {
        if self.free == 0 {
            return None;
        }
        for (number, buffer) in buffers.iter().enumerate() {
            let more = number + 1 < buffers.len();
            let flags = buffer.flags() | if more { VRING_DESC_F_NEXT as u16 } else { 0 };
            self.write_descriptor(table, number as u16, *buffer, flags, number as u16 + 1);
        }
        let head = self.free_head;
        let len = 16 * buffers.len() as u32;
        self.lie_descriptor(head, Buffer::readable(table, len), VRING_DESC_F_INDIRECT as u16, 0);
        self.free_head = self.next[usize::from(head)];
        self.take(head, 1);
        Some(head)
    }

    fn take(&mut self, head: u16, count: u16) {
        self.free -= count;
        self.chain[usize::from(head)] = count;
        self.lie_available(head);
    }

    /// Shows the device what was added. True: it wants a kick for it.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.shown, self.avail);
        self.lie_avail_idx(new);
        self.shown = new;
        // The other half of the fence in `VirtQueue::look`.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let avail_event = self.setup.used_ring + 4 + 8 * u64::from(self.setup.size);
            return need_event(self.load(avail_event), new, old);
        }
        u32::from(self.load(self.setup.used_ring)) & VRING_USED_F_NO_NOTIFY == 0
    }

    /// How many chains the device has given back that were not reaped.
    pub fn pending(&self) -> u16 {
        self.load(self.setup.used_ring + 2).wrapping_sub(self.used)
    }

    /// Takes a chain back: its head, and how many bytes the device wrote.
    pub fn reap(&mut self) -> Option<(u16, u32)> {
        if self.pending() == 0 {
            return None;
        }
        let entry = self.setup.used_ring + 4 + 8 * u64::from(self.used % self.setup.size);
        let head: u32 = self.memory.read_obj(GuestAddress(entry)).expect("the ring is in guest memory");
        let len: u32 = self.memory.read_obj(GuestAddress(entry + 4)).expect("the ring is in guest memory");
        let head = u16::try_from(u32::from_le(head)).expect("the device gives back what it was given");
        self.used = self.used.wrapping_add(1);

        let count = std::mem::take(&mut self.chain[usize::from(head)]);
        assert!(count > 0, "the device gave back chain {head}, which it does not have");
        let last = (1..count).fold(head, |index, _| self.next[usize::from(index)]);
        self.next[usize::from(last)] = self.free_head;
        self.free_head = head;
        self.free += count;
        Some((head, u32::from_le(len)))
    }

    /// Asks for an interrupt at the next used chain, or for none.
    pub fn want_interrupts(&mut self, wanted: bool) {
        if self.event_idx {
            let used_event = self.setup.avail_ring + 4 + 2 * u64::from(self.setup.size);
            // "None" is an index as far away as there can be.
            self.store(used_event, if wanted { self.used } else { self.used.wrapping_sub(1) });
        } else {
            self.store(self.setup.avail_ring, if wanted { 0 } else { VRING_AVAIL_F_NO_INTERRUPT as u16 });
        }
        fence(Ordering::SeqCst);
    }

    /// Asks for one interrupt, when `chains` more are used: of them at least one, and as many as the ring has at most. Takes
    /// the event index.
    pub fn want_interrupt_after(&mut self, chains: u16) {
        let used_event = self.setup.avail_ring + 4 + 2 * u64::from(self.setup.size);
        self.store(used_event, self.used.wrapping_add(chains).wrapping_sub(1));
        fence(Ordering::SeqCst);
    }

    /// Writes any descriptor at all into the queue's table.
    pub fn lie_descriptor(&mut self, index: u16, buffer: Buffer, flags: u16, next: u16) {
        self.write_descriptor(self.setup.desc_table, index, buffer, flags, next);
    }

    /// Puts any head at all on the available ring, not shown yet.
    pub fn lie_available(&mut self, head: u16) {
        let entry = self.setup.avail_ring + 4 + 2 * u64::from(self.avail % self.setup.size);
        self.store(entry, head);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Shows any available index at all.
    pub fn lie_avail_idx(&mut self, index: u16) {
        // Release: what the index covers is written before it.
        self.memory
            .store(index.to_le(), GuestAddress(self.setup.avail_ring + 2), Ordering::Release)
            .expect("the ring is in guest memory");
    }

    fn write_descriptor(&self, table: u64, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let descriptor = Descriptor::new(buffer.addr, buffer.len, flags, next);
        self.memory
            .write_obj(descriptor, GuestAddress(table + 16 * u64::from(index)))
            .expect("the table is in guest memory");
    }

    fn load(&self, at: u64) -> u16 {
        let value = self.memory.load(GuestAddress(at), Ordering::Acquire);
        u16::from_le(value.expect("the ring is in guest memory"))
    }

    fn store(&self, at: u64, value: u16) {
        self.memory
            .store(value.to_le(), GuestAddress(at), Ordering::Relaxed)
            .expect("the ring is in guest memory");
    }
}

/// The driver's side of the MMIO transport, by its registers.
pub struct MockMmio<'a> {
    bus: &'a dyn BusDevice,
}

impl<'a> MockMmio<'a> {
    /// A driver of the device at `bus`.
    pub fn new(bus: &'a dyn BusDevice) -> Self {
        Self { bus }
    }

    /// Reads a register.
    pub fn read(&self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.bus.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&self, register: u32, value: u32) {
        self.bus.write(register.into(), &value.to_le_bytes());
    }

    /// The device status.
    pub fn status(&self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// True once the device asks for a reset.
    pub fn needs_reset(&self) -> bool {
        self.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// The features on offer.
    pub fn features(&self) -> u64 {
        (0..2).fold(0, |features, word| {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, word);
            features | u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES)) << (32 * word)
        })
    }

    /// Resets, then gets as far as FEATURES_OK with `features`; false if the device refuses them.
    pub fn negotiate(&self, features: u64) -> bool {
        self.reset();
        self.write(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.write(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
        for word in 0..2 {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * word)) as u32);
        }
        self.write(VIRTIO_MMIO_STATUS, self.status() | VIRTIO_CONFIG_S_FEATURES_OK);
        self.status() & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    /// Sets a queue up; false if the device does not take it.
    pub fn set_queue(&self, index: u32, setup: &QueueSetup) -> bool {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, setup.size.into());
        for (low, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, setup.desc_table),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, setup.avail_ring),
            (VIRTIO_MMIO_QUEUE_USED_LOW, setup.used_ring),
        ] {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        self.read(VIRTIO_MMIO_QUEUE_READY) == 1
    }

    /// Says that the driver is ready.
    pub fn start(&self) {
        self.write(VIRTIO_MMIO_STATUS, self.status() | VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// Notifies queue `index`.
    pub fn kick(&self, index: u32) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, index);
    }

    /// Resets the device.
    pub fn reset(&self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_takes_its_three_parts_and_no_more() {
        // Descriptors of 16 bytes, 6 and 2 each, and 6 and 8 each from a multiple of four on (§2.7).
        assert_eq!([1, 2, 8, 256].map(MockRing::bytes), [24 + 14, 44 + 22, 152 + 70, 4616 + 2054]);
    }
}
