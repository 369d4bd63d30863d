//! The virtio PCI transport (virtio 1.2 §4.1): one BAR of registers, a vector for each queue, and no exit on the way of a
//! frame.
//!
//! **Invariant: the frame path takes no lock here.** A pair's thread loads its queue's vector, and writes an eventfd. The
//! locks are for configuration space, for setting the device up and for tearing it down.
//!
//! ```text
//! BAR 0   0x0000  common configuration       0x1000  MSI-X table          0x3000  notify: 4 bytes for each queue
//!         0x0400  ISR status                 0x2000  MSI-X pending bits
//!         0x0800  device configuration
//! ```

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::net::TYPE_NET;
use super::setup::{self, Half, QueueField, Setup};
use super::{Interrupt, VirtioDevice};
use crate::BusDevice;
use crate::pci::config::{Configuration, Identity};
use crate::pci::msix::{self, Table, Vectors};
use crate::pci::{Function, Shortcuts};

/// Bytes of guest address space that a device takes: the size of its BAR.
pub const BAR_LEN: u64 = 0x4000;
/// The most queues that fit: a page of vectors, of which one tells of configuration changes.
pub const QUEUES_MAX: usize = 255;

const COMMON: u64 = 0;
const COMMON_LEN: u64 = 56;
const ISR: u64 = 0x400;
const DEVICE: u64 = 0x800;
const TABLE: u64 = 0x1000;
const PENDING: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
/// `notify_off_multiplier`: each queue has an address of its own, which alone says which queue is meant.
const NOTIFY_MULTIPLIER: u64 = 4;

/// No vector (`VIRTIO_MSI_NO_VECTOR`): not told, or not a vector that there is.
const NO_VECTOR: u16 = 0xffff;
const ISR_QUEUE: u32 = 1 << 0;
const ISR_CONFIG: u32 = 1 << 1;

/// Vendor-specific capabilities (§4.1.4), by their `cfg_type`.
const CAPABILITY: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
/// In `struct virtio_pci_cfg_cap`: BAR, offset, length, data.
const CFG_BAR: usize = 4;
const CFG_OFFSET: usize = 8;
const CFG_LENGTH: usize = 12;
const CFG_DATA: usize = 16;

/// A virtio device on the PCI bus.
pub struct PciTransport {
    signals: Arc<Signals>,
    kicks: Vec<EventFd>,
    setup: Mutex<Setup>,
    space: Mutex<Space>,
    shortcuts: Box<dyn Shortcuts>,
    window: Range<u64>,
    /// Where the BAR is decoded, as `space` says it; [`NOWHERE`] where it is not.
    base: AtomicU64,
}

const NOWHERE: u64 = u64::MAX;

/// Configuration space, and the table that its BAR leads to.
struct Space {
    config: Configuration,
    table: Table,
    /// The offset of the MSI-X capability.
    msix: usize,
    /// The offset of the capability for access to the BAR by configuration space.
    access: usize,
}

/// What pairs and vCPUs share without a lock.
struct Signals {
    vectors: Arc<Vectors>,
    /// Device status (§2.1): the driver's bits and DEVICE_NEEDS_RESET.
    status: AtomicU32,
    isr: AtomicU32,
    /// Changes with the device's configuration (§2.5.1).
    generation: AtomicU32,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
}

impl Signals {
    /// With MSI-X, who has no vector is not told; without, nobody is but who reads the ISR status.
    fn raise(&self, vector: &AtomicU16) -> io::Result<()> {
        if self.vectors.enabled() { self.vectors.raise(vector.load(Ordering::Acquire)) } else { Ok(()) }
    }

    fn set(&self, vector: &AtomicU16, value: u16) {
        let known = value < self.vectors.count();
        vector.store(if known { value } else { NO_VECTOR }, Ordering::Release);
    }

    fn reset(&self) {
        for vector in self.queue_vectors.iter().chain([&self.config_vector]) {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.vectors.clear();
        self.isr.store(0, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }
}

impl Interrupt for Signals {
    fn queue(&self, index: u16) -> io::Result<()> {
        if !self.vectors.enabled() {
            self.isr.fetch_or(ISR_QUEUE, Ordering::Release);
        }
        self.queue_vectors.get(usize::from(index)).map_or(Ok(()), |vector| self.raise(vector))
    }

    fn config(&self) -> io::Result<()> {
        self.generation.fetch_add(1, Ordering::Release);
        self.isr.fetch_or(ISR_CONFIG, Ordering::Release);
        self.raise(&self.config_vector)
    }

    fn needs_reset(&self) -> io::Result<()> {
        if setup::needs_reset(&self.status) { self.config() } else { Ok(()) }
    }
}

impl PciTransport {
    /// Shows `device`, of at most [`QUEUES_MAX`] queues, to the guest whose memory is `memory`. Its BAR is decoded in `window`
    /// alone, and `shortcuts` carry its events.
    ///
    /// # Errors
    /// Where the eventfds of queues and vectors cannot be made.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        window: Range<u64>,
        shortcuts: Box<dyn Shortcuts>,
    ) -> io::Result<Self> {
        let queues = device.queue_max_sizes().len();
        assert!(queues <= QUEUES_MAX, "{queues} queues");
        let vectors = Arc::new(Vectors::new(queues as u16 + 1)?);
        let space = Space::new(device.device_type(), queues, Arc::clone(&vectors));
        let setup = Setup::new(device, memory);
        let kicks = setup.kicks()?;
        let [status, isr, generation] = [0; 3].map(AtomicU32::new);
        let queue_vectors = (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect();
        let config_vector = AtomicU16::new(NO_VECTOR);
        let signals = Arc::new(Signals { vectors, status, isr, generation, config_vector, queue_vectors });
        let (setup, space, base) = (Mutex::new(setup), Mutex::new(space), AtomicU64::new(NOWHERE));
        Ok(Self { signals, kicks, setup, space, shortcuts, window, base })
    }

    /// How many vectors it has: one for each queue, and one for changes of the configuration.
    pub fn vectors(queues: usize) -> usize {
        queues + 1
    }

    /// Stops the device as a reset by its driver does: nothing touches guest memory when this returns.
    pub fn reset(&self) {
        self.reset_locked(&mut self.setup());
    }

    fn reset_locked(&self, setup: &mut Setup) {
        setup.reset();
        // Only now, for a pair that was still running may have asked for a reset or raised a vector meanwhile.
        self.signals.reset();
    }

    fn setup(&self) -> MutexGuard<'_, Setup> {
        // Whatever a vCPU that panicked in here left half done, a reset clears.
        self.setup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has notifications come from where the BAR now is.
    fn place(&self, space: &Space) {
        let new = space.config.decodes(BAR_LEN, &self.window);
        let old = self.base.swap(new.unwrap_or(NOWHERE), Ordering::AcqRel);
        if new == (old != NOWHERE).then_some(old) {
            return;
        }
        for (index, kick) in self.kicks.iter().enumerate() {
            let at = |base: u64| base + NOTIFY + NOTIFY_MULTIPLIER * index as u64;
            if old != NOWHERE {
                self.shortcuts.unlisten(at(old), kick);
            }
            if let Some(new) = new
                && let Err(error) = self.shortcuts.listen(at(new), kick)
            {
                log::debug!("notifications at {:#x} come by exits: {error}", at(new));
            }
        }
    }

    /// A field of the common configuration (§4.1.4.3), which is read in its own width and in no other.
    fn read_common(&self, offset: u64, len: usize) -> Option<u32> {
        let (signals, setup) = (&self.signals, || self.setup());
        let vector = |vector: &AtomicU16| u32::from(vector.load(Ordering::Acquire));
        Some(match (offset, len) {
            (0, 4) => setup().device_features_sel,
            (4, 4) => setup().device_features(),
            (8, 4) => setup().driver_features_sel,
            (12, 4) => setup().driver_features(),
            (16, 2) => vector(&signals.config_vector),
            (18, 2) => self.kicks.len() as u32,
            (20, 1) => signals.status.load(Ordering::Acquire),
            (21, 1) => signals.generation.load(Ordering::Acquire),
            (22, 2) => setup().queue_sel,
            (26, 2) => {
                let queue = setup().queue_sel as usize;
                signals.queue_vectors.get(queue).map_or(NO_VECTOR.into(), vector)
            }
            // The queue's number is its place among the notifications.
            (30, 2) => {
                let queue = setup().queue_sel;
                if (queue as usize) < self.kicks.len() { queue } else { 0 }
            }
            _ => setup().queue_field(queue_field(offset, len)?),
        })
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        let Some(to) = bytes.get_mut(..data.len()) else { return };
        to.copy_from_slice(data);
        let value = u32::from_le_bytes(bytes);
        let signals = &self.signals;
        let mut setup = self.setup();
        let setup = &mut *setup;
        let status = signals.status.load(Ordering::Acquire);
        match (offset, data.len()) {
            (0, 4) => setup.device_features_sel = value,
            (8, 4) => setup.driver_features_sel = value,
            (12, 4) => setup.set_driver_features(status, value),
            (16, 2) => signals.set(&signals.config_vector, value as u16),
            (20, 1) if value == 0 => self.reset_locked(setup),
            (20, 1) => {
                let interrupt = Arc::clone(signals) as Arc<dyn Interrupt>;
                setup.advance(&signals.status, value, &interrupt, &self.kicks);
            }
            (22, 2) => setup.queue_sel = value,
            (26, 2) => {
                if let Some(vector) = signals.queue_vectors.get(setup.queue_sel as usize) {
                    signals.set(vector, value as u16);
                }
            }
            _ => {
                // A queue is disabled by a reset alone: VIRTIO_F_RING_RESET is not offered.
                if let Some(field) = queue_field(offset, data.len())
                    && (field, value) != (QueueField::Ready, 0)
                {
                    setup.set_queue(status, field, value);
                }
            }
        }
    }

    /// What the guest asks of the capability for access by configuration space (§4.1.4.9), if that makes sense: an offset
    /// into the BAR, and a length.
    fn accessed(&self, offset: usize, len: usize) -> Option<(u64, usize)> {
        let space = self.space();
        let (data, config) = (space.access + CFG_DATA, &space.config);
        let touched = offset < data + 4 && data < offset + len;
        let [bar] = config.get(space.access + CFG_BAR);
        let at = u64::from(u32::from_le_bytes(config.get(space.access + CFG_OFFSET)));
        let len = u32::from_le_bytes(config.get(space.access + CFG_LENGTH));
        let good =
            matches!(len, 1 | 2 | 4) && at.is_multiple_of(len.into()) && at + u64::from(len) <= BAR_LEN;
        (touched && bar == 0 && good).then_some((at, len as usize))
    }
}

/// The field of the selected queue at `offset`, of `len` bytes: addresses are two halves.
fn queue_field(offset: u64, len: usize) -> Option<QueueField> {
    Some(match (offset, len) {
        (24, 2) => QueueField::Size,
        (28, 2) => QueueField::Ready,
        (32, 4) => QueueField::Table(Half::Low),
        (36, 4) => QueueField::Table(Half::High),
        (40, 4) => QueueField::Available(Half::Low),
        (44, 4) => QueueField::Available(Half::High),
        (48, 4) => QueueField::Used(Half::Low),
        (52, 4) => QueueField::Used(Half::High),
        _ => return None,
    })
}

impl Space {
    fn new(device_type: u32, queues: usize, vectors: Arc<Vectors>) -> Self {
        let mut config = Configuration::new(Identity {
            vendor: 0x1af4,
            device: 0x1040 + device_type as u16,
            revision: 1,
            // An Ethernet controller; of what is to come, none of PCI's classes.
            class: if device_type == TYPE_NET { 0x02_0000 } else { 0xff_0000 },
            // §4.1.2.1: 0x40 or more for a device that is not transitional.
            subsystem: (0x1af4, 0x40),
        });
        config.add_bar(BAR_LEN as u32);
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(vectors.count() - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(TABLE as u32).to_le_bytes());
        body[6..].copy_from_slice(&(PENDING as u32).to_le_bytes());
        let msix = config.add_capability(msix::CAPABILITY, &body, &msix::CONTROL_WRITABLE.to_le_bytes());
        let notify = NOTIFY_MULTIPLIER * queues as u64;
        let device = TABLE - DEVICE;
        add(&mut config, CFG_COMMON, COMMON, COMMON_LEN, None, &[]);
        add(&mut config, CFG_NOTIFY, NOTIFY, notify, Some(NOTIFY_MULTIPLIER as u32), &[]);
        add(&mut config, CFG_ISR, ISR, 1, None, &[]);
        add(&mut config, CFG_DEVICE, DEVICE, device, None, &[]);
        let mut writable = [0; CFG_DATA + 2];
        writable[CFG_BAR - 2] = 0xff;
        writable[CFG_OFFSET - 2..].fill(0xff);
        let access = add(&mut config, CFG_PCI, 0, 0, Some(0), &writable);
        Self { config, table: Table::new(vectors), msix, access }
    }
}

/// Adds `struct virtio_pci_cap` (§4.1.4), with the four bytes that two kinds of it have behind.
fn add(
    config: &mut Configuration,
    kind: u8,
    offset: u64,
    len: u64,
    more: Option<u32>,
    writable: &[u8],
) -> usize {
    let mut body = vec![if more.is_some() { 20 } else { 16 }, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(more.map(u32::to_le_bytes).into_iter().flatten());
    config.add_capability(CAPABILITY, &body, writable)
}

impl Function for PciTransport {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        if let Some((at, len)) = self.accessed(offset, data.len()) {
            let mut read = [0xff; 4];
            BusDevice::read(self, at, &mut read[..len]);
            let mut space = self.space();
            let place = space.access + CFG_DATA;
            space.config.set(place, &read);
        }
        self.space().config.read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let written = {
            let mut space = self.space();
            let space = &mut *space;
            space.config.write(offset, data);
            self.place(space);
            let control = space.msix + 2;
            if offset < control + 2 && control < offset + data.len() {
                let control = u16::from_le_bytes(space.config.get(control));
                space.table.set_control(control, &*self.shortcuts);
            }
            space.config.get::<4>(space.access + CFG_DATA)
        };
        if let Some((at, len)) = self.accessed(offset, data.len()) {
            BusDevice::write(self, at, &written[..len]);
        }
    }

    fn decodes(&self) -> Option<Range<u64>> {
        let base = self.base.load(Ordering::Acquire);
        (base != NOWHERE).then(|| base..base + BAR_LEN)
    }
}

impl BusDevice for PciTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            ISR if data.len() == 1 => data[0] = self.signals.isr.swap(0, Ordering::AcqRel) as u8,
            ..ISR => {
                if let Some(value) = self.read_common(offset, data.len()) {
                    data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
                }
            }
            DEVICE..TABLE => self.setup().device.read_config(offset - DEVICE, data),
            TABLE..PENDING => self.space().table.read(offset - TABLE, data),
            PENDING..NOTIFY => self.space().table.read_pending(offset - PENDING, data),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset {
            ..ISR => self.write_common(offset, data),
            DEVICE..TABLE => self.setup().device.write_config(offset - DEVICE, data),
            TABLE..PENDING => self.space().table.write(offset - TABLE, data, &*self.shortcuts),
            NOTIFY.. if (offset - NOTIFY).is_multiple_of(NOTIFY_MULTIPLIER) => {
                if let Some(kick) = self.kicks.get(((offset - NOTIFY) / NOTIFY_MULTIPLIER) as usize) {
                    // The counter cannot come near its end, at which alone this fails.
                    let _ = kick.write(1);
                }
            }
            _ => {}
        }
    }
}

impl Drop for PciTransport {
    /// A pair's thread must not outlive the guest's memory's owner by surprise.
    fn drop(&mut self) {
        self.reset();
    }
}
