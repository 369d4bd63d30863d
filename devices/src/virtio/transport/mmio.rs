//! The virtio-mmio transport, version 2 (virtio 1.2 §4.2): one page of registers, one interrupt line.
//!
//! **Invariant: the frame path takes no lock here.** A pair's thread touches two atomics and an eventfd, and a vCPU reads
//! and acknowledges the interrupt status by one atomic. The lock is for setting the device up and tearing it down.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_mmio::*;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::setup::{self, Half, QueueField, Setup};
use crate::BusDevice;
use crate::lent;
use crate::virtio::device::{Interrupt, VirtioDevice};

/// Bytes of guest address space that a device takes: registers, then its configuration.
pub const MMIO_LEN: u64 = 0x1000;
/// Offset of the register to which the driver writes the index of a queue that has work, in 32 bits. An ioeventfd here,
/// with the index as its datamatch, saves the exit to user space.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// Ours to choose (§4.2.2); Linux only shows it.
const VENDOR: u32 = u32::from_le_bytes(*b"wire");
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;
/// `QueueReset` (virtio 1.3 §4.2.2).
const QUEUE_RESET: u32 = 0x0c0;

/// A virtio device on the MMIO bus.
pub struct MmioTransport {
    line: Arc<Line>,
    kicks: Vec<Arc<EventFd>>,
    setup: Mutex<Setup>,
}

/// What pairs and vCPUs share without a lock.
struct Line {
    irq: EventFd,
    /// Device status (§2.1): the driver's bits and DEVICE_NEEDS_RESET.
    status: AtomicU32,
    /// Why the interrupt came: VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INT_CONFIG.
    interrupt: AtomicU32,
    /// Changes with the device's configuration (§2.5.1).
    generation: AtomicU32,
}

impl Line {
    fn raise(&self, reason: u32) -> io::Result<()> {
        // Release, and Acquire where the driver reads it: it finds the used index that this is about.
        self.interrupt.fetch_or(reason, Ordering::Release);
        self.irq.write(1)
    }
}

impl Interrupt for Line {
    fn queue(&self, _: u16) -> io::Result<()> {
        self.raise(VIRTIO_MMIO_INT_VRING)
    }

    fn config(&self) -> io::Result<()> {
        self.generation.fetch_add(1, Ordering::Release);
        self.raise(VIRTIO_MMIO_INT_CONFIG)
    }

    fn needs_reset(&self) -> io::Result<()> {
        if setup::needs_reset(&self.status) { self.config() } else { Ok(()) }
    }
}

impl MmioTransport {
    /// Shows `device` to the guest whose memory is `memory`; `irq` is raised by writing to it, edge by edge.
    ///
    /// # Errors
    /// Where the queues' eventfds cannot be made.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemoryMmap, irq: EventFd) -> io::Result<Self> {
        let setup = Setup::new(device, memory);
        let kicks = setup.kicks()?;
        let [status, interrupt, generation] = [0; 3].map(AtomicU32::new);
        let line = Arc::new(Line { irq, status, interrupt, generation });
        Ok(Self { line, kicks, setup: Mutex::new(setup) })
    }

    /// One eventfd for each queue, by its index: for an ioeventfd at [`QUEUE_NOTIFY`] whose datamatch is the index. Writing
    /// to it kicks the queue.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// Stops the device as a reset by its driver does: nothing touches guest memory when this returns.
    pub fn reset(&self) {
        self.reset_locked(&mut self.setup());
    }

    fn setup(&self) -> MutexGuard<'_, Setup> {
        // Whatever a vCPU that panicked in here left half done, a reset clears.
        self.setup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reset_locked(&self, setup: &mut Setup) {
        setup.reset();
        // Only now, for a pair that was still running may have asked for a reset meanwhile.
        self.line.status.store(0, Ordering::Release);
        self.line.interrupt.store(0, Ordering::Release);
    }

    fn read_register(&self, offset: u32) -> Option<u32> {
        // The two registers of every interrupt come first, and cost no lock.
        Some(match offset {
            VIRTIO_MMIO_INTERRUPT_STATUS => self.line.interrupt.load(Ordering::Acquire),
            VIRTIO_MMIO_STATUS => self.line.status.load(Ordering::Acquire),
            VIRTIO_MMIO_CONFIG_GENERATION => self.line.generation.load(Ordering::Acquire),
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_ID => self.setup().device.device_type(),
            VIRTIO_MMIO_DEVICE_FEATURES => self.setup().device_features(),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.setup().queue_max_size().into(),
            VIRTIO_MMIO_QUEUE_READY => self.setup().queue_field(QueueField::Ready),
            // There is no shared memory region, of which a length of all ones tells (§4.2.2.1).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => return None,
        })
    }

    fn write_register(&self, offset: u32, value: u32) {
        let line = &self.line;
        match offset {
            VIRTIO_MMIO_INTERRUPT_ACK => {
                line.interrupt.fetch_and(!value, Ordering::AcqRel);
                return;
            }
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    // A back end may have it, too.
                    let _ = lent::raise(kick);
                }
                return;
            }
            _ => {}
        }

        let mut setup = self.setup();
        let setup = &mut *setup;
        let status = line.status.load(Ordering::Acquire);
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => setup.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => setup.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => setup.set_driver_features(status, value),
            VIRTIO_MMIO_QUEUE_SEL => setup.queue_sel = value,
            VIRTIO_MMIO_STATUS if value == 0 => self.reset_locked(setup),
            VIRTIO_MMIO_STATUS => {
                let interrupt = Arc::clone(line) as Arc<dyn Interrupt>;
                setup.advance(&line.status, value, &interrupt, &self.kicks);
            }
            QUEUE_RESET if value == 1 => drop(setup.reset_queue(status)),
            _ => {
                if let Some(field) = queue_field(offset)
                    && setup.set_queue(status, field, value)
                {
                    let interrupt = Arc::clone(line) as Arc<dyn Interrupt>;
                    setup.enable_queue(&interrupt, &self.kicks);
                }
            }
        }
    }
}

/// The register of the selected queue at `offset`, if there is one.
fn queue_field(offset: u32) -> Option<QueueField> {
    Some(match offset {
        VIRTIO_MMIO_QUEUE_READY => QueueField::Ready,
        VIRTIO_MMIO_QUEUE_NUM => QueueField::Size,
        VIRTIO_MMIO_QUEUE_DESC_LOW => QueueField::Table(Half::Low),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => QueueField::Table(Half::High),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => QueueField::Available(Half::Low),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => QueueField::Available(Half::High),
        VIRTIO_MMIO_QUEUE_USED_LOW => QueueField::Used(Half::Low),
        VIRTIO_MMIO_QUEUE_USED_HIGH => QueueField::Used(Half::High),
        _ => return None,
    })
}

/// Whether a write is to a queue's address as a whole. A driver is to write it in halves (§4.2.2.2), and some do not.
fn is_address(offset: u64, len: usize) -> bool {
    const ADDRESSES: [u32; 3] =
        [VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_USED_LOW];
    len == 8 && ADDRESSES.map(u64::from).contains(&offset)
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            self.setup().device.read_config(offset - CONFIG, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            // A register that only takes writes reads zero, as one that does not exist.
            data.copy_from_slice(&self.read_register(offset as u32).unwrap_or(0).to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            self.setup().device.write_config(offset - CONFIG, data);
        } else if is_address(offset, data.len()) {
            self.write(offset, &data[..4]);
            self.write(offset + 4, &data[4..]);
        } else if let Ok(value) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset as u32, u32::from_le_bytes(value));
        }
    }
}

impl Drop for MmioTransport {
    /// A pair's thread must not outlive the guest's memory's owner by surprise.
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use virtio_bindings::virtio_config::{
        VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
        VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
        VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    };
    use vm_memory::GuestAddress;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::virtio::device::Activation;
    use crate::virtio::mock::{MockMmio, MockRing};
    use crate::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, QueueSetup};

    const OFFERED: u64 = F_VERSION_1 | F_EVENT_IDX | 1;

    /// What happened to the device.
    #[derive(Default)]
    struct Seen {
        activations: Mutex<Vec<(u64, Vec<u16>)>>,
        resets: AtomicU32,
        refuse: AtomicBool,
        interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
        /// A pair tells its driver of something while it is being stopped.
        late: AtomicBool,
    }

    struct Dummy(Arc<Seen>);

    impl VirtioDevice for Dummy {
        fn device_type(&self) -> u32 {
            42
        }
        fn features(&self) -> u64 {
            OFFERED
        }
        fn queue_max_sizes(&self) -> &[u16] {
            &[8, 16]
        }
        fn read_config(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write_config(&mut self, _: u64, _: &[u8]) {}
        fn activate(&mut self, activation: Activation) -> io::Result<()> {
            if self.0.refuse.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Other.into());
            }
            let queues = activation.queues.iter().map(|queue| queue.index).collect();
            self.0.activations.lock().unwrap().push((activation.accepted, queues));
            *self.0.interrupt.lock().unwrap() = Some(activation.interrupt);
            Ok(())
        }
        fn reset(&mut self) {
            self.0.resets.fetch_add(1, Ordering::Relaxed);
            let interrupt = self.0.interrupt.lock().unwrap();
            if let Some(interrupt) = interrupt.as_ref().filter(|_| self.0.late.load(Ordering::Relaxed)) {
                interrupt.queue(0).and_then(|()| interrupt.needs_reset()).unwrap();
            }
        }
    }

    fn transport() -> (MmioTransport, Arc<Seen>, EventFd, MockRing) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let (seen, irq) = (Arc::new(Seen::default()), EventFd::new(EFD_NONBLOCK).unwrap());
        let ring = MockRing::new(&memory, 0x1000, 8, true);
        let device = Box::new(Dummy(Arc::clone(&seen)));
        (MmioTransport::new(device, memory, irq.try_clone().unwrap()).unwrap(), seen, irq, ring)
    }

    #[test]
    fn a_driver_gets_the_device_going_once() {
        let (transport, seen, _, ring) = transport();
        let mmio = MockMmio::new(&transport);
        assert_eq!(mmio.read(0x000), 0x74726976);
        assert_eq!((mmio.read(0x004), mmio.read(0x008)), (2, 42));
        assert_eq!(mmio.features(), OFFERED);
        assert!(mmio.negotiate(F_VERSION_1 | F_EVENT_IDX));
        assert!(mmio.set_queue(1, ring.setup()));
        mmio.start();
        mmio.start();
        assert_eq!(mmio.status(), 0xf);
        assert_eq!(*seen.activations.lock().unwrap(), [(F_VERSION_1 | F_EVENT_IDX, vec![1])]);

        mmio.reset();
        assert_eq!((mmio.status(), mmio.read(VIRTIO_MMIO_QUEUE_READY)), (0, 0));
        assert_eq!(seen.resets.load(Ordering::Relaxed), 2, "one before the negotiation, and this one");
        assert!(mmio.negotiate(F_VERSION_1));
        mmio.start();
        assert_eq!(seen.activations.lock().unwrap()[1], (F_VERSION_1, vec![]));
    }

    #[test]
    fn features_that_were_not_offered_or_without_version_1_are_refused() {
        let (transport, seen, ..) = transport();
        let mmio = MockMmio::new(&transport);
        for features in [0, 1, F_VERSION_1 | F_INDIRECT_DESC, F_VERSION_1 | 1 << 63] {
            assert!(!mmio.negotiate(features), "{features:#x}");
            mmio.start();
            assert_eq!(mmio.status(), ACKNOWLEDGE | DRIVER);
        }
        assert!(seen.activations.lock().unwrap().is_empty());
        mmio.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
        assert_eq!(mmio.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
        mmio.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, u32::MAX);
        assert_eq!(mmio.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    }

    #[test]
    fn status_bits_come_in_order_and_stay() {
        let (transport, seen, ..) = transport();
        let mmio = MockMmio::new(&transport);
        for early in [DRIVER, FEATURES_OK, DRIVER_OK, NEEDS_RESET] {
            mmio.write(VIRTIO_MMIO_STATUS, early);
            assert_eq!(mmio.status(), 0, "{early:#x} is not the first");
        }
        assert!(mmio.negotiate(F_VERSION_1));
        mmio.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        assert_eq!(mmio.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK, "only a reset clears");
        mmio.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        mmio.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
        mmio.write(VIRTIO_MMIO_STATUS, FAILED);
        mmio.start();
        mmio.reset();
        assert!(mmio.negotiate(F_VERSION_1));
        mmio.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
        mmio.start();
        let activations = seen.activations.lock().unwrap();
        assert_eq!(*activations, [(F_VERSION_1, vec![])], "not after it failed, and not with late features");
    }

    #[test]
    fn queues_are_set_up_between_features_and_driver_ok() {
        let (transport, _, _, ring) = transport();
        let mmio = MockMmio::new(&transport);
        let setup = *ring.setup();
        assert!(!mmio.set_queue(0, &setup), "nothing is negotiated");
        assert!(mmio.negotiate(F_VERSION_1));
        assert_eq!([0, 1, 2, u32::MAX].map(|sel| max(&mmio, sel)), [8, 16, 0, 0]);
        assert!(!mmio.set_queue(2, &setup), "there are two");
        for size in [0, 3, 16] {
            assert!(!mmio.set_queue(0, &QueueSetup { size, ..setup }), "queue 0 of {size}");
        }
        mmio.write(VIRTIO_MMIO_QUEUE_NUM, 0x1_0008);
        mmio.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(mmio.read(VIRTIO_MMIO_QUEUE_READY), 0, "a size of more than 16 bits");
        assert!(mmio.set_queue(0, &setup));
        // Ready, it does not move.
        mmio.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 1);
        mmio.write(VIRTIO_MMIO_QUEUE_NUM, 3);
        mmio.start();
        assert!(!mmio.needs_reset(), "it stayed where it was");
        mmio.write(VIRTIO_MMIO_QUEUE_READY, 0);
        assert_eq!(mmio.read(VIRTIO_MMIO_QUEUE_READY), 1, "nor does a running one stop");
    }

    #[test]
    fn an_address_is_written_in_halves_or_whole() {
        let (transport, seen, _, ring) = transport();
        let mmio = MockMmio::new(&transport);
        assert!(mmio.negotiate(F_VERSION_1));
        let QueueSetup { desc_table, avail_ring, used_ring, .. } = *ring.setup();
        for (low, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, desc_table),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail_ring),
            (VIRTIO_MMIO_QUEUE_USED_LOW, used_ring),
        ] {
            // The high halves are written as well.
            mmio.write(low + 4, 1);
            transport.write(low.into(), &address.to_le_bytes());
        }
        mmio.write(VIRTIO_MMIO_QUEUE_NUM, 8);
        mmio.write(VIRTIO_MMIO_QUEUE_READY, 1);
        mmio.start();
        assert!(!mmio.needs_reset(), "the rings are where the driver put them");
        assert_eq!(*seen.activations.lock().unwrap(), [(F_VERSION_1, vec![0])]);
    }

    fn max(mmio: &MockMmio<'_>, sel: u32) -> u32 {
        mmio.write(VIRTIO_MMIO_QUEUE_SEL, sel);
        mmio.read(VIRTIO_MMIO_QUEUE_NUM_MAX)
    }

    #[test]
    fn a_device_that_cannot_start_asks_for_a_reset() {
        let (transport, seen, irq, ring) = transport();
        let mmio = MockMmio::new(&transport);
        seen.refuse.store(true, Ordering::Relaxed);
        assert!(mmio.negotiate(F_VERSION_1) && mmio.set_queue(0, ring.setup()));
        mmio.start();
        assert!(mmio.needs_reset());
        assert_eq!(mmio.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
        irq.read().unwrap();
        seen.refuse.store(false, Ordering::Relaxed);
        assert!(mmio.negotiate(F_VERSION_1));
        mmio.start();
        assert_eq!(seen.activations.lock().unwrap().len(), 1);
    }

    #[test]
    fn interrupts_are_told_apart_and_acknowledged() {
        let (transport, seen, irq, _) = transport();
        let mmio = MockMmio::new(&transport);
        assert!(mmio.negotiate(F_VERSION_1));
        mmio.start();
        let interrupt = seen.interrupt.lock().unwrap().take().unwrap();
        interrupt.queue(1).unwrap();
        let generation = mmio.read(VIRTIO_MMIO_CONFIG_GENERATION);
        interrupt.config().unwrap();
        assert_eq!(mmio.read(VIRTIO_MMIO_CONFIG_GENERATION), generation + 1);
        assert_eq!(irq.read().unwrap(), 2);
        assert_eq!(mmio.read(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
        mmio.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
        assert_eq!(mmio.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        // A pair that breaks while its device is being reset says so to nobody.
        transport.line.status.store(0, Ordering::Relaxed);
        interrupt.needs_reset().unwrap();
        assert!(irq.read().is_err() && mmio.needs_reset());
    }

    #[test]
    fn a_reset_forgets_features_and_interrupts_those_that_come_meanwhile_too() {
        let (transport, seen, ..) = transport();
        let mmio = MockMmio::new(&transport);
        seen.late.store(true, Ordering::Relaxed);
        assert!(mmio.negotiate(F_VERSION_1 | F_EVENT_IDX));
        mmio.start();
        seen.interrupt.lock().unwrap().as_ref().unwrap().queue(0).unwrap();
        assert_eq!(mmio.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
        mmio.reset();
        assert_eq!((mmio.read(VIRTIO_MMIO_INTERRUPT_STATUS), mmio.status()), (0, 0));

        // A driver that accepts one word alone accepts nothing of the other.
        for status in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            mmio.write(VIRTIO_MMIO_STATUS, status);
        }
        mmio.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        mmio.write(VIRTIO_MMIO_DRIVER_FEATURES, (F_VERSION_1 >> 32) as u32);
        mmio.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        mmio.start();
        assert_eq!(seen.activations.lock().unwrap()[1], (F_VERSION_1, vec![]));
    }

    #[test]
    fn the_interrupt_registers_take_no_lock() {
        let (transport, ..) = transport();
        let held = transport.setup();
        let mmio = MockMmio::new(&transport);
        assert_eq!((mmio.read(VIRTIO_MMIO_INTERRUPT_STATUS), mmio.status()), (0, 0));
        mmio.write(VIRTIO_MMIO_INTERRUPT_ACK, 3);
        mmio.kick(0);
        drop(held);
    }

    #[test]
    fn kicks_go_to_their_queue_and_nowhere_else() {
        let (transport, ..) = transport();
        let mmio = MockMmio::new(&transport);
        for index in [1, 2, u32::MAX] {
            mmio.kick(index);
        }
        transport.write(QUEUE_NOTIFY, &[0]);
        transport.write(QUEUE_NOTIFY, &[0, 0]);
        transport.write(QUEUE_NOTIFY, &[0; 8]);
        let counts: Vec<_> = transport.kicks().iter().map(|kick| kick.read().ok()).collect();
        assert_eq!(counts, [None, Some(1)]);
    }

    #[test]
    fn registers_are_words_and_the_configuration_is_bytes() {
        let (transport, ..) = transport();
        for (offset, len) in [(0u64, 1), (0, 2), (0, 8), (2, 4), (0x61, 4), (0, 0)] {
            let mut data = vec![0xff; len];
            transport.read(offset, &mut data);
            assert_eq!(data, vec![0xff; len], "{len} bytes at {offset:#x}");
        }
        transport.write(0x70, &[1]);
        assert_eq!(MockMmio::new(&transport).status(), 0);
        for len in 0..8 {
            let mut data = vec![0xff; len];
            transport.read(0x103, &mut data);
            assert_eq!(data, vec![3; len]);
        }
        assert_eq!(MockMmio::new(&transport).read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    }
}
