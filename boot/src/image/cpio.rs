//! Writes newc archives, which the kernel unpacks as initramfs (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! A file with several names has its bytes at the last of them, as cpio writes it. Extended attributes have no place in the format:
//! they are left out.

use std::io;

use super::error::Error;
use super::fault::{Fault, shown};
use super::tree::{Content, Id, Kind, Meta, ROOT, Tree};
use super::write::{Output, Sink, copy_content};

pub(crate) const DIRECTORY: u32 = 0o040_000;
pub(crate) const REGULAR: u32 = 0o100_000;
/// What ends an archive. A file of this name is written with `./` before it.
const TRAILER: &[u8] = b"TRAILER!!!";
/// In bytes, a name's NUL included: longer ones the kernel skips.
const PATH_MAX: usize = 4096;

/// What a header says, but for name and size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Header {
    pub(crate) inode: u32,
    /// With the file's type.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u32,
    /// Seconds since 1970.
    pub(crate) mtime: u32,
    /// Major and minor.
    pub(crate) device: (u32, u32),
}

/// Writes the header of a file of `size` bytes, which are to follow, and then [`pad`].
pub(super) fn header(to: &mut dyn Sink, name: &[u8], header: &Header, size: u32) -> io::Result<()> {
    let Header { inode, mode, uid, gid, links, mtime, device: (major, minor) } = *header;
    let name_len = name.len() as u32 + 1;
    let fields = [inode, mode, uid, gid, links, mtime, size, 0, 0, major, minor, name_len, 0];
    to.write_all(b"070701")?;
    for field in fields {
        write!(to, "{field:08X}")?;
    }
    to.write_all(name)?;
    // The header has 110 bytes.
    let len = 110 + u64::from(name_len);
    to.zeros(1 + (len.next_multiple_of(4) - len))
}

/// Fills up to where a header may stand, after `len` bytes of a file.
pub(super) fn pad(to: &mut dyn Sink, len: u64) -> io::Result<()> {
    to.zeros(len.next_multiple_of(4) - len)
}

/// Ends the archive.
pub(super) fn trailer(to: &mut dyn Sink) -> io::Result<()> {
    header(to, TRAILER, &Header { links: 1, ..Header::default() }, 0)
}

/// An archive in memory.
#[derive(Default)]
pub(crate) struct Memory {
    bytes: Vec<u8>,
    inodes: u32,
}

impl Memory {
    /// Adds a file or directory of root's. `mode` has its type.
    pub(crate) fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let fields = Header { inode: self.inodes, mode, links: 1, ..Header::default() };
        // A vector takes all that is written to it; what is added is far below 4 GiB, which memory would not hold.
        let _ = header(&mut self.bytes, name.as_bytes(), &fields, content.len() as u32);
        self.bytes.extend_from_slice(content);
        let _ = pad(&mut self.bytes, content.len() as u64);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let _ = trailer(&mut self.bytes);
        self.bytes
    }
}

/// Writes `tree`, without the end of the archive.
pub(super) fn write(tree: &Tree, image: &str, target: &str, out: &mut Output<'_>) -> Result<(), Error> {
    let mut links = vec![0; tree.ids()];
    count(tree, ROOT, &mut links);
    let left = links.clone();
    let mut writer = Writer { tree, image, target, out, links, left, path: Vec::new() };
    writer.file(b".", ROOT)?;
    writer.directory(ROOT)
}

/// Counts the names of each inode below `directory`.
fn count(tree: &Tree, directory: Id, links: &mut [u32]) {
    for child in tree.entries(directory).into_iter().flat_map(|entries| entries.values()) {
        links[child.id.0 as usize] += 1;
        count(tree, child.id, links);
    }
}

struct Writer<'a, 'o> {
    tree: &'a Tree,
    image: &'a str,
    target: &'a str,
    out: &'a mut Output<'o>,
    /// Of each inode: its names, and those that were not written yet.
    links: Vec<u32>,
    left: Vec<u32>,
    path: Vec<u8>,
}

impl Writer<'_, '_> {
    fn directory(&mut self, id: Id) -> Result<(), Error> {
        let tree = self.tree;
        for (name, child) in tree.entries(id).into_iter().flatten() {
            let len = self.path.len();
            if len > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            let path = std::mem::take(&mut self.path);
            if path.len() >= PATH_MAX {
                let (image, part) = (self.image.into(), "the tree".into());
                return Err(Error::Archive { image, part, source: Fault::Name { name: shown(&path) } });
            }
            match &path[..] {
                TRAILER => self.file(&[b"./", TRAILER].concat(), child.id)?,
                path => self.file(path, child.id)?,
            }
            self.path = path;
            self.directory(child.id)?;
            self.path.truncate(len);
        }
        Ok(())
    }

    fn file(&mut self, name: &[u8], id: Id) -> Result<(), Error> {
        let inode = self.tree.inode(id);
        let at = id.0 as usize;
        let last = self.left[at] <= 1;
        self.left[at] = self.left[at].saturating_sub(1);
        let (kind, device, size) = match &inode.kind {
            Kind::Directory(_) => (DIRECTORY, (0, 0), 0),
            Kind::File(content) => (REGULAR, (0, 0), if last { content.size() } else { 0 }),
            Kind::Symlink(target) => (0o120_000, (0, 0), target.len() as u64),
            Kind::CharacterDevice(major, minor) => (0o020_000, (*major, *minor), 0),
            Kind::BlockDevice(major, minor) => (0o060_000, (*major, *minor), 0),
            Kind::Fifo => (0o010_000, (0, 0), 0),
            Kind::Socket => (0o140_000, (0, 0), 0),
        };
        let Ok(len) = u32::try_from(size) else {
            return Err(Error::TooLargeForCpio { image: self.image.into(), name: shown(name), size });
        };
        let Meta { mode, uid, gid, mtime: (seconds, _), .. } = inode.meta;
        let fields = Header {
            inode: id.0 + 1,
            mode: kind | u32::from(mode),
            uid,
            gid,
            // A directory's links are its entries, and nobody asks.
            links: if kind == DIRECTORY { 2 } else { self.links[at].max(1) },
            mtime: seconds.clamp(0, u32::MAX.into()) as u32,
            device,
        };
        let failed = |source| Error::Cache { path: self.target.into(), source };
        header(self.out, name, &fields, len).map_err(failed)?;
        match &inode.kind {
            Kind::File(content) if last => self.copy(content)?,
            Kind::Symlink(target) => io::Write::write_all(self.out, target).map_err(failed)?,
            _ => {}
        }
        pad(self.out, size).map_err(failed)
    }

    fn copy(&mut self, content: &Content) -> Result<(), Error> {
        copy_content(content, 0, content.size(), self.out)
            .map_err(|error| error.of(self.image, content, self.target))
    }
}
