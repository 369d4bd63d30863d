//! The guest's root: found, mounted, and entered, in place of the initramfs.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{StatFs, statfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use wirevm_agent::config::Root;

use crate::{log, mounts};

/// How long a block device may take to appear.
const DEVICE: Duration = Duration::from_secs(10);

/// Where the root is mounted, in the initramfs.
const ROOT: &str = "/.wirevm/root";
/// What is below it, and what is changed of that, where changes are kept in memory.
const LOWER: &str = "/.wirevm/lower";
const CHANGES: &str = "/.wirevm/changes";

/// Makes `root` the root. Says what it fails of, as the host is told.
pub(crate) fn enter(root: &Root) -> Result<(), String> {
    let (source, fstype, overlay) = match root {
        Root::Initramfs => return Ok(()),
        Root::Block { serial, fstype, overlay } => (wait_for_device(serial)?, fstype.as_os_str(), *overlay),
        Root::VirtioFs { tag, overlay } => (PathBuf::from(tag), OsStr::new("virtiofs"), *overlay),
    };
    make(ROOT)?;
    match overlay {
        false => {
            mounted(&source, ROOT, fstype, MountFlags::empty(), None).or_else(|why| {
                // A disk that is read-only, or a file system that always is.
                mounted(&source, ROOT, fstype, MountFlags::RDONLY, None).map_err(|_| why)
            })?;
        }
        true => {
            make(LOWER)?;
            make(CHANGES)?;
            mounted(&source, LOWER, fstype, MountFlags::RDONLY, None)?;
            mounted(
                Path::new("tmpfs"),
                CHANGES,
                OsStr::new("tmpfs"),
                MountFlags::empty(),
                Some("mode=0755"),
            )?;
            make(&format!("{CHANGES}/upper"))?;
            make(&format!("{CHANGES}/work"))?;
            let options = format!("lowerdir={LOWER},upperdir={CHANGES}/upper,workdir={CHANGES}/work");
            let none = Path::new("overlay");
            mounted(none, ROOT, OsStr::new("overlay"), MountFlags::empty(), Some(&options))?;
        }
    }
    switch()
}

fn make(directory: &str) -> Result<(), String> {
    fs::create_dir_all(directory).map_err(|why| format!("cannot make {directory}: {why}"))
}

fn mounted(
    source: &Path,
    to: &str,
    fstype: &OsStr,
    flags: MountFlags,
    options: Option<&str>,
) -> Result<(), String> {
    let options = options.and_then(|options| CString::new(options).ok());
    mount(source, to, fstype, flags, options.as_deref()).map_err(|why| {
        let kind = Path::new(fstype).display();
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let is_known = known
            .lines()
            .any(|line| line.split('\t').next_back().map(str::as_bytes) == Some(fstype.as_bytes()));
        let hint = if is_known { String::new() } else { format!(": this kernel knows no {kind}") };
        format!("cannot mount {} ({kind}) as the root{hint}: {why}", source.display())
    })
}

/// The node of the block device with this serial, once it is there.
fn wait_for_device(serial: &OsStr) -> Result<PathBuf, String> {
    let step = Duration::from_millis(10);
    for _ in 0..=DEVICE.as_millis() / step.as_millis() {
        if let Some(device) = find_device(Path::new("/sys/block"), serial) {
            return Ok(Path::new("/dev").join(device));
        }
        std::thread::sleep(step);
    }
    Err(format!("there is no disk with the serial {}", Path::new(serial).display()))
}

fn find_device(devices: &Path, serial: &OsStr) -> Option<std::ffi::OsString> {
    let devices = fs::read_dir(devices).ok()?.flatten();
    let has = |device: &fs::DirEntry| {
        // virtio-blk has it here, SCSI and NVMe disks there.
        ["serial", "device/serial"].iter().any(|file| {
            fs::read(device.path().join(file)).is_ok_and(|found| found.trim_ascii() == serial.as_bytes())
        })
    };
    devices.into_iter().find(has).map(|device| device.file_name())
}

/// Frees the initramfs, and moves the new root over it, with the kernel's file systems in it.
fn switch() -> Result<(), String> {
    mounts::kernel_file_systems(Path::new(ROOT)).iter().for_each(|why| log(format_args!("{why}")));
    for directory in ["dev", "sys", "proc", "run", "tmp"] {
        let _ = unmount(Path::new("/").join(directory), UnmountFlags::DETACH);
    }
    if let (Ok(root), true) = (fs::metadata("/"), statfs("/").is_ok_and(|fs| is_memory(&fs))) {
        free(Path::new("/"), root.dev());
    }
    let failed = |what: &'static str| move |why| format!("cannot {what} the root: {why}");
    std::env::set_current_dir(ROOT).map_err(failed("enter"))?;
    mount_move(".", "/").map_err(|why| failed("move")(why.into()))?;
    std::os::unix::fs::chroot(".").map_err(failed("change"))?;
    std::env::set_current_dir("/").map_err(failed("enter"))
}

/// A ramfs or a tmpfs, as an initramfs is.
fn is_memory(fs: &StatFs) -> bool {
    matches!(fs.f_type as u32, 0x8584_58f6 | 0x0102_1994)
}

/// Removes all below `directory` that is on the file system `device`.
fn free(directory: &Path, device: u64) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.metadata() {
            Ok(found) if found.dev() != device => {}
            Ok(found) if found.is_dir() => {
                free(&path, device);
                let _ = fs::remove_dir(&path);
            }
            _ => drop(fs::remove_file(&path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_serial() {
        let sys = std::env::temp_dir().join(format!("wirevm-agent-{}", std::process::id()));
        for (device, file, serial) in
            [("vda", "serial", "other"), ("vdb", "serial", "root \n"), ("sda", "device/serial", "scsi")]
        {
            let file = sys.join(device).join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, serial).unwrap();
        }
        let found = |serial: &str| find_device(&sys, OsStr::new(serial));
        assert_eq!(found("root"), Some("vdb".into()));
        assert_eq!(found("scsi"), Some("sda".into()));
        assert_eq!(found("roo"), None);
        fs::remove_dir_all(&sys).unwrap();
    }

    #[test]
    fn an_initramfs_is_freed_and_no_other_file_system() {
        let tree = std::env::temp_dir().join(format!("wirevm-agent-free-{}", std::process::id()));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/c"), "x").unwrap();
        std::os::unix::fs::symlink("/", tree.join("a/link")).unwrap();
        let device = fs::metadata(&tree).unwrap().dev();
        free(&tree, device + 1);
        assert!(tree.join("a/b/c").exists());
        free(&tree, device);
        assert_eq!(fs::read_dir(&tree).unwrap().count(), 0);
        assert!(Path::new("/").exists());
        fs::remove_dir(&tree).unwrap();
    }
}
