//! How vCPU 0 finds itself at the kernel's first instruction: registers, descriptor table, page tables.
//!
//! The state is plain data, field by field what KVM's `kvm_regs` and `kvm_sregs` hold, but independent of KVM.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout::{GDT, HOLE_END, PAGE_TABLES, START_INFO, ZERO_PAGE};
use crate::{Error, Protocol};

/// A segment register with its hidden part (Intel SDM vol. 3 §3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are the specification's
pub struct Segment {
    pub base: u64,
    /// In bytes, whatever `g` says: 0xffff_ffff is 4 GiB.
    pub limit: u32,
    pub selector: u16,
    pub type_: u8,
    pub s: u8,
    pub dpl: u8,
    pub present: u8,
    pub l: u8,
    pub db: u8,
    pub g: u8,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are the specification's
pub struct DescriptorTable {
    pub base: u64,
    pub limit: u16,
}

/// The state of vCPU 0 at entry. Registers that are not named here are zero, the LDT is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are the specification's
pub struct Entry {
    pub protocol: Protocol,
    pub rip: u64,
    pub rsp: u64,
    pub rbx: u64,
    pub rsi: u64,
    pub rflags: u64,
    pub cs: Segment,
    /// For SS, DS and ES; also fit for FS and GS.
    pub data: Segment,
    pub tr: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

/// RFLAGS with nothing but the bit that is always 1: interrupts are off, as both protocols demand.
const RFLAGS: u64 = 1 << 1;
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// The selectors of the 64-bit boot protocol, `__BOOT_CS` and `__BOOT_DS`.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 0x20_0000;

const DATA: Segment = Segment {
    base: 0,
    limit: u32::MAX,
    selector: BOOT_DS,
    type_: 0x3, // writable, accessed
    s: 1,
    dpl: 0,
    present: 1,
    l: 0,
    db: 1,
    g: 1,
};
const CODE32: Segment = Segment { selector: BOOT_CS, type_: 0xb, ..DATA };
const CODE64: Segment = Segment { l: 1, db: 0, ..CODE32 };
/// VM entry demands a busy TSS in TR, though nothing ever switches to it.
const TSS: Segment =
    Segment { base: 0, limit: 0x67, selector: 0, type_: 0xb, s: 0, dpl: 0, present: 1, l: 0, db: 0, g: 0 };

impl Segment {
    /// The descriptor that loads this segment (Intel SDM vol. 3 §3.4.5).
    fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.g == 1 { self.limit >> 12 } else { self.limit });
        let access = u64::from(self.type_ | self.s << 4 | self.dpl << 5 | self.present << 7);
        let flags = u64::from(self.l << 1 | self.db << 2 | self.g << 3);
        (limit & 0xffff)
            | (self.base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | flags << 52
            | (self.base >> 24 & 0xff) << 56
    }
}

/// Writes the tables that the entry state points to, and gives that state. `rip` is the kernel's entry.
pub(crate) fn prepare(memory: &GuestMemoryMmap, protocol: Protocol, rip: u64) -> Result<Entry, Error> {
    let code = match protocol {
        Protocol::Linux64 => CODE64,
        Protocol::Pvh => CODE32,
    };
    let gdt = [0, 0, code.descriptor(), DATA.descriptor()];
    write_table(memory, "GDT", GDT, &gdt)?;

    let entry = Entry {
        protocol,
        rip,
        rsp: 0,
        rbx: 0,
        rsi: 0,
        rflags: RFLAGS,
        cs: code,
        data: DATA,
        tr: TSS,
        gdt: DescriptorTable { base: GDT, limit: (size_of_val(&gdt) - 1) as u16 },
        idt: DescriptorTable::default(),
        cr0: CR0_PE | CR0_ET,
        cr3: 0,
        cr4: 0,
        efer: 0,
    };
    match protocol {
        // Linux boot.rst, "64-bit Boot Protocol": long mode, identity-mapped, RSI the zero page.
        Protocol::Linux64 => {
            write_page_tables(memory)?;
            Ok(Entry {
                rsi: ZERO_PAGE,
                cr0: entry.cr0 | CR0_PG,
                cr3: PAGE_TABLES,
                cr4: CR4_PAE,
                efer: EFER_LME | EFER_LMA,
                ..entry
            })
        }
        // Xen's PVH specification: 32-bit protected mode, paging off, EBX the start info.
        Protocol::Pvh => Ok(Entry { rbx: START_INFO, ..entry }),
    }
}

/// Maps the first 4 GiB onto themselves with pages of 2 MiB, which every 64-bit processor has.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), Error> {
    let pdpt = PAGE_TABLES + PAGE;
    let directories = pdpt + PAGE;
    let pages: Vec<u64> =
        (0..HOLE_END / LARGE_PAGE).map(|page| (page * LARGE_PAGE) | PRESENT | WRITABLE | LARGE).collect();
    let pdpt_entries: Vec<u64> = (0..pages.len() as u64 * 8 / PAGE)
        .map(|directory| (directories + directory * PAGE) | PRESENT | WRITABLE)
        .collect();
    write_table(memory, "page tables", PAGE_TABLES, &[pdpt | PRESENT | WRITABLE])?;
    write_table(memory, "page tables", pdpt, &pdpt_entries)?;
    write_table(memory, "page tables", directories, &pages)
}

fn write_table(
    memory: &GuestMemoryMmap,
    what: &'static str,
    address: u64,
    entries: &[u64],
) -> Result<(), Error> {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(address)).map_err(|source| Error::Memory {
        what,
        address,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::PAGE_TABLES_LEN;
    use crate::testing::{memory, word};

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(CODE64.descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(CODE32.descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(DATA.descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(TSS.descriptor(), 0x0000_8b00_0000_0067);
        let based = Segment { base: 0x1234_5678, limit: 0xf_ffff, g: 0, ..DATA };
        assert_eq!(based.descriptor(), 0x124f_9334_5678_ffff);
        assert_eq!(Segment { dpl: 3, ..DATA }.descriptor(), 0x00cf_f300_0000_ffff);
    }

    #[test]
    fn selectors_find_their_descriptors() {
        let memory = memory(64);
        for protocol in [Protocol::Linux64, Protocol::Pvh] {
            let entry = prepare(&memory, protocol, 0x100_0000).unwrap();
            assert_eq!(
                (entry.gdt.base, entry.gdt.limit),
                (GDT, 4 * 8 - 1),
                "the last byte of four descriptors"
            );
            assert_eq!((entry.tr.type_, entry.tr.s, entry.tr.present), (0xb, 0, 1), "a busy TSS");
            for segment in [entry.cs, entry.data] {
                assert!(segment.selector + 7 <= entry.gdt.limit);
                let descriptor = word(&memory, entry.gdt.base + u64::from(segment.selector));
                assert_eq!(descriptor, segment.descriptor());
            }
        }
    }

    /// Walks the tables as the processor does.
    fn translate(memory: &GuestMemoryMmap, cr3: u64, address: u64) -> Option<u64> {
        let mut table = cr3;
        for shift in [39, 30, 21] {
            let entry = word(memory, table + (address >> shift & 0x1ff) * 8);
            if entry & PRESENT == 0 {
                return None;
            }
            table = entry & !0xfff;
            if entry & LARGE != 0 {
                return Some(table | address & (LARGE_PAGE - 1));
            }
        }
        None
    }

    #[test]
    fn long_mode_maps_the_first_4_gib_onto_themselves() {
        let memory = memory(64);
        let entry = prepare(&memory, Protocol::Linux64, 0x100_0200).unwrap();
        for address in [0, 0x7000, 0x100_0200, 0x3fff_ffff, 0x4000_0000, 0xbfff_f123, 0xffff_ffff] {
            assert_eq!(translate(&memory, entry.cr3, address), Some(address), "{address:#x}");
        }
        assert_eq!(translate(&memory, entry.cr3, 0x1_0000_0000), None);
        for (table, entries) in [(PAGE_TABLES, 1), (PAGE_TABLES + PAGE, 4)] {
            let present = |entry: &u64| word(&memory, table + entry * 8) != 0;
            assert_eq!((0..512).filter(present).collect::<Vec<_>>(), (0..entries).collect::<Vec<_>>());
        }
        assert_eq!(
            word(&memory, PAGE_TABLES + PAGE_TABLES_LEN),
            0,
            "the tables fill their room, and no more"
        );
        assert_ne!(word(&memory, PAGE_TABLES + PAGE_TABLES_LEN - 8), 0);
        assert_eq!((entry.rip, entry.rsi), (0x100_0200, ZERO_PAGE));
        assert_eq!((entry.cr0, entry.cr4, entry.efer), (0x8000_0011, 0x20, 0x500));
    }

    #[test]
    fn pvh_enters_without_paging() {
        let entry = prepare(&memory(64), Protocol::Pvh, 0x100_0300).unwrap();
        assert_eq!((entry.rip, entry.rbx), (0x100_0300, START_INFO));
        assert_eq!((entry.cr0, entry.cr3, entry.cr4, entry.efer), (0x11, 0, 0, 0));
        assert_eq!((entry.cs.l, entry.cs.db), (0, 1));
        assert_eq!(entry.rflags, 2);
    }
}
