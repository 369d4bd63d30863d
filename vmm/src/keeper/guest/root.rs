//! Where a guest's root comes from: a file system that is made of an image, once for each image, or a directory as it is.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use boot::image::{Cache, Format, ImageConfig, Limits};
use boot::layout::HOLE_START;
use vmm::MachineConfig;
use vmm::config::{DiskConfig, GuestConfig, RootConfig, ShareConfig};
use wirevm_agent::config::{self as agent, Share};
use wirevm_agent::request::Command;

use super::drivers::Drivers;
use super::{Error, by_descriptor, command, host, memory_file};
use crate::keeper::virtiofsd::Virtiofsd;

/// A root.
pub(super) enum Root {
    /// An EROFS, on a disk of its own.
    Disk { file: File, config: ImageConfig },
    /// An archive, which the kernel unpacks into its memory.
    Initramfs { image: PathBuf, file: File, config: ImageConfig },
    /// A directory of the host, by virtio-fs.
    Directory(Directory),
}

/// A directory of the host that is a guest's root.
pub(super) struct Directory {
    /// Without symbolic links.
    path: PathBuf,
    /// Where a command begins there that is told nothing else.
    present: Option<PathBuf>,
    /// Directories in it that the guest may write to.
    writable: Vec<PathBuf>,
}

/// By which the agent finds the shares.
const ROOT_TAG: &str = "wirevm-root";
const WRITABLE_TAG: &str = "wirevm-rw";

/// What a shared directory takes.
const SHARE_MODULES: [&str; 2] = ["virtiofs", "overlay"];

/// By which the agent finds the root's disk.
const SERIAL: &str = "wirevm-root";

/// What an EROFS takes: it is read as it is needed, and what is written is in memory.
const DISK_MODULES: [&str; 3] = ["virtio_blk", "erofs", "overlay"];

impl Root {
    /// Makes it, or finds it in the cache. A kernel that may lack what an EROFS takes gets all of the image in memory.
    pub(super) fn make(guest: &GuestConfig, drivers: &Drivers) -> Result<Self, Error> {
        let image = match &guest.root {
            RootConfig::Directory(directory) => {
                // A directory that is gone is none to begin in.
                let present = std::env::current_dir().ok();
                return Ok(Self::Directory(Directory::open(directory, present, &guest.writable)?));
            }
            // As it is, where that can be: nothing is copied.
            RootConfig::Image(image)
                if is_plain_directory(image)
                    && Virtiofsd::find().is_ok()
                    && drivers.has(&SHARE_MODULES)? =>
            {
                return Ok(Self::Directory(Directory::open(image, None, &[])?));
            }
            RootConfig::Image(image) => image,
        };
        let format = if drivers.has(&DISK_MODULES)? { Format::Erofs } else { Format::Cpio };
        let boot::image::Root { file, config, cached } =
            boot::image::root(image, format, &Cache::of_user()?, Limits::default())?;
        log::info!("the guest's root is {}", if cached { "in the cache" } else { "made" });
        Ok(match format {
            Format::Erofs => Self::Disk { file, config },
            Format::Cpio => Self::Initramfs { image: image.clone(), file, config },
        })
    }

    /// The modules without which the guest does not find it.
    pub(super) fn modules(&self) -> &'static [&'static str] {
        match self {
            Self::Disk { .. } => &DISK_MODULES,
            Self::Initramfs { .. } => &[],
            Self::Directory(_) => &SHARE_MODULES,
        }
    }

    /// Whether it is not where the agent is.
    pub(super) fn is_apart(&self) -> bool {
        !matches!(self, Self::Initramfs { .. })
    }

    /// Where the agent finds it.
    pub(super) fn for_agent(&self) -> agent::Root {
        match self {
            Self::Disk { .. } => {
                agent::Root::Block { serial: SERIAL.into(), fstype: "erofs".into(), overlay: true }
            }
            Self::Initramfs { .. } => agent::Root::Initramfs,
            Self::Directory(_) => agent::Root::VirtioFs { tag: ROOT_TAG.into(), overlay: true },
        }
    }

    /// What is mounted in it.
    pub(super) fn shares_for_agent(&self) -> Vec<Share> {
        let Self::Directory(directory) = self else { return Vec::new() };
        let share = |(number, writable): (usize, &PathBuf)| Share {
            tag: format!("{WRITABLE_TAG}{number}").into(),
            directory: directory.in_guest(writable).into(),
            read_only: false,
        };
        directory.writable.iter().enumerate().map(share).collect()
    }

    /// What is to run in it.
    pub(super) fn command(&self, guest: &GuestConfig) -> Command {
        match self {
            Self::Disk { config, .. } | Self::Initramfs { config, .. } => command(guest, config),
            Self::Directory(directory) => {
                let command = command(guest, &ImageConfig::default());
                let present = directory.present.as_ref().map(|present| directory.in_guest(present).into());
                Command { cwd: command.cwd.or(present), ..command }
            }
        }
    }

    /// The initrd: `archive`, with the root before it where that is in memory, for a guest with `memory` bytes.
    ///
    /// # Errors
    /// It would not fit: nothing is copied then, as few bytes of an image can stand for any number.
    pub(super) fn initrd(&self, archive: &[u8], memory: u64) -> Result<File, Error> {
        let mut archive = archive;
        match self {
            Self::Disk { .. } | Self::Directory(_) => memory_file(&mut [&mut archive]),
            Self::Initramfs { image, file, .. } => {
                let len = file.metadata().map_err(host("read the guest's root"))?.len();
                let (size, room) = (len.saturating_add(archive.len() as u64), memory.min(HOLE_START));
                if size > room {
                    return Err(Error::ImageTooLarge { image: image.clone(), size, room });
                }
                let mut file = file.try_clone().map_err(host("read the guest's root"))?;
                memory_file(&mut [&mut Read::by_ref(&mut file), &mut archive])
            }
        }
    }

    /// Gives the machine the devices that it takes.
    pub(super) fn give(self, config: &mut MachineConfig, held: &mut Vec<File>) {
        match self {
            // Behind the user's own, which keep their names.
            Self::Disk { file, .. } => {
                config.disks.push(DiskConfig {
                    read_only: true,
                    raw: true,
                    serial: Some(SERIAL.to_owned()),
                    ..DiskConfig::new(by_descriptor(&file))
                });
                held.push(file);
            }
            Self::Initramfs { .. } => {}
            Self::Directory(Directory { path, writable, .. }) => {
                let share = |directory, tag, read_only| ShareConfig { directory, tag, read_only };
                config.shares.push(share(path, ROOT_TAG.to_owned(), true));
                let writable = writable.into_iter().enumerate();
                config.shares.extend(
                    writable.map(|(number, path)| share(path, format!("{WRITABLE_TAG}{number}"), false)),
                );
            }
        }
    }
}

/// Checks that no disk or share of the user's own has a name by which the agent finds what a root gives a machine.
///
/// # Errors
/// One has.
pub(super) fn refuse_reserved(config: &MachineConfig) -> Result<(), Error> {
    let reserved = |of, name: &str| Err(Error::Reserved { of, name: name.to_owned() });
    if config.disks.iter().any(is_roots_disk) {
        return reserved("disk", SERIAL);
    }
    match config.shares.iter().find(|share| is_roots_share(share)) {
        Some(share) => reserved("share", &share.tag),
        None => Ok(()),
    }
}

fn is_roots_disk(disk: &DiskConfig) -> bool {
    disk.serial.as_deref() == Some(SERIAL)
}

fn is_roots_share(share: &ShareConfig) -> bool {
    share.tag == ROOT_TAG || share.tag.starts_with(WRITABLE_TAG)
}

/// Takes out what a root has given a machine.
pub(super) fn forget(config: &mut MachineConfig) {
    config.disks.retain(|disk| !is_roots_disk(disk));
    config.shares.retain(|share| !is_roots_share(share));
}

impl Directory {
    fn open(path: &Path, present: Option<PathBuf>, writable: &[PathBuf]) -> Result<Self, Error> {
        let path = open_directory(path)?;
        let writable = writable.iter().map(|writable| {
            let writable = open_directory(writable)?;
            match writable.starts_with(&path) {
                true => Ok(writable),
                false => Err(Error::Outside { path: writable, root: path.clone() }),
            }
        });
        let writable = writable.collect::<Result<_, _>>()?;
        Ok(Self { present: present.filter(|present| present.starts_with(&path)), path, writable })
    }

    /// Where a path of the host is in the guest.
    fn in_guest(&self, path: &Path) -> PathBuf {
        Path::new("/").join(path.strip_prefix(&self.path).unwrap_or(path))
    }
}

/// The path of a directory that is there, without symbolic links.
fn open_directory(path: &Path) -> Result<PathBuf, Error> {
    let real = path.canonicalize().map_err(|source| Error::Directory { path: path.to_owned(), source })?;
    if real.is_dir() { Ok(real) } else { Err(Error::NotADirectory { path: real }) }
}

/// Whether it is a directory with a root's files, and not with an image's.
fn is_plain_directory(path: &Path) -> bool {
    path.is_dir()
        && !["oci-layout", "index.json", "manifest.json"].iter().any(|name| path.join(name).exists())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn an_image_larger_than_the_guests_memory_is_not_copied() {
        let sparse = |mib: u64| {
            let file = memory_file(&mut []).unwrap();
            file.set_len(mib << 20).unwrap();
            Root::Initramfs { image: "IMAGE".into(), file, config: ImageConfig::default() }
        };
        let mut made = Vec::new();
        let mut initrd = sparse(1).initrd(b"more", (1 << 20) + 4).unwrap();
        std::io::Seek::rewind(&mut initrd).unwrap();
        initrd.read_to_end(&mut made).unwrap();
        assert_eq!((made.len(), &made[1 << 20..]), ((1 << 20) + 4, &b"more"[..]));
        let error = sparse(1).initrd(b"more", (1 << 20) + 3).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unpacked, the image IMAGE has 1048580 bytes, and the guest's memory has room for 1048579"
        );
        assert!(error.remedy().unwrap().contains("--memory 192M"), "{:?}", error.remedy());
        // What no memory suffices for.
        let error = sparse(3073).initrd(b"", 1 << 40).unwrap_err();
        assert!(error.remedy().unwrap().contains("--memory does not help"), "{:?}", error.remedy());
    }

    #[test]
    fn names_that_the_agent_looks_for_are_the_roots() {
        let with = |disk: &str, share: &str| {
            let mut config = MachineConfig::new("kernel");
            config.disks.extend(disk.parse());
            config.shares.extend(share.parse());
            assert_eq!(config.disks.len() + config.shares.len(), 2);
            refuse_reserved(&config).map_err(|error| (error.to_string(), error.remedy().unwrap()))
        };
        with("d,serial=wirevm-root2", "/d:mine").unwrap();
        let (text, remedy) = with("d,serial=wirevm-root", "/d:mine").unwrap_err();
        assert!(text.contains("wirevm-root, which a disk of") && remedy.contains("serial="), "{text}");
        for tag in ["wirevm-root", "wirevm-rw", "wirevm-rw0"] {
            let (text, remedy) = with("d", &format!("/d:{tag}")).unwrap_err();
            assert!(text.contains(&format!("{tag}, which a share")) && remedy.contains(":TAG"), "{text}");
        }
    }
}
