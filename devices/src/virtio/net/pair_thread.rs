//! The thread of a queue pair: when it works, when it polls, and when it sleeps.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps};

use super::kick_moderation::KickModeration;
use super::mailbox::Message;
use super::pair_life::{PairLife, State, unwatch};
use super::queue_pair::events::{EDGE, FREE};
use crate::virtio::mailbox::Mailbox;
use crate::virtio::queue_thread::QueueThread;

/// The mailbox's event, behind the pair's.
const MAIL: u32 = FREE;

/// What the thread runs: the pair, and the mailbox by which it is told.
struct Worker {
    mailbox: Mailbox<Message>,
    life: PairLife,
    /// The device is dropped.
    over: bool,
    watch_error: Option<event_manager::Error>,
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match (events.data(), &mut self.life.state) {
            (MAIL, _) => {
                let Self { mailbox, life, .. } = self;
                self.over = mailbox.take(|message| life.receive(message, ops)).is_break();
            }
            (_, State::Running(pair)) => pair.note(events),
            // Its events are watched while it runs.
            _ => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.watch_error = ops.add(Events::with_data(self.mailbox.wake(), MAIL, EDGE)).err();
    }
}

/// Spawns the pair's thread, on that CPU of the host or on any.
///
/// # Errors
/// There are no descriptors or no threads left.
pub(super) fn spawn(life: PairLife, cpu: Option<u16>) -> io::Result<QueueThread<Message>> {
    let name = life.name.clone();
    QueueThread::spawn(&name, cpu, |mailbox| {
        let mut manager = EventManager::new_with_capacity(8).map_err(io::Error::other)?;
        let id = manager.add_subscriber(Worker { mailbox, life, over: false, watch_error: None });
        match subscriber(&mut manager, id).watch_error.take() {
            None => Ok(move || run(manager, id)),
            Some(error) => Err(io::Error::other(error)),
        }
    })
}

/// The thread's life: while the pair runs, frames until there are none, then it polls for a while (`poll=`) or holds kicks off
/// ([`KickModeration`]), then it sleeps until something happens.
fn run(mut manager: EventManager<Worker>, id: SubscriberId) {
    let mut timer = PollTimer { until: None };
    let mut kicks = KickModeration::new();
    let mut began = Instant::now();
    loop {
        let worker = subscriber(&mut manager, id);
        if worker.over {
            return;
        }
        let timeout = match &mut worker.life.state {
            State::Running(pair) => {
                let worked = pair.process();
                let mut looks_again = false;
                if !pair.has_work() && !timer.polls_on(pair.poll(), worked) {
                    match kicks.holds_off(began.elapsed(), pair.moved()) {
                        // No message, no interrupt that is owed, and no other direction waits for longer than that.
                        Some(time) => {
                            thread::sleep(time);
                            looks_again = true;
                        }
                        None => pair.arm(),
                    }
                }
                if pair.has_ended() {
                    let gone = worker.life.leave();
                    unwatch(gone, &mut manager.event_ops(id).expect("the worker is never removed"));
                    continue;
                }
                pair.count_wait();
                // With work left, events are only collected: neither direction starves the other or a message.
                if looks_again || pair.has_work() || timer.polls() {
                    0
                } else {
                    pair.waits().map_or(-1, millis)
                }
            }
            _ => -1,
        };
        let asleep = Instant::now();
        let happened = manager.run_with_timeout(timeout);
        began = Instant::now();
        if timeout != 0 {
            kicks.woken(began - asleep);
        }
        match happened {
            Ok(0) if timeout > 0 => {
                if let State::Running(pair) = &mut subscriber(&mut manager, id).life.state {
                    pair.waited();
                }
            }
            Ok(_) => {}
            // There is nothing left to wait with, so the pair is lost, and its driver hears that.
            Err(error) => {
                let life = &mut subscriber(&mut manager, id).life;
                log::error!("{}: cannot wait for events: {error}", life.name);
                if let State::Running(pair) = &mut life.state {
                    pair.end();
                }
                return;
            }
        }
    }
}

/// No less than `time`, as epoll_wait(2) takes it.
fn millis(time: Duration) -> i32 {
    time.as_millis().saturating_add(1).try_into().unwrap_or(i32::MAX)
}

/// Whether a thread without work polls a while longer.
struct PollTimer {
    /// Until then, while it does.
    until: Option<Instant>,
}

impl PollTimer {
    /// Asked each time that there is no work, with whether there was some just now: each turn that worked restarts the timer.
    fn polls_on(&mut self, poll: Duration, worked: bool) -> bool {
        if poll.is_zero() {
            self.until = None;
            return false;
        }
        let now = Instant::now();
        if worked {
            self.until = Some(now + poll);
        }
        self.until = self.until.filter(|&until| now < until);
        self.polls()
    }

    fn polls(&self) -> bool {
        self.until.is_some()
    }
}

fn subscriber(manager: &mut EventManager<Worker>, id: SubscriberId) -> &mut Worker {
    manager.subscriber_mut(id).expect("the worker is never removed")
}
