//! `--timings`: when each step of the start was done.

use std::time::Instant;

use crate::report;

/// The clock of the start; off, no step reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timings(Option<Instant>);

impl Timings {
    /// A clock that counts from `began`, where it is `wanted`.
    pub(crate) fn new(wanted: bool, began: Instant) -> Self {
        Self(wanted.then_some(began))
    }

    /// Prints at once that `milestone` is reached: a start that fails later still shows how far it came, and how fast.
    pub(crate) fn reached(self, milestone: &str) {
        if let Some(began) = self.0 {
            report::print(&line(began.elapsed().as_micros(), milestone));
        }
    }
}

fn line(micros: u128, milestone: &str) -> String {
    format!("{:>6}.{:03} ms  {milestone}\n", micros / 1000, micros % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned() {
        assert_eq!(line(7, "a"), "     0.007 ms  a\n");
        assert_eq!(line(123_456_789, "b"), "123456.789 ms  b\n");
    }

    #[test]
    fn off_there_is_no_clock() {
        assert!(Timings::new(false, Instant::now()).0.is_none());
        assert!(Timings::new(true, Instant::now()).0.is_some());
    }
}
