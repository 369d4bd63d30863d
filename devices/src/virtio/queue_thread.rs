//! The thread of a device's queue, or of a few queues that belong together.
//!
//! **Invariant: it is spawned with the device and ends with it.** Drivers come and go meanwhile, by messages in its
//! [`Mailbox`]. So no vCPU ever makes a thread, and no queue's thread inherits a vCPU's CPUs, policy or control group.
//!
//! At its birth it takes its name and its CPU; its scheduling policy is that of the process. What it waits with (an epoll descriptor,
//! eventfds) its spawner makes before it, for where that fails there is no thread yet.

use std::io;
use std::thread::{Builder, JoinHandle};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::mailbox::{Address, Mailbox, mailbox};

/// A thread, and the address of its mailbox. Dropped, it ends the thread and joins it.
pub struct QueueThread<M> {
    address: Address<M>,
    thread: Option<JoinHandle<()>>,
}

impl<M: Send + 'static> QueueThread<M> {
    /// Spawns the thread `name`, of which Linux shows 15 bytes, on that CPU of the host, or on any. It runs what `prepare` makes of
    /// its mailbox, and that returns once [`Mailbox::take`] breaks.
    ///
    /// A CPU that went offline meanwhile is logged, and the thread runs on any.
    ///
    /// # Errors
    /// There are no descriptors or no threads left, or `prepare` says so.
    pub fn spawn<L: FnOnce() + Send + 'static>(
        name: &str,
        cpu: Option<u16>,
        prepare: impl FnOnce(Mailbox<M>) -> io::Result<L>,
    ) -> io::Result<Self> {
        let (address, mailbox) = mailbox(name)?;
        let live = prepare(mailbox)?;
        let born = name.to_owned();
        let body = move || {
            if let Some((cpu, Err(error))) = cpu.map(|cpu| (cpu, run_on(cpu))) {
                log::warn!("{born} cannot run on CPU {cpu}, and runs on any: {error}");
            }
            if let Err(error) = net::wait_exactly() {
                log::debug!("{born} may wait for longer than it wants: {error}");
            }
            live();
        };
        let thread = Some(Builder::new().name(name.to_owned()).spawn(body)?);
        Ok(Self { address, thread })
    }

    /// Where it takes messages.
    pub fn address(&self) -> &Address<M> {
        &self.address
    }
}

impl<M> Drop for QueueThread<M> {
    fn drop(&mut self) {
        self.address.end();
        // A panic has been reported where it happened.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Has the calling thread run on that CPU of the host and no other.
///
/// # Errors
/// `EINVAL` where there is no such CPU, it is offline, or the process may not use it (cpuset(7)).
pub fn run_on(cpu: u16) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    let cpu = usize::from(cpu);
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    cpus.set(cpu);
    Ok(sched_setaffinity(None, &cpus)?)
}
