//! The guest's devices, as the guest sees them.
//!
//! **Invariant: this crate knows the guest's devices, never KVM.** An interrupt is an eventfd that somebody listens to, a
//! kick is an eventfd that somebody writes, and where a device sits in the guest's address space is the bus's business: a
//! device sees offsets.
#![forbid(unsafe_code)]

pub mod pci;
pub mod reset;
pub mod serial;
pub mod virtio;

/// A device on the port or the MMIO bus.
///
/// Methods take `&self`, for every vCPU may call at once: a device locks what it must, and only that.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` into the device. `data` comes filled with ones, as an empty bus
    /// reads, so what a device does not answer stays so.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` into the device. What makes no sense is ignored.
    fn write(&self, offset: u64, data: &[u8]);
}

/// What the guest asked of the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// It powered itself off (ACPI S5).
    PowerOff,
    /// It reset itself (i8042, ACPI).
    Reset,
    /// Its kernel panicked, as its pvpanic driver says.
    Panic,
}
