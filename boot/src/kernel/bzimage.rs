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

pub(super) fn load(memory: &GuestMemoryMmap, source: &mut Source, head: &[u8]) -> Result<Kernel, Error> {
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
    source.holds("setup header", 0, HEADER_END as u64)?;
    // The jump at 0x200 leaps over the header: its displacement tells where the header ends.
    let end = (MAGIC + usize::from(head[MAGIC - 1])).min(HEADER + size_of::<setup_header>());
    let bytes = head.get(HEADER..end).ok_or_else(|| malformed(source, "its setup header has no end"))?;
    let mut header = setup_header::default();
    header.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);

    let reason = if header.version < VERSION {
        "its boot protocol is older than 2.12"
    } else if header.xloadflags & XLF_KERNEL_64 == 0 {
        "it is a 32-bit kernel, or one without XLF_KERNEL_64"
    } else if header.loadflags & LOADED_HIGH == 0 {
        "it is a zImage, loaded below 1 MiB"
    } else if end < HEADER_END {
        return Err(malformed(source, "its setup header is shorter than its protocol version says"));
    } else {
        return Ok(header);
    };
    Err(Error::No64BitEntry { path: source.path.clone(), reason })
}

fn plan(source: &Source, header: &setup_header) -> Result<Plan, Error> {
    let sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects };
    let offset = (u64::from(sectors) + 1) * SECTOR;
    // The file may go on behind what the header counts: distributions append a signature there.
    source.holds("protected-mode kernel", offset, u64::from(header.syssize) * 16)?;
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
