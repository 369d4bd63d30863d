//! The machine's main thread while the guest runs: the keeper's messages, keys for the serial port, and the wait for the end.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use boot::layout;
use devices::reset::AcpiPower;
use devices::serial::Serial;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use kvm_ioctls::VmFd;

use crate::error::Error;
use crate::kvm::irq;
use crate::machine::ending::{Ending, Outcome};
use crate::machine::nic::Nic;
use crate::machine::others::Others;
use crate::machine::slots::Slots;
use crate::machine::vcpus::Vcpus;
use crate::protocol::{self, Channel, FromMachine, ToMachine};

/// What wakes the thread.
mod token {
    pub(super) const KEEPER: u32 = 0;
    /// There are keys.
    pub(super) const INPUT: u32 = 1;
    /// The guest has read all its keys.
    pub(super) const SPACE: u32 = 2;
    pub(super) const END: u32 = 3;
    /// The guest's kernel panicked.
    pub(super) const PANIC: u32 = 4;
    /// The guest has had its word on a slot.
    pub(super) const SLOTS: u32 = 5;
}

/// A machine at work.
pub(crate) struct Machine {
    channel: Arc<Channel<FromMachine, ToMachine>>,
    vcpus: Vcpus,
    nics: Vec<Nic>,
    others: Others,
    /// None where NICs do not come and go.
    slots: Option<Slots>,
    vm: Arc<VmFd>,
    serial: Arc<Serial>,
    power: Arc<AcpiPower>,
    ending: Arc<Ending>,
    input: File,
    /// Keys are waited for: the guest has room for some, and the keeper is there to bring them.
    listens: bool,
    paused: bool,
    failed: Option<event_manager::Error>,
}

impl Machine {
    #[allow(clippy::too_many_arguments)] // each is a part of it, handed over once
    pub(crate) fn new(
        channel: Arc<Channel<FromMachine, ToMachine>>,
        vcpus: Vcpus,
        nics: Vec<Nic>,
        others: Others,
        slots: Option<Slots>,
        vm: Arc<VmFd>,
        serial: Arc<Serial>,
        power: Arc<AcpiPower>,
        ending: Arc<Ending>,
        input: OwnedFd,
    ) -> Self {
        let input = input.into();
        Self {
            channel,
            vcpus,
            nics,
            others,
            slots,
            vm,
            serial,
            power,
            ending,
            input,
            listens: false,
            paused: false,
            failed: None,
        }
    }

    fn hear(&mut self) {
        loop {
            match self.channel.try_receive() {
                Ok(Some((message, descriptors))) => self.obey(message, descriptors),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // The kernel ends us when the keeper does; what makes no sense is no keeper.
                Ok(None) | Err(_) => return self.ending.end(Outcome::Stopped),
            }
        }
    }

    fn obey(&mut self, message: ToMachine, descriptors: Vec<OwnedFd>) {
        let answer = match message {
            ToMachine::Pause => FromMachine::Paused(self.pause().map_err(|error| error.to_string())),
            ToMachine::Resume => FromMachine::Resumed(self.resume().map_err(|error| error.to_string())),
            ToMachine::PowerButton => FromMachine::PowerButton { heard: self.press() },
            ToMachine::Counters => {
                for nic in &self.nics {
                    self.tell(&FromMachine::NicCounters(nic.counters()));
                }
                let exits = self.vcpus.exits();
                let exits = exits.iter().map(|exits| [exits.port, exits.mmio, exits.other]).collect();
                FromMachine::Counters { exits, disks: self.others.count_disks() }
            }
            ToMachine::Link(link) => {
                let done = self.nic(link.nic).and_then(|nic| nic.set_link(&link));
                FromMachine::Linked { nic: link.nic, done: done.map_err(|error| error.to_string()) }
            }
            ToMachine::Swap { nic, wire } => {
                let done = self.nic(nic).and_then(|nic| nic.swap(wire.map(|wire| *wire), descriptors));
                FromMachine::Swapped { nic, done: done.map_err(|error| error.to_string()) }
            }
            ToMachine::Rate { nic, limits } => {
                let done = self.nic(nic).and_then(|nic| nic.set_rate(&limits));
                FromMachine::Rated { nic, done: done.map_err(|error| error.to_string()) }
            }
            ToMachine::Plug(nic) => {
                let number = nic.number;
                match self.plug(*nic, descriptors) {
                    // The guest has its word.
                    Ok(()) => return,
                    Err(error) => FromMachine::Plugged { number, done: Err(error.to_string()) },
                }
            }
            ToMachine::Unplug { number, force } => match self.unplug(number, force) {
                Ok(None) => return,
                Ok(Some(unseen)) => FromMachine::Unplugged { number, done: Ok(()), unseen },
                Err(error) => FromMachine::Unplugged { number, done: Err(error.to_string()), unseen: false },
            },
            ToMachine::Stop => return self.ending.end(Outcome::Stopped),
            // It was built.
            ToMachine::Nic(_) | ToMachine::Vsock { .. } | ToMachine::Start => return,
        };
        self.tell(&answer);
    }

    fn tell(&self, answer: &FromMachine) {
        if self.channel.send(answer).is_err() {
            self.ending.end(Outcome::Stopped);
        }
    }

    fn nic(&mut self, number: usize) -> std::io::Result<&mut Nic> {
        let nic = self.nics.iter_mut().find(|nic| nic.number() == number);
        nic.ok_or_else(|| std::io::Error::other("there is no such NIC"))
    }

    /// The guest's vCPUs run.
    fn plug(&mut self, nic: protocol::Nic, descriptors: Vec<OwnedFd>) -> Result<(), Error> {
        match &self.slots {
            Some(_) if self.paused => Err(Error::StandsStill),
            Some(slots) => slots.plug(nic, descriptors, &mut self.nics),
            None => Err(Error::Deaf),
        }
    }

    /// Whether the NIC is gone, and the guest does not know yet; nothing where the guest has its word.
    fn unplug(&mut self, number: usize, force: bool) -> Result<Option<bool>, Error> {
        match &mut self.slots {
            Some(slots) if force => Ok(Some(slots.pull(number, &mut self.nics))),
            Some(slots) => slots.ask_for(number).map(|()| None),
            None => Err(Error::Deaf),
        }
    }

    /// The guest has had its word.
    fn hear_guest(&mut self) {
        let said = self.slots.as_mut().map(|slots| slots.hear(&mut self.nics));
        said.iter().flatten().for_each(|said| self.tell(said));
    }

    /// Running → Paused. The vCPUs first: what the guest has sent by then is on its rings.
    fn pause(&mut self) -> Result<(), Error> {
        if self.paused {
            return Ok(());
        }
        self.vcpus.stand_still()?;
        let paused = self.nics.iter().try_for_each(Nic::pause).and_then(|()| self.others.pause());
        if let Err(source) = paused {
            let _ = self.nics.iter().try_for_each(Nic::resume);
            let _ = self.others.resume();
            self.vcpus.go_on();
            return Err(Error::Host { what: "stop a device's queues", source });
        }
        self.paused = true;
        Ok(())
    }

    /// Paused → Running.
    fn resume(&mut self) -> Result<(), Error> {
        if self.paused {
            let resumed = self.nics.iter().try_for_each(Nic::resume).and_then(|()| self.others.resume());
            resumed.map_err(|source| Error::Host { what: "let a device's queues go on", source })?;
            self.vcpus.go_on();
            self.paused = false;
        }
        Ok(())
    }

    /// Presses the power button; false where the guest has no driver that hears it.
    fn press(&self) -> bool {
        if let Err(error) = self.power.press() {
            log::warn!("cannot press the power button: {error}");
            return false;
        }
        irq::is_unmasked(&self.vm, layout::GED_GSI).unwrap_or_else(|error| {
            log::debug!("KVM does not say whether the guest hears the power button: {error}");
            true
        })
    }

    /// Gives the guest as many keys as it has room for and there are.
    fn give_keys(&mut self, ops: &mut EventOps) {
        let mut bytes = [0; 64];
        let mut over = false;
        loop {
            let room = self.serial.input_space().min(bytes.len());
            if room == 0 {
                break;
            }
            match self.input.read(&mut bytes[..room]) {
                Ok(0) => {
                    over = true;
                    break;
                }
                Ok(len) => {
                    if let Err(error) = self.serial.enqueue(&bytes[..len]) {
                        log::warn!("cannot tell the guest of its input: {error}");
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // Without room it is left alone, so that what is not read yet is not lost.
        self.listen(!over && self.serial.input_space() > 0, ops);
    }

    fn listen(&mut self, wanted: bool, ops: &mut EventOps) {
        if wanted != self.listens {
            let set = if wanted { EventSet::IN } else { EventSet::empty() };
            let keys = Events::with_data(&self.input, token::INPUT, set);
            let done = if wanted { ops.add(keys) } else { ops.remove(keys) };
            self.note(done);
            self.listens = wanted;
        }
    }

    fn note(&mut self, done: Result<(), event_manager::Error>) {
        if let Err(error) = done {
            self.failed.get_or_insert(error);
        }
    }
}

impl MutEventSubscriber for Machine {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            token::KEEPER => self.hear(),
            token::INPUT => self.give_keys(ops),
            token::SPACE => {
                let _ = self.serial.space_event().read();
                self.give_keys(ops);
            }
            // The loop looks at the time that is left.
            token::PANIC => _ = self.ending.panic().read(),
            token::SLOTS => self.hear_guest(),
            // The loop looks.
            _ => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let added = ops
            .add(Events::with_data(&*self.channel, token::KEEPER, EventSet::IN))
            .and_then(|()| ops.add(Events::with_data(self.serial.space_event(), token::SPACE, EventSet::IN)))
            .and_then(|()| ops.add(Events::with_data(self.ending.event(), token::END, EventSet::IN)))
            .and_then(|()| ops.add(Events::with_data(self.ending.panic(), token::PANIC, EventSet::IN)));
        let slots =
            self.slots.as_ref().map(|slots| Events::with_data(slots.answered(), token::SLOTS, EventSet::IN));
        let added = added.and_then(|()| slots.map_or(Ok(()), |slots| ops.add(slots)));
        self.note(added);
        self.listen(true, ops);
    }
}

/// The loop of the main thread, made before it is confined.
pub(crate) struct Loop(EventManager<Machine>);

impl Loop {
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn new() -> Result<Self, Error> {
        EventManager::new_with_capacity(6).map(Self).map_err(failed)
    }

    /// Attends to the machine until it ends, and gives back what ends in an order of its own.
    ///
    /// # Errors
    /// Events cannot be waited for.
    pub(crate) fn attend(mut self, machine: Machine) -> Result<(Vcpus, Vec<Nic>), Error> {
        let ending = machine.ending.clone();
        let id = self.0.add_subscriber(machine);
        while ending.outcome().is_none() {
            let timeout = ending.left().map_or(-1, |left| left.as_millis() as i32 + 1);
            self.0.run_with_timeout(timeout).map_err(failed)?;
            ending.expire();
            if let Some(error) = self.0.subscriber_mut(id).map_err(failed)?.failed.take() {
                return Err(failed(error));
            }
        }
        let machine = self.0.remove_subscriber(id).map_err(failed)?;
        Ok((machine.vcpus, machine.nics))
    }
}

fn failed(error: event_manager::Error) -> Error {
    Error::Host { what: "wait for events", source: std::io::Error::other(error) }
}
