//! Macvlans and macvtaps: the attributes that the netlink crates do not have (`linux/if_link.h`, `IFLA_MACVLAN_*`).

use netlink_bindings::rt_link::{self, Ifinfomsg, IterableLinkAttrs};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::{finalize_nested_header, find_attr, push_header, push_nested_header};

use super::{LinkId, Netlink, Refusal};
use crate::{Mac, MacvtapMode, sys};

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// `IN6_ADDR_GEN_MODE_NONE`.
const ADDR_GEN_NONE: u8 = 1;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_MACVLAN_MACADDR_MODE: u16 = 3;
const IFLA_MACVLAN_MACADDR: u16 = 4;
const IFLA_MACVLAN_MACADDR_DATA: u16 = 5;
/// `MACVLAN_MACADDR_SET`: these and no others.
const MACADDR_SET: u32 = 3;

/// From here on are the indices of links that we make; those that the kernel chooses are far below.
const INDICES: u32 = 1 << 20;

/// True for a number of [`Netlink::unused_link`]: nobody else chooses such, and it is not chosen twice.
pub(crate) fn is_of_ours(index: u32) -> bool {
    (INDICES..INDICES + (1 << 20)).contains(&index)
}

/// A macvlan to be made, or a macvtap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewMacvlan {
    /// Its name, and its index: chosen by us, so that its end can be recorded before its beginning.
    pub(crate) link: LinkId,
    pub(crate) parent: LinkId,
    /// With a character device; without, it is the host's.
    pub(crate) tap: bool,
    pub(crate) mode: MacvtapMode,
    /// None for one of the kernel's choice. In mode `passthru` it is the parent's, whatever is asked for.
    pub(crate) mac: Option<Mac>,
    /// Bytes; none for the parent's.
    pub(crate) mtu: Option<u32>,
    /// For mode `source`.
    pub(crate) sources: Vec<Mac>,
}

impl NewMacvlan {
    fn kind(&self) -> &'static str {
        if self.tap { "macvtap" } else { "macvlan" }
    }

    /// The line that does the same.
    pub(crate) fn command(&self) -> String {
        let Self { link, parent, mode, mac, mtu, sources, .. } = self;
        let mut line = format!("ip link add link {parent} name {link}");
        line += &mac.map(|mac| format!(" address {mac}")).unwrap_or_default();
        line += &mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
        line += &format!(" type {} mode {mode}", self.kind());
        if !sources.is_empty() {
            line += " macaddr set";
            line.extend(sources.iter().map(|source| format!(" {source}")));
        }
        line
    }
}

impl Netlink {
    /// Makes a macvlan or macvtap.
    pub(crate) fn add_macvlan(&mut self, new: &NewMacvlan) -> Result<(), Refusal> {
        let request = rt_link::Request::new().set_create().set_excl();
        let header = Ifinfomsg { ifi_index: new.link.index as i32, ..Ifinfomsg::default() };
        let mut request = request.op_newlink_do(&header);
        let mut attributes =
            request.encode().push_ifname_bytes(new.link.name.as_bytes()).push_link(new.parent.index);
        if let Some(mac) = new.mac {
            attributes = attributes.push_address(&mac.octets());
        }
        if let Some(mtu) = new.mtu {
            attributes = attributes.push_mtu(mtu);
        }
        let mut info = attributes.nested_linkinfo();
        let buffer = info.as_vec_mut();
        push(buffer, IFLA_INFO_KIND, new.kind().as_bytes());
        let data = push_nested_header(buffer, IFLA_INFO_DATA);
        push(buffer, IFLA_MACVLAN_MODE, &to_kernel(new.mode).to_ne_bytes());
        if !new.sources.is_empty() {
            push(buffer, IFLA_MACVLAN_MACADDR_MODE, &MACADDR_SET.to_ne_bytes());
            let list = push_nested_header(buffer, IFLA_MACVLAN_MACADDR_DATA);
            for source in &new.sources {
                push(buffer, IFLA_MACVLAN_MACADDR, &source.octets());
            }
            finalize_nested_header(buffer, list);
        }
        finalize_nested_header(buffer, data);
        info.end_nested();
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Makes a link by which frames take a detour through its queue (`ifb`, kernel `drivers/net/ifb.c`).
    pub(crate) fn add_ifb(&mut self, link: &LinkId) -> Result<(), Refusal> {
        let request = rt_link::Request::new().set_create().set_excl();
        let header = Ifinfomsg { ifi_index: link.index as i32, ..Ifinfomsg::default() };
        let mut request = request.op_newlink_do(&header);
        let attributes = request.encode().push_ifname_bytes(link.name.as_bytes());
        let mut info = attributes.nested_linkinfo();
        push(info.as_vec_mut(), IFLA_INFO_KIND, b"ifb");
        info.end_nested();
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// The name and the index for a link that is to be made. The index is not the next one, for that may have been a link's
    /// that is deleted, and somebody may still mean that one.
    ///
    /// # Errors
    /// The kernel does not list its links, or has no random numbers.
    pub(crate) fn unused_link(&mut self) -> Result<LinkId, Refusal> {
        let links = self.links()?;
        let free = |name: &String| links.iter().all(|link| link.id.name != *name);
        let name = (0..).map(|number| format!("wirevm{number}")).find(free).expect("there are fewer links");
        loop {
            let mut random = [0; 4];
            sys::random(&mut random)?;
            // Seven digits at most: it is in the name of the character device.
            let index = INDICES + u32::from_ne_bytes(random) % (1 << 20);
            if links.iter().all(|link| link.id.index != index) {
                return Ok(LinkId { index, name });
            }
        }
    }

    /// Has the host give a link no IPv6 address of its own, if it is not up yet.
    pub(crate) fn set_no_ipv6_address(&mut self, link: &LinkId) -> Result<(), Refusal> {
        let header = Ifinfomsg { ifi_index: link.index as i32, ..Ifinfomsg::default() };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        let mut attributes = request.encode();
        let buffer = attributes.as_vec_mut();
        let families = push_nested_header(buffer, IFLA_AF_SPEC);
        let family = push_nested_header(buffer, libc::AF_INET6 as u16);
        push(buffer, IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_NONE]);
        finalize_nested_header(buffer, family);
        finalize_nested_header(buffer, families);
        drop(attributes);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Gives a link an Ethernet address.
    pub(crate) fn set_mac(&mut self, link: &LinkId, mac: [u8; 6]) -> Result<(), Refusal> {
        let header = Ifinfomsg { ifi_index: link.index as i32, ..Ifinfomsg::default() };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        request.encode().push_address(&mac);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }
}

fn push(buffer: &mut Vec<u8>, attribute: u16, value: &[u8]) {
    push_header(buffer, attribute, value.len() as u16);
    buffer.extend(value);
}

/// The mode of a link of kind `macvlan` or `macvtap`; none for one that this program does not know.
pub(super) fn mode(attributes: &IterableLinkAttrs<'_>) -> Option<MacvtapMode> {
    let info = attributes.get_linkinfo().ok()?;
    let data = find_attr(info.get_buf(), IFLA_INFO_DATA)?;
    let mode = find_attr(data, IFLA_MACVLAN_MODE)?;
    from_kernel(u32::from_ne_bytes(mode.try_into().ok()?))
}

/// `MACVLAN_MODE_*`.
fn to_kernel(mode: MacvtapMode) -> u32 {
    match mode {
        MacvtapMode::Private => 1,
        MacvtapMode::Vepa => 2,
        MacvtapMode::Bridge => 4,
        MacvtapMode::Passthru => 8,
        MacvtapMode::Source => 16,
    }
}

fn from_kernel(mode: u32) -> Option<MacvtapMode> {
    use MacvtapMode::*;
    [Private, Vepa, Bridge, Passthru, Source].into_iter().find(|&known| to_kernel(known) == mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_one_is_a_line_for_the_shell() {
        let mut new = NewMacvlan {
            link: LinkId { index: 9, name: "wirevm0".to_owned() },
            parent: LinkId { index: 2, name: "eth0".to_owned() },
            tap: true,
            mode: MacvtapMode::Source,
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            mtu: Some(1400),
            sources: vec!["02:00:00:00:00:02".parse().unwrap()],
        };
        assert_eq!(
            new.command(),
            "ip link add link eth0 name wirevm0 address 02:00:00:00:00:01 mtu 1400 type macvtap mode source macaddr set \
             02:00:00:00:00:02"
        );
        (new.tap, new.mode, new.mac, new.mtu) = (false, MacvtapMode::Bridge, None, None);
        new.sources.clear();
        assert_eq!(new.command(), "ip link add link eth0 name wirevm0 type macvlan mode bridge");
    }

    #[test]
    fn modes_are_the_kernels() {
        for mode in [1, 2, 4, 8, 16] {
            assert_eq!(from_kernel(mode).map(to_kernel), Some(mode));
        }
        assert_eq!(from_kernel(3), None);
    }
}
