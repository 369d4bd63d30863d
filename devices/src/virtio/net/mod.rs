//! virtio-net (virtio 1.2 §5.1): what it offers, how it starts, and how a reset gets everything back.
//!
//! The frames themselves are in [`queue_pair`], and what the driver says of them in [`control`].

mod adaptive_poll;
pub mod control;
mod error;
mod features;
mod handle;
mod kick_moderation;
mod mailbox;
mod pair_life;
mod pair_plug;
mod pair_thread;
pub mod queue_pair;
mod state;
mod status;
pub(in crate::virtio) mod vhost;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use net::{Backend, Mac, RxFilter, Vhost};
use virtio_bindings::virtio_net::*;

use self::control::{Control, SharedMac};
use self::error::Error;
use self::features::offer;
pub use self::handle::Handle;
use self::mailbox::{Message, PairQueue, Start, ask_all};
use self::pair_life::{PairLife, State};
use self::pair_thread::spawn;
pub use self::queue_pair::Counters;
use self::queue_pair::{HostEnd, ReceiveSpace};
pub use self::state::{ActivePair, PairState};
use self::status::LinkStatus;
use self::vhost::IdleCarrier;
use super::device::{Activation, ActiveQueue, VirtioDevice};
pub use super::mailbox::ThreadHook;
use super::mailbox::{Address, Answer, Gone};
use super::queue_thread::QueueThread;
pub use super::queue_thread::run_on;
use crate::log_once::LogOnce;

/// The device type of a network card (virtio 1.2 §5).
pub const TYPE_NET: u32 = 1;

/// Entries of each queue, at most. In buffers of 1.5 KiB a receive queue of this size holds five frames of 64 KiB, which
/// keeps the host going while the driver refills; its descriptor table is one page; and more would only let a slow guest
/// queue more latency.
pub const QUEUE_SIZE: u16 = 256;

/// The speed of the link in units of Mbit/s, as the tap at its other end says of itself to the host. Nothing slows frames down to it.
const SPEED: u32 = 10_000;
/// `duplex` of the configuration (§5.1.4).
const FULL_DUPLEX: u8 = 1;

/// What a NIC is to its guest.
#[derive(Clone, Debug)]
pub struct NetDeviceConfig {
    /// What its threads are called: `net0` makes `net0-0` for the first pair. Linux shows 15 bytes of it.
    pub name: String,
    /// Its hardware address, until its driver sets another.
    pub mac: Mac,
    /// The largest packet in bytes, without its Ethernet header; offered as `VIRTIO_NET_F_MTU` where it is given, and at
    /// least 68 then (§5.1.4.1).
    pub mtu: Option<u16>,
    /// The host's CPU that the thread of each pair runs on, as far as the list goes; then any. A thread that cannot be there, for
    /// the CPU went offline, runs on any.
    pub affinity: Vec<u16>,
}

/// A network card: one queue pair, with a thread of its own, for each backend.
///
/// - *Idle*: the threads sleep, each with its backend.
/// - *Running*, from `activate` to `reset`: they move frames. Only the first pair receives, until the driver enables more
///   (`VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`, virtio 1.2 §5.1.6.5.5); one that did not negotiate `VIRTIO_NET_F_MQ` has just that one.
///
/// Where there is a [`Vhost`] for each pair, the kernel carries the frames while the NIC is running, and the threads have the rest.
///
/// A pair whose driver broke its ring moves nothing, and is still *running* until the reset.
pub struct VirtioNet {
    config: NetDeviceConfig,
    mac: SharedMac,
    status: LinkStatus,
    features: u64,
    queue_sizes: Vec<u16>,
    /// The first has the control queue.
    pairs: Arc<[Address<Message>]>,
    counters: Arc<[Arc<Counters>]>,
    poll: Option<Duration>,
    /// A driver has started the pairs, or some of them.
    active: bool,
    /// The number of the control queue, as this driver has it.
    control_index: u16,
    /// Whether it was said that the host refused something.
    refused: Arc<LogOnce>,
    /// Dropped last: they end then.
    _threads: Vec<QueueThread<Message>>,
}

impl VirtioNet {
    /// A card with one queue pair for each of `backends`, of which there is at least one. It offers what all of them can. The
    /// threads of the pairs are spawned here, by the calling thread, and end when the card is dropped.
    ///
    /// The kernel carries the frames by one of `vhosts` for each pair; where there are none, the threads do. The backends have a
    /// descriptor for it then ([`Backend::vhost_fd`]).
    ///
    /// # Errors
    /// There are no descriptors or no threads left.
    ///
    /// # Panics
    /// There are some `vhosts`, and not one for each pair.
    pub fn new(
        config: NetDeviceConfig,
        backends: Vec<Box<dyn Backend>>,
        vhosts: Vec<Vhost>,
    ) -> io::Result<Self> {
        assert!(vhosts.is_empty() || vhosts.len() == backends.len(), "one for each pair");
        let can = features::common(backends.iter().map(|backend| backend.offloads()));
        let features = vhost::offer(offer(config.mtu.is_some(), can, backends.len()), &vhosts);
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * backends.len()];
        // Behind the last pair (§5.1.2), for a driver that negotiates all of them.
        queue_sizes.push(control::QUEUE_SIZE);
        let refused = Arc::<LogOnce>::default();
        let (mut threads, mut counters) = (Vec::new(), Vec::new());
        let mut vhosts = vhosts.into_iter();
        for (number, backend) in backends.into_iter().enumerate() {
            let carrier = vhosts.next().map(IdleCarrier::new).transpose()?;
            let counted = Arc::<Counters>::default();
            counters.push(Arc::clone(&counted));
            let life = PairLife {
                number,
                name: format!("{}-{number}", config.name),
                counters: counted,
                broken: Arc::default(),
                refused: Arc::clone(&refused),
                state: State::Idle(HostEnd { backend, carrier }),
                paused: false,
                beside: None,
                barred: None,
                present: true,
                cut: false,
                filter: RxFilter::new(config.mac),
                rate: None,
                had_driver: false,
            };
            threads.push(spawn(life, config.affinity.get(number).copied())?);
        }
        let pairs = threads.iter().map(|thread| thread.address().clone()).collect();
        let mac = SharedMac::new(config.mac);
        Ok(Self {
            config,
            mac,
            status: LinkStatus::default(),
            features,
            queue_sizes,
            pairs,
            counters: counters.into(),
            poll: None,
            active: false,
            control_index: 0,
            refused,
            _threads: threads,
        })
    }

    /// The same with threads that poll for frames for so long before each sleep, and ask for no kicks meanwhile. It saves
    /// the wake-up, and takes a processor while it lasts. With none, each finds out by trying whether a short while pays, and
    /// polls as long as it does. A driver that has started already goes on as before.
    #[must_use]
    pub fn with_poll(mut self, poll: Option<Duration>) -> Self {
        self.poll = poll;
        self
    }

    /// What can be asked of the card once it is in its transport.
    pub fn handle(&self) -> Handle {
        Handle::new(
            Arc::clone(&self.pairs),
            Arc::clone(&self.counters),
            self.status.clone(),
            features::host_offloads(self.features),
        )
    }

    /// The counters of each pair. They go on over resets, and can be read at any time.
    pub fn counters(&self) -> Vec<Arc<Counters>> {
        self.counters.to_vec()
    }

    fn start(&mut self, activation: Activation) -> Result<(), Error> {
        let Activation { memory, accepted, interrupt, queues } = activation;
        let space = ReceiveSpace::new(accepted, self.config.mtu);
        let mut by_index: Vec<Option<ActiveQueue>> = self.queue_sizes.iter().map(|_| None).collect();
        for queue in queues {
            if let Some(slot) = by_index.get_mut(usize::from(queue.index)) {
                *slot = Some(queue);
            }
        }

        let has = |bit: u32| accepted & 1 << bit != 0;
        // A driver without VIRTIO_NET_F_MQ has one pair, and the control queue right behind it (§5.1.2).
        let pairs = if has(VIRTIO_NET_F_MQ) && has(VIRTIO_NET_F_CTRL_VQ) { self.pairs.len() } else { 1 };
        self.control_index = 2 * pairs as u16;
        let control = by_index[2 * pairs].take().filter(|_| has(VIRTIO_NET_F_CTRL_VQ));
        // Pairs past the first stay unused if the driver wants fewer.
        let wanted = |number: &usize| by_index[2 * number].is_some() || by_index[2 * number + 1].is_some();
        let pairs = 1 + (1..pairs).take_while(wanted).count();
        let mut queues = Vec::with_capacity(pairs);
        for number in 0..pairs {
            // Receive queues are the even ones (§5.1.2).
            let (rx, tx) = (by_index[2 * number].take(), by_index[2 * number + 1].take());
            queues.push(rx.zip(tx).ok_or(Error::Queues(number))?);
        }

        // Whatever a driver before this one said: also of the pairs that this one does not use.
        let filter = RxFilter::new(self.config.mac);
        self.mac.set(filter.mac);
        answered(ask_all(&self.pairs, |_, reply| Message::Prepare(filter.clone(), reply)))?;
        let mut control = control.map(|queue| {
            let others = self.pairs[1..pairs].to_vec();
            Control::new(self.config.name.clone(), queue, accepted, self.mac.clone(), filter)
                .with_others(Box::new(others), Arc::clone(&self.refused))
                .with_status(self.status.clone())
        });
        self.active = true;
        self.status.set_driver(has(VIRTIO_NET_F_GUEST_ANNOUNCE) && has(VIRTIO_NET_F_CTRL_VQ));
        let started: Vec<_> = queues
            .into_iter()
            .zip(&*self.pairs)
            .map(|((rx, tx), pair)| {
                let (memory, interrupt, control) = (memory.clone(), Arc::clone(&interrupt), control.take());
                let start = Start { memory, accepted, interrupt, rx, tx, space, poll: self.poll, control };
                pair.ask(|reply| Message::Start(Box::new(start), reply))
            })
            .collect();
        answered(started.into_iter().map(Answer::wait).collect())
    }

    /// The pair that has queue `index`, and which of its queues that is.
    fn pair_of(&self, index: u16) -> Option<(&Address<Message>, PairQueue)> {
        let (number, queue) = match index {
            index if index == self.control_index => (0, PairQueue::Control),
            index if index % 2 == 0 => (index / 2, PairQueue::Receive),
            index => (index / 2, PairQueue::Transmit),
        };
        Some((self.pairs.get(usize::from(number))?, queue))
    }
}

/// The first error, where there is one; a thread that does not answer has panicked.
fn answered(answers: Vec<Result<Result<(), Error>, Gone>>) -> Result<(), Error> {
    let answer = |(number, answer): (usize, Result<_, _>)| answer.unwrap_or(Err(Error::Lost(number)));
    answers.into_iter().enumerate().try_for_each(answer)
}

impl VirtioDevice for VirtioNet {
    fn device_type(&self) -> u32 {
        TYPE_NET
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// `virtio_net_config` (§5.1.4) up to `duplex`; all of it is read-only with `VIRTIO_F_VERSION_1`.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 17];
        config[..6].copy_from_slice(&self.mac.octets());
        config[6..8].copy_from_slice(&self.status.bits().to_le_bytes());
        config[8..10].copy_from_slice(&(self.pairs.len() as u16).to_le_bytes());
        config[10..12].copy_from_slice(&self.config.mtu.unwrap_or(0).to_le_bytes());
        config[12..16].copy_from_slice(&SPEED.to_le_bytes());
        config[16] = FULL_DUPLEX;
        let from = config.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        for (to, byte) in data.iter_mut().zip(&config[from..]) {
            *to = *byte;
        }
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.start(activation).map_err(|error| {
            // The pairs before the one that failed come back: all start or none.
            self.reset();
            io::Error::other(error)
        })
    }

    fn rerouted(&mut self) {
        for answer in ask_all(&self.pairs, |_, reply| Message::Reroute(reply)) {
            if let Ok(Err(error)) = answer {
                let (level, name) = (self.refused.level(), &self.config.name);
                log::log!(level, "{name}: interrupts come by other vectors: {error}");
            }
        }
    }

    fn reset_queue(&mut self, index: u16) {
        if let Some((pair, queue)) = self.pair_of(index) {
            // One that has ended touches nothing.
            let _ = pair.ask(|reply| Message::ResetQueue(queue, reply)).wait();
        }
    }

    fn enable_queue(&mut self, active: ActiveQueue) -> io::Result<()> {
        match self.pair_of(active.index) {
            Some((pair, queue)) => {
                Ok(pair.ask(|reply| Message::EnableQueue(queue, Box::new(active), reply)).wait()?)
            }
            None => Ok(()),
        }
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.active) {
            // Whichever is first: one that has stopped still answers the control queue, if that is in the middle of a command.
            ask_all(&self.pairs, |_, reply| Message::Stop(reply));
        }
        self.mac.set(self.config.mac);
        self.status.set_driver(false);
    }
}

impl Drop for VirtioNet {
    fn drop(&mut self) {
        self.reset();
    }
}
