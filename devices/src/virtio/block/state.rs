//! Where a paused queue of a disk is: plain data, from which a saved disk will be made again.

use serde::{Deserialize, Serialize};

use crate::virtio::queue::QueueState;

/// What a queue answers when it is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskQueueState {
    /// No driver has started it.
    Idle,
    /// A driver has, and this far it is: all that was taken is answered, and shown.
    Active(QueueState),
    /// Its driver broke its ring, and has not reset it since.
    Ended,
}
