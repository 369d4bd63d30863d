//! The PCI bus, and the slots into which NICs are plugged while the guest runs.
//!
//! That is done by ACPI (ACPI 6.5 §6.3), and not by PCI Express's own hot plug, which would take a root port for each slot: a bus, a
//! window and an interrupt each, and a guest that knows PCI Express. ACPI takes four registers at I/O ports and the interrupt of the
//! event device that is there for the power button. Until something is plugged, it costs nothing. Linux's driver for it (`acpiphp`,
//! `CONFIG_HOTPLUG_PCI_ACPI`) is built into stock kernels, and needs no word on the command line.
//!
//! ```text
//! LOOK or LEAVE has a bit, the event device interrupts ──► its _EVT ─► SCAN ─► Notify(slot, look) or Notify(slot, let go)
//! the guest has looked, or cannot let go ──► the slot's _OST ─► STATUS
//! the guest has let go ──► the slot's _EJ0 ─► EJECT
//! ```
//!
//! A function that was taken out without a word is found by a look at the whole bus, on which the guest has its word, too.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Local, Memory32Fixed, Method, MethodCall, Name, Notify, OpRegion,
    OpRegionSpace, Or, Package, Path, ResourceTemplate, ShiftLeft, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::PCI_SLOTS;
use crate::layout::{
    ECAM, ECAM_LEN, HOTPLUG, HOTPLUG_EVENT_SHIFT, HOTPLUG_LEN, HOTPLUG_SLOT_SHIFT, PCI_CONFIG,
    PCI_CONFIG_LEN, PCI_WINDOW, PCI_WINDOW_LEN, pci_line,
};

/// The method that tells the guest what the registers ask of it.
pub(super) const SCAN: &str = "\\_SB_.PCI0.SCAN";
/// The method that passes on the guest's word: slot, event, status.
const SAY: &str = "SAID";

/// Notifications (§5.6.6): of what is under a device, of a device, and of a request that it be let go.
const BUS_CHECK: u8 = 0;
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// The PCI bus, with one bus number, one window for memory, and for each slot the line of its pin INTA# (§6.2.13). The ECAM is what
/// a motherboard device claims (PCI Firmware 3.3 §4.1.2), else Linux leaves it alone.
pub(super) fn bus(sink: &mut Vec<u8>) {
    let window_end = (PCI_WINDOW + PCI_WINDOW_LEN - 1) as u32;
    let buses = AddressSpace::new_bus_number(0u16, 0);
    let ports = IO::new(PCI_CONFIG, PCI_CONFIG, 1, PCI_CONFIG_LEN as u8);
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_WINDOW as u32,
        window_end,
        None,
    );
    let pins: Vec<_> = (1..PCI_SLOTS)
        .map(|slot| ((slot << 16) as u32 | 0xffff, pci_line(slot)))
        .map(|(function, line)| OwnedPackage(vec![function, 0, 0, line]))
        .collect();
    let pins = Package::new(pins.iter().map(|pin| pin as &dyn Aml).collect());
    Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_BBN"), &ZERO),
            &Name::new(Path::new("_SEG"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&buses, &ports, &window])),
            &Name::new(Path::new("_PRT"), &pins),
            &HotPlug,
        ],
    )
    .to_aml_bytes(sink);
    let ecam = Memory32Fixed::new(true, ECAM as u32, ECAM_LEN as u32);
    Device::new(
        Path::new("ECAM"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(sink);
}

/// What the bus has for hot plug.
struct HotPlug;

impl Aml for HotPlug {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        OpRegion::new(Path::new("HREG"), OpRegionSpace::SystemIO, &HOTPLUG, &(HOTPLUG_LEN as u8))
            .to_aml_bytes(sink);
        Field::new(
            Path::new("HREG"),
            FieldAccessType::DWord,
            FieldLockRule::NoLock,
            FieldUpdateRule::WriteAsZeroes,
            [*b"LOOK", *b"LEAV", *b"EJEC", *b"WORD"].map(|name| FieldEntry::Named(name, 32)).into(),
        )
        .to_aml_bytes(sink);
        say(sink);
        word(0, sink);
        (1..PCI_SLOTS).for_each(|number| slot(number, sink));
        scan(sink);
    }
}

/// One write for the whole word, so that two vCPUs do not mix theirs.
fn say(sink: &mut dyn AmlSink) {
    let [event, status] = [Local(0), Local(1)];
    let [slot, arg1, arg2] = [Arg(0), Arg(1), Arg(2)];
    Method::new(
        Path::new(SAY),
        3,
        false,
        vec![
            &And::new(&event, &arg1, &0x7ffu16),
            &ShiftLeft::new(&event, &event, &HOTPLUG_EVENT_SHIFT),
            &And::new(&status, &arg2, &0xffffu16),
            &Or::new(&status, &status, &event),
            &ShiftLeft::new(&event, &slot, &HOTPLUG_SLOT_SHIFT),
            &Or::new(&Path::new("WORD"), &status, &event),
        ],
    )
    .to_aml_bytes(sink);
}

/// The method by which the guest has its word on an event of the device around it (§6.3.5); the third argument has nothing for us.
fn word(slot: u8, sink: &mut dyn AmlSink) {
    let [event, status] = [Arg(0), Arg(1)];
    let say = MethodCall::new(Path::new(SAY), vec![&slot, &event, &status]);
    Method::new(Path::new("_OST"), 3, false, vec![&say]).to_aml_bytes(sink);
}

/// A slot (§6.1.1, §6.1.9, §6.3.3). Whether there is something in it, the guest sees by looking.
fn slot(number: usize, sink: &mut dyn AmlSink) {
    let address = (number << 16) as u32;
    let mut said = Vec::new();
    word(number as u8, &mut said);
    Device::new(
        slot_name(number),
        vec![
            &Name::new(Path::new("_ADR"), &address),
            &Name::new(Path::new("_SUN"), &(number as u8)),
            &Method::new(
                Path::new("_EJ0"),
                1,
                false,
                vec![&Store::new(&Path::new("EJEC"), &(1u32 << number))],
            ),
            &Raw(said),
        ],
    )
    .to_aml_bytes(sink);
}

fn slot_name(number: usize) -> Path {
    Path::new(&format!("S{number:03X}"))
}

/// First the whole bus: what is gone must be seen before something else is in its slot.
fn scan(sink: &mut dyn AmlSink) {
    let [looks, leaves] = [Local(0), Local(1)];
    let mut steps = Vec::new();
    let mut notify = |asked: &Local, number: usize, device: Path, event: u8| {
        let mask = 1u32 << number;
        let bit = And::new(&ZERO, asked, &mask);
        If::new(&bit, vec![&Notify::new(&device, &event)]).to_aml_bytes(&mut steps);
    };
    notify(&looks, 0, Path::new("\\_SB_.PCI0"), BUS_CHECK);
    for number in 1..PCI_SLOTS {
        notify(&looks, number, slot_name(number), DEVICE_CHECK);
        notify(&leaves, number, slot_name(number), EJECT_REQUEST);
    }
    let (look, leave) = (Path::new("LOOK"), Path::new("LEAV"));
    let (fetch_looks, fetch_leaves) = (Store::new(&looks, &look), Store::new(&leaves, &leave));
    Method::new(Path::new("SCAN"), 0, true, vec![&fetch_looks, &fetch_leaves, &Raw(steps)])
        .to_aml_bytes(sink);
}

/// Code that was put together before.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// A package of numbers.
struct OwnedPackage(Vec<u32>);

impl Aml for OwnedPackage {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Package::new(self.0.iter().map(|number| number as &dyn Aml).collect()).to_aml_bytes(sink);
    }
}
