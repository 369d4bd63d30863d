//! What the host's links are told of the guest: whether there is somebody at its end, and which pairs' queues are of use.

mod rig;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{MockMmio, MockRing};
use devices::virtio::net::{Handle, VirtioNet};
use net::{Backend, Iov, Offloads, Sent, SocketBackend, SocketPeer};
use rig::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const PAIRS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Carrier(bool),
    Enabled(bool),
    Drained,
}
use Told::{Carrier, Drained, Enabled};

type Log = Arc<Mutex<Vec<(usize, Told)>>>;

/// A pair's end of the wire of that number, from 0, which notes what it is told.
struct Noted {
    socket: SocketBackend,
    pair: usize,
    log: Log,
    refuses: bool,
}

impl Noted {
    fn note(&self, told: Told) {
        self.log.lock().unwrap().push((self.pair, told));
    }
}

impl Backend for Noted {
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
        self.socket.set_offloads(accepted)
    }
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.note(Enabled(enabled));
        if self.refuses { Err(io::ErrorKind::Unsupported.into()) } else { self.socket.set_enabled(enabled) }
    }
    fn set_carrier(&mut self, present: bool) {
        self.note(Carrier(present));
    }
    fn drain(&mut self) {
        self.note(Drained);
    }
}

/// A wire of two queues, what is noted of it, and its other ends.
struct Wire {
    ends: Vec<Box<dyn Backend>>,
    log: Log,
    peers: Vec<SocketPeer>,
}

fn wire(refuses: bool) -> Wire {
    let log = Log::default();
    let pairs = (0..PAIRS).map(|pair| {
        let (socket, peer) = SocketBackend::pair().unwrap();
        let end: Box<dyn Backend> =
            Box::new(Noted { socket: socket.with_offloads(ALL), pair, log: Arc::clone(&log), refuses });
        (end, peer)
    });
    let (ends, peers) = pairs.unzip();
    Wire { ends, log, peers }
}

fn taken(log: &Log) -> Vec<(usize, Told)> {
    std::mem::take(&mut *log.lock().unwrap())
}

struct Nic {
    memory: GuestMemoryMmap,
    device: MmioTransport,
    handle: Handle,
    log: Log,
    _peers: Vec<SocketPeer>,
}

impl Nic {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let Wire { ends, log, peers } = wire(false);
        let nic = VirtioNet::new(config("test", None), ends, Vec::new()).unwrap();
        let handle = nic.handle();
        let device = MmioTransport::new(Box::new(nic), memory.clone(), EventFd::new(0).unwrap()).unwrap();
        Self { memory, device, handle, log, _peers: peers }
    }

    /// A driver of these pairs; false where the device cannot start.
    fn start(&self, queues: &[u32]) -> bool {
        let mmio = MockMmio::new(&self.device);
        assert!(mmio.negotiate(COMMANDS | F_MQ));
        for &index in queues {
            let ring = MockRing::new(&self.memory, 0x1_0000 * u64::from(index + 1), 64, true);
            assert!(mmio.set_queue(index, ring.setup()));
        }
        mmio.start();
        !mmio.needs_reset()
    }

    fn reset(&self) {
        MockMmio::new(&self.device).reset();
    }

    /// What the first pair's link was told of a carrier last, and that no other pair's was told anything of it.
    #[track_caller]
    fn carrier(&self, log: &Log) -> Option<bool> {
        let told = taken(log).into_iter().filter_map(|(pair, told)| match told {
            Carrier(present) => Some((pair, present)),
            _ => None,
        });
        let told: Vec<_> = told.collect();
        assert!(told.iter().all(|(pair, _)| *pair == 0), "{told:?}");
        told.last().map(|(_, present)| *present)
    }
}

const ALL_QUEUES: &[u32] = &[0, 1, 2, 3, 4];

#[test]
fn the_host_sees_whether_there_is_a_driver_and_a_cable() {
    let nic = Nic::new();
    assert!(nic.start(ALL_QUEUES));
    // It counted as one that is there before its first driver came.
    assert_eq!(nic.carrier(&nic.log), None);
    nic.reset();
    assert_eq!(nic.carrier(&nic.log), Some(false));
    assert!(nic.start(ALL_QUEUES));
    assert_eq!(nic.carrier(&nic.log), Some(true));
    for present in [false, true, false] {
        nic.handle.set_carrier(present).unwrap();
        assert_eq!(nic.carrier(&nic.log), Some(present));
    }
    // Both are needed.
    nic.reset();
    nic.handle.set_carrier(true).unwrap();
    assert_eq!(nic.carrier(&nic.log), Some(false));
    assert!(nic.start(ALL_QUEUES));
    assert_eq!(nic.carrier(&nic.log), Some(true));
    nic.reset();
    nic.handle.set_carrier(false).unwrap();
    assert!(nic.start(ALL_QUEUES));
    assert_eq!(nic.carrier(&nic.log), Some(false));
    // What it was when it was found, it is again.
    drop(nic.device);
    assert_eq!(nic.log.lock().unwrap().last(), Some(&(0, Carrier(true))));
}

#[test]
fn a_wire_is_told_while_its_link_is_down_and_when_another_comes() {
    let nic = Nic::new();
    assert!(nic.handle.is_up());
    nic.handle.set_link(false).unwrap();
    assert!(!nic.handle.is_up());
    assert!(nic.start(ALL_QUEUES));
    nic.reset();
    assert_eq!(nic.carrier(&nic.log), Some(false));
    // Each has what waited on it thrown away before it is up.
    nic.handle.set_link(true).unwrap();
    let told = taken(&nic.log);
    assert!((0..PAIRS).all(|pair| told.contains(&(pair, Drained))), "{told:?}");
    let Wire { ends, log, peers: _peers } = wire(false);
    nic.handle.swap(ends, Vec::new()).unwrap();
    // The one before stays in somebody's hand as it was found.
    assert_eq!((nic.carrier(&nic.log), nic.carrier(&log)), (Some(true), Some(false)));
    assert!(nic.start(ALL_QUEUES));
    assert_eq!((nic.carrier(&nic.log), nic.carrier(&log)), (None, Some(true)));
}

#[test]
fn of_a_wire_that_comes_without_a_driver_the_first_pair_alone_is_of_use() {
    let nic = Nic::new();
    taken(&nic.log);
    let Wire { ends, log, peers: _peers } = wire(false);
    nic.handle.swap(ends, Vec::new()).unwrap();
    let enabled: Vec<_> = taken(&log).into_iter().filter(|(_, told)| matches!(told, Enabled(_))).collect();
    assert_eq!(enabled, [(0, Enabled(true)), (1, Enabled(false))]);
    // One that refuses is not taken, and the one before stays.
    let refused = wire(true);
    assert_eq!(nic.handle.swap(refused.ends, Vec::new()).unwrap_err().kind(), io::ErrorKind::Unsupported);
    assert!(nic.start(ALL_QUEUES));
    nic.reset();
    assert_eq!(nic.carrier(&log), Some(false));
}

#[test]
fn half_a_pair_is_refused() {
    for queues in [&[0, 1, 2, 4][..], &[0, 1, 3, 4], &[0, 4], &[1, 4], &[0, 2, 3, 4]] {
        let nic = Nic::new();
        assert!(!nic.start(queues), "{queues:?}");
        nic.reset();
        assert!(
            nic.start(&[0, 1, 4]) && {
                nic.reset();
                nic.start(ALL_QUEUES)
            }
        );
    }
}
