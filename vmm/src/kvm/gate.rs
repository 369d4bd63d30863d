//! Where vCPUs are held: before each `KVM_RUN`.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Whether vCPUs may run, and how many do not.
pub(crate) struct Gate {
    /// Looked at before each `KVM_RUN`, without a lock.
    wanted: AtomicU8,
    waiting: Mutex<u32>,
    changed: Condvar,
}

pub(crate) const RUN: u8 = 0;
pub(crate) const WAIT: u8 = 1;
pub(crate) const LEAVE: u8 = 2;

/// What a vCPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The guest's code; `paused`: it stood still meanwhile.
    Run { paused: bool },
    /// End.
    Leave,
}

impl Gate {
    /// A gate at which all wait.
    pub(crate) fn new() -> Self {
        Self { wanted: AtomicU8::new(WAIT), waiting: Mutex::new(0), changed: Condvar::new() }
    }

    /// Asked before each `KVM_RUN`: waits while the vCPUs are to stand still.
    pub(crate) fn pass(&self) -> Next {
        match self.wanted.load(Ordering::Acquire) {
            RUN => Next::Run { paused: false },
            LEAVE => Next::Leave,
            _ => self.wait(),
        }
    }

    #[cold]
    fn wait(&self) -> Next {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting += 1;
        self.changed.notify_all();
        while self.wanted.load(Ordering::Acquire) == WAIT {
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        *waiting -= 1;
        drop(waiting);
        if self.wanted.load(Ordering::Acquire) == RUN { Next::Run { paused: true } } else { Next::Leave }
    }

    /// Says what the vCPUs are to do.
    pub(crate) fn set(&self, wanted: u8) {
        // Under the lock, so that nobody who looked before waits after.
        let _waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.store(wanted, Ordering::Release);
        self.changed.notify_all();
    }

    /// How many wait, after a moment in which more may have come.
    pub(crate) fn waiting(&self, wanted: usize) -> usize {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = Duration::from_micros(200);
        let enough = |waiting: &mut u32| (*waiting as usize) < wanted;
        let waited = self.changed.wait_timeout_while(waiting, pause, enough);
        *waited.unwrap_or_else(PoisonError::into_inner).0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_wait_at_the_gate_until_it_opens() {
        let gate = Gate::new();
        std::thread::scope(|scope| {
            let passed: Vec<_> = (0..3).map(|_| scope.spawn(|| gate.pass())).collect();
            while gate.waiting(3) < 3 {}
            assert!(passed.iter().all(|thread| !thread.is_finished()));
            gate.set(RUN);
            for thread in passed {
                assert_eq!(thread.join().unwrap(), Next::Run { paused: true });
            }
            assert_eq!(gate.pass(), Next::Run { paused: false });
            gate.set(WAIT);
            let waits = scope.spawn(|| gate.pass());
            while gate.waiting(1) < 1 {}
            gate.set(LEAVE);
            assert_eq!((waits.join().unwrap(), gate.pass()), (Next::Leave, Next::Leave));
        });
    }
}
