//! What can be wrong with the files, the command line and the memory that a guest is to boot with.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::disk;
use crate::layout::MIB;

/// Which of the user's files an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `--kernel`
    Kernel,
    /// `--initrd`
    Initrd,
    /// `--disk`
    Disk,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Kernel => "kernel",
            Role::Initrd => "initrd",
            Role::Disk => "disk",
        })
    }
}

/// Why a guest cannot be loaded. Sizes and addresses are in bytes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says what its fields are
pub enum Error {
    #[error("cannot open the {role} {path}")]
    Open { role: Role, path: PathBuf, source: io::Error },
    #[error("cannot read the {role} {path}")]
    Read { role: Role, path: PathBuf, source: io::Error },
    #[error("the {role} {path} is {kind}, not a file")]
    NotAFile { role: Role, path: PathBuf, kind: &'static str },
    #[error("the {role} {path} is empty")]
    Empty { role: Role, path: PathBuf },
    #[error("the {role} {path} has more than {limit} bytes {how}")]
    TooLong { role: Role, path: PathBuf, limit: u64, how: &'static str },
    #[error("finds nothing to boot in the disk {path}")]
    Disk { path: PathBuf, source: disk::Error },
    #[error("cannot unpack the kernel {path}")]
    Unpack { path: PathBuf, source: io::Error },
    #[error("the {role} {path} is cut off: its {part} reaches to byte {end}, the file ends at {size}")]
    Truncated { role: Role, path: PathBuf, part: &'static str, end: u64, size: u64 },
    #[error("{path} is no kernel for this machine: it looks like {looks_like}")]
    NotAKernel { path: PathBuf, looks_like: &'static str },
    #[error("the kernel {path} cannot be entered in 64-bit mode: {reason}")]
    No64BitEntry { path: PathBuf, reason: &'static str },
    #[error("the kernel {path} contradicts itself: {problem}")]
    Malformed { path: PathBuf, problem: &'static str },
    #[error("the kernel {path} needs the memory up to {end:#x}, and RAM ends at {ram_end:#x}")]
    KernelTooLarge { path: PathBuf, end: u64, ram_end: u64 },
    #[error("the kernel {path} asks for the memory {start:#x}..{end:#x}, which is {area}")]
    KernelMisplaced { path: PathBuf, start: u64, end: u64, area: &'static str },
    #[error(
        "the initrd {path} of {size} bytes does not fit between the kernel's end at {from:#x} and {to:#x}"
    )]
    InitrdTooLarge { path: PathBuf, size: u64, from: u64, to: u64, memory: Option<u64> },
    #[error("the command line is {len} bytes long, and this kernel takes {limit}")]
    CmdlineTooLong { len: usize, limit: usize },
    #[error("the command line has the control character {character:?} at byte {at}")]
    CmdlineControl { character: char, at: usize },
    #[error(
        "the ACPI tables for {cpus} vCPUs and {devices} devices take {len} bytes, and {room} are set aside"
    )]
    AcpiTooLarge { cpus: u32, devices: usize, len: u64, room: u64 },
    #[error("the SMBIOS tables with the credentials take {len} bytes, and {room} are set aside")]
    SmbiosTooLarge { len: u64, room: u64 },
    #[error("the virtio-mmio window {base:#x}+{size:#x} does not lie below 4 GiB")]
    WindowTooHigh { base: u64, size: u64 },
    #[error("cannot write the {what} to guest memory at {address:#x}")]
    Memory { what: &'static str, address: u64, source: vm_memory::GuestMemoryError },
    #[error("guest memory has no RAM from address 0 to the end of the first megabyte")]
    NoLowMemory,
}

/// The `--memory` argument that reaches to the address `end`, which lies below the hole.
fn memory_argument(end: u64) -> String {
    format!("--memory {}M", end.div_ceil(MIB))
}

impl Error {
    /// What the user can do about it, as one line; `None` where the fault is not the user's.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Error::Open { role, source, .. } if source.kind() == io::ErrorKind::NotFound => {
                format!("check the path given with --{role}")
            }
            Error::Open { role, source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                format!("make the {role} readable for this user, or give a copy that is")
            }
            Error::Open { role, .. } | Error::Read { role, .. } => {
                format!("copy the {role} to a local disk and give that copy with --{role}")
            }
            Error::NotAFile { role: Role::Disk, .. } => {
                "give a raw image or a block device with --disk".into()
            }
            Error::Disk { source, .. } => source.remedy(),
            Error::NotAFile { role, .. } => format!("give a file or a pipe with --{role}"),
            Error::Empty { role, .. } | Error::Truncated { role, .. } => {
                format!("fetch or build the {role} again: the copy is not complete")
            }
            Error::TooLong { role, .. } => {
                format!("check what is given with --{role}: no guest takes so much")
            }
            Error::Unpack { .. } => "fetch the kernel again, or give it unpacked (gunzip)".into(),
            Error::NotAKernel { .. } | Error::Malformed { .. } => {
                "give an x86-64 Linux kernel: a bzImage such as /boot/vmlinuz-*, or an ELF vmlinux".into()
            }
            Error::No64BitEntry { .. } => {
                "give a kernel built with CONFIG_X86_64, Linux 3.8 or newer, or with a PVH entry".into()
            }
            Error::KernelTooLarge { end, .. } => {
                format!("give the guest more memory: {}", memory_argument(*end))
            }
            Error::KernelMisplaced { .. } => {
                "give a kernel with the usual CONFIG_PHYSICAL_START (0x1000000)".into()
            }
            Error::InitrdTooLarge { memory: Some(end), .. } => {
                format!("give the guest more memory: {}", memory_argument(*end))
            }
            Error::InitrdTooLarge { memory: None, .. } => {
                "give a smaller initrd (more memory does not help)".into()
            }
            Error::CmdlineTooLong { len, limit } => {
                format!("shorten the command line by {} bytes", len - limit)
            }
            Error::CmdlineControl { .. } => "give --cmdline one line of printable text".into(),
            Error::SmbiosTooLarge { .. } => {
                "give fewer or shorter credentials, and files by another way".into()
            }
            Error::AcpiTooLarge { .. } => "use fewer vCPUs or devices".into(),
            Error::WindowTooHigh { .. } | Error::Memory { .. } | Error::NoLowMemory => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_opened_has_a_remedy_by_its_cause() {
        let open = |role, kind: io::ErrorKind| {
            Error::Open { role, path: "/x".into(), source: kind.into() }.remedy().unwrap()
        };
        for (role, kind, remedy) in [
            (Role::Kernel, io::ErrorKind::NotFound, "check the path given with --kernel"),
            (
                Role::Initrd,
                io::ErrorKind::PermissionDenied,
                "make the initrd readable for this user, or give a copy that is",
            ),
            (
                Role::Disk,
                io::ErrorKind::Other,
                "copy the disk to a local disk and give that copy with --disk",
            ),
        ] {
            assert_eq!(open(role, kind), remedy);
        }
    }
}
