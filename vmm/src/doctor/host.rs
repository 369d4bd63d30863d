//! What the host has and allows, beside KVM and what `net` tries out itself.

use std::error::Error;
use std::io;
use std::path::Path;
use std::{fs, iter};

use net::Finding;
use rustix::thread::{CapabilitySet, capabilities};

/// The rights that making links takes.
pub(super) fn rights() -> Finding {
    // Asked of the kernel itself: there may be no /proc.
    let good = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
    let state = if good { "may make and change links" } else { "may not make or change links" };
    let remedy = "run as root; or take a tap made for you (sudo ip tuntap add tap0 mode tap user $USER vnet_hdr), or an fd";
    Finding {
        what: "CAP_NET_ADMIN".into(),
        good,
        state: state.into(),
        remedy: (!good).then(|| remedy.into()),
    }
}

/// A device node that something needs.
pub(super) fn device(path: &str, what: &str, module: &str, needed: bool) -> Finding {
    let opened = fs::OpenOptions::new().read(true).write(true).open(path);
    let (good, state, remedy) = match opened {
        Ok(_) => (true, format!("can be opened: {what}"), None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let remedy = Some(format!("modprobe {module}; in a container, --device {path}"));
            (!needed, format!("is not there: no {what}"), remedy)
        }
        Err(e) => (
            !needed,
            format!("cannot be opened: {e}"),
            Some("run as root, or be given the right to it".into()),
        ),
    };
    Finding { what: path.into(), good, state, remedy }
}

/// Links that can be no bridge's port and no macvtap's parent, of those in `links`.
pub(super) fn wireless(links: &Path) -> Vec<Finding> {
    let links = fs::read_dir(links).into_iter().flatten().flatten();
    let wireless =
        links.filter(|link| link.path().join("phy80211").exists() || link.path().join("wireless").exists());
    wireless
        .map(|link| Finding {
            what: link.file_name().to_string_lossy().into_owned(),
            good: true,
            state:
                "is Wi-Fi, which carries one MAC address: no bridge and no macvtap on it; take tap,nat or tun"
                    .into(),
            remedy: None,
        })
        .collect()
}

/// Whether packets that come by another link than their answers would go by are dropped, by the settings of each link in
/// `conf`. The kernel takes the greater one of the link's and that of all (`ip-sysctl.rst`): 0 is off, 1 strict, 2 loose.
pub(super) fn reverse_path(conf: &Path) -> Finding {
    const STRICT: u8 = 1;
    let setting = |link: &str| -> Option<u8> {
        fs::read_to_string(conf.join(link).join("rp_filter")).ok()?.trim().parse().ok()
    };
    let finding = |state, remedy| Finding { what: "rp_filter".into(), good: true, state, remedy };
    let Some(all) = setting("all") else {
        return finding(format!("cannot be told: there is no {}", conf.display()), None);
    };
    let entries = fs::read_dir(conf).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut strict: Vec<_> = links
        .filter(|link| !["all", "default", "lo"].contains(&link.as_str()))
        .filter(|link| setting(link).is_some_and(|own| own.max(all) == STRICT))
        .collect();
    strict.sort();
    // A link to come begins with the default.
    let to_come = setting("default").is_some_and(|own| own.max(all) == STRICT);
    strict.extend(iter::once("links to come".to_owned()).filter(|_| to_come));
    if strict.is_empty() {
        return finding("does not keep a guest's packets from coming back by another link".into(), None);
    }
    finding(
        format!(
            "is strict on {}: a guest's packets that come back there and went by another link are dropped",
            strict.join(", ")
        ),
        Some("sysctl -w net.ipv4.conf.all.rp_filter=2, where guests have several ways out".into()),
    )
}

/// What wirevm processes that are gone have left behind.
pub(super) fn left_over() -> Vec<Finding> {
    let finding = |good, state: String, remedy| Finding { what: "left-overs".into(), good, state, remedy };
    let command = |text: &str| Some(text.to_owned());
    match net::left_over(&net::Host::new()) {
        Ok(left) if left.is_empty() && rustix::process::geteuid().is_root() => {
            vec![finding(true, "none".into(), None)]
        }
        // Records are for their user's eyes alone.
        Ok(left) if left.is_empty() => {
            let state = "none of this user's; those of root and others cannot be seen";
            vec![finding(true, state.into(), command("sudo wirevm doctor"))]
        }
        Ok(left) => {
            let steps = left.steps.iter().map(|step| {
                let state = format!("a dead wirevm's; undone by: {}", step.command);
                finding(false, state, command("wirevm doctor --clean"))
            });
            // Nobody knows what is left then.
            let unreadable = left.unreadable.iter().map(|error| {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                let remedy = "look into it; another version of wirevm may have written it, whose doctor --clean takes it";
                finding(false, format!("{error}{cause}"), command(remedy))
            });
            steps.chain(unreadable).collect()
        }
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            vec![finding(false, format!("cannot be looked for: {error}{cause}"), error.remedy())]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_absent_is_bad_only_where_it_is_needed() {
        let needed = device("/dev/no-such-device", "nothing", "nothing", true);
        assert!(!needed.good && needed.remedy.unwrap().contains("modprobe nothing"));
        assert!(device("/dev/no-such-device", "nothing", "nothing", false).good);
        assert!(device("/dev/null", "nothing", "nothing", true).good);
    }

    #[test]
    fn the_greater_one_of_a_link_s_and_all_s_rp_filter_holds() {
        let conf = std::env::temp_dir().join(format!("wirevm-rp-filter-{}", std::process::id()));
        let found = |settings: &[(&str, u8)]| {
            let _ = fs::remove_dir_all(&conf);
            for (link, setting) in settings {
                fs::create_dir_all(conf.join(link)).unwrap();
                fs::write(conf.join(link).join("rp_filter"), format!("{setting}\n")).unwrap();
            }
            reverse_path(&conf)
        };
        let strict_on = |finding: Finding| {
            let (_, rest) = finding.state.split_once("is strict on ")?;
            assert!(finding.remedy.is_some_and(|remedy| remedy.contains("all.rp_filter=2")));
            rest.split_once(':').map(|(links, _)| links.to_owned())
        };
        let of = |all, default, eth0, eth1| {
            [("all", all), ("default", default), ("lo", 1), ("eth0", eth0), ("eth1", eth1)]
        };
        for (settings, strict) in [
            (of(0, 0, 0, 0), None),
            (of(0, 0, 1, 0), Some("eth0")),
            (of(0, 1, 1, 2), Some("eth0, links to come")),
            (of(1, 0, 0, 2), Some("eth0, links to come")),
            (of(2, 1, 1, 1), None),
        ] {
            assert_eq!(strict_on(found(&settings)).as_deref(), strict, "{settings:?}");
        }
        fs::remove_dir_all(&conf).unwrap();
        assert!(reverse_path(&conf).state.contains("cannot be told"));
    }

    #[test]
    fn wi_fi_is_told_by_its_radio() {
        let links = std::env::temp_dir().join(format!("wirevm-wireless-{}", std::process::id()));
        for link in ["eth0/device", "wlan0/phy80211", "old0/wireless"] {
            fs::create_dir_all(links.join(link)).unwrap();
        }
        let mut found: Vec<_> = wireless(&links).into_iter().map(|finding| finding.what).collect();
        found.sort();
        fs::remove_dir_all(&links).unwrap();
        assert_eq!(found, ["old0", "wlan0"]);
    }
}
