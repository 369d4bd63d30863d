//! The keeper's loop: every event has a name, and what it brings about is here.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use net::News;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Ended;
use super::control::{self, Server};
use super::core::{Core, Letter, Parts};
use super::dns_watches::DnsWatches;
use super::guest_words::STREAMS_MAX;
use super::nics::Nic;
use super::vsock::Door;
use super::watch::Watch;
use super::wire_watches::WireWatches;
use crate::error::Error;
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
    /// The guest asks for a port of the host.
    pub(super) const PORT: u32 = 10;
    /// The command that the run is for has ended.
    pub(super) const ATTACHED: u32 = 11;
    /// The guest says something of itself, on the first of so many connections.
    pub(super) const WORDS: u32 = 0x20;
    /// The virtiofsd of share 0 has ended, or (with the next) says something; those of the others follow.
    pub(super) const SHARE: u32 = 0x40;
    /// A guest's driver asks something of the wire of NIC 0; those of the others follow.
    pub(super) const NIC: u32 = 0x100;
    /// The guest asks a DNS server by this NIC, and the next ones, or has an answer.
    pub(super) const DNS: u32 = 0x200;
    /// Something happened in a network namespace that a wire is in.
    pub(super) const WIRES: u32 = 0x800;
}

/// How many messages of the machine are heard before something else is looked at.
const MESSAGES: usize = 16;

/// The keeper of a machine that was started.
pub(super) struct Keeper {
    core: Core,
    server: Server,
    timer: Option<OwnedFd>,
    again: Option<EventFd>,
    shown: Watch,
    keys: Watch,
    typed: Watch,
    said: Watch,
    attached: Watch,
    words: [Watch; STREAMS_MAX],
    wires: WireWatches,
    dns: DnsWatches,
    console_open: bool,
    failed: Option<event_manager::Error>,
}

impl Keeper {
    pub(super) fn new(parts: Parts) -> Self {
        let (core, server) = Core::new(parts);
        Self {
            core,
            server,
            timer: None,
            again: None,
            shown: Watch::new(token::SHOWN, EventSet::OUT),
            keys: Watch::new(token::KEYS, EventSet::IN),
            typed: Watch::new(token::TYPED, EventSet::OUT),
            said: Watch::new(token::SAID, EventSet::OUT),
            attached: Watch::new(token::ATTACHED, EventSet::IN),
            words: std::array::from_fn(|at| Watch::new(token::WORDS + at as u32, EventSet::IN)),
            wires: WireWatches::default(),
            dns: DnsWatches::default(),
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
            if keeper.core.is_over() {
                break;
            }
            manager.run().map_err(waiting)?;
        }
        let Self { core, mut server, .. } = manager.remove_subscriber(id).map_err(waiting)?;
        let ended = core.take_back(asked);
        server.finish();
        Ok(ended)
    }

    fn read_console(&mut self, ops: &mut EventOps) -> bool {
        match self.core.read_console() {
            Some(more) => more,
            None => {
                if std::mem::take(&mut self.console_open) {
                    let console = Events::with_data(self.core.console(), token::CONSOLE, EventSet::IN);
                    let removed = ops.remove(console);
                    self.note(removed);
                }
                false
            }
        }
    }

    fn answer_guest(&mut self, number: usize, ops: &mut EventOps) {
        if let Some(nic) = self.core.nics_mut().get_mut(number)
            && !nic.answer()
        {
            let unwatched = unwatch(nic, ops);
            self.note(unwatched);
        }
    }

    fn answer_port(&mut self, ops: &mut EventOps) {
        if let (Some(door), words, awaited) = self.core.door_and_words()
            && door.watched
            && !door.answer(words, awaited)
        {
            door.watched = false;
            let removed = ops.remove(asks_for_ports(door));
            self.note(removed);
        }
    }

    /// What is there of the process of a share: twice its number where it has ended, and one more where it says something.
    fn hear_share(&mut self, what: u32, ops: &mut EventOps) {
        let (at, says) = (what as usize / 2, what % 2 == 1);
        let Some(&[ends_by, says_by]) = self.core.shares().watched().get(at) else { return };
        let (descriptor, more) = match says {
            true => (says_by, self.core.shares().hear(at)),
            false => {
                self.core.shares().ended(at);
                (ends_by, false)
            }
        };
        if !more {
            let removed = ops.remove(Events::with_data_raw(descriptor, token::SHARE + what, EventSet::IN));
            self.note(removed);
        }
    }

    /// Hears what the driver of this NIC asks from now on.
    fn watch(&mut self, number: usize, ops: &mut EventOps) {
        if let Some(nic) = self.core.nics_mut().get_mut(number) {
            let added = ops.add(asks(nic));
            nic.watched = added.is_ok();
            self.note(added);
        }
    }

    /// Has the clients told of what came of an event.
    fn deliver(&mut self, ops: &mut EventOps) {
        // An answer may let a client's next call be made.
        loop {
            let letters = self.core.take_letters();
            if letters.is_empty() {
                return;
            }
            for letter in letters {
                match letter {
                    Letter::Answer(ticket, answer) => self.server.answer(ticket, answer, ops, &mut self.core),
                    Letter::Came(number) => self.watch(number, ops),
                    Letter::Gone(mut nic) => {
                        let unwatched = unwatch(&mut nic, ops);
                        self.note(unwatched);
                        self.core.take_back_nic(*nic);
                    }
                    Letter::Event(event) => self.server.event(&event, ops),
                    Letter::Console(output) => self.server.console(&output, ops),
                }
            }
        }
    }

    /// Has the loop watch what there is to wait for now.
    fn rewatch(&mut self, ops: &mut EventOps) {
        let Self { core, shown, keys, typed, said, attached, words, again, .. } = self;
        let said_on = core.door_and_words().1.wait_for();
        let command = core.command_waits_for();
        let (sink, keyboard) = core.ends();
        let stdin = std::io::stdin().as_raw_fd();
        let watched = shown
            .set(sink.is_waiting().then(|| sink.as_raw_fd()), ops)
            .and_then(|()| keys.set(keyboard.reads().then_some(stdin), ops))
            .and_then(|()| typed.set(keyboard.writes().then(|| keyboard.as_raw_fd()), ops))
            .and_then(|()| said.set(report::waits_for(), ops))
            .and_then(|()| attached.set(command, ops))
            .and_then(|()| words.iter_mut().zip(said_on).try_for_each(|(watch, fd)| watch.set(fd, ops)));
        if keys.is_always_ready()
            && keyboard.reads()
            && let Some(again) = again
        {
            let _ = again.write(1);
        }
        let watches = [self.wires.deadline(), self.dns.deadline()];
        let deadlines = [self.core.deadline(), self.server.deadline()].into_iter().chain(watches);
        self.set_timer(deadlines.flatten().min());
        self.note(watched);
    }

    /// Has the loop watch the namespaces that there are wires in now, and the relays that these have.
    fn rewatch_wires(&mut self, ops: &mut EventOps) {
        let watched = self.dns.set(self.core.nics_mut(), token::DNS, ops);
        self.note(watched);
        match self.wires.set(self.core.wires(), token::WIRES, ops) {
            Ok(new) => {
                new.into_iter().for_each(|namespace| self.core.hear_news(namespace, &News::of_all()));
            }
            Err(error) => self.note(Err(error)),
        }
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

/// What a NIC's driver asks, as the loop watches it.
fn asks(nic: &Nic) -> Events {
    Events::with_data(nic.asks(), token::NIC + nic.number as u32, EventSet::IN)
}

/// What the guest asks of ports, likewise.
fn asks_for_ports(door: &Door) -> Events {
    Events::with_data(door.asks(), token::PORT, EventSet::IN)
}

fn unwatch(nic: &mut Nic, ops: &mut EventOps) -> Result<(), event_manager::Error> {
    if std::mem::take(&mut nic.watched) { ops.remove(asks(nic)) } else { Ok(()) }
}

impl MutEventSubscriber for Keeper {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            token::MACHINE => {
                // After a hangup there is an end to what it has said.
                let gone = events.event_set().contains(EventSet::HANG_UP);
                self.core.hear_machine(if gone { usize::MAX } else { MESSAGES });
                if gone {
                    let channel = Events::with_data(self.core.channel(), token::MACHINE, EventSet::IN);
                    let removed = ops.remove(channel);
                    self.note(removed);
                }
            }
            token::DEATH => {
                // What the machine said last is still to be heard.
                self.core.hear_machine(usize::MAX);
                while self.read_console(ops) {}
                self.core.machine_died();
                // It stays readable, and the command's process may have more to do.
                let child = Events::with_data(self.core.child(), token::DEATH, EventSet::IN);
                let removed = ops.remove(child);
                self.note(removed);
            }
            token::SIGNAL => self.core.hear_signals(),
            token::CONSOLE => drop(self.read_console(ops)),
            token::SHOWN => self.core.ends().0.flush(),
            token::KEYS => self.core.read_keys(),
            token::TYPED => self.core.ends().1.give(),
            token::SAID => report::flush(),
            token::ATTACHED => self.core.look_at_attached(),
            token::TIMER => {
                let now = Instant::now();
                self.core.expire(now);
                self.server.expire(now, ops);
            }
            token::AGAIN => {
                let _ = self.again.as_ref().map(EventFd::read);
                self.core.read_keys();
            }
            token::PORT => self.answer_port(ops),
            words @ token::WORDS..token::SHARE => self.core.hear_guest((words - token::WORDS) as usize),
            control::TOKEN.. => self.server.process(events, ops, &mut self.core),
            wires @ token::WIRES..control::TOKEN => {
                if let Some((namespace, news)) = self.wires.news(wires) {
                    self.core.hear_news(namespace, &news);
                }
            }
            dns @ token::DNS..token::WIRES => {
                let nic = self.core.nics_mut().get_mut((dns - token::DNS) as usize);
                if let Some(wire) = nic.and_then(|nic| nic.wire.as_mut()) {
                    wire.hand_dns_on();
                }
            }
            share @ token::SHARE..token::NIC => self.hear_share(share - token::SHARE, ops),
            nic => self.answer_guest((nic - token::NIC) as usize, ops),
        }
        self.rewatch_wires(ops);
        self.deliver(ops);
        self.rewatch(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        let mut added = ops
            .add(Events::with_data(self.core.channel(), token::MACHINE, EventSet::IN))
            .and_then(|()| ops.add(Events::with_data(self.core.child(), token::DEATH, EventSet::IN)))
            .and_then(|()| ops.add(Events::with_data(self.core.signals(), token::SIGNAL, EventSet::IN)))
            .and_then(|()| ops.add(Events::with_data(self.core.console(), token::CONSOLE, EventSet::IN)))
            .and_then(|()| self.server.init(ops));
        if let (Some(timer), Some(again)) = (&self.timer, &self.again) {
            added = added
                .and_then(|()| ops.add(Events::with_data(timer, token::TIMER, EventSet::IN)))
                .and_then(|()| ops.add(Events::with_data(again, token::AGAIN, EventSet::IN)));
        }
        for (share, token) in self.core.shares().watched().into_iter().zip((token::SHARE..).step_by(2)) {
            for (descriptor, token) in share.into_iter().zip(token..) {
                let events = Events::with_data_raw(descriptor, token, EventSet::IN);
                added = added.and_then(|()| ops.add(events));
            }
        }
        for nic in self.core.nics_mut().iter_mut() {
            added = added.and_then(|()| ops.add(asks(nic)));
            nic.watched = added.is_ok();
        }
        if let Some(door) = self.core.door() {
            added = added.and_then(|()| ops.add(asks_for_ports(door)));
            door.watched = added.is_ok();
        }
        self.note(added);
        // What came while the host was wired.
        self.core.hear_signals_before();
        self.rewatch_wires(ops);
        self.rewatch(ops);
    }
}
