//! How much a driver is to post before it kicks, once it has posted too little.
//!
//! A kick is an exit, and where the thread has no processor to itself, one that takes the guest's. A guest that is slower than its host
//! is dry all the time: with a kick for the first buffers that it posts, it would be stopped for each few frames. So the thread asks for
//! a kick when most of the ring was posted, which `VIRTIO_F_EVENT_IDX` can say. A driver may never post that many, and none has to. So
//! the thread looks by itself after [`PATIENCE`]; and where that found something, but less, [`IN_VAIN`] times in a row, it asks for a
//! kick with the first buffer the next [`PLAINLY`] times.

use std::time::{Duration, Instant};

use crate::virtio::queue::VirtQueue;

/// How long a driver may take to post that much: some of what a scheduler may take its processor away for.
const PATIENCE: Duration = Duration::from_millis(4);
/// The most that is asked for: of a ring of the usual size it is what the share below is, and less than a burst takes.
const MOST: u16 = 192;
const IN_VAIN: u32 = 3;
const PLAINLY: u32 = 1024;

/// What a pair knows of how its driver posts.
#[derive(Debug, Default)]
pub(super) struct Refill {
    /// Until when it waits for more than the first buffer, if it does.
    until: Option<Instant>,
    /// How often in a row there was something, but less, in the end.
    in_vain: u32,
    /// How many times to ask plainly.
    plainly: u32,
}

impl Refill {
    /// With how many more buffers the driver is to kick.
    pub(super) fn asks_for(&self, ring: &VirtQueue) -> u16 {
        let plainly = self.plainly > 0 || !ring.kicks_by_index();
        if plainly { 1 } else { (ring.size() / 4 * 3).clamp(1, MOST) }
    }

    /// The driver was asked for a kick with so many.
    pub(super) fn asked_for(&mut self, more: u16) {
        self.plainly = self.plainly.saturating_sub(1);
        // What it was asked for before came in time.
        if self.until.is_some() {
            self.in_vain = 0;
        }
        self.until = (more > 1).then(|| Instant::now() + PATIENCE);
    }

    /// How long it waits still.
    pub(super) fn waits(&self) -> Option<Duration> {
        Some(self.until?.saturating_duration_since(Instant::now()))
    }

    /// True once it has waited long enough.
    pub(super) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// It has waited long enough: the driver has posted `some`, or nothing, which says nothing of how much it will post at once.
    pub(super) fn waited(&mut self, some: bool) {
        self.until = None;
        if !some {
            self.plainly = 1;
            return;
        }
        self.in_vain += 1;
        if self.in_vain == IN_VAIN {
            (self.in_vain, self.plainly) = (0, PLAINLY);
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::virtio::mock::MockRing;
    use crate::virtio::queue::F_EVENT_IDX;

    fn ring(size: u16, features: u64) -> VirtQueue {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mock = MockRing::new(&memory, 0x1000, size, features & F_EVENT_IDX != 0);
        VirtQueue::new(mock.setup(), features, &memory).unwrap()
    }

    /// One time that it is dry: what it asks for, and what comes of it.
    fn asks(refill: &mut Refill, waited: Option<bool>) -> u16 {
        let more = refill.asks_for(&ring(256, F_EVENT_IDX));
        refill.asked_for(more);
        assert_eq!(refill.waits().is_some(), more > 1, "what it asks for plainly comes, or does not");
        if let Some(some) = waited {
            refill.waited(some);
            assert_eq!(refill.waits(), None);
        }
        more
    }

    #[test]
    fn it_asks_for_most_of_the_ring_where_the_driver_can_be_asked_for_that() {
        for (size, most) in [(1, 1), (2, 1), (4, 3), (64, 48), (256, 192), (1024, 192)] {
            assert_eq!(Refill::default().asks_for(&ring(size, F_EVENT_IDX)), most, "of {size}");
            assert_eq!(Refill::default().asks_for(&ring(size, 0)), 1);
        }
    }

    #[test]
    fn a_driver_that_has_posted_nothing_is_asked_plainly_once() {
        let mut refill = Refill::default();
        for _ in 0..3 * IN_VAIN {
            assert_eq!((asks(&mut refill, Some(false)), asks(&mut refill, None)), (MOST, 1));
        }
    }

    #[test]
    fn a_driver_that_posts_less_in_a_row_is_asked_plainly_for_long() {
        let mut refill = Refill::default();
        for _ in 0..3 {
            (0..IN_VAIN).for_each(|_| assert_eq!(asks(&mut refill, Some(true)), MOST));
            (0..PLAINLY).for_each(|_| assert_eq!(asks(&mut refill, None), 1));
        }
        // Not if it posts that much in between.
        for _ in 0..IN_VAIN {
            (1..IN_VAIN).for_each(|_| assert_eq!(asks(&mut refill, Some(true)), MOST));
            (0..2).for_each(|_| assert_eq!(asks(&mut refill, None), MOST));
        }
    }

    #[test]
    fn its_patience_has_an_end() {
        let mut refill = Refill::default();
        assert_eq!((refill.waits(), refill.is_over()), (None, false));
        refill.asked_for(2);
        let begun = Instant::now();
        assert!(refill.waits().is_some_and(|left| left <= PATIENCE));
        while !refill.is_over() {
            assert!(begun.elapsed() < 100 * PATIENCE);
        }
        assert_eq!(refill.waits(), Some(Duration::ZERO));
    }
}
