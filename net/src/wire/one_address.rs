//! Links that carry the frames of one Ethernet address alone, so that a guest with an address of its own would be heard and hear
//! nothing: macvlans, whose NIC gives each the frames to its own address (but in mode `passthru`, where there is one that has
//! all), ipvlans, which share their NIC's address (kernel `Documentation/networking/ipvlan.rst`), and VLANs on these.

use crate::MacvtapMode;
use crate::host::Link;

/// The link of `links` for whose sake `link` carries one address only: itself, or one that it is on; none where it carries many.
pub(crate) fn carries_one_address<'a>(link: &'a Link, links: &'a [Link]) -> Option<&'a Link> {
    let mut on = link;
    // No link is on more than this many others (`MAX_NEST_DEV`).
    for _ in 0..8 {
        match on.kind.as_str() {
            "macvlan" | "macvtap" if on.macvlan != Some(MacvtapMode::Passthru) => return Some(on),
            "ipvlan" | "ipvtap" => return Some(on),
            "vlan" | "macsec" => on = links.iter().find(|other| Some(other.id.index) == on.lower)?,
            _ => return None,
        }
    }
    None
}
