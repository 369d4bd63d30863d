//! The balloon, with the mock driver: which memory it gives to the host.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::BusDevice;
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::VirtioBalloon;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: u64 = 1 << 20;
const F_REPORTING: u64 = 1 << 5;

/// The offset and the length of each piece of guest memory that the host was given.
type Given = Arc<Mutex<Vec<(u64, usize)>>>;

struct Rig {
    memory: GuestMemoryMmap,
    bus: MmioTransport,
    given: Given,
    rings: Vec<MockRing>,
}

impl Rig {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let given = Given::default();
        let base = memory.get_host_address(GuestAddress(0)).unwrap() as usize;
        let note = Arc::clone(&given);
        let device = VirtioBalloon::new(Box::new(move |piece| {
            let at = piece.ptr_guard().as_ptr() as usize - base;
            note.lock().unwrap().push((at as u64, piece.len()));
            // Whether the host can take it is its own affair.
            Err(std::io::ErrorKind::Unsupported.into())
        }))
        .unwrap();
        assert_eq!((device.device_type(), device.queue_max_sizes().len()), (5, 3));
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let bus = MmioTransport::new(Box::new(device), memory.clone(), irq).unwrap();
        let driver = MockMmio::new(&bus);
        assert_ne!(driver.features() & F_REPORTING, 0);
        assert!(driver.negotiate(F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_REPORTING));
        let rings = (0..3).map(|queue| {
            let ring = MockRing::new(&memory, 0x1000 * (queue + 1), 32, true);
            assert!(driver.set_queue(queue as u32, ring.setup()));
            ring
        });
        let rings = rings.collect();
        driver.start();
        Self { memory, bus, given, rings }
    }

    /// What the host is given of a chain.
    fn give(&mut self, queue: usize, buffers: &[Buffer]) -> Vec<(u64, usize)> {
        self.rings[queue].add(buffers).unwrap();
        self.given_of_added(queue)
    }

    /// What the host is given of the chain that was added.
    fn given_of_added(&mut self, queue: usize) -> Vec<(u64, usize)> {
        let ring = &mut self.rings[queue];
        ring.publish();
        self.bus.kicks()[queue].write(1).unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        let used = loop {
            match ring.reap() {
                None if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                used => break used,
            }
        };
        assert!(matches!(used, Some((_, 0))), "{used:?}");
        std::mem::take(&mut self.given.lock().unwrap())
    }
}

#[test]
fn reported_pages_are_given_to_the_host_and_stay_the_guests() {
    let mut rig = Rig::new();
    let pages = [Buffer::writable(0x20_000, 0x8000), Buffer::writable(0x40_000, 0x1000)];
    assert_eq!(rig.give(2, &pages), [(0x20_000, 0x8000), (0x40_000, 0x1000)]);
    assert_eq!(rig.give(2, &pages[1..]), [(0x40_000, 0x1000)]);
}

#[test]
fn inflated_pages_are_given_and_those_that_are_none_are_not() {
    let mut rig = Rig::new();
    let numbers: Vec<u8> =
        [3u32, 0x80, 0xff, 0x100, u32::MAX, 5].iter().flat_map(|n| n.to_le_bytes()).collect();
    rig.memory.write_slice(&numbers, GuestAddress(0x10_000)).unwrap();
    // The last number has not all of its bytes.
    let buffers = [Buffer::readable(0x10_000, 8), Buffer::readable(0x10_008, 12 + 3)];
    assert_eq!(rig.give(0, &buffers), [(0x3000, 4096), (0x80_000, 4096), (0xff_000, 4096)]);
    assert_eq!(rig.give(1, &buffers), [], "what is deflated the guest has, and needs no word");
}

#[test]
fn a_chain_without_end_takes_no_more_than_a_bounded_time() {
    let mut rig = Rig::new();
    // Page 0 over and over: more numbers than any driver puts into a chain.
    let buffers = [Buffer::readable(0x10_000, 0x4_0000); 4];
    assert_eq!(rig.give(0, &buffers).len(), 4096);
    // All memory over and over: more than any driver reports in a chain.
    rig.rings[2].add_indirect(0x20_000, &[Buffer::writable(0, MEMORY as u32); 200]).unwrap();
    let reported = rig.given_of_added(2);
    assert_eq!(reported, [(0, MEMORY as usize); 128]);
}

#[test]
fn nobody_asks_for_pages_of_the_guests() {
    let rig = Rig::new();
    let mut bytes = [0xaa; 12];
    rig.bus.read(0x100, &mut bytes[..4]);
    rig.bus.read(0x104, &mut bytes[4..8]);
    rig.bus.read(0x108, &mut bytes[8..]);
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0xaa, 0xaa, 0xaa, 0xaa]);
}

#[test]
fn after_a_reset_nothing_is_given() {
    let mut rig = Rig::new();
    assert_eq!(rig.give(0, &[Buffer::readable(0x10_000, 4)]), [(0, 4096)]);
    MockMmio::new(&rig.bus).reset();
    rig.rings[0].add(&[Buffer::readable(0x10_000, 4)]).unwrap();
    rig.rings[0].publish();
    rig.bus.kicks()[0].write(1).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((rig.rings[0].reap(), rig.given.lock().unwrap().len()), (None, 0));
}
