//! Bytes where they lie in a file, and the spool: the unlinked file for bytes that lie in none.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

/// `len` bytes of a file from `start` on, in bytes. Reading moves no file's position.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) file: Arc<File>,
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Span {
    /// All of a file that is `len` bytes long.
    pub(super) fn whole(file: File, len: u64) -> Self {
        Self { file: Arc::new(file), start: 0, len }
    }

    /// The `len` bytes from `at` on, where there are so many.
    pub(super) fn part(&self, at: u64, len: u64) -> Option<Self> {
        let end = at.checked_add(len)?;
        (end <= self.len).then(|| Self { file: self.file.clone(), start: self.start + at, len })
    }

    /// Fills `buffer` from `at` on, or as much of it as there is.
    pub(super) fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let room = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
        let mut done = 0;
        while done < room {
            match self.file.read_at(&mut buffer[done..room], self.start + at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Fills `buffer` from `at` on.
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        if self.read_at(buffer, at)? < buffer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// A stream of them.
    pub(super) fn reader(&self) -> BufReader<SpanReader<'_>> {
        BufReader::with_capacity(128 << 10, SpanReader { span: self, at: 0 })
    }
}

/// Reads a span from its beginning to its end.
pub(super) struct SpanReader<'a> {
    span: &'a Span,
    at: u64,
}

impl Read for SpanReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.span.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// What the name of a spool begins with, where it needs one for a moment; the process's number comes after it.
pub(super) const SPOOL: &str = ".spool-";

/// A file without a name in `directory`: it goes with the last descriptor, however the process ends.
pub(super) fn unnamed(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(fd.into()),
        // A file system without O_TMPFILE (NFS, old overlays): a name for a moment.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = directory.join(format!("{SPOOL}{}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

/// Why something could not be spooled.
#[derive(Debug)]
pub(super) enum SpoolError {
    /// What was to be spooled could not be read, or unpacked.
    Read(io::Error),
    /// The spool could not be made or written.
    Write(io::Error),
    /// There is more than the limit leaves room for.
    Full,
}

/// Where unpacked and piped bytes go, one after another: an unlinked file, made when it is needed.
#[derive(Debug)]
pub(super) struct Spool<'a> {
    directory: &'a Path,
    file: Option<Arc<File>>,
    len: u64,
    /// In bytes, of all that is spooled.
    limit: u64,
}

impl<'a> Spool<'a> {
    pub(super) fn new(directory: &'a Path, limit: u64) -> Self {
        Self { directory, file: None, len: 0, limit }
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory
    }

    /// All that `from` has, to its end.
    pub(super) fn append(&mut self, mut from: impl Read) -> Result<Span, SpoolError> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => self.file.insert(Arc::new(unnamed(self.directory).map_err(SpoolError::Write)?)).clone(),
        };
        let start = self.len;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => return Ok(Span { file, start, len: self.len - start }),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(SpoolError::Read(error)),
            };
            if n as u64 > self.limit - self.len {
                return Err(SpoolError::Full);
            }
            file.write_all_at(&buffer[..n], self.len).map_err(SpoolError::Write)?;
            self.len += n as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_stay_within_their_bounds() {
        let mut spool = Spool::new(Path::new("/dev/shm"), 12);
        let first = spool.append(&b"0123456789"[..]).unwrap();
        assert!(matches!(spool.append(&b"abc"[..]), Err(SpoolError::Full)));
        let second = spool.append(&b"ab"[..]).unwrap();
        assert!(matches!(spool.append(&b"c"[..]), Err(SpoolError::Full)));
        let mut buffer = [0; 16];
        assert_eq!(first.read_at(&mut buffer, 8).unwrap(), 2);
        assert_eq!(&buffer[..2], b"89");
        assert_eq!(first.read_at(&mut buffer, u64::MAX).unwrap(), 0);
        assert!(first.read_exact_at(&mut buffer[..3], 8).is_err());
        assert_eq!(second.read_at(&mut buffer, 0).unwrap(), 2);
        assert_eq!(&buffer[..2], b"ab");
        assert!(first.part(8, 3).is_none() && first.part(1, u64::MAX).is_none());
        let mut text = String::new();
        first.part(3, 4).unwrap().reader().read_to_string(&mut text).unwrap();
        assert_eq!(text, "3456");
    }
}
