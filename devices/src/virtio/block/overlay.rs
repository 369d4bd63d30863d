//! What was written since a disk was opened, beside a file that stays as it is.
//!
//! A sector is in the one or in the other, never in part, so that nothing is copied when one is written, and queues need no lock:
//! what two of them do to the same sector at once is as undefined as on any disk.

use std::fs::File;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::SECTOR;

/// Sectors that one part of the map has: 16 MiB of disk in a page.
const PART: u64 = 64 * WORDS as u64;
const WORDS: usize = 512;

type Part = Box<[AtomicU64; WORDS]>;

/// A file with what was written, and a map of where that is.
#[derive(Debug)]
pub(super) struct Overlay {
    pub(super) file: File,
    /// A bit for each sector that is in the file; parts without one are not there.
    map: Vec<OnceLock<Part>>,
}

impl Overlay {
    /// Nothing is written yet on a disk of so many bytes.
    pub(super) fn new(file: File, bytes: u64) -> Self {
        let parts = bytes.div_ceil(PART * SECTOR);
        Self { file, map: (0..parts).map(|_| OnceLock::new()).collect() }
    }

    /// Whether what is at `offset` was written, and how many of `len` bytes from there on are like that.
    pub(super) fn run(&self, offset: u64, len: u64) -> (bool, u64) {
        let (first, last) = (offset / SECTOR, (offset + len) / SECTOR);
        let written = self.is_written(first);
        let mut end = first + 1;
        while end < last {
            // A part that is not there is passed at once.
            match self.part(end).get() {
                None if !written => end = last.min((end / PART + 1) * PART),
                None => break,
                Some(_) if self.is_written(end) != written => break,
                Some(_) => end += 1,
            }
        }
        (written, (end - first) * SECTOR)
    }

    /// Says that `len` bytes from `offset` on are in the file now.
    pub(super) fn set_written(&self, offset: u64, len: u64) {
        for sector in offset / SECTOR..(offset + len) / SECTOR {
            let part = self.part(sector).get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS]));
            // Release: who sees the bit sees the bytes.
            part[word(sector)].fetch_or(1 << (sector % 64), Ordering::Release);
        }
    }

    fn is_written(&self, sector: u64) -> bool {
        let load = |part: &Part| part[word(sector)].load(Ordering::Acquire) & 1 << (sector % 64) != 0;
        self.part(sector).get().is_some_and(load)
    }

    fn part(&self, sector: u64) -> &OnceLock<Part> {
        &self.map[(sector / PART) as usize]
    }
}

fn word(sector: u64) -> usize {
    (sector % PART / 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_what_was_written_does() {
        let overlay = Overlay::new(File::open("/dev/null").unwrap(), 3 * PART * SECTOR + SECTOR);
        let whole = 3 * PART * SECTOR + SECTOR;
        assert_eq!(overlay.run(0, whole), (false, whole));
        let from = (PART - 1) * SECTOR;
        overlay.set_written(from, 2 * SECTOR);
        overlay.set_written(2 * PART * SECTOR + 64 * SECTOR, SECTOR);
        assert_eq!(overlay.run(0, whole), (false, from));
        assert_eq!(overlay.run(from, whole - from), (true, 2 * SECTOR));
        assert_eq!(overlay.run(from, SECTOR), (true, SECTOR));
        let behind = from + 2 * SECTOR;
        let next = 2 * PART * SECTOR + 64 * SECTOR;
        assert_eq!(overlay.run(behind, whole - behind), (false, next - behind));
        assert_eq!(overlay.run(next, whole - next), (true, SECTOR));
        assert_eq!(overlay.run(next + SECTOR, whole - next - SECTOR), (false, whole - next - SECTOR));
        assert_eq!(overlay.map.iter().filter(|part| part.get().is_some()).count(), 3);
        overlay.set_written(whole - SECTOR, SECTOR);
        assert_eq!(overlay.run(whole - SECTOR, SECTOR), (true, SECTOR));
        // Before a part that is not there.
        let overlay = Overlay::new(File::open("/dev/null").unwrap(), 2 * PART * SECTOR);
        overlay.set_written(from, SECTOR);
        assert_eq!(overlay.run(from, 2 * SECTOR), (true, SECTOR));
    }
}
