//! Adaptive polling: when a thread without work looks for frames for a moment, although nobody asked for that (`poll=`).
//!
//! To sleep is to be woken: where the thread has a processor to itself, that takes longer than a guest takes to answer, and most of a
//! round trip is waiting for it. So a thread that is woken again and again, soon after it fell asleep, looks about for [`TIME`]
//! after each frame instead. Where it shares its processor with the guest, or with anything else, nothing comes while it looks:
//! a row of looks that ends before it brought [`WORTH`] frames doubles the number of wake-ups wanted before the next try, up to
//! [`RARELY`], and one that paid makes it [`OFTEN`] again.
//!
//! What [`KickModeration`](super::kick_moderation::KickModeration) holds off is a stream; it is tried first, and these looks are for
//! what gains nothing by it: who waits for each answer.

use std::time::{Duration, Instant};

/// How long it looks for the next frame: about what a sleep and its end cost, and as long as a program of the host takes to answer.
const TIME: Duration = Duration::from_micros(50);
/// A wake-up that came sooner than this could have been spared: the same, and the time that a wake-up takes.
const SOON: Duration = Duration::from_micros(100);
/// How many frames a row of looks has to bring.
const WORTH: u32 = 8;
/// After so many wake-ups in a row that came soon, it tries: at first, and at the rarest. More than kick moderation wants.
const OFTEN: u32 = 8;
const RARELY: u32 = 1 << 14;

/// What a thread knows of its wake-ups.
#[derive(Debug)]
pub(super) struct AdaptivePoll {
    /// Wake-ups in a row that came soon.
    soon: u32,
    /// How many of them there must be for a try.
    wanted: u32,
    row: Option<Row>,
}

/// Looks that follow each other.
#[derive(Debug, Default)]
struct Row {
    /// How often they found work.
    found: u32,
    /// When the last look began, and until when they go on; none before the first.
    last: Option<(Instant, Instant)>,
}

impl AdaptivePoll {
    pub(super) fn new() -> Self {
        Self { soon: 0, wanted: OFTEN, row: None }
    }

    /// It was woken after it `slept` for so long.
    pub(super) fn woken(&mut self, slept: Duration) {
        self.soon = if slept < SOON { self.soon + 1 } else { 0 };
        if self.soon >= self.wanted {
            (self.soon, self.row) = (0, Some(Row::default()));
        }
    }

    /// The thread has no work any more, of which the last look, which was over at `looked`, brought some or not: whether it is to look
    /// once more.
    pub(super) fn polls_on(&mut self, worked: bool, looked: Instant, now: Instant) -> bool {
        let Some(row) = &mut self.row else { return false };
        let Some((last, until)) = row.last else {
            row.last = Some((now, now + TIME));
            return true;
        };
        // A look of that length was none: another had the processor.
        let alone = looked.saturating_duration_since(last) < TIME;
        if alone && (worked || now < until) {
            row.found += u32::from(worked);
            row.last = Some((now, if worked { now + TIME } else { until }));
            return true;
        }
        self.wanted = if row.found >= WORTH { OFTEN } else { (2 * self.wanted).min(RARELY) };
        self.row = None;
        false
    }

    /// Ends a row of looks without a word of what it was worth: there is something else to wait for.
    pub(super) fn stop(&mut self) {
        self.row = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    /// A thread and its clock.
    struct Thread {
        poll: AdaptivePoll,
        now: Instant,
    }

    impl Thread {
        fn new() -> Self {
            Self { poll: AdaptivePoll::new(), now: Instant::now() }
        }

        /// One frame that comes so long after the one before, and whether it was looked for; where it was not, it was slept for.
        fn frame(&mut self, after: Duration) -> bool {
            let due = self.now + after;
            let mut worked = true;
            let mut looked = self.now;
            while self.poll.polls_on(worked, looked, self.now) {
                worked = false;
                self.now += MICRO;
                looked = self.now;
                if self.now >= due {
                    return true;
                }
            }
            self.poll.woken(due.saturating_duration_since(self.now));
            self.now = self.now.max(due);
            false
        }
    }

    #[test]
    fn a_thread_that_is_woken_soon_again_and_again_looks_as_long_as_frames_come() {
        let mut thread = Thread::new();
        for frame in 0..OFTEN {
            assert!(!thread.frame(30 * MICRO), "{frame}");
        }
        for frame in 0..1000 {
            assert!(thread.frame(30 * MICRO), "{frame}");
        }
        // A pause ends it, and it was worth trying again.
        assert!(!thread.frame(1000 * MICRO));
        assert_eq!((thread.poll.wanted, thread.poll.row.is_some()), (OFTEN, false));
    }

    #[test]
    fn one_long_sleep_says_that_there_is_no_hurry() {
        let mut thread = Thread::new();
        for frame in 0..100 * OFTEN {
            let looked = thread.frame(if frame % OFTEN == 0 { 2 * SOON } else { 30 * MICRO });
            assert!(!looked, "{frame}");
        }
    }

    #[test]
    fn looks_in_vain_become_rare() {
        let mut thread = Thread::new();
        let mut looks = 0;
        for _ in 0..100_000 {
            looks += u32::from(thread.poll.row.is_some());
            assert!(!thread.frame(90 * MICRO));
        }
        assert!((10..20).contains(&looks), "{looks}");
        assert_eq!(thread.poll.wanted, RARELY);
        // One that pays, and it is as at first.
        for _ in 0..RARELY + WORTH + 2 {
            thread.frame(30 * MICRO);
        }
        assert!(thread.poll.row.is_some());
        assert!(!thread.frame(1000 * MICRO));
        assert_eq!(thread.poll.wanted, OFTEN);
    }

    #[test]
    fn who_had_to_leave_its_processor_does_not_look() {
        let mut poll = AdaptivePoll::new();
        (0..OFTEN).for_each(|_| poll.woken(MICRO));
        let begin = Instant::now();
        assert!(poll.polls_on(true, begin, begin));
        assert!(poll.polls_on(false, begin + MICRO, begin + MICRO));
        // There is work, but it came late.
        let late = begin + 2 * TIME;
        assert!(!poll.polls_on(true, late, late) && poll.row.is_none());
        assert_eq!(poll.wanted, 2 * OFTEN);
    }
}
