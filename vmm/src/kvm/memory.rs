//! Guest memory: mapped as the command line wants it, and given to KVM in the slots that the layout asks for.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion, VolatileSlice,
};

use crate::error::Error;
use crate::kvm::hugepages::Pool;
use vmm::config::{HugePages, MemoryConfig};

/// Maps guest memory, split around the hole below 4 GiB. Pages come on first touch. Without huge pages it may be more than
/// the host has free; with them, mmap(2) reserves all that it takes, so none is wanting at a touch. A limit of a hugetlb
/// cgroup (`hugetlb.*.max`) still counts touches: to meet that here too, the start would have to clear all of the memory.
///
/// # Errors
/// The host does not have such memory, or not so much.
pub(crate) fn map(config: &MemoryConfig) -> Result<GuestMemoryMmap, Error> {
    let bytes = config.bytes;
    let pool = config.huge_pages.map(|wanted| pool_for(wanted, bytes)).transpose()?;
    let file = config.shared.then(|| memory_file(bytes, pool)).transpose()?;
    let kind = if config.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
    let backing = match pool {
        // Of a file, its pages are the file's.
        Some(_) if config.shared => 0,
        Some(pool) => libc::MAP_HUGETLB | (pool.log2() << libc::MAP_HUGE_SHIFT) as i32,
        // NORESERVE: what the guest never touches is not counted against the host's commit limit.
        None => libc::MAP_NORESERVE,
    };
    let mut offset = 0;
    let region = |(start, len): (u64, u64)| {
        let mut builder = MmapRegionBuilder::new(len as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(kind | backing);
        if let Some(file) = &file {
            builder = builder.with_file_offset(FileOffset::from_arc(file.clone(), offset));
            offset += len;
        }
        let mapping = builder.build().map_err(|source| match pool {
            Some(pool) => Error::HugePagesShort { bytes, needed: bytes / pool.page, pool, source },
            None => Error::MapMemory { bytes, source },
        })?;
        if config.mergeable {
            // Instead of huge pages, which are seldom equal.
            advise(&mapping, libc::MADV_MERGEABLE).map_err(Error::Mergeable)?;
        } else if pool.is_none() {
            // A hint: fewer and larger page faults where the host has the pages. Without them, it is as before.
            let _ = advise(&mapping, libc::MADV_HUGEPAGE);
        }
        GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or(Error::MemoryTooLarge { bytes, limit: u64::MAX })
    };
    let regions = boot::layout::ram_regions(bytes).into_iter().map(region).collect::<Result<Vec<_>, _>>()?;
    if config.mergeable
        && std::fs::read_to_string("/sys/kernel/mm/ksm/run").is_ok_and(|run| run.trim() != "1")
    {
        log::warn!("nothing is merged while KSM is off (echo 1 > /sys/kernel/mm/ksm/run)");
    }
    Ok(GuestMemoryMmap::from_regions(regions).expect("the layout's regions are sorted and do not overlap"))
}

/// The pool from which `bytes` of guest memory are to come.
///
/// # Errors
/// The host has no such pages, or the memory is not a whole number of them.
fn pool_for(wanted: HugePages, bytes: u64) -> Result<Pool, Error> {
    let pool = Pool::find(wanted).map_err(|page| Error::NoHugePages { page })?;
    match bytes.is_multiple_of(pool.page) {
        true => Ok(pool),
        false => Err(Error::UnevenHugePages { bytes, page: pool.page }),
    }
}

/// A file of `bytes` in memory, whose size stays: a process that made it smaller would have the guest end by SIGBUS.
fn memory_file(bytes: u64, pool: Option<Pool>) -> Result<Arc<File>, Error> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let flags = match pool {
        Some(pool) => {
            flags | MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(pool.log2() << libc::MAP_HUGE_SHIFT)
        }
        None => flags,
    };
    let sized = || -> rustix::io::Result<_> {
        let file = memfd_create("wirevm", flags)?;
        ftruncate(&file, bytes)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(file)
    };
    let file = sized().map_err(|e| Error::MemoryFile { bytes, source: e.into() })?;
    Ok(Arc::new(file.into()))
}

/// Gives the kernel advice that changes nothing that a reader or writer of the memory can see.
fn advise(mapping: &MmapRegion, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the range is this mapping, and none of the advice given here changes what it holds.
    match unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives what backs a piece of guest memory back to the host, its whole pages: they read as zeroes then, which is what the guest has said
/// that it does not mind.
///
/// # Errors
/// The host's; the memory is as it was then.
pub(crate) fn discard(memory: &VolatileSlice<'_>, shared: bool) -> io::Result<()> {
    const PAGE: usize = 4096;
    let guard = memory.ptr_guard_mut();
    let (start, end) = (guard.as_ptr() as usize, guard.as_ptr() as usize + memory.len());
    let (start, end) = (start.next_multiple_of(PAGE), end - end % PAGE);
    if start >= end {
        return Ok(());
    }
    // Of a file, unmapping alone would leave the pages in it.
    let advice = if shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
    // SAFETY: the range is within guest memory, which nothing of ours refers to but by volatile access, and stays mapped: it becomes
    // zeroes, as a guest's write could have it.
    match unsafe { libc::madvise(start as *mut libc::c_void, end - start, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives `memory` to the VM, one slot for each region.
pub(crate) fn register(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), Error> {
    for (slot, region) in memory.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a mapping of its own, and the machine holds both it and the VM, dropping the VM first.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(|e| Error::Kvm { what: "set the guest's memory", source: e.into() })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn whole_pages_are_given_back_and_nothing_else() {
        for shared in [false, true] {
            let config = MemoryConfig { shared, ..MemoryConfig::plain(32 << 20) };
            let memory = map(&config).unwrap();
            let at = GuestAddress(0x10_0000);
            memory.write_slice(&[7; 0x5000], at).unwrap();
            let piece = memory.get_slice(at, 0x5000).unwrap();
            discard(&piece.subslice(0xfff, 0x3002).unwrap(), shared).unwrap();
            discard(&piece.subslice(0x4001, 0xfff).unwrap(), shared).unwrap();
            discard(&piece.subslice(0x4800, 0).unwrap(), shared).unwrap();
            let mut bytes = vec![0; 0x5000];
            memory.read_slice(&mut bytes, at).unwrap();
            let kept = |range: std::ops::Range<usize>, value| bytes[range].iter().all(|byte| *byte == value);
            assert!(kept(0..0x1000, 7) && kept(0x1000..0x4000, 0) && kept(0x4000..0x5000, 7), "{shared}");
            memory.write_slice(&[8], GuestAddress(0x10_2000)).unwrap();
            assert_eq!(memory.get_slice(GuestAddress(0x10_2000), 1).unwrap().read_obj::<u8>(0).unwrap(), 8);
        }
    }

    #[test]
    fn pages_that_the_host_cannot_have_are_refused() {
        let error = pool_for(HugePages::Of(1 << 14), 1 << 30).unwrap_err();
        assert_eq!(error.to_string(), "this host has no huge pages of 16 KiB");
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("hugepages=")));
        let Ok(pool) = pool_for(HugePages::Of(2 << 20), 32 << 20) else { return };
        assert_eq!((pool.page, pool.log2()), (2 << 20, 21));
        let error = pool_for(HugePages::Of(2 << 20), 33 << 20).unwrap_err();
        assert_eq!(error.to_string(), "33 MiB of memory are not a whole number of huge pages of 2 MiB");
        assert_eq!(error.remedy().as_deref(), Some("give --memory 34M"));
    }
}
