//! The user's files: opened with care, read straight into guest memory; what comes through a pipe is read whole before.

use std::fs::{self, File, FileType};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::Error;
use crate::error::Role;

/// An open file, as it was named: a regular file that is not empty, or a pipe of which nothing is read yet.
#[derive(Debug)]
pub(crate) struct Opened {
    role: Role,
    path: PathBuf,
    file: File,
    /// In bytes; none of a pipe.
    size: Option<u64>,
}

impl Opened {
    /// Opens `path`. A named pipe is waited for until somebody writes to it.
    pub(crate) fn open(role: Role, path: &Path) -> Result<Self, Error> {
        let path = path.to_path_buf();
        // Looked at before it is opened: to open a device may do something.
        let kind = match fs::metadata(&path) {
            Ok(metadata) => metadata.file_type(),
            Err(source) => return Err(Error::Open { role, path, source }),
        };
        if !kind.is_file() && !kind.is_fifo() {
            return Err(Error::NotAFile { role, path, kind: name(kind) });
        }
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Err(source) => Err(Error::Open { role, path, source }),
            Ok((metadata, file)) if metadata.file_type().is_fifo() => {
                Ok(Self { role, path, file, size: None })
            }
            Ok((metadata, _)) if metadata.len() == 0 => Err(Error::Empty { role, path }),
            Ok((metadata, file)) => Ok(Self { role, path, file, size: Some(metadata.len()) }),
        }
    }

    /// Reads a pipe to its end, which takes as long as who writes to it likes; at most `limit` bytes.
    pub(crate) fn read_pipe(self, limit: u64) -> Result<Source, Error> {
        let Self { role, path, file, size } = self;
        let Some(size) = size else {
            let bytes = read_to_end(&file, limit)
                .map_err(|source| Error::Read { role, path: path.clone(), source })?
                .ok_or_else(|| Error::TooLong { role, path: path.clone(), limit, how: "through a pipe" })?;
            return Source::of_bytes(role, path, bytes);
        };
        Ok(Source { role, path, size, content: Content::File(file) })
    }
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens a disk to be looked at, and tells how long it is, in bytes.
pub(crate) fn open_disk(path: &Path) -> Result<(File, u64), Error> {
    let (role, path) = (Role::Disk, path.to_path_buf());
    let kind = match fs::metadata(&path) {
        Ok(metadata) => metadata.file_type(),
        Err(source) => return Err(Error::Open { role, path, source }),
    };
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::NotAFile { role, path, kind: name(kind) });
    }
    // The length of a block device is where it ends.
    let opened = File::open(&path).and_then(|mut file| Ok((file.seek(SeekFrom::End(0))?, file)));
    opened.map(|(len, file)| (file, len)).map_err(|source| Error::Open { role, path, source })
}

/// What this is that is no regular file.
fn name(kind: FileType) -> &'static str {
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_socket() => "a socket",
        () if kind.is_fifo() => "a pipe",
        () => "a device",
    }
}

/// All that `from` has, but none where that is more than `limit` bytes.
fn read_to_end(from: impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    from.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// What one of the user's files has, which is not nothing. The size of a file is what it was when opened; if the file shrinks
/// meanwhile, reading it is an error, and if it grows, the rest is not looked at.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) role: Role,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// A regular file, where it is.
    File(File),
    /// What came through a pipe, or was unpacked.
    Bytes(Vec<u8>),
}

impl Source {
    /// What was found in a disk.
    pub(crate) fn of_bytes(role: Role, path: PathBuf, bytes: Vec<u8>) -> Result<Self, Error> {
        match bytes.len() as u64 {
            0 => Err(Error::Empty { role, path }),
            size => Ok(Self { role, path, size, content: Content::Bytes(bytes) }),
        }
    }

    /// What this gzip file has in it, which is at most `limit` bytes (RFC 1952; of several members, one after another).
    pub(crate) fn gunzip(&self, limit: u64) -> Result<Self, Error> {
        let (role, path) = (self.role, self.path.clone());
        let unpacked = match &self.content {
            Content::File(file) => {
                (&*file).rewind().map_err(|source| self.unreadable(source))?;
                read_to_end(MultiGzDecoder::new(file), limit)
            }
            Content::Bytes(bytes) => read_to_end(MultiGzDecoder::new(&bytes[..]), limit),
        };
        match unpacked {
            Ok(Some(bytes)) => Self::of_bytes(role, path, bytes),
            Ok(None) => Err(Error::TooLong { role, path, limit, how: "unpacked" }),
            Err(source) => Err(Error::Unpack { path, source }),
        }
    }

    /// The bytes from `offset` on that fill `buffer`, or fewer at the end of the file.
    pub(crate) fn peek<'b>(&self, offset: u64, buffer: &'b mut [u8]) -> Result<&'b [u8], Error> {
        let mut len = 0;
        while len < buffer.len() {
            match self.read_at(&mut buffer[len..], offset.saturating_add(len as u64)) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.unreadable(source)),
            }
        }
        Ok(&buffer[..len])
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.content {
            Content::File(file) => file.read_at(buffer, offset),
            Content::Bytes(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                from.unwrap_or_default().read(buffer)
            }
        }
    }

    /// Checks that `len` bytes from `offset` on are in the file, and gives the offset of their end.
    /// `part` names them in the error.
    pub(crate) fn holds(&self, part: &'static str, offset: u64, len: u64) -> Result<u64, Error> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(end),
            end => Err(self.truncated(part, end.unwrap_or(u64::MAX), self.size)),
        }
    }

    /// The `len` bytes from `offset` on.
    pub(crate) fn read(&self, part: &'static str, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let end = self.holds(part, offset, len as u64)?;
        let mut bytes = vec![0; len];
        match self.peek(offset, &mut bytes)?.len() {
            read if read < len => Err(self.truncated(part, end, offset + read as u64)),
            _ => Ok(bytes),
        }
    }

    /// Copies `len` bytes from `offset` on to `address`. Those of a file the host's kernel writes there: no buffer between.
    pub(crate) fn load(
        &self,
        part: &'static str,
        offset: u64,
        len: u64,
        memory: &GuestMemoryMmap,
        address: u64,
    ) -> Result<(), Error> {
        let end = self.holds(part, offset, len)?;
        let mut file =
            match &self.content {
                Content::File(file) => file,
                Content::Bytes(bytes) => {
                    let bytes = &bytes[offset as usize..end as usize];
                    return memory
                        .write_slice(bytes, GuestAddress(address))
                        .map_err(|source| Error::Memory { what: part, address, source });
                }
            };
        file.seek(SeekFrom::Start(offset)).map_err(|source| self.unreadable(source))?;
        let mut done = 0;
        while done < len {
            let to = GuestAddress(address + done);
            match memory.read_volatile_from(to, &mut file, (len - done) as usize) {
                Ok(0) => return Err(self.truncated(part, end, offset + done)),
                Ok(n) => done += n as u64,
                Err(GuestMemoryError::IOError(source)) => return Err(self.unreadable(source)),
                Err(source) => return Err(Error::Memory { what: part, address: to.0, source }),
            }
        }
        Ok(())
    }

    fn unreadable(&self, source: io::Error) -> Error {
        Error::Read { role: self.role, path: self.path.clone(), source }
    }

    fn truncated(&self, part: &'static str, end: u64, size: u64) -> Error {
        Error::Truncated { role: self.role, path: self.path.clone(), part, end, size }
    }
}

#[cfg(test)]
mod tests;
