//! The PCI bus and the virtio transport on it, without KVM: a driver that finds everything by the specification's own path.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use devices::BusDevice;
use devices::pci::msix::Message;
use devices::pci::{Ecam, EventRoutes, Function, Ports, RootComplex, Window};
use devices::virtio::pci::{BAR_LEN, PciTransport};
use devices::virtio::queue::{F_RING_RESET, F_VERSION_1};
use devices::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice};
use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const WINDOW: Range<u64> = 0xd000_0000..0xe000_0000;
const MSIX: u8 = 0x11;
const VENDOR: u8 = 0x09;
const NO_VECTOR: u32 = 0xffff;
const MESSAGE: Message = Message { address: 0xfee0_1000, data: 0x4041 };

/// Of the queues of one start, by their numbers.
type Kicks = Vec<(u16, Arc<EventFd>)>;

/// What happened to the device and to its routes.
#[derive(Default)]
struct Seen {
    /// Queues of each start.
    starts: Mutex<Vec<Kicks>>,
    resets: AtomicUsize,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
    open: Mutex<BTreeMap<u16, (Message, EventFd)>>,
    /// Each opening and closing.
    changes: AtomicUsize,
    listening: Mutex<BTreeMap<u64, EventFd>>,
    refuse: AtomicBool,
    /// The interrupt pin is.
    driven: AtomicBool,
    /// Queues that were reset, and those that were set up anew.
    queues: Mutex<(Vec<u16>, Vec<u16>)>,
    /// How often the device heard that its vectors may be others.
    rerouted: AtomicUsize,
    /// A pair tells its driver of something while it is being stopped.
    late: AtomicBool,
    /// Devices that are dropped.
    dropped: AtomicUsize,
    /// Functions whose routes were given back.
    forgotten: AtomicUsize,
}

impl Seen {
    fn interrupt(&self) -> Arc<dyn Interrupt> {
        self.interrupt.lock().unwrap().clone().unwrap()
    }

    fn open(&self) -> Vec<(u16, Message)> {
        self.open.lock().unwrap().iter().map(|(vector, (message, _))| (*vector, *message)).collect()
    }

    /// Events that went out by an open vector, as KVM would hear them.
    fn sent(&self, vector: u16) -> u64 {
        self.open.lock().unwrap().get(&vector).and_then(|(_, event)| event.read().ok()).unwrap_or(0)
    }

    fn listening(&self) -> Vec<u64> {
        self.listening.lock().unwrap().keys().copied().collect()
    }
}

/// With the addresses at which any device of the bus is listened to: there is one listener at each, as KVM has it.
struct Recorder(Arc<Seen>, Arc<Mutex<BTreeSet<u64>>>);

impl EventRoutes for Recorder {
    fn open(&self, vector: u16, event: &EventFd, message: Message) -> io::Result<()> {
        if self.0.refuse.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Other.into());
        }
        self.0.changes.fetch_add(1, Ordering::Relaxed);
        let before = self.0.open.lock().unwrap().insert(vector, (message, event.try_clone().unwrap()));
        assert!(before.is_none(), "vector {vector} was open");
        Ok(())
    }

    fn close(&self, vector: u16, _: &EventFd) {
        self.0.changes.fetch_add(1, Ordering::Relaxed);
        self.0.open.lock().unwrap().remove(&vector).expect("it was open");
    }

    fn forget(&self) {
        assert!(self.0.open.lock().unwrap().is_empty(), "vectors are closed first");
        self.0.forgotten.fetch_add(1, Ordering::Relaxed);
    }

    fn drive(&self, asserted: bool) -> io::Result<()> {
        if self.0.refuse.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Other.into());
        }
        let before = self.0.driven.swap(asserted, Ordering::Relaxed);
        assert_ne!(before, asserted, "only changes are told");
        Ok(())
    }

    fn listen(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        if self.0.refuse.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        assert!(WINDOW.contains(&address), "{address:#x}");
        if !self.1.lock().unwrap().insert(address) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.0.listening.lock().unwrap().insert(address, kick.try_clone().unwrap());
        Ok(())
    }

    fn unlisten(&self, address: u64, _: &EventFd) {
        self.0.listening.lock().unwrap().remove(&address).expect("it was listened to");
        self.1.lock().unwrap().remove(&address);
    }
}

struct Dummy(Arc<Seen>);

impl Drop for Dummy {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl VirtioDevice for Dummy {
    fn device_type(&self) -> u32 {
        1
    }
    fn features(&self) -> u64 {
        F_VERSION_1 | F_RING_RESET | 1
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[8, 16]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn write_config(&mut self, _: u64, _: &[u8]) {}
    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let queues = activation.queues.into_iter().map(|queue| (queue.index, queue.kick)).collect();
        self.0.starts.lock().unwrap().push(queues);
        *self.0.interrupt.lock().unwrap() = Some(activation.interrupt);
        Ok(())
    }
    fn reset_queue(&mut self, index: u16) {
        self.0.queues.lock().unwrap().0.push(index);
    }
    fn enable_queue(&mut self, queue: ActiveQueue) -> io::Result<()> {
        self.0.queues.lock().unwrap().1.push(queue.index);
        Ok(())
    }
    fn rerouted(&mut self) {
        self.0.rerouted.fetch_add(1, Ordering::Relaxed);
    }
    fn reset(&mut self) {
        self.0.resets.fetch_add(1, Ordering::Relaxed);
        if self.0.late.load(Ordering::Relaxed) {
            let interrupt = self.0.interrupt();
            interrupt.queue(1).and_then(|()| interrupt.needs_reset()).unwrap();
        }
    }
}

/// The bus with devices in its first slots, and its driver.
struct Rig {
    ports: Ports,
    amid: Arc<Amid>,
    ecam: Ecam,
    window: Window,
    seen: Vec<Arc<Seen>>,
}

fn get(bus: &dyn BusDevice, offset: u64, len: usize) -> u32 {
    let mut data = [0; 4];
    data[..len].fill(0xff);
    bus.read(offset, &mut data[..len]);
    u32::from_le_bytes(data)
}

/// What is amid the ports: it reads as a mark, and remembers what was written.
#[derive(Default)]
struct Amid(Mutex<Vec<Vec<u8>>>);

impl BusDevice for Amid {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0x5a);
    }
    fn write(&self, _: u64, data: &[u8]) {
        self.0.lock().unwrap().push(data.to_vec());
    }
}

impl Rig {
    fn new(devices: usize) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let mut root = RootComplex::new(WINDOW);
        let seen: Vec<_> = (0..devices).map(|_| Arc::<Seen>::default()).collect();
        let taken = Arc::default();
        for (slot, seen) in (1..).zip(&seen) {
            let (device, routes) = (Dummy(seen.clone()), Recorder(seen.clone(), Arc::clone(&taken)));
            let device = PciTransport::new(Box::new(device), memory.clone(), WINDOW, Arc::new(routes));
            root.add(slot, Arc::new(device.unwrap()), 11);
        }
        let root = Arc::new(root);
        let amid = Arc::<Amid>::default();
        let ports = Ports { root: root.clone(), amid: amid.clone() };
        Self { ports, amid, ecam: Ecam(root.clone()), window: Window(root), seen }
    }

    /// One device, with memory space enabled.
    fn enabled() -> Self {
        let rig = Self::new(1);
        rig.set_config(1, 4, 2, 2);
        rig
    }

    /// The same with its driver up: queue 1 is enabled, and no vector is set.
    fn started() -> Self {
        Self::started_with(F_VERSION_1)
    }

    /// The same with a driver that accepts these features, of the upper word.
    fn started_with(features: u64) -> Self {
        let rig = Self::enabled();
        for status in [0, 1, 3] {
            rig.set(20, 1, status);
        }
        rig.set(8, 4, 1);
        rig.set(12, 4, (features >> 32) as u32);
        rig.set(20, 1, 0xb);
        rig.set(22, 2, 1);
        for (offset, address) in [(32, 0x1000), (40, 0x2000), (48, 0x3000)] {
            rig.set(offset, 4, address);
        }
        rig.set(28, 2, 1);
        // Neither of which disables it.
        rig.set(28, 2, 0);
        rig.set(28, 2, 2);
        rig.set(20, 1, 0xf);
        assert_eq!(rig.get(20, 1), 0xf);
        rig
    }

    fn config(&self, slot: u64, offset: u64, len: usize) -> u32 {
        get(&self.ecam, slot << 15 | offset, len)
    }

    fn set_config(&self, slot: u64, offset: u64, len: usize, value: u32) {
        self.ecam.write(slot << 15 | offset, &value.to_le_bytes()[..len]);
    }

    fn bar(&self, slot: u64) -> u64 {
        u64::from(self.config(slot, 0x10, 4))
    }

    /// A register of the first device.
    fn get(&self, offset: u64, len: usize) -> u32 {
        get(&self.window, self.bar(1) - WINDOW.start + offset, len)
    }

    fn set(&self, offset: u64, len: usize, value: u32) {
        self.window.write(self.bar(1) - WINDOW.start + offset, &value.to_le_bytes()[..len]);
    }

    /// The first device's capabilities: ID and offset.
    fn capabilities(&self) -> Vec<(u8, u64)> {
        let mut all = Vec::new();
        let mut at = u64::from(self.config(1, 0x34, 1));
        while at != 0 {
            assert!(at >= 0x40 && at.is_multiple_of(4) && all.len() < 48, "{at:#x} after {all:x?}");
            all.push((self.config(1, at, 1) as u8, at));
            at = u64::from(self.config(1, at + 1, 1));
        }
        all
    }

    /// The vendor-specific capability of a kind.
    fn structure(&self, kind: u32) -> u64 {
        let mut all = self.capabilities().into_iter().filter(|(id, _)| *id == VENDOR).map(|(_, at)| at);
        all.find(|at| self.config(1, at + 3, 1) == kind).expect("there is one of each kind")
    }

    fn msix(&self) -> u64 {
        self.capabilities().iter().find(|(id, _)| *id == MSIX).expect("it has MSI-X").1
    }

    fn set_msix_control(&self, control: u32) {
        self.set_config(1, self.msix() + 2, 2, control);
    }

    fn set_vector(&self, vector: u64, message: Message, masked: u32) {
        let entry = 0x1000 + 16 * vector;
        self.set(entry + 12, 4, 1);
        self.set(entry, 4, message.address as u32);
        self.set(entry + 4, 4, (message.address >> 32) as u32);
        self.set(entry + 8, 4, message.data);
        self.set(entry + 12, 4, masked);
    }
}

#[test]
fn firmware_puts_bars_one_behind_the_other() {
    // Wherever the window begins: also where a length that is a little less would have a multiple.
    for start in [WINDOW.start, 27 * BAR_LEN * (BAR_LEN / 2 - 1)] {
        let mut root = RootComplex::new(start..0xe000_0000);
        (1..=31).for_each(|slot| root.add(slot, function(&Arc::default(), &Arc::default()), 11));
        let ecam = Ecam(Arc::new(root));
        for slot in 1..=31 {
            assert_eq!(u64::from(get(&ecam, slot << 15 | 0x10, 4)), start + (slot - 1) * BAR_LEN);
        }
    }
}

#[test]
fn who_interrupts_for_a_device_is_lent_the_vector_of_each_queue() {
    let rig = Rig::started();
    let interrupt = rig.seen[0].interrupt();
    assert!(interrupt.event(1).is_none(), "the ISR status tells as well");
    rig.set(26, 2, 1);
    rig.set_vector(1, MESSAGE, 0);
    rig.set_msix_control(0x8000);
    interrupt.event(1).expect("queue 1 has vector 1").write(1).unwrap();
    assert_eq!(rig.seen[0].sent(1), 1);
    assert!(interrupt.event(0).is_none() && interrupt.event(9).is_none(), "those have none");
    rig.set_msix_control(0);
    assert!(interrupt.event(1).is_none());
}

#[test]
fn the_bus_has_a_host_bridge_and_its_devices_and_nothing_else() {
    let rig = Rig::new(2);
    let port = |address: u32, offset: u64, len| {
        rig.ports.write(0, &address.to_le_bytes());
        assert_eq!(get(&rig.ports, 0, 4), address & !3, "the address reads back, as a probe expects");
        get(&rig.ports, 4 + offset, len)
    };
    for (slot, device) in
        [(0, 0x0008_1b36), (1, 0x1041_1af4), (2, 0x1041_1af4), (3, u32::MAX), (31, u32::MAX)]
    {
        assert_eq!(rig.config(u64::from(slot), 0, 4), device, "slot {slot}");
        assert_eq!(port(0x8000_0000 | slot << 11, 0, 4), device, "slot {slot} by the ports");
    }
    assert_eq!([rig.bar(1), rig.bar(2)], [WINDOW.start, WINDOW.start + BAR_LEN], "one behind the other");
    assert_eq!(port(0x8000_000b, 0, 4), 0x0600_0000, "the class; the address' low bits do not count");
    assert_eq!((port(0x8000_0800, 2, 2), port(0x8000_0808, 3, 1)), (0x1041, 0x02));
    assert_eq!(port(0x8000_0800, 3, 2), 0xffff, "an access past the four bytes reaches nothing");
    assert_eq!(port(0x0000_0800, 0, 4), u32::MAX, "nor one without the enable bit");
    for elsewhere in [0x8000_0900u32, 0x8001_0800] {
        assert_eq!(port(elsewhere, 0, 4), u32::MAX, "{elsewhere:#x}: one function in a slot, one bus");
    }
    assert_eq!(rig.config(1, 0x1000, 4), u32::MAX, "function 1");
    assert_eq!(rig.config(1, 8, 4), 0x0200_0001, "an Ethernet controller of revision 1");
    assert_eq!((rig.config(1, 0x2c, 4), rig.config(1, 0x3c, 4)), (0x0040_1af4, 0x010b), "INTA, and its line");
    assert_eq!((rig.config(1, 0x100, 4), rig.config(1, 0xffe, 2)), (0, 0), "no extended capabilities");
    assert_eq!(rig.config(1, 0xffe, 4), u32::MAX, "an access past the function");

    // What is no access to the port mechanism's address changes nothing.
    port(0x8000_0800, 0, 4);
    rig.ports.write(3, &[1]);
    rig.ports.write(0, &[0; 2]);
    assert_eq!(get(&rig.ports, 0, 4), 0x8000_0800);
    assert_eq!(get(&rig.ports, 0, 1), 0xff);
    assert!(rig.amid.0.lock().unwrap().is_empty(), "an address is no reset");
    // The byte that is another device's, and its neighbours that are nobody's.
    rig.ports.write(1, &[6]);
    rig.ports.write(1, &[6, 0]);
    rig.ports.write(2, &[6]);
    rig.ports.write(1, &[6; 4]);
    assert_eq!(*rig.amid.0.lock().unwrap(), [vec![6], vec![6, 0]]);
    assert_eq!([1, 2].map(|offset| get(&rig.ports, offset, 1)), [0x5a, 0xff]);
    assert_eq!(get(&rig.ports, 0, 4), 0x8000_0800);
    // The ports write too, and identity stays.
    rig.ports.write(4, &u32::MAX.to_le_bytes());
    rig.set_config(0, 0, 4, 0);
    assert_eq!((rig.config(1, 0, 4), rig.config(0, 0, 4)), (0x1041_1af4, 0x0008_1b36));
}

#[test]
fn bars_are_sized_and_placed_and_answer_once_enabled() {
    let rig = Rig::new(3);
    let places: Vec<_> = (1..4).map(|slot| rig.bar(slot)).collect();
    assert_eq!(places, [0, 1, 2].map(|index| WINDOW.start + index * BAR_LEN));
    assert_eq!(rig.get(20, 1), 0xff, "not before COMMAND says so");
    rig.set_config(1, 4, 2, 0xffff);
    assert_eq!(
        rig.config(1, 4, 4),
        0x0010_0406,
        "memory, bus master, no interrupt by pin; a list of capabilities"
    );
    assert_eq!((rig.get(20, 1), rig.get(18, 2)), (0, 2));
    rig.set_config(1, 0x10, 4, u32::MAX);
    assert_eq!(rig.config(1, 0x10, 4), !(BAR_LEN as u32 - 1), "what can be written tells the size");
    for bar in (0x14..0x28).step_by(4).chain([0x30]) {
        rig.set_config(1, bar, 4, u32::MAX);
        assert_eq!(rig.config(1, bar, 4), 0, "there is one BAR, and no ROM");
    }
    // A byte of it at a time.
    for (byte, value) in [0x00u32, 0x40, 0x00, 0xd1].into_iter().enumerate() {
        rig.set_config(1, 0x10 + byte as u64, 1, value);
    }
    assert_eq!(rig.bar(1), 0xd100_4000);
    assert_eq!(rig.get(18, 2), 2);
}

#[test]
fn a_bar_decodes_in_the_window_alone_and_takes_its_notifications_along() {
    let rig = Rig::enabled();
    let at = |base: u64| [base + 0x3000, base + 0x3004];
    let seen = &rig.seen[0];
    assert_eq!(seen.listening(), at(WINDOW.start));
    for base in [0u32, 0x10_0000, 0xc000_0000, 0xcfff_c000, 0xe000_0000, 0xfec0_0000, 0xffff_c000] {
        rig.set_config(1, 0x10, 4, base);
        assert_eq!(seen.listening(), [0; 0], "{base:#x} is not in the window");
        assert_eq!(get(&rig.window, 18, 2), 0xffff);
    }
    rig.set_config(1, 0x10, 4, 0xdfff_c000);
    assert_eq!((seen.listening(), rig.get(18, 2)), (at(0xdfff_c000).into(), 2));
    rig.set_config(1, 4, 2, 0);
    assert_eq!((seen.listening(), rig.get(18, 2)), (vec![], 0xffff));
    // Where nobody can listen, notifications come by writes.
    seen.refuse.store(true, Ordering::Relaxed);
    rig.set_config(1, 4, 2, 2);
    assert_eq!((seen.listening(), rig.get(18, 2)), (vec![], 2));
}

#[test]
fn of_two_bars_on_one_place_the_first_answers() {
    let rig = Rig::new(2);
    for slot in [1, 2] {
        rig.set_config(slot, 4, 2, 2);
        rig.set_config(slot, 0x10, 4, 0xd800_0000);
    }
    rig.set(20, 1, 1);
    assert_eq!(rig.get(20, 1), 1);
    rig.set_config(1, 0x10, 4, 0xd900_0000);
    assert_eq!(get(&rig.window, 0x800_0014, 1), 0, "the second, which nobody has touched");
    assert_eq!(rig.get(20, 1), 1);
}

#[test]
fn bars_that_were_on_one_place_are_listened_to_again_once_they_are_apart() {
    let rig = Rig::new(3);
    let at = |base: u64| [base + 0x3000, base + 0x3004].to_vec();
    let listening = || rig.seen.iter().map(|seen| seen.listening()).collect::<Vec<_>>();
    (1..=3).for_each(|slot| rig.set_config(slot, 4, 2, 2));
    let [first, second, third] = [1, 2, 3].map(|slot| rig.bar(slot));
    assert_eq!(listening(), [at(first), at(second), at(third)]);
    // All on the place of the first.
    rig.set_config(2, 0x10, 4, first as u32);
    rig.set_config(3, 0x10, 4, first as u32);
    assert_eq!(listening(), [at(first), vec![], vec![]]);
    // The first leaves, by its BAR; then who has its place now, by its command register.
    rig.set_config(1, 0x10, 4, second as u32);
    assert_eq!(listening(), [at(second), at(first), vec![]]);
    rig.set_config(2, 4, 2, 0);
    assert_eq!(listening(), [at(second), vec![], at(first)]);
    rig.set_config(2, 0x10, 4, third as u32);
    rig.set_config(2, 4, 2, 2);
    assert_eq!(listening(), [at(second), at(third), at(first)]);
}

#[test]
fn capabilities_lead_to_structures_that_are_apart_and_in_the_bar() {
    let rig = Rig::enabled();
    let ids: Vec<_> = rig.capabilities().iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [MSIX, VENDOR, VENDOR, VENDOR, VENDOR, VENDOR]);
    let msix = rig.msix();
    assert_eq!(rig.config(1, msix + 2, 2), 2, "three vectors, one less than which is said; off");
    let (table, pending) = (rig.config(1, msix + 4, 4), rig.config(1, msix + 8, 4));
    let mut areas = vec![(u64::from(table), 3 * 16), (u64::from(pending), 8)];
    for kind in 1..=4 {
        let at = rig.structure(kind);
        assert_eq!(rig.config(1, at + 4, 1), 0, "BAR 0");
        areas.push((rig.config(1, at + 8, 4).into(), rig.config(1, at + 12, 4).into()));
        // Read-only, as all but one capability.
        rig.set_config(1, at + 8, 4, u32::MAX);
        assert_ne!(rig.config(1, at + 8, 4), u32::MAX);
    }
    areas.sort_unstable();
    assert!(areas.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{areas:x?}");
    assert!(areas.last().is_some_and(|(at, len)| at + len <= BAR_LEN), "{areas:x?}");
    let notify = rig.structure(2);
    assert_eq!((rig.config(1, notify + 2, 1), rig.config(1, notify + 16, 4)), (20, 4));
    for queue in 0..2 {
        rig.set(22, 2, queue);
        assert_eq!(rig.get(30, 2), queue, "its place among the notifications");
    }
}

#[test]
fn a_driver_gets_the_device_going_and_a_reset_forgets() {
    let rig = Rig::started();
    let seen = &rig.seen[0];
    assert_eq!(seen.starts.lock().unwrap()[0].iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1]);
    assert_eq!((rig.get(18, 2), rig.get(24, 2), rig.get(28, 2)), (2, 16, 1));
    assert_eq!((rig.get(32, 4), rig.get(40, 4), rig.get(48, 4)), (0x1000, 0x2000, 0x3000));
    assert_eq!(rig.get(28, 2), 1, "a queue is disabled by a reset alone");
    rig.set(22, 2, 9);
    assert_eq!((rig.get(24, 2), rig.get(26, 2), rig.get(28, 2)), (0, NO_VECTOR, 0), "there is no queue 9");
    // Fields have one width.
    for (offset, len) in [(20, 4), (22, 1), (24, 4), (32, 2), (16, 4), (21, 2)] {
        let ones = u32::MAX >> (32 - 8 * len);
        assert_eq!(rig.get(offset, len), ones, "{len} bytes at {offset}");
    }
    assert_eq!(rig.get(0x803, 1), 3, "the device's own");

    seen.interrupt().needs_reset().unwrap();
    assert_eq!(rig.get(20, 1), 0x4f);
    rig.set(20, 1, 0);
    rig.set(22, 2, 1);
    assert_eq!((rig.get(20, 1), rig.get(28, 2), rig.get(32, 4)), (0, 0, 0));
    assert_eq!(seen.resets.load(Ordering::Relaxed), 2, "one before the negotiation, and this one");
}

#[test]
fn the_address_of_a_queue_is_accessed_in_halves_or_whole() {
    let rig = Rig::enabled();
    for status in [0, 1, 3] {
        rig.set(20, 1, status);
    }
    rig.set(8, 4, 1);
    rig.set(12, 4, 1);
    rig.set(20, 1, 0xb);
    let at = |offset| rig.bar(1) - WINDOW.start + offset;
    let whole = |offset| {
        let mut data = [0xff; 8];
        rig.window.read(at(offset), &mut data);
        u64::from_le_bytes(data)
    };
    for (offset, address) in [(32, 0x1_2345_6780u64), (40, 0x2_3456_7890), (48, 0x3_4567_89a0)] {
        rig.window.write(at(offset), &address.to_le_bytes());
        assert_eq!(whole(offset), address);
        assert_eq!((rig.get(offset, 4), rig.get(offset + 4, 4)), (address as u32, (address >> 32) as u32));
    }
    // What else is eight bytes long is as little a field as before.
    rig.window.write(at(36), &[0; 8]);
    rig.window.write(at(24), &[0; 8]);
    assert_eq!((whole(32), whole(36), rig.get(24, 2)), (0x1_2345_6780, u64::MAX, 8));
}

#[test]
fn what_comes_while_a_device_is_reset_is_forgotten() {
    for msix in [0x8000, 0] {
        let rig = Rig::started();
        rig.seen[0].late.store(true, Ordering::Relaxed);
        // Masked, a vector that is raised is pending.
        rig.set_msix_control(msix);
        rig.set(16, 2, 0);
        rig.set(26, 2, 1);
        rig.set(20, 1, 0);
        rig.seen[0].late.store(false, Ordering::Relaxed);
        assert_eq!(rig.get(20, 1), 0, "the status");
        assert_eq!(rig.get(0x400, 1), 0, "the ISR status");
        assert_eq!(rig.get(0x2000, 4), 0, "pending bits");
        rig.set(22, 2, 1);
        assert_eq!((rig.get(16, 2), rig.get(26, 2)), (NO_VECTOR, NO_VECTOR));
    }
}

#[test]
fn a_device_that_runs_hears_that_its_vectors_are_others() {
    let rig = Rig::started();
    let rerouted = || rig.seen[0].rerouted.swap(0, Ordering::Relaxed);
    assert_eq!(rerouted(), 0);
    rig.set(26, 2, 1);
    assert_eq!(rerouted(), 1, "a queue's vector");
    rig.set_msix_control(0x8000);
    assert_eq!(rerouted(), 1, "MSI-X on");
    // By a wider access too, of which the control is only a part.
    rig.set_config(1, rig.msix(), 4, 0);
    assert_eq!(rerouted(), 1, "MSI-X off");
    rig.set(20, 1, 0);
    rig.set(26, 2, 0);
    rig.set_msix_control(0x8000);
    assert_eq!(rerouted(), 0, "it does not run");
}

#[test]
fn a_queue_is_reset_and_set_up_anew_while_the_device_runs() {
    let rig = Rig::started();
    rig.set(58, 2, 1);
    assert_eq!(rig.get(28, 2), 1, "it was not negotiated");
    let rig = Rig::started_with(F_VERSION_1 | F_RING_RESET);
    let seen = || std::mem::take(&mut *rig.seen[0].queues.lock().unwrap());
    rig.set(26, 2, 1);
    rig.set(58, 2, 0);
    rig.set(58, 4, 1);
    assert_eq!((rig.get(28, 2), seen()), (1, (vec![], vec![])));
    for _ in 0..2 {
        rig.set(58, 2, 1);
        assert_eq!((rig.get(58, 2), rig.get(28, 2), rig.get(26, 2)), (0, 0, NO_VECTOR));
        assert_eq!((rig.get(24, 2), rig.get(32, 4)), (16, 0), "as after a reset of the device");
        rig.set(58, 2, 1);
        assert_eq!(seen(), (vec![1], vec![]), "once");
        rig.set(24, 2, 8);
        rig.set(26, 2, 0);
        for (offset, address) in [(32, 0x4000), (40, 0x5000), (48, 0x6000)] {
            rig.set(offset, 4, address);
        }
        rig.set(28, 2, 1);
        assert_eq!((rig.get(28, 2), rig.get(24, 2), rig.get(26, 2), rig.get(32, 4)), (1, 8, 0, 0x4000));
        rig.set(32, 4, 0x7000);
        rig.set(28, 2, 1);
        assert_eq!((rig.get(32, 4), seen()), (0x4000, (vec![], vec![1])), "ready, it stays where it is");
    }
    assert_eq!(rig.get(20, 1), 0xf);
    // A queue that was not enabled at the start cannot be now, and one that makes no sense stops the device.
    rig.set(22, 2, 0);
    rig.set(32, 4, 0x1000);
    rig.set(28, 2, 1);
    assert_eq!(rig.get(28, 2), 0);
    rig.set(22, 2, 1);
    rig.set(58, 2, 1);
    rig.set(28, 2, 1);
    assert_eq!(rig.get(20, 1), 0x4f);
}

#[test]
fn without_bus_master_the_device_stops_until_it_is_reset() {
    let rig = Rig::started();
    let resets = || rig.seen[0].resets.load(Ordering::Relaxed);
    let before = resets();
    rig.set(16, 2, 0);
    rig.set_msix_control(0x8000);
    rig.set_config(1, 4, 2, 2);
    rig.set_config(1, 4, 2, 6);
    assert_eq!((rig.get(20, 1), resets()), (0xf, before), "a driver that has not set it is served");
    rig.set_config(1, 4, 2, 2);
    assert_eq!((rig.get(20, 1), resets()), (0x4f, before + 1));
    assert_eq!(rig.get(0x2000, 4), 0, "an interrupt is a write as well");
    rig.set_config(1, 4, 2, 6);
    assert_eq!(
        (rig.get(20, 1), rig.seen[0].starts.lock().unwrap().len()),
        (0x4f, 1),
        "a reset is what it needs"
    );
    rig.set(20, 1, 0);
    rig.set_config(1, 4, 2, 2);
    assert_eq!((rig.get(20, 1), resets()), (0, before + 2), "there is nothing to stop");
}

#[test]
fn vectors_open_and_close_with_masks_and_messages() {
    let rig = Rig::started();
    let seen = &rig.seen[0];
    rig.set(22, 2, 1);
    rig.set(26, 2, 2);
    rig.set(16, 2, 0);
    assert_eq!((rig.get(26, 2), rig.get(16, 2)), (2, 0));
    rig.set_vector(2, MESSAGE, 0);
    rig.set_vector(0, MESSAGE, 1);
    assert_eq!(seen.open(), [], "MSI-X is off");
    rig.set_msix_control(0x8000);
    assert_eq!(seen.open(), [(2, MESSAGE)]);
    seen.interrupt().queue(1).unwrap();
    assert_eq!(rig.get(0x2000, 4), 0, "what goes out is not pending");
    assert_eq!(seen.sent(2), 1);

    // Masked, it is pending, and goes out when it is unmasked.
    rig.set(0x102c, 4, 1);
    assert_eq!(seen.open(), []);
    seen.interrupt().queue(1).unwrap();
    seen.interrupt().config().unwrap();
    assert_eq!((rig.get(0x2000, 4), rig.get(0x2000, 4), rig.get(0x2004, 4)), (5, 5, 0), "and stays so");
    rig.set(0x102c, 4, 0);
    assert_eq!((seen.open(), seen.sent(2), rig.get(0x2000, 4)), (vec![(2, MESSAGE)], 1, 1));

    // Another message, without a mask too; the same one again changes nothing.
    let changes = seen.changes.load(Ordering::Relaxed);
    rig.set(0x1028, 4, MESSAGE.data);
    assert_eq!(seen.changes.load(Ordering::Relaxed), changes);
    rig.set(0x1028, 4, 0x42);
    let other = Message { data: 0x42, ..MESSAGE };
    assert_eq!(seen.open(), [(2, other)]);
    rig.window.write(rig.bar(1) - WINDOW.start + 0x1020, &0x1_fee0_2003u64.to_le_bytes());
    assert_eq!(seen.open(), [(2, Message { address: 0x1_fee0_2000, ..other })], "eight bytes at once");

    // The function's mask, and its end.
    rig.set_msix_control(0xc000);
    assert_eq!(seen.open(), []);
    seen.interrupt().queue(1).unwrap();
    assert_eq!(rig.get(0x2000, 4), 5);
    rig.set_msix_control(0x8000);
    assert_eq!((seen.open().len(), seen.sent(2)), (1, 1));
    rig.set_msix_control(0);
    assert_eq!(seen.open(), []);
    rig.set_msix_control(0x8000);
    assert_eq!((seen.open().len(), rig.get(0x2000, 4)), (1, 0), "what was pending before is not");

    // A reset takes the vectors away.
    rig.set(0x100c, 4, 1);
    seen.interrupt().config().unwrap();
    rig.set(20, 1, 0);
    assert_eq!((rig.get(16, 2), rig.get(0x2000, 4)), (NO_VECTOR, 0));
    rig.set(22, 2, 1);
    assert_eq!(rig.get(26, 2), NO_VECTOR);
    seen.interrupt().queue(1).unwrap();
    assert_eq!(seen.sent(2), 0);
}

#[test]
fn a_vector_that_cannot_be_opened_stays_pending_until_it_can() {
    let rig = Rig::started();
    let seen = &rig.seen[0];
    rig.set(22, 2, 1);
    rig.set(26, 2, 1);
    rig.set_msix_control(0x8000);
    seen.refuse.store(true, Ordering::Relaxed);
    rig.set_vector(1, MESSAGE, 0);
    seen.interrupt().queue(1).unwrap();
    assert_eq!((seen.open(), rig.get(0x2000, 4)), (vec![], 2));
    seen.refuse.store(false, Ordering::Relaxed);
    rig.set_vector(1, MESSAGE, 0);
    assert_eq!((seen.open(), seen.sent(1)), (vec![(1, MESSAGE)], 1));
}

/// What the thread of a test logs as a warning, as a vCPU's does for its guest.
struct Warnings;

thread_local! {
    static WARNINGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

impl log::Log for Warnings {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if record.level() <= log::Level::Warn {
            WARNINGS.with_borrow_mut(|warnings| warnings.push(record.args().to_string()));
        }
    }
    fn flush(&self) {}
}

#[test]
fn what_a_guest_can_have_refused_for_ever_is_said_once() {
    log::set_logger(&Warnings).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let rig = Rig::started();
    rig.set_msix_control(0x8000);
    rig.seen[0].refuse.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        for vector in 0..3 {
            rig.set_vector(vector, MESSAGE, 0);
        }
    }
    WARNINGS.with_borrow_mut(|warnings| {
        assert!(matches!(&warnings[..], [one] if one.contains("stays masked")), "{warnings:?}");
        warnings.clear();
    });
    for _ in 0..3 {
        for (offset, len, value) in [
            (20, 1, 0),
            (20, 1, 1),
            (20, 1, 3),
            (8, 4, 1),
            (12, 4, 1),
            (20, 1, 0xb),
            (28, 2, 1),
            (20, 1, 0xf),
        ] {
            rig.set(offset, len, value);
        }
        assert_eq!(rig.get(20, 1), 0x4f, "a queue without rings");
    }
    WARNINGS.with_borrow(|warnings| {
        assert!(matches!(&warnings[..], [one] if one.contains("cannot start")), "{warnings:?}");
    });
}

#[test]
fn absurd_vectors_are_none() {
    let rig = Rig::started();
    rig.set(22, 2, 1);
    for offset in [16, 26] {
        for (value, becomes) in
            [(2, 2), (3, NO_VECTOR), (0, 0), (0xfffe, NO_VECTOR), (1, 1), (NO_VECTOR, NO_VECTOR)]
        {
            rig.set(offset, 2, value);
            assert_eq!(rig.get(offset, 2), becomes, "vector {value:#x} at {offset}");
        }
    }
    rig.set_msix_control(0x8000);
    rig.seen[0].interrupt().queue(1).unwrap();
    rig.seen[0].interrupt().queue(77).unwrap();
    assert_eq!(rig.get(0x2000, 4), 0);
    // Past the table there is nothing, nor do odd accesses reach it.
    for (offset, len) in [(0x1030, 4), (0x1fff, 1), (0x100c, 2), (0x1002, 4), (0x2001, 1), (0x2002, 4)] {
        rig.set(offset, len, 0);
        assert_eq!(rig.get(offset, len), u32::MAX >> (32 - 8 * len), "{len} bytes at {offset:#x}");
    }
    assert_eq!(rig.get(0x100c, 4), 1, "still masked");
}

#[test]
fn without_msi_x_the_isr_status_tells() {
    let rig = Rig::started();
    let interrupt = rig.seen[0].interrupt();
    interrupt.queue(1).unwrap();
    let generation = rig.get(21, 1);
    interrupt.config().unwrap();
    assert_eq!(rig.get(21, 1), generation + 1);
    assert_eq!((rig.get(0x400, 1), rig.get(0x400, 1)), (3, 0), "reading clears it");
    rig.set_msix_control(0x8000);
    interrupt.queue(1).unwrap();
    interrupt.config().unwrap();
    assert_eq!(rig.get(0x400, 1), 2);
}

#[test]
fn without_msi_x_the_pin_is_driven_until_the_isr_status_is_read() {
    let rig = Rig::started();
    let interrupt = rig.seen[0].interrupt();
    let driven = || {
        let status = rig.config(1, 6, 2) & 8 != 0;
        (rig.seen[0].driven.load(Ordering::Relaxed), status)
    };
    assert_eq!(driven(), (false, false));
    for tell in
        [|interrupt: &dyn Interrupt| interrupt.queue(1), |interrupt: &dyn Interrupt| interrupt.config()]
    {
        tell(&*interrupt).unwrap();
        tell(&*interrupt).unwrap();
        assert_eq!(driven(), (true, true));
        assert_ne!(rig.get(0x400, 1), 0);
        assert_eq!(driven(), (false, false));
    }
    // By configuration space, too, reading clears it; what is read without that is not the status.
    interrupt.queue(1).unwrap();
    rig.get(0x400, 4);
    assert_eq!(driven(), (true, true));
    // Forbidden, it is let go, and what is pending stays so.
    rig.set_config(1, 4, 2, 0x402);
    assert_eq!(driven(), (false, true));
    interrupt.config().unwrap();
    assert_eq!(driven(), (false, true));
    rig.set_config(1, 4, 2, 2);
    assert_eq!(driven(), (true, true));
    // With vectors there is no pin.
    rig.set_msix_control(0x8000);
    assert_eq!(driven(), (false, false));
    interrupt.queue(1).unwrap();
    assert_eq!(driven(), (false, false));
    rig.set_msix_control(0);
    assert_eq!(driven(), (true, true), "what was pending before is so again");
    rig.set(20, 1, 0);
    assert_eq!(driven(), (false, false), "a reset forgets");
    // Refused, it is tried again.
    rig.seen[0].refuse.store(true, Ordering::Relaxed);
    interrupt.queue(1).unwrap();
    assert_eq!(driven(), (false, true));
    rig.seen[0].refuse.store(false, Ordering::Relaxed);
    interrupt.queue(1).unwrap();
    assert_eq!(driven(), (true, true));
    let seen = rig.seen[0].clone();
    drop((rig, interrupt));
    assert!(!seen.driven.load(Ordering::Relaxed), "who goes lets go");
}

#[test]
fn the_bar_is_reached_by_configuration_space_too() {
    let rig = Rig::new(1);
    let access = rig.structure(5);
    let select = |bar: u32, offset: u32, len: u32| {
        rig.set_config(1, access + 4, 1, bar);
        rig.set_config(1, access + 8, 4, offset);
        rig.set_config(1, access + 12, 4, len);
    };
    select(0, 18, 2);
    assert_eq!(rig.config(1, access + 16, 2), 2, "num_queues, with memory space disabled");
    select(0, 20, 1);
    rig.set_config(1, access + 16, 4, 0xff01);
    assert_eq!(rig.config(1, access + 16, 1), 1, "the status is one byte of what was written");
    rig.set_config(1, access + 16, 1, 3);
    assert_eq!(rig.config(1, access + 16, 1), 3);
    for (bar, offset, len) in [
        (1, 20, 1),
        (0, 20, 3),
        (0, 20, 0),
        (0, 21, 2),
        (0, BAR_LEN as u32, 1),
        (0, u32::MAX, 1),
        (0, 20, u32::MAX),
        (0, 16, 8),
    ] {
        select(bar, offset, len);
        rig.set_config(1, access + 16, 4, 0);
    }
    select(0, 20, 1);
    // Beside the data, whose zero would be a reset.
    rig.set_config(1, access + 20, 4, 0);
    rig.set_config(1, access + 12, 4, 1);
    assert_eq!(rig.config(1, access + 16, 1), 3, "none of them was the status");
    select(0, 0x3000, 4);
    rig.set_config(1, access + 16, 4, 0);
}

#[test]
fn notifications_go_to_their_queue_and_nowhere_else() {
    let rig = Rig::started();
    let kick = rig.seen[0].starts.lock().unwrap()[0][0].1.try_clone().unwrap();
    for (offset, len) in [(0x3000, 2), (0x3008, 2), (0x3002, 2), (0x3005, 1), (0x3ffc, 4), (0x3800, 4)] {
        rig.set(offset, len, 1);
    }
    assert!(kick.read().is_err());
    for (len, value) in [(2, 1), (4, u32::MAX), (1, 0)] {
        rig.set(0x3004, len, value);
    }
    assert_eq!(kick.read().unwrap(), 3, "the address says which, whatever is written");
    assert_eq!(rig.get(0x3004, 2), 0xffff);
}

#[derive(Clone, Debug)]
struct Access {
    place: usize,
    offset: u64,
    len: usize,
    write: Option<u64>,
}

fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let offset = prop_oneof![
        // Both functions' first registers, and what lies around them.
        (1u64..4, 0u64..0x110).prop_map(|(slot, register)| slot << 15 | register),
        0u64..0x60,
        (0u64..0x3100).prop_map(|offset| 0x1000 + offset % 0x2100),
        0u64..0x10_0000,
    ];
    let value = prop_oneof![any::<u64>(), 0u64..16, Just(u64::MAX), Just(0xd000_0000), Just(0x8000_8006)];
    let access = (0usize..4, offset, 0usize..9, proptest::option::of(value));
    let access = access.prop_map(|(place, offset, len, write)| Access { place, offset, len, write });
    proptest::collection::vec(access, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_access_panics_or_leaves_the_window(accesses in accesses(), enable: bool) {
        let rig = Rig::new(2);
        if enable {
            for slot in [1, 2] {
                rig.set_config(slot, 4, 2, 2);
                rig.set_config(slot, 0x42, 2, 0x8000);
            }
        }
        for Access { place, offset, len, write } in accesses {
            let (bus, offset): (&dyn BusDevice, _) = match place {
                0 => (&rig.ports, offset % 8),
                1 => (&rig.ecam, offset),
                2 => (&rig.window, offset),
                // Wherever the first device now is.
                _ => (&rig.window, rig.bar(1).wrapping_sub(WINDOW.start).wrapping_add(offset) % 0x1000_0000),
            };
            match write {
                Some(value) => bus.write(offset, &value.to_le_bytes()[..len]),
                None => bus.read(offset, &mut [0xff; 8][..len]),
            }
        }
        prop_assert_eq!(rig.config(1, 0, 4), 0x1041_1af4);
        for seen in &rig.seen {
            if let Some(interrupt) = &*seen.interrupt.lock().unwrap() {
                interrupt.queue(0).unwrap();
            }
        }
    }
}

/// A function like those of a [`Rig`], which writes down what happens to it, for a slot of a bus that runs.
fn function(seen: &Arc<Seen>, taken: &Arc<Mutex<BTreeSet<u64>>>) -> Arc<PciTransport> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let routes = Recorder(seen.clone(), taken.clone());
    Arc::new(PciTransport::new(Box::new(Dummy(seen.clone())), memory, WINDOW, Arc::new(routes)).unwrap())
}

#[test]
fn a_function_that_is_taken_out_leaves_nothing() {
    let rig = Rig::started();
    let (root, seen) = (&rig.ecam.0, &rig.seen[0]);
    let interrupt = seen.interrupt();
    // Without vectors its pin is driven; with them one is open.
    interrupt.queue(1).unwrap();
    assert!(seen.driven.load(Ordering::Relaxed));
    rig.set_msix_control(0x8000);
    rig.set_vector(1, MESSAGE, 0);
    assert_eq!((seen.open().len(), seen.listening().len()), (1, 2));
    let (bar, resets) = (rig.bar(1), seen.resets.load(Ordering::Relaxed));

    assert!(root.is_known(1));
    assert!(root.unplug(1) && !root.unplug(1) && !root.unplug(0) && !root.unplug(32));
    assert_eq!((seen.resets.load(Ordering::Relaxed), seen.dropped.load(Ordering::Relaxed)), (resets + 1, 1));
    assert_eq!((seen.open().len(), seen.listening().len()), (0, 0));
    assert!(!seen.driven.load(Ordering::Relaxed));
    assert_eq!(seen.forgotten.load(Ordering::Relaxed), 1);
    // Configuration space has nothing there. Where its registers were, a driver reads the status that it waits for.
    assert_eq!((rig.config(1, 0, 4), rig.config(1, 0x10, 4)), (u32::MAX, u32::MAX));
    let at = bar - WINDOW.start;
    assert_eq!((get(&rig.window, at + 20, 1), get(&rig.window, at + 20 + BAR_LEN, 1)), (0, 0xff));
    rig.window.write(at + 20, &[0xf]);
    rig.set_config(1, 4, 2, 6);
    interrupt.queue(1).unwrap();
    interrupt.config().unwrap();
    assert!(!seen.driven.load(Ordering::Relaxed) && seen.open().is_empty() && seen.listening().is_empty());
}

#[test]
fn who_still_holds_a_function_that_was_taken_out_does_nothing_with_it() {
    let (seen, taken) = (Arc::<Seen>::default(), Arc::default());
    let held = function(&seen, &taken);
    let root = RootComplex::new(WINDOW);
    assert!(root.plug(1, held.clone(), 11));
    held.write_config(0x10, &0xd000_0000_u32.to_le_bytes());
    held.write_config(4, &[6, 0]);
    assert_eq!(seen.listening().len(), 2);
    assert!(root.unplug(1));
    // A vCPU that is in the middle of a call goes on with it.
    held.write_config(0x10, &0xd100_0000_u32.to_le_bytes());
    held.write_config(4, &[6, 0]);
    held.write_config(0x42, &0x8000_u16.to_le_bytes());
    for (offset, value) in [(0x100c, 0_u32), (20, 1), (20, 3), (22, 1), (28, 1), (20, 0xb), (20, 0xf)] {
        held.write(offset, &value.to_le_bytes()[..if offset > 0x1000 { 4 } else { 1 }]);
    }
    assert!(held.decodes().is_none() && seen.listening().is_empty() && seen.open().is_empty());
    assert!(seen.starts.lock().unwrap().is_empty());
    drop(held);
    assert_eq!(seen.dropped.load(Ordering::Relaxed), 1);
}

#[test]
fn a_slot_has_one_function_at_a_time_and_the_guest_finds_it() {
    let rig = Rig::new(1);
    let root = &rig.ecam.0;
    let (seen, taken) = (Arc::<Seen>::default(), Arc::default());
    let again = || function(&seen, &taken);
    for slot in [0, 1, 32] {
        assert!(!root.plug(slot, again(), 11), "{slot}");
    }
    assert!(root.plug(31, again(), 15) && !root.plug(31, again(), 15));
    assert!(!root.is_known(31), "the guest has not looked");
    assert_eq!((rig.config(31, 0, 4), rig.config(31, 0x3c, 2)), (0x1041_1af4, 0x010f));
    // Its BAR is nowhere until the guest has placed it.
    assert_eq!((root.is_known(31), rig.bar(31)), (true, 0));
    rig.set_config(31, 0x10, 4, 0xd100_0000);
    rig.set_config(31, 4, 2, 2);
    assert_eq!(get(&rig.window, 0x100_0000 + 18, 2), 2);
    assert!(root.unplug(31));
    assert_eq!(get(&rig.window, 0x100_0000 + 18, 2), 0);
    // Another one is new to the guest, and where the one before was nothing is left.
    assert!(root.plug(31, again(), 15) && !root.is_known(31));
    assert_eq!(get(&rig.window, 0x100_0000 + 18, 2), 0xffff);
}

#[test]
fn functions_come_and_go_while_vcpus_are_in_them() {
    let rig = Rig::new(1);
    let root = &rig.ecam.0;
    let (seen, taken) = (Arc::<Seen>::default(), Arc::default());
    let over = AtomicBool::new(false);
    const ROUNDS: usize = 100;
    /// However the test ends, its threads do.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let _end = End(&over);
        for _ in 0..3 {
            // As a guest that finds the function, places it, has its driver up, and does not hear that it goes.
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if rig.config(2, 0, 4) == u32::MAX {
                        continue;
                    }
                    rig.set_config(2, 0x10, 4, 0xd200_0000);
                    rig.set_config(2, 4, 2, 6);
                    rig.set_config(2, 0x42, 2, 0x8000);
                    let at = 0x200_0000;
                    for (offset, len, value) in [
                        (20, 1, 1),
                        (20, 1, 3),
                        (8, 4, 1),
                        (12, 4, 1),
                        (20, 1, 0xb),
                        (22, 2, 1),
                        (28, 2, 1),
                        (20, 1, 0xf),
                        (0x100c, 4, 0),
                        (20, 1, 0),
                    ] {
                        rig.window.write(at + offset, &u32::to_le_bytes(value)[..len]);
                        get(&rig.window, at + offset, len);
                    }
                }
            });
        }
        for round in 1..=ROUNDS {
            assert!(root.plug(2, function(&seen, &taken), 5));
            while round % 2 == 0 && !root.is_known(2) {}
            assert!(root.unplug(2));
            // Whatever a vCPU does, and when it comes back.
            assert_eq!(seen.dropped.load(Ordering::Relaxed), round);
            assert_eq!(seen.forgotten.load(Ordering::Relaxed), round);
            assert!(
                seen.listening().is_empty() && seen.open().is_empty() && taken.lock().unwrap().is_empty()
            );
        }
    });
    assert!(seen.resets.load(Ordering::Relaxed) >= ROUNDS);
}
