//! ELF: a plain vmlinux, entered by the 64-bit boot protocol, or one whose note names a PVH entry
//! (Xen's `XEN_ELFNOTE_PHYS32_ENTRY`), which is then preferred: it is made for hypervisors. It begins in 32-bit mode, so the file
//! may be a 32-bit one.

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr};
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::{Kernel, malformed, place};
use crate::cmdline::DEFAULT_LIMIT;
use crate::file::Source;
use crate::{Error, Protocol};

const CLASS: usize = 4;
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const DATA: usize = 5;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const TYPE_RELOCATABLE: u16 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const TYPE_CORE: u16 = 4;
const LOAD: u32 = 1;
const INTERPRETER: u32 = 3;
const NOTE: u32 = 4;

/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u32 = 18;
/// More than any kernel has of notes; what lies behind is not searched.
const NOTES_MAX: u64 = 64 << 10;
/// Linux takes an initrd at any address below this on 64-bit machines (the value in every bzImage's header).
const INITRD_MAX: u64 = 0x7fff_ffff;
/// The same on 32-bit machines.
const INITRD_MAX_32: u64 = 0x37ff_ffff;

pub(super) fn load(memory: &GuestMemoryMmap, source: &Source) -> Result<Kernel, Error> {
    let header = header(source)?;
    let segments = segments(source, &header)?;
    if segments.iter().any(|segment| segment.p_type == INTERPRETER) {
        return Err(looks_like(source, "an ordinary program"));
    }
    let loaded: Vec<&Elf64_Phdr> =
        segments.iter().filter(|segment| segment.p_type == LOAD && segment.p_memsz > 0).collect();

    let (mut end, mut len) = (0, 0u64);
    for segment in &loaded {
        if segment.p_filesz > segment.p_memsz {
            return Err(malformed(source, "a segment is larger in the file than in memory"));
        }
        source.holds("segment", segment.p_offset, segment.p_filesz)?;
        let segment_end = segment.p_paddr.saturating_add(segment.p_memsz);
        place(memory, source, segment.p_paddr, segment_end)?;
        end = end.max(segment_end);
        len = len.saturating_add(segment.p_filesz);
    }
    // 65535 segments that are each the whole file would be copied for minutes.
    if len > source.size {
        return Err(malformed(source, "its segments overlap in the file"));
    }
    if loaded.is_empty() {
        return Err(malformed(source, "it has no segment to load"));
    }

    let (protocol, entry) = match pvh_entry(source, &segments)? {
        Some(entry) => (Protocol::Pvh, entry),
        None if header.class == Class::Bits32 => {
            let reason = "it is a 32-bit ELF file without a PVH entry";
            return Err(Error::No64BitEntry { path: source.path.clone(), reason });
        }
        None => (Protocol::Linux64, header.entry),
    };
    let holds_entry = |segment: &&&Elf64_Phdr| {
        entry.checked_sub(segment.p_paddr).is_some_and(|offset| offset < segment.p_filesz)
    };
    if loaded.iter().find(holds_entry).is_none() {
        return Err(malformed(source, "its entry lies in no segment"));
    }

    for segment in loaded {
        // What p_memsz has over p_filesz is zero already: guest memory is fresh.
        source.load("segment", segment.p_offset, segment.p_filesz, memory, segment.p_paddr)?;
    }
    let initrd_max = match header.class {
        Class::Bits32 => INITRD_MAX_32,
        Class::Bits64 => INITRD_MAX,
    };
    Ok(Kernel { protocol, entry, end, header: None, initrd_max, cmdline_max: DEFAULT_LIMIT })
}

fn looks_like(source: &Source, looks_like: &'static str) -> Error {
    Error::NotAKernel { path: source.path.clone(), looks_like }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Bits32,
    Bits64,
}

/// What the ELF headers of both classes have.
struct Header {
    class: Class,
    entry: u64,
    /// Where the program headers are, of which size, and how many.
    phoff: u64,
    phentsize: u16,
    phnum: u16,
}

/// Reads the ELF header and refuses what is no executable for x86-64, nor for its 32-bit mode.
fn header(source: &Source) -> Result<Header, Error> {
    let mut header = Elf64_Ehdr::default();
    // A 32-bit header is shorter than a 64-bit one, so a short file is judged by its first bytes before.
    let len = source.peek(0, header.as_mut_slice())?.len();
    let class = match header.e_ident[CLASS] {
        CLASS_32 => Class::Bits32,
        CLASS_64 => Class::Bits64,
        _ if len < size_of::<Elf64_Ehdr>() => Class::Bits64,
        _ => return Err(malformed(source, "it is neither a 32-bit nor a 64-bit ELF file")),
    };
    let header_len = if class == Class::Bits32 { HEADER_32 } else { size_of::<Elf64_Ehdr>() };
    source.holds("ELF header", 0, header_len as u64)?;
    if header.e_ident[DATA] != LITTLE_ENDIAN {
        return Err(looks_like(source, "an ELF file for a big-endian machine"));
    }
    match (class, header.e_machine) {
        (_, MACHINE_X86_64) | (Class::Bits32, MACHINE_386) => {}
        (Class::Bits32, _) => return Err(looks_like(source, "an ELF file for another, 32-bit machine")),
        (_, 183) => return Err(looks_like(source, "an ELF file for arm64")),
        (_, 243) => return Err(looks_like(source, "an ELF file for RISC-V")),
        _ => return Err(looks_like(source, "an ELF file for another machine")),
    }
    match header.e_type {
        TYPE_EXECUTABLE | TYPE_SHARED => {}
        TYPE_RELOCATABLE => return Err(looks_like(source, "an object file or a kernel module")),
        TYPE_CORE => return Err(looks_like(source, "a core dump")),
        _ => return Err(malformed(source, "its ELF type is unknown")),
    }
    // The two differ from the entry on.
    let bytes = header.as_slice();
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    Ok(match class {
        Class::Bits64 => Header {
            class,
            entry: header.e_entry,
            phoff: header.e_phoff,
            phentsize: header.e_phentsize,
            phnum: header.e_phnum,
        },
        Class::Bits32 => Header {
            class,
            entry: word(bytes, 24),
            phoff: word(bytes, 28),
            phentsize: half(42),
            phnum: half(44),
        },
    })
}

/// Sizes of the 32-bit ELF header and program header, in bytes.
const HEADER_32: usize = 52;
const PROGRAM_HEADER_32: usize = 32;

/// The 32-bit word at `at`.
fn word(bytes: &[u8], at: usize) -> u64 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]).into()
}

fn segments(source: &Source, header: &Header) -> Result<Vec<Elf64_Phdr>, Error> {
    let (size, foreign) = match header.class {
        Class::Bits32 => (PROGRAM_HEADER_32, "its program headers are not those of 32-bit ELF"),
        Class::Bits64 => (size_of::<Elf64_Phdr>(), "its program headers are not those of 64-bit ELF"),
    };
    if usize::from(header.phentsize) != size {
        return Err(malformed(source, foreign));
    }
    let table = source.read("program header table", header.phoff, usize::from(header.phnum) * size)?;
    let segment = |bytes: &[u8]| match header.class {
        Class::Bits32 => Elf64_Phdr {
            p_type: word(bytes, 0) as u32,
            p_offset: word(bytes, 4),
            p_paddr: word(bytes, 12),
            p_filesz: word(bytes, 16),
            p_memsz: word(bytes, 20),
            ..Default::default()
        },
        Class::Bits64 => {
            let mut segment = Elf64_Phdr::default();
            segment.as_mut_slice().copy_from_slice(bytes);
            segment
        }
    };
    Ok(table.chunks_exact(size).map(segment).collect())
}

/// The PVH entry that a note names, if one does.
fn pvh_entry(source: &Source, segments: &[Elf64_Phdr]) -> Result<Option<u64>, Error> {
    let mut room = NOTES_MAX;
    for segment in segments.iter().filter(|segment| segment.p_type == NOTE) {
        let len = segment.p_filesz.min(room);
        room -= len;
        let notes = source.read("notes", segment.p_offset, len as usize)?;
        if let Some(entry) = find_note(&notes) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Searches notes (name size, description size, type; name; description; each padded to 4 bytes).
fn find_note(mut notes: &[u8]) -> Option<u64> {
    loop {
        let (head, rest) = notes.split_at_checked(12)?;
        let field = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (name_len, desc_len) = (field(0) as usize, field(4) as usize);
        let (name, rest) = rest.split_at_checked(name_len.next_multiple_of(4))?;
        let desc = rest.get(..desc_len)?;
        if field(8) == PHYS32_ENTRY && name.get(..name_len) == Some(b"Xen\0") {
            match *desc {
                [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => {
                    return Some(u32::from_le_bytes([a, b, c, d]).into());
                }
                _ => {}
            }
        }
        // The last description need not be padded.
        notes = rest.get(desc_len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::super::tests::load_bytes;
    use super::*;
    use crate::layout::MIB;
    use crate::testing::bytes;

    const START: u64 = 16 * MIB;
    const CODE: u64 = 0x1000;

    fn put(image: &mut [u8], at: usize, value: impl AsRef<[u8]>) {
        image[at..at + value.as_ref().len()].copy_from_slice(value.as_ref());
    }

    fn segment(kind: u32, offset: u64, address: u64, file: u64, memory: u64) -> Vec<u8> {
        let segment = Elf64_Phdr {
            p_type: kind,
            p_offset: offset,
            p_paddr: address,
            p_filesz: file,
            p_memsz: memory,
            ..Default::default()
        };
        segment.as_slice().to_vec()
    }

    fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for field in [name.len() as u32, description.len() as u32, kind] {
            note.extend(field.to_le_bytes());
        }
        for part in [name, description] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    /// An ELF file of these segments, with `notes` at 0x800 and 4 KiB of 0xc3 at [`CODE`].
    fn elf(segments: &[Vec<u8>], notes: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image.resize(0x2000, 0xc3);
        let mut header = Elf64_Ehdr {
            e_type: TYPE_EXECUTABLE,
            e_machine: MACHINE_X86_64,
            e_entry: START + 0x40,
            e_phoff: 64,
            e_phentsize: 56,
            e_phnum: segments.len() as u16,
            ..Default::default()
        };
        header.e_ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        put(&mut image, 0, header.as_slice());
        put(&mut image, 64, segments.concat());
        put(&mut image, 0x800, notes);
        image
    }

    fn vmlinux() -> Vec<u8> {
        elf(&[segment(LOAD, CODE, START, 0x1000, 4 * MIB)], &[])
    }

    /// A vmlinux with a PVH entry at 0x80 behind a note of another owner and one of another type.
    pub(crate) fn pvh() -> Vec<u8> {
        let notes = [
            note(b"GNU\0", PHYS32_ENTRY, &(START + 0x90).to_le_bytes()),
            note(b"Xen\0", 6, b"linux\0"),
            note(b"Xen\0", PHYS32_ENTRY, &(START + 0x80).to_le_bytes()),
        ]
        .concat();
        let segments = [
            segment(LOAD, CODE, START, 0x1000, 4 * MIB),
            segment(NOTE, 0x800, 0, notes.len() as u64, notes.len() as u64),
        ];
        elf(&segments, &notes)
    }

    /// The same in 32 bits: (type, offset, address, size in the file, size in memory) of each segment.
    fn elf32(segments: &[(u32, u32, u32, u32, u32)], notes: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image.resize(0x2000, 0xc3);
        put(&mut image, 0, b"\x7fELF\x01\x01\x01");
        put(&mut image, 16, [TYPE_EXECUTABLE, MACHINE_386].map(u16::to_le_bytes).concat());
        put(&mut image, 24, [START as u32 + 0x40, 52].map(u32::to_le_bytes).concat());
        put(&mut image, 42, [32, segments.len() as u16].map(u16::to_le_bytes).concat());
        for (index, &(kind, offset, address, file, memory)) in segments.iter().enumerate() {
            // With a virtual address that is elsewhere, as kernels have.
            let fields = [kind, offset, 0xc000_0000 | address, address, file, memory, 7, 0x1000];
            put(&mut image, 52 + 32 * index, fields.map(u32::to_le_bytes).concat());
        }
        put(&mut image, 0x800, notes);
        image
    }

    /// One for 32-bit machines with a PVH entry at 0x80.
    fn pvh32() -> Vec<u8> {
        let notes = note(b"Xen\0", PHYS32_ENTRY, &(START as u32 + 0x80).to_le_bytes());
        let len = notes.len() as u32;
        elf32(
            &[(LOAD, CODE as u32, START as u32, 0x1000, 4 * MIB as u32), (NOTE, 0x800, 0, len, len)],
            &notes,
        )
    }

    #[test]
    fn a_32_bit_file_is_entered_by_its_pvh_note() {
        let (memory, kernel) = load_bytes(64, &pvh32()).unwrap();
        assert_eq!((kernel.protocol, kernel.entry), (Protocol::Pvh, START + 0x80));
        assert_eq!((kernel.end, kernel.initrd_max), (START + 4 * MIB, 0x37ff_ffff));
        assert_eq!(bytes(&memory, START - 1, 0x1002), [&[0][..], &[0xc3; 0x1000], &[0]].concat());
        let mut x32 = pvh32();
        put(&mut x32, 18, MACHINE_X86_64.to_le_bytes());
        assert_eq!(load_bytes(64, &x32).unwrap().1.entry, START + 0x80);
        let mut image = pvh32();
        put(&mut image, 42, 56u16.to_le_bytes());
        assert!(
            matches!(refused(&image), Error::Malformed { problem, .. } if problem.contains("32-bit ELF"))
        );
        put(&mut image, 42, 0x120_u16.to_le_bytes());
        assert!(
            matches!(refused(&image), Error::Malformed { problem, .. } if problem.contains("32-bit ELF"))
        );
        for (image, header) in [(pvh32(), 52), (pvh(), 64)] {
            let error = refused(&image[..header - 1]);
            assert!(
                matches!(error, Error::Truncated { part: "ELF header", end, .. } if end == header as u64)
            );
            let error = refused(&image[..header]);
            assert!(matches!(error, Error::Truncated { part: "program header table", .. }), "{error}");
        }
        for len in [51, 52, 52 + 63, 0x800, 0x1fff] {
            let error = refused(&pvh32()[..len]);
            assert!(matches!(error, Error::Truncated { size, .. } if size == len as u64), "{len}: {error}");
        }
    }

    fn refused(image: &[u8]) -> Error {
        load_bytes(64, image).err().expect("loaded")
    }

    fn refused_with(at: usize, value: impl AsRef<[u8]>) -> Error {
        let mut image = vmlinux();
        put(&mut image, at, value);
        refused(&image)
    }

    #[test]
    fn a_vmlinux_is_entered_in_long_mode() {
        let (memory, kernel) = load_bytes(64, &vmlinux()).unwrap();
        assert_eq!((kernel.protocol, kernel.entry), (Protocol::Linux64, START + 0x40));
        assert_eq!(kernel.end, START + 4 * MIB);
        assert_eq!(bytes(&memory, START - 1, 0x1002), [&[0][..], &[0xc3; 0x1000], &[0]].concat());
    }

    #[test]
    fn a_pvh_note_is_preferred() {
        let (_, kernel) = load_bytes(64, &pvh()).unwrap();
        assert_eq!((kernel.protocol, kernel.entry), (Protocol::Pvh, START + 0x80));
    }

    #[test]
    fn only_so_many_notes_are_searched() {
        let entry = note(b"Xen\0", PHYS32_ENTRY, &(START + 0x80).to_le_bytes());
        for (before, protocol) in [(NOTES_MAX, Protocol::Linux64), (NOTES_MAX - 0x100, Protocol::Pvh)] {
            let segments = [
                segment(LOAD, CODE, START, 0x1000, 4 * MIB),
                segment(NOTE, 0x2000, 0, before, 0),
                segment(NOTE, 0x800, 0, entry.len() as u64, 0),
            ];
            let mut image = elf(&segments, &entry);
            image.resize(0x2000 + NOTES_MAX as usize, 0);
            assert_eq!(load_bytes(64, &image).unwrap().1.protocol, protocol);
        }
    }

    #[test]
    fn a_segment_can_be_the_whole_file() {
        let image = elf(&[segment(LOAD, 0, START, 0x2000, 4 * MIB)], &[]);
        let (memory, _) = load_bytes(64, &image).unwrap();
        assert!(bytes(&memory, START, 0x2000) == image);
    }

    #[test]
    fn an_empty_segment_is_nowhere() {
        let segments = [segment(LOAD, 0, 0, 0, 0), segment(LOAD, CODE, START, 0x1000, 4 * MIB)];
        load_bytes(64, &elf(&segments, &[])).unwrap();
    }

    #[test]
    fn the_note_may_have_32_bits_and_no_padding_behind_it() {
        let mut notes = note(b"Xen\0", 6, b"linux\0");
        notes.extend(note(b"Xen\0", PHYS32_ENTRY, &0x100_0080u32.to_le_bytes()));
        assert_eq!(find_note(&notes), Some(0x100_0080));
        assert_eq!(find_note(&notes[..notes.len() - 1]), None);
        let last = note(b"Xen\0", 6, b"linux\0");
        assert_eq!(find_note(&last[..last.len() - 2]), None);
        assert_eq!(find_note(&note(b"Xen\0", PHYS32_ENTRY, &[0xff; 8])), None);
    }

    #[test]
    fn other_elf_files_are_told_apart() {
        for (error, name) in [
            (refused_with(18, 183u16.to_le_bytes()), "arm64"),
            (refused_with(18, 243u16.to_le_bytes()), "RISC-V"),
            (refused_with(18, 21u16.to_le_bytes()), "another machine"),
            (refused_with(5, [2]), "big-endian"),
            (refused_with(16, 1u16.to_le_bytes()), "kernel module"),
            (refused_with(16, 4u16.to_le_bytes()), "core dump"),
            (refused_with(64, INTERPRETER.to_le_bytes()), "ordinary program"),
        ] {
            assert!(
                matches!(error, Error::NotAKernel { looks_like, .. } if looks_like.contains(name)),
                "{error}"
            );
        }
        let mut small = elf32(&[(LOAD, CODE as u32, START as u32, 0x1000, 0x1000)], &[]);
        assert!(matches!(refused(&small), Error::No64BitEntry { .. }));
        for (machine, name) in [(20u16, "another, 32-bit"), (183, "another, 32-bit")] {
            put(&mut small, 18, machine.to_le_bytes());
            let error = refused(&small);
            assert!(
                matches!(error, Error::NotAKernel { looks_like, .. } if looks_like.contains(name)),
                "{error}"
            );
        }
    }

    #[test]
    fn segments_stay_out_of_what_is_not_theirs() {
        for (start, len, above) in [
            (0x7000, 0x1000, "below 1 MiB"),
            (MIB - 0x1000, 0x2000, "below 1 MiB"),
            (3072 * MIB - 0x1000, 0x2000, "above 3 GiB"),
            (1 << 32, 0x2000, "above 3 GiB"),
            (u64::MAX - 0xfff, 0x2000, "above 3 GiB"),
        ] {
            let error = refused(&elf(&[segment(LOAD, CODE, start, 0x1000, len)], &[]));
            assert!(matches!(error, Error::KernelMisplaced { area, .. } if area.contains(above)), "{error}");
        }
        // The first byte and the last that a kernel may have.
        for (mib, start, end) in [(64, MIB, 64 * MIB), (3072, START, 3072 * MIB), (4096, START, 3072 * MIB)] {
            let mut image = elf(&[segment(LOAD, CODE, start, 0x1000, end - start)], &[]);
            put(&mut image, 24, start.to_le_bytes());
            let (_, kernel) = load_bytes(mib, &image).unwrap();
            assert_eq!((kernel.entry, kernel.end), (start, end));
        }
        let error = refused(&elf(&[segment(LOAD, CODE, START, 0x1000, 60 * MIB + 1)], &[]));
        assert_eq!(error.remedy().unwrap(), "give the guest more memory: --memory 77M");
    }

    #[test]
    fn a_cut_file_is_truncated_wherever_it_is_cut() {
        let segments = [segment(LOAD, CODE, START, 0x1000, 0x1000), segment(NOTE, 0x1f00, 0, 0x101, 0x101)];
        assert!(matches!(refused(&elf(&segments, &[])), Error::Truncated { part: "notes", .. }));
        let image = pvh();
        for len in [4, 5, 63, 64, 175, 0x800, 0x1fff] {
            let error = refused(&image[..len]);
            assert!(matches!(error, Error::Truncated { size, .. } if size == len as u64), "{len}: {error}");
        }
    }

    #[test]
    fn contradictions_are_named() {
        for (error, found) in [
            (refused_with(4, [3]), "neither"),
            (refused_with(16, 9u16.to_le_bytes()), "type"),
            (refused_with(54, 32u16.to_le_bytes()), "program headers"),
            (refused_with(24, (START + 0x1000).to_le_bytes()), "entry"),
            (refused_with(24, (START - 1).to_le_bytes()), "entry"),
            (refused(&elf(&[], &[])), "no segment"),
            (refused(&elf(&[0, 1, 2].map(|_| segment(LOAD, CODE, START, 0x1000, 0x1000)), &[])), "overlap"),
            (refused(&elf(&[segment(LOAD, CODE, START, 0x1000, 0xfff)], &[])), "larger"),
        ] {
            assert!(matches!(error, Error::Malformed { problem, .. } if problem.contains(found)), "{error}");
        }
    }

    proptest! {
        /// Whatever the headers and notes say, the outcome is an error or an entry in RAM above 1 MiB.
        #[test]
        fn no_header_leads_astray(
            bytes in prop::collection::vec(
                (prop_oneof![4usize..0xc0, 0x800usize..0x860], prop_oneof![any::<u8>(), Just(0), Just(0xff)]),
                0..12,
            ),
            len in prop_oneof![Just(0x2000usize), 4usize..0x2000],
            bits32 in any::<bool>(),
        ) {
            let mut image = if bits32 { pvh32() } else { pvh() };
            for (at, byte) in bytes {
                image[at] = byte;
            }
            if let Ok((_, kernel)) = load_bytes(64, &image[..len]) {
                prop_assert!(kernel.entry >= MIB && kernel.entry < kernel.end && kernel.end <= 64 * MIB);
            }
        }

        #[test]
        fn no_note_leads_astray(notes in prop::collection::vec(any::<u8>(), 0..200)) {
            find_note(&notes);
        }
    }
}
