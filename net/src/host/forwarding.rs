//! Has the kernel pass a guest's packets on between links (kernel `Documentation/networking/ip-sysctl.rst`).
//!
//! IPv4 has a switch for each link, asked where a packet comes in: at the guest's link, and at those where the answers come
//! in. IPv6 has such switches (`force_forwarding`) since Linux 6.17; before, one for the whole host, with which the host
//! stops to listen to the routers on its links, unless it is told to go on (`accept_ra=2`).
//!
//! A switch lets in whoever is behind the link. So the links that are switched on are named to `nat/table.rs` first, which has them
//! pass on for guests only; and **a link that leads to other guests is not switched on**, or they would reach what nobody let
//! them reach.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use super::finding::Finding;
use super::{Change, Link, LinkId, Refusal, Sysctl, Wiring, netlink::RouteLink};
use crate::error::{HostError, NatError};
use crate::{Error, Forward};

const GUEST: &str = "pass the guest's packets on";
const ANSWERS: &str = "pass the answers on, which come in here";
const ROUTERS: &str = "go on listening to this link's routers";
/// What can be done before a container has its `/proc/sys`. A new link has the switches of `default`.
pub(crate) const LOOPBACK_BEFOREHAND: &str =
    "start the container with --sysctl net.ipv4.conf.default.route_localnet=1";
const V6_BEFOREHAND: &str = "start the container with --sysctl net.ipv6.conf.all.forwarding=1";
const LOOPBACK: &str = "let connections from 127.0.0.1 out to the guest";

/// What is to be passed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
    /// Connections of the host itself from 127.0.0.1 too.
    pub(crate) from_loopback: bool,
    /// Ports that only those lead to.
    pub(crate) loopback_alone: Option<Forward>,
}

/// A link that passes packets of a family on for guests, and did for nobody before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Switched {
    pub(crate) link: LinkId,
    pub(crate) ipv6: bool,
}

impl Switched {
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (self.link.index, self.ipv6) == (other.link.index, other.ipv6)
    }
}

/// By which links a guest's connections leave, of each family, and every link that there is: its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaysOut([Vec<u32>; 3]);

impl Wiring {
    /// The ways out for the guest behind `link`, by which two moments are compared.
    pub(crate) fn ways_out(&mut self, link: &Link, traffic: Traffic) -> Result<WaysOut, Error> {
        let route_links = self.netlink.route_links().map_err(asked)?;
        let mut of = |ipv6: bool, wanted: bool| -> Result<Vec<u32>, Error> {
            let outward = if wanted { self.outward(&route_links, link, ipv6)? } else { Vec::new() };
            let mut numbers: Vec<_> = outward.iter().map(|link| link.index).collect();
            numbers.sort_unstable();
            Ok(numbers)
        };
        let (ipv4, ipv6) = (of(false, traffic.ipv4)?, of(true, traffic.ipv6)?);
        let all = self.links()?.iter().map(|link| link.id.index).collect();
        Ok(WaysOut([ipv4, ipv6, all]))
    }

    /// The links that [`set_forwarding`](Self::set_forwarding) will switch on for the guest behind `link`, and those that are on
    /// for other guests only.
    pub(crate) fn links_to_switch(&mut self, link: &Link, traffic: Traffic) -> Result<Vec<Switched>, Error> {
        let route_links = self.netlink.route_links().map_err(asked)?;
        let mut found = Vec::new();
        if traffic.ipv4 {
            let whole = key("ipv4", "all", "forwarding");
            for outward in self.outward(&route_links, link, false)? {
                if self.is_ours_to_switch(&key("ipv4", &outward.name, "forwarding"), &whole)? {
                    found.push(Switched { link: outward, ipv6: false });
                }
            }
        }
        let outward = if traffic.ipv6 { self.outward(&route_links, link, true)? } else { Vec::new() };
        let whole = key("ipv6", "all", "forwarding");
        if outward.is_empty() {
            return Ok(found);
        }
        if value(&key("ipv6", &link.id.name, "force_forwarding"))?.is_some() {
            for outward in outward {
                if self.is_ours_to_switch(&key("ipv6", &outward.name, "force_forwarding"), &whole)? {
                    found.push(Switched { link: outward, ipv6: true });
                }
            }
        } else if is(&whole, "0")? || self.is_shared(&whole)? {
            // Every link is switched on with the whole host. Of the links of the tun driver some are other guests'.
            for other in self.links()? {
                let own = other.id.index == link.id.index || other.loopback;
                if !own && (other.kind != "tun" || outward.contains(&other.id)) {
                    found.push(Switched { link: other.id, ipv6: true });
                }
            }
        }
        Ok(found)
    }

    /// True where a switch that several guests may need is off, or on for guests only: not where somebody has switched on `whole`,
    /// the host's, since.
    fn is_ours_to_switch(&mut self, key: &str, whole: &str) -> Result<bool, Error> {
        Ok(!is(whole, "1")? && (is(key, "0")? || self.is_shared(key)?))
    }

    /// True where some of us take part in the switch.
    fn is_shared(&mut self, key: &str) -> Result<bool, Error> {
        let what = self.record(key)?;
        Ok(self.shared(&what)?.contains(&String::new()))
    }

    /// Has the guest's traffic passed on between `link` and the links that lead elsewhere. `stays`: the link is there after
    /// its backend. True where there is a link that leads elsewhere, or each one that comes will pass it on.
    ///
    /// What other guests need too is switched off when the last one leaves.
    pub(crate) fn set_forwarding(
        &mut self,
        link: &Link,
        stays: bool,
        traffic: Traffic,
    ) -> Result<bool, Error> {
        let route_links = self.netlink.route_links().map_err(asked)?;
        let own = &link.id.name;
        let mut way_out = false;
        if traffic.ipv4 {
            self.set_own(&key("ipv4", own, "forwarding"), stays, GUEST)?;
            if traffic.from_loopback {
                self.set_from_loopback(own, stays, traffic.loopback_alone)?;
            }
            let whole = key("ipv4", "all", "forwarding");
            way_out |= is(&whole, "1")?;
            for outward in self.outward(&route_links, link, false)? {
                way_out = true;
                self.set_shared(&key("ipv4", &outward.name, "forwarding"), &whole)?;
            }
        }
        let outward = if traffic.ipv6 { self.outward(&route_links, link, true)? } else { Vec::new() };
        // Where IPv6 leads nowhere, nothing is changed for it.
        if !outward.is_empty() {
            match self.set_ipv6(own, stays, outward) {
                // With IPv4 the guest has a way out all the same.
                Err(error) if error.is_read_only() && traffic.ipv4 => self.notice(format!(
                    "the guest's IPv6 leads to the host only, for /proc/sys is read-only: {V6_BEFOREHAND}"
                )),
                set => set.map(|()| way_out = true)?,
            }
        }
        Ok(way_out)
    }

    /// Has a link that leads elsewhere pass on for guests, as it is there only now.
    pub(crate) fn switch_on(&mut self, switched: &Switched) -> Result<(), Error> {
        let (family, switch) =
            if switched.ipv6 { ("ipv6", "force_forwarding") } else { ("ipv4", "forwarding") };
        let own = key(family, &switched.link.name, switch);
        // Without a switch for each link, the whole host is switched on.
        match value(&own)? {
            Some(_) => self.set_shared(&own, &key(family, "all", "forwarding")),
            None => Ok(()),
        }
    }

    /// The same for IPv6 alone, by the links `outward`.
    fn set_ipv6(&mut self, own: &str, stays: bool, outward: Vec<LinkId>) -> Result<(), Error> {
        // It also has the host answer the guest as a router does, RFC 4861 §7.2.5.
        self.set_own(&key("ipv6", own, "forwarding"), stays, GUEST)?;
        let whole = key("ipv6", "all", "forwarding");
        let force = key("ipv6", own, "force_forwarding");
        if value(&force)?.is_none() {
            self.set_whole_ipv6(&whole, own)?;
        } else if !is(&whole, "1")? {
            self.set_own(&force, stays, GUEST)?;
            for outward in outward {
                self.set_shared(&key("ipv6", &outward.name, "force_forwarding"), &whole)?;
            }
        }
        Ok(())
    }

    /// Has the host's own connections from 127.0.0.1 leave by the guest's link. The host's switch is enough. Where `/proc/sys` is
    /// read-only, as in many containers, they do not, which is a notice where all else passes. `alone`: ports that nobody else reaches.
    fn set_from_loopback(&mut self, own: &str, stays: bool, alone: Option<Forward>) -> Result<(), Error> {
        if is(&key("ipv4", "all", "route_localnet"), "1")? {
            return Ok(());
        }
        match self.set_own(&key("ipv4", own, "route_localnet"), stays, LOOPBACK) {
            Err(error) if error.is_read_only() => {
                if let Some(forward) = alone {
                    return Err(NatError::Loopback { forward }.into());
                }
                self.notice(format!(
                    "forward= does not lead from 127.0.0.1 into the guest, but from every other address of the host, for /proc/sys is \
                     read-only: {LOOPBACK_BEFOREHAND}"
                ));
                Ok(())
            }
            set => set,
        }
    }

    /// Sets a switch of the guest's own link.
    fn set_own(&mut self, key: &str, stays: bool, why: &'static str) -> Result<(), Error> {
        match value(key)? {
            Some(before) if before != "1" => {
                let undo = stays.then(|| restore(key, "1", &before));
                self.make(set(key, "1"), undo, why)
            }
            _ => Ok(()),
        }
    }

    /// Sets a switch of another link, which several guests may need. Where somebody has switched on `whole`, the host's,
    /// since, it stays: it is no longer ours alone.
    fn set_shared(&mut self, key: &str, whole: &str) -> Result<(), Error> {
        let what = self.record(key)?;
        if !is(key, "0")? {
            // By somebody, or by another one of us that is still there.
            return self.join(&what).map(drop);
        }
        let undo = Change::Sysctl(Sysctl::new(key, "0").only_where(key, "1").only_where(whole, "0"));
        let made = self.share(&what, |wiring| wiring.make(set(key, "1"), Some(undo), ANSWERS))?;
        // Somebody switched off what another one of us had switched on; that one's undo is ours too.
        if made { Ok(()) } else { self.make(set(key, "1"), None, ANSWERS) }
    }

    /// The name of the record of a switch that several guests share: the link's own name may change while we have it.
    fn record(&mut self, key: &str) -> Result<String, Error> {
        let what = key.replace('/', "-");
        let Some(name) = super::sysctl::link_of(key) else { return Ok(what) };
        let link = self.netlink.link(name).map_err(asked)?;
        Ok(link.map_or(what.clone(), |link| {
            what.replacen(&format!("-conf-{name}-"), &format!("-conf-{}-", link.id.index), 1)
        }))
    }

    /// Has the host pass on IPv6 as a whole, where the kernel has no other way.
    fn set_whole_ipv6(&mut self, whole: &str, own: &str) -> Result<(), Error> {
        let what = self.record(whole)?;
        if !is(whole, "0")? {
            return self.join(&what).map(drop);
        }
        let links = links().map_err(|error| asked(error.into()))?;
        let made = self.share(&what, |wiring| {
            for name in links.iter().filter(|&name| name != own && name != "default") {
                let accepts = key("ipv6", name, "accept_ra");
                if is(&accepts, "1")? {
                    wiring.make(set(&accepts, "2"), Some(restore(&accepts, "2", "1")), ROUTERS)?;
                }
            }
            // The whole host's switch sets each link's, and so does its undo.
            for name in &links {
                let forwards = key("ipv6", name, "forwarding");
                if is(&forwards, "1")? {
                    wiring.keep(restore(&forwards, "0", "1"))?;
                }
            }
            wiring.make(set(whole, "1"), Some(restore(whole, "1", "0")), GUEST)
        })?;
        if made { Ok(()) } else { self.make(set(whole, "1"), None, GUEST) }
    }

    /// The links that the guest's traffic leaves by: those that lead to a router, and those of a network of their own,
    /// hardware for example; not a bridge or a tap with guests behind it and no router.
    fn outward(&mut self, route_links: &[RouteLink], own: &Link, ipv6: bool) -> Result<Vec<LinkId>, Error> {
        // A host may have as many routes as the internet.
        let all = self.links()?;
        let mut seen = HashSet::new();
        let mut links: Vec<LinkId> = Vec::new();
        for route in route_links.iter().filter(|route| route.ipv6 == ipv6 && route.link != own.id.index) {
            if !seen.insert((route.link, route.to_router)) {
                continue;
            }
            let Some(link) = all.iter().find(|link| link.id.index == route.link).cloned() else { continue };
            let inward = ["tun", "bridge", "dummy"].contains(&link.kind.as_str());
            if (route.to_router || !inward) && !link.loopback && !links.contains(&link.id) {
                links.push(link.id);
            }
        }
        Ok(links)
    }
}

fn set(key: &str, to: &str) -> Change {
    Change::Sysctl(Sysctl::new(key, to))
}

/// The undo of a switch that was set from `before` to `to`.
fn restore(key: &str, to: &str, before: &str) -> Change {
    Change::Sysctl(Sysctl::new(key, before).only_where(key, to))
}

fn asked(refusal: Refusal) -> HostError {
    HostError::Ask { what: "the host's routes and forwarding".to_owned(), refusal }
}

fn is(key: &str, wanted: &str) -> Result<bool, Error> {
    Ok(value(key)?.as_deref() == Some(wanted))
}

fn value(key: &str) -> Result<Option<String>, Error> {
    Ok(read_key(key).map_err(asked)?)
}

fn key(family: &str, link: &str, switch: &str) -> String {
    format!("net/{family}/conf/{link}/{switch}")
}

/// Whether the host passes packets on of each family, and whether `nat` could have it do so: for `wirevm doctor`.
pub(crate) fn findings() -> [Finding; 2] {
    [("ipv4", "IPv4 forwarding"), ("ipv6", "IPv6 forwarding")].map(|(family, what)| finding(family, what))
}

fn finding(family: &str, what: &str) -> Finding {
    const REMOUNT: &str = "mount -o remount,rw /proc/sys";
    const CANNOT: &str = "is off, and /proc/sys is read-only: nat cannot switch it on";
    let whole = key(family, "all", "forwarding");
    let (good, state, remedy) = match read_key(&whole) {
        Ok(None) if !Path::new("/proc/sys/net").exists() => {
            (false, "cannot be told: there is no /proc/sys/net", Some("mount -t proc proc /proc".to_owned()))
        }
        Ok(None) => (true, "is not in this kernel", None),
        Err(_) => (true, "cannot be read", None),
        Ok(Some(value)) => match (value == "1", Sysctl::try_to_open(&whole).err()) {
            (true, Some(libc::EROFS)) if family == "ipv4" && !new_links_route_loopback() => (
                true,
                "is on for the whole host; /proc/sys is read-only, so forward= will not lead from 127.0.0.1",
                Some(LOOPBACK_BEFOREHAND.to_owned()),
            ),
            (true, _) => (true, "is on for the whole host", None),
            // As in many containers.
            (false, Some(libc::EROFS)) => {
                let before = whole.replace('/', ".");
                let remedy = format!("start the container with --sysctl {before}=1; or {REMOUNT}");
                (false, CANNOT, Some(remedy))
            }
            (false, Some(_)) => (true, "is off; to switch it on, as nat does, takes rights", None),
            (false, None) => {
                (true, "is off; nat switches it on for as long and for the links that it needs it for", None)
            }
        },
    };
    Finding { what: what.to_owned(), good, state: state.to_owned(), remedy }
}

/// True where a new link lets connections from 127.0.0.1 out.
fn new_links_route_loopback() -> bool {
    ["all", "default"].iter().any(|link| {
        let value = read_key(&key("ipv4", link, "route_localnet"));
        value.is_ok_and(|value| value.as_deref() == Some("1"))
    })
}

fn read_key(key: &str) -> Result<Option<String>, Refusal> {
    match Sysctl::read(key) {
        Ok(value) => Ok(Some(value)),
        Err(refusal) if refusal.errno() == Some(libc::ENOENT) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Every link with IPv6 switches, and the one for links to come.
fn links() -> io::Result<Vec<String>> {
    let entries = fs::read_dir("/proc/sys/net/ipv6/conf")?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name != "all").collect();
    names.sort();
    Ok(names)
}
