//! GRUB's environment block: `NAME=value` lines in a file of 1024 bytes, filled up with `#`.

use std::collections::BTreeMap;

use super::{Error, FileSystem, text};

/// Where distributions have it; what a file system that is mounted at `/boot` has comes last.
const PLACES: [&str; 5] =
    ["/boot/grub2/grubenv", "/boot/grub/grubenv", "/grub2/grubenv", "/grub/grubenv", "/EFI/fedora/grubenv"];

pub(super) type Env = BTreeMap<String, String>;

/// The first that there is; nothing where there is none.
pub(super) fn read(systems: &[&dyn FileSystem]) -> Result<Env, Error> {
    for system in systems {
        for path in PLACES {
            if let Some(text) = text(*system, path)? {
                return Ok(parse(&text));
            }
        }
    }
    Ok(Env::new())
}

fn parse(text: &str) -> Env {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let unescape = |value: &str| {
        let mut out = String::new();
        let mut chars = value.chars();
        while let Some(c) = chars.next() {
            out.extend(if c == '\\' { chars.next() } else { Some(c) });
        }
        out
    };
    lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), unescape(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_its_values() {
        let env = parse(
            "# GRUB Environment Block\nsaved_entry=0\nkernelopts=root=UUID=1 ro \\\\x\nnext_entry=\n####",
        );
        let value = |name: &str| env.get(name).map(String::as_str);
        assert_eq!((value("saved_entry"), value("next_entry")), (Some("0"), Some("")));
        assert_eq!(value("kernelopts"), Some("root=UUID=1 ro \\x"));
        assert_eq!(env.len(), 3);
    }
}
