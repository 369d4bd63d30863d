//! The words behind `wirevm ssh`, which are ssh's own but for the machine's name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// ssh's options that have a value (ssh(1)).
const WITH_VALUE: &[u8] = b"BbcDEeFIiJLlmOoPpQRSWw";

/// What they say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words<'a> {
    /// Options, before the name and behind it.
    pub(super) options: Vec<&'a OsStr>,
    /// What stands before the `@`.
    pub(super) user: Option<&'a [u8]>,
    /// The machine.
    pub(super) name: String,
    /// What to run; nothing for a shell.
    pub(super) command: &'a [OsString],
}

impl<'a> Words<'a> {
    /// Takes them apart as ssh does; none where no machine is named.
    pub(super) fn of(words: &'a [OsString]) -> Option<Self> {
        let (before, rest) = split_options(words);
        let (destination, rest) = rest.split_first()?;
        let (behind, command) = split_options(rest);
        let bytes = destination.as_bytes();
        // As ssh takes it: a user's name may have one, too.
        let at = bytes.iter().rposition(|&byte| byte == b'@');
        let (user, name) = at.map_or((None, bytes), |at| (Some(&bytes[..at]), &bytes[at + 1..]));
        Some(Self {
            options: before.iter().chain(behind).map(OsString::as_os_str).collect(),
            user,
            name: String::from_utf8_lossy(name).into_owned(),
            command,
        })
    }
}

/// The options at the start, and what is behind them and behind the `--` that may end them.
fn split_options(words: &[OsString]) -> (&[OsString], &[OsString]) {
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let letters = match word.as_bytes() {
            b"--" => return (&words[..at], &words[at + 1..]),
            [b'-', letters @ ..] if !letters.is_empty() => letters,
            _ => break,
        };
        // The value is the rest of the word, or else the next one.
        let valued = letters.iter().position(|letter| WITH_VALUE.contains(letter));
        at += if valued.is_some_and(|valued| valued + 1 == letters.len()) { 2 } else { 1 };
    }
    words.split_at(at.min(words.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Option<(String, Option<String>, String, String)> {
        let words: Vec<OsString> = text.split_whitespace().map(Into::into).collect();
        let Words { options, user, name, command } = Words::of(&words)?;
        let joined = |words: Vec<&OsStr>| words.join(OsStr::new(" ")).into_string().unwrap();
        Some((
            joined(options),
            user.map(|user| String::from_utf8(user.to_vec()).unwrap()),
            name,
            joined(command.iter().map(OsString::as_os_str).collect()),
        ))
    }

    #[test]
    fn options_a_name_and_a_command_are_told_apart_as_ssh_does() {
        for (text, options, user, name, command) in [
            ("web", "", None, "web", ""),
            ("web -l root", "-l root", None, "web", ""),
            ("-l root web ls -l", "-l root", None, "web", "ls -l"),
            ("-lroot web", "-lroot", None, "web", ""),
            ("-tp 2222 root@web -v -- -x", "-tp 2222 -v", Some("root"), "web", "-x"),
            ("-- a@b@web", "", Some("a@b"), "web", ""),
            ("-NL 8080:localhost:80 web", "-NL 8080:localhost:80", None, "web", ""),
            ("@web", "", Some(""), "web", ""),
            ("-", "", None, "-", ""),
        ] {
            let wanted =
                Some((options.to_owned(), user.map(str::to_owned), name.to_owned(), command.to_owned()));
            assert_eq!(parts(text), wanted, "{text}");
        }
        for none in ["", "-v", "-p", "-l root", "--"] {
            assert_eq!(parts(none), None, "{none}");
        }
    }
}
