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

mod registers;
mod signals;
mod space;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

pub use self::registers::{BAR_LEN, QUEUES_MAX};
use self::registers::{DEVICE, ISR, NOTIFY, NOTIFY_MULTIPLIER, PENDING, TABLE};
use self::signals::{NO_VECTOR, Signals};
use self::space::Space;
use super::setup::{Half, QueueField, Setup, needs_reset};
use crate::BusDevice;
use crate::lent;
use crate::pci::msix::Vectors;
use crate::pci::{EventRoutes, Function};
use crate::virtio::device::{Interrupt, VirtioDevice};

/// A virtio device on the PCI bus.
pub struct PciTransport {
    signals: Arc<Signals>,
    kicks: Vec<Arc<EventFd>>,
    setup: Mutex<Setup>,
    space: Mutex<Space>,
    routes: Arc<dyn EventRoutes>,
    window: Range<u64>,
    /// Where the BAR is decoded, as `space` says it; [`NOWHERE`] where it is not.
    base: AtomicU64,
}

const NOWHERE: u64 = u64::MAX;

impl PciTransport {
    /// Shows `device`, of at most [`QUEUES_MAX`] queues, to the guest whose memory is `memory`. Its BAR is decoded in `window`
    /// alone, and `routes` carry its events.
    ///
    /// # Errors
    /// Where the eventfds of queues and vectors cannot be made.
    ///
    /// # Panics
    /// Where the device has more queues.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        window: Range<u64>,
        routes: Arc<dyn EventRoutes>,
    ) -> io::Result<Self> {
        let queues = device.queue_max_sizes().len();
        assert!(queues <= QUEUES_MAX, "{queues} queues");
        let vectors = Arc::new(Vectors::new(queues as u16 + 1)?);
        let space = Space::new(device.device_type(), queues, Arc::clone(&vectors));
        let setup = Setup::new(device, memory);
        let kicks = setup.kicks()?;
        let signals = Arc::new(Signals::new(vectors, queues, Arc::clone(&routes)));
        let (setup, space, base) = (Mutex::new(setup), Mutex::new(space), AtomicU64::new(NOWHERE));
        Ok(Self { signals, kicks, setup, space, routes, window, base })
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

    /// The vectors are others now, and the device may be at work.
    fn rerouted(&self, setup: &mut Setup) {
        if self.signals.status.load(Ordering::Acquire) & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            setup.device.rerouted();
        }
    }

    /// The guest took Bus Master away: nothing touches its memory when this returns (PCI Local Bus 3.0 §6.2.2). Linux does
    /// so before it starts another kernel (kexec), whose memory it then is. What the queues had in hand is lost, so only a
    /// reset gets the device going again. A driver that never sets the bit is served all the same: its status says enough.
    fn silence(&self) {
        let mut setup = self.setup();
        if self.signals.status.load(Ordering::Acquire) & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            setup.device.reset();
            // Not told by an interrupt, which is a write as well.
            needs_reset(&self.signals.status);
        }
    }

    /// Has notifications come from where the BAR now is.
    fn place(&self, space: &mut Space) {
        let new = space.config.decodes(BAR_LEN, &self.window);
        let old = self.base.swap(new.unwrap_or(NOWHERE), Ordering::AcqRel);
        if new == (old != NOWHERE).then_some(old) {
            return;
        }
        for (index, kick) in self.kicks.iter().enumerate() {
            if std::mem::take(&mut space.heard[index]) {
                self.routes.unlisten(notified_at(old, index), kick);
            }
        }
        self.listen(space);
    }

    /// Has all notifications come without an exit that do not yet: another function's BAR may be on the same place for a while.
    fn listen(&self, space: &mut Space) {
        let base = self.base.load(Ordering::Acquire);
        for (index, kick) in self.kicks.iter().enumerate().filter(|_| base != NOWHERE) {
            if !space.heard[index] {
                let at = notified_at(base, index);
                match self.routes.listen(at, kick) {
                    Ok(()) => space.heard[index] = true,
                    Err(error) => log::debug!("notifications at {at:#x} come by exits: {error}"),
                }
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
            // No data goes with a notification; and a queue is reset by the time that anybody reads whether it is.
            (56 | 58, 2) => 0,
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
            (58, 2) if value == 1 => {
                // Its vector is forgotten with it, once nothing is told by it any more.
                if setup.reset_queue(status)
                    && let Some(vector) = signals.queue_vectors.get(setup.queue_sel as usize)
                {
                    vector.store(NO_VECTOR, Ordering::Release);
                }
            }
            (20, 1) => {
                let interrupt = Arc::clone(signals) as Arc<dyn Interrupt>;
                setup.advance(&signals.status, value, &interrupt, &self.kicks);
            }
            (22, 2) => setup.queue_sel = value,
            (26, 2) => {
                if let Some(vector) = signals.queue_vectors.get(setup.queue_sel as usize) {
                    signals.set(vector, value as u16);
                    self.rerouted(setup);
                }
            }
            _ => {
                // A queue is disabled by a reset of it alone.
                if let Some(field) = queue_field(offset, data.len())
                    && (field != QueueField::Ready || value == 1)
                    && setup.set_queue(status, field, value)
                {
                    let interrupt = Arc::clone(signals) as Arc<dyn Interrupt>;
                    setup.enable_queue(&interrupt, &self.kicks);
                }
            }
        }
    }
}

/// Where a queue of a device whose BAR is at `base` is notified.
fn notified_at(base: u64, queue: usize) -> u64 {
    base + NOTIFY + NOTIFY_MULTIPLIER * queue as u64
}

/// Whether an access is to a queue's address as a whole. A driver is to access it in halves (§4.1.3.1), and some do not.
fn is_address(offset: u64, len: usize) -> bool {
    matches!((offset, len), (32 | 40 | 48, 8))
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

impl Function for PciTransport {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        // Not in the condition: the lock is not held while the registers are read.
        let accessed = self.space().accessed(offset, data.len());
        if let Some((at, len)) = accessed {
            let mut read = [0xff; 4];
            BusDevice::read(self, at, &mut read[..len]);
            let mut space = self.space();
            let place = space.data();
            space.config.set(place, &read);
        }
        let mut space = self.space();
        space.config.set_interrupt_status(self.signals.pending());
        space.config.read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let (silenced, rerouted, accessed, written) = {
            let mut space = self.space();
            let space = &mut *space;
            if space.gone {
                return;
            }
            let master = space.config.bus_master();
            space.config.write(offset, data);
            let silenced = master && !space.config.bus_master();
            self.place(space);
            let control = space.msix + 2;
            let rerouted = offset < control + 2 && control < offset + data.len();
            if rerouted {
                let control = u16::from_le_bytes(space.config.get(control));
                space.table.set_control(control, &*self.routes);
            }
            self.signals.set_pin(space.config.pin_disabled());
            (silenced, rerouted, space.accessed(offset, data.len()), space.config.get::<4>(space.data()))
        };
        // Behind the lock of the space: nobody holds both.
        if silenced {
            self.silence();
        }
        if rerouted {
            self.rerouted(&mut self.setup());
        }
        if let Some((at, len)) = accessed {
            BusDevice::write(self, at, &written[..len]);
        }
    }

    fn decodes(&self) -> Option<Range<u64>> {
        let base = self.base.load(Ordering::Acquire);
        (base != NOWHERE).then(|| base..base + BAR_LEN)
    }

    fn listen_again(&self) {
        self.listen(&mut self.space());
    }

    fn unplug(&self) {
        // As by a reset, but that the device goes, too.
        let device = {
            let mut setup = self.setup();
            self.reset_locked(&mut setup);
            setup.take_device()
        };
        {
            let mut space = self.space();
            space.gone = true;
            space.config.disable();
            self.place(&mut space);
            space.table.set_control(0, &*self.routes);
            self.signals.set_pin(true);
        }
        self.routes.forget();
        // On this thread, whoever else still holds the transport: its threads are joined here.
        drop(device);
    }
}

impl BusDevice for PciTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            ISR if data.len() == 1 => data[0] = self.signals.take_isr(),
            _ if is_address(offset, data.len()) => {
                let (low, high) = data.split_at_mut(4);
                self.read(offset, low);
                self.read(offset + 4, high);
            }
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
            _ if is_address(offset, data.len()) => {
                self.write_common(offset, &data[..4]);
                self.write_common(offset + 4, &data[4..]);
            }
            ..ISR => self.write_common(offset, data),
            DEVICE..TABLE => self.setup().device.write_config(offset - DEVICE, data),
            TABLE..PENDING => self.space().table.write(offset - TABLE, data, &*self.routes),
            NOTIFY.. if (offset - NOTIFY).is_multiple_of(NOTIFY_MULTIPLIER) => {
                if let Some(kick) = self.kicks.get(((offset - NOTIFY) / NOTIFY_MULTIPLIER) as usize) {
                    // A back end may have it, too.
                    let _ = lent::raise(kick);
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
