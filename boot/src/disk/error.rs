//! Why no kernel is found in a disk, and what the user does about it.

use std::io;

/// Why a disk cannot be booted from. Sizes and offsets are in bytes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says what its fields are
pub enum Error {
    #[error("cannot read the disk at {offset}")]
    Read { offset: u64, source: io::Error },
    #[error("something on the disk lies past its end, at {offset}")]
    PastTheEnd { offset: u64 },
    #[error("the disk is empty")]
    Empty,
    #[error("its partition table is broken: {problem}")]
    Table { problem: &'static str },
    #[error("it has neither a partition table nor a file system that wirevm knows")]
    Nothing,
    #[error("its root is {kind}, which wirevm cannot read")]
    Unreadable { kind: &'static str },
    #[error("its file systems ({searched}) have no kernel: no /boot/loader/entries, grub.cfg or vmlinuz")]
    NoKernel { searched: String },
    #[error("its {fs} file system is broken: {problem}")]
    Broken { fs: &'static str, problem: &'static str },
    #[error("its ext4 file system has features that wirevm does not know ({bits:#x})")]
    Features { bits: u32 },
    #[error("its boot entry {title:?} names {path}, which is not there")]
    Missing { title: String, path: String },
    #[error("its {path} is no regular file")]
    NotAFile { path: String },
    #[error("its {path} has {size} bytes, and there is room for {limit}")]
    TooLong { path: String, size: u64, limit: u64 },
    #[error("the disk has too much {what}")]
    TooMuch { what: &'static str },
}

impl Error {
    /// What the user can do about it, as one line.
    pub fn remedy(&self) -> String {
        match self {
            Error::Empty | Error::Nothing => {
                "give the raw image of a disk with Linux on it, or --kernel and --initrd".into()
            }
            Error::Table { .. } => {
                "repair it (sgdisk --verify, sfdisk --verify), or give --kernel and --initrd".into()
            }
            Error::Read { .. } | Error::PastTheEnd { .. } => {
                "fetch or copy the image again: it is not complete".into()
            }
            _ => "give --kernel and --initrd, and root=... with --cmdline".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_remedy() {
        let (problem, path, size) = ("", String::new(), 0);
        for (error, remedy) in [
            (Error::Empty, "give the raw image of a disk"),
            (Error::Nothing, "give the raw image of a disk"),
            (Error::Table { problem }, "repair it (sgdisk --verify"),
            (
                Error::Read { offset: 0, source: io::ErrorKind::UnexpectedEof.into() },
                "fetch or copy the image",
            ),
            (Error::PastTheEnd { offset: 0 }, "fetch or copy the image"),
            (Error::Unreadable { kind: "" }, "give --kernel and --initrd, and root="),
            (Error::NoKernel { searched: path.clone() }, "give --kernel and --initrd, and root="),
            (Error::Broken { fs: "", problem }, "give --kernel and --initrd, and root="),
            (Error::Features { bits: 0 }, "give --kernel and --initrd, and root="),
            (
                Error::Missing { title: path.clone(), path: path.clone() },
                "give --kernel and --initrd, and root=",
            ),
            (Error::NotAFile { path: path.clone() }, "give --kernel and --initrd, and root="),
            (Error::TooLong { path, size, limit: 0 }, "give --kernel and --initrd, and root="),
            (Error::TooMuch { what: "" }, "give --kernel and --initrd, and root="),
        ] {
            assert!(error.remedy().starts_with(remedy), "{error:?}: {}", error.remedy());
        }
    }
}
