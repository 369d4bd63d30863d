//! A device all of whose queues one thread serves, a chain at a time: for those that nobody waits for.
//!
//! ```text
//!          Start              Pause
//!   Idle ────────► Running ◄────────► Paused       a ring that its driver broke: Ended, until Stop
//!    ▲                │      Resume     │
//!    └──── Stop ──────┴─────────────────┘
//! ```

use std::io;
use std::sync::Arc;

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use vm_memory::GuestMemoryMmap;

use super::device::{Activation, ActiveQueue, DeviceThreads, Interrupt};
use super::mailbox::{Address, Mailbox, Reply, ThreadHook};
use super::queue::{self, Chain, Mapped, VirtQueue};
use super::queue_thread::QueueThread;
use crate::log_once::LogOnce;

/// What such a device does.
pub(super) trait Serve: Send + 'static {
    /// Uses a chain of queue `index`; returns how many bytes it wrote there.
    ///
    /// # Errors
    /// The driver broke its ring, and is asked for a reset.
    fn serve(
        &mut self,
        index: u16,
        queue: &VirtQueue,
        rings: &Mapped<'_>,
        chain: Chain,
    ) -> Result<u32, queue::Error>;

    /// A driver is there that accepted these features.
    fn start(&mut self, _accepted: u64) {}
}

/// What the thread is asked.
pub(super) enum Message {
    Start(Box<Activation>, Reply<io::Result<()>>),
    /// Answered once nothing touches guest memory any more.
    Stop(Reply<()>),
    /// Answered once nothing does until [`Message::Resume`].
    Pause(Reply<()>),
    Resume(Reply<()>),
}

/// The thread of such a device.
pub(super) struct Served(QueueThread<Message>);

impl Served {
    /// Spawns the thread `name`, which serves as `what` does.
    ///
    /// # Errors
    /// There are no descriptors or no threads left.
    pub(super) fn spawn(name: &str, what: impl Serve) -> io::Result<Self> {
        let title = name.to_owned();
        let prepare = move |mailbox| {
            let mut manager = EventManager::new_with_capacity(4).map_err(io::Error::other)?;
            let id = manager.add_subscriber(Worker {
                mailbox,
                name: title,
                what,
                driver: None,
                paused: false,
                broken: LogOnce::default(),
                over: false,
                failed: None,
            });
            match manager.subscriber_mut(id).map_err(io::Error::other)?.failed.take() {
                None => Ok(move || run(manager, id)),
                Some(error) => Err(io::Error::other(error)),
            }
        };
        QueueThread::spawn(name, None, prepare).map(Self)
    }

    /// Starts with a driver's queues.
    pub(super) fn start(&self, activation: Activation) -> io::Result<()> {
        self.0.address().ask(|reply| Message::Start(Box::new(activation), reply)).wait()?
    }

    /// Returns once nothing touches the driver's queues any more.
    pub(super) fn stop(&self) {
        // A thread that is gone touches nothing.
        let _ = self.0.address().ask(Message::Stop).wait();
    }

    /// By which the machine's owner reaches the thread.
    pub(super) fn threads(&self) -> Box<dyn DeviceThreads> {
        Box::new(ServedThread(self.0.address().clone()))
    }
}

struct ServedThread(Address<Message>);

impl DeviceThreads for ServedThread {
    fn confine(&self, hook: &ThreadHook) -> io::Result<()> {
        self.0.confine(Arc::clone(hook)).wait()?
    }

    fn pause(&self) -> io::Result<()> {
        self.0.ask(Message::Pause).wait().map_err(io::Error::from)
    }

    fn resume(&self) -> io::Result<()> {
        self.0.ask(Message::Resume).wait().map_err(io::Error::from)
    }
}

/// What the thread has of a driver.
pub(super) struct Driver {
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) queues: Vec<ActiveQueue>,
    /// It broke a ring, and nothing touches them any more.
    pub(super) ended: bool,
}

/// The thread's life.
struct Worker<S> {
    mailbox: Mailbox<Message>,
    name: String,
    what: S,
    driver: Option<Driver>,
    paused: bool,
    broken: LogOnce,
    /// The device is dropped.
    over: bool,
    failed: Option<event_manager::Error>,
}

/// The mailbox's event, behind those of the queues: all are edges, so that none needs a read.
pub(super) const MAIL: u32 = u16::MAX as u32 + 1;
pub(super) const EDGE: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);

impl<S: Serve> Worker<S> {
    fn receive(&mut self, message: Message, ops: &mut EventOps) {
        match message {
            Message::Start(activation, reply) => {
                let Activation { memory, accepted, interrupt, queues } = *activation;
                self.what.start(accepted);
                let watched = queues.iter().try_for_each(|queue| ops.add(watch(queue)));
                self.driver = Some(Driver { memory, interrupt, queues, ended: false });
                reply.send(watched.map_err(io::Error::other));
            }
            Message::Stop(reply) => {
                for queue in self.driver.take().iter().flat_map(|driver| &driver.queues) {
                    let _ = ops.remove(watch(queue));
                }
                reply.send(());
            }
            Message::Pause(reply) => {
                self.paused = true;
                reply.send(());
            }
            Message::Resume(reply) => {
                self.paused = false;
                reply.send(());
            }
        }
    }

    /// Serves all there is; true where there is more.
    fn work(&mut self) -> bool {
        let Some(driver) = self.driver.as_mut().filter(|driver| !self.paused && !driver.ended) else {
            return false;
        };
        driver.serve(&mut self.what).unwrap_or_else(|error| {
            log::log!(self.broken.level(), "{}: {error}; its driver is asked for a reset", self.name);
            driver.ended = true;
            let _ = driver.interrupt.needs_reset();
            false
        })
    }
}

/// A queue's kicks, as an event whose data is the queue's index.
pub(super) fn watch(queue: &ActiveQueue) -> Events {
    Events::with_data(&*queue.kick, queue.index.into(), EDGE)
}

impl<S: Serve> MutEventSubscriber for Worker<S> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() != MAIL {
            return;
        }
        let mut messages = Vec::new();
        self.over = self.mailbox.take(|message| messages.push(message)).is_break();
        messages.into_iter().for_each(|message| self.receive(message, ops));
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.failed = ops.add(Events::with_data(self.mailbox.wake(), MAIL, EDGE)).err();
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

/// Chains of a queue that are served before messages are looked for: one can take some milliseconds.
const BURST: usize = 8;

impl Driver {
    /// Serves what is there on each queue, [a few](BURST) chains at once, so that a driver that adds without end does not keep the messages
    /// waiting. True: there is more. False: each queue is armed.
    pub(super) fn serve(&mut self, what: &mut impl Serve) -> Result<bool, queue::Error> {
        let mut more = false;
        for ActiveQueue { index, ring, .. } in &mut self.queues {
            let rings = ring.map(&self.memory)?;
            let mut left = true;
            for _ in 0..BURST {
                let Some(chain) = ring.pop(&rings)? else {
                    left = false;
                    break;
                };
                let written = what.serve(*index, ring, &rings, chain)?;
                ring.push_used(&rings, chain.head, written);
            }
            if ring.publish(&rings)? {
                let _ = self.interrupt.queue(*index);
            }
            more |= left;
        }
        Ok(more)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::virtio::mock::{Buffer, MockRing, NoInterrupts};
    use crate::virtio::queue::F_VERSION_1;

    struct Count(usize);

    impl Serve for Count {
        fn serve(&mut self, _: u16, _: &VirtQueue, _: &Mapped<'_>, _: Chain) -> Result<u32, queue::Error> {
            self.0 += 1;
            Ok(0)
        }
    }

    #[test]
    fn messages_are_looked_for_after_a_few_chains() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut mock = MockRing::new(&memory, 0x1000, 32, false);
        (0..32).for_each(|_| _ = mock.add(&[Buffer::readable(0x8000, 1)]).unwrap());
        mock.publish();
        let ring = VirtQueue::new(mock.setup(), F_VERSION_1, &memory).unwrap();
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let queues = vec![ActiveQueue { index: 0, ring, kick }];
        let mut driver = Driver { memory, interrupt: Arc::new(NoInterrupts), queues, ended: false };
        let mut count = Count(0);
        for served in [8, 16, 24, 32] {
            assert!(driver.serve(&mut count).unwrap());
            assert_eq!(count.0, served);
        }
        assert!(!driver.serve(&mut count).unwrap());
        assert_eq!((0..32).filter(|_| mock.reap().is_some()).count(), 32);
    }
}
