//! A link that gets another name while it is in use is as before at the end, under its new name; another link that has its number
//! by then is left alone.

mod namespace;

use namespace::settled::{assert_as, settled, until_up, without_dad};
use namespace::wire::{clean, opened};
use namespace::{
    child as be_child, holding, in_namespace, kill, leave, own_run_directory, records, run, runtime_dir,
    warnings,
};

#[test]
fn child() {
    be_child();
}

/// A NIC `eth1` with an address, a route and a neighbour, which leads to `far`.
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
    run("ip neighbour add 10.9.0.1 lladdr 02:00:00:00:00:09 dev eth1 nud permanent");
}

fn rename(link: &str, to: &str) {
    run(&format!("ip link set dev {link} name {to}"));
}

/// Opens `spec`, renames each of the `links` while it is open, and ends it as it should, or kills it and cleans.
fn renamed_while_open(spec: &str, links: &[[&str; 2]], is_killed: bool) {
    let child = holding(spec);
    for [link, other] in links {
        rename(link, other);
    }
    match is_killed {
        false => leave(child),
        true => {
            kill(child);
            clean();
        }
    }
}

/// The names of the links that are there.
fn links() -> Vec<String> {
    let name = |line: &str| {
        Some(line.split_whitespace().nth(1)?.trim_end_matches(':').split('@').next()?.to_owned())
    };
    run("ip -o link").lines().filter_map(name).collect()
}

#[test]
fn an_uplink_and_its_bridge_that_are_renamed_are_as_before() {
    in_namespace("an_uplink_and_its_bridge_that_are_renamed_are_as_before", || {
        a_host();
        let before = settled();
        for is_killed in [false, true] {
            for renamed in [&[["eth1", "lan1"]][..], &[["br0", "sw0"]], &[["eth1", "lan1"], ["br0", "sw0"]]] {
                drop(warnings());
                renamed_while_open("bridge=br0,uplink=eth1", renamed, is_killed);
                assert_eq!(warnings(), [""; 0], "{renamed:?}");
                assert!(!links().iter().any(|link| ["br0", "sw0"].contains(&&**link)), "{renamed:?}");
                if links().contains(&"lan1".to_owned()) {
                    rename("lan1", "eth1");
                }
                assert_as(&before, &format!("{renamed:?}, killed: {is_killed}"));
            }
        }
    });
}

#[test]
fn a_bridge_is_shared_under_every_name_that_it_gets() {
    in_namespace("a_bridge_is_shared_under_every_name_that_it_gets", || {
        a_host();
        let before = settled();
        let first = holding("bridge=br0,uplink=eth1");
        rename("br0", "sw0");
        rename("eth1", "lan1");
        let second = holding("bridge=sw0,uplink=lan1");
        leave(first);
        let master = run("ip -o link show master sw0");
        assert!(master.contains("lan1"), "the second one has it still: {master}");
        leave(second);
        rename("lan1", "eth1");
        assert_as(&before, "the second one has left");
    });
}

#[test]
fn a_nic_that_nat_switched_on_and_a_tap_are_as_before() {
    in_namespace("a_nic_that_nat_switched_on_and_a_tap_are_as_before", || {
        a_host();
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        run("ip link set tap0 up");
        run("ip link set tap0 down");
        let before = settled();
        let forwards = |link: &str| {
            let key = format!("/proc/sys/net/ipv4/conf/{link}/forwarding");
            std::fs::read_to_string(key).unwrap().trim() == "1"
        };
        for is_killed in [false, true] {
            let spec = "tap=tap0,host=172.31.0.1/24,mtu=1400,nat";
            renamed_while_open(spec, &[["tap0", "mine"], ["eth1", "lan1"]], is_killed);
            assert!(!forwards("lan1") && !forwards("mine"), "killed: {is_killed}");
            rename("mine", "tap0");
            rename("lan1", "eth1");
            assert_as(&before, &format!("killed: {is_killed}"));
        }
        // Another one that takes part meanwhile keeps it on.
        let first = holding("tap,nat");
        rename("eth1", "lan1");
        let second = holding("tap,nat");
        leave(first);
        assert!(forwards("lan1"), "the second one needs it");
        leave(second);
        assert!(!forwards("lan1"));
        rename("lan1", "eth1");
        assert_as(&before, "both have left");
    });
}

#[test]
fn a_macvtap_that_is_renamed_goes_and_one_of_somebody_s_gets_its_address_back() {
    in_namespace("a_macvtap_that_is_renamed_goes_and_one_of_somebody_s_gets_its_address_back", || {
        a_host();
        run("ip link add link eth1 name mv0 address 02:00:00:00:00:01 type macvtap mode bridge");
        // A link has its queue's discipline from the first time that it is up.
        run("ip link set mv0 up");
        run("ip link set mv0 down");
        run("ip link set eth1 down");
        let before = settled();
        for is_killed in [false, true] {
            renamed_while_open("macvtap=eth1", &[["wirevm0", "mine"], ["eth1", "lan1"]], is_killed);
            rename("lan1", "eth1");
            renamed_while_open("macvtap=mv0,mac=02:00:00:00:00:07", &[["mv0", "theirs"]], is_killed);
            rename("theirs", "mv0");
            run("ip link set eth1 down");
            assert_as(&before, &format!("killed: {is_killed}"));
        }
    });
}

#[test]
fn another_link_with_the_number_and_the_name_is_left_alone() {
    in_namespace("another_link_with_the_number_and_the_name_is_left_alone", || {
        a_host();
        for is_killed in [false, true] {
            let index = run("ip -o link show eth1").split(':').next().unwrap().to_owned();
            let child = holding("bridge=br0,uplink=eth1");
            run("ip link del eth1");
            run(&format!("ip link add eth1 index {index} type veth peer name far"));
            if is_killed {
                kill(child);
                clean();
            } else {
                leave(child);
            }
            assert!(!run("ip address show eth1").contains("10.9.0.2"), "killed: {is_killed}");
            assert!(!links().contains(&"br0".to_owned()) && records().is_empty());
            run("ip link del eth1");
            run("ip link add eth1 type veth peer name far");
            run("ip link set eth1 up");
            run("ip link set far up");
            run("ip address add 10.9.0.2/24 dev eth1");
        }
    });
}

#[test]
fn what_nobody_can_tell_stays_on_record_and_is_said() {
    in_namespace("what_nobody_can_tell_stays_on_record_and_is_said", || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        kill(holding("tap=tap0,host=172.31.0.1/24"));
        // As where sysfs cannot be mounted.
        for name in records() {
            let path = runtime_dir().join(name);
            let text = std::fs::read_to_string(&path).unwrap();
            let without = |line: &str| {
                let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
                let marks = line["marks"].as_array_mut().expect("each link is marked");
                marks
                    .iter_mut()
                    .for_each(|mark| drop(mark.as_object_mut().unwrap().remove("node").expect("a node")));
                format!("{line}\n")
            };
            std::fs::write(&path, text.lines().map(without).collect::<String>()).unwrap();
        }
        rename("tap0", "mine");
        let before = records().len();
        drop(warnings());
        clean();
        assert_eq!(records().len(), before);
        assert!(run("ip address show mine").contains("172.31.0.1"));
        let told = warnings();
        assert!(told.iter().any(|line| line.contains("was tap0 and is mine")), "{told:?}");
        rename("mine", "tap0");
        clean();
        assert!(!run("ip address show tap0").contains("172.31.0.1"));
        assert_eq!(records(), [""; 0]);
        drop(opened("tap=tap0"));
    });
}
