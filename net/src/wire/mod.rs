//! The host half of a NIC: its links and what was changed for them, alive as long as the NIC.

mod bridge;
pub(crate) mod cable;
pub(crate) mod cable_spec;
pub(crate) mod counters;
mod fd;
pub(crate) mod look;
pub(crate) mod macvtap;
mod made;
pub(crate) mod one_address;
mod rate;
mod routed;
pub(crate) mod tap;
mod tun;
pub(crate) mod tuntap;
pub(crate) mod vhost;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::answer::listener::Listener;
use crate::answer::relay::Relay;
use crate::config::guests;
use crate::error::HostError;
use crate::host::rate::HostRate;
use crate::host::wire_link::{Role, WireLink};
use crate::host::{self, Host, Wiring, announce};
use crate::wire::cable::{Ask, Cable, Plugged};
use crate::wire::look::{Condition, Refused};
use crate::wire::made::{Made, Parts};
use crate::{
    Backend, Error, HEADER_LEN, LinkName, Mac, NetConfig, NetnsName, RxFilter, Vhost, VhostMode, WireConfig,
};

/// The host half of a NIC. Dropped, it changes the host back; what the kernel lets go of only with the last descriptor of a
/// link, when every descriptor of its [`cable`](Self::cable) is closed as well.
#[derive(Debug)]
pub struct Wire {
    config: NetConfig,
    // First: a link that goes with its descriptor needs no undo then.
    ends: Ends,
    vhosts: Vec<Vhost>,
    parts: Parts,
    notices: Vec<String>,
    condition: Condition,
    /// A link that could not be joined.
    refused: Option<Refused>,
    /// What was said when it could not follow the host's routes.
    unfollowed: Option<String>,
    /// When the host's routes are to be looked at, and were.
    routes_at: Option<Instant>,
    routes_seen: Option<Instant>,
    /// What holds the guest to a rate on the host's link. Before the wiring, which deletes the link that the rules name.
    rate: Option<HostRate>,
    wiring: Wiring,
}

/// The descriptors of the host's link, the first of which leads; with what is to be given back when they go.
pub(crate) type Ends = Arc<Mutex<Vec<Box<dyn Backend>>>>;

/// One place that a frame passes on its way from the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// What it is, in the words of `ip -d link`, or `guest`, or `routing`.
    pub what: String,
    /// The link's name, where it is one.
    pub name: Option<String>,
}

impl Wire {
    /// Makes the wire that `config` describes, and tells the `host` each change right after it is made.
    ///
    /// # Errors
    /// What was tried, on what, and why it failed, with a [`remedy`](Error::remedy). What was changed until then is changed
    /// back.
    pub fn open(config: &NetConfig, host: &Host) -> Result<Self, Error> {
        let mac = match config.mac {
            Some(mac) => mac,
            None => Mac::random().map_err(|source| HostError::RandomMac { source })?,
        };
        let mut of_vhost = Vec::new();
        let vhosts = vhost::open(config, &mut of_vhost)?;
        let vhost = if vhosts.is_empty() { VhostMode::Off } else { config.vhost };
        let config = NetConfig { vhost, ..config.clone() };
        let made = match &config.netns {
            None => open_here(&config, mac, host),
            Some(name) => open_in(name, &config, mac, host),
        };
        let Made { ends, mut parts, mut wiring } = made?;
        let mut notices = wiring.take_notices();
        notices.extend(of_vhost);
        // Where nobody would hear the guest's questions, our own threads carry the frames.
        let silent = parts.spec.lease.is_none() && parts.spec.router.is_none();
        let can = parts.spec.gateway.is_none() && (silent || parts.listener.is_some());
        let vhosts = if can { vhosts } else { Vec::new() };
        (parts.spec.queues, parts.spec.pairs) = (ends.len(), ends.len());
        // The carrier of an inherited descriptor's link is its owner's.
        parts.spec.has_carrier =
            matches!(config.wire, WireConfig::Tap(_) | WireConfig::Bridge(_) | WireConfig::Tun(_));
        parts.spec.coalesce = config.coalesce;
        parts.spec.vhosts = vhosts.len();
        parts.spec.listens = parts.listener.is_some();
        parts.spec.forwarding = parts.forwarding.is_some();
        let ends = Arc::new(Mutex::new(ends));
        let mut this = Self {
            config,
            ends,
            vhosts,
            parts,
            notices,
            condition: Condition::Up,
            refused: None,
            unfollowed: None,
            routes_at: None,
            routes_seen: None,
            rate: None,
            wiring,
        };
        this.begin_rate()?;
        Ok(this)
    }

    fn ends(&self) -> MutexGuard<'_, Vec<Box<dyn Backend>>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it was made of; `vhost` is who carries the frames at last.
    pub fn config(&self) -> &NetConfig {
        &self.config
    }

    /// What makes the same wire again: its configuration, with the name, the addresses and the MAC that were chosen for it.
    pub fn again(&self) -> NetConfig {
        // As the links are called now.
        let named = |role: Role| self.name_of(role).and_then(|name| name.parse::<LinkName>().ok());
        let mut config = NetConfig { mac: Some(self.mac()), ..self.config.clone() };
        match &mut config.wire {
            WireConfig::Tap(tap) => (tap.name, tap.hosts) = (named(Role::Guest), self.parts.hosts.clone()),
            WireConfig::Tun(tun) => (tun.name, tun.hosts) = (named(Role::Guest), self.parts.hosts.clone()),
            WireConfig::Bridge(bridge) => {
                if let Some(name) = named(Role::Bridge) {
                    bridge.name = name;
                }
                bridge.uplink = bridge.uplink.take().map(|uplink| named(Role::Uplink).unwrap_or(uplink));
            }
            WireConfig::Macvtap(macvtap) => {
                let on = if self.parts.stays { Role::Guest } else { Role::Parent };
                if let Some(name) = named(on) {
                    macvtap.parent = name;
                }
            }
            WireConfig::Fd(_) => {}
        }
        config
    }

    /// The guest's Ethernet address, as it was made.
    pub fn mac(&self) -> Mac {
        self.parts.spec.mac
    }

    /// The MTU for the guest, in bytes.
    pub fn mtu(&self) -> u16 {
        self.parts.spec.mtu
    }

    /// The name of the host's link.
    pub fn link(&self) -> &str {
        &self.parts.spec.link
    }

    /// Every link of the host that it uses, the guest's end first.
    pub fn links(&self) -> &[WireLink] {
        &self.parts.links
    }

    /// What the user should know of it, though nothing is wrong: each a sentence.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Whether the kernel carries its frames (vhost-net).
    pub fn carried(&self) -> bool {
        !self.vhosts.is_empty()
    }

    /// Frames that tell the neighbours where the guest is, each behind its header, for a guest whose driver does not do so: where its
    /// Ethernet address is, and the addresses that it was told. Others that it has need none: its Ethernet address stays as it is for
    /// good, so what neighbours know of it stays true, and switches learn by the first frame where it is.
    pub fn announcement(&self) -> Vec<Vec<u8>> {
        // There is no Ethernet on a tun, and no neighbour but the host.
        if self.parts.spec.gateway.is_some() {
            return Vec::new();
        }
        let told = self.parts.spec.lease.as_ref().map(|lease| IpAddr::V4(lease.guest()));
        announce::of_guest(self.mac().octets(), told)
            .into_iter()
            .map(|frame| [&[0; HEADER_LEN][..], &frame].concat())
            .collect()
    }

    /// The guest's addresses, as far as they are the wire's to say: those of its configuration, and of IPv4 the one that it is told by
    /// DHCP. None where it gets them elsewhere, or makes them itself.
    pub fn guest_addresses(&self) -> Vec<IpAddr> {
        let (given, dhcp) = match &self.config.wire {
            WireConfig::Tap(tap) => (&tap.guests, tap.dhcp),
            WireConfig::Tun(tun) => (&tun.guests, tun.dhcp),
            WireConfig::Bridge(_) | WireConfig::Macvtap(_) | WireConfig::Fd(_) => return Vec::new(),
        };
        self.parts.hosts.iter().filter_map(|host| guests::only(given, *host, dhcp)).collect()
    }

    /// How many queue pairs it has.
    pub fn queues(&self) -> usize {
        self.parts.spec.queues
    }

    /// The way of a frame from the guest, for a picture.
    pub fn hops(&self) -> Vec<Hop> {
        let hop =
            |what: &str, name: Option<&str>| Hop { what: what.to_owned(), name: name.map(str::to_owned) };
        let mut hops = vec![hop("guest", None)];
        for link in &self.parts.links {
            let what = match link.role {
                Role::Guest => match &self.config.wire {
                    WireConfig::Tun(_) => "tun",
                    WireConfig::Macvtap(_) => "macvtap",
                    _ => "tap",
                },
                Role::Bridge => "bridge",
                Role::Uplink | Role::Parent => "nic",
                // Beside the way, not on it.
                Role::Host => continue,
            };
            hops.push(hop(what, Some(&link.name)));
        }
        match &self.config.wire {
            WireConfig::Tap(tap) if tap.nat => hops.extend([hop("routing", None), hop("nat", None)]),
            WireConfig::Tap(_) | WireConfig::Tun(_) => hops.push(hop("routing", None)),
            _ => {}
        }
        hops
    }

    /// Does what the guest asks of the host's link: another address, groups, every frame. A tap or tun brings all frames
    /// unasked.
    ///
    /// # Errors
    /// `EPERM` where the spec does not trust the guest so far (`trust=off`); else as the kernel refuses, and all is as before.
    pub fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        set_filter(&self.ends, self.policy(), filter)
    }

    fn policy(&self) -> Policy {
        Policy { trust: self.config.trust, own: self.mac() }
    }

    /// Where it is the guest's DNS server: readable when there is something for [`hand_dns_on`](Self::hand_dns_on).
    pub fn dns(&self) -> Option<BorrowedFd<'_>> {
        self.parts.relay.as_ref().map(Relay::fd)
    }

    /// Hands the guest's queries on to the host's resolver, and the answers back: some of them at once.
    pub fn hand_dns_on(&mut self) {
        if let Some(relay) = &mut self.parts.relay {
            relay.hand_on();
        }
    }

    /// Its descriptors, duplicated, and what they are.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn cable(&self) -> io::Result<Cable> {
        let ends = self.ends();
        let frames = ends.iter().map(|end| end.fd());
        let vhosts = self.vhosts.iter().map(AsFd::as_fd);
        let listener = self.parts.listener.iter().map(Listener::fd);
        let forwarding = self.parts.forwarding.iter().map(AsFd::as_fd);
        let all = frames.chain(vhosts).chain(listener).chain(forwarding);
        let descriptors = all.map(|fd: BorrowedFd<'_>| fd.try_clone_to_owned()).collect::<io::Result<_>>()?;
        Ok(Cable { spec: self.parts.spec.clone(), descriptors })
    }

    /// Makes the backends in this process.
    ///
    /// # Errors
    /// There are no descriptors left.
    fn plug(&self) -> io::Result<Plugged> {
        let ends = Arc::clone(&self.ends);
        let policy = self.policy();
        let ask: Ask = Box::new(move |filter| set_filter(&ends, policy, filter));
        self.cable()?.plug(ask)
    }
}

/// What a guest may ask of the host's link.
#[derive(Clone, Copy, Debug)]
struct Policy {
    /// Whatever it likes; else its own frames and those of the groups that it names.
    trust: bool,
    /// The address that the wire was made with.
    own: Mac,
}

impl Policy {
    /// # Errors
    /// `EPERM` for what it may not.
    fn check(self, filter: &RxFilter) -> io::Result<()> {
        let is_its_own = filter.mac == self.own && !filter.promiscuous;
        if self.trust || is_its_own { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
    }
}

fn set_filter(ends: &Ends, policy: Policy, filter: &RxFilter) -> io::Result<()> {
    policy.check(filter)?;
    let mut ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
    ends.first_mut().map_or(Ok(()), |end| end.set_filter(filter))
}

/// A wire with both of its halves in this process.
#[derive(Debug)]
pub struct Opened {
    /// One for each queue pair.
    pub backends: Vec<Box<dyn Backend>>,
    /// One for each as well, where the kernel is to carry the frames; else none.
    pub vhosts: Vec<Vhost>,
    /// The guest's Ethernet address.
    pub mac: Mac,
    /// The MTU for the guest, in bytes.
    pub mtu: u16,
    /// The name of the host's link.
    pub link: String,
    /// Frames of the guest for which this kind of wire has no way, counted on: on a tun, what is not IP.
    pub ignored: Arc<AtomicU64>,
    /// What the user should know of this wire, though nothing is wrong: each a sentence.
    pub notices: Vec<String>,
    /// What was changed on the host; dropped, it is changed back. It and the backends may go in any order.
    pub wire: Wire,
}

/// Makes the wire that `config` describes, for a NIC of this process.
///
/// # Errors
/// As [`Wire::open`].
pub fn open(config: &NetConfig, host: &Host) -> Result<Opened, Error> {
    let wire = Wire::open(config, host)?;
    let plugged = wire.plug().map_err(|source| HostError::Reserve { source })?;
    let Plugged { backends, vhosts, mac, mtu, link, ignored } = plugged;
    let notices = wire.notices().to_vec();
    Ok(Opened { backends, vhosts, mac, mtu, link, ignored, notices, wire })
}

/// Makes the wire in the network namespace `name`, on a thread in there.
fn open_in(name: &NetnsName, config: &NetConfig, mac: Mac, host: &Host) -> Result<Made, Error> {
    let mut outer = Wiring::begin(host, None)?;
    let namespace = host::join_namespace(&mut outer, name)?;
    outer.release_lock();
    let made = namespace.run(|| open_here(config, mac, host));
    let mut made = made.map_err(|source| HostError::Namespace { name: Some(name.to_string()), source })??;
    made.wiring.within(outer);
    Ok(made)
}

fn open_here(config: &NetConfig, mac: Mac, host: &Host) -> Result<Made, Error> {
    match &config.wire {
        WireConfig::Tap(tap) => tap::open(tap, mac, config, host),
        WireConfig::Bridge(bridge) => bridge::open(bridge, mac, config, host),
        WireConfig::Tun(tun) => tun::open(tun, mac, config, host),
        WireConfig::Macvtap(macvtap) => macvtap::make::open(macvtap, config, host),
        WireConfig::Fd(inherited) => fd::open(inherited, config, host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_is_not_trusted_has_its_own_frames_and_groups() {
        let [own, other] = [1, 2].map(|last| Mac::new([2, 0, 0, 0, 0, last]).unwrap());
        let groups = RxFilter { all_multicast: true, ..RxFilter::new(own) };
        let greedy = [RxFilter::new(other), RxFilter { promiscuous: true, ..RxFilter::new(own) }];
        for trust in [true, false] {
            let policy = Policy { trust, own };
            policy.check(&groups).unwrap();
            for filter in &greedy {
                let refused = policy.check(filter).err().and_then(|error| error.raw_os_error());
                assert_eq!(refused, (!trust).then_some(libc::EPERM), "{filter:?}");
            }
        }
    }
}
