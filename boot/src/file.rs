//! The user's files: opened with care, read straight into guest memory.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::Error;
use crate::error::Role;

/// An open regular file that is not empty. Its size is what it was when opened; if the file shrinks
/// meanwhile, reading it is an error, and if it grows, the rest is not looked at.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) role: Role,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    file: File,
}

impl Source {
    pub(crate) fn open(role: Role, path: &Path) -> Result<Source, Error> {
        let path = path.to_path_buf();
        // Looked at before it is opened: to open a FIFO waits for a writer.
        let kind = match fs::metadata(&path) {
            Ok(metadata) => metadata.file_type(),
            Err(source) => return Err(Error::Open { role, path, source }),
        };
        if !kind.is_file() {
            let kind = match () {
                () if kind.is_dir() => "a directory",
                () if kind.is_fifo() => "a pipe",
                () if kind.is_socket() => "a socket",
                () => "a device",
            };
            return Err(Error::NotAFile { role, path, kind });
        }
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Err(source) => Err(Error::Open { role, path, source }),
            Ok((0, _)) => Err(Error::Empty { role, path }),
            Ok((size, file)) => Ok(Source { role, path, size, file }),
        }
    }

    /// The bytes from `offset` on that fill `buffer`, or fewer at the end of the file.
    pub(crate) fn peek<'b>(&self, offset: u64, buffer: &'b mut [u8]) -> Result<&'b [u8], Error> {
        let mut len = 0;
        while len < buffer.len() {
            match self.file.read_at(&mut buffer[len..], offset.saturating_add(len as u64)) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.unreadable(source)),
            }
        }
        Ok(&buffer[..len])
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

    /// Copies `len` bytes from `offset` on to `address`. The kernel writes them there: no buffer between.
    pub(crate) fn load(
        &mut self,
        part: &'static str,
        offset: u64,
        len: u64,
        memory: &GuestMemoryMmap,
        address: u64,
    ) -> Result<(), Error> {
        let end = self.holds(part, offset, len)?;
        self.file.seek(SeekFrom::Start(offset)).map_err(|source| self.unreadable(source))?;
        let mut done = 0;
        while done < len {
            let to = GuestAddress(address + done);
            match memory.read_volatile_from(to, &mut self.file, (len - done) as usize) {
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
mod tests {
    use std::error::Error as _;

    use super::*;
    use crate::testing::{Scratch, bytes, memory};

    fn open_error(path: &Path) -> Error {
        Source::open(Role::Kernel, path).expect_err("opened")
    }

    #[test]
    fn a_missing_file_is_named_and_its_cause_kept() {
        let error = open_error(Path::new("/nonexistent/vmlinuz"));
        assert_eq!(error.to_string(), "cannot open the kernel /nonexistent/vmlinuz");
        assert!(error.source().unwrap().to_string().contains("No such file"));
        assert_eq!(error.remedy().unwrap(), "check the path given with --kernel");
    }

    #[test]
    fn what_is_no_file_is_said() {
        for (path, is) in [("/", "a directory"), ("/dev/null", "a device")] {
            let error = open_error(Path::new(path));
            assert!(matches!(error, Error::NotAFile { kind, .. } if kind == is), "{error}");
        }
    }

    #[test]
    fn an_empty_file_is_refused() {
        let file = Scratch::new(b"");
        assert!(matches!(open_error(file.path()), Error::Empty { .. }));
    }

    #[test]
    fn bytes_go_where_they_belong() {
        let file = Scratch::new(b"0123456789");
        let memory = memory(64);
        let mut source = Source::open(Role::Initrd, file.path()).unwrap();
        source.load("image", 2, 5, &memory, 0x1ff_fffe).unwrap();
        assert_eq!(bytes(&memory, 0x1ff_fffd, 7), b"\x0023456\0");
        let error = source.load("image", 6, 5, &memory, 0).unwrap_err();
        assert!(matches!(error, Error::Truncated { end: 11, size: 10, .. }), "{error}");
        let error = source.load("image", u64::MAX, 5, &memory, 0).unwrap_err();
        assert!(matches!(error, Error::Truncated { end: u64::MAX, .. }), "{error}");
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let file = Scratch::new(&[7; 8192]);
        let memory = memory(64);
        let mut source = Source::open(Role::Kernel, file.path()).unwrap();
        File::options().write(true).open(file.path()).unwrap().set_len(100).unwrap();
        for error in [
            source.load("image", 0, 8192, &memory, 0).unwrap_err(),
            source.read("image", 0, 8192).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Truncated { end: 8192, size: 100, .. }), "{error}");
        }
    }
}
