//! What a NIC is held to while the guest runs.

use net::RateLimits;
use serde_json::json;
use vmm::info::MachineState;

use super::Core;
use crate::keeper::control::{ControlError, Ticket};
use crate::keeper::nics;
use crate::protocol::ToMachine;

impl Core {
    /// Holds a NIC to `limits`: the machine does it, or the host's link where the kernel carries the frames.
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
        let carried = wire.carried();
        if !carried {
            self.request(&ToMachine::Rate { nic: index, limits })?;
        }
        // At once: a move that comes next takes them along.
        let nic = &mut self.nics[index];
        nic.hold_to(limits).map_err(|error| nics::refused(&error))?;
        nic.spec.rate = limits;
        match carried {
            true => self.answer_all(vec![ticket], Ok(json!({}))),
            false => self.rating.push((index, ticket)),
        }
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
