//! The tap: its frames are the guest's, and go to the host's link and come from it as they are.

use std::io;
use std::os::fd::BorrowedFd;

use crate::answer::listener::Listener;
use crate::answer::relay;
use crate::config::guests;
use crate::error::HostError;
use crate::frames::queue::Queue;
use crate::host::guard::Own;
use crate::host::wire_link::Role;
use crate::host::{Host, Wiring};
use crate::wire::made::{self, Made, Parts};
use crate::wire::routed::{self, Guest};
use crate::wire::tuntap::{self, TunDevice};
use crate::{Backend, Error, HostAddress, LinkName, MTU, Mac, NetConfig, Offloads, TapConfig, TunMode};

/// Makes the wire of a tap for the NIC `mac`.
pub(crate) fn open(config: &TapConfig, mac: Mac, all: &NetConfig, host: &Host) -> Result<Made, Error> {
    let (mtu, queues) = (all.mtu, all.queues.number());
    let wiring = Wiring::begin(host, all.netns.as_ref())?;
    let (tap, others) = Tap::open_queues(config.name.as_ref(), queues, &wiring)?;
    // Here, so that a failure drops the wiring before the tap: an address goes before its link does.
    let mut wiring = wiring;
    let name = tap.name().to_owned();
    let stays = tap.is_persistent();
    if !stays {
        let command = tuntap::line(TunMode::Tap, &name, queues);
        wiring.tell(command, "the guest's end of the wire; it goes when we go");
    }
    let link = wiring.netlink().link(&name);
    let link = link.map_err(|refusal| HostError::Ask { what: format!("the link {name}"), refusal })?;
    let link = link.ok_or_else(|| HostError::LinkGone { name: name.clone() })?;
    wiring.check_mac(mac, &link.id, &[])?;
    let guest_mtu = mtu.unwrap_or(u16::try_from(link.mtu).unwrap_or(*MTU.end()));
    // Somebody who made the tap has addressed it too, if he wanted to.
    let hosts = match &config.hosts[..] {
        [] if config.dhcp && !stays => routed::pick(&mut wiring, &link, guest_mtu.into())?,
        hosts => hosts.to_vec(),
    };
    let all_hosts = hosts.clone();
    if stays {
        wiring.warn_of_routers(&link.id);
    } else {
        wiring.refuse_routers(&link.id);
    }
    wiring.check_guests(&config.guests)?;
    wiring.warn_of_other_routes(&link.id, &hosts)?;
    if all.guard {
        let only = |host: &HostAddress| guests::only(&config.guests, *host, config.dhcp);
        let owns: Vec<_> = hosts.iter().map(|host| Own::new(*host, only(host))).collect();
        wiring.guard(&link, stays, &owns, config.nat)?;
    }
    wiring.set_link(&link, stays, mtu, &hosts)?;
    if config.nat {
        wiring.set_nat(&link, stays, &hosts, mac, config, all.guard)?;
    }

    let hosts = if config.dhcp { &hosts[..] } else { &[] };
    let link_local = routed::link_local(&mut wiring, &link, hosts)?;
    let end = routed::End { link: &link.id, mac: link.mac.unwrap_or_default(), link_local };
    let guest = Guest {
        mac,
        mtu: guest_mtu,
        resolves: config.nat,
        dns: &config.dns,
        given: &config.guests,
        has_dns_port: config.forwards.iter().any(|forward| {
            let is_here = |address| hosts.iter().any(|host| host.address() == address);
            forward.address.is_none_or(is_here) && forward.host_ports().contains(&relay::PORT)
        }),
    };
    let guest_config = routed::guest_config(&mut wiring, end, hosts, guest);
    let answers = guest_config.lease.is_some() || guest_config.router.is_some();
    let listener = if answers { Listener::beside(&mut wiring, &link, all.vhost)? } else { None };
    wiring.release_lock();
    let mut parts = Parts::new(&name, mac, guest_mtu, tap.offloads());
    (parts.spec.lease, parts.spec.router) = (guest_config.lease, guest_config.router);
    (parts.listener, parts.forwarding, parts.relay) = (listener, guest_config.forwarding, guest_config.relay);
    parts.links.push(wiring.wire_link(&link.id, Role::Guest));
    (parts.hosts, parts.stays) = (all_hosts, stays);
    Ok(Made { ends: made::ends(tap, others), parts, wiring })
}

/// A tap, by its first queue. Dropped, it goes, unless it is persistent: then it is as it was before.
#[derive(Debug)]
pub struct Tap {
    device: TunDevice,
}

impl Tap {
    /// Makes a tap and lets the kernel name it, or attaches to the one called `name`, or makes it where it is absent.
    ///
    /// Needs `CAP_NET_ADMIN` in the network namespace of the thread, or a persistent tap that the user owns.
    ///
    /// # Errors
    /// Each says what we tried, and has a [`remedy`](Error::remedy): the device is absent or not allowed, the right is
    /// missing, another process holds the tap, it has several queues, or the link is no tap.
    pub fn open(name: Option<&LinkName>) -> Result<Self, Error> {
        Self::open_queues(name, 1, &Wiring::begin(&Host::new(), None)?).map(|(tap, _)| tap)
    }

    /// The same with `queues` queues, of which those after the first come beside.
    pub(crate) fn open_queues(
        name: Option<&LinkName>,
        queues: u16,
        wiring: &Wiring,
    ) -> Result<(Self, Vec<Queue>), Error> {
        let (device, others) = TunDevice::open(TunMode::Tap, name, queues, wiring)?;
        Ok((Self { device }, others))
    }

    /// The link's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// True where the link stays when this is dropped: somebody made it persistent.
    pub fn is_persistent(&self) -> bool {
        self.device.is_persistent()
    }
}

impl Backend for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.device.fd()
    }

    fn offloads(&self) -> Offloads {
        self.device.offloads()
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.device.set_offloads(accepted)
    }

    fn vhost_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }
}
