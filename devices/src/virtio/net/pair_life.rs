//! A pair over all its drivers: what it is when, and which message makes it something else.
//!
//! ```text
//!              Start             the driver broke a ring
//!   ┌──────┐ ────────► ┌─────────┐ ───────────────────► ┌───────┐
//!   │ Idle │           │ Running │                      │ Ended │
//!   └──────┘ ◄──────── └─────────┘                      └───────┘
//!    ▲   ▲ │    Stop    │ Pause ▲                            │
//!    │   │ │            ▼       │ Resume                     │
//!    │   │ │  Start    ┌────────┐                            │
//!    │   │ └─────────► │ Paused │                            │
//!    │   └──────────── └────────┘                            │
//!    │        Stop                           Stop            │
//!    └───────────────────────────────────────────────────────┘
//! ```
//! - *Idle*: there is no driver. The pair has its host's end, and nothing of a guest.
//! - *Running*: its events are watched, and its frames move.
//! - *Paused*: it has its driver's rings and touches them as little as the backend. No event reaches it, and all is looked at anew
//!   afterwards: a kick that came meanwhile is one that may have come. The control queue's commands are done all the same, for one
//!   may be in hand, on another pair's thread, that is not paused yet.
//! - *Ended*: its driver broke a ring and was asked for a reset. It touches neither rings nor backend, and no event reaches it.
//!
//! Where its frames go is another question: in each of these states it has what is plugged in, or [`Unplugged`](net::Unplugged) while
//! the link is down, and what was plugged in lies beside.
//!
//! It is the NIC that is paused, not its driver: `Pause` and `Resume` concern a pair that is idle or has ended as well, though it
//! does nothing in either case. A driver that starts a paused NIC is *Paused* at once, and one that resets it leaves it paused.

use event_manager::{EventOps, Events};
use net::RxFilter;
use std::io;
use std::mem::replace;
use std::sync::Arc;

use super::error::Error;
use super::features::guest_offloads;
use super::mailbox::{Message, Start};
use super::queue_pair::{Counters, HostEnd, NicRate, PairParts, QueuePair};
use super::state::PairState;
use super::vhost::{IdleCarrier, Load};
use crate::log_once::LogOnce;

/// What a pair has for life.
pub(super) struct PairLife {
    /// Its number in the NIC, from 0.
    pub(super) number: usize,
    /// What its thread is called.
    pub(super) name: String,
    /// Where it counts.
    pub(super) counters: Arc<Counters>,
    /// Whether it was said that a driver broke its rings.
    pub(super) broken: Arc<LogOnce>,
    /// Whether it was said that the host refused something.
    pub(super) refused: Arc<LogOnce>,
    /// Where it is.
    pub(super) state: State,
    /// The NIC is paused, whether there is a driver or not.
    pub(super) paused: bool,
    /// While the link is down: what is plugged in when it is up again.
    pub(super) beside: Option<Box<HostEnd>>,
    /// The kernel, where it cannot carry what this driver accepted: our thread does, until the next driver.
    pub(super) barred: Option<IdleCarrier>,
    /// A driver is there, but for the first one's time before it starts: what the host's link shows.
    pub(super) present: bool,
    /// The link was set down by hand, which the host's link shows too.
    pub(super) cut: bool,
    /// Which frames the driver before it says otherwise receives.
    pub(super) filter: RxFilter,
    /// The NIC's rate, if it has one.
    pub(super) rate: Option<Arc<NicRate>>,
    /// A driver has started it before.
    pub(super) had_driver: bool,
}

/// Which of the states above, with what the pair has in it.
pub(super) enum State {
    Idle(HostEnd),
    Running(Box<QueuePair>),
    Paused(Box<QueuePair>),
    Ended(Box<QueuePair>),
    /// While a message takes it from one to another.
    Between,
}

impl PairLife {
    /// Does what a message says, and answers it.
    pub(super) fn receive(&mut self, message: Message, ops: &mut EventOps) {
        match message {
            Message::Prepare(filter, reply) => reply.send(self.prepare(&filter)),
            Message::Start(start, reply) => reply.send(self.start(*start, ops)),
            Message::Stop(reply) => {
                self.stop(ops);
                reply.send(());
            }
            Message::Command(command, reply) => reply.send(match &mut self.state {
                State::Running(pair) | State::Paused(pair) => pair.obey(command),
                // It moves nothing until its next start, which says all of this anew.
                State::Idle(_) | State::Ended(_) | State::Between => Ok(()),
            }),
            Message::ResetQueue(queue, reply) => {
                self.rewire(ops, |pair, _| pair.reset_queue(queue));
                reply.send(());
            }
            Message::EnableQueue(queue, active, reply) => {
                // One that has ended goes on after a reset of the device alone.
                self.rewire(ops, |pair, runs| pair.enable_queue(queue, *active, runs));
                reply.send(());
            }
            Message::Reroute(reply) => reply.send(match &mut self.state {
                State::Running(pair) | State::Paused(pair) => pair.reroute(),
                State::Idle(_) | State::Ended(_) | State::Between => Ok(()),
            }),
            Message::Pause(reply) => reply.send(self.pause(ops)),
            Message::Resume(reply) => reply.send(self.resume(ops)),
            Message::Link(up, reply) => reply.send(self.set_link(up, ops)),
            Message::Exchange(end, reply) => reply.send(self.exchange(end, ops)),
            Message::Carrier(present, reply) => {
                self.cut = !present;
                self.show_carrier();
                reply.send(());
            }
            Message::ConfigChanged(reply) => reply.send(match &self.state {
                State::Running(pair) | State::Paused(pair) => pair.tell_config(),
                State::Idle(_) | State::Ended(_) | State::Between => Ok(()),
            }),
            Message::Rate(rate, reply) => {
                if let State::Running(pair) | State::Paused(pair) | State::Ended(pair) = &mut self.state {
                    pair.set_rate(rate.clone());
                }
                self.rate = rate;
                reply.send(());
            }
            Message::Send(frames, reply) => {
                self.send(frames);
                reply.send(());
            }
        }
    }

    fn prepare(&mut self, filter: &RxFilter) -> Result<(), Error> {
        let State::Idle(end) = &mut self.state else { return Err(Error::Started(self.number)) };
        self.filter = filter.clone();
        if self.number > 0 {
            end.backend.set_enabled(false).map_err(|error| Error::Disable(self.number, error))?;
        }
        // A NIC that receives too little can still be of use, and its driver will say more.
        if let Err(error) = end.backend.set_filter(filter) {
            log::log!(self.refused.level(), "{}: cannot set which frames it receives: {error}", self.name);
        }
        Ok(())
    }

    fn start(&mut self, start: Start, ops: &mut EventOps) -> Result<(), Error> {
        let end = match replace(&mut self.state, State::Between) {
            State::Idle(end) => end,
            state => {
                self.state = state;
                return Err(Error::Started(self.number));
            }
        };
        match self.make_pair(end, start) {
            Ok(pair) => {
                (self.state, self.had_driver) = (State::Paused(pair), true);
                if !replace(&mut self.present, true) {
                    self.show_carrier();
                }
            }
            Err((end, error)) => {
                self.state = State::Idle(end);
                return Err(error);
            }
        }
        if self.paused { Ok(()) } else { self.go_on(ops).map_err(|error| Error::Run(self.number, error)) }
    }

    fn pause(&mut self, ops: &mut EventOps) -> io::Result<PairState> {
        self.paused = true;
        let mut result = Ok(());
        if let State::Running(pair) = &mut self.state {
            unwatch(pair.watched(), ops);
            result = pair.pause();
        }
        self.state = match replace(&mut self.state, State::Between) {
            State::Running(pair) => State::Paused(pair),
            state => state,
        };
        result.map(|()| match &self.state {
            State::Paused(pair) => PairState::Active(pair.state()),
            State::Ended(_) => PairState::Ended,
            State::Idle(_) | State::Running(_) | State::Between => PairState::Idle,
        })
    }

    fn resume(&mut self, ops: &mut EventOps) -> io::Result<()> {
        self.paused = false;
        self.go_on(ops).inspect_err(|_| {
            self.state = match replace(&mut self.state, State::Between) {
                State::Paused(mut pair) => {
                    pair.end();
                    State::Ended(pair)
                }
                state => state,
            };
        })
    }

    /// Has a paused pair run; on an error it stays paused.
    fn go_on(&mut self, ops: &mut EventOps) -> io::Result<()> {
        self.state = match replace(&mut self.state, State::Between) {
            State::Paused(mut pair) => {
                let result = watch(&pair, ops)
                    .and_then(|()| pair.resume().inspect_err(|_| unwatch(pair.watched(), ops)));
                if result.is_err() {
                    self.state = State::Paused(pair);
                    return result;
                }
                State::Running(pair)
            }
            state => state,
        };
        Ok(())
    }

    // The error is large for what it returns, and as rare as it is large.
    #[allow(clippy::result_large_err)]
    fn make_pair(&mut self, mut end: HostEnd, start: Start) -> Result<Box<QueuePair>, (HostEnd, Error)> {
        let Start { memory, accepted, interrupt, rx, tx, space, poll, control } = start;
        let offloads = guest_offloads(accepted);
        if let Err(error) = end.backend.set_offloads(offloads.only(end.backend.offloads())) {
            return Err((end, Error::Offloads(self.number, error)));
        }
        let HostEnd { mut backend, carrier } = end;
        let carrier = match carrier {
            None => None,
            Some(carrier) if !carrier.can(accepted) => {
                let level = self.refused.level();
                log::log!(
                    level,
                    "{}: wirevm carries the frames: vhost-net has less than the driver accepted",
                    self.name
                );
                self.barred = Some(carrier);
                None
            }
            Some(carrier) => {
                // We would look whether the driver can read what waited for the one before; the kernel does not.
                if self.had_driver {
                    backend.drain();
                }
                let (memory, interrupt, queues) = (&memory, &interrupt, [&rx, &tx]);
                let poll = poll.unwrap_or_default();
                match carrier.start(&Load { memory, accepted, interrupt, queues, poll }) {
                    Ok(carrier) => Some(carrier),
                    Err((carrier, error)) => {
                        let end = HostEnd { carrier: Some(carrier), backend };
                        return Err((end, Error::Vhost(self.number, error)));
                    }
                }
            }
        };
        Ok(Box::new(QueuePair::new(PairParts {
            name: self.name.clone(),
            memory,
            accepted,
            interrupt,
            rx,
            tx,
            backend,
            space,
            carrier,
            control,
            enabled: self.number == 0,
            offloads,
            filter: self.filter.clone(),
            poll,
            rate: self.rate.clone(),
            counters: Arc::clone(&self.counters),
            broken: Arc::clone(&self.broken),
        })))
    }

    fn stop(&mut self, ops: &mut EventOps) {
        let mut end = match replace(&mut self.state, State::Between) {
            State::Running(pair) => {
                unwatch(pair.watched(), ops);
                pair.into_end()
            }
            State::Paused(pair) | State::Ended(pair) => pair.into_end(),
            State::Idle(end) => end,
            State::Between => unreachable!("a message leaves a state behind"),
        };
        end.carrier = end.carrier.or_else(|| self.barred.take());
        if self.number > 0
            && let Err(error) = end.backend.set_enabled(false)
        {
            let (level, Self { name, number, .. }) = (self.refused.level(), &*self);
            log::log!(level, "{name}: cannot have the host leave queue pair {number} alone: {error}");
        }
        self.state = State::Idle(end);
        self.present = false;
        self.show_carrier();
    }

    /// Leaves the work of a running pair that has ended; its events, which are to be watched no more.
    pub(super) fn leave(&mut self) -> Vec<Events> {
        let mut gone = Vec::new();
        self.state = match replace(&mut self.state, State::Between) {
            State::Running(pair) => {
                gone = pair.watched();
                State::Ended(pair)
            }
            state => state,
        };
        gone
    }
}

/// Watches the events of a pair, all or none.
pub(super) fn watch(pair: &QueuePair, ops: &mut EventOps) -> io::Result<()> {
    let mut watched = Vec::new();
    for events in pair.watched() {
        if let Err(error) = ops.add(events) {
            unwatch(watched, ops);
            return Err(io::Error::other(error));
        }
        watched.push(events);
    }
    Ok(())
}

/// Watches `events` no more. Those that were collected and not yet dispatched are dropped as well.
pub(super) fn unwatch(events: Vec<Events>, ops: &mut EventOps) {
    for events in events {
        if let Err(error) = ops.remove(events) {
            log::error!("cannot stop watching an event: {error}");
        }
    }
}
