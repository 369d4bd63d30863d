//! A kernel file of any content, plain or packed by gzip: it is refused, or lies in the guest's RAM above 1 MiB with its entry.
#![no_main]

use std::io::Write;

use boot::layout::HIMEM;
use boot::{AcpiConfig, Config, Files, Protocol, SmbiosConfig, load};
use flate2::Compression;
use flate2::write::GzEncoder;
use fuzz::{MemoryFile, Seeds, bounded};
use vm_memory::{GuestAddress, GuestMemoryMmap};

fuzz::target!(seeds, run);

const MEMORY: u64 = 32 << 20;

/// The first byte says how long the file is made, and whether it is packed.
fn run(data: &[u8]) {
    let Some((flags, kernel)) = data.split_first() else { return };
    let mut kernel = kernel.to_vec();
    kernel.resize(kernel.len().max(usize::from(flags >> 3) << 10), 0xc3);
    if flags & 1 != 0 {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&kernel).unwrap();
        kernel = packed.finish().unwrap();
    }
    let (kernel, initrd) = (MemoryFile::new(&kernel), MemoryFile::new(b"070701"));
    let initrd = initrd.path();
    let initrd = (flags & 2 != 0).then_some(&*initrd);
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    let acpi = AcpiConfig { cpus: 1, virtio_mmio: &[], pci: false };
    let config =
        Config { cmdline: "console=ttyS0", acpi, smbios: SmbiosConfig::default(), generation: [1; 16] };
    let loaded =
        bounded(16 << 20, || load(&memory, Files::open(&kernel.path(), initrd)?.read(MEMORY)?, &config));
    match loaded {
        Ok(entry) => {
            assert!((HIMEM..MEMORY).contains(&entry.rip), "{:#x}", entry.rip);
            assert_eq!(entry.efer != 0, entry.protocol == Protocol::Linux64);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn seeds() -> Seeds {
    let start = 0x100_0000_u64;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(0x140, 0);
    elf[16..20].copy_from_slice(&[2, 0, 62, 0]);
    elf[24..32].copy_from_slice(&start.to_le_bytes());
    elf[32] = 64;
    elf[54..58].copy_from_slice(&[56, 0, 2, 0]);
    // A segment, and a note with the entry by PVH.
    for (segment, kind, offset, len) in [(64, 1, 0, 0x140), (120, 4, 0x100, 24)] {
        elf[segment] = kind;
        for (at, value) in [(8, offset), (16, start), (24, start), (32, len), (40, len)] {
            elf[segment + at..][..8].copy_from_slice(&u64::to_le_bytes(value));
        }
    }
    let linux64 = [&elf[..56], &[1], &elf[57..]].concat();
    elf[0x100..0x110].copy_from_slice(b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0");
    elf[0x110..0x118].copy_from_slice(&(start + 0x40).to_le_bytes());
    // Linux boot.rst: a setup header of protocol 2.15, and one sector of setup.
    let mut bzimage = vec![0; 0x800];
    for (at, bytes) in [
        (0x1f1, &[1][..]),
        (0x1f4, &[0x20, 0, 0, 0]),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x66]),
        (0x202, b"HdrS\x0f\x02"),
        (0x211, &[1]),
        (0x22c, &[0xff, 0xff, 0xff, 0x7f]),
        (0x230, &[0, 0, 0x20, 0, 1]),
        (0x236, &[1, 0, 0xff, 7]),
        (0x258, &start.to_le_bytes()),
        (0x260, &[0, 0, 0x10, 0]),
    ] {
        bzimage[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let with = |flags: u8, bytes: &[u8]| [&[flags], bytes].concat();
    vec![
        ("vmlinux".into(), with(8, &linux64)),
        ("pvh".into(), with(10, &elf)),
        ("pvh-gz".into(), with(1, &elf)),
        ("bzimage".into(), with(0x10, &bzimage)),
        ("bzimage-initrd".into(), with(0x12, &bzimage)),
    ]
}
