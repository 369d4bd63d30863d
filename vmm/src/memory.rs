//! Guest memory: one anonymous mapping, given to KVM in the slots that the layout asks for.
#![allow(unsafe_code)]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::error::Error;

/// Maps `bytes` of guest memory, split around the hole below 4 GiB. Pages come on first touch, so it may be more than
/// the host has free.
pub(crate) fn map(bytes: u64) -> Result<GuestMemoryMmap, Error> {
    let region = |(start, len): (u64, u64)| {
        // NORESERVE: what the guest never touches is not counted against the host's commit limit.
        let mapping = MmapRegionBuilder::new(len as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|source| Error::MapMemory { bytes, source })?;
        // A hint: fewer and larger page faults where the host has the pages. Without them, it is as before.
        // SAFETY: the range is this mapping, and the advice changes nothing that a reader or writer of it can see.
        unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_HUGEPAGE) };
        GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or(Error::MemoryTooLarge { bytes, limit: u64::MAX })
    };
    let regions = boot::layout::ram_regions(bytes).into_iter().map(region).collect::<Result<Vec<_>, _>>()?;
    Ok(GuestMemoryMmap::from_regions(regions).expect("the layout's regions are sorted and do not overlap"))
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
