//! Where text goes that somebody may not read: standard output and error, a file, a pipe. Nothing here ever waits.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::error::Error;

/// Bytes that wait for a reader at most. A reader who stalls for longer loses what comes then, and is told how much.
const MOST: usize = 256 << 10;
/// The longest log in bytes.
const LOG_MAX: u64 = 1 << 20;
/// Bytes that are written at once where the descriptor may block: a pipe that is said to be writable has room for as many
/// (`PIPE_BUF`, pipe(7)).
const PIECE: usize = 4096;

/// A descriptor to write to, and what it has not taken yet.
#[derive(Debug)]
pub(crate) struct Sink {
    to: File,
    mode: WriteMode,
    waiting: VecDeque<u8>,
    lost: u64,
}

/// How to write without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteMode {
    /// It does not block, for that is how it was opened.
    Nonblocking,
    /// A file, which is always ready.
    File,
    /// A file that is kept short.
    Log,
    Socket,
    /// So many bytes at once, where poll(2) says that there is room.
    Pieces(usize),
}

impl Sink {
    /// Writes to what `fd` is: standard output or error, which other processes share.
    ///
    /// # Errors
    /// It is closed, or there are no descriptors left.
    pub(crate) fn shared(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(fstat(fd)?.st_mode);
        let terminal = rustix::termios::isatty(fd);
        // To have the shared description not block would have it not block for all. A terminal or a pipe can be opened once more.
        let own = || {
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
            options.open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        };
        let duplicate = || Ok::<_, io::Error>(File::from(fd.try_clone_to_owned()?));
        let (to, mode) = match kind {
            FileType::Fifo => own()
                .map(|file| (file, WriteMode::Nonblocking))
                .or_else(|_| Ok::<_, io::Error>((duplicate()?, WriteMode::Pieces(PIECE))))?,
            // The terminal of another user, as after su(1), is not ours to open.
            FileType::CharacterDevice if terminal => own()
                .map(|file| (file, WriteMode::Nonblocking))
                .or_else(|_| Ok::<_, io::Error>((duplicate()?, WriteMode::Pieces(1))))?,
            FileType::Socket => (duplicate()?, WriteMode::Socket),
            _ => (duplicate()?, WriteMode::File),
        };
        Ok(Self { to, mode, waiting: VecDeque::new(), lost: 0 })
    }

    /// Writes to the file at `path`, which is emptied if it is there.
    ///
    /// # Errors
    /// It cannot be written, or is a pipe that nobody reads.
    pub(crate) fn create(path: &Path) -> Result<Self, Error> {
        // Without O_NONBLOCK, to open a pipe waits for its reader, deaf to signals. A terminal does not become ours by it.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let opened =
            OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path);
        let to = opened.map_err(|source| match path.metadata() {
            Ok(found) if found.file_type().is_fifo() && source.raw_os_error() == Some(libc::ENXIO) => {
                Error::ConsoleUnread { path: path.to_owned() }
            }
            _ => Error::OpenConsole { path: path.to_owned(), source },
        })?;
        Ok(Self { to, mode: WriteMode::Nonblocking, waiting: VecDeque::new(), lost: 0 })
    }

    /// Writes to the log `to`, open at its end, which has none but a bound: past it, the older half goes. What it says goes.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn log(to: File) -> io::Result<Self> {
        to.set_len(0)?;
        Ok(Self { to, mode: WriteMode::Log, waiting: VecDeque::new(), lost: 0 })
    }

    /// Writes `bytes`, now or when its reader has made room.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) {
        if self.waiting.is_empty() && self.lost == 0 {
            while !bytes.is_empty() {
                match self.try_write(bytes) {
                    Ok(0) => break,
                    Ok(len) => bytes = &bytes[len..],
                    // Nobody reads it any more.
                    Err(_) => return,
                }
            }
        }
        let room = if self.lost == 0 { MOST.saturating_sub(self.waiting.len()) } else { 0 };
        let kept = bytes.len().min(room);
        self.waiting.extend(&bytes[..kept]);
        self.lost += (bytes.len() - kept) as u64;
    }

    /// Writes what waits, as far as there is room now.
    pub(crate) fn flush(&mut self) {
        loop {
            if self.waiting.is_empty() {
                if self.lost == 0 {
                    return;
                }
                let note = format!(
                    "\r\n[wirevm: {} bytes are not shown, for they were not read in time]\r\n",
                    self.lost
                );
                self.lost = 0;
                self.waiting.extend(note.as_bytes());
            }
            let (first, _) = self.waiting.as_slices();
            let first = first.to_vec();
            match self.try_write(&first) {
                Ok(0) => return,
                Ok(len) => drop(self.waiting.drain(..len)),
                Err(_) => {
                    self.waiting.clear();
                    self.lost = 0;
                    return;
                }
            }
        }
    }

    /// Whether something waits for its reader.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether something was lost that its reader has not been told of.
    pub(crate) fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// Waits until all is written, or `end` is readable, or its reader has taken nothing for as long as `patience`, at which what is
    /// left is dropped.
    pub(crate) fn finish(&mut self, end: Option<BorrowedFd<'_>>, patience: Option<Duration>) {
        while self.is_waiting() {
            let until = patience.map(|patience| Instant::now() + patience);
            let ready = loop {
                let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                let left = left.and_then(|left| Timespec::try_from(left).ok());
                let mut fds = vec![PollFd::new(&self.to, PollFlags::OUT)];
                fds.extend(end.map(|end| PollFd::from_borrowed_fd(end, PollFlags::IN)));
                match poll(&mut fds, left.as_ref()) {
                    Err(Errno::INTR) => {}
                    Err(_) => return,
                    Ok(_) => break !fds[0].revents().is_empty(),
                }
            };
            if !ready {
                return;
            }
            self.flush();
        }
    }

    /// Has the log lose its older half, where it is long.
    fn shorten(&mut self) -> io::Result<()> {
        let len = self.to.metadata()?.len();
        if len > LOG_MAX {
            let mut newer = vec![0; (LOG_MAX / 2) as usize];
            self.to.read_exact_at(&mut newer, len - LOG_MAX / 2)?;
            self.to.set_len(0)?;
            self.to.write_all(&newer)?;
        }
        Ok(())
    }

    /// Writes some of `bytes`, and keeps nothing; 0 where there is no room now.
    ///
    /// # Errors
    /// It cannot be written; with `BrokenPipe`, nobody reads it any more.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = match self.mode {
                WriteMode::Nonblocking | WriteMode::File => self.to.write(bytes),
                WriteMode::Log => self.shorten().and_then(|()| self.to.write(bytes)),
                WriteMode::Socket => {
                    send(&self.to, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map_err(io::Error::from)
                }
                WriteMode::Pieces(len) => {
                    let mut fds = [PollFd::new(&self.to, PollFlags::OUT)];
                    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                        Ok(0) | Err(Errno::INTR) => return Ok(0),
                        Err(error) => return Err(error.into()),
                        Ok(_) => self.to.write(&bytes[..len.min(bytes.len())]),
                    }
                }
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                written => return written,
            }
        }
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.to.as_fd()
    }
}

impl AsRawFd for Sink {
    fn as_raw_fd(&self) -> i32 {
        self.to.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_reader_who_stalls_loses_what_comes_too_late_and_is_told() {
        let (mut read, write) = io::pipe().unwrap();
        let mut sink = Sink::shared(write.as_fd()).unwrap();
        drop(write);
        let text = vec![b'x'; 1 << 20];
        sink.write(&text);
        sink.write(b"late");
        assert!(sink.is_waiting());
        let mut all = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            sink.flush();
            if !sink.is_waiting() {
                sink.write(b"after");
                drop(sink);
                read.read_to_end(&mut all).unwrap();
                break;
            }
            let len = read.read(&mut chunk).unwrap();
            all.extend(&chunk[..len]);
        }
        let shown = all.iter().take_while(|&&byte| byte == b'x').count();
        assert!(shown >= MOST && shown < text.len(), "{shown}");
        let rest = String::from_utf8(all.split_off(shown)).unwrap();
        let lost = text.len() - shown + "late".len();
        assert_eq!(
            rest,
            format!("\r\n[wirevm: {lost} bytes are not shown, for they were not read in time]\r\nafter")
        );
    }

    #[test]
    fn a_reader_who_stalls_is_waited_for_no_longer_than_that() {
        let (read, write) = io::pipe().unwrap();
        let mut sink = Sink::shared(write.as_fd()).unwrap();
        sink.write(&[b'x'; 1 << 20]);
        sink.finish(None, Some(Duration::from_millis(1)));
        assert!(sink.is_waiting());
        drop(read);
    }

    #[test]
    fn a_reader_who_leaves_is_no_failure() {
        let (read, write) = io::pipe().unwrap();
        let mut sink = Sink::shared(write.as_fd()).unwrap();
        drop(read);
        sink.write(b"to nobody");
        sink.flush();
        sink.finish(None, None);
        assert!(!sink.is_waiting());
    }
}
