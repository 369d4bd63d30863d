//! The macvtap: a link on another one (its parent, a NIC) that has an Ethernet address of its own and whose other end is a
//! character device, `/dev/tapN` (kernel `drivers/net/tap.c`, `drivers/net/macvlan.c`).
//!
//! What is not written there, measured on Linux 6.18:
//! - The device speaks as a tap does, but its socket buffer is bounded, and whoever finds it full is not always told when it
//!   no longer is: nothing wakes an edge-triggered epoll. So the bound is lifted.
//! - Any number of descriptors can be open, up to 256; each is a queue, with no `IFF_MULTI_QUEUE` to ask for, and the kernel
//!   spreads frames over them by flow. One that is detached (`TUNSETQUEUE`) keeps what came before.
//! - Offloads are the link's, everything else is the descriptor's.
//! - A frame to a group comes only where the link has joined it, in every mode: the kernel hashes the groups of the link, not
//!   those of whoever sits at the device. Frames to other stations come in mode `passthru` alone, whatever is joined.
//!   A group that was left still comes until the groups change once more.
//! - The address can be set through the device, in any network namespace and without any right.
//! - A link set down takes writes and loses them. So does a deleted one, which has nothing to read and polls as quiet; only
//!   its ioctls say `ENOLINK`.

mod make;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Dev, FileType, Mode, OFlags, major, minor, mknodat, openat};
use rustix::mount::MountAttrFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

pub(crate) use self::make::open;
use crate::error::{HostError, MacvtapError};
use crate::host::sysfs::{self, Sysfs};
use crate::host::{Host, Link, LinkId, Netlink, Wiring, holders};
use crate::queue::Queue;
use crate::sys::packet::{self, Membership};
use crate::{Addresses, Backend, Error, HEADER_LEN, LinkName, Offloads, RxFilter, sys, tuntap};

/// A macvtap, by its first queue. Dropped, the link stays; if it was there before, it is as it was.
#[derive(Debug)]
pub struct Macvtap {
    device: File,
    name: String,
    offloads: Offloads,
    mac: [u8; 6],
    groups: Option<Groups>,
    /// The address that a link of somebody else's had, to be given back.
    found: Option<[u8; 6]>,
}

impl Macvtap {
    /// Attaches to the macvtap called `name`.
    ///
    /// Needs its character device, which is root's unless somebody gave it away. To receive groups that the host has not
    /// joined on it, needs `CAP_NET_RAW`.
    ///
    /// # Errors
    /// Each says what we tried, and has a [`remedy`](Error::remedy): there is no such link, it is no macvtap, another process
    /// has it open, or its device does not open.
    pub fn open(name: &LinkName) -> Result<Self, Error> {
        let found = Netlink::new().link(name.as_str());
        let found = found.map_err(|refusal| HostError::Ask { what: format!("the link {name}"), refusal })?;
        let link = found.ok_or_else(|| HostError::LinkGone { name: name.to_string() })?;
        Self::attach(&link, true, 1, &Wiring::begin(&Host::new(), None)?).map(|(this, _)| this)
    }

    /// Attaches `queues` queues to `link`, of which those after the first come beside; `found`: it was there before, so that
    /// it is given back as it was. That its device is opened is told.
    pub(crate) fn attach(
        link: &Link,
        found: bool,
        queues: u16,
        wiring: &Wiring,
    ) -> Result<(Self, Vec<Queue>), Error> {
        let LinkId { name, .. } = &link.id;
        let opening = |source| MacvtapError::Open { name: name.clone(), index: link.id.index, source };
        let number = Sysfs::open().and_then(|sysfs| sysfs.macvtap_device(&link.id)).map_err(opening)?;
        let holders = if found { holders::of_device(number) } else { Vec::new() };
        if !holders.is_empty() {
            return Err(MacvtapError::Busy { name: name.clone(), holders }.into());
        }
        let node = Path::new("/dev").join(format!("tap{}", link.id.index));
        let device = open_node(&node, number).map_err(opening)?;
        let set = |what| move |source| MacvtapError::Setting { name: name.clone(), what, source };
        let fd = device.as_fd();
        prepare(fd, name)?;
        let attached = sys::tun_get_iff(fd).map_err(set("name"))?;
        let mac = sys::hardware_address(fd).map_err(set("Ethernet address"))?;
        if attached.name != *name || Some(mac) != link.mac {
            return Err(opening(io::Error::from_raw_os_error(libc::ENXIO)).into());
        }
        let offloads = tuntap::probe(fd);
        let groups = Groups::new(link.id.index)
            .inspect_err(|error| log::debug!("cannot join groups on {name}: {error}"))
            .ok();
        let this = Self { device, name: name.clone(), offloads, mac, groups, found: found.then_some(mac) };
        tuntap::set_offloads(this.fd(), Offloads::default()).map_err(set("offloads"))?;
        let another = |_| -> Result<Queue, Error> {
            let device = open_node(&node, number).map_err(opening)?;
            prepare(device.as_fd(), name)?;
            Ok(Queue::new(device.into(), None, offloads))
        };
        let others = (1..queues).map(another).collect::<Result<_, _>>()?;
        let times = if queues > 1 { format!(", {queues} times") } else { String::new() };
        let command = format!("# open {} (c {}:{}){times}", node.display(), major(number), minor(number));
        wiring.tell(command, "the guest's end of the wire");
        Ok((this, others))
    }

    /// The link's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The link's Ethernet address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// True where the frames of groups follow the guest; else the guest receives those alone that the host has joined on the
    /// link.
    pub fn follows_groups(&self) -> bool {
        self.groups.is_some()
    }

    /// Gives the link another address.
    ///
    /// # Errors
    /// The kernel refuses: the parent or another link on it has the address (`EADDRINUSE`, `EBUSY`).
    pub(crate) fn set_mac(&mut self, mac: [u8; 6]) -> io::Result<()> {
        if mac != self.mac {
            sys::set_hardware_address(self.fd(), mac)?;
            self.mac = mac;
        }
        Ok(())
    }
}

impl Backend for Macvtap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        tuntap::set_offloads(self.fd(), accepted)
    }

    /// The address, the groups, and promiscuous mode go onto the link. Other stations' addresses do not: the kernel gives a
    /// macvtap the frames to its own address and to none besides, but for mode `passthru`, which brings all of them unasked.
    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
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

impl Drop for Macvtap {
    fn drop(&mut self) {
        let Some(found) = self.found else { return };
        // What a macvtap has that nobody has opened yet.
        let fresh = tuntap::set_offloads(self.fd(), self.offloads);
        for result in [fresh, self.set_mac(found)] {
            match result {
                // It is deleted.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => log::warn!("cannot give {} its settings back: {error}", self.name),
                Ok(()) => {}
            }
        }
    }
}

/// Has the descriptor of the macvtap `name` speak as we do.
fn prepare(fd: BorrowedFd<'_>, name: &str) -> Result<(), Error> {
    let set = |what| move |source| MacvtapError::Setting { name: name.to_owned(), what, source };
    // The name is that of the link it was opened with.
    sys::tun_set_iff(fd, name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).map_err(set("flags"))?;
    sys::tun_set_vnet_hdr_len(fd, HEADER_LEN).map_err(set("header length"))?;
    Ok(sys::tun_set_sndbuf(fd, libc::c_int::MAX).map_err(set("socket buffer"))?)
}

/// What the link must have joined for the guest to receive what it wants.
fn wanted(filter: &RxFilter) -> Vec<Membership> {
    let promiscuous = filter.promiscuous.then_some(Membership::Promiscuous);
    match filter.groups() {
        Addresses::Every => promiscuous.into_iter().chain([Membership::AllMulticast]).collect(),
        Addresses::Only(list) => {
            // A station among the groups would be refused, and the kernel counts what is joined twice.
            let mut list: Vec<_> = list.iter().copied().filter(|address| address[0] & 1 != 0).collect();
            list.sort_unstable();
            list.dedup();
            promiscuous.into_iter().chain(list.into_iter().map(Membership::Multicast)).collect()
        }
    }
}

/// What is joined on a link on behalf of the guest: by a packet socket that receives nothing (packet(7)), so that all of it
/// goes with the descriptor, and what others have joined stays.
#[derive(Debug)]
pub(crate) struct Groups {
    socket: OwnedFd,
    index: u32,
    joined: Vec<Membership>,
}

impl Groups {
    /// Nothing, on the link of that index in the thread's namespace. Needs `CAP_NET_RAW`.
    pub(crate) fn new(index: u32) -> io::Result<Self> {
        // Protocol 0 receives no frame.
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, index, joined: Vec::new() })
    }

    /// Has the link receive what `filter` wants, and no more, or, on an error, what it did.
    pub(crate) fn follow(&mut self, filter: &RxFilter) -> io::Result<()> {
        self.set(wanted(filter))
    }

    /// Joins what is new in `wanted` and leaves what is not in it any more, or, on an error, neither.
    fn set(&mut self, wanted: Vec<Membership>) -> io::Result<()> {
        let fd = self.socket.as_fd();
        let new: Vec<_> = wanted.iter().filter(|wanted| !self.joined.contains(wanted)).copied().collect();
        for (count, membership) in new.iter().enumerate() {
            if let Err(error) = packet::join(fd, self.index, *membership) {
                new[..count].iter().for_each(|joined| drop(packet::leave(fd, self.index, *joined)));
                return Err(error);
            }
        }
        for old in self.joined.iter().filter(|old| !wanted.contains(old)) {
            if let Err(error) = packet::leave(fd, self.index, *old) {
                log::warn!("cannot leave a group: {error}");
            }
        }
        self.joined = wanted;
        Ok(())
    }
}

/// Opens the character device of that number: at `path`, where the kernel's devtmpfs has it, unless that is another one's (the
/// number in its name is unique in one network namespace only), or there is none (a container's `/dev`); then by a node of our
/// own, in a file system that nobody else sees.
fn open_node(path: &Path, number: Dev) -> io::Result<File> {
    let is_it = |found: &std::fs::Metadata| found.file_type().is_char_device() && found.rdev() == number;
    let device = if path.metadata().is_ok_and(|found| is_it(&found)) {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?
    } else {
        let place = sysfs::mount("tmpfs", MountAttrFlags::empty())?;
        let name = PathBuf::from("tap");
        mknodat(&place, &name, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, number)?;
        File::from(openat(&place, &name, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
    };
    if is_it(&device.metadata()?) { Ok(device) } else { Err(io::Error::from_raw_os_error(libc::ENXIO)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mac;

    #[test]
    fn a_filter_says_what_to_join() {
        let group = |last| [0x33, 0x33, 0, 0, 0, last];
        let mut filter = RxFilter::new(Mac::new([2, 0, 0, 0, 0, 1]).unwrap());
        assert_eq!(wanted(&filter), [Membership::AllMulticast]);
        filter.multicast = Addresses::Only(vec![group(2), group(1), group(2), [2, 0, 0, 0, 0, 9]]);
        let (one, two) = (Membership::Multicast(group(1)), Membership::Multicast(group(2)));
        assert_eq!(wanted(&filter), [one, two]);
        filter.no_multicast = true;
        assert_eq!(wanted(&filter), []);
        filter.promiscuous = true;
        assert_eq!(wanted(&filter), [Membership::Promiscuous, Membership::AllMulticast]);
    }
}
