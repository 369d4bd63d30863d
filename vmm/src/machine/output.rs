//! Where the guest's serial port writes to: the pipe to the keeper.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::fd;

/// The pipe, which the keeper empties at once, whoever reads the console: a vCPU waits here only while the keeper is busy. Once
/// `stop` is readable, what cannot be written is dropped.
pub(crate) struct Output {
    pipe: File,
    stop: EventFd,
}

impl Output {
    /// Writes to `pipe`, which does not block, until `stop` is readable.
    pub(crate) fn new(pipe: OwnedFd, stop: EventFd) -> Self {
        Self { pipe: pipe.into(), stop }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.pipe.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            let mut fds = [
                PollFd::new(&self.pipe, PollFlags::OUT),
                PollFd::from_borrowed_fd(fd::of(&self.stop), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            if !fds[1].revents().is_empty() {
                return Ok(bytes.len());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
