//! What the owner of a disk can ask of it once it is in its transport.

use std::io;
use std::sync::Arc;

use super::counters::Counters;
use super::state::DiskQueueState;
use super::thread::Message;
use crate::virtio::device::DeviceThreads;
use crate::virtio::mailbox::{Address, Answer, Reply, ThreadHook};

/// Asks the threads of a disk's queues, for as long as the disk is there.
#[derive(Clone)]
pub struct Handle {
    queues: Arc<[Address<Message>]>,
    counters: Arc<[Arc<Counters>]>,
}

impl Handle {
    pub(super) fn new(queues: Arc<[Address<Message>]>, counters: Arc<[Arc<Counters>]>) -> Self {
        Self { queues, counters }
    }

    /// The counters of each queue. They go on over resets, and can be read at any time.
    pub fn counters(&self) -> &[Arc<Counters>] {
        &self.counters
    }

    /// Stops the queues where they are: each answers what it has taken, and takes no more. A driver that starts meanwhile is paused
    /// as well.
    ///
    /// # Errors
    /// A thread has ended.
    pub fn stop_queues(&self) -> io::Result<Vec<DiskQueueState>> {
        self.ask(Message::Pause)
    }

    fn ask<T>(&self, message: impl Fn(Reply<T>) -> Message) -> io::Result<Vec<T>> {
        let answers: Vec<_> = self.queues.iter().map(|queue| queue.ask(&message)).collect();
        answers.into_iter().map(|answer| Ok(answer.wait()?)).collect()
    }
}

impl DeviceThreads for Handle {
    fn confine(&self, hook: &ThreadHook) -> io::Result<()> {
        let answers: Vec<_> = self.queues.iter().map(|queue| queue.confine(Arc::clone(hook))).collect();
        // All are waited for, whatever the first says.
        let answers: Vec<_> = answers.into_iter().map(Answer::wait).collect();
        answers.into_iter().try_for_each(|answer| answer?)
    }

    fn pause(&self) -> io::Result<()> {
        let states = self.stop_queues()?;
        log::debug!("{}: paused at {states:?}", self.queues[0].name());
        Ok(())
    }

    fn resume(&self) -> io::Result<()> {
        self.ask(Message::Resume).map(drop)
    }
}
