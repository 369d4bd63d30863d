//! A driver that is a test, with a real stack behind it: what the guest's kernel puts into a tap of its own goes onto the transmit
//! ring, and what the NIC receives goes into that tap, each frame with its header.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use devices::virtio::VirtioDevice;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::net::VirtioNet;
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use net::{Backend, HEADER_LEN, IovBuffer, Offloads};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const F_CSUM: u64 = 1;
pub(crate) const F_GUEST_CSUM: u64 = 1 << 1;
const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
const F_MAC: u64 = 1 << 5;
pub(crate) const F_GUEST_TSO4: u64 = 1 << 7;
pub(crate) const F_GUEST_TSO6: u64 = 1 << 8;
pub(crate) const F_HOST_TSO4: u64 = 1 << 11;
pub(crate) const F_HOST_TSO6: u64 = 1 << 12;
pub(crate) const F_MRG_RXBUF: u64 = 1 << 15;
const F_CTRL_VQ: u64 = 1 << 17;
pub(crate) const F_GUEST_USO4: u64 = 1 << 54;
pub(crate) const F_GUEST_USO6: u64 = 1 << 55;
pub(crate) const F_HOST_USO: u64 = 1 << 56;

/// A driver that takes nothing, but can be told to.
pub(crate) const PLAIN: u64 = F_VERSION_1 | F_MAC | F_CTRL_VQ | F_CTRL_GUEST_OFFLOADS;
/// What a Linux driver accepts, but for UDP.
pub(crate) const LINUX: u64 = PLAIN
    | F_EVENT_IDX
    | F_INDIRECT_DESC
    | F_MRG_RXBUF
    | F_CSUM
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_HOST_TSO4
    | F_HOST_TSO6;

const MEMORY: usize = 32 << 20;
const RINGS: [u64; 3] = [0x1_0000, 0x2_0000, 0x3_0000];
const COMMAND: u64 = 0x4_0000;
/// Where frames are, each place large enough for a frame of 64 KiB (virtio 1.2 §5.1.6.3.1).
const RX_DATA: u64 = 0x10_0000;
const TX_DATA: u64 = 0x100_0000;
const LARGE: u32 = HEADER_LEN as u32 + 65550;
const PLACE: u64 = 0x1_1000;
const PLACES: u64 = 64;

/// What there was in the frames received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Bytes, with the header.
    pub(crate) largest: usize,
    /// The types of segmentation.
    pub(crate) types: BTreeSet<u8>,
    /// A checksum was not finished.
    pub(crate) partial: bool,
}

pub(crate) struct Driver {
    memory: GuestMemoryMmap,
    device: MmioTransport,
    features: u64,
    /// The guest's stack.
    stack: Box<dyn Backend>,
    rings: [MockRing; 3],
    /// By head, where a receive buffer is and its length.
    posted: Vec<Buffer>,
    /// Where frames to send can be, and by head where they are.
    places: Vec<u64>,
    place_of: Vec<u64>,
    offered: u64,
    seen: Seen,
}

impl Driver {
    pub(crate) fn new(nic: VirtioNet, stack: Box<dyn Backend>) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        let offered = nic.features();
        let irq = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let device = MmioTransport::new(Box::new(nic), memory.clone(), irq).expect("eventfds");
        let rings = rings(&memory, false);
        let (posted, place_of) = (vec![Buffer::writable(0, 0); 256], vec![0; 256]);
        let (places, seen) = (Vec::new(), Seen::default());
        Self { memory, device, features: 0, stack, rings, posted, places, place_of, offered, seen }
    }

    /// The features on offer.
    pub(crate) fn offered(&self) -> u64 {
        self.offered
    }

    /// Comes as another driver, with these features.
    pub(crate) fn start(&mut self, features: u64) {
        let mmio = MockMmio::new(&self.device);
        mmio.reset();
        self.rings = rings(&self.memory, features & F_EVENT_IDX != 0);
        self.places = (0..PLACES).map(|place| TX_DATA + PLACE * place).collect();
        self.features = features;
        assert!(mmio.negotiate(features), "the NIC refuses {features:#x}");
        assert!((0..).zip(&self.rings).all(|(index, ring)| mmio.set_queue(index, ring.setup())));
        mmio.start();
        assert!(!mmio.needs_reset(), "the NIC cannot start with {features:#x}");
        let has = |bit: u64| features & bit != 0;
        let host = Offloads {
            csum: has(F_CSUM),
            tso4: has(F_HOST_TSO4),
            tso6: has(F_HOST_TSO6),
            uso: has(F_HOST_USO),
        };
        self.stack.set_offloads(host).expect("a tap");
        let large = has(F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_USO4);
        let (count, len) = match (has(F_MRG_RXBUF), large) {
            (true, _) => (256, 1536),
            (false, true) => (PLACES, LARGE),
            (false, false) => (256, HEADER_LEN as u32 + 1514),
        };
        let step = if len == LARGE { PLACE } else { 4096 };
        (0..count).for_each(|at| self.post(Buffer::writable(RX_DATA + step * at, len)));
        self.kick(0);
    }

    fn post(&mut self, buffer: Buffer) {
        let head = self.rings[0].add(&[buffer]).expect("a free descriptor");
        self.posted[usize::from(head)] = buffer;
    }

    fn kick(&mut self, index: usize) {
        if self.rings[index].publish() {
            MockMmio::new(&self.device).kick(index as u32);
        }
    }

    /// Moves frames until `done`.
    pub(crate) fn pump(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < end, "{what} take too long; seen {:?}", self.seen);
            if !(self.receive() | self.transmit()) {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// Moves frames until there are none for a while: what one stream leaves behind is not the next one's.
    pub(crate) fn settle(&mut self) {
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(50) {
            if self.receive() | self.transmit() {
                last = Instant::now();
            }
        }
    }

    /// What was seen since the last time.
    pub(crate) fn take_seen(&mut self) -> Seen {
        std::mem::take(&mut self.seen)
    }

    /// Sends one frame, header first, which is not the stack's.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        let place = self.places.pop().expect("a place");
        self.memory.write_slice(frame, GuestAddress(place)).expect("memory");
        self.add(place, frame.len());
        self.kick(1);
    }

    /// `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET`; whether the NIC does so.
    pub(crate) fn set_offloads(&mut self, bits: u64) -> bool {
        let command = [&[5, 0][..], &bits.to_le_bytes(), &[0xff]].concat();
        self.memory.write_slice(&command, GuestAddress(COMMAND)).expect("memory");
        let buffers = [Buffer::readable(COMMAND, 10), Buffer::writable(COMMAND + 10, 1)];
        self.rings[2].add(&buffers).expect("a free descriptor");
        self.kick(2);
        let end = Instant::now() + Duration::from_secs(10);
        while self.rings[2].reap().is_none() {
            assert!(Instant::now() < end, "the command is not answered");
        }
        self.memory.read_obj::<u8>(GuestAddress(COMMAND + 10)).expect("memory") == 0
    }

    /// From the stack to the NIC; true if there was a frame.
    fn transmit(&mut self) -> bool {
        while let Some((head, _)) = self.rings[1].reap() {
            self.places.push(self.place_of[usize::from(head)]);
        }
        let mut moved = false;
        while let Some(place) = self.places.pop() {
            let mut room = IovBuffer::new();
            let mut space = room.start();
            let slice = self.memory.get_slice(GuestAddress(place), LARGE as usize).expect("memory");
            assert!(space.push(slice));
            let received = self.stack.recv(&mut space);
            drop(space);
            match received {
                Ok(len) => self.add(place, len),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                    self.places.push(place);
                    break;
                }
            }
            moved = true;
        }
        self.kick(1);
        moved
    }

    fn add(&mut self, place: u64, len: usize) {
        let head = self.rings[1].add(&[Buffer::readable(place, len as u32)]).expect("a free descriptor");
        self.place_of[usize::from(head)] = place;
    }

    /// From the NIC to the stack; true if there was a frame.
    fn receive(&mut self) -> bool {
        let mut moved = false;
        while let Some((head, len)) = self.rings[0].reap() {
            let mut used = vec![(self.posted[usize::from(head)], len)];
            let mut header = [0; HEADER_LEN];
            self.memory.read_slice(&mut header, GuestAddress(used[0].0.addr)).expect("memory");
            let buffers = u16::from_le_bytes([header[10], header[11]]);
            for _ in 1..buffers {
                let (head, len) = self.rings[0].reap().expect("a frame is shown whole");
                used.push((self.posted[usize::from(head)], len));
            }
            let mut room = IovBuffer::new();
            let mut frame = room.start();
            for (buffer, len) in &used {
                let slice = self.memory.get_slice(GuestAddress(buffer.addr), *len as usize).expect("memory");
                assert!(frame.push(slice));
            }
            self.seen.largest = self.seen.largest.max(frame.len());
            self.seen.partial |= header[0] & 1 != 0;
            self.seen.types.extend(Some(header[1] & 0x7f).filter(|&kind| kind != 0));
            // The stack's own queue may be full, as a machine's is.
            let _ = self.stack.send(&frame);
            drop(frame);
            used.into_iter().for_each(|(buffer, _)| self.post(buffer));
            moved = true;
        }
        self.kick(0);
        moved
    }
}

fn rings(memory: &GuestMemoryMmap, event_idx: bool) -> [MockRing; 3] {
    let ring = |(base, size)| MockRing::new(memory, base, size, event_idx);
    [(RINGS[0], 256), (RINGS[1], 256), (RINGS[2], 64)].map(ring)
}
