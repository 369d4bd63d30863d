//! A NIC between a mock driver and a socket: the whole device without root, without KVM.
#![allow(dead_code, unreachable_pub)]

pub mod burst;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::net::queue_pair::Counters;
use devices::virtio::net::{Handle, NetDeviceConfig, VirtioNet};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use net::{Backend, HEADER_LEN, Mac, Offloads, SocketBackend, SocketPeer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
pub const MTU: u16 = 9000;
pub const RX: u32 = 0;
pub const TX: u32 = 1;
pub const CONTROL: u32 = 2;
pub const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true, uso: true };

pub const F_CSUM: u64 = 1 << 0;
pub const F_GUEST_CSUM: u64 = 1 << 1;
pub const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub const F_MTU: u64 = 1 << 3;
pub const F_MAC: u64 = 1 << 5;
pub const F_GUEST_TSO4: u64 = 1 << 7;
pub const F_GUEST_TSO6: u64 = 1 << 8;
pub const F_HOST_TSO4: u64 = 1 << 11;
pub const F_HOST_TSO6: u64 = 1 << 12;
pub const F_MRG_RXBUF: u64 = 1 << 15;
pub const F_STATUS: u64 = 1 << 16;
pub const F_CTRL_VQ: u64 = 1 << 17;
pub const F_CTRL_RX: u64 = 1 << 18;
pub const F_CTRL_RX_EXTRA: u64 = 1 << 20;
pub const F_GUEST_ANNOUNCE: u64 = 1 << 21;
pub const F_MQ: u64 = 1 << 22;
pub const F_CTRL_MAC_ADDR: u64 = 1 << 23;
pub const F_NOTF_COAL: u64 = 1 << 53;
pub const F_GUEST_USO4: u64 = 1 << 54;
pub const F_GUEST_USO6: u64 = 1 << 55;
pub const F_HOST_USO: u64 = 1 << 56;
pub const F_SPEED_DUPLEX: u64 = 1 << 63;
/// Registers of virtio 1.3 §4.2.2.
pub const QUEUE_SEL: u32 = 0x030;
pub const QUEUE_READY: u32 = 0x044;
pub const QUEUE_RESET: u32 = 0x0c0;

/// No large receive: a buffer of 1.5 KiB is enough for a frame.
pub const PLAIN: u64 = F_VERSION_1 | F_MAC;
/// What a Linux driver accepts.
pub const LINUX: u64 = PLAIN
    | F_EVENT_IDX
    | F_INDIRECT_DESC
    | F_MRG_RXBUF
    | F_CSUM
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_HOST_TSO4
    | F_HOST_TSO6;

/// With all of the control queue.
pub const COMMANDS: u64 =
    LINUX | F_CTRL_VQ | F_CTRL_RX | F_CTRL_RX_EXTRA | F_CTRL_MAC_ADDR | F_CTRL_GUEST_OFFLOADS;
/// `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` (virtio 1.2 §5.1.6.5.6).
pub fn offloads_set(bits: u64) -> Vec<u8> {
    [&[5, 0][..], &bits.to_le_bytes()].concat()
}

/// `VIRTIO_NET_CTRL_NOTF_COAL_TX_SET` and `_RX_SET` (virtio 1.3 §5.1.6.5.9).
pub const TX_SET: u8 = 0;
pub const RX_SET: u8 = 1;
pub fn coalesce(which: u8, max_packets: u32, max_usecs: u32) -> Vec<u8> {
    [&[6, which][..], &max_packets.to_le_bytes(), &max_usecs.to_le_bytes()].concat()
}

pub const MEMORY: usize = 16 << 20;
const RX_RING: u64 = 0x1_0000;
const TX_RING: u64 = 0x2_0000;
const CONTROL_RING: u64 = 0x3_0000;
/// Where a command is, and its answer.
pub const COMMAND: u64 = 0x4_0000;
pub const ANSWER: u64 = 0x5_0000;
/// Indirect tables: 256 of 2 KiB to receive, then 256 of 1 KiB to send.
const TABLES: u64 = 0x10_0000;
/// Receive buffers, 256 places of 4 KiB.
const RX_DATA: u64 = 0x20_0000;
/// Room for chains that a test makes itself.
pub const CHAIN_DATA: u64 = 0x40_0000;
/// Frames to send, one after the other, around.
const TX_DATA: u64 = 0x80_0000;
const TX_DATA_LEN: u64 = 0x40_0000;

pub struct Rig {
    pub memory: GuestMemoryMmap,
    pub device: MmioTransport,
    pub irq: EventFd,
    pub peer: SocketPeer,
    pub counters: Arc<Counters>,
    pub handle: Handle,
    pub rx: MockRing,
    pub tx: MockRing,
    /// Set up where the driver negotiates it.
    pub control: MockRing,
    pub features: u64,
    /// Where each receive chain's bytes are, by head.
    posted: Vec<Vec<Buffer>>,
    places: Vec<u64>,
    tx_at: u64,
}

impl Rig {
    pub fn new() -> Self {
        let (backend, peer) = SocketBackend::pair().unwrap();
        peer.socket().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        peer.socket().set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        Self::with(Box::new(backend.with_offloads(ALL)), peer)
    }

    /// A rig whose pair looks about for so long before it sleeps.
    pub fn polling(poll: Duration) -> Self {
        let (backend, peer) = SocketBackend::pair().unwrap();
        peer.socket().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self::around(Box::new(backend.with_offloads(ALL)), peer, Some(poll), Vec::new())
    }

    /// A rig whose pair runs on that CPU.
    pub fn on(cpu: u16) -> Self {
        let (backend, peer) = SocketBackend::pair().unwrap();
        peer.socket().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self::around(Box::new(backend.with_offloads(ALL)), peer, None, vec![cpu])
    }

    /// A rig around any backend; `peer` is the wire if it is a socket.
    pub fn with(backend: Box<dyn Backend>, peer: SocketPeer) -> Self {
        Self::around(backend, peer, None, Vec::new())
    }

    fn around(
        backend: Box<dyn Backend>,
        peer: SocketPeer,
        poll: Option<Duration>,
        affinity: Vec<u16>,
    ) -> Self {
        let config = NetDeviceConfig { affinity, ..config("test", Some(MTU)) };
        Self::of(VirtioNet::new(config, vec![backend], Vec::new()).unwrap().with_poll(poll), peer)
    }

    /// A rig of that NIC.
    pub fn of(nic: VirtioNet, peer: SocketPeer) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let counters = nic.counters().remove(0);
        let handle = nic.handle();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let device = MmioTransport::new(Box::new(nic), memory.clone(), irq.try_clone().unwrap()).unwrap();
        let (rx, tx) =
            (MockRing::new(&memory, RX_RING, 256, false), MockRing::new(&memory, TX_RING, 256, false));
        let control = MockRing::new(&memory, CONTROL_RING, 64, false);
        Self {
            memory,
            device,
            irq,
            peer,
            counters,
            handle,
            rx,
            tx,
            control,
            features: 0,
            posted: vec![Vec::new(); 256],
            places: places(),
            tx_at: 0,
        }
    }

    /// A rig whose driver is up.
    pub fn started(features: u64) -> Self {
        let mut rig = Self::new();
        rig.start(features, 256);
        rig
    }

    pub fn mmio(&self) -> MockMmio<'_> {
        MockMmio::new(&self.device)
    }

    /// Resets, makes rings of `size`, negotiates, and is ready. No buffer is posted.
    pub fn start(&mut self, features: u64, size: u16) {
        self.mmio().reset();
        self.rx = MockRing::new(&self.memory, RX_RING, size, features & F_EVENT_IDX != 0);
        self.tx = MockRing::new(&self.memory, TX_RING, size, features & F_EVENT_IDX != 0);
        self.control = MockRing::new(&self.memory, CONTROL_RING, 64, features & F_EVENT_IDX != 0);
        self.features = features;
        self.places = places();
        let mmio = self.mmio();
        assert!(mmio.negotiate(features), "the device refuses {features:#x}");
        assert!(mmio.set_queue(RX, self.rx.setup()) && mmio.set_queue(TX, self.tx.setup()));
        assert!(features & F_CTRL_VQ == 0 || mmio.set_queue(CONTROL, self.control.setup()));
        mmio.start();
        assert!(!mmio.needs_reset(), "the device cannot start");
    }

    /// Resets the queue `index`, which is not ready then.
    pub fn reset_queue(&self, index: u32) {
        let mmio = self.mmio();
        mmio.write(QUEUE_SEL, index);
        mmio.write(QUEUE_RESET, 1);
        assert_eq!((mmio.read(QUEUE_READY), mmio.read(QUEUE_RESET)), (0, 0), "queue {index} is reset");
    }

    /// Sets the queue `index` up anew, with a ring of `size` that is empty.
    pub fn renew_queue(&mut self, index: u32, size: u16) {
        let (ring, base) = match index {
            RX => (&mut self.rx, RX_RING),
            TX => (&mut self.tx, TX_RING),
            _ => (&mut self.control, CONTROL_RING),
        };
        *ring = MockRing::new(&self.memory, base, size, self.features & F_EVENT_IDX != 0);
        let setup = *ring.setup();
        if index == RX {
            self.places = places();
        }
        assert!(self.mmio().set_queue(index, &setup), "queue {index} is ready");
    }

    /// Posts up to `count` receive chains of one buffer each, 4 KiB or less, and kicks.
    pub fn post(&mut self, count: usize, len: u32) {
        assert!(len <= 4096);
        for _ in 0..count.min(self.rx.free().into()) {
            let buffer = Buffer::writable(self.places.pop().unwrap(), len);
            let head = self.rx.add(&[buffer]).unwrap();
            self.posted[usize::from(head)] = vec![buffer];
        }
        self.kick_rx();
    }

    /// Posts one chain of these buffers.
    pub fn post_chain(&mut self, buffers: Vec<Buffer>, indirect: bool) {
        let head = match indirect {
            true => self.rx.add_indirect(TABLES + 0x800 * u64::from(self.rx.free() - 1), &buffers),
            false => self.rx.add(&buffers),
        };
        self.posted[usize::from(head.unwrap())] = buffers;
        self.kick_rx();
    }

    pub fn kick_rx(&mut self) {
        if self.rx.publish() {
            self.mmio().kick(RX);
        }
    }

    pub fn kick_tx(&mut self) {
        if self.tx.publish() {
            self.mmio().kick(TX);
        }
    }

    /// Adds a frame to the transmit ring, cut at `cuts`, and kicks; false if the ring is full.
    pub fn send(&mut self, frame: &[u8], cuts: &[usize], indirect: bool) -> bool {
        let len = (frame.len() + cuts.len()) as u64;
        if self.tx_at + len > TX_DATA_LEN {
            self.tx_at = 0;
        }
        let at = TX_DATA + self.tx_at;
        self.tx_at += len;
        let buffers = self.write_apart(frame, cuts, at);
        let table = TABLES + 0x8_0000 + 0x400 * u64::from(self.tx.free().saturating_sub(1));
        let head = if indirect { self.tx.add_indirect(table, &buffers) } else { self.tx.add(&buffers) };
        self.kick_tx();
        head.is_some()
    }

    /// Writes bytes into buffers that end at `cuts`, each a byte behind the one before: together they would be one.
    fn write_apart(&self, bytes: &[u8], cuts: &[usize], at: u64) -> Vec<Buffer> {
        let mut from = 0;
        let ends = cuts.iter().copied().chain([bytes.len()]);
        let buffer = |(index, end): (usize, usize)| {
            let piece = &bytes[std::mem::replace(&mut from, end)..end];
            let at = at + (end - piece.len() + index) as u64;
            self.memory.write_slice(piece, GuestAddress(at)).unwrap();
            Buffer::readable(at, piece.len() as u32)
        };
        ends.enumerate().map(buffer).collect()
    }

    /// Sends one command on the control queue, in buffers that end at `cuts`, and waits for the answer.
    pub fn command(&mut self, command: &[u8], cuts: &[usize]) -> u8 {
        self.memory.write_obj(0xaau8, GuestAddress(ANSWER)).unwrap();
        let mut buffers = self.write_apart(command, cuts, COMMAND);
        buffers.push(Buffer::writable(ANSWER, 1));
        let head = self.control.add(&buffers).unwrap();
        if self.control.publish() {
            self.mmio().kick(CONTROL);
        }
        let mut used = None;
        wait("the answer", || {
            used = self.control.reap();
            used.is_some()
        });
        assert_eq!(used, Some((head, 1)));
        self.memory.read_obj(GuestAddress(ANSWER)).unwrap()
    }

    /// Takes what the device has sent back.
    pub fn reap_tx(&mut self) -> usize {
        std::iter::from_fn(|| self.tx.reap()).inspect(|(_, len)| assert_eq!(*len, 0)).count()
    }

    /// The next frame from the receive ring, if there is one, with its header, and how many chains it took.
    pub fn receive(&mut self) -> Option<(Vec<u8>, u16)> {
        let mut frame = Vec::new();
        let (mut chains, mut want) = (0, 1);
        while chains < want {
            let Some((head, len)) = self.rx.reap() else {
                assert_eq!(chains, 0, "a frame was shown before all of it was");
                return None;
            };
            let mut left = len as usize;
            for buffer in std::mem::take(&mut self.posted[usize::from(head)]) {
                let mut bytes = vec![0; left.min(buffer.len as usize)];
                self.memory.read_slice(&mut bytes, GuestAddress(buffer.addr)).unwrap();
                left -= bytes.len();
                if (RX_DATA..RX_DATA + 256 * 4096).contains(&buffer.addr) {
                    self.places.push(buffer.addr);
                }
                frame.extend(bytes);
            }
            assert_eq!(left, 0, "more than the chain holds");
            if chains == 0 {
                want = u16::from_le_bytes([frame[10], frame[11]]);
                assert!(want > 0);
            }
            chains += 1;
        }
        Some((frame, chains))
    }

    /// Waits for the next received frame.
    pub fn received(&mut self) -> (Vec<u8>, u16) {
        let mut frame = None;
        wait("a frame", || {
            frame = self.receive();
            frame.is_some()
        });
        frame.unwrap()
    }

    /// A frame each way: the NIC works.
    pub fn check(&mut self) {
        let out = frame(100, 0xa5);
        assert!(self.send(&out, &[], false));
        assert_eq!(self.peer.recv().unwrap(), out);
        self.post(64, 2048);
        let into = frame(200, 0x5a);
        self.peer.send(&into).unwrap();
        assert_same(&self.received().0, &into);
    }

    pub fn dropped(&self) -> (u64, u64) {
        let Counters { tx_dropped, rx_dropped, .. } = &*self.counters;
        (tx_dropped.load(Ordering::Relaxed), rx_dropped.load(Ordering::Relaxed))
    }
}

/// A NIC of that name, whose threads run anywhere.
pub fn config(name: &str, mtu: Option<u16>) -> NetDeviceConfig {
    NetDeviceConfig { name: name.into(), mac: Mac::new(MAC).unwrap(), mtu, affinity: Vec::new() }
}

fn places() -> Vec<u64> {
    (0..256).map(|place| RX_DATA + 4096 * place).collect()
}

/// A frame of `len` bytes behind an empty header, of bytes that tell places and frames apart.
pub fn frame(len: usize, seed: u64) -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend((0..len as u64).map(|at| ((at * 31) ^ (at >> 8) ^ (seed * 131)) as u8));
    frame
}

/// Compares frames but for `num_buffers`.
#[track_caller]
pub fn assert_same(got: &[u8], sent: &[u8]) {
    assert_eq!(got.len(), sent.len());
    let differs = (0..got.len()).find(|at| !(10..12).contains(at) && got[*at] != sent[*at]);
    assert_eq!(differs, None, "byte differs");
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
