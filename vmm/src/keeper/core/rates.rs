//! What a NIC is held to while the guest runs.

use net::RateLimits;
use serde_json::json;
use vmm::info::MachineState;

use super::Core;
use crate::keeper::control::{ControlError, Ticket};
use crate::protocol::ToMachine;

impl Core {
    /// Has the machine hold a NIC to `limits`.
    pub(super) fn hold_to(
        &mut self,
        ticket: Ticket,
        nic: &str,
        limits: RateLimits,
    ) -> Result<(), ControlError> {
        let index = self.nic_of(nic)?;
        if self.state == MachineState::Built {
            return Err(ControlError::WrongState("the guest does not run yet".to_owned()));
        }
        // A wire brings its own.
        if self.moves[index].is_some() {
            return Err(ControlError::WrongState(format!("nic{index} is being moved")));
        }
        let Some(wire) = &self.nics[index].wire else {
            return Err(ControlError::WrongState(format!(
                "nic{index} has no wire at the moment; wirevm keeps trying to make it again"
            )));
        };
        if wire.carried() && !limits.is_off() {
            return Err(ControlError::Failed(format!(
                "vhost-net carries the frames of nic{index} and keeps no rate: have wirevm's threads carry them, by wirevm net move {} \
                 nic{index} vhost=off,{limits}; or have tc(8) keep one on the host's link {}",
                self.place.name(),
                wire.link()
            )));
        }
        self.request(&ToMachine::Rate { nic: index, limits })?;
        self.rating.push((index, ticket));
        // At once: a move that comes next takes them along.
        self.nics[index].has_rate(limits);
        self.nics[index].spec.rate = limits;
        self.list_specs();
        Ok(())
    }

    /// The machine holds a NIC to the limits that it was asked for first, or not.
    pub(super) fn rated(&mut self, index: usize, done: Result<(), String>) {
        if let Some(first) = self.rating.iter().position(|(nic, _)| *nic == index) {
            let (_, ticket) = self.rating.remove(first);
            self.answer_all(vec![ticket], done.map(|()| json!({})));
        }
    }
}
