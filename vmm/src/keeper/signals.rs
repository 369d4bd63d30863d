//! Signals that end the run, or tell that it goes on after a stop, as a descriptor (signalfd(2)): the keeper undoes everything then as
//! at any other end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use crate::sys;

/// The signals of this process. They are blocked, so that its children are deaf to them: a Ctrl-C is for the keeper alone.
#[derive(Clone, Debug)]
pub(crate) struct Signals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    /// How many came that ask for an end.
    ends: AtomicUsize,
    /// The last of these.
    last: AtomicI32,
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGINT, SIGTERM or SIGHUP: end in order.
    End {
        /// Which.
        number: i32,
        /// A terminal sent it, and so to all processes in its foreground.
        by_terminal: bool,
    },
    /// SIGQUIT: end at once.
    Quit,
    /// SIGCONT: it was stopped, and the terminal may have become ours.
    Resumed,
}

impl Signals {
    /// Listens from now on. Called while there is one thread.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn listen() -> io::Result<Self> {
        let fd = sys::signalfd(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGCONT])?;
        Ok(Self(Arc::new(Inner { fd, ends: AtomicUsize::new(0), last: AtomicI32::new(0) })))
    }

    /// The next one, if one came.
    pub(crate) fn next(&self) -> Option<Signal> {
        let mut info = [0; sys::SIGNAL_LEN];
        let len = rustix::io::read(&self.0.fd, &mut info).ok()?;
        // `ssi_signo` is the first field (signalfd(2)).
        let number = info[..len].first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))?;
        if number == libc::SIGCONT {
            return Some(Signal::Resumed);
        }
        self.0.last.store(number, Ordering::Relaxed);
        self.0.ends.fetch_add(1, Ordering::Relaxed);
        // `ssi_code`, the third field.
        let code = info[8..].first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        let by_terminal = code == libc::SI_KERNEL;
        Some(if number == libc::SIGQUIT { Signal::Quit } else { Signal::End { number, by_terminal } })
    }

    /// How many have asked for an end, by now.
    pub(crate) fn ends(&self) -> usize {
        while self.next().is_some() {}
        self.0.ends.load(Ordering::Relaxed)
    }

    /// The last signal that asked for an end, by name.
    pub(crate) fn last(&self) -> &'static str {
        match self.0.last.load(Ordering::Relaxed) {
            libc::SIGINT => "SIGINT",
            libc::SIGTERM => "SIGTERM",
            libc::SIGHUP => "SIGHUP",
            libc::SIGQUIT => "SIGQUIT",
            _ => "a signal",
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }
}
