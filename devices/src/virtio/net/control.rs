//! The control virtqueue (virtio 1.2 §5.1.6.5): which frames the NIC receives, what is left undone in them, its address, how many
//! queue pairs are enabled, and how long interrupts are held.
//!
//! **Invariant: a command never fails half.** It becomes a new [`RxFilter`], other [`Offloads`] or [`CoalesceSettings`], or another
//! number of pairs, the pairs take that, and only then is it what holds; otherwise the driver reads `VIRTIO_NET_ERR` and all is as
//! before.
//!
//! It rides on the thread of the first queue pair, whose backend it is that filters, and reaches the other pairs by message
//! ([`OtherPairs`]). A command may allocate, up to two lists of addresses (`command::MAX_ADDRESSES`) for each pair; frames wait for it
//! as they do for a burst.

mod command;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use net::{Backend, IovBuffer, Mac, Offloads, RxFilter};
use virtio_bindings::virtio_net::*;
use vm_memory::GuestMemoryMmap;

use self::command::{Change, understand};
use super::features::guest_offloads;
use super::queue_pair::CoalesceSettings;
use super::status::LinkStatus;
use crate::log_once::LogOnce;
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::queue::{Chain, Error, Mapped};

/// Entries of the control queue. Drivers send one command at a time.
pub const QUEUE_SIZE: u16 = 64;
/// Commands handled before frames get their turn.
const BURST: usize = 16;

/// The NIC's address: written by its driver's commands, read with the configuration (§5.1.4).
#[derive(Clone, Debug)]
pub struct SharedMac(Arc<AtomicU64>);

impl SharedMac {
    /// A NIC of this address.
    pub fn new(mac: Mac) -> Self {
        let this = Self(Arc::default());
        this.set(mac);
        this
    }

    /// The address.
    pub fn octets(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0.load(Ordering::Acquire).to_le_bytes();
        [a, b, c, d, e, f]
    }

    pub(super) fn set(&self, mac: Mac) {
        let [a, b, c, d, e, f] = mac.octets();
        self.0.store(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]), Ordering::Release);
    }
}

/// One thing that the control queue has a pair do.
#[derive(Clone, Debug)]
pub enum PairCommand {
    /// Receive frames, or leave them to the other pairs.
    Enable(bool),
    /// Another address, or other frames to receive.
    Filter(RxFilter),
    /// Leave other work to the driver in the frames that it receives.
    Offloads(Offloads),
    /// Hold interrupts like this.
    Coalesce(CoalesceSettings),
}

/// The pairs after the first, as the control queue sees them.
pub trait OtherPairs: Send {
    /// How many there are.
    fn count(&self) -> usize;

    /// Has each do the command of its index, from 0, and returns once all have. A pair that has ended its work needs no command.
    ///
    /// # Errors
    /// The first of the host's refusals; the others have done theirs.
    fn command_all(&self, command: &dyn Fn(usize) -> PairCommand) -> io::Result<()>;
}

/// A NIC of one pair.
impl OtherPairs for () {
    fn count(&self) -> usize {
        0
    }

    fn command_all(&self, _: &dyn Fn(usize) -> PairCommand) -> io::Result<()> {
        Ok(())
    }
}

/// The control queue of a NIC whose driver negotiated one.
pub struct Control {
    name: String,
    queue: ActiveQueue,
    accepted: u64,
    mac: SharedMac,
    status: LinkStatus,
    filter: RxFilter,
    offloads: Offloads,
    coalescing: CoalesceSettings,
    /// The pairs after the first.
    others: Box<dyn OtherPairs>,
    /// Whether it was said that the host refused something.
    refused: Arc<LogOnce>,
    /// How many pairs are enabled.
    pairs: u16,
    /// The buffers of the command in hand: those that we read, and those that we write.
    command: IovBuffer,
    answer: IovBuffer,
}

impl Control {
    /// The control queue of a driver that accepted these feature bits, over backends that filter as `filter` says and offload
    /// what it accepted, the first of which is enabled.
    pub fn new(name: String, queue: ActiveQueue, accepted: u64, mac: SharedMac, filter: RxFilter) -> Self {
        let (command, answer) = (IovBuffer::new(), IovBuffer::new());
        let (others, refused, offloads) = (Box::new(()), Arc::default(), guest_offloads(accepted));
        let status = LinkStatus::default();
        Self {
            name,
            queue,
            accepted,
            mac,
            status,
            filter,
            offloads,
            coalescing: CoalesceSettings::default(),
            others,
            refused,
            pairs: 1,
            command,
            answer,
        }
    }

    /// The same for a NIC with that status.
    #[must_use]
    pub(super) fn with_status(self, status: LinkStatus) -> Self {
        Self { status, ..self }
    }

    /// The same with more pairs than the first. What the host refuses them is said once, for which `refused` stands.
    #[must_use]
    pub fn with_others(self, others: Box<dyn OtherPairs>, refused: Arc<LogOnce>) -> Self {
        Self { others, refused, ..self }
    }

    /// The driver has set its queue up anew.
    pub(super) fn set_queue(&mut self, queue: ActiveQueue) {
        self.queue = queue;
    }

    /// Which frames the driver wants.
    pub(super) fn filter(&self) -> &RxFilter {
        &self.filter
    }

    /// What the driver takes in the frames that it receives.
    pub(super) fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// How long interrupts are held.
    pub(super) fn coalescing(&self) -> CoalesceSettings {
        self.coalescing
    }

    /// What the driver kicks.
    pub(super) fn queue(&self) -> &ActiveQueue {
        &self.queue
    }

    /// Handles commands; false once there are none, and the driver will kick.
    ///
    /// # Errors
    /// The driver broke the ring, or left no place for the answer.
    pub(super) fn process(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &dyn Interrupt,
        backend: &mut dyn Backend,
    ) -> Result<bool, Error> {
        let rings = self.queue.ring.map(memory)?;
        let mut more = true;
        for _ in 0..BURST {
            let Some(chain) = self.queue.ring.pop(&rings)? else {
                more = false;
                break;
            };
            self.handle(&rings, chain, backend)?;
        }
        if self.queue.ring.publish(&rings)?
            && let Err(error) = interrupt.queue(self.queue.index)
        {
            log::warn!("{}: cannot interrupt the guest: {error}", self.name);
        }
        Ok(more)
    }

    fn handle(&mut self, rings: &Mapped<'_>, chain: Chain, backend: &mut dyn Backend) -> Result<(), Error> {
        let Self {
            name,
            queue,
            accepted,
            mac,
            status,
            filter,
            offloads,
            coalescing,
            others,
            refused,
            pairs,
            command,
            answer,
        } = self;
        let (mut command, mut answer) = (command.start(), answer.start());
        queue.ring.gather(rings, chain, |buffer, writable| {
            let into = if writable { &mut answer } else { &mut command };
            into.push(buffer).then_some(()).ok_or(Error::TooManyBuffers(chain.head))
        })?;
        // `ack` is all that these commands write (§5.1.6.5); without it the driver could not know.
        if answer.is_empty() {
            return Err(Error::TooShort(chain.head));
        }
        let most = others.count() as u16 + 1;
        let understood = understand(&command, *accepted, filter, *coalescing, most);
        let result = understood.and_then(|change| match change {
            Change::Filter(new) => {
                backend.set_filter(&new)?;
                mac.set(new.mac);
                // On the same wire, what the first takes the others do.
                if let Err(error) = others.command_all(&|_| PairCommand::Filter(new.clone())) {
                    log::log!(refused.level(), "{name}: a queue pair keeps its filter: {error}");
                }
                *filter = new;
                Ok(())
            }
            Change::Offloads(new) => {
                offload(backend, &**others, new).map(|()| *offloads = new).inspect_err(|_| {
                    if let Err(error) = offload(backend, &**others, *offloads) {
                        log::log!(refused.level(), "{name}: cannot go back to the offloads before: {error}");
                    }
                })
            }
            Change::Coalesce(new) => {
                others.command_all(&|_| PairCommand::Coalesce(new)).map(|()| *coalescing = new)
            }
            Change::Announced => {
                status.announced();
                Ok(())
            }
            Change::Pairs(new) => enable(&**others, new).map(|()| *pairs = new).inspect_err(|_| {
                if let Err(error) = enable(&**others, *pairs) {
                    log::log!(refused.level(), "{name}: cannot go back to {pairs} queue pairs: {error}");
                }
            }),
        });
        let ack = match result {
            Ok(()) => VIRTIO_NET_OK,
            Err(error) => {
                log::debug!("{name}: a control command is refused: {error}");
                VIRTIO_NET_ERR
            }
        };
        answer.write_at(0, &[ack as u8]);
        queue.ring.push_used(rings, chain.head, 1);
        Ok(())
    }
}

/// Has the first `pairs` pairs receive frames, and no others; the first one always does.
fn enable(others: &dyn OtherPairs, pairs: u16) -> io::Result<()> {
    others.command_all(&|index| PairCommand::Enable(index + 1 < usize::from(pairs)))
}

/// Has the host leave undone on every pair what the driver takes.
fn offload(backend: &mut dyn Backend, others: &dyn OtherPairs, offloads: Offloads) -> io::Result<()> {
    backend.set_offloads(offloads)?;
    others.command_all(&|_| PairCommand::Offloads(offloads))
}
