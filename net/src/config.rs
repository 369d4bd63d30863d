//! The grammar of `--net`: `KIND[=WHERE][,key=value]...`, where WHERE is the host's interface.
//!
//! **Invariant: a [`NetConfig`] that parsed makes sense.** A spec that does not is refused with an error that names the key.
//! `table.rs` lists the kinds and the keys; each kind is parsed in a file of its own, and here the keys that all kinds share.

pub(crate) mod affinity;
mod bridge;
pub(crate) mod dns;
mod fd;
mod forward;
pub(crate) mod guests;
mod keys;
mod link;
mod macvtap;
mod moving;
mod poll;
mod queues;
mod rate;
pub(crate) mod table;
mod tap;
#[cfg(test)]
mod tests;
mod tun;
mod vhost;
pub(crate) mod vlans;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

pub use self::bridge::BridgeConfig;
pub use self::dns::{DnsConfig, Domain};
pub use self::fd::FdConfig;
pub use self::forward::{Forward, Protocol};
pub use self::link::LinkMode;
pub use self::macvtap::{MacvtapConfig, MacvtapMode};
pub use self::queues::Queues;
pub use self::rate::{RateLimit, RateLimits};
pub use self::table::{Key, Kind, Repeat, WireKind, keys, kinds};
pub use self::tap::TapConfig;
pub use self::tun::TunConfig;
pub use self::vhost::VhostMode;
pub use self::vlans::{VlanRange, Vlans};
use crate::error::SpecError;
use crate::text::serde_as_text;

use self::keys::{Keys, mtu, on_or_off};
use crate::{Error, Mac, NetnsName, Router};

/// MTUs that a tap can have: IPv4's least (RFC 791) to the most of the kernel's tun driver, 65535 less an Ethernet header.
pub const MTU: RangeInclusive<u16> = 68..=65521;

/// One NIC, as `--net` says it: `KIND[=WHERE][,key=value]...`. [`kinds`] and [`keys`] are the words that there are. Its text,
/// by `Display` and `FromStr`, is its serde form too.
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
    /// How long the thread of each queue pair looks for frames before it sleeps; none where it is to find out what pays.
    pub poll: Option<Duration>,
    /// True if frames of one flow that the guest sends one behind the other go to the host as one packet, where our own threads carry
    /// them and the host's end cuts such packets.
    pub coalesce: bool,
    /// What carries the frames; on a tun, always wirevm's own threads.
    pub vhost: VhostMode,
    /// What it may send and receive in a second; nothing is limited where vhost-net carries the frames.
    pub rate: RateLimits,
    /// What the guest may ask of its link, on a macvtap or an inherited descriptor; true on the others, whose links bring every
    /// frame unasked. False: the guest keeps its own MAC, and what its driver asks is followed only in the frames to this MAC
    /// and to groups; another MAC and promiscuous mode are refused.
    pub trust: bool,
    /// True if what the guest sends under addresses that are not its own is dropped, on a tap, a bridge or a tun that knows them;
    /// true on the others, which do not guard.
    pub guard: bool,
    /// True if the spec says `guard=on`: then a host that cannot guard its bridge is refused, and is not just told of.
    pub must_guard: bool,
    /// Whether the guest's link is up.
    pub link: LinkMode,
    /// The network namespace of the host's end; none for our own.
    pub netns: Option<NetnsName>,
}

serde_as_text!(Forward, LinkMode, MacvtapMode, NetConfig, Protocol, Queues, RateLimits, VhostMode);

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

impl WireConfig {
    /// Its kind.
    pub fn kind(&self) -> WireKind {
        match self {
            Self::Tap(_) => WireKind::Tap,
            Self::Bridge(_) => WireKind::Bridge,
            Self::Macvtap(_) => WireKind::Macvtap,
            Self::Tun(_) => WireKind::Tun,
            Self::Fd(_) => WireKind::Fd,
        }
    }
}

impl NetConfig {
    /// The same for a guest with `cpus` vCPUs: [`queues`](Self::queues) becomes a number.
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
                Err(SpecError::Affinity { affinity: affinity::write_cpus(&self.affinity), queues }.into())
            }
            _ => Ok(()),
        }
    }

    /// What of the host this NIC and `other` would both have alone, in words; none where both can be.
    pub fn conflict(&self, other: &Self) -> Option<String> {
        let theirs = other.claims();
        let both = self.claims().into_iter().find(|claim| theirs.contains(claim));
        both.or_else(|| {
            let theirs = other.forwards();
            let mut pairs =
                self.forwards().iter().flat_map(|ours| theirs.iter().map(move |their| (ours, their)));
            let (protocol, port) =
                pairs.find_map(|(ours, their)| Some((ours.protocol, ours.shared_port(their)?)))?;
            (self.netns == other.netns).then(|| format!("{protocol} port {port} of the host (forward=)"))
        })
    }

    fn forwards(&self) -> &[Forward] {
        match &self.wire {
            WireConfig::Tap(tap) => &tap.forwards,
            _ => &[],
        }
    }

    /// The links and descriptors of the host that this NIC uses alone, in words.
    fn claims(&self) -> Vec<String> {
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

    /// Refuses an MTU that is too small for the host's IPv6 address.
    fn check_mtu(&self) -> Result<(), Error> {
        let hosts = self.hosts();
        match self.mtu.filter(|&mtu| mtu < Router::MTU_MIN) {
            Some(mtu) if hosts.iter().any(|host| host.v6().is_some()) => {
                let why = "IPv6 needs 1280 bytes, and host= is an IPv6 address";
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
        let (word, link) = match wire.split_once('=') {
            Some((word, link)) => (word, Some(link)),
            None => (wire, None),
        };
        let kind =
            WireKind::from_word(word).ok_or_else(|| SpecError::UnknownKind { kind: word.to_owned() })?;
        let mut keys = Keys::parse(kind, rest)?;
        let wire = match kind {
            WireKind::Tap => WireConfig::Tap(TapConfig::parse(link, &mut keys)?),
            WireKind::Bridge => WireConfig::Bridge(BridgeConfig::parse(link, &mut keys)?),
            WireKind::Macvtap => WireConfig::Macvtap(MacvtapConfig::parse(link, &mut keys)?),
            WireKind::Tun => WireConfig::Tun(TunConfig::parse(link, &mut keys)?),
            WireKind::Fd => WireConfig::Fd(FdConfig::parse(link)?),
        };
        let mac = keys.take("mac", str::parse)?;
        let mtu = keys.take("mtu", mtu)?;
        // There are as many queue pairs as inherited descriptors.
        let queues = match &wire {
            WireConfig::Fd(FdConfig { fds }) => Queues::Number(fds.len() as u16),
            _ => keys.take("queues", str::parse)?.unwrap_or_default(),
        };
        let affinity = keys.take("affinity", affinity::parse_cpus)?.unwrap_or_default();
        let poll = keys.take("poll", poll::parse)?.flatten();
        let coalesce = keys.take("coalesce", on_or_off)?.unwrap_or(true);
        // The parser has refused the keys that this kind does not take.
        let vhost = keys.take("vhost", str::parse)?.unwrap_or_default();
        let link = keys.take("link", str::parse)?.unwrap_or_default();
        let (limit, pps) = (keys.take("rate", rate::parse_rate)?, keys.take("pps", rate::parse_pps)?);
        let burst = keys.take("burst", rate::parse_burst)?;
        let rate = RateLimits::new(limit, pps, burst);
        let rate = rate
            .map_err(|why| Error::value("burst", burst.unwrap_or_default().as_millis().to_string(), why))?;
        let trust = keys.take("trust", on_or_off)?.unwrap_or(true);
        let asked = keys.take("guard", on_or_off)?;
        let (guard, must_guard) = (asked.unwrap_or(true), asked == Some(true));
        let netns = keys.take("netns", str::parse)?;
        let this = Self {
            wire,
            mac,
            mtu,
            queues,
            affinity,
            poll,
            coalesce,
            vhost,
            rate,
            trust,
            guard,
            must_guard,
            link,
            netns,
        };
        this.check_mtu()?;
        this.check_affinity().map(|()| this)
    }
}

/// The spec again, in a form that parses to the same.
impl fmt::Display for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wire.kind().word())?;
        match &self.wire {
            WireConfig::Tap(config) => config.write_spec(f)?,
            WireConfig::Bridge(config) => config.write_spec(f)?,
            WireConfig::Macvtap(config) => config.write_spec(f)?,
            WireConfig::Tun(config) => config.write_spec(f)?,
            WireConfig::Fd(config) => config.write_spec(f)?,
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
            write!(f, ",affinity={}", affinity::write_cpus(&self.affinity))?;
        }
        if let Some(poll) = self.poll {
            write!(f, ",poll={}", poll.as_micros())?;
        }
        if !self.coalesce {
            f.write_str(",coalesce=off")?;
        }
        if self.vhost != VhostMode::default() {
            write!(f, ",vhost={}", self.vhost)?;
        }
        if !self.rate.is_off() {
            write!(f, ",{}", self.rate)?;
        }
        if !self.trust {
            f.write_str(",trust=off")?;
        }
        if !self.guard {
            f.write_str(",guard=off")?;
        } else if self.must_guard {
            f.write_str(",guard=on")?;
        }
        if self.link != LinkMode::default() {
            write!(f, ",link={}", self.link)?;
        }
        if let Some(netns) = &self.netns {
            write!(f, ",netns={netns}")?;
        }
        Ok(())
    }
}
