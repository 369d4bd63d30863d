//! Bridges that do not pass the guest's frames, each in a network namespace of its own: what wirevm does about it, or says.

mod namespace;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use namespace::guest::{SOON, recv, send};
use namespace::settled::{assert_as, settled, until_up, without_dad};
use namespace::wire::{clean, open_told, opened};
use namespace::{child as be_child, holding, in_namespace, kill, leave, run, skip};

#[test]
fn child() {
    be_child();
}

/// `br0` with the ports `veth0` and so on, whose other ends are `end0` and so on; all are up.
fn bridge(ports: usize) {
    run("ip link add br0 type bridge");
    run("ip link set br0 up");
    for port in 0..ports {
        run(&format!("ip link add veth{port} type veth peer name end{port}"));
        run(&format!("ip link set veth{port} master br0"));
        run(&format!("ip link set veth{port} up"));
        run(&format!("ip link set end{port} up"));
    }
}

/// What a guest on `spec` is told about what does not pass.
fn told(spec: &str) -> Vec<String> {
    let mut notices = opened(spec).notices;
    notices.retain(|notice| notice.contains("nothing passes") || notice.contains("VLAN"));
    notices
}

/// Fails unless a guest on `spec` is told one thing, that has all these words.
#[track_caller]
fn is_told(spec: &str, words: &[&str]) {
    let told = told(spec);
    assert!(
        told.len() == 1 && words.iter().all(|word| told[0].contains(word)),
        "{spec}: {words:?}: {told:?}"
    );
}

#[test]
fn a_bridge_that_is_down_is_up_for_the_run() {
    in_namespace("a_bridge_that_is_down_is_up_for_the_run", || {
        without_dad();
        bridge(1);
        until_up("br0");
        run("ip link set br0 down");
        run("ip address add 172.31.0.1/24 dev br0");
        let ipv6 = std::fs::metadata("/proc/net/if_inet6").is_ok();
        if ipv6 {
            // The kernel forgets it when a link goes down.
            run("ip address add fd00::1/64 dev br0");
        }
        let before = settled();
        let (mut first, lines) = open_told("bridge=br0");
        assert_eq!(lines[0], "ip link set dev br0 up");
        assert_eq!(first.notices, [""; 0]);
        let mut second = opened("bridge=br0");
        let frame = [&[0xff; 6][..], &first.mac.octets(), &[0x88, 0xb5], b"hello", &[0; 46]].concat();
        send(&mut first, &frame);
        assert!(recv(&mut second, SOON, |frame| frame.get(14..19) == Some(b"hello")).is_some());
        drop(first);
        assert!(run("ip link show br0").contains(",UP"), "the second one uses it");
        drop(second);
        assert_as(&before, "after them");
        for how in [leave, kill] {
            how(holding("bridge=br0"));
            clean();
            assert_as(&before, "after one");
        }
        if ipv6 {
            assert!(before.contains("inet6 fd00::1/64"));
        }
    });
}

#[test]
fn each_state_of_a_port_that_passes_nothing_is_told() {
    in_namespace("each_state_of_a_port_that_passes_nothing_is_told", || {
        bridge(1);
        until_up("br0");
        assert_eq!(told("bridge=br0"), [""; 0]);
        for (wrong, right, words) in [
            ("ip link set veth0 down", "ip link set veth0 up", ["it is down", "ip link set dev veth0 up"]),
            ("ip link set end0 down", "ip link set end0 up", ["no carrier", "its other end"]),
            (
                "bridge link set dev veth0 state 0",
                "bridge link set dev veth0 state 3",
                ["disabled", "bridge link set dev veth0 state forwarding"],
            ),
            (
                "bridge link set dev veth0 learning off locked on",
                "bridge link set dev veth0 learning on locked off",
                ["locked to", "bridge link set dev veth0 locked off"],
            ),
        ] {
            run(wrong);
            is_told("bridge=br0", &[&words[..], &["the guest and veth0, a port of br0"]].concat());
            run(right);
            until_up("veth0");
            until_up("br0");
            assert_eq!(told("bridge=br0"), [""; 0], "{right}");
        }
    });
}

#[test]
fn a_port_that_rightly_blocks_beside_one_that_passes_is_not_told() {
    in_namespace("a_port_that_rightly_blocks_beside_one_that_passes_is_not_told", || {
        bridge(2);
        // Two ways to another bridge, which is the root of the tree.
        run("ip link add br1 type bridge stp_state 1 priority 1 forward_delay 200");
        run("ip link set br1 up");
        run("ip link set end0 master br1");
        run("ip link set end1 master br1");
        run("ip link set br0 type bridge stp_state 1");
        let end = Instant::now() + Duration::from_secs(30);
        while !run("bridge link show dev veth1").contains("state blocking") {
            assert!(Instant::now() < end, "{}", run("bridge link"));
            std::thread::sleep(Duration::from_millis(20));
        }
        let told = |spec: &str| {
            let told = told(spec);
            assert!(told[0].contains("for the first 4 seconds"), "{told:?}");
            told[1..].join("\n")
        };
        assert_eq!(told("bridge=br0"), "", "veth0 passes");
        let uplink = told("bridge=br0,uplink=veth1");
        assert!(uplink.contains("veth1, a port of br0: the spanning tree protocol blocks it"), "{uplink}");
    });
}

#[test]
fn many_ports_are_few_lines_and_other_guests_are_none() {
    in_namespace("many_ports_are_few_lines_and_other_guests_are_none", || {
        bridge(5);
        for port in 0..5 {
            run(&format!("ip link set end{port} down"));
        }
        // A machine's that does not run.
        run("ip tuntap add dev other mode tap");
        run("ip link set other master br0");
        run("ip link set other up");
        let told = told("bridge=br0");
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(told[3].contains(" 2 more ports of br0"), "{told:?}");
    });
}

#[test]
fn a_bridge_with_a_spanning_tree_says_how_long_a_guest_waits() {
    in_namespace("a_bridge_with_a_spanning_tree_says_how_long_a_guest_waits", || {
        bridge(0);
        run("ip link set br0 type bridge stp_state 1 forward_delay 400");
        is_told("bridge=br0", &["for the first 8 seconds", "type bridge stp_state 0"]);
        run("ip link set br0 type bridge stp_state 0");
        assert_eq!(told("bridge=br0"), [""; 0]);
    });
}

#[test]
fn an_uplink_without_a_carrier_is_told() {
    in_namespace("an_uplink_without_a_carrier_is_told", || {
        for up in [true, false] {
            run("ip link add nic type veth peer name lan");
            run(&format!("ip link set nic {}", if up { "up" } else { "down" }));
            is_told("bridge=br0,uplink=nic", &["the guest and nic, a port of br0: it has no carrier"]);
            run("ip link set lan up");
            assert_eq!(told("bridge=br0,uplink=nic"), [""; 0], "up before: {up}");
            run("ip link del nic");
        }
    });
}

/// What takes VLANs on bridges: Debian's kernel has them, and so the lab, and the machine's may not.
mod stock {
    use super::*;

    #[test]
    fn a_port_of_another_vlan_is_told_where_no_other_passes() {
        const NAME: &str = "a_port_of_another_vlan_is_told_where_no_other_passes";
        in_namespace(NAME, || {
            let vlans = "link add br0 type bridge vlan_filtering 1".split(' ');
            let made = Command::new("ip").args(vlans).stderr(Stdio::null()).status();
            if !made.is_ok_and(|made| made.success()) {
                return skip(NAME, "this kernel's bridges have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)");
            }
            run("ip link del br0");
            bridge(2);
            run("ip link set br0 type bridge vlan_filtering 1");
            assert_eq!(told("bridge=br0"), [""; 0]);
            assert_eq!(told("bridge=br0,vlan=10").len(), 2);
            run("bridge vlan add dev veth1 vid 5-15");
            assert_eq!(told("bridge=br0,vlan=10"), [""; 0], "veth1 is in it");
            is_told(
                "bridge=br0,vlan=10,uplink=veth0",
                &["the guest's VLAN 10: sudo bridge vlan add dev veth0 vid 10"],
            );
            run("ip link set br0 type bridge vlan_default_pvid 0");
            is_told("bridge=br0", &["vlan_default_pvid 0", "vlan=ID"]);
        });
    }
}
