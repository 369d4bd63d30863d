//! The stations that a bridge knows: at which of its ports an Ethernet address is (bridge(8), `fdb`).

use super::{LinkId, Netlink, Refusal};
use netlink_bindings::rt_neigh::{self, Ndmsg};

/// An entry of a bridge's forwarding database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Station {
    /// The index of the port.
    pub(crate) port: u32,
    pub(crate) mac: [u8; 6],
    /// Somebody has told the bridge; else it has learned it.
    pub(crate) is_static: bool,
}

/// Where a station is, as somebody tells a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) mac: [u8; 6],
    /// It stays there, whoever sends under its address elsewhere.
    pub(crate) sticky: bool,
}

impl Placed {
    /// In the words of bridge(8), after the link's name.
    pub(crate) fn command(&self, port: &LinkId) -> String {
        let [a, b, c, d, e, f] = self.mac;
        let sticky = if self.sticky { " sticky" } else { "" };
        format!(
            "bridge fdb replace {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} dev {port} master static{sticky}"
        )
    }
}

/// `linux/neighbour.h`.
const NTF_STICKY: u8 = 1 << 6;

impl Netlink {
    /// The stations that the bridge of that index knows; its ports' and its own addresses are left out.
    pub(crate) fn stations_of(&mut self, bridge: u32) -> Result<Vec<Station>, Refusal> {
        let header = Ndmsg { ndm_family: libc::AF_BRIDGE as u8, ..Ndmsg::default() };
        let request = rt_neigh::Request::new().op_getneigh_dump(&header);
        let mut replies = self.socket()?.request(&request)?;
        let mut stations = Vec::new();
        while let Some((header, attributes)) = replies.recv().transpose()? {
            let mac = attributes.get_lladdr().ok().and_then(|mac| mac.try_into().ok());
            let of_bridge = attributes.get_master().is_ok_and(|master| master == bridge);
            let (Some(mac), true) = (mac, of_bridge && header.ndm_state & libc::NUD_PERMANENT == 0) else {
                continue;
            };
            let is_static = header.ndm_state & libc::NUD_NOARP != 0;
            stations.push(Station { port: header.ndm_ifindex as u32, mac, is_static });
        }
        Ok(stations)
    }

    /// Tells the bridge of `port` that a station is there, in each VLAN of the port.
    pub(crate) fn place_station(&mut self, port: &LinkId, placed: &Placed) -> Result<(), Refusal> {
        let header = Ndmsg {
            ndm_family: libc::AF_BRIDGE as u8,
            ndm_ifindex: port.index as i32,
            ndm_state: libc::NUD_NOARP,
            // The bridge above the port is meant.
            ndm_flags: libc::NTF_MASTER | if placed.sticky { NTF_STICKY } else { 0 },
            ..Ndmsg::default()
        };
        let request = rt_neigh::Request::new().set_create().set_replace();
        let mut request = request.op_newneigh_do(&header);
        drop(request.encode().push_lladdr(&placed.mac));
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }
}
