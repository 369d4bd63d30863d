//! One queue pair: the two loops through which every frame goes.
//!
//! **Invariant: the pair owns all it touches** - two rings, the backend, the eventfds - and lives on its thread, which makes it
//! when a driver starts and takes it apart at the reset. There is no lock, no allocation and no copy of a payload in [`QueuePair::process`].
//!
//! **Invariant: each direction waits for exactly one thing.** It has work, or waits for its driver's ring, or for the host, whose
//! descriptor is registered edge-triggered once and for all, or, receiving, for the control queue to enable the pair. An event
//! for which nobody waits costs a wake-up and nothing else.
//!
//! **Invariant: a thread asks for a kick before it sleeps, and not otherwise.** While one direction has frames, or the thread
//! still polls ([`VirtioNet::with_poll`](super::VirtioNet::with_poll)), the ring of the other is looked at instead: a kick costs the guest an exit.
//!
//! **Invariant: the interrupt for what was sent waits for nothing but what is received.** What came in the meantime, as the
//! acknowledgement of what was sent, takes an interrupt of its own, and drivers look at both rings then. So it goes out at
//! the end of the same turn, or [`PATIENCE`] after an interrupt that made the driver look, if it did not.
//!
//! **Invariant: either we carry the frames, or the kernel does** ([`Next::Kernel`]), both ways, and until the reset. Then the thread
//! has the control queue, and little else.
//!
//! **Invariant: a hostile ring ends its own pair.** The pair sets DEVICE_NEEDS_RESET, and its thread leaves it alone until the reset.

mod commands;
mod life;
mod receive_space;
mod thread;

pub(super) use self::life::{HostEnd, PairLife, State};
pub use self::receive_space::ReceiveSpace;
pub(super) use self::thread::spawn;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use net::{Backend, HEADER_LEN, IovBuffer, Sent};
use vm_memory::GuestMemoryMmap;

use self::receive_space::{Posted, fill, gather};
use super::control::Control;
use super::mailbox::{Message, Start};
use super::vhost::Carrier;
use crate::log_once::LogOnce;
use crate::virtio::queue::{Error, Mapped};
use crate::virtio::{ActiveQueue, Interrupt};

/// Chains that are shown to the driver together, with one interrupt at most. A frame to be sent is one; a large one received
/// takes many, so that counting frames would show the driver nothing before all of its ring is used, and then each would wait
/// for the other in turn. Batches of 16 cost 3% more of
/// the thread's time, and larger ones gain nothing.
const BATCH: u64 = 64;
/// Chains that one direction uses before the other, and a stop, get their turn. To go on later costs to gather the room for a
/// large frame anew, and to ask for events a system call.
const BURST: u64 = 256;
/// Bytes after which they get it as well: some hundred microseconds of large frames.
const BURST_BYTES: u64 = 1 << 20;
/// How long a driver that was interrupted for what it received may take to look at what was sent, before it is interrupted for
/// that, too: the least that epoll_wait(2) can wait.
const PATIENCE: Duration = Duration::from_millis(1);
/// Turns in a row that brought no answer to what was sent, after which most turns do not ask for one any more; and one in so
/// many that does.
const IN_VAIN: u32 = 4;
const ONCE_IN: u32 = 16;
/// The largest frame, header included: 64 KiB of packet behind an Ethernet header with a VLAN tag.
const MAX_FRAME: usize = HEADER_LEN + 18 + 65536;

/// What went through a pair, seen from the guest. Only the pair's thread writes, so anybody can read at any time; bytes are
/// those of the frames, without the virtio header.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub tx_frames: AtomicU64,
    pub tx_bytes: AtomicU64,
    /// Frames that the host refused, as a wire would lose them.
    pub tx_dropped: AtomicU64,
    pub rx_frames: AtomicU64,
    pub rx_bytes: AtomicU64,
    /// Frames that the host could not hand over, that did not fit what the driver posted, or that it cannot read.
    pub rx_dropped: AtomicU64,
    pub interrupts: AtomicU64,
    /// System calls of the pair's thread: one for each frame that it tried to send or receive, and those by which it waited and
    /// interrupted. What a command on the control queue takes is not among them.
    pub calls: AtomicU64,
}

/// Adds without a locked instruction: there is one writer.
fn count(counter: &AtomicU64, more: u64) {
    if more != 0 {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }
}

/// What a direction does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// There may be frames: run it.
    Work,
    /// The ring has too little: it is looked at again.
    Ring,
    /// The same, and the driver was asked to kick.
    Driver,
    /// The host said "not now": its descriptor tells.
    Host,
    /// The driver has not enabled the pair, which then receives nothing: the control queue tells.
    Control,
    /// The kernel carries the frames.
    Kernel,
}

/// All that makes a pair.
pub struct PairParts {
    /// What its thread is called.
    pub name: String,
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    /// How the driver is interrupted.
    pub interrupt: Arc<dyn Interrupt>,
    /// The receive queue: host to guest.
    pub rx: ActiveQueue,
    /// The transmit queue: guest to host.
    pub tx: ActiveQueue,
    /// Where the frames go.
    pub backend: Box<dyn Backend>,
    /// What the driver posts for a frame, and reads.
    pub space: ReceiveSpace,
    /// The kernel, if it carries the frames.
    pub carrier: Option<Carrier>,
    /// The NIC's control queue, if this is the pair that it rides with.
    pub control: Option<Control>,
    /// Whether it receives from the start, or only once the control queue enables it.
    pub enabled: bool,
    /// Where it counts.
    pub counters: Arc<Counters>,
    /// Whether it was said that a driver broke its rings.
    pub broken: Arc<LogOnce>,
}

/// Two rings and the backend between which it moves frames.
pub struct QueuePair {
    parts: PairParts,
    transmit: Next,
    receive: Next,
    /// The control queue may have commands.
    commanded: bool,
    /// The guest may have asked the backend something, past us.
    asked: bool,
    /// After how long it is to be looked at although nothing was asked.
    look_again: Option<Duration>,
    /// The driver wants an interrupt for what was sent, and had one for what it received: until then it may look by itself.
    owed: Option<Instant>,
    /// Turns in a row in which nothing came after what was sent.
    unanswered: u32,
    /// The buffers of the frame in hand, and the chains they are of while receiving. Allocated once.
    iov: IovBuffer,
    posted: VecDeque<Posted>,
    ended: bool,
}

impl QueuePair {
    /// A pair that has not looked at its rings yet.
    pub fn new(parts: PairParts) -> Self {
        let (transmit, receive) = match (&parts.carrier, parts.enabled) {
            (Some(_), _) => (Next::Kernel, Next::Kernel),
            (None, false) => (Next::Work, Next::Control),
            (None, true) => (Next::Work, Next::Work),
        };
        Self {
            asked: parts.carrier.is_some(),
            look_again: None,
            owed: None,
            unanswered: 0,
            parts,
            transmit,
            receive,
            commanded: true,
            iov: IovBuffer::new(),
            // Each chain has a buffer at least.
            posted: VecDeque::with_capacity(IovBuffer::MAX),
            ended: false,
        }
    }

    /// Gives the host's end back; the rings are forgotten, and the kernel touches no guest memory any more.
    pub(super) fn into_end(self) -> HostEnd {
        let PairParts { backend, carrier, .. } = self.parts;
        HostEnd { backend, carrier: carrier.map(Carrier::stop) }
    }

    /// True while [`process`](Self::process) has something to do without a new event.
    pub fn has_work(&self) -> bool {
        self.transmit == Next::Work || self.receive == Next::Work || self.commanded || self.asked
    }

    /// True once the driver broke its ring: nothing happens any more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// How long a thread without work may sleep at most, if not for ever.
    fn waits(&self) -> Option<Duration> {
        self.look_again.or_else(|| Some(self.owed?.saturating_duration_since(Instant::now())))
    }

    /// Looks at everything anew: the driver may have kicked every queue, and the host may be ready both ways.
    pub fn wake(&mut self) {
        self.commanded = true;
        self.asked = self.parts.carrier.is_some();
        if self.transmit != Next::Kernel {
            self.transmit = Next::Work;
        }
        if !matches!(self.receive, Next::Control | Next::Kernel) {
            self.receive = Next::Work;
        }
    }

    /// Moves frames: one burst of each direction that has work. Nothing blocks. False if there was nothing to do.
    pub fn process(&mut self) -> bool {
        if self.ended {
            return false;
        }
        self.attempt(Self::try_process)
    }

    fn try_process(&mut self) -> Result<bool, Error> {
        self.look()?;
        let worked = self.has_work();
        if self.commanded {
            self.command()?;
        }
        if self.asked {
            self.answer();
        }
        let wanted = self.transmit == Next::Work && self.transmit()?;
        let expected = self.unanswered < IN_VAIN || self.unanswered.is_multiple_of(ONCE_IN);
        if wanted && expected && self.receive == Next::Host {
            // Instead of the interrupt, and of the event that would tell; in vain, it is a system call for nothing.
            self.receive = Next::Work;
        }
        let interrupted = self.receive == Next::Work && self.receive()?;
        if wanted {
            self.unanswered = if interrupted { 0 } else { self.unanswered.wrapping_add(1) };
        }
        if wanted || self.owed.is_some() {
            self.signal_sent(interrupted)?;
        }
        Ok(worked)
    }

    /// Interrupts the driver for what was sent, unless it was `interrupted` just now, or does not want that any more.
    fn signal_sent(&mut self, interrupted: bool) -> Result<(), Error> {
        let PairParts { memory, tx, counters, interrupt, .. } = &mut self.parts;
        let rings = tx.ring.map(memory)?;
        if interrupted || self.owed.is_some() {
            let now = Instant::now();
            if tx.ring.wants_interrupt(&rings)? && now < *self.owed.get_or_insert(now + PATIENCE) {
                return Ok(());
            }
        }
        // It looks once more whether that is wanted.
        self.owed = None;
        signal_used(tx, &rings, &**interrupt, counters).map(drop)
    }

    /// Asks the driver to kick where its ring has too little. What it added meanwhile is work.
    pub fn arm(&mut self) {
        self.attempt(|this| {
            let PairParts { memory, tx, rx, .. } = &mut this.parts;
            for (next, queue) in [(&mut this.transmit, tx), (&mut this.receive, rx)] {
                if *next == Next::Ring {
                    let armed = queue.ring.arm(&queue.ring.map(memory)?)?;
                    *next = if armed { Next::Driver } else { Next::Work };
                }
            }
            Ok(false)
        });
    }

    /// What the driver added without being asked to kick is work.
    fn look(&mut self) -> Result<(), Error> {
        let PairParts { memory, tx, rx, .. } = &self.parts;
        for (next, queue) in [(&mut self.transmit, tx), (&mut self.receive, rx)] {
            if *next == Next::Ring && queue.ring.has_more(&queue.ring.map(memory)?)? {
                *next = Next::Work;
            }
        }
        Ok(())
    }

    /// Ends the pair where the driver broke its ring.
    fn attempt(&mut self, attempt: impl FnOnce(&mut Self) -> Result<bool, Error>) -> bool {
        attempt(self).unwrap_or_else(|error| {
            let PairParts { name, broken, .. } = &self.parts;
            log::log!(broken.level(), "{name}: the driver broke its ring: {error}");
            self.end();
            true
        })
    }

    /// Ends the pair for good, and tells the driver.
    fn end(&mut self) {
        self.ended = true;
        if let Some(carrier) = &self.parts.carrier {
            carrier.silence();
        }
        if let Err(error) = self.parts.interrupt.needs_reset() {
            log::warn!("{}: cannot interrupt the guest: {error}", self.parts.name);
        }
    }

    /// Guest to host. Each frame is done, deferred, or ends the burst. True: the driver wants an interrupt for the last of it.
    fn transmit(&mut self) -> Result<bool, Error> {
        let PairParts { memory, tx, backend, counters, interrupt, .. } = &mut self.parts;
        let rings = tx.ring.map(memory)?;
        let (mut frames, mut bytes, mut dropped, mut calls) = (0, 0, 0, 0);
        let mut next = Next::Work;
        for used in 0..BURST {
            if used != 0 && used % BATCH == 0 {
                signal_used(tx, &rings, &**interrupt, counters)?;
            }
            if bytes >= BURST_BYTES {
                break;
            }
            let ring = &mut tx.ring;
            let Some(chain) = ring.next_ahead(&rings)? else {
                next = Next::Ring;
                break;
            };
            let mut frame = self.iov.start();
            ring.readable(&rings, chain, &mut frame)?;
            // A frame without a whole header is none (§5.1.6.2.1 says that the driver sets its fields).
            if frame.len() < HEADER_LEN {
                return Err(Error::TooShort(chain.head));
            }
            // The host's kernel is not to allocate for a "frame" of gigabytes.
            let sent = if frame.len() > MAX_FRAME {
                Err(io::ErrorKind::InvalidInput.into())
            } else {
                calls += 1;
                backend.send(&frame)
            };
            match sent {
                Ok(sent) => {
                    frames += 1;
                    bytes += (frame.len() - HEADER_LEN) as u64;
                    // No event says that the backend has an answer.
                    if sent == Sent::Answered && self.receive == Next::Host {
                        self.receive = Next::Work;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ring.undo_pop();
                    next = Next::Host;
                    break;
                }
                Err(_) => dropped += 1,
            }
            ring.push_used(&rings, chain.head, 0);
        }
        self.transmit = next;
        count(&counters.tx_frames, frames);
        count(&counters.tx_bytes, bytes);
        count(&counters.tx_dropped, dropped);
        count(&counters.calls, calls);
        tx.ring.show(&rings)?;
        tx.ring.wants_interrupt(&rings)
    }

    /// Host to guest. The room for the largest frame is gathered once; each frame takes the chains it fills from the front,
    /// and what is left at the end goes back on the ring. True: the driver was interrupted.
    fn receive(&mut self) -> Result<bool, Error> {
        let PairParts { memory, rx, backend, counters, interrupt, space: wanted, .. } = &mut self.parts;
        let rings = rx.ring.map(memory)?;
        let posted = &mut self.posted;
        let (mut used, mut shown, mut frames, mut bytes, mut dropped, mut calls) = (0, 0, 0, 0, 0, 0);
        let (mut next, mut interrupted) = (Next::Work, false);
        posted.clear();
        let mut space = self.iov.start();
        while used < BURST && bytes < BURST_BYTES {
            if used >= shown + BATCH {
                interrupted |= signal_used(rx, &rings, &**interrupt, counters)?;
                shown = used;
            }
            if !gather(&mut rx.ring, &rings, *wanted, &mut space, posted)? {
                next = Next::Ring;
                break;
            }
            calls += 1;
            match backend.recv(&mut space) {
                Ok(len) if len >= HEADER_LEN && len <= space.len() && wanted.suits(&mut space) => {
                    used += u64::from(fill(&mut rx.ring, &rings, len, &mut space, posted));
                    frames += 1;
                    bytes += (len - HEADER_LEN) as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    next = Next::Host;
                    break;
                }
                // Lost as on a wire; the chains are as good as before for the next one.
                Ok(_) | Err(_) => {
                    dropped += 1;
                    used += 1;
                }
            }
        }
        drop(space);
        // A host end that only ever fails (a deleted tap) is left alone until its descriptor says something new.
        if dropped == BURST {
            next = Next::Host;
        }
        for _ in posted.drain(..) {
            rx.ring.undo_pop();
        }
        self.receive = next;
        count(&counters.rx_frames, frames);
        count(&counters.rx_bytes, bytes);
        count(&counters.rx_dropped, dropped);
        count(&counters.calls, calls);
        Ok(signal_used(rx, &rings, &**interrupt, counters)? || interrupted)
    }
}

/// Shows the driver what the burst used, and interrupts it if it wants that: then, true.
fn signal_used(
    queue: &mut ActiveQueue,
    rings: &Mapped<'_>,
    interrupt: &dyn Interrupt,
    counters: &Counters,
) -> Result<bool, Error> {
    let wanted = queue.ring.publish(rings)?;
    if wanted {
        count(&counters.interrupts, 1);
        count(&counters.calls, 1);
        if let Err(error) = interrupt.queue(queue.index) {
            log::warn!("cannot interrupt the guest: {error}");
        }
    }
    Ok(wanted)
}
