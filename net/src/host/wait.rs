//! Waiting for the lock, behind another wirevm that changes the host.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::holders::{self, Holder};

/// After so long a wait is told.
const LONG: Duration = Duration::from_secs(1);
/// How long a holder may be gone before we see it.
const PAUSE: Duration = Duration::from_millis(5);

/// Takes the lock `file`, which is at `path`; false where it was `ended` before.
///
/// It asks again and again: in flock(2) a thread waits deaf for as long as the holder likes, for a signal wakes another one.
pub(super) fn for_lock(file: &File, path: &Path, ended: impl Fn() -> bool) -> io::Result<bool> {
    let (began, mut told) = (Instant::now(), false);
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) if ended() => return Ok(false),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !told && began.elapsed() >= LONG {
            let holders = holders::of_lock(file);
            let holder = holders.first().map_or("another wirevm".to_owned(), Holder::to_string);
            log::warn!(
                "waiting for {holder}, which is changing the host's network: it holds {}",
                path.display()
            );
            told = true;
        }
        thread::sleep(PAUSE);
    }
}
