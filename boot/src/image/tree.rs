//! The tree of files that becomes the guest's root, in memory: names and metadata. The files' bytes stay where they lie.
//!
//! **Invariant:** nothing of it is ever made on the host. A symbolic link is bytes, and where one stands in the way of a name, it is
//! followed within this tree, as the kernel follows it below a root: `..` at the root stays there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::fault::{Fault, shown};
use super::limits::Budget;
use super::span::Span;

/// Bytes of a path's component, of a link's target or of a value.
pub(super) type Bytes = Box<[u8]>;

/// As many symbolic links are followed for one name, as Linux follows.
const HOPS_MAX: usize = 40;
/// In bytes, of a component (NAME_MAX) and of a path or a link's target with its NUL (PATH_MAX).
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4096;
/// Of directories in directories. Paths could lead to twice as many, and by way of links to any number; functions here that call
/// themselves have their end in this.
pub(super) const DEPTH_MAX: usize = 1024;

/// An inode's place in its tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id(pub(super) u32);

/// The root directory.
pub(super) const ROOT: Id = Id(0);

/// What an inode is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Its entries, in the order of their bytes.
    Directory(BTreeMap<Bytes, Child>),
    /// A regular file.
    File(Content),
    /// Where it points; never empty.
    Symlink(Bytes),
    /// Major and minor number.
    CharacterDevice(u32, u32),
    /// Major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A Unix socket's name.
    Socket,
}

/// What a name in a directory leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    /// The inode.
    pub(super) id: Id,
    /// The layer that made the name or changed it last; whiteouts spare their own layer's names.
    pub(super) layer: u32,
}

/// Where a regular file's bytes lie.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// In one piece.
    Whole(Span),
    /// In pieces, with zeros between.
    Sparse(Box<Sparse>),
    /// In a file of the directory that is the image.
    Host(Box<HostFile>),
}

/// A file with holes.
#[derive(Clone, Debug)]
pub(super) struct Sparse {
    /// The pieces, one after another.
    pub(super) data: Span,
    /// With its holes, in bytes.
    pub(super) size: u64,
    /// Where each piece stands in the file, and its length: in order, apart, within `size`.
    pub(super) pieces: Vec<(u64, u64)>,
}

/// A file of the directory that is the image, as it was when the directory was looked at.
#[derive(Clone, Debug)]
pub(super) struct HostFile {
    pub(super) root: Arc<std::os::fd::OwnedFd>,
    /// From `root`.
    pub(super) path: PathBuf,
    pub(super) inode: u64,
    pub(super) size: u64,
}

impl Content {
    /// In bytes, holes included.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Whole(span) => span.len,
            Self::Sparse(sparse) => sparse.size,
            Self::Host(file) => file.size,
        }
    }
}

/// What every kind of inode has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// The permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub(super) mode: u16,
    /// The owner.
    pub(super) uid: u32,
    /// The group.
    pub(super) gid: u32,
    /// Modified: seconds since 1970, and nanoseconds.
    pub(super) mtime: (i64, u32),
    /// Extended attributes by their full names, in the order of these.
    pub(super) xattrs: Vec<(Bytes, Bytes)>,
}

/// A file of any kind. Names that are hard links of each other lead to the same one.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    /// What it is.
    pub(super) kind: Kind,
    /// Its owner, mode, time and attributes.
    pub(super) meta: Meta,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tree {
    inodes: Vec<Inode>,
}

impl Tree {
    /// Nothing but a root directory.
    pub(super) fn new() -> Self {
        let meta = Meta { mode: 0o755, ..Meta::default() };
        Self { inodes: vec![Inode { kind: Kind::Directory(BTreeMap::new()), meta }] }
    }

    /// The inode `id`.
    pub(super) fn inode(&self, id: Id) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    pub(super) fn inode_mut(&mut self, id: Id) -> &mut Inode {
        &mut self.inodes[id.0 as usize]
    }

    /// How many inodes there ever were, which ids do not exceed.
    pub(super) fn ids(&self) -> usize {
        self.inodes.len()
    }

    /// The entries of `id`, where that is a directory.
    pub(super) fn entries(&self, id: Id) -> Option<&BTreeMap<Bytes, Child>> {
        match &self.inode(id).kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    fn entries_mut(&mut self, id: Id) -> Option<&mut BTreeMap<Bytes, Child>> {
        match &mut self.inode_mut(id).kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    pub(super) fn add(&mut self, inode: Inode, budget: &mut Budget) -> Result<Id, Fault> {
        budget.entry(&inode)?;
        // The budget has fewer entries than a u32.
        let id = Id(self.inodes.len() as u32);
        self.inodes.push(inode);
        Ok(id)
    }

    /// What `path` leads to, following links on the way and at its end, as `open` does below a root.
    pub(super) fn find(&self, path: &[u8]) -> Option<Id> {
        let mut way = Way::default();
        way.go(self, path, PATH_MAX).ok()?;
        way.missing.is_empty().then(|| way.here())
    }

    /// The directory that `path` lies in and its last component there; `None` where `path` is the root itself. Directories on the way
    /// that are not there are made as `layer`'s.
    pub(super) fn parent(
        &mut self,
        path: &[u8],
        layer: u32,
        budget: &mut Budget,
    ) -> Result<Option<(Id, Bytes)>, Fault> {
        let Some((mut way, name)) = self.way_to_parent(path)? else { return Ok(None) };
        if way.directories.len() + way.missing.len() >= DEPTH_MAX {
            return Err(Fault::Name { name: shown(path) });
        }
        let mut here = way.here();
        for missing in std::mem::take(&mut way.missing) {
            let meta = Meta { mode: 0o755, ..Meta::default() };
            let made = Inode { kind: Kind::Directory(BTreeMap::new()), meta };
            let id = self.add(made, budget)?;
            self.link(here, missing, Child { id, layer }, budget)?;
            here = id;
        }
        Ok(Some((here, name)))
    }

    /// The same, where nothing is made: `None`, too, where there is no such directory.
    pub(super) fn existing_parent(&self, path: &[u8]) -> Result<Option<(Id, Bytes)>, Fault> {
        let way = self.way_to_parent(path)?;
        Ok(way.filter(|(way, _)| way.missing.is_empty()).map(|(way, name)| (way.here(), name)))
    }

    fn way_to_parent(&self, path: &[u8]) -> Result<Option<(Way, Bytes)>, Fault> {
        let mut components = components(path)?;
        let Some(name) = components.pop() else { return Ok(None) };
        let mut way = Way::default();
        let mut hops = HOPS_MAX;
        for component in components {
            way.step(self, component, &mut hops).map_err(|obstacle| obstacle.fault(path))?;
        }
        if way.missing.is_empty() && self.entries(way.here()).is_none() {
            return Err(Obstacle::NotADirectory.fault(path));
        }
        Ok(Some((way, name.into())))
    }

    /// What `directory` has under `name`.
    pub(super) fn child(&self, directory: Id, name: &[u8]) -> Option<Id> {
        Some(self.entries(directory)?.get(name)?.id)
    }

    /// Makes `directory` have `child` under `name`, whatever it had there.
    pub(super) fn link(
        &mut self,
        directory: Id,
        name: Bytes,
        child: Child,
        budget: &mut Budget,
    ) -> Result<(), Fault> {
        budget.name(name.len())?;
        if let Some(entries) = self.entries_mut(directory) {
            entries.insert(name, child);
        }
        Ok(())
    }

    /// Takes out of `directory` what layers before `layer` put there under `name`; what is `layer`'s own stays, with the directories
    /// that lead to it.
    pub(super) fn hide(
        &mut self,
        directory: Id,
        name: &[u8],
        layer: u32,
        budget: &mut Budget,
    ) -> Result<(), Fault> {
        let Some(child) = self.entries(directory).and_then(|entries| entries.get(name)).copied() else {
            return budget.whiteout(0);
        };
        if !self.hide_below(child.id, layer, budget)?
            && child.layer < layer
            && let Some(entries) = self.entries_mut(directory)
        {
            entries.remove(name);
        }
        Ok(())
    }

    /// The same for all that `directory` has; whether something stays. It calls itself as deep as directories lie.
    pub(super) fn hide_below(
        &mut self,
        directory: Id,
        layer: u32,
        budget: &mut Budget,
    ) -> Result<bool, Fault> {
        let Some(entries) = self.entries_mut(directory) else {
            budget.whiteout(0)?;
            return Ok(false);
        };
        budget.whiteout(entries.len())?;
        let mut entries = std::mem::take(entries);
        let mut fault = None;
        entries.retain(|_, child| match &fault {
            Some(_) => true,
            None => match self.hide_below(child.id, layer, budget) {
                Ok(stays) => stays || child.layer >= layer,
                Err(error) => fault.replace(error).is_none(),
            },
        });
        let stays = !entries.is_empty();
        if let Some(place) = self.entries_mut(directory) {
            *place = entries;
        }
        fault.map_or(Ok(stays), Err)
    }
}

/// The components of a path that stands for itself, taken from the root: without empty ones and `.`, and with `..` taken back.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Fault> {
    if path.len() >= PATH_MAX || path.contains(&0) {
        return Err(Fault::Name { name: shown(path) });
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop().ok_or_else(|| Fault::Climbs { name: shown(path) })?),
            _ if component.len() > NAME_MAX => return Err(Fault::Name { name: shown(path) }),
            _ => components.push(component),
        }
    }
    Ok(components)
}

/// What is in the way of a name.
enum Obstacle {
    NotADirectory,
    Loop,
}

impl Obstacle {
    fn fault(self, path: &[u8]) -> Fault {
        match self {
            Self::NotADirectory => Fault::ParentNotADirectory { name: shown(path) },
            Self::Loop => Fault::LinkLoop { name: shown(path) },
        }
    }
}

/// From the root to a directory, and on to where none is yet.
#[derive(Default)]
struct Way {
    /// Below the root.
    directories: Vec<Id>,
    missing: Vec<Bytes>,
}

impl Way {
    fn here(&self) -> Id {
        self.directories.last().copied().unwrap_or(ROOT)
    }

    fn go(&mut self, tree: &Tree, path: &[u8], limit: usize) -> Result<(), Obstacle> {
        let mut hops = HOPS_MAX;
        if path.len() >= limit {
            return Err(Obstacle::Loop);
        }
        // A last component that is a file is gone to as well.
        path.split(|byte| *byte == b'/').try_for_each(|component| self.step(tree, component, &mut hops))
    }

    fn step(&mut self, tree: &Tree, component: &[u8], hops: &mut usize) -> Result<(), Obstacle> {
        match component {
            b"" | b"." => return Ok(()),
            b".." => {
                if self.missing.pop().is_none() {
                    self.directories.pop();
                }
                return Ok(());
            }
            _ if !self.missing.is_empty() => {
                self.missing.push(component.into());
                return Ok(());
            }
            _ => {}
        }
        let entries = tree.entries(self.here()).ok_or(Obstacle::NotADirectory)?;
        let Some(Child { id, .. }) = entries.get(component) else {
            self.missing.push(component.into());
            return Ok(());
        };
        let Kind::Symlink(target) = &tree.inode(*id).kind else {
            self.directories.push(*id);
            return Ok(());
        };
        *hops = hops.checked_sub(1).ok_or(Obstacle::Loop)?;
        if target.starts_with(b"/") {
            self.directories.clear();
        }
        target.split(|byte| *byte == b'/').try_for_each(|component| self.step(tree, component, hops))
    }
}
