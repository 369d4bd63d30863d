//! Whether datagrams that come at the host's own links one behind the other reach a guest together (`rx-udp-gro-forwarding`, the kernel's
//! `networking/segmentation-offloads.rst`).

use std::path::Path;
use std::{fs, io};

use super::finding::Finding;
use crate::sys::ethtool;

const FEATURE: &str = "rx-udp-gro-forwarding";

/// What the doctor says of each link that is up and has hardware.
pub(crate) fn findings() -> Vec<Finding> {
    of(Path::new("/sys/class/net"), ethtool::feature)
}

fn of(links: &Path, feature: impl Fn(&str, &str) -> io::Result<Option<bool>>) -> Vec<Finding> {
    let is_uplink = |link: &Path| {
        let state = fs::read_to_string(link.join("operstate")).unwrap_or_default();
        link.join("device").exists() && state.trim() == "up"
    };
    let entries = fs::read_dir(links).into_iter().flatten().flatten().map(|entry| entry.path());
    let names = entries
        .filter(|link| is_uplink(link))
        .filter_map(|link| Some(link.file_name()?.to_str()?.to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    names.iter().filter_map(|link| Some(finding(link, feature(link, FEATURE).ok()??))).collect()
}

fn finding(link: &str, on: bool) -> Finding {
    let state = match on {
        true => {
            "is on: datagrams of one flow reach guests together, if they take UDP segments (Linux 6.2 and later)"
        }
        false => "is off: datagrams that come one behind the other reach guests one by one",
    };
    let remedy = (!on).then(|| {
        format!("ethtool -K {link} {FEATURE} on; then a guest with Linux 6.2 or later receives many at once")
    });
    Finding { what: format!("{FEATURE} of {link}"), good: true, state: state.into(), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_with_hardware_that_are_up_are_told_of() {
        let links = std::env::temp_dir().join(format!("wirevm-datagrams-{}", std::process::id()));
        for (link, state, hardware) in [
            ("eth1", "up", true),
            ("eth0", "up", true),
            ("eth2", "down", true),
            ("br0", "up", false),
            ("old0", "up", true),
        ] {
            fs::create_dir_all(links.join(link)).unwrap();
            fs::write(links.join(link).join("operstate"), format!("{state}\n")).unwrap();
            if hardware {
                fs::create_dir(links.join(link).join("device")).unwrap();
            }
        }
        let found = of(&links, |link, feature| {
            assert_eq!(feature, FEATURE);
            Ok((link != "old0").then_some(link == "eth1"))
        });
        fs::remove_dir_all(&links).unwrap();
        let said: Vec<_> =
            found.iter().map(|found| (found.what.as_str(), found.good, found.remedy.is_some())).collect();
        assert_eq!(
            said,
            [("rx-udp-gro-forwarding of eth0", true, true), ("rx-udp-gro-forwarding of eth1", true, false)]
        );
        assert!(found[0].remedy.as_ref().unwrap().starts_with("ethtool -K eth0 rx-udp-gro-forwarding on;"));
    }
}
