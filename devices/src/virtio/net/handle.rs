//! What can be asked of a NIC while it runs, beside its driver.

use std::io;
use std::sync::Arc;

use net::{Backend, Offloads, RateLimits, SoftOffload, Vhost};

use super::mailbox::{Message, ask_all};
use super::queue_pair::{Counters, HostEnd, NicRate};
use super::state::PairState;
use super::status::LinkStatus;
use super::vhost::IdleCarrier;
use crate::virtio::mailbox::{Address, Answer, Gone, ThreadHook};

/// A running NIC, for its owner. The device itself is in its transport, out of reach; each method is a message to the pairs'
/// threads, which answer between two bursts.
///
/// Once the device is dropped, every method that asks something is an error: the threads have ended.
#[derive(Clone)]
pub struct Handle {
    pairs: Arc<[Address<Message>]>,
    counters: Arc<[Arc<Counters>]>,
    status: LinkStatus,
    /// What a driver may leave to the host in the frames that it sends.
    offered: Offloads,
}

impl Handle {
    pub(super) fn new(
        pairs: Arc<[Address<Message>]>,
        counters: Arc<[Arc<Counters>]>,
        status: LinkStatus,
        offered: Offloads,
    ) -> Self {
        Self { pairs, counters, status, offered }
    }

    /// The counters of each pair. They go on over resets, and can be read at any time, also after the NIC's end.
    pub fn counters(&self) -> Vec<Arc<Counters>> {
        self.counters.to_vec()
    }

    /// How many queue pairs it has.
    pub fn pairs(&self) -> usize {
        self.pairs.len()
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

    /// Whether the link is up.
    pub fn is_up(&self) -> bool {
        self.status.is_up()
    }

    /// Sets the link up or down (`VIRTIO_NET_S_LINK_UP`, virtio 1.3 §5.1.4), and tells the driver if that is a change. While the link is
    /// down, what the guest sends is lost, and it receives nothing; the rings stay where they are.
    ///
    /// # Errors
    /// A thread has ended, or the host refuses to go on. A link that cannot go up is down, of every pair; one that cannot go down may be
    /// so in part, until this is tried again.
    pub fn set_link(&self, up: bool) -> io::Result<()> {
        let ask = |up| collect(ask_all(&self.pairs, |_, reply| Message::Link(up, reply)));
        let changes = up != self.status.is_up();
        if !up && changes {
            self.status.set_up(false);
            self.tell_config()?;
        }
        if let Err(error) = ask(up) {
            if up {
                let _ = ask(false);
            }
            return Err(error);
        }
        if up && changes {
            self.status.set_up(true);
            self.tell_config()?;
        }
        Ok(())
    }

    /// Says on the host's link whether there is somebody at the guest's end, as far as that is known: without a driver there is not.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn set_carrier(&self, present: bool) -> io::Result<()> {
        Ok(self.first().ask(|reply| Message::Carrier(present, reply)).wait()?)
    }

    /// Has the guest's neighbours hear where it is now: by its driver, which knows all of its addresses
    /// (`VIRTIO_NET_F_GUEST_ANNOUNCE`, §5.1.6.5.4), or else by these `frames`, each behind its 12-byte header, which are sent as if
    /// the guest did.
    ///
    /// # Errors
    /// A thread has ended.
    pub fn announce(&self, frames: Vec<Vec<u8>>) -> io::Result<()> {
        if self.status.ask_to_announce() {
            return self.tell_config();
        }
        Ok(self.first().ask(|reply| Message::Send(frames, reply)).wait()?)
    }

    /// Moves the NIC to another wire: every pair takes one of `backends`, and where there are some, one of `vhosts`. Each pair changes
    /// between two bursts. What its driver accepted holds on, by [`SoftOffload`] where the wire can do less; the backends before are
    /// dropped.
    ///
    /// # Errors
    /// There is not one for each pair; the new wire cannot be as the driver had the old one; a thread has ended. All is as before then.
    pub fn swap(&self, backends: Vec<Box<dyn Backend>>, vhosts: Vec<Vhost>) -> io::Result<()> {
        if backends.len() != self.pairs.len() || !(vhosts.is_empty() || vhosts.len() == backends.len()) {
            let why =
                format!("the NIC has {} queue pairs, and the wire {}", self.pairs.len(), backends.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let lacks = |backend: &dyn Backend| self.offered.only(backend.offloads()) != self.offered;
        if !vhosts.is_empty() && backends.iter().any(|backend| lacks(&**backend)) {
            let why = "that wire finishes less than the NIC offers, and vhost-net finishes nothing";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let mut vhosts = vhosts.into_iter();
        let mut ends = Vec::with_capacity(backends.len());
        for backend in backends {
            let carrier = vhosts.next().map(IdleCarrier::new).transpose()?;
            let backend = SoftOffload::wrap(backend, self.offered);
            ends.push(Box::new(HostEnd { backend, carrier }));
        }
        let mut before: Vec<Box<HostEnd>> = Vec::with_capacity(ends.len());
        for (pair, end) in self.pairs.iter().zip(ends) {
            let failed = match pair.ask(|reply| Message::Exchange(end, reply)).wait() {
                Ok(Ok(old)) => {
                    before.push(old);
                    continue;
                }
                Ok(Err((_, error))) => error,
                Err(gone) => gone.into(),
            };
            for (pair, old) in self.pairs.iter().zip(before) {
                // It had it until now. Where that is refused all the same, the pair is cut off with the new wire's end.
                if let Ok(Err((_, error))) = pair.ask(|reply| Message::Exchange(old, reply)).wait() {
                    log::error!("{}: cannot go back to the wire before: {error}", pair.name());
                }
            }
            return Err(failed);
        }
        Ok(())
    }

    /// Holds the NIC to these limits from now on, all of its pairs together, or to none. The limits before count no more; nothing is
    /// lost. Frames that the kernel carries are not held.
    ///
    /// # Errors
    /// A thread has ended.
    pub fn set_rate(&self, limits: &RateLimits) -> io::Result<()> {
        let rate = NicRate::new(limits, self.pairs.len()).map(Arc::new);
        for answer in ask_all(&self.pairs, |_, reply| Message::Rate(rate.clone(), reply)) {
            answer?;
        }
        Ok(())
    }

    fn first(&self) -> &Address<Message> {
        &self.pairs[0]
    }

    fn tell_config(&self) -> io::Result<()> {
        self.first().ask(Message::ConfigChanged).wait()?
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
