//! Reads tar archives: POSIX ustar and pax (IEEE 1003.1, "pax Interchange Format"), GNU's long names, numbers and sparse files, and the
//! headers of Unix V7.
//!
//! By hand rather than with the crate `tar`: that one knows no sparse files of the pax kind, bounds no extended header, and reads as a
//! stream, whereas here a file's bytes stay where they lie.

mod header;
mod pax;
mod sparse;

use std::io;

use super::fault::Fault;
use super::limits::Budget;
use super::span::Span;
use super::tree::{Bytes, Content, Meta, Sparse};
use header::{BLOCK, Header};
use pax::Pax;

/// In bytes, of all extended headers of a file, and of all that are for every file: more than Linux lets one have in names and attributes.
const EXTENDED_MAX: u64 = 1 << 20;

/// A file of an archive.
#[derive(Debug)]
pub(super) struct Entry {
    /// As the archive has it.
    pub(super) name: Vec<u8>,
    pub(super) kind: EntryKind,
    pub(super) meta: Meta,
}

/// What a file of an archive is.
#[derive(Debug)]
pub(super) enum EntryKind {
    Directory,
    File(Content),
    Symlink(Bytes),
    /// To the file of this name.
    HardLink(Vec<u8>),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Goes through an archive, header by header.
pub(super) struct Reader<'a> {
    span: &'a Span,
    at: u64,
    global: Pax,
    /// In bytes, of the headers that `global` was read from.
    global_len: u64,
    /// Whether an archive without its end mark is complete: a digest says so.
    vouched: bool,
}

/// Whether what begins with `block` can be a tar archive: a header with its checksum, or the end mark of an empty one.
pub(super) fn recognize(block: &[u8]) -> bool {
    block
        .first_chunk::<BLOCK>()
        .is_some_and(|block| block.iter().all(|b| *b == 0) || Header(block).is_valid())
}

impl<'a> Reader<'a> {
    pub(super) fn new(span: &'a Span, vouched: bool) -> Self {
        Self { span, at: 0, global: Pax::default(), global_len: 0, vouched }
    }

    /// The next file; `None` at the end. Extended headers are paid for by `budget`.
    pub(super) fn next(&mut self, budget: &mut Budget) -> Result<Option<Entry>, Fault> {
        let mut local = Pax::default();
        let mut local_len = 0;
        let (mut long_name, mut long_link) = (None, None);
        // The headers before the file's own one, of which only these can be many; each takes a block at least.
        loop {
            let at = self.at;
            let Some(block) = self.block(local.is_empty() && long_name.is_none() && long_link.is_none())?
            else {
                return Ok(None);
            };
            let header = Header(&block);
            if !header.is_valid() {
                return Err(Fault::NoHeader { at });
            }
            let size = header.size().ok_or(Fault::Number { at, field: "size" })?;
            match header.kind() {
                b'x' | b'X' => {
                    let records = self.extended(size, &mut local_len, budget)?;
                    local.read(&records).ok_or(Fault::Extended { at })?;
                }
                b'g' => {
                    let mut len = self.global_len;
                    let records = self.extended(size, &mut len, budget)?;
                    self.global_len = len;
                    self.global.read_global(&records).ok_or(Fault::Extended { at })?;
                }
                b'L' => {
                    let text = self.extended(size, &mut local_len, budget)?;
                    long_name = Some(until_nul(&text).to_vec());
                }
                b'K' => {
                    let text = self.extended(size, &mut local_len, budget)?;
                    long_link = Some(until_nul(&text).to_vec());
                }
                // A label of the volume.
                b'V' => {}
                _ => {
                    // Each file gets its own.
                    budget.metadata(self.global.kept())?;
                    let pax = self.global.with(local);
                    return self.entry(at, &header, size, pax, long_name, long_link).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        at: u64,
        header: &Header<'_>,
        size: u64,
        mut pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, Fault> {
        let number = |field, value: Option<i64>| value.ok_or(Fault::Number { at, field });
        let id = |field, value: Option<u64>| {
            value.and_then(|value| u32::try_from(value).ok()).ok_or(Fault::Number { at, field })
        };
        let name = pax.name().or(long_name).unwrap_or_else(|| header.name());
        if name.is_empty() {
            return Err(Fault::NoName { at });
        }
        let link = pax.link.take().or(long_link).unwrap_or_else(|| header.link().to_vec());
        let meta = Meta {
            mode: (number("mode", header.mode())? & 0o7777) as u16,
            uid: id("owner", pax.uid.or(header.uid()))?,
            gid: id("group", pax.gid.or(header.gid()))?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (number("time", header.mtime())?, 0),
            },
            xattrs: std::mem::take(&mut pax.xattrs).into_iter().collect(),
        };
        let device = || {
            let (major, minor) = header.device();
            // Linux has no larger ones (`MAJOR` and `MINOR` of a `dev_t`).
            let major = id("device number", major.filter(|major| *major < 1 << 12))?;
            Ok((major, id("device number", minor.filter(|minor| *minor < 1 << 20))?))
        };
        let stored = pax.size.unwrap_or(size);
        let kind = match header.kind() {
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link.into()),
            b'3' => device().map(|(major, minor)| EntryKind::CharacterDevice(major, minor))?,
            b'4' => device().map(|(major, minor)| EntryKind::BlockDevice(major, minor))?,
            b'5' | b'D' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'M' => return Err(Fault::Volumes { name: super::fault::shown(&name) }),
            b'S' => EntryKind::File(self.old_sparse(header, stored, &name)?),
            // By old archives a directory is a file whose name ends so.
            0 | b'0' if name.ends_with(b"/") => EntryKind::Directory,
            // What is not known is to be taken as a file, says POSIX.
            _ if pax.is_sparse() => EntryKind::File(self.sparse(&pax, stored, &name)?),
            _ => EntryKind::File(Content::Whole(self.data(stored)?)),
        };
        // What else has a size has data after it, but for links and devices: by old archives theirs is their file's.
        if matches!(kind, EntryKind::Directory) {
            self.data(stored)?;
        }
        Ok(Entry { name, kind, meta })
    }

    /// The next block; `None` at the end of the archive, where it may end.
    fn block(&mut self, may_end: bool) -> Result<Option<[u8; BLOCK]>, Fault> {
        let mut block = [0; BLOCK];
        match self.span.read_at(&mut block, self.at).map_err(|source| Fault::Read { at: self.at, source })? {
            0 if may_end && self.vouched => return Ok(None),
            0 => return Err(Fault::Truncated { at: self.at, what: "the archive's end mark" }),
            n if n < BLOCK => return Err(Fault::Truncated { at: self.at, what: "a whole header" }),
            _ => {}
        }
        // Two blocks of zeros are the end mark; one alone is taken for it, too.
        if block.iter().all(|byte| *byte == 0) {
            return if may_end { Ok(None) } else { Err(Fault::NoHeader { at: self.at }) };
        }
        self.at += BLOCK as u64;
        Ok(Some(block))
    }

    /// The next `len` bytes, and on to the next header.
    fn data(&mut self, len: u64) -> Result<Span, Fault> {
        let missing = Fault::Truncated { at: self.span.len, what: "data of a file" };
        let Some(span) = self.span.part(self.at, len) else { return Err(missing) };
        self.at = (self.at + len).next_multiple_of(BLOCK as u64);
        Ok(span)
    }

    /// What an extended header has, after `before` bytes of others that belong to the same.
    fn extended(&mut self, len: u64, before: &mut u64, budget: &mut Budget) -> Result<Vec<u8>, Fault> {
        let at = self.at;
        *before = before.saturating_add(len);
        if *before > EXTENDED_MAX {
            return Err(Fault::ExtendedTooLong { at, len: *before, limit: EXTENDED_MAX });
        }
        budget.metadata(len as usize)?;
        let mut bytes = vec![0; len as usize];
        let unreadable = |source: io::Error| Fault::Read { at, source };
        self.data(len)?.read_exact_at(&mut bytes, 0).map_err(unreadable)?;
        Ok(bytes)
    }

    fn old_sparse(&mut self, header: &Header<'_>, stored: u64, name: &[u8]) -> Result<Content, Fault> {
        let mut map = sparse::Map::default();
        let malformed = || Fault::SparseMap { name: super::fault::shown(name) };
        let size = header.real_size().ok_or_else(malformed)?;
        let mut more = map.add_old(&header.0[386..483]).ok_or_else(malformed)?;
        while more {
            let block = self.block(false)?.ok_or_else(malformed)?;
            more = map.add_old(&block[..505]).ok_or_else(malformed)?;
        }
        let data = self.data(stored)?;
        Ok(Content::Sparse(Box::new(map.check(data, size).ok_or_else(malformed)?)))
    }

    fn sparse(&mut self, pax: &Pax, stored: u64, name: &[u8]) -> Result<Content, Fault> {
        let malformed = || Fault::SparseMap { name: super::fault::shown(name) };
        let at = self.at;
        let mut data = self.data(stored)?;
        let map = if pax.sparse_in_data() {
            let (map, rest) = sparse::Map::of_data(&data)
                .map_err(|source| Fault::Read { at, source })?
                .ok_or_else(malformed)?;
            data = rest;
            map
        } else {
            sparse::Map::of_pairs(&pax.sparse_map).ok_or_else(malformed)?
        };
        let size = pax.sparse_size.ok_or_else(malformed)?;
        let sparse: Sparse = map.check(data, size).ok_or_else(malformed)?;
        Ok(Content::Sparse(Box::new(sparse)))
    }
}

/// A field of text, which a NUL ends where it is not full.
fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}
