//! Routes that the kernel has learned from routers of IPv6 by itself (RFC 4861 §6.3.4), which it alone keeps: who adds one of
//! those as another route has the kernel refuse every later advertisement of that router, for it is there already.
//!
//! rtnetlink does not tell them from others, of which a daemon says that they come from a router too; `/proc/net/ipv6_route` does.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv6Addr;

use super::route::{LinkRoute, RouteId};
use super::{LinkId, Netlink, Refusal};
use crate::sys;
use crate::sys::route::{RTF_ADDRCONF, RTF_DEFAULT};

/// The routes of the thread's network namespace.
const ROUTES: &str = "/proc/thread-self/net/ipv6_route";

/// A way to a router by its advertisement, or to what it says is behind it (`linux/ipv6_route.h`).
const BY_ROUTER: u32 = RTF_DEFAULT | RTF_ROUTEINFO;
const RTF_ROUTEINFO: u32 = 0x0080_0000;
/// How much the router wants to be taken (RFC 4191 §2.1).
const RTF_PREF: u32 = 0x1800_0000;

/// The routes that the kernel has learned, with their flags.
#[derive(Debug, Default)]
pub(super) struct Learned(HashMap<RouteId, u32>);

impl Learned {
    /// Those over a link; none where this kernel does not say.
    pub(super) fn over(link: &LinkId) -> Self {
        Self::parse(&fs::read_to_string(ROUTES).unwrap_or_default(), &link.name)
    }

    fn parse(routes: &str, link: &str) -> Self {
        let learned = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [to, to_len, _, _, gateway, metric, _, _, flags, name] = words[..] else { return None };
            let number = |word| u32::from_str_radix(word, 16).ok();
            let address = |word| Some(Ipv6Addr::from(u128::from_str_radix(word, 16).ok()?));
            let flags = number(flags)?;
            let is_learned = name == link && flags & RTF_ADDRCONF != 0 && flags & BY_ROUTER != 0;
            let id = RouteId {
                to: address(to)?,
                to_len: u8::from_str_radix(to_len, 16).ok()?,
                gateway: address(gateway)?,
                metric: number(metric)?,
            };
            is_learned.then_some((id, flags))
        };
        Self(routes.lines().filter_map(learned).collect())
    }

    pub(super) fn has(&self, route: &RouteId) -> bool {
        self.0.contains_key(route)
    }
}

impl Netlink {
    /// Has a link know the router of a default route that another link has learned, until it hears of that router itself. The
    /// route is as if it were learned, but for its metric: the kernel replaces it by its own at the next advertisement
    /// (`ndisc_router_discovery`, Linux 5.12), and where none comes, it ends when the other one would.
    ///
    /// `EEXIST` where it is there. Nothing is done for a route that is no default one: only the router can give that.
    pub(crate) fn learn_route(&mut self, link: &LinkId, route: &LinkRoute) -> Result<(), Refusal> {
        let Some(id) = route.id().filter(|id| id.to_len == 0) else { return Ok(()) };
        let stand_in = route.stand_in();
        let metric = stand_in.id().map_or(id.metric, |id| id.metric);
        let preference = u32::from(route.preference()) << 27 & RTF_PREF;
        sys::route::add_learned_default(link.index, id.gateway, metric, route.left(), preference)?;
        // An advertisement that came before does not replace it.
        let learned = self.routes_over(link)?.learned;
        let own = |other: &&LinkRoute| other.is_by_the_same_router(route) && other.id() != stand_in.id();
        if learned.iter().any(|other| own(&other)) {
            let ours = learned.iter().find(|ours| ours.id() == stand_in.id());
            ours.map_or(Ok(()), |ours| self.take_route(link, ours))?;
        }
        Ok(())
    }

    /// Has a link forget a route that it has learned, and what stands in for it.
    pub(crate) fn unlearn_route(&mut self, link: &LinkId, route: &LinkRoute) -> Result<(), Refusal> {
        for learned in self.routes_over(link)?.learned {
            if learned.is_by_the_same_router(route) {
                self.take_route(link, &learned)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_learned_is_told_from_what_it_was_given() {
        let zero = "0".repeat(32);
        let router = "fe800000000000000000000000000254";
        let line = |to: &str, len: &str, flags: &str, link: &str| {
            format!("{to} {len} {zero} 00 {router} 00000400 00000001 00000000 {flags} {link:>8}\n")
        };
        let prefix = "fd770000000000000000000000000000";
        let learned = Learned::parse(
            &[
                line(&zero, "00", "00450003", "eth1"),
                line(&zero, "00", "00450003", "eth2"),
                line(prefix, "40", "00c40003", "eth1"),
                line(prefix, "30", "00400003", "eth1"),
                line(prefix, "38", "004c0001", "eth1"),
                "nonsense\n".to_owned(),
            ]
            .concat(),
            "eth1",
        );
        let id = |to: &str, to_len| RouteId {
            to: to.parse().unwrap(),
            to_len,
            gateway: "fe80::254".parse().unwrap(),
            metric: 1024,
        };
        assert!(learned.has(&id("::", 0)) && learned.has(&id("fd77::", 64)));
        assert!(!learned.has(&id("fd77::", 48)) && !learned.has(&id("fd77::", 56)), "given; of a link");
        assert_eq!(learned.0.len(), 2);
    }
}
