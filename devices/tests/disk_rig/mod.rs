//! A disk between a mock driver and a file: the whole device without root, without KVM.
#![allow(dead_code, unreachable_pub)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use devices::virtio::block::{BlockDeviceConfig, Handle, Medium, VirtioBlock};
use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_RING_RESET, F_VERSION_1};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const F_FLUSH: u64 = 1 << 9;
pub const F_CONFIG_WCE: u64 = 1 << 11;
pub const F_MQ: u64 = 1 << 12;
pub const F_DISCARD: u64 = 1 << 13;
pub const F_WRITE_ZEROES: u64 = 1 << 14;
/// What a Linux driver accepts.
pub const LINUX: u64 = F_VERSION_1
    | F_EVENT_IDX
    | F_INDIRECT_DESC
    | F_RING_RESET
    | F_FLUSH
    | F_CONFIG_WCE
    | F_DISCARD
    | F_WRITE_ZEROES;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;
/// What no device answers.
pub const NONE: u8 = 0xaa;

pub const SECTOR: usize = 512;
/// Sectors of a disk unless a test says otherwise.
pub const SECTORS: u64 = 256;
pub const MEMORY: u64 = 16 << 20;
const RING: u64 = 0x1_0000;
pub const SENT: u64 = 0x40_0000;
pub const ROOM: u64 = 0x80_0000;
pub const TABLE: u64 = 0xc0_0000;

/// By io_uring, and without.
pub const BOTH: [bool; 2] = [true, false];

pub struct Rig {
    pub memory: GuestMemoryMmap,
    pub bus: MmioTransport,
    pub handle: Handle,
    pub irq: EventFd,
    pub rings: Vec<MockRing>,
    pub features: u64,
}

/// A file that is gone when it is closed.
pub fn file(bytes: &[u8]) -> File {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("wirevm-disk-{}-{number}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// A file of holes, as long as a disk.
pub fn holes() -> File {
    let file = file(&[]);
    file.set_len(SECTORS * 512).unwrap();
    file
}

/// A disk's bytes, by which places on it are told apart.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|at| ((at * 31) ^ (at >> 9) ^ (seed * 131)) as u8).collect()
}

/// A file as a disk of so many bytes.
pub fn medium(file: &File, bytes: u64) -> Medium {
    Medium {
        file: file.try_clone().unwrap(),
        bytes,
        read_only: false,
        overlay: None,
        direct: None,
        logical_block: 512,
        physical_block: 4096,
        discards: true,
    }
}

impl Rig {
    /// A disk of [`SECTORS`] on that file, whose driver is up.
    pub fn on(file: &File, async_io: bool) -> Self {
        Self::with(medium(file, SECTORS * 512), async_io, 1)
    }

    /// A disk whose driver is up.
    pub fn with(medium: Medium, async_io: bool, queues: u16) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let config =
            BlockDeviceConfig { name: "test".to_owned(), serial: "serial-7".to_owned(), queues, async_io };
        let device = VirtioBlock::new(config, medium).unwrap();
        let handle = device.handle();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let bus = MmioTransport::new(Box::new(device), memory.clone(), irq.try_clone().unwrap()).unwrap();
        let mut rig = Self { memory, bus, handle, irq, rings: Vec::new(), features: 0 };
        let all = LINUX | if queues > 1 { F_MQ } else { 0 };
        rig.start(all & rig.mmio().features());
        rig
    }

    pub fn mmio(&self) -> MockMmio<'_> {
        MockMmio::new(&self.bus)
    }

    /// Resets, and is a driver that accepts these features.
    pub fn start(&mut self, features: u64) {
        let queues = self.bus.kicks().len();
        self.features = features;
        assert!(self.mmio().negotiate(features), "the device refuses {features:#x}");
        self.rings = (0..queues).map(|queue| self.ring(queue)).collect();
        for (queue, ring) in self.rings.iter().enumerate() {
            assert!(self.mmio().set_queue(queue as u32, ring.setup()));
        }
        self.mmio().start();
        assert!(!self.mmio().needs_reset());
    }

    pub fn ring(&self, queue: usize) -> MockRing {
        let event_idx = self.features & F_EVENT_IDX != 0;
        MockRing::new(&self.memory, RING + 0x4000 * queue as u64, 256, event_idx)
    }

    /// The device's configuration, `len` bytes from `offset` on.
    pub fn config(&self, offset: u64, len: usize) -> u64 {
        use devices::BusDevice;
        let mut data = [0; 8];
        self.bus.read(0x100 + offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    /// Shows what was added, kicks, and waits for one chain: how many bytes were written.
    pub fn finish(&mut self, queue: usize) -> u32 {
        self.kick(queue);
        self.reap(queue)
    }

    pub fn kick(&mut self, queue: usize) {
        if self.rings[queue].publish() {
            self.bus.kicks()[queue].write(1).unwrap();
        }
    }

    pub fn reap(&mut self, queue: usize) -> u32 {
        let mut used = None;
        wait("a request's end", || {
            used = self.rings[queue].reap();
            used.is_some()
        });
        used.unwrap().1
    }

    /// Asks with these bytes behind the header and that much room: the status, what is in the room, and how many bytes are said to be
    /// written.
    pub fn ask(&mut self, kind: u32, sector: u64, sent: &[u8], room: usize) -> (u8, Vec<u8>, u32) {
        self.ask_in_pieces(kind, sector, sent, room, &[16], &[room])
    }

    /// The same, in buffers that end at `cuts` of what is sent, header and all, and of the room, status and all.
    pub fn ask_in_pieces(
        &mut self,
        kind: u32,
        sector: u64,
        sent: &[u8],
        room: usize,
        sent_cuts: &[usize],
        room_cuts: &[usize],
    ) -> (u8, Vec<u8>, u32) {
        let bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), sent].concat();
        self.memory.write_slice(&vec![NONE; room + 1], GuestAddress(ROOM)).unwrap();
        self.memory.write_slice(&bytes, GuestAddress(SENT)).unwrap();
        let mut buffers = pieces(SENT, bytes.len(), sent_cuts, false);
        buffers.extend(pieces(ROOM, room + 1, room_cuts, true));
        let indirect = self.features & F_INDIRECT_DESC != 0;
        let head = if indirect && buffers.len() > 2 {
            self.rings[0].add_indirect(TABLE, &buffers)
        } else {
            self.rings[0].add(&buffers)
        };
        assert!(head.is_some());
        let len = self.finish(0);
        let mut answer = vec![0; room + 1];
        self.memory.read_slice(&mut answer, GuestAddress(ROOM)).unwrap();
        (answer.pop().unwrap(), answer, len)
    }

    #[track_caller]
    pub fn read(&mut self, sector: u64, sectors: usize) -> Vec<u8> {
        let (status, bytes, len) = self.ask(IN, sector, &[], sectors * SECTOR);
        assert_eq!((status, len as usize), (OK, sectors * SECTOR + 1), "reading sector {sector}");
        bytes
    }

    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        let (status, _, len) = self.ask(OUT, sector, bytes, 0);
        assert_eq!(len, 1);
        status
    }

    /// A request of one range.
    pub fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        self.ask(kind, 0, &range(sector, sectors, flags), 0).0
    }

    /// The disk works.
    #[track_caller]
    pub fn check(&mut self) {
        let bytes = pattern(2 * SECTOR, 77);
        assert_eq!(self.write(3, &bytes), OK);
        assert_eq!(self.read(3, 2), bytes);
    }
}

/// Of a request to discard or to write zeroes.
pub fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Buffers of `len` bytes at `at`, cut there.
fn pieces(at: u64, len: usize, cuts: &[usize], writable: bool) -> Vec<Buffer> {
    let mut from = 0;
    let ends = cuts.iter().copied().filter(|cut| *cut < len).chain([len]);
    let piece = |end: usize| {
        let start = std::mem::replace(&mut from, end);
        Buffer { addr: at + start as u64, len: (end - start) as u32, writable }
    };
    ends.map(piece).collect()
}

/// Waits up to ten seconds.
#[track_caller]
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}
