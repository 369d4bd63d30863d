//! The buffers of one frame, borrowed from guest memory for one system call.
//!
//! Guest memory is never a `&mut [u8]`, for the guest writes it too: it is a pointer and a length, which `readv(2)` and
//! `writev(2)` take as they are, and which [`Iov::read_at`] and [`Iov::write_at`] copy a few header bytes from and to.
#![allow(unsafe_code)]

#[cfg(test)]
mod tests;

use std::marker::PhantomData;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// Asks the processor for the cache lines of `memory`, without waiting for them: the guest wrote them on another core, and to
/// meet each only when it is needed costs as much as a third of what a small frame does.
#[inline]
pub fn prefetch(memory: &VolatileSlice<'_>) {
    const LINE: usize = 64;
    let (start, len) = (memory.ptr_guard().as_ptr(), memory.len());
    // From the start of the first line: each line that the bytes touch has one step.
    let mut line = start.map_addr(|addr| addr - addr % LINE);
    let end = start.addr() + len;
    while line.addr() < end {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch reads nothing that the program sees and cannot fault, whatever the address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast())
        };
        line = line.wrapping_add(LINE);
    }
}

/// Room for the buffers of one frame, allocated once and used again for each.
#[derive(Debug)]
pub struct IovBuffer {
    /// Empty except while an [`Iov`] borrows it, or is [kept](Iov::keep).
    entries: Vec<libc::iovec>,
    /// Bytes of what is kept.
    kept: usize,
}

// SAFETY: an `iovec` is not Send for its pointer. While an `Iov` borrows the buffer, it cannot be moved to another thread; else what
// is in here is numbers, until `resume` has seen them to be of memory that is there.
unsafe impl Send for IovBuffer {}

impl IovBuffer {
    /// The most buffers that one frame may have: what one `readv(2)` takes (`IOV_MAX`).
    pub const MAX: usize = 1024;

    /// Room for [`Self::MAX`] buffers.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        // The byte of `with_spill` finds room behind entries that are consumed.
        Self { entries: Vec::with_capacity(Self::MAX + 1), kept: 0 }
    }

    /// Starts a frame without buffers.
    pub fn start(&mut self) -> Iov<'_> {
        self.entries.clear();
        self.kept = 0;
        Iov { entries: &mut self.entries, kept: &mut self.kept, consumed: 0, len: 0, memory: PhantomData }
    }

    /// Goes on with the buffers that were [kept](Iov::keep), if all of them are in `memory`, each in one region; else without any.
    pub fn resume<'m>(&'m mut self, memory: &'m GuestMemoryMmap) -> Iov<'m> {
        let within = |entry: &libc::iovec| {
            let start = entry.iov_base.addr();
            memory.iter().any(|region| {
                let offset = start.wrapping_sub(region.as_ptr().addr());
                offset < region.size() && entry.iov_len <= region.size() - offset
            })
        };
        if !self.entries.iter().all(within) {
            return self.start();
        }
        let len = std::mem::take(&mut self.kept);
        Iov { entries: &mut self.entries, kept: &mut self.kept, consumed: 0, len, memory: PhantomData }
    }

    /// Starts a frame of `front` and what `frame` has behind its first `skip` bytes. No byte is copied, only where the
    /// buffers are. The flag is false where the last buffer of [`Self::MAX`] had to stay out.
    pub(crate) fn start_behind<'a>(
        &'a mut self,
        front: VolatileSlice<'a>,
        frame: &'a Iov<'_>,
        mut skip: usize,
    ) -> (Iov<'a>, bool) {
        let mut view = self.start();
        let mut whole = view.push(front);
        for entry in frame.as_iovecs() {
            let skipped = skip.min(entry.iov_len);
            skip -= skipped;
            if skipped < entry.iov_len {
                whole = view.entries.len() < Self::MAX;
                if !whole {
                    break;
                }
                view.add_behind(entry, skipped);
            }
        }
        (view, whole)
    }
}

/// The buffers of one frame, in order: guest memory that stays mapped for `'m`.
///
/// Buffers that follow each other in memory are one here. A Linux guest cuts its receive buffers out of large pages, one behind
/// the other, and to read each buffer's address and length takes the kernel a good part of what a small frame does.
#[derive(Debug)]
pub struct Iov<'m> {
    entries: &'m mut Vec<libc::iovec>,
    kept: &'m mut usize,
    /// How many of the entries, from the front, are no part of it any more.
    consumed: usize,
    len: usize,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl Drop for Iov<'_> {
    fn drop(&mut self) {
        self.entries.clear();
    }
}

impl<'m> Iov<'m> {
    /// Appends a buffer; false, with nothing done, where the frame has [`IovBuffer::MAX`] already.
    #[must_use]
    pub fn push(&mut self, buffer: VolatileSlice<'m>) -> bool {
        // The pointer stays valid without its guard: memory here is mmapped, so the guard holds nothing.
        let (pointer, len) = (buffer.ptr_guard_mut().as_ptr(), buffer.len());
        if let Some(last) = self.entries[self.consumed..].last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == pointer
        {
            last.iov_len += len;
        } else {
            if self.buffers() == IovBuffer::MAX {
                return false;
            }
            if self.entries.len() == IovBuffer::MAX {
                self.entries.drain(..self.consumed);
                self.consumed = 0;
            }
            self.entries.push(libc::iovec { iov_base: pointer.cast(), iov_len: len });
        }
        self.len += len;
        true
    }

    /// Leaves the buffers to a [`resume`](IovBuffer::resume).
    pub fn keep(self) {
        self.entries.drain(..self.consumed);
        *self.kept = self.len;
        std::mem::forget(self);
    }

    /// Takes all buffers away.
    #[inline]
    pub fn clear(&mut self) {
        self.entries.clear();
        (self.consumed, self.len) = (0, 0);
    }

    /// Appends what `frame` has behind its first `skip` bytes. No byte is copied, only where the buffers are. False, with nothing done,
    /// where there would be more buffers than [`IovBuffer::MAX`] less one, which is left to a header in front.
    #[inline]
    #[must_use]
    pub fn append(&mut self, frame: &Iov<'m>, mut skip: usize) -> bool {
        if self.buffers() + frame.buffers() >= IovBuffer::MAX {
            return false;
        }
        for entry in frame.as_iovecs() {
            let skipped = skip.min(entry.iov_len);
            skip -= skipped;
            if skipped < entry.iov_len {
                self.add_behind(entry, skipped);
            }
        }
        true
    }

    /// Adds what a buffer has behind its first `skipped` bytes as a buffer of its own.
    #[inline]
    fn add_behind(&mut self, entry: &libc::iovec, skipped: usize) {
        let base = entry.iov_base.cast::<u8>().wrapping_add(skipped).cast();
        let len = entry.iov_len - skipped;
        self.entries.push(libc::iovec { iov_base: base, iov_len: len });
        self.len += len;
    }

    /// Takes the first `len` bytes away, so that what follows them is the room for the next frame: gathering the room for a
    /// large frame costs more than receiving a small one into it.
    pub fn consume(&mut self, len: usize) {
        let mut left = len.min(self.len);
        self.len -= left;
        for entry in &mut self.entries[self.consumed..] {
            if left < entry.iov_len {
                entry.iov_base = entry.iov_base.cast::<u8>().wrapping_add(left).cast();
                entry.iov_len -= left;
                break;
            }
            left -= entry.iov_len;
            self.consumed += 1;
        }
    }

    /// Takes away all but the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        while self.len > len
            && let Some(last) = self.entries.last_mut()
        {
            let more = (self.len - len).min(last.iov_len);
            last.iov_len -= more;
            self.len -= more;
            if last.iov_len == 0 {
                self.entries.pop();
            }
        }
    }

    /// Bytes in all buffers together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without a byte of room.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many buffers there are, as the system calls count them.
    pub fn buffers(&self) -> usize {
        self.entries.len() - self.consumed
    }

    /// The buffers as the system calls take them.
    pub(crate) fn as_iovecs(&self) -> &[libc::iovec] {
        &self.entries[self.consumed..]
    }

    /// Calls `call` with the buffers and `spill` as one more behind them, or, where there are [`IovBuffer::MAX`] already,
    /// with the buffers and `false`.
    pub(crate) fn with_spill<R>(
        &mut self,
        spill: &mut u8,
        call: impl FnOnce(&[libc::iovec], bool) -> R,
    ) -> R {
        let room = self.buffers() < IovBuffer::MAX;
        if room {
            self.entries.push(libc::iovec { iov_base: std::ptr::from_mut(spill).cast(), iov_len: 1 });
        }
        let result = call(self.as_iovecs(), room);
        if room {
            self.entries.pop();
        }
        result
    }

    /// Copies bytes from `offset` on into `into`, and returns how many there were.
    #[inline]
    pub fn read_at(&self, offset: usize, into: &mut [u8]) -> usize {
        self.copy(offset, into.len(), |guest, at, len| {
            // SAFETY: `guest` is `len` bytes of mapped guest memory (see `push`; it may be of two mappings, one behind the
            // other), `into[at..][..len]` is ours, and they cannot overlap. The guest may write meanwhile; the bytes are plain
            // data, whatever they come out as.
            unsafe { std::ptr::copy_nonoverlapping(guest, into[at..][..len].as_mut_ptr(), len) }
        })
    }

    /// Copies `from` into the buffers from `offset` on, and returns how many bytes found room.
    pub fn write_at(&mut self, offset: usize, from: &[u8]) -> usize {
        self.copy(offset, from.len(), |guest, at, len| {
            // SAFETY: as in `read_at`, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(from[at..][..len].as_ptr(), guest, len) }
        })
    }

    /// Calls `piece(guest pointer, offset in ours, length)` for each contiguous run of `[offset, offset + want)`.
    #[inline]
    fn copy(&self, offset: usize, want: usize, mut piece: impl FnMut(*mut u8, usize, usize)) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for entry in self.as_iovecs() {
            if skip >= entry.iov_len {
                skip -= entry.iov_len;
                continue;
            }
            let len = (entry.iov_len - skip).min(want - done);
            piece(entry.iov_base.cast::<u8>().wrapping_add(skip), done, len);
            skip = 0;
            done += len;
            if done == want {
                break;
            }
        }
        done
    }
}
