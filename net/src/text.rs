//! Text: that of others, which commands nothing when it is printed, and values that serde has as they are typed.

use std::borrow::Cow;
use std::fmt::Write;

/// Text of others as a part of a line: what commands a terminal, ends the line or turns its order round is escaped (`\x1b`,
/// `\u{202e}`).
///
/// A process chooses its name, whoever makes a link or a table its, and so on: what is ours alone needs none of this.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, commands)
}

/// The same of several lines, which may have tabs.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| commands(c) && !matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if !is_bad(c) => safe.push(c),
            c if u32::from(c) < 0x80 => drop(write!(safe, "\\x{:02x}", u32::from(c))),
            c => safe.extend(c.escape_unicode()),
        }
    }
    safe.into()
}

/// True for a control character (ISO 6429), and for what ends a line or turns its order round (Unicode UAX #9, UAX #14).
fn commands(c: char) -> bool {
    let turns =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A name of others as one word of a command for the shell.
pub(crate) fn word(name: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+=@:/%,".contains(&byte);
    if !name.is_empty() && !name.starts_with('-') && name.bytes().all(is_plain) {
        return name.into();
    }
    // As POSIX has it since 2024, and most shells for longer.
    format!("$'{}'", escaped(&name.replace('\\', "\\\\").replace('\'', "\\'"), commands)).into()
}

/// Derives `Serialize` and `Deserialize` from `Display` and `FromStr`, in a crate that has serde.
#[macro_export]
macro_rules! serde_as_text {
    ($($type:ty),+) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

pub(crate) use serde_as_text;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_commands_nothing() {
        for (text, line, lines) in [
            ("plain \u{e4}", "plain \u{e4}", "plain \u{e4}"),
            ("a\x1b[31m\x07\x7f", "a\\x1b[31m\\x07\\x7f", "a\\x1b[31m\\x07\\x7f"),
            ("a\n\tb\r", "a\\x0a\\x09b\\x0d", "a\n\tb\\x0d"),
            ("\u{9b}31m\u{202e}\u{2028}", "\\u{9b}31m\\u{202e}\\u{2028}", "\\u{9b}31m\\u{202e}\\u{2028}"),
        ] {
            assert_eq!((&*printable(text), &*printable_lines(text)), (line, lines));
        }
    }

    #[test]
    fn a_name_of_others_is_one_word() {
        for (name, said) in [
            ("eth0.5", "eth0.5"),
            ("eth0@if7", "eth0@if7"),
            ("", "$''"),
            ("-x", "$'-x'"),
            ("a;reboot", "$'a;reboot'"),
            ("$(id)", "$'$(id)'"),
            ("it's\\", "$'it\\'s\\\\'"),
            ("\x1b[2J", "$'\\x1b[2J'"),
        ] {
            assert_eq!(word(name), said);
        }
        for name in ["a;reboot", "$(id)", "it's\\", "a b*", "\x1b[2J", "`id`"] {
            let script = format!("printf %s {}", word(name));
            match std::process::Command::new("bash").args(["-c", &script]).output() {
                Ok(said) => assert_eq!(String::from_utf8_lossy(&said.stdout), name, "{script}"),
                Err(_) => println!("skipped: a_name_of_others_is_one_word: there is no bash"),
            }
        }
    }
}
