//! Which machine it is that has a name.

use std::time::Duration;

use net::Directory;

use super::{held_lock, machines, pids_in};

/// The machine that had a name when somebody looked. A later one of that name is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(super) name: String,
    /// Of its processes; none where it had not said yet.
    pub(super) pids: Option<(u32, u32)>,
}

impl Holder {
    /// Waits until it has let go of its name: the last thing that its process lets go of.
    pub(crate) fn wait_until_gone(&self) {
        while machines().ok().flatten().is_some_and(|all| self.is_in(&all)) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(super) fn is_in(&self, all: &Directory) -> bool {
        let lock = held_lock(all, &self.name);
        lock.is_some_and(|lock| self.pids.is_none() || pids_in(&lock) == self.pids)
    }
}
