//! The control virtqueue (virtio 1.2 §5.1.6.5): which frames the NIC receives, what is left undone in them, its address, and
//! how many queue pairs are enabled.
//!
//! **Invariant: a command never fails half.** It becomes a new [`RxFilter`], other [`Offloads`] or another number of pairs, the
//! backends take that, and only then is it what holds; otherwise the driver reads `VIRTIO_NET_ERR` and all is as before.
//!
//! It rides on the thread of the first queue pair, whose backend it is that filters, and reaches the other pairs by message
//! ([`OtherPairs`]). A command may allocate, up to two lists of [`MAX_ADDRESSES`] for each pair; frames wait for it
//! as they do for a burst.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use net::{Addresses, Backend, Iov, IovBuffer, Mac, Offloads, RxFilter};
use virtio_bindings::virtio_net::*;
use vm_memory::GuestMemoryMmap;

use super::features::{guest_offloads, may_set};
use super::status::LinkStatus;
use crate::log_once::LogOnce;
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::queue::{Chain, Error, Mapped};

/// Entries of the control queue. Drivers send one command at a time.
pub const QUEUE_SIZE: u16 = 64;
/// Addresses that each list of a MAC table keeps. A longer list stands for all addresses of its sort, as in every NIC.
pub const MAX_ADDRESSES: usize = 64;
/// Commands handled before frames get their turn.
const BURST: usize = 16;
/// Class and command, before a command's data.
const HEADER_LEN: usize = 2;

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
        let result = understand(&command, *accepted, filter, most).and_then(|change| match change {
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

/// What a command changes.
enum Change {
    Filter(RxFilter),
    /// What the driver takes in the frames it receives.
    Offloads(Offloads),
    /// How many pairs are enabled.
    Pairs(u16),
    /// The driver has announced its guest.
    Announced,
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

/// What `command` changes, with `filter` before it and `most` pairs at most.
fn understand(command: &Iov<'_>, accepted: u64, filter: &RxFilter, most: u16) -> io::Result<Change> {
    // A command of a feature that was not negotiated is as unknown as any other.
    let has = |bit: u32| accepted & 1 << bit != 0;
    let (rx, extra) = (has(VIRTIO_NET_F_CTRL_RX), has(VIRTIO_NET_F_CTRL_RX_EXTRA));
    let [class, number] = read(command, 0)?;
    let mut new = filter.clone();
    match (u32::from(class), u32::from(number)) {
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC) if rx => new.promiscuous = switch(command)?,
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI) if rx => new.all_multicast = switch(command)?,
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLUNI) if extra => new.all_unicast = switch(command)?,
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOMULTI) if extra => new.no_multicast = switch(command)?,
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOUNI) if extra => new.no_unicast = switch(command)?,
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOBCAST) if extra => new.no_broadcast = switch(command)?,
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) if rx => set_table(command, &mut new)?,
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) if has(VIRTIO_NET_F_CTRL_MAC_ADDR) => {
            exact(command, HEADER_LEN + 6)?;
            new.mac = Mac::new(read(command, HEADER_LEN)?).map_err(malformed)?;
        }
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) if has(VIRTIO_NET_F_MQ) => {
            exact(command, HEADER_LEN + 2)?;
            let pairs = u16::from_le_bytes(read(command, HEADER_LEN)?);
            let valid = (1..=most).contains(&pairs);
            return valid
                .then_some(Change::Pairs(pairs))
                .ok_or_else(|| malformed("there are not so many pairs"));
        }
        (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) if has(VIRTIO_NET_F_GUEST_ANNOUNCE) => {
            exact(command, HEADER_LEN)?;
            return Ok(Change::Announced);
        }
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET)
            if has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) =>
        {
            exact(command, HEADER_LEN + 8)?;
            let bits = u64::from_le_bytes(read(command, HEADER_LEN)?);
            return may_set(bits, accepted)
                .then(|| Change::Offloads(guest_offloads(bits)))
                .ok_or_else(|| malformed("an offload was not negotiated"));
        }
        _ => return Err(malformed("there is no such command")),
    }
    Ok(Change::Filter(new))
}

/// `virtio_net_ctrl_mac`, twice (§5.1.6.5.2): the stations, then the groups.
fn set_table(command: &Iov<'_>, filter: &mut RxFilter) -> io::Result<()> {
    let mut at = HEADER_LEN;
    let unicast = addresses(command, &mut at)?;
    let multicast = addresses(command, &mut at)?;
    exact(command, at)?;
    (filter.unicast, filter.multicast) = (unicast, multicast);
    Ok(())
}

/// The list at `at`: how many, then so many addresses; `at` is behind it then.
fn addresses(command: &Iov<'_>, at: &mut usize) -> io::Result<Addresses> {
    let count = u32::from_le_bytes(read(command, *at)?) as usize;
    let first = *at + 4;
    // Before anything is allocated: the driver has really sent so many.
    let end = count.checked_mul(6).and_then(|len| first.checked_add(len));
    *at = end.filter(|&end| end <= command.len()).ok_or_else(|| malformed("a list is cut off"))?;
    if count > MAX_ADDRESSES {
        return Ok(Addresses::Every);
    }
    (0..count).map(|index| read(command, first + 6 * index)).collect::<io::Result<_>>().map(Addresses::Only)
}

/// The byte of a command that switches something.
fn switch(command: &Iov<'_>) -> io::Result<bool> {
    exact(command, HEADER_LEN + 1)?;
    match read(command, HEADER_LEN)? {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(malformed("a switch is 0 or 1")),
    }
}

fn exact(command: &Iov<'_>, len: usize) -> io::Result<()> {
    if command.len() == len { Ok(()) } else { Err(malformed("the command has another length")) }
}

fn read<const N: usize>(command: &Iov<'_>, at: usize) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    if command.read_at(at, &mut bytes) == N { Ok(bytes) } else { Err(malformed("the command is cut off")) }
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
