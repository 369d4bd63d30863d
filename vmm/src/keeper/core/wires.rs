//! Wires while the guest runs: a NIC's link follows its wire, a wire that is lost is made again, and a NIC moves to another one.
//!
//! # A move
//! ```text
//!            new wire made             the machine has it
//!   ┌──────┐ ─────────────► ┌──────────┐ ───────────────► ┌───────┐
//!   │ here │                │ Swapping │                  │ there │
//!   └──────┘ ◄───────────── └──────────┘ ◄─────┐          └───────┘
//!      │      refused        ▲                 │ old wire made again
//!      │ the two cannot be   │ new wire made   │
//!      │ beside each other   │                 │
//!      └──► ┌────────────┐ ──┘        ┌────────┴──┐
//!           │ Unplugging │ ─────────► │ Restoring │
//!           └────────────┘  refused   └───────────┘
//! ```
//! The guest's link is down meanwhile. As a rule the new wire is whole before the old one is left. Two that want the same of the
//! host (a name, an address, a MAC on one bridge) cannot be at once: the old one goes first then, and is made again if the new one
//! cannot be.

use std::time::{Duration, Instant};

use net::{Condition, NetConfig, News, Wire};
use serde_json::json;
use vmm::info::MachineState;

use super::{Core, Letter};
use crate::keeper::control::{ControlError, Ticket};
use crate::keeper::move_spec::to_move;
use crate::keeper::nic_table::Nics;
use crate::keeper::nics;
use crate::protocol::ToMachine;

/// After so long a wire that could not be made again is tried once more; and twice as long each time, up to the second.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// A move of a NIC.
pub(super) struct Move {
    stage: Stage,
    /// Whom to answer; none where the keeper makes a lost wire again.
    ticket: Option<Ticket>,
    to: NetConfig,
    /// What makes the wire before again.
    from: NetConfig,
    /// Why it is being made again.
    failed: Option<ControlError>,
    /// The wire before has gone.
    left: bool,
}

impl Move {
    /// Whom to answer.
    pub(super) fn ticket(&self) -> Option<Ticket> {
        self.ticket
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unplugging,
    Swapping,
    Restoring,
}

/// Why a wire cannot be made.
struct Unmade {
    why: ControlError,
    /// Somebody has what it wants of the host.
    taken: bool,
}

/// A wire that is to be made again later.
pub(super) struct Lost {
    config: NetConfig,
    at: Instant,
    delay: Duration,
}

impl Core {
    /// Looks at the wires of a namespace after this news.
    pub(in crate::keeper) fn hear_news(&mut self, namespace: u64, news: &News) {
        for index in self.nics.numbers() {
            let Some(wire) = self.nics[index].wire.as_mut() else { continue };
            if wire.namespace() != namespace {
                continue;
            }
            let before = wire.condition().clone();
            let now = wire.look(news).clone();
            for notice in wire.take_notices() {
                log::warn!("NIC {index}: {notice}");
            }
            if now != before {
                self.say(index, &now);
            }
            // The link is down while a NIC moves.
            if self.moves[index].is_some() {
                continue;
            }
            match now {
                Condition::Lost(_) => self.make_again(index),
                Condition::Up | Condition::Down(_) => self.follow(index),
            }
        }
    }

    /// Moves a NIC to the wire that `spec` says.
    pub(super) fn move_to(&mut self, ticket: Ticket, nic: &str, spec: &str) -> Result<(), ControlError> {
        let index = self.nic_of(nic)?;
        self.in_state(MachineState::Running)?;
        if self.moves[index].is_some() {
            return Err(ControlError::WrongState(format!("nic{index} is being moved")));
        }
        if self.nics[index].is_leaving() {
            return Err(ControlError::WrongState(format!("nic{index} is being taken out")));
        }
        let nic = &self.nics[index];
        // One that has lost its wire leaves what it is to get again.
        let (wire, lost) = (nic.wire.as_ref(), self.lost[index].as_ref());
        let from = wire.map(Wire::again).or_else(|| lost.map(|lost| lost.config.clone()));
        let Some(from) = from else {
            return Err(ControlError::WrongState(format!("nic{index} has no wire that it could leave")));
        };
        let left = wire.is_none();
        let to = to_move(nic, &from, spec, &self.config)?;
        let step = Move { stage: Stage::Swapping, ticket: Some(ticket), to, from, failed: None, left };
        let next = match left || !step.from.excludes(&step.to) {
            true => match self.open(index, &step.to) {
                // By the wire that it is to leave, perhaps.
                Err(Unmade { taken: true, .. }) if !left => None,
                opened => Some(opened.map_err(|unmade| unmade.why)?),
            },
            false => None,
        };
        self.send_link(index, false);
        let gone_on = match next {
            Some(next) => self.plug(index, next, step),
            None => self.unplug(index, step),
        };
        gone_on.map_err(|(_, why)| {
            self.follow(index);
            why
        })
    }

    /// Makes a wire for a NIC that is there.
    fn open(&self, index: usize, config: &NetConfig) -> Result<Wire, Unmade> {
        let wire = Wire::open(config, &self.host)
            .map_err(|error| Unmade { why: nics::refused(&error), taken: error.is_taken() })?;
        let (told, mtu) = (self.nics[index].mtu, wire.mtu());
        match mtu < told {
            true => {
                let why = format!("the guest was told an MTU of {told} bytes, and that wire carries {mtu}");
                Err(Unmade { why: ControlError::Failed(why), taken: false })
            }
            false => Ok(wire),
        }
    }

    /// Has the machine leave the wire, to which there is none yet.
    fn unplug(&mut self, index: usize, step: Move) -> Result<(), (Box<Move>, ControlError)> {
        match self.channel.try_send(&ToMachine::Swap { nic: index, wire: None }) {
            Ok(()) => {
                self.moves[index] = Some(Move { stage: Stage::Unplugging, ..step });
                Ok(())
            }
            Err(error) => Err((Box::new(step), ControlError::Failed(error.to_string()))),
        }
    }

    /// Has the machine take the next wire.
    fn plug(&mut self, index: usize, next: Wire, step: Move) -> Result<(), (Box<Move>, ControlError)> {
        match self.nics[index].give_next(next, &self.channel) {
            Ok(()) => {
                self.moves[index] = Some(step);
                Ok(())
            }
            Err(error) => {
                let why = format!("cannot give the wire to the guest: {error}");
                Err((Box::new(step), ControlError::Failed(why)))
            }
        }
    }

    /// The machine has done what a move asked of it, or not.
    pub(super) fn swapped(&mut self, index: usize, done: Result<(), String>) {
        let Some(step) = self.moves.get_mut(index).and_then(Option::take) else { return };
        match (step.stage, done) {
            (Stage::Unplugging, Ok(())) => {
                drop(self.nics[index].wire.take());
                let step = Move { stage: Stage::Swapping, left: true, ..step };
                match self.open(index, &step.to) {
                    Ok(next) => {
                        if let Err((step, why)) = self.plug(index, next, step) {
                            self.restore(index, *step, why);
                        }
                    }
                    Err(Unmade { why, .. }) => self.restore(index, step, why),
                }
            }
            (Stage::Swapping, Ok(())) => {
                // The wire before is undone here.
                drop(self.nics[index].has_moved());
                self.arrived(index, step);
            }
            (Stage::Swapping | Stage::Unplugging, Err(why)) => {
                let why = ControlError::Failed(why);
                drop(self.nics[index].next.take());
                match step.left {
                    true => self.restore(index, step, why),
                    false => self.stay(index, step, why),
                }
            }
            (Stage::Restoring, Ok(())) => {
                drop(self.nics[index].has_moved());
                let why = step.failed.clone().unwrap_or_else(|| ControlError::Failed(String::new()));
                self.stay(index, step, why);
            }
            (Stage::Restoring, Err(why)) => {
                drop(self.nics[index].next.take());
                self.lose(index, step, &ControlError::Failed(why));
            }
        }
    }

    /// Makes the wire before again, which went for the new one.
    fn restore(&mut self, index: usize, step: Move, why: ControlError) {
        // What was lost is tried again as it was.
        if step.ticket.is_none() && step.failed.is_none() && step.to == step.from {
            return self.lose(index, step, &why);
        }
        let step = Move { stage: Stage::Restoring, failed: Some(why), ..step };
        match self.open(index, &step.from) {
            Ok(wire) => {
                if let Err((step, why)) = self.plug(index, wire, step) {
                    self.lose(index, *step, &why);
                }
            }
            Err(Unmade { why, .. }) => self.lose(index, step, &why),
        }
    }

    /// The NIC is on the new wire.
    fn arrived(&mut self, index: usize, step: Move) {
        self.lost[index] = None;
        let nic = &self.nics[index];
        let link = nic.wire.as_ref().map(|wire| wire.link().to_owned()).unwrap_or_default();
        match step.ticket {
            Some(_) => {
                log::info!("NIC {index} moved to {} ({link})", step.to);
                self.nics[index].spec = step.to;
                self.list_specs();
            }
            // What the user wants of it is what it was.
            None => log::warn!("NIC {index}: the wire is made again ({link})"),
        }
        self.settle(index);
        if let Some(ticket) = step.ticket {
            let info = self.nic_info(index);
            self.letters.push(Letter::Answer(ticket, Ok(json!({ "nic": info }))));
        }
    }

    /// The NIC is on the wire before, and why it did not move.
    fn stay(&mut self, index: usize, step: Move, why: ControlError) {
        self.settle(index);
        self.refuse(step, why);
    }

    /// The NIC has no wire, which is to be made again later.
    fn lose(&mut self, index: usize, step: Move, why: &ControlError) {
        drop(self.nics[index].wire.take());
        let before = self.lost[index].take();
        let delay = before.map_or(AGAIN, |lost| (2 * lost.delay).min(AGAIN_MAX));
        if delay == AGAIN {
            log::warn!(
                "NIC {index}: the wire cannot be made again, and is tried until it can: {}",
                why.parts().0
            );
        }
        self.lost[index] = Some(Lost { config: step.from.clone(), at: Instant::now() + delay, delay });
        let (reason, remedy) = step.failed.as_ref().unwrap_or(why).parts();
        let reason = format!("{reason}; and the wire before cannot be made again: {}", why.parts().0);
        self.refuse(step, ControlError::Refused { reason, remedy });
        self.follow(index);
    }

    fn refuse(&mut self, step: Move, why: ControlError) {
        match step.ticket {
            Some(ticket) => self.letters.push(Letter::Answer(ticket, Err(why))),
            None => log::debug!("not moved: {}", why.parts().0),
        }
    }

    /// Makes a wire again whose end at the guest is gone.
    fn make_again(&mut self, index: usize) {
        if self.moves[index].is_some() {
            return;
        }
        let Some(wire) = &self.nics[index].wire else { return };
        let from = wire.again();
        self.remake(index, from);
    }

    fn remake(&mut self, index: usize, from: NetConfig) {
        let step =
            Move { stage: Stage::Unplugging, ticket: None, to: from.clone(), from, failed: None, left: true };
        self.send_link(index, false);
        if let Err((step, why)) = self.unplug(index, step) {
            self.lose(index, *step, &why);
        }
    }

    /// A wire was just made: what has become of it meanwhile counts, too.
    pub(super) fn settle(&mut self, index: usize) {
        if let Some(wire) = self.nics[index].wire.as_mut() {
            let now = wire.look(&News::of_all()).clone();
            if now != Condition::Up {
                self.say(index, &now);
            }
            if let Condition::Lost(_) = now {
                let config = self.nics[index].wire.as_ref().map(Wire::again);
                // Not at once: somebody may do that to each one.
                let lost = |config| Lost { config, at: Instant::now() + AGAIN, delay: AGAIN };
                self.lost[index] = config.map(lost);
            }
        }
        self.set_link(index);
    }

    /// When a lost wire is to be tried again, or one to be looked at.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let waits = |index: &usize| self.moves[*index].is_none();
        let lost = self.nics.numbers().into_iter().filter(waits);
        let lost = lost.filter_map(|index| Some(self.lost[index].as_ref()?.at));
        lost.chain(self.link_due)
            .chain(self.nics.iter().filter_map(|nic| nic.wire.as_ref()?.deadline()))
            .min()
    }

    /// Tries the lost wires again whose time has come.
    pub(super) fn try_again(&mut self, now: Instant) {
        if self.link_due.take_if(|at| *at <= now).is_some() {
            self.follow_all();
        }
        for index in self.nics.numbers() {
            let due = self.lost[index].as_ref().filter(|lost| lost.at <= now && self.moves[index].is_none());
            if let Some(config) = due.map(|lost| lost.config.clone()) {
                self.remake(index, config);
            }
            let wire = self.nics[index].wire.as_ref();
            if let Some(wire) = wire.filter(|wire| wire.deadline().is_some_and(|at| at <= now)) {
                let namespace = wire.namespace();
                self.hear_news(namespace, &News::default());
            }
        }
    }

    /// Every NIC, for the loop.
    pub(in crate::keeper) fn wires(&mut self) -> &mut Nics {
        &mut self.nics
    }
}
