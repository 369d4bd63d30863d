//! The initrd: as high in low memory as the kernel allows, out of the way of what the kernel unpacks.

use std::path::Path;

use vm_memory::GuestMemoryMmap;

use crate::Error;
use crate::error::Role;
use crate::file::Source;
use crate::kernel::{Kernel, low_ram_end};
use crate::layout::HOLE_START;

const PAGE: u64 = 0x1000;

/// An initrd in guest memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Initrd {
    pub(crate) start: u64,
    pub(crate) size: u64,
}

pub(crate) fn load(memory: &GuestMemoryMmap, path: &Path, kernel: &Kernel) -> Result<Initrd, Error> {
    let mut source = Source::open(Role::Initrd, path)?;
    let size = source.size;
    let from = kernel.end.next_multiple_of(PAGE);
    let highest = (kernel.initrd_max + 1).min(HOLE_START);
    let to = highest.min(low_ram_end(memory)?);
    let start = match to.checked_sub(size).map(|start| start & !(PAGE - 1)) {
        Some(start) if start >= from => start,
        _ => {
            let needs = size.checked_next_multiple_of(PAGE).and_then(|size| from.checked_add(size));
            let memory = needs.filter(|end| *end <= highest);
            return Err(Error::InitrdTooLarge { path: source.path, size, from, to, memory });
        }
    };
    source.load("image", 0, size, memory, start)?;
    Ok(Initrd { start, size })
}
