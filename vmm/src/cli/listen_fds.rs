//! Descriptors that a service manager passes by name (sd_listen_fds(3)): `fd=NAME` stands for those of that name.

use std::ops::Range;

/// The first descriptor that is passed (`SD_LISTEN_FDS_START`).
const START: i32 = 3;
/// A service manager passes this many at the most; more is nonsense.
const MOST: i32 = 4096;

/// Descriptors, and the name of each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ListenFds {
    fds: Range<i32>,
    names: Vec<String>,
}

impl ListenFds {
    /// Those of this process, as its environment says.
    pub(super) fn from_env() -> Self {
        let read = |name| std::env::var(name).unwrap_or_default();
        Self::of(std::process::id(), &read("LISTEN_PID"), &read("LISTEN_FDS"), &read("LISTEN_FDNAMES"))
    }

    fn of(process: u32, pid: &str, count: &str, names: &str) -> Self {
        // They may be another process's, whose environment this one inherited.
        let count =
            count.parse().ok().filter(|count| (1..=MOST).contains(count) && pid.parse() == Ok(process));
        let Some(count) = count else { return Self::default() };
        Self { fds: START..START + count, names: names.split(':').map(str::to_owned).collect() }
    }

    /// `spec` with numbers where it has a name.
    ///
    /// # Errors
    /// No descriptor has the name.
    pub(super) fn resolve(&self, spec: &str) -> Result<String, String> {
        let Some(rest) = spec.strip_prefix("fd=") else { return Ok(spec.to_owned()) };
        let (name, keys) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
        // What is made of numbers is numbers; systemd.exec(5) forbids colons in names.
        if !name.contains(|c: char| c != ':' && !c.is_ascii_digit()) {
            return Ok(spec.to_owned());
        }
        let named = self.fds.clone().zip(&self.names).filter(|(_, found)| *found == name);
        let numbers: Vec<_> = named.map(|(fd, _)| fd.to_string()).collect();
        match numbers.is_empty() {
            false => Ok(format!("fd={}{keys}", numbers.join(":"))),
            true if self.fds.is_empty() => Err(format!(
                "fd={name}: no descriptor was passed by name\n  try:   the descriptor's number (fd=5), or a unit \
                 with OpenFile= or Sockets= (systemd.service(5))"
            )),
            true => Err(format!(
                "fd={name}: no descriptor of that name was passed\n  try:   one of these: {}",
                self.names.join(", ")
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_the_descriptors_that_have_it() {
        let passed = ListenFds::of(7, "7", "3", "lan:dmz:lan");
        assert_eq!(passed.resolve("fd=lan,mtu=9000").unwrap(), "fd=3:5,mtu=9000");
        assert_eq!(passed.resolve("fd=dmz").unwrap(), "fd=4");
        for as_it_is in ["fd=5", "fd=5:6,mtu=9000", "fd=", "fd", "tap=lan", "tap,nat"] {
            assert_eq!(passed.resolve(as_it_is).unwrap(), as_it_is);
        }
        assert!(passed.resolve("fd=wan").unwrap_err().contains("lan, dmz, lan"));
    }

    #[test]
    fn what_another_process_was_passed_is_not_ours() {
        for (pid, count, names) in
            [("8", "1", "lan"), ("", "1", "lan"), ("7", "", "lan"), ("7", "-1", "lan"), ("7", "99999", "lan")]
        {
            let passed = ListenFds::of(7, pid, count, names);
            assert!(passed.resolve("fd=lan").unwrap_err().contains("by name"), "{pid} {count}");
            assert_eq!(passed.resolve("fd=3").unwrap(), "fd=3");
        }
        // Fewer names than descriptors: the others have none.
        assert_eq!(ListenFds::of(7, "7", "2", "lan").resolve("fd=lan").unwrap(), "fd=3");
    }
}
