//! The guest's console, from the machine's pipe to whoever reads it: the terminal or file of the run, and those that attach.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::sink::Sink;

/// How much of what the guest said last is kept for who attaches later.
const HISTORY: usize = 64 << 10;
/// Bytes that are read at once.
const CHUNK: usize = 8 << 10;

/// The console.
pub(crate) struct Console {
    from: File,
    to: Sink,
    history: VecDeque<u8>,
}

impl Console {
    /// Reads `from`, a pipe that does not block, and shows it on `to`.
    pub(crate) fn new(from: OwnedFd, to: Sink) -> Self {
        Self { from: from.into(), to, history: VecDeque::new() }
    }

    /// Reads what the guest has said, some of it: none once the machine is gone and all is read.
    pub(crate) fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; CHUNK];
        match self.from.read(&mut bytes) {
            Ok(0) => return Ok(None),
            Ok(len) => bytes.truncate(len),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => bytes.clear(),
            Err(error) => return Err(error),
        }
        self.to.write(&bytes);
        self.history.extend(&bytes);
        let old = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..old);
        Ok(Some(bytes))
    }

    /// What the guest said last.
    pub(crate) fn history(&self) -> Vec<u8> {
        self.history.iter().copied().collect()
    }

    /// Where it is shown.
    pub(crate) fn sink(&mut self) -> &mut Sink {
        &mut self.to
    }
}

impl AsRawFd for Console {
    /// The machine's pipe.
    fn as_raw_fd(&self) -> RawFd {
        self.from.as_raw_fd()
    }
}
