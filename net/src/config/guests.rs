//! `guest=ADDRESS[/LENGTH]`: the guest's addresses on a wire that the host routes to.

use std::net::IpAddr;

use super::keys::{Keys, number};
use crate::{Error, HostAddress};

/// Takes the key of a wire where the host has `hosts`: at most one address for each of these.
///
/// # Errors
/// It is not an address beside one of `hosts`.
pub(super) fn take(keys: &mut Keys<'_>, hosts: &[HostAddress]) -> Result<Vec<IpAddr>, Error> {
    let given = keys.take_all("guest", parse)?;
    for (index, &(guest, prefix)) in given.iter().enumerate() {
        let twice = given[..index].iter().any(|(other, _)| other.is_ipv4() == guest.is_ipv4());
        let host = hosts.iter().find(|host| host.address().is_ipv4() == guest.is_ipv4());
        let refusal = match host {
            _ if twice => Err("there is one for IPv4 and one for IPv6 at most"),
            None => Err("it needs a host= of the same family"),
            Some(host) if prefix.is_some_and(|prefix| prefix != host.prefix()) => {
                Err("the length is that of host=, or is left out")
            }
            Some(host) => check(*host, guest),
        };
        let text = || prefix.map_or(guest.to_string(), |prefix| format!("{guest}/{prefix}"));
        refusal.map_err(|why| Error::value("guest", text(), why))?;
    }
    Ok(given.into_iter().map(|(guest, _)| guest).collect())
}

fn parse(text: &str) -> Result<(IpAddr, Option<u8>), &'static str> {
    const FORM: &str = "expected an address, 10.0.0.2";
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(number(prefix).ok_or(FORM)?)),
        None => (text, None),
    };
    Ok((address.parse().map_err(|_| FORM)?, prefix))
}

/// # Errors
/// Says why the guest cannot have the address `guest` if the host has `host`.
fn check(host: HostAddress, guest: IpAddr) -> Result<(), &'static str> {
    let bits = if guest.is_ipv4() { 32 } else { 128 };
    if guest == host.address() {
        Err("the host has it: host=")
    } else if host.prefix() < bits && !host.overlaps(guest, bits) {
        Err("it is not in the subnet of host=")
    } else {
        HostAddress::new(guest, host.prefix()).map(drop)
    }
}

/// The one of `guests` that is of the family of `host`.
pub(crate) fn given(guests: &[IpAddr], host: HostAddress) -> Option<IpAddr> {
    guests.iter().find(|guest| guest.is_ipv4() == host.address().is_ipv4()).copied()
}

/// The guest's address beside `host`: the one of `guests`, or else the next one of the subnet.
pub(crate) fn beside(guests: &[IpAddr], host: HostAddress) -> Option<IpAddr> {
    given(guests, host).or(host.guest())
}

/// The only address that the guest has beside `host`: the one of `guests`, or else that of IPv4 which it is told by `dhcp`. None
/// where it may choose, as it makes its own of an IPv6 subnet.
pub(crate) fn only(guests: &[IpAddr], host: HostAddress, dhcp: bool) -> Option<IpAddr> {
    let told = host.guest().filter(|guest| dhcp && guest.is_ipv4());
    given(guests, host).or(told)
}
