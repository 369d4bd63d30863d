//! Several queue pairs: which of them the driver enables, where the control queue is, and that they come and go together.

mod rig;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use devices::BusDevice;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::net::{Counters, NetDeviceConfig, VirtioNet, run_on};
use net::{Backend, Iov, Mac, Offloads, RxFilter, Sent, SocketBackend, SocketPeer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use rig::*;

const OK: u8 = 0;
const ERR: u8 = 1;
const PAIRS: usize = 3;
const MANY: u64 = COMMANDS | F_MQ;
/// Where each pair's receive buffers are, 4 KiB each.
const RX_DATA: u64 = 0x40_0000;
const TX_DATA: u64 = 0x80_0000;

/// A NIC of three pairs between a driver and as many sockets.
struct Many {
    memory: GuestMemoryMmap,
    device: MmioTransport,
    peers: Vec<SocketPeer>,
    refuses: Arc<AtomicBool>,
    counters: Vec<Arc<Counters>>,
    /// Receive and transmit ring of each pair.
    rings: Vec<[MockRing; 2]>,
    control: MockRing,
    control_index: u32,
}

impl Many {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let refuses = Arc::new(AtomicBool::new(false));
        let (mut backends, mut peers): (Vec<Box<dyn Backend>>, _) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            let (backend, peer) = SocketBackend::pair().unwrap();
            peer.socket().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let (socket, refuses, last) =
                (backend.with_offloads(ALL), Arc::clone(&refuses), pair == PAIRS - 1);
            backends.push(Box::new(Stubborn { socket, refuses, last }));
            peers.push(peer);
        }
        let nic = VirtioNet::new(config("test", Some(MTU)), backends, Vec::new()).unwrap();
        let counters = nic.counters();
        let device = MmioTransport::new(Box::new(nic), memory.clone(), EventFd::new(0).unwrap()).unwrap();
        let (rings, control) = rings(&memory);
        Self { memory, device, peers, refuses, counters, rings, control, control_index: 0 }
    }

    /// One whose driver has set so many pairs up, and the control queue where it is with these features.
    fn started(features: u64, pairs: usize) -> Self {
        let mut this = Self::new();
        this.start(features, pairs);
        this
    }

    fn start(&mut self, features: u64, pairs: usize) {
        (self.rings, self.control) = rings(&self.memory);
        self.control_index = if features & F_MQ != 0 { 2 * PAIRS as u32 } else { 2 };
        let mmio = MockMmio::new(&self.device);
        assert!(mmio.negotiate(features), "the device refuses {features:#x}");
        for (pair, [rx, tx]) in self.rings[..pairs].iter().enumerate() {
            let index = 2 * pair as u32;
            assert!(mmio.set_queue(index, rx.setup()) && mmio.set_queue(index + 1, tx.setup()));
        }
        if features & F_CTRL_VQ != 0 {
            assert!(mmio.set_queue(self.control_index, self.control.setup()));
        }
        mmio.start();
        assert!(!mmio.needs_reset(), "the device cannot start");
        (0..pairs).for_each(|pair| self.post(pair));
    }

    fn mmio(&self) -> MockMmio<'_> {
        MockMmio::new(&self.device)
    }

    fn post(&mut self, pair: usize) {
        let [rx, _] = &mut self.rings[pair];
        while rx.free() > 0 {
            let at = RX_DATA + 0x10_0000 * pair as u64 + 4096 * u64::from(rx.free() - 1);
            rx.add(&[Buffer::writable(at, 4096)]).unwrap();
        }
        rx.publish();
        self.mmio().kick(2 * pair as u32);
    }

    fn send(&mut self, pair: usize) {
        let tx = &mut self.rings[pair][1];
        tx.add(&[Buffer::readable(TX_DATA, 100)]).unwrap();
        tx.publish();
        self.mmio().kick(2 * pair as u32 + 1);
        wait("a frame to go", || self.rings[pair][1].reap().is_some());
        self.peers[pair].recv().unwrap();
    }

    fn command(&mut self, command: &[u8]) -> u8 {
        self.memory.write_slice(command, GuestAddress(COMMAND)).unwrap();
        self.memory.write_obj(0xaau8, GuestAddress(ANSWER)).unwrap();
        let buffers = [Buffer::readable(COMMAND, command.len() as u32), Buffer::writable(ANSWER, 1)];
        self.control.add(&buffers).unwrap();
        self.control.publish();
        self.mmio().kick(self.control_index);
        wait("the answer", || self.control.reap().is_some());
        self.memory.read_obj(GuestAddress(ANSWER)).unwrap()
    }

    fn set_pairs(&mut self, pairs: u16) -> u8 {
        let [low, high] = pairs.to_le_bytes();
        self.command(&[4, 0, low, high])
    }

    /// Which pairs the host was told to bring frames to.
    fn enabled(&self) -> Vec<bool> {
        self.peers.iter().map(SocketPeer::is_enabled).collect()
    }

    /// Sends a frame to every pair; which of them received it. Those that did not find it once they are enabled.
    fn receiving(&mut self) -> Vec<bool> {
        self.peers.iter().for_each(|peer| peer.send(&frame(60, 1)).unwrap());
        wait("the first pair", || self.rings[0][0].pending() > 0);
        std::thread::sleep(Duration::from_millis(20));
        let received = self.rings.iter().map(|[rx, _]| rx.pending() > 0).collect();
        for pair in 0..PAIRS {
            while self.rings[pair][0].reap().is_some() {}
        }
        received
    }
}

fn rings(memory: &GuestMemoryMmap) -> (Vec<[MockRing; 2]>, MockRing) {
    let ring = |number: u64| MockRing::new(memory, 0x1_0000 * number, 64, true);
    ((0..PAIRS as u64).map(|pair| [ring(6 + 2 * pair), ring(7 + 2 * pair)]).collect(), ring(3))
}

/// A wire that, while it refuses, cannot be enabled, nor, the last one, have other offloads.
struct Stubborn {
    socket: SocketBackend,
    refuses: Arc<AtomicBool>,
    last: bool,
}

impl Stubborn {
    /// Whether it refuses, this once.
    fn refuses(&self) -> bool {
        self.refuses.swap(false, Ordering::Relaxed)
    }
}

impl Backend for Stubborn {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        self.socket.send(frame)
    }
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        self.socket.recv(space)
    }
    fn offloads(&self) -> Offloads {
        self.socket.offloads()
    }
    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        match self.last && self.refuses() {
            true => Err(io::ErrorKind::InvalidInput.into()),
            false => self.socket.set_offloads(accepted),
        }
    }
    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        self.socket.set_filter(filter)
    }
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        match enabled && self.refuses() {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => self.socket.set_enabled(enabled),
        }
    }
}

#[test]
fn a_nic_of_several_pairs_says_so_and_one_of_one_does_not() {
    let many = Many::new();
    assert_ne!(many.mmio().features() & F_MQ, 0);
    let mut pairs = [0; 2];
    many.device.read(0x108, &mut pairs);
    assert_eq!(pairs, [3, 0], "max_virtqueue_pairs");
    assert_eq!(Rig::new().mmio().features() & F_MQ, 0);
}

#[test]
fn the_driver_enables_as_many_pairs_as_it_wants() {
    let mut many = Many::started(MANY, PAIRS);
    assert_eq!(many.enabled(), [true, false, false], "the first alone, until the driver says more");
    assert_eq!(many.receiving(), [true, false, false]);
    for (pairs, enabled) in [
        (3, [true, true, true]),
        (1, [true, false, false]),
        (2, [true, true, false]),
        (2, [true, true, false]),
    ] {
        assert_eq!(many.set_pairs(pairs), OK);
        assert_eq!(many.enabled(), enabled, "{pairs} pairs");
        assert_eq!(many.receiving(), enabled, "{pairs} pairs");
    }
    // What the driver still sends on another one goes.
    (0..PAIRS).for_each(|pair| many.send(pair));
}

#[test]
fn a_driver_that_does_not_reset_first_has_one_pair_too() {
    use virtio_bindings::virtio_mmio::*;
    let many = Many::new();
    let mmio = many.mmio();
    mmio.write(VIRTIO_MMIO_STATUS, 1);
    mmio.write(VIRTIO_MMIO_STATUS, 3);
    for word in 0..2 {
        mmio.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
        mmio.write(VIRTIO_MMIO_DRIVER_FEATURES, (MANY >> (32 * word)) as u32);
    }
    mmio.write(VIRTIO_MMIO_STATUS, 11);
    for (queue, ring) in many.rings.iter().flatten().enumerate() {
        assert!(mmio.set_queue(queue as u32, ring.setup()));
    }
    mmio.start();
    assert!(!mmio.needs_reset());
    assert_eq!(many.enabled(), [true, false, false]);
}

#[test]
fn each_pair_runs_where_it_is_told_and_when_it_is_its_turn() {
    let (backend, _peer) = SocketBackend::pair().unwrap();
    let of_thread = |file: &str, start: &str| {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let mut texts =
            tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join(file)).unwrap_or_default());
        texts.find(|text| text.contains(start))
    };
    let allowed = || {
        let status = of_thread("status", "Name:\taffine-0\n")?;
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"))?;
        Some(cpus.to_owned())
    };
    let cpu = allowed_cpus().last().copied().unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let config = NetDeviceConfig { affinity: vec![cpu], ..config("affine", None) };
    let nic = VirtioNet::new(config, vec![Box::new(backend)], Vec::new()).unwrap();
    let device = MmioTransport::new(Box::new(nic), memory.clone(), EventFd::new(0).unwrap()).unwrap();
    let mmio = MockMmio::new(&device);
    assert!(mmio.negotiate(PLAIN));
    let (rings, _) = rings(&memory);
    assert!(mmio.set_queue(0, rings[0][0].setup()) && mmio.set_queue(1, rings[0][1].setup()));
    mmio.start();
    wait("the thread on its CPU", || allowed() == Some(cpu.to_string()));
    // Woken, it has its turn before a guest that computes: `policy`, the 39th word behind the name (proc_pid_stat(5)), is the usual one.
    let policy = of_thread("stat", "(affine-0)")
        .and_then(|stat| Some(stat.rsplit(") ").next()?.split(' ').nth(38)?.to_owned()));
    assert_eq!(policy.as_deref(), Some("0"));
    assert!(run_on(1023).is_err() || allowed_cpus().len() > 1023);
}

/// The CPUs that this thread may run on.
fn allowed_cpus() -> Vec<u16> {
    let cpus = rustix::thread::sched_getaffinity(None).unwrap();
    (0..1024).filter(|&cpu| cpus.is_set(cpu)).map(|cpu| cpu as u16).collect()
}

#[test]
fn a_number_of_pairs_that_makes_no_sense_changes_nothing() {
    let mut many = Many::started(MANY, PAIRS);
    assert_eq!(many.set_pairs(2), OK);
    for pairs in [0, 4, 256, 0x8000, 0xffff] {
        assert_eq!(many.set_pairs(pairs), ERR, "{pairs}");
    }
    for command in [&[4, 0][..], &[4, 0, 1], &[4, 0, 1, 0, 0], &[4, 1, 1, 0], &[4, 2, 1, 0]] {
        assert_eq!(many.command(command), ERR, "{command:?}");
    }
    assert_eq!(many.receiving(), [true, true, false]);
    // A driver that has set two of three pairs up has two.
    many.start(MANY, 2);
    assert_eq!((many.set_pairs(3), many.set_pairs(2)), (ERR, OK));
    assert_eq!(many.enabled(), [true, true, false]);
}

#[test]
fn without_mq_there_is_one_pair_and_the_control_queue_is_behind_it() {
    for features in [COMMANDS, PLAIN | F_CTRL_VQ, PLAIN, PLAIN | F_MQ] {
        let mut many = Many::new();
        many.start(features, 1);
        assert_eq!(many.receiving(), [true, false, false], "{features:#x}");
        assert_eq!(many.enabled(), [true, false, false], "{features:#x}");
        many.send(0);
        if features == COMMANDS {
            assert_eq!(many.command(&[0, 0, 1]), OK, "a command of the negotiated ones");
            assert!(many.peers[0].filter().unwrap().promiscuous);
            assert_eq!(many.set_pairs(1), ERR, "and none of others");
        }
    }
}

#[test]
fn what_the_host_refuses_is_an_error_and_all_pairs_are_as_before() {
    let mut many = Many::started(MANY, PAIRS);
    assert_eq!(many.set_pairs(2), OK);
    many.refuses.store(true, Ordering::Relaxed);
    assert_eq!(many.set_pairs(3), ERR);
    assert_eq!(many.receiving(), [true, true, false]);
    assert_eq!(many.set_pairs(3), OK);
    assert_eq!(many.receiving(), [true, true, true]);
}

#[test]
fn each_pair_hears_of_the_address() {
    let mut many = Many::started(MANY, PAIRS);
    let other = [2, 0, 0, 0, 0, 9];
    assert_eq!(many.command(&[&[1, 1][..], &other].concat()), OK);
    for peer in &many.peers {
        assert_eq!(peer.filter().unwrap().mac.octets(), other);
    }
    many.start(MANY, PAIRS);
    for peer in &many.peers {
        assert_eq!(peer.filter(), Some(RxFilter::new(Mac::new(MAC).unwrap())), "until the reset");
    }
}

#[test]
fn each_pair_hears_of_the_offloads_and_all_go_back_where_one_refuses() {
    let mut many = Many::started(MANY, PAIRS);
    let accepted = |many: &Many| -> Vec<_> {
        many.peers.iter().map(|peer| peer.accepted().expect("set at the start")).collect()
    };
    let negotiated = Offloads { uso: false, ..ALL };
    assert_eq!(accepted(&many), [negotiated; PAIRS]);
    let (checksums, want) = (F_GUEST_CSUM, Offloads { csum: true, ..Offloads::default() });
    many.refuses.store(true, Ordering::Relaxed);
    assert_eq!((many.command(&offloads_set(checksums)), accepted(&many)), (ERR, vec![negotiated; PAIRS]));
    assert_eq!((many.command(&offloads_set(checksums)), accepted(&many)), (OK, vec![want; PAIRS]));
    many.start(MANY, PAIRS);
    assert_eq!(accepted(&many), [negotiated; PAIRS], "until the reset");
}

#[test]
fn each_pair_holds_its_interrupts_as_the_driver_has_said() {
    let features = MANY | F_NOTF_COAL;
    let mut many = Many::started(features, PAIRS);
    let interrupts = |many: &Many| -> Vec<_> {
        many.counters.iter().map(|counters| counters.interrupts.load(Ordering::Relaxed)).collect()
    };
    let send = |many: &mut Many, frames: usize| {
        for pair in 0..PAIRS {
            many.rings[pair][1].want_interrupts(true);
            (0..frames).for_each(|_| many.send(pair));
        }
    };
    assert_eq!(many.command(&coalesce(TX_SET, 4, u32::MAX)), OK);
    send(&mut many, 3);
    assert_eq!(interrupts(&many), [0; PAIRS]);
    // Other limits hold at once, on every pair.
    assert_eq!(many.command(&coalesce(TX_SET, 3, u32::MAX)), OK);
    wait("an interrupt of each", || interrupts(&many) == [1; PAIRS]);
    send(&mut many, 2);
    assert_eq!(interrupts(&many), [1; PAIRS]);

    many.start(features, PAIRS);
    send(&mut many, 1);
    wait("one for each frame after a reset", || interrupts(&many) == [2; PAIRS]);
}

#[test]
fn a_reset_gets_all_pairs_back_any_number_of_times() {
    let mut many = Many::started(MANY, PAIRS);
    for round in 0..20 {
        let pairs = 1 + round % 3;
        assert_eq!(many.set_pairs(pairs), OK);
        // Not all of it is received before the reset.
        for peer in &many.peers[..usize::from(pairs)] {
            (0..20).for_each(|_| peer.send(&frame(60, 1)).unwrap());
        }
        many.mmio().reset();
        assert_eq!(many.enabled(), [true, false, false], "no driver, no more than the first");
        if round % 2 == 0 {
            many.start(COMMANDS, 1);
            many.send(0);
        }
        many.start(MANY, PAIRS);
        (0..PAIRS).for_each(|pair| many.send(pair));
    }
}

#[test]
fn a_pair_whose_ring_breaks_asks_for_a_reset_and_commands_go_on() {
    for broken in 0..PAIRS {
        let mut many = Many::started(MANY, PAIRS);
        assert_eq!(many.set_pairs(3), OK);
        let tx = &mut many.rings[broken][1];
        tx.lie_available(9999);
        tx.publish();
        many.mmio().kick(2 * broken as u32 + 1);
        wait("the pair to stop", || many.mmio().needs_reset());
        let others: Vec<_> = (0..PAIRS).filter(|&pair| pair != broken).collect();
        others.iter().for_each(|&pair| many.send(pair));
        if broken > 0 {
            // It answers no more, and nobody waits for it.
            assert_eq!((many.set_pairs(1), many.set_pairs(3)), (OK, OK));
        }
        many.start(MANY, PAIRS);
        assert_eq!(many.set_pairs(3), OK);
        assert_eq!(many.receiving(), [true; 3]);
    }
}

#[test]
fn a_reset_while_a_command_waits_ends() {
    for round in 0..50u64 {
        let mut many = Many::started(MANY, PAIRS);
        for number in 0..20u16 {
            let at = COMMAND + 16 * u64::from(number);
            let pairs = (1 + number % 3).to_le_bytes();
            many.memory.write_slice(&[4, 0, pairs[0], pairs[1]], GuestAddress(at)).unwrap();
            let buffers = [Buffer::readable(at, 4), Buffer::writable(ANSWER, 1)];
            many.control.add(&buffers).unwrap();
        }
        many.control.publish();
        many.mmio().kick(many.control_index);
        std::thread::sleep(Duration::from_micros(round * 7 % 300));
        many.mmio().reset();
        assert_eq!(many.enabled(), [true, false, false]);
    }
}
