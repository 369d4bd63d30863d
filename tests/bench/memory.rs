//! What a VMM holds in memory over what its guest does (proc_pid_smaps(5)).

/// Resident memory in bytes, without the guest's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resident {
    /// All of it, also pages of files that other processes share.
    pub(crate) all: u64,
    /// What is this process's alone because it was written: heap, stacks, relocated data.
    pub(crate) anonymous: u64,
}

impl Resident {
    /// Of process `pid`, whose guest has `guest` bytes of memory in one mapping.
    pub(crate) fn of(pid: u32, guest: u64) -> Result<Self, String> {
        let path = format!("/proc/{pid}/smaps");
        let text = std::fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
        Self::parse(&text, guest)
    }

    fn parse(text: &str, guest: u64) -> Result<Self, String> {
        let (mut sum, mut guests, mut in_guest) = (Self::default(), 0, false);
        for line in text.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let kib = || rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10;
            match word {
                "Rss:" if !in_guest => sum.all += kib(),
                "Anonymous:" if !in_guest => sum.anonymous += kib(),
                _ if word.ends_with(':') => {}
                range => {
                    let mut ends = range.split('-').filter_map(|end| u64::from_str_radix(end, 16).ok());
                    in_guest = ends.next().zip(ends.next()).is_some_and(|(start, end)| end - start == guest);
                    guests += u32::from(in_guest);
                }
            }
        }
        match guests {
            1 => Ok(sum),
            count => Err(format!("{count} mappings have the size of the guest's memory, not one")),
        }
    }
}
