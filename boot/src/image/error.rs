//! What can be wrong with an image as a whole.

use std::io;
use std::path::PathBuf;

use super::fault::Fault;
use super::sha256::Digest;

/// Why an image cannot be a guest's root. `image` is what the user gave, `part` a layer or document in it. Sizes are in bytes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says what its fields are
pub enum Error {
    #[error("cannot open the image {image}")]
    Open { image: String, source: io::Error },
    #[error("cannot read the image {image}")]
    Read { image: String, source: io::Error },
    #[error("cannot read {path} of the image {image}")]
    ReadFile { image: String, path: String, source: io::Error },
    #[error("{path} of the image {image} changed while it was read")]
    FileChanged { image: String, path: String },
    #[error("the image {image} changed while it was read")]
    Changed { image: String },
    #[error("the image {image} is empty")]
    Empty { image: String },
    #[error("the image {image} has no files")]
    NoFiles { image: String },
    #[error("{image} is no image of a root file system: it looks like {looks_like}")]
    NotAnImage { image: String, looks_like: &'static str, instead: &'static str },
    #[error("cannot unpack {part} of the image {image}")]
    Unpack { image: String, part: String, source: io::Error },
    #[error("{part} of the image {image} is not to be used")]
    Archive { image: String, part: String, source: Fault },
    #[error("unpacked, the image {image} has more than {limit} bytes")]
    TooLarge { image: String, limit: u64 },
    #[error("{part} of the image {image} is missing")]
    Missing { image: String, part: String },
    #[error("{part} of the image {image} has the digest {found}, not the one that it is named by")]
    WrongDigest { image: String, part: String, found: Digest },
    #[error("{part} of the image {image} is not what it should be: {problem}")]
    Malformed { image: String, part: String, problem: String },
    #[error("the image {image} is for {}, not for linux/amd64", found.join(", "))]
    OtherPlatform { image: String, found: Vec<String> },
    #[error("{image} has several images: {}", found.join(", "))]
    Several { image: String, found: Vec<String> },
    #[error("cannot write to the cache {path}")]
    Cache { path: PathBuf, source: io::Error },
    #[error("the cache {path} belongs to another user, or others may write to it")]
    CacheNotOurs { path: PathBuf },
    #[error("the cache {path} is a symbolic link")]
    CacheIsLink { path: PathBuf },
    #[error("there is no directory for the cache: neither XDG_CACHE_HOME nor HOME is an absolute path")]
    NoCache,
    #[error("{name} of the image {image} has {size} bytes, and an initramfs holds files below 4 GiB only")]
    TooLargeForCpio { image: String, name: String, size: u64 },
    #[error("the image {image} needs a file system of more than 16 TiB")]
    TooLargeForErofs { image: String },
}

impl Error {
    /// What the user can do about it, as one line.
    pub fn remedy(&self) -> String {
        match self {
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "give a directory, a tar archive, an OCI layout, what `docker save` or `podman save` writes, or - for one of them on \
                 standard input; wirevm asks no registry: `podman save NAME | wirevm run --image -`"
                    .into()
            }
            Self::Open { .. } | Self::Read { .. } => "copy the image to a local disk and give that copy".into(),
            Self::ReadFile { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as the user whose files these are, or as root; or share the directory instead".into()
            }
            Self::ReadFile { .. } => "copy the directory to a local disk and give that copy".into(),
            Self::FileChanged { .. } | Self::Changed { .. } => {
                "try again when nothing writes to it, or give a copy".into()
            }
            Self::Empty { .. } => {
                "check the command that made it; through a pipe nothing came, so see what it said".into()
            }
            Self::NoFiles { .. } => "give an image that has at least the program to run".into(),
            Self::NotAnImage { instead, .. } => (*instead).into(),
            Self::Unpack { .. } | Self::WrongDigest { .. } | Self::Missing { .. } => {
                "fetch or save the image again: the copy is damaged or not complete".into()
            }
            Self::Archive { source, .. } => source.remedy().into(),
            Self::TooLarge { .. } => Fault::TooLarge { limit: 0 }.remedy().into(),
            Self::Malformed { .. } => {
                "save it again with `docker save`, `podman save` or `skopeo copy ... oci:DIRECTORY`".into()
            }
            Self::OtherPlatform { .. } => {
                "fetch the one for this machine: `podman pull --platform linux/amd64 NAME`, and save that".into()
            }
            Self::Several { .. } => "save one image alone: `podman save NAME:TAG`, `docker save NAME:TAG`".into(),
            Self::Cache { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "make room there, or set XDG_CACHE_HOME to a directory with more of it".into()
            }
            Self::Cache { .. } | Self::NoCache => "set XDG_CACHE_HOME to a directory that you can write to".into(),
            Self::CacheNotOurs { path } => {
                format!("remove {}, or set XDG_CACHE_HOME to a directory of your own", path.display())
            }
            Self::CacheIsLink { path } => {
                format!("put a directory in place of {}, or set XDG_CACHE_HOME to one elsewhere", path.display())
            }
            Self::TooLargeForCpio { .. } => {
                "use a kernel with erofs and a virtio disk, which has no such limit, or leave the file out".into()
            }
            Self::TooLargeForErofs { .. } => "leave out its largest sparse files".into(),
        }
    }
}
