//! The data of one request, borrowed from guest memory, and the system calls that move it without a copy.
//!
//! Guest memory is never a `&mut [u8]`, for the guest writes it too: it is pointers and lengths, which `preadv2(2)` and `pwritev2(2)`
//! take as they are.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// The pieces of guest memory that one request reads or writes, in order. They stay mapped for `'m`.
#[derive(Debug, Default)]
pub(super) struct Buffers<'m> {
    entries: Vec<libc::iovec>,
    len: u64,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl<'m> Buffers<'m> {
    /// The most pieces of one request: what one system call takes (`IOV_MAX`).
    pub(super) const MAX: usize = 1024;

    /// Takes all pieces away, and keeps the room.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.len = 0;
    }

    /// Appends a piece; false, with nothing done, where there are [`Self::MAX`] already.
    #[must_use]
    pub(super) fn push(&mut self, piece: VolatileSlice<'m>) -> bool {
        if piece.is_empty() {
            return true;
        }
        // The pointer stays valid without its guard: memory here is mmapped, so the guard holds nothing.
        let (pointer, len) = (piece.ptr_guard_mut().as_ptr(), piece.len());
        if let Some(last) = self.entries.last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == pointer
        {
            last.iov_len += len;
        } else {
            if self.entries.len() == Self::MAX {
                return false;
            }
            self.entries.push(libc::iovec { iov_base: pointer.cast(), iov_len: len });
        }
        self.len += len as u64;
        true
    }

    /// Bytes of all pieces together.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The pieces as the system calls take them. What is done with the pointers is up to who asks.
    pub(super) fn as_iovecs(&self) -> &[libc::iovec] {
        &self.entries
    }

    /// Whether each piece begins at a multiple of `memory`, and is a multiple of `block` long: both powers of two.
    pub(super) fn are_aligned(&self, memory: usize, block: usize) -> bool {
        let odd = |entry: &libc::iovec| {
            entry.iov_base.addr() & (memory - 1) != 0 || entry.iov_len & (block - 1) != 0
        };
        !self.entries.iter().any(odd)
    }

    /// Takes the first `len` bytes away.
    pub(super) fn consume(&mut self, len: u64) {
        let mut left = len.min(self.len) as usize;
        self.len -= left as u64;
        let mut whole = 0;
        for entry in &mut self.entries {
            if left < entry.iov_len {
                entry.iov_base = entry.iov_base.cast::<u8>().wrapping_add(left).cast();
                entry.iov_len -= left;
                break;
            }
            left -= entry.iov_len;
            whole += 1;
        }
        self.entries.drain(..whole);
    }

    /// Moves the first `len` bytes into `into`, which is empty: where they are, not what they are.
    pub(super) fn split_into(&mut self, len: u64, into: &mut Self) {
        into.clear();
        let mut left = len.min(self.len) as usize;
        into.len = left as u64;
        for entry in &self.entries {
            let part = entry.iov_len.min(left);
            if part == 0 {
                break;
            }
            into.entries.push(libc::iovec { iov_base: entry.iov_base, iov_len: part });
            left -= part;
        }
        self.consume(len);
    }

    /// Reads from `file` at `offset` into the pieces, as much as one system call does.
    ///
    /// # Errors
    /// Those of preadv2(2).
    pub(super) fn read_from(&mut self, file: &File, offset: u64) -> io::Result<u64> {
        let (pointer, count) = (self.entries.as_ptr(), self.entries.len() as libc::c_int);
        // SAFETY: the entries are pieces of guest memory that is mapped for `'m`, and nothing else of ours is there.
        let done = unsafe { libc::preadv2(file.as_raw_fd(), pointer, count, offset as libc::off_t, 0) };
        result(done)
    }

    /// Writes the pieces to `file` at `offset`, as much as one system call does; with `durable`, what is written is on the medium then.
    ///
    /// # Errors
    /// Those of pwritev2(2).
    pub(super) fn write_to(&self, file: &File, offset: u64, durable: bool) -> io::Result<u64> {
        let (pointer, count) = (self.entries.as_ptr(), self.entries.len() as libc::c_int);
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        // SAFETY: as in `read_from`. The guest may write meanwhile; the bytes are plain data, whatever they are.
        let done = unsafe { libc::pwritev2(file.as_raw_fd(), pointer, count, offset as libc::off_t, flags) };
        result(done)
    }

    /// Copies the first bytes of the pieces into `into`, as many as there are of both.
    pub(super) fn copy_to(&self, into: &mut [u8]) {
        self.copy(into.len(), |guest, at, len| {
            // SAFETY: `guest` is `len` bytes of guest memory that is mapped, `into[at..][..len]` is ours, and they cannot overlap.
            // The guest may write meanwhile; the bytes are plain data, whatever they come out as.
            unsafe { std::ptr::copy_nonoverlapping(guest, into[at..][..len].as_mut_ptr(), len) }
        });
    }

    /// Copies `from` into the pieces, as much as there is room for.
    pub(super) fn copy_from(&mut self, from: &[u8]) {
        self.copy(from.len(), |guest, at, len| {
            // SAFETY: as in `copy_to`, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(from[at..][..len].as_ptr(), guest, len) }
        });
    }

    /// Calls `piece(guest pointer, offset in ours, length)` for each run of the first `want` bytes.
    fn copy(&self, want: usize, mut piece: impl FnMut(*mut u8, usize, usize)) {
        let mut done = 0;
        for entry in &self.entries {
            let len = entry.iov_len.min(want - done);
            piece(entry.iov_base.cast(), done, len);
            done += len;
            if done == want {
                break;
            }
        }
    }
}

fn result(done: libc::ssize_t) -> io::Result<u64> {
    u64::try_from(done).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(buffers: &Buffers<'_>) -> String {
        let mut bytes = vec![0; buffers.len() as usize];
        buffers.copy_to(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn pieces_are_joined_split_and_consumed() {
        let mut bytes = *b"abc-defg-h";
        let memory = VolatileSlice::from(&mut bytes[..]);
        let piece = |from: usize, len| memory.subslice(from, len).unwrap();
        let (mut buffers, mut first) = (Buffers::default(), Buffers::default());
        for (from, len) in [(0, 2), (2, 1), (4, 4), (4, 0), (9, 1)] {
            assert!(buffers.push(piece(from, len)));
        }
        assert_eq!((text(&buffers).as_str(), buffers.as_iovecs().len()), ("abcdefgh", 3));
        let mut five = [0; 5];
        buffers.copy_to(&mut five);
        assert_eq!(&five, b"abcde");
        buffers.split_into(4, &mut first);
        assert_eq!((text(&first).as_str(), text(&buffers).as_str()), ("abcd", "efgh"));
        let lens: Vec<_> = first.as_iovecs().iter().map(|entry| entry.iov_len).collect();
        assert_eq!(lens, [3, 1]);
        buffers.consume(3);
        assert_eq!((text(&buffers).as_str(), buffers.as_iovecs().len()), ("h", 1));
        buffers.split_into(7, &mut first);
        assert_eq!((text(&first).as_str(), buffers.len()), ("h", 0));
        first.copy_from(b"XY");
        assert_eq!(&bytes, b"abc-defg-X");
    }

    #[test]
    fn a_request_has_so_many_pieces_and_no_more() {
        let mut bytes = [0; 8];
        let memory = VolatileSlice::from(&mut bytes[..]);
        let mut buffers = Buffers::default();
        for _ in 0..Buffers::MAX {
            assert!(buffers.push(memory.subslice(0, 4).unwrap()));
        }
        assert!(!buffers.push(memory));
    }

    #[test]
    fn addresses_are_aligned_for_memory_and_lengths_for_the_disk() {
        #[repr(align(512))]
        struct Page([u8; 4096]);
        let mut page = Page([0; 4096]);
        let memory = VolatileSlice::from(&mut page.0[..]);
        for (from, len, aligned) in [
            (0, 512, true),
            (4, 1024, true),
            (2, 512, false),
            (0, 4, false),
            (4, 508, false),
            (1024, 512, true),
        ] {
            let mut buffers = Buffers::default();
            assert!(buffers.push(memory.subslice(3072, 512).unwrap()));
            assert!(buffers.push(memory.subslice(from, len).unwrap()));
            assert_eq!(buffers.are_aligned(4, 512), aligned, "{len} bytes at {from}");
        }
    }
}
