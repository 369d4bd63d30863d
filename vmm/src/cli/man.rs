//! What the manual pages in `resources/man` say is what the program takes: each option of each command, each key of `--net`, `--disk`
//! and `--memory`, and nothing else.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::CommandFactory;
use vmm::config::{DiskConfig, MemoryConfig};

use super::Cli;
use super::run::{DISK_HELP, MEMORY_HELP};

const PAGES: [&str; 3] = ["wirevm.1", "wirevm-run.1", "wirevm-net.7"];

fn path(page: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../resources/man").join(page)
}

/// A part of a page: what is below a heading.
struct Part {
    heading: String,
    /// The terms of its lists, each with what is said about it.
    terms: Vec<(String, String)>,
}

/// The text of a line of roff, as a reader sees it.
fn plain(line: &str) -> String {
    let mut text = line.to_owned();
    for (escape, seen) in [
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
        ("\\&", ""),
        ("\\-", "-"),
        ("\\(aq", "'"),
        ("\\(ti", "~"),
        ("\\e", "\\"),
    ] {
        text = text.replace(escape, seen);
    }
    text
}

fn parts(page: &str) -> Vec<Part> {
    let text = std::fs::read_to_string(path(page)).unwrap();
    let mut parts: Vec<Part> = Vec::new();
    let (mut lines, mut in_term) = (text.lines(), false);
    while let Some(line) = lines.next() {
        if let Some(heading) = line.strip_prefix(".SH ").or(line.strip_prefix(".SS ")) {
            parts.push(Part { heading: plain(heading), terms: Vec::new() });
            in_term = false;
        } else if matches!(line, ".TP" | ".TQ") {
            let term = plain(lines.next().unwrap());
            parts.last_mut().unwrap().terms.push((term, String::new()));
            in_term = true;
        } else if line == ".PP" {
            in_term = false;
        } else if let Some((_, said)) =
            parts.last_mut().and_then(|part| part.terms.last_mut()).filter(|_| in_term)
        {
            *said += &plain(line);
            said.push(' ');
        }
    }
    parts
}

/// The part below the heading that is `words`, or else the only one that begins with them.
fn part<'a>(parts: &'a [Part], words: &str) -> &'a Part {
    if let Some(part) = parts.iter().find(|part| part.heading == words) {
        return part;
    }
    let mut found = parts.iter().filter(|part| part.heading.starts_with(&format!("{words} ")));
    let part = found.next().unwrap_or_else(|| panic!("no page has a heading {words}"));
    assert_eq!(found.count(), 0, "{words} has one heading");
    part
}

/// The long options that a part lists.
fn listed(part: &Part) -> BTreeSet<String> {
    let options = part.terms.iter().flat_map(|(term, _)| term.split([' ', ',']));
    options.filter_map(|word| word.strip_prefix("--")).map(str::to_owned).collect()
}

/// Those that a command has, but for the ones that all have.
fn options(command: &clap::Command) -> BTreeSet<String> {
    let longs = command.get_arguments().filter_map(|option| option.get_long());
    longs.filter(|long| !matches!(*long, "help" | "version" | "verbose")).map(str::to_owned).collect()
}

/// Calls `see` with each command that people type, and its words: `wirevm net ls`.
fn each_command(command: &clap::Command, words: &str, see: &mut impl FnMut(&str, &clap::Command)) {
    let children =
        command.get_subcommands().filter(|child| !child.is_hide_set() && child.get_name() != "help");
    for child in children {
        let words = format!("{words} {}", child.get_name());
        match child.has_subcommands() {
            true => each_command(child, &words, see),
            false => see(&words, child),
        }
    }
}

#[test]
fn every_option_of_every_command_is_in_a_page_and_no_other() {
    let (wirevm, run) = (parts("wirevm.1"), parts("wirevm-run.1"));
    let mut commands = BTreeSet::new();
    each_command(&Cli::command(), "wirevm", &mut |words, command| {
        commands.insert(words.to_owned());
        let here = match words {
            "wirevm run" => part(&run, "OPTIONS"),
            _ => part(&wirevm, words),
        };
        assert_eq!(listed(here), options(command), "{words}: in the page, and in the program");
        for (term, said) in &here.terms {
            let long = term.split([' ', ',']).find_map(|word| word.strip_prefix("--"));
            let option = command.get_arguments().find(|option| option.get_long() == long).unwrap();
            let short = option.get_short().map(|short| format!("-{short}"));
            assert_eq!(short, term.split_once(", ").map(|(short, _)| short.to_owned()), "{words}: {term}");
            let default = option.get_default_values().first().and_then(|value| value.to_str());
            // `--detach` and its like have a default that nobody sees.
            if let Some(default) = default.filter(|_| option.get_action().takes_values()) {
                let says = said.split("Default: ").nth(1).unwrap_or_default();
                assert!(
                    says.starts_with(default),
                    "{words} {term}: its default is {default}, and here: {said}"
                );
            }
        }
    });
    assert_eq!(listed(part(&wirevm, "OPTIONS")), ["help", "verbose", "version"].map(str::to_owned).into());
    for heading in wirevm.iter().map(|part| &part.heading).filter(|heading| heading.starts_with("wirevm ")) {
        let is_one = |words: &String| heading == words || heading.starts_with(&format!("{words} "));
        assert!(commands.iter().any(is_one), "there is no command {heading}");
    }
}

#[test]
fn every_kind_and_key_of_a_wire_is_in_its_page_and_no_other() {
    let page = parts("wirevm-net.7");
    let terms = |words| part(&page, words).terms.iter().map(|(term, _)| term.clone()).collect::<Vec<_>>();
    assert_eq!(terms("KINDS"), net::kinds().iter().map(|kind| kind.form.to_owned()).collect::<Vec<_>>());
    assert_eq!(terms("KEYS"), net::keys().iter().map(net::Key::form).collect::<Vec<_>>());
    for (key, (form, said)) in net::keys().iter().zip(&part(&page, "KEYS").terms) {
        if let Some(default) = key.default {
            let default = format!("Default: {default}.");
            assert!(said.contains(&default), "{form} has no \"{default}\": {said}");
        }
        if key.kinds.len() < net::kinds().len() {
            let kinds: Vec<_> = key.kinds.iter().map(ToString::to_string).collect();
            let kinds = format!("For {}.", kinds.join(", "));
            assert!(said.contains(&kinds), "{form} has no \"{kinds}\": {said}");
        }
        if let Some(section) = key.section {
            let is_it = |part: &&Part| part.heading.to_lowercase().replace(' ', "-") == section;
            let found = page.iter().find(is_it).unwrap_or_else(|| panic!("there is no section {section}"));
            assert!(
                said.contains(&format!("See {}.", found.heading)),
                "{form} does not lead to {section}: {said}"
            );
        }
    }
}

#[test]
fn every_key_of_a_disk_and_of_memory_is_in_the_page_and_no_other() {
    let page = parts("wirevm-run.1");
    for (heading, help) in [("DISKS", DISK_HELP), ("KINDS OF MEMORY", MEMORY_HELP)] {
        // The help has a key at the left of a line.
        let at_left = |line: &str| line.starts_with("  ") && !line.starts_with("   ");
        let keys =
            help.lines().filter(|line| at_left(line)).filter_map(|line| line.split_whitespace().next());
        let terms: Vec<_> = part(&page, heading).terms.iter().map(|(term, _)| &**term).collect();
        assert_eq!(terms, keys.collect::<Vec<_>>(), "{heading}");
    }
    // The parsers name their keys to one who takes another.
    let named = |refusal: &str| -> BTreeSet<String> {
        let (_, keys) = refusal.split_once("there are ").unwrap();
        let keys = keys.split(" (").next().unwrap_or_default().replace(" and ", ", ");
        keys.split(", ").map(|key| key.trim_end_matches('=').to_owned()).collect()
    };
    let listed = |heading| -> BTreeSet<String> {
        let terms = part(&page, heading).terms.iter();
        terms.map(|(term, _)| term.split('=').next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(listed("DISKS"), named(&"disk,colour=red".parse::<DiskConfig>().unwrap_err()));
    assert_eq!(listed("KINDS OF MEMORY"), named(&"1G,colour=red".parse::<MemoryConfig>().unwrap_err()));
}

/// What a program says of a page; none where the program is not there.
fn lint(program: &str, args: &[&str], page: &str) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(args).arg(path(page)).stdin(Stdio::null()).output().ok()?;
    Some([output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat())
}

#[test]
fn the_pages_are_well_formed() {
    for page in PAGES {
        for (program, args) in
            [("mandoc", &["-T", "lint", "-W", "warning"][..]), ("groff", &["-ww", "-man", "-Tutf8", "-z"])]
        {
            match lint(program, args, page) {
                Some(said) => assert_eq!(said, "", "{program}"),
                None => eprintln!("skipped: the_pages_are_well_formed: there is no {program}"),
            }
        }
    }
}

#[test]
fn the_pages_that_a_page_names_are_there() {
    for page in PAGES {
        let text = plain(&std::fs::read_to_string(path(page)).unwrap());
        for reference in text.split(')') {
            let Some((before, section)) = reference.rsplit_once('(').filter(|(_, digit)| digit.len() == 1)
            else {
                continue;
            };
            let name =
                before.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().unwrap_or_default();
            if name.starts_with("wirevm") {
                assert!(PAGES.contains(&&*format!("{name}.{section}")), "{page}: {name}({section})");
            }
        }
    }
}
