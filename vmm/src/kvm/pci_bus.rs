//! The PCI bus of a machine, and the GSIs of what is in its slots.

use std::sync::Arc;

use boot::layout;
use devices::pci::RootComplex;
use devices::virtio::VirtioDevice;
use devices::virtio::net::VirtioNet;
use devices::virtio::pci::PciTransport;
use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;

use crate::error::Error;
use crate::kvm::irq::{DeviceRoutes, Lines, Pin, Routes};
use crate::kvm::transport::Devices;

/// GSIs of each slot, behind the pins of the IOAPIC. Each has its own ones, whatever comes and goes: the widest NIC, with 64 queue
/// pairs, a control queue and the vector of the configuration, has as many; and 31 of them are less than the 4096 that KVM has for a VM.
const GSIS: u32 = 130;

/// The bus, to which functions can be added.
pub(crate) struct PciBus {
    root: Arc<RootComplex>,
    maker: Maker,
}

/// What it takes to make a function.
struct Maker {
    routes: Arc<Routes>,
    lines: Arc<Lines>,
    memory: GuestMemoryMmap,
}

impl PciBus {
    /// A bus with the NICs from slot 1 on, and the others in the last slots, in order: not more than fit. So NIC n is in slot n + 1, whatever
    /// else there is, and room for more NICs is between the two.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn new(vm: &Arc<VmFd>, memory: &GuestMemoryMmap, devices: Devices) -> Result<Self, Error> {
        let maker =
            Maker { routes: Routes::new(vm.clone()), lines: Lines::new(vm.clone()), memory: memory.clone() };
        let window = layout::PCI_WINDOW..layout::PCI_WINDOW + layout::PCI_WINDOW_LEN;
        let mut root = RootComplex::new(window);
        // A driver names disks in the order of slots.
        let others = (RootComplex::FUNCTIONS + 1 - devices.others.len()..).zip(devices.others);
        for (slot, device) in (1..).zip(devices.nics).chain(others) {
            root.add(slot, maker.function(slot, device)?, layout::pci_line(slot) as u8);
        }
        Ok(Self { root: Arc::new(root), maker })
    }

    pub(crate) fn root(&self) -> &Arc<RootComplex> {
        &self.root
    }

    /// Puts a device into a slot while the guest runs.
    ///
    /// # Errors
    /// There are no descriptors left, or the slot is not free.
    pub(crate) fn plug(&self, slot: usize, device: VirtioNet) -> Result<(), Error> {
        let function = self.maker.function(slot, Box::new(device))?;
        match self.root.plug(slot, function, layout::pci_line(slot) as u8) {
            true => Ok(()),
            false => Err(Error::SlotTaken { slot }),
        }
    }

    /// Whether the guest has ever looked at what is in a slot.
    pub(crate) fn is_known(&self, slot: usize) -> bool {
        self.root.is_known(slot)
    }

    /// Takes a device out of its slot: nothing of it is left when this returns.
    pub(crate) fn unplug(&self, slot: usize) {
        self.root.unplug(slot);
    }
}

impl Maker {
    fn function(&self, slot: usize, device: Box<dyn VirtioDevice>) -> Result<Arc<PciTransport>, Error> {
        let vectors = PciTransport::vectors(device.queue_max_sizes().len()) as u32;
        assert!(vectors <= GSIS, "{vectors} vectors");
        let first = layout::IOAPIC_PINS + (slot as u32 - 1) * GSIS;
        let pin = Pin { slot, line: layout::pci_line(slot) };
        let (routes, lines) = (self.routes.clone(), self.lines.clone());
        let routes = DeviceRoutes { routes, gsis: first..first + vectors, lines, pin };
        let window = layout::PCI_WINDOW..layout::PCI_WINDOW + layout::PCI_WINDOW_LEN;
        PciTransport::new(device, self.memory.clone(), window, Arc::new(routes))
            .map(Arc::new)
            .map_err(|source| Error::Host { what: "make an eventfd", source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_gsis_for_the_widest_nic() {
        // Receive and transmit queues of 64 pairs, and the control queue.
        assert_eq!(PciTransport::vectors(2 * 64 + 1), GSIS as usize);
        let last = layout::IOAPIC_PINS + RootComplex::FUNCTIONS as u32 * GSIS;
        // `KVM_MAX_IRQ_ROUTES`, `include/linux/kvm_host.h`; a route for each pin of the 8259s beside that.
        assert!(last + 16 <= 4096, "{last}");
    }
}
