//! The cache: file systems that were made of images, by the images' digests.
//!
//! ```text
//!           miss                 written, synced            linkat
//!  (none) --------> no name, ours ------------> no name ----------> NAME
//!     ^                  |  the process ends: it is gone              | its footer is wrong, or nobody wanted it for a month
//!     +------------------+--------------------------------------------+
//! ```
//!
//! An entry has its name only when it is whole. Its last bytes say how long it is, and what the image says of its command; one that says
//! otherwise is made again. While an entry is made, a file beside it is locked that only its user can open, so that two who want the same
//! make it once.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use serde_json::Value;

use super::config::ImageConfig;
use super::error::Error;
use super::sha256::Digest;
use super::span::{SPOOL, unnamed};

/// Of what is written here: with another format, entries have other names.
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"wirevm\x00\x01";
/// In bytes, of the footer's end, which has a fixed length: the magic, the length of the JSON before it, the entry's, a digest.
const FOOTER: usize = 56;
/// In bytes, of what an image says of its command.
const JSON_MAX: u64 = 1 << 20;
/// What the name of an entry's lock has after the entry's.
const LOCK: &str = ".lock";
/// How long an entry stays that nobody wants.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// A directory with file systems that were made of images.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// In `directory`, which is made where it is not there, for its user alone.
    ///
    /// # Errors
    /// It cannot be made, is another user's, or is a link: what lies where that leads is not the cache's to remove.
    pub fn at(directory: PathBuf) -> Result<Self, Error> {
        let failed = |source| Error::Cache { path: directory.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        let metadata = fs::symlink_metadata(&directory).map_err(failed)?;
        if metadata.is_symlink() {
            return Err(Error::CacheIsLink { path: directory });
        }
        // What lies here is a guest's root: nobody else may put anything there.
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
            return Err(Error::CacheNotOurs { path: directory });
        }
        Ok(Self { directory })
    }

    /// As [`at`](Self::at) the user's [`place`](Self::place).
    ///
    /// # Errors
    /// As [`at`](Self::at) and [`place`](Self::place).
    pub fn of_user() -> Result<Self, Error> {
        Self::at(Self::place()?)
    }

    /// Where the user's is, or would be: in `$XDG_CACHE_HOME/wirevm`; without that variable `/var/cache/wirevm` for root, and
    /// `~/.cache/wirevm` for others.
    ///
    /// # Errors
    /// There is no such place.
    pub fn place() -> Result<PathBuf, Error> {
        Self::place_of(|name| std::env::var_os(name), rustix::process::geteuid().is_root())
    }

    /// The same, by a user's environment.
    pub(super) fn place_of(
        variable: impl Fn(&str) -> Option<OsString>,
        is_root: bool,
    ) -> Result<PathBuf, Error> {
        let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let directory = match absolute("XDG_CACHE_HOME") {
            Some(directory) => directory,
            None if is_root => "/var/cache".into(),
            None => absolute("HOME").ok_or(Error::NoCache)?.join(".cache"),
        };
        Ok(directory.join("wirevm"))
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// An entry's name.
    pub(super) fn name(digest: Digest, format: &str) -> String {
        format!("{digest}-{VERSION}.{format}")
    }

    /// Waits until nobody else makes the entry `name`, and holds others off as long as the value lives. Whoever has to wait calls
    /// `waits` before.
    pub(super) fn lock(&self, name: &str, waits: impl Fn()) -> Result<Lock, Error> {
        let path = self.directory.join(format!("{name}{LOCK}"));
        // Once, however many go first.
        let told = Cell::new(false);
        let wait = || {
            if !told.replace(true) {
                waits();
            }
            true
        };
        loop {
            if let Some(lock) = Lock::take(&path, OFlags::CREATE, wait).map_err(|error| self.failed(error))? {
                return Ok(lock);
            }
        }
    }

    /// The entry of this name, where there is a whole one; `end` bytes of it come after the footer.
    pub(super) fn find(&self, name: &str, end: u64) -> Option<(File, ImageConfig)> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(self.directory.join(name), flags, Mode::empty()).ok()?);
        let config = read_footer(&file, end)?;
        // The time of the last use, by which old entries go.
        let _ = file.set_modified(SystemTime::now());
        Some((file, config))
    }

    /// A file without a name, to be filled.
    pub(super) fn file(&self) -> Result<File, Error> {
        unnamed(&self.directory).map_err(|source| self.failed(source))
    }

    /// Gives `file`, which is whole, its name. To be called under its [`lock`](Self::lock).
    pub(super) fn keep(&self, file: &File, name: &str) -> Result<(), Error> {
        file.sync_all().map_err(|source| self.failed(source))?;
        self.clean();
        let path = self.directory.join(name);
        // A broken one of this name.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.failed(error)),
            _ => {}
        }
        let by_fd = format!("/proc/self/fd/{}", file.as_raw_fd());
        match rustix::fs::linkat(CWD, by_fd, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
            // What had a name once and lost it, for want of O_TMPFILE, gets none again: it is not cached.
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed(error.into())),
        }
    }

    /// Removes of what is the cache's own what nobody wanted for long. Guests that use one keep it.
    fn clean(&self) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| is_ours(name)) else { continue };
            if name.ends_with(LOCK) {
                // Of one that was killed; it goes with the value.
                let _ = Lock::take(&entry.path(), OFlags::empty(), || false);
                continue;
            }
            let old = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|modified| SystemTime::now().duration_since(modified).is_ok_and(|age| age > KEPT));
            if old {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    pub(super) fn failed(&self, source: io::Error) -> Error {
        Error::Cache { path: self.directory.clone(), source }
    }
}

/// Holds others off from making an entry.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// The lock in the file `path`. Where another has it, `wait` says whether to wait for that. `None` where that one took the file away
    /// with it, or is not waited for.
    fn take(path: &Path, flags: OFlags, wait: impl FnOnce() -> bool) -> io::Result<Option<Self>> {
        // Of this directory's owner alone: others cannot open it, and so not hold it.
        let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if wait() => {
                while let Err(error) = rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                    if error != rustix::io::Errno::INTR {
                        return Err(error.into());
                    }
                }
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        // Another may have made it anew after the one who had this one.
        let inode = file.metadata()?.ino();
        let is_there = fs::symlink_metadata(path).is_ok_and(|there| there.ino() == inode);
        Ok(is_there.then(|| Self { path: path.to_owned(), _file: file }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is held: who waits for it sees then that it is gone.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a file of this name is one that is made here: an entry of whatever version, its lock, or a spool.
fn is_ours(name: &str) -> bool {
    if let Some(process) = name.strip_prefix(SPOOL) {
        return !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit());
    }
    let name = name.strip_suffix(LOCK).unwrap_or(name);
    let Some((digest, rest)) = name.split_at_checked(64) else { return false };
    let version = rest.strip_prefix('-').and_then(|rest| {
        let (version, format) = rest.split_once('.')?;
        matches!(format, "erofs" | "cpio").then_some(version)
    });
    Digest::from_hex(digest).is_some()
        && version.is_some_and(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The footer of an entry that has `before` bytes and ends `end` bytes after it. With `fill`, its length is a multiple of that.
pub(super) fn footer(config: &ImageConfig, before: u64, end: u64, fill: u64) -> Vec<u8> {
    let mut bytes = config.to_json().to_string().into_bytes();
    let digest = Digest::of(&bytes);
    let json = bytes.len() as u64;
    let len = (json + FOOTER as u64).next_multiple_of(fill);
    // Zeros come first, so that the end has its fixed place.
    bytes.splice(..0, std::iter::repeat_n(0, (len - json - FOOTER as u64) as usize));
    bytes.extend(MAGIC);
    bytes.extend(json.to_le_bytes());
    bytes.extend((before + len + end).to_le_bytes());
    bytes.extend(digest.0);
    bytes
}

fn read_footer(file: &File, end: u64) -> Option<ImageConfig> {
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    let at = metadata.len().checked_sub(end + FOOTER as u64)?;
    let mut fixed = [0; FOOTER];
    file.read_exact_at(&mut fixed, at).ok()?;
    let word = |at: usize| Some(u64::from_le_bytes(*fixed.get(at..)?.first_chunk()?));
    let json = word(8)?;
    if fixed[..8] != MAGIC || word(16)? != metadata.len() || json > JSON_MAX {
        return None;
    }
    let mut bytes = vec![0; json as usize];
    file.read_exact_at(&mut bytes, at.checked_sub(json)?).ok()?;
    if Digest::of(&bytes).0 != fixed[24..] {
        return None;
    }
    let config: Value = serde_json::from_slice(&bytes).ok()?;
    Some(ImageConfig::of(&config))
}

/// Writes all of `bytes`.
pub(super) fn write(out: &mut dyn Write, bytes: &[u8], cache: &Cache) -> Result<(), Error> {
    out.write_all(bytes).map_err(|source| cache.failed(source))
}
