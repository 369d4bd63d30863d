//! A neighbour that somebody told a link of, so that it can be told another link and the first one again.

use std::net::IpAddr;

use netlink_bindings::rt_neigh::{self, Ndmsg};
use serde::{Deserialize, Serialize};

use super::{LinkId, Netlink, Refusal};

/// A permanent neighbour: the kernel neither asks for it nor forgets it, but with the link's last address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkNeighbour {
    pub(crate) address: IpAddr,
    pub(crate) mac: [u8; 6],
    /// It is a router, which matters for IPv6.
    pub(crate) router: bool,
}

impl LinkNeighbour {
    /// In the words of ip-neighbour(8), without the link.
    pub(crate) fn words(&self) -> String {
        let [a, b, c, d, e, f] = self.mac;
        let router = if self.router { " router" } else { "" };
        format!(
            "{} lladdr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} nud permanent{router}",
            self.address
        )
    }

    fn header(&self, link: &LinkId) -> Ndmsg {
        Ndmsg {
            ndm_family: if self.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8,
            ndm_ifindex: link.index as i32,
            ndm_state: libc::NUD_PERMANENT,
            ndm_flags: if self.router { libc::NTF_ROUTER } else { 0 },
            ..Ndmsg::default()
        }
    }
}

impl Netlink {
    /// The permanent neighbours of a link.
    pub(crate) fn neighbours_of(&mut self, link: &LinkId) -> Result<Vec<LinkNeighbour>, Refusal> {
        let request = rt_neigh::Request::new().op_getneigh_dump(&Ndmsg::default());
        let mut replies = self.socket()?.request(&request)?;
        let mut neighbours = Vec::new();
        while let Some((header, attributes)) = replies.recv().transpose()? {
            let (Ok(address), Ok(mac)) = (attributes.get_dst(), attributes.get_lladdr()) else { continue };
            let is_ours = header.ndm_ifindex == link.index as i32 && header.ndm_state == libc::NUD_PERMANENT;
            if let (Ok(mac), true) = (mac.try_into(), is_ours) {
                let router = header.ndm_flags & libc::NTF_ROUTER != 0;
                neighbours.push(LinkNeighbour { address, mac, router });
            }
        }
        Ok(neighbours)
    }

    /// Tells a link of a neighbour, whatever it knew of its address.
    pub(crate) fn give_neighbour(&mut self, link: &LinkId, neighbour: &LinkNeighbour) -> Result<(), Refusal> {
        let request = rt_neigh::Request::new().set_create().set_replace();
        let mut request = request.op_newneigh_do(&neighbour.header(link));
        drop(request.encode().push_dst(neighbour.address).push_lladdr(&neighbour.mac));
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Has a link forget a neighbour; `ENOENT` where it knows none such.
    pub(crate) fn take_neighbour(&mut self, link: &LinkId, neighbour: &LinkNeighbour) -> Result<(), Refusal> {
        let mut request = rt_neigh::Request::new().op_delneigh_do(&neighbour.header(link));
        drop(request.encode().push_dst(neighbour.address));
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }
}
