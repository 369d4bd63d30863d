//! The thread of a queue pair: which event wakes what, and how the pair comes and goes.

use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Inbox, Next, PairParts, QueuePair, count};

const RX_KICK: u32 = 0;
const TX_KICK: u32 = 1;
const HOST: u32 = 2;
const CONTROL_KICK: u32 = 3;
const ORDERS: u32 = 4;
const STOP: u32 = 5;
const RX_RELAY: u32 = 6;
const TX_RELAY: u32 = 7;
const CARRIER: u32 = 8;
const ASKED: u32 = 9;

impl MutEventSubscriber for QueuePair {
    /// Notes what an event allows; the frames move in [`QueuePair::process`].
    fn process(&mut self, events: Events, _: &mut EventOps) {
        let set = events.event_set();
        let failed = set.intersects(EventSet::ERROR | EventSet::HANG_UP);
        let wake = |next: &mut Next, waits: Next| {
            if *next == waits {
                *next = Next::Work;
            }
        };
        match events.data() {
            RX_KICK => wake(&mut self.receive, Next::Driver),
            TX_KICK => wake(&mut self.transmit, Next::Driver),
            CONTROL_KICK => self.commanded = true,
            ORDERS => self.ordered = true,
            ASKED => self.asked = true,
            RX_RELAY => self.relay(self.parts.rx.index),
            TX_RELAY => self.relay(self.parts.tx.index),
            CARRIER => self.carrier_failed(),
            HOST => {
                if failed || set.contains(EventSet::IN) {
                    wake(&mut self.receive, Next::Host);
                }
                if failed || set.contains(EventSet::OUT) {
                    wake(&mut self.transmit, Next::Host);
                }
            }
            _ => self.ended = true,
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // An edge-triggered eventfd tells of every write without ever being read: a system call saved for each kick. Its
        // counter would take centuries to fill.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let host = edge | EventSet::OUT;
        let PairParts { rx, tx, backend, carried, control, inbox, .. } = &self.parts;
        let mut watched = match carried {
            None => ops
                .add(Events::with_data(&rx.kick, RX_KICK, edge))
                .and_then(|()| ops.add(Events::with_data(&tx.kick, TX_KICK, edge)))
                .and_then(|()| ops.add(Events::with_data(&backend.fd(), HOST, host))),
            // The kernel waits for the kicks and the host.
            Some(carried) => ops
                .add(Events::with_data(&carried.relays[0], RX_RELAY, edge))
                .and_then(|()| ops.add(Events::with_data(&carried.relays[1], TX_RELAY, edge)))
                .and_then(|()| ops.add(Events::with_data(&carried.error, CARRIER, edge))),
        };
        if let Some(asked) = backend.asked_fd().filter(|_| carried.is_some()) {
            watched = watched.and_then(|()| ops.add(Events::with_data(&asked, ASKED, edge)));
        }
        if let Some(control) = control {
            let kick = Events::with_data(&control.queue().kick, CONTROL_KICK, edge);
            watched = watched.and_then(|()| ops.add(kick));
        }
        if let Some(inbox) = inbox {
            watched = watched.and_then(|()| ops.add(Events::with_data(inbox.wake(), ORDERS, edge)));
        }
        if let Some(stop) = &self.stop {
            watched = watched.and_then(|()| ops.add(Events::with_data(stop, STOP, EventSet::IN)));
        }
        self.watch_error = watched.err();
    }
}

/// A pair at work in its thread.
pub struct PairThread {
    stop: EventFd,
    thread: JoinHandle<Option<QueuePair>>,
}

impl PairThread {
    /// Moves `pair` into a thread of its name.
    ///
    /// # Errors
    /// Where there are no descriptors or no threads left; the pair comes back.
    // The error is large for the pair it returns, and as rare as it is large.
    #[allow(clippy::result_large_err)]
    pub fn start(mut pair: QueuePair) -> Result<Self, (QueuePair, io::Error)> {
        let eventfd = || {
            let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            Ok((stop.try_clone()?, stop, EventManager::new_with_capacity(8).map_err(io::Error::other)?))
        };
        let (stop, mut manager) = match eventfd() {
            Ok((theirs, ours, manager)) => {
                pair.stop = Some(theirs);
                (ours, manager)
            }
            Err(error) => return Err((pair, error)),
        };
        let (name, cpu) = (pair.parts.name.clone(), pair.parts.cpu);
        let id = manager.add_subscriber(pair);
        if let Some(error) = subscriber(&mut manager, id).watch_error.take() {
            return Err((take(manager, id), io::Error::other(error)));
        }
        // The pair follows once the thread is there: a thread that cannot be made would take what it was given with it.
        let (sender, receiver) = mpsc::sync_channel(1);
        let body = move || {
            // It was tried when the NIC was made, and CPUs come and go.
            if let Some((cpu, Err(error))) = cpu.map(|cpu| (cpu, run_on(cpu))) {
                log::warn!("a queue pair cannot run on CPU {cpu}, and runs on any: {error}");
            }
            if let Err(error) = net::take_turns() {
                log::debug!("a queue pair keeps its scheduling policy: {error}");
            }
            receiver.recv().ok().map(|manager| run(manager, id))
        };
        match Builder::new().name(name).spawn(body) {
            Ok(thread) => match sender.send(manager) {
                Ok(()) => Ok(Self { stop, thread }),
                Err(mpsc::SendError(manager)) => {
                    Err((take(manager, id), io::Error::other("the thread ended at once")))
                }
            },
            Err(error) => Err((take(manager, id), error)),
        }
    }

    /// Stops the thread and gives the pair back; `None` if it panicked. Returns within the time of a burst.
    pub fn stop(self) -> Option<QueuePair> {
        if let Err(error) = self.stop.write(1) {
            log::error!("cannot stop a queue pair: {error}");
        }
        self.thread.join().ok().flatten()
    }
}

/// Has the calling thread run on that CPU of the host and no other.
///
/// # Errors
/// `EINVAL` where there is no such CPU, it is offline, or the process may not use it (cpuset(7)).
pub fn run_on(cpu: u16) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    let cpu = usize::from(cpu);
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    cpus.set(cpu);
    Ok(sched_setaffinity(None, &cpus)?)
}

/// The pair's life: frames until there are none, then a look about, then sleep until something happens.
fn run(mut manager: EventManager<QueuePair>, id: SubscriberId) -> QueuePair {
    let PairParts { poll, carried, .. } = &subscriber(&mut manager, id).parts;
    // The kernel looks about itself.
    let mut idle = Idle::new(if carried.is_none() { *poll } else { Duration::ZERO });
    loop {
        let pair = subscriber(&mut manager, id);
        let worked = pair.process();
        if !pair.has_work() && !idle.looks_about(worked) {
            pair.arm();
        }
        if pair.ended {
            // Else the control queue would wait for a pair that has gone.
            pair.parts.inbox.iter_mut().for_each(Inbox::close);
            return take(manager, id);
        }
        // With work left, events are only collected: neither direction starves the other or a stop.
        let timeout = if pair.has_work() || idle.looks() { 0 } else { pair.waits().map_or(-1, millis) };
        count(&pair.parts.counters.calls, 1);
        match manager.run_with_timeout(timeout) {
            Ok(0) if timeout > 0 => {
                let pair = subscriber(&mut manager, id);
                pair.asked = pair.look_again.is_some();
            }
            Ok(_) => {}
            Err(error) => {
                let pair = subscriber(&mut manager, id);
                log::error!("{}: cannot wait for events: {error}", pair.parts.name);
                pair.end();
            }
        }
    }
}

/// No less than `time`, as epoll_wait(2) takes it.
fn millis(time: Duration) -> i32 {
    time.as_millis().saturating_add(1).try_into().unwrap_or(i32::MAX)
}

/// Whether a thread without work looks about a while longer.
struct Idle {
    poll: Duration,
    /// Until then, while it does.
    until: Option<Instant>,
}

impl Idle {
    fn new(poll: Duration) -> Self {
        Self { poll, until: None }
    }

    /// Asked each time that there is no work, with whether there was some just now: that begins the while anew.
    fn looks_about(&mut self, worked: bool) -> bool {
        if self.poll.is_zero() {
            return false;
        }
        let now = Instant::now();
        if worked {
            self.until = Some(now + self.poll);
        }
        self.until = self.until.filter(|&until| now < until);
        self.looks()
    }

    fn looks(&self) -> bool {
        self.until.is_some()
    }
}

fn subscriber(manager: &mut EventManager<QueuePair>, id: SubscriberId) -> &mut QueuePair {
    manager.subscriber_mut(id).expect("the pair is in until it is taken")
}

fn take(mut manager: EventManager<QueuePair>, id: SubscriberId) -> QueuePair {
    manager.remove_subscriber(id).expect("the pair is taken once")
}
