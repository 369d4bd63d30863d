//! The thread of a queue pair: when it works, when it polls, and when it sleeps.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::adaptive_poll::AdaptivePoll;
use super::kick_moderation::KickModeration;
use super::mailbox::Message;
use super::pair_life::{PairLife, State, unwatch};
use super::queue_pair::QueuePair;
use super::queue_pair::events::{EDGE, FREE};
use crate::virtio::mailbox::Mailbox;
use crate::virtio::queue_thread::QueueThread;

/// The mailbox's event, behind the pair's, and the timer's.
const MAIL: u32 = FREE;
const TIMER: u32 = FREE + 1;

/// What the thread runs: the pair, and the mailbox by which it is told.
struct Worker {
    mailbox: Mailbox<Message>,
    life: PairLife,
    timer: InterruptTimer,
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
            (TIMER, _) => self.timer.rang = true,
            (_, State::Running(pair)) => pair.note(events),
            // Its events are watched while it runs.
            _ => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let Self { mailbox, timer, .. } = self;
        let added = ops.add(Events::with_data(mailbox.wake(), MAIL, EDGE));
        self.watch_error = added.and_then(|()| ops.add(Events::with_data(&timer.fd, TIMER, EDGE))).err();
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
        let timer = InterruptTimer::new()?;
        let id = manager.add_subscriber(Worker { mailbox, life, timer, over: false, watch_error: None });
        match subscriber(&mut manager, id).watch_error.take() {
            None => Ok(move || run(manager, id)),
            Some(error) => Err(io::Error::other(error)),
        }
    })
}

/// The thread's life: while the pair runs, frames until there are none, then it polls for a while (`poll=`, or [`AdaptivePoll`]) or holds
/// kicks off ([`KickModeration`]), then it sleeps until something happens.
fn run(mut manager: EventManager<Worker>, id: SubscriberId) {
    let mut idle = Idle::new();
    let mut began = Instant::now();
    let mut slept = None;
    loop {
        let worker = subscriber(&mut manager, id);
        // Its own timer says nothing of how often the driver kicks.
        let rang = std::mem::take(&mut worker.timer.rang);
        let woken = slept.take().filter(|_| !rang);
        if worker.over {
            worker.life.give_carrier_back();
            return;
        }
        let mut other = None;
        let timeout = match &mut worker.life.state {
            State::Running(pair) => {
                let before = pair.moved();
                let worked = pair.process();
                if let Some(slept) = woken {
                    idle.woken(slept, pair.moved() != before);
                }
                let looks_again = match pair.has_work() {
                    true => idle.works(),
                    false => idle.looks_again(pair, worked, began),
                };
                if pair.has_ended() {
                    let gone = worker.life.leave();
                    unwatch(gone, &mut ops(&mut manager, id));
                    continue;
                }
                other = pair.watches_otherwise();
                pair.count_wait();
                // With work left, events are only collected: neither direction starves the other or a message.
                if looks_again || pair.has_work() {
                    0
                } else {
                    let without_timer = pair.interrupt_due().and_then(|due| worker.timer.set(due));
                    pair.waits().into_iter().chain(without_timer).min().map_or(-1, millis)
                }
            }
            _ => -1,
        };
        if let Some(events) = other
            && let Err(error) = ops(&mut manager, id).modify(events)
        {
            let life = &mut subscriber(&mut manager, id).life;
            log::error!("{}: cannot watch the host in another way: {error}", life.name);
            if let State::Running(pair) = &mut life.state {
                pair.end();
            }
            continue;
        }
        let asleep = Instant::now();
        let happened = manager.run_with_timeout(timeout);
        began = Instant::now();
        slept = (timeout != 0).then_some(began - asleep);
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

/// What a thread does when its pair has no work.
struct Idle {
    timer: PollTimer,
    adaptive: AdaptivePoll,
    kicks: KickModeration,
}

impl Idle {
    fn new() -> Self {
        Self { timer: PollTimer { until: None }, adaptive: AdaptivePoll::new(), kicks: KickModeration::new() }
    }

    /// Something woke the thread after it `slept` for so long, and frames have `moved` or not.
    fn woken(&mut self, slept: Duration, moved: bool) {
        self.kicks.woken(slept);
        self.adaptive.woken(slept, moved);
    }

    /// There is work left: the thread looks at it, and for nothing else.
    fn works(&mut self) -> bool {
        self.adaptive.works();
        false
    }

    /// The last turn, which `began` then, has `worked` or not: whether the thread looks again instead of sleeping. It has let some time
    /// pass for that, or else asked for a kick, which may show that there is work.
    fn looks_again(&mut self, pair: &mut QueuePair, worked: bool, began: Instant) -> bool {
        let polls = match pair.poll() {
            Some(poll) => self.timer.polls_on(poll, worked),
            None if pair.waits_for_frames() && !self.kicks.is_active() => {
                self.adaptive.polls_on(pair.moved(), began, Instant::now())
            }
            None => {
                self.adaptive.stop();
                false
            }
        };
        if polls {
            pair.look_for_a_moment();
            return true;
        }
        // A driver that has nothing posted is not to be left alone: it may be done long before a hold-off is over.
        let time = if pair.is_dry() { None } else { self.kicks.holds_off(began.elapsed(), pair.moved()) };
        match time {
            // No message, no interrupt that is owed, and no other direction waits for longer than that.
            Some(time) => {
                let due = pair.interrupt_due();
                thread::sleep(due.map_or(time, |due| time.min(left(due))));
                true
            }
            None => {
                pair.arm();
                false
            }
        }
    }
}

/// No less than `time`, as epoll_wait(2) takes it.
fn millis(time: Duration) -> i32 {
    time.as_millis().saturating_add(1).try_into().unwrap_or(i32::MAX)
}

/// Wakes the thread for an interrupt that is held, in microseconds, where epoll_wait(2) has milliseconds.
struct InterruptTimer {
    fd: OwnedFd,
    /// What it is set to.
    due: Option<Instant>,
    /// It has woken the thread.
    rang: bool,
}

impl InterruptTimer {
    /// Makes its descriptor.
    ///
    /// # Errors
    /// There is none left.
    fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { fd, due: None, rang: false })
    }

    /// Sets it, unless it is set like this. An interrupt that goes out sooner leaves it set: it wakes the thread once for nothing.
    ///
    /// How long it is until then, where the kernel does not set it.
    fn set(&mut self, due: Instant) -> Option<Duration> {
        if self.due != Some(due) {
            let left = left(due);
            // No time at all would stop it.
            let once =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()).max(1) };
            let when = Itimerspec { it_interval: Timespec::default(), it_value: once };
            if let Err(error) = timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &when) {
                log::debug!("cannot set a timer: {error}");
                return Some(left);
            }
            self.due = Some(due);
        }
        None
    }
}

/// How long it is until then.
fn left(due: Instant) -> Duration {
    due.saturating_duration_since(Instant::now())
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
            return false;
        }
        let now = Instant::now();
        if worked {
            self.until = Some(now + poll);
        }
        self.until = self.until.filter(|&until| now < until);
        self.until.is_some()
    }
}

fn ops(manager: &mut EventManager<Worker>, id: SubscriberId) -> EventOps<'_> {
    manager.event_ops(id).expect("the worker is never removed")
}

fn subscriber(manager: &mut EventManager<Worker>, id: SubscriberId) -> &mut Worker {
    manager.subscriber_mut(id).expect("the worker is never removed")
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::virtio::mock::Buffer;
    use crate::virtio::net::queue_pair::double::{self, DATA};

    #[test]
    fn kicks_are_not_held_off_while_the_driver_has_to_post() {
        for posted in [false, true] {
            let (mut pair, [mut rx, _], _peer) = double::pair();
            if posted {
                rx.add(&[Buffer::writable(DATA, 2048)]).unwrap();
                rx.publish();
            }
            pair.process();
            assert_eq!(pair.is_dry(), !posted);
            let mut idle = Idle::new();
            (0..100).for_each(|_| idle.woken(Duration::ZERO, false));
            assert!(idle.kicks.is_active());
            assert_eq!(idle.looks_again(&mut pair, true, Instant::now()), posted);
            assert!(!pair.is_dry(), "it waits for the driver's kick");
        }
    }

    #[test]
    fn the_timer_rings_for_what_it_is_set_to_and_is_set_once() {
        let mut timer = InterruptTimer::new().unwrap();
        let rings = |timer: &InterruptTimer, timeout| {
            poll(&mut [PollFd::new(&timer.fd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
        };
        let (now, long) = (Timespec { tv_sec: 0, tv_nsec: 0 }, Timespec { tv_sec: 10, tv_nsec: 0 });
        let later = Instant::now() + Duration::from_secs(3600);
        assert_eq!(timer.set(later), None);
        assert!(!rings(&timer, now));
        // One that is due already rings as well; zero would stop it.
        let due = Instant::now();
        timer.set(due);
        assert!(rings(&timer, long));
        // Set anew, it would have forgotten that it rang.
        timer.set(due);
        assert!(rings(&timer, now));
        timer.set(later);
        assert!(!rings(&timer, now));
    }
}
