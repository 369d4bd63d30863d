//! What the frames of a pair have in common: one store of the used index and one interrupt for a batch, and kicks only before
//! a sleep.

mod rig;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use devices::virtio::mock::{Buffer, MockRing};
use devices::virtio::net::queue_pair::{Counters, NicRate, PairParts, QueuePair, ReceiveSpace};
use devices::virtio::queue::{F_EVENT_IDX, VirtQueue};
use devices::virtio::{ActiveQueue, Interrupt};
use net::{Backend, Iov, Mac, Offloads, RxFilter, Sent, SocketBackend, SocketPeer};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use rig::*;

const FEATURES: [u64; 2] = [PLAIN, PLAIN | F_EVENT_IDX];
/// Two batches and a part of one.
const FRAMES: u16 = 150;
const BATCHES: u64 = 3;
/// Longer than a busy machine keeps a thread waiting.
const POLL: Duration = Duration::from_millis(500);
/// After which a driver that did not look at what was sent is interrupted, and a bit.
const PATIENCE: Duration = Duration::from_millis(2);
const DATA: u64 = 0x40_0000;

/// Interrupts, counted.
struct Irq(EventFd);

impl Interrupt for Irq {
    fn queue(&self, _: u16) -> io::Result<()> {
        self.0.write(1)
    }
    fn config(&self) -> io::Result<()> {
        Ok(())
    }
    fn needs_reset(&self) -> io::Result<()> {
        panic!("the driver broke nothing");
    }
}

/// A pair without its thread, so that a test says when it does what.
struct Bench {
    pair: QueuePair,
    rx: MockRing,
    tx: MockRing,
    peer: SocketPeer,
    irq: EventFd,
    counters: Arc<Counters>,
}

impl Bench {
    fn new(features: u64) -> Self {
        let (backend, peer) = SocketBackend::pair().unwrap();
        Self::with(features, Box::new(backend), peer)
    }

    fn with(features: u64, backend: Box<dyn Backend>, peer: SocketPeer) -> Self {
        Self::held_to(None, features, backend, peer)
    }

    fn held_to(rate: Option<NicRate>, features: u64, backend: Box<dyn Backend>, peer: SocketPeer) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        peer.socket().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        memory.write_slice(&frame(60, 1), GuestAddress(DATA)).unwrap();
        let ring = |base| MockRing::new(&memory, base, 256, features & F_EVENT_IDX != 0);
        let (rx, tx) = (ring(0x1_0000), ring(0x2_0000));
        let queue = |index, ring: &MockRing| ActiveQueue {
            index,
            ring: VirtQueue::new(ring.setup(), features, &memory).unwrap(),
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        };
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let counters = Arc::<Counters>::default();
        let pair = QueuePair::new(PairParts {
            name: "test".into(),
            memory: memory.clone(),
            accepted: features,
            interrupt: Arc::new(Irq(irq.try_clone().unwrap())),
            rx: queue(0, &rx),
            tx: queue(1, &tx),
            backend,
            space: ReceiveSpace::new(features, None),
            carrier: None,
            control: None,
            enabled: true,
            offloads: Offloads::default(),
            filter: RxFilter::new(Mac::random().unwrap()),
            poll: None,
            rate: rate.map(Arc::new),
            counters: Arc::clone(&counters),
            broken: Arc::default(),
        });
        Self { pair, rx, tx, peer, irq, counters }
    }

    /// Adds a frame to send; whether the device wants a kick for it.
    fn add(&mut self) -> bool {
        self.tx.add(&[Buffer::readable(DATA, 72)]).unwrap();
        self.tx.publish()
    }

    fn interrupts(&self) -> u64 {
        self.irq.read().unwrap_or(0)
    }
}

#[test]
fn a_batch_is_shown_by_one_store_and_one_interrupt() {
    for features in FEATURES {
        let mut bench = Bench::new(features);
        // A driver without event indices is interrupted at each store, so that these are counted.
        let batches = if features & F_EVENT_IDX == 0 { BATCHES } else { 1 };
        (0..FRAMES).for_each(|_| assert!(bench.tx.add(&[Buffer::readable(DATA, 72)]).is_some()));
        bench.tx.publish();
        bench.tx.want_interrupts(true);
        bench.pair.process();
        assert_eq!((bench.tx.pending(), bench.interrupts()), (FRAMES, batches), "sent");

        let room = |at: u16| Buffer::writable(DATA + 2048 * u64::from(at), 2048);
        (0..FRAMES).for_each(|at| assert!(bench.rx.add(&[room(at)]).is_some()));
        bench.rx.publish();
        bench.rx.want_interrupts(true);
        (0..FRAMES).for_each(|_| bench.peer.send(&frame(60, 2)).unwrap());
        bench.pair.wake();
        bench.pair.process();
        assert_eq!((bench.rx.pending(), bench.interrupts()), (FRAMES, batches), "received");
        let calls = bench.counters.calls.load(Ordering::Relaxed);
        assert_eq!(calls, 2 * (u64::from(FRAMES) + batches), "one for each frame and each interrupt");
    }
}

/// A wire that takes every frame, and always has one as large as there can be.
struct Endless(SocketBackend);

impl Backend for Endless {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
    fn send(&mut self, _: &Iov<'_>) -> io::Result<Sent> {
        Ok(Sent::Gone)
    }
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        Ok(space.len())
    }
    fn offloads(&self) -> Offloads {
        self.0.offloads()
    }
    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.0.set_offloads(accepted)
    }
}

#[test]
fn a_burst_of_large_frames_is_a_mebibyte_in_each_direction() {
    const LARGE: u32 = 12 + 65536;
    let (backend, peer) = SocketBackend::pair().unwrap();
    let mut bench = Bench::with(PLAIN, Box::new(Endless(backend)), peer);
    for _ in 0..100 {
        bench.tx.add(&[Buffer::readable(DATA, LARGE)]).unwrap();
        bench.rx.add(&[Buffer::writable(DATA, LARGE)]).unwrap();
    }
    bench.tx.publish();
    bench.rx.publish();
    for turn in 1..=6 {
        assert!(bench.pair.process() && bench.pair.has_work());
        assert_eq!((bench.tx.pending(), bench.rx.pending()), (16 * turn, 16 * turn));
    }
}

#[test]
fn a_kick_is_asked_for_before_a_sleep_and_not_before() {
    for features in FEATURES {
        let mut bench = Bench::new(features);
        bench.add();
        assert!(bench.pair.process());
        // Without a kick the next frames are found as well: by a look.
        for _ in 0..3 {
            assert!(!bench.add(), "a kick is asked for though the thread is awake");
            assert!(bench.pair.process() && !bench.pair.has_work());
        }
        assert!(!bench.pair.process(), "there is nothing");
        bench.pair.arm();
        assert!(!bench.pair.has_work());
        assert!(bench.add(), "no kick is asked for, and the thread sleeps");
        bench.pair.wake();
        bench.pair.process();
        // What came between the last look and the wish is not slept on.
        assert!(!bench.add());
        bench.pair.arm();
        assert!(bench.pair.has_work());
        bench.pair.process();
        (0..6).for_each(|_| assert_eq!(bench.peer.recv().unwrap().len(), 72));
    }
}

#[test]
fn a_thread_that_looks_about_needs_no_kick_and_then_asks_for_one() {
    for features in FEATURES {
        let mut rig = Rig::polling(POLL);
        rig.start(features, 256);
        assert!(rig.send(&frame(60, 1), &[], false));
        rig.peer.recv().unwrap();
        thread::sleep(Duration::from_millis(20));
        for _ in 0..50 {
            let frame = frame(60, 3);
            rig.memory.write_slice(&frame, GuestAddress(CHAIN_DATA)).unwrap();
            rig.tx.add(&[Buffer::readable(CHAIN_DATA, frame.len() as u32)]).unwrap();
            assert!(!rig.tx.publish(), "a kick is asked for");
            assert_eq!(rig.peer.recv().unwrap(), frame);
        }
        // What the host brings is found, too.
        rig.post(8, 2048);
        rig.peer.send(&frame(60, 4)).unwrap();
        rig.received();
        // It ends: the thread sleeps, and takes no processor.
        thread::sleep(2 * POLL);
        let calls = rig.counters.calls.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(rig.counters.calls.load(Ordering::Relaxed), calls, "it does not sleep");
        rig.tx.add(&[Buffer::readable(CHAIN_DATA, 72)]).unwrap();
        assert!(rig.tx.publish(), "it sleeps, and asks for no kick");
    }
}

/// A pair that has sent one frame and received its answer, and a driver that wants an interrupt for each, and had one.
fn answered(features: u64) -> Bench {
    let mut bench = Bench::new(features);
    let room = |at: u64| Buffer::writable(DATA + 2048 * (1 + at), 2048);
    (0..8).for_each(|at| assert!(bench.rx.add(&[room(at)]).is_some()));
    bench.rx.publish();
    // From here on both directions wait.
    bench.pair.process();
    bench.tx.want_interrupts(true);
    bench.rx.want_interrupts(true);
    bench.add();
    // As the host answers while the frame is being sent; no event has told of it yet.
    bench.peer.send(&frame(60, 2)).unwrap();
    bench.pair.process();
    assert_eq!((bench.rx.pending(), bench.tx.pending()), (1, 1), "both are shown");
    assert_eq!(bench.interrupts(), 1, "one interrupt for both");
    bench
}

#[test]
fn what_is_sent_and_what_comes_back_take_one_interrupt() {
    for features in FEATURES {
        let mut bench = answered(features);
        bench.rx.reap();
        bench.tx.reap();
        // The wish of a driver without event indices covers all that it was shown; so it has none while it looks.
        bench.tx.want_interrupts(features & F_EVENT_IDX != 0);
        thread::sleep(PATIENCE);
        bench.pair.process();
        assert_eq!(bench.interrupts(), 0, "it has looked");

        // With no answer there is nothing to wait for.
        bench.tx.want_interrupts(true);
        bench.add();
        bench.pair.process();
        assert_eq!(bench.interrupts(), 1);
    }
}

#[test]
fn the_answer_for_a_driver_that_polls_needs_no_event_either() {
    for features in FEATURES {
        let mut bench = Bench::new(features);
        (0..8).for_each(|at| {
            let room = Buffer::writable(DATA + 2048 * (1 + at), 2048);
            assert!(bench.rx.add(&[room]).is_some());
        });
        bench.rx.publish();
        bench.pair.process();
        bench.tx.want_interrupts(false);
        bench.rx.want_interrupts(false);
        for answer in 1..=4 {
            bench.add();
            bench.peer.send(&frame(60, 2)).unwrap();
            bench.pair.process();
            assert_eq!((bench.rx.pending(), bench.tx.pending()), (answer, answer));
        }
        assert_eq!(bench.interrupts(), 0);
    }
}

/// To look for one is to wait for tokens where there are none, for a frame that may not be there.
#[test]
fn under_a_rate_no_answer_is_asked_for() {
    let (backend, peer) = SocketBackend::pair().unwrap();
    let rate = NicRate::new(&"rate=1G".parse().unwrap(), 1);
    let mut bench = Bench::held_to(rate, PLAIN, Box::new(backend), peer);
    bench.rx.add(&[Buffer::writable(DATA + 2048, 2048)]).unwrap();
    bench.rx.publish();
    bench.pair.process();
    bench.tx.want_interrupts(false);
    let before = bench.counters.calls.load(Ordering::Relaxed);
    bench.add();
    bench.pair.process();
    assert_eq!(bench.counters.calls.load(Ordering::Relaxed) - before, 1, "the frame's own");
}

/// What costs a wake-up while both sleep comes without one, where each waits for the other.
#[test]
fn a_thread_that_is_woken_for_each_frame_looks_about_by_itself() {
    // The scheduler likes to have who wakes and who is woken on one processor, where there is nothing to look for.
    let all = sched_getaffinity(None).unwrap();
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu));
    let (Some(driver), Some(own)) = (cpus.next(), cpus.next()) else { return };
    let mut only = CpuSet::new();
    only.set(driver);
    sched_setaffinity(None, &only).unwrap();
    let mut rig = Rig::on(own as u16);
    rig.start(PLAIN, 256);
    let until = Instant::now() + Duration::from_secs(60);
    let mut without_kick = 0;
    // The machine may be busy: a row of frames that came soon enough is enough.
    while without_kick < 10 {
        assert!(Instant::now() < until, "it asks for kicks for ever");
        rig.tx.add(&[Buffer::readable(CHAIN_DATA, 72)]).unwrap();
        let kick = rig.tx.publish();
        if kick {
            rig.mmio().kick(TX);
        }
        without_kick = if kick { 0 } else { without_kick + 1 };
        while rig.tx.reap().is_none() {
            assert!(Instant::now() < until, "the frame is not sent");
            std::hint::spin_loop();
        }
        rig.peer.recv().unwrap();
    }
    // It ends by itself.
    let calls = || rig.counters.calls.load(Ordering::Relaxed);
    let mut before = calls();
    loop {
        thread::sleep(Duration::from_millis(50));
        match calls() {
            same if same == before => break,
            more => before = more,
        }
        assert!(Instant::now() < until, "it does not sleep");
    }
}

#[test]
fn who_never_has_an_answer_is_seldom_asked_for_one() {
    let mut bench = Bench::new(PLAIN | F_EVENT_IDX);
    bench.rx.add(&[Buffer::writable(DATA + 2048, 2048)]).unwrap();
    bench.rx.publish();
    bench.pair.process();
    let calls = |bench: &Bench| bench.counters.calls.load(Ordering::Relaxed);
    let mut turn = || {
        bench.tx.want_interrupts(true);
        bench.add();
        let before = calls(&bench);
        bench.pair.process();
        bench.tx.reap();
        calls(&bench) - before
    };
    // One to send and one to interrupt; the third asks in vain.
    let turns: Vec<_> = (0..20).map(|_| turn()).collect();
    let asked: Vec<_> = (0..20).filter(|&at| turns[at] == 3).collect();
    assert_eq!(asked, [0, 1, 2, 3, 16], "{turns:?}");
}

/// A wire that brings each frame back before the device asks for more.
struct Echo(SocketBackend, SocketPeer);

impl Backend for Echo {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        self.0.send(frame)?;
        self.1.send(&self.1.recv()?)?;
        Ok(Sent::Gone)
    }
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        self.0.recv(space)
    }
    fn offloads(&self) -> Offloads {
        self.0.offloads()
    }
    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.0.set_offloads(accepted)
    }
}

#[test]
fn a_driver_that_does_not_look_is_interrupted_though_nothing_happens() {
    for features in FEATURES {
        let (backend, peer) = SocketBackend::pair().unwrap();
        let mut rig = Rig::with(Box::new(Echo(backend, peer)), SocketBackend::pair().unwrap().1);
        rig.start(features, 256);
        rig.post(8, 2048);
        rig.tx.want_interrupts(true);
        rig.rx.want_interrupts(true);
        assert!(rig.send(&frame(60, 1), &[], false));
        wait("the answer", || rig.rx.pending() == 1);
        thread::sleep(10 * PATIENCE);
        assert_eq!(rig.irq.read().unwrap_or(0), 2, "one for the answer, and one for what was sent");
    }
}
