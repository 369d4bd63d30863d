//! One queue pair: the two loops through which every frame goes.
//!
//! **Invariant: the pair owns all it touches** - two rings, the backend, the eventfds - and lives on its thread, which makes it
//! when a driver starts and takes it apart at the reset. There is no lock, no allocation and no copy of a payload in
//! [`QueuePair::process`], but for a frame that comes while the driver has posted too little for it: `shortage.rs` copies that one.
//!
//! **Invariant: each direction waits for exactly one thing.** It has work, or waits for its driver's ring, or for the host, whose
//! descriptor is registered edge-triggered (for room only once there was none, for frames not while they come in vain), or for the
//! NIC's rate to allow more, or, receiving, for the control queue to enable the pair. An event for which nobody waits costs a wake-up
//! and nothing else.
//!
//! **Invariant: a thread asks for a kick before it sleeps, and not otherwise.** While one direction has frames, or the thread
//! still polls ([`VirtioNet::with_poll`](super::VirtioNet::with_poll)), the ring of the other is looked at instead: a kick costs the
//! guest an exit. So is the transmit ring of a driver that polls, for a moment after it received, the first frame of a turn and the
//! last: it may answer at once.
//!
//! **Invariant: what is in hand is on its ring whenever anybody else looks at that** (`receive_space.rs`): in a pause, and when the
//! kernel takes over.
//!
//! **Invariant: the interrupt for what was sent waits for nothing but what is received.** What came in the meantime, as the
//! acknowledgement of what was sent, takes an interrupt of its own, and drivers look at both rings then. So it goes out at
//! the end of the same turn, or `PATIENCE` after an interrupt that made the driver look, if it did not.
//!
//! **Invariant: an interrupt that the driver has held is never lost** (`coalescing.rs`). It goes out with the frame that makes it due,
//! or its thread wakes in time; a pause, and other limits, end the hold. A driver that has set nothing pays one test for it.
//!
//! **Invariant: either we carry the frames, or the kernel does** (`Next::Kernel`), both ways; a queue's reset or a move changes which.
//! While the kernel does, the thread has the control queue, and little else.
//!
//! **Invariant: a hostile ring ends its own pair.** The pair sets DEVICE_NEEDS_RESET, and its thread leaves it alone until the reset.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the pair, one turn of it, and what it waits for |
//! | `transmit.rs`, `receive.rs` | the two loops |
//! | `merge.rs` | several frames as one packet for the host |
//! | `burst.rs` | how much each moves in a turn, and how the driver hears of it |
//! | `coalescing.rs` | interrupts that are held, as the driver has set it |
//! | `receive_space.rs` | the buffers that a received frame fills |
//! | `shortage.rs` | what happens while there are too few of them |
//! | `refill.rs` | how many there are to be before the driver kicks |
//! | `commands.rs` | what a pair does beside moving frames |
//! | `exchange.rs` | another host's end for a pair at work |
//! | `events.rs` | which event wakes what |
//! | `waiting.rs` | how, and for how long, its thread waits |
//! | `rate.rs` | how much may go in a second |
//! | `counters.rs` | what it counts |
//! | `double.rs` | one for tests |

mod burst;
mod coalescing;
mod commands;
mod counters;
#[cfg(test)]
pub(super) mod double;
pub(super) mod events;
mod exchange;
mod merge;
mod rate;
mod receive;
mod receive_space;
mod refill;
mod shortage;
mod transmit;
mod waiting;

pub use self::coalescing::{CoalesceLimits, CoalesceSettings};
pub use self::counters::Counters;
pub use self::rate::NicRate;
pub use self::receive_space::ReceiveSpace;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_manager::EventSet;
use net::{Backend, IovBuffer, Offloads, RxFilter};
use vm_memory::GuestMemoryMmap;

use self::burst::{BURST, signal_used};
use self::coalescing::Coalescer;
use self::events::EDGE;
use self::merge::Merge;
use self::receive_space::InHand;
use self::refill::Refill;
use self::shortage::Shortage;
use super::control::Control;
use super::vhost::{Carrier, IdleCarrier};
use crate::log_once::LogOnce;
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::queue::Error;

/// How long a driver that was interrupted for what it received may take to look at what was sent, before it is interrupted for
/// that, too: the least that epoll_wait(2) can wait.
const PATIENCE: Duration = Duration::from_millis(1);
/// Turns in a row that brought no answer to what was sent, or received, after which most turns do not ask for one any more; and one
/// in so many that does.
const IN_VAIN: u32 = 4;
const ONCE_IN: u32 = 16;

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
    /// The NIC has moved as much as its rate allows: time brings more, by then.
    Tokens(Instant),
    /// The driver has not enabled the pair, which then receives nothing: the control queue tells.
    Control,
    /// The kernel carries the frames.
    Kernel,
    /// The driver has reset the ring, which it sets up anew, or not.
    Reset,
}

/// All that makes a pair.
pub struct PairParts {
    /// What its thread is called.
    pub name: String,
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    /// The feature bits that the driver accepted.
    pub accepted: u64,
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
    /// What the driver accepts in the frames that it receives.
    pub offloads: Offloads,
    /// Which frames it receives.
    pub filter: RxFilter,
    /// For how long its thread polls before it sleeps, or the kernel's; none where the thread finds out what pays.
    pub poll: Option<Duration>,
    /// The NIC's rate, if it has one.
    pub rate: Option<Arc<NicRate>>,
    /// Where it counts.
    pub counters: Arc<Counters>,
    /// Whether it was said that a driver broke its rings.
    pub broken: Arc<LogOnce>,
}

/// Where a pair's frames go, and who may carry them in its place.
pub struct HostEnd {
    pub(super) backend: Box<dyn Backend>,
    pub(super) carrier: Option<IdleCarrier>,
}

/// Whether to ask for an answer after so many turns in a row without one.
fn is_worth(in_vain: u32) -> bool {
    in_vain < IN_VAIN || in_vain.is_multiple_of(ONCE_IN)
}

/// Two rings and the backend between which it moves frames.
pub struct QueuePair {
    parts: PairParts,
    transmit: Next,
    receive: Next,
    /// The control queue may have commands.
    commanded: bool,
    /// The driver has reset the control queue.
    control_reset: bool,
    /// The guest may have asked the backend something, past us.
    asked: bool,
    /// After how long it is to be looked at although nothing was asked.
    look_again: Option<Duration>,
    /// The driver wants an interrupt for what was sent, and had one for what it received: until then it may look by itself.
    owed: Option<Instant>,
    /// What holds the interrupts of each queue, where the driver has set that.
    rx_coalescer: Coalescer,
    tx_coalescer: Coalescer,
    /// Turns in a row in which nothing came after what was sent, and nothing was to be sent after what was received.
    unanswered: u32,
    unreplied: u32,
    /// The buffers of the frame to be sent. Allocated once.
    iov: IovBuffer,
    /// The room for the next frame to be received. Allocated once.
    in_hand: InHand,
    /// What sends several frames at once, where the host's end takes that.
    merge: Option<Box<Merge>>,
    shortage: Shortage,
    refill: Refill,
    /// Its memory behind too little room: empty until there was too little.
    overflow: Vec<u8>,
    /// The kernel, which is to carry the frames, and does not while the driver has reset a queue.
    resting: Option<IdleCarrier>,
    /// What the host's descriptor is watched for.
    host_events: EventSet,
    /// It woke the thread for a frame while nobody waited for one.
    woken_in_vain: bool,
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
            rx_coalescer: Coalescer::default(),
            tx_coalescer: Coalescer::default(),
            unanswered: 0,
            unreplied: 0,
            merge: Merge::new(parts.backend.merges()),
            parts,
            transmit,
            receive,
            commanded: true,
            control_reset: false,
            iov: IovBuffer::new(),
            in_hand: InHand::new(),
            shortage: Shortage::default(),
            refill: Refill::default(),
            resting: None,
            host_events: EDGE,
            woken_in_vain: false,
            overflow: Vec::new(),
            ended: false,
        }
    }

    /// Gives the host's end back; the rings are forgotten, and the kernel touches no guest memory any more.
    pub(super) fn into_end(mut self) -> HostEnd {
        let carrier = self.take_carrier();
        HostEnd { backend: self.parts.backend, carrier }
    }

    /// The host's end.
    pub(super) fn backend_mut(&mut self) -> &mut dyn Backend {
        &mut *self.parts.backend
    }

    /// Interrupts the driver: the configuration has changed.
    pub(super) fn tell_config(&self) -> std::io::Result<()> {
        self.parts.interrupt.config()
    }

    /// True while [`process`](Self::process) has something to do without a new event.
    pub fn has_work(&self) -> bool {
        self.transmit == Next::Work || self.receive == Next::Work || self.commanded || self.asked
    }

    /// True once the driver broke its ring: nothing happens any more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// How many frames have gone through, both ways.
    pub(super) fn moved(&self) -> u64 {
        let Counters { rx_frames, tx_frames, .. } = &*self.parts.counters;
        rx_frames.load(Ordering::Relaxed).wrapping_add(tx_frames.load(Ordering::Relaxed))
    }

    /// Looks at everything anew: the driver may have kicked every queue, and the host may be ready both ways.
    pub fn wake(&mut self) {
        self.commanded = true;
        self.asked = self.parts.carrier.is_some();
        if !matches!(self.transmit, Next::Kernel | Next::Reset) {
            self.transmit = Next::Work;
        }
        if !matches!(self.receive, Next::Control | Next::Kernel | Next::Reset) {
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
        let awaits = self.receive == Next::Work && is_worth(self.unreplied);
        if awaits && self.transmit == Next::Driver {
            // Its answer needs no kick: it is looked for.
            let PairParts { memory, tx, .. } = &mut self.parts;
            tx.ring.disarm(&tx.ring.map(memory)?)?;
            self.transmit = Next::Ring;
        }
        if self.commanded {
            self.command()?;
        }
        if self.asked {
            self.answer();
        }
        let frames = |this: &Self| {
            let Counters { rx_frames, tx_frames, .. } = &*this.parts.counters;
            [rx_frames, tx_frames].map(|frames| frames.load(Ordering::Relaxed))
        };
        let [received, sent] = frames(self);
        let wanted = self.transmit == Next::Work && self.transmit()?;
        // Under a rate, to look is to wait where it has nothing left.
        let asks = frames(self)[1] != sent && self.receive == Next::Host && self.parts.rate.is_none();
        if asks && is_worth(self.unanswered) {
            // Instead of the event that would tell, and of an interrupt; in vain, it is a system call for nothing.
            self.receive = Next::Work;
        }
        let mut replied = false;
        let mut interrupted = if self.receive != Next::Work {
            self.rx_coalescer.is_held() && self.signal_received()?
        } else if awaits && self.driver_polls()? {
            // The first alone: its answer is sent before the host is asked for more.
            let interrupted = self.receive(1)?;
            replied = self.reply(received, interrupted)?;
            interrupted
        } else {
            false
        };
        let before = if replied { frames(self)[0] } else { received };
        if self.receive == Next::Work {
            interrupted |= self.receive(BURST)?;
        }
        if asks {
            let answered = frames(self)[0] != received;
            self.unanswered = if answered { 0 } else { self.unanswered.wrapping_add(1) };
        }
        if wanted || self.owed.is_some() || self.tx_coalescer.is_held() {
            self.signal_sent(interrupted)?;
        }
        if awaits && self.receive != Next::Work {
            replied |= self.reply(before, interrupted)?;
        }
        if frames(self)[0] != received {
            self.unreplied = if replied { 0 } else { self.unreplied.wrapping_add(1) };
        }
        Ok(worked)
    }

    /// Whether the driver seems to look for what it receives, and to want no interrupt.
    fn driver_polls(&self) -> Result<bool, Error> {
        let PairParts { memory, rx, .. } = &self.parts;
        rx.ring.is_polled(&rx.ring.map(memory)?)
    }

    /// Sends what the driver answers to what it received, if that was more than `before`: then, true. One that was not `interrupted`
    /// for that looks for it, and may answer before a thread could fall asleep.
    fn reply(&mut self, before: u64, interrupted: bool) -> Result<bool, Error> {
        if self.parts.counters.rx_frames.load(Ordering::Relaxed) == before {
            return Ok(false);
        }
        let polls = !interrupted && !self.rx_coalescer.is_held();
        if polls && self.transmit == Next::Ring {
            self.look_for_an_answer();
            self.look()?;
        }
        let replied = self.transmit == Next::Work;
        if replied && self.transmit()? {
            self.signal_sent(false)?;
        }
        Ok(replied)
    }

    /// Interrupts the driver for what was sent, unless that is held, it was `interrupted` just now, or does not want it any more.
    fn signal_sent(&mut self, interrupted: bool) -> Result<(), Error> {
        let PairParts { memory, tx, counters, interrupt, .. } = &mut self.parts;
        if self.owed.is_none() && self.tx_coalescer.holds(&tx.ring) {
            return Ok(());
        }
        let rings = tx.ring.map(memory)?;
        if interrupted || self.owed.is_some() {
            let now = Instant::now();
            if tx.ring.wants_interrupt(&rings)? && now < *self.owed.get_or_insert(now + PATIENCE) {
                return Ok(());
            }
        }
        // It looks once more whether that is wanted.
        self.owed = None;
        self.tx_coalescer.release();
        signal_used(tx, &rings, &**interrupt, counters).map(drop)
    }

    /// Asks the driver to kick where its ring has too little. What it added meanwhile is work.
    pub fn arm(&mut self) {
        self.attempt(|this| {
            let PairParts { memory, tx, rx, .. } = &mut this.parts;
            let after = |armed| if armed { Next::Driver } else { Next::Work };
            if this.transmit == Next::Ring {
                this.transmit = after(tx.ring.arm(&tx.ring.map(memory)?)?);
            }
            if this.receive == Next::Ring {
                let more = this.refill.asks_for(&rx.ring);
                this.receive = after(rx.ring.arm_after(&rx.ring.map(memory)?, more)?);
                this.refill.asked_for(more);
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
        if self.receive == Next::Driver && self.refill.is_over() {
            self.refill.waited(rx.ring.has_more(&rx.ring.map(memory)?)?);
            self.receive = Next::Work;
        }
        if matches!(self.receive, Next::Ring | Next::Driver) && self.shortage.is_over() {
            self.receive = Next::Work;
        }
        for next in [&mut self.transmit, &mut self.receive] {
            if matches!(*next, Next::Tokens(at) if Instant::now() >= at) {
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
    pub(super) fn end(&mut self) {
        self.ended = true;
        if let Some(carrier) = &self.parts.carrier {
            carrier.silence();
        }
        if let Err(error) = self.parts.interrupt.needs_reset() {
            log::warn!("{}: cannot interrupt the guest: {error}", self.parts.name);
        }
    }
}
