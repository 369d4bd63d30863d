//! The balloon (virtio 1.2 §5.5), by which the guest gives memory back to the host.
//!
//! What it is for is free page reporting (§5.5.6.5): the guest names, some seconds after it has freed them, pages that it does not use, and
//! goes on owning them; the host takes what backs them, and backs them anew, with zeroes, once the guest touches them. Nobody sets a
//! size that the balloon should have; a driver that inflates it all the same gives its pages away, and has them back when it likes.

use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::device::{Activation, DeviceThreads, VirtioDevice};
use super::queue::{self, Chain, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Mapped, VirtQueue};
use super::served::{Serve, Served};

/// Gives what backs a piece of guest memory back to the host; it reads as zeroes then. Pages that are not whole stay.
pub type Discard = Box<dyn Fn(&VolatileSlice<'_>) -> io::Result<()> + Send>;

/// The device.
pub struct VirtioBalloon(Served);

/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`, `VIRTIO_BALLOON_F_REPORTING` (§5.5.3).
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;

/// Of each queue: inflate, deflate, reporting (§5.5.2, without those that are not negotiated).
const QUEUE_MAX_SIZES: [u16; 3] = [128, 128, 128];

/// The unit of page numbers, in bytes, whatever the guest's pages are (§5.5.6).
const PAGE: u64 = 4096;

/// The most page numbers that are taken from a chain: Linux puts 256 into one.
const NUMBERS_MAX: usize = 4096;

/// The most bytes that are taken from a chain of reported pages, for any may be named again and again: Linux puts 32 pieces into one
/// (`PAGE_REPORTING_CAPACITY`) of the largest that its allocator has, which are 4 MiB. What is beyond is the guest's as before.
const REPORTED_MAX: usize = 32 * (4 << 20);

impl VirtioBalloon {
    /// The device, with its thread.
    ///
    /// # Errors
    /// There are no descriptors or no threads left.
    pub fn new(discard: Discard) -> io::Result<Self> {
        Served::spawn("balloon", Balloon { discard }).map(Self)
    }

    /// Its thread.
    pub fn threads(&self) -> Box<dyn DeviceThreads> {
        self.0.threads()
    }
}

impl VirtioDevice for VirtioBalloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_MAX_SIZES
    }

    /// Pages that it should have, and has (§5.5.4): none, for nobody asks for any.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if offset.checked_add(data.len() as u64).is_some_and(|end| end <= 8) {
            data.fill(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.0.start(activation)
    }

    fn reset(&mut self) {
        self.0.stop();
    }
}

struct Balloon {
    discard: Discard,
}

impl Balloon {
    /// Memory that the host does not take is the guest's all the same, and it is no worse off.
    fn discard(&self, memory: &VolatileSlice<'_>) {
        if let Err(error) = (self.discard)(memory) {
            log::debug!("the host keeps {} bytes of the guest's memory: {error}", memory.len());
        }
    }
}

impl Serve for Balloon {
    fn serve(
        &mut self,
        index: u16,
        queue: &VirtQueue,
        rings: &Mapped<'_>,
        chain: Chain,
    ) -> Result<u32, queue::Error> {
        match index {
            INFLATE => {
                let mut left = NUMBERS_MAX;
                queue.gather(rings, chain, |buffer, _| {
                    for at in (0..buffer.len().saturating_sub(3)).step_by(4).take(left) {
                        left -= 1;
                        let number: u32 = buffer.read_obj(at).expect("it is within the buffer");
                        let address = GuestAddress(u64::from(u32::from_le(number)) * PAGE);
                        // What is not memory is nothing to give.
                        if let Ok(page) = rings.memory().get_slice(address, PAGE as usize) {
                            self.discard(&page);
                        }
                    }
                    Ok(())
                })?;
            }
            // It touches them again, and has them.
            DEFLATE => _ = queue.gather(rings, chain, |_, _| Ok(()))?,
            // The pages themselves are the buffers, and nothing is written to them.
            _ => {
                let mut left = REPORTED_MAX;
                queue.gather(rings, chain, |buffer, _| {
                    let len = buffer.len().min(left);
                    left -= len;
                    if len > 0 {
                        self.discard(&buffer.subslice(0, len).expect("it is within the buffer"));
                    }
                    Ok(())
                })?;
            }
        }
        Ok(0)
    }
}
