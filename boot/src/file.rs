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
mod tests {
    use std::error::Error as _;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::testing::{Scratch, bytes, memory};

    fn open_error(path: &Path) -> Error {
        Opened::open(Role::Kernel, path).expect_err("opened")
    }

    fn source(role: Role, file: &Scratch) -> Source {
        Opened::open(role, file.path()).unwrap().read_pipe(0).unwrap()
    }

    /// What comes of a pipe into which these bytes were written.
    fn piped(bytes: &[u8], limit: u64) -> Result<Source, Error> {
        let (read, mut write) = io::pipe().unwrap();
        write.write_all(bytes).unwrap();
        drop(write);
        let path = format!("/proc/self/fd/{}", read.as_raw_fd());
        Opened::open(Role::Kernel, Path::new(&path)).unwrap().read_pipe(limit)
    }

    #[test]
    fn a_pipe_is_as_good_as_a_file_and_has_an_end() {
        let source = piped(b"0123456789", 10).unwrap();
        let memory = memory(64);
        assert_eq!(source.size, 10);
        source.load("image", 2, 5, &memory, 0x1ff_fffe).unwrap();
        assert_eq!(bytes(&memory, 0x1ff_fffd, 7), b"\x0023456\0");
        assert_eq!(source.peek(8, &mut [0; 9]).unwrap(), b"89");
        assert_eq!(source.peek(u64::MAX, &mut [0; 9]).unwrap(), b"");
        assert_eq!(source.read("image", 9, 1).unwrap(), b"9");
        for error in
            [source.load("image", 6, 5, &memory, 0).unwrap_err(), source.read("image", 6, 5).unwrap_err()]
        {
            assert!(matches!(error, Error::Truncated { end: 11, size: 10, .. }), "{error}");
        }
        let error = piped(b"0123456789", 9).unwrap_err();
        assert!(matches!(error, Error::TooLong { limit: 9, .. }), "{error}");
        assert!(matches!(piped(b"", 9).unwrap_err(), Error::Empty { .. }));
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn gzip_is_unpacked_as_far_as_it_may_go() {
        let long = vec![7; 100_000];
        let packed = gzip(&long);
        let twice = [packed.clone(), gzip(b"more")].concat();
        let in_a_file = |bytes: &[u8]| source(Role::Kernel, &Scratch::new(bytes));
        let in_a_pipe = |bytes: &[u8]| piped(bytes, 1 << 20).unwrap();
        for source in [&in_a_file as &dyn Fn(&[u8]) -> Source, &in_a_pipe] {
            let unpacked = source(&packed).gunzip(100_000).unwrap();
            assert_eq!((unpacked.size, unpacked.read("image", 0, 100_000).unwrap() == long), (100_000, true));
            let error = source(&packed).gunzip(99_999).unwrap_err();
            assert!(matches!(error, Error::TooLong { limit: 99_999, how: "unpacked", .. }), "{error}");
            assert_eq!(
                source(&twice).gunzip(u64::MAX).unwrap().read("image", 99_999, 5).unwrap(),
                b"\x07more"
            );
            assert!(matches!(source(&gzip(b"")).gunzip(9).unwrap_err(), Error::Empty { .. }));
            let mut wrong = packed.clone();
            let check = wrong.len() - 8;
            wrong[check] ^= 1;
            for broken in [&wrong[..], &packed[..packed.len() - 1], &packed[..5], b"\x1f\x8b\x08garbage...."]
            {
                let error = source(broken).gunzip(u64::MAX).unwrap_err();
                assert!(matches!(error, Error::Unpack { .. }), "{error}");
            }
        }
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
        let socket = std::env::temp_dir().join(format!("wirevm-boot-socket-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, is) in
            [("/".as_ref(), "a directory"), ("/dev/null".as_ref(), "a device"), (&*socket, "a socket")]
        {
            let error = open_error(path);
            assert!(matches!(error, Error::NotAFile { kind, .. } if kind == is), "{error}");
        }
        // A pipe can be a kernel, and no disk.
        let (pipe, _) = io::pipe().unwrap();
        let pipe = format!("/proc/self/fd/{}", pipe.as_raw_fd());
        for (path, is) in [
            ("/".as_ref(), "a directory"),
            ("/dev/null".as_ref(), "a device"),
            (&*socket, "a socket"),
            (pipe.as_ref(), "a pipe"),
        ] {
            let error = open_disk(path).expect_err("opened");
            assert!(matches!(error, Error::NotAFile { kind, .. } if kind == is), "{error}");
        }
        drop(listener);
        fs::remove_file(&socket).unwrap();
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
        let source = source(Role::Initrd, &file);
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
        let source = source(Role::Kernel, &file);
        File::options().write(true).open(file.path()).unwrap().set_len(100).unwrap();
        for error in [
            source.load("image", 0, 8192, &memory, 0).unwrap_err(),
            source.read("image", 0, 8192).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Truncated { end: 8192, size: 100, .. }), "{error}");
        }
    }
}
