//! A route over a link with all that belongs to it, so that it can be moved to another link and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_bindings::rt_route::{self, Rtmsg};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::push_header;
use serde::{Deserialize, Serialize};

use super::hops::{BoundRoute, next_hops};
use super::learned::Learned;
use super::{LinkAddress, LinkId, Netlink, Refusal, metrics};
use crate::sys;

// `linux/rtnetlink.h`.
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
pub(super) const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
pub(super) const RTA_MULTIPATH: u16 = 9;
const RTA_FLOW: u16 = 11;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
pub(super) const RTA_VIA: u16 = 18;
const RTA_PREF: u16 = 20;
const RTA_PAD: u16 = 21;
const RTA_EXPIRES: u16 = 23;
pub(super) const RTA_NH_ID: u16 = 30;
/// Offset of `rta_expires` in `struct rta_cacheinfo`, in ticks of a hundredth of a second (`USER_HZ`).
const RTA_EXPIRES_OFFSET: usize = 8;
const USER_HZ: u32 = 100;
/// From a router's advertisement.
const RTPROT_RA: u8 = 9;
/// Of `rtm_flags`, what a person gives; the others are the kernel's own state.
const RTNH_F_GIVEN: u32 = RTNH_F_ONLINK | 2;
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;

/// A route over one link, as `ip route` shows it: the words of its header and its attributes as the kernel told them, without
/// the link, so that nothing is lost that we do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkRoute {
    family: u8,
    dst_len: u8,
    src_len: u8,
    tos: u8,
    table: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
    pub(super) attributes: Vec<(u16, Vec<u8>)>,
    /// When it goes, in seconds since the boot.
    ends: Option<u64>,
}

/// The routes over a link.
#[derive(Debug, Default)]
pub(crate) struct LinkRoutes {
    /// Those that lead over this link alone: first those that reach the gateways of the others.
    pub(crate) routes: Vec<LinkRoute>,
    /// Those of them that the kernel has learned from a router by itself are here instead.
    pub(crate) learned: Vec<LinkRoute>,
    /// Those that lead over several links, or by a nexthop object, which cannot be moved.
    pub(crate) others: Vec<BoundRoute>,
}

/// Which route of IPv6 by a router, over one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RouteId {
    pub(super) to: Ipv6Addr,
    pub(super) to_len: u8,
    pub(super) gateway: Ipv6Addr,
    pub(super) metric: u32,
}

impl LinkRoute {
    /// Which it is, where it is one of IPv6 by a router.
    pub(super) fn id(&self) -> Option<RouteId> {
        let v6 = |kind| match self.attribute(kind).and_then(ip)? {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        };
        let to = if self.dst_len == 0 { Ipv6Addr::UNSPECIFIED } else { v6(RTA_DST)? };
        let metric = self.attribute(RTA_PRIORITY)?.try_into().map(u32::from_ne_bytes).ok()?;
        Some(RouteId { to, to_len: self.dst_len, gateway: v6(RTA_GATEWAY)?, metric })
    }

    /// What stands in for it, which the kernel learned, on another link: not with its metric, which the kernel's own will have.
    pub(crate) fn stand_in(&self) -> Self {
        let mut route = self.clone();
        if self.protocol == RTPROT_RA {
            route.protocol = libc::RTPROT_BOOT;
            let after = |metric: [u8; 4]| u32::from_ne_bytes(metric).saturating_add(1).to_ne_bytes();
            let metric = route.attributes.iter_mut().find(|(kind, _)| *kind == RTA_PRIORITY);
            if let Some((_, value)) = metric
                && let Ok(metric) = value[..].try_into()
            {
                *value = after(metric).to_vec();
            }
        }
        route.attributes.retain(|(kind, _)| *kind != RTA_METRICS);
        route
    }

    /// True where both are by the same router to the same place.
    pub(crate) fn is_by_the_same_router(&self, other: &Self) -> bool {
        let place = |route: &Self| route.id().map(|id| RouteId { metric: 0, ..id });
        place(self) == place(other)
    }

    /// True where the kernel makes it by itself for the address.
    pub(crate) fn comes_with(&self, address: &LinkAddress) -> bool {
        let to = self.attribute(RTA_DST).and_then(ip);
        self.protocol == libc::RTPROT_KERNEL
            && self.dst_len == address.prefix
            && to.is_some_and(|to| address.contains(to))
            && address.flags & libc::IFA_F_NOPREFIXROUTE == 0
    }

    /// The router that it leads to, where it is one of its own family.
    pub(crate) fn gateway(&self) -> Option<IpAddr> {
        self.attribute(RTA_GATEWAY).and_then(ip)
    }

    /// The address that the host speaks from.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.attribute(RTA_PREFSRC).and_then(ip)
    }

    /// How much the router wants to be taken, in the two bits of RFC 4191 §2.1.
    pub(super) fn preference(&self) -> u8 {
        self.attribute(RTA_PREF).and_then(|value| value.first().copied()).unwrap_or(0) & 3
    }

    fn attribute(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|(found, _)| *found == kind).map(|(_, value)| &value[..])
    }

    pub(crate) fn is_ipv4(&self) -> bool {
        i32::from(self.family) == libc::AF_INET
    }

    pub(crate) fn is_default(&self) -> bool {
        self.dst_len == 0
    }

    /// The word after `ip` for its family.
    pub(crate) fn family_word(&self) -> &'static str {
        if self.is_ipv4() { "" } else { " -6" }
    }

    fn has_gateway(&self) -> bool {
        self.attribute(RTA_GATEWAY).or(self.attribute(RTA_VIA)).is_some()
    }

    /// Whether the two are the same, whatever is left of them.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let timeless = |route: &Self| Self { ends: None, ..route.clone() };
        timeless(self) == timeless(other)
    }

    /// The words of ip-route(8) after the action; what has no word there is left out.
    pub(crate) fn words(&self, link: &LinkId) -> String {
        let number =
            |kind| self.attribute(kind).and_then(|value| Some(u32::from_ne_bytes(value.try_into().ok()?)));
        let address = |kind| self.attribute(kind).and_then(ip);
        let mut words = match self.kind {
            libc::RTN_UNICAST => String::new(),
            kind => format!("{kind} "),
        };
        words += &match address(RTA_DST) {
            Some(to) => format!("{to}/{}", self.dst_len),
            None => "default".to_owned(),
        };
        let mut say = |word: &str, value: Option<String>| {
            words += &value.map(|value| format!(" {word} {value}")).unwrap_or_default();
        };
        say("from", address(RTA_SRC).map(|from| format!("{from}/{}", self.src_len)));
        say("tos", Some(self.tos).filter(|&tos| tos != 0).map(|tos| format!("{tos:#x}")));
        say("via", address(RTA_GATEWAY).map(|via| via.to_string()));
        // Of IPv4 by way of IPv6: the family, then the address.
        say("via inet6", self.attribute(RTA_VIA).and_then(|via| ip(&via[2..])).map(|via| via.to_string()));
        say("dev", Some(link.to_string()));
        let table = number(RTA_TABLE).unwrap_or(self.table.into());
        say("table", Some(table).filter(|&table| table != 254).map(|table| table.to_string()));
        say("proto", Some(self.protocol.to_string()));
        say("scope", Some(self.scope).filter(|_| self.is_ipv4()).map(|scope| scope.to_string()));
        say("src", address(RTA_PREFSRC).map(|from| from.to_string()));
        say("metric", number(RTA_PRIORITY).map(|metric| metric.to_string()));
        for (word, value) in metrics::words(self.attribute(RTA_METRICS).unwrap_or_default()) {
            say(word, Some(value));
        }
        // Of where packets come from, and of where they go.
        let realm = number(RTA_FLOW).map(|flow| (flow >> 16, flow & 0xffff));
        say("realm", realm.map(|(from, to)| if from == 0 { to.to_string() } else { format!("{from}/{to}") }));
        say("expires", self.left().map(|left| left.to_string()));
        // RFC 4191 §2.1.
        let preference = self.attribute(RTA_PREF).and_then(|value| match value {
            [1] => Some("high"),
            [3] => Some("low"),
            _ => None,
        });
        say("pref", preference.map(str::to_owned));
        words += if self.flags & RTNH_F_ONLINK != 0 { " onlink" } else { "" };
        words
    }

    /// What is left of it, in seconds; one that is over cannot be given, and has its last.
    pub(super) fn left(&self) -> Option<u32> {
        let left = self.ends?.saturating_sub(sys::since_boot().as_secs());
        Some(u32::try_from(left).unwrap_or(u32::MAX).max(1))
    }

    fn header(&self) -> Rtmsg {
        Rtmsg {
            rtm_family: self.family,
            rtm_dst_len: self.dst_len,
            rtm_src_len: self.src_len,
            rtm_tos: self.tos,
            rtm_table: self.table,
            rtm_protocol: self.protocol,
            rtm_scope: self.scope,
            rtm_type: self.kind,
            rtm_flags: self.flags,
        }
    }

    fn push(&self, link: &LinkId, to: &mut Vec<u8>) {
        let mut push = |kind: u16, value: &[u8]| {
            push_header(to, kind, value.len() as u16);
            to.extend(value);
            // Attributes begin at a multiple of four (netlink(7), `NLA_ALIGN`).
            to.resize(to.len().next_multiple_of(4), 0);
        };
        self.attributes.iter().for_each(|(kind, value)| push(*kind, value));
        push(RTA_OIF, &link.index.to_ne_bytes());
        if let Some(left) = self.left() {
            push(RTA_EXPIRES, &left.to_ne_bytes());
        }
    }
}

pub(super) fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(|octets| Ipv4Addr::from(octets).into());
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(|octets| Ipv6Addr::from(octets).into())).ok()
}

impl Netlink {
    /// The routes over a link, in the order to give them in. Without those of the table `local` that the kernel keeps by itself.
    pub(crate) fn routes_over(&mut self, link: &LinkId) -> Result<LinkRoutes, Refusal> {
        let request = rt_route::Request::new().op_getroute_dump(&Rtmsg::default());
        let mut replies = self.socket()?.request(&request)?;
        let (mut found, mut bound) = (LinkRoutes::default(), Vec::new());
        let by_kernel = Learned::over(link);
        while let Some((header, attributes)) = replies.recv().transpose()? {
            let attributes = split(attributes.get_buf());
            let value =
                |kind| attributes.iter().find(|(found, _)| *found == kind).map(|(_, value)| &value[..]);
            let number =
                |kind| value(kind).and_then(|value| Some(u32::from_ne_bytes(value.try_into().ok()?)));
            let is_ip = [libc::AF_INET, libc::AF_INET6].contains(&header.rtm_family.into());
            let table = number(RTA_TABLE).unwrap_or(header.rtm_table.into());
            let by_kernel_alone =
                table == u32::from(libc::RT_TABLE_LOCAL) && header.rtm_protocol == libc::RTPROT_KERNEL;
            if !is_ip || by_kernel_alone || header.rtm_flags & RTM_F_CLONED != 0 {
                continue;
            }
            // It comes with the link-local address, and stays with it.
            let is_link_local =
                matches!(value(RTA_DST).and_then(ip), Some(IpAddr::V6(to)) if to.is_unicast_link_local());
            if is_link_local && header.rtm_protocol == libc::RTPROT_KERNEL {
                continue;
            }
            let hops = value(RTA_MULTIPATH).map(next_hops).unwrap_or_default();
            let several = hops.iter().any(|hop| hop.link == link.index);
            if !several && number(RTA_OIF) != Some(link.index) {
                continue;
            }
            let object = number(RTA_NH_ID);
            let ticks =
                value(RTA_CACHEINFO).and_then(|info| info.get(RTA_EXPIRES_OFFSET..RTA_EXPIRES_OFFSET + 4));
            let ticks = ticks.map(|ticks| u32::from_ne_bytes(ticks.try_into().expect("four bytes")));
            let left = ticks.filter(|&ticks| ticks as i32 > 0);
            let kept = |kind: u16| ![RTA_OIF, RTA_CACHEINFO, RTA_PAD, RTA_EXPIRES].contains(&kind);
            let route = LinkRoute {
                family: header.rtm_family,
                dst_len: header.rtm_dst_len,
                src_len: header.rtm_src_len,
                tos: header.rtm_tos,
                table: header.rtm_table,
                protocol: header.rtm_protocol,
                scope: header.rtm_scope,
                kind: header.rtm_type,
                flags: header.rtm_flags & RTNH_F_GIVEN,
                ends: left.map(|ticks| sys::since_boot().as_secs() + u64::from(ticks.div_ceil(USER_HZ))),
                attributes: attributes.iter().filter(|(kind, _)| kept(*kind)).cloned().collect(),
            };
            if several || object.is_some() {
                bound.push((route, hops, object));
            } else if route.id().is_some_and(|id| by_kernel.has(&id)) {
                found.learned.push(route);
            } else {
                found.routes.push(route);
            }
        }
        found.routes.sort_by_key(LinkRoute::has_gateway);
        for (route, hops, object) in bound {
            found.others.push(self.bound_route(route, &hops, object, link)?);
        }
        Ok(found)
    }

    /// Gives a link a route, after those to the same place; `EEXIST` where it has it.
    pub(crate) fn give_route(&mut self, link: &LinkId, route: &LinkRoute) -> Result<(), Refusal> {
        let request = rt_route::Request::new().set_create().set_append();
        let mut request = request.op_newroute_do(&route.header());
        route.push(link, request.encode().as_vec_mut());
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Takes the route from a link that came with an IPv6 address, if it is there.
    pub(super) fn take_prefix_route(
        &mut self,
        link: &LinkId,
        subnet: Ipv6Addr,
        prefix: u8,
    ) -> Result<(), Refusal> {
        let header = Rtmsg {
            rtm_family: libc::AF_INET6 as u8,
            rtm_dst_len: prefix,
            rtm_table: libc::RT_TABLE_MAIN,
            rtm_protocol: libc::RTPROT_KERNEL,
            ..Rtmsg::default()
        };
        let mut request = rt_route::Request::new().op_delroute_do(&header);
        drop(request.encode().push_dst(subnet.into()).push_oif(link.index));
        match self.socket()?.request(&request)?.recv_ack() {
            Err(error) if error.as_io_error().raw_os_error() != Some(libc::ESRCH) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes a route from a link; `ESRCH` where it has none such.
    pub(crate) fn take_route(&mut self, link: &LinkId, route: &LinkRoute) -> Result<(), Refusal> {
        let mut request = rt_route::Request::new().op_delroute_do(&route.header());
        let route = LinkRoute { ends: None, ..route.clone() };
        route.push(link, request.encode().as_vec_mut());
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }
}

/// The attributes of a message, each with its kind; nested ones are not looked into.
pub(super) fn split(mut buffer: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut attributes = Vec::new();
    while let [l0, l1, k0, k1, ..] = *buffer {
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        // The uppermost two bits say how it is encoded (`NLA_TYPE_MASK`).
        let kind = u16::from_ne_bytes([k0, k1]) & 0x3fff;
        let Some(value) = buffer.get(4..len) else { break };
        attributes.push((kind, value.to_vec()));
        buffer = buffer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    attributes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link() -> LinkId {
        LinkId { index: 3, name: "br0".to_owned() }
    }

    fn default_route() -> LinkRoute {
        LinkRoute {
            family: libc::AF_INET as u8,
            dst_len: 0,
            src_len: 0,
            tos: 0,
            table: 254,
            protocol: 3,
            scope: 0,
            kind: libc::RTN_UNICAST,
            flags: 0,
            attributes: vec![(RTA_TABLE, vec![254, 0, 0, 0]), (RTA_GATEWAY, vec![10, 0, 0, 1])],
            ends: None,
        }
    }

    #[test]
    fn a_route_is_said_as_ip_takes_it() {
        assert_eq!(default_route().words(&link()), "default via 10.0.0.1 dev br0 proto 3 scope 0");
        let mut route = LinkRoute { dst_len: 8, flags: RTNH_F_ONLINK, ends: Some(0), ..default_route() };
        route.attributes.extend([
            (RTA_DST, vec![10, 0, 0, 0]),
            (RTA_PREFSRC, vec![10, 0, 0, 5]),
            (RTA_PRIORITY, vec![100, 0, 0, 0]),
            (RTA_METRICS, vec![8, 0, 2, 0, 0x78, 5, 0, 0]),
        ]);
        assert_eq!(
            route.words(&link()),
            "10.0.0.0/8 via 10.0.0.1 dev br0 proto 3 scope 0 src 10.0.0.5 metric 100 mtu 1400 expires 1 onlink"
        );
        for (flow, realm) in [(7_u32, " realm 7"), (3 << 16 | 4, " realm 3/4")] {
            let mut route = default_route();
            route.attributes.push((RTA_FLOW, flow.to_ne_bytes().to_vec()));
            assert!(route.words(&link()).ends_with(realm), "{}", route.words(&link()));
        }
    }

    #[test]
    fn what_is_pushed_is_split_again() {
        let mut buffer = Vec::new();
        let odd = LinkRoute { attributes: vec![(RTA_METRICS, vec![1, 2, 3])], ..default_route() };
        odd.push(&link(), &mut buffer);
        assert_eq!(split(&buffer), [(RTA_METRICS, vec![1, 2, 3]), (RTA_OIF, vec![3, 0, 0, 0])]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            split(&bytes);
        }
    }
}
