//! The slots of the PCI bus, into which NICs are plugged while the guest runs, and out of which they are taken.
//!
//! NIC n is in slot n + 1; what is in the slots of other devices stays there, whatever the guest says of them. What becomes of one, each with the guest's word:
//!
//! ```text
//!       plug, and the guest is to look               it is to let go
//! none ───────────────────────────────► new ─► its ─────────────────► asked ─► none
//!                                        │      │                       │
//!                                        └──────┴────── by force ───────┴────► none; the guest is to look at the whole bus
//! ```
//!
//! All of it is done on the main thread, which is where the threads of a NIC are born. A guest without a driver for this says nothing;
//! how long it is waited for is the keeper's business.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use boot::layout;
use devices::pci::hotplug::{HotPlug, WHOLE_BUS, Word};
use devices::reset::AcpiPower;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::kvm::irq;
use crate::kvm::pci_bus::PciBus;
use crate::machine::nic::Nic;
use crate::machine::sandbox::Filters;
use crate::protocol::{self, FromMachine};

// Two crates that do not know each other describe the same registers.
const _: () = {
    assert!(layout::HOTPLUG_LEN as u64 == HotPlug::LEN && layout::GED_SLOTS == AcpiPower::EVENT_SLOTS);
    assert!(layout::HOTPLUG_LOOK as u64 == HotPlug::LOOK && layout::HOTPLUG_LEAVE as u64 == HotPlug::LEAVE);
    assert!(
        layout::HOTPLUG_EJECT as u64 == HotPlug::EJECT && layout::HOTPLUG_STATUS as u64 == HotPlug::STATUS
    );
    assert!(layout::HOTPLUG_SLOT_SHIFT == HotPlug::SLOT_SHIFT);
    assert!(layout::HOTPLUG_EVENT_SHIFT == HotPlug::EVENT_SHIFT);
};

/// The bus, and the registers by which the guest hears of it.
pub(crate) struct Slots {
    bus: PciBus,
    registers: Arc<HotPlug>,
    power: Arc<AcpiPower>,
    vm: Arc<VmFd>,
    /// For the threads of NICs to come; none in a machine that is not confined.
    filters: Option<Arc<Filters>>,
    /// The guest is looking at the whole bus.
    looking: bool,
    /// And is to look again then, for more is gone since.
    again: bool,
}

/// The slot of NIC `number`.
fn slot_of(number: usize) -> usize {
    number + 1
}

impl Slots {
    pub(crate) fn new(
        bus: PciBus,
        registers: Arc<HotPlug>,
        power: Arc<AcpiPower>,
        vm: Arc<VmFd>,
        filters: Option<Arc<Filters>>,
    ) -> Self {
        Self { bus, registers, power, vm, filters, looking: false, again: false }
    }

    /// Readable once the guest has had its word.
    pub(crate) fn answered(&self) -> &EventFd {
        self.registers.answered()
    }

    /// Plugs a NIC in, and has the guest look.
    ///
    /// # Errors
    /// The guest does not listen, or the host has no threads or descriptors left. Nothing is left of the NIC then.
    pub(crate) fn plug(
        &self,
        nic: protocol::Nic,
        descriptors: Vec<OwnedFd>,
        nics: &mut Vec<Nic>,
    ) -> Result<(), Error> {
        if !self.is_heard() {
            return Err(Error::Deaf);
        }
        let mut nic = Nic::new(nic, descriptors)?;
        if let Some(filters) = &self.filters {
            nic.confine(filters).map_err(Error::Confine)?;
        }
        let slot = slot_of(nic.number());
        self.bus.plug(slot, nic.take_device())?;
        let at = nics.partition_point(|other| other.number() < nic.number());
        nics.insert(at, nic);
        self.registers.ask_to_look(slot);
        self.point();
        Ok(())
    }

    /// Has the guest let a NIC go.
    ///
    /// # Errors
    /// It does not listen.
    pub(crate) fn ask_for(&self, number: usize) -> Result<(), Error> {
        if !self.is_heard() {
            return Err(Error::Deaf);
        }
        self.registers.ask_to_leave(slot_of(number));
        self.point();
        Ok(())
    }

    /// Takes a NIC out, whatever the guest does with it. True: the guest has seen it, and is to see that it is gone.
    pub(crate) fn pull(&mut self, number: usize, nics: &mut Vec<Nic>) -> bool {
        let slot = slot_of(number);
        let unseen = self.bus.is_known(slot);
        self.take_out(number, nics);
        if unseen && self.looking {
            self.again = true;
        } else if unseen {
            self.look_at_bus();
        }
        unseen
    }

    fn look_at_bus(&mut self) {
        (self.looking, self.again) = (true, false);
        self.registers.ask_to_look(WHOLE_BUS);
        self.point();
    }

    /// What the guest's words come to, for the keeper.
    pub(crate) fn hear(&mut self, nics: &mut Vec<Nic>) -> Vec<FromMachine> {
        let mut said = Vec::new();
        for (slot, word) in self.registers.take_words() {
            let Some(number) = slot.checked_sub(1) else {
                self.looking = false;
                match self.again {
                    true => self.look_at_bus(),
                    false => said.push(FromMachine::Looked),
                }
                continue;
            };
            // Another device's slot: the guest has it no more until it looks again, and that is its own affair.
            if !nics.iter().any(|nic| nic.number() == number) {
                continue;
            }
            said.push(match word {
                Word::Looked => FromMachine::Plugged { number, done: Ok(()) },
                Word::Refused(status) => {
                    self.take_out(number, nics);
                    FromMachine::Plugged { number, done: Err(Error::Refused { status }.to_string()) }
                }
                Word::LetGo => {
                    self.take_out(number, nics);
                    FromMachine::Unplugged { number, done: Ok(()), unseen: false }
                }
                Word::Keeps(status) => {
                    let done = Err(Error::Kept { status }.to_string());
                    FromMachine::Unplugged { number, done, unseen: false }
                }
            });
        }
        said
    }

    /// Nothing of the NIC is left when this returns: no thread, no descriptor, no route.
    fn take_out(&self, number: usize, nics: &mut Vec<Nic>) {
        self.registers.forget(slot_of(number));
        self.bus.unplug(slot_of(number));
        if let Some(at) = nics.iter().position(|nic| nic.number() == number) {
            nics.remove(at).log_counters();
        }
    }

    /// Whether the guest has a driver of the event device.
    fn is_heard(&self) -> bool {
        irq::is_unmasked(&self.vm, layout::GED_GSI).unwrap_or_else(|error| {
            log::debug!("KVM does not say whether the guest hears of its slots: {error}");
            true
        })
    }

    fn point(&self) {
        if let Err(error) = self.power.point_to_slots() {
            log::warn!("cannot tell the guest of its slots: {error}");
        }
    }
}
