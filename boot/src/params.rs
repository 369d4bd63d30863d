//! What the kernel is told about the machine: the zero page, or PVH's start info, and in both the memory map.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::Error;
use crate::initrd::Initrd;
use crate::kernel::Kernel;
use crate::layout::{
    ACPI, ACPI_LEN, CMDLINE, ECAM, ECAM_LEN, FIRMWARE, FIRMWARE_LEN, HIMEM, LOW_RAM_END, SMBIOS, SMBIOS_LEN,
    START_INFO, ZERO_PAGE,
};

/// `type_of_loader`: one without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1 << 0;
const BOOT_FLAG: u16 = 0xaa55;
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
const PROTOCOL_2_12: u16 = 0x20c;
const START_INFO_MAGIC: u32 = 0x336e_c578;

/// What an address range is, with e820's numbers, which are also PVH's (ACPI 6.5 §15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ram = 1,
    Reserved = 2,
    /// RAM with ACPI tables in it, which the guest may reclaim once it has read them.
    Acpi = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    len: u64,
    kind: Kind,
}

/// The memory map: RAM as `memory` has it, but for the legacy hole, the ACPI tables and the firmware below 1 MiB.
/// With `pci` it says that the ECAM is no place for anything else, else Linux does not believe in it so early.
fn memory_map(memory: &GuestMemoryMmap, pci: bool) -> Vec<Range> {
    let mut map = vec![
        Range { start: 0, len: LOW_RAM_END, kind: Kind::Ram },
        Range { start: SMBIOS, len: SMBIOS_LEN, kind: Kind::Reserved },
        Range { start: ACPI, len: ACPI_LEN, kind: Kind::Acpi },
        Range { start: FIRMWARE, len: FIRMWARE_LEN, kind: Kind::Reserved },
    ];
    map.extend(memory.iter().filter_map(|region| {
        let start = region.start_addr().0.max(HIMEM);
        let len = (region.start_addr().0 + region.len()).saturating_sub(start);
        (len > 0).then_some(Range { start, len, kind: Kind::Ram })
    }));
    if pci {
        let above = map.iter().position(|range| range.start > ECAM).unwrap_or(map.len());
        map.insert(above, Range { start: ECAM, len: ECAM_LEN, kind: Kind::Reserved });
    }
    map
}

/// Writes the zero page for the 64-bit boot protocol. `rsdp` is the address of the ACPI RSDP.
pub(crate) fn write_zero_page(
    memory: &GuestMemoryMmap,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    rsdp: u64,
    pci: bool,
) -> Result<(), Error> {
    // An ELF file has no header; the kernel reads these few fields of one all the same.
    let synthesized = setup_header {
        boot_flag: BOOT_FLAG,
        header: HDRS,
        version: PROTOCOL_2_12,
        loadflags: LOADED_HIGH,
        ..Default::default()
    };
    let mut hdr = kernel.header.unwrap_or(synthesized);
    hdr.type_of_loader = LOADER_UNDEFINED;
    hdr.cmd_line_ptr = CMDLINE as u32;
    // What a file claims here would be an address for the kernel to follow.
    hdr.setup_data = 0;
    let initrd = initrd.unwrap_or(Initrd { start: 0, size: 0 });
    hdr.ramdisk_image = initrd.start as u32;
    hdr.ramdisk_size = initrd.size as u32;

    let mut params = boot_params { hdr, acpi_rsdp_addr: rsdp, ..Default::default() };
    let map = memory_map(memory, pci);
    params.e820_entries = map.len() as u8;
    for (entry, range) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: range.start, size: range.len, r#type: range.kind as u32 };
    }
    write(memory, "zero page", ZERO_PAGE, &params)
}

/// Writes the PVH start info, version 1, with its module list and memory map behind it (Xen's
/// `public/arch-x86/hvm/start_info.h`). `rsdp` is the address of the ACPI RSDP.
pub(crate) fn write_start_info(
    memory: &GuestMemoryMmap,
    initrd: Option<Initrd>,
    rsdp: u64,
    pci: bool,
) -> Result<(), Error> {
    let modules = START_INFO + size_of::<hvm_start_info>() as u64;
    let map_at = modules + size_of::<hvm_modlist_entry>() as u64;
    let map = memory_map(memory, pci);
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { modules } else { 0 },
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: map_at,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    write(memory, "start info", START_INFO, &info)?;
    if let Some(Initrd { start, size }) = initrd {
        let module = hvm_modlist_entry { paddr: start, size, ..Default::default() };
        write(memory, "module list", modules, &module)?;
    }
    for (index, range) in map.iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.len,
            type_: range.kind as u32,
            ..Default::default()
        };
        write(memory, "memory map", map_at + (index * size_of_val(&entry)) as u64, &entry)?;
    }
    Ok(())
}

fn write<T: ByteValued>(
    memory: &GuestMemoryMmap,
    what: &'static str,
    address: u64,
    object: &T,
) -> Result<(), Error> {
    memory.write_slice(object.as_slice(), GuestAddress(address)).map_err(|source| Error::Memory {
        what,
        address,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;
    use crate::layout::{HOLE_END, MIB, START_INFO_LEN};
    use crate::testing::{bytes, memory, word};

    const INITRD: Initrd = Initrd { start: 0x300_0000, size: 0x1234 };

    fn kernel(header: Option<setup_header>) -> Kernel {
        Kernel { protocol: Protocol::Linux64, entry: 0, end: 0, header, initrd_max: 0, cmdline_max: 0 }
    }

    /// Reads (start, length, type) triples of `stride` bytes, as a kernel does.
    fn ranges(memory: &GuestMemoryMmap, at: u64, count: u64, stride: u64) -> Vec<(u64, u64, u32)> {
        (0..count)
            .map(|index| at + index * stride)
            .map(|at| (word(memory, at), word(memory, at + 8), word(memory, at + 16) as u32))
            .collect()
    }

    fn half(memory: &GuestMemoryMmap, address: u64) -> u32 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn both_memory_maps_are_true_for_each_size() {
        let below_3_gib = 3072 * MIB - HIMEM;
        for (mib, ram, pci) in [
            (1, vec![]),
            (32, vec![(HIMEM, 31 * MIB)]),
            (64, vec![(HIMEM, 63 * MIB)]),
            (512, vec![(HIMEM, 511 * MIB)]),
            (3072, vec![(HIMEM, below_3_gib)]),
            (3584, vec![(HIMEM, below_3_gib), (HOLE_END, 512 * MIB)]),
            (6144, vec![(HIMEM, below_3_gib), (HOLE_END, 3072 * MIB)]),
        ]
        .into_iter()
        .flat_map(|(mib, ram)| [false, true].map(|pci| (mib, ram.clone(), pci)))
        {
            let mut expected = vec![
                (0, 0xa_0000, 1),
                (0xc_0000, 0x2_0000, 2),
                (0xe_0000, 0x1_8000, 3),
                (0xf_8000, 0x8000, 2),
            ];
            expected.extend(ram.into_iter().map(|(start, len)| (start, len, 1)));
            if pci {
                let above = expected.iter().position(|range| range.0 > ECAM).unwrap_or(expected.len());
                expected.insert(above, (0xe000_0000, 0x10_0000, 2));
            }

            let memory = memory(mib);
            write_zero_page(&memory, &kernel(None), None, ACPI, pci).unwrap();
            let count = bytes(&memory, ZERO_PAGE + 0x1e8, 1)[0].into();
            assert_eq!(ranges(&memory, ZERO_PAGE + 0x2d0, count, 20), expected, "e820 of {mib} MiB");

            write_start_info(&memory, None, ACPI, pci).unwrap();
            let count = half(&memory, START_INFO + 48).into();
            let at = word(&memory, START_INFO + 40);
            assert!(at + count * 24 <= START_INFO + START_INFO_LEN);
            assert_eq!(ranges(&memory, at, count, 24), expected, "PVH's map of {mib} MiB");
        }
    }

    #[test]
    fn the_zero_page_has_the_kernels_own_header_and_ours_in_it() {
        let memory = memory(64);
        let header = setup_header {
            header: HDRS,
            version: 0x20f,
            root_flags: 1,
            setup_data: 0xdead_beef,
            init_size: 0x123_4567,
            ..Default::default()
        };
        write_zero_page(&memory, &kernel(Some(header)), Some(INITRD), ACPI, false).unwrap();
        assert_eq!(word(&memory, ZERO_PAGE + 0x70), ACPI);
        assert_eq!(bytes(&memory, ZERO_PAGE + 0x1f2, 2), [1, 0]);
        assert_eq!(bytes(&memory, ZERO_PAGE + 0x202, 6), *b"HdrS\x0f\x02");
        assert_eq!(bytes(&memory, ZERO_PAGE + 0x210, 1), [0xff]);
        assert_eq!(half(&memory, ZERO_PAGE + 0x218), 0x300_0000);
        assert_eq!(half(&memory, ZERO_PAGE + 0x21c), 0x1234);
        assert_eq!(half(&memory, ZERO_PAGE + 0x228), CMDLINE as u32);
        assert_eq!(word(&memory, ZERO_PAGE + 0x250), 0, "no setup_data of the file's");
        assert_eq!(half(&memory, ZERO_PAGE + 0x260), 0x123_4567);
    }

    #[test]
    fn a_kernel_without_a_header_gets_one() {
        let memory = memory(64);
        write_zero_page(&memory, &kernel(None), None, ACPI, false).unwrap();
        assert_eq!(bytes(&memory, ZERO_PAGE + 0x1fe, 2), [0x55, 0xaa]);
        assert_eq!(bytes(&memory, ZERO_PAGE + 0x202, 6), *b"HdrS\x0c\x02");
        assert_eq!(bytes(&memory, ZERO_PAGE + 0x210, 2), [0xff, 1]);
        assert_eq!(half(&memory, ZERO_PAGE + 0x218), 0);
        assert_eq!(half(&memory, ZERO_PAGE + 0x228), CMDLINE as u32);
    }

    #[test]
    fn the_start_info_leads_to_everything() {
        let memory = memory(64);
        write_start_info(&memory, Some(INITRD), ACPI, false).unwrap();
        assert_eq!(half(&memory, START_INFO), 0x336e_c578);
        assert_eq!(half(&memory, START_INFO + 4), 1);
        assert_eq!(half(&memory, START_INFO + 12), 1);
        let module = word(&memory, START_INFO + 16);
        assert_eq!((word(&memory, module), word(&memory, module + 8)), (0x300_0000, 0x1234));
        assert_eq!(word(&memory, START_INFO + 24), CMDLINE);
        assert_eq!(word(&memory, START_INFO + 32), ACPI);

        write_start_info(&memory, None, ACPI, false).unwrap();
        assert_eq!(half(&memory, START_INFO + 12), 0);
        assert_eq!(word(&memory, START_INFO + 16), 0);
    }
}
