//! What a pair's thread does beside moving frames: the control queue, or its commands; and while the kernel carries the frames, what
//! the kernel leaves to it.

use std::io;
use std::sync::Arc;

use super::{Next, NicRate, PairParts, QueuePair};
use crate::virtio::device::ActiveQueue;
use crate::virtio::net::control::PairCommand;
use crate::virtio::net::mailbox::PairQueue;
use crate::virtio::net::state::ActivePair;
use crate::virtio::queue::Error;

impl QueuePair {
    /// What the driver says on the control queue.
    #[cold]
    pub(super) fn command(&mut self) -> Result<(), Error> {
        let PairParts { memory, interrupt, backend, control, offloads, filter, .. } = &mut self.parts;
        self.commanded = match control.as_mut().filter(|_| !self.control_reset) {
            Some(control) => {
                let more = control.process(memory, &**interrupt, &mut **backend)?;
                (*offloads, *filter) = (control.offloads(), control.filter().clone());
                let coalescing = control.coalescing();
                self.set_coalescing(coalescing);
                more
            }
            None => false,
        };
        Ok(())
    }

    /// What the guest asks of the backend itself, while the kernel carries the frames.
    #[cold]
    pub(super) fn answer(&mut self) {
        self.look_again = self.parts.backend.answer();
        self.asked = self.look_again.is_some_and(|left| left.is_zero());
    }

    /// The kernel says that a ring makes no sense.
    #[cold]
    pub(super) fn carrier_failed(&mut self) {
        let PairParts { name, broken, .. } = &self.parts;
        log::log!(broken.level(), "{name}: the driver broke its ring, says vhost-net");
        self.end();
    }

    /// The kernel has used buffers of a queue that has no vector.
    #[cold]
    pub(super) fn relay(&mut self, queue: u16) {
        if let Err(error) = self.parts.interrupt.queue(queue) {
            log::warn!("{}: cannot interrupt the guest: {error}", self.parts.name);
        }
    }

    /// Has the kernel interrupt by the vectors that the queues have now, where it carries the frames.
    ///
    /// # Errors
    /// The kernel refuses, and interrupts by those before.
    #[cold]
    pub(in crate::virtio::net) fn reroute(&mut self) -> io::Result<()> {
        let PairParts { carrier, interrupt, .. } = &self.parts;
        carrier.as_ref().map_or(Ok(()), |carrier| carrier.reroute(&**interrupt))
    }

    /// Leaves rings and backend alone, in a state that can be told: the driver has heard of all that was used, and neither we have a
    /// chain in hand nor the kernel, where it carries the frames.
    ///
    /// # Errors
    /// The ring is broken, or the kernel does not say where it is.
    #[cold]
    pub(in crate::virtio::net) fn pause(&mut self) -> io::Result<()> {
        // A paused pair has no clock: the driver hears now of what it was to hear of later.
        if self.rx_coalescer.release() {
            self.signal_received().map_err(io::Error::other)?;
        }
        if self.tx_coalescer.release() | self.owed.take().is_some() {
            self.signal_sent(false).map_err(io::Error::other)?;
        }
        let PairParts { memory, rx, tx, carrier, .. } = &mut self.parts;
        self.in_hand.give_back(&mut rx.ring);
        carrier.as_ref().map_or(Ok(()), |carrier| carrier.pause(memory, [rx, tx]))
    }

    /// Goes on from there.
    ///
    /// # Errors
    /// The kernel is to carry the frames, and refuses.
    #[cold]
    pub(in crate::virtio::net) fn resume(&mut self) -> io::Result<()> {
        let PairParts { rx, tx, carrier, backend, .. } = &self.parts;
        if let Some((carrier, wire)) = carrier.as_ref().zip(backend.vhost_fd()) {
            carrier.carry(wire, [rx, tx])?;
        }
        // Watching the events anew tells of most of what came meanwhile, but only of what an event tells.
        self.wake();
        Ok(())
    }

    /// Touches neither the rings of `queue` nor its buffers, until it is enabled. What it watches may be other events then.
    #[cold]
    pub(in crate::virtio::net) fn reset_queue(&mut self, queue: PairQueue) {
        if queue != PairQueue::Control
            && let Err(error) = self.rest_carrier()
        {
            log::warn!("{}: the kernel does not say where it is in the rings: {error}", self.parts.name);
            self.end();
        }
        match queue {
            PairQueue::Receive => {
                self.receive = Next::Reset;
                self.in_hand.forget();
                self.shortage.forget();
                self.rx_coalescer.release();
            }
            PairQueue::Transmit => {
                (self.transmit, self.owed) = (Next::Reset, None);
                self.tx_coalescer.release();
            }
            PairQueue::Control => self.control_reset = true,
        }
    }

    /// Goes on with `queue`, which was reset; at once where the pair `runs`. The driver kicks it by the same eventfd. What it watches
    /// may be other events then.
    #[cold]
    pub(in crate::virtio::net) fn enable_queue(&mut self, queue: PairQueue, active: ActiveQueue, runs: bool) {
        match queue {
            PairQueue::Receive => {
                self.parts.rx = active;
                self.receive = if self.parts.enabled { Next::Work } else { Next::Control };
            }
            PairQueue::Transmit => {
                self.parts.tx = active;
                self.transmit = Next::Work;
            }
            PairQueue::Control => {
                if let Some(control) = &mut self.parts.control {
                    control.set_queue(active);
                    (self.control_reset, self.commanded) = (false, true);
                }
            }
        }
        if let Err(error) = self.wake_carrier(runs) {
            log::warn!("{}: wirevm carries the frames from now on: {error}", self.parts.name);
        }
    }

    /// Holds the NIC to another rate, or to none. What waits for the one before goes by the new one.
    #[cold]
    pub(in crate::virtio::net) fn set_rate(&mut self, rate: Option<Arc<NicRate>>) {
        self.parts.rate = rate;
        for next in [&mut self.transmit, &mut self.receive] {
            if matches!(next, Next::Tokens(_)) {
                *next = Next::Work;
            }
        }
    }

    /// Where the pair is, once it is paused.
    pub(in crate::virtio::net) fn state(&self) -> ActivePair {
        let PairParts { rx, tx, control, enabled, .. } = &self.parts;
        ActivePair {
            receive: rx.ring.state(),
            transmit: tx.ring.state(),
            control: control.as_ref().map(|control| control.queue().ring.state()),
            enabled: *enabled,
        }
    }

    /// Does what the control queue, on another pair's thread, has this one do.
    ///
    /// # Errors
    /// The host refuses, and all is as before.
    #[cold]
    pub(in crate::virtio::net) fn obey(&mut self, command: PairCommand) -> io::Result<()> {
        let Self { parts: PairParts { backend, enabled, offloads, filter, .. }, receive, shortage, .. } =
            self;
        match command {
            PairCommand::Filter(new) => backend.set_filter(&new).map(|()| *filter = new),
            PairCommand::Offloads(new) => backend.set_offloads(new).map(|()| *offloads = new),
            PairCommand::Coalesce(settings) => {
                self.set_coalescing(settings);
                Ok(())
            }
            PairCommand::Enable(enable) => {
                backend.set_enabled(enable)?;
                *enabled = enable;
                // As what waits in the host's queue, it is lost.
                shortage.forget();
                *receive = match (enable, *receive) {
                    // The host brings frames here or not; who carries them is the same.
                    (_, Next::Kernel) => Next::Kernel,
                    (_, Next::Reset) => Next::Reset,
                    (false, _) => Next::Control,
                    (true, Next::Control) => Next::Work,
                    (true, next) => next,
                };
                Ok(())
            }
        }
    }
}
