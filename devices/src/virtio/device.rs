//! What every virtio device and every transport agree on (virtio 1.2 §2).

use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::mailbox::ThreadHook;
use super::queue::VirtQueue;

/// A virtio device, whatever the transport that shows it to the guest.
pub trait VirtioDevice: Send {
    /// The device type of virtio 1.2 §5.
    fn device_type(&self) -> u32;

    /// The feature bits on offer (virtio 1.2 §2.2), transport bits included.
    fn features(&self) -> u64;

    /// The largest size of each queue; as many as the device has queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Reads the device configuration at `offset` (virtio 1.2 §2.5); bytes past its end stay as they are.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device configuration at `offset`; ignored where it is read-only.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver is ready (`DRIVER_OK`): the device gets its rings and starts to work.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;

    /// What [`Interrupt::event`] answers may have changed, while the device is active.
    fn rerouted(&mut self) {}

    /// The driver resets queue `index`, of a device that is active and offers `VIRTIO_F_RING_RESET` (virtio 1.3 §2.6.1). Returns once
    /// nothing touches that queue's rings and buffers any more; the device goes on with the others.
    fn reset_queue(&mut self, _index: u16) {}

    /// The driver has set a queue up anew that it had reset: the device goes on with it.
    ///
    /// # Errors
    /// It cannot: the driver is asked for a reset of the device.
    fn enable_queue(&mut self, _queue: ActiveQueue) -> io::Result<()> {
        Ok(())
    }

    /// Stops all work and forgets what was negotiated (virtio 1.2 §2.1); the device can be activated again. Returns once
    /// nothing touches guest memory any more.
    fn reset(&mut self);
}

/// What a machine asks of a device's threads, whatever the device: they are born before its driver, and end with it.
pub trait DeviceThreads: Send {
    /// Has each run `hook`, which confines it.
    ///
    /// # Errors
    /// What `hook` says, or a thread has ended.
    fn confine(&self, hook: &ThreadHook) -> io::Result<()>;

    /// Returns once nothing touches guest memory until [`resume`](Self::resume), whatever the driver does meanwhile.
    ///
    /// # Errors
    /// A thread has ended.
    fn pause(&self) -> io::Result<()>;

    /// Goes on.
    ///
    /// # Errors
    /// A thread has ended.
    fn resume(&self) -> io::Result<()>;
}

/// All that a device needs to work, handed over when the driver is ready.
pub struct Activation {
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    /// The feature bits that the driver accepted; a subset of [`VirtioDevice::features`].
    pub accepted: u64,
    /// How the device tells its driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// The queues that the driver enabled, by rising index.
    pub queues: Vec<ActiveQueue>,
}

/// A queue that the driver set up and enabled.
pub struct ActiveQueue {
    /// Its number in the device.
    pub index: u16,
    /// Its rings, checked to lie in guest memory.
    pub ring: VirtQueue,
    /// Readable once the driver has put buffers there and notified.
    pub kick: Arc<EventFd>,
}

/// How a device tells its driver: one implementation for each transport.
pub trait Interrupt: Send + Sync {
    /// Queue `index` has used buffers for the driver (virtio 1.2 §2.3).
    fn queue(&self, index: u16) -> io::Result<()>;

    /// The eventfd by which [`queue`](Self::queue) tells at present, for somebody who writes it instead. None where it takes more
    /// than that.
    fn event(&self, _index: u16) -> Option<&EventFd> {
        None
    }

    /// The device configuration changed.
    fn config(&self) -> io::Result<()>;

    /// The driver broke the protocol: sets `DEVICE_NEEDS_RESET` and says so as a configuration change (virtio 1.2 §2.1.2).
    fn needs_reset(&self) -> io::Result<()>;
}
