//! How a link is set: its MTU, its addresses, that it is up.

use std::collections::HashSet;
use std::path::Path;

use super::*;

/// Why a link is set up.
const UP: &str = "a link that is down drops every frame";

impl Wiring {
    /// Notices where the host has a route over another link to what it is about to reach over `link`: the
    /// kernel takes the longest prefix, and of two the one with the lower metric.
    pub(crate) fn warn_of_other_routes(&mut self, link: &LinkId, hosts: &[HostAddress]) -> Result<(), Error> {
        let asked = |refusal| HostError::Ask { what: "the host's routes".to_owned(), refusal };
        let mut told = HashSet::new();
        for route in self.netlink.routes().map_err(asked)? {
            let Some(other) = route.link.filter(|&other| other != link.index) else { continue };
            let wins =
                |host: &&HostAddress| route.prefix >= host.prefix() && host.overlaps(route.to, route.prefix);
            let Some(host) = hosts.iter().find(wins) else { continue };
            // The first over each link says it.
            if !told.insert(other) {
                continue;
            }
            let name = self.netlink.link_by_index(other).map_err(asked)?.map(|link| link.id.name);
            self.notice(format!(
                "host={host}: the host routes {}/{} over {} too, where what is for the guest may go",
                route.to,
                route.prefix,
                name.unwrap_or_default()
            ));
        }
        Ok(())
    }

    /// Gives `link` this MTU and these addresses and sets it up, each where it is not so already. `stays`: the link is there
    /// after its backend, so that each change needs its undo.
    ///
    /// The MTU is first: below 1280 bytes a link has no IPv6. The address is before up: then the kernel announces it.
    pub(crate) fn set_link(
        &mut self,
        link: &Link,
        stays: bool,
        mtu: Option<u16>,
        addresses: &[HostAddress],
    ) -> Result<(), Error> {
        let id = &link.id;
        let undo = |change| stays.then_some(change);
        if let Some(mtu) = mtu.map(u32::from).filter(|&mtu| mtu != link.mtu) {
            let back = undo(Change::Mtu(id.clone(), link.mtu));
            self.make(Change::Mtu(id.clone(), mtu), back, "the guest is offered the same MTU")?;
        }
        for &address in addresses {
            if self.has_address(id, address)? {
                continue;
            }
            let back = undo(Change::RemoveAddress(id.clone(), address));
            self.make(Change::AddAddress(id.clone(), address), back, "the host's address towards the guest")?;
        }
        if !link.up && stays {
            self.bring_up(id)?;
        } else if !link.up {
            self.make(Change::Up(id.clone()), None, UP)?;
        }
        Ok(())
    }

    /// Has the host make itself no IPv6 address on a link of ours that is not up yet; where it has no IPv6 there, there is nothing to do.
    pub(crate) fn make_quiet(&mut self, link: &LinkId, why: &'static str) -> Result<(), Error> {
        match Path::new("/proc/sys/net/ipv6/conf").join(&link.name).exists() {
            true => self.make(Change::NoIpv6Address(link.clone()), None, why),
            false => Ok(()),
        }
    }

    /// Sets up a link that is down and stays after us: down again at the end, it has the addresses of IPv6 and the permanent
    /// neighbours that it has now, which the kernel forgets when a link goes down.
    pub(crate) fn bring_up(&mut self, id: &LinkId) -> Result<(), Error> {
        let asked = |refusal| HostError::Ask { what: format!("the addresses of {id}"), refusal };
        let addresses = self.netlink.addresses_of(id).map_err(asked)?;
        for address in addresses.into_iter().filter(|address| address.local.is_ipv6()).rev() {
            self.keep(Change::GiveAddress(id.clone(), address))?;
        }
        for neighbour in self.netlink.neighbours_of(id).map_err(asked)? {
            self.keep(Change::GiveNeighbour(id.clone(), neighbour))?;
        }
        self.make(Change::Up(id.clone()), Some(Change::Down(id.clone())), UP)
    }

    /// Sets up a link of somebody's, where it is down: several wirevm may use it, and the last of them sets it down again.
    pub(crate) fn share_up(&mut self, link: &Link) -> Result<(), Error> {
        let up = format!("up-{}", link.id.index);
        if !self.join(&up)? && !link.up {
            self.share(&up, |wiring| wiring.bring_up(&link.id))?;
        }
        Ok(())
    }

    /// True where `link` has `address` already; an error where another link has it, or has a part of its subnet.
    fn has_address(&mut self, link: &LinkId, address: HostAddress) -> Result<bool, Error> {
        let asked = |refusal| HostError::Ask { what: "the host's addresses".to_owned(), refusal };
        let all = self.netlink.addresses().map_err(asked)?;
        let same = |other: &&netlink::AddressOnLink| other.address == address.address();
        // The same address first: that is the better reason.
        let others = || all.iter().filter(|other| other.link != link.index);
        let taken = others().find(same).or_else(|| others().find(|o| address.overlaps(o.subnet, o.prefix)));
        if let Some(other) = taken {
            let name = self.netlink.link_by_index(other.link).map_err(asked)?.map(|link| link.id.name);
            let (on, theirs) = (name.unwrap_or_default(), format!("{}/{}", other.address, other.prefix));
            return Err(HostError::AddressTaken { address, on, theirs }.into());
        }
        let ours =
            |other: &netlink::AddressOnLink| other.link == link.index && other.prefix == address.prefix();
        Ok(all.iter().filter(same).any(ours))
    }
}
