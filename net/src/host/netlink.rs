//! The host's links and addresses, asked and told by rtnetlink (rtnetlink(7)).
//!
//! **Only this module and `nft.rs` know the netlink crates**, so that they can be replaced there and nowhere else. They are
//! synchronous: a call returns when the kernel has answered.

mod address;
mod bridge;
mod hops;
mod learned;
mod macvlan;
mod metrics;
mod neighbour;
mod qdisc;
mod route;
mod station;
mod statistics;

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, Ifinfomsg, IterableLinkAttrs, LinkinfoDataMsg};
use netlink_bindings::rt_route::{self, Rtmsg};
use netlink_socket2::{NetlinkSocket, ReplyError};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};

pub(crate) use self::address::LinkAddress;
pub(crate) use self::bridge::{Bridge, Port, PortState, Stp, VlanMember};
pub(crate) use self::hops::{BoundRoute, RouteLink};
pub(crate) use self::macvlan::{NewMacvlan, is_of_ours};
pub(crate) use self::neighbour::LinkNeighbour;
pub use self::neighbour::{Neighbour, neighbours};
pub(crate) use self::qdisc::{RootQdisc, Tbf};
pub(crate) use self::route::LinkRoute;
pub(crate) use self::station::Placed;
pub use self::statistics::{LinkCounters, Tally};
use crate::text::word;
use crate::{HostAddress, MacvtapMode, TunMode, printable};

/// A socket to the kernel, in the network namespace that the thread was in at the first request.
pub(crate) struct Netlink {
    socket: NetlinkSocket,
    /// It has asked something.
    open: bool,
}

/// Which link: by its index, which never names another one after it is deleted (a name may).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkId {
    pub(crate) index: u32,
    pub(crate) name: String,
}

/// Its name, as on a command line.
impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&word(&self.name))
    }
}

/// What there is to know of a link.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) up: bool,
    /// It is up, has a carrier, and the kernel sends by it (`IFF_RUNNING`).
    pub(crate) running: bool,
    /// There is somebody at its other end, as far as its driver can tell (`IFF_LOWER_UP`).
    pub(crate) carrier: bool,
    pub(crate) loopback: bool,
    /// Bytes.
    pub(crate) mtu: u32,
    /// Its Ethernet address, where it has one.
    pub(crate) mac: Option<[u8; 6]>,
    /// The one that its hardware has, or that it was made with.
    pub(crate) permanent: Option<[u8; 6]>,
    /// The kind as `ip -d link` says it (`tun`, `bridge`, `veth`...); empty for hardware.
    pub(crate) kind: String,
    /// What the tun driver adds, for a link of kind `tun`.
    pub(crate) tun: Option<Tun>,
    /// The mode, for a link of kind `macvlan` or `macvtap`.
    pub(crate) macvlan: Option<MacvtapMode>,
    /// An Ethernet, by its hardware type; the loopback is none.
    pub(crate) ethernet: bool,
    /// The index of the link that this one is a port of: a bridge, a bond.
    pub(crate) master: Option<u32>,
    /// The index of the link that this one is on: a macvtap's parent; none where that is in another namespace.
    pub(crate) lower: Option<u32>,
    /// What the bridge driver adds, for a link of kind `bridge`.
    pub(crate) bridge: Option<Bridge>,
    /// What it adds for a port.
    pub(crate) port: Option<Port>,
    /// The VLAN whose frames it takes from the link that it is on, for one of kind `vlan`.
    pub(crate) vlan: Option<u16>,
}

/// What the tun driver says of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tun {
    pub(crate) mode: TunMode,
    pub(crate) packet_info: bool,
    pub(crate) vnet_hdr: bool,
    pub(crate) multi_queue: bool,
    /// How many queues are attached to one with `multi_queue`, detached for a while or not.
    pub(crate) queues: u32,
    pub(crate) persist: bool,
    /// The user that may attach to it, where one is named.
    pub(crate) owner: Option<u32>,
}

/// An address of a link and the subnet that it makes reachable there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddressOnLink {
    pub(crate) link: u32,
    pub(crate) address: IpAddr,
    /// The other end on a point-to-point link, else the address again.
    pub(crate) subnet: IpAddr,
    pub(crate) prefix: u8,
}

/// A route of the host, in whatever table: where to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) to: IpAddr,
    /// In bits, 0 for everywhere.
    pub(crate) prefix: u8,
    /// By which link, where it is one.
    pub(crate) link: Option<u32>,
}

/// The kernel's refusal of a request: its error, and its own words where it gives any (`NLMSGERR_ATTR_MSG`).
#[derive(Debug)]
pub struct Refusal {
    error: io::Error,
    words: Option<String>,
}

impl Refusal {
    /// The error number, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        self.error.raw_os_error()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.words {
            Some(words) => write!(f, "{}: {}", self.error, printable(words)),
            None => self.error.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<ReplyError> for Refusal {
    fn from(reply: ReplyError) -> Self {
        let words = reply.ext_ack().and_then(|ack| ack.get_msg().ok()).map(lossy);
        Self { error: reply.into(), words }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { error, words: None }
    }
}

fn lossy(text: &CStr) -> String {
    text.to_string_lossy().into_owned()
}

impl Netlink {
    pub(crate) fn new() -> Self {
        Self { socket: NetlinkSocket::new(), open: false }
    }

    /// The socket, which there is from the first request on. Where there can be none, this says why: the crate answers `EPERM`
    /// whatever the reason.
    fn socket(&mut self) -> io::Result<&mut NetlinkSocket> {
        if !self.open {
            drop(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?);
            self.open = true;
        }
        Ok(&mut self.socket)
    }

    /// The link of that name; none where there is none.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, Refusal> {
        let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::default());
        request.encode().push_ifname_bytes(name.as_bytes());
        self.get_link(&request)
    }

    /// The link of that index; none where there is none.
    pub(crate) fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, Refusal> {
        let header = Ifinfomsg { ifi_index: index as i32, ..Ifinfomsg::default() };
        self.get_link(&rt_link::Request::new().op_getlink_do(&header))
    }

    fn get_link(&mut self, request: &rt_link::OpGetlinkDo<'_>) -> Result<Option<Link>, Refusal> {
        match self.socket()?.request(request)?.recv_one() {
            Ok((header, attributes)) => Ok(Some(link(&header, &attributes))),
            Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Every link of the namespace.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, Refusal> {
        let request = rt_link::Request::new().op_getlink_dump(&Ifinfomsg::default());
        let mut replies = self.socket()?.request(&request)?;
        let mut links = Vec::new();
        while let Some((header, attributes)) = replies.recv().transpose()? {
            links.push(link(&header, &attributes));
        }
        Ok(links)
    }

    /// Sets a link up or down.
    pub(crate) fn set_up(&mut self, link: &LinkId, up: bool) -> Result<(), Refusal> {
        let flag = libc::IFF_UP as u32;
        let header = Ifinfomsg {
            ifi_index: link.index as i32,
            ifi_flags: if up { flag } else { 0 },
            ifi_change: flag,
            ..Ifinfomsg::default()
        };
        let request = rt_link::Request::new().op_setlink_do(&header);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Sets a link's MTU, in bytes.
    pub(crate) fn set_mtu(&mut self, link: &LinkId, mtu: u32) -> Result<(), Refusal> {
        let header = Ifinfomsg { ifi_index: link.index as i32, ..Ifinfomsg::default() };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        request.encode().push_mtu(mtu);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Deletes a link.
    pub(crate) fn delete_link(&mut self, link: &LinkId) -> Result<(), Refusal> {
        let header = Ifinfomsg { ifi_index: link.index as i32, ..Ifinfomsg::default() };
        let request = rt_link::Request::new().op_dellink_do(&header);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Every IPv4 and IPv6 address of the namespace.
    pub(crate) fn addresses(&mut self) -> Result<Vec<AddressOnLink>, Refusal> {
        // The kernel has both where no family is asked for.
        let request = rt_addr::Request::new().op_getaddr_dump(&Ifaddrmsg::default());
        let mut replies = self.socket()?.request(&request)?;
        let mut addresses = Vec::new();
        while let Some((header, attributes)) = replies.recv().transpose()? {
            // IPv6 has a local address only where there is another end (rtnetlink(7)).
            let (local, subnet) = (attributes.get_local(), attributes.get_address());
            let (Ok(address), Ok(subnet)) = (local.or(attributes.get_address()), subnet) else { continue };
            let prefix = header.ifa_prefixlen;
            addresses.push(AddressOnLink { link: header.ifa_index, address, subnet, prefix });
        }
        Ok(addresses)
    }

    /// Every IPv4 and IPv6 route of the namespace, in all tables.
    pub(crate) fn routes(&mut self) -> Result<Vec<Route>, Refusal> {
        let request = rt_route::Request::new().op_getroute_dump(&Rtmsg::default());
        let mut replies = self.socket()?.request(&request)?;
        let mut routes = Vec::new();
        while let Some((header, attributes)) = replies.recv().transpose()? {
            // A way to everywhere has no destination.
            let to = match (i32::from(header.rtm_family), attributes.get_dst()) {
                (_, Ok(to)) => to,
                (libc::AF_INET, _) => Ipv4Addr::UNSPECIFIED.into(),
                (libc::AF_INET6, _) => Ipv6Addr::UNSPECIFIED.into(),
                // Multicast routing has families of its own.
                _ => continue,
            };
            let most = if to.is_ipv4() { 32 } else { 128 };
            routes.push(Route { to, prefix: header.rtm_dst_len.min(most), link: attributes.get_oif().ok() });
        }
        Ok(routes)
    }

    /// Gives a link an address, and a route to `other`: itself in a subnet, on a point-to-point link the address at its
    /// other end. `EEXIST` where it has the same already.
    pub(crate) fn add_address(
        &mut self,
        link: &LinkId,
        address: HostAddress,
        other: IpAddr,
    ) -> Result<(), Refusal> {
        let request = rt_addr::Request::new().set_create().set_excl();
        let mut request = request.op_newaddr_do(&ifaddrmsg(link, address));
        request.encode().push_local(address.address()).push_address(other);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Takes such an address away; `EADDRNOTAVAIL` where the link has none such.
    pub(crate) fn remove_address(
        &mut self,
        link: &LinkId,
        address: HostAddress,
        other: IpAddr,
    ) -> Result<(), Refusal> {
        let mut request = rt_addr::Request::new().op_deladdr_do(&ifaddrmsg(link, address));
        request.encode().push_local(address.address()).push_address(other);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }
}

fn ifaddrmsg(link: &LinkId, address: HostAddress) -> Ifaddrmsg {
    let (family, flags) = match address {
        HostAddress::V4(_) => (libc::AF_INET, 0),
        HostAddress::V6(_) => (libc::AF_INET6, libc::IFA_F_NODAD),
    };
    Ifaddrmsg {
        ifa_family: family as u8,
        ifa_prefixlen: address.prefix(),
        ifa_flags: flags as u8,
        ifa_index: link.index,
        ..Ifaddrmsg::default()
    }
}

fn link(header: &Ifinfomsg, attributes: &IterableLinkAttrs<'_>) -> Link {
    let info = attributes.get_linkinfo().unwrap_or_default();
    let tun = match info.get_data() {
        Ok(LinkinfoDataMsg::Tun(data)) => Some(Tun {
            mode: match data.get_type().map(i32::from) {
                Ok(libc::IFF_TUN) => TunMode::Tun,
                _ => TunMode::Tap,
            },
            packet_info: data.get_pi().is_ok_and(|pi| pi != 0),
            vnet_hdr: data.get_vnet_hdr().is_ok_and(|vnet_hdr| vnet_hdr != 0),
            multi_queue: data.get_multi_queue().is_ok_and(|multi_queue| multi_queue != 0),
            queues: data.get_num_queues().unwrap_or_default()
                + data.get_num_disabled_queues().unwrap_or_default(),
            persist: data.get_persist().is_ok_and(|persist| persist != 0),
            owner: data.get_owner().ok(),
        }),
        _ => None,
    };
    let vlan = match info.get_data() {
        Ok(LinkinfoDataMsg::Vlan(data)) => data.get_id().ok(),
        _ => None,
    };
    Link {
        id: LinkId {
            index: header.ifi_index as u32,
            name: attributes.get_ifname().map(lossy).unwrap_or_default(),
        },
        up: header.ifi_flags & libc::IFF_UP as u32 != 0,
        running: header.ifi_flags & libc::IFF_RUNNING as u32 != 0,
        carrier: header.ifi_flags & libc::IFF_LOWER_UP as u32 != 0,
        loopback: header.ifi_flags & libc::IFF_LOOPBACK as u32 != 0,
        mtu: attributes.get_mtu().unwrap_or_default(),
        mac: attributes.get_address().ok().and_then(|mac| mac.try_into().ok()),
        permanent: attributes.get_perm_address().ok().and_then(|mac| mac.try_into().ok()),
        kind: info.get_kind().map(lossy).unwrap_or_default(),
        tun,
        macvlan: macvlan::mode(attributes),
        ethernet: header.ifi_type == libc::ARPHRD_ETHER,
        master: attributes.get_master().ok(),
        lower: attributes.get_link().ok().filter(|_| attributes.get_link_netnsid().is_err()),
        bridge: bridge::bridge(&info),
        port: bridge::port(&info),
        vlan,
    }
}

#[cfg(test)]
impl Link {
    /// One of which nothing is known.
    pub(crate) fn bare(id: LinkId) -> Self {
        Self { id, ..link(&Ifinfomsg::default(), &IterableLinkAttrs::default()) }
    }
}
