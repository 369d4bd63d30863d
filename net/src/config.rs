//! The grammar of `--net`: `KIND[=WHERE][,key=value]...`, where WHERE is the host's interface.
//!
//! What parses makes sense: parsing refuses a spec that does not, naming the key. Each kind has its keys in a file of its
//! own; here are those that all have.

mod affinity;
mod bridge;
mod fd;
mod keys;
mod macvtap;
mod poll;
mod queues;
mod tap;
#[cfg(test)]
mod tests;
mod tun;
mod vhost;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

pub use self::bridge::BridgeConfig;
pub use self::fd::FdConfig;
pub use self::macvtap::{MacvtapConfig, MacvtapMode};
pub use self::queues::Queues;
pub use self::tap::{Forward, Protocol, TapConfig};
pub use self::tun::TunConfig;
pub use self::vhost::VhostMode;
use crate::error::SpecError;

use self::keys::{Keys, mtu};
use crate::{Error, Mac, NetnsName, Router};

/// MTUs that a tap can have: IPv4's least (RFC 791) to the most of the kernel's tun driver, 65535 less an Ethernet header.
pub const MTU: RangeInclusive<u16> = 68..=65521;

/// One NIC, as `--net` says it:
///
/// ```text
/// tap[=NAME]            a tap: NAME where it exists (or made with that name), else a new one with a name of the kernel's
///   host=ADDR/LEN       the host's address on it, one of IPv4 and one of IPv6 (a tap that we make gets a free subnet)
///   dhcp=on|off         tell the guest its address, by DHCP and router advertisement (on)
///   nat[=on|off]        what the guest sends further goes out under the host's address
///   forward=[tcp:|udp:]HOSTPORT:GUESTPORT   a port of the host that reaches into the guest, repeatable; needs nat
/// bridge=NAME           a tap joined to the bridge NAME, which is made where it is absent
///   uplink=LINK         this NIC of the host joins too; its addresses and routes move to the bridge
///   vlan=ID             the guest's VLAN, 1 to 4094
/// macvtap=LINK          a macvtap on the NIC LINK, or LINK itself where it is one
///   mode=bridge|vepa|private|passthru|source        (bridge)
///   source=MAC          in mode=source: who may send to the guest, repeatable
///   host=ADDR/LEN       an address for the host on a macvlan of the same NIC, so that it reaches the guest
/// tun[=NAME]            a tun: IP packets on the host, Ethernet for the guest
///   host=ADDR/LEN       as for a tap
///   guest=ADDR          the guest's address, one for each host= (the next one of the subnet)
///   dhcp=on|off         as for a tap
/// fd=N[:N]...           descriptors of a tap or macvtap, open since before we started: one for each queue pair
/// all:
///   mac=ADDRESS         the guest's Ethernet address (random)
///   mtu=BYTES           the MTU of the link and the guest, 68 to 65521 (the link's own)
///   queues=N|auto       how many queue pairs, auto: as many as the guest has vCPUs (1; not for fd)
///   affinity=CPU[:CPU]...   the host's CPU on which each queue pair's thread runs, one for each (any)
///   poll=MICROSECONDS   how long each queue pair's thread looks about for frames before it sleeps, up to 10000 (0)
///   vhost=on|off|auto   the kernel (vhost-net) carries the frames; auto: where it can (off; not for tun)
///   netns=NAME          the network namespace of the host's end, made where it is absent (ours; not for fd)
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Where the frames go.
    pub wire: WireConfig,
    /// The guest's Ethernet address; none for a random one, chosen by [`open`](crate::open).
    pub mac: Option<Mac>,
    /// The MTU of the host's link and the guest in bytes, within [`MTU`]; none to take the link's own.
    pub mtu: Option<u16>,
    /// How many queue pairs; for inherited descriptors, as many as these are.
    pub queues: Queues,
    /// The host's CPU on which the thread of each queue pair runs, as many as [`queues`](Self::queues) says; empty for any.
    pub affinity: Vec<u16>,
    /// How long the thread of each queue pair looks about for frames before it sleeps.
    pub poll: Duration,
    /// Who carries the frames; on a tun, always our own threads.
    pub vhost: VhostMode,
    /// The network namespace of the host's end; none for our own.
    pub netns: Option<NetnsName>,
}

/// The kinds of wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireConfig {
    /// A tap that the host routes to.
    Tap(TapConfig),
    /// A tap on a bridge.
    Bridge(BridgeConfig),
    /// A macvtap on a NIC of the host.
    Macvtap(MacvtapConfig),
    /// A tun: layer 3.
    Tun(TunConfig),
    /// An inherited descriptor.
    Fd(FdConfig),
}

/// The words of the kinds, for the words of an error.
pub(crate) const KINDS: &str = "tap, bridge=LINK, macvtap=LINK, tun, fd=N";

impl WireConfig {
    /// The kind's word on the command line.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tap(_) => tap::KIND,
            Self::Bridge(_) => bridge::KIND,
            Self::Macvtap(_) => macvtap::KIND,
            Self::Tun(_) => tun::KIND,
            Self::Fd(_) => fd::KIND,
        }
    }
}

impl NetConfig {
    /// The same for a guest with so many vCPUs: [`queues`](Self::queues) is a number.
    ///
    /// # Errors
    /// [`affinity`](Self::affinity) has another number of CPUs.
    pub fn for_guest(&self, cpus: u32) -> Result<Self, Error> {
        let this = Self { queues: self.queues.of(cpus), ..self.clone() };
        this.check_affinity().map(|()| this)
    }

    fn check_affinity(&self) -> Result<(), Error> {
        match self.queues {
            Queues::Number(queues)
                if !self.affinity.is_empty() && self.affinity.len() != usize::from(queues) =>
            {
                Err(SpecError::Affinity { affinity: affinity::show(&self.affinity), queues }.into())
            }
            _ => Ok(()),
        }
    }

    /// What of the host this NIC has for itself, in words, so that a second one with the same is refused.
    pub fn claims(&self) -> Vec<String> {
        let claim = match &self.wire {
            WireConfig::Tap(TapConfig { name: Some(name), .. }) => format!("the tap {name}"),
            WireConfig::Tun(TunConfig { name: Some(name), .. }) => format!("the tun {name}"),
            WireConfig::Macvtap(MacvtapConfig { parent, mode: MacvtapMode::Passthru, .. }) => {
                format!("the whole of {parent} (mode=passthru)")
            }
            WireConfig::Fd(config) => {
                return config.fds.iter().map(|fd| format!("the descriptor {fd}")).collect();
            }
            WireConfig::Tap(_) | WireConfig::Tun(_) | WireConfig::Bridge(_) | WireConfig::Macvtap(_) => {
                return Vec::new();
            }
        };
        vec![match &self.netns {
            Some(netns) => format!("{claim} in the namespace {netns}"),
            None => claim,
        }]
    }

    /// Refuses an MTU with which the kernel has no IPv6, where the host shall have an address of it.
    fn check_mtu(&self) -> Result<(), Error> {
        let hosts = match &self.wire {
            WireConfig::Tap(tap) => &tap.hosts[..],
            WireConfig::Tun(tun) => &tun.hosts,
            WireConfig::Macvtap(macvtap) => &macvtap.hosts,
            WireConfig::Bridge(_) | WireConfig::Fd(_) => &[],
        };
        match self.mtu.filter(|&mtu| mtu < Router::MTU_MIN) {
            Some(mtu) if hosts.iter().any(|host| host.v6().is_some()) => {
                let why = "IPv6 needs 1280 bytes, and host= is an address of it";
                Err(Error::value("mtu", mtu.to_string(), why))
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for NetConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (wire, rest) = match text.split_once(',') {
            Some((wire, rest)) => (wire, Some(rest)),
            None => (text, None),
        };
        let (kind, place) = match wire.split_once('=') {
            Some((kind, place)) => (kind, Some(place)),
            None => (wire, None),
        };
        let parse: fn(Option<&str>, &mut Keys<'_>) -> Result<WireConfig, Error> = match kind {
            tap::KIND => |place, keys| TapConfig::parse(place, keys).map(WireConfig::Tap),
            bridge::KIND => |place, keys| BridgeConfig::parse(place, keys).map(WireConfig::Bridge),
            macvtap::KIND => |place, keys| MacvtapConfig::parse(place, keys).map(WireConfig::Macvtap),
            tun::KIND => |place, keys| TunConfig::parse(place, keys).map(WireConfig::Tun),
            fd::KIND => |place, keys| FdConfig::parse(place, keys).map(WireConfig::Fd),
            _ => return Err(SpecError::UnknownKind { kind: kind.to_owned() }.into()),
        };
        let mut keys = Keys::parse(rest)?;
        let wire = parse(place, &mut keys)?;
        let mac = keys.take("mac", str::parse)?;
        let mtu = keys.take("mtu", mtu)?;
        // What somebody else opened is where he opened it, and as many as he gave us.
        let (queues, netns) = match &wire {
            WireConfig::Fd(FdConfig { fds }) => (Queues::Number(fds.len() as u16), None),
            _ => (keys.take("queues", str::parse)?.unwrap_or_default(), keys.take("netns", str::parse)?),
        };
        let affinity = keys.take("affinity", affinity::parse)?.unwrap_or_default();
        let poll = keys.take("poll", poll::parse)?.unwrap_or_default();
        let vhost = match &wire {
            WireConfig::Tun(_) => VhostMode::Off,
            _ => keys.take("vhost", str::parse)?.unwrap_or_default(),
        };
        keys.finish(&wire)?;
        let this = Self { wire, mac, mtu, queues, affinity, poll, vhost, netns };
        this.check_mtu()?;
        this.check_affinity().map(|()| this)
    }
}

/// The spec again, in a form that parses to the same.
impl fmt::Display for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wire.kind())?;
        match &self.wire {
            WireConfig::Tap(config) => config.show(f)?,
            WireConfig::Bridge(config) => config.show(f)?,
            WireConfig::Macvtap(config) => config.show(f)?,
            WireConfig::Tun(config) => config.show(f)?,
            WireConfig::Fd(config) => config.show(f)?,
        }
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, ",mtu={mtu}")?;
        }
        if self.queues != Queues::default() && !matches!(self.wire, WireConfig::Fd(_)) {
            write!(f, ",queues={}", self.queues)?;
        }
        if !self.affinity.is_empty() {
            write!(f, ",affinity={}", affinity::show(&self.affinity))?;
        }
        if !self.poll.is_zero() {
            write!(f, ",poll={}", self.poll.as_micros())?;
        }
        if self.vhost != VhostMode::default() {
            write!(f, ",vhost={}", self.vhost)?;
        }
        if let Some(netns) = &self.netns {
            write!(f, ",netns={netns}")?;
        }
        Ok(())
    }
}
