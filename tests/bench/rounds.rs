//! What is compared takes turns: in every round each once, in an order that alternates.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use crate::report::Samples;

/// What was measured of each system, in the order of their names.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Of each system, its figures.
    pub(crate) figures: Vec<Vec<Samples>>,
    /// What a reader must know of those that failed, a line each.
    pub(crate) failures: Vec<String>,
}

impl Turns {
    fn new(systems: usize, figures: usize) -> Self {
        Self { figures: vec![vec![Samples::new(); figures]; systems], failures: Vec::new() }
    }

    fn rounds(&self) -> usize {
        self.figures.first().and_then(|of| of.first()).map_or(0, |samples| samples.rounds().len())
    }

    /// The names, then a line for each system in each round, then the failures.
    fn text(&self, names: &[String]) -> String {
        let mut text = names.join("\t") + "\n";
        for round in 0..self.rounds() {
            for of_system in &self.figures {
                let word = |samples: &Samples| samples.rounds()[round].map_or("-".into(), |v| v.to_string());
                text += &(of_system.iter().map(word).collect::<Vec<_>>().join(" ") + "\n");
            }
        }
        text + &self.failures.iter().map(|line| format!("! {line}\n")).collect::<String>()
    }

    /// None where the text is of other systems or figures, or not of whole rounds.
    fn of_text(text: &str, names: &[String], figures: usize) -> Option<Self> {
        let mut turns = Self::new(names.len(), figures);
        let rest = text.strip_prefix(&(names.join("\t") + "\n"))?;
        for (at, line) in rest.lines().enumerate() {
            if let Some(failure) = line.strip_prefix("! ") {
                turns.failures.push(failure.to_owned());
                continue;
            }
            let words: Vec<_> = line.split(' ').collect();
            let of_system = turns.figures.get_mut(at % names.len()).filter(|of| of.len() == words.len())?;
            of_system
                .iter_mut()
                .zip(words)
                .for_each(|(samples, word)| samples.push(word.parse::<f64>().ok()));
        }
        let rounds = turns.rounds();
        turns.figures.iter().flatten().all(|samples| samples.rounds().len() == rounds).then_some(turns)
    }
}

/// A system that has failed so often and was never measured is not tried any more: a wrong command line costs its wait for a
/// guest each time.
const HOPELESS: usize = 4;

/// Measures each of `names` in every round, `measure` being told which. A guest that stands still, as the lab's QEMU makes one do
/// now and then, is tried once more; one that fails again is a figure less. So may the lab itself: whole rounds are `kept` in a
/// file until they are all there, and one that finds it goes on with the next.
pub(crate) fn take_turns<const N: usize>(
    rounds: usize,
    names: &[String],
    kept: Option<&Path>,
    mut measure: impl FnMut(usize) -> Result<[Option<f64>; N], String>,
) -> Turns {
    let before = kept.and_then(|file| Turns::of_text(&fs::read_to_string(file).ok()?, names, N));
    let mut turns = before.unwrap_or_else(|| Turns::new(names.len(), N));
    let mut failed = vec![0; names.len()];
    for round in turns.rounds()..rounds {
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
        if let Some(Err(error)) = kept.map(|file| fs::write(file, turns.text(names))) {
            eprintln!("bench: the rounds are not kept: {error}");
        }
    }
    let _ = kept.map(fs::remove_file);
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
        let turns = take_turns(3, &names(), None, |at| {
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
        let turns = take_turns(1, &names(), None, |at| {
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
        let turns = take_turns(2, &names(), None, |at| {
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
        let turns = take_turns(5, &names(), None, |at| {
            calls[at] += 1;
            if at == 1 { Err("no".to_owned()) } else { Ok([Some(1.0)]) }
        });
        assert_eq!(calls, [5, HOPELESS]);
        assert_eq!(turns.failures.len(), HOPELESS);
    }

    #[test]
    fn where_the_lab_died_the_next_one_goes_on() {
        let dir = harness::TempDir::new();
        let file = dir.file("kept", "");
        let figures = |round: usize, at: usize| [Some(round as f64 + at as f64 / 3.0), None];
        let mut calls = 0;
        take_turns(3, &names(), Some(&file), |at| {
            calls += 1;
            if calls == 4 {
                fs::copy(&file, dir.path("after one")).unwrap();
            }
            if calls == 1 { Err("no".to_owned()) } else { Ok(figures(calls, at)) }
        });
        assert!(!file.exists(), "it is kept though all are there");
        fs::rename(dir.path("after one"), &file).unwrap();
        let mut order = Vec::new();
        let turns = take_turns(3, &names(), Some(&file), |at| {
            order.push(at);
            Ok(figures(9, at))
        });
        assert_eq!(order, [1, 0, 0, 1]);
        assert_eq!(turns.figures[0][0].rounds(), [Some(2.0), Some(9.0), Some(9.0)]);
        assert_eq!(turns.figures[1][0].rounds()[0], figures(3, 1)[0]);
        assert_eq!(turns.figures[0][1].rounds(), [None; 3]);
        assert_eq!(turns.failures, ["round 1 of a failed and was measured again: no"]);
        // Of others, it is not theirs; nor is a part of a round.
        for text in ["a\tc\n1\n2\n", "a\tb\n1\n"] {
            fs::write(&file, text).unwrap();
            order.clear();
            take_turns(1, &names(), Some(&file), |at| {
                order.push(at);
                Ok([Some(1.0)])
            });
            assert_eq!(order, [0, 1]);
        }
    }
}
