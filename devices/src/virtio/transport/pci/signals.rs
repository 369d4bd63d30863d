//! How a device on the PCI bus tells its driver (virtio 1.2 §4.1.5.3, §4.1.5.4): vectors, or without them the ISR status and the
//! interrupt pin.
//!
//! The pin is driven as long as the ISR status is not zero, which reading clears (§4.1.4.5). The driver may read just when a pair
//! sets a bit anew: each first changes the status, then brings the pin to what the status asks for, one at a time.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::log_once::LogOnce;
use crate::pci::EventRoutes;
use crate::pci::msix::Vectors;
use crate::virtio::device::Interrupt;
use crate::virtio::transport::setup;

/// No vector (`VIRTIO_MSI_NO_VECTOR`): not told, or not a vector that there is.
pub(super) const NO_VECTOR: u16 = 0xffff;
const ISR_QUEUE: u32 = 1 << 0;
const ISR_CONFIG: u32 = 1 << 1;

/// What pairs and vCPUs share without a lock.
pub(super) struct Signals {
    pub(super) vectors: Arc<Vectors>,
    /// Device status (§2.1): the driver's bits and DEVICE_NEEDS_RESET.
    pub(super) status: AtomicU32,
    isr: AtomicU32,
    pin: Pin,
    /// Changes with the device's configuration (§2.5.1).
    pub(super) generation: AtomicU32,
    pub(super) config_vector: AtomicU16,
    pub(super) queue_vectors: Vec<AtomicU16>,
}

/// The interrupt pin.
struct Pin {
    routes: Arc<dyn EventRoutes>,
    /// The guest has the function leave it alone.
    disabled: AtomicBool,
    /// It is driven.
    driven: Mutex<bool>,
    refused: LogOnce,
}

impl Signals {
    /// For so many queues, none of which has a vector.
    pub(super) fn new(vectors: Arc<Vectors>, queues: usize, routes: Arc<dyn EventRoutes>) -> Self {
        let [status, isr, generation] = [0; 3].map(AtomicU32::new);
        let pin = Pin {
            routes,
            disabled: AtomicBool::new(false),
            driven: Mutex::new(false),
            refused: LogOnce::default(),
        };
        let queue_vectors = (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect();
        Self {
            vectors,
            status,
            isr,
            pin,
            generation,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors,
        }
    }

    /// With MSI-X, who has no vector is not told; without, the pin tells.
    fn raise(&self, vector: &AtomicU16) -> io::Result<()> {
        if self.vectors.enabled() {
            self.vectors.raise(vector.load(Ordering::Acquire))
        } else {
            self.update_pin();
            Ok(())
        }
    }

    /// The driver reads the ISR status, which clears it and lets the pin go.
    pub(super) fn take_isr(&self) -> u8 {
        let isr = self.isr.swap(0, Ordering::AcqRel);
        self.update_pin();
        isr as u8
    }

    /// Whether there is something that the pin would tell.
    pub(super) fn pending(&self) -> bool {
        self.isr.load(Ordering::Acquire) != 0 && !self.vectors.enabled()
    }

    /// The guest may have forbidden the pin, or switched to vectors and back.
    pub(super) fn set_pin(&self, disabled: bool) {
        self.pin.disabled.store(disabled, Ordering::Release);
        self.update_pin();
    }

    /// Brings the pin to what is asked of it. Whoever changes any of that calls this afterwards.
    fn update_pin(&self) {
        let mut driven = self.pin.driven.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = self.pending() && !self.pin.disabled.load(Ordering::Acquire);
        if wanted != *driven {
            match self.pin.routes.drive(wanted) {
                Ok(()) => *driven = wanted,
                Err(error) => log::log!(self.pin.refused.level(), "a device's interrupt pin: {error}"),
            }
        }
    }

    pub(super) fn set(&self, vector: &AtomicU16, value: u16) {
        let known = value < self.vectors.count();
        vector.store(if known { value } else { NO_VECTOR }, Ordering::Release);
    }

    pub(super) fn reset(&self) {
        for vector in self.queue_vectors.iter().chain([&self.config_vector]) {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.vectors.clear();
        self.isr.store(0, Ordering::Release);
        self.update_pin();
        self.status.store(0, Ordering::Release);
    }
}

impl Interrupt for Signals {
    fn queue(&self, index: u16) -> io::Result<()> {
        if !self.vectors.enabled() {
            self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        }
        self.queue_vectors.get(usize::from(index)).map_or(Ok(()), |vector| self.raise(vector))
    }

    fn event(&self, index: u16) -> Option<&EventFd> {
        // Without MSI-X there is the ISR status to set.
        let vector = self.queue_vectors.get(usize::from(index)).filter(|_| self.vectors.enabled())?;
        self.vectors.lend(vector.load(Ordering::Acquire))
    }

    fn config(&self) -> io::Result<()> {
        self.generation.fetch_add(1, Ordering::Release);
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.raise(&self.config_vector)
    }

    fn needs_reset(&self) -> io::Result<()> {
        if setup::needs_reset(&self.status) { self.config() } else { Ok(()) }
    }
}
