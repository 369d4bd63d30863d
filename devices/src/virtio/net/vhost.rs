//! vhost-net as a pair's carrier: the kernel has the rings, the kicks and the host's end, and no frame comes by here.
//!
//! What is left is the pair's thread, which sleeps: it has the control queue or obeys it, hears what the guest asks of the
//! backend itself, and hears of a ring that makes no sense. The kernel interrupts the guest by the eventfd of the queue's vector,
//! which is an irqfd; where a queue has none at present, by one that this thread passes on.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use net::{Carrying, Ring, Vhost};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::run_on;
use crate::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::{ActiveQueue, Interrupt};

/// The feature bits that are the carrier's: of the rings, and of how frames are in them. The others are the backend's.
const CARRIERS: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// What of `features` a NIC can offer whose frames all of `vhosts` carry.
pub(super) fn offer(features: u64, vhosts: &[Vhost]) -> u64 {
    vhosts.iter().fold(features, |features, vhost| features & (!CARRIERS | vhost.features()))
}

/// All that the kernel needs to carry a pair's frames.
pub(super) struct Load<'a> {
    pub(super) memory: &'a GuestMemoryMmap,
    /// The feature bits that the driver accepted.
    pub(super) accepted: u64,
    pub(super) interrupt: &'a Arc<dyn Interrupt>,
    /// The receive queue and the transmit queue.
    pub(super) queues: [&'a ActiveQueue; 2],
    /// The descriptor that takes and gives frames.
    pub(super) wire: BorrowedFd<'a>,
    /// The host's CPU that the kernel's thread is to run on.
    pub(super) cpu: Option<u16>,
    /// How long that thread looks about for frames before it sleeps.
    pub(super) poll: Duration,
}

/// The kernel at work for a pair, for the NIC.
pub(super) struct Carrier {
    carrying: Arc<Carrying>,
    interrupt: Arc<dyn Interrupt>,
    queues: [u16; 2],
    relays: [EventFd; 2],
}

/// The same for the pair's thread: what it must hear of.
pub struct Carried {
    carrying: Arc<Carrying>,
    /// Buffers were used, of the receive queue or the transmit queue, and nobody has told the driver.
    pub(super) relays: [EventFd; 2],
    /// A ring makes no sense.
    pub(super) error: EventFd,
}

impl Carrier {
    /// Has the kernel carry frames.
    ///
    /// # Errors
    /// The kernel refuses, and carries nothing; `vhost` comes back.
    // The error is large for what it returns, and as rare as it is large.
    #[allow(clippy::result_large_err)]
    pub(super) fn start(mut vhost: Vhost, load: &Load<'_>) -> Result<(Self, Carried), (Vhost, io::Error)> {
        let prepared = own(&mut vhost, load.cpu).and_then(|()| Events::new());
        let Events { relays, theirs, error, errors } = match prepared {
            Ok(events) => events,
            Err(error) => return Err((vhost, error)),
        };
        let ring = |at: usize| {
            let setup = load.queues[at].ring.setup();
            Ring {
                size: setup.size,
                desc_table: setup.desc_table,
                avail_ring: setup.avail_ring,
                used_ring: setup.used_ring,
                kick: load.queues[at].kick.as_raw_fd(),
                call: call(&**load.interrupt, load.queues[at].index, &relays[at]),
                error: errors.as_raw_fd(),
            }
        };
        let rings = [ring(0), ring(1)];
        let carrying = vhost.start(load.memory, load.accepted, &rings, load.poll, load.wire)?;
        let carrying = Arc::new(carrying);
        let carried = Carried { carrying: Arc::clone(&carrying), relays: theirs, error };
        let queues = load.queues.map(|queue| queue.index);
        Ok((Self { carrying, interrupt: Arc::clone(load.interrupt), queues, relays }, carried))
    }

    /// Has the kernel interrupt by the vectors that the queues have now.
    pub(super) fn reroute(&self) -> io::Result<()> {
        for (at, relay) in self.relays.iter().enumerate() {
            self.carrying.set_call(at, call(&*self.interrupt, self.queues[at], relay))?;
        }
        Ok(())
    }

    /// Stops the kernel: nothing touches guest memory when this returns. Comes after the end of the pair's thread, which has the
    /// other half; none where that is still there.
    pub(super) fn stop(self) -> Option<Vhost> {
        self.carrying.silence();
        Arc::into_inner(self.carrying).map(Carrying::stop)
    }
}

impl Carried {
    /// Has the kernel leave the rings alone.
    pub(super) fn silence(&self) {
        self.carrying.silence();
    }
}

/// The eventfds of a pair.
struct Events {
    relays: [EventFd; 2],
    theirs: [EventFd; 2],
    error: EventFd,
    errors: EventFd,
}

impl Events {
    fn new() -> io::Result<Self> {
        let new = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let (relays, error) = ([new()?, new()?], new()?);
        let theirs = [relays[0].try_clone()?, relays[1].try_clone()?];
        Ok(Self { relays, theirs, errors: error.try_clone()?, error })
    }
}

/// What tells the driver of the queue: the eventfd of its vector, or the relay.
fn call(interrupt: &dyn Interrupt, queue: u16, relay: &EventFd) -> RawFd {
    interrupt.event(queue).unwrap_or(relay).as_raw_fd()
}

/// Has the kernel make its thread, on that CPU: it is there where the thread is that asks for it. Where that cannot be, for the CPU
/// went offline, it is on any.
fn own(vhost: &mut Vhost, cpu: Option<u16>) -> io::Result<()> {
    let Some(cpu) = cpu else { return vhost.own() };
    let there = || {
        if let Err(error) = run_on(cpu) {
            log::warn!("the kernel cannot carry frames on CPU {cpu}, and does on any: {error}");
        }
        vhost.own()
    };
    let owned = thread::scope(|scope| scope.spawn(there).join());
    owned.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
