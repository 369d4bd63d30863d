//! The lock of a disk: one writer, or any number of readers, among all who look at locks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::DiskError;
use crate::sys;

/// Locks the open file, for as long as it is open.
///
/// # Errors
/// Somebody else has it. On a file system without locks, that is said, and nothing is locked.
pub(super) fn lock(file: &File, writes: bool, path: &Path) -> Result<(), DiskError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match sys::lock_open_file(file, writes) {
            Ok(true) => return Ok(()),
            Ok(false) => {
                let holder = holder(file).unwrap_or_default();
                if holder.is_some() || Instant::now() > until {
                    return Err(DiskError::InUse { path: path.to_path_buf(), holder, writes });
                }
            }
            Err(error) => {
                log::warn!(
                    "cannot lock the disk {}, so that another guest may write it too: {error}",
                    path.display()
                );
                return Ok(());
            }
        }
        sleep(Duration::from_millis(10));
    }
}

/// How long a lock may outlive its process: the kernel lets go of the files of a ring (io_uring) a moment after the process is gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// A process that has the file locked, if it is one that we may look into: its number and command line.
fn holder(file: &File) -> io::Result<Option<String>> {
    let (device, inode) = (file.metadata()?.dev(), file.metadata()?.ino());
    let is_it =
        |fd: &PathBuf| fs::metadata(fd).is_ok_and(|found| (found.dev(), found.ino()) == (device, inode));
    let own = std::process::id().to_string();
    for process in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|c| c.is_ascii_digit())) else {
            continue;
        };
        let descriptors = fs::read_dir(process.path().join("fd"));
        let descriptors = descriptors.into_iter().flatten().filter_map(Result::ok);
        let has_lock = |fd: &PathBuf| {
            let info = process.path().join("fdinfo").join(fd.file_name().unwrap_or_default());
            fs::read_to_string(info).is_ok_and(|info| info.contains("\nlock:"))
        };
        if pid != own && descriptors.map(|fd| fd.path()).any(|fd| is_it(&fd) && has_lock(&fd)) {
            let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = command(&words);
            return Ok(Some(format!("process {pid} ({command})")));
        }
    }
    Ok(None)
}

/// The words of a command line, in a line of bounded length that any terminal takes.
fn command(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    let text = text.trim_end_matches('\0');
    let mut line: String = text.chars().take(100).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(100).is_some() {
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_file_has_one_writer_or_many_readers() {
        let path = std::env::temp_dir().join(format!("wirevm-lock-{}", std::process::id()));
        fs::write(&path, "x").unwrap();
        let open = || fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (one, other, third) = (open(), open(), open());
        lock(&one, false, &path).unwrap();
        lock(&other, false, &path).unwrap();
        let refused = lock(&third, true, &path).unwrap_err();
        assert!(matches!(&refused, DiskError::InUse { holder: None, writes: true, .. }), "{refused}");
        drop((one, other));
        lock(&third, true, &path).unwrap();
        assert!(matches!(lock(&open(), false, &path), Err(DiskError::InUse { writes: false, .. })));
        // The lock is the open file's, whoever has it.
        let copy = third.try_clone().unwrap();
        assert!(copy.as_raw_fd() != third.as_raw_fd());
        drop(third);
        assert!(lock(&open(), true, &path).is_err());
        drop(copy);
        lock(&open(), true, &path).unwrap();
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_command_line_is_a_line() {
        assert_eq!(command(b"wirevm\0run\0--name\0a\nb\0"), "wirevm run --name a b");
        assert_eq!(command(&[b'x'; 200]).len(), 103);
    }
}
