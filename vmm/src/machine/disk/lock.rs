//! The lock of a disk: one writer, or any number of readers, among all who look at locks.
//!
//! They are those of QEMU, which locks single bytes for reading, and asks which others have: one for each thing that it does with the
//! file, and one for each that others may not. So its readers go beside ours, and its writers do not. A writer of ours locks all there is.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::DiskError;
use crate::sys::{Bytes, is_locked, lock_open_file};

/// From the start to the end.
const WHOLE: Bytes = (0, 0);
/// A reader reads (100), and nobody may write (201) or change the size (203) meanwhile.
const READER: [Bytes; 3] = [(100, 1), (201, 1), (203, 1)];
/// Who writes, and who changes the size.
const WRITERS: [Bytes; 2] = [(101, 1), (103, 1)];

/// Locks the open file, for as long as it is open.
///
/// # Errors
/// Somebody else has it. On a file system without locks, that is said, and nothing is locked.
pub(super) fn lock(file: &File, writes: bool, path: &Path) -> Result<(), DiskError> {
    let until = Instant::now() + PATIENCE;
    let in_use = |holder| DiskError::InUse { path: path.to_path_buf(), holder, writes };
    let mut refused = false;
    loop {
        match try_lock(file, writes) {
            Ok(true) => return Ok(()),
            // The search takes a while on a large host: once at first, for who has it for long, and once for who came late.
            Ok(false) if !refused => {
                refused = true;
                if let Ok(holder @ Some(_)) = holder(file, writes) {
                    return Err(in_use(holder));
                }
            }
            Ok(false) if Instant::now() > until => {
                return Err(in_use(holder(file, writes).unwrap_or_default()));
            }
            Ok(false) => {}
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

/// Locks first and looks then, as all do: of two at once, one sees the other.
fn try_lock(file: &File, writes: bool) -> io::Result<bool> {
    if writes {
        return lock_open_file(file, true, WHOLE);
    }
    for byte in READER {
        if !lock_open_file(file, false, byte)? {
            return Ok(false);
        }
    }
    for byte in WRITERS {
        if is_locked(file, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A process that has the file locked against such a one, if we may look into it: its number and command line.
fn holder(file: &File, writes: bool) -> io::Result<Option<String>> {
    let (device, inode) = (file.metadata()?.dev(), file.metadata()?.ino());
    let is_it =
        |fd: &PathBuf| fs::metadata(fd).is_ok_and(|found| (found.dev(), found.ino()) == (device, inode));
    let own = std::process::id().to_string();
    for process in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|c| c.is_ascii_digit())) else {
            continue;
        };
        let descriptors = fs::read_dir(process.path().join("fdinfo"));
        let mut descriptors = descriptors.into_iter().flatten().filter_map(Result::ok);
        // What has no such lock is not asked which file it is: its file system may not answer.
        let has_it = |info: fs::DirEntry| {
            let text = fs::read_to_string(info.path());
            text.is_ok_and(|text| text.lines().any(|line| excludes(line, inode, writes)))
                && is_it(&process.path().join("fd").join(info.file_name()))
        };
        if pid != own && descriptors.any(has_it) {
            let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = command(&words);
            return Ok(Some(format!("process {pid} ({command})")));
        }
    }
    Ok(None)
}

/// Whether a line of `/proc/PID/fdinfo/FD` is a lock of the file of that number that a writer, or a reader, does not go beside:
/// `lock: 1: OFDLCK ADVISORY WRITE -1 fe:01:1234 0 EOF`.
fn excludes(line: &str, inode: u64, writes: bool) -> bool {
    let words: Vec<_> = line.split_whitespace().collect();
    let ["lock:", _, _, _, mode, _, file, start, end] = words[..] else { return false };
    let number = |text: &str| text.parse::<i64>().ok();
    let of_a_writer = WRITERS.iter().any(|(byte, _)| {
        number(start).is_some_and(|start| start <= *byte) && number(end).is_none_or(|end| *byte <= end)
    });
    file.rsplit(':').next() == Some(&inode.to_string()) && (writes || mode == "WRITE" || of_a_writer)
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
    fn a_reader_goes_beside_a_qemu_that_reads_and_not_beside_one_that_writes() {
        let path = std::env::temp_dir().join(format!("wirevm-lock-qemu-{}", std::process::id()));
        fs::write(&path, "x").unwrap();
        let open = || fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // All of QEMU's are locks of a reader.
        let qemu = |bytes: &[i64]| {
            let file = open();
            bytes.iter().for_each(|byte| assert!(lock_open_file(&file, false, (*byte, 1)).unwrap()));
            file
        };
        let may = |file: &File, bytes: &[i64]| bytes.iter().all(|byte| !is_locked(file, (*byte, 1)).unwrap());
        // What it does, and what others may not; and what it asks for then.
        let (writer, others_of_writer) = ([100, 101, 201, 203], [101, 103, 200, 201]);
        let (reader, others_of_reader) = ([100, 201, 203], [101, 103, 200]);
        for resizes in [101, 103] {
            let other = qemu(&[100, resizes]);
            assert!(matches!(lock(&open(), false, &path), Err(DiskError::InUse { writes: false, .. })));
            drop(other);
        }
        let other = qemu(&writer);
        assert!(lock(&open(), false, &path).is_err() && lock(&open(), true, &path).is_err());
        drop(other);

        let other = qemu(&reader);
        let ours = open();
        lock(&ours, false, &path).unwrap();
        assert!(lock(&open(), true, &path).is_err());
        assert!(may(&other, &others_of_reader) && !may(&qemu(&writer), &others_of_writer));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_lock_is_known_by_its_line() {
        let write = "lock:\t1: OFDLCK  ADVISORY  WRITE -1 fe:01:1234 0 EOF";
        assert!(excludes(write, 1234, true) && excludes(write, 1234, false) && !excludes(write, 234, true));
        for (bytes, reader) in [("100 100", false), ("100 101", true), ("103 103", true), ("201 203", false)]
        {
            let read = format!("lock:\t1: OFDLCK  ADVISORY  READ -1 fe:01:1234 {bytes}");
            assert_eq!((excludes(&read, 1234, true), excludes(&read, 1234, false)), (true, reader));
        }
        assert!(!excludes("pos:\t1234", 1234, true));
    }

    #[test]
    fn a_command_line_is_a_line() {
        assert_eq!(command(b"wirevm\0run\0--name\0a\nb\0"), "wirevm run --name a b");
        assert_eq!(command(&[b'x'; 200]).len(), 103);
    }
}
