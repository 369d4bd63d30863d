//! `tun[=NAME]`

use std::fmt;
use std::net::IpAddr;

use super::WireKind;
use super::dns::DnsConfig;
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
        let guests: Vec<IpAddr> =
            keys.take_all("guest", |text| text.parse().map_err(|_| "expected an address, 10.0.0.2"))?;
        let dhcp = keys.take("dhcp", on_or_off)?.unwrap_or(true);
        let dns = DnsConfig::take(keys, dhcp)?;
        let this = Self { name, hosts, guests, dhcp, dns };
        for (index, &guest) in this.guests.iter().enumerate() {
            let twice = this.guests[..index].iter().any(|other| other.is_ipv4() == guest.is_ipv4());
            let refusal = if twice {
                Err("there is one for IPv4 and one for IPv6 at most")
            } else {
                match this.hosts.iter().find(|host| host.address().is_ipv4() == guest.is_ipv4()) {
                    None => Err("it needs a host= of the same family"),
                    Some(host) => check_guest(*host, guest),
                }
            };
            refusal.map_err(|why| Error::value("guest", guest.to_string(), why))?;
        }
        if let Some(host) = this.hosts.iter().find(|host| this.guest(**host).is_none()) {
            let why = "the prefix leaves no address for the guest: add guest=, or use a shorter prefix";
            return Err(Error::value("host", host.to_string(), why));
        }
        Ok(this)
    }

    /// The guest's address for one of `hosts`: as given, or the next one of the subnet.
    pub fn guest(&self, host: HostAddress) -> Option<IpAddr> {
        let same = |guest: &&IpAddr| guest.is_ipv4() == host.address().is_ipv4();
        self.guests.iter().find(same).copied().or(host.guest())
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

/// # Errors
/// Says why the guest cannot have the address `guest` if the host has `host`.
fn check_guest(host: HostAddress, guest: IpAddr) -> Result<(), &'static str> {
    let bits = if guest.is_ipv4() { 32 } else { 128 };
    if guest == host.address() {
        Err("the host has it: host=")
    } else if host.prefix() < bits && !host.overlaps(guest, bits) {
        Err("it is not in the subnet of host=")
    } else {
        HostAddress::new(guest, host.prefix()).map(drop)
    }
}
