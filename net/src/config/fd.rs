//! `fd=N`

use std::fmt;
use std::os::fd::RawFd;

use super::keys::{Keys, number};
use crate::Error;

pub(super) const KIND: &str = "fd";
pub(super) const KEYS: &str = "mac=, mtu=";

/// Descriptors that we inherited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdConfig {
    /// One for each queue pair: exactly one, while a NIC has one pair. None is the terminal's (0, 1, 2).
    pub fds: Vec<RawFd>,
}

impl FdConfig {
    pub(super) fn parse(text: Option<&str>, _: &mut Keys<'_>) -> Result<Self, Error> {
        let text = text.ok_or(Error::NoPlace { kind: KIND, example: "fd=5" })?;
        let refuse = |why| Error::value(KIND, text.to_owned(), why);
        let fds: Option<Vec<RawFd>> = text.split(':').map(number).collect();
        match fds.ok_or_else(|| refuse("the number of a descriptor is wanted"))? {
            fds if fds.iter().any(|&fd| fd <= 2) => Err(refuse("0, 1 and 2 are the terminal's")),
            fds if fds.len() > 1 => Err(refuse("a NIC has one queue pair, and so one descriptor")),
            fds => Ok(Self { fds }),
        }
    }

    pub(super) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fd) in self.fds.iter().enumerate() {
            write!(f, "{}{fd}", if index == 0 { '=' } else { ':' })?;
        }
        Ok(())
    }
}
