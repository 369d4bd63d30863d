//! How a run ends: the first reason counts, and the main thread hears of it.

use std::io;
use std::sync::{Mutex, PoisonError};

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
    /// A thread of ours panicked: its name.
    Bug(String),
}

/// Where every thread says that the run is over. An eventfd tells the main thread.
pub(crate) struct Ending {
    outcome: Mutex<Option<Outcome>>,
    event: EventFd,
}

impl Ending {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { outcome: Mutex::new(None), event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)? })
    }

    /// Ends the run; a later reason than the first is dropped.
    pub(crate) fn end(&self, outcome: Outcome) {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(outcome);
        // An eventfd that is full is readable too.
        let _ = self.event.write(1);
    }

    /// Ends the run for what the guest did.
    pub(crate) fn guest(&self, event: GuestEvent) {
        self.end(match event {
            GuestEvent::PowerOff => Outcome::PowerOff,
            GuestEvent::Reset => Outcome::Reset,
            GuestEvent::Panic => Outcome::Crash(Crash::Panic),
        });
    }

    /// Why the run is over, once it is.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Readable, and left so, once the run is over.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts() {
        let ending = Ending::new().unwrap();
        assert_eq!(ending.outcome(), None);
        ending.guest(GuestEvent::Panic);
        ending.guest(GuestEvent::Reset);
        assert_eq!(ending.outcome(), Some(Outcome::Crash(Crash::Panic)));
        assert_eq!(ending.event().read().unwrap(), 2, "the event fires");
    }
}
