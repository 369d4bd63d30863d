//! A neighbour that somebody told a link of, so that it can be told another link and the first one again; and neighbours that the
//! kernel found.

use std::net::IpAddr;

use netlink_bindings::rt_neigh::{self, Ndmsg};
use serde::{Deserialize, Serialize};

use super::{LinkId, Netlink, Refusal};
use crate::Mac;

/// `linux/neighbour.h`.
const NTF_PROXY: u8 = 8;

/// A permanent neighbour: the kernel neither asks for it nor forgets it, but with the link's last address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkNeighbour {
    pub(crate) address: IpAddr,
    pub(crate) mac: [u8; 6],
    /// It is a router, which matters for IPv6.
    pub(crate) router: bool,
    /// The host answers for it on the link, and knows no Ethernet address of it.
    #[serde(default)]
    pub(crate) proxy: bool,
}

impl LinkNeighbour {
    /// In the words of ip-neighbour(8), without the link.
    pub(crate) fn words(&self) -> String {
        if self.proxy {
            return self.name();
        }
        let [a, b, c, d, e, f] = self.mac;
        let router = if self.router { " router" } else { "" };
        format!(
            "{} lladdr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} nud permanent{router}",
            self.address
        )
    }

    /// Which one, in the words of ip-neighbour(8).
    pub(crate) fn name(&self) -> String {
        format!("{}{}", if self.proxy { "proxy " } else { "" }, self.address)
    }

    pub(crate) fn is_of_the_same_address(&self, other: &Self) -> bool {
        (self.address, self.proxy) == (other.address, other.proxy)
    }

    fn header(&self, link: &LinkId) -> Ndmsg {
        Ndmsg {
            ndm_family: if self.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8,
            ndm_ifindex: link.index as i32,
            ndm_state: libc::NUD_PERMANENT,
            ndm_flags: if self.router { libc::NTF_ROUTER } else { 0 }
                | if self.proxy { NTF_PROXY } else { 0 },
            ..Ndmsg::default()
        }
    }
}

/// An address that a station has on a link of the host, as the host's kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The address.
    pub address: IpAddr,
    /// The link's index.
    pub link: u32,
}

/// The addresses of the station `mac`, as far as this network namespace's kernel knows them: those with which it has spoken lately,
/// or that it was told (ip-neighbour(8)). It believes what the station says.
///
/// # Errors
/// The kernel cannot be asked.
pub fn neighbours(mac: Mac) -> Result<Vec<Neighbour>, Refusal> {
    Netlink::new().addresses_of_station(mac)
}

impl Netlink {
    fn addresses_of_station(&mut self, mac: Mac) -> Result<Vec<Neighbour>, Refusal> {
        let request = rt_neigh::Request::new().op_getneigh_dump(&Ndmsg::default());
        let mut replies = self.socket()?.request(&request)?;
        let mut found = Vec::new();
        while let Some((header, attributes)) = replies.recv().transpose()? {
            let (Ok(address), Ok(lladdr)) = (attributes.get_dst(), attributes.get_lladdr()) else { continue };
            let answers = header.ndm_state & (libc::NUD_FAILED | libc::NUD_INCOMPLETE) == 0;
            if answers && *lladdr == mac.octets() {
                found.push(Neighbour { address, link: header.ndm_ifindex as u32 });
            }
        }
        Ok(found)
    }

    /// The permanent neighbours of a link, and those that the host answers for there.
    pub(crate) fn neighbours_of(&mut self, link: &LinkId) -> Result<Vec<LinkNeighbour>, Refusal> {
        let mut neighbours = self.permanent_neighbours(link)?;
        neighbours.extend(self.proxies(link)?);
        Ok(neighbours)
    }

    fn proxies(&mut self, link: &LinkId) -> Result<Vec<LinkNeighbour>, Refusal> {
        let header = Ndmsg { ndm_flags: NTF_PROXY, ..Ndmsg::default() };
        let request = rt_neigh::Request::new().op_getneigh_dump(&header);
        let mut replies = self.socket()?.request(&request)?;
        let mut proxies = Vec::new();
        while let Some((header, attributes)) = replies.recv().transpose()? {
            if let (Ok(address), true) = (attributes.get_dst(), header.ndm_ifindex == link.index as i32) {
                let router = header.ndm_flags & libc::NTF_ROUTER != 0;
                proxies.push(LinkNeighbour { address, mac: [0; 6], router, proxy: true });
            }
        }
        Ok(proxies)
    }

    fn permanent_neighbours(&mut self, link: &LinkId) -> Result<Vec<LinkNeighbour>, Refusal> {
        let request = rt_neigh::Request::new().op_getneigh_dump(&Ndmsg::default());
        let mut replies = self.socket()?.request(&request)?;
        let mut neighbours = Vec::new();
        while let Some((header, attributes)) = replies.recv().transpose()? {
            let (Ok(address), Ok(mac)) = (attributes.get_dst(), attributes.get_lladdr()) else { continue };
            let is_ours = header.ndm_ifindex == link.index as i32 && header.ndm_state == libc::NUD_PERMANENT;
            if let (Ok(mac), true) = (mac.try_into(), is_ours) {
                let router = header.ndm_flags & libc::NTF_ROUTER != 0;
                neighbours.push(LinkNeighbour { address, mac, router, proxy: false });
            }
        }
        Ok(neighbours)
    }

    /// Tells a link of a neighbour, whatever it knew of its address.
    pub(crate) fn give_neighbour(&mut self, link: &LinkId, neighbour: &LinkNeighbour) -> Result<(), Refusal> {
        let request = rt_neigh::Request::new().set_create().set_replace();
        let mut request = request.op_newneigh_do(&neighbour.header(link));
        let attributes = request.encode().push_dst(neighbour.address);
        drop(if neighbour.proxy { attributes } else { attributes.push_lladdr(&neighbour.mac) });
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Has a link forget a neighbour; `ENOENT` where it knows none such.
    pub(crate) fn take_neighbour(&mut self, link: &LinkId, neighbour: &LinkNeighbour) -> Result<(), Refusal> {
        let mut request = rt_neigh::Request::new().op_delneigh_do(&neighbour.header(link));
        drop(request.encode().push_dst(neighbour.address));
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }
}
