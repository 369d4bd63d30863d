//! Kick moderation: when a thread without work holds off kicks for a moment, instead of asking for one with the next frame.
//!
//! A woken thread takes its processor from whoever has it. Where processors are few, that is the guest whose frames it moves, and
//! woken for each frame it stops the guest for each. So a thread that is woken again and again, right after it fell asleep, holds
//! kicks off for about as long as [`COSTS`] of its turns take: meanwhile the guest goes on without an exit, and its frames come
//! together. A timer ends each hold-off, and not the scheduler, which may leave a busy guest its processor for milliseconds.
//!
//! A guest that sends one frame, and the next one only after the answer, gains nothing by that: its request waits for the end of the
//! hold-off. So a hold-off that brought fewer than [`WORTH`] frames is not followed by another one, and doubles the number of wake-ups
//! wanted before the next try, up to [`RARELY`]: such a guest meets hold-offs more and more rarely. One that pays makes it
//! [`OFTEN`] again.

use std::time::Duration;

/// How many turns' time a hold-off lasts: a wake-up for each of them, which costs about a turn itself, then takes a fifth of the time.
const COSTS: u32 = 4;
/// The bounds of a hold-off: the timer itself is not exact enough for less, and no frame is to wait for longer.
const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(1);
/// How many frames a hold-off has to bring.
const WORTH: u64 = 3;
/// After so many wake-ups in a row that came soon, a hold-off is tried: at first, and at the rarest.
const OFTEN: u32 = 4;
const RARELY: u32 = 1 << 14;

/// What a thread knows of its wake-ups.
#[derive(Debug)]
pub(super) struct KickModeration {
    /// How long a hold-off is, about.
    time: Duration,
    /// Wake-ups in a row that came sooner than that after it fell asleep.
    soon: u32,
    /// How many of them there must be for a try.
    wanted: u32,
    /// How many frames had gone through when the last hold-off began; none before the first of a row.
    before: Option<u64>,
    /// Hold-offs follow each other, for they pay or have yet to show it.
    active: bool,
}

impl KickModeration {
    pub(super) fn new() -> Self {
        Self { time: SHORTEST, soon: 0, wanted: OFTEN, before: None, active: false }
    }

    /// It was woken after it `slept` for so long.
    pub(super) fn woken(&mut self, slept: Duration) {
        self.soon = if slept < self.time { self.soon + 1 } else { 0 };
        if self.soon >= self.wanted {
            (self.soon, self.active, self.before) = (0, true, None);
        }
    }

    /// True while hold-offs follow each other.
    pub(super) fn is_active(&self) -> bool {
        self.active
    }

    /// The thread has no work, after a turn that took so long, and so many frames have gone through since its birth: how long it is
    /// to hold kicks off before it looks again; none where it is to ask for a kick.
    pub(super) fn holds_off(&mut self, turn: Duration, moved: u64) -> Option<Duration> {
        self.time = (self.time * 7 + (turn * COSTS).clamp(SHORTEST, LONGEST)) / 8;
        if !self.active {
            return None;
        }
        match self.before.replace(moved) {
            Some(before) if moved.wrapping_sub(before) < WORTH => {
                (self.active, self.wanted) = (false, (2 * self.wanted).min(RARELY));
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
    fn a_thread_that_is_woken_again_and_again_holds_kicks_off() {
        let mut moderation = KickModeration::new();
        for slept in [SOON, SOON, SOON, LATER, SOON, SOON, SOON] {
            moderation.woken(slept);
            assert_eq!(moderation.holds_off(TURN, 0), None);
        }
        moderation.woken(SOON);
        // As long as it pays.
        for round in 0..1000 {
            assert!(moderation.holds_off(TURN, round * WORTH).is_some(), "{round}");
        }
        assert_eq!(moderation.holds_off(TURN, 999 * WORTH + 1), None);
    }

    #[test]
    fn who_waits_for_each_answer_meets_hold_offs_more_and_more_rarely() {
        let mut moderation = KickModeration::new();
        let mut tries = Vec::new();
        for frame in 0..100_000 {
            moderation.woken(SOON);
            let mut moved = frame;
            while moderation.holds_off(TURN, moved).is_some() {
                tries.push(frame);
                moved += 1;
            }
        }
        assert!(tries.len() < 20, "{tries:?}");
        assert!(tries[..8].windows(3).all(|tries| tries[2] - tries[1] > tries[1] - tries[0]), "{tries:?}");
        // One that pays, and it is as at first.
        moderation.wanted = RARELY;
        (moderation.active, moderation.before) = (true, Some(0));
        assert!(moderation.holds_off(TURN, WORTH).is_some() && moderation.wanted == OFTEN);
    }

    #[test]
    fn a_hold_off_is_as_long_as_some_turns_within_bounds() {
        for (turn, wanted) in [
            (Duration::ZERO, SHORTEST),
            (Duration::from_micros(50), Duration::from_micros(200)),
            (Duration::from_secs(1), LONGEST),
        ] {
            let mut moderation = KickModeration::new();
            moderation.active = true;
            let mut last = Duration::ZERO;
            for round in 0..100 {
                last = moderation.holds_off(turn, round * WORTH).unwrap();
            }
            let apart = last.max(wanted) - last.min(wanted);
            assert!(apart < Duration::from_micros(2), "{last:?} after turns of {turn:?}");
        }
    }

    #[test]
    fn it_is_active_from_the_last_early_wake_up_to_the_first_hold_off_in_vain() {
        let nano = Duration::from_nanos(1);
        let mut moderation = KickModeration::new();
        // One that is as late as it would have held kicks off is not early.
        (0..10 * OFTEN).for_each(|_| moderation.woken(SHORTEST));
        assert!(!moderation.is_active());
        (1..OFTEN).for_each(|_| moderation.woken(SHORTEST - nano));
        assert!(!moderation.is_active());
        moderation.woken(SHORTEST - nano);
        assert!(moderation.is_active());
        assert!(moderation.holds_off(TURN, 0).is_some() && moderation.is_active());
        assert!(moderation.holds_off(TURN, WORTH).is_some() && moderation.is_active());
        assert!(moderation.holds_off(TURN, 2 * WORTH - 1).is_none() && !moderation.is_active());
    }
}
