//! Interrupt coalescing as the driver sets it (`VIRTIO_NET_F_NOTF_COAL`, virtio 1.3 §5.1.6.5.9; `ethtool -C` in a Linux guest).
//!
//! An interrupt for used buffers is held until so many packets were used, or until so long after the first of them. Two things end the
//! hold sooner, which the specification allows, for the driver would wait for nothing: half of the ring was used since the last
//! interrupt, or the driver has posted nothing more to receive into. A driver that suppresses interrupts (§2.7.7) gets none, held or
//! not, and is asked again when the hold ends.
//!
//! The driver is shown used buffers as before: only the interrupt is held. It is decided when the driver is shown a batch, so that a
//! limit of fewer packets than a batch means one interrupt for the batch.

use std::time::{Duration, Instant};

use super::burst::signal_used;
use super::counters::Counters;
use super::{PairParts, QueuePair};
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::queue::{Error, Mapped, VirtQueue};

/// The longest that an interrupt is held, whatever the driver sets (up to 71 minutes): a guest whose frames take longer seems to hang.
const LONGEST: Duration = Duration::from_secs(1);

/// When an interrupt is held no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoalesceLimits {
    packets: u64,
    time: Duration,
}

/// What the driver has set for the queues of each direction; none, as after a reset, is an interrupt after every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoalesceSettings {
    /// Host to guest.
    pub receive: Option<CoalesceLimits>,
    /// Guest to host.
    pub transmit: Option<CoalesceLimits>,
}

/// The interrupt of one queue, and whether it is held.
#[derive(Debug, Default)]
pub(super) struct Coalescer {
    limits: Option<CoalesceLimits>,
    held: Option<Held>,
}

/// An interrupt that is held: for so many packets, of which the first was used at that time.
#[derive(Clone, Copy, Debug)]
struct Held {
    packets: u64,
    since: Instant,
}

impl CoalesceLimits {
    /// `virtio_net_ctrl_coal`, with `max_usecs` in microseconds. None where it means an interrupt after every packet: either is 0.
    pub fn new(max_packets: u32, max_usecs: u32) -> Option<Self> {
        let time = Duration::from_micros(max_usecs.into()).min(LONGEST);
        (max_packets > 0 && max_usecs > 0).then_some(Self { packets: max_packets.into(), time })
    }
}

impl Coalescer {
    /// From now on these hold, for what is held already as well: see [`holds`](Self::holds).
    fn set(&mut self, limits: Option<CoalesceLimits>) {
        self.limits = limits;
    }

    /// True while an interrupt is held.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Ends the hold. True: there was one.
    pub(super) fn release(&mut self) -> bool {
        self.held.take().is_some()
    }

    /// When the interrupt is due that is held.
    fn due(&self) -> Option<Instant> {
        self.held.map(|held| held.since + self.limits.map_or(Duration::ZERO, |limits| limits.time))
    }

    /// So many more packets were used, for which the driver wants an interrupt.
    pub(super) fn add(&mut self, packets: u64) {
        if self.limits.is_some() && packets > 0 {
            let held = self.held.get_or_insert_with(|| Held { packets: 0, since: Instant::now() });
            held.packets += packets;
        }
    }

    /// Whether the interrupt is still to be held; once it is not, there is no hold.
    pub(super) fn holds(&mut self, ring: &VirtQueue) -> bool {
        let holds = match (self.limits, self.held) {
            (Some(limits), Some(held)) => {
                held.packets < limits.packets
                    && held.since.elapsed() < limits.time
                    && ring.unsignalled() < ring.size().div_ceil(2)
            }
            _ => false,
        };
        self.held = self.held.filter(|_| holds);
        holds
    }

    /// Shows the driver what was used of `queue`, `packets` since the last time, and interrupts it unless that is held: then, true. It
    /// is not held where the queue is `dry`: the driver is to post more first.
    pub(super) fn signal(
        &mut self,
        queue: &mut ActiveQueue,
        rings: &Mapped<'_>,
        interrupt: &dyn Interrupt,
        counters: &Counters,
        packets: u64,
        dry: bool,
    ) -> Result<bool, Error> {
        if self.limits.is_some() {
            queue.ring.show(rings)?;
            if queue.ring.wants_interrupt(rings)? {
                self.add(packets);
                if !dry && self.holds(&queue.ring) {
                    return Ok(false);
                }
            }
        }
        self.held = None;
        signal_used(queue, rings, interrupt, counters)
    }
}

impl QueuePair {
    /// Holds interrupts like this from now on. The next [`process`](Self::process) looks at those that are held.
    #[cold]
    pub fn set_coalescing(&mut self, settings: CoalesceSettings) {
        self.rx_coalescer.set(settings.receive);
        self.tx_coalescer.set(settings.transmit);
    }

    /// When an interrupt is due that is held, if one is.
    pub(in crate::virtio::net) fn interrupt_due(&self) -> Option<Instant> {
        self.rx_coalescer.due().into_iter().chain(self.tx_coalescer.due()).min()
    }

    /// Interrupts the driver for what it received, unless that is still held, or it does not want that any more: then, true.
    pub(super) fn signal_received(&mut self) -> Result<bool, Error> {
        let PairParts { memory, rx, counters, interrupt, .. } = &mut self.parts;
        if self.rx_coalescer.holds(&rx.ring) {
            return Ok(false);
        }
        signal_used(rx, &rx.ring.map(memory)?, &**interrupt, counters)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::virtio::mock::MockRing;
    use crate::virtio::queue::F_VERSION_1;

    /// A ring of eight that is all used by `used` chains, not signalled.
    fn ring(used: u16) -> VirtQueue {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mock = MockRing::new(&memory, 0x100, 8, false);
        let mut ring = VirtQueue::new(mock.setup(), F_VERSION_1, &memory).unwrap();
        let rings = ring.map(&memory).unwrap();
        (0..used).for_each(|head| ring.push_used(&rings, head, 0));
        ring.show(&rings).unwrap();
        ring
    }

    fn coalescer(max_packets: u32, max_usecs: u32) -> Coalescer {
        Coalescer { limits: CoalesceLimits::new(max_packets, max_usecs), held: None }
    }

    #[test]
    fn a_zero_is_an_interrupt_after_every_packet() {
        for (packets, usecs) in [(0, 0), (0, 100), (100, 0), (0, u32::MAX), (u32::MAX, 0)] {
            assert_eq!(CoalesceLimits::new(packets, usecs), None);
            let mut coalescer = coalescer(packets, usecs);
            coalescer.add(1);
            assert!(!coalescer.is_held() && !coalescer.holds(&ring(1)) && coalescer.due().is_none());
        }
        assert_eq!(CoalesceLimits::new(1, u32::MAX).unwrap().time, LONGEST);
    }

    #[test]
    fn a_hold_ends_with_the_packets_the_time_or_half_of_the_ring() {
        let mut coalescer = coalescer(15, u32::MAX);
        coalescer.add(14);
        assert!(coalescer.holds(&ring(3)), "one packet too few");
        coalescer.add(0);
        assert!(coalescer.holds(&ring(3)), "and no more");
        coalescer.add(1);
        assert!(!coalescer.holds(&ring(3)) && !coalescer.is_held());
        coalescer.add(14);
        assert!(coalescer.holds(&ring(3)), "it counts anew");
        assert!(!coalescer.holds(&ring(4)), "the ring is half full");

        coalescer.add(1);
        let since = coalescer.held.unwrap().since;
        assert_eq!(coalescer.due(), Some(since + LONGEST));
        coalescer.held.as_mut().unwrap().since = since.checked_sub(LONGEST).unwrap();
        assert!(!coalescer.holds(&ring(1)) && coalescer.due().is_none(), "it is long enough");
    }

    #[test]
    fn other_limits_hold_for_what_is_held() {
        let mut coalescer = coalescer(15, u32::MAX);
        coalescer.add(10);
        coalescer.set(CoalesceLimits::new(11, u32::MAX));
        assert!(coalescer.holds(&ring(3)));
        coalescer.set(CoalesceLimits::new(8, u32::MAX));
        assert!(!coalescer.holds(&ring(3)));
        coalescer.add(1);
        coalescer.set(None);
        assert!(coalescer.due().unwrap() <= Instant::now() && !coalescer.holds(&ring(1)));
    }
}
