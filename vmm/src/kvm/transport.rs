//! Where the guest finds its virtio devices: on the PCI bus, or in MMIO windows that ACPI lists.

use std::sync::{Arc, Once};

use boot::layout;
use devices::pci::{Ecam, Ports, RootComplex, Window};
use devices::reset::ResetControl;
use devices::virtio::VirtioDevice;
use devices::virtio::mmio::{self, MmioTransport};
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::GuestMemoryMmap;

use crate::error::Error;
use crate::kvm::bus::Bus;
use crate::kvm::irq::{irqfd, tell_unheard};
use crate::kvm::pci_bus::PciBus;
use vmm::config::Transport;

// Two crates that do not know each other describe the same registers.
const _: () = {
    assert!(layout::PCI_CONFIG as u64 == Ports::PORT && layout::PCI_CONFIG_LEN as u64 == Ports::LEN);
    assert!(Ports::PORT + Ports::AMID == ResetControl::PORT);
    assert!(layout::VIRTIO_MMIO_LEN == mmio::MMIO_LEN);
};

/// How many devices have a place.
pub(crate) fn limit(transport: Transport) -> usize {
    match transport {
        Transport::Pci => RootComplex::FUNCTIONS,
        Transport::Mmio => layout::VIRTIO_MMIO_MAX,
    }
}

/// The MMIO windows of so many devices, for ACPI to list.
pub(crate) fn places(transport: Transport, devices: usize) -> Vec<layout::VirtioMmio> {
    match transport {
        Transport::Pci => Vec::new(),
        Transport::Mmio => (0..).map_while(layout::virtio_mmio).take(devices).collect(),
    }
}

/// The lines of the guest's interrupt controllers that are level-triggered.
pub(crate) fn level_lines(transport: Transport) -> &'static [u32] {
    match transport {
        Transport::Pci => &layout::PCI_LINES,
        Transport::Mmio => &[],
    }
}

/// What a machine is built with.
pub(crate) struct Devices {
    pub(crate) nics: Vec<Box<dyn VirtioDevice>>,
    pub(crate) others: Vec<Box<dyn VirtioDevice>>,
}

/// Attaches `devices`, which are not more than [`limit`], to the guest's buses, and `reset` amid the ports of PCI: what they notify
/// reaches them without an exit, as do their interrupts the guest. Returns the PCI bus where more can be added to it.
///
/// # Errors
/// KVM or the host has no resources for it.
pub(crate) fn attach(
    transport: Transport,
    vm: &Arc<VmFd>,
    memory: &GuestMemoryMmap,
    devices: Devices,
    reset: Arc<ResetControl>,
    ports: &mut Bus,
    mmio: &mut Bus,
) -> Result<Option<PciBus>, Error> {
    let bus = match transport {
        Transport::Pci => {
            let bus = PciBus::new(vm, memory, devices)?;
            let root = || bus.root().clone();
            mmio.insert(layout::PCI_WINDOW, layout::PCI_WINDOW_LEN, Arc::new(Window(root())));
            mmio.insert(layout::ECAM, layout::ECAM_LEN, Arc::new(Ecam(root())));
            Some(bus)
        }
        Transport::Mmio => {
            let unheard = Once::new();
            for (device, place) in
                devices.nics.into_iter().chain(devices.others).zip(places(transport, limit(transport)))
            {
                mmio.insert(place.base, place.size, mmio_transport(vm, memory, device, place, &unheard)?);
            }
            None
        }
    };
    // With the host bridge alone, if there is no more.
    let root = match &bus {
        Some(bus) => bus.root().clone(),
        None => Arc::new(RootComplex::new(0..0)),
    };
    ports.insert(Ports::PORT, Ports::LEN, Arc::new(Ports { root, amid: reset }));
    Ok(bus)
}

fn mmio_transport(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    device: Box<dyn VirtioDevice>,
    place: layout::VirtioMmio,
    unheard: &Once,
) -> Result<Arc<MmioTransport>, Error> {
    let irq = irqfd(vm, place.gsi)?;
    let transport = MmioTransport::new(device, memory.clone(), irq).map_err(eventfd)?;
    for (queue, kick) in transport.kicks().iter().enumerate() {
        let address = IoEventAddress::Mmio(place.base + mmio::QUEUE_NOTIFY);
        if let Err(error) = vm.register_ioevent(kick, &address, queue as u32) {
            tell_unheard(error, unheard);
        }
    }
    Ok(Arc::new(transport))
}

fn eventfd(source: std::io::Error) -> Error {
    Error::Host { what: "make an eventfd", source }
}
