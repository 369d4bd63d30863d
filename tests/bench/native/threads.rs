//! Who runs where, and how long.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::sys;

/// The threads of a VMM but its vCPU, which is the one that never rests. Each is where it belongs.
pub(super) struct Threads(Vec<PathBuf>);

impl Threads {
    pub(super) fn of(pid: u32) -> Result<Self, String> {
        let tasks = |pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let all: Vec<_> = sys::family(pid).into_iter().flat_map(tasks).map(|task| task.path()).collect();
        let times = || all.iter().map(|task| ran(task)).collect::<Vec<_>>();
        let before = times();
        thread::sleep(Duration::from_millis(100));
        let spent = times().into_iter().zip(before).map(|(now, before)| now.saturating_sub(before));
        let busiest = spent.enumerate().max_by_key(|(_, spent)| *spent).map(|(at, _)| at);
        let vcpu = busiest.ok_or("it has no threads")?;
        let cores = sys::cores().map_err(|error| format!("which processors there are: {error}"))?;
        let number = |task: &Path| task.file_name()?.to_str()?.parse().ok();
        for (at, task) in all.iter().enumerate() {
            let core = if at == vcpu { cores[0] } else { cores[cores.len() - 1] };
            // One that is gone needs none.
            let _ = number(task).map(|number| sys::pin(number, core));
        }
        sys::pin(sys::thread_number(), cores[cores.len() - 1])
            .map_err(|error| format!("its processor: {error}"))?;
        let others = all.into_iter().enumerate().filter(|(at, _)| *at != vcpu).map(|(_, task)| task);
        Ok(Self(others.collect()))
    }

    /// Their time on a processor.
    pub(super) fn time(&self) -> Duration {
        self.0.iter().map(|task| ran(task)).sum()
    }
}

/// A thread's time on a processor, from the first number of its schedstat.
fn ran(task: &Path) -> Duration {
    let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0))
}
