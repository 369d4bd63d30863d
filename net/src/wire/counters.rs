//! What the host counts of a wire, beside what the queue pairs count themselves.

use crate::Wire;
use crate::host::netlink::LinkCounters;
use crate::host::wire_link::Role;

/// What the host has counted of a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireCounters {
    /// By the link at the guest's end; none where the link is out of sight, or gone. What the guest was to receive and was too much
    /// for the rate that the host keeps is among what was dropped.
    pub link: Option<LinkCounters>,
    /// Frames of the guest that its guard dropped: under addresses that are not its own, or one of too many.
    pub guarded: u64,
    /// Frames of the guest that were dropped for the rate that the host keeps.
    pub rate: u64,
}

impl Wire {
    /// What the host has counted until now. What cannot be asked for counts as nothing.
    pub fn counters(&mut self) -> WireCounters {
        let guest = self.parts.links.iter().find(|link| link.role == Role::Guest);
        let Some(index) = guest.and_then(|guest| guest.index) else { return WireCounters::default() };
        let counted = self.wiring.netlink().link_counters(index);
        let counted = counted.inspect_err(|refusal| log::debug!("{}: no counters: {refusal}", self.link()));
        let mut link = counted.ok().flatten();
        let held = self.rate.as_mut();
        let [sent, received] = held.map(|held| self.wiring.dropped_for(held)).unwrap_or_default();
        if let Some(link) = &mut link {
            link.received.dropped += received;
        }
        WireCounters { link, guarded: self.wiring.guarded(index), rate: sent }
    }
}
