//! Disks: the user's files and block devices, opened and locked before the machine gives its paths up.
//!
//! **Invariant: a file that one guest writes has no other guest.** Its lock is that of the open file, so that it holds as long as the
//! guest's device, whatever becomes of processes. What else on the host opens the file without a look at locks is not held off.

mod error;
mod format;
mod lock;
mod overlay;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use devices::virtio::block::{self, BlockDeviceConfig, Medium, VirtioBlock};
use rustix::fs::{
    AtFlags, FallocateFlags, MemfdFlags, OFlags, StatxFlags, fallocate, fcntl_getfl, fcntl_setfl, statx,
};
use rustix::fs::{ioctl_blkpbszget, ioctl_blksszget, memfd_create};
use rustix::io::Errno;
use vmm::config::DiskConfig;

pub(crate) use self::error::DiskError;

/// The least block.
const SECTOR: u32 = block::SECTOR as u32;
/// The unit in which files are fast: a page, and a block of most file systems.
const PAGE: u32 = 4096;

/// A disk, opened: nothing of it is read by path any more.
#[derive(Debug)]
pub(crate) struct Disk {
    medium: Medium,
    config: DiskConfig,
    number: usize,
}

impl Disk {
    /// Opens what `configs` name.
    ///
    /// # Errors
    /// One of them is no disk, or cannot be had.
    pub(crate) fn open_all(configs: &[DiskConfig]) -> Result<Vec<Self>, DiskError> {
        let mut disks: Vec<Self> = Vec::with_capacity(configs.len());
        for (number, config) in configs.iter().enumerate() {
            let (path, file, kind) = open(config)?;
            let same = |disk: &&Self| {
                same_file(&disk.medium.file, &file) && (disk.config.writes() || config.writes())
            };
            if let Some(first) = disks.iter().find(same) {
                return Err(DiskError::Twice { path, first: first.number, second: number });
            }
            let medium = medium(config, path, file, kind)?;
            disks.push(Self { medium, config: config.clone(), number });
        }
        Ok(disks)
    }

    /// The disk behind those that `configs` name, with `image` in memory, which no guest can write.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn in_memory(configs: &[DiskConfig], image: &[u8]) -> io::Result<Self> {
        let file = File::from(memfd_create("seed", MemfdFlags::CLOEXEC)?);
        file.write_all_at(image, 0)?;
        let medium = Medium {
            file,
            bytes: image.len() as u64,
            read_only: true,
            overlay: None,
            direct: None,
            logical_block: SECTOR,
            physical_block: PAGE,
            discards: false,
        };
        Ok(Self { medium, config: DiskConfig::new("seed"), number: configs.len() })
    }

    /// Its descriptors.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.medium.file), self.medium.overlay.as_ref()].into_iter().flatten().map(AsFd::as_fd)
    }

    /// The device that the guest sees. Its threads are born here.
    ///
    /// # Errors
    /// There are no descriptors or no threads left.
    pub(crate) fn device(self) -> io::Result<VirtioBlock> {
        let Self { medium, config, number } = self;
        let DiskConfig { serial, queues, .. } = config;
        let (name, serial) = (format!("blk{number}"), serial.unwrap_or_default());
        VirtioBlock::new(BlockDeviceConfig { name, serial, queues, async_io: true }, medium)
    }
}

/// What a disk is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    Device,
}

fn open(config: &DiskConfig) -> Result<(PathBuf, File, Kind), DiskError> {
    let (path, writes) = (config.file.clone(), config.writes());
    // Looked at before it is opened: to open a device may do something.
    let kind = match fs::metadata(&path) {
        Ok(metadata) => metadata.file_type(),
        Err(source) => return Err(DiskError::Open { path, writes, source }),
    };
    let kind = match () {
        () if kind.is_file() => Kind::Regular,
        () if kind.is_block_device() => Kind::Device,
        () => {
            let kind = match () {
                () if kind.is_dir() => "a directory",
                () if kind.is_socket() => "a socket",
                () if kind.is_fifo() => "a pipe",
                () => "a character device",
            };
            return Err(DiskError::NotADisk { path, kind });
        }
    };
    // Of a device that is mounted or a part of something else, the kernel says so then.
    let exclusive = if kind == Kind::Device && writes { libc::O_EXCL } else { 0 };
    let opened = OpenOptions::new().read(true).write(writes).custom_flags(exclusive).open(&path);
    match opened {
        Ok(file) => Ok((path, file, kind)),
        Err(source) if writes => match (Errno::from_io_error(&source), File::open(&path)) {
            (Some(Errno::BUSY), _) => Err(DiskError::Busy { path, source }),
            (_, Ok(_)) => Err(DiskError::Write { path, source }),
            (_, Err(_)) => Err(DiskError::Open { path, writes, source }),
        },
        Err(source) => Err(DiskError::Open { path, writes, source }),
    }
}

fn same_file(one: &File, other: &File) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// What the guest's disk is on, once the file is found to be one.
fn medium(config: &DiskConfig, path: PathBuf, mut file: File, kind: Kind) -> Result<Medium, DiskError> {
    let writes = config.writes();
    let bytes = file.seek(SeekFrom::End(0)).map_err(|source| DiskError::Open {
        path: path.clone(),
        writes,
        source,
    })?;
    if bytes == 0 {
        return Err(DiskError::Empty { path, kind, writes });
    }
    if !config.raw
        && let Some(format) = format::of(&file, bytes)
    {
        return Err(DiskError::Format { path, format });
    }
    lock::lock(&file, writes, &path)?;
    let mut logical = match kind {
        Kind::Device => ioctl_blksszget(&file).unwrap_or(SECTOR),
        Kind::Regular => SECTOR,
    };
    let mut direct = None;
    if config.direct {
        let (memory, offset) =
            direct_io(&file).map_err(|source| DiskError::Direct { path: path.clone(), source })?;
        direct = Some(memory);
        logical = logical.max(offset);
    }
    if !bytes.is_multiple_of(logical.into()) {
        return Err(DiskError::Size { path, bytes, logical, kind });
    }
    let physical = match kind {
        Kind::Device => ioctl_blkpbszget(&file).unwrap_or(logical),
        Kind::Regular => PAGE,
    };
    let overlay = match config.snapshot {
        true => Some(overlay::make(&path, kind, bytes)?),
        false => None,
    };
    let discards = takes_discards(config, (&file, kind), overlay.as_ref(), bytes);
    Ok(Medium {
        file,
        bytes,
        read_only: config.read_only,
        overlay,
        direct,
        logical_block: logical,
        physical_block: physical.max(logical),
        discards,
    })
}

/// Has the file read and written without the host's cache: the alignment of memory for that, and of places in the file.
fn direct_io(file: &File) -> io::Result<(u32, u32)> {
    fcntl_setfl(file, fcntl_getfl(file)? | OFlags::DIRECT)?;
    let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    if let Ok(found) = found
        && StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::DIOALIGN)
    {
        return match (found.stx_dio_mem_align, found.stx_dio_offset_align) {
            (0, _) | (_, 0) => Err(Errno::INVAL.into()),
            (memory, offset) => Ok((memory, offset.max(SECTOR))),
        };
    }
    // A kernel before Linux 6.1 says it by refusing what is not.
    let mut room = vec![0; 2 * PAGE as usize];
    let start = room.as_ptr().addr().next_multiple_of(PAGE as usize) - room.as_ptr().addr();
    let sector = &mut room[start..][..SECTOR as usize];
    let unit = if file.read_at(sector, SECTOR.into()).is_ok() { SECTOR } else { PAGE };
    Ok((unit, unit))
}

/// Whether what the guest discards can be given back to the host: of the file that takes what it writes.
fn takes_discards(config: &DiskConfig, disk: (&File, Kind), overlay: Option<&File>, bytes: u64) -> bool {
    match overlay {
        Some(overlay) => discards(overlay, Kind::Regular, bytes),
        None => config.writes() && discards(disk.0, disk.1, bytes),
    }
}

/// Whether parts of the file can be given back to the host.
fn discards(file: &File, kind: Kind, bytes: u64) -> bool {
    match kind {
        // Behind the end there is nothing to lose.
        Kind::Regular => {
            let behind = bytes.next_multiple_of(PAGE.into());
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, hole, behind, PAGE.into()).is_ok()
        }
        // As zeroes without a write, which is how it is asked for.
        Kind::Device => ["discard_max_bytes", "write_zeroes_max_bytes"]
            .iter()
            .all(|limit| queue_limit(file, limit).is_some_and(|bytes| bytes > 0)),
    }
}

/// A limit of a block device, or of the one that it is a partition of.
fn queue_limit(file: &File, limit: &str) -> Option<u64> {
    let device = file.metadata().ok()?.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let device = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
    let read = |place: &str| fs::read_to_string(device.join(place).join(limit)).ok();
    read("queue").or_else(|| read("../queue"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::fs::{SealFlags, fcntl_add_seals};

    use super::*;

    fn sparse(bytes: u64) -> File {
        let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
        file.set_len(bytes).unwrap();
        file
    }

    #[test]
    fn what_a_snapshot_takes_back_is_what_its_own_file_can() {
        let (good, bad) = (sparse(4096), sparse(4096));
        // A file without holes.
        fcntl_add_seals(&bad, SealFlags::WRITE).unwrap();
        let snapshot = DiskConfig { snapshot: true, ..DiskConfig::new("disk") };
        let plain = DiskConfig::new("disk");
        let read_only = DiskConfig { read_only: true, ..DiskConfig::new("disk") };
        for (config, file, overlay, can) in [
            (&snapshot, &bad, Some(&good), true),
            (&snapshot, &good, Some(&bad), false),
            (&plain, &good, None, true),
            (&plain, &bad, None, false),
            (&read_only, &good, None, false),
        ] {
            assert_eq!(takes_discards(config, (file, Kind::Regular), overlay, 4096), can, "{config:?}");
        }
    }

    #[test]
    fn a_snapshot_has_a_longest_disk() {
        for (bytes, fits) in [(overlay::BYTES_MAX + 512, false), (1 << 20, true)] {
            let file = sparse(bytes);
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let config = DiskConfig { snapshot: true, ..DiskConfig::new(path) };
            match Disk::open_all(&[config]) {
                Ok(_) => assert!(fits, "{bytes}"),
                Err(error) => {
                    assert!(!fits && error.to_string().contains("takes one of 64T"), "{error}");
                    assert!(error.remedy().contains("without snapshot=on"));
                }
            }
        }
    }
}
