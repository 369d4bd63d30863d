//! Whether an Ethernet address is free for a guest: where a link on the way of its frames has it, the host takes what is for the
//! guest, and of two guests with one address each gets what the other should.

use std::thread;
use std::time::{Duration, Instant};

use super::{Link, LinkId, Refusal, Wiring};
use crate::error::HostError;
use crate::{Error, Mac};

impl Wiring {
    /// Refuses `mac` where `link` has it, or, if that is a bridge or a port of one, what is on the bridge: a port, a link on it, or
    /// another guest. `others` join it now.
    ///
    /// # Errors
    /// [`HostError::MacTaken`], or the host does not tell.
    pub(crate) fn check_mac(&mut self, mac: Mac, link: &LinkId, others: &[&LinkId]) -> Result<(), Error> {
        // Who has just been killed has its tap until its last thread is gone.
        let end = Instant::now() + Duration::from_millis(500);
        loop {
            match self.who_has(mac, link, others)? {
                None => return Ok(()),
                Some(Owner { leaves: true, .. }) if Instant::now() < end => {
                    thread::sleep(Duration::from_millis(5));
                }
                Some(Owner { by, .. }) => return Err(HostError::MacTaken { mac, by }.into()),
            }
        }
    }

    fn who_has(&mut self, mac: Mac, link: &LinkId, others: &[&LinkId]) -> Result<Option<Owner>, Error> {
        let asked = |refusal: Refusal| HostError::Ask { what: "the host's links".to_owned(), refusal };
        let links = self.netlink.links().map_err(asked)?;
        let find = |index: u32| links.iter().find(|found| found.id.index == index);
        let Some(itself) = find(link.index) else { return Ok(None) };
        let bridge = if itself.bridge.is_some() { Some(itself) } else { itself.master.and_then(find) };
        let bridge = bridge.filter(|bridge| bridge.bridge.is_some()).map(|bridge| bridge.id.index);
        let is_on_way = |found: &&Link| {
            let index = Some(found.id.index);
            found.id == *link
                || others.contains(&&found.id)
                || bridge.is_some() && (bridge == index || bridge == found.master || bridge == found.lower)
        };
        if let Some(found) = links.iter().filter(is_on_way).find(|found| found.mac == Some(mac.octets())) {
            return Ok(Some(Owner { by: found.id.name.clone(), leaves: false }));
        }
        let Some(bridge) = bridge else { return Ok(None) };
        for station in self.netlink.stations_of(bridge).map_err(asked)? {
            let Some(port) = find(station.port).filter(|port| port.id != *link) else { continue };
            // What the bridge has learned of a NIC's side may have moved here since.
            if station.mac == mac.octets() && (station.is_static || port.tun.is_some()) {
                let by = format!("the guest at {}", port.id);
                return Ok(Some(Owner { by, leaves: port.tun.is_some() }));
            }
        }
        Ok(None)
    }
}

/// Who has an address.
struct Owner {
    /// In words.
    by: String,
    /// It may be about to go.
    leaves: bool,
}
