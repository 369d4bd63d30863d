//! Bridges and their ports (ip-link(8), bridge(8); the kernel's `Documentation/networking/bridge.rst`).

use std::collections::HashMap;

use netlink_bindings::rt_link::{
    self, Ifinfomsg, IterableLinkinfoAttrs, LinkinfoDataMsg, LinkinfoMemberDataMsg,
};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::{chop_header, find_attr};
use serde::{Deserialize, Serialize};

use super::{LinkId, Netlink, Refusal};
use crate::VlanRange;

/// What the bridge driver says of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bridge {
    /// Each port has its VLANs (IEEE 802.1Q).
    pub(crate) vlan_filtering: bool,
    /// The VLAN that a port is in, untagged, when it joins; 0 for none.
    pub(crate) default_pvid: u16,
    pub(crate) stp: Stp,
    /// How long a port listens, and how long it then learns, before it forwards, where there is a spanning tree: hundredths of a
    /// second.
    pub(crate) forward_delay: u32,
}

/// Who runs the spanning tree protocol (IEEE 802.1D).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stp {
    Off,
    Kernel,
    /// A program of the host.
    User,
}

/// What the bridge driver says of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) state: PortState,
    /// It passes nothing to and from other such ports.
    pub(crate) isolated: bool,
    /// It takes frames from those addresses alone that somebody has told the bridge of.
    pub(crate) locked: bool,
}

/// What a port does with frames (`BR_STATE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortState {
    Disabled,
    Listening,
    Learning,
    Forwarding,
    Blocking,
}

/// What a link is as a bridge.
pub(super) fn bridge(info: &IterableLinkinfoAttrs<'_>) -> Option<Bridge> {
    let Ok(LinkinfoDataMsg::Bridge(data)) = info.get_data() else { return None };
    Some(Bridge {
        vlan_filtering: data.get_vlan_filtering().is_ok_and(|on| on != 0),
        default_pvid: data.get_vlan_default_pvid().unwrap_or_default(),
        stp: match data.get_stp_state() {
            Ok(0) | Err(_) => Stp::Off,
            Ok(1) => Stp::Kernel,
            Ok(_) => Stp::User,
        },
        forward_delay: data.get_forward_delay().unwrap_or_default(),
    })
}

/// What a link is as a port of a bridge.
pub(super) fn port(info: &IterableLinkinfoAttrs<'_>) -> Option<Port> {
    let Ok(LinkinfoMemberDataMsg::Bridge(data)) = info.get_slave_data() else { return None };
    Some(Port {
        state: match data.get_state() {
            Ok(0) => PortState::Disabled,
            Ok(1) => PortState::Listening,
            Ok(2) => PortState::Learning,
            Ok(4) => PortState::Blocking,
            _ => PortState::Forwarding,
        },
        isolated: data.get_isolated().is_ok_and(|on| on != 0),
        locked: data.get_locked().is_ok_and(|on| on != 0),
    })
}

// `linux/if_bridge.h` and `linux/if_link.h`.
const IFLA_AF_SPEC: u16 = 26;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 1 << 1;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 1 << 2;
const BRIDGE_VLAN_INFO_RANGE_BEGIN: u16 = 1 << 3;
const BRIDGE_VLAN_INFO_RANGE_END: u16 = 1 << 4;
/// `RTEXT_FILTER_BRVLAN_COMPRESSED` (`linux/rtnetlink.h`).
const VLANS_AS_RANGES: u32 = 1 << 2;

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

    /// Has a link leave the bridge of that number; one that is elsewhere stays there.
    pub(crate) fn leave(&mut self, port: &LinkId, bridge: u32) -> Result<(), Refusal> {
        match self.link_by_index(port.index)? {
            Some(link) if link.master == Some(bridge) => self.set_master(port, None),
            _ => Ok(()),
        }
    }

    /// Joins a link to a bridge, or has it leave.
    pub(crate) fn set_master(&mut self, port: &LinkId, master: Option<&LinkId>) -> Result<(), Refusal> {
        let header = Ifinfomsg { ifi_index: port.index as i32, ..Ifinfomsg::default() };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        request.encode().push_master(master.map_or(0, |master| master.index));
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Has a port learn no stations and end at the first frame of the spanning tree protocol (`guarded`), or pass nothing to and
    /// from other such ports (`isolated`); what is false is left.
    pub(crate) fn set_port(&mut self, port: &LinkId, guarded: bool, isolated: bool) -> Result<(), Refusal> {
        let header = Ifinfomsg { ifi_index: port.index as i32, ..Ifinfomsg::default() };
        let mut request = rt_link::Request::new().op_newlink_do(&header);
        let info = request.encode().nested_linkinfo();
        let mut data = info.nested_slave_data_bridge();
        if guarded {
            data = data.push_learning(0).push_guard(1);
        }
        drop(if isolated { data.push_isolated(1) } else { data });
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// The VLANs of every port of every bridge, by the port's index; a bridge itself is among them.
    pub(crate) fn port_vlans(&mut self) -> Result<HashMap<u32, Vec<u16>>, Refusal> {
        let header = Ifinfomsg { ifi_family: libc::AF_BRIDGE as u8, ..Ifinfomsg::default() };
        let mut request = rt_link::Request::new().op_getlink_dump(&header);
        request.encode().push_ext_mask(VLANS_AS_RANGES);
        let mut replies = self.socket()?.request(&request)?;
        let mut all = HashMap::new();
        while let Some((header, attributes)) = replies.recv().transpose()? {
            let vlans = find_attr(attributes.get_buf(), IFLA_AF_SPEC).map(vlans).unwrap_or_default();
            all.insert(header.ifi_index as u32, vlans);
        }
        Ok(all)
    }

    /// Puts a bridge's port into VLANs.
    pub(crate) fn add_vlans(
        &mut self,
        port: &LinkId,
        vlans: VlanRange,
        member: VlanMember,
    ) -> Result<(), Refusal> {
        let flags = match member {
            VlanMember::Untagged => BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED,
            VlanMember::Tagged => 0,
        };
        let mut request = rt_link::Request::new().op_setlink_do(&of_bridge(port));
        push_vlans(request.encode().as_vec_mut(), vlans, flags);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Takes a bridge's port out of a VLAN.
    pub(crate) fn remove_vlan(&mut self, port: &LinkId, vlan: u16) -> Result<(), Refusal> {
        let mut request = rt_link::Request::new().op_dellink_do(&of_bridge(port));
        push_vlans(request.encode().as_vec_mut(), VlanRange::one(vlan), 0);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }
}

/// A request about a link as a port.
fn of_bridge(port: &LinkId) -> Ifinfomsg {
    Ifinfomsg { ifi_family: libc::AF_BRIDGE as u8, ifi_index: port.index as i32, ..Ifinfomsg::default() }
}

/// The VLANs in `IFLA_AF_SPEC`: each attribute has flags and an ID, and of a range there are two, its first and its last.
fn vlans(spec: &[u8]) -> Vec<u16> {
    let (mut vlans, mut at, mut first) = (Vec::new(), 0, None);
    while let Some((header, value)) = chop_header(spec, &mut at) {
        let (IFLA_BRIDGE_VLAN_INFO, [a, b, c, d]) = (header.r#type, value) else { continue };
        let (flags, vlan) = (u16::from_ne_bytes([*a, *b]), u16::from_ne_bytes([*c, *d]));
        if flags & BRIDGE_VLAN_INFO_RANGE_BEGIN != 0 {
            first = Some(vlan);
        } else {
            vlans.extend(first.take().unwrap_or(vlan)..=vlan);
        }
    }
    vlans
}

/// The attribute of one VLAN or a range: the crates have none for this family.
fn push_vlans(to: &mut Vec<u8>, vlans: VlanRange, flags: u16) {
    let VlanRange { first, last } = vlans;
    let infos = match first == last {
        true => vec![(flags, first)],
        false => {
            vec![(flags | BRIDGE_VLAN_INFO_RANGE_BEGIN, first), (flags | BRIDGE_VLAN_INFO_RANGE_END, last)]
        }
    };
    let len = 4 + 8 * infos.len() as u16;
    let info = |(flags, vlan)| [8, IFLA_BRIDGE_VLAN_INFO, flags, vlan];
    for half in [len, IFLA_AF_SPEC].into_iter().chain(infos.into_iter().flat_map(info)) {
        to.extend(half.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_are_read_one_by_one_and_as_ranges() {
        let of = |infos: &[(u16, u16)]| {
            let mut spec = Vec::new();
            for (flags, vlan) in infos {
                for half in [8, IFLA_BRIDGE_VLAN_INFO, *flags, *vlan] {
                    spec.extend(half.to_ne_bytes());
                }
            }
            vlans(&spec)
        };
        let untagged = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED;
        assert_eq!(of(&[(untagged, 1), (0, 7)]), [1, 7]);
        assert_eq!(of(&[(BRIDGE_VLAN_INFO_RANGE_BEGIN, 10), (1 << 4, 13), (0, 20)]), [10, 11, 12, 13, 20]);
        assert_eq!(of(&[]), [0; 0]);
        assert_eq!(vlans(&[8, 0, 2]), [0; 0], "cut off");
    }

    #[test]
    fn vlans_are_asked_for_as_they_are_read() {
        for (range, wanted) in
            [(VlanRange::one(7), vec![7]), (VlanRange { first: 20, last: 23 }, vec![20, 21, 22, 23])]
        {
            let mut spec = Vec::new();
            push_vlans(&mut spec, range, 0);
            assert_eq!(usize::from(u16::from_ne_bytes([spec[0], spec[1]])), spec.len());
            assert_eq!(vlans(&spec[4..]), wanted);
        }
    }
}
