//! What other rules of the host do to a guest, and that it is said.

mod namespace;

use std::process::Command;

use namespace::machine::{Guest, Machine};
use namespace::{as_user, in_namespace, run, skip};
use net::{Finding, findings};

fn nft(command: &str) {
    let done = Command::new("nft").arg(command).output().unwrap();
    assert!(done.status.success(), "nft {command}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A link that leads to the world.
fn lan() {
    run("ip link add lan type veth peer name far");
    run("ip link set lan up");
    run("ip route add default dev lan");
}

/// What a NIC with NAT is told when it starts.
fn notices() -> Vec<String> {
    net::open(&"tap,host=172.31.0.1/24,nat".parse().unwrap(), &net::Host::new()).unwrap().notices
}

fn bad() -> Vec<Finding> {
    // Some kernels have bridged frames pass the rules for routed packets in every new namespace.
    findings().into_iter().filter(|finding| !finding.good && finding.what != "bridge-nf-call").collect()
}

#[test]
fn a_host_without_a_firewall_is_good() {
    in_namespace("a_host_without_a_firewall_is_good", || {
        lan();
        assert_eq!((notices(), bad()), (vec![], vec![]));
        assert!(findings().iter().any(|finding| finding.what == "nftables" && finding.state == "does NAT"));
    });
}

#[test]
fn a_chain_that_drops_is_named_with_the_command_that_lets_the_guest_through() {
    in_namespace("a_chain_that_drops_is_named_with_the_command_that_lets_the_guest_through", || {
        lan();
        let forward = "{ type filter hook forward priority 0; policy";
        for (rules, place, command) in [
            (
                vec![format!("add chain inet mine pass {forward} drop; }}")],
                "the nftables table inet mine, in its chain pass",
                "sudo nft 'insert rule inet mine pass iifname \"wirevm0\" accept'",
            ),
            (
                vec![
                    format!("add chain inet mine pass {forward} accept; }}"),
                    "add rule inet mine pass ct state established accept".to_owned(),
                    "add rule inet mine pass counter reject with icmpx admin-prohibited".to_owned(),
                ],
                "the nftables table inet mine, in its chain pass",
                "sudo nft 'insert rule inet mine pass iifname \"wirevm0\" accept'",
            ),
            // As Docker makes it, by iptables-nft.
            (
                vec![
                    format!("add chain ip filter FORWARD {forward} drop; }}"),
                    "add chain ip filter DOCKER-USER".to_owned(),
                    "add rule ip filter FORWARD jump DOCKER-USER".to_owned(),
                ],
                "the nftables table ip filter, in its chain FORWARD",
                "sudo iptables -I DOCKER-USER -i wirevm0 -j ACCEPT; sudo iptables -I DOCKER-USER -o wirevm0",
            ),
            (
                vec![
                    format!("add chain inet firewalld filter_FORWARD {forward} accept; }}"),
                    "add rule inet firewalld filter_FORWARD drop".to_owned(),
                ],
                "the nftables table inet firewalld, in its chain filter_FORWARD",
                "sudo firewall-cmd --zone=trusted --add-interface=wirevm0",
            ),
        ] {
            let table = rules[0].split(' ').skip(2).take(2).collect::<Vec<_>>().join(" ");
            nft(&format!("add table {table}"));
            rules.iter().for_each(|rule| nft(rule));
            let told = notices();
            assert!(told.len() == 1 && told[0].contains(place) && told[0].contains(command), "{told:?}");
            let found = bad();
            assert!(found.len() == 1 && found[0].state.contains(place), "{found:?}");
            assert!(found[0].remedy.as_ref().unwrap().contains(command), "{found:?}");
            nft(&format!("delete table {table}"));
        }
        // A chain that all are sent to drops.
        nft("add table inet mine");
        nft("add chain inet mine end");
        nft("add rule inet mine end tcp dport 22 accept");
        nft("add rule inet mine end counter drop");
        nft("add chain inet mine more");
        nft("add rule inet mine more jump end");
        nft(&format!("add chain inet mine pass {forward} accept; }}"));
        nft("add rule inet mine pass ct state established accept");
        for word in ["jump", "goto"] {
            nft(&format!("add rule inet mine pass {word} more"));
            assert!(notices().len() == 1 && bad().len() == 1, "{word}: {:?}", notices());
            nft("flush chain inet mine pass");
        }
        // Not where it is sent on a condition only, or nothing comes so far.
        nft("add rule inet mine pass ct state invalid jump more");
        assert!(notices().is_empty() && bad().is_empty());
        nft("add rule inet mine pass accept");
        nft("add rule inet mine pass drop");
        assert!(notices().is_empty() && bad().is_empty());
        nft("delete table inet mine");
        // One that lets the guest's subnet pass is not blamed, whatever its policy.
        nft("add table inet mine");
        nft(&format!("add chain inet mine pass {forward} drop; }}"));
        for (rule, passes) in [
            ("ip saddr 172.31.0.0/24 accept", true),
            ("ip daddr 172.16.0.0/12 counter accept", true),
            ("ip saddr 172.31.0.1 accept", false),
            ("ip saddr 172.31.0.0/24 drop", false),
            ("ip saddr != 172.31.0.0/24 accept", false),
            ("ip saddr 192.0.2.0/24 accept", false),
        ] {
            nft(&format!("add rule inet mine pass {rule}"));
            assert_eq!(notices().is_empty(), passes, "{rule}: {:?}", notices());
            nft("flush chain inet mine pass");
        }
        nft("add rule inet mine pass ip saddr 10.0.0.0/8 accept");
        assert!(bad().is_empty() && notices().len() == 1);
        nft("delete table inet mine");
        // Chains that drop nothing, or elsewhere.
        nft("add table inet mine");
        nft(&format!("add chain inet mine pass {forward} accept; }}"));
        nft("add rule inet mine pass tcp dport 22 drop");
        nft("add chain inet mine in { type filter hook input priority 0; policy drop; }");
        assert_eq!(notices(), [""; 0]);
    });
}

#[test]
fn the_command_that_is_told_lets_the_guest_through() {
    const NAME: &str = "the_command_that_is_told_lets_the_guest_through";
    in_namespace(NAME, || {
        let world = Machine::new();
        world.plug("lan", "eth0");
        run("ip address add 192.0.2.1/24 dev lan");
        run("ip route add default via 192.0.2.2");
        world.commands(&["ip address add 192.0.2.2/24 dev eth0"]);
        let shell = |line: &str| {
            let done = Command::new("sh").args(["-ec", line]).output().unwrap();
            (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
        };
        for (make, undo) in [
            (
                "nft add table inet mine; nft 'add chain inet mine pass { type filter hook forward priority 0; policy drop; }'",
                "nft delete table inet mine",
            ),
            ("iptables-nft -P FORWARD DROP", "nft delete table ip filter"),
            ("iptables-legacy -P FORWARD DROP", "iptables-legacy -F; iptables-legacy -P FORWARD ACCEPT"),
        ] {
            let (made, errors) = shell(make);
            if !made {
                skip(NAME, &format!("{make}: {errors}"));
                continue;
            }
            let spec = "tap,host=172.31.0.1/24,nat,forward=8080:80".parse().unwrap();
            let mut opened = net::open(&spec, &net::Host::new()).unwrap();
            let guest = Guest::on(&mut opened);
            guest.commands(&["ip address add 172.31.0.2/24 dev eth0", "ip route add default via 172.31.0.1"]);
            let server = world.serve("0.0.0.0:80");
            assert!(guest.try_to_talk("192.0.2.2:80").is_err(), "{make}");
            assert_eq!(opened.notices.len(), 1, "{make}: {:?}", opened.notices);

            let (_, command) = opened.notices[0].split_once("let it through: ").unwrap();
            // No sudo here, and `iptables` may stand for the old one.
            let command = command.replace("sudo ", "").replace("iptables ", "iptables-nft ");
            let (done, errors) = shell(&command);
            assert!(done, "{command}: {errors}");
            guest.talk("192.0.2.2:80").unwrap_or_else(|error| panic!("{command}: {error}"));
            server.visitor();
            let server = guest.serve("0.0.0.0:80");
            world.talk("192.0.2.1:8080").unwrap_or_else(|error| panic!("{command}: {error}"));
            server.visitor();
            drop((guest, opened));
            assert_eq!(notices(), [""; 0], "{command}");
            let (undone, errors) = shell(undo);
            assert!(undone, "{undo}: {errors}");
        }
    });
}

#[test]
fn a_policy_of_the_old_ip6tables_is_told() {
    in_namespace("a_policy_of_the_old_ip6tables_is_told", || {
        lan();
        if !Command::new("ip6tables-legacy")
            .args(["-P", "FORWARD", "DROP"])
            .output()
            .is_ok_and(|done| done.status.success())
        {
            return skip(
                "a_policy_of_the_old_ip6tables_is_told",
                "no ip6tables-legacy, or none in this kernel",
            );
        }
        let told = notices();
        assert!(
            told.len() == 1 && told[0].contains("sudo ip6tables-legacy -I FORWARD -i wirevm0 -j ACCEPT"),
            "{told:?}"
        );
        run("ip6tables-legacy -I FORWARD -i wirevm0 -j ACCEPT");
        assert_eq!(notices(), [""; 0]);
    });
}

#[test]
fn bridged_frames_that_pass_a_firewall_are_told() {
    in_namespace("bridged_frames_that_pass_a_firewall_are_told", || {
        let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        if std::fs::write(switch, "1").is_err() {
            return skip("bridged_frames_that_pass_a_firewall_are_told", "the kernel has no br_netfilter");
        }
        let bridged = || {
            findings()
                .into_iter()
                .filter(|finding| !finding.good && finding.what == "bridge-nf-call")
                .collect::<Vec<_>>()
        };
        nft("add table ip filter");
        nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
        let found = bridged();
        assert_eq!(found.len(), 1);
        assert!(
            found[0].remedy.as_ref().unwrap().contains("iptables -I FORWARD -i br0 -o br0 -j ACCEPT"),
            "{found:?}"
        );
        std::fs::write(switch, "0").unwrap();
        std::fs::write("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "1").unwrap();
        assert_eq!(bridged(), [], "IPv6 frames do not pass this chain");
    });
}

#[test]
fn the_command_that_is_told_lets_bridged_guests_talk() {
    const NAME: &str = "the_command_that_is_told_lets_bridged_guests_talk";
    in_namespace(NAME, || {
        if std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1").is_err() {
            return skip(NAME, "the kernel has no br_netfilter");
        }
        nft("add table ip filter");
        nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
        nft("add rule ip filter FORWARD counter");
        let open = || net::open(&"bridge=br0".parse().unwrap(), &net::Host::new()).unwrap();
        let mut opened = [open(), open()];
        let guests = opened.each_mut().map(Guest::on);
        guests[0].commands(&["ip address add 172.31.0.2/24 dev eth0"]);
        guests[1].commands(&["ip address add 172.31.0.3/24 dev eth0"]);
        let server = guests[1].serve("0.0.0.0:80");
        assert!(guests[0].try_to_talk("172.31.0.3:80").is_err());
        let chain = run("nft list chain ip filter FORWARD");
        assert!(!chain.contains("counter packets 0 "), "it was this chain that dropped: {chain}");
        let notices = opened[1].notices.concat();
        let (_, command) = notices.split_once("let them through: ").unwrap();
        // No sudo here, and `iptables` may stand for the old one.
        run(&command.replace("sudo iptables ", "iptables-nft "));
        guests[0].talk("172.31.0.3:80").unwrap_or_else(|error| panic!("{command}: {error}"));
        assert_eq!(server.visitor(), "172.31.0.2");
    });
}

#[test]
fn without_rights_it_is_said_that_it_cannot_be_looked_at() {
    in_namespace("without_rights_it_is_said_that_it_cannot_be_looked_at", || {
        let found = as_user(65534, findings);
        let state = |what| found.iter().find(|finding| finding.what == what).unwrap();
        assert!(!state("nftables").good && state("nftables").remedy.as_ref().unwrap().contains("root"));
        assert!(state("firewall").state.contains("cannot be looked at"), "{found:?}");
    });
}
