//! Links of the tun driver: taps (Ethernet) and tuns (IP), whose other end is a descriptor of `/dev/net/tun`
//! (kernel `Documentation/networking/tuntap`).
//!
//! What the driver does that is not written there, measured on Linux 6.18:
//! - A link set down refuses writes with `EIO` and has nothing to read; a deleted one answers `EBADFD` to both, for ever.
//! - A frame larger than the space of a read is cut without a word; `sys::readv` finds out.
//! - Attaching to a persistent link overwrites its `vnet_hdr` and packet information flags, and they, the header length and
//!   the offloads stay as they are when we are gone. So they are given back, after the last descriptor is closed.
//! - A link of several queues (`IFF_MULTI_QUEUE`, which each descriptor must say and a link keeps) spreads what it receives by
//!   flow, and brings an answer to the queue by which the flow goes out. Anybody with the right can attach one more.
//! - The socket buffer has no bound unless somebody set one (`TUNSETSNDBUF`), so a write never waits.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use crate::error::{HostError, TunTapError};
use crate::host::{Change, DeferredUndo, Link, LinkId, Netlink, Refusal, Tun, Wiring, holders};
use crate::queue::Queue;
use crate::{Backend, Error, HEADER_LEN, LinkName, Offloads, sys};

/// The name for a new link: the kernel puts the least free number.
const TEMPLATE: &str = "wirevm%d";

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
    fn flags(self, queues: u16) -> i32 {
        let multi_queue = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        self.kind() | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi_queue
    }

    fn kind(self) -> i32 {
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

/// The `ip tuntap` line that makes such a link with `queues` queues.
pub(crate) fn line(mode: TunMode, name: &str, queues: u16) -> String {
    let multi_queue = if queues > 1 { " multi_queue" } else { "" };
    format!("ip tuntap add dev {name} mode {mode}{multi_queue} vnet_hdr")
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

/// The first queue of a tap or tun. Dropped with the others, the link goes, unless it is persistent: then it is as it was
/// before.
#[derive(Debug)]
pub(crate) struct TunDevice {
    // Before `found`: fields drop in this order, and a link can be given back only after this descriptor is closed.
    device: File,
    /// A persistent link as we found it.
    found: Option<Arc<DeferredUndo>>,
    name: String,
    persistent: bool,
    offloads: Offloads,
}

impl TunDevice {
    /// Makes a link and lets the kernel name it, or attaches to the one called `name`, or makes it where it is absent: with
    /// `queues` queues, of which those after the first come beside.
    ///
    /// What attaching to one that exists changes is recorded by the `wiring`, and told.
    ///
    /// Needs `CAP_NET_ADMIN` in the network namespace of the thread, or a persistent link that the user owns.
    ///
    /// # Errors
    /// Each says what we tried, and has a [`remedy`](Error::remedy): the device is absent or not allowed, the right is
    /// missing, another process holds the link, it has several queues and we one or the other way round, or it is of another
    /// kind.
    pub(crate) fn open(
        mode: TunMode,
        name: Option<&LinkName>,
        queues: u16,
        wiring: &Wiring,
    ) -> Result<(Self, Vec<Queue>), Error> {
        let found = match name {
            Some(name) => find(name)?,
            None => None,
        };
        if let (Some(name), Some(tun)) = (name, found.as_ref().and_then(|link| link.tun))
            && (queues > 1 && tun.queues > 0)
        {
            // The kernel lets us in beside whoever has it, and gives us some of his frames.
            let (name, source) = (name.to_string(), io::Error::from_raw_os_error(libc::EBUSY));
            return Err(TunTapError::Busy { mode, holders: holders::of(&name), name, source }.into());
        }
        let before = found.as_ref().and_then(|link| Some((link.id.clone(), link.tun?)));
        let before = before.filter(|(_, tun)| tun.persist && tun.mode == mode);
        let before = before.map(|(id, tun)| (id, flags(tun)));
        // Before the device, so that a failure closes that first.
        let mut deferred = None;
        let device = open_device()?;
        if let Some((id, flags)) = &before {
            deferred.insert(wiring.deferred_undo()?).keep(Change::TunFlags(id.clone(), *flags))?;
        }
        let wanted = name.map_or(TEMPLATE, LinkName::as_str);
        if let Err(source) = sys::tun_set_iff(device.as_fd(), wanted, mode.flags(queues)) {
            if let Some(deferred) = deferred {
                deferred.discard();
            }
            return Err(explain_refusal(mode, name, queues, found, source).into());
        }
        let set = |what| move |source| TunTapError::Setting { mode, name: wanted.to_owned(), what, source };
        let attached = sys::tun_get_iff(device.as_fd()).map_err(set("name"))?;
        let header_len = sys::tun_vnet_hdr_len(device.as_fd()).map_err(set("header length"))?;
        if let (Some(deferred), Some((id, flags))) = (&mut deferred, before) {
            deferred.keep(Change::TunHeader(id, flags, header_len))?;
        }
        // The flag is asked of the kernel after attaching, for the link may have been made since we looked: then nothing is
        // known of it to be given back.
        let persistent = attached.flags & libc::IFF_PERSIST != 0;
        let (name, found, offloads) = (attached.name, deferred.map(Arc::new), Offloads::default());
        let mut this = Self { device, found, name, persistent, offloads };
        sys::tun_set_vnet_hdr_len(this.fd(), HEADER_LEN).map_err(set("header length"))?;
        this.offloads = probe(this.fd());
        this.set_offloads(Offloads::default()).map_err(set("offloads"))?;
        let others = (1..queues).map(|_| this.another(mode.flags(queues)));
        let others = others.collect::<Result<_, _>>()?;
        if persistent {
            let flags = words(mode.flags(queues));
            let command =
                format!("# attach to {}: TUNSETIFF {flags}, TUNSETVNETHDRSZ {HEADER_LEN}", this.name);
            wiring.tell(command, "the guest's end of the wire; as it was when we go");
        }
        Ok((this, others))
    }

    /// One more queue of the link.
    fn another(&self, flags: i32) -> Result<Queue, Error> {
        let device = open_device()?;
        let set = |source| TunTapError::Queue { name: self.name.clone(), source };
        sys::tun_set_iff(device.as_fd(), &self.name, flags).map_err(set)?;
        Ok(Queue::new(device.into(), self.found.clone(), self.offloads))
    }

    /// The link's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// True where the link stays when this is dropped: somebody made it persistent.
    pub(crate) fn is_persistent(&self) -> bool {
        self.persistent
    }
}

/// Frames on a tap, and on a tun packets: each behind its header, as the driver gives and takes them.
impl Backend for TunDevice {
    fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        set_offloads(self.device.as_fd(), accepted)
    }
}

/// The most that the driver of a tap, tun or macvtap takes: an offload that it does not have is `EINVAL`. It is on then.
pub(crate) fn probe(fd: BorrowedFd<'_>) -> Offloads {
    let segments = Offloads { csum: true, tso4: true, tso6: true, uso: false };
    let all = Offloads { uso: true, ..segments };
    let found = [all, segments].into_iter().find(|&offloads| set_offloads(fd, offloads).is_ok());
    found.unwrap_or_default()
}

/// Says what the reader of a tap, tun or macvtap accepts.
pub(crate) fn set_offloads(fd: BorrowedFd<'_>, accepted: Offloads) -> io::Result<()> {
    let mut flags = 0;
    // Without checksums the driver has no segments either.
    if accepted.csum {
        flags |= libc::TUN_F_CSUM;
        flags |= if accepted.tso4 { libc::TUN_F_TSO4 } else { 0 };
        flags |= if accepted.tso6 { libc::TUN_F_TSO6 } else { 0 };
        flags |= if accepted.uso { libc::TUN_F_USO4 | libc::TUN_F_USO6 } else { 0 };
    }
    sys::tun_set_offload(fd, flags)
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

/// The flags to attach to a link with and leave them as they are.
fn flags(tun: Tun) -> i32 {
    let mut flags = tun.mode.kind();
    flags |= if tun.packet_info { 0 } else { libc::IFF_NO_PI };
    flags |= if tun.vnet_hdr { libc::IFF_VNET_HDR } else { 0 };
    flags | if tun.multi_queue { libc::IFF_MULTI_QUEUE } else { 0 }
}

fn find(name: &LinkName) -> Result<Option<Link>, Error> {
    let asked = |refusal| HostError::Ask { what: format!("the link {name}"), refusal };
    Ok(Netlink::new().link(name.as_str()).map_err(asked)?)
}

fn open_device() -> Result<File, Error> {
    let mut options = OpenOptions::new();
    // The standard library opens close-on-exec.
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    Ok(options.open(DEVICE).map_err(|source| TunTapError::Open { source })?)
}

/// Why `TUNSETIFF` refused: its bare error and what `link` is.
fn explain_refusal(
    mode: TunMode,
    name: Option<&LinkName>,
    queues: u16,
    link: Option<Link>,
    source: io::Error,
) -> TunTapError {
    let Some(name) = name.map(LinkName::to_string) else { return TunTapError::Make { mode, queues, source } };
    let tun = link.as_ref().and_then(|link| link.tun);
    match (source.raw_os_error(), link, tun) {
        (Some(libc::EBUSY), ..) => {
            let holders = holders::of(&name);
            TunTapError::Busy { mode, name, holders, source }
        }
        (Some(libc::EPERM), None, _) => TunTapError::MakeNamed { mode, name, queues, source },
        (Some(libc::EPERM), Some(_), tun) => {
            let owner = tun.and_then(|tun| tun.owner);
            TunTapError::NotOurs { mode, name, queues, owner, source }
        }
        (_, Some(_), Some(tun)) if tun.mode != mode => {
            TunTapError::OtherKind { mode, name, kind: tun.mode.to_string(), source }
        }
        (_, Some(_), Some(tun)) if tun.multi_queue != (queues > 1) => {
            TunTapError::Queues { mode, name, queues, source }
        }
        (_, Some(link), None) => TunTapError::OtherKind { mode, name, kind: link.kind, source },
        _ => TunTapError::Attach { mode, name, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_that_change_nothing() {
        let bare = Tun {
            mode: TunMode::Tap,
            packet_info: false,
            vnet_hdr: false,
            multi_queue: false,
            queues: 0,
            persist: true,
            owner: None,
        };
        assert_eq!(flags(bare), libc::IFF_TAP | libc::IFF_NO_PI);
        assert_eq!(flags(Tun { mode: TunMode::Tun, ..bare }), libc::IFF_TUN | libc::IFF_NO_PI);
        assert_eq!(flags(Tun { packet_info: true, ..bare }), libc::IFF_TAP);
        assert_eq!(flags(Tun { vnet_hdr: true, ..bare }), TunMode::Tap.flags(1));
        assert_eq!(flags(Tun { multi_queue: true, vnet_hdr: true, ..bare }), TunMode::Tap.flags(2));
    }

    #[test]
    fn the_template_is_a_name() {
        let name = TEMPLATE.replace("%d", "12345678");
        assert!(name.parse::<LinkName>().is_ok(), "{name} is short enough");
    }
}
