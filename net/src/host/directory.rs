//! A directory of this user's alone, and the files in it.
//!
//! What is written there is done with our rights, so nobody else may have a hand in it:
//!
//! - **A directory is opened once, and what is in it by its descriptor.** Whoever exchanges it at its path exchanges nothing that we
//!   read.
//! - **It is opened step by step from the root**, through directories of root's and this user's in which nobody else can put another one
//!   in the place of the next (those for all have the sticky bit, inode(7)).
//! - **A file counts only if it is this user's, and nobody else can write to it**, whoever has put it there.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use crate::Error;
use crate::error::HostError;

/// Names the runtime directory; without it that is `/run/wirevm` for root and `wirevm` in `$XDG_RUNTIME_DIR` for others.
const VARIABLE: &str = "WIREVM_RUNTIME_DIR";

/// Others than the owner can write to it.
const OTHERS_WRITE: u32 = 0o022;
/// Others can write to it who are not of its group.
const ALL_WRITE: u32 = 0o002;
/// What is in it is renamed and removed by its own owner, or the directory's, alone.
const STICKY: u32 = 0o1000;

/// A directory of this user's alone.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It is there.
    Existing,
    /// It is there, or is made.
    Any,
    /// It is made.
    New,
}

impl Directory {
    /// The runtime directory, made where it is absent.
    ///
    /// # Errors
    /// There is none that is ours to write. What a record says is done with our rights, so one that another user could write
    /// into, or exchange, is refused.
    pub fn runtime() -> Result<Self, Error> {
        let from = |name| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let user = geteuid().as_raw();
        let candidates = match from(VARIABLE) {
            Some(path) => vec![path],
            None => {
                let root = (user == 0).then(|| PathBuf::from("/run/wirevm"));
                let session = from("XDG_RUNTIME_DIR").map(|path| path.join("wirevm"));
                let own = env::temp_dir().join(format!("wirevm-{}", outside_of(&uid_map(), user)));
                root.into_iter().chain(session).chain([own]).collect()
            }
        };
        let mut last = None;
        for path in candidates {
            match Self::at(&path) {
                Ok(found) => return Ok(found),
                Err(source) => last = Some(HostError::Runtime { path, source }),
            }
        }
        Err(last.expect("there is always a candidate").into())
    }

    /// The one at `path`, made where it is absent.
    ///
    /// # Errors
    /// It is not for this user alone, or others can exchange it.
    pub fn at(path: &Path) -> io::Result<Self> {
        let (within, name) = Self::way_to(path)?;
        Self::make_in(within.as_fd(), Path::new(name), path.to_owned(), OTHERS_WRITE)
    }

    /// The one at `path`, which is there.
    ///
    /// # Errors
    /// It is not, or not for this user alone, or others can exchange it.
    pub(crate) fn existing(path: &Path) -> io::Result<Self> {
        let (within, name) = Self::way_to(path)?;
        Self::open_in(within.as_fd(), Path::new(name), path.to_owned(), OTHERS_WRITE)
    }

    /// The directory that the one at `path` is in, where nobody else can exchange it, and its name there.
    fn way_to(path: &Path) -> io::Result<(OwnedFd, &OsStr)> {
        let name = path.file_name().ok_or_else(|| io::Error::other("it has no name of its own"))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        // Links on the way are followed here, and nowhere else.
        let parent = fs::canonicalize(parent.unwrap_or(Path::new(".")))?;
        let trust = Trust::new();
        let mut at = openat(CWD, "/", WAY, Mode::empty())?;
        let mut so_far = PathBuf::from("/");
        trust.check_way(&fstat(&at)?, &so_far)?;
        for step in parent.components().skip(1) {
            at = openat(&at, step.as_os_str(), WAY | OFlags::NOFOLLOW, Mode::empty())?;
            so_far.push(step);
            trust.check_way(&fstat(&at)?, &so_far)?;
        }
        Ok((at, name))
    }

    /// What no other directory has, whatever it is called: device and inode.
    pub(crate) fn id(&self) -> io::Result<(u64, u64)> {
        let found = fstat(&self.fd)?;
        Ok((found.st_dev, found.st_ino))
    }

    fn make_in(within: BorrowedFd<'_>, name: &Path, path: PathBuf, not: u32) -> io::Result<Self> {
        match mkdirat(within, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Self::open_in(within, name, path, not),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens what is there, if it is a directory of this user's without the rights `not`.
    fn open_in(within: BorrowedFd<'_>, name: &Path, path: PathBuf, not: u32) -> io::Result<Self> {
        // Not through a link: in a directory for everyone it may be another user's.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match openat(within, name, flags, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(io::Error::other("it is not a directory that this user alone can write to"));
            }
            opened => opened?,
        };
        check_own(&fstat(&fd)?, not)?;
        rustix::fs::accessat(&fd, ".", rustix::fs::Access::WRITE_OK, AtFlags::empty())?;
        Ok(Self { fd, path })
    }

    /// Where it was found: for people, and for programs that take a path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory in it, made where it is absent, for this user alone.
    ///
    /// # Errors
    /// It cannot be made, or is not such.
    pub fn make(&self, name: &str) -> io::Result<Self> {
        Self::make_in(self.fd.as_fd(), Path::new(name), self.path.join(name), 0o077)
    }

    /// A directory in it, for this user alone.
    ///
    /// # Errors
    /// It is not there, or not such.
    pub fn open(&self, name: &str) -> io::Result<Self> {
        Self::open_in(self.fd.as_fd(), Path::new(name), self.path.join(name), 0o077)
    }

    /// A second handle on the same one.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn again(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, path: self.path.clone() })
    }

    /// Opens a file in it to read and write: one of this user's, to which nobody else can write.
    ///
    /// # Errors
    /// It is not such, or cannot be opened.
    pub fn file(&self, name: &str, opening: Opening) -> io::Result<File> {
        let how = match opening {
            Opening::Existing => OFlags::empty(),
            Opening::Any => OFlags::CREATE,
            Opening::New => OFlags::CREATE | OFlags::EXCL,
        };
        // A pipe that somebody has put there would have us wait.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags | how, Mode::RUSR | Mode::WUSR)?;
        let found = fstat(&fd)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is not a regular file"));
        }
        check_own(&found, OTHERS_WRITE)?;
        Ok(File::from(fd))
    }

    /// The names of what is in it.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let name = entry?.file_name().to_owned();
            names.extend(name.into_string().ok().filter(|name| name != "." && name != ".."));
        }
        Ok(names)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// It is not empty, or cannot be removed.
    pub fn remove_directory(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Its path, as people know it.
impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// A directory on the way, which we may not be able to list.
const WAY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Whose directories may be on the way.
struct Trust {
    user: u32,
    group: u32,
    /// Whom all are shown as that have no number here, root of the host among them: in a user namespace.
    nobody: Option<u32>,
}

impl Trust {
    fn new() -> Self {
        let whole = |map: &str| map.split_whitespace().eq(["0", "0", "4294967295"]);
        let overflow = || fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?.trim().parse().ok();
        let nobody = if whole(&uid_map()) { None } else { overflow() };
        Self { user: geteuid().as_raw(), group: getegid().as_raw(), nobody }
    }

    /// Whether nobody else can exchange what is in the directory at `path`.
    fn check_way(&self, found: &Stat, path: &Path) -> io::Result<()> {
        let (owner, mode) = (found.st_uid, found.st_mode);
        if owner != 0 && owner != self.user && Some(owner) != self.nobody {
            return Err(io::Error::other(format!(
                "user {owner} can exchange it, who owns {}",
                path.display()
            )));
        }
        // Many users have a group of their own, which may write whatever they may.
        let not = if found.st_gid == self.group { ALL_WRITE } else { OTHERS_WRITE };
        match mode & not != 0 && mode & STICKY == 0 {
            true => Err(io::Error::other(format!(
                "other users can exchange it, who can write to {}",
                path.display()
            ))),
            false => Ok(()),
        }
    }
}

/// Whether something is of this user, and has none of the rights `not`.
fn check_own(found: &Stat, not: u32) -> io::Result<()> {
    let (owner, mode) = (found.st_uid, found.st_mode & 0o7777);
    if owner != geteuid().as_raw() {
        return Err(io::Error::other(format!("it is user {owner}'s")));
    }
    match mode & not {
        0 => Ok(()),
        _ => Err(io::Error::other(format!("it is not for this user alone (mode {mode:o})"))),
    }
}

/// Who everybody is outside of this user namespace (user_namespaces(7)).
fn uid_map() -> String {
    fs::read_to_string("/proc/self/uid_map").unwrap_or_default()
}

/// Who `user` is outside of the user namespace with this `uid_map`: inside, everybody's root is 0.
fn outside_of(uid_map: &str, user: u32) -> u32 {
    let mut ranges = uid_map.lines().filter_map(|line| {
        let numbers: Vec<u32> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [inside, outside, len] = numbers[..] else { return None };
        let at = user.checked_sub(inside).filter(|&at| at < len)?;
        outside.checked_add(at)
    });
    ranges.next().unwrap_or(user)
}

#[cfg(test)]
mod tests;
