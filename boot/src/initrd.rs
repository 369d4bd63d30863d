//! The initrd: as high in low memory as the kernel allows, out of the way of what the kernel unpacks.

use vm_memory::GuestMemoryMmap;

use crate::Error;
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

pub(crate) fn load(memory: &GuestMemoryMmap, source: Source, kernel: &Kernel) -> Result<Initrd, Error> {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Protocol;
    use crate::error::Role;
    use crate::file::Opened;
    use crate::layout::MIB;
    use crate::testing::{Scratch, bytes, memory};

    fn load_size(mib: u64, size: usize, end: u64, initrd_max: u64) -> Result<Initrd, Error> {
        let mut content = vec![0x11; size];
        content[size - 1] = 0x22;
        let file = Scratch::new(&content);
        let memory = memory(mib);
        let (protocol, entry) = (Protocol::Linux64, 0);
        let kernel = Kernel { protocol, entry, end, header: None, initrd_max, cmdline_max: 0 };
        let initrd = load(&memory, Opened::open(Role::Initrd, file.path())?.read_pipe(0)?, &kernel)?;
        assert_eq!(bytes(&memory, initrd.start, 1), [0x11]);
        assert_eq!(bytes(&memory, initrd.start + initrd.size - 1, 1), [0x22]);
        Ok(initrd)
    }

    #[test]
    fn it_goes_to_the_highest_page_allowed() {
        for (mib, max, start) in [
            (64, 0x7fff_ffff, 64 * MIB - 0x3000),
            (64, 0x2ff_ffff, 48 * MIB - 0x3000),
            (6144, 0x7fff_ffff, 2048 * MIB - 0x3000),
            (6144, 0xffff_ffff, 3072 * MIB - 0x3000),
        ] {
            let initrd = load_size(mib, 0x2001, 24 * MIB, max).unwrap();
            assert_eq!(initrd, Initrd { start, size: 0x2001 }, "{mib} MiB, up to {max:#x}");
        }
        // Its last byte may be at the highest address.
        assert_eq!(load_size(64, 0x2000, 24 * MIB, 0x2ff_ffff).unwrap().start, 48 * MIB - 0x2000);
    }

    #[test]
    fn it_leaves_the_kernel_its_room() {
        let initrd = load_size(64, 0x1000, 64 * MIB - 0x1fff, 0x7fff_ffff).unwrap();
        assert_eq!(initrd.start, 64 * MIB - 0x1000);
        let error = load_size(64, 0x1001, 64 * MIB - 0x1fff, 0x7fff_ffff).unwrap_err();
        assert_eq!(error.remedy().unwrap(), "give the guest more memory: --memory 65M");
        let error = load_size(64, 0x100_0001, 63 * MIB, 0x3ff_ffff).unwrap_err();
        assert!(matches!(error, Error::InitrdTooLarge { memory: None, .. }), "{error}");
        assert!(error.remedy().unwrap().contains("more memory does not help"));
        let error = load_size(3072, 0x10_0001, 3071 * MIB, 0xffff_ffff).unwrap_err();
        assert!(matches!(error, Error::InitrdTooLarge { memory: None, .. }), "{error}");
    }

    #[test]
    fn a_missing_one_is_called_by_its_name() {
        let open = |path: &Path| Opened::open(Role::Initrd, path).expect_err("refused");
        assert_eq!(open(Path::new("/nonexistent")).to_string(), "cannot open the initrd /nonexistent");
        let file = Scratch::new(b"");
        assert!(matches!(open(file.path()), Error::Empty { role: Role::Initrd, .. }));
    }
}
