//! Why a NIC could not start.

use std::io;

/// Why a NIC could not start for its driver. It can be activated again.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("queue pair {0} is not set up")]
    Queues(usize),
    #[error("queue pair {0} lost its backend to a panic of its thread")]
    Lost(usize),
    #[error("queue pair {0} still has a driver")]
    Started(usize),
    #[error("cannot set the offloads of queue pair {0}")]
    Offloads(usize, #[source] io::Error),
    #[error("cannot have the host leave queue pair {0} alone")]
    Disable(usize, #[source] io::Error),
    #[error("cannot have vhost-net carry the frames of queue pair {0}")]
    Vhost(usize, #[source] io::Error),
    #[error("cannot have queue pair {0} move frames")]
    Run(usize, #[source] io::Error),
}
