//! What a link of the tun driver is attached as, and how one that nobody is attached to is given its settings back.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use super::netlink::{LinkId, Netlink, Refusal};
use crate::sys;

/// The path of the tun driver.
pub(crate) const DEVICE: &str = "/dev/net/tun";

/// What a link of the tun driver carries, in the words of `ip tuntap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunMode {
    /// Ethernet frames.
    Tap,
    /// IP packets.
    Tun,
}

impl TunMode {
    /// What we attach `queues` queues as: no packet information before a frame, a virtio-net header instead.
    pub(crate) fn flags(self, queues: u16) -> i32 {
        let multi_queue = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        self.kind() | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi_queue
    }

    pub(crate) fn kind(self) -> i32 {
        match self {
            Self::Tap => libc::IFF_TAP,
            Self::Tun => libc::IFF_TUN,
        }
    }
}

impl fmt::Display for TunMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tap => "tap",
            Self::Tun => "tun",
        })
    }
}

/// `IFF_*` flags as they are written.
pub(crate) fn words(flags: i32) -> String {
    let all = [
        (libc::IFF_TUN, "IFF_TUN"),
        (libc::IFF_TAP, "IFF_TAP"),
        (libc::IFF_NO_PI, "IFF_NO_PI"),
        (libc::IFF_VNET_HDR, "IFF_VNET_HDR"),
        (libc::IFF_MULTI_QUEUE, "IFF_MULTI_QUEUE"),
    ];
    all.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, word)| *word).collect::<Vec<_>>().join("|")
}

/// Has a link to which nobody is attached be as `flags` and `header_len` say, without offloads.
///
/// # Errors
/// `ENODEV` where it is gone, `EBUSY` where somebody is attached.
pub(crate) fn set(
    netlink: &mut Netlink,
    link: &LinkId,
    flags: i32,
    header_len: Option<usize>,
) -> Result<(), Refusal> {
    // Attaching by name would make a link that was deleted meanwhile, and join whoever has a queue of one with several.
    let found = netlink.link_by_index(link.index)?.filter(|found| found.id == *link);
    match found.map(|found| found.tun.is_some_and(|tun| tun.queues > 0)) {
        None => return Err(io::Error::from_raw_os_error(libc::ENODEV).into()),
        Some(true) => return Err(io::Error::from_raw_os_error(libc::EBUSY).into()),
        Some(false) => {}
    }
    let device = File::options().read(true).write(true).open(DEVICE)?;
    sys::tun_set_iff(device.as_fd(), &link.name, flags)?;
    if let Some(len) = header_len {
        sys::tun_set_vnet_hdr_len(device.as_fd(), len)?;
    }
    Ok(sys::tun_set_offload(device.as_fd(), 0)?)
}
