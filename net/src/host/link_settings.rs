//! How a link is set: its MTU, its addresses, that it is up.

use super::*;

impl Wiring {
    /// Notices where the host has a route over another link to what it is about to reach over `link`: the
    /// kernel takes the longest prefix, and of two the one with the lower metric.
    pub(crate) fn warn_of_other_routes(&mut self, link: &LinkId, hosts: &[HostAddress]) -> Result<(), Error> {
        let asked = |refusal| HostError::Ask { what: "the host's routes".to_owned(), refusal };
        for route in self.netlink.routes().map_err(asked)? {
            let Some(other) = route.link.filter(|&other| other != link.index) else { continue };
            let wins =
                |host: &&HostAddress| route.prefix >= host.prefix() && host.overlaps(route.to, route.prefix);
            let Some(host) = hosts.iter().find(wins) else { continue };
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
        if !link.up {
            let back = undo(Change::Down(id.clone()));
            self.make(Change::Up(id.clone()), back, "a link that is down drops every frame")?;
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
