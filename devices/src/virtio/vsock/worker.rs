//! The thread: what it waits for, and what it does then.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connections::{Connections, FIRST_ID};
use super::guest::Guest;
use super::host::HostEnd;
use crate::log_once::LogOnce;
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::mailbox::{Mailbox, Reply};
use crate::virtio::queue_thread::QueueThread;

/// What wakes the thread, beside the [sockets of connections](FIRST_ID).
mod token {
    pub(super) const MAIL: u64 = 0;
    pub(super) const PROGRAMS: u64 = 1;
    pub(super) const ANSWERS: u64 = 2;
    pub(super) const ROOM: u64 = 3;
    pub(super) const SENT: u64 = 4;
}

/// Events that are taken at once.
const EVENTS: usize = 64;

/// All that the device has for as long as one driver runs.
pub(super) struct Start {
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) receive: ActiveQueue,
    pub(super) transmit: ActiveQueue,
}

/// A message to the thread.
pub(super) enum Message {
    /// The driver is ready.
    Start(Box<Start>, Reply<io::Result<()>>),
    /// A reset: every connection is closed, and the rings are dropped.
    Stop(Reply<()>),
    /// Touches neither rings nor sockets until it is to resume.
    Pause(Reply<()>),
    /// Goes on where it is.
    Resume(Reply<()>),
}

struct Worker {
    mailbox: Mailbox<Message>,
    connections: Connections,
    /// None without a driver, or once that broke a ring.
    guest: Option<Guest>,
    /// Since when; and the events of that time, each edge of which is told once.
    paused: Option<Instant>,
    held: BTreeMap<u64, EventSet>,
    broken: LogOnce,
}

/// Spawns the thread.
///
/// # Errors
/// There are no descriptors or no threads left.
pub(super) fn spawn(name: &str, guest_cid: u64, host: HostEnd) -> io::Result<QueueThread<Message>> {
    QueueThread::spawn(name, None, |mailbox| {
        let epoll = Epoll::new()?;
        watch(&epoll, mailbox.wake().as_raw_fd(), token::MAIL)?;
        watch(&epoll, host.listener.as_raw_fd(), token::PROGRAMS)?;
        watch(&epoll, host.ports.fd().as_raw_fd(), token::ANSWERS)?;
        let connections = Connections::new(guest_cid, host, epoll);
        let broken = LogOnce::default();
        let mut worker =
            Worker { mailbox, connections, guest: None, paused: None, held: BTreeMap::new(), broken };
        Ok(move || worker.live())
    })
}

fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(edges, token))
}

impl Worker {
    fn live(&mut self) {
        let mut events = vec![EpollEvent::default(); EVENTS];
        loop {
            let timeout = if self.work() { 0 } else { self.left() };
            let happened = match self.connections.epoll().wait(timeout, &mut events) {
                Ok(happened) => happened,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => {
                    // There is nothing left to wait with.
                    log::error!("vsock: cannot wait for events: {error}");
                    return;
                }
            };
            let mut mail = false;
            for event in &events[..happened] {
                mail |= self.note(event.data(), event.event_set());
            }
            if mail && self.take_mail() {
                return;
            }
        }
    }

    /// Does what there is to do. True: there is more, without a new event.
    fn work(&mut self) -> bool {
        if self.paused.is_some() {
            return false;
        }
        self.connections.expire(Instant::now());
        if self.connections.accepts() {
            self.connections.accept(self.guest.is_some());
        }
        let more = match &mut self.guest {
            None => false,
            Some(guest) => match guest.process(&mut self.connections) {
                Ok(more) => more,
                Err(error) => {
                    log::log!(
                        self.broken.level(),
                        "vsock: the guest's driver broke a ring, and is asked for a reset: {error}"
                    );
                    guest.needs_reset();
                    self.drop_guest();
                    false
                }
            },
        };
        more || self.connections.accepts()
    }

    /// For how many milliseconds the thread may sleep; for ever, where that is negative.
    fn left(&self) -> i32 {
        let deadline = self.connections.deadline().filter(|_| self.paused.is_none());
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now()).as_millis() as i32;
        // No less than it is, or the wait is over before the time is.
        deadline.map_or(-1, |deadline| left(deadline) + 1)
    }

    /// Notes an event. True: there is mail.
    fn note(&mut self, token: u64, set: EventSet) -> bool {
        match token {
            token::MAIL => return true,
            _ if self.paused.is_some() => {
                let held = self.held.entry(token).or_insert_with(EventSet::empty);
                *held = held.union(set);
            }
            token::PROGRAMS => self.connections.note_programs(),
            token::ANSWERS => self.connections.take_answers(),
            token::ROOM => self.guest.iter_mut().for_each(Guest::note_room),
            token::SENT => self.guest.iter_mut().for_each(Guest::note_sent),
            FIRST_ID.. => self.connections.note(token, set),
            _ => {}
        }
        false
    }

    /// Does what the messages say. True: the thread is to end.
    fn take_mail(&mut self) -> bool {
        let mut messages = Vec::new();
        let over = self.mailbox.take(|message| messages.push(message)).is_break();
        for message in messages {
            match message {
                Message::Start(start, reply) => reply.send(self.start(*start)),
                Message::Stop(reply) => {
                    self.drop_guest();
                    reply.send(());
                }
                Message::Pause(reply) => {
                    self.paused.get_or_insert_with(Instant::now);
                    reply.send(());
                }
                Message::Resume(reply) => {
                    if let Some(since) = self.paused.take() {
                        self.connections.postpone(since.elapsed());
                        for (token, set) in std::mem::take(&mut self.held) {
                            self.note(token, set);
                        }
                    }
                    reply.send(());
                }
            }
        }
        over
    }

    fn start(&mut self, start: Start) -> io::Result<()> {
        self.drop_guest();
        let Start { memory, interrupt, receive, transmit } = start;
        let guest = Guest::new(memory, interrupt, receive, transmit);
        for (queue, token) in guest.queues().into_iter().zip([token::ROOM, token::SENT]) {
            if let Err(error) = watch(self.connections.epoll(), queue.kick.as_raw_fd(), token) {
                self.forget(&guest);
                return Err(error);
            }
        }
        self.guest = Some(guest);
        Ok(())
    }

    /// Closes every connection, and touches guest memory no more.
    fn drop_guest(&mut self) {
        if let Some(guest) = self.guest.take() {
            self.forget(&guest);
        }
        self.connections.clear();
    }

    /// The transport keeps the eventfds.
    fn forget(&self, guest: &Guest) {
        for queue in guest.queues() {
            // Where it was not watched, there is nothing to undo.
            let (operation, event) = (ControlOperation::Delete, EpollEvent::default());
            let _ = self.connections.epoll().ctl(operation, queue.kick.as_raw_fd(), event);
        }
    }
}
