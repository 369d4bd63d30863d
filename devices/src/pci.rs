//! A PCI root complex with one bus: a host bridge at 0:0.0 and a function in each slot after it.
//!
//! **Invariant: an address outside the window decodes nothing.** The guest moves BARs as it likes, and wherever it puts one
//! that is not wholly in the window that ACPI announces, RAM and the other devices stay what they were.
//!
//! Configuration space is reached by ECAM (PCI Express Base 5.0 §7.2.2) and by the port mechanism (PCI Local Bus 3.0
//! §3.2.2.3.2). Functions interrupt by MSI-X; each also has the pin INTA#, for drivers without.
//!
//! Functions come and go while the guest runs ([`hotplug`] tells the guest). The lock of the slots is held for a look at them alone,
//! and never while a function is called: a vCPU may still be in a call to one that is taken out, which answers nothing more.

pub mod config;
pub mod hotplug;
pub mod msix;
mod routes;

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use self::config::{BAR0, Configuration, INTERRUPT_LINE, Identity};
pub use self::routes::EventRoutes;
use crate::BusDevice;

/// Bytes of configuration space that the ECAM has for each function.
const ECAM_FUNCTION: u64 = 0x1000;

/// A function on the bus. As a [`BusDevice`] it is the registers behind its BAR 0.
pub trait Function: BusDevice {
    /// Reads its configuration space; `offset + data.len()` is within 4096.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes its configuration space; `offset + data.len()` is within 4096.
    fn write_config(&self, offset: usize, data: &[u8]);

    /// The guest-physical addresses at which its BAR 0 answers now.
    fn decodes(&self) -> Option<Range<u64>>;

    /// Another function has left the addresses where it answered: events that were refused there may be listened to now.
    fn listen_again(&self) {}

    /// It is taken out of its slot. When this returns, it touches no guest memory, has no thread and listens to nothing; whoever still
    /// calls it writes to nothing.
    fn unplug(&self);
}

/// The host bridge, which operating systems leave alone: vendor and device are those of QEMU's generic one.
const HOST_BRIDGE: Identity =
    Identity { vendor: 0x1b36, device: 0x0008, revision: 0, class: 0x06_0000, subsystem: (0, 0) };

/// In slot 0 is the host bridge, which is none of these.
type Slots = [Slot; 1 + RootComplex::FUNCTIONS];

#[derive(Default)]
struct Slot {
    function: Option<Arc<dyn Function>>,
    /// Where one answered that was taken out, until there is another one. What is read there is zero rather than all ones: Linux's driver
    /// of a virtio device whose status does not become zero waits for that for ever, with all hot plug behind it (`vp_reset` of
    /// `drivers/virtio/virtio_pci_modern.c`). That a function is gone, configuration space tells.
    left: Option<Range<u64>>,
}

/// The bus.
pub struct RootComplex {
    bridge: Configuration,
    slots: RwLock<Slots>,
    window: Range<u64>,
    /// Where the next BAR goes.
    free: u64,
    /// The address register of the port mechanism.
    address: AtomicU32,
    /// A bit for each slot whose function the guest has looked at.
    known: AtomicU32,
}

impl RootComplex {
    /// How many functions fit beside the host bridge.
    pub const FUNCTIONS: usize = 31;

    /// A bus whose BARs are in `window`, which lies below 4 GiB. A machine without one has an empty bus with a host bridge
    /// all the same, for Linux takes one without any for broken, and says so.
    pub fn new(window: Range<u64>) -> Self {
        let (bridge, free) = (Configuration::new(HOST_BRIDGE), window.start);
        let [address, known] = [0; 2].map(AtomicU32::new);
        Self { bridge, slots: RwLock::default(), window, free, address, known }
    }

    /// Puts a function into a slot, from 1 on, before the guest runs, and sets it up as firmware does: sizes its BAR by writing ones
    /// (§6.2.5.1), gives it the next address, and notes the interrupt line that its pin is on. The guest switches it on.
    ///
    /// # Panics
    /// Where the slot is not free or no address is left: who builds the machine counts.
    pub fn add(&mut self, slot: usize, function: Arc<dyn Function>, line: u8) {
        let mut bar = u32::MAX.to_le_bytes();
        function.write_config(BAR0, &bar);
        function.read_config(BAR0, &mut bar);
        let len = u64::from(!(u32::from_le_bytes(bar) & !0xf)) + 1;
        let base = self.free.next_multiple_of(len);
        self.free = base + len;
        assert!(self.free <= self.window.end, "the window is full");
        function.write_config(BAR0, &(base as u32).to_le_bytes());
        assert!(self.plug(slot, function, line), "slot {slot} is taken");
    }

    /// Puts a function into a slot, from 1 on, while the guest runs. The guest gives it its addresses. False where the slot is not
    /// free, or there is no such one.
    pub fn plug(&self, slot: usize, function: Arc<dyn Function>, line: u8) -> bool {
        function.write_config(INTERRUPT_LINE, &[line]);
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        match slots.get_mut(slot) {
            Some(place) if slot > 0 && place.function.is_none() => {
                self.known.fetch_and(!(1 << slot), Ordering::Relaxed);
                *place = Slot { function: Some(function), left: None };
                true
            }
            _ => false,
        }
    }

    /// Takes the function out of a slot, whose configuration space reads as ones from now on, and [has it end](Function::unplug). False
    /// where there was none.
    pub fn unplug(&self, slot: usize) -> bool {
        let function = {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            let Some(place) = slots.get_mut(slot) else { return false };
            let Some(function) = place.function.take() else { return false };
            place.left = function.decodes();
            function
        };
        function.unplug();
        self.listen_again();
        true
    }

    /// Whether the guest has looked at the function in a slot.
    pub fn is_known(&self, slot: usize) -> bool {
        1 << slot & self.known.load(Ordering::Relaxed) != 0
    }

    fn slots(&self) -> RwLockReadGuard<'_, Slots> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn function(&self, slot: usize) -> Option<Arc<dyn Function>> {
        self.slots().get(slot)?.function.clone()
    }

    /// A function has left its addresses to others.
    fn listen_again(&self) {
        let functions: Vec<_> = self.slots().iter().filter_map(|slot| slot.function.clone()).collect();
        functions.iter().for_each(|function| function.listen_again());
    }

    /// Reads `data` at `offset` into the ECAM's form of an address: bus, device, function, register.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        match split(offset, data.len()) {
            Some((0, register)) => self.bridge.read(register, data),
            Some((slot, register)) => {
                if let Some(function) = self.function(slot) {
                    self.known.fetch_or(1 << slot, Ordering::Relaxed);
                    function.read_config(register, data);
                }
            }
            None => {}
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        // Nothing of the bridge, in slot 0, can be written.
        let Some((slot, register)) = split(offset, data.len()) else { return };
        if let Some(function) = self.function(slot) {
            let before = function.decodes();
            function.write_config(register, data);
            if before.is_some() && before != function.decodes() {
                self.listen_again();
            }
        }
    }

    /// The function that answers at `[address, address + len)`, and the offset into its BAR. Where the guest has put two on
    /// one place, the first answers.
    fn find(&self, address: u64, len: usize) -> Option<(Arc<dyn Function>, u64)> {
        self.slots().iter().find_map(|slot| {
            let function = slot.function.as_ref()?;
            let range = function.decodes().filter(|range| contains(range, address, len))?;
            Some((Arc::clone(function), address - range.start))
        })
    }

    /// Whether a function answered at `[address, address + len)` that was taken out.
    fn is_left(&self, address: u64, len: usize) -> bool {
        self.slots().iter().any(|slot| slot.left.as_ref().is_some_and(|range| contains(range, address, len)))
    }
}

/// Whether all of `[address, address + len)` is in `range`.
fn contains(range: &Range<u64>, address: u64, len: usize) -> bool {
    range.start <= address && address.checked_add(len as u64).is_some_and(|end| end <= range.end)
}

/// The slot and the register that an access of `len` bytes is for, if it is within one function. Of each slot, only function
/// 0 can be there, and of all buses only bus 0.
fn split(offset: u64, len: usize) -> Option<(usize, usize)> {
    let (function, register) = (offset / ECAM_FUNCTION, offset % ECAM_FUNCTION);
    let whole = register + len as u64 <= ECAM_FUNCTION && function.is_multiple_of(8);
    (whole && function / 8 < 32).then_some(((function / 8) as usize, register as usize))
}

/// The configuration ports: an address and the four bytes of data behind it; and amid them, as chipsets have it, one that is another
/// device's.
pub struct Ports {
    /// The bus.
    pub root: Arc<RootComplex>,
    /// What is at the byte [`Ports::AMID`], which an access of 32 bits to the address does not reach.
    pub amid: Arc<dyn BusDevice>,
}

impl Ports {
    /// Its first port.
    pub const PORT: u64 = 0xcf8;
    /// How many ports it spans.
    pub const LEN: u64 = 8;
    /// Offset of the byte that is another device's.
    pub const AMID: u64 = 1;
    /// Offset of the address register, which takes 32 bits at once and nothing less.
    const ADDRESS: u64 = 0;
    /// Offset of the data, any width.
    const DATA: u64 = 4;
    /// In the address: reach into configuration space.
    const ENABLE: u32 = 1 << 31;

    /// What the address selects and `offset` reaches, in the ECAM's form, if `len` bytes there are within the word.
    fn selected(&self, offset: u64, len: usize) -> Option<u64> {
        let address = self.root.address.load(Ordering::Relaxed);
        let byte = offset.checked_sub(Self::DATA)?;
        let (function, register) = (u64::from(address >> 8 & 0xffff), u64::from(address & 0xfc));
        (address & Self::ENABLE != 0 && byte + len as u64 <= 4)
            .then_some(function * ECAM_FUNCTION + register + byte)
    }
}

impl BusDevice for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(selected) = self.selected(offset, data.len()) {
            self.root.read_config(selected, data);
        } else if offset == Self::AMID && data.len() == 1 {
            self.amid.read(0, data);
        } else if offset == Self::ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.root.address.load(Ordering::Relaxed).to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(selected) = self.selected(offset, data.len()) {
            self.root.write_config(selected, data);
        } else if offset == Self::AMID && data.len() < 4 {
            self.amid.write(0, data);
        } else if let (Self::ADDRESS, Ok(address)) = (offset, data.try_into()) {
            // Two bits are hard-wired to zero, for only words are addressed.
            self.root.address.store(u32::from_le_bytes(address) & !3, Ordering::Relaxed);
        }
    }
}

/// The ECAM of bus 0, a mebibyte.
pub struct Ecam(pub Arc<RootComplex>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write_config(offset, data);
    }
}

/// The window in which BARs are.
pub struct Window(pub Arc<RootComplex>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = self.0.window.start + offset;
        if let Some((function, offset)) = self.0.find(address, data.len()) {
            function.read(offset, data);
        } else if self.0.is_left(address, data.len()) {
            data.fill(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.0.find(self.0.window.start + offset, data.len()) {
            function.write(offset, data);
        }
    }
}
