//! A socket device between a mock driver and programs of this process: the whole of it without root, without KVM.
#![allow(unreachable_pub)]

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::virtio::DeviceThreads;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use devices::virtio::vsock::{HostEnd, HostPorts, VirtioVsock};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use crate::packet::*;

pub const NO_RECEIVE: u32 = 1;
pub const NO_SEND: u32 = 2;

pub const MEMORY: usize = 8 << 20;
const RX_RING: u64 = 0x1000;
const TX_RING: u64 = 0x4000;
const EVENT_RING: u64 = 0x8000;
/// Places of the rings' buffers, by head; 128 each.
const RX_DATA: u64 = 0x10_0000;
const TX_DATA: u64 = 0x20_0000;
const RX_PLACE: u64 = 4 << 10;
const TX_PLACE: u64 = 8 << 10;
pub const SIZE: u16 = 128;
pub const FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;
/// How long a test waits for what is to come.
pub const LONG: Duration = Duration::from_secs(20);
/// And for what is not.
pub const SHORT: Duration = Duration::from_millis(50);

type Answer = (u64, Option<OwnedFd>);

/// The host's ports: those of `open` answer, each with a stream whose other end the test gets.
#[derive(Clone)]
pub struct Ports {
    pub open: Arc<Mutex<BTreeSet<u32>>>,
    /// While it is set, answers are kept back.
    pub silent: Arc<Mutex<bool>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    signal: Arc<(UnixStream, UnixStream)>,
    came: Sender<UnixStream>,
}

impl HostPorts for Ports {
    fn fd(&self) -> BorrowedFd<'_> {
        self.signal.0.as_fd()
    }

    fn connect(&mut self, id: u64, port: u32) -> io::Result<()> {
        if *self.silent.lock().unwrap() {
            return Ok(());
        }
        let stream = self.open.lock().unwrap().contains(&port).then(|| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.set_read_timeout(Some(LONG)).unwrap();
            theirs.set_write_timeout(Some(LONG)).unwrap();
            self.came.send(theirs).unwrap();
            OwnedFd::from(ours)
        });
        self.answers.lock().unwrap().push_back((id, stream));
        (&self.signal.1).write_all(b"!")
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let _ = (&self.signal.0).read(&mut [0; 64]);
        self.answers.lock().unwrap().pop_front().ok_or(io::ErrorKind::WouldBlock.into())
    }
}

pub struct Rig {
    pub memory: GuestMemoryMmap,
    pub bus: MmioTransport,
    pub threads: Box<dyn DeviceThreads>,
    pub irq: EventFd,
    pub rx: MockRing,
    pub tx: MockRing,
    pub ports: Ports,
    came: Receiver<UnixStream>,
    pub socket: PathBuf,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Rig {
    /// Without a driver.
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("wirevm-vsock-{}-{number}", std::process::id()));
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let signal = UnixStream::pair().unwrap();
        signal.0.set_nonblocking(true).unwrap();
        let (sender, came) = channel();
        let ports = Ports {
            open: Arc::default(),
            silent: Arc::default(),
            answers: Arc::default(),
            signal: Arc::new(signal),
            came: sender,
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let host = HostEnd { listener: listener.into(), ports: Box::new(ports.clone()) };
        let device = VirtioVsock::new(host).unwrap();
        let threads = device.threads();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let bus = MmioTransport::new(Box::new(device), memory.clone(), irq.try_clone().unwrap()).unwrap();
        let (rx, tx) =
            (MockRing::new(&memory, RX_RING, SIZE, true), MockRing::new(&memory, TX_RING, SIZE, true));
        Self { memory, bus, threads, irq, rx, tx, ports, came, socket }
    }

    /// With a driver that has posted no room yet.
    pub fn started() -> Self {
        let mut rig = Self::new();
        rig.start();
        rig
    }

    pub fn start(&mut self) {
        self.mmio().reset();
        self.rx = MockRing::new(&self.memory, RX_RING, SIZE, true);
        self.tx = MockRing::new(&self.memory, TX_RING, SIZE, true);
        let events = MockRing::new(&self.memory, EVENT_RING, 8, true);
        let mmio = self.mmio();
        assert!(mmio.negotiate(FEATURES));
        assert!(mmio.set_queue(0, self.rx.setup()) && mmio.set_queue(1, self.tx.setup()));
        assert!(mmio.set_queue(2, events.setup()));
        mmio.start();
        assert!(!mmio.needs_reset());
    }

    pub fn mmio(&self) -> MockMmio<'_> {
        MockMmio::new(&self.bus)
    }

    /// Posts room for so many packets of 4 KiB with their header.
    pub fn post(&mut self, packets: u16) {
        for _ in 0..packets {
            // The place of the descriptor that is next: the free ones stay in order.
            let head = self.rx.add(&[Buffer::writable(0, 0)]).unwrap();
            let buffer = Buffer::writable(RX_DATA + RX_PLACE * u64::from(head), RX_PLACE as u32);
            self.rx.lie_descriptor(head, buffer, 2, 0);
        }
        if self.rx.publish() {
            self.mmio().kick(0);
        }
    }

    /// Sends a packet.
    pub fn send(&mut self, packet: Packet, payload: &[u8]) {
        self.send_as(&Packet { len: payload.len() as u32, ..packet }.bytes(), payload);
    }

    /// Sends these bytes, in two buffers.
    pub fn send_as(&mut self, header: &[u8], payload: &[u8]) {
        let until = Instant::now() + LONG;
        while self.tx.free() < 2 {
            while self.tx.reap().is_some() {}
            assert!(Instant::now() < until, "the device takes nothing");
            std::thread::yield_now();
        }
        let empty = [Buffer::readable(0, 0); 2];
        let head = self.tx.add(if payload.is_empty() { &empty[..1] } else { &empty }).unwrap();
        let at = TX_DATA + TX_PLACE * u64::from(head);
        self.memory.write_slice(header, GuestAddress(at)).unwrap();
        let first = Buffer::readable(at, header.len() as u32);
        if payload.is_empty() {
            self.tx.lie_descriptor(head, first, 0, 0);
        } else {
            let at = at + header.len() as u64;
            self.memory.write_slice(payload, GuestAddress(at)).unwrap();
            // Its second descriptor is where the first says.
            let table = self.tx.setup().desc_table + 16 * u64::from(head);
            let next: u16 = self.memory.read_obj(GuestAddress(table + 14)).unwrap();
            self.tx.lie_descriptor(head, first, 1, next);
            self.tx.lie_descriptor(next, Buffer::readable(at, payload.len() as u32), 0, 0);
        }
        self.show_sent();
    }

    /// Adds a packet without a payload, which the device is not shown yet.
    pub fn send_later(&mut self, packet: Packet) {
        let head = self.tx.add(&[Buffer::readable(0, 0)]).unwrap();
        let at = TX_DATA + TX_PLACE * u64::from(head);
        self.memory.write_slice(&packet.bytes(), GuestAddress(at)).unwrap();
        self.tx.lie_descriptor(head, Buffer::readable(at, HEADER as u32), 0, 0);
    }

    /// Shows the device all that was added.
    pub fn show_sent(&mut self) {
        if self.tx.publish() {
            self.mmio().kick(1);
        }
    }

    /// Waits until the device has given back all that was sent.
    pub fn expect_taken(&mut self) {
        let until = Instant::now() + LONG;
        while self.tx.free() < SIZE {
            while self.tx.reap().is_some() {}
            assert!(Instant::now() < until, "the device takes nothing");
            std::thread::yield_now();
        }
    }

    /// The next packet for the guest, if one comes in that time; room for another is posted.
    pub fn receive_within(&mut self, time: Duration) -> Option<(Packet, Vec<u8>)> {
        let until = Instant::now() + time;
        loop {
            if let Some((head, len)) = self.rx.reap() {
                let mut bytes = vec![0; len as usize];
                let at = RX_DATA + RX_PLACE * u64::from(head);
                self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
                self.post(1);
                let packet = Packet::parse(&bytes);
                assert_eq!((packet.src_cid, packet.dst_cid, packet.kind), (2, 3, 1));
                assert_eq!(packet.len as usize, bytes.len() - HEADER);
                return Some((packet, bytes.split_off(HEADER)));
            }
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    #[track_caller]
    pub fn receive(&mut self) -> (Packet, Vec<u8>) {
        self.receive_within(LONG).expect("the device says nothing")
    }

    /// The next packet, which is of this kind and empty.
    #[track_caller]
    pub fn expect(&mut self, op: u16) -> Packet {
        let (packet, payload) = self.receive();
        assert_eq!((packet.op, payload.len()), (op, 0), "{packet:?}");
        packet
    }

    #[track_caller]
    pub fn expect_silence(&mut self) {
        let said = self.receive_within(SHORT);
        assert_eq!(said, None);
    }

    /// A program that has asked for a port of the guest's.
    pub fn program(&self, line: &str) -> UnixStream {
        let mut program = UnixStream::connect(&self.socket).unwrap();
        program.set_read_timeout(Some(LONG)).unwrap();
        program.set_write_timeout(Some(LONG)).unwrap();
        // One that is refused may hear that first.
        let _ = program.write_all(line.as_bytes());
        program
    }

    /// A program that is connected to the guest's port 1024, and the port of its own end. The guest gives 64 KiB of credit.
    pub fn connected(&mut self) -> (UnixStream, u32) {
        let mut program = self.program("CONNECT 1024\n");
        let request = self.expect(REQUEST);
        assert_eq!(request.dst_port, 1024);
        self.send(Packet::new(RESPONSE, 1024, request.src_port), b"");
        let line = format!("OK {}\n", request.src_port);
        let mut said = vec![0; line.len()];
        program.read_exact(&mut said).unwrap();
        assert_eq!(said, line.as_bytes());
        (program, request.src_port)
    }

    /// The program's end of a stream to an open port of the host.
    pub fn program_that_came(&self) -> UnixStream {
        self.came.recv_timeout(LONG).unwrap()
    }

    /// A stream of the guest's port `guest` to the host's port 53, and the program there.
    pub fn requested(&mut self, guest: u32) -> (UnixStream, Packet) {
        self.ports.open.lock().unwrap().insert(53);
        self.send(Packet::new(REQUEST, guest, 53), b"");
        let program = self.program_that_came();
        let response = self.expect(RESPONSE);
        assert_eq!((response.src_port, response.dst_port), (53, guest));
        (program, response)
    }
}

/// Whether the program finds its connection closed, with nothing said.
#[track_caller]
pub fn expect_end(program: &mut UnixStream) {
    match program.read(&mut [0; 1]) {
        Ok(0) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("it is not closed: {other:?}"),
    }
}

/// `len` bytes that look like no others.
pub fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(byte).collect()
}

impl Rig {
    /// As [`connected`](Self::connected), with a packet of the device's that tells its credit.
    pub fn connected_with(&mut self) -> (UnixStream, Packet) {
        let (program, host) = self.connected();
        self.send(Packet::new(CREDIT_REQUEST, 1024, host), b"");
        let update = self.expect(CREDIT_UPDATE);
        (program, update)
    }

    /// The next packet that asks for no credit.
    pub fn receive_after_requests(&mut self) -> (Packet, Vec<u8>) {
        loop {
            let (packet, bytes) = self.receive();
            if packet.op != CREDIT_REQUEST {
                return (packet, bytes);
            }
        }
    }

    #[track_caller]
    pub fn expect_after_requests(&mut self, op: u16) -> Packet {
        let (packet, _) = self.receive_after_requests();
        assert_eq!(packet.op, op, "{packet:?}");
        packet
    }

    /// The guest hears that a program is gone: at once, or that it sends no more first.
    #[track_caller]
    pub fn expect_gone(&mut self) {
        while self.expect_after_requests(SHUTDOWN).flags != NO_SEND | NO_RECEIVE {}
    }
}
