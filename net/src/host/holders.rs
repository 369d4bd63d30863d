//! Who holds a tap: the kernel answers only `EBUSY`, but `/proc` says it of each descriptor of `/dev/net/tun`.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::Dev;

use crate::printable;

/// A process that has a tap open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its name, as in `/proc/PID/comm`.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == std::process::id() {
            f.write_str("another --net of this command")
        } else {
            write!(f, "process {} ({})", self.pid, printable(&self.name))
        }
    }
}

/// The processes with a descriptor attached to the tap or tun `name`, as far as we may look: those of our network
/// namespace, or, where none is, those of others (a tap may be held from outside of its namespace).
pub(crate) fn of(name: &str) -> Vec<Holder> {
    find(|process| holds(process, name))
}

/// The processes that have the character device of that number open, as far as we may look.
pub(crate) fn of_device(number: Dev) -> Vec<Holder> {
    find(|process| {
        let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
        descriptors.flatten().any(|descriptor| {
            let found = fs::metadata(descriptor.path());
            found.is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == number)
        })
    })
}

/// The processes that have the flock(2) on the file, as far as we may look (proc_pid_fdinfo(5)).
pub(crate) fn of_lock(file: &File) -> Vec<Holder> {
    let Ok(found) = file.metadata() else { return Vec::new() };
    let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", found.ino());
    let is_lock = |line: &str| line.starts_with("lock:") && line.split_whitespace().any(|word| word == place);
    find(|process| says(process, is_lock))
}

/// The processes that `holds` says it of: those of our network namespace, or, where none is, others. A process that has it from
/// its parent, which has it still, is its parent's: a keeper and its machine are one wirevm.
fn find(holds: impl Fn(&Path) -> bool) -> Vec<Holder> {
    let here = fs::read_link("/proc/thread-self/ns/net").ok();
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|pid| pid.parse().ok()) else { continue };
        if !holds(&process.path()) {
            continue;
        }
        let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let holder = Holder { pid, name: comm.trim_end().to_owned() };
        let is_ours = fs::read_link(process.path().join("ns/net")).ok() == here;
        found.push((holder, parent(&process.path()), is_ours));
    }
    let pids: Vec<_> = found.iter().map(|(holder, ..)| holder.pid).collect();
    found.retain(|(_, parent, _)| parent.is_none_or(|parent| !pids.contains(&parent)));
    let (ours, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(.., is_ours)| *is_ours);
    let found = if ours.is_empty() { others } else { ours };
    found.into_iter().map(|(holder, ..)| holder).collect()
}

/// The process that started it, or has it since that is gone (proc_pid_status(5)).
fn parent(process: &Path) -> Option<u32> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// True where a descriptor of the process says `iff: NAME` (the tun driver's `show_fdinfo`).
fn holds(process: &Path, name: &str) -> bool {
    says(process, |line| line.strip_prefix("iff:").is_some_and(|held| held.trim() == name))
}

/// True where a line about a descriptor of the process is such.
fn says(process: &Path, is_such: impl Fn(&str) -> bool) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fdinfo")) else { return false };
    descriptors.flatten().any(|descriptor| {
        let info = fs::read_to_string(descriptor.path()).unwrap_or_default();
        info.lines().any(&is_such)
    })
}
