//! What can be wrong with a kernel's files.

use std::io;
use std::path::PathBuf;

/// Why a kernel or its modules cannot be had. Sizes are in bytes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says what its fields are
pub enum Error {
    #[error("no kernel is given, and there is none in /boot or /lib/modules/{release}")]
    NoKernel { release: String },
    #[error("no kernel is given, and this machine's own, {path}, cannot be read")]
    KernelUnreadable { path: PathBuf, source: io::Error },
    #[error("cannot read the kernel {path}")]
    ReadKernel { path: PathBuf, source: io::Error },
    #[error("{path} has no kernel modules")]
    NoModules { path: PathBuf },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} has more than {limit} bytes")]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("unpacked, the kernel modules for the guest have more than {limit} bytes")]
    TooMuch { limit: u64 },
    #[error(
        "what the kernel module {name} is needed for and needs has no end: the index of the modules is damaged"
    )]
    NoEnd { name: String },
    #[error("cannot unpack the kernel module {path}")]
    Unpack { path: PathBuf, source: io::Error },
    #[error("{path} is no kernel module for x86-64: {problem}")]
    NotAModule { path: PathBuf, problem: &'static str },
}

impl Error {
    /// What the user can do about it, as one line.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoKernel { .. } => {
                "give one with --kernel: `apt-get download linux-image-amd64` names the package to download next, and `dpkg -x PACKAGE \
                 DIRECTORY` unpacks it; or install linux-image-amd64"
            }
            Self::KernelUnreadable { .. } => {
                "make it readable (`sudo chmod a+r` it), or give a copy that is with --kernel"
            }
            Self::ReadKernel { .. } => "check the path given with --kernel",
            Self::NoModules { .. } => {
                "give the directory that has the kernel's modules, such as /lib/modules/VERSION, with --modules"
            }
            Self::Read { .. } => {
                "make it readable for this user, or give a copy of the modules with --modules"
            }
            Self::NoEnd { .. } => "run depmod for this version, or install the kernel's package again",
            Self::TooMuch { .. } => {
                "take a distribution's kernel, or strip its modules of what is for debuggers"
            }
            Self::TooLarge { .. } | Self::Unpack { .. } | Self::NotAModule { .. } => {
                "install or unpack the kernel's package again: the file is damaged"
            }
        }
    }
}
