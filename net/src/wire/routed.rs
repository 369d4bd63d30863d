//! A wire that the host routes to: the subnet that host and guest share, and what the guest is told of it.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use crate::answer::dhcp::Lease;
use crate::answer::relay::{self, Relay};
use crate::answer::resolver;
use crate::answer::router::Router;
use crate::config::dns::DnsConfig;
use crate::config::guests;
use crate::error::HostError;
use crate::host::{Link, LinkId, Wiring, free_subnet};
use crate::{Error, HostAddress, Mac};

/// A subnet for `link` that nothing is routed to: of IPv4, and of IPv6 where the kernel has it for the link.
///
/// Nobody else of us picks meanwhile, for the wiring holds the lock.
pub(crate) fn pick(wiring: &mut Wiring, link: &Link, mtu: u32) -> Result<Vec<HostAddress>, Error> {
    let asked = |refusal| HostError::Ask { what: "the host's routes".to_owned(), refusal };
    let name = &link.id.name;
    let v4 = free_subnet::ipv4(wiring.netlink()).map_err(asked)?;
    let ipv6 = mtu >= u32::from(Router::MTU_MIN) && has_ipv6(name);
    let v6 = if ipv6 { free_subnet::ipv6(wiring.netlink()).map_err(asked)? } else { None };
    let v4 = v4.ok_or_else(|| HostError::NoFreeSubnet { link: name.clone() })?;
    Ok([HostAddress::V4(v4)].into_iter().chain(v6.map(HostAddress::V6)).collect())
}

/// What a guest is told of its wire.
#[derive(Debug, Default)]
pub(crate) struct GuestConfig {
    pub(crate) lease: Option<Lease>,
    pub(crate) router: Option<Router>,
    /// Whether the host forwards from the link, for the router.
    pub(crate) forwarding: Option<File>,
    /// The DNS server that the guest is told of, where it is us.
    pub(crate) relay: Option<Relay>,
}

const NO_DNS: &str = "the guest is told of no DNS server: resolv.conf names none that another machine than the host can reach. Name \
                      one by dns=, or in /etc/resolv.conf (for a network namespace, in \
                      /etc/netns/NAME/resolv.conf)";

/// The host's end of a wire, as its guest sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    /// The host's link.
    pub(crate) link: &'a LinkId,
    pub(crate) mac: [u8; 6],
    /// Where a router is advertised from; none where IPv6 is off, or its addresses are made by hand.
    pub(crate) link_local: Option<Ipv6Addr>,
}

/// The guest's end of a wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) mac: Mac,
    /// Bytes.
    pub(crate) mtu: u16,
    /// It reaches further than the host, and so looks up names.
    pub(crate) resolves: bool,
    /// What it is told of names.
    pub(crate) dns: &'a DnsConfig,
    /// Its addresses that the user chose.
    pub(crate) given: &'a [IpAddr],
    /// The host's port of DNS leads to it.
    pub(crate) has_dns_port: bool,
}

/// What the `guest` is told where the host has `hosts` at its `end`, which is up.
pub(crate) fn guest_config(
    wiring: &mut Wiring,
    end: End<'_>,
    hosts: &[HostAddress],
    guest: Guest<'_>,
) -> GuestConfig {
    let mut config = GuestConfig::default();
    let Guest { mac, mtu, resolves, dns: DnsConfig { servers, search }, given, .. } = guest;
    let mut dns = if servers.is_empty() { resolver::servers(wiring.netns()) } else { servers.clone() };
    if resolves && dns.is_empty() && !hosts.is_empty() {
        (dns, config.relay) = own_dns(wiring, end.link, hosts, guest.has_dns_port);
    }
    let name = &end.link.name;
    for &address in hosts {
        match address {
            HostAddress::V4(host) => {
                let dns: Vec<_> = dns.iter().filter_map(v4).collect();
                let guest = guests::beside(given, address).as_ref().and_then(v4);
                config.lease = guest.map(|guest| {
                    Lease::to(mac, guest, host, end.mac, mtu).with_dns(&dns).with_search(search)
                });
            }
            HostAddress::V6(host) => {
                let Some(address) = end.link_local else {
                    wiring.notice(format!(
                        "the guest is told nothing of {host}: {name} has no link-local address to tell it from \
                         (net.ipv6.conf.{name}.addr_gen_mode)"
                    ));
                    continue;
                };
                let dns: Vec<_> = dns.iter().filter_map(v6).collect();
                config.forwarding = File::open(format!("/proc/sys/net/ipv6/conf/{name}/forwarding")).ok();
                let given = guests::given(given, HostAddress::V6(host));
                config.router = Router::new(end.mac, address, host, mtu, &dns, search, given.is_none());
                match (&config.router, given) {
                    (None, _) => wiring.notice(format!(
                        "the guest is told nothing of {host}: an MTU of {mtu} is too small for IPv6, which needs 1280"
                    )),
                    (Some(_), Some(guest)) => wiring.notice(format!(
                        "the guest has {guest} once it is set there by hand (ip address add {guest}/{} dev LINK), and makes no other \
                         IPv6 address: router advertisement names none",
                        host.prefix()
                    )),
                    (Some(router), None) if !router.has_slaac() => wiring.notice(format!(
                        "the guest cannot make an address of {host}: that takes a prefix of 64 bits or less; give it one \
                         by hand"
                    )),
                    (Some(_), None) => {}
                }
            }
        }
    }
    config
}

/// The DNS servers for a guest on `link` where all that the host has are on its loopback: the host's addresses `hosts`, where a relay
/// hands queries on. To lead the guest to the loopback would take `route_localnet`, which opens it for more than DNS, and many a
/// resolver (systemd's, Docker's) would still not answer what came in by another link.
fn own_dns(
    wiring: &mut Wiring,
    link: &LinkId,
    hosts: &[HostAddress],
    has_dns_port: bool,
) -> (Vec<IpAddr>, Option<Relay>) {
    let addresses: Vec<_> = hosts.iter().map(|host| host.address()).collect();
    let shown = addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ");
    let resolver = resolver::on_loopback(wiring.netns()).filter(|_| !has_dns_port);
    let Some(resolver) = resolver else {
        wiring.notice(NO_DNS.to_owned());
        return (Vec::new(), None);
    };
    match Relay::open(link.index, &addresses, resolver) {
        Ok(relay) => {
            let command = format!("# answer DNS on {link} at {shown}: by {resolver}");
            wiring
                .tell(command, "the host's own resolver, which the guest does not reach; it goes when we go");
            (addresses, Some(relay))
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            wiring.notice(format!(
                "the guest's DNS server is the host's own that listens on {shown}, port {}: it must answer there, else name one by dns=",
                relay::PORT
            ));
            (addresses, None)
        }
        Err(error) => {
            wiring.notice(format!("{NO_DNS}. {resolver} cannot be asked for the guest at {shown}: {error}"));
            (Vec::new(), None)
        }
    }
}

/// The link-local address that the kernel gave the link, if it did. It is not asked for where none of `hosts` needs it.
///
/// A link that had no carrier until we attached gets it a moment after it is up, for the kernel hears of the carrier by a
/// work queue. So this waits for it, a second at most, where it is to come.
pub(crate) fn link_local(
    wiring: &mut Wiring,
    link: &Link,
    hosts: &[HostAddress],
) -> Result<Option<Ipv6Addr>, Error> {
    let asked = |refusal| HostError::Ask { what: "the host's addresses".to_owned(), refusal };
    if !hosts.iter().any(|host| host.v6().is_some()) {
        return Ok(None);
    }
    // IN6_ADDR_GEN_MODE_NONE (linux/if_link.h) is 1.
    let mode = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{}/addr_gen_mode", link.id.name));
    let comes = has_ipv6(&link.id.name) && mode.is_ok_and(|mode| mode.trim() != "1");
    let end = Instant::now() + Duration::from_secs(1);
    loop {
        let all = wiring.netlink().addresses().map_err(asked)?;
        let ours = all.iter().filter(|address| address.link == link.id.index);
        let found = ours.filter_map(|ours| v6(&ours.address)).find(Ipv6Addr::is_unicast_link_local);
        if found.is_some() || !comes || Instant::now() >= end {
            return Ok(found);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// True where the kernel has IPv6, for this link too.
fn has_ipv6(link: &str) -> bool {
    let setting = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"));
    setting.is_ok_and(|setting| setting.trim() == "0")
}

fn v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: &IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(*address),
    }
}
