//! A descriptor of a tap or macvtap that somebody else opened and we inherited: systemd, a jailer, libvirt. It takes no
//! right at all, and its link may be in another network namespace, out of our sight.
//!
//! What is not written in the kernel's documentation, measured on Linux 6.18:
//! - Descriptors of one link are its queues, up to 256. Anybody who has one detaches it for a while and attaches it again
//!   (`TUNSETQUEUE`); `TUNGETIFF` tells that of a tap's, and nothing tells it of a macvtap's.
//! - A descriptor that is attached to a tap keeps the flags that it was attached with; that of a macvtap takes others.
//! - `TUNGETIFF` answers `IFF_NO_PI` whether there is packet information before each frame or not; netlink says it right,
//!   where we see the link.
//! - Both tell and set their link's Ethernet address without any right, in whatever namespace that is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Dev, fstat, major, minor};

use crate::error::{FdError, FdProblem, HostError};
use crate::frames::queue;
use crate::host::wire_link::{Role, WireLink};
use crate::host::{Host, Link, LinkId, Netlink, Wiring};
use crate::wire::macvtap::Groups;
use crate::wire::made::{self, Made, Parts};
use crate::wire::tuntap;
use crate::{Backend, Error, FdConfig, HEADER_LEN, MTU, Mac, NetConfig, Offloads, RxFilter, sys};

/// The number of `/dev/net/tun` (kernel `Documentation/admin-guide/devices.txt`).
const TUN: (u32, u32) = (10, 200);

/// What a link has that we do not see.
const MTU_UNSEEN: u16 = 1500;

/// Takes over the descriptors, and asks of their link what we can see of it.
pub(crate) fn open(config: &FdConfig, all: &NetConfig, host: &Host) -> Result<Made, Error> {
    let &NetConfig { mac, mtu, .. } = all;
    let mut queues = config.fds.iter().map(|&fd| Inherited::take(fd)).collect::<Result<Vec<_>, _>>()?;
    check_same_link(&queues)?;
    for queue in &mut queues {
        queue.prepare()?;
    }
    let mut others = queues.split_off(1);
    for queue in &mut others {
        queue.leads = false;
    }
    let mut backend = queues.remove(0);
    let link = backend.link();
    let name = backend.name.clone();
    if link.as_ref().and_then(|link| link.tun).is_some_and(|tun| tun.packet_info) {
        return Err(FdError { fd: backend.number, problem: FdProblem::Flags(name), source: None }.into());
    }
    if let Some(link) = link.as_ref().filter(|_| backend.is_macvtap) {
        backend.groups = Groups::new(link.id.index).ok();
    }
    let limit = link.as_ref().map(|link| link.mtu);
    if let (Some(mtu), Some(limit)) = (mtu, limit)
        && u32::from(mtu) > limit
    {
        return Err(HostError::MtuLimit { mtu, link: name, limit }.into());
    }
    let seen = link.as_ref().map(|link| link.id.clone());
    let down = link.filter(|link| !link.up).map(|_| {
        format!("{name} is down and drops every frame until somebody sets it up: ip link set dev {name} up")
    });
    let own = limit.map_or(MTU_UNSEEN, |limit| u16::try_from(limit).unwrap_or(*MTU.end()));
    let mac = match (mac, backend.is_macvtap) {
        (Some(mac), false) => mac,
        (None, false) => Mac::random().map_err(|source| HostError::RandomMac { source })?,
        // The link brings the frames to its own address, and no others.
        (Some(mac), true) => {
            let taken = [Some(libc::EADDRINUSE), Some(libc::EBUSY)];
            match backend.set_mac(mac.octets()) {
                Err(error) if taken.contains(&error.raw_os_error()) => {
                    let by = "another link on its NIC".to_owned();
                    return Err(HostError::MacTaken { mac, by }.into());
                }
                set => set.map_err(backend.refusal("Ethernet address"))?,
            }
            mac
        }
        (None, true) => Mac::new(backend.mac).map_err(|_| backend.problem("Ethernet address"))?,
    };
    // There is nothing to change, and so nothing to undo.
    let mut wiring = Wiring::begin(host, all.netns.as_ref())?;
    wiring.release_lock();
    if !backend.is_macvtap {
        if mac.octets() == backend.mac {
            return Err(HostError::MacTaken { mac, by: name }.into());
        }
        seen.as_ref().map_or(Ok(()), |tap| wiring.check_mac(mac, tap, &[]))?;
    }
    if let Some(down) = down {
        wiring.notice(down);
    }
    let mut parts = Parts::new(&name, mac, mtu.unwrap_or(own), backend.offloads);
    (parts.spec.asks, parts.spec.switches_first) = (backend.is_macvtap, true);
    parts.links.push(match seen {
        Some(id) => wiring.wire_link(&id, Role::Guest),
        None => WireLink { index: None, ..wiring.wire_link(&LinkId { index: 0, name }, Role::Guest) },
    });
    Ok(Made { ends: made::ends(backend, others), parts, wiring })
}

/// Refuses queues that are not all of one link, or not all different.
fn check_same_link(queues: &[Inherited]) -> Result<(), Error> {
    let problem =
        |queue: &Inherited, problem| Err(FdError { fd: queue.number, problem, source: None }.into());
    let setting = |queue: &Inherited| queue.refusal("blocking mode");
    for (index, queue) in queues.iter().enumerate().skip(1) {
        let first = &queues[0];
        // The name is one of a network namespace, which may be out of our sight; the address tells two of one name apart.
        let same = |queue: &Inherited| (queue.node, queue.name.clone(), queue.mac);
        if same(queue) != same(first) {
            return problem(queue, FdProblem::OtherLink { link: queue.name.clone(), first: first.number });
        }
        for other in &queues[..index] {
            if sys::is_same_file(queue.fd(), other.fd()).map_err(setting(queue))? {
                return problem(queue, FdProblem::Duplicate(other.number));
            }
        }
    }
    Ok(())
}

/// One queue of a tap or macvtap that somebody else opened. Dropped, it is as we got it, and closed.
#[derive(Debug)]
struct Inherited {
    device: OwnedFd,
    number: RawFd,
    /// The number of its device, which for a macvtap is the link's.
    node: Dev,
    name: String,
    is_macvtap: bool,
    /// The first of its link, which has what is the link's and not the queue's: address, groups, offloads.
    leads: bool,
    enabled: bool,
    offloads: Offloads,
    /// The link's, which for a macvtap is the guest's.
    mac: [u8; 6],
    /// For a macvtap that we see.
    groups: Option<Groups>,
    found: Found,
    /// `found` is to be given back.
    prepared: bool,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    flags: i32,
    header_len: usize,
    mac: [u8; 6],
    enabled: bool,
}

impl Inherited {
    /// Takes it over, changing nothing of it.
    fn take(number: RawFd) -> Result<Self, Error> {
        let problem = |problem, source| FdError { fd: number, problem, source };
        let setting = |what| move |source| problem(FdProblem::Setting(what), Some(source));
        let other = || {
            let what = std::fs::read_link(format!("/proc/self/fd/{number}"));
            what.map_or_else(|_| "something else".to_owned(), |what| what.display().to_string())
        };
        let (device, attached) = match sys::take_inherited(number) {
            Ok(Some(taken)) => taken,
            Ok(None) => return Err(problem(FdProblem::Ours, None).into()),
            Err(source) => {
                let what = match source.raw_os_error() {
                    Some(libc::EBADF) => FdProblem::Closed,
                    Some(libc::EBADFD) => FdProblem::Unattached,
                    _ => FdProblem::Other(other()),
                };
                return Err(problem(what, Some(source)).into());
            }
        };
        let fd = device.as_fd();
        let name = attached.name;
        if attached.flags & libc::IFF_TAP == 0 {
            return Err(problem(FdProblem::Layer3(name), None).into());
        }
        let stat = fstat(fd).map_err(|error| setting("number")(error.into()))?;
        let is_macvtap = (major(stat.st_rdev), minor(stat.st_rdev)) != TUN;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let is_ours = attached.flags & flags == flags;
        if !is_macvtap && !is_ours {
            return Err(problem(FdProblem::Flags(name), None).into());
        }
        let header_len = sys::tun_vnet_hdr_len(fd).map_err(setting("header length"))?;
        let mac = sys::hardware_address(fd).map_err(setting("Ethernet address"))?;
        // A detached queue of a macvtap does not say that it is one.
        let enabled = is_macvtap || attached.flags & libc::IFF_DETACH_QUEUE == 0;
        let found = Found { flags: attached.flags, header_len, mac, enabled };
        Ok(Self {
            device,
            number,
            node: stat.st_rdev,
            name,
            is_macvtap,
            leads: true,
            enabled,
            offloads: Offloads::default(),
            mac,
            groups: None,
            found,
            prepared: false,
        })
    }

    /// Has it speak as we do.
    fn prepare(&mut self) -> Result<(), Error> {
        self.prepared = true;
        let fd = self.device.as_fd();
        if self.is_macvtap {
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
            sys::tun_set_iff(fd, &self.name, flags).map_err(self.refusal("flags"))?;
            // Its bound wakes nobody who waits for it to have room again.
            sys::tun_set_sndbuf(fd, libc::c_int::MAX).map_err(self.refusal("socket buffer"))?;
            // So it is tried: one that is attached already refuses.
            self.found.enabled = sys::tun_set_queue(fd, true).is_err();
        }
        sys::set_nonblocking(fd).map_err(self.refusal("blocking mode"))?;
        sys::tun_set_vnet_hdr_len(fd, HEADER_LEN).map_err(self.refusal("header length"))?;
        self.set_enabled(true).map_err(self.refusal("queue"))?;
        self.offloads = tuntap::probe(self.fd());
        Ok(tuntap::set_offloads(self.fd(), Offloads::default()).map_err(self.refusal("offloads"))?)
    }

    /// The link, if it is in our network namespace: the one of that name that has the address and is of the kind.
    fn link(&self) -> Option<Link> {
        let link = Netlink::new().link(&self.name).ok().flatten()?;
        let same_kind = self.is_macvtap != link.tun.is_some();
        (same_kind && link.mac == Some(self.mac)).then_some(link)
    }

    fn problem(&self, what: &'static str) -> FdError {
        FdError { fd: self.number, problem: FdProblem::Setting(what), source: None }
    }

    fn refusal(&self, what: &'static str) -> impl FnOnce(io::Error) -> FdError + use<> {
        let fd = self.number;
        move |source| FdError { fd, problem: FdProblem::Setting(what), source: Some(source) }
    }

    /// Gives a macvtap's link another address.
    fn set_mac(&mut self, mac: [u8; 6]) -> io::Result<()> {
        if mac != self.mac {
            sys::set_hardware_address(self.fd(), mac)?;
            self.mac = mac;
        }
        Ok(())
    }

    fn give_back(&mut self) -> io::Result<()> {
        // A macvtap that nobody has opened yet accepts all, a tap nothing.
        let fresh = if self.is_macvtap { self.offloads } else { Offloads::default() };
        tuntap::set_offloads(self.fd(), fresh)?;
        sys::tun_set_vnet_hdr_len(self.fd(), self.found.header_len)?;
        if self.is_macvtap {
            sys::tun_set_iff(self.fd(), &self.name, self.found.flags)?;
            self.set_mac(self.found.mac)?;
        }
        // Whoever had its cable may have switched it meanwhile; the kernel refuses to do it twice.
        let _ = sys::tun_set_queue(self.fd(), self.found.enabled);
        Ok(())
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        if !self.prepared {
            return;
        }
        match self.give_back() {
            // The link is deleted.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENOLINK)) => {}
            Err(error) => log::warn!("cannot give {} its settings back: {error}", self.name),
            Ok(()) => {}
        }
    }
}

impl Backend for Inherited {
    fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        if self.leads { tuntap::set_offloads(self.fd(), accepted) } else { Ok(()) }
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        queue::set_enabled(self.device.as_fd(), &mut self.enabled, enabled)
    }

    /// A macvtap's link gets the guest's address, without which it would bring it nothing, and, where we see it and have
    /// `CAP_NET_RAW`, its groups; else those are for its owner to join.
    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        if !self.is_macvtap || !self.leads {
            return Ok(());
        }
        let before = self.mac;
        self.set_mac(filter.mac.octets())?;
        let Some(groups) = &mut self.groups else { return Ok(()) };
        groups.follow(filter).inspect_err(|_| {
            if let Err(error) = self.set_mac(before) {
                log::warn!("cannot give {} its address back: {error}", self.name);
            }
        })
    }

    fn vhost_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }
}
