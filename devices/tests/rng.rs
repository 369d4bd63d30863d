//! The entropy device, with the mock driver.

use std::time::{Duration, Instant};

use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::queue::{F_EVENT_IDX, F_VERSION_1};
use devices::virtio::rng::VirtioRng;
use devices::virtio::{DeviceThreads, VirtioDevice};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RING: u64 = 0x1000;
const DATA: u64 = 0x10_000;
const ROOM: usize = 0x8000;

struct Rig {
    memory: GuestMemoryMmap,
    bus: MmioTransport,
    threads: Box<dyn DeviceThreads>,
    irq: EventFd,
}

impl Rig {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let device = VirtioRng::new().unwrap();
        assert_eq!((device.device_type(), device.queue_max_sizes()), (4, &[64][..]));
        let threads = device.threads();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let bus = MmioTransport::new(Box::new(device), memory.clone(), irq.try_clone().unwrap()).unwrap();
        Self { memory, bus, threads, irq }
    }

    fn start(&self) -> MockRing {
        let driver = MockMmio::new(&self.bus);
        assert!(driver.negotiate(F_VERSION_1 | F_EVENT_IDX));
        let ring = MockRing::new(&self.memory, RING, 64, true);
        assert!(driver.set_queue(0, ring.setup()));
        driver.start();
        ring
    }

    fn kick(&self) {
        self.bus.kicks()[0].write(1).unwrap();
    }

    /// What comes back within a while: head and length.
    fn used(&self, ring: &mut MockRing) -> Option<(u16, u32)> {
        wait(|| ring.reap())
    }

    fn bytes(&self, at: u64) -> Vec<u8> {
        let mut bytes = vec![0; ROOM];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

fn wait<T>(mut what: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match what() {
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            result => return result,
        }
    }
}

#[test]
fn a_driver_gets_other_bytes_each_time_and_an_interrupt() {
    let rig = Rig::new();
    for life in 0..2 {
        let mut ring = rig.start();
        let mut seen = Vec::new();
        for turn in 0..3 {
            let head = ring.add(&[Buffer::writable(DATA, 24), Buffer::writable(DATA + 64, 40)]).unwrap();
            ring.want_interrupts(true);
            ring.publish();
            rig.kick();
            assert_eq!(rig.used(&mut ring), Some((head, 64)), "{life} {turn}");
            let bytes = rig.bytes(DATA);
            assert!(!seen.contains(&bytes));
            assert!(
                bytes[..24].iter().any(|byte| *byte != 0) && bytes[64..104].iter().any(|byte| *byte != 0)
            );
            assert!(bytes[24..64].iter().chain(&bytes[104..]).all(|byte| *byte == 0), "past the buffers");
            seen.push(bytes);
            assert!(wait(|| rig.irq.read().ok()).is_some());
        }
        MockMmio::new(&rig.bus).reset();
        rig.memory.write_slice(&vec![0; ROOM], GuestAddress(DATA)).unwrap();
    }
}

#[test]
fn a_long_buffer_is_filled_in_part() {
    let rig = Rig::new();
    let mut ring = rig.start();
    let head = ring.add(&[Buffer::writable(DATA, 4000), Buffer::writable(DATA + 4000, 4000)]).unwrap();
    ring.publish();
    rig.kick();
    assert_eq!(rig.used(&mut ring), Some((head, 4096)));
    assert!(rig.bytes(DATA)[4096..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_it_may_not_write_ends_it_until_a_reset() {
    let rig = Rig::new();
    let mut ring = rig.start();
    ring.add(&[Buffer::readable(DATA, 64)]).unwrap();
    ring.publish();
    rig.kick();
    assert!(wait(|| MockMmio::new(&rig.bus).needs_reset().then_some(())).is_some());
    let mut ring = rig.start();
    let head = ring.add(&[Buffer::writable(DATA, 8)]).unwrap();
    ring.publish();
    rig.kick();
    assert_eq!(rig.used(&mut ring), Some((head, 8)));
}

#[test]
fn a_paused_one_touches_nothing() {
    let rig = Rig::new();
    let mut ring = rig.start();
    rig.threads.pause().unwrap();
    let head = ring.add(&[Buffer::writable(DATA, 8)]).unwrap();
    ring.publish();
    rig.kick();
    // Twice, for the first answer may come before the kick is seen.
    rig.threads.pause().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    rig.threads.pause().unwrap();
    assert_eq!(ring.reap(), None);
    rig.threads.resume().unwrap();
    assert_eq!(rig.used(&mut ring), Some((head, 8)));
}

#[test]
fn after_a_reset_it_touches_nothing() {
    let rig = Rig::new();
    let mut ring = rig.start();
    MockMmio::new(&rig.bus).reset();
    ring.add(&[Buffer::writable(DATA, 8)]).unwrap();
    ring.publish();
    rig.kick();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(ring.reap(), None);
    assert!(rig.bytes(DATA).iter().all(|byte| *byte == 0));
}
