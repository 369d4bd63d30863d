//! What file systems are written with: a file that is filled from its beginning to its end, where long runs of zeros stay holes.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;

use super::error::Error;
use super::fault::shown;
use super::span::Span;
use super::tree::{Content, HostFile};

const BUFFER: usize = 256 << 10;
/// From so many zeros on a hole is worth a system call more.
const HOLE_MIN: u64 = 64 << 10;

/// What bytes and zeros are written to.
pub(super) trait Sink: Write {
    /// Writes so many zeros, or leaves a hole.
    fn zeros(&mut self, len: u64) -> io::Result<()>;
}

impl Sink for Vec<u8> {
    fn zeros(&mut self, len: u64) -> io::Result<()> {
        self.resize(self.len() + len as usize, 0);
        Ok(())
    }
}

/// A fresh file, being filled.
pub(super) struct Output<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Of what comes next, the buffer included; in bytes.
    at: u64,
}

impl<'a> Output<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self { file, buffer: Vec::with_capacity(BUFFER), at: 0 }
    }

    /// How much was written.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Fills up to `at`, which is not behind.
    pub(super) fn up_to(&mut self, at: u64) -> io::Result<()> {
        self.zeros(at.saturating_sub(self.at))
    }

    /// Writes what is left, with a hole at the end where there is one, and gives the file's length.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        self.file.set_len(self.at)?;
        Ok(self.at)
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            self.file.write_all_at(bytes, self.at)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.at - self.buffer.len() as u64)?;
        self.buffer.clear();
        Ok(())
    }
}

impl Sink for Output<'_> {
    fn zeros(&mut self, len: u64) -> io::Result<()> {
        if len >= HOLE_MIN {
            self.flush()?;
            self.at += len;
            return Ok(());
        }
        let zeros = [0; 4096];
        let mut left = len as usize;
        while left > 0 {
            let n = left.min(zeros.len());
            self.write_all(&zeros[..n])?;
            left -= n;
        }
        Ok(())
    }
}

/// On which side copying failed.
#[derive(Debug)]
pub(super) enum CopyError {
    Read(io::Error),
    /// The file of a directory is another one by now, or of another size.
    Changed,
    Write(io::Error),
}

impl CopyError {
    /// As what it is told, of the file with this `content`. `target` is what is written.
    pub(super) fn of(self, image: &str, content: &Content, target: &str) -> Error {
        let image = image.to_owned();
        let path = || match content {
            Content::Host(file) => Some(shown(file.path().as_os_str().as_encoded_bytes())),
            _ => None,
        };
        match (self, path()) {
            (Self::Write(source), _) => Error::Cache { path: target.into(), source },
            (Self::Changed, path) => Error::FileChanged { image, path: path.unwrap_or_default() },
            (Self::Read(source), Some(path)) => Error::ReadFile { image, path, source },
            (Self::Read(source), None) => Error::Read { image, source },
        }
    }
}

/// Writes `len` bytes of a file from `at` on, which it has.
pub(super) fn copy_content(content: &Content, at: u64, len: u64, to: &mut dyn Sink) -> Result<(), CopyError> {
    match content {
        Content::Whole(span) => copy(span, at, len, to),
        Content::Sparse(sparse) => {
            let mut data = 0;
            let pieces = sparse.pieces.iter().map(|(offset, len)| {
                data += len;
                (*offset, *len, data - len)
            });
            copy_pieces(&sparse.data, pieces, at, len, to)
        }
        Content::Host(file) => copy_host(file, at, len, to),
    }
}

fn copy_host(file: &HostFile, at: u64, len: u64, to: &mut dyn Sink) -> Result<(), CopyError> {
    let unreadable = |error: rustix::io::Errno| CopyError::Read(error.into());
    let open = file.open().map_err(unreadable)?.ok_or(CopyError::Changed)?;
    // Its data, where the file system tells; all of it otherwise.
    let next = |from: u64| -> Option<(u64, u64, u64)> {
        let from = match rustix::fs::seek(&open, SeekFrom::Data(from)) {
            Ok(from) => from,
            Err(rustix::io::Errno::NXIO) => return None,
            Err(_) => from,
        };
        let to = rustix::fs::seek(&open, SeekFrom::Hole(from)).unwrap_or(file.size).min(file.size);
        (from < to).then(|| (from, to - from, from))
    };
    let mut pieces = Vec::new();
    let mut from = at;
    while from < at + len
        && let Some(piece) = next(from)
    {
        from = piece.0 + piece.1;
        pieces.push(piece);
    }
    let span = Span::whole(open, file.size);
    copy_pieces(&span, pieces.into_iter(), at, len, to)
}

/// Of pieces, in order: where each stands in the file, its length, and where it is in `data`.
fn copy_pieces(
    data: &Span,
    pieces: impl Iterator<Item = (u64, u64, u64)>,
    at: u64,
    len: u64,
    to: &mut dyn Sink,
) -> Result<(), CopyError> {
    let (mut at, end) = (at, at + len);
    for (offset, len, from) in pieces {
        let (first, last) = (offset.max(at), (offset + len).min(end));
        if first < last {
            to.zeros(first - at).map_err(CopyError::Write)?;
            copy(data, from + (first - offset), last - first, to)?;
            at = last;
        }
    }
    to.zeros(end - at).map_err(CopyError::Write)
}

fn copy(span: &Span, mut at: u64, mut len: u64, to: &mut dyn Sink) -> Result<(), CopyError> {
    let mut buffer = vec![0; len.min(BUFFER as u64) as usize];
    while len > 0 {
        let n = len.min(buffer.len() as u64) as usize;
        let read = span.read_at(&mut buffer[..n], at).map_err(CopyError::Read)?;
        if read < n {
            // It had these bytes when it was looked at.
            return Err(CopyError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        to.write_all(&buffer[..n]).map_err(CopyError::Write)?;
        at += n as u64;
        len -= n as u64;
    }
    Ok(())
}
