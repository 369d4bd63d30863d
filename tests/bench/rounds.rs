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

/// A system that has failed so often and was never measured is not tried any more: a wrong command line costs its wait for a
/// guest each time.
const HOPELESS: usize = 4;

/// Measures each of `names` in every round, `measure` being told which. A guest that stands still, as the lab's QEMU makes one do
/// now and then, is tried once more; one that fails again is a figure less.
pub(crate) fn take_turns<const N: usize>(
    rounds: usize,
    names: &[String],
    mut measure: impl FnMut(usize) -> Result<[Option<f64>; N], String>,
) -> Turns {
    let mut turns = Turns { figures: vec![vec![Samples::new(); N]; names.len()], failures: Vec::new() };
    let mut failed = vec![0; names.len()];
    for round in 0..rounds {
        for at in 0..names.len() {
            let at = if round % 2 == 0 { at } else { names.len() - 1 - at };
            let name = &names[at];
            let mut figures = [None; N];
            for again in [false, true] {
                let never = turns.figures[at].iter().all(|samples| samples.median().is_none());
                if never && failed[at] >= HOPELESS {
                    break;
                }
                let times = if again { ", again" } else { "" };
                eprintln!("bench: round {} of {rounds}: {name}{times}", round + 1);
                let done = panic::catch_unwind(AssertUnwindSafe(|| measure(at)));
                match done.unwrap_or_else(|_| Err("the guest did not answer".to_owned())) {
                    Ok(measured) => {
                        figures = measured;
                        break;
                    }
                    Err(error) => {
                        failed[at] += 1;
                        eprintln!("bench: {name}: {error}");
                        let first = error.lines().next().unwrap_or_default();
                        let times = if again { "again" } else { "and was measured again" };
                        turns.failures.push(format!("round {} of {name} failed {times}: {first}", round + 1));
                    }
                }
            }
            // Also of a round that failed, so that figures beside each other are of one round.
            turns.figures[at].iter_mut().zip(figures).for_each(|(samples, figure)| samples.push(figure));
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

    #[test]
    fn a_round_that_failed_leaves_its_place() {
        let mut calls = [0; 2];
        let turns = take_turns(2, &names(), |at| {
            calls[at] += 1;
            match (at, calls[at]) {
                (1, 1 | 2) => Err("no".to_owned()),
                (_, calls) => Ok([Some(calls as f64)]),
            }
        });
        // b was measured in the second round alone, in which a was 2.
        assert_eq!(turns.figures[1][0].over(&turns.figures[0][0]).median(), Some(1.5));
    }

    #[test]
    fn what_never_works_is_given_up() {
        let mut calls = [0; 2];
        let turns = take_turns(5, &names(), |at| {
            calls[at] += 1;
            if at == 1 { Err("no".to_owned()) } else { Ok([Some(1.0)]) }
        });
        assert_eq!(calls, [5, HOPELESS]);
        assert_eq!(turns.failures.len(), HOPELESS);
    }
}
