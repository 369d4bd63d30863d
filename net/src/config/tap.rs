//! `tap[=NAME]`

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::WireKind;
use super::dns::DnsConfig;
use super::forward::{self, Forward};
use super::guests;
use super::keys::{Keys, kind_link, on_or_off};
use crate::{Error, HostAddress, LinkName};

/// A tap that the host routes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// The tap to use, created if it does not exist; none for a new one that the kernel names.
    pub name: Option<LinkName>,
    /// The host's addresses on it, at most one of each family. If there is none, a new tap with `dhcp` gets a free subnet.
    pub hosts: Vec<HostAddress>,
    /// The guest's addresses, at most one for each address of `hosts`, in its subnet. Without one, the guest has
    /// [`HostAddress::guest`], or of IPv6 what it makes itself.
    pub guests: Vec<IpAddr>,
    /// True if wirevm tells the guest its address, by DHCP and router advertisement.
    pub dhcp: bool,
    /// What it tells of names.
    pub dns: DnsConfig,
    /// True if the guest's packets leave the host under the host's own address.
    pub nat: bool,
    /// The ports of the host that are forwarded to the guest, each port of an address and protocol once; none without `nat`.
    pub forwards: Vec<Forward>,
}

/// A bare `tap`.
impl Default for TapConfig {
    fn default() -> Self {
        Self {
            name: None,
            hosts: Vec::new(),
            guests: Vec::new(),
            dhcp: true,
            dns: DnsConfig::default(),
            nat: false,
            forwards: Vec::new(),
        }
    }
}

impl TapConfig {
    pub(super) fn parse(name: Option<&str>, keys: &mut Keys<'_>) -> Result<Self, Error> {
        let name = kind_link(WireKind::Tap, name)?;
        let hosts = keys.take_hosts()?;
        let guests = guests::take(keys, &hosts)?;
        let dhcp = keys.take("dhcp", on_or_off)?.unwrap_or(true);
        let dns = DnsConfig::take(keys, dhcp)?;
        let nat = keys.take("nat", on_or_off)?.unwrap_or(false);
        let forwards = keys.take_all("forward", Forward::from_str)?;
        let is_alone = |guest: &&IpAddr| {
            hosts.iter().any(|host| host.guest().is_none() && guests::given(&[**guest], *host).is_some())
        };
        if let Some(guest) = guests.iter().find(is_alone) {
            let why =
                "the host is alone in its subnet: use a shorter prefix, or a tun, which needs no subnet";
            return Err(Error::value("guest", guest.to_string(), why));
        }
        if let Some(alone) = hosts.iter().find(|host| dhcp && host.v4().is_some() && host.guest().is_none()) {
            let why =
                "a /32 leaves no address for DHCP to give the guest: add dhcp=off, or use a shorter prefix";
            return Err(Error::value("host", alone.to_string(), why));
        }
        if nat && hosts.is_empty() && !dhcp {
            let why = "the guest needs an address that the host knows: add host=, or drop dhcp=off";
            return Err(Error::value("nat", "on".to_owned(), why));
        }
        forward::check(&forwards, nat)?;
        Ok(Self { name, hosts, guests, dhcp, dns, nat, forwards })
    }

    pub(super) fn write_spec(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "={name}")?;
        }
        for host in &self.hosts {
            write!(f, ",host={host}")?;
        }
        for guest in &self.guests {
            write!(f, ",guest={guest}")?;
        }
        if !self.dhcp {
            f.write_str(",dhcp=off")?;
        }
        self.dns.write_spec(f)?;
        if self.nat {
            f.write_str(",nat")?;
        }
        for forward in &self.forwards {
            write!(f, ",forward={forward}")?;
        }
        Ok(())
    }
}
