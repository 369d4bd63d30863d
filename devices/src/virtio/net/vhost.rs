//! vhost-net as a pair's carrier: the kernel has the rings, the kicks and the host's end, and no frame comes by here.
//!
//! What is left is the pair's thread, which sleeps: it has the control queue or its commands, hears what the guest asks of the
//! backend itself, and hears of a ring that makes no sense. The kernel interrupts the guest by the eventfd of the queue's vector,
//! which is an irqfd; where a queue has none at present, by one that this thread passes on.
//!
//! All of it is called on the pair's thread, so that the kernel's thread is made on the same CPU: it runs where the thread may that
//! asks for it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use net::{Carrying, Ring, Vhost};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_NOTF_COAL};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::queue::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_VERSION_1, QueueState};

/// The feature bits that are the carrier's: of the rings, and of how frames are in them. The others are the backend's.
const CARRIERS: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_IN_ORDER | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// What of `features` a NIC can offer whose frames all of `vhosts` carry.
pub(super) fn offer(features: u64, vhosts: &[Vhost]) -> u64 {
    // The kernel holds no interrupt. A NIC whose driver has set that, and which moves to such a wire, interrupts more often then, as
    // any device may (virtio 1.3 §5.1.6.5.9).
    let held = 1 << VIRTIO_NET_F_NOTF_COAL;
    vhosts.iter().fold(features, |features, vhost| features & (!CARRIERS | vhost.features()) & !held)
}

/// All that the kernel needs to carry a pair's frames.
pub(in crate::virtio) struct Load<'a> {
    pub(in crate::virtio) memory: &'a GuestMemoryMmap,
    /// The feature bits that the driver accepted.
    pub(in crate::virtio) accepted: u64,
    pub(in crate::virtio) interrupt: &'a Arc<dyn Interrupt>,
    /// The receive queue and the transmit queue.
    pub(in crate::virtio) queues: [&'a ActiveQueue; 2],
    /// How long the kernel's thread polls for frames before it sleeps.
    pub(in crate::virtio) poll: Duration,
}

/// The kernel at rest, and the eventfds by which it will tell: a pair has them for life.
pub(in crate::virtio) struct IdleCarrier {
    vhost: Vhost,
    events: Events,
}

/// The kernel at work for a pair.
pub struct Carrier {
    carrying: Carrying,
    events: Events,
    /// The receive queue and the transmit queue, by their numbers in the device.
    queues: [u16; 2],
}

/// By which the kernel tells the pair's thread.
pub(in crate::virtio) struct Events {
    /// Buffers were used, of the receive queue or the transmit queue, and nobody has told the driver.
    pub(in crate::virtio) relays: [EventFd; 2],
    /// A ring makes no sense.
    pub(in crate::virtio) error: EventFd,
}

impl IdleCarrier {
    /// Whether the kernel can carry the frames of a driver that accepted these feature bits.
    pub(super) fn can(&self, accepted: u64) -> bool {
        accepted & CARRIERS & !self.vhost.features() == 0
    }

    /// By which the kernel will tell.
    pub(in crate::virtio) fn events(&self) -> &Events {
        &self.events
    }

    /// Makes the eventfds.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(in crate::virtio) fn new(vhost: Vhost) -> io::Result<Self> {
        let new = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self { vhost, events: Events { relays: [new()?, new()?], error: new()? } })
    }

    /// Gives the kernel the rings; it carries frames once it has a [wire](Carrier::carry).
    ///
    /// # Errors
    /// The kernel refuses; `self` comes back.
    // The error is large for what it returns, and as rare as it is large.
    #[allow(clippy::result_large_err)]
    pub(in crate::virtio) fn start(self, load: &Load<'_>) -> Result<Carrier, (Self, io::Error)> {
        let Self { vhost, events } = self;
        // What a driver before this one left in them is not about its rings. Nothing there is an error, and means the same.
        for event in events.relays.iter().chain([&events.error]) {
            let _ = event.read();
        }
        let ring = |at: usize| {
            let setup = load.queues[at].ring.setup();
            Ring {
                size: setup.size,
                desc_table: setup.desc_table,
                avail_ring: setup.avail_ring,
                used_ring: setup.used_ring,
                kick: load.queues[at].kick.as_raw_fd(),
                call: call(&**load.interrupt, load.queues[at].index, &events.relays[at]),
                error: events.error.as_raw_fd(),
            }
        };
        let rings = [ring(0), ring(1)];
        match vhost.start(load.memory, load.accepted, &rings, load.poll) {
            Ok(carrying) => Ok(Carrier { carrying, events, queues: load.queues.map(|queue| queue.index) }),
            Err((vhost, error)) => Err((Self { vhost, events }, error)),
        }
    }
}

impl Carrier {
    /// By which the kernel tells.
    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    /// Has the kernel carry frames between `wire` and the rings of `queues`, from their positions on, and look at both at once:
    /// [it would not](Carrying::carry) by itself.
    ///
    /// # Errors
    /// The kernel refuses, and carries nothing.
    pub(super) fn carry(&self, wire: BorrowedFd<'_>, queues: [&ActiveQueue; 2]) -> io::Result<()> {
        self.carrying.set_positions(queues.map(|queue| queue.ring.state().next_avail))?;
        self.carrying.carry(wire)?;
        queues.iter().try_for_each(|queue| queue.kick.write(1))
    }

    /// The same of sockets, where the kernel needs no wire.
    ///
    /// # Errors
    /// The kernel refuses, and carries nothing.
    pub(in crate::virtio) fn run(&self, queues: [&ActiveQueue; 2]) -> io::Result<()> {
        self.carrying.set_positions(queues.map(|queue| queue.ring.state().next_avail))?;
        self.carrying.run()?;
        queues.iter().try_for_each(|queue| queue.kick.write(1))
    }

    /// Has the kernel carry nothing until it is to [carry](Self::carry) again, and puts `queues` where it is in them.
    ///
    /// # Errors
    /// The kernel does not say where it is. It carries nothing all the same.
    pub(in crate::virtio) fn pause(
        &self,
        memory: &GuestMemoryMmap,
        queues: [&mut ActiveQueue; 2],
    ) -> io::Result<()> {
        for (queue, next_avail) in queues.into_iter().zip(self.carrying.pause()?) {
            // The used index is all in the ring: the kernel has no other.
            let next_used = queue.ring.used_index(memory).map_err(io::Error::other)?;
            queue.ring.set_state(QueueState { next_avail, next_used });
        }
        Ok(())
    }

    /// Has the kernel interrupt by the vectors that the queues have now.
    pub(in crate::virtio) fn reroute(&self, interrupt: &dyn Interrupt) -> io::Result<()> {
        for (at, relay) in self.events.relays.iter().enumerate() {
            self.carrying.set_call(at, call(interrupt, self.queues[at], relay))?;
        }
        Ok(())
    }

    /// Has the kernel leave the rings alone.
    pub(in crate::virtio) fn silence(&self) {
        self.carrying.silence();
    }

    /// Stops the kernel: it touches no guest memory when this returns.
    pub(in crate::virtio) fn stop(self) -> IdleCarrier {
        IdleCarrier { vhost: self.carrying.stop(), events: self.events }
    }
}

/// What tells the driver of the queue: the eventfd of its vector, or the relay.
fn call(interrupt: &dyn Interrupt, queue: u16, relay: &EventFd) -> RawFd {
    interrupt.event(queue).unwrap_or(relay).as_raw_fd()
}
