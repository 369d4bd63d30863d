//! Where the pieces of a sparse file stand (GNU tar's manual, "Storing Sparse Files": old GNU, 0.0, 0.1, 1.0).

use std::io::{self, BufRead, Read};

use super::super::span::Span;
use super::super::tree::Sparse;
use super::header::{BLOCK, number};
use super::pax::decimal;

/// More pieces than any file system makes of a file that is worth it; 16 MiB of memory.
const PIECES_MAX: usize = 1 << 20;

/// The offset and the length of each piece.
#[derive(Debug, Default)]
pub(super) struct Map(Vec<(u64, u64)>);

impl Map {
    /// Adds entries of 24 bytes, which a byte follows that says whether there are more in another block.
    pub(super) fn add_old(&mut self, entries: &[u8]) -> Option<bool> {
        let (more, entries) = entries.split_last()?;
        for entry in entries.chunks_exact(24) {
            // One that is all zeros is not used.
            if entry[0] == 0 {
                break;
            }
            let (offset, len) = entry.split_at(12);
            self.push(number(offset)?.try_into().ok()?, number(len)?.try_into().ok()?)?;
        }
        Some(*more != 0)
    }

    fn push(&mut self, offset: u64, len: u64) -> Option<()> {
        (self.0.len() < PIECES_MAX).then(|| self.0.push((offset, len)))
    }

    /// Of offsets and lengths in turn, of which extended headers have room for less than half of [`PIECES_MAX`].
    pub(super) fn of_pairs(numbers: &[u64]) -> Option<Self> {
        let (pairs, rest) = numbers.as_chunks::<2>();
        rest.is_empty().then(|| Self(pairs.iter().map(|[offset, len]| (*offset, *len)).collect()))
    }

    /// Of lines of text at the beginning of the data, padded to a block; and the data after it.
    pub(super) fn of_data(data: &Span) -> io::Result<Option<(Self, Span)>> {
        let mut lines = data.reader();
        let mut read = 0;
        let mut number = || -> io::Result<Option<u64>> {
            let mut line = Vec::new();
            // A number has at most 20 digits.
            read += (&mut lines).take(21).read_until(b'\n', &mut line)? as u64;
            Ok(line.strip_suffix(b"\n").and_then(decimal))
        };
        let Some(count) = number()? else { return Ok(None) };
        let mut map = Self::default();
        for _ in 0..count {
            let (Some(offset), Some(len)) = (number()?, number()?) else { return Ok(None) };
            if map.push(offset, len).is_none() {
                return Ok(None);
            }
        }
        let begin = read.next_multiple_of(BLOCK as u64);
        Ok(data.len.checked_sub(begin).and_then(|len| data.part(begin, len)).map(|data| (map, data)))
    }

    /// The file of `size` bytes whose pieces `data` has; `None` where the map does not describe one.
    pub(super) fn check(mut self, data: Span, size: u64) -> Option<Sparse> {
        let (mut end, mut stored) = (0, 0_u64);
        for (offset, len) in &self.0 {
            if *offset < end {
                return None;
            }
            end = offset.checked_add(*len).filter(|end| *end <= size)?;
            stored = stored.checked_add(*len)?;
        }
        // A piece of nothing marks where the file ends.
        self.0.retain(|(_, len)| *len > 0);
        (stored == data.len && size <= i64::MAX as u64).then(|| Sparse { data, size, pieces: self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::span::unnamed;

    /// What a map of these pieces makes of so many bytes of data: its size and pieces.
    fn checked(numbers: &[u64], data: u64, size: u64) -> Option<(u64, Vec<(u64, u64)>)> {
        let data = Span::whole(unnamed(&std::env::temp_dir()).unwrap(), data);
        let sparse = Map::of_pairs(numbers)?.check(data, size)?;
        Some((sparse.size, sparse.pieces))
    }

    #[test]
    fn pieces_are_in_order_within_the_file_and_all_of_the_data() {
        let last = i64::MAX as u64;
        for (numbers, data, size, pieces) in [
            (&[][..], 0, 0, Some(vec![])),
            (&[0, 4], 4, 4, Some(vec![(0, 4)])),
            (&[0, 4, 4, 4], 8, 9, Some(vec![(0, 4), (4, 4)])),
            // Pieces of nothing are none, wherever they stand.
            (&[0, 0, 1, 2, 3, 0, 9, 0], 2, 9, Some(vec![(1, 2)])),
            (&[last - 1, 1], 1, last, Some(vec![(last - 1, 1)])),
            (&[0, 5], 5, 4, None),
            (&[0, 4, 3, 4], 8, 9, None),
            (&[4, 4, 0, 4], 8, 9, None),
            (&[0, 4], 3, 4, None),
            (&[0, 4], 5, 5, None),
            (&[5, 0], 0, 4, None),
            (&[0, 4, 4], 4, 4, None),
            (&[u64::MAX, 1], 1, u64::MAX, None),
            (&[0, 1], 1, last + 1, None),
        ] {
            let expected = pieces.map(|pieces| (size, pieces));
            assert_eq!(checked(numbers, data, size), expected, "{numbers:?} {data} {size}");
        }
    }

    #[test]
    fn there_are_so_many_pieces_and_no_more() {
        let mut map = Map(vec![(0, 0); PIECES_MAX - 1]);
        assert_eq!((map.push(1, 2), map.push(3, 4)), (Some(()), None));
        assert_eq!((map.0.len(), map.0.last()), (PIECES_MAX, Some(&(1, 2))));
    }
}
