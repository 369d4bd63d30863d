//! The entropy device (virtio 1.2 §5.4): random bytes of the host's kernel (getrandom(2)), for a guest that has gathered none itself.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::device::{Activation, DeviceThreads, VirtioDevice};
use super::queue::{self, Chain, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Mapped, VirtQueue};
use super::served::{Serve, Served};

/// The device.
pub struct VirtioRng(Served);

/// Its one queue, whose buffers it fills.
const QUEUE_MAX_SIZES: [u16; 1] = [64];

/// The most that one chain is given, in bytes: Linux asks for 64. The rest of a longer one stays as it was, which is allowed (§5.4.6).
const CHAIN_MAX: usize = 4096;

impl VirtioRng {
    /// The device, with its thread.
    ///
    /// # Errors
    /// There are no descriptors or no threads left.
    pub fn new() -> io::Result<Self> {
        Served::spawn("rng", Entropy).map(Self)
    }

    /// Its thread.
    pub fn threads(&self) -> Box<dyn DeviceThreads> {
        self.0.threads()
    }
}

impl VirtioDevice for VirtioRng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_MAX_SIZES
    }

    /// It has no configuration.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.0.start(activation)
    }

    fn reset(&mut self) {
        self.0.stop();
    }
}

struct Entropy;

impl Serve for Entropy {
    fn serve(
        &mut self,
        _index: u16,
        queue: &VirtQueue,
        rings: &Mapped<'_>,
        chain: Chain,
    ) -> Result<u32, queue::Error> {
        let mut bytes = [0; CHAIN_MAX];
        let mut given = 0;
        queue.gather(rings, chain, |buffer, writable| {
            if !writable {
                return Err(queue::Error::Direction(chain.head));
            }
            let len = buffer.len().min(CHAIN_MAX - given);
            let bytes = &mut bytes[..len];
            // Interrupted or not, what is missing is not said to be there.
            if given < CHAIN_MAX && getrandom(&mut *bytes, GetRandomFlags::empty()) == Ok(len) {
                buffer.copy_from(bytes);
                given += len;
            }
            Ok(())
        })?;
        Ok(given as u32)
    }
}
