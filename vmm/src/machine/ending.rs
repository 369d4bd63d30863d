//! How a run ends: the first reason counts, and the main thread hears of it.
//!
//! A guest whose kernel panicked runs on for a moment: Linux tells its pvpanic driver before its console is flushed, so that a
//! guest that ended at once would not say why.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use devices::GuestEvent;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::Crash;

/// Why the guest runs no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest reset itself. A reboot ends the run: who wants another starts wirevm again.
    Reset,
    /// The keeper ended it.
    Stopped,
    /// The guest crashed.
    Crash(Crash),
}

/// How long a guest that panicked may say why on its console.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where every thread says that the run is over. An eventfd tells the main thread.
pub(crate) struct Ending {
    state: Mutex<State>,
    event: EventFd,
    panic: EventFd,
}

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    /// The guest's kernel panicked, and runs until then at most.
    panicked: Option<Instant>,
}

impl Ending {
    pub(crate) fn new() -> io::Result<Self> {
        let new = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        Ok(Self { state: Mutex::default(), event: new()?, panic: new()? })
    }

    /// Ends the run; a later reason than the first is dropped.
    pub(crate) fn end(&self, outcome: Outcome) {
        self.with(|state| _ = state.outcome.get_or_insert(outcome));
        // An eventfd that is full is readable too.
        let _ = self.event.write(1);
    }

    /// Ends the run for what the guest did; after a panic it ends for that, by what comes of it or by [`expire`](Self::expire).
    pub(crate) fn guest(&self, event: GuestEvent) {
        let has_panicked = self.with(|state| {
            if event == GuestEvent::Panic {
                state.panicked.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            }
            state.panicked.is_some()
        });
        match event {
            GuestEvent::Panic => _ = self.panic.write(1),
            _ if has_panicked => self.end(Outcome::Crash(Crash::Panic)),
            GuestEvent::PowerOff => self.end(Outcome::PowerOff),
            GuestEvent::Reset => self.end(Outcome::Reset),
        }
    }

    /// How long a guest that panicked has left; none where it did not.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.with(|state| state.panicked).map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Ends the run of a guest that panicked and has had its time.
    pub(crate) fn expire(&self) {
        if self.left().is_some_and(|left| left.is_zero()) {
            self.end(Outcome::Crash(Crash::Panic));
        }
    }

    /// Why the run is over, once it is.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.with(|state| state.outcome.clone())
    }

    /// Readable, and left so, once the run is over.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Readable once the guest has panicked.
    pub(crate) fn panic(&self) -> &EventFd {
        &self.panic
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts() {
        let ending = Ending::new().unwrap();
        assert_eq!(ending.outcome(), None);
        ending.guest(GuestEvent::PowerOff);
        ending.guest(GuestEvent::Reset);
        assert_eq!(ending.outcome(), Some(Outcome::PowerOff));
        assert_eq!(ending.event().read().unwrap(), 2, "the event fires");
    }

    #[test]
    fn a_guest_that_panicked_runs_on_for_a_moment_and_has_crashed() {
        let ending = Ending::new().unwrap();
        assert_eq!(ending.left(), None);
        ending.guest(GuestEvent::Panic);
        assert!(ending.left().is_some_and(|left| left <= LAST_WORDS));
        assert_eq!(ending.panic().read().unwrap(), 1, "the main thread is to look at the time");
        ending.expire();
        assert_eq!(ending.outcome(), None, "it has time left");
        ending.guest(GuestEvent::Reset);
        assert_eq!(ending.outcome(), Some(Outcome::Crash(Crash::Panic)), "its kernel reboots after a panic");

        let ending = Ending::new().unwrap();
        ending.with(|state| state.panicked = Some(Instant::now()));
        ending.expire();
        assert_eq!(ending.outcome(), Some(Outcome::Crash(Crash::Panic)));
    }
}
