//! Figures as tables for people and as JSON for programs.

use std::fmt::Write as _;
use std::path::Path;

/// One figure, measured once in each round; none of a round that failed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<Option<f64>>);

impl Samples {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn push(&mut self, value: impl Into<Option<f64>>) {
        self.0.push(value.into());
    }

    /// Round by round.
    pub(crate) fn rounds(&self) -> &[Option<f64>] {
        &self.0
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.0.iter().copied().flatten()
    }

    pub(crate) fn median(&self) -> Option<f64> {
        let mut sorted: Vec<_> = self.values().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            len if len % 2 == 1 => Some(sorted[middle]),
            _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        }
    }

    /// The least and the most.
    pub(crate) fn range(&self) -> (f64, f64) {
        self.values().fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), v| (min.min(v), max.max(v)))
    }

    /// Each round's figure over the other's of the same round, where there are both.
    pub(crate) fn over(&self, other: &Self) -> Self {
        let ratio = |(a, b): (&Option<f64>, &Option<f64>)| {
            a.zip(*b).filter(|(_, other)| *other != 0.0).map(|(a, b)| a / b)
        };
        Self(self.0.iter().zip(&other.0).map(ratio).collect())
    }

    /// The same with each figure changed.
    pub(crate) fn map(&self, change: impl Fn(f64) -> f64) -> Self {
        Self(self.0.iter().map(|value| value.map(&change)).collect())
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().map(Some).collect())
    }
}

/// What a row is to reach.
#[derive(Clone, Debug)]
pub(crate) enum Goal {
    /// The first column.
    Under(f64),
    AtLeast(f64),
    /// What became of columns beside each other, in words.
    Beside(String),
}

impl Goal {
    fn say(&self, first: Option<f64>) -> String {
        let (word, goal, reached): (_, _, fn(f64, f64) -> bool) = match self {
            Self::Under(goal) => ("under", *goal, |value, goal| value < goal),
            Self::AtLeast(goal) => ("at least", *goal, |value, goal| value >= goal),
            Self::Beside(said) => return said.clone(),
        };
        let Some(value) = first else { return String::new() };
        let reached = reached(value, goal);
        format!("{word} {}: {}", number(goal), if reached { "reached" } else { "MISSED" })
    }
}

/// One thing measured, of each system in the order of the table's columns.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) cells: Vec<Samples>,
    pub(crate) goal: Option<Goal>,
}

/// Systems side by side.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Row>,
    /// What a reader must know, a line each.
    pub(crate) notes: Vec<String>,
}

impl Table {
    pub(crate) fn print(&self) {
        println!("\n{}", self.title);
        let goals = self.rows.iter().any(|row| row.goal.is_some());
        let mut lines = vec![vec![String::new(), String::new()]];
        lines[0].extend(self.columns.iter().cloned());
        lines[0].extend(goals.then(|| "goal".to_owned()));
        for row in &self.rows {
            let mut line = vec![row.what.clone(), row.unit.to_owned()];
            line.extend(row.cells.iter().map(cell));
            line.resize(2 + self.columns.len(), String::new());
            let first = row.cells.first().and_then(Samples::median);
            line.extend(goals.then(|| row.goal.as_ref().map(|goal| goal.say(first)).unwrap_or_default()));
            lines.push(line);
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..lines[0].len()).map(width).collect();
        for line in &lines {
            let mut text = String::new();
            for (column, (word, width)) in line.iter().zip(&widths).enumerate() {
                let figures = (2..2 + self.columns.len()).contains(&column);
                let _ = if figures {
                    write!(text, "{word:>width$}   ")
                } else {
                    write!(text, "{word:<width$}  ")
                };
            }
            println!("  {}", text.trim_end());
        }
        for note in &self.notes {
            println!("  {note}");
        }
    }

    pub(crate) fn write_json(&self, path: &Path) -> Result<(), String> {
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().zip(&row.cells).map(|(name, samples)| {
                let rounds = samples.0.iter().map(|value| json_number(*value));
                let median = json_number(samples.median());
                format!("{}: {{\"median\": {median}, \"rounds\": {}}}", quote(name), array(rounds))
            });
            let cells: Vec<_> = cells.collect();
            let (what, unit) = (quote(&row.what), quote(row.unit));
            let goal = match &row.goal {
                Some(Goal::Under(goal)) => format!(", \"under\": {goal}"),
                Some(Goal::AtLeast(goal)) => format!(", \"at_least\": {goal}"),
                Some(Goal::Beside(said)) => format!(", \"beside\": {}", quote(said)),
                None => String::new(),
            };
            format!(
                "\n    {{\"what\": {what}, \"unit\": {unit}{goal}, \"figures\": {{{}}}}}",
                cells.join(", ")
            )
        });
        let text = format!(
            "{{\n  \"title\": {},\n  \"machine\": {},\n  \"notes\": {},\n  \"rows\": {}\n}}\n",
            quote(&self.title),
            quote(&machine()),
            array(self.notes.iter().map(|note| quote(note))),
            array(rows)
        );
        let wrote =
            path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, text));
        wrote.map_err(|error| format!("cannot write {}: {error}", path.display()))
    }
}

/// What the figures were measured on: processor, how many of it, kernel, and how busy it was.
fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo");
    let model = model.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("?");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let (release, load) = (read("/proc/sys/kernel/osrelease"), read("/proc/loadavg"));
    format!("{cpus} x {model}, Linux {}, load {}", release.trim(), load.split(' ').next().unwrap_or("?"))
}

/// The median, with the least and the most where there are several.
pub(crate) fn cell(samples: &Samples) -> String {
    let Some(median) = samples.median() else { return "-".to_owned() };
    let (min, max) = samples.range();
    match samples.values().count() {
        1 => number(median),
        _ => format!("{} ({}-{})", number(median), number(min), number(max)),
    }
}

/// About three digits that matter, or all before the point.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        small if small < 0.1 => 3,
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

fn json_number(value: Option<f64>) -> String {
    value.map_or("null".to_owned(), |value| value.to_string())
}

fn array(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples<const N: usize>(values: [Option<f64>; N]) -> Samples {
        let mut samples = Samples::new();
        values.into_iter().for_each(|value| samples.push(value));
        samples
    }

    #[test]
    fn numbers_have_the_digits_that_matter() {
        let said = [0.0, 0.0312, 0.5, 9.876, 45.67, 1234.5, -0.5].map(number);
        assert_eq!(said, ["0", "0.031", "0.50", "9.88", "45.7", "1234", "-0.50"]);
    }

    #[test]
    fn a_round_that_failed_is_no_figure() {
        let some = samples([Some(4.0), None, Some(2.0)]);
        assert_eq!(some.median(), Some(3.0));
        assert_eq!(cell(&some), "3.00 (2.00-4.00)");
        assert_eq!(cell(&samples([None, Some(2.0)])), "2.00");
        assert_eq!(cell(&samples([None])), "-");
    }

    #[test]
    fn a_ratio_is_of_figures_of_one_round() {
        let (ours, theirs) = (samples([Some(4.0), None, Some(9.0)]), samples([Some(2.0), Some(1.0), None]));
        assert_eq!(ours.over(&theirs).median(), Some(2.0));
        assert_eq!(ours.over(&samples([Some(0.0); 3])).median(), None);
    }
}
