//! VMMs that the environment names: `BENCH_PEER_NAME='COMMAND {kernel} {initrd} {cmdline} {tap}'`.
//!
//! The value is split at white space and run without a shell; then each `{WORD}` is replaced, so that a command line of the
//! kernel or a path stays one argument, also within one (`--params={cmdline}`). Nothing quotes: whoever needs more, as a file
//! that configures the VMM, names a script, which must end in `exec` so that the process measured is the VMM.

use std::path::Path;

use crate::guest::{CMDLINE, Guest};

/// What the name of its variable begins with.
pub(crate) const VARIABLE: &str = "BENCH_PEER_";
/// A peer whose name ends so is compared with those whose frames the kernel carries.
const VHOST: &str = "_vhost";
const MAC: &str = "02:00:00:00:00:02";

/// A VMM of the environment's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) vhost: bool,
    words: Vec<String>,
}

impl Peer {
    /// All that there are, by name, and what is wrong with others.
    pub(crate) fn all() -> (Vec<Self>, Vec<String>) {
        let mut named: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter_map(|(name, value)| Some((name.strip_prefix(VARIABLE)?.to_owned(), value)))
            .collect();
        named.sort();
        let (mut peers, mut wrong) = (Vec::new(), Vec::new());
        for (name, template) in named {
            match Self::new(&name, &template) {
                Ok(peer) => peers.push(peer),
                Err(why) => wrong.push(format!("{VARIABLE}{name}: {why}")),
            }
        }
        (peers, wrong)
    }

    fn new(name: &str, template: &str) -> Result<Self, String> {
        let words: Vec<_> = template.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            return Err("no command".to_owned());
        }
        let nothing = Guest { kernel: "".as_ref(), initrd: "".as_ref(), memory_mib: 0, tap: None };
        words.iter().try_for_each(|word| fill(word, &nothing).map(drop))?;
        let vhost = name.ends_with(VHOST);
        let name = name.strip_suffix(VHOST).map_or(name.to_owned(), |name| format!("{name}, vhost"));
        Ok(Self { name, vhost, words })
    }

    /// Program and arguments that start `guest`.
    pub(crate) fn command(&self, guest: &Guest<'_>) -> Vec<String> {
        let filled = |word: &String| fill(word, guest).expect("checked when it was made");
        self.words.iter().map(filled).collect()
    }
}

/// Replaces each `{WORD}`.
fn fill(word: &str, guest: &Guest<'_>) -> Result<String, String> {
    let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let (mut filled, mut rest) = (String::new(), word);
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or_else(|| format!("{word}: a {{ without a }}"))?;
        filled += before;
        filled += &match name {
            "kernel" => path(guest.kernel),
            "initrd" => path(guest.initrd),
            "cmdline" => CMDLINE.to_owned(),
            "tap" => guest.tap.unwrap_or_default().to_owned(),
            "memory" => guest.memory_mib.to_string(),
            "mac" => MAC.to_owned(),
            other => return Err(format!("{{{other}}} is none of kernel, initrd, cmdline, tap, memory, mac")),
        };
        rest = after;
    }
    Ok(filled + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_before_they_are_filled() {
        let template =
            " vmm  run --kernel={kernel} {initrd} -p {cmdline} --mem {memory}M,x\t--net {tap},{mac}";
        let peer = Peer::new("some", template).unwrap();
        let (kernel, initrd) = ("/a b/{tap}".as_ref(), "/i".as_ref());
        let guest = Guest { kernel, initrd, memory_mib: 256, tap: Some("tap9") };
        let words = ["vmm", "run", "--kernel=/a b/{tap}", "/i", "-p", CMDLINE, "--mem", "256M,x", "--net"];
        let words: Vec<_> = words.into_iter().chain(["tap9,02:00:00:00:00:02"]).collect();
        assert_eq!(peer.command(&guest), words);
        assert_eq!((peer.name.as_str(), peer.vhost), ("some", false));
    }

    #[test]
    fn the_name_says_who_carries_the_frames() {
        let peer = Peer::new("some_vhost", "vmm").unwrap();
        assert_eq!((peer.name.as_str(), peer.vhost), ("some, vhost", true));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let said = |template| Peer::new("some", template).unwrap_err();
        assert_eq!(said(" "), "no command");
        assert_eq!(said("vmm --tap={tap"), "--tap={tap: a { without a }");
        assert_eq!(said("vmm {disk}"), "{disk} is none of kernel, initrd, cmdline, tap, memory, mac");
    }
}
