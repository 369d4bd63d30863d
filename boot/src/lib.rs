//! Puts a Linux kernel into guest memory with all that it needs at its first instruction, and says in which
//! state vCPU 0 must be to run it.
//!
//! **Invariant:** this crate knows guest memory, and nothing else of the machine. It does *not* know KVM: the
//! [`Entry`] is plain data, copied into KVM's structures by its caller. It does *not* know devices: they come as
//! the addresses and interrupt lines that [`AcpiConfig`] lists. It keeps no state and starts nothing; [`load`]
//! is called once, on fresh (zeroed) memory. The kernel file is not trusted: whatever its bytes, the outcome is
//! a guest that may crash or an [`Error`], never a panic here.
//!
//! A map of the files, in the order in which `load` uses them:
//!
//! - `layout.rs`: every guest-physical address, port and interrupt line, in one table.
//! - `file.rs`: opens the user's files and reads them straight into guest memory.
//! - `kernel.rs`: which kind of kernel it is; `kernel/bzimage.rs`, `kernel/elf.rs`: its checks and its place.
//! - `initrd.rs`: the initrd's place. `cmdline.rs`: the command line.
//! - `acpi.rs`: the ACPI tables.
//! - `params.rs`: the zero page or the PVH start info, with the memory map.
//! - `cpu.rs`: GDT, page tables and registers at entry.
//! - `error.rs`: what can go wrong, and what the user does about it.
//!
//! Governing texts: Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`, Xen's PVH boot ABI
//! (`docs/misc/pvh.pandoc`, `start_info.h`), ACPI 6.5.
#![forbid(unsafe_code)]

mod acpi;
mod cmdline;
mod cpu;
mod error;
mod file;
mod initrd;
mod kernel;
pub mod layout;
mod params;
#[cfg(test)]
mod testing;

use std::path::Path;

use vm_memory::GuestMemoryMmap;

pub use acpi::AcpiConfig;
pub use cpu::{DescriptorTable, Entry, Segment};
pub use error::{Error, Role};
pub use layout::VirtioMmio;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// A bzImage or an ELF vmlinux.
    pub kernel: &'a Path,
    /// An initramfs or initrd.
    pub initrd: Option<&'a Path>,
    /// The whole command line, without a NUL.
    pub cmdline: &'a str,
    /// What the ACPI tables describe.
    pub acpi: AcpiConfig<'a>,
}

/// By which convention the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit boot protocol: long mode, RSI is the zero page.
    Linux64,
    /// Xen's PVH: 32-bit protected mode without paging, EBX is the start info.
    Pvh,
}

/// Loads kernel, initrd, command line, ACPI tables and boot parameters into `memory`, which is fresh and
/// divided as [`layout::ram_regions`] says, and gives the state of vCPU 0.
///
/// # Errors
///
/// A file that is missing, broken, of the wrong kind or too large, and a command line that does not suit:
/// each with its own [`Error`] and [`Error::remedy`].
pub fn load(memory: &GuestMemoryMmap, config: &Config<'_>) -> Result<Entry, Error> {
    kernel::low_ram_end(memory)?;
    let kernel = kernel::load(memory, config.kernel)?;
    let initrd = config.initrd.map(|path| initrd::load(memory, path, &kernel)).transpose()?;
    cmdline::write(memory, config.cmdline, kernel.cmdline_max)?;
    let rsdp = acpi::write(memory, &config.acpi)?;
    match kernel.protocol {
        Protocol::Linux64 => params::write_zero_page(memory, &kernel, initrd, rsdp)?,
        Protocol::Pvh => params::write_start_info(memory, initrd, rsdp)?,
    }
    cpu::prepare(memory, kernel.protocol, kernel.entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, memory};

    /// Runs over a real kernel where the environment names one: synthetic images repeat our own beliefs.
    #[test]
    fn a_real_kernel_loads() {
        let Some(path) = std::env::var_os("WIREVM_TEST_KERNEL") else {
            eprintln!("skipped: WIREVM_TEST_KERNEL names no kernel");
            return;
        };
        let memory = memory(512);
        let devices: Vec<VirtioMmio> = (0..2).filter_map(layout::virtio_mmio).collect();
        let acpi = AcpiConfig { cpus: 2, virtio_mmio: &devices };
        let config = Config { kernel: Path::new(&path), initrd: None, cmdline: "console=ttyS0", acpi };
        let entry = load(&memory, &config).unwrap();
        assert!(bytes(&memory, entry.rip, 64).iter().any(|byte| *byte != 0));
    }
}
