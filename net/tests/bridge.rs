//! Taps on real bridges, each test in a network namespace of its own. A guest is a backend that the test sends frames into.

mod namespace;

use std::process::{Command, Stdio};

use namespace::guest::{NEVER, SOON, recv, send};
use namespace::settled::{assert_as, settled, until_up, without_dad};
use namespace::wire::{clean, open, open_all_told, open_told};
use namespace::{
    child as be_child, holding, in_namespace, kill, killed_at, leave, records, run, run_in_own_mounts, shell,
    skip,
};

#[test]
fn child() {
    be_child();
}

/// A broadcast frame of an experimental kind (IEEE 802) that says `word`.
fn broadcast(from: [u8; 6], word: &str) -> Vec<u8> {
    [&[0xff; 6][..], &from, &[0x88, 0xb5], word.as_bytes(), &[0; 46]].concat()
}

#[test]
fn a_bridge_is_made_and_goes_with_the_last() {
    in_namespace("a_bridge_is_made_and_goes_with_the_last", || {
        let before = settled();
        let (mut first, told) = open_all_told("bridge=br0,mac=02:00:00:00:00:01");
        let made = told[0].split(' ').nth(6).unwrap().to_owned();
        let expected = [
            &format!("ip link add name br0 address {made} type bridge stp_state 0 forward_delay 0")[..],
            "sysctl -w net.ipv6.conf.br0.addr_gen_mode=1",
            "sysctl -w net.ipv6.conf.br0.accept_ra=0",
            "ip link set dev br0 up",
            "ip tuntap add dev wirevm0 mode tap vnet_hdr",
            "ip link set dev wirevm0 address fe:00:00:00:00:01",
            "sysctl -w net.ipv6.conf.wirevm0.disable_ipv6=1",
            "ip link set dev wirevm0 master br0",
            "bridge link set dev wirevm0 learning off guard on",
            "bridge fdb replace 02:00:00:00:00:01 dev wirevm0 master static sticky",
            "ip link set dev wirevm0 up",
        ];
        let without_ipv6: Vec<_> = expected.iter().filter(|line| !line.contains("ipv6")).collect();
        let (rules, told): (Vec<_>, Vec<_>) = told.into_iter().partition(|line| line.starts_with("nft "));
        assert!(told == expected || told.iter().eq(without_ipv6), "{told:?}");
        assert_eq!(rules[0], "nft add table netdev wirevm-wirevm0");
        assert_eq!((first.link.as_str(), first.mtu), ("wirevm0", 1500));
        let is = run("ip -d link show br0");
        for word in ["stp_state 0", "forward_delay 0", ",UP", &made] {
            assert!(is.contains(word), "{word}: {is}");
        }
        assert!(!run("ip address show br0").contains("inet"), "no address by itself");

        let (mut second, told) = open_told("bridge=br0,mac=02:00:00:00:00:02");
        assert_eq!(told[0], "ip tuntap add dev wirevm1 mode tap vnet_hdr");
        assert!(run("ip link show br0").contains(&made), "the address stays when ports come");
        send(&mut first, &broadcast([2, 0, 0, 0, 0, 1], "hello"));
        let is_hello = |frame: &[u8]| frame.get(14..19) == Some(b"hello");
        let hello = recv(&mut second, SOON, is_hello).expect("the other guest has the frame");
        assert_eq!(hello, broadcast([2, 0, 0, 0, 0, 1], "hello"));
        assert!(recv(&mut first, NEVER, is_hello).is_none(), "it does not come back");

        drop(first);
        assert!(run("ip link show br0").contains(&made), "and when they go");
        drop(second);
        assert_as(&before, "after it");
    });
}

#[test]
fn what_is_told_does_the_same_by_hand() {
    in_namespace("what_is_told_does_the_same_by_hand", || {
        let (opened, told) = open_told("bridge=br0,mtu=9000");
        let of = |link: &str| {
            let text = run(&format!("ip -d address show {link}"));
            let words = [
                "mtu 9000",
                "master br0",
                "type tap",
                "vnet_hdr on",
                ",UP",
                "stp_state 0",
                "forward_delay 0",
            ];
            (
                text.lines().nth(1).map(str::to_owned).filter(|_| link == "br0"),
                words.map(|w| text.contains(w)),
            )
        };
        let made = (of("br0"), of("wirevm0"));
        drop(opened);
        told.iter().for_each(|line| shell(line));
        assert_eq!((of("br0"), of("wirevm0")), made);
        assert!(made.0.1[0], "a bridge with no other port takes the MTU");
    });
}

#[test]
fn a_bridge_that_was_there_stays() {
    in_namespace("a_bridge_that_was_there_stays", || {
        without_dad();
        run("ip link add br0 type bridge");
        run("ip address add 172.31.0.1/24 dev br0");
        run("ip link add veth0 type veth peer name veth1");
        run("ip link set veth0 master br0");
        for link in ["br0", "veth0", "veth1"] {
            run(&format!("ip link set {link} up"));
        }
        until_up("br0");
        let before = settled();
        let (opened, told) = open_told("bridge=br0");
        assert_eq!(told[0], "ip tuntap add dev wirevm0 mode tap vnet_hdr");
        assert!(run("ip link show wirevm0").contains("master br0"));
        drop(opened);
        assert_as(&before, "after it");
        kill(holding("bridge=br0"));
        clean();
        assert_as(&before, "after it");
    });
}

#[test]
fn the_address_of_a_bridge_that_was_there_stays() {
    in_namespace("the_address_of_a_bridge_that_was_there_stays", || {
        let mac = || run("ip link show br0").split("link/ether ").nth(1).unwrap()[..17].to_owned();
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        let before = mac();
        let opened = open("bridge=br0").unwrap();
        assert_eq!(mac(), before);
        drop(opened);
        assert_eq!(mac(), before, "without ports");
        run("ip link del br0");

        // A bridge with a port has the address of that.
        run("ip link add veth0 address fa:00:00:00:00:01 type veth peer name veth1");
        run("ip link add br0 type bridge");
        run("ip link set veth0 master br0");
        let before = mac();
        let opened = open("bridge=br0").unwrap();
        assert_eq!((mac(), before.as_str()), (before.clone(), "fa:00:00:00:00:01"));
        drop(opened);
    });
}

#[test]
fn the_bridge_of_killed_ones_goes_with_the_last() {
    in_namespace("the_bridge_of_killed_ones_goes_with_the_last", || {
        let before = settled();
        let mut steps = 0;
        while killed_at("bridge=br0", steps + 1) {
            steps += 1;
            assert!(run("ip link show br0").contains("br0"), "step {steps}");
            clean();
            assert_as(&before, "after it");
        }
        assert!(steps >= 5, "{steps}");

        let first = holding("bridge=br0");
        let second = holding("bridge=br0");
        kill(first);
        clean();
        assert!(run("ip link show br0").contains("br0"), "the second one is on it");
        kill(second);
        let third = holding("bridge=br0");
        leave(third);
        assert_as(&before, "after it");
    });
}

#[test]
fn somebody_elses_bridge_of_the_same_name_is_not_deleted() {
    in_namespace("somebody_elses_bridge_of_the_same_name_is_not_deleted", || {
        for how in [leave, kill] {
            let wirevm = holding("bridge=br0");
            run("ip link del br0");
            run("ip link add br0 type bridge");
            let before = run("ip -d link show br0");
            how(wirevm);
            clean();
            assert_eq!((run("ip -d link show br0"), records()), (before, vec![]));
            run("ip link del br0");
        }
    });
}

#[test]
fn what_is_no_bridge_is_refused() {
    in_namespace("what_is_no_bridge_is_refused", || {
        run("ip link add veth0 type veth peer name veth1");
        run("ip tuntap add tap0 mode tap");
        let before = settled();
        for (spec, words) in [
            ("bridge=lo", "a network interface, not a bridge"),
            ("bridge=veth0", "a veth, not"),
            ("bridge=tap0", "a tap (layer 2), not"),
        ] {
            let error = open(spec).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.remedy().unwrap().contains("uplink="), spec != "bridge=lo", "{error}");
        }
        assert_as(&before, "after it");
    });
}

#[test]
fn the_mtu_is_that_of_the_way() {
    in_namespace("the_mtu_is_that_of_the_way", || {
        let mtu = |link: &str| {
            let text = run(&format!("ip link show {link}"));
            text.split(" mtu ").nth(1).unwrap().split(' ').next().unwrap().parse::<u32>().unwrap()
        };
        without_dad();
        run("ip link add br0 type bridge");
        run("ip link add veth0 mtu 4000 type veth peer name veth1 mtu 4000");
        run("ip link set veth0 master br0");
        for link in ["br0", "veth0", "veth1"] {
            run(&format!("ip link set {link} up"));
        }
        until_up("br0");
        let before = settled();
        let opened = open("bridge=br0").unwrap();
        assert_eq!((opened.mtu, mtu("wirevm0"), mtu("br0")), (4000, 4000, 4000));
        drop(opened);
        // The guest may have less, and the others keep what they have.
        let opened = open("bridge=br0,mtu=1400").unwrap();
        assert_eq!((opened.mtu, mtu("wirevm0"), mtu("br0")), (1400, 4000, 4000));
        drop(opened);
        let error = open("bridge=br0,mtu=9000").unwrap_err();
        assert_eq!(error.to_string(), "mtu=9000: veth0 carries 4000 bytes at most");
        assert!(error.remedy().unwrap().contains("ip link set dev veth0 mtu 9000"));
        assert_as(&before, "after it");

        let first = open("bridge=br1").unwrap();
        let error = open("bridge=br1,mtu=9000").unwrap_err();
        assert_eq!(error.to_string(), "mtu=9000: wirevm0 carries 1500 bytes at most");
        drop(first);
        let jumbo = open("bridge=br1,mtu=9000").unwrap();
        assert_eq!((jumbo.mtu, mtu("br1")), (9000, 9000));
        let second = open("bridge=br1").unwrap();
        assert_eq!(second.mtu, 9000, "as the others on it");
    });
}

#[test]
fn a_bridge_without_vlans_is_refused() {
    in_namespace("a_bridge_without_vlans_is_refused", || {
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        let error = open("bridge=br0,vlan=10").unwrap_err();
        assert_eq!(error.to_string(), "vlan=10: br0 does not filter VLANs");
        assert_eq!(
            error.remedy().unwrap(),
            "let it filter: sudo ip link set dev br0 type bridge vlan_filtering 1"
        );
    });
}

#[test]
fn a_host_without_writable_settings_has_bridges_too() {
    in_namespace("a_host_without_writable_settings_has_bridges_too", || {
        if !std::fs::exists("/proc/sys/net/ipv6").unwrap_or_default() {
            return skip("a_host_without_writable_settings_has_bridges_too", "there is no IPv6");
        }
        run_in_own_mounts(|| {
            run("mount --bind /proc/sys /proc/sys");
            run("mount -o remount,bind,ro /proc/sys");
            let (guest, told) = open_told("bridge=br0");
            assert!(!told.iter().any(|line| line.starts_with("sysctl")), "{told:?}");
            let said = |text: &str| guest.notices.iter().filter(|notice| notice.contains(text)).count();
            assert_eq!((said("an IPv6 address on br0"), said("over IPv6")), (2, 1), "{:?}", guest.notices);
            assert!(run("ip link show wirevm0").contains("master br0"));
        });
    });
}

/// What takes VLANs on bridges: Debian's kernel has them, and so the lab, and the machine's may not.
mod stock {
    use super::*;

    /// Whether the kernel has VLANs on bridges; says that `test` skips where not.
    fn has_vlans(test: &str) -> bool {
        let has = Command::new("ip").args("link add vlans type bridge vlan_filtering 1".split(' ')).status();
        let _ = Command::new("ip").args(["link", "del", "vlans"]).stderr(Stdio::null()).status();
        if !has.is_ok_and(|status| status.success()) {
            skip(test, "this kernel's bridges have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)");
            return false;
        }
        true
    }

    /// The VLANs of a port, in the words of bridge(8).
    fn vlans(port: &str) -> Vec<String> {
        let lines = run(&format!("bridge vlan show dev {port}"));
        let lines = lines.lines().skip(1).map(|line| line.trim_start_matches(port));
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn a_bridge_of_ours_gets_vlans() {
        const NAME: &str = "a_bridge_of_ours_gets_vlans";
        in_namespace(NAME, || {
            if !has_vlans(NAME) {
                return;
            }
            let first = open("bridge=br1").unwrap();
            let (second, told) = open_told("bridge=br1,vlan=10");
            assert_eq!(told[0], "ip link set dev br1 type bridge vlan_filtering 1");
            assert_eq!(vlans(&first.link), ["1 PVID Egress Untagged"]);
            assert_eq!(vlans(&second.link), ["10 PVID Egress Untagged"]);
        });
    }

    #[test]
    fn guests_of_one_vlan_talk_and_of_two_do_not() {
        const NAME: &str = "guests_of_one_vlan_talk_and_of_two_do_not";
        in_namespace(NAME, || {
            if !has_vlans(NAME) {
                return;
            }
            let before = settled();
            run("ip link add nic type veth peer name lan");
            run("ip link set lan up");
            let (host, told) = namespace::wire::told();
            let open = |spec: &str| net::open(&spec.parse().unwrap(), &host).unwrap();
            let mut first = open("bridge=br0,vlan=10,uplink=nic");
            let mut second = open("bridge=br0,vlan=10");
            let mut other = open("bridge=br0,vlan=20");
            assert_eq!(vlans("nic"), ["1 PVID Egress Untagged", "10", "20"], "{told:?}");
            assert_eq!(vlans(&other.link), ["20 PVID Egress Untagged"]);

            let from = first.mac.octets();
            let is_hello = |frame: &[u8]| frame.get(14..19) == Some(b"hello");
            send(&mut first, &broadcast(from, "hello"));
            assert!(recv(&mut second, SOON, is_hello).is_some(), "it is in the VLAN");
            assert!(recv(&mut other, NEVER, is_hello).is_none(), "it is not");
            drop((first, second, other));
            run("ip link del nic");
            assert_as(&before, "after it");
        });
    }
}
