//! All vCPUs together: when they run, when they stand still, and how they end.

use std::sync::Arc;

use crate::error::Error;
use crate::kvm::gate::{LEAVE, RUN, WAIT};
use crate::kvm::vcpu::{Exits, Running, Shared, Vcpu};

/// The vCPUs' threads; they end when this is dropped, whatever the reason.
pub(crate) struct Vcpus {
    shared: Arc<Shared>,
    running: Vec<Running>,
}

impl Vcpus {
    /// Starts the threads, each on its CPU of the host if there is a list, which confine themselves, and wait: see
    /// [`wait_until_confined`](Self::wait_until_confined).
    ///
    /// # Errors
    /// There are no threads left.
    pub(crate) fn start(vcpus: Vec<Vcpu>, affinity: &[u16], shared: Arc<Shared>) -> Result<Self, Error> {
        Running::prepare_kicks()?;
        let mut this = Self { shared, running: Vec::new() };
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            this.running.push(vcpu.start(affinity.get(id).copied())?);
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
