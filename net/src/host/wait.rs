//! Waiting: for the lock, behind another wirevm that changes the host, and for a link that somebody is about to let go of.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Refusal;
use super::holders::{self, Holder};

/// After so long a wait is told.
const LONG: Duration = Duration::from_secs(1);
/// How long a holder may be gone before we see it.
const PAUSE: Duration = Duration::from_millis(5);

/// How a wait for the lock ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// It is ours.
    Got,
    /// Somebody asked us to end.
    Ended,
    /// Patience is used.
    TooLong,
}

/// Who has the lock.
pub(super) fn holder(file: &File) -> String {
    holders::of_lock(file).first().map_or("another wirevm".to_owned(), Holder::to_string)
}

/// Takes the lock `file`, which is at `path`, unless it was `ended` before, or `patience` is used.
///
/// It asks again and again: in flock(2) a thread waits deaf for as long as the holder likes, for a signal wakes another one.
pub(super) fn for_lock(
    file: &File,
    path: &Path,
    patience: Option<Duration>,
    ended: impl Fn() -> bool,
) -> io::Result<Waited> {
    let (began, mut told) = (Instant::now(), false);
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Waited::Got),
            Err(Errno::WOULDBLOCK | Errno::INTR) if ended() => return Ok(Waited::Ended),
            Err(Errno::WOULDBLOCK | Errno::INTR) if patience.is_some_and(|most| began.elapsed() >= most) => {
                return Ok(Waited::TooLong);
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !told && began.elapsed() >= LONG {
            log::warn!(
                "waiting for {}, which is changing the host's network: it holds {}",
                holder(file),
                path.display()
            );
            told = true;
        }
        thread::sleep(PAUSE);
    }
}

/// How long the undos of one end wait for links that somebody has, together: what is really in use is left for the next time.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// From the first that was not free.
    until: Option<Instant>,
}

impl Patience {
    const ALL: Duration = Duration::from_millis(200);

    /// Calls until nobody has the link, or all patience is used: a process that was just started has the descriptors of the one
    /// that started it until it executes, and one that was just killed has its own until its last thread is gone.
    pub(super) fn once_free(&mut self, mut call: impl FnMut() -> Result<(), Refusal>) -> Result<(), Refusal> {
        loop {
            match call() {
                Err(refusal) if refusal.errno() == Some(libc::EBUSY) => {
                    if Instant::now() >= *self.until.get_or_insert_with(|| Instant::now() + Self::ALL) {
                        return Err(refusal);
                    }
                    thread::sleep(PAUSE);
                }
                made => return made,
            }
        }
    }
}
