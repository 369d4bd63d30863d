//! Where routes lead: the links and gateways of their next hops, also of those that lead over several.

use std::net::IpAddr;

use netlink_bindings::rt_route::{self, Rtmsg};

use super::route::{LinkRoute, RTA_GATEWAY, RTA_MULTIPATH, RTA_NH_ID, RTA_VIA, ip, split};
use super::{LinkId, Netlink, Refusal};
use crate::text::word;

/// A link that a route leads over, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteLink {
    pub(crate) link: u32,
    pub(crate) ipv6: bool,
    /// To a router, or to everywhere; else to what is on the link itself.
    pub(crate) to_router: bool,
}

/// A route that is bound to more than one link.
#[derive(Debug)]
pub(crate) struct BoundRoute {
    /// As ip-route(8) says it.
    pub(crate) words: String,
    /// The line that has it lead over the link alone.
    pub(crate) over_link_alone: String,
}

/// One of the ways of a route that has several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NextHop {
    pub(super) link: u32,
    pub(super) weight: u16,
    pub(super) attributes: Vec<(u16, Vec<u8>)>,
}

impl NextHop {
    /// The words of ip-route(8), where the link has this name.
    pub(super) fn words(&self, link: &str) -> String {
        let of = |kind| self.attributes.iter().find(|(found, _)| *found == kind).map(|(_, value)| &value[..]);
        let by = of(RTA_GATEWAY).and_then(ip).map(|by| format!(" via {by}"));
        let by6 = of(RTA_VIA).and_then(|via| ip(via.get(2..)?)).map(|by| format!(" via inet6 {by}"));
        format!("nexthop{} dev {link} weight {}", by.or(by6).unwrap_or_default(), self.weight)
    }
}

/// The ways in `RTA_MULTIPATH`, each `struct rtnexthop` and its attributes (rtnetlink(7)).
pub(super) fn next_hops(mut buffer: &[u8]) -> Vec<NextHop> {
    let mut hops = Vec::new();
    while let [l0, l1, _, others, i0, i1, i2, i3, ref rest @ ..] = *buffer {
        let len = usize::from(u16::from_ne_bytes([l0, l1])).max(8);
        hops.push(NextHop {
            link: u32::from_ne_bytes([i0, i1, i2, i3]),
            weight: u16::from(others) + 1,
            attributes: split(rest.get(..len - 8).unwrap_or_default()),
        });
        buffer = buffer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

impl Netlink {
    /// What is said of a route over `link` that has these `hops`, or goes by a nexthop `object`.
    pub(super) fn bound_route(
        &mut self,
        mut route: LinkRoute,
        hops: &[NextHop],
        object: Option<u32>,
        link: &LinkId,
    ) -> Result<BoundRoute, Refusal> {
        route.attributes.retain(|(kind, _)| ![RTA_MULTIPATH, RTA_NH_ID].contains(kind));
        let mut words = route.words(link);
        if !hops.is_empty() {
            words = words.replacen(&format!(" dev {link}"), "", 1);
        }
        words += &object.map(|id| format!(" nhid {id}")).unwrap_or_default();
        for hop in hops {
            let name = self.link_by_index(hop.link)?.map(|link| link.id.name);
            words += &format!(" {}", hop.words(&word(&name.unwrap_or_else(|| hop.link.to_string()))));
        }
        let own = hops.iter().find(|hop| hop.link == link.index);
        route.attributes.extend(own.map(|hop| hop.attributes.clone()).unwrap_or_default());
        let over_link_alone = format!("ip{} route replace {}", route.family_word(), route.words(link));
        Ok(BoundRoute { words, over_link_alone })
    }

    /// The links that the namespace's routes lead over, of every table; those to multicast and of a link's own scope are
    /// left out.
    pub(crate) fn route_links(&mut self) -> Result<Vec<RouteLink>, Refusal> {
        let mut route_links = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let header = Rtmsg { rtm_family: family as u8, ..Rtmsg::default() };
            let request = rt_route::Request::new().op_getroute_dump(&header);
            let mut replies = self.socket()?.request(&request)?;
            while let Some((header, route)) = replies.recv().transpose()? {
                let link_scope = matches!(route.get_dst(), Ok(IpAddr::V6(to)) if to.is_unicast_link_local());
                if header.rtm_type != libc::RTN_UNICAST || link_scope {
                    continue;
                }
                let ipv6 = family == libc::AF_INET6;
                // Two halves of all addresses are everywhere too: so do VPNs.
                let everywhere = header.rtm_dst_len <= 1;
                let to_router = everywhere || route.get_gateway().is_ok() || route.get_via().is_ok();
                let several = route.get_multipath().map(next_hops).unwrap_or_default();
                let one = route.get_oif().ok().map(|link| (link, to_router));
                let hops = one.into_iter().chain(several.into_iter().map(|hop| (hop.link, true)));
                route_links.extend(hops.map(|(link, to_router)| RouteLink { link, ipv6, to_router }));
            }
        }
        Ok(route_links)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn next_hops_are_said_as_ip_takes_them() {
        let hops = [8, 0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 4, 3, 0, 0, 0, 8, 0, 5, 0, 10, 0, 0, 1];
        let words: Vec<_> =
            next_hops(&hops).iter().map(|hop| hop.words(&format!("eth{}", hop.link))).collect();
        assert_eq!(words, ["nexthop dev eth2 weight 1", "nexthop via 10.0.0.1 dev eth3 weight 5"]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            next_hops(&bytes).iter().for_each(|hop| drop(hop.words("eth0")));
        }
    }
}
