//! What is counted alike for every VMM: KVM's exits, frames and bytes by the tap's own counters, and system calls by a trace.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use harness::netns::Netns;

use crate::{sys, traffic};

/// System calls of each thread, counted by a histogram of the kernel's (Documentation/trace/histogram.rst) while it is on. It makes
/// every system call on the host slower, so nothing is timed meanwhile.
pub(super) struct Calls(PathBuf);

impl Calls {
    const EVENT: &str = "events/raw_syscalls/sys_enter/trigger";
    const COUNT: &str = "hist:keys=common_pid";

    /// Makes an instance of the trace of our own. It takes root.
    pub(super) fn new() -> Result<Self, String> {
        let name = format!("wirevm-bench-{}", std::process::id());
        let path = PathBuf::from("/sys/kernel/tracing/instances").join(name);
        fs::create_dir(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        let calls = Self(path);
        calls.set(Self::COUNT)?;
        calls.set(&format!("!{}", Self::COUNT))?;
        Ok(calls)
    }

    fn set(&self, trigger: &str) -> Result<(), String> {
        let path = self.0.join(Self::EVENT);
        fs::write(&path, trigger)
            .map_err(|error| format!("cannot write {trigger} to {}: {error}", path.display()))
    }

    /// Counts while `call` runs.
    pub(super) fn during<T>(&self, call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        // Where the last guest's broke off.
        let _ = self.set(&format!("!{}", Self::COUNT));
        self.set(Self::COUNT)?;
        let result = call();
        self.set(&format!("!{}", Self::COUNT))?;
        result
    }

    /// Those of the threads that process `pid` and its children have now.
    pub(super) fn of(&self, pid: u32) -> Result<f64, String> {
        let path = self.0.join(Self::EVENT).with_file_name("hist");
        let text =
            fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let counts = parse_histogram(&text);
        let of = |pid| fs::read_dir(format!("/proc/{pid}/task"));
        let threads = sys::family(pid).into_iter().map(of).collect::<Result<Vec<_>, _>>();
        let threads = threads.map_err(|error| format!("the VMM's threads: {error}"))?;
        let threads = threads
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        Ok(threads.filter_map(|thread| counts.get(&thread)).sum::<u64>() as f64)
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// The count of each thread.
fn parse_histogram(text: &str) -> HashMap<u32, u64> {
    // { common_pid:       2816 } hitcount:       4310
    let entry = |line: &str| {
        let (thread, count) = line.strip_prefix("{ common_pid:")?.split_once("} hitcount:")?;
        Some((thread.trim().parse().ok()?, count.trim().parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

/// What went through a tap one way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Moved {
    pub(super) bytes: f64,
    pub(super) frames: f64,
}

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    HostToGuest,
    GuestToHost,
}

impl Way {
    pub(super) const BOTH: [Self; 2] = [Self::HostToGuest, Self::GuestToHost];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HostToGuest => "host to guest",
            Self::GuestToHost => "guest to host",
        }
    }
}

/// All the counts at one moment, or the difference of two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) exits: f64,
    moved: [Moved; 2],
}

impl Counts {
    /// Those of KVM, and of the tap in this namespace.
    pub(super) fn now(host: &Netns, tap: &str) -> Result<Self, String> {
        let path = format!("/proc/{}/net/dev", host.pid());
        let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
        let moved = parse_link(&text, tap).ok_or_else(|| format!("{path} does not have {tap}: {text}"))?;
        Ok(Self { exits: traffic::exits()?, moved })
    }

    pub(super) fn since(self, before: Self) -> Self {
        let moved = [0, 1].map(|at| Moved {
            bytes: self.moved[at].bytes - before.moved[at].bytes,
            frames: self.moved[at].frames - before.moved[at].frames,
        });
        Self { exits: self.exits - before.exits, moved }
    }

    pub(super) fn moved(&self, way: Way) -> Moved {
        self.moved[way as usize]
    }
}

/// What the host's end of `tap` counts (proc_pid_net(5)): what it received came from the guest. What the host could not queue is
/// no frame of it: a tap counts a frame to the guest when the VMM takes it.
fn parse_link(text: &str, tap: &str) -> Option<[Moved; 2]> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(tap)?.strip_prefix(':'))?;
    let counts: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let from_guest = Moved { bytes: *counts.first()?, frames: *counts.get(1)? };
    let to_guest = Moved { bytes: *counts.get(8)?, frames: *counts.get(9)? };
    Some([to_guest, from_guest])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_by_thread() {
        let text = "\
# event histogram
#
# trigger info: hist:keys=common_pid:vals=hitcount:sort=hitcount:size=2048 [active]
#

{ common_pid:       2816 } hitcount:         12
{ common_pid:         17 } hitcount:       4310

Totals:
    Hits: 4322
    Entries: 2
    Dropped: 0
";
        assert_eq!(parse_histogram(text), HashMap::from([(2816, 12), (17, 4310)]));
    }

    #[test]
    fn a_tap_counts_from_the_hosts_side() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
bench0:    4200      70    1    2    0     0          0         0    99000      80    0   13    0     0       0          0
";
        let moved = [Moved { bytes: 99000.0, frames: 80.0 }, Moved { bytes: 4200.0, frames: 70.0 }];
        assert_eq!(parse_link(text, "bench0"), Some(moved));
        assert_eq!(parse_link(text, "bench"), None);
        let later = Counts { exits: 5.0, moved };
        let between = later.since(Counts { exits: 2.0, moved: [Moved { bytes: 9000.0, frames: 1.0 }; 2] });
        assert_eq!(between.exits, 3.0);
        assert_eq!(between.moved(Way::HostToGuest), Moved { bytes: 90000.0, frames: 79.0 });
        assert_eq!(between.moved(Way::GuestToHost).frames, 69.0);
    }
}
