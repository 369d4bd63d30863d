//! Why a file cannot be a disk.

use std::io;
use std::path::{Path, PathBuf};

use vmm::config::argument;

use super::format::Format;

/// Why a file cannot be a disk, and what the user can do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("cannot open the disk {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot open the disk {} for writing", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the disk {} is {kind}", path.display())]
    NotADisk { path: PathBuf, kind: &'static str },
    #[error("the disk {} is empty", path.display())]
    Empty { path: PathBuf },
    #[error("the disk {} has {bytes} bytes, which are not a whole number of blocks of {logical}", path.display())]
    Size { path: PathBuf, bytes: u64, logical: u32 },
    #[error("the disk {} is a {}, not a raw image", path.display(), format.name)]
    Format { path: PathBuf, format: Format },
    #[error("the disk {} is mounted, or a part of another device", path.display())]
    Busy { path: PathBuf, source: io::Error },
    #[error("the disk {} is in use{}", path.display(), holder.as_ref().map(|it| format!(" by {it}")).unwrap_or_default())]
    InUse { path: PathBuf, holder: Option<String>, writes: bool },
    #[error("disk {first} and disk {second} both are {}", path.display())]
    Twice { path: PathBuf, first: usize, second: usize },
    #[error("the disk {} cannot be read and written without the host's cache", path.display())]
    Direct { path: PathBuf, source: io::Error },
    #[error("cannot make a file of {} for what is written to the disk {}", argument(*bytes), path.display())]
    Overlay { path: PathBuf, bytes: u64, source: io::Error },
}

impl DiskError {
    /// What the user can do about it.
    pub(crate) fn remedy(&self) -> String {
        match self {
            Self::Open { path, source } if source.kind() == io::ErrorKind::NotFound => {
                format!("make it first: truncate -s 10G {}", quoted(path))
            }
            Self::Open { .. } => "name an image or block device that you may read".into(),
            Self::Write { path, .. } => {
                let path = path.display();
                format!("give --disk {path},ro or --disk {path},snapshot=on, or take a file that you may write")
            }
            Self::NotADisk { kind: "a directory", .. } => "name the image in it".into(),
            Self::NotADisk { .. } => "name a raw image, or a block device".into(),
            Self::Empty { path } => format!("give it a size: truncate -s 10G {}", quoted(path)),
            Self::Size { path, logical, .. } => {
                format!("is it whole? If so, fill it up: truncate -s %{logical} {}", quoted(path))
            }
            Self::Format { path, format } => {
                let raw = path.with_extension("raw");
                // A disk's first bytes are its guest's to write.
                let convert = format.to_raw(&quoted(path), &quoted(&raw));
                format!("{convert}; or, if it is a raw image that happens to begin so, add format=raw")
            }
            Self::Busy { path, .. } => {
                format!("unmount it (findmnt {}, lsblk), or add ro", quoted(path))
            }
            Self::InUse { writes: true, .. } => {
                "end who has it; or give each guest an image of its own, or add snapshot=on or ro to all of them".into()
            }
            Self::InUse { writes: false, .. } => "end who writes it".into(),
            Self::Twice { .. } => "give it once, or add ro or snapshot=on to both".into(),
            Self::Direct { .. } => "drop direct, or put the image on a file system with direct I/O (not tmpfs)".into(),
            Self::Overlay { .. } => "have TMPDIR name a directory with room that you may write".into(),
        }
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@%".contains(c);
    match text.chars().all(plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_remedy_names_a_shell_takes() {
        for (path, text) in [("/a/b-1.raw", "/a/b-1.raw"), ("my disk", "'my disk'"), ("it's", r"'it'\''s'")] {
            assert_eq!(quoted(Path::new(path)), text);
        }
    }
}
