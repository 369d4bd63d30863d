//! What can be wrong within an archive or a tree.

use std::io;

/// What is wrong with a tar archive, or with the tree that it describes. Sizes and offsets are in bytes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says what its fields are
pub enum Fault {
    #[error("cannot read it at byte {at}")]
    Read { at: u64, source: io::Error },
    #[error("it is cut off: at byte {at} {what} is missing")]
    Truncated { at: u64, what: &'static str },
    #[error("at byte {at} no header of a file is where one should be")]
    NoHeader { at: u64 },
    #[error("the header at byte {at} has a {field} that is no number or too large a one")]
    Number { at: u64, field: &'static str },
    #[error("the extended header at byte {at} is malformed")]
    Extended { at: u64 },
    #[error(
        "with the extended header at byte {at} those of its kind have {len} bytes, and more than {limit} are never needed"
    )]
    ExtendedTooLong { at: u64, len: u64, limit: u64 },
    #[error("the file at byte {at} has no name")]
    NoName { at: u64 },
    #[error("{name} is no name that Linux can give a file")]
    Name { name: String },
    #[error("{name} climbs out of the root by its `..`")]
    Climbs { name: String },
    #[error("the root is to become something other than a directory")]
    RootNotADirectory,
    #[error("{name} is to lie in what is not a directory")]
    ParentNotADirectory { name: String },
    #[error("symbolic links lead in a circle on the way to {name}")]
    LinkLoop { name: String },
    #[error("{name} is a hard link to {target}, which is not there or is a directory")]
    HardLink { name: String, target: String },
    #[error("{name} is a symbolic link to nothing, or to more than Linux can follow")]
    SymbolicLink { name: String },
    #[error("{name} has a malformed map of its holes")]
    SparseMap { name: String },
    #[error("{name} has extended attributes that Linux cannot hold")]
    Attributes { name: String },
    #[error("{name} is a part of an archive of several volumes")]
    Volumes { name: String },
    #[error("it has more than {limit} files")]
    TooMany { limit: u32 },
    #[error("its files have more than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("its names, links and attributes have more than {limit} bytes")]
    TooMuchMetadata { limit: u64 },
}

impl Fault {
    /// What the user can do about it.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Read { .. } => "copy the image to a local disk and give that copy",
            Self::Truncated { .. } => "fetch or make it again: the copy is not complete",
            Self::Volumes { .. } => "join the volumes: tar -xM and tar -c make one archive of them",
            Self::TooMany { .. } | Self::TooLarge { .. } | Self::TooMuchMetadata { .. } => {
                "give it as a disk (--disk), or leave out what the guest does not need"
            }
            Self::Climbs { .. } => {
                "make the archive again with `tar -C ROOT -c .`, whose names stay below the root"
            }
            _ => "make the archive again, with GNU tar or bsdtar; if it was fetched, do not trust it",
        }
    }
}

/// A name as it is shown: what is no printable text is escaped, and what is very long is cut.
pub(super) fn shown(name: &[u8]) -> String {
    let mut text: String = String::from_utf8_lossy(&name[..name.len().min(200)])
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if name.len() > 200 {
        text.push_str("...");
    }
    text
}
