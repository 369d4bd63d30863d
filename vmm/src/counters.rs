//! What a running machine has counted of its NICs: the answer to `NetCounters`.
//!
//! All numbers count from 0 and are seen from the guest: what is *sent* comes from it. Bytes are those of frames, from the Ethernet
//! header on. What a queue pair counts goes on as the NIC moves; what the host counts is of the wire that it is on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Frames that were lost, by cause.
pub type Dropped = BTreeMap<String, u64>;

/// What was counted of all NICs until one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// The moment, in microseconds since the machine was started: the difference of two makes a rate.
    pub at: u64,
    /// The NICs, in order.
    pub nics: Vec<NicCounters>,
}

/// What was counted of one NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicCounters {
    /// What it is called: `nic0` is the first.
    pub name: String,
    /// Who carries its frames: `wirevm` or `vhost-net`.
    pub carrier: String,
    /// The host's link at the guest's end of the wire.
    pub link: String,
    /// What its queue pairs carried, in order: under vhost-net the kernel carries nearly all, and counts on the link alone.
    pub queues: Vec<QueueCounters>,
    /// What the host counted on that link, since the link was made; none where the link is out of sight.
    pub host: Option<HostCounters>,
    /// Frames that a queue pair or the kernel sent, and that went no further: `guard` (under addresses that are not the guest's),
    /// `rate` (too many for the rate that the host keeps under vhost-net), and `not_ip` (on a tun).
    pub dropped: Dropped,
}

/// What went through one queue pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCounters {
    /// From the guest. Lost: `too_long`, `link_down` (the NIC's own link), `host_down` (the host's link is down or gone), `refused` (by the
    /// host, for another reason).
    pub sent: Direction,
    /// To the guest. Lost: `too_long` (for the driver's buffers), `no_buffer` (it posted none in time), `unread` (the host failed),
    /// `unfit` (the driver cannot read such frames).
    pub received: Direction,
    /// Frames of those sent that went to the host together, as so many packets.
    #[serde(default)]
    pub coalesced: Coalesced,
    /// Notifications of the driver that woke the pair's thread.
    pub kicks: u64,
    /// Interrupts of the guest.
    pub interrupts: u64,
    /// System calls of the pair's thread.
    pub system_calls: u64,
}

/// What went one way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// Frames that passed.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that did not.
    pub dropped: Dropped,
    /// How often frames waited for the NIC's rate.
    #[serde(default)]
    pub rate_waits: u64,
}

/// Frames that went as packets of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coalesced {
    /// How many frames.
    pub frames: u64,
    /// How many packets.
    pub packets: u64,
}

/// What the host counted on a link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCounters {
    /// From the guest.
    pub sent: HostDirection,
    /// To the guest; dropped is what found the link's queue full.
    pub received: HostDirection,
}

/// What the host counted of one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDirection {
    /// Frames that passed.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that did not.
    pub dropped: u64,
}

impl Direction {
    /// All frames that did not pass.
    pub fn lost(&self) -> u64 {
        self.dropped.values().sum()
    }
}
