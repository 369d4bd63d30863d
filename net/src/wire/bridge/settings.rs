//! What a bridge of ours takes over from its uplink: how the host takes part in the network that it is on, link by link
//! (`Documentation/networking/ip-sysctl.rst`, `conf/interface`).
//!
//! It is all that is under `net/ipv4/conf/` and `net/ipv6/conf/` but these:
//! - `mc_forwarding` is that of a daemon for multicast routing, and nobody else can set it;
//! - `stable_secret` is a secret, which nobody is to read in what we tell. Addresses that are made with it are made with a random one
//!   on the bridge: they say as little of the host;
//! - `mtu` of IPv6 goes after the MTU of the link, which a bridge has from its ports ([`take_over_mtu`]).

use std::fs;
use std::path::Path;

use crate::Error;
use crate::host::{Link, LinkId, Sysctl, Wiring};

const NOT_TAKEN: [&str; 3] = ["mc_forwarding", "stable_secret", "mtu"];

/// `addr_gen_mode`: with the link's secret, and with one that the kernel chooses.
const WITH_SECRET: [&str; 2] = ["2", "3"];

/// Has `bridge`, which is not up yet and goes with us, set as `nic` is. What cannot be set is a notice: in many containers
/// `/proc/sys` is read-only.
pub(super) fn take_over(wiring: &mut Wiring, nic: &LinkId, bridge: &LinkId) {
    let mut refused = Vec::new();
    let mut cause = None;
    for family in ["net/ipv4/conf", "net/ipv6/conf"] {
        for name in names(&format!("{family}/{}", nic.name)) {
            let Ok(value) = Sysctl::read(&format!("{family}/{}/{name}", nic.name)) else { continue };
            let [secret, random] = WITH_SECRET;
            let value = if name == "addr_gen_mode" && value == secret { random } else { &value };
            let key = format!("{family}/{}/{name}", bridge.name);
            if let Err(error) = wiring.set_value(key.clone(), value, "as the uplink, whose place it takes") {
                refused.push(format!("{key}={value}"));
                cause = Some(error);
            }
        }
    }
    if let Some(error) = cause {
        wiring.notice(not_as_the_uplink(bridge, nic, &refused, &error));
    }
}

fn not_as_the_uplink(bridge: &LinkId, nic: &LinkId, refused: &[String], error: &Error) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!(
        "{bridge} is not set as {nic} is, for /proc/sys cannot be written ({cause}): it lacks {}. A container engine can set the \
         same for every new link (--sysctl, with \"default\" for {bridge}), or make {bridge} beforehand",
        refused.join(" ")
    )
}

/// Has the bridge send packets of IPv6 as small as the NIC does.
pub(super) fn take_over_mtu(wiring: &mut Wiring, nic: &Link, bridge: &LinkId) {
    let key = |link: &LinkId| format!("net/ipv6/conf/{}/mtu", link.name);
    let Ok(value) = Sysctl::read(&key(&nic.id)) else { return };
    if value.parse::<u32>().is_ok_and(|mtu| mtu < nic.mtu)
        && let Err(error) = wiring.set_value(key(bridge), &value, "as the uplink, whose place it takes")
    {
        wiring.notice(not_as_the_uplink(bridge, &nic.id, &[format!("{}={value}", key(bridge))], &error));
    }
}

/// The names of what can be set and is taken over, in order.
fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new("/proc/sys").join(directory)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| !NOT_TAKEN.contains(&name.as_str())).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_to_the_network_is_taken_over() {
        let [v4, v6] = ["ipv4", "ipv6"].map(|family| names(&format!("net/{family}/conf/lo")));
        for name in ["rp_filter", "proxy_arp", "accept_redirects", "log_martians"] {
            assert!(v4.iter().any(|found| found == name), "{name} of {v4:?}");
        }
        assert!(v4.is_sorted() && v6.is_sorted());
        for name in NOT_TAKEN {
            assert!(!v4.iter().chain(&v6).any(|found| found == name), "{name}");
        }
        assert!(names("net/ipv4/conf/there-is-none").is_empty());
    }
}
