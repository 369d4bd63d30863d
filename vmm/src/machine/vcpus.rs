//! All vCPUs together: when they run, when they stand still, and how they end.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Error;
use crate::kvm::vcpu::{Exits, Running, Shared, Vcpu};

/// Whether vCPUs may run, and how many do not.
pub(crate) struct Gate {
    /// Looked at before each `KVM_RUN`, without a lock.
    wanted: AtomicU8,
    waiting: Mutex<u32>,
    changed: Condvar,
}

const RUN: u8 = 0;
const WAIT: u8 = 1;
const LEAVE: u8 = 2;

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

    fn set(&self, wanted: u8) {
        // Under the lock, so that nobody who looked before waits after.
        let _waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.store(wanted, Ordering::Release);
        self.changed.notify_all();
    }

    /// How many wait, after a moment in which more may have come.
    fn waiting(&self, wanted: usize) -> usize {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = Duration::from_micros(200);
        let enough = |waiting: &mut u32| (*waiting as usize) < wanted;
        let waited = self.changed.wait_timeout_while(waiting, pause, enough);
        *waited.unwrap_or_else(PoisonError::into_inner).0 as usize
    }
}

/// The vCPUs' threads; they end when this is dropped, whatever the reason.
pub(crate) struct Vcpus {
    shared: Arc<Shared>,
    running: Vec<Running>,
}

impl Vcpus {
    /// Starts the threads, which confine themselves, and wait: see [`wait_until_confined`](Self::wait_until_confined).
    ///
    /// # Errors
    /// There are no threads left.
    pub(crate) fn start(vcpus: Vec<Vcpu>, shared: Arc<Shared>) -> Result<Self, Error> {
        Running::prepare_kicks()?;
        let mut this = Self { shared, running: Vec::new() };
        for vcpu in vcpus {
            this.running.push(vcpu.start()?);
        }
        Ok(this)
    }

    /// Returns when all threads are confined, and wait.
    ///
    /// # Errors
    /// One cannot be confined.
    pub(crate) fn wait_until_confined(&self) -> Result<(), Error> {
        while self.shared.gate.waiting(self.running.len()) < self.running.len() {
            if self.shared.ending.outcome().is_some() {
                return Err(Error::Over);
            }
        }
        Ok(())
    }

    /// Lets them run.
    pub(crate) fn go_on(&self) {
        self.shared.gate.set(RUN);
    }

    /// Has them leave the guest, and returns when all have.
    ///
    /// # Errors
    /// One has ended.
    pub(crate) fn stand_still(&self) -> Result<(), Error> {
        self.shared.gate.set(WAIT);
        // A signal that comes between the look at the gate and KVM_RUN is lost, so there is another until all wait.
        while self.shared.gate.waiting(self.running.len()) < self.running.len() {
            if self.shared.ending.outcome().is_some() {
                return Err(Error::Over);
            }
            self.running.iter().for_each(Running::kick);
        }
        Ok(())
    }

    /// How the guest has used each, so far.
    pub(crate) fn exits(&self) -> Vec<Exits> {
        self.running.iter().map(Running::exits).collect()
    }

    /// Ends them, and says how the guest used each. Every thread is waited for, also after one that panicked.
    ///
    /// # Errors
    /// One panicked.
    pub(crate) fn end(mut self) -> Result<(), Error> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.shared.gate.set(LEAVE);
        let mut result = Ok(());
        for (id, vcpu) in self.running.drain(..).enumerate() {
            match vcpu.join() {
                Ok(exits) => log::info!("vCPU {id}: {exits}"),
                Err(error) => result = Err(error),
            }
        }
        result
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        // After `end` there is nothing left to stop.
        let _ = self.stop();
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
