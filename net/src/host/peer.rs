//! Point-to-point addresses: the host's own alone at its end of a link, and the guest's alone at the other, in no subnet.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::{Change, Link, Refusal, Wiring};
use crate::error::HostError;
use crate::{Error, HostAddress};

/// The two ends of a link, written `10.0.0.1 peer 10.0.0.2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// A /32 or /128.
    pub(crate) host: HostAddress,
    /// Of the same family.
    pub(crate) guest: IpAddr,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} peer {}", self.host.address(), self.guest)
    }
}

impl FromStr for Peer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "two addresses of a family are wanted, 10.0.0.1 peer 10.0.0.2";
        let (host, guest) = text.split_once(" peer ").ok_or(FORM)?;
        let (host, guest): (IpAddr, IpAddr) =
            (host.parse().map_err(|_| FORM)?, guest.parse().map_err(|_| FORM)?);
        if host.is_ipv4() != guest.is_ipv4() {
            return Err(FORM);
        }
        let host = HostAddress::new(host, if host.is_ipv4() { 32 } else { 128 })?;
        Ok(Self { host, guest })
    }
}

impl Wiring {
    /// Refuses the guest's addresses `guests` where the host has one of them, on any link: what is sent there would stay with the
    /// host.
    ///
    /// # Errors
    /// A link of the host has it.
    pub(crate) fn check_guests(&mut self, guests: &[IpAddr]) -> Result<(), Error> {
        if guests.is_empty() {
            return Ok(());
        }
        let all = self.netlink().addresses().map_err(asked)?;
        match all.iter().find(|own| guests.contains(&own.address)) {
            Some(own) => self.refuse_guest(own.address, own.link),
            None => Ok(()),
        }
    }

    /// That the link number `on` has the address `guest` at one of its ends.
    fn refuse_guest(&mut self, guest: IpAddr, on: u32) -> Result<(), Error> {
        let link = self.netlink().link_by_index(on).map_err(asked)?;
        let on = link.map(|link| link.id.name).unwrap_or_default();
        Err(HostError::GuestTaken { guest, on }.into())
    }

    /// Gives `link` the host's address of `peer`, and so the host a route to the guest's, unless it has it already. `stays`
    /// is as in [`set_link`](Self::set_link).
    ///
    /// Another link may have the host's address as well, for an address alone is in nobody's way: so one address of the
    /// host serves any number of guests. The guest's must be its own.
    ///
    /// # Errors
    /// Another link has the guest's address, at either end.
    pub(crate) fn set_peer(&mut self, link: &Link, stays: bool, peer: Peer) -> Result<(), Error> {
        let all = self.netlink().addresses().map_err(asked)?;
        let is_guest = |other: &&super::netlink::AddressOnLink| {
            other.address == peer.guest || other.subnet == peer.guest && other.prefix == peer.host.prefix()
        };
        match all.iter().find(is_guest) {
            Some(ours) if ours.link == link.id.index && ours.address == peer.host.address() => return Ok(()),
            Some(other) => return self.refuse_guest(peer.guest, other.link),
            None => {}
        }
        let back = stays.then(|| Change::RemovePeer(link.id.clone(), peer));
        let change = Change::AddPeer(link.id.clone(), peer);
        self.make(change, back, "the host's address, and a route to the guest's")
    }
}

fn asked(refusal: Refusal) -> HostError {
    HostError::Ask { what: "the host's addresses".to_owned(), refusal }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_read_as_it_is_written() {
        for text in ["10.0.0.1 peer 192.168.7.2", "fd00::1 peer fd01::2"] {
            assert_eq!(text.parse::<Peer>().unwrap().to_string(), text);
        }
        for bad in ["10.0.0.1", "10.0.0.1 peer fd00::1", "10.0.0.1 peer ", "127.0.0.1 peer 10.0.0.2", ""] {
            assert!(bad.parse::<Peer>().is_err(), "{bad:?}");
        }
    }
}
