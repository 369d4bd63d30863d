//! The thread of a disk's queue: it waits for a driver, and then works for it ([`Session`]).
//!
//! **Invariant: nobody waits in a circle.** A vCPU (in an activation or a reset) and the holder of a [`Handle`](super::Handle) wait
//! for the thread, and it waits for the host's disk alone.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::QUEUE_SIZE;
use super::counters::Counters;
use super::session::{Common, Session};
use super::state::DiskQueueState;
use super::uring::Uring;
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::mailbox::{Mailbox, Reply};
use crate::virtio::queue_thread::QueueThread;

/// A message to the thread of a queue.
pub(super) enum Message {
    /// The driver is ready: does what it asks for.
    Start(Box<Start>, Reply<io::Result<()>>),
    /// A reset: touches neither the ring nor guest memory any more, and drops them.
    Stop(Reply<()>),
    /// Takes no request from now on, until it is to resume, and does first what it has taken.
    Pause(Reply<DiskQueueState>),
    /// Goes on where it is.
    Resume(Reply<()>),
}

/// All that a queue has for as long as one driver runs.
pub(super) struct Start {
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) queue: ActiveQueue,
}

/// What the thread waits with, and what it was asked meanwhile.
pub(super) struct Desk {
    mailbox: Mailbox<Message>,
    epoll: Epoll,
    pub(super) mail: VecDeque<Message>,
    /// The disk is paused, whether there is a driver or not.
    pub(super) paused: bool,
    /// The device is dropped.
    pub(super) over: bool,
}

impl Desk {
    /// Waits for an event, or only looks, and takes the messages that there are.
    ///
    /// # Errors
    /// Those of epoll_wait(2), which are none in a program without a mistake.
    pub(super) fn wait(&mut self, sleeps: bool) -> io::Result<()> {
        // All are edge-triggered: what happened shows where it happened, not here.
        let mut events = [EpollEvent::default(); 4];
        match self.epoll.wait(if sleeps { -1 } else { 0 }, &mut events) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let Self { mailbox, mail, over, .. } = self;
        *over = mailbox.take(|message| mail.push_back(message)).is_break();
        Ok(())
    }
}

/// Watches an eventfd, edge-triggered.
fn watch(epoll: &Epoll, fd: &impl AsRawFd) -> io::Result<()> {
    let edge = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), edge)
}

/// What the thread runs.
struct Worker {
    common: Arc<Common>,
    counters: Arc<Counters>,
    uring: Option<Uring>,
    desk: Desk,
}

/// Spawns the thread of queue `index`, with a ring of io_uring unless that is not wanted or not to be had.
///
/// # Errors
/// There are no descriptors or no threads left.
pub(super) fn spawn(
    common: &Arc<Common>,
    counters: &Arc<Counters>,
    index: usize,
    async_io: bool,
) -> io::Result<QueueThread<Message>> {
    let name = format!("{}-{index}", common.name);
    let (common, counters) = (Arc::clone(common), Arc::clone(counters));
    QueueThread::spawn(&name, None, |mailbox| {
        let epoll = Epoll::new()?;
        watch(&epoll, mailbox.wake())?;
        let uring = ring(&common, async_io)
            .inspect_err(|why| {
                log::debug!("{}: queue {index} reads and writes by itself: {why}", common.name)
            })
            .ok();
        if let Some(uring) = &uring {
            log::debug!("{}: queue {index} has io_uring read and write", common.name);
            watch(&epoll, uring.done())?;
        }
        let desk = Desk { mailbox, epoll, mail: VecDeque::new(), paused: false, over: false };
        let worker = Worker { common, counters, uring, desk };
        Ok(move || worker.run())
    })
}

pub(super) fn ring(common: &Common, wanted: bool) -> io::Result<Uring> {
    match common.store.plain() {
        _ if !wanted => Err(io::Error::other("so it was asked for")),
        None => Err(io::Error::other("its disk is two files")),
        Some(file) => Uring::new(file, QUEUE_SIZE),
    }
}

impl Worker {
    fn run(mut self) {
        while !self.desk.over {
            if let Err(error) = self.desk.wait(true) {
                return log::error!("{}: cannot wait for events: {error}", self.common.name);
            }
            while let Some(message) = self.desk.mail.pop_front() {
                match message {
                    Message::Start(start, reply) => self.serve(*start, reply),
                    Message::Stop(reply) => reply.send(()),
                    Message::Pause(reply) => {
                        self.desk.paused = true;
                        reply.send(DiskQueueState::Idle);
                    }
                    Message::Resume(reply) => {
                        self.desk.paused = false;
                        reply.send(());
                    }
                }
            }
        }
    }

    fn serve(&mut self, start: Start, reply: Reply<io::Result<()>>) {
        let Start { memory, interrupt, queue: ActiveQueue { index, ring, kick } } = start;
        let Self { common, counters, uring, desk } = self;
        if let Err(error) = watch(&desk.epoll, &*kick) {
            return reply.send(Err(error));
        }
        match Session::new(common, counters, (index, ring), &memory, interrupt, uring.as_mut()) {
            Ok(session) => {
                reply.send(Ok(()));
                session.run(desk);
            }
            Err(error) => reply.send(Err(io::Error::other(error))),
        }
        if let Err(error) = desk.epoll.ctl(ControlOperation::Delete, kick.as_raw_fd(), EpollEvent::default())
        {
            log::error!("{}: cannot stop watching an event: {error}", common.name);
        }
        uring.take_if(|uring| uring.is_spent());
    }
}
