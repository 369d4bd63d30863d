//! The link of each NIC's guest: what it is up by, and that the machine has it so.

use std::time::{Duration, Instant};

use net::{Condition, LinkMode, Wire};
use serde_json::json;
use vmm::info::MachineState;

use super::Core;
use crate::keeper::control::{ControlError, Ticket};
use crate::protocol::{Link, ToMachine};

/// After so long a machine is told again that had too much to read.
const TOLD_AGAIN: Duration = Duration::from_millis(100);
/// After so long one that could not do it is asked again.
const ASKED_AGAIN: Duration = Duration::from_secs(1);

/// What the machine was asked for and has not answered yet.
pub(super) struct Asked {
    nic: usize,
    up: bool,
    /// Who waits for that.
    ticket: Option<Ticket>,
}

impl Core {
    pub(super) fn say(&self, index: usize, condition: &Condition) {
        let follows = self.nics[index].mode == LinkMode::Follow;
        match (condition.why(), follows) {
            (Some(why), true) => log::warn!("NIC {index}: the link is down: {why}"),
            (Some(why), false) => log::warn!("NIC {index}: {why}"),
            (None, true) => log::warn!("NIC {index}: the link is up again"),
            (None, false) => log::warn!("NIC {index}: frames get through again"),
        }
    }

    /// Has the guest's link as it is to be, if it is not.
    pub(super) fn follow(&mut self, index: usize) {
        if self.wanted(index) != self.nics[index].up {
            self.set_link(index);
        }
    }

    /// Has each link as it is to be, but those of NICs that move.
    pub(super) fn follow_all(&mut self) {
        for index in self.nics.numbers() {
            if self.moves[index].is_none() {
                self.follow(index);
            }
        }
    }

    /// Whether the guest's link is to be up.
    fn wanted(&self, index: usize) -> bool {
        let nic = &self.nics[index];
        match nic.mode {
            LinkMode::Up => true,
            LinkMode::Down => false,
            LinkMode::Follow => nic.wire.as_ref().is_some_and(|wire| *wire.condition() == Condition::Up),
        }
    }

    /// Has the machine set the guest's link as it is to be.
    pub(super) fn set_link(&mut self, index: usize) {
        let up = self.wanted(index);
        self.send_link(index, up);
    }

    /// Has the machine set the guest's link; one that has too much to read is told later.
    pub(super) fn send_link(&mut self, index: usize, up: bool) {
        self.ask_link(index, up, None);
    }

    /// The same for who waits with this ticket. Whether the machine was told.
    fn ask_link(&mut self, index: usize, up: bool, ticket: Option<Ticket>) -> bool {
        let nic = &mut self.nics[index];
        let returns = up && !nic.up;
        let announcement = nic.wire.as_ref().filter(|_| returns).map(Wire::announcement);
        let link = Link { nic: index, up, carrier: nic.mode != LinkMode::Down, announcement };
        let told = self.channel.try_send(&ToMachine::Link(link)).is_ok();
        match told {
            true => {
                nic.up = up;
                self.linking.push(Asked { nic: index, up, ticket });
            }
            false => self.link_due = Some(Instant::now() + TOLD_AGAIN),
        }
        told
    }

    /// The machine has set the link as it was asked first, or not.
    pub(super) fn linked(&mut self, index: usize, done: Result<(), String>) {
        let Some(first) = self.linking.iter().position(|asked| asked.nic == index) else { return };
        let Asked { up, ticket, .. } = self.linking.remove(first);
        if let Err(why) = &done
            && self.nics.get(index).is_some()
        {
            log::warn!("NIC {index}: cannot set the link: {why}");
            // What was asked since may be done.
            if !self.linking.iter().any(|asked| asked.nic == index) {
                self.nics[index].up = !up;
                self.link_due = Some(Instant::now() + ASKED_AGAIN);
            }
        }
        self.answer_all(ticket.into_iter().collect(), done.map(|()| json!({})));
    }

    pub(super) fn link_by(&mut self, ticket: Ticket, nic: &str, mode: &str) -> Result<(), ControlError> {
        let index = self.nic_of(nic)?;
        if self.state == MachineState::Built {
            return Err(ControlError::WrongState("the guest does not run yet".to_owned()));
        }
        // Its link is down until it has.
        if self.moves[index].is_some() {
            return Err(ControlError::WrongState(format!("nic{index} is being moved")));
        }
        let mode = mode.parse().map_err(|_| ControlError::InvalidParameter("mode"))?;
        let before = std::mem::replace(&mut self.nics[index].mode, mode);
        let up = self.wanted(index);
        match self.ask_link(index, up, Some(ticket)) {
            true => Ok(()),
            false => {
                self.nics[index].mode = before;
                Err(ControlError::WrongState(
                    "the machine has too much to read, or is about to end".to_owned(),
                ))
            }
        }
    }

    /// The NIC is gone: who waited for its link.
    pub(super) fn forget_links(&mut self, index: usize) -> Vec<Ticket> {
        self.linking.extract_if(.., |asked| asked.nic == index).filter_map(|asked| asked.ticket).collect()
    }
}
