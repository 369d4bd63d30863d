//! A subnet for a link of ours that the host uses for nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::{Netlink, Refusal, Route};
use crate::{HostV4, HostV6, sys};

/// Where the small subnets are taken from, one range after the other where all of the one before is in use. All are private
/// (RFC 1918) and seldom met: below the first one Docker takes its networks from 172.17.0.0/16 up, above it is the network
/// of Amazon's machines, 172.31.0.0/16; home routers live at the start of 192.168.0.0/16, companies and clusters anywhere
/// in 10.0.0.0/8.
const RANGES: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(172, 30, 0, 0), 16),
    (Ipv4Addr::new(10, 213, 0, 0), 16),
    (Ipv4Addr::new(192, 168, 213, 0), 24),
];

/// Two addresses beside the network's and the broadcast address: host and guest.
const PREFIX_V4: u8 = 30;

/// The prefix that guests make addresses of themselves (RFC 4862).
const PREFIX_V6: u8 = 64;

/// A route with a shorter prefix is a way to everywhere, not to somebody's network: VPNs have theirs in two halves.
const DEFAULT_V4: u8 = 8;
const DEFAULT_V6: u8 = 7;

/// The first free subnet of IPv4; none where the host routes all that we would take.
pub(crate) fn ipv4(netlink: &mut Netlink) -> Result<Option<HostV4>, Refusal> {
    Ok(pick_v4(&netlink.routes()?))
}

/// A free subnet of IPv6: a unique local one, as random as RFC 4193 §3.2.2 wants.
pub(crate) fn ipv6(netlink: &mut Netlink) -> Result<Option<HostV6>, Refusal> {
    let routes = netlink.routes()?;
    for _ in 0..16 {
        let mut global_id = [0; 5];
        sys::random(&mut global_id)?;
        if let Some(host) = unique_local(global_id, &routes) {
            return Ok(Some(host));
        }
    }
    Ok(None)
}

fn pick_v4(routes: &[Route]) -> Option<HostV4> {
    let is_used = |host: &HostV4| {
        routes.iter().any(|route| match route.to {
            IpAddr::V4(to) => route.prefix >= DEFAULT_V4 && host.overlaps(to, route.prefix),
            IpAddr::V6(_) => false,
        })
    };
    RANGES.iter().find_map(|&(start, len)| {
        let subnets = (u32::from(start)..).step_by(1 << (32 - PREFIX_V4)).take(1 << (PREFIX_V4 - len));
        let mut hosts = subnets.filter_map(|subnet| HostV4::new((subnet + 1).into(), PREFIX_V4).ok());
        hosts.find(|host| !is_used(host))
    })
}

/// The first /64 of the unique local /48 with this global ID (RFC 4193 §3.1), unless a route goes there.
fn unique_local(id: [u8; 5], routes: &[Route]) -> Option<HostV6> {
    let [a, b, c, d, e] = id;
    let host = Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let host = HostV6::new(host, PREFIX_V6).ok()?;
    let is_used = routes.iter().any(|route| match route.to {
        IpAddr::V6(to) => route.prefix > DEFAULT_V6 && host.overlaps(to, route.prefix),
        IpAddr::V4(_) => false,
    });
    (!is_used).then_some(host)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(text: &str) -> Route {
        let (to, prefix) = text.split_once('/').unwrap();
        Route { to: to.parse().unwrap(), prefix: prefix.parse().unwrap(), link: None }
    }

    fn picked(routes: &[&str]) -> Option<String> {
        let routes: Vec<_> = routes.iter().map(|text| route(text)).collect();
        pick_v4(&routes).map(|host| host.to_string())
    }

    #[test]
    fn the_first_subnet_without_a_route_is_taken() {
        let first = Some("172.30.0.1/30".to_owned());
        assert_eq!(picked(&[]), first);
        assert_eq!(picked(&["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "192.168.0.0/16", "fd00::/8"]), first);
        assert_eq!(picked(&["172.30.0.0/30"]).unwrap(), "172.30.0.5/30");
        assert_eq!(picked(&["172.30.0.3/32", "172.30.0.4/30"]).unwrap(), "172.30.0.9/30");
        assert_eq!(picked(&["172.30.0.0/17"]).unwrap(), "172.30.128.1/30");
        assert_eq!(picked(&["172.16.0.0/12"]).unwrap(), "10.213.0.1/30");
        assert_eq!(picked(&["172.16.0.0/12", "10.0.0.0/8"]).unwrap(), "192.168.213.1/30");
        assert_eq!(picked(&["172.16.0.0/12", "10.0.0.0/8", "192.168.0.0/16"]), None);
    }

    #[test]
    fn a_unique_local_subnet_has_no_route() {
        let host = |routes: &[&str]| {
            let routes: Vec<_> = routes.iter().map(|text| route(text)).collect();
            unique_local([1, 2, 3, 4, 5], &routes).map(|host| host.to_string())
        };
        let ours = Some("fd01:203:405::1/64".to_owned());
        assert_eq!(host(&[]), ours);
        assert_eq!(host(&["::/0", "fc00::/7", "fe80::/64", "10.0.0.0/8", "fd01:203:406::/48"]), ours);
        assert_eq!(host(&["fd01:203:405::/48"]), None);
        assert_eq!(host(&["fd01:203:405::7/128"]), None);
    }

    proptest! {
        #[test]
        fn what_is_picked_has_no_route(routes in proptest::collection::vec(
            (0..0x400u32, prop_oneof![Just(16u8), 20..=32u8]), 0..40))
        {
            let range = |(low, prefix): (u32, u8)| {
                let to = Ipv4Addr::from(0xac1e_0000 | low << 4).into();
                Route { to, prefix, link: None }
            };
            let routes: Vec<_> = routes.into_iter().map(range).collect();
            let host = pick_v4(&routes).unwrap();
            for route in routes {
                let IpAddr::V4(to) = route.to else { unreachable!() };
                prop_assert!(!host.overlaps(to, route.prefix), "{} {}/{}", host, to, route.prefix);
            }
        }
    }
}
