//! A PCI root complex with one bus: a host bridge at 0:0.0 and a function in each slot after it.
//!
//! **Invariant: an address outside the window decodes nothing.** The guest moves BARs as it likes, and wherever it puts one
//! that is not wholly in the window that ACPI announces, RAM and the other devices stay what they were.
//!
//! Configuration space is reached by ECAM (PCI Express Base 5.0 §7.2.2) and by the port mechanism (PCI Local Bus 3.0
//! §3.2.2.3.2). Functions interrupt by MSI-X; each also has the pin INTA#, for drivers without.

pub mod config;
pub mod msix;
mod routes;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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
}

/// The host bridge, which operating systems leave alone: vendor and device are those of QEMU's generic one.
const HOST_BRIDGE: Identity =
    Identity { vendor: 0x1b36, device: 0x0008, revision: 0, class: 0x06_0000, subsystem: (0, 0) };

/// The bus, complete before the guest runs and never changed after.
pub struct RootComplex {
    bridge: Configuration,
    /// By slot, from 1.
    functions: Vec<Arc<dyn Function>>,
    window: Range<u64>,
    /// Where the next BAR goes.
    free: u64,
    /// The address register of the port mechanism.
    address: AtomicU32,
}

impl RootComplex {
    /// How many functions fit beside the host bridge.
    pub const FUNCTIONS: usize = 31;

    /// A bus whose BARs are in `window`, which lies below 4 GiB. A machine without one has an empty bus with a host bridge
    /// all the same, for Linux takes one without any for broken, and says so.
    pub fn new(window: Range<u64>) -> Self {
        let (bridge, free) = (Configuration::new(HOST_BRIDGE), window.start);
        Self { bridge, functions: Vec::new(), window, free, address: AtomicU32::new(0) }
    }

    /// Puts a function into the next slot, and sets it up as firmware does: sizes its BAR by writing ones (§6.2.5.1), gives it the
    /// next address, and notes the interrupt line that its pin is on. The guest switches it on.
    ///
    /// # Panics
    /// Where there is no slot or no address left: who builds the machine counts.
    pub fn add(&mut self, function: Arc<dyn Function>, line: u8) {
        assert!(self.functions.len() < Self::FUNCTIONS, "no slot is left");
        let mut bar = u32::MAX.to_le_bytes();
        function.write_config(BAR0, &bar);
        function.read_config(BAR0, &mut bar);
        let len = u64::from(!(u32::from_le_bytes(bar) & !0xf)) + 1;
        let base = self.free.next_multiple_of(len);
        self.free = base + len;
        assert!(self.free <= self.window.end, "the window is full");
        function.write_config(BAR0, &(base as u32).to_le_bytes());
        function.write_config(INTERRUPT_LINE, &[line]);
        self.functions.push(function);
    }

    /// Reads `data` at `offset` into the ECAM's form of an address: bus, device, function, register.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Some((number, register)) = split(offset, data.len()) else { return };
        match number.checked_sub(1) {
            None => self.bridge.read(register, data),
            Some(index) => {
                if let Some(function) = self.functions.get(index) {
                    function.read_config(register, data);
                }
            }
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let Some((number, register)) = split(offset, data.len()) else { return };
        // Nothing of the bridge can be written.
        if let Some(function) = number.checked_sub(1).and_then(|index| self.functions.get(index)) {
            let before = function.decodes();
            function.write_config(register, data);
            if before.is_some() && before != function.decodes() {
                self.functions.iter().for_each(|function| function.listen_again());
            }
        }
    }

    /// The function that answers at `[address, address + len)`, and the offset into its BAR. Where the guest has put two on
    /// one place, the first answers.
    fn find(&self, address: u64, len: usize) -> Option<(&dyn Function, u64)> {
        self.functions.iter().find_map(|function| {
            let range = function.decodes()?;
            let inside = range.start <= address && address.checked_add(len as u64)? <= range.end;
            inside.then(|| (&**function, address - range.start))
        })
    }
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
        if let Some((function, offset)) = self.0.find(self.0.window.start + offset, data.len()) {
            function.read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.0.find(self.0.window.start + offset, data.len()) {
            function.write(offset, data);
        }
    }
}
