//! What a pair's thread does beside moving frames: the control queue, or its commands; and while the kernel carries the frames, what
//! the kernel leaves to it.

use std::io;

use super::{Next, PairParts, QueuePair};
use crate::virtio::net::mailbox::PairCommand;
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

    /// Has the kernel interrupt by the vectors that the queues have now, where it carries the frames.
    ///
    /// # Errors
    /// The kernel refuses, and interrupts by those before.
    #[cold]
    pub(super) fn reroute(&mut self) -> io::Result<()> {
        let PairParts { carrier, interrupt, .. } = &self.parts;
        carrier.as_ref().map_or(Ok(()), |carrier| carrier.reroute(&**interrupt))
    }

    /// Does what the control queue, on another pair's thread, has this one do.
    ///
    /// # Errors
    /// The host refuses, and all is as before.
    #[cold]
    pub(super) fn obey(&mut self, command: PairCommand) -> io::Result<()> {
        let Self { parts: PairParts { backend, .. }, receive, .. } = self;
        match command {
            PairCommand::Filter(filter) => backend.set_filter(&filter),
            PairCommand::Offloads(offloads) => backend.set_offloads(offloads),
            PairCommand::Enable(enabled) => {
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
        }
    }
}
