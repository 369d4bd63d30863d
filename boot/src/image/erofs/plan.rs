//! Where everything goes, before anything is written.

use std::collections::HashMap;

use super::super::tree::{Id, Kind, ROOT, Tree};
use super::{BLOCK, SUPERBLOCK, SUPERBLOCK_LEN, directory, inode};

/// The unit in which inodes are numbered, in bytes.
const SLOT: u64 = 32;

/// Where an inode goes, and what it has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// Of the inode, in bytes; 0 where it is not reached.
    pub(super) offset: u64,
    /// What it has: a file's length, a directory's, a link's target's.
    pub(super) size: u64,
    /// How much of that is with the inode: its end.
    pub(super) inline: u64,
    /// Where the rest begins, which has whole blocks.
    pub(super) block: u32,
    pub(super) links: u32,
    /// Of a directory, where `..` leads.
    pub(super) parent: Id,
    /// Whether the small kind of inode can hold it.
    pub(super) compact: bool,
}

impl Place {
    /// The inode's number.
    pub(super) fn nid(&self) -> u64 {
        self.offset / SLOT
    }
}

/// See the module.
pub(super) struct Plan {
    /// The inodes that are reached, each before what is in it.
    pub(super) order: Vec<Id>,
    places: Vec<Place>,
    /// Of the whole, in blocks.
    pub(super) blocks: u64,
    /// The time that most files have: seconds and nanoseconds. Those of them can have small inodes.
    pub(super) time: (i64, u32),
}

impl Plan {
    /// `None` where there are more than 2^32 blocks.
    pub(super) fn new(tree: &Tree) -> Option<Self> {
        let mut plan =
            Self { order: Vec::new(), places: vec![Place::default(); tree.ids()], blocks: 0, time: (0, 0) };
        plan.walk(tree);
        plan.choose_time(tree);
        let mut at = SUPERBLOCK + SUPERBLOCK_LEN;
        for id in &plan.order {
            let place = &mut plan.places[id.0 as usize];
            at = place_inode(tree, *id, place, at, plan.time);
        }
        let mut block = at.div_ceil(BLOCK);
        for id in &plan.order {
            let place = &mut plan.places[id.0 as usize];
            place.block = u32::try_from(block).ok()?;
            block = block.checked_add((place.size - place.inline).div_ceil(BLOCK))?;
        }
        u32::try_from(block).ok()?;
        plan.blocks = block;
        Some(plan)
    }

    pub(super) fn place(&self, id: Id) -> &Place {
        &self.places[id.0 as usize]
    }

    /// Finds what is reached, in which order, and by how many names.
    fn walk(&mut self, tree: &Tree) {
        let mut next = 0;
        self.order.push(ROOT);
        self.places[ROOT.0 as usize].links = 2;
        while let Some(directory) = self.order.get(next).copied() {
            next += 1;
            for child in tree.entries(directory).into_iter().flat_map(|entries| entries.values()) {
                let is_directory = tree.entries(child.id).is_some();
                let place = &mut self.places[child.id.0 as usize];
                if place.links == 0 {
                    self.order.push(child.id);
                }
                // A directory's names are its own, its `.`, and each `..` in it.
                place.links += 1 + u32::from(is_directory);
                if is_directory {
                    place.parent = directory;
                    self.places[directory.0 as usize].links += 1;
                }
            }
        }
    }

    fn choose_time(&mut self, tree: &Tree) {
        let mut times = HashMap::new();
        for id in &self.order {
            *times.entry(tree.inode(*id).meta.mtime).or_insert(0) += 1;
        }
        // Of several as frequent the latest, so that the same tree gives the same bytes.
        let most = times.into_iter().max_by_key(|(time, count)| (*count, *time));
        self.time = most.map_or((0, 0), |(time, _)| time);
    }
}

/// Places an inode at `at` or after, and says where the next may come.
pub(super) fn place_inode(tree: &Tree, id: Id, place: &mut Place, at: u64, time: (i64, u32)) -> u64 {
    let inode = tree.inode(id);
    place.size = match &inode.kind {
        Kind::Directory(_) => directory::encode(tree, id, place.parent, |_| 0).len() as u64,
        Kind::File(content) => content.size(),
        Kind::Symlink(target) => target.len() as u64,
        _ => 0,
    };
    let small = u64::from(u16::MAX);
    place.compact = inode.meta.mtime == time
        && [inode.meta.uid, inode.meta.gid, place.links].iter().all(|n| u64::from(*n) <= small)
        && place.size <= u64::from(u32::MAX);
    let core = if place.compact { 32 } else { 64 };
    let fixed = core + inode::attributes_len(&inode.meta.xattrs);
    let tail = place.size % BLOCK;
    place.inline = if fixed + tail <= BLOCK { tail } else { 0 };
    // What must not cross a block: the inode with its tail, or the inode by itself.
    let together = if place.inline > 0 { fixed + tail } else { core };
    let mut at = at.next_multiple_of(SLOT);
    if at % BLOCK + together > BLOCK {
        at = at.next_multiple_of(BLOCK);
    }
    place.offset = at;
    at + fixed + place.inline
}
