//! What `--memory` asks for: `SIZE[,KEY=VALUE]...`.

use std::fmt;
use std::str::FromStr;

use super::argument;

/// The guest's memory, as the command line wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Its size in bytes: at least [`boot::layout::MIN_MEMORY`], and whole pages of 4 KiB.
    pub bytes: u64,
    /// Taken from the host's pool of huge pages (hugetlb).
    pub huge_pages: Option<HugePages>,
    /// KSM may merge its pages with equal ones.
    pub mergeable: bool,
    /// A file in memory that other processes can map.
    pub shared: bool,
}

/// Which huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Of the size that the host's kernel has as its default.
    Default,
    /// Of so many bytes.
    Of(u64),
}

impl MemoryConfig {
    /// `bytes` of private memory of usual pages.
    pub fn plain(bytes: u64) -> Self {
        Self { bytes, huge_pages: None, mergeable: false, shared: false }
    }
}

/// 512 MiB of private memory of usual pages.
impl Default for MemoryConfig {
    fn default() -> Self {
        Self::plain(512 << 20)
    }
}

/// As `--memory` takes it.
impl fmt::Display for MemoryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&argument(self.bytes))?;
        match self.huge_pages {
            None => {}
            Some(HugePages::Default) => f.write_str(",hugepages=on")?,
            Some(HugePages::Of(page)) => write!(f, ",hugepages={}", argument(page))?,
        }
        if self.mergeable {
            f.write_str(",mergeable=on")?;
        }
        if self.shared {
            f.write_str(",shared=on")?;
        }
        Ok(())
    }
}

net::serde_as_text!(MemoryConfig);

impl FromStr for MemoryConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let mut config = Self::plain(parse_size(words.next().unwrap_or_default())?);
        let mut given = Vec::new();
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if given.contains(&key) {
                return Err(format!("{key}= is given twice"));
            }
            match key {
                "hugepages" => config.huge_pages = parse_huge_pages(value)?,
                "mergeable" => config.mergeable = parse_switch(key, value)?,
                "shared" => config.shared = parse_switch(key, value)?,
                _ => return Err(format!("no key {key:?}; there are hugepages=, mergeable= and shared=")),
            }
            given.push(key);
        }
        // KSM looks at private, anonymous pages of the usual size, and takes no notice of others.
        for (wanted, key) in [(config.huge_pages.is_some(), "hugepages"), (config.shared, "shared")] {
            if config.mergeable && wanted {
                return Err(format!("mergeable= does not go with {key}=, whose pages KSM cannot merge"));
            }
        }
        Ok(config)
    }
}

fn parse_switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{key}={value}: write on or off")),
    }
}

fn parse_huge_pages(value: &str) -> Result<Option<HugePages>, String> {
    match value {
        "on" => Ok(Some(HugePages::Default)),
        "off" => Ok(None),
        "2M" => Ok(Some(HugePages::Of(2 << 20))),
        "1G" => Ok(Some(HugePages::Of(1 << 30))),
        _ => Err(format!("hugepages={value}: write on, off, 2M or 1G")),
    }
}

/// The most that the physical addresses of any x86-64 processor reach: 52 bits.
const MAX: u64 = 1 << 52;

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "k" | "kib" => 10,
        "" | "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        unit => return Err(format!("unknown unit '{unit}'; write K, M, G or T, as in 512M")),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("'{digits}' is no whole number; write 512M or 2G"))?;
    let bytes = number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= MAX)
        .ok_or_else(|| format!("no machine has so much; give {} or less", argument(MAX)))?;
    if bytes < boot::layout::MIN_MEMORY {
        return Err(format!("too little for Linux; give {} or more", argument(boot::layout::MIN_MEMORY)));
    }
    if !bytes.is_multiple_of(4096) {
        return Err("not a whole number of pages of 4 KiB".into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MemoryConfig, String> {
        text.parse()
    }

    #[test]
    fn memory_has_a_unit_and_limits() {
        let bytes = |text: &str| parse(text).unwrap().bytes;
        assert_eq!(bytes("64M"), 64 << 20);
        assert_eq!(bytes("64"), 64 << 20, "MiB without a letter");
        assert_eq!(bytes("3584MiB"), 3584 << 20);
        assert_eq!(bytes("6g"), 6 << 30);
        assert_eq!(bytes("32768k"), 32 << 20);
        for (text, says) in [
            ("0", "give 32M or more"),
            ("1M", "give 32M or more"),
            ("99999999999T", "give 4096T or less"),
            ("99999999999999999999", "whole number"),
            ("-1G", "whole number"),
            ("1.5G", "whole number"),
            ("", "whole number"),
            (",shared=on", "whole number"),
            ("1X", "unknown unit 'x'"),
            ("40001K", "pages"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        for told in [MAX, boot::layout::MIN_MEMORY, 1023 << 30, 34 << 20, (1 << 30) + (1 << 12)] {
            assert_eq!(bytes(&argument(told)), told, "what a remedy names can be typed");
        }
    }

    #[test]
    fn keys_say_what_kind_of_memory() {
        let plain = MemoryConfig::plain(1 << 30);
        for (text, config) in [
            ("1G", plain),
            ("1G,hugepages=off,mergeable=off,shared=off", plain),
            ("1G,hugepages=on", MemoryConfig { huge_pages: Some(HugePages::Default), ..plain }),
            ("1G,hugepages=2M", MemoryConfig { huge_pages: Some(HugePages::Of(2 << 20)), ..plain }),
            ("1G,mergeable=on", MemoryConfig { mergeable: true, ..plain }),
            (
                "1G,shared=on,hugepages=1G",
                MemoryConfig { shared: true, huge_pages: Some(HugePages::Of(1 << 30)), ..plain },
            ),
        ] {
            assert_eq!(parse(text), Ok(config), "{text}");
            assert_eq!(parse(&config.to_string()), Ok(config), "what is shown parses to the same");
        }
        for (text, says) in [
            ("1G,", "no key \"\""),
            ("1G,colour=red", "no key \"colour\"; there are hugepages="),
            ("1G,shared", "shared=: write on or off"),
            ("1G,mergeable=yes", "mergeable=yes: write on or off"),
            ("1G,hugepages=4K", "hugepages=4K: write on, off, 2M or 1G"),
            ("1G,shared=on,shared=off", "shared= is given twice"),
            ("1G,mergeable=on,shared=on", "mergeable= does not go with shared="),
            ("1G,mergeable=on,hugepages=on", "mergeable= does not go with hugepages="),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
