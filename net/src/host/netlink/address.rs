//! An address of a link with all that belongs to it, so that it can be moved to another link and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_bindings::rt_addr::{self, IfaCacheinfo, Ifaddrmsg};
use serde::{Deserialize, Serialize};

use super::{LinkId, Netlink, Refusal, lossy};
use crate::sys;

/// Lifetimes that do not end (`INFINITY_LIFE_TIME`).
const FOR_EVER: u32 = u32::MAX;

/// From a router's advertisement (`linux/if_addr.h`).
const IFAPROT_KERNEL_RA: u8 = 2;
/// The link's own.
const IFAPROT_KERNEL_LL: u8 = 3;

/// What a person gives an address; the other flags are the kernel's own state.
const GIVEN: u32 = libc::IFA_F_NODAD
    | libc::IFA_F_HOMEADDRESS
    | libc::IFA_F_MANAGETEMPADDR
    | libc::IFA_F_NOPREFIXROUTE
    | libc::IFA_F_MCAUTOJOIN;

/// An address of a link, as `ip address` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkAddress {
    pub(crate) local: IpAddr,
    /// The other end on a point-to-point link, else the address again.
    pub(crate) peer: IpAddr,
    pub(crate) prefix: u8,
    /// `RT_SCOPE_*`.
    pub(crate) scope: u8,
    /// `IFA_F_*`, those of [`GIVEN`].
    pub(crate) flags: u32,
    pub(crate) broadcast: Option<Ipv4Addr>,
    /// Of IPv4: the link's name, or that and a suffix (`eth0:1`).
    pub(crate) label: Option<String>,
    /// The metric of the route that comes with it.
    pub(crate) metric: Option<u32>,
    /// Who gave it (`IFAPROT_*`).
    pub(crate) origin: Option<u8>,
    /// When it stops to be preferred, and to be valid, in seconds since the boot.
    pub(crate) ends: Option<(u64, u64)>,
    /// Nobody knows yet whether another host has it (RFC 4862 §5.4): who gets it must ask.
    #[serde(default)]
    pub(crate) tentative: bool,
}

impl LinkAddress {
    /// The same for another link.
    pub(crate) fn for_link(&self, from: &LinkId, to: &LinkId) -> Self {
        let label = self.label.as_deref().and_then(|label| label.strip_prefix(&from.name));
        let label = label.map(|suffix| format!("{to}{suffix}")).filter(|label| label.len() < libc::IFNAMSIZ);
        Self { label, ..self.clone() }
    }

    /// The address itself, in the words of ip-address(8).
    pub(crate) fn name(&self) -> String {
        let Self { local, peer, prefix, .. } = self;
        if local == peer { format!("{local}/{prefix}") } else { format!("{local} peer {peer}/{prefix}") }
    }

    /// All of it in the words of ip-address(8), without the link.
    pub(crate) fn words(&self) -> String {
        let mut words = self.name();
        let mut say = |word: &str, value: Option<String>| {
            words += &value.map(|value| format!(" {word} {value}")).unwrap_or_default();
        };
        say("broadcast", self.broadcast.map(|broadcast| broadcast.to_string()));
        say(
            "scope",
            Some(self.scope).filter(|&scope| scope != libc::RT_SCOPE_UNIVERSE).map(|scope| scope.to_string()),
        );
        say("label", self.label.clone());
        say("metric", self.metric.map(|metric| metric.to_string()));
        if let Some((preferred, valid)) = self.ends.map(left) {
            say("valid_lft", Some(valid.to_string()));
            say("preferred_lft", Some(preferred.to_string()));
        }
        for (flag, word) in [
            (libc::IFA_F_HOMEADDRESS, " home"),
            (libc::IFA_F_MANAGETEMPADDR, " mngtmpaddr"),
            (libc::IFA_F_NOPREFIXROUTE, " noprefixroute"),
            (libc::IFA_F_MCAUTOJOIN, " autojoin"),
        ] {
            words += if self.flags & flag != 0 { word } else { "" };
        }
        words
    }

    /// True where it stops to be valid; else it can be given as one that is no longer preferred all the same.
    pub(crate) fn has_end(&self) -> bool {
        self.ends.is_some_and(|(_, valid)| valid != u64::MAX)
    }

    /// True where it is `address`, and the host may speak from it.
    pub(crate) fn is_usable_as(&self, address: IpAddr) -> bool {
        self.local == address && !self.tentative
    }

    /// True where whoever gets it need not ask whether another host has it.
    pub(crate) fn is_at_once(&self) -> bool {
        self.local.is_ipv6() && !self.tentative
    }

    pub(crate) fn is_link_local(&self) -> bool {
        matches!(self.local, IpAddr::V6(local) if local.is_unicast_link_local())
    }

    /// True where `address` is in its subnet.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, bits: u8| (a ^ b).checked_shr(bits.saturating_sub(self.prefix).into());
        let rest = match (self.peer, address) {
            (IpAddr::V4(subnet), IpAddr::V4(address)) => {
                same(u32::from(subnet).into(), u32::from(address).into(), 32)
            }
            (IpAddr::V6(subnet), IpAddr::V6(address)) => same(subnet.into(), address.into(), 128),
            _ => return false,
        };
        rest.unwrap_or(0) == 0
    }

    /// True where the kernel made it of a router's prefix (RFC 4862 §5.5). Before Linux 5.18 it does not say so; the flag of those
    /// from which temporary ones are made does, which few others have.
    pub(crate) fn is_autoconfigured(&self) -> bool {
        match self.origin {
            Some(origin) => origin == IFAPROT_KERNEL_RA,
            None => self.flags & libc::IFA_F_MANAGETEMPADDR != 0,
        }
    }

    /// The subnet of an IPv6 address and its prefix.
    fn subnet_v6(&self) -> Option<(Ipv6Addr, u8)> {
        let IpAddr::V6(peer) = self.peer else { return None };
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        Some(((u128::from(peer) & mask).into(), self.prefix))
    }

    fn header(&self, link: &LinkId) -> Ifaddrmsg {
        Ifaddrmsg {
            ifa_family: if self.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8,
            ifa_prefixlen: self.prefix,
            ifa_scope: self.scope,
            ifa_index: link.index,
            ..Ifaddrmsg::default()
        }
    }
}

/// True for a link-local address that the kernel makes by itself, on a link of the Ethernet address `mac`. Before Linux 5.18 it does
/// not say so; then it is the one that is made of that (RFC 4291, appendix A).
fn is_kernels(local: Ipv6Addr, origin: Option<u8>, mac: Option<[u8; 6]>) -> bool {
    let made_of = |[a, b, c, d, e, f]: [u8; 6]| [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    origin == Some(IFAPROT_KERNEL_LL) || mac.is_some_and(|mac| local.octets()[8..] == made_of(mac))
}

/// What is left of lifetimes, in seconds.
fn left((preferred, valid): (u64, u64)) -> (u32, u32) {
    let now = sys::since_boot().as_secs();
    let left = |end: u64| u32::try_from(end.saturating_sub(now)).unwrap_or(FOR_EVER);
    // One that is over cannot be given: it has its last second.
    (left(preferred), left(valid).max(1))
}

impl Netlink {
    /// The addresses of a link in the order in which they were given: the first of a subnet is the one that the host speaks
    /// from. Without those that the kernel makes by itself, link-local and temporary ones, and without those that another host has,
    /// which stay unused where they are.
    pub(crate) fn addresses_of(&mut self, link: &LinkId) -> Result<Vec<LinkAddress>, Refusal> {
        let mac = self.link_by_index(link.index)?.and_then(|link| link.mac);
        let request = rt_addr::Request::new().op_getaddr_dump(&Ifaddrmsg::default());
        let mut replies = self.socket()?.request(&request)?;
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        while let Some((header, attributes)) = replies.recv().transpose()? {
            let (Ok(peer), true) = (attributes.get_address(), header.ifa_index == link.index) else {
                continue;
            };
            let local = attributes.get_local().unwrap_or(peer);
            let flags = attributes.get_flags().unwrap_or(header.ifa_flags.into());
            let origin = attributes.get_proto().ok().filter(|&proto| proto != 0);
            let made_by_kernel = match local {
                IpAddr::V4(_) => false,
                IpAddr::V6(local) if local.is_unicast_link_local() => is_kernels(local, origin, mac),
                IpAddr::V6(_) => flags & libc::IFA_F_TEMPORARY != 0,
            };
            if made_by_kernel || flags & libc::IFA_F_DADFAILED != 0 {
                continue;
            }
            let now = sys::since_boot().as_secs();
            let ends = attributes
                .get_cacheinfo()
                .ok()
                .filter(|life| life.ifa_valid != FOR_EVER || life.ifa_prefered != FOR_EVER);
            let end = |left: u32| if left == FOR_EVER { u64::MAX } else { now + u64::from(left) };
            let list = if local.is_ipv4() { &mut v4 } else { &mut v6 };
            list.push(LinkAddress {
                local,
                peer,
                prefix: header.ifa_prefixlen,
                scope: header.ifa_scope,
                flags: flags & GIVEN,
                broadcast: attributes.get_broadcast().ok(),
                label: attributes.get_label().ok().map(lossy),
                metric: attributes.get_rt_priority().ok().filter(|&metric| metric != 0),
                origin,
                ends: ends.map(|life| (end(life.ifa_prefered), end(life.ifa_valid))),
                tentative: flags & libc::IFA_F_TENTATIVE != 0,
            });
        }
        // The kernel lists the newest one of IPv6 first (`ipv6_link_dev_addr`).
        v6.reverse();
        Ok([v4, v6].concat())
    }

    /// Gives a link an address, at once: of IPv6 without asking whether somebody has it, where the host had it until now.
    pub(crate) fn give_address(&mut self, link: &LinkId, address: &LinkAddress) -> Result<(), Refusal> {
        let at_once = if address.is_at_once() { libc::IFA_F_NODAD } else { 0 };
        let request = rt_addr::Request::new().set_create().set_excl();
        self.put_address(request, link, address, address.flags | at_once)?;
        if address.flags | at_once == address.flags {
            return Ok(());
        }
        // The flag stays with an address, and it is there by now.
        self.set_address(link, address).inspect_err(|_| drop(self.take_address(link, address)))
    }

    /// Has an address that the link has be as it was.
    pub(crate) fn set_address(&mut self, link: &LinkId, address: &LinkAddress) -> Result<(), Refusal> {
        self.put_address(rt_addr::Request::new().set_replace(), link, address, address.flags)
    }

    fn put_address(
        &mut self,
        request: rt_addr::Request<'_>,
        link: &LinkId,
        address: &LinkAddress,
        flags: u32,
    ) -> Result<(), Refusal> {
        let mut request = request.op_newaddr_do(&address.header(link));
        let mut attributes =
            request.encode().push_local(address.local).push_address(address.peer).push_flags(flags);
        if let Some(broadcast) = address.broadcast {
            attributes = attributes.push_broadcast(broadcast);
        }
        if let Some(label) = &address.label {
            attributes = attributes.push_label_bytes(label.as_bytes());
        }
        if let Some(metric) = address.metric {
            attributes = attributes.push_rt_priority(metric);
        }
        if let Some(origin) = address.origin {
            attributes = attributes.push_proto(origin);
        }
        let (preferred, valid) = address.ends.map_or((FOR_EVER, FOR_EVER), left);
        let life = IfaCacheinfo { ifa_prefered: preferred, ifa_valid: valid, ..IfaCacheinfo::default() };
        drop(attributes.push_cacheinfo(life));
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Takes an address from a link; `EADDRNOTAVAIL` where it has none such.
    pub(crate) fn take_address(&mut self, link: &LinkId, address: &LinkAddress) -> Result<(), Refusal> {
        let mut request = rt_addr::Request::new().op_deladdr_do(&address.header(link));
        drop(request.encode().push_local(address.local).push_address(address.peer));
        self.socket()?.request(&request)?.recv_ack()?;
        // Taken in part, it would be given back by nobody.
        self.take_route_of(link, address).inspect_err(|_| drop(self.give_address(link, address)))
    }

    /// Takes the route that came with an address that has an end: the kernel leaves it to its own (`ipv6_del_addr`).
    pub(crate) fn take_route_of(&mut self, link: &LinkId, address: &LinkAddress) -> Result<(), Refusal> {
        let with_route = address.has_end() && address.flags & libc::IFA_F_NOPREFIXROUTE == 0;
        if let Some(subnet) = address.subnet_v6().filter(|_| with_route)
            && !self.addresses_of(link)?.iter().any(|other| other.subnet_v6() == Some(subnet))
        {
            let (subnet, prefix) = subnet;
            self.take_prefix_route(link, subnet, prefix)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_said_as_ip_takes_it() {
        let plain = LinkAddress {
            local: "10.0.0.5".parse().unwrap(),
            peer: "10.0.0.5".parse().unwrap(),
            prefix: 24,
            scope: 0,
            flags: 0,
            broadcast: Some("10.0.0.255".parse().unwrap()),
            label: Some("eth1".to_owned()),
            metric: None,
            origin: None,
            ends: None,
            tentative: false,
        };
        assert_eq!(plain.words(), "10.0.0.5/24 broadcast 10.0.0.255 label eth1");
        let [nic, bridge] =
            [(2, "eth1"), (3, "br0")].map(|(index, name)| LinkId { index, name: name.to_owned() });
        assert_eq!(plain.for_link(&nic, &bridge).label.unwrap(), "br0");
        let other = LinkAddress { label: Some("eth1:web".to_owned()), ..plain.clone() };
        assert_eq!(other.for_link(&nic, &bridge).label.unwrap(), "br0:web");

        let now = sys::since_boot().as_secs();
        let v6 = LinkAddress {
            local: "fd00::5".parse().unwrap(),
            peer: "fd00::5".parse().unwrap(),
            prefix: 64,
            flags: libc::IFA_F_NOPREFIXROUTE | libc::IFA_F_MANAGETEMPADDR,
            broadcast: None,
            label: None,
            metric: Some(100),
            ends: Some((now.saturating_sub(5), u64::MAX)),
            ..plain
        };
        assert_eq!(
            v6.words(),
            "fd00::5/64 metric 100 valid_lft 4294967295 preferred_lft 0 mngtmpaddr noprefixroute"
        );
    }
}
