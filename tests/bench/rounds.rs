//! What is compared takes turns: in every round each once, in an order that alternates.

use std::panic::{self, AssertUnwindSafe};

use crate::report::Samples;

/// What was measured of each system, in the order of their names.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Of each system, its figures.
    pub(crate) figures: Vec<Vec<Samples>>,
    /// What a reader must know of those that failed, a line each.
    pub(crate) failures: Vec<String>,
}

/// Measures each of `names` in every round, `measure` being told which. A guest that stands still, as the lab's QEMU makes one do
/// now and then, is tried once more; one that fails again is a figure less.
pub(crate) fn take_turns<const N: usize>(
    rounds: usize,
    names: &[String],
    mut measure: impl FnMut(usize) -> Result<[Option<f64>; N], String>,
) -> Turns {
    let mut turns = Turns { figures: vec![vec![Samples::new(); N]; names.len()], failures: Vec::new() };
    for round in 0..rounds {
        for at in 0..names.len() {
            let at = if round % 2 == 0 { at } else { names.len() - 1 - at };
            for again in [false, true] {
                eprintln!(
                    "bench: round {} of {rounds}: {}{}",
                    round + 1,
                    names[at],
                    if again { ", again" } else { "" }
                );
                let done = panic::catch_unwind(AssertUnwindSafe(|| measure(at)));
                match done.unwrap_or_else(|_| Err("the guest did not answer".to_owned())) {
                    Ok(measured) => {
                        let figures = turns.figures[at].iter_mut().zip(measured);
                        figures
                            .for_each(|(samples, figure)| figure.into_iter().for_each(|v| samples.push(v)));
                        break;
                    }
                    Err(error) => {
                        eprintln!("bench: {}: {error}", names[at]);
                        let first = error.lines().next().unwrap_or_default();
                        let times = if again { "again" } else { "and was measured again" };
                        turns.failures.push(format!(
                            "round {} of {} failed {times}: {first}",
                            round + 1,
                            names[at]
                        ));
                    }
                }
            }
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["a", "b"].map(str::to_owned).to_vec()
    }

    #[test]
    fn the_order_alternates() {
        let mut order = Vec::new();
        let turns = take_turns(3, &names(), |at| {
            order.push(at);
            Ok([Some(at as f64)])
        });
        assert_eq!(order, [0, 1, 1, 0, 0, 1]);
        assert_eq!(turns.figures[1][0].median(), Some(1.0));
        assert!(turns.failures.is_empty());
    }

    #[test]
    fn what_fails_is_measured_again_once_and_said() {
        let mut calls = 0;
        let turns = take_turns(1, &names(), |at| {
            calls += 1;
            match (at, calls) {
                (0, 1) => panic!("as a guest that does not answer"),
                (1, _) => Err("no\nmore".to_owned()),
                _ => Ok([Some(5.0), None]),
            }
        });
        assert_eq!(calls, 4);
        assert_eq!(turns.figures[0].iter().map(Samples::median).collect::<Vec<_>>(), [Some(5.0), None]);
        assert_eq!(turns.figures[1][0].median(), None);
        let said = [
            "round 1 of a failed and was measured again: the guest did not answer",
            "round 1 of b failed and was measured again: no",
            "round 1 of b failed again: no",
        ];
        assert_eq!(turns.failures, said);
    }
}
