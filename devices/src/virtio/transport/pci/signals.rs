//! How a device on the PCI bus tells its driver (virtio 1.2 §4.1.5.3, §4.1.5.4): vectors, or the ISR status without them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

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
    pub(super) isr: AtomicU32,
    /// Changes with the device's configuration (§2.5.1).
    pub(super) generation: AtomicU32,
    pub(super) config_vector: AtomicU16,
    pub(super) queue_vectors: Vec<AtomicU16>,
}

impl Signals {
    /// With MSI-X, who has no vector is not told; without, nobody is but who reads the ISR status.
    fn raise(&self, vector: &AtomicU16) -> io::Result<()> {
        if self.vectors.enabled() { self.vectors.raise(vector.load(Ordering::Acquire)) } else { Ok(()) }
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

    fn event(&self, index: u16) -> Option<&EventFd> {
        // Without MSI-X there is the ISR status to set.
        let vector = self.queue_vectors.get(usize::from(index)).filter(|_| self.vectors.enabled())?;
        self.vectors.event(vector.load(Ordering::Acquire))
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
