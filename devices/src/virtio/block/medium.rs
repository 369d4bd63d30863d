//! What a disk's bytes are on: a file or block device of the host, with whatever was written beside it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;

use super::buffers::Buffers;
use super::overlay::Overlay;
use super::request::Range;

/// A disk, opened: what its owner knows of it.
#[derive(Debug)]
pub struct Medium {
    /// The file or block device. It is open for writing unless it is read-only or there is an overlay.
    pub file: File,
    /// Its size in bytes, a multiple of its logical block.
    pub bytes: u64,
    /// The guest may not write.
    pub read_only: bool,
    /// A file of holes, as long as the disk, that takes all that is written, while `file` stays as it is.
    pub overlay: Option<File>,
    /// The file is open without the host's cache (`O_DIRECT`), and memory that it reads and writes is aligned to so many bytes.
    pub direct: Option<u32>,
    /// The unit in which the guest reads and writes, in bytes: a power of two, 512 or more.
    pub logical_block: u32,
    /// The unit in which that is fast, in bytes: a power of two, no less than the logical block.
    pub physical_block: u32,
    /// What the guest discards can be given back to the host.
    pub discards: bool,
}

/// The bytes of a disk, which its queues read and write all at once.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) medium: Medium,
    overlay: Option<Overlay>,
}

/// Bytes that are copied at once.
const CHUNK: usize = 1 << 18;

impl Store {
    pub(super) fn new(mut medium: Medium) -> Self {
        let overlay = medium.overlay.take().map(|file| Overlay::new(file, medium.bytes));
        Self { medium, overlay }
    }

    /// The file that is read and written at the guest's own offsets, where there is just one.
    pub(super) fn plain(&self) -> Option<&File> {
        self.overlay.is_none().then_some(&self.medium.file)
    }

    /// Whether the file takes these pieces as they are. Linux before 6.0 wants each to be whole blocks.
    pub(super) fn takes(&self, buffers: &Buffers<'_>) -> bool {
        let block = self.medium.logical_block as usize;
        self.medium.direct.is_none_or(|memory| buffers.are_aligned(memory as usize, block))
    }

    /// Reads into all of `buffers`.
    ///
    /// # Errors
    /// The host cannot, or the file has become shorter than the disk.
    pub(super) fn read(&self, buffers: &mut Buffers<'_>, mut offset: u64) -> io::Result<()> {
        let Some(overlay) = &self.overlay else { return self.read_file(&self.medium.file, buffers, offset) };
        let mut part = Buffers::default();
        while buffers.len() > 0 {
            let (written, len) = overlay.run(offset, buffers.len());
            buffers.split_into(len, &mut part);
            let file = if written { &overlay.file } else { &self.medium.file };
            self.read_file(file, &mut part, offset)?;
            offset += len;
        }
        Ok(())
    }

    fn read_file(&self, file: &File, buffers: &mut Buffers<'_>, mut offset: u64) -> io::Result<()> {
        if !self.takes(buffers) {
            let mut room = self.room(buffers.len());
            let room = room.bytes();
            while buffers.len() > 0 {
                let len = room.len().min(buffers.len() as usize);
                file.read_exact_at(&mut room[..len], offset)?;
                buffers.copy_from(&room[..len]);
                buffers.consume(len as u64);
                offset += len as u64;
            }
        }
        while buffers.len() > 0 {
            match again(|| buffers.read_from(file, offset))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                done => {
                    buffers.consume(done);
                    offset += done;
                }
            }
        }
        Ok(())
    }

    /// Writes all of `buffers`; with `durable`, they are on the medium then.
    ///
    /// # Errors
    /// The host cannot.
    pub(super) fn write(&self, buffers: &mut Buffers<'_>, offset: u64, durable: bool) -> io::Result<()> {
        let Some(overlay) = &self.overlay else {
            return self.write_file(&self.medium.file, buffers, offset, durable);
        };
        let len = buffers.len();
        self.write_file(&overlay.file, buffers, offset, false)?;
        overlay.set_written(offset, len);
        Ok(())
    }

    fn write_file(
        &self,
        file: &File,
        buffers: &mut Buffers<'_>,
        mut offset: u64,
        durable: bool,
    ) -> io::Result<()> {
        if !self.takes(buffers) {
            let mut room = self.room(buffers.len());
            let room = room.bytes();
            while buffers.len() > 0 {
                let len = room.len().min(buffers.len() as usize);
                buffers.copy_to(&mut room[..len]);
                file.write_all_at(&room[..len], offset)?;
                buffers.consume(len as u64);
                offset += len as u64;
            }
            if durable {
                sync(file)?;
            }
        }
        while buffers.len() > 0 {
            match again(|| buffers.write_to(file, offset, durable))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                done => {
                    buffers.consume(done);
                    offset += done;
                }
            }
        }
        Ok(())
    }

    /// Has all that was written be on the medium. What is lost at the end anyway is not.
    ///
    /// # Errors
    /// The host cannot.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.plain().map_or(Ok(()), sync)
    }

    /// Gives a range back to the host.
    ///
    /// # Errors
    /// The host cannot.
    pub(super) fn discard(&self, range: Range) -> io::Result<()> {
        match self.overlay {
            None => reserve(&self.medium.file, PUNCH, range),
            // What is below must not show through.
            Some(_) => self.write_zeroes(Range { unmap: true, ..range }, false),
        }
    }

    /// Has a range read as zeroes.
    ///
    /// # Errors
    /// The host cannot.
    pub(super) fn write_zeroes(&self, range: Range, durable: bool) -> io::Result<()> {
        let file = self.overlay.as_ref().map_or(&self.medium.file, |overlay| &overlay.file);
        let how = if range.unmap { PUNCH } else { FallocateFlags::ZERO_RANGE.union(KEEP) };
        match reserve(file, how, range) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {
                let mut room = self.room(range.len);
                let room = room.bytes();
                let (mut offset, mut left) = (range.offset, range.len);
                while left > 0 {
                    let len = left.min(room.len() as u64);
                    file.write_all_at(&room[..len as usize], offset)?;
                    (offset, left) = (offset + len, left - len);
                }
            }
            done => done?,
        }
        match &self.overlay {
            Some(overlay) => overlay.set_written(range.offset, range.len),
            None if durable => sync(file)?,
            None => {}
        }
        Ok(())
    }

    /// Zeroes in memory that the file takes, as many as `len` or fewer.
    fn room(&self, len: u64) -> Room {
        let alignment = self.medium.direct.unwrap_or(1) as usize;
        let len = len.min(CHUNK as u64) as usize;
        Room { bytes: vec![0; len + alignment], alignment, len }
    }
}

/// Memory of ours that is aligned.
struct Room {
    bytes: Vec<u8>,
    alignment: usize,
    len: usize,
}

impl Room {
    fn bytes(&mut self) -> &mut [u8] {
        let start = self.bytes.as_ptr().addr().next_multiple_of(self.alignment) - self.bytes.as_ptr().addr();
        &mut self.bytes[start..][..self.len]
    }
}

const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(KEEP);

fn reserve(file: &File, how: FallocateFlags, range: Range) -> io::Result<()> {
    match range.len {
        // The kernel takes that for a mistake.
        0 => Ok(()),
        len => again(|| Ok(fallocate(file, how, range.offset, len)?)),
    }
}

fn sync(file: &File) -> io::Result<()> {
    again(|| Ok(fdatasync(file)?))
}

fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
