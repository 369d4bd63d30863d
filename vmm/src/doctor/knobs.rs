//! What the host could be booted or mounted with so that machines start sooner, and what that would save.

use std::fs;
use std::time::{Duration, Instant};

use net::Finding;
use rustix::thread::{MembarrierCommand, membarrier};

/// Each setting that costs time at a start. `start` is how long KVM took here from a new VM to its first instruction, beyond the
/// same again.
pub(super) fn findings(start: Option<Duration>) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let setting = read("/sys/module/kvm/parameters/nx_huge_pages");
    let multihit = read("/sys/devices/system/cpu/vulnerabilities/itlb_multihit");
    let mounts = read("/proc/self/mountinfo").unwrap_or_default();
    let huge_pages =
        setting.and_then(|setting| huge_pages(setting.trim(), multihit.as_deref()?.trim(), start));
    huge_pages.into_iter().chain(cgroup(&mounts, grace_period)).collect()
}

fn finding(what: &str, state: String, remedy: Option<String>) -> Finding {
    Finding { what: what.into(), good: true, state, remedy }
}

/// How long the kernel waits for all of its readers (RCU): membarrier(2) waits for the same.
fn grace_period() -> Option<Duration> {
    let start = Instant::now();
    membarrier(MembarrierCommand::Global).ok().map(|()| start.elapsed())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// `kvm.nx_huge_pages` (the kernel's `admin-guide/hw-vuln/multihit.rst`): unless it is `never`, each VM starts a thread that gives
/// guests their huge pages back.
fn huge_pages(setting: &str, multihit: &str, start: Option<Duration>) -> Option<Finding> {
    const WHAT: &str = "kvm.nx_huge_pages";
    if setting == "never" {
        return Some(finding(WHAT, "is never: no VM starts a thread for it".into(), None));
    }
    if multihit != "Not affected" {
        let state =
            "protects the host from guests on this processor, for a thread that each VM starts: leave it";
        return Some(finding(WHAT, state.into(), None));
    }
    let word = if setting == "Y" { "on" } else { "off, but not for good" };
    let cost = start.map(|start| format!(" (a part of the {} that KVM takes to start)", milliseconds(start)));
    Some(finding(
        WHAT,
        format!(
            "is {word}: each VM starts a thread that this processor does not need{}",
            cost.unwrap_or_default()
        ),
        Some(
            "kvm.nx_huge_pages=never on the kernel's command line (Linux 6.5 and later); saves that thread"
                .into(),
        ),
    ))
}

/// `favordynmods` of cgroup2 (the kernel's `admin-guide/cgroup-v2.rst`): without it, whoever moves a thread to another group waits for
/// RCU.
fn cgroup(mounts: &str, grace_period: impl FnOnce() -> Option<Duration>) -> Option<Finding> {
    const WHAT: &str = "favordynmods";
    // proc_pid_mountinfo(5): the fifth word is where; after a dash come the type, the source, and the options of the file system.
    let mount = mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        (system.next()? == "cgroup2").then(|| (mount.split(' ').nth(4), system.nth(1)))
    });
    let (place, options) = mount?;
    if options.is_some_and(|options| options.split(',').any(|option| option == WHAT)) {
        return Some(finding(WHAT, "is on: threads move between cgroups at once".into(), None));
    }
    let cost = grace_period().map(|time| format!(" ({} here)", milliseconds(time)));
    let state = format!(
        "is off: who moves a thread to another cgroup waits for RCU, as KVM does at each start before Linux 6.14, and systemd \
         for each unit{}",
        cost.unwrap_or_default()
    );
    let place = place.unwrap_or("/sys/fs/cgroup");
    Some(finding(
        WHAT,
        state,
        Some(format!("mount -o remount,favordynmods {place}; saves that wait, forks take a little longer")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_nobody_needs_is_told_with_what_it_costs() {
        let start = Some(Duration::from_micros(1250));
        let told = |setting, multihit| {
            let found = huge_pages(setting, multihit, start).unwrap();
            assert!(found.good);
            (found.state, found.remedy.unwrap_or_default())
        };
        for (setting, word) in [("Y", "is on:"), ("N", "is off, but not for good:")] {
            let (state, remedy) = told(setting, "Not affected");
            assert!(state.starts_with(word) && state.contains("1.2 ms"), "{state}");
            assert!(remedy.starts_with("kvm.nx_huge_pages=never"), "{remedy}");
        }
        assert_eq!(told("never", "Not affected").1, "");
        let (state, remedy) = told("Y", "KVM: Mitigation: Split huge pages");
        assert!(state.ends_with("leave it") && remedy.is_empty(), "{state}");
    }

    #[test]
    fn a_cgroup_file_system_is_told_with_how_long_it_waits() {
        let line = |options| {
            format!(
                "25 1 0:22 / /proc rw - proc proc rw\n41 31 0:38 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 {options}\n"
            )
        };
        let wait = || Some(Duration::from_millis(12));
        let found = cgroup(&line("rw,nsdelegate"), wait).unwrap();
        assert!(found.good && found.state.ends_with("(12.0 ms here)"), "{}", found.state);
        assert!(found.remedy.unwrap().starts_with("mount -o remount,favordynmods /sys/fs/cgroup;"));
        let found = cgroup(&line("rw,nsdelegate,favordynmods"), || panic!("nobody waits")).unwrap();
        assert!(found.good && found.remedy.is_none());
        assert!(cgroup("25 1 0:22 / /proc rw - proc proc rw\n", wait).is_none());
    }
}
