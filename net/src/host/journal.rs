//! What outlives us: the directory of records, and who still holds them.
//!
//! **Invariant: what does not go away with a descriptor is recorded before it is made.** A record is a file of JSON lines,
//! each the undo of one change; its process, or each of those that share what it made, holds a flock(2) on it for life, which
//! the kernel lets go of whatever becomes of them. So a record that nobody holds was left by the dead, and is not told by a
//! process id, which another process may have by now.
//!
//! Every change of the host and of a record is made under one lock, so that two wirevm do not fight over a name or a subnet,
//! and a record is never seen between its making and its being held.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use super::{Change, Host, NamespaceId, wait};
use crate::error::HostError;
use crate::{Error, sys};

/// Names the directory of records; without it that is `/run/wirevm` for root and `wirevm` in `$XDG_RUNTIME_DIR` for others.
const VARIABLE: &str = "WIREVM_RUNTIME_DIR";

/// The directory of records, made where it is absent.
///
/// # Errors
/// There is none that is ours to write. What a record says is done with our rights, so one that another user could write
/// into is refused.
pub fn directory() -> Result<PathBuf, Error> {
    let from = |name| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let user = geteuid().as_raw();
    let candidates = match from(VARIABLE) {
        Some(path) => vec![path],
        None => {
            let root = (user == 0).then(|| PathBuf::from("/run/wirevm"));
            let session = from("XDG_RUNTIME_DIR").map(|path| path.join("wirevm"));
            let outside = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
            let own = env::temp_dir().join(format!("wirevm-{}", outside_of(&outside, user)));
            root.into_iter().chain(session).chain([own]).collect()
        }
    };
    let mut last = None;
    for path in candidates {
        match usable(&path, user) {
            Ok(()) => return Ok(path),
            Err(source) => last = Some(HostError::Runtime { path, source }),
        }
    }
    Err(last.expect("there is always a candidate").into())
}

/// Who `user` is outside of the user namespace with this `uid_map` (user_namespaces(7)): inside, everybody's root is 0.
fn outside_of(uid_map: &str, user: u32) -> u32 {
    let mut ranges = uid_map.lines().filter_map(|line| {
        let numbers: Vec<u32> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [inside, outside, len] = numbers[..] else { return None };
        let at = user.checked_sub(inside).filter(|&at| at < len)?;
        outside.checked_add(at)
    });
    ranges.next().unwrap_or(user)
}

fn usable(path: &Path, user: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Not through a link: in a directory for everyone it may be another user's.
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o022 != 0 {
        return Err(io::Error::other("it is not a directory that this user alone can write to"));
    }
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK)?;
    Ok(())
}

/// The one lock under which the host is changed.
#[derive(Debug)]
pub(crate) struct Lock {
    directory: PathBuf,
    /// Held while this is open.
    _file: File,
}

impl Lock {
    /// Waits until no other wirevm of this user is changing the host, or somebody asked us to end.
    pub(crate) fn take(host: &Host) -> Result<Self, Error> {
        Self::take_unless(|| host.is_ended())
    }

    /// The same to take back what was changed: it was asked for as a rule, and somebody must ask once more.
    pub(crate) fn take_to_undo(host: &Host) -> Result<Self, Error> {
        // Counted now, before the wait.
        host.is_ended_again();
        Self::take_unless(|| host.is_ended_again())
    }

    fn take_unless(ended: impl Fn() -> bool) -> Result<Self, Error> {
        let directory = directory()?;
        let path = directory.join("lock");
        let file = own_file(OpenOptions::new().create(true).truncate(false), &path);
        let held = |source| HostError::Runtime { path: path.clone(), source };
        let file = file.map_err(held)?;
        match wait::for_lock(&file, &path, ended).map_err(held)? {
            true => Ok(Self { directory, _file: file }),
            false => Err(HostError::Ended.into()),
        }
    }

    /// A record for this process alone.
    pub(crate) fn new_journal(&self) -> Result<Record, Error> {
        let mut random = [0; 8];
        let unique = sys::random(&mut random).map(|()| u64::from_ne_bytes(random));
        let name = format!("journal-{}-{:016x}", std::process::id(), unique.unwrap_or_default());
        Record::create(self.directory.join(name))
    }

    /// A record for all that share `what` of the namespace, where there is none yet.
    pub(crate) fn new_shared(&self, namespace: NamespaceId, what: &str) -> Result<Record, Error> {
        Record::create(self.shared_path(namespace, what))
    }

    /// The record of `what`, held by us too; none where there is none.
    pub(crate) fn join(&self, namespace: NamespaceId, what: &str) -> Result<Option<Record>, Error> {
        let record = Record::open(self.shared_path(namespace, what))?;
        record.as_ref().map_or(Ok(()), Record::share)?;
        Ok(record)
    }

    /// The names after `prefix` of what is shared in the namespace.
    ///
    /// # Errors
    /// The records cannot be listed.
    pub(crate) fn shared(&self, namespace: NamespaceId, prefix: &str) -> Result<Vec<String>, Error> {
        let prefix = format!("shared-{namespace}-{prefix}");
        let names = self.names()?.into_iter();
        Ok(names.filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned)).collect())
    }

    fn shared_path(&self, namespace: NamespaceId, what: &str) -> PathBuf {
        self.directory.join(format!("shared-{namespace}-{what}"))
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let list = || fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.file_name())).collect();
        let names: io::Result<Vec<OsString>> = list();
        let names = names.map_err(|source| HostError::Runtime { path: self.directory.clone(), source })?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// The records that nobody holds, now held by us; one that does not open stays where it is.
    ///
    /// # Errors
    /// They cannot be listed.
    pub(crate) fn left(&self) -> Result<Vec<Record>, Error> {
        let names = self.names()?.into_iter();
        let records = names.filter(|name| name.starts_with("journal-") || name.starts_with("shared-"));
        let records = records.filter_map(|name| {
            let record = Record::open(self.directory.join(name));
            record.inspect_err(warn).ok().flatten()
        });
        Ok(records.filter(Record::take_over).collect())
    }
}

/// Says that a record stays as it is, and why.
pub(crate) fn warn(error: &Error) {
    log::warn!("{}", error.with_cause());
}

/// Opens a file for this user alone.
fn own_file(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// The undo of one change, as a line of a record.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// When, in nanoseconds since the boot: across records, the last one is undone first.
    pub(crate) at: u64,
    /// Of which boot: after the next one, the links are gone and their numbers are others'.
    pub(crate) boot: String,
    /// Where.
    pub(crate) namespace: NamespaceId,
    pub(crate) undo: Change,
}

impl Line {
    /// # Errors
    /// The kernel does not say which boot this is.
    pub(crate) fn new(namespace: NamespaceId, undo: Change) -> Result<Self, Error> {
        let boot = boot().map_err(|source| HostError::Runtime { path: BOOT_ID.into(), source })?;
        let at = sys::since_boot().as_nanos() as u64;
        Ok(Self { at, boot: boot.to_owned(), namespace, undo })
    }
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which boot of the host this is.
pub(crate) fn boot() -> io::Result<&'static str> {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(boot);
    }
    let boot = fs::read_to_string(BOOT_ID)?;
    Ok(BOOT.get_or_init(|| boot.trim().to_owned()))
}

/// A file of lines, held by us.
#[derive(Debug)]
pub(crate) struct Record {
    file: File,
    path: PathBuf,
    /// Bytes of it that count.
    len: u64,
}

impl Record {
    fn error(&self, source: impl Into<io::Error>) -> HostError {
        HostError::Runtime { path: self.path.clone(), source: source.into() }
    }

    /// A new one, held by us alone.
    fn create(path: PathBuf) -> Result<Self, Error> {
        let file = own_file(OpenOptions::new().create_new(true), &path);
        let file = file.map_err(|source| HostError::Runtime { path: path.clone(), source })?;
        let record = Self { file, path, len: 0 };
        if let Err(error) = flock(&record.file, FlockOperation::NonBlockingLockExclusive) {
            let error = record.error(error);
            record.remove();
            return Err(error.into());
        }
        Ok(record)
    }

    /// An existing one, held by nobody yet; none where there is none.
    fn open(path: PathBuf) -> Result<Option<Self>, Error> {
        match own_file(&mut OpenOptions::new(), &path) {
            Ok(file) => {
                let len = file.metadata().map(|found| found.len());
                let len = len.map_err(|source| HostError::Runtime { path: path.clone(), source })?;
                Ok(Some(Self { file, path, len }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HostError::Runtime { path, source }.into()),
        }
    }

    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// True where it is of one process alone.
    pub(crate) fn is_journal(&self) -> bool {
        self.name().starts_with("journal-")
    }

    /// True where it is that of the shared `what`.
    pub(crate) fn is_of(&self, what: &str) -> bool {
        self.name()
            .strip_prefix("shared-")
            .and_then(|name| name.split_once('-'))
            .is_some_and(|(_, own)| own == what)
    }

    /// From now on others may hold it with us.
    pub(crate) fn share(&self) -> Result<(), Error> {
        Ok(flock(&self.file, FlockOperation::LockShared).map_err(|error| self.error(error))?)
    }

    /// Holds it alone, if nobody else holds it.
    pub(crate) fn take_over(&self) -> bool {
        flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    /// Bytes so far, for [`cut`](Self::cut).
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Writes the undo of a change that is about to be made. What the kernel has taken it keeps when we are killed.
    pub(crate) fn write(&mut self, line: &Line) -> Result<(), Error> {
        let mut text = serde_json::to_vec(line).map_err(|error| self.error(error))?;
        text.push(b'\n');
        let start = SeekFrom::Start(self.len);
        let written = self.file.seek(start).and_then(|_| self.file.write_all(&text));
        written.map_err(|error| self.error(error))?;
        self.len += text.len() as u64;
        Ok(())
    }

    /// Forgets what was written after the first `len` bytes.
    pub(crate) fn cut(&mut self, len: u64) {
        self.len = len;
        if let Err(error) = self.file.set_len(len) {
            log::warn!("cannot shorten {}: {error}", self.path.display());
        }
    }

    /// Its lines, in the order of the changes. A last one without an end was being written when its process ended, before
    /// the change.
    ///
    /// # Errors
    /// It cannot be read, or has a line that we do not know: another version of wirevm wrote it.
    pub(crate) fn lines(&mut self) -> Result<Vec<Line>, Error> {
        let mut text = String::new();
        let read = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.read_to_string(&mut text));
        read.map_err(|error| self.error(error))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let line = |line| Ok(serde_json::from_str(line).map_err(|error| self.error(error))?);
        whole.lines().map(line).collect()
    }

    /// Deletes it. Who has opened it just before finds nothing in it.
    pub(crate) fn remove(mut self) {
        self.cut(0);
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_a_mapped_root_is_outside() {
        assert_eq!(outside_of("         0          0 4294967295\n", 1000), 1000);
        assert_eq!(outside_of("         0       1000          1\n", 0), 1000);
        assert_eq!(outside_of("0 1000 1\n1 100000 65536\n", 7), 100_006);
        for nonsense in ["", "0 1 1", "x y z", "0 4294967295 9"] {
            assert_eq!(outside_of(nonsense, 8), 8, "{nonsense}");
        }
    }
}
