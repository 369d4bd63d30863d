//! A NIC's rate: token buckets, one for the bits and one for the frames of each direction, which all pairs of the NIC share.
//!
//! A turn of a pair takes tokens for what it may move before it moves anything, and gives back what it did not need: two atomic
//! operations a turn, and none for a frame. Of several pairs, one takes half of those that there are, so that another one that comes
//! meanwhile does not wait for what is given back at once. Where there are no tokens, the direction waits until there are, with its
//! frames where they are: on the driver's ring, or in the host's queue.
//!
//! A frame goes if there is any token, and what it takes more is owed by those after it: one of 64 KiB passes in a bucket of any
//! depth, and the average is exact. So in any time `t`, a direction moves `rate · (t + burst)` at most, and a frame for each pair.
//!
//! **A bucket is a time**: the moment at which it is full again (the virtual scheduling of ITU-T I.371). Nothing fills it; time does.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use net::RateLimits;

use super::burst::{BURST, BURST_BYTES};

const SECOND: u128 = 1_000_000_000;

/// Tokens that time brings, and the room for some of them.
#[derive(Debug)]
struct Bucket {
    /// Tokens per second.
    rate: NonZeroU64,
    /// The room, as the time that fills it, in nanoseconds.
    depth: u64,
    /// Several pairs take from it.
    shared: bool,
    /// When it is full, in nanoseconds since some beginning.
    full_at: AtomicU64,
}

impl Bucket {
    fn new(rate: NonZeroU64, depth: Duration, shared: bool) -> Self {
        let depth = depth.as_nanos().try_into().unwrap_or(u64::MAX);
        // There is room for a token.
        let one = SECOND.div_ceil(rate.get().into()) as u64;
        Self { rate, depth: one.max(depth), shared, full_at: AtomicU64::new(0) }
    }

    /// The time that brings so many tokens.
    fn time_of(&self, tokens: u64) -> u64 {
        let time = u128::from(tokens) * SECOND / u128::from(self.rate.get());
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    /// Takes `most` tokens at the time `now`, or as many as there are; where there is none, says how long that takes.
    fn take(&self, now: u64, most: u64) -> Result<u64, u64> {
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let from = full_at.max(now);
            let there = now.saturating_add(self.depth).saturating_sub(from);
            let tokens = u128::from(there) * u128::from(self.rate.get()) / SECOND;
            let tokens = if self.shared { tokens.div_ceil(2) } else { tokens }.min(most.into()) as u64;
            if tokens == 0 {
                return Err((from + self.time_of(1)).saturating_sub(now.saturating_add(self.depth)).max(1));
            }
            let taken = from.saturating_add(self.time_of(tokens));
            match self.full_at.compare_exchange_weak(full_at, taken, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(tokens),
                Err(other) => full_at = other,
            }
        }
    }

    /// Of the `taken` tokens, `needed` were needed: fewer, or more.
    fn settle(&self, taken: u64, needed: u64) {
        let (taken, needed) = (self.time_of(taken), self.time_of(needed));
        // Before it was taken, it was no less than zero.
        self.full_at.fetch_add(needed.wrapping_sub(taken), Ordering::Relaxed);
    }
}

/// One direction of a NIC.
#[derive(Debug)]
pub(super) struct Meter {
    bits: Option<Bucket>,
    frames: Option<Bucket>,
}

/// What a turn may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowance {
    /// It moves no further frame after so many bytes.
    pub(super) bytes: u64,
    /// Frames.
    pub(super) frames: u64,
}

impl Allowance {
    /// Of a NIC without a rate.
    pub(super) const FULL: Self = Self { bytes: BURST_BYTES, frames: BURST };
}

impl Meter {
    fn new(limit: net::RateLimit, burst: Duration, shared: bool) -> Self {
        let bucket = |rate: Option<NonZeroU64>| rate.map(|rate| Bucket::new(rate, burst, shared));
        Self { bits: bucket(limit.bits), frames: bucket(limit.frames) }
    }

    /// What may be moved at the time `now`, taken from the buckets; or how long it takes until anything may.
    fn allow(&self, now: u64) -> Result<Allowance, u64> {
        let Allowance { mut bytes, mut frames } = Allowance::FULL;
        let bits = self.bits.as_ref().map(|bucket| bucket.take(now, 8 * bytes)).transpose()?;
        if let Some(bucket) = &self.frames {
            match bucket.take(now, frames) {
                Ok(taken) => frames = taken,
                Err(wait) => {
                    self.settle_bits(bits.unwrap_or_default(), 0);
                    return Err(wait);
                }
            }
        }
        if let Some(bits) = bits {
            // Of what is no whole byte, the next turn has the rest.
            bytes = bits.div_ceil(8);
            self.settle_bits(bits, 8 * bytes);
        }
        Ok(Allowance { bytes, frames })
    }

    /// So much of `allowed` was moved.
    fn settle(&self, allowed: Allowance, bytes: u64, frames: u64) {
        self.settle_bits(8 * allowed.bytes, 8 * bytes);
        if let Some(bucket) = &self.frames {
            bucket.settle(allowed.frames, frames);
        }
    }

    fn settle_bits(&self, taken: u64, needed: u64) {
        if let Some(bucket) = &self.bits {
            bucket.settle(taken, needed);
        }
    }
}

/// The buckets of a NIC, for all of its pairs. They begin full.
#[derive(Debug)]
pub struct NicRate {
    began: Instant,
    sent: Meter,
    received: Meter,
}

/// A direction of a NIC, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Sent,
    Received,
}

impl NicRate {
    /// For so many pairs; none where nothing is limited.
    pub fn new(limits: &RateLimits, pairs: usize) -> Option<Self> {
        let RateLimits { sent, received, burst } = *limits;
        let meter = |limit| Meter::new(limit, burst, pairs > 1);
        (!limits.is_off()).then(|| Self {
            began: Instant::now(),
            sent: meter(sent),
            received: meter(received),
        })
    }

    fn meter(&self, way: Way) -> &Meter {
        match way {
            Way::Sent => &self.sent,
            Way::Received => &self.received,
        }
    }

    /// What a turn may move, to be [settled](Self::settle) at its end; or when it may move something.
    pub(super) fn allow(&self, way: Way) -> Result<Allowance, Instant> {
        let now = Instant::now();
        let since = u64::try_from((now - self.began).as_nanos()).unwrap_or(u64::MAX);
        self.meter(way).allow(since).map_err(|wait| now + Duration::from_nanos(wait))
    }

    /// So much of `allowed` was moved.
    pub(super) fn settle(&self, way: Way, allowed: Allowance, bytes: u64, frames: u64) {
        self.meter(way).settle(allowed, bytes, frames);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn meter(text: &str) -> Meter {
        let limits: RateLimits = text.parse().unwrap();
        Meter::new(limits.sent, limits.burst, false)
    }

    /// What a pair moves, of frames of `len` bytes without end, until the time `end`; it sleeps whole milliseconds, and wakes late.
    struct Source {
        now: u64,
        frames: u64,
        round: u64,
    }

    impl Source {
        fn run(&mut self, meter: &Meter, len: u64, end: u64) -> u64 {
            let before = self.frames;
            while self.now < end {
                match meter.allow(self.now) {
                    Ok(allowed) => {
                        let (mut bytes, mut frames) = (0, 0);
                        while bytes < allowed.bytes && frames < allowed.frames {
                            (bytes, frames) = (bytes + len, frames + 1);
                        }
                        meter.settle(allowed, bytes, frames);
                        self.frames += frames;
                        // The time of a system call for each.
                        self.now += 1000 * frames;
                    }
                    Err(wait) => {
                        self.round += 1;
                        self.now += wait.div_ceil(MS) * MS + self.round * 7919 % (3 * MS);
                    }
                }
            }
            self.frames - before
        }
    }

    /// In per mille, how far `is` is from `wanted`.
    fn off_by(is: u64, wanted: u64) -> u64 {
        1000 * is.abs_diff(wanted) / wanted
    }

    #[test]
    fn a_second_has_its_rate_within_two_percent() {
        for (limit, len) in [
            ("rate=1M", 60),
            ("rate=10M", 1514),
            ("rate=100M", 1514),
            ("rate=100M", 65550),
            ("rate=900M", 1514),
            ("rate=2G", 65550),
            ("pps=10k", 60),
        ] {
            for shared in [false, true] {
                let limits: RateLimits = limit.parse().unwrap();
                let meter = Meter::new(limits.sent, limits.burst, shared);
                let mut source = Source { now: 0, frames: 0, round: 0 };
                for second in 1..=5 {
                    let frames = source.run(&meter, len, second * 1000 * MS);
                    let (is, wanted, finest) = match (limits.sent.bits, limits.sent.frames) {
                        (Some(bits), _) => (8 * len * frames, bits.get(), 8 * len),
                        (_, pps) => (frames, pps.unwrap().get(), 1),
                    };
                    // What is not finer than a frame cannot be more exact.
                    let off_by = 1000 * is.abs_diff(wanted).saturating_sub(finest) / wanted;
                    assert!(off_by <= 20, "{limit}, {len} bytes, shared {shared}, second {second}: {frames}");
                }
            }
        }
    }

    #[test]
    fn the_stricter_of_two_limits_holds_and_the_other_one_loses_nothing() {
        let meter = meter("rate=100M,pps=1k");
        let mut source = Source { now: 0, frames: 0, round: 0 };
        assert!(off_by(source.run(&meter, 60, 1000 * MS), 1000) <= 20);
        assert!(off_by(source.run(&meter, 60, 2000 * MS), 1000) <= 20);
        // 100 Mbit/s are 763 frames of 16 KiB.
        assert!(off_by(source.run(&meter, 16384, 3000 * MS), 763) <= 20);
    }

    #[test]
    fn after_a_pause_a_burst_goes_at_once_and_not_more() {
        let meter = meter("rate=8M,burst=20");
        for now in [0, 5000 * MS] {
            assert_eq!(meter.allow(now), Ok(Allowance { bytes: 20_000, frames: BURST }));
            assert_eq!(meter.allow(now), Err(125), "the time of a bit");
            // Five milliseconds later there are as many kilobytes, of which one frame takes more.
            let allowed = meter.allow(now + 5 * MS).unwrap();
            assert_eq!(allowed.bytes, 5000);
            meter.settle(allowed, 65_000, 1);
            assert!(matches!(meter.allow(now + 64 * MS), Err(wait) if wait > 900_000 && wait < 1_100_000));
        }
    }

    #[test]
    fn what_a_turn_did_not_need_is_there_for_the_next() {
        let meter = meter("rate=8M,pps=1k,burst=10");
        for _ in 0..1000 {
            let allowed = meter.allow(0).unwrap();
            assert_eq!(allowed, Allowance { bytes: 10_000, frames: 10 });
            meter.settle(allowed, 0, 0);
        }
        let allowed = meter.allow(0).unwrap();
        meter.settle(allowed, 100, 10);
        let wait = meter.allow(0).unwrap_err();
        assert_eq!(wait, MS, "frames, not bytes, are short");
        assert_eq!(meter.allow(MS).unwrap(), Allowance { bytes: 10_000, frames: 1 }, "and no byte was lost");
    }

    #[test]
    fn a_bucket_has_room_for_a_token_and_debts_end() {
        let meter = meter("pps=2");
        assert_eq!(meter.allow(0).unwrap().frames, 1);
        let wait = meter.allow(0).unwrap_err();
        assert_eq!(wait, 500 * MS);
        assert_eq!(meter.allow(wait).unwrap().frames, 1);
        let slow = self::meter("rate=16k,burst=5");
        let allowed = slow.allow(0).unwrap();
        slow.settle(allowed, 65_550, 1);
        let wait = slow.allow(0).unwrap_err();
        assert!(wait > 32_000 * MS && wait < 33_000 * MS, "{wait}");
        assert!(slow.allow(wait - 1).is_err() && slow.allow(wait).is_ok());
    }

    #[test]
    fn a_pair_at_work_leaves_something_for_the_others() {
        let limits: RateLimits = "rate=8M,pps=1k".parse().unwrap();
        let meter = Meter::new(limits.sent, limits.burst, true);
        let first = meter.allow(0).unwrap();
        assert_eq!(first, Allowance { bytes: 5000, frames: 5 });
        let second = meter.allow(0).unwrap();
        assert_eq!(second, Allowance { bytes: 2500, frames: 3 });
        meter.settle(first, 60, 1);
        meter.settle(second, 60, 1);
        // Of 8 frames half; and no more than there are, one after the other.
        assert_eq!(meter.allow(0).unwrap().frames, 4);
        assert_eq!([2, 1, 1].map(|_| meter.allow(0).unwrap().frames), [2, 1, 1]);
        assert!(meter.allow(0).is_err());
    }

    #[test]
    fn several_pairs_have_one_rate() {
        let limits: RateLimits = "rate=100M".parse().unwrap();
        let meter = Meter::new(limits.sent, limits.burst, true);
        let end = 1000 * MS;
        let frames: u64 = std::thread::scope(|scope| {
            let pair = |round| {
                let meter = &meter;
                scope.spawn(move || Source { now: 0, frames: 0, round }.run(meter, 1514, end))
            };
            let pairs: Vec<_> = (0..4).map(pair).collect();
            pairs.into_iter().map(|pair| pair.join().unwrap()).sum()
        });
        // Their clocks are not one, so that some time is lost; but never is more moved than there were tokens.
        let most = (100_000_000 + 1_000_000) / (8 * 1514) + 4;
        assert!(frames <= most, "{frames} of {most}");
    }

    #[test]
    fn nothing_is_limited_without_a_limit() {
        assert!(NicRate::new(&RateLimits::default(), 1).is_none());
        let one_way = NicRate::new(&"rate=off:1M".parse().unwrap(), 2).unwrap();
        assert_eq!(one_way.allow(Way::Sent), Ok(Allowance::FULL));
        assert!(one_way.allow(Way::Received).unwrap().bytes < BURST_BYTES);
    }
}
