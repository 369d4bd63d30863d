//! Where the guest's serial port writes to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::fd;
use vmm::config::ConsoleConfig;

/// The console's other end. A reader that stalls holds the guest up, as a slow line would, but not the end of the machine:
/// once `stop` is readable, what cannot be written is dropped.
struct Output<T> {
    to: T,
    stop: EventFd,
}

/// Opens the console's other end, which writes until `stop` is readable.
///
/// # Errors
/// It is a file that cannot be written, or a pipe that nobody reads.
pub(crate) fn open(console: &ConsoleConfig, stop: EventFd) -> Result<Box<dyn Write + Send>, Error> {
    match console {
        ConsoleConfig::Stdio => Ok(Box::new(Output { to: io::stdout(), stop })),
        ConsoleConfig::File(path) => Ok(Box::new(Output { to: create(path)?, stop })),
    }
}

/// Opens a file as the console; one that is there is emptied.
fn create(path: &Path) -> Result<File, Error> {
    // Without O_NONBLOCK, to open a pipe waits for its reader, deaf to signals. A terminal does not become ours by it.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path);
    opened.map_err(|source| match path.metadata() {
        Ok(found) if found.file_type().is_fifo() && source.raw_os_error() == Some(libc::ENXIO) => {
            Error::ConsoleUnread { path: path.to_owned() }
        }
        _ => Error::OpenConsole { path: path.to_owned(), source },
    })
}

impl<T: AsFd> Write for Output<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut fds = [
                PollFd::new(&self.to, PollFlags::OUT),
                PollFd::from_borrowed_fd(fd::of(&self.stop), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            let [output, stop] = fds.map(|fd| !fd.revents().is_empty());
            if output {
                // Straight to the descriptor: `std::io::Stdout` would hold a line back until its end.
                match rustix::io::write(&self.to, bytes) {
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) if !stop => continue,
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                    result => return Ok(result?),
                }
            }
            if stop {
                return Ok(bytes.len());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
