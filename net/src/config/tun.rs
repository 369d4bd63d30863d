//! `tun[=NAME]`

use std::fmt;
use std::net::IpAddr;

use super::WireKind;
use super::dns::DnsConfig;
use super::guests;
use super::keys::{Keys, kind_link, on_or_off};
use crate::{Error, HostAddress, LinkName};

/// A tun: IP packets on the host, Ethernet for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// The tun to use, created if it does not exist; none for a new one that the kernel names.
    pub name: Option<LinkName>,
    /// The host's addresses on it, at most one of each family. If there is none, a new tun with `dhcp` gets a free subnet.
    pub hosts: Vec<HostAddress>,
    /// The guest's addresses, at most one for each address of `hosts`: another address of its subnet, or the other end if
    /// that is a /32 or /128. Without one, the guest has [`HostAddress::guest`].
    pub guests: Vec<IpAddr>,
    /// True if wirevm tells the guest its address, by DHCP and router advertisement.
    pub dhcp: bool,
    /// What it tells of names.
    pub dns: DnsConfig,
}

/// A bare `tun`.
impl Default for TunConfig {
    fn default() -> Self {
        Self { name: None, hosts: Vec::new(), guests: Vec::new(), dhcp: true, dns: DnsConfig::default() }
    }
}

impl TunConfig {
    pub(super) fn parse(name: Option<&str>, keys: &mut Keys<'_>) -> Result<Self, Error> {
        let name = kind_link(WireKind::Tun, name)?;
        let hosts = keys.take_hosts()?;
        let guests = guests::take(keys, &hosts)?;
        let dhcp = keys.take("dhcp", on_or_off)?.unwrap_or(true);
        let dns = DnsConfig::take(keys, dhcp)?;
        let this = Self { name, hosts, guests, dhcp, dns };
        if let Some(host) = this.hosts.iter().find(|host| this.guest(**host).is_none()) {
            let why = "the prefix leaves no address for the guest: add guest=, or use a shorter prefix";
            return Err(Error::value("host", host.to_string(), why));
        }
        Ok(this)
    }

    /// The guest's address for one of `hosts`: as given, or the next one of the subnet.
    pub fn guest(&self, host: HostAddress) -> Option<IpAddr> {
        guests::beside(&self.guests, host)
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
        Ok(())
    }
}
