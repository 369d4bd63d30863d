//! The guest's rings, and the two loops that move packets.

use std::sync::Arc;

use net::{Iov, IovBuffer};
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::connections::Connections;
use super::packet::{HEADER_LEN, Header};
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::queue::{Chain, Error, Mapped};

/// Packets that one direction moves before the other has its turn.
const BURST: usize = 64;

/// A driver's rings.
pub(super) struct Guest {
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    /// There may be packets of the guest's.
    sends: bool,
    /// There may be room for packets to the guest.
    receives: bool,
    /// The buffers of a packet: its header, and what is behind that.
    head: IovBuffer,
    body: IovBuffer,
}

impl Guest {
    /// Rings that were not looked at yet.
    pub(super) fn new(
        memory: GuestMemoryMmap,
        interrupt: Arc<dyn Interrupt>,
        receive: ActiveQueue,
        transmit: ActiveQueue,
    ) -> Self {
        let (head, body) = (IovBuffer::new(), IovBuffer::new());
        Self { memory, interrupt, receive, transmit, sends: true, receives: true, head, body }
    }

    pub(super) fn queues(&self) -> [&ActiveQueue; 2] {
        [&self.receive, &self.transmit]
    }

    /// The guest has posted room.
    pub(super) fn note_room(&mut self) {
        self.receives = true;
    }

    /// The guest has sent something.
    pub(super) fn note_sent(&mut self) {
        self.sends = true;
    }

    /// Asks the driver for a reset.
    pub(super) fn needs_reset(&self) {
        if let Err(error) = self.interrupt.needs_reset() {
            log::warn!("cannot interrupt the guest: {error}");
        }
    }

    /// Moves a burst of packets each way. True: there is more to do without a new event.
    ///
    /// # Errors
    /// The driver broke a ring.
    pub(super) fn process(&mut self, connections: &mut Connections) -> Result<bool, Error> {
        self.transmit(connections)?;
        self.receive(connections)?;
        let sends = self.sends && !connections.is_full();
        Ok(sends || self.receives && connections.has_packet())
    }

    /// Takes packets of the guest's.
    fn transmit(&mut self, connections: &mut Connections) -> Result<(), Error> {
        let Self { memory, interrupt, transmit: queue, head, body, .. } = self;
        let rings = queue.ring.map(memory)?;
        for _ in 0..BURST {
            if !self.sends || connections.is_full() {
                break;
            }
            let Some(chain) = queue.ring.pop(&rings)? else {
                self.sends = false;
                break;
            };
            let (front, mut behind) = (&mut head.start(), body.start());
            gather(queue, &rings, chain, false, front, &mut behind)?;
            let mut bytes = [0; HEADER_LEN];
            front.read_at(0, &mut bytes);
            let header = Header::from_bytes(&bytes);
            behind.truncate(header.len as usize);
            connections.hear(&header, &behind);
            queue.ring.push_used(&rings, chain.head, 0);
        }
        signal(queue, &rings, &**interrupt)
    }

    /// Gives packets to the guest.
    fn receive(&mut self, connections: &mut Connections) -> Result<(), Error> {
        let Self { memory, interrupt, receive: queue, head, body, .. } = self;
        let rings = queue.ring.map(memory)?;
        for _ in 0..BURST {
            if !self.receives || !connections.has_packet() {
                break;
            }
            let Some(chain) = queue.ring.pop(&rings)? else {
                self.receives = false;
                break;
            };
            let (front, mut behind) = (&mut head.start(), body.start());
            gather(queue, &rings, chain, true, front, &mut behind)?;
            if behind.is_empty() {
                // No connection could say anything in it.
                return Err(Error::TooShort(chain.head));
            }
            match connections.packet(&mut behind) {
                Some(header) => {
                    front.write_at(0, &header.to_bytes());
                    queue.ring.push_used(&rings, chain.head, HEADER_LEN as u32 + header.len);
                }
                None => queue.ring.undo_pop(),
            }
        }
        signal(queue, &rings, &**interrupt)
    }
}

/// Gathers a chain: the bytes of the header into `front`, and those behind it into `behind`.
fn gather<'m>(
    queue: &ActiveQueue,
    rings: &Mapped<'m>,
    chain: Chain,
    writable: bool,
    front: &mut Iov<'m>,
    behind: &mut Iov<'m>,
) -> Result<(), Error> {
    let head = chain.head;
    let push = |into: &mut Iov<'m>, buffer: VolatileSlice<'m>| {
        (buffer.is_empty() || into.push(buffer)).then_some(()).ok_or(Error::TooManyBuffers(head))
    };
    queue.ring.gather(rings, chain, |buffer, is_writable| {
        if is_writable != writable {
            return Err(Error::Direction(head));
        }
        let of_header = buffer.len().min(HEADER_LEN - front.len());
        let (header, payload) =
            buffer.split_at(of_header).map_err(|error| Error::Buffer(head, error.into()))?;
        push(front, header)?;
        push(behind, payload)
    })?;
    if front.len() < HEADER_LEN {
        return Err(Error::TooShort(head));
    }
    Ok(())
}

/// Shows the driver what was used, and interrupts it if it wants that.
fn signal(queue: &mut ActiveQueue, rings: &Mapped<'_>, interrupt: &dyn Interrupt) -> Result<(), Error> {
    if queue.ring.publish(rings)?
        && let Err(error) = interrupt.queue(queue.index)
    {
        log::warn!("cannot interrupt the guest: {error}");
    }
    Ok(())
}
