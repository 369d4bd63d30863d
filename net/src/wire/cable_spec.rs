//! What goes beside a cable's descriptors: plain data.

use serde::{Deserialize, Serialize};

use crate::answer::dhcp::Lease;
use crate::answer::neighbour::Gateway;
use crate::answer::router::Router;
use crate::{Mac, Offloads};

/// What the descriptors of a cable are, and what the guest is to know of its wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CableSpec {
    pub(crate) link: String,
    pub(crate) mac: Mac,
    /// Bytes.
    pub(crate) mtu: u16,
    /// What the host's end can do.
    pub(crate) offloads: Offloads,
    /// Several frames of the guest may go to the host's end as one packet.
    pub(crate) coalesce: bool,
    /// How many descriptors carry frames: one for each queue pair, the first ones.
    pub(crate) queues: usize,
    /// How many queue pairs the guest's NIC has: those past the last queue only send.
    pub(crate) pairs: usize,
    /// How many are of vhost-net: the next ones, one for each queue pair or none.
    pub(crate) vhosts: usize,
    /// One that hears the guest's questions comes next.
    pub(crate) listens: bool,
    /// One of the host's setting for forwarding comes last.
    pub(crate) forwarding: bool,
    /// The first queue can be switched off and on, too.
    pub(crate) switches_first: bool,
    /// The host's link takes its carrier from us.
    pub(crate) has_carrier: bool,
    /// The host's link brings only the frames that it is asked for.
    pub(crate) asks: bool,
    /// The host's end carries packets, and this is who stands at it for the guest.
    pub(crate) gateway: Option<Gateway>,
    pub(crate) lease: Option<Lease>,
    pub(crate) router: Option<Router>,
}
