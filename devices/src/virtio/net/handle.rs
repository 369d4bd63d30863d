//! What can be asked of a NIC while it runs, beside its driver.

use std::io;
use std::sync::Arc;

use super::mailbox::{Message, ask_all};
use super::queue_pair::Counters;
use super::state::PairState;
use crate::virtio::mailbox::{Address, Answer, Gone, ThreadHook};

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

    /// Has every pair finish its burst, tell the driver of what it used, and touch neither rings nor backend from then on, until
    /// [`resume`](Self::resume). Where each is, by rising number. Nothing is reset and no frame is lost: frames wait in the host's
    /// queue and on the rings. Of a NIC that is paused already it says the same again.
    ///
    /// A driver may still reset the NIC meanwhile, and start it; it is paused then, too. To have the states of one moment, the
    /// guest's vCPUs are stopped first.
    ///
    /// # Errors
    /// A thread has ended, or the kernel does not say where it is in a ring; the other pairs go on then.
    pub fn pause(&self) -> io::Result<Vec<PairState>> {
        // The first pair first: it is then in no command, and has no more for the others, whose answers are what holds.
        let (first, others) = self.pairs.split_at(1);
        let mut answers = ask_all(first, |_, reply| Message::Pause(reply));
        answers.extend(ask_all(others, |_, reply| Message::Pause(reply)));
        collect(answers).inspect_err(|_| {
            let _ = self.resume();
        })
    }

    /// Has every pair go on. Kicks and frames that came while it was paused are found.
    ///
    /// # Errors
    /// A thread has ended, or the host refuses to go on; that pair's driver is asked for a reset then, and the others go on.
    pub fn resume(&self) -> io::Result<()> {
        collect(ask_all(&self.pairs, |_, reply| Message::Resume(reply))).map(drop)
    }

    /// Has every pair's thread run `hook` on itself, with its name: to install its seccomp filter. Returns once all have.
    ///
    /// # Errors
    /// The first error of the hook, or a thread has ended. The other threads have run it all the same.
    pub fn confine(&self, hook: &ThreadHook) -> io::Result<()> {
        let answers: Vec<_> = self.pairs.iter().map(|pair| pair.confine(Arc::clone(hook))).collect();
        // All are waited for, whatever the first says.
        collect(answers.into_iter().map(Answer::wait).collect()).map(drop)
    }
}

/// The answers of all pairs, or the first error.
fn collect<T>(answers: Vec<Result<io::Result<T>, Gone>>) -> io::Result<Vec<T>> {
    answers.into_iter().map(|answer| answer?).collect()
}
