//! Adaptive polling: when a thread without work looks for frames for a moment, although nobody asked for that (`poll=`).
//!
//! To sleep is to be woken: where the thread has a processor to itself, that takes longer than a guest takes to answer, and most of a
//! round trip is waiting for it. So a thread that is woken for frames again and again, soon after it fell asleep, looks about for
//! [`TIME`] after each instead. Where it shares its processor with the guest, nothing comes while it looks; where it shares it with
//! anything else, that takes the processor away in the end. A row of looks that found frames less than [`WORTH`] times, or that lost
//! its processor, doubles the number of wake-ups wanted before the next try, up to [`RARELY`], and one that paid makes it
//! [`OFTEN`] again. What moves no frame counts for nothing: a guest has no thread look about for it by kicks, or by what is refused.
//!
//! What [`KickModeration`](super::kick_moderation::KickModeration) holds off is a stream; it is tried first, and these looks are for
//! what gains nothing by it: who waits for each answer.

use std::time::{Duration, Instant};

/// How long it looks for the next frame: about what a sleep and its end cost, and as long as a program of the host takes to answer.
const TIME: Duration = Duration::from_micros(50);
/// A wake-up that came sooner than this could have been spared: the same, and the time that a wake-up takes.
const SOON: Duration = Duration::from_micros(100);
/// How often a row of looks has to find frames.
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
#[derive(Debug)]
struct Row {
    /// How often they found frames.
    found: u32,
    /// How many frames had gone through by the last one that did, and until when they go on; none before the first.
    last: Option<(u64, Instant)>,
    /// When the last look began, unless there was work meanwhile.
    began: Option<Instant>,
}

impl AdaptivePoll {
    pub(super) fn new() -> Self {
        Self { soon: 0, wanted: OFTEN, row: None }
    }

    /// It was woken after it `slept` for so long, and frames have `moved` or not.
    pub(super) fn woken(&mut self, slept: Duration, moved: bool) {
        if slept >= SOON {
            self.soon = 0;
        } else if moved {
            self.soon += 1;
        }
        if self.soon >= self.wanted {
            (self.soon, self.row) = (0, Some(Row { found: 0, last: None, began: None }));
        }
    }

    /// The thread has no work any more, and so many frames have gone through since its birth; its last look was over at `looked`:
    /// whether it is to look once more.
    pub(super) fn polls_on(&mut self, moved: u64, looked: Instant, now: Instant) -> bool {
        let Some(row) = &mut self.row else { return false };
        let Some((before, until)) = row.last else {
            (row.last, row.began) = (Some((moved, now + TIME)), Some(now));
            return true;
        };
        // A look of that length was none: another had the processor.
        let alone = row.began.is_none_or(|began| looked.saturating_duration_since(began) < TIME);
        let found = moved != before;
        if alone && (found || now < until) {
            row.found += u32::from(found);
            (row.last, row.began) = (Some((moved, if found { now + TIME } else { until })), Some(now));
            return true;
        }
        let paid = alone && row.found >= WORTH;
        self.wanted = if paid { OFTEN } else { (2 * self.wanted).min(RARELY) };
        self.row = None;
        false
    }

    /// The thread has work left: however long that takes, it is no look.
    pub(super) fn works(&mut self) {
        if let Some(row) = &mut self.row {
            row.began = None;
        }
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
        moved: u64,
    }

    impl Thread {
        fn new() -> Self {
            Self { poll: AdaptivePoll::new(), now: Instant::now(), moved: 0 }
        }

        /// What comes so long after the last, which is `frames` of them; and whether it was looked for. Else the thread slept.
        fn event(&mut self, after: Duration, frames: u64) -> bool {
            let due = self.now + after;
            while self.poll.polls_on(self.moved, self.now, self.now) {
                self.now += MICRO;
                if self.now >= due {
                    self.moved += frames;
                    return true;
                }
            }
            self.moved += frames;
            self.poll.woken(due.saturating_duration_since(self.now), frames > 0);
            self.now = self.now.max(due);
            false
        }

        fn frame(&mut self, after: Duration) -> bool {
            self.event(after, 1)
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
        for frames in [0, 1] {
            let mut thread = Thread::new();
            for at in 0..100 * OFTEN {
                let long = at % OFTEN == 0;
                let looked = match long {
                    true => thread.event(2 * SOON, frames),
                    false => thread.frame(30 * MICRO),
                };
                assert!(!looked, "{at}");
            }
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
    fn what_moves_no_frame_is_not_looked_for() {
        let mut thread = Thread::new();
        for _ in 0..100 * OFTEN {
            assert!(!thread.event(30 * MICRO, 0));
        }
        // Nor does it keep up looks that frames have begun.
        while !thread.frame(30 * MICRO) {}
        let until = thread.now + TIME;
        while thread.event(10 * MICRO, 0) {}
        assert!(thread.now <= until + 10 * MICRO);
        assert!(thread.poll.row.is_none());
    }

    /// A thread that looks, and has found frames so often.
    fn looking(found: u32) -> (AdaptivePoll, Instant) {
        let mut poll = AdaptivePoll::new();
        (0..OFTEN).for_each(|_| poll.woken(MICRO, true));
        let begin = Instant::now();
        (0..=u64::from(found)).for_each(|moved| assert!(poll.polls_on(moved, begin, begin)));
        (poll, begin)
    }

    #[test]
    fn who_had_to_leave_its_processor_does_not_look_whatever_it_found() {
        for found in [0, 10 * WORTH] {
            let (mut poll, begin) = looking(found);
            // There is a frame, but it was late.
            let late = begin + 2 * TIME;
            assert!(!poll.polls_on(u64::from(found) + 1, late, late));
            assert_eq!((poll.wanted, poll.row.is_some()), (2 * OFTEN, false));
        }
    }

    #[test]
    fn what_takes_long_because_it_is_much_is_no_lost_processor() {
        let (mut poll, begin) = looking(WORTH);
        let late = begin + 2 * TIME;
        poll.works();
        assert!(poll.polls_on(1000, late, late));
        assert!(poll.row.is_some());
    }

    #[test]
    fn a_look_and_a_row_have_an_end_to_the_nanosecond() {
        let nano = Duration::from_nanos(1);
        for (late, looks) in [(TIME - nano, true), (TIME, false)] {
            // So long after the last frame, looked at in time.
            let (mut poll, begin) = looking(1);
            assert_eq!(poll.polls_on(1, begin, begin + late), looks, "{late:?}");
            // A look that took so long, with a frame.
            let (mut poll, begin) = looking(1);
            assert_eq!(poll.polls_on(2, begin + late, begin + late), looks, "{late:?}");
        }
    }

    #[test]
    fn who_waits_for_something_else_looks_no_more() {
        let (mut poll, begin) = looking(1);
        poll.stop();
        assert!(!poll.polls_on(2, begin, begin));
        assert_eq!(poll.wanted, OFTEN, "it was not in vain");
    }
}
