//! What a partition holds: a file system that is read here, or the name of one that is not.

use super::Error;
use super::ext4::{self, Ext4};
use super::fat::{self, Fat};
use super::source::Area;

/// The file systems that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ext4,
    Fat,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Fat => "FAT",
        }
    }
}

/// A file system, for looking up a few files. Paths are absolute; symbolic links are followed inside of it.
pub(super) trait FileSystem {
    /// Which it is.
    fn kind(&self) -> Kind;

    /// Its UUID, as `root=UUID=` takes it.
    fn uuid(&self) -> String;

    /// Whether there is such a directory.
    fn is_directory(&self, path: &str) -> Result<bool, Error>;

    /// The names in a directory; none where it is not there.
    fn list(&self, path: &str) -> Result<Vec<String>, Error>;

    /// A file's bytes, at most `limit` of them; `None` where it is not there.
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error>;
}

/// What is in an area of a disk.
pub(super) enum Content<'a> {
    Readable(Box<dyn FileSystem + 'a>),
    /// What is not read, or is broken, and why.
    Unreadable(Error),
    /// Nothing that is known.
    Unknown,
}

/// What is known by some bytes at a place, and is not read: its name, where, and the bytes.
const UNREADABLE: [(&str, u64, &[u8]); 12] = [
    ("LUKS (encrypted)", 0, b"LUKS\xba\xbe"),
    ("btrfs", 0x1_0040, b"_BHRfS_M"),
    ("xfs", 0, b"XFSB"),
    ("LVM", 512, b"LABELONE"),
    ("LVM", 0, b"LABELONE"),
    ("a RAID's member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("squashfs", 0, b"hsqs"),
    ("bcachefs", 4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    ("ntfs", 3, b"NTFS    "),
    ("an ISO image", 0x8001, b"CD001"),
];

/// Looks at what is in `area`.
///
/// # Errors
/// It cannot be read at all.
pub(super) fn look(area: Area<'_>) -> Result<Content<'_>, Error> {
    for (kind, offset, magic) in UNREADABLE {
        if area.peek(offset, magic.len())?.is_some_and(|found| found == magic) {
            return Ok(Content::Unreadable(Error::Unreadable { kind }));
        }
    }
    let opened = if ext4::is_here(area)? {
        Ext4::open(area).map(|fs| Box::new(fs) as Box<dyn FileSystem + '_>)
    } else if fat::is_here(area)? {
        Fat::open(area).map(|fs| Box::new(fs) as Box<dyn FileSystem + '_>)
    } else {
        return Ok(Content::Unknown);
    };
    Ok(opened.map_or_else(Content::Unreadable, Content::Readable))
}
