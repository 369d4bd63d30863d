//! `fd=N[:N]...`

use std::fmt;
use std::os::fd::RawFd;

use super::keys::{no_place, number};
use super::{Queues, WireKind};
use crate::Error;

/// Inherited descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdConfig {
    /// One for each queue pair, within [`Queues::RANGE`], no two the same. None is the terminal's (0, 1, 2).
    pub fds: Vec<RawFd>,
}

impl FdConfig {
    pub(super) fn parse(text: Option<&str>) -> Result<Self, Error> {
        let text = text.ok_or(no_place(WireKind::Fd))?;
        let refuse = |why| Error::value(WireKind::Fd.word(), text.to_owned(), why);
        let fds: Option<Vec<RawFd>> = text.split(':').map(number).collect();
        let fds = fds.ok_or_else(|| refuse("expected numbers of descriptors, 5 or 5:6"))?;
        let twice = (1..fds.len()).any(|index| fds[..index].contains(&fds[index]));
        match fds {
            fds if fds.iter().any(|&fd| fd <= 2) => {
                Err(refuse("0, 1 and 2 are standard input, output and error"))
            }
            _ if twice => Err(refuse("a queue pair has a descriptor of its own: one is given twice")),
            fds if fds.len() > usize::from(*Queues::RANGE.end()) => {
                Err(refuse("a NIC has 64 queue pairs at most, and a descriptor for each"))
            }
            fds => Ok(Self { fds }),
        }
    }

    pub(super) fn write_spec(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fd) in self.fds.iter().enumerate() {
            write!(f, "{}{fd}", if index == 0 { '=' } else { ':' })?;
        }
        Ok(())
    }
}
