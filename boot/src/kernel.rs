//! The kernel file: what it is, whether it can run here, and its way into guest memory.
//!
//! The structures are linux-loader's. Its loaders are not used, for they place bytes while they parse, and
//! check neither machine, class, the file's end, nor what a segment overlaps; here every check comes first.

mod bzimage;
mod elf;

#[cfg(test)]
pub(crate) use {bzimage::tests::image as bzimage_image, elf::tests::pvh as pvh_image};

use linux_loader::bootparam::setup_header;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::file::Source;
use crate::layout::{HIMEM, HOLE_START};
use crate::{Error, Protocol};

/// A kernel in guest memory.
pub(crate) struct Kernel {
    pub(crate) protocol: Protocol,
    /// The address of its first instruction.
    pub(crate) entry: u64,
    /// The end of the memory it needs before it looks at the memory map.
    pub(crate) end: u64,
    /// The setup header of a bzImage.
    pub(crate) header: Option<setup_header>,
    /// The last address that an initrd may take.
    pub(crate) initrd_max: u64,
    /// The longest command line it takes, in bytes without the NUL.
    pub(crate) cmdline_max: usize,
}

/// Enough of the file to know it by, and all of a bzImage's setup header.
const HEAD: usize = 1024;

/// As many bytes as a kernel may have in a pipe or unpacked, where they take the host's memory: more than any has, its symbols
/// included.
pub(crate) const BYTES_MAX: u64 = 1 << 30;

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Loads the kernel of that file.
pub(crate) fn load(memory: &GuestMemoryMmap, mut source: Source) -> Result<Kernel, Error> {
    let mut buffer = [0; HEAD];
    if source.peek(0, &mut buffer)?.starts_with(&GZIP) {
        source = source.gunzip(BYTES_MAX)?;
    }
    let head = source.peek(0, &mut buffer)?;
    if head.starts_with(b"\x7fELF") {
        elf::load(memory, &source)
    } else if bzimage::recognize(head) {
        bzimage::load(memory, &source, head)
    } else if head.starts_with(b"MZ") && head.len() < bzimage::HEADER_END {
        source.holds("setup header", 0, bzimage::HEADER_END as u64).and(Err(not_a_kernel(&source, head)))
    } else {
        Err(not_a_kernel(&source, head))
    }
}

/// Where the RAM that begins at address 0 ends.
pub(crate) fn low_ram_end(memory: &GuestMemoryMmap) -> Result<u64, Error> {
    let end = memory.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len);
    if end < HIMEM { Err(Error::NoLowMemory) } else { Ok(end.min(HOLE_START)) }
}

/// Checks that a kernel may have the memory from `start` to `end`.
fn place(memory: &GuestMemoryMmap, source: &Source, start: u64, end: u64) -> Result<(), Error> {
    let path = source.path.clone();
    let ram_end = low_ram_end(memory)?;
    if start < HIMEM {
        let area = "below 1 MiB, where the boot parameters and ACPI tables are";
        Err(Error::KernelMisplaced { path, start, end, area })
    } else if end > HOLE_START {
        Err(Error::KernelMisplaced { path, start, end, area: "above 3 GiB, where the devices are" })
    } else if end > ram_end {
        Err(Error::KernelTooLarge { path, end, ram_end })
    } else {
        Ok(())
    }
}

fn not_a_kernel(source: &Source, head: &[u8]) -> Error {
    Error::NotAKernel { path: source.path.clone(), looks_like: looks_like(head) }
}

fn malformed(source: &Source, problem: &'static str) -> Error {
    Error::Malformed { path: source.path.clone(), problem }
}

/// What a file that is no kernel seems to be, by its first bytes.
fn looks_like(head: &[u8]) -> &'static str {
    const MAGICS: [(usize, &[u8], &str); 18] = [
        (0x38, b"ARM\x64", "a kernel for arm64"),
        (0x38, b"RSC\x05", "a kernel for RISC-V"),
        (0, b"MZ", "an EFI program"),
        (0, &GZIP, "a gzip file within another"),
        (0, &[0x28, 0xb5, 0x2f, 0xfd], "a zstd file: unpack it first"),
        (0, &[0xfd, b'7', b'z', b'X', b'Z', 0], "an xz file: unpack it first"),
        (0, &[0x02, 0x21, 0x4c, 0x18], "an lz4 file: unpack it first"),
        (0, &[0x04, 0x22, 0x4d, 0x18], "an lz4 file: unpack it first"),
        (0, b"BZh", "a bzip2 file: unpack it first"),
        (0, b"070701", "an initramfs (cpio): that goes to --initrd"),
        (0, b"070702", "an initramfs (cpio): that goes to --initrd"),
        (0, &[0x27, 0x05, 0x19, 0x56], "a U-Boot image"),
        (0, b"!<arch>\n", "a Debian package: take boot/vmlinuz-* out of it"),
        (0, b"QFI\xfb", "a qcow2 disk image: take the kernel out of it"),
        (0, b"#!", "a script"),
        (0x438, &[0x53, 0xef], "a file system"),
        (0x101, b"ustar", "a tar archive"),
        (0x1fe, &[0x55, 0xaa], "a disk image: take the kernel out of it"),
    ];
    let text = |head: &[u8]| head.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    MAGICS
        .iter()
        .find(|(at, magic, _)| head.get(*at..).is_some_and(|tail| tail.starts_with(magic)))
        .map(|(_, _, name)| *name)
        .unwrap_or(if text(head) { "text" } else { "unknown data" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use crate::error::Role;
    use crate::file::Opened;
    use crate::testing::{Scratch, memory};

    pub(super) fn load_bytes(mib: u64, image: &[u8]) -> Result<(GuestMemoryMmap, Kernel), Error> {
        let file = Scratch::new(image);
        let memory = memory(mib);
        let kernel = load(&memory, Opened::open(Role::Kernel, file.path())?.read_pipe(0)?)?;
        Ok((memory, kernel))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn a_kernel_in_gzip_is_as_good_as_the_kernel() {
        for (image, entry) in [(bzimage_image(), 0x100_0200), (pvh_image(), 0x100_0080)] {
            let (_, kernel) = load_bytes(64, &gzip(&image)).unwrap();
            assert_eq!(kernel.entry, entry);
        }
        assert!(refused(&gzip(&gzip(&bzimage_image()))).contains("a gzip file within another"));
        assert!(refused(&gzip(b"hello")).contains("text"));
        assert!(refused(&gzip(&bzimage_image())[..100]).contains("cannot unpack the kernel"));
    }

    #[test]
    fn low_ram_ends_where_it_does_or_at_the_hole() {
        for (len, end) in [
            (HIMEM - 0x1000, None),
            (HIMEM, Some(HIMEM)),
            (HIMEM + 0x1000, Some(HIMEM + 0x1000)),
            (HOLE_START, Some(HOLE_START)),
            (HOLE_START + 0x1000, Some(HOLE_START)),
        ] {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len as usize)]).unwrap();
            assert_eq!(low_ram_end(&memory).ok(), end, "{len:#x}");
        }
    }

    fn refused(image: &[u8]) -> String {
        load_bytes(64, image).err().expect("loaded").to_string()
    }

    #[test]
    fn what_is_no_kernel_is_recognized() {
        let mut arm = [0; 512];
        arm[..2].copy_from_slice(b"MZ");
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        for (image, name) in [
            (&b"\x28\xb5\x2f\xfd and so on"[..], "zstd"),
            (b"070701 and so on", "initramfs"),
            (b"#!/bin/sh\n", "script"),
            (b"hello, world\n", "text"),
            (b"\x00\x01\x02\x03", "unknown data"),
        ] {
            let error = refused(image);
            assert!(error.contains("no kernel") && error.contains(name), "{error}");
        }
        let mut long = vec![0; 2048];
        long[..512].copy_from_slice(&arm);
        assert!(refused(&long).contains("arm64"));
        let mut efi = vec![0; 2048];
        efi[..2].copy_from_slice(b"MZ");
        assert!(refused(&efi).contains("EFI program"));
        assert!(refused(&efi[..100]).contains("cut off"));
    }
}
