//! The part of the help of `run` that net's table of kinds and keys makes.

use net::{Key, WireKind};

/// The widest line: clap would have a longer one go on at the left of a terminal.
const COLUMNS: usize = 80;
/// The column in which meanings begin.
const MEANING: usize = 25;

/// The kinds of network card and their keys, as two tables.
pub(super) fn net_help() -> String {
    let mut text = "Network cards:".to_owned();
    for kind in net::kinds() {
        push_row(&mut text, kind.form, kind.help);
    }
    text.push_str("\nKeys:");
    for key in net::keys() {
        push_row(&mut text, &key.form(), &meaning(key));
    }
    text
}

/// What a key means, how often it may be there, whose it is, and what holds without it.
fn meaning(key: &Key) -> String {
    let mut text = key.help.to_owned();
    if let Some(repeat) = key.repeat.words() {
        text += "; ";
        text += repeat;
    }
    let default = key.default.map(|default| format!("default: {default}"));
    let notes: Vec<String> = owners(key).into_iter().chain(default).collect();
    if !notes.is_empty() {
        text += &format!(" ({})", notes.join("; "));
    }
    text
}

/// The kinds that take a key; none where all do.
fn owners(key: &Key) -> Option<String> {
    let words = |kinds: &[WireKind]| kinds.iter().map(|kind| kind.word()).collect::<Vec<_>>().join(", ");
    let all = net::kinds().iter().map(|row| row.kind);
    let others: Vec<WireKind> = all.filter(|kind| !key.kinds.contains(kind)).collect();
    match others[..] {
        [] => None,
        [other] => Some(format!("not for {other}")),
        _ => Some(format!("for {}", words(key.kinds))),
    }
}

/// Adds a line with `form` at its left and `meaning` in a column of its own, on as many lines as it takes. A form that leaves no
/// space before that column has a line of its own.
fn push_row(text: &mut String, form: &str, meaning: &str) {
    let mut line = format!("\n  {form}");
    let mut width = 2 + form.len();
    if width + 1 > MEANING - 1 {
        line.push('\n');
        width = 0;
    }
    line += &" ".repeat(MEANING - width);
    width = MEANING;
    for word in meaning.split(' ') {
        if width + 1 + word.len() > COLUMNS {
            line += &format!("\n{}", " ".repeat(MEANING));
            width = MEANING;
        }
        if width > MEANING {
            line.push(' ');
            width += 1;
        }
        line += word;
        width += word.len();
    }
    text.push_str(&line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_columns() {
        let mut text = String::new();
        push_row(&mut text, "mtu=BYTES", &"word ".repeat(12).trim_end().replace("word word", "word-word"));
        push_row(&mut text, "mode=bridge|vepa|private", "long");
        assert_eq!(
            text,
            "
  mtu=BYTES              word-word word-word word-word word-word word-word
                         word-word
  mode=bridge|vepa|private
                         long"
        );
    }

    #[test]
    fn every_kind_and_every_key_is_there_with_what_it_is() {
        let help = net_help();
        for form in
            net::kinds().iter().map(|kind| kind.form.to_owned()).chain(net::keys().iter().map(Key::form))
        {
            let row = format!("\n  {form}");
            assert!(help.lines().any(|line| line.starts_with(&row[1..])), "{form}: {help}");
        }
        assert!(help.lines().all(|line| line.len() <= COLUMNS), "{help}");
        // Words as the table has them, whatever line they are on.
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "(not for fd; default: 1)",
            "(for tap, tun; default: on)",
            "(default: any)",
            "repeatable (for tap)",
        ] {
            assert!(words.contains(part), "{part}: {words}");
        }
    }
}
