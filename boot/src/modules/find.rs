//! A kernel on this machine, for when none is given.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;

/// The kernel that this machine runs, or else the newest in `/boot`: the first that can be read.
///
/// # Errors
/// There is none, or none that this user can read.
pub fn default_kernel() -> Result<PathBuf, Error> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    default_kernel_in(Path::new("/"), release.trim())
}

fn default_kernel_in(root: &Path, release: &str) -> Result<PathBuf, Error> {
    let boot = root.join("boot");
    let mut candidates = vec![
        boot.join(format!("vmlinuz-{release}")),
        root.join("lib/modules").join(release).join("vmlinuz"),
        root.join("usr/lib/modules").join(release).join("vmlinuz"),
    ];
    let mut others: Vec<PathBuf> = fs::read_dir(&boot)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz"))
        .map(|entry| entry.path())
        .collect();
    others.sort_by_cached_key(|path| std::cmp::Reverse(sortable(path)));
    candidates.extend(others);
    let mut unreadable = None;
    for path in candidates {
        match File::open(&path).and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.is_file() => return Ok(path),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                unreadable.get_or_insert(Error::KernelUnreadable { path, source });
            }
            _ => {}
        }
    }
    Err(unreadable.unwrap_or(Error::NoKernel { release: release.into() }))
}

/// Names in the order of the numbers in them: 6.9 comes before 6.12. Those without a version (`vmlinuz.old`) come before all.
fn sortable(path: &Path) -> (bool, Vec<(String, u64)>) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut parts = Vec::new();
    let mut rest = &name[..];
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = rest[text..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |len| text + len);
        parts.push((rest[..text].to_owned(), rest[text..digits].parse().unwrap_or(0)));
        rest = &rest[digits..];
    }
    (name.starts_with("vmlinuz-"), parts)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::Directory;

    #[test]
    fn the_running_one_comes_first_then_the_newest() {
        let root = Directory::new();
        let find = || default_kernel_in(root.path(), "6.1.0-9-amd64");
        let error = find().unwrap_err();
        assert_eq!(
            error.to_string(),
            "no kernel is given, and there is none in /boot or /lib/modules/6.1.0-9-amd64"
        );
        assert!(error.remedy().contains("--kernel") && error.remedy().contains("linux-image-amd64"));
        for name in
            ["vmlinuz-6.1.0-10-amd64", "vmlinuz-6.9.1", "vmlinuz-6.12.3", "vmlinuz-5.20.9", "config-7.0"]
        {
            root.file(&format!("boot/{name}"), b"kernel");
        }
        assert_eq!(find().unwrap(), root.path().join("boot/vmlinuz-6.12.3"));
        root.file("lib/modules/6.1.0-9-amd64/vmlinuz", b"kernel");
        assert_eq!(find().unwrap(), root.path().join("lib/modules/6.1.0-9-amd64/vmlinuz"));
        root.file("boot/vmlinuz-6.1.0-9-amd64", b"kernel");
        assert_eq!(find().unwrap(), root.path().join("boot/vmlinuz-6.1.0-9-amd64"));
    }

    #[test]
    fn a_directory_is_no_kernel() {
        let root = Directory::new();
        root.file("boot/vmlinuz-1/x", b"a directory");
        assert!(matches!(default_kernel_in(root.path(), "1"), Err(Error::NoKernel { .. })));
        let path = root.file("boot/vmlinuz-0.9", b"kernel");
        assert_eq!(default_kernel_in(root.path(), "1").unwrap(), path);
    }

    /// By a file that not even root reads: it is for writing only.
    #[test]
    fn the_first_that_may_not_be_read_is_named_if_no_other_is_found() {
        let unreadable = Path::new("/proc/sys/net/ipv4/route/flush");
        let kind = File::open(unreadable).map_err(|error| error.kind());
        if kind.err() != Some(io::ErrorKind::PermissionDenied) {
            return eprintln!("skipped: {} is there for reading, or not at all", unreadable.display());
        }
        let root = Directory::new();
        let other = root.file("boot/vmlinuz-1", b"kernel");
        let running = root.path().join("boot/vmlinuz-2");
        std::os::unix::fs::symlink(unreadable, &running).unwrap();
        assert_eq!(default_kernel_in(root.path(), "2").unwrap(), other);
        fs::remove_file(other).unwrap();
        let error = default_kernel_in(root.path(), "2").unwrap_err();
        assert!(matches!(&error, Error::KernelUnreadable { path, .. } if *path == running), "{error}");
    }

    #[test]
    fn one_that_cannot_be_read_is_named() {
        let root = Directory::new();
        let path = root.file("boot/vmlinuz-1", b"kernel");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        if File::open(&path).is_ok() {
            return eprintln!("skipped: root reads every file");
        }
        let error = default_kernel_in(root.path(), "1").unwrap_err();
        assert!(matches!(error, Error::KernelUnreadable { .. }), "{error}");
        assert!(error.remedy().contains("chmod"));
    }
}
