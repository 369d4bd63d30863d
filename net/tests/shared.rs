//! What several wirevm share stays until the last of them ends, whatever runtime directory each of them has; and a bridge that somebody
//! else uses by then stays for as long as he does.

mod namespace;

use std::path::PathBuf;

use namespace::settled::{assert_as, settled, until_up, without_dad};
use namespace::wire::{clean, opened};
use namespace::{
    child as be_child, holding, holding_with_records_in, in_namespace, kill, leave, own_run_directory,
    records, run, warnings,
};

#[test]
fn child() {
    be_child();
}

/// A NIC `eth1` with an address and a route.
fn a_host() {
    own_run_directory();
    without_dad();
    run("ip link set lo up");
    run("ip link add eth1 type veth peer name far");
    for link in ["eth1", "far"] {
        run(&format!("ip link set {link} up"));
    }
    run("ip address add 10.9.0.2/24 dev eth1");
    until_up("eth1");
    run("ip route add default via 10.9.0.1 dev eth1");
}

/// Another runtime directory, which goes with it; no record may be left in it.
struct Other(PathBuf);

impl Other {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("wirevm-other-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn records(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name != "lock").collect()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn is_bridged() -> bool {
    run("ip -o link show type bridge").contains("br0") && run("ip -o link show eth1").contains("master br0")
}

#[test]
fn the_last_one_ends_a_bridge_wherever_its_records_are() {
    in_namespace("the_last_one_ends_a_bridge_wherever_its_records_are", || {
        a_host();
        let (before, other) = (settled(), Other::new());
        let spec = "bridge=br0,uplink=eth1";
        for first_is_killed in [false, true] {
            let first = holding(spec);
            let second = holding_with_records_in(&other.0, spec);
            match first_is_killed {
                false => leave(first),
                true => {
                    kill(first);
                    clean();
                }
            }
            assert!(is_bridged(), "the second one is on it, killed: {first_is_killed}");
            leave(second);
            assert_as(&before, &format!("killed: {first_is_killed}"));
            assert_eq!(other.records(), [""; 0]);
        }
        // The other way round.
        let first = holding_with_records_in(&other.0, spec);
        let second = holding(spec);
        leave(first);
        assert!(is_bridged());
        kill(second);
        // Its records are where the first one's were.
        leave(holding_with_records_in(&other.0, "tap"));
        clean();
        assert_as(&before, "both are gone");
        assert_eq!(other.records(), [""; 0]);
    });
}

#[test]
fn the_last_one_ends_forwarding_and_a_namespace_wherever_its_records_are() {
    in_namespace("the_last_one_ends_forwarding_and_a_namespace_wherever_its_records_are", || {
        a_host();
        let (before, other) = (settled(), Other::new());
        let forwards =
            || std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth1/forwarding").unwrap().trim() == "1";
        let first = holding("tap,nat");
        let second = holding_with_records_in(&other.0, "tap,nat");
        leave(first);
        assert!(forwards(), "the second one needs it");
        leave(second);
        assert!(!forwards());
        let first = holding("tap,netns=vpn");
        let second = holding_with_records_in(&other.0, "tap,netns=vpn");
        leave(first);
        run("ip -n vpn link show wirevm1");
        leave(second);
        assert!(!std::fs::exists("/run/netns/vpn").unwrap());
        assert_as(&before, "all are gone");
        assert_eq!(other.records(), [""; 0]);
    });
}

#[test]
fn a_bridge_with_a_port_of_somebody_else_stays_and_it_is_said() {
    in_namespace("a_bridge_with_a_port_of_somebody_else_stays_and_it_is_said", || {
        a_host();
        run("ip link add px type veth peer name py");
        run("ip link set px up");
        let before = settled();
        for is_killed in [false, true] {
            drop(warnings());
            let spec = "bridge=br0,uplink=eth1";
            match is_killed {
                false => {
                    let ours = opened(spec);
                    run("ip link set px master br0");
                    drop(ours);
                }
                true => {
                    let ours = holding(spec);
                    run("ip link set px master br0");
                    kill(ours);
                    clean();
                }
            }
            let told = warnings();
            assert!(told.iter().any(|line| line.contains("br0 stays") && line.contains("px")), "{told:?}");
            assert!(is_bridged() && run("ip address show br0").contains("10.9.0.2"), "killed: {is_killed}");
            assert_eq!(records().len(), 2, "of the bridge, and of its uplink");
            // The next one has it with him.
            drop(opened(spec));
            assert!(is_bridged());
            run("ip link set px nomaster");
            clean();
            assert_as(&before, &format!("killed: {is_killed}"));
        }
        // On a bridge of somebody's, an uplink comes and goes as before.
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        run("ip link set px master br0");
        drop(opened("bridge=br0,uplink=eth1"));
        assert!(!run("ip -o link show eth1").contains("master") && records().is_empty());
        // Who needs no uplink does not keep that of another one of us.
        run("ip link del br0");
        let first = holding("bridge=br0");
        leave(holding("bridge=br0,uplink=eth1"));
        assert!(!run("ip -o link show eth1").contains("master"));
        leave(first);
        assert_eq!(records(), [""; 0]);
    });
}
