//! The configuration space of one function (PCI Local Bus 3.0 §6.1): bytes, and which of their bits can be written.
//!
//! What a register does follows from that: a BAR whose low bits cannot be written tells its size to who writes ones.

use std::ops::Range;

/// The configuration space that every function has; what PCI Express puts behind it is empty here.
pub const LEN: usize = 256;

const COMMAND: usize = 0x04;
/// In COMMAND: the function answers in its BARs.
const MEMORY_SPACE: u16 = 1 << 1;
/// In COMMAND: it may reach into memory.
const BUS_MASTER: u16 = 1 << 2;
const INTERRUPT_DISABLE: u16 = 1 << 10;
const STATUS: usize = 0x06;
/// In STATUS: the pin is driven, or would be but for INTERRUPT_DISABLE.
const INTERRUPT_STATUS: u8 = 1 << 3;
/// In STATUS.
const CAPABILITIES_LIST: u16 = 1 << 4;
/// Base address register 0: 32 bits, not prefetchable.
pub const BAR0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
/// Which line of the interrupt controllers its pin is on: notes of the firmware's and the operating system's.
pub const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
const INTA: u8 = 1;
const FIRST_CAPABILITY: usize = 0x40;

/// Who a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its vendor.
    pub vendor: u16,
    /// What that vendor calls it.
    pub device: u16,
    /// In which revision.
    pub revision: u8,
    /// Class, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Subsystem vendor and subsystem.
    pub subsystem: (u16, u16),
}

/// The configuration space of a function with a type 0 header.
#[derive(Clone, Debug)]
pub struct Configuration {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    /// Where the pointer to the next capability goes, and where that one begins.
    capabilities: (usize, usize),
}

impl Configuration {
    /// A function without BARs, interrupt pin or capabilities.
    pub fn new(identity: Identity) -> Self {
        let Identity { vendor, device, revision, class, subsystem } = identity;
        let capabilities = (CAPABILITIES_POINTER, FIRST_CAPABILITY);
        let mut config = Self { bytes: [0; LEN], writable: [0; LEN], capabilities };
        config.set(0x00, &vendor.to_le_bytes());
        config.set(0x02, &device.to_le_bytes());
        config.set(0x08, &(class << 8 | u32::from(revision)).to_le_bytes());
        config.set(0x2c, &subsystem.0.to_le_bytes());
        config.set(0x2e, &subsystem.1.to_le_bytes());
        config
    }

    /// Gives it a memory BAR 0 of `len` bytes, a power of two from 16 on.
    pub fn add_bar(&mut self, len: u32) {
        self.allow(BAR0, &(!(len - 1)).to_le_bytes());
        self.allow(COMMAND, &(MEMORY_SPACE | BUS_MASTER | INTERRUPT_DISABLE).to_le_bytes());
    }

    /// Gives it the interrupt pin INTA#.
    pub fn add_pin(&mut self) {
        self.set(INTERRUPT_PIN, &[INTA]);
        self.allow(INTERRUPT_LINE, &[0xff]);
    }

    /// Adds a capability (§6.7): `body` is what follows its two bytes of ID and pointer, `writable` the bits of it that can
    /// be written. Returns its offset.
    ///
    /// # Panics
    /// Past the end of the space.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let (pointer, at) = self.capabilities;
        self.set(STATUS, &CAPABILITIES_LIST.to_le_bytes());
        self.set(pointer, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.capabilities = (at + 1, (at + 2 + body.len()).next_multiple_of(4));
        at
    }

    /// Sets bytes, whether they can be written or not.
    ///
    /// # Panics
    /// Past the end of the space.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, bits: &[u8]) {
        self.writable[offset..offset + bits.len()].copy_from_slice(bits);
    }

    /// The guest reads; past the end there are zeros.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        for (to, byte) in data.iter_mut().zip(self.bytes.get(offset..).unwrap_or(&[])) {
            *to = *byte;
        }
    }

    /// The guest writes; what cannot be written stays.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let places = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), new) in places.zip(data) {
            *byte = *byte & !writable | new & writable;
        }
    }

    /// A byte, word or double word of `N` bytes.
    ///
    /// # Panics
    /// Past the end of the space.
    pub fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.bytes[offset..offset + N]);
        bytes
    }

    /// Has the function answer nowhere and reach nothing, as after a reset (§6.2.2).
    pub fn disable(&mut self) {
        self.set(COMMAND, &[0; 2]);
    }

    /// Whether COMMAND lets the function reach into memory.
    pub fn bus_master(&self) -> bool {
        u16::from_le_bytes(self.get(COMMAND)) & BUS_MASTER != 0
    }

    /// Whether COMMAND has the function leave its pin alone.
    pub fn pin_disabled(&self) -> bool {
        u16::from_le_bytes(self.get(COMMAND)) & INTERRUPT_DISABLE != 0
    }

    /// Sets whether STATUS says that there is something to interrupt for.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        let [status] = self.get(STATUS);
        self.set(STATUS, &[if pending { status | INTERRUPT_STATUS } else { status & !INTERRUPT_STATUS }]);
    }

    /// Where BAR 0 of `len` bytes is decoded: nowhere while COMMAND says so, nor outside of `window`, whatever is there.
    pub fn decodes(&self, len: u64, window: &Range<u64>) -> Option<u64> {
        let enabled = u16::from_le_bytes(self.get(COMMAND)) & MEMORY_SPACE != 0;
        let base = u64::from(u32::from_le_bytes(self.get(BAR0)) & !0xf);
        (enabled && window.start <= base && base + len <= window.end).then_some(base)
    }
}
