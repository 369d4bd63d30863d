//! A NIC that is paused and goes on: every frame is there once, and meanwhile nothing moves.

mod rig;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::net::{ActivePair, Handle, PairState, VirtioNet};
use devices::virtio::queue::QueueState;
use net::{Backend, HEADER_LEN, Iov, Offloads, Sent, SocketBackend, SocketPeer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use rig::*;

const PAIRS: usize = 3;
const OK: u8 = 0;
const RING: u16 = 64;
/// Frames each way of each pair.
const FRAMES: u32 = 6000;
const RX_DATA: u64 = 0x40_0000;
const TX_DATA: u64 = 0x80_0000;

/// A wire that, while it is shut, waits in `set_offloads`, and that can bring each frame straight back.
struct Wire {
    socket: SocketBackend,
    shut: Arc<AtomicBool>,
    waits: Arc<AtomicBool>,
    echo: Option<SocketPeer>,
}

impl Backend for Wire {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        let sent = self.socket.send(frame)?;
        if let Some(echo) = &self.echo {
            echo.send(&echo.recv()?)?;
        }
        Ok(sent)
    }
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        self.socket.recv(space)
    }
    fn offloads(&self) -> Offloads {
        self.socket.offloads()
    }
    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        while self.shut.load(Ordering::Relaxed) {
            self.waits.store(true, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
        self.socket.set_offloads(accepted)
    }
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.socket.set_enabled(enabled)
    }
}

/// One pair's driver.
struct Driver {
    memory: GuestMemoryMmap,
    pair: usize,
    rx: MockRing,
    tx: MockRing,
    /// By head, where a chain's bytes are.
    posted: [u64; RING as usize],
    sending: VecDeque<u64>,
    places: VecDeque<u64>,
    sent: u32,
    received: u32,
}

impl Driver {
    fn new(memory: &GuestMemoryMmap, pair: usize, event_idx: bool) -> Self {
        let ring = |number: usize| MockRing::new(memory, 0x1_0000 * (6 + number as u64), RING, event_idx);
        Self {
            memory: memory.clone(),
            pair,
            rx: ring(2 * pair),
            tx: ring(2 * pair + 1),
            posted: [0; RING as usize],
            sending: VecDeque::new(),
            places: (0..u64::from(RING)).collect(),
            sent: 0,
            received: 0,
        }
    }

    fn kick(&self, device: &MmioTransport, transmit: bool) {
        MockMmio::new(device).kick((2 * self.pair + usize::from(transmit)) as u32);
    }

    fn post(&mut self, device: &MmioTransport) {
        while self.rx.free() > 0 {
            let place = self.places.pop_front().expect("as many as descriptors");
            let at = RX_DATA + 0x4_0000 * self.pair as u64 + 2048 * place;
            let head = self.rx.add(&[Buffer::writable(at, 2048)]).unwrap();
            self.posted[usize::from(head)] = place;
        }
        if self.rx.publish() {
            self.kick(device, false);
        }
    }

    /// Takes what was received; each frame has the next number.
    fn reap(&mut self) {
        while let Some((head, len)) = self.rx.reap() {
            let place = self.posted[usize::from(head)];
            let at = RX_DATA + 0x4_0000 * self.pair as u64 + 2048 * place + HEADER_LEN as u64;
            let number: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
            assert_eq!(
                (number, len as usize),
                (self.received, HEADER_LEN + 60),
                "a frame is lost or doubled"
            );
            self.received += 1;
            self.places.push_back(place);
        }
        while self.tx.reap().is_some() {
            self.sending.pop_front();
        }
    }

    /// Sends the next frame; false if there is no room on the ring.
    fn send(&mut self, device: &MmioTransport) -> bool {
        if self.tx.free() == 0 {
            return false;
        }
        let at = TX_DATA + 0x4_0000 * self.pair as u64 + 2048 * u64::from(self.sent % u32::from(RING));
        self.memory.write_slice(&numbered(self.sent), GuestAddress(at)).unwrap();
        self.tx.add(&[Buffer::readable(at, (HEADER_LEN + 60) as u32)]).unwrap();
        self.sending.push_back(at);
        self.sent += 1;
        if self.tx.publish() {
            self.kick(device, true);
        }
        true
    }
}

fn numbered(number: u32) -> Vec<u8> {
    let mut bytes = frame(60, 0);
    bytes[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number(frame: &[u8]) -> u32 {
    u32::from_le_bytes(frame[HEADER_LEN..HEADER_LEN + 4].try_into().unwrap())
}

struct Nic {
    memory: GuestMemoryMmap,
    device: MmioTransport,
    irq: EventFd,
    handle: Handle,
    peers: Vec<SocketPeer>,
    drivers: Vec<Driver>,
    control: MockRing,
    shut: Arc<AtomicBool>,
    waits: Arc<AtomicBool>,
}

impl Nic {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(echo: bool) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let (shut, waits) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (mut backends, mut peers): (Vec<Box<dyn Backend>>, _) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            let (socket, peer) = SocketBackend::pair().unwrap();
            peer.socket().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let (echo, peer) = if echo { (Some(peer), None) } else { (None, Some(peer)) };
            let shut = if pair == 0 { Arc::clone(&shut) } else { Arc::default() };
            let socket = socket.with_offloads(ALL);
            backends.push(Box::new(Wire { socket, shut, waits: Arc::clone(&waits), echo }));
            peers.extend(peer);
        }
        let nic = VirtioNet::new(config("pause", None), backends, Vec::new()).unwrap();
        let (handle, irq) = (nic.handle(), EventFd::new(EFD_NONBLOCK).unwrap());
        let device = MmioTransport::new(Box::new(nic), memory.clone(), irq.try_clone().unwrap()).unwrap();
        let control = MockRing::new(&memory, 0x3_0000, 64, true);
        Self { memory, device, irq, handle, peers, drivers: Vec::new(), control, shut, waits }
    }

    /// Starts a driver that has posted buffers on every pair.
    fn start(&mut self, features: u64) {
        let (memory, event_idx) = (&self.memory, features & devices::virtio::queue::F_EVENT_IDX != 0);
        self.drivers = (0..PAIRS).map(|pair| Driver::new(memory, pair, event_idx)).collect();
        self.control = MockRing::new(memory, 0x3_0000, 64, event_idx);
        let mmio = MockMmio::new(&self.device);
        assert!(mmio.negotiate(features));
        for driver in &self.drivers {
            let index = 2 * driver.pair as u32;
            assert!(mmio.set_queue(index, driver.rx.setup()) && mmio.set_queue(index + 1, driver.tx.setup()));
        }
        assert!(mmio.set_queue(2 * PAIRS as u32, self.control.setup()));
        mmio.start();
        assert!(!mmio.needs_reset(), "the device cannot start");
        self.drivers.iter_mut().for_each(|driver| driver.post(&self.device));
    }

    fn started() -> Self {
        let mut this = Self::new();
        this.start(COMMANDS | F_MQ);
        assert_eq!(this.command(&[4, 0, PAIRS as u8, 0]), OK);
        this
    }

    fn give_command(&mut self, command: &[u8]) {
        self.memory.write_slice(command, GuestAddress(COMMAND)).unwrap();
        let buffers = [Buffer::readable(COMMAND, command.len() as u32), Buffer::writable(ANSWER, 1)];
        self.control.add(&buffers).unwrap();
        if self.control.publish() {
            MockMmio::new(&self.device).kick(2 * PAIRS as u32);
        }
    }

    fn answer(&mut self) -> u8 {
        wait("the answer", || self.control.reap().is_some());
        self.memory.read_obj(GuestAddress(ANSWER)).unwrap()
    }

    fn command(&mut self, command: &[u8]) -> u8 {
        self.give_command(command);
        self.answer()
    }

    /// A frame each way on every pair: the NIC works.
    fn check(&mut self) {
        for (driver, peer) in self.drivers.iter_mut().zip(&self.peers) {
            peer.send(&numbered(driver.received)).unwrap();
            assert!(driver.send(&self.device));
            let (sent, received) = (driver.sent - 1, driver.received + 1);
            assert_eq!(number(&peer.recv().unwrap()), sent);
            wait("a frame", || {
                driver.reap();
                driver.received == received
            });
            driver.post(&self.device);
        }
    }

    fn calls(&self) -> u64 {
        self.handle.counters().iter().map(|counters| counters.calls.load(Ordering::Relaxed)).sum()
    }
}

fn active(state: &PairState) -> ActivePair {
    match state {
        PairState::Active(pair) => *pair,
        state => panic!("{state:?}"),
    }
}

fn enabled(states: &[PairState]) -> Vec<bool> {
    states.iter().map(|state| active(state).enabled).collect()
}

#[test]
fn every_frame_is_there_once_however_often_it_is_paused() {
    for features in [COMMANDS | F_MQ, (COMMANDS | F_MQ) & !devices::virtio::queue::F_EVENT_IDX] {
        let mut nic = Nic::new();
        nic.start(features);
        assert_eq!(nic.command(&[4, 0, PAIRS as u8, 0]), OK);
        let done = AtomicUsize::new(0);
        let Nic { device, handle, peers, drivers, .. } = &mut nic;
        let device = &*device;
        let mut pauses = 0;
        thread::scope(|scope| {
            let done = &done;
            for (driver, peer) in drivers.iter_mut().zip(&*peers) {
                scope.spawn(move || {
                    wait("all frames", || {
                        driver.reap();
                        driver.post(device);
                        while driver.sent < FRAMES && driver.send(device) {}
                        driver.received == FRAMES && driver.sending.is_empty()
                    });
                    done.fetch_add(1, Ordering::Relaxed);
                });
                scope.spawn(move || (0..FRAMES).for_each(|at| peer.send(&numbered(at)).unwrap()));
                scope.spawn(move || {
                    (0..FRAMES).for_each(|at| assert_eq!(number(&peer.recv().unwrap()), at, "sent"));
                });
            }
            let mut random = 1u32;
            let mut below = |most: u32| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                Duration::from_micros(u64::from((random >> 16) % most))
            };
            while done.load(Ordering::Relaxed) < PAIRS && !thread::panicking() {
                let states = handle.pause().unwrap();
                // What is used is published: the driver can see as much as the device says.
                let before: Vec<_> = states.iter().map(active).collect();
                thread::sleep(below(300));
                let after: Vec<_> = handle.pause().unwrap().iter().map(active).collect();
                assert_eq!(before, after, "positions move while it is paused");
                handle.resume().unwrap();
                pauses += 1;
                thread::sleep(below(1000));
            }
        });
        assert!(pauses > 5, "only {pauses} pauses");
        let states = nic.handle.pause().unwrap();
        for (pair, state) in states.iter().map(active).enumerate() {
            let used = |frames: u32| QueueState { next_avail: frames as u16, next_used: frames as u16 };
            assert_eq!((state.transmit, state.receive), (used(FRAMES), used(FRAMES)), "pair {pair}");
            assert_eq!((state.control.is_some(), state.enabled), (pair == 0, true));
        }
    }
}

#[test]
fn a_paused_nic_touches_nothing_and_its_threads_sleep() {
    let mut nic = Nic::started();
    nic.check();
    let states = nic.handle.pause().unwrap();
    let calls = nic.calls();
    let Nic { device, peers, drivers, .. } = &mut nic;
    for (driver, peer) in drivers.iter_mut().zip(&*peers) {
        // What it sent for the check may have come back only with the pause.
        driver.reap();
        (0..5).for_each(|at| peer.send(&numbered(driver.received + at)).unwrap());
        (0..5).for_each(|_| assert!(driver.send(device)));
    }
    thread::sleep(Duration::from_millis(20));
    assert_eq!(nic.handle.pause().unwrap(), states);
    assert_eq!(nic.calls(), calls, "a thread wakes up");
    for (driver, peer) in nic.drivers.iter_mut().zip(&nic.peers) {
        assert_eq!((driver.rx.pending(), driver.tx.pending()), (0, 0));
        peer.socket().set_nonblocking(true).unwrap();
        assert_eq!(peer.recv().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        peer.socket().set_nonblocking(false).unwrap();
    }
    nic.handle.resume().unwrap();
    for (driver, peer) in nic.drivers.iter_mut().zip(&nic.peers) {
        (0..5).for_each(|at| assert_eq!(number(&peer.recv().unwrap()), driver.sent - 5 + at));
        let received = driver.received + 5;
        wait("the frames", || {
            driver.reap();
            driver.received == received
        });
    }
    nic.check();
}

#[test]
fn a_nic_is_reset_and_started_while_it_is_paused() {
    let mut nic = Nic::new();
    assert_eq!(nic.handle.pause().unwrap(), [PairState::Idle; PAIRS]);
    // It was paused before its driver came.
    nic.start(COMMANDS | F_MQ);
    for driver in &mut nic.drivers {
        driver.send(&nic.device);
    }
    thread::sleep(Duration::from_millis(10));
    assert!(nic.drivers.iter().all(|driver| driver.tx.pending() == 0), "a paused NIC sends");
    let states = nic.handle.pause().unwrap();
    assert!(states.iter().map(active).all(|pair| pair.receive == QueueState::default()));
    assert_eq!(enabled(&states), [true, false, false]);
    nic.handle.resume().unwrap();
    for peer in &nic.peers {
        assert_eq!(number(&peer.recv().unwrap()), 0);
    }
    nic.handle.pause().unwrap();
    nic.device.reset();
    assert_eq!(nic.handle.pause().unwrap(), [PairState::Idle; PAIRS]);
    nic.start(COMMANDS | F_MQ);
    nic.handle.resume().unwrap();
    assert_eq!(nic.command(&[4, 0, PAIRS as u8, 0]), OK);
    nic.check();
}

#[test]
fn a_command_waits_for_the_nic_and_the_nic_for_a_command() {
    let mut nic = Nic::started();
    nic.handle.pause().unwrap();
    nic.give_command(&[4, 0, 1, 0]);
    thread::sleep(Duration::from_millis(10));
    assert_eq!(nic.control.pending(), 0, "a paused NIC takes a command");
    nic.handle.resume().unwrap();
    assert_eq!(nic.answer(), OK);
    let states = nic.handle.pause().unwrap();
    assert_eq!(enabled(&states), [true, false, false]);
    nic.handle.resume().unwrap();

    // Those that are in hand are finished, on every pair, and the states are those after them.
    assert_eq!(nic.command(&[4, 0, PAIRS as u8, 0]), OK);
    nic.shut.store(true, Ordering::Relaxed);
    nic.give_command(&offloads_set(F_GUEST_CSUM));
    wait("the first pair to be in the middle of the command", || nic.waits.load(Ordering::Relaxed));
    nic.give_command(&[4, 0, 1, 0]);
    let states = thread::scope(|scope| {
        let pause = scope.spawn(|| nic.handle.pause().unwrap());
        thread::sleep(Duration::from_millis(10));
        assert!(!pause.is_finished(), "it is paused in the middle of a command");
        nic.shut.store(false, Ordering::Relaxed);
        pause.join().unwrap()
    });
    assert_eq!(nic.control.pending(), 2, "the commands are not answered");
    assert_eq!(enabled(&states), [true, false, false]);
    let position = active(&states[0]).control.unwrap();
    assert_eq!((position.next_avail, position.next_used), (5, 5));
    let want = Some(Offloads { csum: true, ..Offloads::default() });
    assert!(nic.peers.iter().all(|peer| peer.accepted() == want), "a pair was paused before the command");
    assert_eq!(nic.answer(), OK);
    nic.handle.resume().unwrap();
}

#[test]
fn a_broken_pair_stays_broken() {
    let mut nic = Nic::started();
    nic.drivers[1].tx.lie_available(9999);
    nic.drivers[1].tx.publish();
    nic.drivers[1].kick(&nic.device, true);
    wait("the pair to stop", || MockMmio::new(&nic.device).needs_reset());
    for _ in 0..2 {
        let states = nic.handle.pause().unwrap();
        assert_eq!(states[1], PairState::Ended);
        assert!(matches!((states[0], states[2]), (PairState::Active(_), PairState::Active(_))));
        nic.handle.resume().unwrap();
    }
    nic.device.reset();
    nic.start(COMMANDS | F_MQ);
    assert_eq!(nic.command(&[4, 0, PAIRS as u8, 0]), OK);
    nic.check();
}

#[test]
fn an_interrupt_that_is_owed_comes_before_the_pause() {
    // A pause that comes after it was due proves nothing, and some do.
    for _ in 0..50 {
        let mut nic = Nic::with(true);
        nic.start(COMMANDS | F_MQ);
        nic.drivers[0].rx.want_interrupts(true);
        nic.drivers[0].tx.want_interrupts(true);
        assert!(nic.drivers[0].send(&nic.device));
        while nic.drivers[0].rx.pending() == 0 {
            std::hint::spin_loop();
        }
        nic.handle.pause().unwrap();
        assert_eq!(nic.irq.read().unwrap(), 2, "one for the answer, and one for what was sent");
    }
}

#[test]
fn a_handle_whose_device_is_dropped_pauses_nothing() {
    let Nic { device, handle, .. } = Nic::started();
    drop(device);
    for error in [handle.pause().map(drop).unwrap_err(), handle.resume().unwrap_err()] {
        assert_eq!(error.to_string(), "the thread pause-0 has ended");
    }
}
