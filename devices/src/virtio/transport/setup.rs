//! What a driver sets before its device runs, whatever the transport (virtio 1.2 §3.1): status, features, queues.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::log_once::LogOnce;
use crate::virtio::device::{Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::virtio::queue::{F_RING_RESET, F_VERSION_1, QueueSetup, VirtQueue};

/// A device, and what its driver has said of it so far.
pub(super) struct Setup {
    pub(super) device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    driver_features: u64,
    pub(super) queue_sel: u32,
    queues: Vec<Queue>,
    refused: LogOnce,
}

#[derive(Clone, Copy)]
struct Queue {
    setup: QueueSetup,
    ready: bool,
    /// The driver has reset it since the device runs.
    was_reset: bool,
}

/// A field of a queue's place (§4.1.4.3, §4.2.2): what a write to it sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueField {
    Size,
    Ready,
    Table(Half),
    Available(Half),
    Used(Half),
}

/// Of a 64-bit address, which transports take in two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Low,
    High,
}

impl Half {
    fn set(self, address: &mut u64, value: u32) {
        *address = match self {
            Self::Low => *address >> 32 << 32 | u64::from(value),
            Self::High => u64::from(*address as u32) | u64::from(value) << 32,
        };
    }

    fn of(self, address: u64) -> u32 {
        match self {
            Self::Low => address as u32,
            Self::High => (address >> 32) as u32,
        }
    }
}

impl Setup {
    pub(super) fn new(device: Box<dyn VirtioDevice>, memory: GuestMemoryMmap) -> Self {
        let queues = fresh(&*device);
        Self {
            device,
            memory,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues,
            refused: LogOnce::default(),
        }
    }

    /// An eventfd for each queue, by which it is kicked.
    pub(super) fn kicks(&self) -> io::Result<Vec<Arc<EventFd>>> {
        let kick = |_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        self.queues.iter().map(kick).collect()
    }

    /// Stops the device, and forgets all that was said; nothing touches guest memory when this returns.
    pub(super) fn reset(&mut self) {
        self.device.reset();
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queues = fresh(&*self.device);
    }

    /// Takes the device out, which was reset. In its place is one that has nothing and does nothing.
    pub(super) fn take_device(&mut self) -> Box<dyn VirtioDevice> {
        std::mem::replace(&mut self.device, Box::new(Absent))
    }

    /// The selected word of the features on offer; there are two.
    pub(super) fn device_features(&self) -> u32 {
        word(self.device.features(), self.device_features_sel)
    }

    /// The selected word of the features that the driver accepts.
    pub(super) fn driver_features(&self) -> u32 {
        word(self.driver_features, self.driver_features_sel)
    }

    /// Accepts features, while they are negotiated.
    pub(super) fn set_driver_features(&mut self, status: u32, value: u32) {
        let negotiating = status & DRIVER != 0 && status & FEATURES_OK == 0;
        if negotiating && self.driver_features_sel < 2 {
            let shift = 32 * self.driver_features_sel;
            self.driver_features &= !(u64::from(u32::MAX) << shift);
            self.driver_features |= u64::from(value) << shift;
        }
    }

    /// The selected queue, if there is one.
    fn queue(&self) -> Option<&Queue> {
        self.queues.get(self.queue_sel as usize)
    }

    /// What the selected queue can have at most; 0 where there is none.
    pub(super) fn queue_max_size(&self) -> u16 {
        self.device.queue_max_sizes().get(self.queue_sel as usize).copied().unwrap_or(0)
    }

    /// Places the selected queue, between the features and the start, or after it was reset. Its place can change while it is not
    /// ready (§4.2.2.2). True: it is ready again, and the device is to [go on](Self::enable_queue) with it.
    pub(super) fn set_queue(&mut self, status: u32, field: QueueField, value: u32) -> bool {
        let placing = status & FEATURES_OK != 0 && status & (DRIVER_OK | FAILED) == 0;
        let max = self.queue_max_size();
        let queue = self.queues.get_mut(self.queue_sel as usize);
        let Some(queue) = queue.filter(|queue| placing || queue.was_reset) else { return false };
        let QueueSetup { size, desc_table, avail_ring, used_ring } = &mut queue.setup;
        match field {
            QueueField::Ready if value & 1 == 0 => queue.ready = false,
            QueueField::Ready => queue.ready = size.is_power_of_two() && *size <= max,
            _ if queue.ready => {}
            // A size past 16 bits is no size; zero never becomes ready.
            QueueField::Size => *size = value.try_into().unwrap_or(0),
            QueueField::Table(half) => half.set(desc_table, value),
            QueueField::Available(half) => half.set(avail_ring, value),
            QueueField::Used(half) => half.set(used_ring, value),
        }
        // It is as any other from now on.
        queue.ready && std::mem::take(&mut queue.was_reset)
    }

    /// The driver resets the selected queue (§2.6.1): nothing touches it when this returns. True: there was something to reset.
    pub(super) fn reset_queue(&mut self, status: u32) -> bool {
        let can = self.driver_features & F_RING_RESET != 0;
        let runs = status & DRIVER_OK != 0 && status & (FAILED | NEEDS_RESET) == 0;
        let index = self.queue_sel as usize;
        let resets = can && runs && self.queue().is_some_and(|queue| queue.ready);
        if resets {
            self.device.reset_queue(index as u16);
            let setup = QueueSetup { size: self.queue_max_size(), ..QueueSetup::default() };
            self.queues[index] = Queue { setup, ready: false, was_reset: true };
        }
        resets
    }

    /// Has the device go on with the selected queue, which is ready again.
    pub(super) fn enable_queue(&mut self, interrupt: &Arc<dyn Interrupt>, kicks: &[Arc<EventFd>]) {
        let index = self.queue_sel as usize;
        let queue = self.active_queue(index, &kicks[index]);
        if let Err(error) = queue.and_then(|queue| self.device.enable_queue(queue)) {
            let device = self.device.device_type();
            log::log!(
                self.refused.level(),
                "virtio device {device}: cannot go on with queue {index}: {error}"
            );
            let _ = interrupt.needs_reset();
        }
    }

    /// A queue, where it makes sense as the driver set it up.
    fn active_queue(&self, index: usize, kick: &Arc<EventFd>) -> io::Result<ActiveQueue> {
        let ring = VirtQueue::new(&self.queues[index].setup, self.driver_features, &self.memory)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(ActiveQueue { index: index as u16, ring, kick: Arc::clone(kick) })
    }

    /// A field of the selected queue; zero where there is none.
    pub(super) fn queue_field(&self, field: QueueField) -> u32 {
        let Some(Queue { setup, ready, .. }) = self.queue() else { return 0 };
        match field {
            QueueField::Size => setup.size.into(),
            QueueField::Ready => (*ready).into(),
            QueueField::Table(half) => half.of(setup.desc_table),
            QueueField::Available(half) => half.of(setup.avail_ring),
            QueueField::Used(half) => half.of(setup.used_ring),
        }
    }

    /// The driver sets status bits (§3.1.1): each stands on the one before it, and none is cleared but by a reset.
    pub(super) fn advance(
        &mut self,
        status: &AtomicU32,
        value: u32,
        interrupt: &Arc<dyn Interrupt>,
        kicks: &[Arc<EventFd>],
    ) {
        let old = status.load(Ordering::Acquire);
        let value = old | value & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
        let mut new = old | value & (ACKNOWLEDGE | FAILED);
        let refused =
            self.driver_features & !self.device.features() != 0 || self.driver_features & F_VERSION_1 == 0;
        for (bit, needs) in [(DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)] {
            if value & bit != 0 && new & needs != 0 && !(bit == FEATURES_OK && refused) {
                new |= bit;
            }
        }
        // By `or`, for DEVICE_NEEDS_RESET may have come from a pair meanwhile.
        status.fetch_or(new, Ordering::AcqRel);
        let starts = new & !old & DRIVER_OK != 0 && new & (FAILED | NEEDS_RESET) == 0;
        if starts && let Err(error) = self.activate(interrupt, kicks) {
            let device = self.device.device_type();
            log::log!(self.refused.level(), "virtio device {device}: cannot start: {error}");
            let _ = interrupt.needs_reset();
        }
    }

    fn activate(&mut self, interrupt: &Arc<dyn Interrupt>, kicks: &[Arc<EventFd>]) -> io::Result<()> {
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, kick) in kicks.iter().enumerate().filter(|(index, _)| self.queues[*index].ready) {
            queues.push(self.active_queue(index, kick)?);
        }
        self.device.activate(Activation {
            memory: self.memory.clone(),
            accepted: self.driver_features,
            interrupt: Arc::clone(interrupt),
            queues,
        })
    }
}

/// No device any more.
struct Absent;

impl VirtioDevice for Absent {
    fn device_type(&self) -> u32 {
        0
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[]
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, _: Activation) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn reset(&mut self) {}
}

/// DEVICE_NEEDS_RESET, set in `status` (§2.1.2). True: the driver is up, and is to be told so.
pub(super) fn needs_reset(status: &AtomicU32) -> bool {
    let before = status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
    // A driver that is not up yet reads the status anyhow, and must not be interrupted.
    before & DRIVER_OK != 0
}

/// The queues after a reset: as large as they can be, and nowhere.
fn fresh(device: &dyn VirtioDevice) -> Vec<Queue> {
    let setup = |&size| QueueSetup { size, ..QueueSetup::default() };
    device
        .queue_max_sizes()
        .iter()
        .map(|size| Queue { setup: setup(size), ready: false, was_reset: false })
        .collect()
}

fn word(features: u64, select: u32) -> u32 {
    if select < 2 { (features >> (32 * select)) as u32 } else { 0 }
}
