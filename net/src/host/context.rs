//! What the process that changes the host gives every wire: whom to tell of each step, and whether it was asked to end.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Step;
use super::fd_reserve::FdReserve;

/// What the process gives each [`Wire`](crate::Wire) that it opens. Its clones are one and the same.
#[derive(Clone)]
pub struct Host {
    tell: Arc<dyn Fn(&Step) + Send + Sync>,
    ends: Arc<dyn Fn() -> usize + Send + Sync>,
    /// How often it was asked to end when it began to take back.
    ends_before_undo: Arc<Mutex<Option<usize>>>,
    reserve: Arc<FdReserve>,
    patience: Arc<Mutex<Option<Duration>>>,
}

impl Host {
    /// Tells nobody, and is never asked to end.
    pub fn new() -> Self {
        Self {
            tell: Arc::new(|_| {}),
            ends: Arc::new(|| 0),
            ends_before_undo: Arc::default(),
            reserve: Arc::default(),
            patience: Arc::default(),
        }
    }

    /// The same, which calls `tell` right after each change of the host, on whatever thread makes it. What is changed back is not
    /// told.
    #[must_use]
    pub fn telling(self, tell: impl Fn(&Step) + Send + Sync + 'static) -> Self {
        Self { tell: Arc::new(tell), ..self }
    }

    /// The same, where `ends` says how often this process was asked to end: then [`Wire::open`](crate::Wire::open) waits no longer
    /// for another wirevm, and is refused ([`Error::is_ended`](crate::Error::is_ended)). Asked once more, no undo waits either, and
    /// leaves it to the next wirevm.
    #[must_use]
    pub fn ended_by(self, ends: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        Self { ends: Arc::new(ends), ..self }
    }

    pub(super) fn tell(&self, step: &Step) {
        (self.tell)(step);
    }

    /// True once it was asked to end.
    pub(super) fn is_ended(&self) -> bool {
        (self.ends)() > 0
    }

    /// True once it was asked to end since it began to take back, which it was asked to as a rule.
    pub(super) fn is_ended_again(&self) -> bool {
        let mut before = self.ends_before_undo.lock().unwrap_or_else(PoisonError::into_inner);
        (self.ends)() > *before.get_or_insert_with(|| (self.ends)())
    }

    /// What was taken back until now was one wire, and the process goes on: the next undo begins anew.
    pub fn undone(&self) {
        *self.ends_before_undo.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// From now on nobody waits longer than this for another wirevm that changes the host; without it, as long as that takes, as at
    /// first. What cannot be undone in time is left to the next wirevm.
    pub fn set_patience(&self, patience: Option<Duration>) {
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner) = patience;
    }

    pub(super) fn patience(&self) -> Option<Duration> {
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Descriptors for its undos.
    pub(super) fn reserve(&self) -> &FdReserve {
        &self.reserve
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn an_undo_waits_until_the_process_is_asked_once_more() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let host = Host::new().ended_by(move || count.load(Ordering::Relaxed));
        assert!(!host.is_ended());
        asked.store(1, Ordering::Relaxed);
        assert!(host.is_ended() && !host.clone().is_ended_again());
        asked.store(2, Ordering::Relaxed);
        assert!(host.is_ended_again());
        // Of one wire, while the process goes on.
        host.undone();
        assert!(!host.is_ended_again());
        assert!(!Host::new().is_ended_again(), "another one was not asked");
    }
}
