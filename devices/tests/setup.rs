//! What a driver says before its device runs (virtio 1.3 §3.1), by the registers of either transport.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use devices::BusDevice;
use devices::pci::msix::Message;
use devices::pci::{EventRoutes, Function};
use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{MockMmio, MockRing};
use devices::virtio::pci::PciTransport;
use devices::virtio::queue::{F_RING_RESET, F_VERSION_1, QueueSetup};
use devices::virtio::{Activation, ActiveQueue, VirtioDevice};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const FEATURES: u64 = F_VERSION_1 | F_RING_RESET | 1 << 63 | 0b101;
const SIZES: [u16; 2] = [8, 16];
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const FAILED: u32 = 0x80;
/// Guest memory, where an address has bits in both halves.
const MEMORY: u64 = 0x12_3000_0000;
const WINDOW: Range<u64> = 0xd000_0000..0xe000_0000;

#[derive(Default)]
struct Seen {
    /// What was accepted, and where each queue is, of each start.
    starts: Vec<(u64, Vec<(u16, QueueSetup)>)>,
    resets: Vec<u16>,
    enabled: Vec<(u16, QueueSetup)>,
    rerouted: usize,
    /// Accesses to the device's configuration: offset, and length.
    config: Vec<(u64, usize)>,
}

struct Dummy(Arc<Mutex<Seen>>);

impl Dummy {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }
}

impl VirtioDevice for Dummy {
    fn device_type(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &SIZES
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.seen().config.push((offset, data.len()));
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.seen().config.push((offset, data.len()));
    }
    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let queues = activation.queues.iter().map(|queue| (queue.index, queue.ring.setup())).collect();
        self.seen().starts.push((activation.accepted, queues));
        Ok(())
    }
    fn rerouted(&mut self) {
        self.seen().rerouted += 1;
    }
    fn reset_queue(&mut self, index: u16) {
        self.seen().resets.push(index);
    }
    fn enable_queue(&mut self, queue: ActiveQueue) -> io::Result<()> {
        self.seen().enabled.push((queue.index, queue.ring.setup()));
        Ok(())
    }
    fn reset(&mut self) {}
}

struct NoRoutes;

impl EventRoutes for NoRoutes {
    fn open(&self, _: u16, _: &EventFd, _: Message) -> io::Result<()> {
        Ok(())
    }
    fn close(&self, _: u16, _: &EventFd) {}
    fn drive(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn listen(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
    fn unlisten(&self, _: u64, _: &EventFd) {}
}

/// Where a register is, and its bytes (§4.1.4.3, §4.2.2). Of an address, the low half.
struct Places {
    device_features_sel: (u64, usize),
    device_features: (u64, usize),
    driver_features_sel: (u64, usize),
    driver_features: (u64, usize),
    queue_sel: (u64, usize),
    queue_size: (u64, usize),
    queue_ready: (u64, usize),
    queue_reset: (u64, usize),
    status: (u64, usize),
    /// Descriptor table, available ring, used ring.
    rings: [u64; 3],
}

const PCI: Places = Places {
    device_features_sel: (0, 4),
    device_features: (4, 4),
    driver_features_sel: (8, 4),
    driver_features: (12, 4),
    queue_sel: (22, 2),
    queue_size: (24, 2),
    queue_ready: (28, 2),
    queue_reset: (58, 2),
    status: (20, 1),
    rings: [32, 40, 48],
};
const MMIO: Places = Places {
    device_features_sel: (0x14, 4),
    device_features: (0x10, 4),
    driver_features_sel: (0x24, 4),
    driver_features: (0x20, 4),
    queue_sel: (0x30, 4),
    queue_size: (0x38, 4),
    queue_ready: (0x44, 4),
    queue_reset: (0xc0, 4),
    status: (0x70, 4),
    rings: [0x80, 0x90, 0xa0],
};

struct Rig {
    bus: Arc<dyn BusDevice>,
    at: Places,
    seen: Arc<Mutex<Seen>>,
}

impl Rig {
    fn both() -> [Self; 2] {
        let memory = || GuestMemoryMmap::from_ranges(&[(GuestAddress(MEMORY), 0x10000)]).unwrap();
        let [one, other] = [(); 2].map(|()| Arc::<Mutex<Seen>>::default());
        let irq = EventFd::new(0).unwrap();
        let mmio = MmioTransport::new(Box::new(Dummy(Arc::clone(&one))), memory(), irq).unwrap();
        let (pci, seen) = (pci(memory(), &other), other);
        [Self { bus: Arc::new(mmio), at: MMIO, seen: one }, Self { bus: pci, at: PCI, seen }]
    }

    fn get(&self, (offset, len): (u64, usize)) -> u32 {
        let mut data = [0; 4];
        self.bus.read(offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    fn set(&self, (offset, len): (u64, usize), value: u32) {
        self.bus.write(offset, &value.to_le_bytes()[..len]);
    }

    fn set_features(&self, word: u32, value: u32) {
        self.set(self.at.driver_features_sel, word);
        self.set(self.at.driver_features, value);
    }

    /// Begins anew, and goes on to the state in which queues are placed.
    fn negotiate(&self, features: u64) {
        for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            self.set(self.at.status, status);
        }
        self.set_features(0, features as u32);
        self.set_features(1, (features >> 32) as u32);
        self.set(self.at.status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    /// Places a queue, with the halves of its addresses in this order.
    fn place(&self, index: u32, setup: &QueueSetup, order: [u64; 2]) {
        self.set(self.at.queue_sel, index);
        self.set(self.at.queue_size, setup.size.into());
        for (at, address) in
            self.at.rings.into_iter().zip([setup.desc_table, setup.avail_ring, setup.used_ring])
        {
            for half in order {
                self.set((at + 4 * half, 4), (address >> (32 * half)) as u32);
            }
        }
    }

    fn start(&self) {
        self.set(self.at.status, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// What the last start was told.
    fn started(&self) -> (u64, Vec<(u16, QueueSetup)>) {
        self.seen.lock().unwrap().starts.pop().expect("it was started")
    }
}

fn pci(memory: GuestMemoryMmap, seen: &Arc<Mutex<Seen>>) -> Arc<PciTransport> {
    let device = Box::new(Dummy(Arc::clone(seen)));
    Arc::new(PciTransport::new(device, memory, WINDOW, Arc::new(NoRoutes)).unwrap())
}

fn setup(size: u16, page: u64) -> QueueSetup {
    let at = MEMORY + page * 0x1000;
    QueueSetup { size, desc_table: at, avail_ring: at + 0x400, used_ring: at + 0x800 }
}

#[test]
fn features_are_told_and_taken_word_by_word() {
    for rig in Rig::both() {
        for (word, bits) in [(0, FEATURES as u32), (1, (FEATURES >> 32) as u32), (2, 0), (u32::MAX, 0)] {
            rig.set(rig.at.device_features_sel, word);
            assert_eq!(rig.get(rig.at.device_features), bits, "word {word}");
        }
        // Before the driver is there, nothing is taken.
        rig.set(rig.at.status, 0);
        rig.set(rig.at.status, ACKNOWLEDGE);
        rig.set_features(0, 1);
        rig.set(rig.at.status, ACKNOWLEDGE | DRIVER);
        rig.set_features(1, (F_VERSION_1 >> 32) as u32);
        rig.start();
        assert_eq!(rig.started().0, F_VERSION_1);

        let accepted = F_VERSION_1 | 1 << 63 | 4;
        for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            rig.set(rig.at.status, status);
        }
        // Of each word the last value counts, and there are two words.
        for (word, value) in [(1, u32::MAX), (0, 1), (1, (accepted >> 32) as u32), (0, 4), (2, 1), (3, 1)] {
            rig.set_features(word, value);
        }
        rig.set(rig.at.status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        // Nor is anything behind FEATURES_OK.
        rig.set_features(0, 5);
        rig.start();
        assert_eq!(rig.started().0, accepted);
    }
    // On PCI, what was accepted reads back, and so do all selectors.
    let [_, rig] = Rig::both();
    rig.negotiate(F_VERSION_1 | 5);
    for (word, value) in [(0, 5), (1, 1), (2, 0)] {
        rig.set(PCI.driver_features_sel, word);
        assert_eq!((rig.get(PCI.driver_features), rig.get(PCI.driver_features_sel)), (value, word));
        rig.set(PCI.device_features_sel, word + 7);
        rig.set(PCI.queue_sel, word);
        assert_eq!((rig.get(PCI.device_features_sel), rig.get(PCI.queue_sel)), (word + 7, word));
        // The number of a queue is its place among the notifications; there are two.
        assert_eq!(rig.get((30, 2)), if word < 2 { word } else { 0 });
    }
}

#[test]
fn a_queue_is_where_both_halves_of_its_addresses_say() {
    for rig in Rig::both() {
        for order in [[0, 1], [1, 0]] {
            rig.negotiate(F_VERSION_1);
            // What was said first is forgotten, half by half.
            let lie = QueueSetup {
                size: 4,
                desc_table: u64::MAX,
                avail_ring: u64::MAX,
                used_ring: 0x5555_5555_5555_5555,
            };
            rig.place(1, &lie, order);
            rig.place(1, &setup(16, 1), order);
            rig.set(rig.at.queue_ready, 1);
            rig.start();
            assert_eq!(rig.started(), (F_VERSION_1, vec![(1, setup(16, 1))]), "{order:?}");
        }
    }
}

#[test]
fn a_queue_that_is_ready_stays_where_it_is() {
    for rig in Rig::both() {
        rig.negotiate(F_VERSION_1);
        rig.place(0, &setup(8, 1), [0, 1]);
        rig.set(rig.at.queue_ready, 1);
        rig.place(0, &setup(4, 2), [0, 1]);
        rig.start();
        assert_eq!(rig.started().1, [(0, setup(8, 1))]);
    }
    // By registers of 32 bits it can be taken back until the start, and its lowest bit alone counts.
    let [rig, _] = Rig::both();
    rig.negotiate(F_VERSION_1);
    rig.place(0, &setup(8, 1), [0, 1]);
    rig.set(MMIO.queue_ready, 3);
    assert_eq!(rig.get(MMIO.queue_ready), 1);
    rig.set(MMIO.queue_ready, 2);
    assert_eq!(rig.get(MMIO.queue_ready), 0);
    rig.place(0, &setup(4, 2), [0, 1]);
    rig.set(MMIO.queue_ready, 1);
    rig.start();
    assert_eq!(rig.started().1, [(0, setup(4, 2))]);
}

#[test]
fn only_a_queue_that_runs_can_be_reset_and_only_where_that_was_agreed() {
    let agreed = F_VERSION_1 | F_RING_RESET;
    let resets = |rig: &Rig| std::mem::take(&mut rig.seen.lock().unwrap().resets);
    for rig in Rig::both() {
        let begin = |features| {
            rig.negotiate(features);
            rig.place(0, &setup(8, 1), [0, 1]);
            rig.set(rig.at.queue_ready, 1);
        };
        // It was not agreed; the device does not run; it has failed; the queue is not in use.
        begin(F_VERSION_1);
        rig.start();
        rig.set(rig.at.queue_reset, 1);
        begin(agreed);
        rig.set(rig.at.queue_reset, 1);
        rig.start();
        rig.set(rig.at.queue_sel, 1);
        rig.set(rig.at.queue_reset, 1);
        rig.set(rig.at.queue_sel, 0);
        rig.set(rig.at.queue_reset, 2);
        rig.set(rig.at.status, FAILED);
        rig.set(rig.at.queue_reset, 1);
        assert_eq!(resets(&rig), [0; 0]);

        begin(agreed);
        rig.start();
        rig.set(rig.at.queue_reset, 1);
        // It is none any more.
        rig.set(rig.at.queue_reset, 1);
        assert_eq!((resets(&rig), rig.get(rig.at.queue_ready)), (vec![0], 0));
        rig.place(0, &setup(4, 3), [1, 0]);
        rig.set(rig.at.queue_ready, 1);
        assert_eq!(std::mem::take(&mut rig.seen.lock().unwrap().enabled), [(0, setup(4, 3))]);
    }
}

#[test]
fn a_device_that_was_taken_out_has_nothing() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(MEMORY), 0x10000)]).unwrap();
    let seen = Arc::default();
    let pci = pci(memory, &seen);
    let rig = Rig { bus: pci.clone(), at: PCI, seen };
    Function::unplug(&*pci);
    for word in [0, 1] {
        rig.set(PCI.device_features_sel, word);
        assert_eq!(rig.get(PCI.device_features), 0);
    }
    rig.negotiate(F_VERSION_1);
    assert_eq!(rig.get(PCI.status), ACKNOWLEDGE | DRIVER, "no features go with it");
    for index in [0, 1] {
        rig.place(index, &setup(8, 1), [0, 1]);
        rig.set(PCI.queue_ready, 1);
        assert_eq!((rig.get(PCI.queue_ready), rig.get(PCI.queue_size)), (0, 0), "queue {index}");
    }
    rig.start();
    assert!(rig.seen.lock().unwrap().starts.is_empty());
}

#[test]
fn a_device_s_configuration_is_behind_the_registers() {
    for (rig, begin) in Rig::both().into_iter().zip([0x100, 0x800]) {
        rig.get((begin + 5, 1));
        rig.set((begin, 4), 0);
        // Also by offsets that are no register's.
        rig.get((begin + 0x301, 2));
        assert_eq!(rig.seen.lock().unwrap().config, [(5, 1), (0, 4), (0x301, 2)]);
    }
}

#[test]
fn only_a_write_to_the_control_of_msi_x_changes_where_interrupts_go() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(MEMORY), 0x10000)]).unwrap();
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let pci = pci(memory, &seen);
    let rig = Rig { bus: pci.clone(), at: PCI, seen };
    rig.negotiate(F_VERSION_1);
    rig.start();
    let config = |at: usize| {
        let mut byte = [0];
        Function::read_config(&*pci, at, &mut byte);
        usize::from(byte[0])
    };
    let mut msix = config(0x34);
    while config(msix) != 0x11 {
        msix = config(msix + 1);
    }
    for (at, len, told) in [(0, 2, 0), (0, 4, 1), (2, 2, 1), (2, 1, 1), (3, 1, 1), (4, 4, 0)] {
        Function::write_config(&*pci, msix + at, &[0; 4][..len]);
        assert_eq!(std::mem::take(&mut rig.seen.lock().unwrap().rerouted), told, "{len} bytes at {at}");
    }
}

#[test]
fn the_mock_driver_tells_all_of_a_ring_s_place() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(MEMORY), 0x10000)]).unwrap();
    let seen = Arc::default();
    let device = Dummy(Arc::clone(&seen));
    let bus = MmioTransport::new(Box::new(device), memory.clone(), EventFd::new(0).unwrap()).unwrap();
    let (driver, ring) = (MockMmio::new(&bus), MockRing::new(&memory, MEMORY + 0x1000, 8, false));
    assert!(driver.negotiate(F_VERSION_1) && driver.set_queue(0, ring.setup()));
    driver.start();
    assert_eq!(seen.lock().unwrap().starts, [(F_VERSION_1, vec![(0, *ring.setup())])]);
}
