//! The thread of a vhost-user front end.

use std::io;
use std::time::Duration;

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::protocol::{BackEnd, Error, Ring};
use crate::lent;
use crate::log_once::LogOnce;
use crate::virtio::device::{Activation, ActiveQueue, Interrupt};
use crate::virtio::mailbox::{Mailbox, Reply};
use crate::virtio::queue::{self, QueueState};
use crate::virtio::served::{Driver, EDGE, MAIL, Serve, watch};

/// What the thread is asked.
pub(super) enum Message {
    Start(Box<Activation>, Reply<io::Result<()>>),
    /// Answered once nothing touches guest memory any more.
    Stop(Reply<()>),
    /// Answered once nothing does until [`Message::Resume`].
    Pause(Reply<()>),
    Resume(Reply<()>),
    /// The queues interrupt by other eventfds.
    Reroute(Reply<()>),
}

/// Behind the mailbox's event: the back end's socket, a ring that makes no sense to it, and then what it says of each queue that has no
/// eventfd of its own to interrupt by.
const BACK_END: u32 = MAIL + 1;
const ERROR: u32 = MAIL + 2;
const RELAY: u32 = MAIL + 3;

/// The thread's life.
struct Worker<S> {
    mailbox: Mailbox<Message>,
    title: String,
    /// None once it is lost.
    back_end: Option<BackEnd>,
    /// One that is lost, and not gone yet: it may touch the guest's memory, and nobody else touches the rings.
    dying: Option<BackEnd>,
    /// Has its process ended.
    end: Box<dyn Fn() + Send>,
    fallback: S,
    relays: Vec<EventFd>,
    error: EventFd,
    driver: Option<Driver>,
    accepted: u64,
    /// The back end has the driver's rings.
    runs: bool,
    paused: bool,
    broken: LogOnce,
    /// The device is dropped.
    over: bool,
    failed: Option<event_manager::Error>,
}

/// Makes all that the thread waits with, and then its life.
pub(super) fn prepare<S: Serve>(
    mailbox: Mailbox<Message>,
    title: String,
    back_end: BackEnd,
    end: Box<dyn Fn() + Send>,
    queues: usize,
    fallback: S,
) -> io::Result<impl FnOnce() + Send + 'static> {
    let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
    let mut manager = EventManager::new_with_capacity(4).map_err(io::Error::other)?;
    let id = manager.add_subscriber(Worker {
        mailbox,
        title,
        back_end: Some(back_end),
        dying: None,
        end,
        fallback,
        relays: (0..queues).map(|_| event()).collect::<io::Result<_>>()?,
        error: event()?,
        driver: None,
        accepted: 0,
        runs: false,
        paused: false,
        broken: LogOnce::default(),
        over: false,
        failed: None,
    });
    match manager.subscriber_mut(id).map_err(io::Error::other)?.failed.take() {
        None => Ok(move || run(manager, id)),
        Some(error) => Err(io::Error::other(error)),
    }
}

impl<S: Serve> Worker<S> {
    fn receive(&mut self, message: Message, ops: &mut EventOps) {
        match message {
            Message::Start(activation, reply) => {
                let Activation { memory, accepted, interrupt, queues } = *activation;
                // Kicks are the back end's, and ours once it is gone.
                let known = queues.iter().all(|queue| usize::from(queue.index) < self.relays.len());
                self.accepted = accepted;
                self.fallback.start(accepted);
                self.driver = Some(Driver { memory, interrupt, queues, ended: !known });
                match self.is_gone() {
                    true => self.listen(ops),
                    false => self.go_on(ops),
                }
                reply.send(self.failed.take().map_or(Ok(()), |error| Err(io::Error::other(error))));
            }
            Message::Stop(reply) => {
                self.halt(ops);
                let (driver, listens) = (self.driver.take(), self.is_gone());
                for queue in driver.iter().filter(|_| listens).flat_map(|driver| &driver.queues) {
                    let _ = ops.remove(watch(queue));
                }
                reply.send(());
            }
            Message::Pause(reply) => {
                self.paused = true;
                self.halt(ops);
                reply.send(());
            }
            Message::Resume(reply) => {
                self.paused = false;
                self.go_on(ops);
                reply.send(());
            }
            Message::Reroute(reply) => {
                self.reroute(ops);
                reply.send(());
            }
        }
    }

    /// Gives the back end the driver's rings, if it is to have them and has not.
    fn go_on(&mut self, ops: &mut EventOps) {
        let (Some(back_end), Some(driver)) = (&mut self.back_end, &self.driver) else { return };
        if self.paused || self.runs || driver.ended {
            return;
        }
        let ring = |queue| ring(queue, driver, &self.relays, &self.error);
        let Some(rings) = driver.queues.iter().map(ring).collect::<Option<Vec<_>>>() else { return };
        back_end.begin();
        let started = back_end.start(&driver.memory, self.accepted, &rings);
        // What was kicked while it had no ring may be forgotten: it looks at each.
        driver.queues.iter().for_each(|queue| drop(lent::raise(&queue.kick)));
        self.runs = true;
        self.unless_failed(started, ops);
    }

    /// Takes the rings back from the back end, and knows where it is in them. From one that does not give them back they are had at its
    /// end.
    fn halt(&mut self, ops: &mut EventOps) {
        self.take_back(ops);
        if let Some(dying) = &self.dying
            && dying.ends_within(END)
        {
            self.take_over(ops);
        }
    }

    fn take_back(&mut self, ops: &mut EventOps) {
        let (Some(back_end), Some(driver)) = (&mut self.back_end, &mut self.driver) else { return };
        if !std::mem::take(&mut self.runs) {
            return;
        }
        back_end.begin();
        let mut stopped = Ok(());
        for queue in &mut driver.queues {
            stopped = stopped.and(back_end.stop(queue.index).map(|next_avail| {
                let next_used = queue.ring.used_index(&driver.memory).unwrap_or(next_avail);
                queue.ring.set_state(QueueState { next_avail, next_used });
            }));
            if stopped.is_err() {
                break;
            }
        }
        self.unless_failed(stopped, ops);
    }

    fn reroute(&mut self, ops: &mut EventOps) {
        let (Some(back_end), Some(driver), true) = (&mut self.back_end, &self.driver, self.runs) else {
            return;
        };
        back_end.begin();
        let each = |queue: &ActiveQueue| {
            let relay = &self.relays[usize::from(queue.index)];
            back_end.set_call(queue.index, call(&*driver.interrupt, queue.index, relay))
        };
        let rerouted = driver.queues.iter().try_for_each(each);
        self.unless_failed(rerouted, ops);
    }

    /// Where the back end has failed, it is left for good. One that is merely late has the guest's memory yet, so that its process is to
    /// end: until then nobody else touches the rings.
    fn unless_failed(&mut self, done: Result<(), Error>, ops: &mut EventOps) {
        let Err(error) = done else { return };
        let Some(back_end) = self.back_end.take() else { return };
        self.runs = false;
        log::warn!(
            "{}: its back end is lost, and the guest gets errors once it has ended: {error}",
            self.title
        );
        (self.end)();
        let ended = back_end.has_ended();
        self.dying = Some(back_end);
        if ended {
            self.take_over(ops);
        }
    }

    /// The back end has ended. The driver's requests are the fallback's from now on, and first those that it had in hand: the ones behind
    /// the last that it used, for who works on a queue by one thread, as virtiofsd does unless it is told otherwise, uses chains in order.
    fn take_over(&mut self, ops: &mut EventOps) {
        let Some(back_end) = self.dying.take() else { return };
        let _ = ops.remove(Events::with_data(&back_end, BACK_END, GONE));
        self.listen(ops);
        let Some(driver) = &mut self.driver else { return };
        for queue in &mut driver.queues {
            match queue.ring.used_index(&driver.memory) {
                Ok(used) => queue.ring.set_state(QueueState { next_avail: used, next_used: used }),
                Err(_) => driver.ended = true,
            }
            // It may have ended between what it used and the interrupt, after which the driver waits for that one for ever.
            let _ = driver.interrupt.queue(queue.index);
        }
    }

    /// Whether the fallback has the rings.
    fn is_gone(&self) -> bool {
        self.back_end.is_none() && self.dying.is_none()
    }

    /// Hears the driver's kicks.
    fn listen(&mut self, ops: &mut EventOps) {
        for queue in self.driver.iter().flat_map(|driver| &driver.queues) {
            if let Err(error) = ops.add(watch(queue)) {
                self.failed = Some(error);
            }
        }
    }

    /// Serves all there is, where the back end does not; true where there is more.
    fn work(&mut self) -> bool {
        if !self.is_gone() || self.paused {
            return false;
        }
        let Some(driver) = self.driver.as_mut().filter(|driver| !driver.ended) else { return false };
        driver.serve(&mut self.fallback).unwrap_or_else(|error: queue::Error| {
            log::log!(self.broken.level(), "{}: {error}; its driver is asked for a reset", self.title);
            driver.ended = true;
            let _ = driver.interrupt.needs_reset();
            false
        })
    }
}

/// How long a back end that is to end has for it, before who waits for the rings waits no more.
const END: Duration = Duration::from_secs(2);
/// The other end hangs up, or says something.
const GONE: EventSet = EDGE.union(EventSet::READ_HANG_UP);

fn ring<'a>(
    queue: &'a ActiveQueue,
    driver: &'a Driver,
    relays: &'a [EventFd],
    error: &'a EventFd,
) -> Option<Ring<'a>> {
    Some(Ring {
        index: queue.index,
        setup: queue.ring.setup(),
        next_avail: queue.ring.state().next_avail,
        kick: &queue.kick,
        call: call(&*driver.interrupt, queue.index, relays.get(usize::from(queue.index))?),
        error,
    })
}

/// What tells the driver of the queue: the eventfd of its vector, or the relay.
fn call<'a>(interrupt: &'a dyn Interrupt, queue: u16, relay: &'a EventFd) -> &'a EventFd {
    interrupt.event(queue).unwrap_or(relay)
}

impl<S: Serve> MutEventSubscriber for Worker<S> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            MAIL => {
                let mut messages = Vec::new();
                self.over = self.mailbox.take(|message| messages.push(message)).is_break();
                messages.into_iter().for_each(|message| self.receive(message, ops));
            }
            BACK_END => {
                let seen = self.back_end.as_ref().map_or(Ok(()), BackEnd::look);
                self.unless_failed(seen, ops);
                if self.dying.as_ref().is_some_and(BackEnd::has_ended) {
                    self.take_over(ops);
                }
            }
            ERROR => {
                // The back end has it, too: who reads may wait for ever. The next edge comes all the same.
                if let Some(driver) = self.driver.as_ref().filter(|_| self.runs) {
                    log::log!(
                        self.broken.level(),
                        "{}: a ring makes no sense; its driver is asked for a reset",
                        self.title
                    );
                    let _ = driver.interrupt.needs_reset();
                }
            }
            relay @ RELAY.. => {
                if let Some(driver) = &self.driver {
                    let _ = driver.interrupt.queue((relay - RELAY) as u16);
                }
            }
            // Kicks that are ours: the loop looks at the rings.
            _ => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let mut added = ops
            .add(Events::with_data(self.mailbox.wake(), MAIL, EDGE))
            .and_then(|()| ops.add(Events::with_data(&self.error, ERROR, EDGE)));
        if let Some(back_end) = &self.back_end {
            added = added.and_then(|()| ops.add(Events::with_data(back_end, BACK_END, GONE)));
        }
        for (relay, number) in self.relays.iter().zip(RELAY..) {
            added = added.and_then(|()| ops.add(Events::with_data(relay, number, EDGE)));
        }
        self.failed = added.err();
    }
}

fn run<S: Serve>(mut manager: EventManager<Worker<S>>, id: SubscriberId) {
    loop {
        let worker = manager.subscriber_mut(id).expect("the worker is never removed");
        if worker.over {
            return;
        }
        let timeout = if worker.work() { 0 } else { -1 };
        // A signal: it looks again.
        let _ = manager.run_with_timeout(timeout);
    }
}
