//! bzImage: the setup header and the 64-bit entry (Linux boot.rst, "The Real-Mode Kernel Header" and
//! "64-bit Boot Protocol").

use linux_loader::bootparam::setup_header;
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::{Kernel, malformed, place};
use crate::file::Source;
use crate::layout::HIMEM;
use crate::{Error, Protocol};

const HEADER: usize = 0x1f1;
/// The end of the header that a kernel of protocol 2.12 has.
pub(super) const HEADER_END: usize = 0x268;
const MAGIC: usize = 0x202;
/// The lowest protocol with `xloadflags`.
const VERSION: u16 = 0x20c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry, counted from where the protected-mode part is loaded.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
/// The unit of `syssize`.
const PARAGRAPH: u64 = 16;

/// Whether a file that begins with `head` is a kernel image at all.
pub(super) fn recognize(head: &[u8]) -> bool {
    head.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

/// Where the parts of an image are and go.
#[derive(Debug)]
struct Plan {
    offset: u64,
    len: u64,
    load: u64,
    end: u64,
}

pub(super) fn load(memory: &GuestMemoryMmap, source: &Source, head: &[u8]) -> Result<Kernel, Error> {
    let mut header = parse(source, head)?;
    let plan = plan(source, &header)?;
    place(memory, source, plan.load, plan.end)?;
    source.load("protected-mode kernel", plan.offset, plan.len, memory, plan.load)?;
    header.code32_start = plan.load as u32;
    Ok(Kernel {
        protocol: Protocol::Linux64,
        entry: plan.load + ENTRY_64,
        end: plan.end,
        header: Some(header),
        initrd_max: header.initrd_addr_max.into(),
        cmdline_max: header.cmdline_size as usize,
    })
}

/// Takes the setup header out of the file's head, and refuses a kernel without a 64-bit entry.
fn parse(source: &Source, head: &[u8]) -> Result<setup_header, Error> {
    // The jump at 0x200 leaps over the header: its displacement tells where the header ends.
    let end = (MAGIC + usize::from(head[MAGIC - 1])).min(HEADER + size_of::<setup_header>());
    source.holds("setup header", 0, end as u64)?;
    let bytes = head.get(HEADER..end).ok_or_else(|| malformed(source, "its setup header has no end"))?;
    let mut header = setup_header::default();
    header.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);

    let reason = if header.version < VERSION {
        "its boot protocol is older than 2.12"
    } else if end < HEADER_END {
        return Err(malformed(source, "its setup header is shorter than its protocol version says"));
    } else if header.loadflags & LOADED_HIGH == 0 {
        "it is a zImage, loaded below 1 MiB"
    } else if header.xloadflags & XLF_KERNEL_64 == 0 {
        "it is a 32-bit kernel, or one without XLF_KERNEL_64"
    } else {
        return Ok(header);
    };
    Err(Error::No64BitEntry { path: source.path.clone(), reason })
}

fn plan(source: &Source, header: &setup_header) -> Result<Plan, Error> {
    let sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects };
    let offset = (u64::from(sectors) + 1) * SECTOR;
    // The file may go on behind what the header counts: distributions append a signature there.
    // It counts paragraphs of 16 bytes, the last of which need not be full (memtest86+, and other kernels that no build pads).
    source.holds(
        "protected-mode kernel",
        offset,
        (u64::from(header.syssize) * PARAGRAPH).saturating_sub(PARAGRAPH - 1),
    )?;
    source.holds("64-bit entry", offset, ENTRY_64 + 1)?;
    let len = source.size - offset;
    if header.init_size == 0 {
        return Err(malformed(source, "it needs no memory to start (init_size is 0)"));
    }

    let align = u64::from(header.kernel_alignment);
    let relocatable = header.relocatable_kernel != 0;
    if relocatable && !align.is_power_of_two() {
        return Err(malformed(source, "its alignment is no power of two"));
    }
    // Where the kernel would like to be, so that it need not move itself: that is where it wants init_size
    // bytes wherever it is loaded, since it never decompresses to below.
    let preferred = header.pref_address;
    let load = if preferred >= HIMEM && (!relocatable || preferred.is_multiple_of(align)) {
        preferred
    } else if relocatable {
        HIMEM.next_multiple_of(align)
    } else {
        return Err(malformed(source, "it can run at one address only, and names none above 1 MiB"));
    };
    let end = load.saturating_add(len.max(header.init_size.into()));
    Ok(Plan { offset, len, load, end })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::super::tests::load_bytes;
    use super::*;
    use crate::layout::MIB;
    use crate::testing::bytes;

    const XLOADFLAGS: usize = 0x236;
    const PREF_ADDRESS: usize = 0x258;
    const INIT_SIZE: usize = 0x260;

    fn put<const N: usize>(image: &mut [u8], at: usize, value: [u8; N]) {
        image[at..at + N].copy_from_slice(&value);
    }

    /// The header of a relocatable 64-bit kernel at 16 MiB that needs 8 MiB; 2 KiB of setup, then 4 KiB of 0xc3.
    pub(crate) fn image() -> Vec<u8> {
        let mut image = vec![0; 2048];
        image.resize(2048 + 4096, 0xc3);
        put(&mut image, 0, *b"MZ");
        put(&mut image, 0x1f1, [3]);
        put(&mut image, 0x1f4, (4096u32 / 16).to_le_bytes());
        put(&mut image, 0x1fe, [0x55, 0xaa, 0xeb, 0x6a]);
        put(&mut image, 0x202, *b"HdrS");
        put(&mut image, 0x206, 0x20fu16.to_le_bytes());
        put(&mut image, 0x211, [LOADED_HIGH]);
        put(&mut image, 0x22c, 0x7fff_ffffu32.to_le_bytes());
        put(&mut image, 0x230, 0x20_0000u32.to_le_bytes());
        put(&mut image, 0x234, [1]);
        put(&mut image, XLOADFLAGS, XLF_KERNEL_64.to_le_bytes());
        put(&mut image, 0x238, 255u32.to_le_bytes());
        put(&mut image, PREF_ADDRESS, (16 * MIB).to_le_bytes());
        put(&mut image, INIT_SIZE, (8 * MIB as u32).to_le_bytes());
        image
    }

    fn refused<const N: usize>(at: usize, value: [u8; N]) -> Error {
        let mut image = image();
        put(&mut image, at, value);
        load_bytes(64, &image).err().expect("loaded")
    }

    #[test]
    fn the_protected_mode_part_goes_where_the_kernel_prefers() {
        let (memory, kernel) = load_bytes(64, &image()).unwrap();
        assert_eq!((kernel.entry, kernel.end), (16 * MIB + 0x200, 24 * MIB));
        assert_eq!((kernel.initrd_max, kernel.cmdline_max), (0x7fff_ffff, 255));
        assert_eq!(bytes(&memory, 16 * MIB - 1, 4098), [&[0][..], &[0xc3; 4096], &[0]].concat());
        let header = kernel.header.unwrap();
        assert_eq!({ header.code32_start }, 16 * MIB as u32);
        assert_eq!({ header.init_size }, 8 * MIB as u32);
    }

    #[test]
    fn without_a_preference_it_goes_to_the_first_aligned_address() {
        let mut image = image();
        put(&mut image, PREF_ADDRESS, [0; 8]);
        let (_, kernel) = load_bytes(64, &image).unwrap();
        assert_eq!((kernel.entry, kernel.end), (2 * MIB + 0x200, 10 * MIB));
        put(&mut image, PREF_ADDRESS, (16 * MIB + 4096).to_le_bytes());
        assert_eq!(load_bytes(64, &image).unwrap().1.entry, 2 * MIB + 0x200);
    }

    #[test]
    fn the_kernel_ends_behind_its_image_or_its_init_size() {
        let mut image = image();
        put(&mut image, INIT_SIZE, 1u32.to_le_bytes());
        assert_eq!(load_bytes(64, &image).unwrap().1.end, 16 * MIB + 4096);
    }

    #[test]
    fn no_setup_sectors_are_four() {
        let mut image = image();
        image[2560..].fill(0xc4);
        put(&mut image, 0x1f1, [0]);
        put(&mut image, 0x1f4, (3584u32 / 16).to_le_bytes());
        let (memory, _) = load_bytes(64, &image).unwrap();
        assert_eq!(bytes(&memory, 16 * MIB, 3585), [&[0xc4; 3584][..], &[0]].concat());
    }

    #[test]
    fn the_last_paragraph_need_not_be_full() {
        for missing in 1..16 {
            let image = image();
            let (memory, kernel) = load_bytes(64, &image[..image.len() - missing]).unwrap();
            assert_eq!(kernel.entry, 16 * MIB + 0x200);
            let end = bytes(&memory, 16 * MIB + 4095 - missing as u64, 2);
            assert_eq!(end, [0xc3, 0], "all that there is, {missing} bytes less");
        }
    }

    #[test]
    fn a_signature_behind_the_kernel_is_no_harm() {
        let mut image = image();
        image.resize(image.len() + 100, 1);
        load_bytes(64, &image).unwrap();
    }

    #[test]
    fn a_kernel_larger_than_memory_says_how_much_it_needs() {
        let error = refused(INIT_SIZE, (49 * MIB as u32).to_le_bytes());
        assert!(
            matches!(error, Error::KernelTooLarge { end: 0x410_0000, ram_end: 0x400_0000, .. }),
            "{error}"
        );
        assert_eq!(error.remedy().unwrap(), "give the guest more memory: --memory 65M");
        let mut image = image();
        put(&mut image, INIT_SIZE, (48 * MIB as u32).to_le_bytes());
        load_bytes(64, &image).unwrap();
    }

    #[test]
    fn a_kernel_that_no_memory_suffices_for_is_misplaced() {
        for address in [3072 * MIB, 1 << 62, !0x1f_ffff] {
            let error = refused(PREF_ADDRESS, address.to_le_bytes());
            assert!(matches!(error, Error::KernelMisplaced { start, .. } if start == address), "{error}");
        }
    }

    #[test]
    fn the_oldest_protocol_with_a_64_bit_entry_is_taken() {
        let mut image = image();
        put(&mut image, 0x206, 0x20cu16.to_le_bytes());
        load_bytes(64, &image).unwrap();
    }

    #[test]
    fn a_header_that_ends_with_protocol_2_12_is_long_enough() {
        let mut image = image();
        put(&mut image, 0x201, [(HEADER_END - MAGIC) as u8]);
        let header = load_bytes(64, &image).unwrap().1.header.unwrap();
        assert_eq!({ header.init_size }, 8 * MIB as u32);
        let error = refused(0x201, [(HEADER_END - MAGIC - 1) as u8]);
        assert!(matches!(error, Error::Malformed { problem, .. } if problem.contains("shorter")), "{error}");
    }

    #[test]
    fn kernels_without_a_64_bit_entry_are_refused() {
        for (error, because) in [
            (refused(0x206, 0x20bu16.to_le_bytes()), "older than 2.12"),
            (refused(XLOADFLAGS, [0x7e, 0]), "32-bit"),
            (refused(0x211, [0]), "zImage"),
        ] {
            assert!(
                matches!(error, Error::No64BitEntry { reason, .. } if reason.contains(because)),
                "{error}"
            );
        }
    }

    #[test]
    fn contradictions_are_named() {
        for (error, found) in [
            (refused(INIT_SIZE, [0; 4]), "init_size"),
            (refused(0x230, 3u32.to_le_bytes()), "power of two"),
            (refused(0x230, [0; 4]), "power of two"),
            (refused(0x201, [0x20]), "shorter"),
        ] {
            assert!(matches!(error, Error::Malformed { problem, .. } if problem.contains(found)), "{error}");
        }
        let mut fixed = image();
        put(&mut fixed, 0x234, [0]);
        load_bytes(64, &fixed).unwrap();
        put(&mut fixed, PREF_ADDRESS, 4096u64.to_le_bytes());
        assert!(matches!(load_bytes(64, &fixed), Err(Error::Malformed { .. })));
    }

    #[test]
    fn a_cut_image_is_truncated_wherever_it_is_cut() {
        let image = image();
        for len in [2, 0x206, 0x267, 0x268, 2047, 2048, 2048 + 0x200, 2048 + 4080] {
            let error = load_bytes(64, &image[..len]).err().expect("loaded");
            assert!(matches!(error, Error::Truncated { size, .. } if size == len as u64), "{len}: {error}");
        }
        let mut silent = image;
        put(&mut silent, 0x1f4, [0; 4]);
        let error = load_bytes(64, &silent[..2048 + 0x200]).err().expect("loaded");
        assert!(matches!(error, Error::Truncated { part: "64-bit entry", .. }), "{error}");
        let error = refused(0x1f1, [255]);
        assert!(matches!(error, Error::Truncated { part: "protected-mode kernel", .. }), "{error}");
    }

    proptest! {
        /// Whatever the header says, the outcome is an error or a kernel that lies in RAM above 1 MiB.
        #[test]
        fn no_header_leads_astray(
            bytes in prop::collection::vec(
                (0x1f1usize..0x270, prop_oneof![any::<u8>(), Just(0), Just(0xff)]),
                0..12,
            ),
            len in prop_oneof![Just(6144usize), 0usize..6144],
        ) {
            let mut image = image();
            for (at, byte) in bytes {
                image[at] = byte;
            }
            if let Ok((_, kernel)) = load_bytes(64, &image[..len]) {
                let load = kernel.entry - ENTRY_64;
                prop_assert!(load >= MIB && kernel.entry < kernel.end && kernel.end <= 64 * MIB);
                prop_assert!(kernel.header.unwrap().xloadflags & 1 == 1);
            }
        }
    }
}
