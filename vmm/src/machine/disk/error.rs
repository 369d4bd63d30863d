//! Why a file cannot be a disk.

use std::io;
use std::path::{Path, PathBuf};

use vmm::config::argument;

use super::Kind;
use super::format::Format;
use super::overlay::BYTES_MAX;

/// Why a file cannot be a disk, and what the user can do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("cannot open the disk {}", path.display())]
    Open { path: PathBuf, writes: bool, source: io::Error },
    #[error("cannot open the disk {} for writing", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the disk {} is {kind}", path.display())]
    NotADisk { path: PathBuf, kind: &'static str },
    #[error("the disk {} is empty", path.display())]
    Empty { path: PathBuf, kind: Kind, writes: bool },
    #[error("the disk {} has {bytes} bytes, which are not a whole number of blocks of {logical}", path.display())]
    Size { path: PathBuf, bytes: u64, logical: u32, kind: Kind },
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
    #[error("the disk {} has {bytes} bytes, and snapshot=on takes one of {} at most", path.display(), argument(BYTES_MAX))]
    TooLong { path: PathBuf, bytes: u64 },
}

impl DiskError {
    /// What the user can do about it.
    pub(crate) fn remedy(&self) -> String {
        match self {
            Self::Open { path, writes, source } if source.kind() == io::ErrorKind::NotFound => {
                absent(path, *writes)
            }
            Self::Open { .. } => "name an image or block device that you may read".into(),
            Self::Write { path, .. } => {
                let path = path.display();
                format!("give --disk {path},ro or --disk {path},snapshot=on, or take a file that you may write")
            }
            Self::NotADisk { kind: "a directory", .. } => "name the image in it".into(),
            Self::NotADisk { .. } => "name a raw image, or a block device".into(),
            Self::Empty { path, kind: Kind::Device, .. } => {
                format!("give the device something to be on (losetup {0} IMAGE, where it is a loop device), or name another", quoted(path))
            }
            Self::Empty { path, writes: true, .. } => format!("give it a size: truncate -s 10G {}", quoted(path)),
            Self::Empty { .. } => "name an image that has something to read".into(),
            Self::Size { kind: Kind::Device, .. } => "drop direct, or name another device".into(),
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
            Self::TooLong { .. } => "give it without snapshot=on, or a copy that is shorter".into(),
            Self::Overlay { .. } => "have TMPDIR name a directory with room that you may write".into(),
        }
    }
}

/// What to do about a disk that is not there. One is made where that makes a disk: not among devices, and not to be read alone.
fn absent(path: &Path, writes: bool) -> String {
    let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    match () {
        () if path.starts_with("/dev") => "name a device that is there: lsblk lists them".into(),
        () if !directory.is_dir() => format!("check the path: there is no directory {}", quoted(directory)),
        () if !writes => "check the path: a disk that the guest does not write has to be there".into(),
        () => format!("check the path, or make it: truncate -s 10G {}", quoted(path)),
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
    fn an_absent_disk_is_made_where_that_makes_a_disk() {
        let remedy = |path: &str, writes| absent(Path::new(path), writes);
        let made = |text: &str| text.contains("truncate");
        assert!(made(&remedy("/tmp/it is not there", true)) && made(&remedy("it is not there", true)));
        assert!(!made(&remedy("/tmp/it is not there", false)));
        assert!(remedy("/dev/vg/web", true).contains("lsblk"));
        assert!(remedy("/no/such/web.raw", true).contains("no directory /no/such"));
    }

    #[test]
    fn a_device_is_not_truncated() {
        let path = || PathBuf::from("/dev/loop7");
        let empty = DiskError::Empty { path: path(), kind: Kind::Device, writes: true };
        let odd = DiskError::Size { path: path(), bytes: 512, logical: 4096, kind: Kind::Device };
        for error in [empty, odd] {
            assert!(!error.remedy().contains("truncate"), "{}", error.remedy());
        }
        let read = DiskError::Empty { path: path(), kind: Kind::Regular, writes: false };
        assert!(!read.remedy().contains("truncate"));
    }

    #[test]
    fn what_a_remedy_names_a_shell_takes() {
        for (path, text) in [("/a/b-1.raw", "/a/b-1.raw"), ("my disk", "'my disk'"), ("it's", r"'it'\''s'")] {
            assert_eq!(quoted(Path::new(path)), text);
        }
    }
}
