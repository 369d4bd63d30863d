//! What `--disk` asks for: `FILE[,KEY=VALUE]...`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use devices::virtio::block::SERIAL_MAX;

/// A disk, as the command line wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// A raw image, or a block device of the host.
    pub file: PathBuf,
    /// The guest cannot write.
    pub read_only: bool,
    /// What the guest writes is lost at its end, and the file stays as it is.
    pub snapshot: bool,
    /// The serial number that the guest sees: at most 20 characters of ASCII.
    pub serial: Option<String>,
    /// Read and written without the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// How many queues it has, each with a thread of its own.
    pub queues: u16,
    /// It is a raw image, whatever it begins with.
    pub raw: bool,
}

net::serde_as_text!(DiskConfig);

/// The most queues that a disk may have: a NIC has as many pairs.
const QUEUES_MAX: u16 = 64;

const KEYS: &str = "ro, snapshot=, serial=, direct, queues= and format=";

impl DiskConfig {
    /// That file, as any other disk.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        let file = file.into();
        Self { file, read_only: false, snapshot: false, serial: None, direct: false, queues: 1, raw: false }
    }

    /// Whether the file itself is written.
    pub fn writes(&self) -> bool {
        !self.read_only && !self.snapshot
    }
}

/// As `--disk` takes it.
impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file.to_string_lossy().replace(',', ",,"))?;
        for (word, wanted) in [
            (",ro", self.read_only),
            (",snapshot=on", self.snapshot),
            (",direct", self.direct),
            (",format=raw", self.raw),
        ] {
            f.write_str(if wanted { word } else { "" })?;
        }
        if let Some(serial) = &self.serial {
            write!(f, ",serial={}", serial.replace(',', ",,"))?;
        }
        if self.queues != 1 {
            write!(f, ",queues={}", self.queues)?;
        }
        Ok(())
    }
}

impl FromStr for DiskConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = words(text).into_iter();
        let file = words.next().unwrap_or_default();
        if file.is_empty() {
            return Err("name a file, or a block device".into());
        }
        let mut config = Self::new(file);
        let mut given: Vec<String> = Vec::new();
        for word in words {
            let (key, value) = word.split_once('=').map_or((&*word, None), |(key, value)| (key, Some(value)));
            if given.iter().any(|before| before == key) {
                return Err(format!("{key} is given twice"));
            }
            match key {
                "ro" => config.read_only = switch(key, value)?,
                "snapshot" => config.snapshot = switch(key, value)?,
                "direct" => config.direct = switch(key, value)?,
                "serial" => config.serial = Some(serial(value.unwrap_or_default())?),
                "queues" => config.queues = queues(value.unwrap_or_default())?,
                "format" if value == Some("raw") => config.raw = true,
                "format" => {
                    let format = value.unwrap_or_default();
                    return Err(format!(
                        "format={format}: disks are raw images; qemu-img convert -O raw makes one"
                    ));
                }
                _ => {
                    return Err(format!(
                        "no key {key:?}; there are {KEYS} (a comma in a name is written twice)"
                    ));
                }
            }
            given.push(key.to_owned());
        }
        for (key, wanted) in [("ro", config.read_only), ("direct", config.direct)] {
            if config.snapshot && wanted {
                return Err(format!("snapshot=on does not go with {key}"));
            }
        }
        Ok(config)
    }
}

/// The words between commas, where two in a row are one of the word's own.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' if chars.next_if_eq(&',').is_none() => words.push(String::new()),
            c => words.last_mut().expect("there is a first").push(c),
        }
    }
    words
}

fn switch(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(value) => Err(format!("{key}={value}: write on or off")),
    }
}

fn serial(value: &str) -> Result<String, String> {
    match value.is_empty() || value.len() > SERIAL_MAX || !value.bytes().all(|c| matches!(c, b' '..=b'~')) {
        true => Err(format!("serial={value}: it is 1 to {SERIAL_MAX} characters of ASCII")),
        false => Ok(value.to_owned()),
    }
}

fn queues(value: &str) -> Result<u16, String> {
    match value.parse() {
        Ok(queues) if (1..=QUEUES_MAX).contains(&queues) => Ok(queues),
        _ => Err(format!("queues={value}: it is 1 to {QUEUES_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_written_as_it_is_read() {
        let plain = || DiskConfig::new("disk.raw");
        for (text, config) in [
            ("disk.raw", plain()),
            ("disk.raw,ro", DiskConfig { read_only: true, ..plain() }),
            ("disk.raw,ro=off,direct=off,snapshot=off", plain()),
            ("disk.raw,snapshot=on", DiskConfig { snapshot: true, ..plain() }),
            ("disk.raw,snapshot", DiskConfig { snapshot: true, ..plain() }),
            (
                "disk.raw,direct,queues=4,format=raw,serial=a b",
                DiskConfig { direct: true, queues: 4, raw: true, serial: Some("a b".into()), ..plain() },
            ),
            ("a,,b,,,serial=x,,y", DiskConfig { file: "a,b,".into(), serial: Some("x,y".into()), ..plain() }),
        ] {
            assert_eq!(text.parse(), Ok(config.clone()), "{text}");
            assert_eq!(config.to_string().parse(), Ok(config), "what is shown parses to the same");
        }
        for (text, says) in [
            ("", "name a file"),
            (",ro", "name a file"),
            ("disk,colour=red", "no key \"colour\"; there are ro, snapshot="),
            ("disk,", "no key \"\""),
            ("disk,ro=maybe", "ro=maybe: write on or off"),
            ("disk,ro,ro", "ro is given twice"),
            ("disk,ro,snapshot=on", "snapshot=on does not go with ro"),
            ("disk,direct,snapshot=on", "snapshot=on does not go with direct"),
            ("disk,serial=", "1 to 20 characters"),
            ("disk,serial=123456789012345678901", "1 to 20 characters"),
            ("disk,queues=0", "1 to 64"),
            ("disk,queues=65", "1 to 64"),
            ("disk,format=qcow2", "qemu-img convert -O raw"),
        ] {
            let error = text.parse::<DiskConfig>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
