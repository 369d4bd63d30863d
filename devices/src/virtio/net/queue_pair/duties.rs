//! What a pair's thread does beside moving frames: the control queue, or its orders; and while the kernel carries the frames, what
//! the kernel leaves to it.

use super::{Next, PairParts, QueuePair};
use crate::virtio::net::orders::Order;
use crate::virtio::queue::Error;

impl QueuePair {
    /// What the driver says on the control queue.
    #[cold]
    pub(super) fn command(&mut self) -> Result<(), Error> {
        let PairParts { memory, interrupt, backend, control, .. } = &mut self.parts;
        self.commanded = match control {
            Some(control) => control.process(memory, &**interrupt, &mut **backend)?,
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

    /// What the control queue, on another pair's thread, says to this one.
    #[cold]
    pub(super) fn obey(&mut self) {
        self.ordered = false;
        let Self { parts: PairParts { inbox, backend, .. }, receive, .. } = self;
        let Some(inbox) = inbox else { return };
        inbox.obey(|order| match order {
            Order::Filter(filter) => backend.set_filter(&filter),
            Order::Offloads(offloads) => backend.set_offloads(offloads),
            Order::Enable(enabled) => {
                backend.set_enabled(enabled)?;
                *receive = match (enabled, *receive) {
                    // The host brings frames here or not; who carries them is the same.
                    (_, Next::Kernel) => Next::Kernel,
                    (false, _) => Next::Control,
                    (true, Next::Control) => Next::Work,
                    (true, next) => next,
                };
                Ok(())
            }
        });
    }
}
