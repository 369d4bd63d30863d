//! Finds what a distribution's disk boots, without a boot loader: kernel, initrd and command line.
//!
//! A disk is a raw image or a block device: a GPT or MBR with partitions, or a bare file system. In its ext4 and FAT file systems
//! the boot loader's own entries are looked for, then GRUB's menu, then the newest kernel. Nothing is mounted, and nothing is written.
//!
//! **Invariant:** whatever the bytes of the disk, finding ends with a result or an [`Error`], after a bounded number of reads
//! (`source.rs`), with no more in memory than [`FILES_MAX`] and some dozen megabytes, however many file systems there are.
//!
//! - `source.rs`: reads, each paid for. `table/`: partitions. `fs.rs`: which file system is where; `ext4/`, `fat.rs`: those that are read.
//! - `entries/`: what there is to boot: `bls.rs`, `grub.rs`, `plain.rs`.
//! - `cmdline.rs`: its command line, for this machine.

mod cmdline;
mod entries;
mod error;
mod ext4;
mod fat;
mod fs;
mod source;
mod table;
#[cfg(test)]
mod tests;

use self::entries::Entry;
use self::fs::{Content, FileSystem, Kind};
use self::source::{Area, Source};
use self::table::{Partition, Purpose};

pub use self::cmdline::Cmdline;
pub(crate) use self::cmdline::words;
pub use self::error::Error;
pub use self::source::ReadAt;

/// The most bytes that kernel and initrd have together.
pub const FILES_MAX: u64 = 512 << 20;

/// What a disk boots.
#[derive(Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is called, where its boot entry says so: for a person.
    pub title: String,
    /// Where in the disk its kernel is.
    pub kernel_path: String,
    /// The kernel's bytes.
    pub kernel: Vec<u8>,
    /// The initrd's: of several one after another, as a boot loader has them. None where there is none.
    pub initrd: Option<Vec<u8>>,
    /// The kernel's command line.
    pub cmdline: Cmdline,
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { title, kernel_path, kernel, initrd, cmdline } = self;
        let initrd = initrd.as_ref().map(Vec::len);
        write!(f, "Found({title:?}, {kernel_path:?}, {} and {initrd:?} bytes, {cmdline:?})", kernel.len())
    }
}

/// A file system, and where it is.
struct Place<'a> {
    fs: Box<dyn FileSystem + 'a>,
    partition: Option<Partition<'a>>,
}

/// Finds what `reader`, a disk of `len` bytes, boots by default.
///
/// # Errors
/// It is no disk, or is broken, or has nothing to boot in a file system that is read: each with its [`Error::remedy`].
pub fn find(reader: &dyn ReadAt, len: u64) -> Result<Found, Error> {
    if len == 0 {
        return Err(Error::Empty);
    }
    let source = Source::new(reader, len);
    let (mut places, mut unreadable) = (Vec::new(), None);
    for (area, partition) in areas(source.whole())? {
        match fs::look(area)? {
            Content::Readable(fs) => places.push(Place { fs, partition }),
            // What is said to be the root, or comes first, is what an error is about.
            Content::Unreadable(error) => {
                let is_root = partition.is_some_and(|partition| partition.purpose == Purpose::Root);
                if is_root || unreadable.is_none() {
                    unreadable = Some(error);
                }
            }
            Content::Unknown => {}
        }
    }
    let systems: Vec<&dyn FileSystem> = places.iter().map(|place| &*place.fs).collect();
    let Some((index, entry)) = entries::default(&systems)? else {
        let searched = systems.iter().map(|fs| fs.kind().name()).collect::<Vec<_>>().join(", ");
        return Err(match unreadable {
            Some(error) => error,
            None if searched.is_empty() => Error::Nothing,
            None => Error::NoKernel { searched },
        });
    };
    let read = |path: &str, limit: u64| read(&systems, index, &entry, path, limit);
    let kernel = read(&entry.kernel, FILES_MAX)?;
    let mut left = FILES_MAX - kernel.len() as u64;
    let mut initrd: Vec<u8> = Vec::new();
    for path in &entry.initrds {
        let bytes = read(path, left)?;
        left -= bytes.len() as u64;
        // An archive begins at a multiple of four (`Documentation/driver-api/early-userspace/buffer-format.rst`).
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        if initrd.is_empty() { initrd = bytes } else { initrd.extend(bytes) }
    }
    let initrd = (!initrd.is_empty()).then_some(initrd);
    let root = root(&places)?.map(|place| root_argument(place, initrd.is_some()));
    Ok(Found {
        cmdline: Cmdline::new(&entry.options, root.as_deref()),
        title: entry.title,
        kernel_path: entry.kernel,
        kernel,
        initrd,
    })
}

/// The parts of a disk that can have a file system: its partitions, or all of it.
fn areas(disk: Area<'_>) -> Result<Vec<(Area<'_>, Option<Partition<'_>>)>, Error> {
    let whole = || match fs::look(disk)? {
        Content::Unknown => Ok(None),
        _ => Ok(Some(vec![(disk, None)])),
    };
    // A boot sector of a FAT file system looks like a partition table, and what was there before one can be there still.
    let table = table::partitions(disk);
    let is_gpt = table
        .as_ref()
        .is_ok_and(|t| t.as_ref().is_some_and(|t| t[..].iter().any(|p| p.partuuid.len() == 36)));
    if !is_gpt && let Some(whole) = whole()? {
        return Ok(whole);
    }
    let partitions = table?.ok_or(Error::Nothing)?;
    Ok(partitions.into_iter().map(|partition| (partition.area, Some(partition))).collect())
}

/// A file that `entry` names: of its own file system, of another where that is mounted, or of one mounted at `/boot`.
fn read(
    systems: &[&dyn FileSystem],
    own: usize,
    entry: &Entry,
    path: &str,
    limit: u64,
) -> Result<Vec<u8>, Error> {
    // GRUB's `(hd0,gpt1)/vmlinuz`.
    let bare = path.strip_prefix('(').and_then(|path| path.split_once(')')).map_or(path, |(_, path)| path);
    let others = systems.iter().enumerate().filter(|(index, _)| *index != own).map(|(_, system)| system);
    for path in [Some(bare), bare.strip_prefix("/boot")].into_iter().flatten() {
        for system in std::iter::once(&systems[own]).chain(others.clone()) {
            if let Some(bytes) = system.read(path, limit)? {
                return Ok(bytes);
            }
        }
    }
    Err(Error::Missing { title: entry.title.clone(), path: path.to_owned() })
}

/// The root: what its partition's type says, else what looks like one.
fn root<'p, 'a>(places: &'p [Place<'a>]) -> Result<Option<&'p Place<'a>>, Error> {
    let is_root = |place: &&Place<'_>| place.partition.as_ref().is_some_and(|p| p.purpose == Purpose::Root);
    if let Some(place) = places.iter().find(is_root) {
        return Ok(Some(place));
    }
    for place in places.iter().filter(|place| place.fs.kind() == Kind::Ext4) {
        if place.fs.is_directory("/etc")? && place.fs.is_directory("/usr")? {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// How a kernel finds it: by the file system's UUID it is found by an initrd only.
fn root_argument(place: &Place<'_>, initrd: bool) -> String {
    match &place.partition {
        _ if initrd => format!("root=UUID={}", place.fs.uuid()),
        Some(partition) => format!("root=PARTUUID={}", partition.partuuid),
        None => "root=/dev/vda".to_owned(),
    }
}

/// A file of a FAT file system, for tests of what makes one.
#[cfg(test)]
pub(crate) fn file_of_fat(image: &Vec<u8>, path: &str) -> Option<Vec<u8>> {
    let source = Source::new(image, image.len() as u64);
    fat::Fat::open(source.whole()).unwrap().read(path, FILES_MAX).unwrap()
}
