//! The ACPI tables (ACPI 6.5): a hardware-reduced machine, described and nothing more.
//!
//! Hardware-reduced means that there is no SCI, no PM timer, no 8259 and no PIT to program: Linux neither
//! probes nor calibrates by them. What a PC has by custom and this machine has not (keyboard controller, VGA)
//! is said to be absent.

mod pci;

use acpi_tables::aml::{
    AmlStr, And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Local, Memory32Fixed, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Package,
    Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{self, AccessSize, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Error;
use crate::layout::{
    ACPI, ACPI_LEN, COM1, COM1_GSI, COM1_LEN, ECAM, GED, GED_GSI, GED_POWER_BUTTON, GED_SLOTS, GENERATION_ID,
    IOAPIC, LAPIC, PVPANIC, RESET, RESET_VALUE, RTC, RTC_CENTURY, RTC_LEN, SLEEP_CONTROL, SLEEP_STATUS,
    SLEEP_TYPE_S5, VirtioMmio,
};

const OEM_ID: [u8; 6] = *b"WIREVM";
const OEM_TABLE_ID: [u8; 8] = *b"WIREVM  ";
const OEM_REVISION: u32 = 1;

/// IAPC_BOOT_ARCH (ACPI 6.5 §5.2.9.3): bit 1, which would announce an 8042, stays clear.
const NO_VGA: u16 = 1 << 2;

/// The notification of a pressed power button (ACPI 6.5 §4.8.2.2.1.2).
const STATUS_BUTTON_PRESSED: u8 = 0x80;

/// The highest id that a Local APIC structure can hold; 255 is the broadcast.
const XAPIC_ID_MAX: u32 = 254;

/// The slots of the PCI bus; in slot 0 is the host bridge, which interrupts nobody.
pub(crate) const PCI_SLOTS: usize = 32;

/// What the tables describe beyond what [`crate::layout`] fixes.
#[derive(Clone, Copy, Debug)]
pub struct AcpiConfig<'a> {
    /// The number of vCPUs. The local APIC ids are 0, 1, 2, ... without a gap.
    pub cpus: u32,
    /// The virtio-mmio devices, in the order in which the guest finds them.
    pub virtio_mmio: &'a [VirtioMmio],
    /// Whether there is a PCI bus, with its window and its ECAM.
    pub pci: bool,
}

/// Writes the tables, and gives the address of the RSDP.
pub(crate) fn write(memory: &GuestMemoryMmap, config: &AcpiConfig<'_>) -> Result<u64, Error> {
    let mut tables = Tables { bytes: vec![0; Rsdp::len()] };
    let dsdt = tables.add(&dsdt(config)?);
    let fadt = tables.add(&fadt(dsdt));
    let madt = tables.add(&madt(config.cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if config.pci {
        let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        mcfg.add_ecam(ECAM, 0, 0, 0);
        xsdt.add_entry(tables.add(&mcfg));
    }
    let xsdt = tables.add(&xsdt);
    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    tables.bytes[..rsdp.len()].copy_from_slice(&rsdp);

    let len = tables.bytes.len() as u64;
    if len > ACPI_LEN {
        let (cpus, devices) = (config.cpus, config.virtio_mmio.len());
        return Err(Error::AcpiTooLarge { cpus, devices, len, room: ACPI_LEN });
    }
    memory.write_slice(&tables.bytes, GuestAddress(ACPI)).map_err(|source| Error::Memory {
        what: "ACPI tables",
        address: ACPI,
        source,
    })?;
    Ok(ACPI)
}

/// The tables one after another, as they lie from [`ACPI`] on.
struct Tables {
    bytes: Vec<u8>,
}

impl Tables {
    /// Appends a table, and gives its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = ACPI + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

/// An 8-bit register at an I/O port.
fn port(address: u16) -> GAS {
    GAS::new(gas::AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into())
}

/// §5.2.9. The button flags say that there is no *fixed* power or sleep button; ours is in the DSDT.
fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.century = RTC_CENTURY;
    fadt.reset_reg = port(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL);
    fadt.sleep_status_reg = port(SLEEP_STATUS);
    fadt.finalize()
}

/// §5.2.12. The flag PCAT_COMPAT is clear: nobody shall program the 8259s that KVM has beside its IOAPIC.
fn madt(cpus: u32) -> impl Aml {
    let mut body = Vec::new();
    body.dword(LAPIC as u32);
    body.dword(0);
    for id in 0..cpus {
        if id <= XAPIC_ID_MAX {
            ProcessorLocalApic::new(id as u8, id as u8, EnabledStatus::Enabled).to_aml_bytes(&mut body);
        } else {
            // Processor Local x2APIC (§5.2.12.12), which acpi_tables does not have.
            body.vec(&[9, 16, 0, 0]);
            body.dword(id);
            body.dword(EnabledStatus::Enabled as u32);
            body.dword(id);
        }
    }
    IoApic::new(0, IOAPIC as u32, 0).to_aml_bytes(&mut body);
    table(*b"APIC", 6, &body)
}

/// §5.2.11.1: the serial port, the clock, the panic device, the PCI bus or the virtio devices, the power button and the event
/// device, and the sleep state S5.
fn dsdt(config: &AcpiConfig<'_>) -> Result<impl Aml, Error> {
    let mut devices = Vec::new();
    serial(&mut devices);
    clock(&mut devices);
    panic_device(&mut devices);
    generation(&mut devices);
    for (index, device) in config.virtio_mmio.iter().enumerate() {
        virtio_mmio(index, device, &mut devices)?;
    }
    if config.pci {
        pci::bus(&mut devices);
    }
    event_device(config.pci, &mut devices);
    let mut body = Scope::raw(Path::new("_SB_"), devices);
    let values = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new(Path::new("_S5_"), &values).to_aml_bytes(&mut body);
    Ok(table(*b"DSDT", 2, &body))
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table
}

/// An edge-triggered, active-high line that nobody shares.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn serial(sink: &mut Vec<u8>) {
    let ports = IO::new(COM1, COM1, 1, COM1_LEN as u8);
    let line = edge(COM1_GSI);
    Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports, &line])),
        ],
    )
    .to_aml_bytes(sink);
}

/// The clock, without the interrupt of a PC's.
fn clock(sink: &mut Vec<u8>) {
    let ports = IO::new(RTC, RTC, 1, RTC_LEN as u8);
    Device::new(
        Path::new("RTC_"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports])),
        ],
    )
    .to_aml_bytes(sink);
}

fn panic_device(sink: &mut Vec<u8>) {
    let hid: AmlStr = "QEMU0001";
    let ports = IO::new(PVPANIC, PVPANIC, 1, 1);
    Device::new(
        Path::new("PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &hid),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports])),
        ],
    )
    .to_aml_bytes(sink);
}

/// Where the VM generation ID is (Microsoft, Virtual Machine Generation ID, 2012). Linux stirs it into its random numbers, so that two
/// guests of one image have others from the first moment on.
fn generation(sink: &mut Vec<u8>) {
    let names: [AmlStr; 3] = ["WIRV0001", "VM_Gen_Counter", "VMGENCTR"];
    let address = Package::new(vec![&GENERATION_ID, &ZERO]);
    Device::new(
        Path::new("VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &names[0]),
            &Name::new(Path::new("_CID"), &Package::new(vec![&names[1], &names[2]])),
            &Name::new(Path::new("_DDN"), &names[1]),
            &Name::new(Path::new("ADDR"), &address),
        ],
    )
    .to_aml_bytes(sink);
}

/// The power button (§4.8.2.2.1.2) and the generic event device (§5.6.9) that tells of it, and of the slots of the PCI bus.
fn event_device(pci: bool, sink: &mut Vec<u8>) {
    let button = Path::new("PWRB");
    Device::new(Path::new("PWRB"), vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C"))])
        .to_aml_bytes(sink);

    let hid: AmlStr = "ACPI0013";
    let line = edge(GED_GSI);
    let events = Path::new("GEVT");
    let field = Field::new(
        Path::new("GREG"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"GEVT", 8)],
    );
    // One read fetches and clears all pending events, so each is tested in the copy.
    let local = Local(0);
    let fetch = Store::new(&local, &events);
    let pressed = And::new(&ZERO, &local, &GED_POWER_BUTTON);
    let notify = Notify::new(&button, &STATUS_BUTTON_PRESSED);
    let tell = If::new(&pressed, vec![&notify]);
    let asked = And::new(&ZERO, &local, &GED_SLOTS);
    let scan = MethodCall::new(Path::new(pci::SCAN), vec![]);
    let look = If::new(&asked, vec![&scan]);
    let mut steps: Vec<&dyn Aml> = vec![&fetch, &tell];
    if pci {
        steps.push(&look);
    }
    let method = Method::new(Path::new("_EVT"), 1, true, steps);
    Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &hid),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&line])),
            &OpRegion::new(Path::new("GREG"), OpRegionSpace::SystemIO, &GED, &1u8),
            &field,
            &method,
        ],
    )
    .to_aml_bytes(sink);
}

fn virtio_mmio(index: usize, device: &VirtioMmio, sink: &mut Vec<u8>) -> Result<(), Error> {
    let VirtioMmio { base, size, gsi } = *device;
    let (Ok(base32), Ok(size32)) = (u32::try_from(base), u32::try_from(size)) else {
        return Err(Error::WindowTooHigh { base, size });
    };
    let hid: AmlStr = "LNRO0005";
    let registers = Memory32Fixed::new(true, base32, size32);
    let line = edge(gsi);
    Device::new(
        Path::new(&format!("V{index:03X}")),
        vec![
            &Name::new(Path::new("_HID"), &hid),
            &Name::new(Path::new("_UID"), &(index as u32)),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&registers, &line])),
        ],
    )
    .to_aml_bytes(sink);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::layout::{VIRTIO_MMIO_MAX, pci_line, virtio_mmio};
    use crate::testing::{bytes, memory};

    /// Writes the tables for a machine, and reads them back from the RSDP on: each found by its address,
    /// within the room, and with a good checksum.
    fn tables(cpus: u32, devices: usize) -> Vec<Vec<u8>> {
        tables_with(cpus, devices, false)
    }

    fn tables_with(cpus: u32, devices: usize, pci: bool) -> Vec<Vec<u8>> {
        let memory = memory(64);
        let devices: Vec<_> = (0..devices).filter_map(virtio_mmio).collect();
        let rsdp = write(&memory, &AcpiConfig { cpus, virtio_mmio: &devices, pci }).unwrap();
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let fetch = |address: u64| {
            let len = u32::from_le_bytes(bytes(&memory, address + 4, 4).try_into().unwrap());
            assert!(address > ACPI && address + u64::from(len) <= ACPI + ACPI_LEN, "{address:#x}+{len:#x}");
            assert_eq!(address % 8, 0, "a table is aligned to its widest field");
            let table = bytes(&memory, address, len as usize);
            assert_eq!(sum(&table), 0, "checksum of {}", String::from_utf8_lossy(&table[..4]));
            table
        };
        let pointer = |table: &[u8], at: usize| u64::from_le_bytes(table[at..at + 8].try_into().unwrap());

        assert_eq!(rsdp % 16, 0, "the RSDP is searched for on 16-byte boundaries");
        let rsdp = bytes(&memory, rsdp, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = fetch(pointer(&rsdp, 24));
        let fadt = fetch(pointer(&xsdt, 36));
        let madt = fetch(pointer(&xsdt, 44));
        let dsdt = fetch(pointer(&fadt, 140));
        let mcfg = pci.then(|| fetch(pointer(&xsdt, 52)));
        assert_eq!(xsdt.len(), 36 + 8 * if pci { 3 } else { 2 });
        let mut all = vec![xsdt, fadt, madt, dsdt];
        all.extend(mcfg);
        let signatures: Vec<_> = all.iter().map(|table| String::from_utf8_lossy(&table[..4])).collect();
        let expected = ["XSDT", "FACP", "APIC", "DSDT", "MCFG"];
        assert_eq!(signatures, expected[..all.len()]);
        all
    }

    #[test]
    fn tables_hang_together_and_fit() {
        for (cpus, devices) in [(1, 0), (1, 1), (2, 16), (255, 16), (1024, VIRTIO_MMIO_MAX)] {
            tables(cpus, devices);
            tables_with(cpus, devices, true);
        }
    }

    #[test]
    fn fadt_tells_what_the_machine_has_not() {
        let fadt = &tables(1, 0)[1];
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags, 1 << 20 | 1 << 10 | 1 << 5 | 1 << 4 | 1, "HW_REDUCED_ACPI, RESET_REG_SUP, ...");
        assert_eq!(fadt[109..111], [0x04, 0], "no VGA, a CMOS clock, and no 8042 announced");
        assert_eq!(fadt[108], 0x32, "where the century is");
        assert_eq!(fadt[116..129], [1, 8, 0, 1, 0x02, 0x06, 0, 0, 0, 0, 0, 0, RESET_VALUE]);
        assert_eq!(fadt[244..256], [1, 8, 0, 1, 0x00, 0x06, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[256..268], [1, 8, 0, 1, 0x01, 0x06, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_dsdt_has_the_line_of_each_slots_pin_and_the_clock() {
        let dsdt = |pci| tables_with(1, 0, pci)[3].clone();
        let lines = |dsdt: &[u8]| -> Vec<(u8, u8)> {
            // A package (ACPI 6.5 §20.2) of four: the double word of slot and any function, two zeros, and the byte of the line.
            let pin = |at: &[u8]| match *at {
                [0x12, _, 4, 0x0c, 0xff, 0xff, slot, 0, 0, 0, 0x0a, line] => Some((slot, line)),
                _ => None,
            };
            dsdt.windows(12).filter_map(pin).collect()
        };
        let expected: Vec<_> = (1..32).map(|slot| (slot as u8, pci_line(slot) as u8)).collect();
        assert_eq!((lines(&dsdt(true)), lines(&dsdt(false))), (expected, vec![]));
        let clock = EISAName::new("PNP0B00");
        let mut id = Vec::new();
        clock.to_aml_bytes(&mut id);
        assert_eq!(id, [0x0c, 0x41, 0xd0, 0x0b, 0x00]);
        assert!(dsdt(false).windows(5).any(|at| at == id));
    }

    #[test]
    fn the_dsdt_says_where_the_generation_id_is() {
        let dsdt = &tables(1, 0)[3];
        let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|at| at == bytes);
        // A name: a package of two (ACPI 6.5 §20.2), the double word of its address and a zero for the half above.
        let [a, b, c, d] = (GENERATION_ID as u32).to_le_bytes();
        assert!(has(&[8, b'A', b'D', b'D', b'R', 0x12, 8, 2, 0x0c, a, b, c, d, 0]));
        assert!(has(b"\x08_CID\x12\x1c\x02\rVM_Gen_Counter\0\rVMGENCTR\0"));
        assert!(has(b"\x08_DDN\rVM_Gen_Counter\0"));
    }

    #[test]
    fn a_machine_without_a_bus_has_no_slots() {
        let has = |pci, name: &[u8]| tables_with(1, 0, pci)[3].windows(4).any(|at| at == name);
        for name in [b"S001", b"S01F", b"SCAN", b"_EJ0", b"_OST"] {
            assert_eq!(
                (has(true, name), has(false, name)),
                (true, false),
                "{}",
                String::from_utf8_lossy(name)
            );
        }
        assert!(!has(true, b"S000") && !has(true, b"S020"));
    }

    #[test]
    fn mcfg_has_the_ecam_of_one_bus() {
        let mcfg = &tables_with(1, 0, true)[4];
        assert_eq!(mcfg[44..], [0, 0, 0, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn madt_has_each_vcpu_in_the_form_that_holds_its_id() {
        let madt = &tables(300, 0)[2];
        assert_eq!(madt[36..44], [0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
        let (mut ids, mut at) = (vec![], 44);
        while at < madt.len() {
            match madt[at] {
                0 => ids.push(u32::from(madt[at + 3])),
                9 => ids.push(u32::from_le_bytes(madt[at + 4..at + 8].try_into().unwrap())),
                1 => assert_eq!(madt[at + 4..at + 12], [0, 0, 0xc0, 0xfe, 0, 0, 0, 0]),
                other => panic!("structure {other}"),
            }
            assert!(madt[at] != 0 || madt[at + 3] < 255, "255 is the broadcast");
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(ids, (0..300).collect::<Vec<_>>());
    }

    #[test]
    fn too_many_vcpus_are_an_error() {
        let error =
            write(&memory(64), &AcpiConfig { cpus: 10_000, virtio_mmio: &[], pci: true }).unwrap_err();
        assert!(matches!(error, Error::AcpiTooLarge { cpus: 10_000, .. }), "{error}");
    }

    #[test]
    fn a_window_must_be_addressable() {
        let device = VirtioMmio { base: 1 << 32, size: 0x1000, gsi: 5 };
        let error =
            write(&memory(64), &AcpiConfig { cpus: 1, virtio_mmio: &[device], pci: false }).unwrap_err();
        assert!(matches!(error, Error::WindowTooHigh { .. }), "{error}");
    }

    /// Intel's compiler disassembles the DSDT and takes the result again without an error or a warning; what
    /// it reads there is what was meant.
    #[test]
    fn iasl_reads_the_dsdt() {
        if Command::new("iasl").arg("-v").output().is_err() {
            eprintln!("skipped: no iasl (package acpica-tools)");
            return;
        }
        let directory = std::env::temp_dir().join(format!("boot-test-acpi-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let iasl = |arguments: &[&str]| {
            let output = Command::new("iasl").args(arguments).current_dir(&directory).output().unwrap();
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            (output.status.success(), text)
        };
        for (name, table) in ["xsdt", "fadt", "madt", "dsdt", "mcfg"].into_iter().zip(tables_with(2, 3, true))
        {
            fs::write(directory.join(format!("{name}.aml")), table).unwrap();
            let (good, text) = iasl(&["-d", &format!("{name}.aml")]);
            assert!(good && !text.contains("Error") && !text.contains("Warning"), "{name}: {text}");
        }
        let (good, text) = iasl(&["-p", "again", "dsdt.dsl"]);
        assert!(good && text.contains(" 0 Errors, 0 Warnings"), "{text}");
        let source = fs::read_to_string(directory.join("dsdt.dsl")).unwrap();
        let squeezed = source.split_whitespace().collect::<Vec<_>>().join(" ");
        fs::remove_dir_all(&directory).unwrap();
        for expected in [
            r#"Name (_HID, EisaId ("PNP0501")"#,
            r#"Name (_HID, "QEMU0001")"#,
            r#"Name (_HID, EisaId ("PNP0C0C")"#,
            r#"Name (_HID, "ACPI0013""#,
            "If ((Local0 & One)) { Notify (PWRB, 0x80) // Status Change }",
            "OperationRegion (GREG, SystemIO, 0x0603, One)",
            r"If ((Local0 & 0x02)) { \_SB.PCI0.SCAN () }",
            "OperationRegion (HREG, SystemIO, 0x0610, 0x10)",
            "LOOK, 32, LEAV, 32, EJEC, 32, WORD, 32 }",
            "Local0 = (Arg1 & 0x07FF) Local0 <<= 0x10 Local1 = (Arg2 & 0xFFFF) Local1 |= Local0 Local0 = (Arg0 << 0x1B) \
             WORD = (Local1 | Local0) }",
            "{ SAID (Zero, Arg0, Arg1) }",
            "Device (S01F) { Name (_ADR, 0x001F0000) // _ADR: Address Name (_SUN, 0x1F) // _SUN: Slot User Number Method \
             (_EJ0, 1, NotSerialized) // _EJx: Eject Device, x=0-9 { EJEC = 0x80000000 }",
            "{ SAID (0x1F, Arg0, Arg1) }",
            "Local0 = LOOK /* \\_SB_.PCI0.LOOK */ Local1 = LEAV /* \\_SB_.PCI0.LEAV */ If ((Local0 & One)) { Notify \
             (\\_SB.PCI0, Zero) // Bus Check } If ((Local0 & 0x02)) { Notify (S001, One) // Device Check } If ((Local1 & \
             0x02)) { Notify (S001, 0x03) // Eject Request }",
            r#"Device (V002) { Name (_HID, "LNRO0005") // _HID: Hardware ID Name (_UID, 0x02)"#,
            "Memory32Fixed (ReadWrite, 0xC0002000, // Address Base 0x00001000, // Address Length )",
            "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000007, }",
            r#"Device (PCI0) { Name (_HID, EisaId ("PNP0A03") /* PCI Bus */"#,
            "WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0x0000, // Granularity 0x0000, // Range \
             Minimum 0x0000, // Range Maximum",
            "DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite, 0x00000000, // \
             Granularity 0xD0000000, // Range Minimum 0xDFFFFFFF, // Range Maximum",
            r#"Device (ECAM) { Name (_HID, EisaId ("PNP0C02")"#,
            "Memory32Fixed (ReadWrite, 0xE0000000, // Address Base 0x00100000, // Address Length )",
            "Name (_S5, Package (0x04) // _S5_: S5 System State { 0x05,",
        ] {
            assert!(squeezed.contains(expected), "no {expected} in\n{source}");
        }
    }
}
