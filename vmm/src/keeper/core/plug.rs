//! NICs that come and go while the guest runs.
//!
//! ```text
//!            wire opened        the guest has taken it
//!  net add ──────────────► Coming ─────────────────► In
//!                            │ not in time, or it refuses   │ net remove
//!                            ▼                              ▼
//!                 Pulled ◄───┴──────── by force ─────── Leaving ◄──► asked again
//!                   │                                       │ the guest lets it go
//!                   └──────────► the wire is undone ◄───────┘
//! ```
//!
//! **Invariant: the wire outlives what the machine has of it.** It is undone once the machine says that the NIC is gone; a machine that
//! ends takes all of its NICs along.
//!
//! Nobody waits here: each step is a message, and who asked has a ticket. A client that leaves changes nothing of what it asked for.

use std::time::{Duration, Instant};

use devices::pci::RootComplex;
use net::{NetConfig, WireConfig};
use serde_json::{Value, json};
use vmm::config::Transport;
use vmm::info::MachineState;

use super::{Core, Letter};
use crate::error::Error;
use crate::keeper::control::{ControlError, Ticket};
use crate::keeper::nics::{self, Nic};
use crate::protocol::{Failure, ToMachine};

/// How long the guest has for its word. One that listens takes milliseconds, unless it is very busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// After so long a machine is told again that had too much to read.
const TOLD_AGAIN: Duration = Duration::from_millis(100);

/// What an asker hears.
type Answer = Result<Value, ControlError>;

/// Where a NIC is on its way into the guest, and out of it.
pub(in crate::keeper) enum Stage {
    /// The machine has it, and the guest is to take it until then.
    Coming { asker: Ticket, until: Instant },
    /// The guest has it.
    In,
    /// The guest is to let it go. Somebody waits for that until then, or nobody any more.
    Leaving(Option<(Ticket, Instant)>),
    /// The machine takes it out at once. Who hears what of that.
    Pulled(Vec<(Ticket, Answer)>),
}

impl Nic {
    /// Whether the guest has it.
    pub(in crate::keeper) fn is_in(&self) -> bool {
        !matches!(self.stage, Stage::Coming { .. } | Stage::Pulled(_))
    }

    /// Whether it is on its way out.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Leaving(_) | Stage::Pulled(_))
    }

    fn until(&mut self) -> Option<&mut Instant> {
        match &mut self.stage {
            Stage::Coming { until, .. } | Stage::Leaving(Some((_, until))) => Some(until),
            _ => None,
        }
    }
}

impl Core {
    /// Opens a wire, and gives it to the machine.
    pub(super) fn plug_in(&mut self, ticket: Ticket, spec: &str) -> Result<(), ControlError> {
        self.in_state(MachineState::Running)?;
        self.can_ask("a NIC is plugged in")?;
        if let Some(nic) = self.nics.iter().find(|nic| matches!(nic.stage, Stage::Coming { .. })) {
            return Err(wrong(format!("{} is being plugged in, and there is one at a time", nic.name())));
        }
        let number = self.free_number()?;
        let spec: NetConfig = spec.parse().map_err(|error: net::Error| in_words(&Error::Spec(error)))?;
        if matches!(spec.wire, WireConfig::Fd(_)) {
            return Err(wrong("a descriptor (fd=) is for wirevm run, which inherits it".to_owned()));
        }
        let all = self.nics.iter().map(|nic| (nic.number, &nic.config)).chain([(number, &spec)]);
        nics::check_distinct(&all.collect::<Vec<_>>()).map_err(|error| in_words(&error))?;
        let opened = nics::resolve_one(number, &spec, &self.config)
            .and_then(|config| Nic::open(number, &spec, &config, &self.host));
        let (mut nic, given) = opened.map_err(|error| in_words(&error))?;
        if let Err(error) = given.plug(&self.channel) {
            self.take_back_nic(nic);
            return Err(in_words(&error));
        }
        nic.stage = Stage::Coming { asker: ticket, until: Instant::now() + PATIENCE };
        self.nics.insert(nic);
        self.letters.push(Letter::Came(number));
        self.settle(number);
        Ok(())
    }

    /// Has the guest let a NIC go, or the machine take it out.
    pub(super) fn take_out(&mut self, ticket: Ticket, name: &str, force: bool) -> Result<(), ControlError> {
        self.in_state(MachineState::Running)?;
        if self.config.transport == Transport::Mmio {
            return Err(no_hot_plug());
        }
        let number = self.nic_of(name)?;
        if self.moves[number].is_some() {
            return Err(wrong(format!("{name} is being moved to another wire")));
        }
        if !force {
            self.can_ask(&format!("{name} is given back"))?;
        }
        match &mut self.nics[number].stage {
            Stage::Leaving(Some(_)) if !force => Err(wrong(format!(
                "the guest is already asked for {name}, and has not let it go yet; wirevm net remove --force takes it at once"
            ))),
            Stage::Pulled(answers) => {
                answers.push((ticket, Ok(json!({}))));
                Ok(())
            }
            _ => {
                self.request(&ToMachine::Unplug { number, force })?;
                let until = Instant::now() + PATIENCE;
                let leaving = Stage::Leaving(Some((ticket, until)));
                let stage = if force { Stage::Pulled(vec![(ticket, Ok(json!({})))]) } else { leaving };
                // Who waits for the guest hears of the force as well.
                let before = std::mem::replace(&mut self.nics[number].stage, stage);
                if let (Stage::Leaving(Some((waits, _))), Stage::Pulled(answers)) =
                    (before, &mut self.nics[number].stage)
                {
                    answers.push((waits, Ok(json!({}))));
                }
                Ok(())
            }
        }
    }

    /// The guest has taken a NIC, or the machine has it no more.
    pub(super) fn plugged(&mut self, number: usize, done: Result<(), String>) {
        let Some(Stage::Coming { asker, .. }) = self.nics.get(number).map(|nic| &nic.stage) else { return };
        let asker = *asker;
        match done {
            Ok(()) => {
                let nic = &mut self.nics[number];
                nic.stage = Stage::In;
                let notices = nic.wire.as_ref().map(net::Wire::notices).unwrap_or_default().to_vec();
                let answer = json!({ "nic": self.nic_info(number), "notices": notices });
                self.letters.push(Letter::Answer(asker, Ok(answer)));
                self.list_specs();
            }
            Err(reason) => {
                let refused = ControlError::Refused { reason, remedy: None };
                self.nics[number].stage = Stage::Pulled(vec![(asker, Err(refused))]);
                self.gone(number);
            }
        }
    }

    /// The machine has a NIC no more, or says why it still has. `unseen`: the guest does not know yet.
    pub(super) fn unplugged(&mut self, number: usize, done: Result<(), String>, unseen: bool) {
        if self.nics.get(number).is_none() {
            return;
        }
        match done {
            Ok(()) => {
                if unseen {
                    self.unseen.push(number);
                }
                self.gone(number);
            }
            Err(reason) => {
                let nic = &mut self.nics[number];
                let reason = format!("{}: {reason}", nic.name());
                let remedy = Some("wirevm net remove --force takes it at once".to_owned());
                match std::mem::replace(&mut nic.stage, Stage::In) {
                    Stage::Leaving(Some((asker, _))) => {
                        let refused = ControlError::Refused { reason, remedy };
                        self.letters.push(Letter::Answer(asker, Err(refused)));
                    }
                    Stage::Leaving(None) => log::warn!("{reason}"),
                    stage => nic.stage = stage,
                }
            }
        }
    }

    /// Leaves a NIC's wire to the loop, and then tells who asked.
    fn gone(&mut self, number: usize) {
        let Some(mut nic) = self.nics.remove(number) else { return };
        self.drop_move(number);
        let answers = match std::mem::replace(&mut nic.stage, Stage::In) {
            Stage::Leaving(Some((asker, _))) => vec![(asker, Ok(json!({})))],
            Stage::Pulled(answers) => answers,
            Stage::Coming { asker, .. } => {
                let reason = format!("{} is gone before the guest had it", nic.name());
                vec![(asker, Err(ControlError::Refused { reason, remedy: None }))]
            }
            Stage::Leaving(None) | Stage::In => Vec::new(),
        };
        self.letters.push(Letter::Gone(Box::new(nic)));
        self.letters.extend(answers.into_iter().map(|(ticket, answer)| Letter::Answer(ticket, answer)));
        self.list_specs();
    }

    /// A NIC is gone: nothing more comes of its move, nor of what was asked of its link.
    fn drop_move(&mut self, index: usize) {
        self.lost[index] = None;
        let why = || ControlError::WrongState(format!("nic{index} is taken out"));
        let mut tickets: Vec<_> =
            self.moves[index].take().and_then(|step| step.ticket()).into_iter().collect();
        tickets.extend(self.rating.extract_if(.., |(nic, _)| *nic == index).map(|(_, ticket)| ticket));
        tickets.extend(self.forget_links(index));
        self.letters.extend(tickets.into_iter().map(|ticket| Letter::Answer(ticket, Err(why()))));
    }

    /// Undoes the wire of a NIC that the machine has no more.
    pub(in crate::keeper) fn take_back_nic(&mut self, nic: Nic) {
        log::info!("NIC {} is gone", nic.number);
        drop(nic);
        self.host.undone();
    }

    /// When the guest's time for one of its NICs is up. While it stands still, time does not count.
    pub(super) fn plug_deadline(&self) -> Option<Instant> {
        let waits = self.nics.iter().filter_map(|nic| match nic.stage {
            Stage::Coming { until, .. } | Stage::Leaving(Some((_, until))) => Some(until),
            _ => None,
        });
        waits.min().filter(|_| self.state == MachineState::Running)
    }

    /// The guest goes on, and has all its time again.
    pub(super) fn renew_patience(&mut self, now: Instant) {
        self.nics.iter_mut().filter_map(Nic::until).for_each(|until| *until = now + PATIENCE);
    }

    /// The guest's time may be up.
    pub(super) fn expire_plugs(&mut self, now: Instant) {
        if self.plug_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let seconds = PATIENCE.as_secs();
        for nic in self.nics.iter_mut() {
            let name = nic.name();
            match nic.stage {
                Stage::Coming { asker, until } if until <= now => {
                    let reason = format!(
                        "the guest has not taken {name} within {seconds} s: its kernel has no ACPI hot plug of PCI, or stands still"
                    );
                    let remedy = Some("take a kernel with CONFIG_HOTPLUG_PCI_ACPI".to_owned());
                    let pull = ToMachine::Unplug { number: nic.number, force: true };
                    if self.channel.try_send(&pull).is_err() {
                        // It has too much to read, or is about to end.
                        nic.stage = Stage::Coming { asker, until: now + TOLD_AGAIN };
                        continue;
                    }
                    nic.stage = Stage::Pulled(vec![(asker, Err(ControlError::Refused { reason, remedy }))]);
                }
                Stage::Leaving(Some((asker, until))) if until <= now => {
                    let reason = format!(
                        "the guest has not let {name} go within {seconds} s; it is still asked to, and the NIC is gone once it does"
                    );
                    let remedy = Some("wirevm net remove --force takes it at once".to_owned());
                    let late = Err(ControlError::Refused { reason, remedy });
                    self.letters.push(Letter::Answer(asker, late));
                    nic.stage = Stage::Leaving(None);
                }
                _ => {}
            }
        }
    }

    /// The specs of the NICs that there are, as if the machine had been started with them.
    pub(super) fn list_specs(&mut self) {
        self.config.net = self.nics.iter().filter(|nic| nic.is_in()).map(|nic| nic.spec.clone()).collect();
    }

    /// The lowest number that no NIC has and that the guest does not take for one's that is gone.
    fn free_number(&self) -> Result<usize, ControlError> {
        let taken = |number: &usize| self.nics.iter().any(|nic| nic.number == *number);
        let room = RootComplex::FUNCTIONS - self.config.devices_beside_nics();
        let mut free = (0..room).filter(|number| !taken(number));
        match free.clone().next() {
            None => Err(ControlError::Refused {
                reason: format!("the guest has {room} NICs, and no slot is free for one more"),
                remedy: Some("take one out: wirevm net remove".to_owned()),
            }),
            Some(first) => free.find(|number| !self.unseen.contains(number)).ok_or_else(|| {
                wrong(format!(
                    "the guest has not seen yet that nic{first} is gone, and no other slot is free"
                ))
            }),
        }
    }

    /// The number of the NIC of this name.
    ///
    /// # Errors
    /// There is none, or it is not in yet.
    pub(super) fn nic_of(&self, name: &str) -> Result<usize, ControlError> {
        match self.nics.iter().find(|nic| nic.name() == name) {
            Some(nic) if matches!(nic.stage, Stage::Coming { .. }) => {
                Err(wrong(format!("{name} is being plugged in")))
            }
            Some(nic) => Ok(nic.number),
            None => {
                let names: Vec<_> = self.nics.iter().filter(|nic| nic.is_in()).map(Nic::name).collect();
                let have = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                let reason = format!("there is no NIC {}; the machine has {have}", net::printable(name));
                Err(ControlError::NoSuchNic(reason))
            }
        }
    }

    /// Whether the guest can be asked at all; `what` for.
    fn can_ask(&self, what: &str) -> Result<(), ControlError> {
        let cmdline = &self.config.cmdline;
        match boot::uses_no_acpi(cmdline) {
            _ if self.config.transport == Transport::Mmio => Err(no_hot_plug()),
            _ if boot::looks_for_no_pci(cmdline) => {
                Err(wrong("the guest's command line has pci=off, so it has no slots for NICs".to_owned()))
            }
            Some(word) => {
                Err(wrong(format!("the guest's command line has {word}, so it has no ACPI, by which {what}")))
            }
            None => Ok(()),
        }
    }
}

fn wrong(reason: String) -> ControlError {
    ControlError::WrongState(reason)
}

fn no_hot_plug() -> ControlError {
    ControlError::Refused {
        reason: "by --transport mmio a guest finds its NICs once, as it boots, and keeps them".to_owned(),
        remedy: Some("start the machine with --transport pci".to_owned()),
    }
}

/// The words of an error and its causes.
fn in_words(error: &Error) -> ControlError {
    let Failure { error, causes, remedy } = Failure::new(error, error.remedy());
    let words: Vec<_> = [error].into_iter().chain(causes).collect();
    ControlError::Refused { reason: words.join(": "), remedy }
}
