//! The README's table of `--net` keys is what net's own table makes.
//!
//! `UPDATE_README=1 cargo test -p net --test readme` writes them anew.

use std::env;
use std::fs;
use std::path::PathBuf;

use net::{Key, WireKind};

fn readme() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../README.md")
}

/// The table of the keys that one of `kinds` takes: each as one may type it, whose it is, and what it means.
fn table(kinds: &[WireKind]) -> String {
    let mut text = "| key | for | meaning |\n|---|---|---|\n".to_owned();
    for key in net::keys() {
        let takers: Vec<_> = kinds.iter().filter(|kind| key.kinds.contains(kind)).copied().collect();
        if takers.is_empty() {
            continue;
        }
        let words = takers.iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(", ");
        let takers = if takers.len() == kinds.len() { "all" } else { &words };
        let form = if key.alone { key.name.to_owned() } else { format!("{}={}", key.name, key.example) };
        text += &format!("| `{form}` | {takers} | {} |\n", meaning(key));
    }
    text
}

fn meaning(key: &Key) -> String {
    match key.repeat.words() {
        Some(words) => format!("{}; {words}", key.help),
        None => key.help.to_owned(),
    }
}

/// The README with every table between `<!-- keys:KIND[,KIND]... -->` and `<!-- /keys -->` made anew, and the kinds of each.
fn with_tables(readme: &str) -> (String, Vec<Vec<WireKind>>) {
    const OPEN: &str = "<!-- keys:";
    const CLOSE: &str = "<!-- /keys -->";
    let (mut made, mut rest, mut found) = (String::new(), readme, Vec::new());
    while let Some(at) = rest.find(OPEN) {
        let end = at + rest[at..].find("-->").expect("the marker ends") + "-->".len();
        let words = rest[at + OPEN.len()..end - "-->".len()].trim().split(',');
        let kinds: Vec<_> = words.map(|word| WireKind::from_word(word).expect(word)).collect();
        let close = end + rest[end..].find(CLOSE).expect("the table ends with its marker");
        made += &format!("{}\n{}", &rest[..end], table(&kinds));
        found.push(kinds);
        rest = &rest[close..];
    }
    (made + rest, found)
}

#[test]
fn the_tables_of_keys_are_those_of_the_program() {
    let old = fs::read_to_string(readme()).unwrap();
    let (new, found) = with_tables(&old);
    if env::var_os("UPDATE_README").is_some() {
        fs::write(readme(), &new).unwrap();
    } else if let Some((old, new)) = old.lines().zip(new.lines()).find(|(old, new)| old != new) {
        panic!("README.md has\n{old}\nwhere the table of keys makes\n{new}\n(UPDATE_README=1 writes it)");
    } else {
        assert_eq!(old.len(), new.len(), "UPDATE_README=1 writes the rows that differ");
    }
    for kind in net::kinds() {
        assert!(found.iter().flatten().any(|found| *found == kind.kind), "no table has {}", kind.word);
    }
}

/// The anchor that a heading has on a page (GitHub's rule for plain text).
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn the_sections_and_files_that_it_refers_to_are_there() {
    if env::var_os("UPDATE_README").is_some() {
        return eprintln!("skipped: the other test writes README.md");
    }
    let text = fs::read_to_string(readme()).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchors: Vec<_> = headings.map(|line| anchor(line.trim_start_matches('#'))).collect();
    for link in text.split("](#").skip(1) {
        let target = link.split(')').next().unwrap_or_default();
        assert!(anchors.iter().any(|anchor| anchor == target), "{target}: {anchors:?}");
    }
    for link in text.split("](").skip(1) {
        let target = link.split(')').next().unwrap_or_default();
        let is_file = !target.starts_with("http") && !target.starts_with('#');
        assert!(!is_file || readme().with_file_name(target).exists(), "{target}");
    }
}
