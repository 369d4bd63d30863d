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

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::unix::fs::MetadataExt;

    use vm_memory::VolatileSlice;

    use super::*;

    fn store(file: File, overlay: Option<File>, direct: Option<u32>) -> Store {
        Store::new(Medium {
            file,
            bytes: 1 << 30,
            read_only: false,
            overlay,
            direct,
            logical_block: 512,
            physical_block: 512,
            discards: true,
        })
    }

    /// Takes all that is written, and has nothing that it could be kept on: a sync of it fails.
    fn null() -> File {
        OpenOptions::new().read(true).write(true).open("/dev/null").unwrap()
    }

    fn memory_file() -> File {
        File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
    }

    #[test]
    fn what_is_to_be_durable_is_synced_and_nothing_else() {
        let mut bytes = [7; 1024];
        let memory = VolatileSlice::from(&mut bytes[..]);
        let write = |store: &Store, durable| {
            let mut buffers = Buffers::default();
            // An odd address, which goes by a copy where there is no cache.
            assert!(buffers.push(memory.subslice(1, 512).unwrap()));
            store.write(&mut buffers, 0, durable)
        };
        let plain = store(null(), None, None);
        assert_eq!(plain.flush().unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert!(write(&plain, false).is_ok());
        let nothing = Range { offset: 0, len: 0, unmap: false };
        assert!(plain.write_zeroes(nothing, false).is_ok());
        let error = plain.write_zeroes(nothing, true).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let direct = store(null(), None, Some(512));
        assert_eq!(write(&direct, true).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert!(write(&direct, false).is_ok());
        // What is above a file is lost anyway.
        let above = store(null(), Some(null()), None);
        assert!(above.flush().is_ok() && write(&above, true).is_ok());
        assert!(above.plain().is_none() && plain.plain().is_some());
    }

    #[test]
    fn what_is_interrupted_is_tried_again() {
        let mut calls = 0;
        let result = again(|| {
            calls += 1;
            if calls < 3 { Err(io::ErrorKind::Interrupted.into()) } else { Ok(calls) }
        });
        assert_eq!(result.unwrap(), 3);
    }

    #[test]
    fn what_the_host_cannot_zero_is_an_error_and_not_written_by_hand() {
        let range = Range { offset: 0, len: 512, unmap: false };
        // It is neither a file nor a block device; a file that is open for reading is not written.
        let (null, file) = (null(), File::open("/proc/self/comm").unwrap());
        for (file, error) in [(null, libc::ENODEV), (file, libc::EBADF)] {
            let error_is = |result: io::Result<()>| result.unwrap_err().raw_os_error() == Some(error);
            let store = store(file, None, None);
            assert!(error_is(store.write_zeroes(range, false)) && error_is(store.discard(range)));
        }
        // One without holes, which cannot give anything back.
        let file = OpenOptions::new().write(true).open("/proc/self/comm").unwrap();
        let error = store(file, None, None).discard(range).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn what_is_discarded_above_a_file_takes_no_room() {
        let overlay = memory_file();
        overlay.set_len(1 << 20).unwrap();
        let above = store(memory_file(), Some(overlay.try_clone().unwrap()), None);
        let mut bytes = [7; 1 << 16];
        let mut buffers = Buffers::default();
        assert!(buffers.push(VolatileSlice::from(&mut bytes[..])));
        above.write(&mut buffers, 0, false).unwrap();
        assert!(overlay.metadata().unwrap().blocks() > 0);
        above.discard(Range { offset: 0, len: 1 << 16, unmap: false }).unwrap();
        assert_eq!(overlay.metadata().unwrap().blocks(), 0);
        let mut buffers = Buffers::default();
        assert!(buffers.push(VolatileSlice::from(&mut bytes[..])));
        above.read(&mut buffers, 0).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn memory_that_the_file_does_not_take_is_read_piece_by_piece() {
        let path = std::env::temp_dir().join(format!("wirevm-medium-{}", std::process::id()));
        let content: Vec<u8> = (0..2 * CHUNK + 4096).map(|at| (at ^ (at >> 9)) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        use std::os::unix::fs::OpenOptionsExt;
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
        std::fs::remove_file(&path).unwrap();
        let Ok(file) = opened else {
            println!(
                "skipped: memory_that_the_file_does_not_take_is_read_piece_by_piece: no direct I/O in {}",
                path.display()
            );
            return;
        };
        let direct = store(file, None, Some(4096));
        let mut bytes = vec![0; content.len() + 1];
        let len = content.len() - 4096;
        let mut buffers = Buffers::default();
        assert!(buffers.push(VolatileSlice::from(&mut bytes[1..=len])));
        direct.read(&mut buffers, 4096).unwrap();
        assert!(bytes[1..=len] == content[4096..], "each at its place");
        // Past its end there is nothing.
        let mut buffers = Buffers::default();
        assert!(buffers.push(VolatileSlice::from(&mut bytes[1..=8192])));
        let error = direct.read(&mut buffers, content.len() as u64 - 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
