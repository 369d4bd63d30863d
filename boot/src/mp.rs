//! The MP table (Intel MultiProcessor Specification 1.4): processors, IOAPIC and interrupt lines, for kernels without ACPI, or that
//! are told to do without. A kernel that has ACPI's tables leaves it alone.
//!
//! It tells less than ACPI: nothing of power, and no processor whose APIC ID has more than 8 bits.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Error;
use crate::acpi::{AcpiConfig, PCI_SLOTS};
use crate::layout::{IOAPIC, LAPIC, MP_TABLE, MP_TABLE_LEN, PCI_LINES, pci_line};

/// The highest APIC ID that an entry holds; 255 is the broadcast.
const ID_MAX: u32 = 254;
const VERSION_1_4: u8 = 4;
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;

/// Entries (§4.3), by their types.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

const ENABLED: u8 = 1 << 0;
const BOOT_PROCESSOR: u8 = 1 << 1;

const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;
/// Lines of the ISA bus, of which one is the cascade of the 8259s.
const ISA_LINES: u32 = 16;
const CASCADE: u32 = 2;

/// Types of interrupts (§4.3.4).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Polarity and trigger mode: as the bus has them, and as PCI has them.
const AS_THE_BUS: u16 = 0;
const ACTIVE_LOW_LEVEL: u16 = 0b11 | 0b11 << 2;
const ALL_PROCESSORS: u8 = 0xff;

/// Writes the floating pointer and the table behind it.
pub(crate) fn write(memory: &GuestMemoryMmap, config: &AcpiConfig<'_>) -> Result<(), Error> {
    let table = table(config);
    let mut pointer = Vec::with_capacity(16);
    pointer.extend(b"_MP_");
    pointer.extend((MP_TABLE as u32 + 16).to_le_bytes());
    // Its length in paragraphs, the version, the checksum; a table is there, and the 8259s are by way of the local APIC.
    pointer.extend([1, VERSION_1_4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    let bytes = [pointer, table].concat();
    let (len, room) = (bytes.len() as u64, MP_TABLE_LEN);
    assert!(len <= room, "at most 255 processors and so many lines take {room} bytes");
    memory.write_slice(&bytes, GuestAddress(MP_TABLE)).map_err(|source| Error::Memory {
        what: "MP table",
        address: MP_TABLE,
        source,
    })
}

fn table(config: &AcpiConfig<'_>) -> Vec<u8> {
    let processors = config.cpus.min(ID_MAX + 1);
    // An APIC ID that no processor has, if there is one.
    let io_apic = if processors <= ID_MAX { processors as u8 } else { 0 };
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for id in 0..processors {
        let flags = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
        let mut entry = vec![PROCESSOR, id as u8, LAPIC_VERSION, flags];
        // The family, as CPUID has it, where it matters to no one; an FPU and an APIC.
        entry.extend([0x600u32, 1 << 9 | 1 << 0, 0, 0].map(u32::to_le_bytes).concat());
        entries.push(entry);
    }
    for (bus, name) in [(PCI_BUS, b"PCI   "), (ISA_BUS, b"ISA   ")] {
        if bus != PCI_BUS || config.pci {
            entries.push([&[BUS, bus][..], name].concat());
        }
    }
    entries.push([&[IO_APIC, io_apic, IOAPIC_VERSION, ENABLED][..], &(IOAPIC as u32).to_le_bytes()].concat());
    let interrupt = |kind, what, flags: u16, bus, line, to, pin| {
        let [low, high] = flags.to_le_bytes();
        vec![kind, what, low, high, bus, line, to, pin]
    };
    let free = |line: &u32| *line != CASCADE && !(config.pci && PCI_LINES.contains(line));
    // Of the lines behind the ISA bus's, those that a device has.
    let more = config.virtio_mmio.iter().map(|device| device.gsi).filter(|gsi| *gsi >= ISA_LINES);
    for line in (0..ISA_LINES).filter(free).chain(more) {
        let line = line as u8;
        entries.push(interrupt(IO_INTERRUPT, INT, AS_THE_BUS, ISA_BUS, line, io_apic, line));
    }
    for slot in (1..PCI_SLOTS).filter(|_| config.pci) {
        // Of a PCI bus, the device and its pin, INTA.
        let (device, line) = ((slot << 2) as u8, pci_line(slot) as u8);
        entries.push(interrupt(IO_INTERRUPT, INT, ACTIVE_LOW_LEVEL, PCI_BUS, device, io_apic, line));
    }
    entries.push(interrupt(LOCAL_INTERRUPT, EXT_INT, AS_THE_BUS, ISA_BUS, 0, 0, 0));
    entries.push(interrupt(LOCAL_INTERRUPT, NMI, AS_THE_BUS, ISA_BUS, 0, ALL_PROCESSORS, 1));

    let count = entries.len() as u16;
    let body = entries.concat();
    let mut table = b"PCMP".to_vec();
    table.extend((44 + body.len() as u16).to_le_bytes());
    table.extend([VERSION_1_4, 0]);
    table.extend(b"WIREVM  WIREVM      ");
    // No table of an OEM's.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend((LAPIC as u32).to_le_bytes());
    table.extend([0; 4]);
    table.extend(body);
    table[7] = checksum(&table);
    table
}

/// What brings the sum of all bytes to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{VIRTIO_MMIO_MAX, VirtioMmio, virtio_mmio};
    use crate::testing::{bytes, memory};

    /// Finds the table as a kernel does, and gives its entries.
    fn entries(cpus: u32, devices: usize, pci: bool) -> Vec<Vec<u8>> {
        let memory = memory(64);
        let virtio_mmio: Vec<VirtioMmio> = (0..devices).filter_map(virtio_mmio).collect();
        write(&memory, &AcpiConfig { cpus, virtio_mmio: &virtio_mmio, pci }).unwrap();
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let places = (0xf_0000..0x10_0000).step_by(16);
        let found: Vec<_> = places.filter(|at| bytes(&memory, *at, 4) == b"_MP_").collect();
        assert_eq!(found, [MP_TABLE]);
        let pointer = bytes(&memory, MP_TABLE, 16);
        assert_eq!((sum(&pointer), &pointer[8..10], &pointer[11..]), (0, &[1, 4][..], &[0; 5][..]));
        let at = u32::from_le_bytes(pointer[4..8].try_into().unwrap()).into();
        let head = bytes(&memory, at, 44);
        let len = u16::from_le_bytes([head[4], head[5]]).into();
        assert!(at + len as u64 <= MP_TABLE + MP_TABLE_LEN);
        let table = bytes(&memory, at, len);
        assert_eq!((sum(&table), &table[..4], table[6]), (0, &b"PCMP"[..], 4));
        assert_eq!(table[36..40], [0, 0, 0xe0, 0xfe]);
        let (mut rest, mut entries) = (&table[44..], vec![]);
        while let Some(kind) = rest.first() {
            let (entry, behind) = rest.split_at(if *kind == PROCESSOR { 20 } else { 8 });
            entries.push(entry.to_vec());
            rest = behind;
        }
        assert_eq!(entries.len(), usize::from(u16::from_le_bytes([table[34], table[35]])));
        assert!(entries.is_sorted_by_key(|entry| entry[0]), "by rising types (§4.3)");
        entries
    }

    fn of(entries: &[Vec<u8>], kind: u8) -> Vec<&[u8]> {
        entries.iter().filter(|entry| entry[0] == kind).map(|entry| &entry[1..]).collect()
    }

    #[test]
    fn each_processor_has_an_entry_that_can_hold_its_id() {
        for (cpus, listed, io_apic) in [(1, 1, 1), (2, 2, 2), (254, 254, 254), (255, 255, 0), (256, 255, 0)] {
            let entries = entries(cpus, 0, true);
            let processors = of(&entries, PROCESSOR);
            let ids: Vec<_> = processors.iter().map(|entry| u32::from(entry[0])).collect();
            assert_eq!(ids, (0..listed).collect::<Vec<_>>());
            // Of the first family with an APIC, and with an FPU (§4.3.1).
            let features = [0, 6, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            assert!(processors.iter().all(|entry| entry[1] == 0x14 && entry[3..] == features));
            assert_eq!(processors.iter().filter(|entry| entry[2] == ENABLED | BOOT_PROCESSOR).count(), 1);
            assert_eq!(of(&entries, IO_APIC), [&[io_apic, 0x11, 1, 0, 0, 0xc0, 0xfe]]);
        }
    }

    #[test]
    fn each_line_is_there_once_by_its_bus() {
        let with_pci = entries(2, 0, true);
        assert_eq!(of(&with_pci, BUS), [b"\0PCI   ", b"\x01ISA   "]);
        let lines = of(&with_pci, IO_INTERRUPT);
        let isa: Vec<_> = lines.iter().filter(|entry| entry[3] == ISA_BUS).map(|entry| entry[4]).collect();
        assert_eq!(isa, [0, 1, 3, 4, 6, 7, 8, 9, 12, 13, 14]);
        let pci: Vec<_> = lines.iter().filter(|entry| entry[3] == PCI_BUS).collect();
        assert_eq!(pci.len(), 31);
        assert_eq!(pci[0], &[INT, 0xf, 0, PCI_BUS, 1 << 2, 2, 11], "slot 1, INTA, level, active low");
        assert_eq!(pci[30], &[INT, 0xf, 0, PCI_BUS, 31 << 2, 2, 15]);

        let with_mmio = entries(1, VIRTIO_MMIO_MAX, false);
        assert_eq!(of(&with_mmio, BUS), [b"\x01ISA   "]);
        let mut lines: Vec<_> =
            of(&with_mmio, IO_INTERRUPT).iter().map(|entry| (entry[4], entry[6])).collect();
        lines.sort_unstable();
        assert_eq!(lines, (0..24).filter(|line| *line != 2).map(|line| (line, line)).collect::<Vec<_>>());
        assert_eq!(
            of(&with_mmio, LOCAL_INTERRUPT),
            [&[EXT_INT, 0, 0, ISA_BUS, 0, 0, 0], &[NMI, 0, 0, ISA_BUS, 0, 0xff, 1]]
        );
    }
}
