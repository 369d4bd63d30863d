//! A directory of the host as a tree: what it has on its own file system, with no link followed.
//!
//! What else is mounted in it is an empty directory there, so that `/proc` and the like stay out, whatever the directory.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::error::Error;
use super::fault::{Fault, shown};
use super::limits::Budget;
use super::tree::{Bytes, Child, Content, DEPTH_MAX, HostFile, Id, Inode, Kind, Meta, ROOT, Tree};
use super::xattr;

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);

/// The files below `root`, which is `image` as the user gave it.
pub(super) fn read(root: OwnedFd, image: &str, budget: &mut Budget) -> Result<Tree, Error> {
    let root = Arc::new(root);
    let mut tree = Tree::new();
    let unreadable = |source: Errno| Error::Read { image: image.into(), source: source.into() };
    let stat = rustix::fs::fstat(&root).map_err(unreadable)?;
    let path = CString::new(format!("/proc/self/fd/{}", root.as_raw_fd())).unwrap_or_default();
    tree.inode_mut(ROOT).meta = meta(&stat, attributes(&path, true).map_err(unreadable)?);
    let device = stat.st_dev;
    let fd = subdirectory(&root, c".").map_err(unreadable)?;
    let mut walk = Walk { root, image, device, budget, tree, linked: HashMap::new() };
    walk.check(&walk.tree.inode(ROOT).meta, Path::new("."))?;
    walk.directory(fd, Path::new(""), ROOT, 0)?;
    Ok(walk.tree)
}

struct Walk<'a> {
    root: Arc<OwnedFd>,
    image: &'a str,
    device: u64,
    budget: &'a mut Budget,
    tree: Tree,
    /// By their devices and numbers on the host, the files that have several names. One that is mounted here is
    /// another device's, whose numbers can be the same.
    linked: HashMap<(u64, u64), Id>,
}

impl Walk<'_> {
    fn unreadable(&self, path: &Path, source: Errno) -> Error {
        Error::ReadFile {
            image: self.image.into(),
            path: shown(path.as_os_str().as_bytes()),
            source: source.into(),
        }
    }

    fn refused(&self, path: &Path, source: Fault) -> Error {
        Error::Archive { image: self.image.into(), part: shown(path.as_os_str().as_bytes()), source }
    }

    fn check(&self, meta: &Meta, path: &Path) -> Result<(), Error> {
        if xattr::fit(&meta.xattrs) {
            return Ok(());
        }
        Err(self.refused(path, Fault::Attributes { name: shown(path.as_os_str().as_bytes()) }))
    }

    fn directory(&mut self, fd: OwnedFd, path: &Path, id: Id, depth: usize) -> Result<(), Error> {
        if depth >= DEPTH_MAX {
            return Err(self.refused(path, Fault::Name { name: shown(path.as_os_str().as_bytes()) }));
        }
        let entries = Dir::read_from(&fd).map_err(|error| self.unreadable(path, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| self.unreadable(path, error))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            match self.entry(fd.as_fd(), name, &path, id, depth) {
                // Gone since the directory was read.
                Err(Error::ReadFile { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        directory: std::os::fd::BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        parent: Id,
        depth: usize,
    ) -> Result<(), Error> {
        let unreadable = |error| self.unreadable(path, error);
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(unreadable)?;
        let several = stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        if several && let Some(id) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
            let id = *id;
            self.budget.hard_link().map_err(|fault| self.refused(path, fault))?;
            return self.link(parent, name, id, path);
        }
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory(Default::default()),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new()).map_err(unreadable)?;
                Kind::Symlink(target.into_bytes().into())
            }
            FileType::CharacterDevice => Kind::CharacterDevice(major, minor),
            FileType::BlockDevice => Kind::BlockDevice(major, minor),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => Kind::File(Content::Host(Box::new(HostFile {
                root: self.root.clone(),
                path: path.into(),
                inode: stat.st_ino,
                size: stat.st_size as u64,
            }))),
        };
        let link = matches!(kind, Kind::Symlink(_));
        let attributes = match link {
            true => Vec::new(),
            false => {
                let by_fd = format!("/proc/self/fd/{}/", directory.as_raw_fd());
                let by_fd = [by_fd.as_bytes(), name.to_bytes()].concat();
                attributes(&CString::new(by_fd).unwrap_or_default(), false).map_err(unreadable)?
            }
        };
        let is_directory = matches!(kind, Kind::Directory(_));
        let inode = Inode { kind, meta: meta(&stat, attributes) };
        self.check(&inode.meta, path)?;
        let id = match self.tree.add(inode, self.budget) {
            Ok(id) => id,
            Err(fault) => return Err(self.refused(path, fault)),
        };
        if several {
            self.linked.insert((stat.st_dev, stat.st_ino), id);
        }
        self.link(parent, name, id, path)?;
        if is_directory && stat.st_dev == self.device {
            let fd = subdirectory(directory, name).map_err(|error| self.unreadable(path, error))?;
            return self.directory(fd, path, id, depth + 1);
        }
        Ok(())
    }

    fn link(&mut self, parent: Id, name: &CStr, id: Id, path: &Path) -> Result<(), Error> {
        let linked = self.tree.link(parent, name.to_bytes().into(), Child { id, layer: 0 }, self.budget);
        linked.map_err(|fault| self.refused(path, fault))
    }
}

/// Opens the directory `name`, which may be something else by now: no link is followed, no pipe waited for.
pub(super) fn subdirectory(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, FLAGS | OFlags::DIRECTORY, Mode::empty())
}

fn meta(stat: &Stat, xattrs: Vec<(Bytes, Bytes)>) -> Meta {
    Meta {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        xattrs,
    }
}

/// The attributes of `path` that go with a file, sorted. A file system that has none is no error.
pub(super) fn attributes(path: &CStr, follow: bool) -> Result<Vec<(Bytes, Bytes)>, Errno> {
    let mut names = vec![0; 4096];
    let list = |names: &mut Vec<u8>| match follow {
        true => rustix::fs::listxattr(path, &mut names[..]),
        false => rustix::fs::llistxattr(path, &mut names[..]),
    };
    let mut len = list(&mut names);
    if len == Err(Errno::RANGE) {
        names.resize(1 << 16, 0);
        len = list(&mut names);
    }
    let Some(len) = where_there_is(len)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for name in names[..len].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !xattr::is_kept(name.to_bytes()) {
            continue;
        }
        let mut value = vec![0; 1 << 16];
        let len = match follow {
            true => rustix::fs::getxattr(path, name, &mut value[..]),
            false => rustix::fs::lgetxattr(path, name, &mut value[..]),
        };
        if let Some(len) = where_there_is(len)? {
            found.push((name.to_bytes().into(), value[..len].into()));
        }
    }
    found.sort();
    Ok(found)
}

/// The length of attributes; `None` where the file system has none, or not this one any more.
pub(super) fn where_there_is(len: Result<usize, Errno>) -> Result<Option<usize>, Errno> {
    match len {
        Err(Errno::NOTSUP | Errno::NODATA) => Ok(None),
        len => len.map(Some),
    }
}

impl HostFile {
    /// Opens it, where it is still the file that it was.
    pub(super) fn open(&self) -> Result<Option<File>, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(&self.root, &self.path, FLAGS, Mode::empty(), resolve)?;
        let file = File::from(fd);
        let metadata = file.metadata().map_err(|_| Errno::IO)?;
        let same = metadata.is_file() && metadata.ino() == self.inode && metadata.len() == self.size;
        Ok(same.then_some(file))
    }

    /// From the image's root.
    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }
}
