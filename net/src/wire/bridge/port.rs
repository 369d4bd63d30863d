//! The guest's end as a port of a bridge: how it is set, which VLAN it is in, and what the guest may send.

use super::vlans;
use crate::error::ChangeKind;
use crate::host::netlink::Placed;
use crate::host::{Change, Link, LinkId, Netlink, Wiring};
use crate::{BridgeConfig, Error, MTU, Mac, NetConfig};

/// What says how a port is to be.
#[derive(Clone, Copy)]
pub(super) struct Port<'a> {
    pub(super) config: &'a BridgeConfig,
    pub(super) all: &'a NetConfig,
    /// The guest's address.
    pub(super) mac: Mac,
}

impl Port<'_> {
    /// Makes `link`, the guest's end, which is down, a port of `bridge`.
    ///
    /// # Errors
    /// The kernel refuses a step.
    pub(super) fn plug(self, wiring: &mut Wiring, bridge: &Link, link: &Link) -> Result<(), Error> {
        let port = &link.id;
        self.set_mtu(wiring, bridge, link)?;
        // A bridge without an address of its own has the least of its ports': not this one, which comes and goes.
        let [_, rest @ ..] = self.mac.octets();
        let [a, b, c, d, e] = rest;
        let high = Change::Mac(port.clone(), [0xfe, a, b, c, d, e]);
        wiring.make(high, None, "the bridge never takes a high one for its own")?;
        let key = format!("net/ipv6/conf/{}/disable_ipv6", port.name);
        let set = wiring.set_value(key, "1", "the host is on the bridge, not on this port");
        if let Err(error) = set {
            wiring
                .notice(format!("the host is on {port} as on the bridge, over IPv6: {}", error.with_cause()));
        }
        self.join(wiring, bridge, port)?;
        self.guard(wiring, port, &bridge.id)?;
        wiring.make(Change::Up(port.clone()), None, "a link that is down drops every frame")
    }

    /// Makes `link`, which was a port of another bridge and is up, a port of `bridge`, as it was of that one.
    ///
    /// # Errors
    /// The kernel refuses a step.
    pub(super) fn plug_again(self, wiring: &mut Wiring, bridge: &Link, link: &Link) -> Result<(), Error> {
        self.set_mtu(wiring, bridge, link)?;
        // Nothing of the guest's arrives there unguarded, or in another VLAN. Where a step is refused, the link stays down.
        let why = "until it is as it was on the other bridge";
        wiring.make(Change::Down(link.id.clone()), None, why)?;
        wiring.lift_guard();
        self.guard(wiring, &link.id, &bridge.id)?;
        self.join(wiring, bridge, &link.id)?;
        wiring.make(Change::Up(link.id.clone()), None, "a link that is down drops every frame")
    }

    /// A port with a smaller MTU would make that of the whole bridge smaller, and one that is the first says what it is.
    fn set_mtu(self, wiring: &mut Wiring, bridge: &Link, link: &Link) -> Result<(), Error> {
        let has_ports = wiring.links()?.iter().any(|link| link.master == Some(bridge.id.index));
        let wanted = if has_ports { bridge.mtu } else { self.all.mtu.map_or(bridge.mtu, u32::from) };
        let wanted = wanted.min((*MTU.end()).into());
        if wanted != link.mtu {
            let why = "as the bridge, which would take the least of its ports";
            wiring.make(Change::Mtu(link.id.clone(), wanted), None, why)?;
        }
        Ok(())
    }

    fn join(self, wiring: &mut Wiring, bridge: &Link, port: &LinkId) -> Result<(), Error> {
        let Self { config, all, mac } = self;
        let why = "what comes in here goes out at the other ports";
        wiring.make(Change::Join(port.clone(), bridge.id.clone()), None, why)?;
        if let Some(vlans) = &config.vlans {
            vlans::put_into(wiring, bridge, port, vlans)?;
        }
        if all.guard || config.isolated {
            let (learning, isolated) = (" learning off guard on", " isolated on");
            let (learning, isolated) =
                (if all.guard { learning } else { "" }, if config.isolated { isolated } else { "" });
            let command = format!("bridge link set dev {port}{learning}{isolated}");
            let set = |netlink: &mut Netlink| netlink.set_port(port, all.guard, config.isolated);
            let why = "whose frames come here is told, not learned; isolated ports do not reach each other";
            wiring.make_by(set, ChangeKind::Other, command, None, why)?;
        }
        let placed = Placed { mac: mac.octets(), sticky: all.guard };
        wiring.make_by(
            |netlink| netlink.place_station(port, &placed),
            ChangeKind::Other,
            placed.command(port),
            None,
            "the bridge knows where the guest is, before it speaks",
        )
    }

    /// Guards the bridge from what the guest at `port` sends, if it is asked for and the kernel can; says what can happen where not.
    ///
    /// # Errors
    /// It must guard, and the kernel cannot.
    fn guard(self, wiring: &mut Wiring, port: &LinkId, bridge: &LinkId) -> Result<(), Error> {
        let Self { config, all, mac } = self;
        let vlans = config.vlans.as_ref();
        let made = if all.guard { wiring.guard_port(port, bridge, mac, vlans) } else { Ok(()) };
        match &made {
            Err(_) if all.must_guard => return made,
            Err(error) => {
                wiring.notice(format!("{}: it may send whatever guard=on forbids", error.with_cause()));
            }
            Ok(()) => {}
        }
        if !all.guard || made.is_err() {
            wiring.warn_of_routers(bridge);
        }
        Ok(())
    }
}
