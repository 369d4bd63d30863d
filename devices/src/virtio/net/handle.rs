//! What can be asked of a NIC while it runs, beside its driver.

use std::io;
use std::sync::Arc;

use super::mailbox::Message;
use super::queue_pair::Counters;
use crate::virtio::mailbox::{Address, ThreadHook};

/// A running NIC, for its owner. The device itself is in its transport, out of reach; each method is a message to the pairs'
/// threads, which answer between two bursts.
///
/// Once the device is dropped, every method that asks something is an error: the threads have ended.
#[derive(Clone)]
pub struct Handle {
    pairs: Arc<[Address<Message>]>,
    counters: Arc<[Arc<Counters>]>,
}

impl Handle {
    pub(super) fn new(pairs: Arc<[Address<Message>]>, counters: Arc<[Arc<Counters>]>) -> Self {
        Self { pairs, counters }
    }

    /// The counters of each pair. They go on over resets, and can be read at any time, also after the NIC's end.
    pub fn counters(&self) -> Vec<Arc<Counters>> {
        self.counters.to_vec()
    }

    /// The names of the pairs' threads.
    pub fn thread_names(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(Address::name)
    }

    /// Has every pair's thread run `hook` on itself, with its name: to install its seccomp filter. Returns once all have.
    ///
    /// # Errors
    /// The first error of the hook, or a thread has ended. The other threads have run it all the same.
    pub fn confine(&self, hook: &ThreadHook) -> io::Result<()> {
        let answers: Vec<_> = self.pairs.iter().map(|pair| pair.confine(Arc::clone(hook))).collect();
        // All are waited for, whatever the first says.
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.wait()?).collect();
        answers.into_iter().collect()
    }
}
