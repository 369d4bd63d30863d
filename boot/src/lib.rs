//! Puts a Linux kernel into guest memory with all that it needs at its first instruction, and says in which
//! state vCPU 0 must be to run it.
//!
//! **Invariant:** this crate knows guest memory, kernels, initrds and images, and nothing else of the machine. It does *not* know KVM: the
//! [`Entry`] is plain data, copied into KVM's structures by its caller. It does *not* know devices: they come as
//! the addresses and interrupt lines that [`AcpiConfig`] lists. It keeps no state and starts nothing; [`load`]
//! is called once, on fresh (zeroed) memory. The kernel file is not trusted: whatever its bytes, the outcome is
//! a guest that may crash or an [`Error`], never a panic here.
//!
//! A map of the files, in the order in which `load` uses them:
//!
//! - `layout.rs`: every guest-physical address, port and interrupt line, in one table.
//! - `file.rs`: opens the user's files and reads them straight into guest memory; pipes and gzip by a buffer.
//! - `kernel.rs`: which kind of kernel it is; `kernel/bzimage.rs`, `kernel/elf.rs`: its checks and its place.
//! - `initrd.rs`: the initrd's place. `cmdline.rs`: the command line.
//! - `acpi.rs`: the ACPI tables. `mp.rs`: what kernels without ACPI have instead. `smbios.rs`: who the machine is, and credentials.
//! - `params.rs`: the zero page or the PVH start info, with the memory map.
//! - `disk/`: finds kernel, initrd and command line in a distribution's disk.
//! - `seed.rs`: a small disk with what cloud-init is told.
//! - `firmware.rs`: the way back to real mode, for kernels that restart by it.
//! - `cpu.rs`: GDT, page tables and registers at entry.
//! - `error.rs`: what can go wrong, and what the user does about it.
//!
//! What comes before that has its own maps: `image/` makes a guest's root of an image, `modules/` finds a kernel with its modules and
//! makes the small initrd; both unpack by `unpack/`.
//!
//! Governing texts: Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`, Xen's PVH boot ABI
//! (`docs/misc/pvh.pandoc`, `start_info.h`), ACPI 6.5.
#![forbid(unsafe_code)]

mod acpi;
mod cmdline;
mod cpu;
pub mod disk;
mod error;
mod file;
mod firmware;
pub mod image;
mod initrd;
mod kernel;
pub mod layout;
pub mod modules;
mod mp;
mod params;
pub mod seed;
mod smbios;
#[cfg(test)]
mod testing;
mod unpack;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use vm_memory::GuestMemoryMmap;

pub use acpi::AcpiConfig;
pub use cpu::{DescriptorTable, Entry, Segment};
pub use error::{Error, Role};
pub use layout::VirtioMmio;
pub use smbios::SmbiosConfig;

/// The user's files, open: from here on no path is needed.
#[derive(Debug)]
pub struct Files(Opened);

#[derive(Debug)]
enum Opened {
    Given { kernel: file::Opened, initrd: Option<file::Opened> },
    Disk { path: PathBuf, file: File, len: u64 },
}

impl Files {
    /// Opens `kernel`, a bzImage or an ELF vmlinux or one of them in gzip, and `initrd`, an initramfs or initrd. Each can be a
    /// pipe; a named one is waited for until somebody writes to it.
    ///
    /// # Errors
    /// One is missing, empty, or neither file nor pipe.
    pub fn open(kernel: &Path, initrd: Option<&Path>) -> Result<Self, Error> {
        let kernel = file::Opened::open(Role::Kernel, kernel)?;
        let initrd = initrd.map(|path| file::Opened::open(Role::Initrd, path)).transpose()?;
        Ok(Self(Opened::Given { kernel, initrd }))
    }

    /// Opens the disk at `path`, a raw image or a block device, of which kernel, initrd and command line are to be taken.
    ///
    /// # Errors
    /// It is missing, or neither file nor block device.
    pub fn on_disk(path: &Path) -> Result<Self, Error> {
        let (file, len) = file::open_disk(path)?;
        Ok(Self(Opened::Disk { path: path.to_owned(), file, len }))
    }

    /// Their descriptors.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let all = match &self.0 {
            Opened::Given { kernel, initrd } => [Some(kernel.as_fd()), initrd.as_ref().map(AsFd::as_fd)],
            Opened::Disk { file, .. } => [Some(file.as_fd()), None],
        };
        all.into_iter().flatten()
    }

    /// Reads what is a pipe to its end, and finds what is in a disk, for a guest with `memory` bytes of RAM.
    ///
    /// # Errors
    /// It cannot be read, is empty, or has more than any guest, or this one, can take; the disk has nothing to boot.
    pub fn read(self, memory: u64) -> Result<Images, Error> {
        match self.0 {
            Opened::Given { kernel, initrd } => {
                let kernel = kernel.read_pipe(kernel::BYTES_MAX)?;
                let limit = memory.min(layout::HOLE_START);
                let initrd = initrd.map(|initrd| initrd.read_pipe(limit)).transpose()?;
                Ok(Images { kernel, initrd, found: None })
            }
            Opened::Disk { path, file, len } => {
                let found =
                    disk::find(&file, len).map_err(|source| Error::Disk { path: path.clone(), source })?;
                let name = |inside: &str| PathBuf::from(format!("{}:{inside}", path.display()));
                let kernel = file::Source::of_bytes(Role::Kernel, name(&found.kernel_path), found.kernel)?;
                let initrd =
                    found.initrd.map(|initrd| file::Source::of_bytes(Role::Initrd, name("initrd"), initrd));
                let found = Some((found.title, found.cmdline));
                Ok(Images { kernel, initrd: initrd.transpose()?, found })
            }
        }
    }
}

/// What the user's files have, to be loaded.
#[derive(Debug)]
pub struct Images {
    kernel: file::Source,
    initrd: Option<file::Source>,
    /// The title and the command line of what a disk boots.
    found: Option<(String, disk::Cmdline)>,
}

impl Images {
    /// The title of what was found in a disk; none of a kernel that was given.
    pub fn title(&self) -> Option<&str> {
        self.found.as_ref().map(|(title, _)| &title[..])
    }

    /// The kernel's command line: `given`, or else `default`. What a disk boots has its own: what is given stands behind it, and the
    /// console of `default` where it has none.
    pub fn cmdline(&self, given: Option<&str>, default: &str) -> String {
        match &self.found {
            None => given.unwrap_or(default).to_owned(),
            Some((_, cmdline)) => cmdline.with(given, default),
        }
    }
}

/// How to boot it.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// The command line, without a NUL. Where the kernel is without ACPI by it, virtio-mmio devices are added to it.
    pub cmdline: &'a str,
    /// What the ACPI tables describe.
    pub acpi: AcpiConfig<'a>,
    /// What the SMBIOS tables say.
    pub smbios: SmbiosConfig<'a>,
    /// What tells this run of the machine from every other one (Virtual Machine Generation ID): any bytes that no other run has.
    pub generation: [u8; 16],
}

/// By which convention the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit boot protocol: long mode, RSI is the zero page.
    Linux64,
    /// Xen's PVH: 32-bit protected mode without paging, EBX is the start info.
    Pvh,
}

/// The word of this command line, if there is one, for which a guest gets no ACPI tables, such as `noapic`. They are of a machine without
/// 8259s to program, by which alone such a kernel takes its interrupts; without them it is a PC of old.
pub fn leaves_acpi_out(cmdline: &str) -> Option<&str> {
    cmdline::without_io_apic(cmdline)
}

/// The word of this command line, if there is one, for which a guest does not use ACPI, though it may have its tables: `acpi=off`, and those
/// that [leave it out](leaves_acpi_out).
pub fn uses_no_acpi(cmdline: &str) -> Option<&str> {
    if cmdline::without_acpi(cmdline) { Some("acpi=off") } else { leaves_acpi_out(cmdline) }
}

/// Whether a guest with this command line looks for no PCI bus (`pci=off`).
pub fn looks_for_no_pci(cmdline: &str) -> bool {
    cmdline::without_pci(cmdline)
}

/// Loads kernel, initrd, command line, ACPI tables and boot parameters into `memory`, which is fresh and
/// divided as [`layout::ram_regions`] says, and gives the state of vCPU 0.
///
/// # Errors
///
/// A file that is missing, broken, of the wrong kind or too large, and a command line that does not suit:
/// each with its own [`Error`] and [`Error::remedy`].
pub fn load(memory: &GuestMemoryMmap, images: Images, config: &Config<'_>) -> Result<Entry, Error> {
    kernel::low_ram_end(memory)?;
    let kernel = kernel::load(memory, images.kernel)?;
    let initrd = images.initrd.map(|initrd| initrd::load(memory, initrd, &kernel)).transpose()?;
    let cmdline = cmdline::with_devices(config.cmdline, config.acpi.virtio_mmio);
    cmdline::write(memory, &cmdline, kernel.cmdline_max)?;
    let rsdp = if leaves_acpi_out(config.cmdline).is_some() { 0 } else { acpi::write(memory, &config.acpi)? };
    mp::write(memory, &config.acpi)?;
    smbios::write(memory, &config.smbios)?;
    match kernel.protocol {
        Protocol::Linux64 => params::write_zero_page(memory, &kernel, initrd, rsdp, config.acpi.pci)?,
        Protocol::Pvh => params::write_start_info(memory, initrd, rsdp, config.acpi.pci)?,
    }
    firmware::write(memory, config.generation)?;
    cpu::prepare(memory, kernel.protocol, kernel.entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{CMDLINE, HOLE_START, START_INFO, ZERO_PAGE};
    use crate::testing::{Scratch, bytes, memory, word};

    fn config(devices: &[VirtioMmio]) -> Config<'_> {
        Config {
            cmdline: "console=ttyS0",
            acpi: AcpiConfig { cpus: 2, virtio_mmio: devices, pci: true },
            smbios: SmbiosConfig::default(),
            generation: *b"this run, and no",
        }
    }

    fn images(kernel: &Path, initrd: Option<&Path>) -> Images {
        Files::open(kernel, initrd).unwrap().read(64 << 20).unwrap()
    }

    #[test]
    fn what_a_command_line_rules_out_is_known_by_its_word() {
        for (cmdline, acpi, pci) in [
            ("quiet", None, false),
            ("acpi=off", Some("acpi=off"), false),
            ("noapic pci=off", Some("noapic"), true),
            ("-- pci=off", None, false),
        ] {
            assert_eq!((uses_no_acpi(cmdline), looks_for_no_pci(cmdline)), (acpi, pci), "{cmdline}");
        }
    }

    #[test]
    fn what_a_disk_boots_has_a_title_and_a_command_line_of_its_own() {
        let file = Scratch::new(b"something");
        let given = images(file.path(), None);
        assert_eq!(given.title(), None);
        assert_eq!(given.cmdline(None, "console=ttyS0"), "console=ttyS0");
        assert_eq!(given.cmdline(Some("quiet"), "console=ttyS0"), "quiet");
        let cmdline = disk::Cmdline { root: Some("root=UUID=7".into()), options: "ro".into() };
        let found = Images { found: Some(("Debian".into(), cmdline)), ..given };
        assert_eq!(found.title(), Some("Debian"));
        assert_eq!(found.cmdline(None, "console=ttyS0"), "root=UUID=7 ro console=ttyS0");
        assert_eq!(found.cmdline(Some("quiet"), "console=ttyS0"), "root=UUID=7 ro quiet");
    }

    #[test]
    fn each_file_has_a_descriptor() {
        let file = Scratch::new(b"something");
        for (initrd, count) in [(None, 1), (Some(file.path()), 2)] {
            assert_eq!(Files::open(file.path(), initrd).unwrap().descriptors().count(), count);
        }
    }

    #[test]
    fn a_bzimage_has_all_it_needs() {
        let kernel = Scratch::new(&kernel::bzimage_image());
        let initrd = Scratch::new(b"070701");
        let memory = memory(64);
        let entry = load(&memory, images(kernel.path(), Some(initrd.path())), &config(&[])).unwrap();
        assert_eq!((entry.protocol, entry.rsi), (Protocol::Linux64, ZERO_PAGE));
        assert_eq!(bytes(&memory, entry.rip, 1), [0xc3]);
        assert_eq!(bytes(&memory, CMDLINE, 14), b"console=ttyS0\0");
        let ramdisk = word(&memory, ZERO_PAGE + 0x218);
        assert_eq!(bytes(&memory, ramdisk & 0xffff_ffff, 6), b"070701");
        assert_eq!(ramdisk >> 32, 6);
        assert_eq!(bytes(&memory, word(&memory, ZERO_PAGE + 0x70), 8), b"RSD PTR ");
        assert_eq!(bytes(&memory, layout::SMBIOS_ENTRY, 5), b"_SM3_");
        assert_eq!(bytes(&memory, layout::GENERATION_ID, 16), b"this run, and no");
    }

    #[test]
    fn a_kernel_without_acpi_finds_its_devices_on_its_command_line() {
        let kernel = Scratch::new(&kernel::pvh_image());
        let memory = memory(64);
        let devices = [layout::virtio_mmio(0).unwrap()];
        let config = Config { cmdline: "acpi=off", ..config(&devices) };
        load(&memory, images(kernel.path(), None), &config).unwrap();
        let told = b"virtio_mmio.device=4096@0xc0000000:5 acpi=off\0";
        assert_eq!(bytes(&memory, CMDLINE, told.len()), told);
    }

    #[test]
    fn a_kernel_that_takes_its_interrupts_by_the_pics_gets_no_acpi() {
        let (bzimage, pvh) = (Scratch::new(&kernel::bzimage_image()), Scratch::new(&kernel::pvh_image()));
        for (kernel, rsdp) in [(&bzimage, ZERO_PAGE + 0x70), (&pvh, START_INFO + 32)] {
            for (cmdline, left_out) in [("noapic", true), ("acpi=off", false), ("-- noapic", false)] {
                let memory = memory(64);
                let config = Config { cmdline, ..config(&[]) };
                load(&memory, images(kernel.path(), None), &config).unwrap();
                assert_eq!(
                    (word(&memory, rsdp) == 0, leaves_acpi_out(cmdline).is_some()),
                    (left_out, left_out)
                );
                assert_eq!(bytes(&memory, layout::ACPI, 8) == b"RSD PTR ", !left_out, "nor does it find any");
                assert_eq!(bytes(&memory, layout::MP_TABLE, 4), b"_MP_");
            }
        }
    }

    #[test]
    fn a_pvh_kernel_has_all_it_needs() {
        let kernel = Scratch::new(&kernel::pvh_image());
        let initrd = Scratch::new(b"070701");
        let memory = memory(64);
        let entry = load(&memory, images(kernel.path(), Some(initrd.path())), &config(&[])).unwrap();
        assert_eq!((entry.protocol, entry.rbx), (Protocol::Pvh, START_INFO));
        assert_eq!(bytes(&memory, entry.rip, 1), [0xc3]);
        let module = word(&memory, START_INFO + 16);
        assert_eq!(bytes(&memory, word(&memory, module), 6), b"070701");
        assert_eq!(bytes(&memory, word(&memory, START_INFO + 32), 8), b"RSD PTR ");
    }

    #[test]
    fn the_kernels_own_limit_holds_for_the_command_line() {
        let kernel = Scratch::new(&kernel::bzimage_image());
        let text = "x".repeat(256);
        let config = Config { cmdline: &text, ..config(&[]) };
        let error = load(&memory(64), images(kernel.path(), None), &config).unwrap_err();
        assert!(matches!(error, Error::CmdlineTooLong { len: 256, limit: 255 }), "{error}");
    }

    #[test]
    fn memory_must_begin_at_zero() {
        use vm_memory::GuestAddress;
        let kernel = Scratch::new(b"no kernel, and not looked at");
        for (start, len) in [(0x1000, 64 << 20), (0, 0x8_0000)] {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(start), len)]).unwrap();
            let error = load(&memory, images(kernel.path(), None), &config(&[])).unwrap_err();
            assert!(matches!(error, Error::NoLowMemory), "{error}");
        }
    }

    /// Runs over a real kernel where the environment names one: synthetic images repeat our own beliefs.
    #[test]
    fn a_real_kernel_loads() {
        let Some(path) = std::env::var_os("WIREVM_TEST_KERNEL") else {
            eprintln!("skipped: WIREVM_TEST_KERNEL names no kernel");
            return;
        };
        let memory = memory(6144);
        let devices: Vec<VirtioMmio> = (0..2).filter_map(layout::virtio_mmio).collect();
        let entry = load(&memory, images(Path::new(&path), None), &config(&devices)).unwrap();
        assert!(entry.rip >= layout::HIMEM && entry.rip < HOLE_START);
        assert!(bytes(&memory, entry.rip, 64).iter().any(|byte| *byte != 0), "no code at the entry");
    }
}
