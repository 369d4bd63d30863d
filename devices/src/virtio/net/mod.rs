//! virtio-net (virtio 1.2 §5.1): what it offers, how it starts, and how a reset gets everything back.
//!
//! The frames themselves are in [`queue_pair`], and what the driver says of them in [`control`].

pub mod control;
mod features;
mod orders;
pub mod queue_pair;
mod vhost;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use net::{Backend, Mac, RxFilter, Vhost};
use virtio_bindings::virtio_net::*;

use self::control::{Control, SharedMac};
use self::features::{guest_offloads, offer};
use self::orders::orders;
pub use self::queue_pair::Counters;
pub use self::queue_pair::run_on;
use self::queue_pair::{PairParts, PairThread, QueuePair, Room};
use self::vhost::{Carrier, Load};
use super::{Activation, ActiveQueue, VirtioDevice};
use crate::once::Once;

/// The device type of a network card (virtio 1.2 §5).
pub const TYPE_NET: u32 = 1;

/// Entries of each queue, at most. In buffers of 1.5 KiB a receive queue of this size holds five frames of 64 KiB, which
/// keeps the host going while the driver refills; its descriptor table is one page; and more would only let a slow guest
/// queue more latency.
pub const QUEUE_SIZE: u16 = 256;

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
}

/// Why a NIC could not start. It can be activated again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("queue pair {0} is not set up")]
    Queues(usize),
    #[error("queue pair {0} lost its backend to a panic of its thread")]
    Lost(usize),
    #[error("cannot set the offloads of queue pair {0}")]
    Offloads(usize, #[source] io::Error),
    #[error("cannot have the host leave queue pair {0} alone")]
    Disable(usize, #[source] io::Error),
    #[error("cannot make an eventfd for the orders to queue pair {0}")]
    Orders(usize, #[source] io::Error),
    #[error("cannot have vhost-net carry the frames of queue pair {0}")]
    Vhost(usize, #[source] io::Error),
    #[error("cannot start the thread of queue pair {0}")]
    Thread(usize, #[source] io::Error),
}

/// A network card: one queue pair for each backend.
///
/// - *Idle*: every slot has its backend.
/// - *Running*, from `activate` to `reset`: the backends are in the pairs' threads. Only the first pair receives, until the
///   driver enables more (`VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`, virtio 1.2 §5.1.6.5.5); one that did not negotiate
///   `VIRTIO_NET_F_MQ` has just that one.
///
/// Where there is a [`Vhost`] for each pair, the kernel carries the frames while the NIC is running, and the threads have the rest.
///
/// A pair whose driver broke its ring has ended its thread by itself, and is still *running* until the reset joins it.
pub struct VirtioNet {
    config: NetDeviceConfig,
    mac: SharedMac,
    features: u64,
    queue_sizes: Vec<u16>,
    slots: Vec<Slot>,
    affinity: Vec<u16>,
    poll: Duration,
    /// Whether it was said that the host refused something.
    refused: Arc<Once>,
}

/// Where a pair's backend is: here, or in its thread. In neither after that thread panicked.
struct Slot {
    backend: Option<Box<dyn Backend>>,
    /// Of a NIC whose frames the kernel carries: at rest, or at work.
    vhost: Option<Vhost>,
    carrier: Option<Carrier>,
    thread: Option<PairThread>,
    counters: Arc<Counters>,
    broken: Arc<Once>,
}

impl VirtioNet {
    /// A card with one queue pair for each of `backends`, of which there is at least one. It offers what all of them can.
    pub fn new(config: NetDeviceConfig, backends: Vec<Box<dyn Backend>>) -> Self {
        let can = features::common(backends.iter().map(|backend| backend.offloads()));
        let slots: Vec<_> = backends
            .into_iter()
            .map(|backend| Slot {
                backend: Some(backend),
                vhost: None,
                carrier: None,
                thread: None,
                counters: Arc::default(),
                broken: Arc::default(),
            })
            .collect();
        let features = offer(&config, can, slots.len());
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * slots.len()];
        // Behind the last pair (§5.1.2), for a driver that negotiates all of them.
        queue_sizes.push(control::QUEUE_SIZE);
        let mac = SharedMac::new(config.mac);
        Self {
            config,
            mac,
            features,
            queue_sizes,
            slots,
            affinity: Vec::new(),
            poll: Duration::ZERO,
            refused: Arc::default(),
        }
    }

    /// The same with the thread of each pair on a CPU of the host, as far as `cpus` goes. A thread that cannot be there, for it
    /// went offline, runs on any.
    #[must_use]
    pub fn with_affinity(mut self, cpus: &[u16]) -> Self {
        cpus.clone_into(&mut self.affinity);
        self
    }

    /// The same with threads that look about for frames for so long before each sleep, and ask for no kicks meanwhile. It saves
    /// the wake-up, and takes a processor while it lasts.
    #[must_use]
    pub fn with_poll(mut self, poll: Duration) -> Self {
        self.poll = poll;
        self
    }

    /// The same with the kernel to carry the frames: by one of `vhosts` for each pair, or, where there are none, as before. The
    /// backends have a descriptor for it ([`Backend::vhost_fd`]).
    ///
    /// # Panics
    /// There are some, and not one for each pair.
    #[must_use]
    pub fn with_vhosts(mut self, vhosts: Vec<Vhost>) -> Self {
        assert!(vhosts.is_empty() || vhosts.len() == self.slots.len(), "one for each pair");
        self.features = vhost::offer(self.features, &vhosts);
        for (slot, vhost) in self.slots.iter_mut().zip(vhosts) {
            slot.vhost = Some(vhost);
        }
        self
    }

    /// The counters of each pair. They go on over resets, and can be read at any time.
    pub fn counters(&self) -> Vec<Arc<Counters>> {
        self.slots.iter().map(|slot| Arc::clone(&slot.counters)).collect()
    }

    fn start(&mut self, activation: Activation) -> Result<(), Error> {
        let Activation { memory, accepted, interrupt, queues } = activation;
        let offloads = guest_offloads(accepted);
        let room = Room::new(accepted, self.config.mtu);
        let mut by_index: Vec<Option<ActiveQueue>> = self.queue_sizes.iter().map(|_| None).collect();
        for queue in queues {
            if let Some(slot) = by_index.get_mut(usize::from(queue.index)) {
                *slot = Some(queue);
            }
        }

        let has = |bit: u32| accepted & 1 << bit != 0;
        // A driver without VIRTIO_NET_F_MQ has one pair, and the control queue right behind it (§5.1.2).
        let pairs = if has(VIRTIO_NET_F_MQ) && has(VIRTIO_NET_F_CTRL_VQ) { self.slots.len() } else { 1 };
        let control = by_index[2 * pairs].take().filter(|_| has(VIRTIO_NET_F_CTRL_VQ));
        // Pairs past the first stay unused if the driver wants fewer.
        let wanted = |number: &usize| by_index[2 * number].is_some() || by_index[2 * number + 1].is_some();
        let pairs = 1 + (1..pairs).take_while(wanted).count();
        self.disable_others().map_err(|(number, error)| Error::Disable(number, error))?;
        let filter = self.fresh_filter();
        let mut control = control
            .map(|queue| Control::new(self.config.name.clone(), queue, accepted, self.mac.clone(), filter));
        let (mut others, mut inboxes) = (Vec::new(), Vec::new());
        for number in 1..pairs {
            let (orders, inbox) = orders().map_err(|error| Error::Orders(number, error))?;
            others.push(orders);
            inboxes.push(inbox);
        }
        control = control.map(|control| control.with_others(others, Arc::clone(&self.refused)));
        let inboxes = std::iter::once(None).chain(inboxes.into_iter().map(Some));
        for ((number, slot), inbox) in self.slots.iter_mut().enumerate().zip(inboxes) {
            // Receive queues are the even ones (§5.1.2).
            let (Some(rx), Some(tx)) = (by_index[2 * number].take(), by_index[2 * number + 1].take()) else {
                return Err(Error::Queues(number));
            };
            let backend = slot.backend.as_mut().ok_or(Error::Lost(number))?;
            backend.set_offloads(offloads).map_err(|error| Error::Offloads(number, error))?;
            let cpu = self.affinity.get(number).copied();
            let mut carried = None;
            if let Some((vhost, wire)) = slot.vhost.take().zip(backend.vhost_fd()) {
                let (memory, interrupt, queues, poll) = (&memory, &interrupt, [&rx, &tx], self.poll);
                match Carrier::start(vhost, &Load { memory, accepted, interrupt, queues, wire, cpu, poll }) {
                    Ok((carrier, theirs)) => {
                        slot.carrier = Some(carrier);
                        carried = Some(theirs);
                    }
                    Err((vhost, error)) => {
                        slot.vhost = Some(vhost);
                        return Err(Error::Vhost(number, error));
                    }
                }
            }
            let pair = QueuePair::new(PairParts {
                name: format!("{}-{number}", self.config.name),
                cpu,
                memory: memory.clone(),
                interrupt: Arc::clone(&interrupt),
                rx,
                tx,
                backend: slot.backend.take().ok_or(Error::Lost(number))?,
                room,
                poll: self.poll,
                carried,
                control: control.take(),
                inbox,
                counters: Arc::clone(&slot.counters),
                broken: Arc::clone(&slot.broken),
            });
            match PairThread::start(pair) {
                Ok(thread) => slot.thread = Some(thread),
                Err((pair, error)) => {
                    slot.backend = Some(pair.into_backend());
                    return Err(Error::Thread(number, error));
                }
            }
        }
        Ok(())
    }

    /// Has the host filter as it should for a driver that has said nothing yet; whatever one before it said.
    fn fresh_filter(&mut self) -> RxFilter {
        let filter = RxFilter::new(self.config.mac);
        self.mac.set(filter.mac);
        for backend in self.slots.iter_mut().filter_map(|slot| slot.backend.as_mut()) {
            // A NIC that receives too little can still be of use, and its driver will say more.
            if let Err(error) = backend.set_filter(&filter) {
                let (level, name) = (self.refused.level(), &self.config.name);
                log::log!(level, "{name}: cannot set which frames it receives: {error}");
            }
        }
        filter
    }

    /// Has the host bring all frames to the first pair; on an error, says of which other one.
    fn disable_others(&mut self) -> Result<(), (usize, io::Error)> {
        let backends = self.slots.iter_mut().map(|slot| slot.backend.as_mut()).enumerate().skip(1);
        for (number, backend) in backends {
            backend.map_or(Ok(()), |backend| backend.set_enabled(false)).map_err(|error| (number, error))?;
        }
        Ok(())
    }
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

    /// `virtio_net_config` (§5.1.4) up to `mtu`; all of it is read-only with `VIRTIO_F_VERSION_1`.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac.octets());
        config[6..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config[8..10].copy_from_slice(&(self.slots.len() as u16).to_le_bytes());
        config[10..].copy_from_slice(&self.config.mtu.unwrap_or(0).to_le_bytes());
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
        for carrier in self.slots.iter().filter_map(|slot| slot.carrier.as_ref()) {
            if let Err(error) = carrier.reroute() {
                log::log!(
                    self.refused.level(),
                    "{}: interrupts come by other vectors: {error}",
                    self.config.name
                );
            }
        }
    }

    fn reset(&mut self) {
        for slot in &mut self.slots {
            if let Some(pair) = slot.thread.take().and_then(PairThread::stop) {
                slot.backend = Some(pair.into_backend());
            }
            if let Some(carrier) = slot.carrier.take() {
                slot.vhost = carrier.stop();
            }
        }
        if let Err((number, error)) = self.disable_others() {
            let (level, name) = (self.refused.level(), &self.config.name);
            log::log!(level, "{name}: cannot have the host leave queue pair {number} alone: {error}");
        }
        self.mac.set(self.config.mac);
    }
}

impl Drop for VirtioNet {
    fn drop(&mut self) {
        self.reset();
    }
}
