//! The file systems that each Linux has, and directories of the host.

use std::fs::{DirBuilder, create_dir_all};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount, unmount};
use wirevm_agent::config::Share;

/// Directory, type, options, flags.
const KERNEL: [(&str, &str, &str, MountFlags); 8] = [
    ("dev", "devtmpfs", "mode=0755", MountFlags::NOSUID),
    ("proc", "proc", "", NOTHING_RUNS),
    ("sys", "sysfs", "", NOTHING_RUNS),
    ("sys/fs/cgroup", "cgroup2", "", NOTHING_RUNS),
    ("dev/pts", "devpts", "mode=0620,ptmxmode=0666,gid=5", MountFlags::NOSUID.union(MountFlags::NOEXEC)),
    ("dev/shm", "tmpfs", "mode=1777", MountFlags::NOSUID.union(MountFlags::NODEV)),
    ("run", "tmpfs", "mode=0755", MountFlags::NOSUID.union(MountFlags::NODEV)),
    ("tmp", "tmpfs", "mode=1777", MountFlags::NOSUID.union(MountFlags::NODEV)),
];

const NOTHING_RUNS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Mounts all of these below `root`, and says what does not go: a guest without some of them may do.
pub(crate) fn kernel_file_systems(root: &Path) -> Vec<String> {
    let mut failed = Vec::new();
    for (directory, kind, options, flags) in KERNEL {
        let path = root.join(directory);
        let _ = DirBuilder::new().recursive(true).mode(0o755).create(&path);
        let options = std::ffi::CString::new(options).ok();
        match mount(kind, &path, kind, flags, options.as_deref()) {
            // The kernel has mounted it.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(_) if kind == "devtmpfs" => failed.extend(device_nodes(&path)),
            Err(why) => failed.push(format!("cannot mount {kind} at {}: {why}", path.display())),
        }
    }
    let dev = root.join("dev");
    for (name, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        // Those that are there stay.
        let _ = symlink(to, dev.join(name));
    }
    failed
}

/// The devices without which little works, where the kernel makes none.
fn device_nodes(dev: &Path) -> Option<String> {
    let _ = mount("tmpfs", dev, "tmpfs", MountFlags::NOSUID, Some(c"mode=0755"));
    let mut failed = None;
    for (name, major, minor, mode) in [
        ("null", 1, 3, 0o666),
        ("zero", 1, 5, 0o666),
        ("full", 1, 7, 0o666),
        ("random", 1, 8, 0o666),
        ("urandom", 1, 9, 0o666),
        ("kmsg", 1, 11, 0o600),
        ("tty", 5, 0, 0o666),
        ("console", 5, 1, 0o600),
    ] {
        let node = dev.join(name);
        let device = rustix::fs::makedev(major, minor);
        match mknodat(rustix::fs::CWD, &node, FileType::CharacterDevice, Mode::from_raw_mode(mode), device) {
            Ok(()) | Err(Errno::EXIST) => {
                let _ = rustix::fs::chmod(&node, Mode::from_raw_mode(mode));
            }
            Err(why) => failed = Some(format!("cannot make {}: {why}", node.display())),
        }
    }
    failed
}

/// Mounts what the host shares, and says what does not go.
pub(crate) fn shares(shares: &[Share]) -> Vec<String> {
    let mut failed = Vec::new();
    for Share { tag, directory, read_only } in shares {
        // Absolute, whatever it begins with.
        let path: PathBuf = Path::new("/").join(directory);
        let _ = create_dir_all(&path);
        let flags = if *read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        if let Err(why) = mount(tag.as_os_str(), &path, "virtiofs", flags | MountFlags::NODEV, None) {
            failed.push(format!(
                "cannot mount the host's {} at {}: {why}",
                Path::new(tag).display(),
                path.display()
            ));
        }
    }
    failed
}

/// Leaves every file system in order, before the guest ends: what was written is on its disk.
pub(crate) fn finish() {
    let mounted = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // Those on top first. Names with blanks are escaped, and stay for the sync that was.
    for path in mounted.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if path != "/" && !["/proc", "/sys", "/dev"].iter().any(|kept| path.starts_with(kept)) {
            let _ = unmount(path, rustix::mount::UnmountFlags::empty());
        }
    }
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
}
