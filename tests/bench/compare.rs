//! What became of a figure beside the same of other systems.

use crate::report::{Samples, cell};

/// Which way a figure is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// As good as the other, within what the lab's figures spread anyhow.
const LEVEL: f64 = 0.95;
/// Counts below this differ by chance: some system calls of a timer among thousands of frames.
const NOTHING: f64 = 0.01;

/// What is to be reached beside each of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    Ahead,
    Level,
}

/// `ours` beside that of `others` to which it compares worst: `1.25 (1.10-1.30) NAME, ahead`. The number is the median of the ratios
/// of figures of the same round, turned so that more than 1 is better. None where nothing can be compared.
pub(crate) fn beside(
    ours: &Samples,
    others: &[(&str, &Samples)],
    better: Better,
    aim: Aim,
) -> Option<String> {
    let ratios = others.iter().filter_map(|(name, theirs)| {
        let ratios = times_better(ours, theirs, better);
        Some((ratios.median()?, ratios, name))
    });
    let (ratio, ratios, name) = ratios.min_by(|(a, ..), (b, ..)| a.total_cmp(b))?;
    let said = match aim {
        Aim::Ahead if ratio > 1.0 => "ahead",
        Aim::Level if ratio > 1.0 / LEVEL => "ahead",
        Aim::Level if ratio >= LEVEL => "level",
        _ => "BEHIND",
    };
    Some(format!("{} {name}, {said}", cell(&ratios)))
}

fn times_better(ours: &Samples, theirs: &Samples, better: Better) -> Samples {
    let [ours, theirs] = [ours, theirs].map(|samples| samples.map(|value| value.max(NOTHING)));
    match better {
        Better::More => ours.over(&theirs),
        Better::Less => theirs.over(&ours),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples<const N: usize>(values: [f64; N]) -> Samples {
        values.into_iter().collect()
    }

    #[test]
    fn the_worst_comparison_counts_in_either_sense() {
        let (ours, slow, fast) = (samples([10.0, 12.0]), samples([5.0, 6.0]), samples([20.0, 24.0]));
        let say = |better| beside(&ours, &[("slow", &slow), ("fast", &fast)], better, Aim::Ahead).unwrap();
        assert_eq!(say(Better::More), "0.50 (0.50-0.50) fast, BEHIND");
        assert_eq!(say(Better::Less), "0.50 (0.50-0.50) slow, BEHIND");
        let mixed = samples([5.0, 24.0, 10.0]);
        let said = beside(&samples([10.0; 3]), &[("mixed", &mixed)], Better::More, Aim::Ahead).unwrap();
        assert_eq!(said, "1.00 (0.42-2.00) mixed, BEHIND");
    }

    #[test]
    fn level_has_some_room_and_ahead_has_none() {
        let say =
            |ours, aim| beside(&samples([ours]), &[("x", &samples([100.0]))], Better::More, aim).unwrap();
        assert_eq!(say(96.0, Aim::Level), "0.96 x, level");
        assert_eq!(say(94.0, Aim::Level), "0.94 x, BEHIND");
        assert_eq!(say(110.0, Aim::Level), "1.10 x, ahead");
        assert_eq!(say(99.0, Aim::Ahead), "0.99 x, BEHIND");
        assert_eq!(say(101.0, Aim::Ahead), "1.01 x, ahead");
    }

    #[test]
    fn next_to_nothing_is_nothing() {
        let (ours, theirs) = (samples([0.004]), samples([0.0]));
        assert_eq!(beside(&ours, &[("x", &theirs)], Better::Less, Aim::Level).unwrap(), "1.00 x, level");
        assert_eq!(beside(&ours, &[("x", &Samples::new())], Better::Less, Aim::Level), None);
    }
}
