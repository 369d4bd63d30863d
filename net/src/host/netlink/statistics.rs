//! What the kernel counts of a link (`IFLA_STATS64`), as the guest at its other end sees it.

use netlink_bindings::rt_link::{self, Ifinfomsg, RtnlLinkStats64};

use super::{Netlink, Refusal, lossy};

/// What went over the link at a guest's end since the link was made, seen from the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// From the guest.
    pub sent: Tally,
    /// To the guest. What is dropped found the link's queue full: the guest, or its rate, was too slow for it.
    pub received: Tally,
}

/// What was counted of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames that passed; a large one that is not segmented yet is one.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that were dropped.
    pub dropped: u64,
}

impl LinkCounters {
    /// The host receives by a tap or tun what the guest sends. A macvtap is a link of the guest's own: the guest sends by it.
    fn new(kind: &str, all: &RtnlLinkStats64) -> Self {
        let in_by_link = Tally { frames: all.rx_packets, bytes: all.rx_bytes, dropped: all.rx_dropped };
        let out_by_link = Tally { frames: all.tx_packets, bytes: all.tx_bytes, dropped: all.tx_dropped };
        match kind {
            "macvtap" | "ipvtap" => Self { sent: out_by_link, received: in_by_link },
            _ => Self { sent: in_by_link, received: out_by_link },
        }
    }
}

impl Netlink {
    /// What the link of that index has counted; none where there is no such link.
    pub(crate) fn link_counters(&mut self, index: u32) -> Result<Option<LinkCounters>, Refusal> {
        let header = Ifinfomsg { ifi_index: index as i32, ..Ifinfomsg::default() };
        let request = rt_link::Request::new().op_getlink_do(&header);
        match self.socket()?.request(&request)?.recv_one() {
            Ok((_, attributes)) => {
                let kind = attributes.get_linkinfo().and_then(|info| info.get_kind()).map(lossy);
                let counted = attributes.get_stats64().ok();
                Ok(counted.map(|all| LinkCounters::new(&kind.unwrap_or_default(), &all)))
            }
            Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
