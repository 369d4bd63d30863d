//! Every guest-physical address, port and interrupt line of the machine, in one table.
//!
//! ```text
//! 0x0000_0000 .. 0x000a_0000   low RAM: GDT, start info, zero page, page tables, command line
//! 0x000a_0000 .. 0x000c_0000   where a PC has its VGA memory: announced as nothing
//! 0x000c_0000 .. 0x000e_0000   SMBIOS structures, where a PC has option ROMs
//! 0x000e_0000 .. 0x000f_8000   ACPI tables, the RSDP first
//! 0x000f_8000 .. 0x0010_0000   firmware: the MP table, the entry point of SMBIOS, the VM generation ID, and the entry by which
//!                              real-mode code restarts a PC
//! 0x0010_0000 .. end of RAM    the kernel and, at the top, the initrd; ends at the hole at the latest
//! 0xc000_0000 .. 0x1_0000_0000 the hole: device registers, never RAM
//!    0xc000_0000               virtio-mmio windows, a page each
//!    0xd000_0000               256 MiB in which PCI devices have their BARs
//!    0xe000_0000               the ECAM of PCI bus 0
//!    0xfec0_0000               IOAPIC
//!    0xfee0_0000               local APIC
//!    0xfffb_c000               the pages that KVM keeps for itself on some hosts
//! 0x1_0000_0000 ..             the RAM that the hole displaced
//! ```

/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;

/// The least memory a machine can have, in bytes.
pub const MIN_MEMORY: u64 = 32 * MIB;
/// The most memory a machine can have, in bytes: what 40 bits of physical address reach, less the hole.
pub const MAX_MEMORY: u64 = (1 << 40) - HOLE_LEN;

/// Where conventional memory ends.
pub const LOW_RAM_END: u64 = 0xa_0000;
/// The global descriptor table of the vCPU 0 at entry.
pub const GDT: u64 = 0x1000;
/// The room for the global descriptor table, in bytes.
pub const GDT_LEN: u64 = 0x1000;
/// The PVH start info with its module list and memory map behind it.
pub const START_INFO: u64 = 0x6000;
/// The room for the PVH start info and its lists, in bytes.
pub const START_INFO_LEN: u64 = 0x1000;
/// The zero page (`struct boot_params`, Linux `Documentation/arch/x86/zero-page.rst`).
pub const ZERO_PAGE: u64 = 0x7000;
/// The size of the zero page, in bytes.
pub const ZERO_PAGE_LEN: u64 = 0x1000;
/// The page tables at entry: one PML4, one PDPT and four page directories, in this order.
pub const PAGE_TABLES: u64 = 0x9000;
/// The size of the page tables, in bytes.
pub const PAGE_TABLES_LEN: u64 = 6 * 0x1000;
/// The command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// The room for the command line with its NUL, in bytes.
pub const CMDLINE_LEN: u64 = 0x1_0000;

/// The structures of SMBIOS.
pub const SMBIOS: u64 = 0xc_0000;
/// The room for the structures of SMBIOS, in bytes.
pub const SMBIOS_LEN: u64 = 0x2_0000;

/// The ACPI tables. The RSDP is the first of them, where an operating system without other means searches
/// for it (ACPI 6.5 §5.2.5.1).
pub const ACPI: u64 = 0xe_0000;
/// The room for the ACPI tables, in bytes.
pub const ACPI_LEN: u64 = 0x1_8000;
/// What little firmware there is, in the last pages below 1 MiB.
pub const FIRMWARE: u64 = 0xf_8000;
/// The size of the firmware, in bytes.
pub const FIRMWARE_LEN: u64 = 0x8000;
/// The floating pointer of the MP table with the table behind it, where a kernel without ACPI searches for it (MultiProcessor
/// Specification 1.4 §4).
pub const MP_TABLE: u64 = FIRMWARE;
/// The room for both, in bytes.
pub const MP_TABLE_LEN: u64 = 0x4000;
/// The entry point of SMBIOS, where an operating system without UEFI searches for it (DSP0134 3.7 §5.2.2).
pub const SMBIOS_ENTRY: u64 = MP_TABLE + MP_TABLE_LEN;
/// The room for it, in bytes.
pub const SMBIOS_ENTRY_LEN: u64 = 0x20;
/// The VM generation ID, of 16 bytes.
pub const GENERATION_ID: u64 = SMBIOS_ENTRY + SMBIOS_ENTRY_LEN;
/// Where real-mode code jumps to restart a PC (`ffff:0000`).
pub const RESTART: u64 = 0xf_fff0;

/// Where high memory begins: the lowest address of a kernel.
pub const HIMEM: u64 = 0x10_0000;

/// The hole for devices begins here; RAM that would reach over it goes on at [`HOLE_END`].
pub const HOLE_START: u64 = 0xc000_0000;
/// The end of the hole: 4 GiB.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// The size of the hole, in bytes.
pub const HOLE_LEN: u64 = HOLE_END - HOLE_START;

/// The first virtio-mmio window.
pub const VIRTIO_MMIO: u64 = 0xc000_0000;
/// The size of one virtio-mmio window, in bytes.
pub const VIRTIO_MMIO_LEN: u64 = 0x1000;
/// Where PCI devices have their BARs.
pub const PCI_WINDOW: u64 = 0xd000_0000;
/// The size of that window, in bytes.
pub const PCI_WINDOW_LEN: u64 = 0x1000_0000;
/// The ECAM, by which PCI configuration space is reached: of bus 0, the only one.
pub const ECAM: u64 = 0xe000_0000;
/// The size of the ECAM, in bytes.
pub const ECAM_LEN: u64 = MIB;
/// The first of the ports by which PCI configuration space is reached without the ECAM.
pub const PCI_CONFIG: u16 = 0xcf8;
/// The number of those ports.
pub const PCI_CONFIG_LEN: u16 = 8;
/// The registers of the IOAPIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The number of input pins of the IOAPIC; their GSIs begin at 0.
pub const IOAPIC_PINS: u32 = 24;
/// The registers of each vCPU's local APIC.
pub const LAPIC: u64 = 0xfee0_0000;
/// One page that KVM uses for real mode on Intel hosts without unrestricted guest (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM uses for the same reason (KVM_SET_TSS_ADDR).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// The first of the eight ports of the serial port COM1.
pub const COM1: u16 = 0x3f8;
/// The number of ports of COM1.
pub const COM1_LEN: u16 = 8;
/// The interrupt line of COM1.
pub const COM1_GSI: u32 = 4;
/// The data port of the keyboard controller.
pub const I8042_DATA: u16 = 0x60;
/// The command port of the keyboard controller; 0xfe written here resets the machine.
pub const I8042_COMMAND: u16 = 0x64;
/// The first of the two ports of the clock.
pub const RTC: u16 = 0x70;
/// The number of those ports.
pub const RTC_LEN: u16 = 2;
/// The register of the clock that holds the century.
pub const RTC_CENTURY: u8 = 0x32;
/// The port of the panic device.
pub const PVPANIC: u16 = 0x505;
/// The ACPI sleep control register (ACPI 6.5 §4.8.3.7).
pub const SLEEP_CONTROL: u16 = 0x600;
/// The ACPI sleep status register (ACPI 6.5 §4.8.3.7).
pub const SLEEP_STATUS: u16 = 0x601;
/// The ACPI reset register: [`RESET_VALUE`] written here resets the machine (ACPI 6.5 §4.8.3.6).
pub const RESET: u16 = 0x602;
/// The register of the generic event device: a byte of pending events, cleared by reading it.
pub const GED: u16 = 0x603;

/// The registers by which NICs are plugged and unplugged, of 32 bits each: see [`HOTPLUG_LOOK`] and those after it.
pub const HOTPLUG: u16 = 0x610;
/// The number of their ports.
pub const HOTPLUG_LEN: u16 = 16;
/// Offset of the slots that the guest is to look at, a bit each, cleared by reading it. Bit 0 is the whole bus.
pub const HOTPLUG_LOOK: u16 = 0;
/// Offset of the slots that the guest is to let go, likewise.
pub const HOTPLUG_LEAVE: u16 = 4;
/// Offset of the slots that the guest lets go, which it writes.
pub const HOTPLUG_EJECT: u16 = 8;
/// Offset of the guest's word on what it was asked (ACPI 6.5 §6.3.5), which it writes: slot, event and status, at these shifts.
pub const HOTPLUG_STATUS: u16 = 12;
/// In a word of the guest's: where the five bits of the slot begin.
pub const HOTPLUG_SLOT_SHIFT: u8 = 27;
/// In a word of the guest's: where the eleven bits of the event begin; below are sixteen of the status.
pub const HOTPLUG_EVENT_SHIFT: u8 = 16;

/// The interrupt line of the generic event device.
pub const GED_GSI: u32 = 9;
/// The bit of the [`GED`] register that means: the power button was pressed.
pub const GED_POWER_BUTTON: u8 = 1 << 0;
/// The bit of the [`GED`] register that means: slots of the PCI bus are to be looked at, or let go.
pub const GED_SLOTS: u8 = 1 << 1;
/// The value that resets the machine when written to [`RESET`].
pub const RESET_VALUE: u8 = 1;
/// The value that the guest writes to [`SLEEP_CONTROL`] to power off: SLP_TYPx of S5 and SLP_EN.
pub const SLEEP_S5: u8 = SLEEP_TYPE_S5 << 2 | 1 << 5;
/// SLP_TYPx of S5, as `\_S5` announces it.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;

/// The interrupt lines for virtio-mmio devices, one each, none shared. First those that the 8259s have too and nothing else has; last the
/// clock's, which a kernel without ACPI takes for its own.
const VIRTIO_GSIS: [u32; 18] = [5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 13, 8];
/// The number of virtio-mmio devices that have a window and an interrupt line.
pub const VIRTIO_MMIO_MAX: usize = VIRTIO_GSIS.len();

/// The interrupt lines that the pins of PCI functions are on: level-triggered, active low, and shared. Below 16, so that the 8259s
/// have them, too, and none that a PC has for something else.
pub const PCI_LINES: [u32; 4] = [10, 11, 5, 15];

/// The interrupt line of INTA# of the PCI function in `slot`.
pub fn pci_line(slot: usize) -> u32 {
    PCI_LINES[slot % PCI_LINES.len()]
}

/// Where one virtio-mmio device is: its registers and its interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// The guest-physical address of the registers, below 4 GiB.
    pub base: u64,
    /// The size of the registers, in bytes.
    pub size: u64,
    /// The interrupt line: edge-triggered, active high, not shared.
    pub gsi: u32,
}

/// The place of the virtio-mmio device number `index`, counted from 0; `None` from [`VIRTIO_MMIO_MAX`] on.
pub fn virtio_mmio(index: usize) -> Option<VirtioMmio> {
    let gsi = *VIRTIO_GSIS.get(index)?;
    Some(VirtioMmio { base: VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_LEN, size: VIRTIO_MMIO_LEN, gsi })
}

/// Splits `bytes` of memory around the hole: (start, length) of each region of RAM, in order.
pub fn ram_regions(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(HOLE_START);
    match bytes - low {
        0 => vec![(0, low)],
        high => vec![(0, low), (HOLE_END, high)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_apart(mut areas: Vec<(&str, u64, u64)>) {
        areas.sort_by_key(|area| area.1);
        for pair in areas.windows(2) {
            assert!(pair[0].1 + pair[0].2 <= pair[1].1, "{pair:x?} overlap");
        }
    }

    #[test]
    fn nothing_in_memory_overlaps() {
        assert_apart(vec![
            ("gdt", GDT, GDT_LEN),
            ("start info", START_INFO, START_INFO_LEN),
            ("zero page", ZERO_PAGE, ZERO_PAGE_LEN),
            ("page tables", PAGE_TABLES, PAGE_TABLES_LEN),
            ("command line", CMDLINE, CMDLINE_LEN),
            ("end of low RAM", LOW_RAM_END, 0),
            ("smbios", SMBIOS, SMBIOS_LEN),
            ("acpi", ACPI, ACPI_LEN),
            ("mp table", MP_TABLE, MP_TABLE_LEN),
            ("entry point of smbios", SMBIOS_ENTRY, SMBIOS_ENTRY_LEN),
            ("generation id", GENERATION_ID, 16),
            ("restart", RESTART, 0x10),
            ("himem", HIMEM, MIN_MEMORY - HIMEM),
            ("start of the hole", HOLE_START, 0),
            ("virtio-mmio", VIRTIO_MMIO, VIRTIO_MMIO_MAX as u64 * VIRTIO_MMIO_LEN),
            ("pci window", PCI_WINDOW, PCI_WINDOW_LEN),
            ("ecam", ECAM, ECAM_LEN),
            ("ioapic", IOAPIC, 0x1000),
            ("lapic", LAPIC, 0x1000),
            ("identity map", KVM_IDENTITY_MAP, 0x1000),
            ("tss", KVM_TSS, 0x3000),
            ("end of the hole", HOLE_END, 0),
        ]);
    }

    #[test]
    fn no_port_is_used_twice() {
        assert_apart(vec![
            ("com1", COM1.into(), COM1_LEN.into()),
            ("i8042 data", I8042_DATA.into(), 1),
            ("i8042 command", I8042_COMMAND.into(), 1),
            ("rtc", RTC.into(), RTC_LEN.into()),
            ("pvpanic", PVPANIC.into(), 1),
            ("sleep control", SLEEP_CONTROL.into(), 1),
            ("sleep status", SLEEP_STATUS.into(), 1),
            ("reset", RESET.into(), 1),
            ("ged", GED.into(), 1),
            ("hot plug", HOTPLUG.into(), HOTPLUG_LEN.into()),
            ("pci configuration", PCI_CONFIG.into(), PCI_CONFIG_LEN.into()),
        ]);
    }

    #[test]
    fn no_line_is_used_twice_and_each_has_a_pin() {
        let mut lines = vec![COM1_GSI, GED_GSI];
        lines.extend((0..VIRTIO_MMIO_MAX).map(|index| virtio_mmio(index).unwrap().gsi));
        lines.sort_unstable();
        assert!(lines.windows(2).all(|pair| pair[0] < pair[1]), "{lines:?}");
        assert!(lines.iter().all(|line| (1..IOAPIC_PINS).contains(line)), "{lines:?}");
        assert_eq!(virtio_mmio(VIRTIO_MMIO_MAX), None);
        // Those that a PIC knows as level-triggered, if it is told (of the first eight, 3 to 7; of the others, not 8 and 13).
        assert!(PCI_LINES.iter().all(|line| matches!(line, 3..=7 | 9..=12 | 14 | 15)));
        assert!(PCI_LINES.iter().all(|line| ![COM1_GSI, GED_GSI].contains(line)));
        assert_eq!([1, 2, 3, 4, 5, 31].map(pci_line), [11, 5, 15, 10, 11, 15]);
    }

    #[test]
    fn ram_goes_around_the_hole() {
        for (bytes, regions) in [
            (64 * MIB, vec![(0, 64 * MIB)]),
            (3072 * MIB, vec![(0, HOLE_START)]),
            (3584 * MIB, vec![(0, HOLE_START), (HOLE_END, 512 * MIB)]),
            (6144 * MIB, vec![(0, HOLE_START), (HOLE_END, 3072 * MIB)]),
            (MAX_MEMORY, vec![(0, HOLE_START), (HOLE_END, (1 << 40) - HOLE_END)]),
        ] {
            assert_eq!(ram_regions(bytes), regions);
        }
    }
}
