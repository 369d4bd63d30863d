//! Another host's end for a pair at work, between two bursts: how a link goes down and comes up, and how a NIC moves to another wire.
//!
//! **Invariant: the rings are left where they are.** No frame of the guest is lost, and none is sent twice: what is not sent yet goes
//! out by the new end. What waited for the guest in the old one is lost with it.
//!
//! **Invariant: the new end is as the driver had the old one**: the same frames, the same offloads, enabled or not. Where it cannot
//! be, the old one is put back.
//!
//! The kernel (vhost-net) has both rings of a pair or none. So while the driver has reset one of them, our thread carries the frames
//! of the other, and the kernel rests.

use std::io;

use super::events::EDGE;
use super::merge::Merge;
use super::{HostEnd, Next, PairParts, QueuePair};
use crate::virtio::net::vhost::{Carrier, IdleCarrier, Load};

impl QueuePair {
    /// Whether `end` can be as its driver had the one before.
    ///
    /// # Errors
    /// It lacks what the driver accepted.
    #[cold]
    pub(in crate::virtio::net) fn check(&self, end: &HostEnd) -> io::Result<()> {
        match &end.carrier {
            Some(carrier) if !self.may_have(carrier) => {
                let why = "vhost-net does not have all that the driver accepted";
                Err(io::Error::new(io::ErrorKind::Unsupported, why))
            }
            _ => Ok(()),
        }
    }

    /// Whether the kernel can carry what the driver accepted.
    pub(in crate::virtio::net) fn may_have(&self, carrier: &IdleCarrier) -> bool {
        carrier.can(self.parts.accepted)
    }

    /// Tries whether it could take `end`, which comes back, set as the driver had the one before. No frame moves by it.
    ///
    /// # Errors
    /// It could not.
    // The error is large for what it returns, and as rare as it is large.
    #[allow(clippy::result_large_err)]
    #[cold]
    pub(in crate::virtio::net) fn try_on(
        &mut self,
        end: HostEnd,
        runs: bool,
    ) -> Result<HostEnd, (HostEnd, io::Error)> {
        let own = self.exchange(end, false)?;
        let back = self.exchange(own, false);
        if runs && let Err(error) = self.resume() {
            log::error!("{}: cannot go on: {error}", self.parts.name);
            self.end();
        }
        back
    }

    /// Takes `end`, and gives the one before back. `runs`: the pair is at work, and goes on; else it does so when it is resumed.
    ///
    /// Its [watched](Self::watched) events are others afterwards, also where this fails.
    ///
    /// # Errors
    /// The new end cannot be as the driver had the old one: it comes back, and all is as before.
    // The error is large for what it returns, and as rare as it is large.
    #[allow(clippy::result_large_err)]
    #[cold]
    pub(in crate::virtio::net) fn exchange(
        &mut self,
        end: HostEnd,
        runs: bool,
    ) -> Result<HostEnd, (HostEnd, io::Error)> {
        if runs && let Err(error) = self.pause() {
            if self.resume().is_err() {
                self.end();
            }
            return Err((end, error));
        }
        let old = self.take_end(end.backend);
        match self.put_to_work(end.carrier, runs) {
            Ok(()) => Ok(old),
            Err(error) => {
                let new = self.take_end(old.backend);
                if let Err(error) = self.put_to_work(old.carrier, runs) {
                    log::error!("{}: cannot go back to the wire before: {error}", self.parts.name);
                    self.end();
                }
                Err((new, error))
            }
        }
    }

    /// The same for a pair that has ended its work: nothing is set to work.
    #[cold]
    pub(in crate::virtio::net) fn put_aside(&mut self, end: HostEnd) -> HostEnd {
        let old = self.take_end(end.backend);
        self.resting = end.carrier;
        old
    }

    /// Has `backend` in place of what there was; nobody carries the frames then.
    pub(super) fn take_end(&mut self, backend: Box<dyn net::Backend>) -> HostEnd {
        // A frame of the old wire that found too little room.
        self.shortage.forget();
        // Its descriptor is watched anew.
        (self.host_events, self.woken_in_vain) = (EDGE, false);
        let carrier = self.take_carrier();
        self.merge = Merge::new(backend.merges());
        HostEnd { backend: std::mem::replace(&mut self.parts.backend, backend), carrier }
    }

    /// Stops the kernel, if it carries the frames; whichever there is rests then.
    pub(super) fn take_carrier(&mut self) -> Option<IdleCarrier> {
        self.parts.carrier.take().map(Carrier::stop).or_else(|| self.resting.take())
    }

    /// Sets the host's end as the driver has it, and has `carrier` carry the frames, or ourselves.
    fn put_to_work(&mut self, carrier: Option<IdleCarrier>, runs: bool) -> io::Result<()> {
        self.resting = carrier;
        let PairParts { backend, filter, offloads, enabled, .. } = &mut self.parts;
        backend.set_offloads(offloads.only(backend.offloads()))?;
        backend.set_filter(filter)?;
        backend.set_enabled(*enabled)?;
        self.carry(runs)
    }

    /// Has the kernel carry the frames that rests, if it can, or else our thread.
    fn carry(&mut self, runs: bool) -> io::Result<()> {
        let resets = self.transmit == Next::Reset || self.receive == Next::Reset;
        if let Some(idle) = self.resting.take_if(|_| !resets) {
            let PairParts { memory, accepted, interrupt, rx, tx, poll, .. } = &mut self.parts;
            self.in_hand.give_back(&mut rx.ring);
            let load = Load {
                memory,
                accepted: *accepted,
                interrupt,
                queues: [rx, tx],
                poll: poll.unwrap_or_default(),
            };
            match idle.start(&load) {
                Ok(carrier) => self.parts.carrier = Some(carrier),
                Err((idle, error)) => {
                    self.resting = Some(idle);
                    return Err(error);
                }
            }
        }
        let carried = self.parts.carrier.is_some();
        let not_reset = |next: &mut Next, other: Next| {
            if *next != Next::Reset {
                *next = if carried { Next::Kernel } else { other };
            }
        };
        not_reset(&mut self.transmit, Next::Work);
        not_reset(&mut self.receive, if self.parts.enabled { Next::Work } else { Next::Control });
        if runs { self.resume() } else { Ok(()) }
    }

    /// Our thread carries the frames while a queue is reset.
    ///
    /// # Errors
    /// The kernel does not say where it was in the rings.
    pub(super) fn rest_carrier(&mut self) -> io::Result<()> {
        let PairParts { memory, rx, tx, carrier, .. } = &mut self.parts;
        let Some(working) = carrier.take() else { return Ok(()) };
        let paused = working.pause(memory, [rx, tx]);
        self.resting = Some(working.stop());
        (self.transmit, self.receive) = (Next::Work, Next::Work);
        if !self.parts.enabled {
            self.receive = Next::Control;
        }
        paused
    }

    /// The kernel carries the frames again once no queue is reset any more.
    ///
    /// # Errors
    /// It refuses: our thread goes on carrying them.
    pub(super) fn wake_carrier(&mut self, runs: bool) -> io::Result<()> {
        if self.resting.is_none() {
            return Ok(());
        }
        self.carry(runs).inspect_err(|_| {
            let _ = self.rest_carrier();
            self.wake();
        })
    }
}
