//! The keeper's loop: every event has a name, and what it brings about is here.

use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::os::fd::{AsRawFd, OwnedFd};
use vmm::MachineConfig;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Ended;
use super::child::Child;
use super::console::Console;
use super::keyboard::{Command, Keyboard};
use super::nics::Nic;
use super::notify::Notify;
use super::signals::{Signal, Signals};
use super::stopping::{Do, Stopping};
use super::terminal;
use super::watch::Watch;
use crate::error::Error;
use crate::machine::sandbox;
use crate::protocol::{Channel, End, Failure, FromMachine, ToMachine};
use crate::report;

/// What wakes the loop.
mod token {
    pub(super) const MACHINE: u32 = 0;
    pub(super) const DEATH: u32 = 1;
    pub(super) const SIGNAL: u32 = 2;
    pub(super) const CONSOLE: u32 = 3;
    /// Who reads the console has made room.
    pub(super) const SHOWN: u32 = 4;
    /// There are keys.
    pub(super) const KEYS: u32 = 5;
    /// The guest has made room for keys.
    pub(super) const TYPED: u32 = 6;
    /// Who reads messages has made room.
    pub(super) const SAID: u32 = 7;
    pub(super) const TIMER: u32 = 8;
    /// What cannot be watched is to be looked at again.
    pub(super) const AGAIN: u32 = 9;
    /// A guest's driver asks something of the wire of this NIC, and the next ones.
    pub(super) const NIC: u32 = 0x100;
}

/// All that makes a keeper.
pub(super) struct Parts {
    pub(super) config: MachineConfig,
    pub(super) signals: Signals,
    pub(super) channel: Channel<ToMachine, FromMachine>,
    pub(super) child: Child,
    pub(super) console: Console,
    pub(super) keyboard: Keyboard,
    /// After `child`, which holds their links as long as it lives.
    pub(super) nics: Vec<Nic>,
}

/// The keeper of a machine that was started.
pub(super) struct Keeper {
    parts: Parts,
    notify: Notify,
    running: bool,
    stopping: Stopping,
    /// Why the guest runs no more, in the machine's words or ours.
    ended: Option<Ended>,
    /// The machine is gone, and all that it said is shown.
    over: bool,
    timer: Option<OwnedFd>,
    again: Option<EventFd>,
    shown: Watch,
    keys: Watch,
    typed: Watch,
    said: Watch,
    console_open: bool,
    failed: Option<event_manager::Error>,
}

impl Keeper {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            notify: Notify::from_env(),
            running: false,
            stopping: Stopping::default(),
            ended: None,
            over: false,
            timer: None,
            again: None,
            shown: Watch::new(token::SHOWN, EventSet::OUT),
            keys: Watch::new(token::KEYS, EventSet::IN),
            typed: Watch::new(token::TYPED, EventSet::OUT),
            said: Watch::new(token::SAID, EventSet::OUT),
            console_open: true,
            failed: None,
        }
    }

    /// Attends until the machine is gone, and takes the wiring back. `asked` says then whether somebody asked for the end.
    ///
    /// # Errors
    /// Events cannot be waited for.
    pub(super) fn attend(mut self, asked: &mut bool) -> Result<Ended, Error> {
        let host = |what| move |source| Error::Host { what, source };
        let waiting = |error| Error::Host { what: "wait for events", source: std::io::Error::other(error) };
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK);
        self.timer = Some(timer.map_err(|error| host("make a timer")(error.into()))?);
        self.again = Some(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(host("make an eventfd"))?);
        let mut manager = EventManager::new_with_capacity(16).map_err(waiting)?;
        let id = manager.add_subscriber(self);
        loop {
            let keeper = manager.subscriber_mut(id).map_err(waiting)?;
            if let Some(error) = keeper.failed.take() {
                return Err(waiting(error));
            }
            if keeper.over {
                break;
            }
            manager.run().map_err(waiting)?;
        }
        let Self { parts, ended, stopping, .. } = manager.remove_subscriber(id).map_err(waiting)?;
        let Parts { signals, mut child, mut console, keyboard, nics, .. } = parts;
        let death = child.wait();
        // The wires go before the terminal is given back, in reverse order of their making.
        drop(child);
        nics.into_iter().rev().for_each(drop);
        *asked = stopping.is_asked();
        // Who asked for an end does not wait for a reader.
        if !*asked && signals.ends() == 0 {
            console.sink().finish(Some(std::os::fd::AsFd::as_fd(&signals)));
        }
        drop(keyboard);
        Ok(ended.unwrap_or(match *asked {
            true => Ended::Guest(End::Stopped),
            false => Ended::Died(death),
        }))
    }

    fn hear_machine(&mut self) {
        loop {
            match self.parts.channel.try_receive() {
                Ok(Some((message, _))) => self.heed(message),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // Its end is told by its process. What makes no sense comes from one that is not itself any more.
                Ok(None) => return,
                Err(error) => {
                    self.end(Ended::Failed(Failure::new(&Error::Nonsense(error), None)));
                    return self.parts.child.kill();
                }
            }
        }
    }

    fn heed(&mut self, message: FromMachine) {
        match message {
            FromMachine::Running { confined } => {
                log::info!("the process that runs the guest is confined: {confined}");
                self.running = true;
                self.notify.say("READY=1\nSTATUS=The guest runs");
            }
            FromMachine::Print(text) => report::print(&text),
            FromMachine::PowerButton { heard } => {
                if !heard && self.stopping.is_asked() {
                    let next = self.stopping.force(Instant::now());
                    self.carry_out(next);
                }
            }
            FromMachine::Failed(failure) => self.end(Ended::Failed(failure)),
            FromMachine::Ended(end) => self.end(Ended::Guest(end)),
            FromMachine::Forbidden { call, thread } => {
                let error = Error::Forbidden { call: sandbox::call_name(call), thread };
                self.end(Ended::Failed(Failure::new(&error, error.remedy())));
            }
            FromMachine::Paused(_)
            | FromMachine::Resumed(_)
            | FromMachine::Counters(_)
            | FromMachine::Accepted => {}
        }
    }

    /// Notes why the guest runs no more; the first reason counts.
    fn end(&mut self, ended: Ended) {
        self.ended.get_or_insert(ended);
    }

    fn hear_signals(&mut self) {
        while let Some(signal) = self.parts.signals.next() {
            match signal {
                Signal::End => self.stop(self.parts.config.stop_timeout()),
                Signal::Quit => {
                    let next = self.stopping.force(Instant::now());
                    self.carry_out(next);
                }
                Signal::Resumed => {
                    if let Err(error) = self.parts.keyboard.resume() {
                        log::warn!("cannot take over the terminal: {error}");
                    }
                }
            }
        }
    }

    /// Asks the guest to power itself off, and ends it after `timeout`.
    fn stop(&mut self, timeout: Duration) {
        self.notify.say("STOPPING=1\nSTATUS=The guest is asked to power itself off");
        let next = self.stopping.ask(Instant::now(), timeout);
        self.carry_out(next);
    }

    fn carry_out(&mut self, next: Option<Do>) {
        let said = match next {
            None => Ok(()),
            // Of a guest that does not run yet there is nothing to lose.
            Some(_) if !self.running => {
                self.parts.child.kill();
                Ok(())
            }
            Some(Do::PressPowerButton) => self.parts.channel.send(&ToMachine::PowerButton),
            Some(Do::TellToEnd) => self.parts.channel.send(&ToMachine::Stop),
            Some(Do::Kill) => {
                self.parts.child.kill();
                Ok(())
            }
        };
        // One that hears nothing is about to end, which is told elsewhere.
        drop(said);
    }

    fn read_keys(&mut self) {
        for command in self.parts.keyboard.read() {
            match command {
                Command::Quit => {
                    let next = self.stopping.force(Instant::now());
                    self.carry_out(next);
                }
                Command::PowerButton => drop(self.parts.channel.send(&ToMachine::PowerButton)),
                Command::Help => report::print(&format!("\n{}\n", terminal::HELP)),
            }
        }
    }

    /// Reads some of the console; false once there is no more for now.
    fn read_console(&mut self, ops: &mut EventOps) -> bool {
        match self.parts.console.read() {
            Ok(Some(_)) => true,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
            Ok(None) | Err(_) => {
                if std::mem::take(&mut self.console_open) {
                    let removed =
                        ops.remove(Events::with_data(&self.parts.console, token::CONSOLE, EventSet::IN));
                    self.note(removed);
                }
                false
            }
        }
    }

    /// The machine's process has ended: what it said last is still to be heard.
    fn machine_died(&mut self, ops: &mut EventOps) {
        self.hear_machine();
        while self.read_console(ops) {}
        self.over = true;
    }

    fn answer_guest(&mut self, index: usize, ops: &mut EventOps) {
        if let Some(nic) = self.parts.nics.get_mut(index)
            && !nic.answer()
        {
            let removed = ops.remove(Events::with_data(nic.asks(), token::NIC + index as u32, EventSet::IN));
            self.note(removed);
        }
    }

    /// Has the loop watch what there is to wait for now.
    fn rewatch(&mut self, ops: &mut EventOps) {
        let Self { parts: Parts { console, keyboard, .. }, shown, keys, typed, said, again, .. } = self;
        let sink = console.sink();
        let stdin = std::io::stdin().as_raw_fd();
        let watched = shown
            .set(sink.is_waiting().then(|| sink.as_raw_fd()), ops)
            .and_then(|()| keys.set(keyboard.reads().then_some(stdin), ops))
            .and_then(|()| typed.set(keyboard.writes().then(|| keyboard.as_raw_fd()), ops))
            .and_then(|()| said.set(report::waits_for(), ops));
        if keys.is_always_ready()
            && keyboard.reads()
            && let Some(again) = again
        {
            let _ = again.write(1);
        }
        let deadline = self.stopping.deadline();
        self.set_timer(deadline);
        self.note(watched);
    }

    fn set_timer(&self, deadline: Option<Instant>) {
        // Zero would be never.
        let left =
            deadline.map(|at| at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        let left = left.unwrap_or_default();
        let value = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        if let Some(timer) = &self.timer {
            // It was made for this, and the time is a valid one.
            let _ = timerfd_settime(timer, TimerfdTimerFlags::empty(), &once);
        }
    }

    fn note(&mut self, done: Result<(), event_manager::Error>) {
        if let Err(error) = done {
            self.failed.get_or_insert(error);
        }
    }
}

impl MutEventSubscriber for Keeper {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            token::MACHINE => {
                self.hear_machine();
                if events.event_set().contains(EventSet::HANG_UP) {
                    let removed =
                        ops.remove(Events::with_data(&self.parts.channel, token::MACHINE, EventSet::IN));
                    self.note(removed);
                }
            }
            token::DEATH => self.machine_died(ops),
            token::SIGNAL => self.hear_signals(),
            token::CONSOLE => drop(self.read_console(ops)),
            token::SHOWN => self.parts.console.sink().flush(),
            token::KEYS => self.read_keys(),
            token::TYPED => self.parts.keyboard.give(),
            token::SAID => report::flush(),
            token::TIMER => {
                let next = self.stopping.expire(Instant::now());
                self.carry_out(next);
            }
            token::AGAIN => {
                let _ = self.again.as_ref().map(EventFd::read);
                self.read_keys();
            }
            nic => self.answer_guest((nic - token::NIC) as usize, ops),
        }
        self.rewatch(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        let Parts { signals, channel, child, console, nics, .. } = &self.parts;
        let mut added = ops
            .add(Events::with_data(channel, token::MACHINE, EventSet::IN))
            .and_then(|()| ops.add(Events::with_data(child, token::DEATH, EventSet::IN)))
            .and_then(|()| ops.add(Events::with_data(signals, token::SIGNAL, EventSet::IN)))
            .and_then(|()| ops.add(Events::with_data(console, token::CONSOLE, EventSet::IN)));
        if let (Some(timer), Some(again)) = (&self.timer, &self.again) {
            added = added
                .and_then(|()| ops.add(Events::with_data(timer, token::TIMER, EventSet::IN)))
                .and_then(|()| ops.add(Events::with_data(again, token::AGAIN, EventSet::IN)));
        }
        for (index, nic) in nics.iter().enumerate() {
            let asks = Events::with_data(nic.asks(), token::NIC + index as u32, EventSet::IN);
            added = added.and_then(|()| ops.add(asks));
        }
        self.note(added);
        // What came while the host was wired.
        if self.parts.signals.ends() > 0 {
            self.stop(self.parts.config.stop_timeout());
        }
        self.rewatch(ops);
    }
}
