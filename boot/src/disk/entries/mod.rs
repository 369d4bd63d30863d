//! What there is to boot, as the distribution has set it up: the boot loader's own entries, read without a boot loader.

mod bls;
mod env;
mod grub;
mod plain;
mod version;

use super::fs::FileSystem;
use super::{Error, words};

/// The longest file that says what to boot, and the longest that a line of it becomes.
const TEXT_MAX: u64 = 1 << 20;
const LINE_MAX: usize = 16 << 10;

/// Something to boot. Paths are of the file system that the entry was found in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) title: String,
    pub(super) kernel: String,
    pub(super) initrds: Vec<String>,
    /// The kernel's command line, as it stands there.
    pub(super) options: String,
}

/// What is to be booted by default, and the index of the file system that says so; `None` where none says anything.
pub(super) fn default(systems: &[&dyn FileSystem]) -> Result<Option<(usize, Entry)>, Error> {
    let env = env::read(systems)?;
    for find in [bls::default, grub::default, plain::default] {
        for (index, system) in systems.iter().enumerate() {
            if let Some(entry) = find(*system, &env)? {
                return Ok(Some((index, entry)));
            }
        }
    }
    Ok(None)
}

/// A file of text; `None` where there is none. What it has that is no UTF-8 is taken for something else.
fn text(system: &dyn FileSystem, path: &str) -> Result<Option<String>, Error> {
    match system.read(path, TEXT_MAX) {
        Ok(bytes) => Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())),
        Err(Error::NotAFile { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `$NAME` and `${NAME}` in `text` by their values, of which an unknown one is empty.
fn expand<'v>(text: &str, value: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (name, after) = match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some(found) => found,
            None => rest
                .split_at(rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(rest.len())),
        };
        match name {
            "" => out.push('$'),
            name => out.push_str(value(name).unwrap_or_default()),
        }
        rest = after;
        if out.len() > LINE_MAX {
            break;
        }
    }
    out.push_str(rest);
    let end = (0..=LINE_MAX.min(out.len())).rev().find(|&end| out.is_char_boundary(end));
    out.truncate(end.unwrap_or(0));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_their_values() {
        let value = |name: &str| match name {
            "a" => Some("1"),
            "long_name2" => Some("two"),
            _ => None,
        };
        for (text, expanded) in [
            ("plain", "plain"),
            ("$a", "1"),
            ("x${a}y$long_name2-$none.", "x1ytwo-."),
            ("100$ ${a", "100$ ${a"),
            ("$", "$"),
        ] {
            assert_eq!(expand(text, value), expanded, "{text}");
        }
        assert_eq!(expand(&"$a".repeat(LINE_MAX * 2), value).len(), LINE_MAX);
    }

    #[test]
    fn what_is_longer_than_a_line_can_be_is_not_expanded_further() {
        for len in [1, 3, 1000, LINE_MAX - 1, LINE_MAX, LINE_MAX + 1] {
            let (long, asked) = ("v".repeat(len), std::cell::Cell::new(0));
            let value = |_: &str| {
                asked.set(asked.get() + 1);
                Some(long.as_str())
            };
            assert_eq!(expand(&"$a".repeat(LINE_MAX * 2), value), "v".repeat(LINE_MAX), "{len}");
            assert!(asked.get() <= LINE_MAX / len + 1, "{len}: {}", asked.get());
        }
    }
}
