//! Interrupts and notifications that pass by user space: irqfds, the routes of messages, and ioeventfds. And the lines of pins, which
//! do not: they are for drivers without MSI-X.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, Once, PoisonError};

use boot::layout;
use devices::pci::EventRoutes;
use devices::pci::msix::Message;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi, kvm_irqchip,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::Error;

/// Input pins of the two 8259s together.
const PIC_PINS: u32 = 16;
/// Of one of them.
const PIC_LEN: u32 = 8;

/// An eventfd that raises interrupt line `gsi` without an exit.
pub(crate) fn irqfd(vm: &VmFd, gsi: u32) -> Result<EventFd, Error> {
    let irq = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
        .map_err(|source| Error::Host { what: "make an eventfd", source })?;
    vm.register_irqfd(&irq, gsi)
        .map_err(|e| Error::Kvm { what: "take an eventfd as an interrupt line", source: e.into() })?;
    Ok(irq)
}

/// Sets the two 8259s up as firmware leaves them: their interrupts away from the processor's exceptions, all masked (but for the cascade),
/// and `level` the lines that are level-triggered (the registers at 0x4d0 and 0x4d1 of a PC).
///
/// # Errors
/// KVM's.
pub(crate) fn set_up_pics(vm: &VmFd, level: &[u32]) -> io::Result<()> {
    for (chip_id, first, base, masked) in
        [(KVM_IRQCHIP_PIC_MASTER, 0, 0x08, 0xfb), (KVM_IRQCHIP_PIC_SLAVE, PIC_LEN, 0x70, 0xff)]
    {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip)?;
        // SAFETY: KVM has filled in the state of the chip that was asked for, which is the union's field of that name.
        let pic = unsafe { &mut chip.chip.pic };
        let lines = level.iter().filter_map(|line| line.checked_sub(first).filter(|line| *line < PIC_LEN));
        pic.elcr = lines.fold(0, |all, line| all | 1 << line);
        (pic.irq_base, pic.imr) = (base, masked);
        vm.set_irqchip(&chip)?;
    }
    Ok(())
}

/// Whether the guest has unmasked pin `pin` of its IOAPIC: some driver of its listens to that line.
///
/// # Errors
/// KVM does not say.
pub(crate) fn is_unmasked(vm: &VmFd, pin: u32) -> io::Result<bool> {
    /// Of a redirection entry (82093AA datasheet §3.2.4).
    const MASKED: u64 = 1 << 16;
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    vm.get_irqchip(&mut chip)?;
    // SAFETY: KVM has filled in the state of the chip that was asked for, which is the union's field of that name; and both views
    // of an entry are plain numbers of the same size.
    let entry = unsafe { chip.chip.ioapic.redirtbl.get(pin as usize).map(|entry| entry.bits) };
    Ok(entry.is_some_and(|entry| entry & MASKED == 0))
}

/// The routes of all messages of a VM. KVM takes them only together, and with them those of its interrupt controllers,
/// which stay as KVM had set them: GSI n is pin n.
pub(crate) struct Routes {
    vm: Arc<VmFd>,
    messages: Mutex<BTreeMap<u32, Message>>,
    /// Whether it was said that KVM does not listen to some notifications.
    unheard: Once,
}

/// Says once that KVM does not listen to a queue's notifications, unless the guest has brought that about: two BARs on one place. (A
/// VM has room for any number of them. Of other devices on a bus it has 1000 at most: `NR_IOBUS_DEVS` of `linux/kvm_host.h`.)
pub(crate) fn tell_unheard(error: kvm_ioctls::Error, said: &Once) {
    if error.errno() != libc::EEXIST {
        said.call_once(|| {
            log::warn!(
                "KVM does not listen to the notifications of some queues, which cost an exit each: {error}"
            );
        });
    }
}

impl Routes {
    pub(crate) fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self { vm, messages: Mutex::default(), unheard: Once::new() })
    }

    /// Has `gsi` send `message`.
    fn set(&self, gsi: u32, message: Message) -> io::Result<()> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        replace(&mut messages, gsi, message, |messages| self.give(messages))
    }

    /// Forgets what `gsis` send.
    fn forget(&self, gsis: Range<u32>) -> io::Result<()> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        remove(&mut messages, gsis, |messages| self.give(messages))
    }

    fn give(&self, messages: &BTreeMap<u32, Message>) -> io::Result<()> {
        let routing = KvmIrqRouting::from_entries(&table(messages))
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(self.vm.set_gsi_routing(&routing)?)
    }
}

/// Forgets the messages of `gsis`, where there are any and `set` takes that.
fn remove(
    messages: &mut BTreeMap<u32, Message>,
    gsis: Range<u32>,
    set: impl FnOnce(&BTreeMap<u32, Message>) -> io::Result<()>,
) -> io::Result<()> {
    let before = messages.len();
    messages.retain(|gsi, _| !gsis.contains(gsi));
    if messages.len() == before { Ok(()) } else { set(messages) }
}

/// Has `gsi` send `message`, where `set` takes that. KVM keeps what it had where it refuses, and so does this: the next message of
/// another vector is no reason to refuse once more.
fn replace(
    messages: &mut BTreeMap<u32, Message>,
    gsi: u32,
    message: Message,
    set: impl FnOnce(&BTreeMap<u32, Message>) -> io::Result<()>,
) -> io::Result<()> {
    let before = messages.insert(gsi, message);
    if before == Some(message) {
        return Ok(());
    }
    set(messages).inspect_err(|_| {
        match before {
            Some(before) => messages.insert(gsi, before),
            None => messages.remove(&gsi),
        };
    })
}

fn table(messages: &BTreeMap<u32, Message>) -> Vec<kvm_irq_routing_entry> {
    let pin = |gsi, irqchip, pin| {
        let u = kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } };
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, u, ..Default::default() }
    };
    let ioapic = (0..layout::IOAPIC_PINS).map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    let pics = (0..PIC_PINS).map(|gsi| {
        pin(gsi, if gsi < PIC_LEN { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE }, gsi % PIC_LEN)
    });
    let messages = messages.iter().map(|(&gsi, message)| {
        let msi = kvm_irq_routing_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, u, ..Default::default() }
    });
    ioapic.chain(pics).chain(messages).collect()
}

/// The lines that the pins of PCI functions share: one is asserted as long as any function drives it.
pub(crate) struct Lines {
    vm: Arc<VmFd>,
    /// For each line, a bit for each function that drives it.
    driven: Mutex<BTreeMap<u32, u32>>,
}

impl Lines {
    pub(crate) fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self { vm, driven: Mutex::default() })
    }

    fn drive(&self, pin: Pin, asserted: bool) -> io::Result<()> {
        let mut driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        let by = driven.entry(pin.line).or_default();
        let bit = 1 << pin.slot;
        let after = if asserted { *by | bit } else { *by & !bit };
        if (after != 0) != (*by != 0) {
            self.vm.set_irq_line(pin.line, after != 0)?;
        }
        *by = after;
        Ok(())
    }
}

/// The interrupt pin of the function in a slot, below 32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pin {
    pub(crate) slot: usize,
    pub(crate) line: u32,
}

/// The routes of one PCI function, whose vectors have GSIs of their own behind the pins of the IOAPIC.
pub(crate) struct DeviceRoutes {
    pub(crate) routes: Arc<Routes>,
    /// The GSI of each of its vectors.
    pub(crate) gsis: Range<u32>,
    pub(crate) lines: Arc<Lines>,
    pub(crate) pin: Pin,
}

impl EventRoutes for DeviceRoutes {
    fn open(&self, vector: u16, event: &EventFd, message: Message) -> io::Result<()> {
        let gsi = self.gsis.start + u32::from(vector);
        self.routes.set(gsi, message)?;
        // KVM looks at once whether the eventfd was written, and sends what was pending.
        Ok(self.routes.vm.register_irqfd(event, gsi)?)
    }

    fn close(&self, vector: u16, event: &EventFd) {
        // The route stays, for the most masks are only for a while.
        if let Err(error) = self.routes.vm.unregister_irqfd(event, self.gsis.start + u32::from(vector)) {
            log::warn!("KVM cannot mask MSI-X vector {vector}: {error}");
        }
    }

    fn forget(&self) {
        // What is left of it there, nothing sends.
        if let Err(error) = self.routes.forget(self.gsis.clone()) {
            log::debug!("KVM keeps the messages of slot {}: {error}", self.pin.slot);
        }
    }

    fn drive(&self, asserted: bool) -> io::Result<()> {
        self.lines.drive(self.pin, asserted)
    }

    fn listen(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        // Any value of any width: the address says it all, and KVM need not decode the instruction.
        let listens = self.routes.vm.register_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch);
        listens.map_err(|error| {
            tell_unheard(error, &self.routes.unheard);
            error.into()
        })
    }

    fn unlisten(&self, address: u64, kick: &EventFd) {
        // The address is left to whoever has it now, whatever KVM says.
        if let Err(error) =
            self.routes.vm.unregister_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch)
        {
            log::debug!("KVM does not stop listening at {address:#x}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_asserted_as_long_as_one_function_drives_it() {
        let made = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm());
        let Ok(vm) = made else {
            println!("skipped: a_line_is_asserted_as_long_as_one_function_drives_it: KVM is not to be had");
            return;
        };
        vm.create_irq_chip().unwrap();
        let vm = Arc::new(vm);
        let lines = Lines::new(vm.clone());
        let asserted = || {
            let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
            // The IOAPIC remembers a line that is level-triggered only while it is asserted.
            vm.get_irqchip(&mut chip).unwrap();
            // SAFETY: KVM has filled in that chip's state.
            unsafe { chip.chip.ioapic.irr }
        };
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        vm.get_irqchip(&mut chip).unwrap();
        for line in [5, 11] {
            // SAFETY: as above. Masked, level-triggered.
            unsafe { chip.chip.ioapic.redirtbl[line].bits = 1 << 16 | 1 << 15 };
        }
        vm.set_irqchip(&chip).unwrap();
        let pin = |slot, line| Pin { slot, line };
        for (pin, on, expected) in [
            (pin(1, 11), true, 1 << 11),
            (pin(5, 11), true, 1 << 11),
            (pin(31, 5), true, 1 << 11 | 1 << 5),
            (pin(1, 11), false, 1 << 11 | 1 << 5),
            (pin(1, 11), false, 1 << 11 | 1 << 5),
            (pin(5, 11), false, 1 << 5),
            (pin(31, 5), false, 0),
        ] {
            lines.drive(pin, on).unwrap();
            assert_eq!(asserted(), expected, "{pin:?} {on}");
        }
    }

    #[test]
    fn the_pins_keep_their_lines_beside_the_messages() {
        let message = Message { address: 0x1_fee0_1000, data: 0x4041 };
        let table = table(&BTreeMap::from([(24, message)]));
        let gsis: Vec<_> = table.iter().map(|entry| entry.gsi).collect();
        assert_eq!(gsis, (0..24).chain(0..16).chain([24]).collect::<Vec<_>>());
        let types = |range: Range<usize>| table[range].iter().map(|entry| entry.type_);
        assert!(types(0..40).all(|kind| kind == KVM_IRQ_ROUTING_IRQCHIP));
        assert!(types(40..41).all(|kind| kind == KVM_IRQ_ROUTING_MSI));
    }

    #[test]
    fn a_message_that_is_refused_leaves_what_was_there() {
        let message = |data| Message { address: 0xfee0_0000, data };
        let mut messages = BTreeMap::from([(24, message(1))]);
        let before = messages.clone();
        for gsi in [24, 25] {
            let refused = replace(&mut messages, gsi, message(2), |new| {
                assert_eq!(new[&gsi], message(2));
                Err(io::ErrorKind::InvalidInput.into())
            });
            assert!(refused.is_err());
            assert_eq!(messages, before, "GSI {gsi}");
        }
        replace(&mut messages, 24, message(1), |_| panic!("it is so already")).unwrap();
        replace(&mut messages, 25, message(2), |_| Ok(())).unwrap();
        assert_eq!(messages, BTreeMap::from([(24, message(1)), (25, message(2))]));
        // Of a function that is taken out.
        remove(&mut messages, 26..30, |_| panic!("there is none")).unwrap();
        remove(&mut messages, 25..30, |left| {
            assert_eq!(*left, BTreeMap::from([(24, message(1))]));
            Ok(())
        })
        .unwrap();
        assert_eq!(messages.len(), 1);
    }

    #[test]
    fn kvm_listens_to_more_notifications_than_there_are_and_once_at_each_place() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return println!("skipped: kvm_listens_to_more_notifications_than_there_are: there is no KVM");
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        let (routes, lines) = (Routes::new(vm.clone()), Lines::new(vm));
        let (first, pin) = (layout::IOAPIC_PINS, Pin { slot: 1, line: layout::pci_line(1) });
        let device = DeviceRoutes { routes: Arc::clone(&routes), gsis: first..first + 4, lines, pin };
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let at = |queue: u64| layout::PCI_WINDOW + 4 * queue;
        // 31 NICs of 64 pairs and a control queue.
        (0..31 * 129).for_each(|queue| device.listen(at(queue), &kick).unwrap());
        assert_eq!(device.listen(at(0), &kick).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert!(!routes.unheard.is_completed(), "the guest may bring that about as often as it likes");
        device.unlisten(at(0), &kick);
        device.listen(at(0), &kick).unwrap();
        tell_unheard(kvm_ioctls::Error::new(libc::ENOSPC), &routes.unheard);
        assert!(routes.unheard.is_completed());
    }
}
