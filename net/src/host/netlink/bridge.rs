//! Bridges and their ports (ip-link(8), bridge(8); the kernel's `Documentation/networking/bridge.rst`).

use netlink_bindings::rt_link::{self, Ifinfomsg};
use netlink_bindings::traits::Pusher;
use serde::{Deserialize, Serialize};

use super::{LinkId, Netlink, Refusal};

/// What the bridge driver says of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bridge {
    /// Each port has its VLANs (IEEE 802.1Q).
    pub(crate) vlan_filtering: bool,
    /// The VLAN that a port is in, untagged, when it joins; 0 for none.
    pub(crate) default_pvid: u16,
}

// `linux/if_bridge.h` and `linux/if_link.h`.
const IFLA_AF_SPEC: u16 = 26;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 1 << 1;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 1 << 2;

/// How a port is in a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum VlanMember {
    /// What comes in without a tag is in it, and it goes out without one.
    Untagged,
    /// With its tag, beside other VLANs.
    Tagged,
}

impl Netlink {
    /// Makes a bridge with this number, name and Ethernet address, without spanning tree: a port forwards at once.
    pub(crate) fn add_bridge(
        &mut self,
        id: &LinkId,
        mac: [u8; 6],
        vlan_filtering: bool,
    ) -> Result<(), Refusal> {
        let header = Ifinfomsg { ifi_index: id.index as i32, ..Ifinfomsg::default() };
        let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&header);
        let attributes = request.encode().push_ifname_bytes(id.name.as_bytes()).push_address(&mac);
        let data = attributes.nested_linkinfo().nested_data_bridge().push_forward_delay(0).push_stp_state(0);
        // A kernel without VLAN filtering knows no such attribute.
        drop(if vlan_filtering { data.push_vlan_filtering(1) } else { data });
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Has a bridge keep the VLANs of its ports apart.
    pub(crate) fn filter_vlans(&mut self, id: &LinkId) -> Result<(), Refusal> {
        let header = Ifinfomsg { ifi_index: id.index as i32, ..Ifinfomsg::default() };
        let mut request = rt_link::Request::new().op_newlink_do(&header);
        drop(request.encode().nested_linkinfo().nested_data_bridge().push_vlan_filtering(1));
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Joins a link to a bridge, or has it leave.
    pub(crate) fn set_master(&mut self, port: &LinkId, master: Option<&LinkId>) -> Result<(), Refusal> {
        let header = Ifinfomsg { ifi_index: port.index as i32, ..Ifinfomsg::default() };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        request.encode().push_master(master.map_or(0, |master| master.index));
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Puts a bridge's port into a VLAN.
    pub(crate) fn add_vlan(&mut self, port: &LinkId, vlan: u16, member: VlanMember) -> Result<(), Refusal> {
        let flags = match member {
            VlanMember::Untagged => BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED,
            VlanMember::Tagged => 0,
        };
        let mut request = rt_link::Request::new().op_setlink_do(&of_bridge(port));
        push_vlan(request.encode().as_vec_mut(), vlan, flags);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Takes a bridge's port out of a VLAN.
    pub(crate) fn remove_vlan(&mut self, port: &LinkId, vlan: u16) -> Result<(), Refusal> {
        let mut request = rt_link::Request::new().op_dellink_do(&of_bridge(port));
        push_vlan(request.encode().as_vec_mut(), vlan, 0);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }
}

/// A request about a link as a port.
fn of_bridge(port: &LinkId) -> Ifinfomsg {
    Ifinfomsg { ifi_family: libc::AF_BRIDGE as u8, ifi_index: port.index as i32, ..Ifinfomsg::default() }
}

/// The attribute of one VLAN: the crates have none for this family.
fn push_vlan(to: &mut Vec<u8>, vlan: u16, flags: u16) {
    for half in [12, IFLA_AF_SPEC, 8, IFLA_BRIDGE_VLAN_INFO, flags, vlan] {
        to.extend(half.to_ne_bytes());
    }
}
