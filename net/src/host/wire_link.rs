//! The links of the host that a wire uses, as it tells them to others.

use serde::Serialize;

/// A link of the host that a wire uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WireLink {
    /// Its name when the wire was made.
    pub name: String,
    /// Its number in its network namespace, which tells it from a later one of that name; none where it is out of sight.
    pub index: Option<u32>,
    /// The inode of its network namespace.
    pub namespace: u64,
    /// What it is to the wire.
    pub role: Role,
}

/// What a link is to a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The guest's end: a tap, tun or macvtap.
    Guest,
    /// The bridge that the guest's end is a port of.
    Bridge,
    /// The NIC that leads from a bridge to the LAN.
    Uplink,
    /// The NIC that a macvtap is on.
    Parent,
    /// The host's own macvlan beside a guest's macvtap.
    Host,
}
