//! How a driver reaches a device and is told by it: on the PCI bus, or in an MMIO window.
//!
//! [`setup`] is what both have: what a driver says before its device runs.

pub mod mmio;
pub mod pci;
mod setup;
