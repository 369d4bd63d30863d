//! The host's plumbing: each change is made by netlink, can say itself as the `ip(8)` line that does the same, and knows
//! its undo.
//!
//! **Invariant: what was there already is neither done nor undone**, and what we change is changed back in reverse order,
//! whatever of it fails. A link that goes away with its backend takes all with it, and needs no undo.

pub(crate) mod free;
pub(crate) mod holders;
pub(crate) mod netlink;

use std::fmt;

pub(crate) use netlink::{Link, LinkId, Netlink, Refusal, Tun};

use crate::{Error, HostAddress};

/// One change of the host that was just made, as a person would have typed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The `ip(8)` line that does the same.
    pub command: String,
    /// What for, in a few words.
    pub why: &'static str,
}

/// The line, and why as a comment of the shell: what is printed can be run.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<56} # {}", self.command, self.why)
    }
}

/// A change of one link.
#[derive(Debug)]
enum Change {
    Mtu(u32),
    AddAddress(HostAddress),
    RemoveAddress(HostAddress),
    Up,
    Down,
}

impl Change {
    fn make(&self, netlink: &mut Netlink, link: &LinkId) -> Result<(), Refusal> {
        match *self {
            Self::Mtu(mtu) => netlink.set_mtu(link, mtu),
            Self::AddAddress(address) => netlink.add_address(link, address),
            Self::RemoveAddress(address) => netlink.remove_address(link, address),
            Self::Up => netlink.set_up(link, true),
            Self::Down => netlink.set_up(link, false),
        }
    }

    fn command(&self, link: &LinkId) -> String {
        let name = &link.name;
        match self {
            Self::Mtu(mtu) => format!("ip link set dev {name} mtu {mtu}"),
            Self::AddAddress(address) => format!("ip address add {address} dev {name}{}", nodad(address)),
            Self::RemoveAddress(address) => format!("ip address del {address} dev {name}"),
            Self::Up => format!("ip link set dev {name} up"),
            Self::Down => format!("ip link set dev {name} down"),
        }
    }
}

/// The word that has an IPv6 address used at once, without asking whether somebody has it (RFC 4862 §5.4): on a wire of
/// ours there is nobody but the guest, and for a second the host would not answer it.
fn nodad(address: &HostAddress) -> &'static str {
    if address.v6().is_some() { " nodad" } else { "" }
}

/// What [`open`](crate::open) changed on the host, to be taken back when this is dropped.
///
/// It and the backends may be dropped in any order, in the network namespace that they were made in.
#[must_use = "dropping it takes the host's wiring back at once"]
pub struct Wiring {
    netlink: Netlink,
    /// In the order of the changes that they undo.
    undo: Vec<(LinkId, Change)>,
}

impl Wiring {
    pub(crate) fn new() -> Self {
        Self { netlink: Netlink::new(), undo: Vec::new() }
    }

    pub(crate) fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// Takes every change back, the last one first, and logs what it cannot. The same as to drop it.
    pub fn undo(self) {}

    /// Makes a change and keeps its undo.
    fn make(
        &mut self,
        link: &LinkId,
        change: Change,
        undo: Option<Change>,
        why: &'static str,
        tell: &mut dyn FnMut(&Step),
    ) -> Result<(), Error> {
        let command = change.command(link);
        if let Err(refusal) = change.make(&mut self.netlink, link) {
            return Err(Error::Step { command, refusal });
        }
        self.undo.extend(undo.map(|undo| (link.clone(), undo)));
        tell(&Step { command, why });
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
        tell: &mut dyn FnMut(&Step),
    ) -> Result<(), Error> {
        let id = &link.id;
        let undo = |change| stays.then_some(change);
        if let Some(mtu) = mtu.map(u32::from).filter(|&mtu| mtu != link.mtu) {
            let back = undo(Change::Mtu(link.mtu));
            self.make(id, Change::Mtu(mtu), back, "the guest is offered the same MTU", tell)?;
        }
        for &address in addresses {
            if self.has_address(id, address)? {
                continue;
            }
            let back = undo(Change::RemoveAddress(address));
            self.make(id, Change::AddAddress(address), back, "the host's address towards the guest", tell)?;
        }
        if !link.up {
            self.make(id, Change::Up, undo(Change::Down), "a link that is down drops every frame", tell)?;
        }
        Ok(())
    }

    /// True where `link` has `address` already; an error where another link has it, or has a part of its subnet.
    fn has_address(&mut self, link: &LinkId, address: HostAddress) -> Result<bool, Error> {
        let asked = |refusal| Error::Ask { what: "the host's addresses".to_owned(), refusal };
        let all = self.netlink.addresses().map_err(asked)?;
        let same = |other: &&netlink::AddressOnLink| other.address == address.address();
        // The same address first: that is the better reason.
        let others = || all.iter().filter(|other| other.link != link.index);
        let taken = others().find(same).or_else(|| others().find(|o| address.overlaps(o.subnet, o.prefix)));
        if let Some(other) = taken {
            let name = self.netlink.link_by_index(other.link).map_err(asked)?.map(|link| link.id.name);
            let (on, theirs) = (name.unwrap_or_default(), format!("{}/{}", other.address, other.prefix));
            return Err(Error::AddressTaken { address, on, theirs });
        }
        let ours =
            |other: &netlink::AddressOnLink| other.link == link.index && other.prefix == address.prefix();
        Ok(all.iter().filter(same).any(ours))
    }
}

impl Drop for Wiring {
    fn drop(&mut self) {
        while let Some((link, change)) = self.undo.pop() {
            let command = change.command(&link);
            match change.make(&mut self.netlink, &link) {
                Ok(()) => log::debug!("undone: {command}"),
                // Somebody deleted the link or the address: what we wanted to take back is gone.
                Err(refusal) if matches!(refusal.errno(), Some(libc::ENODEV | libc::EADDRNOTAVAIL)) => {}
                Err(refusal) => log::warn!("cannot undo a change of the host ({command}): {refusal}"),
            }
        }
    }
}

impl fmt::Debug for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring").field("undo", &self.undo).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_line_for_the_shell() {
        let link = LinkId { index: 7, name: "tap0".to_owned() };
        let [address, v6] = ["172.31.0.1/24", "fd00::1/64"].map(|text| text.parse().unwrap());
        for (change, line) in [
            (Change::Mtu(9000), "ip link set dev tap0 mtu 9000"),
            (Change::AddAddress(address), "ip address add 172.31.0.1/24 dev tap0"),
            (Change::RemoveAddress(address), "ip address del 172.31.0.1/24 dev tap0"),
            (Change::AddAddress(v6), "ip address add fd00::1/64 dev tap0 nodad"),
            (Change::RemoveAddress(v6), "ip address del fd00::1/64 dev tap0"),
            (Change::Up, "ip link set dev tap0 up"),
            (Change::Down, "ip link set dev tap0 down"),
        ] {
            assert_eq!(change.command(&link), line);
        }
        let step = Step { command: "ip link set dev tap0 up".to_owned(), why: "so" }.to_string();
        assert!(step.starts_with("ip link set dev tap0 up  ") && step.ends_with(" # so"), "{step}");
    }
}
