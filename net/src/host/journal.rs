//! What outlives us: the directory of records, and who still holds them.
//!
//! **Invariant: what does not go away with a descriptor is recorded before it is made.** A record is a file of JSON lines,
//! each the undo of one change; its process, or each of those that share what it made, holds a flock(2) on it for life, which
//! the kernel lets go of whatever becomes of them. So a record that nobody holds was left by the dead, and is not told by a
//! process id, which another process may have by now.
//!
//! Every change of the host and of a record is made under one lock, so that two wirevm do not fight over a name or a subnet,
//! and a record is never seen between its making and its being held.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::directory::{Directory, Opening};
use super::identity::{Kept, Mark};
use super::siblings::{self, Beacon};
use super::wait::{self, Waited};
use super::{Change, Host, NamespaceId};
use crate::error::HostError;
use crate::{Error, printable, sys};

/// How long a wirevm with another runtime directory may be at a record.
const SOON: Duration = Duration::from_secs(2);

/// The one lock under which the host is changed.
#[derive(Debug)]
pub(crate) struct Lock {
    directory: Arc<Directory>,
    /// Held while this is open.
    _file: File,
}

impl Lock {
    /// Waits until no other wirevm of this user is changing the host, or somebody asked us to end.
    pub(crate) fn take(host: &Host) -> Result<Self, Error> {
        Self::take_unless(host, || host.is_ended())
    }

    /// The same to take back what was changed: it was asked for as a rule, and somebody must ask once more.
    pub(crate) fn take_to_undo(host: &Host) -> Result<Self, Error> {
        // Counted now, before the wait.
        host.is_ended_again();
        Self::take_unless(host, || host.is_ended_again())
    }

    fn take_unless(host: &Host, ended: impl Fn() -> bool) -> Result<Self, Error> {
        let directory = Arc::new(Directory::runtime()?);
        let path = directory.path().join("lock");
        let file = directory.file("lock", Opening::Any);
        let held = |source| HostError::Runtime { path: path.clone(), source };
        let file = file.map_err(held)?;
        match wait::for_lock(&file, &path, host.patience(), ended).map_err(held)? {
            Waited::Got => Ok(Self { directory, _file: file }),
            Waited::Ended => Err(HostError::Ended.into()),
            Waited::TooLong => Err(HostError::Busy { holder: wait::holder(&file), path }.into()),
        }
    }

    /// A record for this process alone.
    pub(crate) fn new_journal(&self) -> Result<Record, Error> {
        let mut random = [0; 8];
        let unique = sys::random(&mut random).map(|()| u64::from_ne_bytes(random));
        let name = format!("journal-{}-{:016x}", std::process::id(), unique.unwrap_or_default());
        Record::create(&self.directory, name)
    }

    /// A record for all that share `what` of the namespace, where there is none yet.
    pub(crate) fn new_shared(&self, namespace: NamespaceId, what: &str) -> Result<Record, Error> {
        Record::create(&self.directory, shared_name(namespace, what))
    }

    /// The record of `what`, held by us too; none where there is none.
    pub(crate) fn join(&self, namespace: NamespaceId, what: &str) -> Result<Option<Record>, Error> {
        let record = Record::open(&self.directory, shared_name(namespace, what))?;
        record.as_ref().map_or(Ok(()), Record::share)?;
        Ok(record)
    }

    /// The record of `what` that another runtime directory has, of which wirevm in the thread's namespace tell, held by us too.
    pub(crate) fn join_elsewhere(&self, namespace: NamespaceId, what: &str) -> Option<Record> {
        siblings::directories(&self.directory).into_iter().find_map(|directory| {
            let record = Record::open(&Arc::new(directory), shared_name(namespace, what));
            record.inspect_err(|error| log::debug!("{error}")).ok()?.filter(Record::share_soon)
        })
    }

    /// The directory, as others in the thread's namespace are told of it for as long as this is held.
    ///
    /// # Errors
    /// They cannot be told.
    pub(super) fn beacon(&self) -> io::Result<Beacon> {
        Beacon::new(&self.directory)
    }

    /// The names after `prefix` of what is shared in the namespace, here and where wirevm in the thread's namespace have records.
    ///
    /// # Errors
    /// The records cannot be listed.
    pub(crate) fn shared(&self, namespace: NamespaceId, prefix: &str) -> Result<Vec<String>, Error> {
        let prefix = format!("shared-{namespace}-{prefix}");
        let others = siblings::directories(&self.directory);
        let others = others.iter().flat_map(|directory| directory.names().unwrap_or_default());
        let names = self.names()?.into_iter().chain(others);
        let mut names: Vec<_> =
            names.filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned)).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let names = self.directory.names();
        Ok(names.map_err(|source| HostError::Runtime { path: self.directory.path().to_owned(), source })?)
    }

    /// The records that nobody holds, now held by us, and why others do not open: those stay where they are.
    ///
    /// # Errors
    /// They cannot be listed.
    pub(crate) fn left(&self) -> Result<(Vec<Record>, Vec<Error>), Error> {
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for name in self.names()? {
            if !name.starts_with("journal-") && !name.starts_with("shared-") {
                continue;
            }
            match Record::open(&self.directory, name) {
                Ok(record) => records.extend(record.filter(Record::take_over)),
                Err(error) => unreadable.push(error),
            }
        }
        Ok((records, unreadable))
    }
}

/// Says that a record stays as it is, and why.
pub(crate) fn warn(error: &Error) {
    log::warn!("{}", error.with_cause());
}

/// The name of the record of the shared `what` of the namespace.
fn shared_name(namespace: NamespaceId, what: &str) -> String {
    format!("shared-{namespace}-{what}")
}

/// The undo of one change, as a line of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// When, in nanoseconds since the boot: across records, the last one is undone first.
    pub(crate) at: u64,
    /// Of which boot: after the next one, the links are gone and their numbers are others'.
    pub(crate) boot: String,
    /// Where.
    pub(crate) namespace: NamespaceId,
    pub(crate) undo: Change,
    /// What tells the links that it is for from others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    marks: Vec<Mark>,
}

impl Line {
    /// # Errors
    /// The kernel does not say which boot this is, or the undo is none that a record may have.
    pub(crate) fn new(namespace: NamespaceId, kept: Kept) -> Result<Self, Error> {
        let Kept { undo, marks } = kept;
        if let Err(why) = undo.check() {
            return Err(HostError::Unrecordable { command: undo.command(), why }.into());
        }
        let boot = boot().map_err(|source| HostError::Runtime { path: BOOT_ID.into(), source })?;
        let at = sys::since_boot().as_nanos() as u64;
        Ok(Self { at, boot: boot.to_owned(), namespace, undo, marks })
    }

    /// The undo of another change of the same links.
    pub(super) fn of_the_same_links(&self, at: u64, undo: Change) -> Self {
        Self { at, undo, ..self.clone() }
    }

    /// What is to be undone.
    pub(crate) fn kept(&self) -> Kept {
        Kept { undo: self.undo.clone(), marks: self.marks.clone() }
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
    directory: Arc<Directory>,
    name: String,
    /// Bytes of it that count.
    len: u64,
}

impl Record {
    fn error(&self, source: impl Into<io::Error>) -> HostError {
        HostError::Runtime { path: self.path(), source: source.into() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(&self.name)
    }

    /// A new one, held by us alone.
    fn create(directory: &Arc<Directory>, name: String) -> Result<Self, Error> {
        let file = directory.file(&name, Opening::New);
        let file =
            file.map_err(|source| HostError::Runtime { path: directory.path().join(&name), source })?;
        let record = Self { file, directory: directory.clone(), name, len: 0 };
        if let Err(error) = flock(&record.file, FlockOperation::NonBlockingLockExclusive) {
            let error = record.error(error);
            record.remove();
            return Err(error.into());
        }
        Ok(record)
    }

    /// An existing one, held by nobody yet; none where there is none.
    ///
    /// # Errors
    /// It cannot be opened, or somebody else has written it.
    fn open(directory: &Arc<Directory>, name: String) -> Result<Option<Self>, Error> {
        let opened = directory.file(&name, Opening::Existing);
        match opened.and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((len, file)) => Ok(Some(Self { file, directory: directory.clone(), name, len })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HostError::Runtime { path: directory.path().join(&name), source }.into()),
        }
    }

    /// True where it is of one process alone.
    pub(crate) fn is_journal(&self) -> bool {
        self.name.starts_with("journal-")
    }

    /// True where it is that of the shared `what`.
    pub(crate) fn is_of(&self, what: &str) -> bool {
        self.what() == Some(what)
    }

    /// What it is the record of, where several share it.
    fn what(&self) -> Option<&str> {
        self.name.strip_prefix("shared-").and_then(|name| name.split_once('-')).map(|(_, what)| what)
    }

    /// The number of the bridge that it is about, with its uplink's where it is about that.
    pub(super) fn bridge(&self) -> Option<(u32, Option<u32>)> {
        let mut parts = self.what()?.split(':');
        let uplink = match parts.next()? {
            "bridge" => false,
            "uplink" => true,
            _ => return None,
        };
        let bridge = parts.next()?.parse().ok()?;
        let nic = parts.next().and_then(|nic| nic.parse().ok());
        (uplink == nic.is_some()).then_some((bridge, nic))
    }

    /// The numbers of the uplinks that the same directory has records of, for the bridge that this one is about.
    pub(super) fn uplinks(&self) -> Vec<u32> {
        let prefix = self.name.replacen("-bridge:", "-uplink:", 1) + ":";
        let names = self.directory.names().unwrap_or_default();
        names.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()).collect()
    }

    /// As [`share`](Self::share) where another process may be about to undo it: then it is not there any more.
    fn share_soon(&self) -> bool {
        let end = Instant::now() + SOON;
        while let Err(error) = flock(&self.file, FlockOperation::NonBlockingLockShared) {
            if error != Errno::WOULDBLOCK || Instant::now() > end {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.file.metadata().is_ok_and(|found| found.nlink() > 0)
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
            log::warn!("cannot shorten {}: {error}", self.path().display());
        }
    }

    /// Its lines, in the order of the changes. A last one without an end was being written when its process ended, before
    /// the change.
    ///
    /// # Errors
    /// It cannot be read, or has a line that we do not know (another version of wirevm wrote it) or would never write.
    pub(crate) fn lines(&mut self) -> Result<Vec<Line>, Error> {
        let mut text = String::new();
        let read = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.read_to_string(&mut text));
        read.map_err(|error| self.error(error))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let line = |line| {
            let line: Line = serde_json::from_str(line)
                .map_err(|error| self.error(io::Error::other(printable(&error.to_string()).into_owned())))?;
            line.undo.check().map_err(|why| self.error(io::Error::other(why)))?;
            Ok(line)
        };
        whole.lines().map(line).collect()
    }

    /// Deletes it. Who has opened it just before finds nothing in it.
    pub(crate) fn remove(mut self) {
        self.cut(0);
        if let Err(error) = self.directory.remove_file(&self.name) {
            log::warn!("cannot remove {}: {error}", self.path().display());
        }
    }
}
