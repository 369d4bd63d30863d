//! What a VMM holds in memory over what its guest does (proc_pid_smaps(5)).

use crate::sys;

/// Resident memory in bytes, without the guest's, of all processes of a VMM together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resident {
    /// All of it: of pages that several processes share, these or others, each process's part (PSS).
    pub(crate) all: u64,
    /// What was written: heap, stacks, relocated data.
    pub(crate) anonymous: u64,
}

impl Resident {
    /// Of process `pid` and its children, whose guest has `guest` bytes of memory in one mapping.
    pub(crate) fn of(pid: u32, guest: u64) -> Result<Self, String> {
        let read = |pid| {
            let path = format!("/proc/{pid}/smaps");
            std::fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))
        };
        let all = sys::family(pid).into_iter().map(read).collect::<Result<String, _>>()?;
        Self::parse(&all, guest)
    }

    fn parse(text: &str, guest: u64) -> Result<Self, String> {
        let (mut sum, mut guests, mut in_guest) = (Self::default(), 0, false);
        for line in text.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let kib = || rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10;
            match word {
                "Pss:" if !in_guest => sum.all += kib(),
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
