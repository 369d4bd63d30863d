//! NAT for the guest of one link: its connections leave the host by other links under the host's own addresses
//! (masquerade), and connections to some ports of the host are taken to the guest (`forward=`).
//!
//! All of it is one nftables table of the link's own (`table.rs`), and what other tables say still holds: see `firewall.rs`. That
//! the host passes packets on at all is a matter of `forwarding.rs`.

mod table;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::thread;

use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use self::table::Plan;
use super::forwarding::{Switched, Traffic, WaysOut};
use super::nft::OwnTable;
use super::{Link, LinkId, Refusal, Wiring, firewall, guard};
use crate::config::guests;
use crate::error::NatError;
use crate::{Error, Forward, HostAddress, Mac, Protocol, TapConfig, sys};

/// The guest's addresses at which the host's ports reach it, at most one of each family. In a /64 the guest makes itself an IPv6
/// address, by its MAC as a rule (RFC 4291 appendix A), unless one of `given` is it.
fn guests(hosts: &[HostAddress], given: &[IpAddr], mac: Mac) -> Vec<IpAddr> {
    let guest = |&host: &HostAddress| match host {
        HostAddress::V6(own) if own.prefix() == 64 => {
            let by_mac = by_mac(own.network(), mac).into();
            Some(guests::given(given, host).unwrap_or(by_mac))
        }
        _ => guests::beside(given, host),
    };
    let all: Vec<_> = hosts.iter().filter_map(guest).collect();
    let first = |ipv4| all.iter().find(move |guest| guest.is_ipv4() == ipv4).copied();
    first(true).into_iter().chain(first(false)).collect()
}

/// The one of the guest's addresses `guests` to which `forward` leads: of the family of the host's address, or where that is every
/// one, of IPv4 if there is one: of the other it is not sure that the guest has it.
fn guest_of(forward: &Forward, guests: &[IpAddr]) -> Option<IpAddr> {
    match forward.address {
        Some(address) => guests.iter().find(|guest| guest.is_ipv4() == address.is_ipv4()).copied(),
        None => guests.first().copied(),
    }
}

/// The address that a MAC makes in a subnet of 64 bits.
fn by_mac(network: Ipv6Addr, mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.octets();
    let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(u128::from(network) | u128::from(interface))
}

impl Wiring {
    /// NAT for the guest behind `link`, in the subnets of `hosts`, the host's addresses there (none for those that it has), and
    /// the host's ports that lead to it. `stays`: the link is there after its backend. `guarded`: no packet of other sources comes
    /// in by it; else those are masked too.
    pub(crate) fn set_nat(
        &mut self,
        link: &Link,
        stays: bool,
        hosts: &[HostAddress],
        mac: Mac,
        config: &TapConfig,
        guarded: bool,
    ) -> Result<(), Error> {
        let (name, forwards) = (&link.id.name, &config.forwards[..]);
        let hosts = if hosts.is_empty() { &self.addresses_of(link)?[..] } else { hosts };
        if hosts.is_empty() {
            return Err(NatError::NothingToMasquerade { link: name.clone() }.into());
        }
        let (ipv4, ipv6) =
            (hosts.iter().any(|host| host.v4().is_some()), hosts.iter().any(|host| host.v6().is_some()));
        let from_loopback = forwards.iter().any(Forward::is_from_loopback);
        let alone = |forward: &&Forward| {
            forward.address.is_some_and(|address| address.is_ipv4() && address.is_loopback())
        };
        let loopback_alone = forwards.iter().find(alone).copied();
        let traffic = Traffic { ipv4, ipv6, from_loopback: ipv4 && from_loopback, loopback_alone };
        let switched = self.links_to_switch(link, traffic)?;
        let guests = guests(hosts, &config.guests, mac);
        let leads = |forward: &Forward| Some((*forward, guest_of(forward, &guests)?));
        let forwards = forwards.iter().map(|forward| {
            leads(forward).ok_or_else(|| NatError::NoGuestAddress { forward: *forward, link: name.clone() })
        });
        let forwards = forwards.collect::<Result<Vec<_>, _>>()?;
        let connections = guarded.then(guard::most_connections);
        let plan =
            Plan { link: &link.id, hosts, forwards: &forwards, switched: &switched, guarded, connections };
        // The rules are first: nothing leaves unmasked, and nobody else is passed on.
        self.nat = Some(Nat::new(self, link, traffic, &plan)?);
        let way_out = self.set_forwarding(link, stays, traffic)?;

        firewall::routed_notices(name, hosts).into_iter().for_each(|notice| self.notice(notice));
        if !way_out {
            self.notice(
                "no link of the host leads anywhere else yet, so the guest reaches the host only until one does"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl Wiring {
    /// Has the guest's connections leave by the links that lead elsewhere now: a VPN, a dock, another default route. Where a link is
    /// new, it is told. In the wiring's network namespace.
    ///
    /// # Errors
    /// The kernel does not answer, or refuses a rule or a switch: the guest's connections leave as before.
    pub(crate) fn follow_routes(&mut self) -> Result<(), Error> {
        let Some(nat) = self.nat.as_ref() else { return Ok(()) };
        let (link, traffic) = (nat.link.clone(), nat.traffic);
        // Most changes of routes are none of the links that there are.
        let now = self.ways_out(&link, traffic)?;
        if self.nat.as_ref().is_some_and(|nat| nat.followed.as_ref() == Some(&now)) {
            return Ok(());
        }
        // What others have switched on is only seen with it.
        self.take_lock()?;
        let done = self.switch_new_links_on(&link, traffic);
        self.release_lock();
        if let (Ok(()), Some(nat)) = (&done, self.nat.as_mut()) {
            nat.followed = Some(now);
        }
        done
    }

    fn switch_new_links_on(&mut self, link: &Link, traffic: Traffic) -> Result<(), Error> {
        let mut names = Vec::new();
        let mut failed = Ok(());
        for switched in self.links_to_switch(link, traffic)? {
            match self.switch_one_on(&switched) {
                Ok(true) => names.push(switched.link.to_string()),
                Ok(false) => {}
                Err(error) => failed = Err(error),
            }
        }
        names.dedup();
        if !names.is_empty() {
            self.notice(format!("the guest's connections leave by {} too", names.join(" and ")));
        }
        failed
    }

    /// Has a link pass on for guests, and for them only; false where it does already.
    fn switch_one_on(&mut self, switched: &Switched) -> Result<bool, Error> {
        let Some(nat) = self.nat.as_mut() else { return Ok(false) };
        if nat.switched.iter().any(|known| known.is_same(switched)) {
            return Ok(false);
        }
        // The rule is first, as at the start.
        if !nat.barred.iter().any(|known| known.is_same(switched)) {
            let appended = nat.rules.append(table::FORWARD, &[table::for_guests_only(switched)]);
            appended.map_err(|refusal| NatError::Nft { table: format!("{:?}", nat.rules), refusal })?;
            nat.barred.push(switched.clone());
        }
        self.switch_on(switched)?;
        if let Some(nat) = self.nat.as_mut() {
            nat.switched.push(switched.clone());
        }
        Ok(true)
    }
}

/// A table in force, and the host's ports that it takes. Dropped, both go; they go with the process too.
pub(crate) struct Nat {
    rules: OwnTable,
    link: Link,
    traffic: Traffic,
    /// The links that pass packets on, and those that do so for guests only.
    switched: Vec<Switched>,
    barred: Vec<Switched>,
    /// The ways out that were followed last.
    followed: Option<WaysOut>,
    /// Bound, so that no program of the host begins to wait at a port that leads to the guest, nor another wirevm takes it.
    _ports: Vec<OwnedFd>,
}

impl Nat {
    /// Puts the table of `plan` in force.
    ///
    /// # Errors
    /// A port of the host is in use, or the kernel refuses the table.
    fn new(wiring: &mut Wiring, link: &Link, traffic: Traffic, plan: &Plan<'_>) -> Result<Self, Error> {
        let mut ports = Vec::new();
        for (forward, guest) in plan.forwards {
            let every =
                if guest.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            for port in forward.host_ports() {
                let bound = bind(forward.protocol, SocketAddr::new(forward.address.unwrap_or(every), port));
                ports.push(bound.map_err(|source| NatError::PortTaken {
                    forward: *forward,
                    port,
                    source,
                })?);
            }
        }
        let table = plan.table();
        let rules = match OwnTable::make_told(&table, wiring) {
            // What else there is may be had without the count.
            Err(refusal) if plan.connections.is_some() && refusal.errno() == Some(libc::ENOENT) => {
                let made = OwnTable::make_told(&Plan { connections: None, ..*plan }.table(), wiring);
                if made.is_ok() {
                    wiring.notice(guard::unbounded(plan.link, &refusal));
                }
                made
            }
            made => made,
        };
        let rules = rules.map_err(|refusal| NatError::Nft { table: table.name, refusal })?;
        let (link, switched) = (link.clone(), plan.switched.to_vec());
        let barred = switched.clone();
        Ok(Self { rules, link, traffic, switched, barred, followed: None, _ports: ports })
    }

    /// Its rules.
    pub(super) fn rules_mut(&mut self) -> &mut OwnTable {
        &mut self.rules
    }

    /// Tries whether the kernel takes all that a table may have, in a network namespace of its own for the moment.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn try_out() -> Result<(), Error> {
        let hosts =
            ["172.31.0.1/24", "172.31.0.1/30", "fd00::1/64"].map(|host| host.parse().expect("a host's"));
        let guests: Vec<IpAddr> = hosts.iter().filter_map(|host: &HostAddress| host.guest()).collect();
        let forwards = ["8080:80", "udp:192.0.2.1:8000-8001:8000-8001", "[2001:db8::1]:8000-8001:9000-9001"];
        let forwards = forwards.map(|forward| forward.parse().expect("ports"));
        let forwards =
            forwards.map(|forward| (forward, guest_of(&forward, &guests).expect("of both families")));
        // Only their numbers count, and nobody has these.
        let [link, nic] = ["wirevm0", "eth0"].map(|name| LinkId { index: u32::MAX, name: name.to_owned() });
        let switched = [Switched { link: nic, ipv6: false }];
        let plan = Plan {
            link: &link,
            hosts: &hosts,
            forwards: &forwards,
            switched: &switched,
            guarded: true,
            connections: None,
        };
        let table = plan.table();
        let there = || {
            let refused =
                |source| NatError::Nft { table: table.name.clone(), refusal: Refusal::from(source) };
            sys::unshare_network().map_err(refused)?;
            let made = OwnTable::make(&table);
            made.map(drop).map_err(|refusal| NatError::Nft { table: table.name.clone(), refusal }.into())
        };
        thread::scope(|scope| scope.spawn(there).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// A socket on a port of an address of the host, or of every one. It does not listen: a connection that reaches it is refused.
fn bind(protocol: Protocol, to: SocketAddr) -> io::Result<OwnedFd> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if to.is_ipv6() {
        net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    net::bind(&socket, &to)?;
    Ok(socket)
}

#[cfg(test)]
mod tests;
