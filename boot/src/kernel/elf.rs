//! ELF: a plain vmlinux, entered by the 64-bit boot protocol, or one whose note names a PVH entry
//! (Xen's `XEN_ELFNOTE_PHYS32_ENTRY`), which is then preferred: it is made for hypervisors.

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

pub(super) fn load(memory: &GuestMemoryMmap, source: &mut Source) -> Result<Kernel, Error> {
    let header = header(source)?;
    let segments = segments(source, &header)?;
    if segments.iter().any(|segment| segment.p_type == INTERPRETER) {
        return Err(looks_like(source, "an ordinary program, not a kernel"));
    }
    let loaded: Vec<&Elf64_Phdr> =
        segments.iter().filter(|segment| segment.p_type == LOAD && segment.p_memsz > 0).collect();

    let mut end = 0;
    for segment in &loaded {
        if segment.p_filesz > segment.p_memsz {
            return Err(malformed(source, "a segment is larger in the file than in memory"));
        }
        source.holds("segment", segment.p_offset, segment.p_filesz)?;
        let segment_end = segment.p_paddr.saturating_add(segment.p_memsz);
        place(memory, source, segment.p_paddr, segment_end)?;
        end = end.max(segment_end);
    }
    if loaded.is_empty() {
        return Err(malformed(source, "it has no segment to load"));
    }

    let (protocol, entry) = match pvh_entry(source, &segments)? {
        Some(entry) => (Protocol::Pvh, entry),
        None => (Protocol::Linux64, header.e_entry),
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
    Ok(Kernel { protocol, entry, end, header: None, initrd_max: INITRD_MAX, cmdline_max: DEFAULT_LIMIT })
}

fn looks_like(source: &Source, looks_like: &'static str) -> Error {
    Error::NotAKernel { path: source.path.clone(), looks_like }
}

/// Reads the ELF header and refuses what is no executable for x86-64.
fn header(source: &Source) -> Result<Elf64_Ehdr, Error> {
    let mut header = Elf64_Ehdr::default();
    // A 32-bit header is shorter than a 64-bit one, so a short file is judged by its first bytes before.
    let len = source.peek(0, header.as_mut_slice())?.len();
    match header.e_ident[CLASS] {
        CLASS_32 if matches!(header.e_machine, MACHINE_386 | MACHINE_X86_64) => {
            let reason = "it is a 32-bit ELF file";
            return Err(Error::No64BitEntry { path: source.path.clone(), reason });
        }
        CLASS_32 => return Err(looks_like(source, "an ELF file for another, 32-bit machine")),
        CLASS_64 => {}
        _ if len < size_of::<Elf64_Ehdr>() => {}
        _ => return Err(malformed(source, "it is neither a 32-bit nor a 64-bit ELF file")),
    }
    source.holds("ELF header", 0, size_of::<Elf64_Ehdr>() as u64)?;
    if header.e_ident[DATA] != LITTLE_ENDIAN {
        return Err(looks_like(source, "an ELF file for a big-endian machine"));
    }
    match header.e_machine {
        MACHINE_X86_64 => {}
        183 => return Err(looks_like(source, "an ELF file for arm64")),
        243 => return Err(looks_like(source, "an ELF file for RISC-V")),
        _ => return Err(looks_like(source, "an ELF file for another machine")),
    }
    match header.e_type {
        TYPE_EXECUTABLE | TYPE_SHARED => Ok(header),
        TYPE_RELOCATABLE => Err(looks_like(source, "an object file or a kernel module")),
        TYPE_CORE => Err(looks_like(source, "a core dump")),
        _ => Err(malformed(source, "its ELF type is unknown")),
    }
}

fn segments(source: &Source, header: &Elf64_Ehdr) -> Result<Vec<Elf64_Phdr>, Error> {
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(malformed(source, "its program headers are not those of 64-bit ELF"));
    }
    let count = usize::from(header.e_phnum);
    let len = count * size_of::<Elf64_Phdr>();
    source.holds("program header table", header.e_phoff, len as u64)?;
    let mut table = vec![0; len];
    let read = source.peek(header.e_phoff, &mut table)?.len();
    // A file that shrank since it was opened gives fewer.
    source.holds("program header table", header.e_phoff, (len - read) as u64)?;
    Ok(table
        .chunks_exact(size_of::<Elf64_Phdr>())
        .map(|bytes| {
            let mut segment = Elf64_Phdr::default();
            segment.as_mut_slice().copy_from_slice(bytes);
            segment
        })
        .collect())
}

/// The PVH entry that a note names, if one does.
fn pvh_entry(source: &Source, segments: &[Elf64_Phdr]) -> Result<Option<u64>, Error> {
    for segment in segments.iter().filter(|segment| segment.p_type == NOTE) {
        source.holds("notes", segment.p_offset, segment.p_filesz)?;
        let mut buffer = vec![0; segment.p_filesz.min(NOTES_MAX) as usize];
        let notes = source.peek(segment.p_offset, &mut buffer)?;
        if let Some(entry) = find_note(notes) {
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
