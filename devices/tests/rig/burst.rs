//! A queue pair without its thread, whose driver sends bursts of frames.

use std::io;
use std::sync::Arc;

use devices::virtio::mock::{Buffer, MockRing};
use devices::virtio::net::queue_pair::{Counters, PairParts, QueuePair, ReceiveSpace};
use devices::virtio::queue::VirtQueue;
use devices::virtio::{ActiveQueue, Interrupt};
use net::{Backend, Mac, Offloads, RxFilter};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{MEMORY, PLAIN};

const DATA: u64 = 0x40_0000;

/// A driver that takes no interrupts.
struct Silent;

impl Interrupt for Silent {
    fn queue(&self, _: u16) -> io::Result<()> {
        Ok(())
    }

    fn config(&self) -> io::Result<()> {
        Ok(())
    }

    fn needs_reset(&self) -> io::Result<()> {
        panic!("the driver broke nothing");
    }
}

pub struct Burst {
    pub pair: QueuePair,
    pub tx: MockRing,
    pub counters: Arc<Counters>,
    memory: GuestMemoryMmap,
}

impl Burst {
    pub fn new(backend: Box<dyn Backend>) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let (rx, tx) = (0x1_0000, 0x2_0000);
        let [rx, tx] = [rx, tx].map(|base| MockRing::new(&memory, base, 256, false));
        let queue = |index, ring: &MockRing| ActiveQueue {
            index,
            ring: VirtQueue::new(ring.setup(), PLAIN, &memory).unwrap(),
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        };
        let counters = Arc::<Counters>::default();
        let pair = QueuePair::new(PairParts {
            name: "test".into(),
            memory: memory.clone(),
            accepted: PLAIN,
            interrupt: Arc::new(Silent),
            rx: queue(0, &rx),
            tx: queue(1, &tx),
            backend,
            space: ReceiveSpace::new(PLAIN, None),
            carrier: None,
            control: None,
            enabled: false,
            offloads: Offloads::default(),
            filter: RxFilter::new(Mac::random().unwrap()),
            poll: None,
            rate: None,
            counters: Arc::clone(&counters),
            broken: Arc::default(),
        });
        let mut this = Self { pair, tx, counters, memory };
        this.tx.want_interrupts(false);
        this
    }

    /// Writes a frame behind those that are [added](Self::add): the buffer that has it.
    pub fn place(&mut self, frame: &[u8]) -> Buffer {
        let at = DATA + (1 << 20);
        self.memory.write_slice(frame, GuestAddress(at)).unwrap();
        Buffer::readable(at, frame.len() as u32)
    }

    /// Puts frames on the ring, in two buffers each of which the first has the headers, and shows them.
    pub fn add(&mut self, frames: &[Vec<u8>]) {
        let mut at = DATA;
        for (number, frame) in frames.iter().enumerate() {
            self.memory.write_slice(frame, GuestAddress(at)).unwrap();
            let cut = if number % 3 == 0 { 0 } else { 66.min(frame.len()) as u32 };
            let len = frame.len() as u32;
            let buffers = [Buffer::readable(at, cut), Buffer::readable(at + u64::from(cut), len - cut)];
            let head = match cut == 0 || cut == len {
                true => self.tx.add(&[Buffer::readable(at, len)]),
                false => self.tx.add(&buffers),
            };
            assert!(head.is_some(), "the ring is full");
            at += u64::from(len) + 1;
        }
        self.tx.publish();
    }

    /// Has frames sent, as many as the ring has room for at once. They must all be used then.
    pub fn send(&mut self, frames: &[Vec<u8>]) {
        for frames in frames.chunks(128) {
            self.add(frames);
            self.pair.wake();
            while self.pair.process() {}
            for _ in frames {
                assert_eq!(self.tx.reap().expect("a frame that is used").1, 0);
            }
            assert!(self.tx.reap().is_none());
        }
    }
}
