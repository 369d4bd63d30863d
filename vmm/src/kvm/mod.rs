//! The parts of a machine that know KVM: memory, processors, interrupts, buses.

pub(crate) mod bus;
pub(crate) mod cpuid;
pub(crate) mod gate;
pub(crate) mod hugepages;
pub(crate) mod irq;
pub(crate) mod memory;
pub(crate) mod pci_bus;
pub(crate) mod transport;
pub(crate) mod vcpu;
