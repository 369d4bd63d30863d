//! Where a pair is while it is paused: plain data, from which a saved NIC will be made again.

use serde::{Deserialize, Serialize};

use crate::virtio::queue::QueueState;

/// What a pair answers when it is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairState {
    /// No driver has started it.
    Idle,
    /// A driver has, and this far it is.
    Active(ActivePair),
    /// Its driver broke a ring, and has not reset it since.
    Ended,
}

/// Where a pair with a driver is. It has published and signalled all that it used, and has no frame in hand but one that waits for
/// room, if the driver has posted too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ActivePair {
    /// The receive queue.
    pub receive: QueueState,
    /// The transmit queue.
    pub transmit: QueueState,
    /// The NIC's control queue, of the pair that it rides with.
    pub control: Option<QueueState>,
    /// Whether the driver enabled it to receive (virtio 1.3 §5.1.6.5.5); the first always is.
    pub enabled: bool,
}
