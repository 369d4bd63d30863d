//! virtio-blk (virtio 1.3 §5.2): a disk on a file or block device of the host.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the device: features, configuration, start and reset |
//! | `request.rs` | what a driver asks for, and whether it makes sense |
//! | `session.rs` | a queue while one driver has it |
//! | `thread.rs` | the thread of a queue, over all its drivers |
//! | `medium.rs` | what the bytes are on; `overlay.rs` what was written beside it |
//! | `buffers.rs` | a request's pieces of guest memory, and the calls that move them |
//! | `uring.rs` | the same by io_uring |
//! | `handle.rs`, `state.rs`, `counters.rs` | what its owner can ask of it |
//!
//! # The way of a request
//! ```text
//! guest: kick ──ioeventfd──► Session::burst ─► take() ─► Flight::push ─► io_uring_enter(2) ──eventfd──► complete() ──irqfd──► guest
//!                                                └─ without io_uring ─► preadv2(2), pwritev2(2)
//! ```

mod buffers;
mod counters;
mod handle;
mod medium;
mod overlay;
mod request;
mod session;
mod state;
mod thread;
mod uring;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_blk::*;

pub use self::counters::Counters;
pub use self::handle::Handle;
pub use self::medium::Medium;
use self::medium::Store;
use self::request::{Id, Limits};
use self::session::Common;
pub use self::state::DiskQueueState;
use self::thread::{Message, Start, spawn};
use super::device::{Activation, ActiveQueue, VirtioDevice};
use super::mailbox::{Address, Answer, Reply};
use super::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_RING_RESET, F_VERSION_1};
use super::queue_thread::QueueThread;

/// The device type of a disk (virtio 1.3 §5).
pub const TYPE_BLOCK: u32 = 2;

/// Entries of each queue, at most.
pub const QUEUE_SIZE: u16 = 256;

/// The unit of the disk's size and of all places on it, whatever its logical block (§5.2.4).
pub const SECTOR: u64 = 512;

/// The longest serial number in bytes.
pub const SERIAL_MAX: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Pieces of a request, at most: with header and status, as many descriptors as a queue has.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of each.
const SIZE_MAX: u32 = 1 << 16;
/// Bytes of a request, at most, so that none takes as long as it likes.
const MAX_BYTES: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// Ranges of a request to discard, and the sectors of each.
const MAX_RANGES: usize = 16;
const MAX_DISCARD: u32 = 1 << 21;
/// The same of one to write zeroes, which a host may have to do byte by byte.
const MAX_ZERO_RANGES: usize = 1;
const MAX_ZEROES: u32 = 1 << 16;

const F_SIZE_MAX: u64 = 1 << VIRTIO_BLK_F_SIZE_MAX;
const F_SEG_MAX: u64 = 1 << VIRTIO_BLK_F_SEG_MAX;
const F_RO: u64 = 1 << VIRTIO_BLK_F_RO;
const F_BLK_SIZE: u64 = 1 << VIRTIO_BLK_F_BLK_SIZE;
const F_FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const F_TOPOLOGY: u64 = 1 << VIRTIO_BLK_F_TOPOLOGY;
const F_CONFIG_WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;
const F_MQ: u64 = 1 << VIRTIO_BLK_F_MQ;
const F_DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
const F_WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;

/// Where `writeback` is in the configuration (§5.2.4).
const WRITEBACK: u64 = 32;

/// What a disk is to its guest, beside its bytes.
#[derive(Clone, Debug)]
pub struct BlockDeviceConfig {
    /// What its threads are called: `blk0` makes `blk0-0` for the first queue. Linux shows 15 bytes of it.
    pub name: String,
    /// Its serial number, of which the guest sees [`SERIAL_MAX`] bytes.
    pub serial: String,
    /// How many queues it has, 1 or more.
    pub queues: u16,
    /// io_uring reads and writes where the kernel lets it; otherwise the queues' threads do.
    pub async_io: bool,
}

/// A disk: queues with a thread each, over the same [`Medium`].
///
/// - *Idle*: the threads sleep.
/// - *Running*, from `activate` to `reset`: each does what the driver asks for on its queue.
///
/// A queue whose driver broke its ring does nothing, and is still *running* until the reset.
pub struct VirtioBlock {
    features: u64,
    sizes: Vec<u16>,
    common: Arc<Common>,
    queues: Arc<[Address<Message>]>,
    counters: Arc<[Arc<Counters>]>,
    /// The driver lets the host keep what is written in its cache until it flushes.
    writeback: bool,
    /// What the driver accepted, and all that a queue needs to start anew; while one is there.
    driver: Option<Driver>,
    /// Dropped last: they end then.
    _threads: Vec<QueueThread<Message>>,
}

struct Driver {
    accepted: u64,
    start: Box<dyn Fn(ActiveQueue) -> Start + Send>,
}

impl VirtioBlock {
    /// A disk. The threads of its queues are spawned here, by the calling thread, and end when it is dropped.
    ///
    /// # Errors
    /// There are no descriptors or no threads left.
    pub fn new(config: BlockDeviceConfig, medium: Medium) -> io::Result<Self> {
        let features = offer(&medium, config.queues);
        let mut id: Id = [0; SERIAL_MAX];
        id.iter_mut().zip(config.serial.bytes()).for_each(|(to, byte)| *to = byte);
        let limits = Limits { bytes: medium.bytes, read_only: medium.read_only, features };
        let common = Arc::new(Common {
            name: config.name,
            store: Store::new(medium),
            limits,
            id,
            durable: AtomicBool::new(true),
            broken: Default::default(),
            refused: Default::default(),
        });
        let counters: Arc<[Arc<Counters>]> = (0..config.queues).map(|_| Arc::default()).collect();
        let spawn = |(index, counters)| spawn(&common, counters, index, config.async_io);
        let threads = counters.iter().enumerate().map(spawn).collect::<io::Result<Vec<_>>>()?;
        let queues = threads.iter().map(|thread| thread.address().clone()).collect();
        let sizes = vec![QUEUE_SIZE; config.queues.into()];
        Ok(Self {
            features,
            sizes,
            common,
            queues,
            counters,
            writeback: true,
            driver: None,
            _threads: threads,
        })
    }

    /// What can be asked of the disk once it is in its transport.
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.queues), Arc::clone(&self.counters))
    }

    /// Has each write on the medium before it is answered, unless the driver flushes (§5.2.6.2).
    fn set_durable(&self) {
        let accepted = self.driver.as_ref().map_or(0, |driver| driver.accepted);
        let cached = if accepted & F_CONFIG_WCE != 0 { self.writeback } else { accepted & F_FLUSH != 0 };
        self.common.durable.store(!cached, Ordering::Relaxed);
    }
}

/// The features of a disk.
fn offer(medium: &Medium, queues: u16) -> u64 {
    let ring = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_RING_RESET;
    let any = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY;
    let written = match (medium.read_only, medium.discards) {
        (true, _) => F_RO,
        (false, true) => F_FLUSH | F_CONFIG_WCE | F_WRITE_ZEROES | F_DISCARD,
        (false, false) => F_FLUSH | F_CONFIG_WCE | F_WRITE_ZEROES,
    };
    ring | any | written | if queues > 1 { F_MQ } else { 0 }
}

impl VirtioDevice for VirtioBlock {
    fn device_type(&self) -> u32 {
        TYPE_BLOCK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.sizes
    }

    /// `virtio_blk_config` (§5.2.4) up to `write_zeroes_may_unmap`.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let medium = &self.common.store.medium;
        let (logical, physical) = (medium.logical_block, medium.physical_block);
        let in_blocks = |bytes: u32| bytes / logical;
        let sectors = |bytes: u32| bytes / SECTOR as u32;
        let mut config = [0; 57];
        let mut set = |at: usize, value: &[u8]| config[at..at + value.len()].copy_from_slice(value);
        set(0, &(medium.bytes / SECTOR).to_le_bytes());
        set(8, &SIZE_MAX.to_le_bytes());
        set(12, &SEG_MAX.to_le_bytes());
        set(20, &logical.to_le_bytes());
        set(24, &[in_blocks(physical).ilog2() as u8]);
        set(26, &(in_blocks(physical) as u16).to_le_bytes());
        set(WRITEBACK as usize, &[self.writeback.into()]);
        set(34, &(self.sizes.len() as u16).to_le_bytes());
        if self.features & F_DISCARD != 0 {
            set(36, &MAX_DISCARD.to_le_bytes());
            set(40, &(MAX_RANGES as u32).to_le_bytes());
            set(44, &sectors(physical).to_le_bytes());
        }
        if self.features & F_WRITE_ZEROES != 0 {
            set(48, &MAX_ZEROES.to_le_bytes());
            set(52, &(MAX_ZERO_RANGES as u32).to_le_bytes());
            set(56, &[medium.discards.into()]);
        }
        let from = config.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        for (to, byte) in data.iter_mut().zip(&config[from..]) {
            *to = *byte;
        }
    }

    /// Whether the host may keep what is written in its cache; all else is read-only.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (WRITEBACK, [value, ..]) = (offset, data)
            && self.features & F_CONFIG_WCE != 0
        {
            self.writeback = *value != 0;
            self.set_durable();
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { memory, accepted, interrupt, queues } = activation;
        let start = move |queue| Start { memory: memory.clone(), interrupt: Arc::clone(&interrupt), queue };
        self.driver = Some(Driver { accepted, start: Box::new(start) });
        self.set_durable();
        for queue in queues {
            if let Err(error) = self.enable_queue(queue) {
                // All start or none.
                self.reset();
                return Err(error);
            }
        }
        Ok(())
    }

    fn reset_queue(&mut self, index: u16) {
        if let Some(queue) = self.queues.get(usize::from(index)) {
            // One that has ended touches nothing.
            let _ = queue.ask(Message::Stop).wait();
        }
    }

    fn enable_queue(&mut self, queue: ActiveQueue) -> io::Result<()> {
        match (&self.driver, self.queues.get(usize::from(queue.index))) {
            (Some(driver), Some(address)) => {
                let start = Box::new((driver.start)(queue));
                address.ask(|reply: Reply<_>| Message::Start(start, reply)).wait()?
            }
            _ => Ok(()),
        }
    }

    fn reset(&mut self) {
        if self.driver.take().is_some() {
            let stopped: Vec<_> = self.queues.iter().map(|queue| queue.ask(Message::Stop)).collect();
            // One that has ended touches nothing.
            stopped.into_iter().map(Answer::wait).for_each(drop);
        }
        self.writeback = true;
        self.set_durable();
    }
}

impl Drop for VirtioBlock {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::virtio::mock::NoInterrupts;

    #[test]
    fn what_is_written_is_cached_for_drivers_alone_that_flush() {
        let medium = Medium {
            file: File::open("/dev/null").unwrap(),
            bytes: 512,
            read_only: false,
            overlay: None,
            direct: None,
            logical_block: 512,
            physical_block: 512,
            discards: false,
        };
        let config =
            BlockDeviceConfig { name: "test".into(), serial: String::new(), queues: 1, async_io: false };
        let mut device = VirtioBlock::new(config, medium).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        for (accepted, writeback, durable) in [
            (0, 1, true),
            (F_FLUSH, 1, false),
            // Not its to say.
            (F_FLUSH, 0, false),
            (F_FLUSH | F_CONFIG_WCE, 1, false),
            (F_FLUSH | F_CONFIG_WCE, 0, true),
            (F_CONFIG_WCE, 0, true),
        ] {
            let (memory, interrupt) = (memory.clone(), Arc::new(NoInterrupts));
            device.activate(Activation { memory, accepted, interrupt, queues: Vec::new() }).unwrap();
            device.write_config(WRITEBACK, &[writeback]);
            let found = device.common.durable.load(Ordering::Relaxed);
            assert_eq!(found, durable, "{accepted:#x}, writeback {writeback}");
            device.reset();
            assert!(device.common.durable.load(Ordering::Relaxed) && device.writeback);
        }
    }
}
