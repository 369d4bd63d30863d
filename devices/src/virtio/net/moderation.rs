//! When a thread without work waits a moment with its eyes closed, instead of asking to be woken for the next frame.
//!
//! A woken thread takes its processor from whoever has it. Where processors are few, that is the guest whose frames it moves, and
//! woken for each frame it has the guest stop for each. So a thread that is woken again and again, right after it fell asleep, closes
//! its eyes for about as long as [`COSTS`] of its turns take: meanwhile the guest goes on without a kick, and its frames come
//! together. It is a bounded while, by a timer, and never a slice of the scheduler's, which a busy guest has for milliseconds.
//!
//! **Invariant: who waits for an answer does not wait for this.** A while that brought fewer than [`WORTH`] frames is not followed by
//! another one, and each such makes the next try rarer by half: a guest that sends one frame, and the next one only after the answer,
//! has nothing to be gathered.

use std::time::Duration;

/// How many turns' time a while lasts: then a wake-up for each frame, which costs about a turn itself, takes a fifth of the time.
const COSTS: u32 = 4;
/// The bounds of a while: shorter, the timer itself is not so exact; and longer nobody waits.
const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(1);
/// How many frames a while has to bring.
const WORTH: u64 = 3;
/// After so many wake-ups that came at once, a while is tried, at first and at the rarest.
const OFTEN: u32 = 4;
const RARELY: u32 = 1 << 14;

/// What a thread knows of its wake-ups.
#[derive(Debug)]
pub(super) struct Moderation {
    /// How long a while is, about.
    time: Duration,
    /// Wake-ups in a row that came sooner than a while after it fell asleep.
    soon: u32,
    /// How many of them there must be for a try.
    wanted: u32,
    /// How many frames had gone through when the last while began; none where the next one is the first.
    before: Option<u64>,
    /// It is at it.
    closes: bool,
}

impl Moderation {
    pub(super) fn new() -> Self {
        Self { time: SHORTEST, soon: 0, wanted: OFTEN, before: None, closes: false }
    }

    /// It was woken after it `slept` for so long.
    pub(super) fn woken(&mut self, slept: Duration) {
        self.soon = if slept < self.time { self.soon + 1 } else { 0 };
        if self.soon >= self.wanted {
            (self.soon, self.closes, self.before) = (0, true, None);
        }
    }

    /// It has no work, after a turn that took so long, and so many frames have gone through since its birth: how long it is to wait
    /// before it looks again, if it is not to ask for a wake-up.
    pub(super) fn closes_eyes(&mut self, turn: Duration, moved: u64) -> Option<Duration> {
        self.time = (self.time * 7 + (turn * COSTS).clamp(SHORTEST, LONGEST)) / 8;
        if !self.closes {
            return None;
        }
        match self.before.replace(moved) {
            Some(before) if moved.wrapping_sub(before) < WORTH => {
                (self.closes, self.wanted) = (false, (2 * self.wanted).min(RARELY));
                return None;
            }
            Some(_) => self.wanted = OFTEN,
            None => {}
        }
        Some(self.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(5);
    const LATER: Duration = Duration::from_millis(3);
    const TURN: Duration = Duration::from_micros(10);

    #[test]
    fn a_thread_that_is_woken_at_once_again_and_again_closes_its_eyes() {
        let mut moderation = Moderation::new();
        for slept in [SOON, SOON, SOON, LATER, SOON, SOON, SOON] {
            moderation.woken(slept);
            assert_eq!(moderation.closes_eyes(TURN, 0), None);
        }
        moderation.woken(SOON);
        // As long as it pays.
        for round in 0..1000 {
            assert!(moderation.closes_eyes(TURN, round * WORTH).is_some(), "{round}");
        }
        assert_eq!(moderation.closes_eyes(TURN, 999 * WORTH + 1), None);
    }

    #[test]
    fn who_waits_for_each_answer_is_left_alone_more_and_more() {
        let mut moderation = Moderation::new();
        let mut tries = Vec::new();
        for frame in 0..100_000 {
            moderation.woken(SOON);
            let mut moved = frame;
            while moderation.closes_eyes(TURN, moved).is_some() {
                tries.push(frame);
                moved += 1;
            }
        }
        assert!(tries.len() < 20, "{tries:?}");
        assert!(tries[..8].windows(3).all(|tries| tries[2] - tries[1] > tries[1] - tries[0]), "{tries:?}");
        // One that pays, and it is as at first.
        moderation.wanted = RARELY;
        (moderation.closes, moderation.before) = (true, Some(0));
        assert!(moderation.closes_eyes(TURN, WORTH).is_some() && moderation.wanted == OFTEN);
    }

    #[test]
    fn a_while_is_as_long_as_some_turns_within_bounds() {
        for (turn, wanted) in [
            (Duration::ZERO, SHORTEST),
            (Duration::from_micros(50), Duration::from_micros(200)),
            (Duration::from_secs(1), LONGEST),
        ] {
            let mut moderation = Moderation::new();
            moderation.closes = true;
            let mut last = Duration::ZERO;
            for round in 0..100 {
                last = moderation.closes_eyes(turn, round * WORTH).unwrap();
            }
            let apart = last.max(wanted) - last.min(wanted);
            assert!(apart < Duration::from_micros(2), "{last:?} after turns of {turn:?}");
        }
    }
}
