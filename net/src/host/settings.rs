//! What the host's settings and others' rules mean for wirevm, all together.

use super::finding::Finding;
use super::firewall::{BRIDGED, Barrier, Guests, Passing, barriers, bridged_barriers};
use super::nat::Nat;
use super::{datagrams, forwarding};

/// What this host's settings mean for NAT and for bridges, for a tap of wirevm's own: `wirevm doctor` prints it.
pub fn findings() -> Vec<Finding> {
    let finding = |what: &str, good, state: &str, remedy: Option<String>| Finding {
        what: what.to_owned(),
        good,
        state: state.to_owned(),
        remedy,
    };
    let mut findings = Vec::new();
    findings.push(match Nat::try_out() {
        Ok(()) => finding("nftables", true, "does NAT", None),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            finding("nftables", false, &format!("{error}: {cause}"), error.remedy())
        }
    });
    findings.extend(forwarding::findings());
    // Docker's and other firewalls' rules, as they are for a link that they do not know.
    let link = "wirevm0";
    match barriers(Passing::Routed(link, Guests::OfOurs)) {
        Ok(barriers) if barriers.is_empty() => {
            findings.push(finding("firewall", true, "lets routed packets pass", None));
        }
        Ok(barriers) => findings.extend(barriers.into_iter().map(|Barrier { place, command, .. }| {
            let state =
                format!("{place}, drops routed packets of links that it does not know: nat will not work");
            finding("firewall", false, &state, Some(command))
        })),
        Err(refusal) => {
            findings.push(finding("firewall", true, &format!("cannot be looked at: {refusal}"), None))
        }
    }
    let bridged = bridged_barriers("br0");
    if bridged.is_empty() {
        findings.push(finding("bridge-nf-call", true, "lets bridged frames pass", None));
    }
    findings.extend(bridged.into_iter().map(|Barrier { place, command, .. }| {
        let state = format!("{}, and {place}, drops them", BRIDGED);
        finding("bridge-nf-call", false, &state, Some(command))
    }));
    findings.extend(datagrams::findings());
    findings
}
