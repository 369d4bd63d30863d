//! Reads of a disk, each of which is paid for: whatever an image says, looking through it ends.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Error;

/// What can be read at an offset: an open file or block device, or bytes in memory.
pub trait ReadAt {
    /// Fills `buffer` with what is at `offset`.
    ///
    /// # Errors
    /// It cannot be read, or ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)?.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// What looking through a disk may cost: a byte is one, and each read is as much on top as reading eight pages. So it is kernel and
/// initrd of the greatest length, and some thousand reads of what leads to them; a real disk takes some hundred.
const BUDGET: u64 = super::FILES_MAX + (256 << 20);
const EACH: u64 = 32 << 10;

/// In bytes of memory, of what all file systems of a disk keep to be read by: what journals say, and FAT's tables. That is two full
/// journals, which have half a million tags, or the table of 64 GiB.
const ROOM: u64 = 64 << 20;

/// A disk, and what may still be read of it, and kept.
pub(super) struct Source<'a> {
    reader: &'a dyn ReadAt,
    pub(super) len: u64,
    left: Cell<u64>,
    pub(super) room: Cell<u64>,
}

impl<'a> Source<'a> {
    pub(super) fn new(reader: &'a dyn ReadAt, len: u64) -> Self {
        Self { reader, len, left: Cell::new(BUDGET), room: Cell::new(ROOM) }
    }

    /// The whole of it.
    pub(super) fn whole(&self) -> Area<'_> {
        Area { source: self, start: 0, len: self.len }
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let cost = buffer.len() as u64 + EACH;
        self.left.set(self.left.get().checked_sub(cost).ok_or(Error::TooMuch { what: "to look through" })?);
        self.reader.read_exact_at(buffer, offset).map_err(|source| Error::Read { offset, source })
    }
}

/// A part of a disk, in bytes: a partition, or all of it.
#[derive(Clone, Copy)]
pub(super) struct Area<'a> {
    source: &'a Source<'a>,
    pub(super) start: u64,
    pub(super) len: u64,
}

impl<'a> Area<'a> {
    /// The part of it from `start` on, as far as both reach.
    pub(super) fn part(self, start: u64, len: u64) -> Option<Self> {
        let len = len.min(self.len.checked_sub(start)?);
        (len > 0).then(|| Self { source: self.source, start: self.start + start, len })
    }

    /// Pays for `bytes` of memory that stay with the file system in it.
    pub(super) fn keep(&self, bytes: u64) -> Result<(), Error> {
        let room = self.source.room.get().checked_sub(bytes);
        self.source.room.set(room.ok_or(Error::TooMuch { what: "in its journals and tables" })?);
        Ok(())
    }

    /// Fills `buffer` with what is at `offset` of this part.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        match offset.checked_add(buffer.len() as u64) {
            Some(end) if end <= self.len => self.source.read(buffer, self.start + offset),
            _ => Err(Error::PastTheEnd { offset: self.start.saturating_add(offset) }),
        }
    }

    /// `len` bytes from `offset` on.
    pub(super) fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(Error::PastTheEnd { offset: self.start.saturating_add(offset) });
        }
        let mut bytes = vec![0; len];
        self.read(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// The same, where they are there.
    pub(super) fn peek(&self, offset: u64, len: usize) -> Result<Option<Vec<u8>>, Error> {
        match self.bytes(offset, len) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::PastTheEnd { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The little-endian number at `offset`; zero where `bytes` end before.
pub(super) fn le16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array(bytes, offset))
}

/// The same of four bytes.
pub(super) fn le32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array(bytes, offset))
}

/// The same of eight bytes.
pub(super) fn le64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array(bytes, offset))
}

/// The big-endian number at `offset`; zero where `bytes` end before.
pub(super) fn be32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(array(bytes, offset))
}

/// `N` bytes at `offset`; zeros where `bytes` end before.
pub(super) fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let found = offset.checked_add(N).and_then(|end| bytes.get(offset..end));
    found.map_or([0; N], |found| found.try_into().expect("it is as long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_what_both_it_and_the_whole_reach() {
        let bytes: Vec<u8> = (0..100).collect();
        let source = Source::new(&bytes, 100);
        let area = source.whole().part(20, 50).unwrap();
        let part = |start, len| area.part(start, len).map(|part| (part.start, part.len));
        for (start, len, reached) in [
            (0, 50, Some((20, 50))),
            (0, 51, Some((20, 50))),
            (0, u64::MAX, Some((20, 50))),
            (49, 1, Some((69, 1))),
            (49, 2, Some((69, 1))),
            (10, 0, None),
            (50, 0, None),
            (50, 1, None),
            (51, 1, None),
            (u64::MAX, u64::MAX, None),
        ] {
            assert_eq!(part(start, len), reached, "{start} {len}");
        }
    }

    #[test]
    fn a_part_is_read_up_to_its_end_and_not_what_is_behind() {
        let bytes: Vec<u8> = (0..100).collect();
        let source = Source::new(&bytes, 100);
        let area = source.whole().part(20, 50).unwrap();
        let read = |offset, len: usize| {
            let mut buffer = vec![0xff; len];
            let filled = area.read(&mut buffer, offset).map(|()| buffer);
            assert_eq!(format!("{:?}", area.bytes(offset, len)), format!("{filled:?}"));
            filled
        };
        for (offset, len) in [(0, 50), (0, 0), (49, 1), (50, 0), (10, 20)] {
            let from = 20 + offset as usize;
            assert_eq!(read(offset, len).unwrap(), bytes[from..from + len], "{offset} {len}");
        }
        for (offset, len) in [(0, 51), (49, 2), (50, 1), (51, 0), (u64::MAX, 0), (u64::MAX, 1)] {
            let at = u64::saturating_add(20, offset);
            let error = read(offset, len).unwrap_err();
            assert!(
                matches!(error, Error::PastTheEnd { offset } if offset == at),
                "{offset} {len} {error:?}"
            );
            assert!(area.peek(offset, len).unwrap().is_none());
        }
    }
}
