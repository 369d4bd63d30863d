//! Wires that follow what happens to the host's links, each test in a network namespace of its own.

mod namespace;

use std::thread;
use std::time::{Duration, Instant};

use namespace::settled::{assert_as, settled, without_dad};
use namespace::{child as be_child, in_namespace, records, run, shell};
use net::{Condition, Host, NetConfig, Watch, Wire};

#[test]
fn child() {
    be_child();
}

struct Followed {
    wire: Wire,
    watch: Watch,
}

impl Followed {
    fn open(spec: &str) -> Self {
        Self::of(&spec.parse().unwrap())
    }

    fn of(config: &NetConfig) -> Self {
        let mut wire = Wire::open(config, &Host::new()).unwrap_or_else(|error| panic!("{error}"));
        let watch = wire.watch().unwrap();
        let followed = Self { wire, watch };
        assert_eq!(*followed.wire.condition(), Condition::Up);
        followed
    }

    /// Hears the news until the wire is as `is` says; then all there is.
    #[track_caller]
    fn until(&mut self, is: impl Fn(&Condition) -> bool) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(10);
        let mut said = Vec::new();
        while !is(self.wire.condition()) {
            assert!(Instant::now() < end, "it is {:?}\n{}", self.wire.condition(), run("ip -d link"));
            self.hear();
            said.extend(self.wire.take_notices());
            thread::sleep(Duration::from_millis(1));
        }
        said
    }

    fn hear(&mut self) {
        if let Some(news) = self.watch.news() {
            self.wire.look(&news);
        }
    }

    #[track_caller]
    fn until_up(&mut self) -> Vec<String> {
        self.until(|condition| *condition == Condition::Up)
    }

    #[track_caller]
    fn until_down(&mut self, why: &str) {
        self.until(|condition| condition.why().is_some_and(|said| said.contains(why)));
        assert!(matches!(self.wire.condition(), Condition::Down(_)), "{:?}", self.wire.condition());
    }
}

/// A NIC `nic` whose cable ends at `far`, both up.
fn nic() {
    run("ip link add nic type veth peer name far");
    run("ip link set far up");
    run("ip link set nic up");
}

#[test]
fn a_tap_is_up_while_its_link_is() {
    in_namespace("a_tap_is_up_while_its_link_is", || {
        let before = settled();
        for kind in ["tap=t0,host=172.31.0.1/24", "tun=t0,host=172.31.0.1/24"] {
            let mut followed = Followed::open(kind);
            run("ip link set t0 down");
            followed.until_down("t0 is down");
            run("ip link set t0 up");
            followed.until_up();
            run("ip link set t0 name t1");
            followed.until_up();
            run("ip link set t1 down");
            followed.until_down("t1 is down");
            run("ip link del t1");
            followed.until(|condition| *condition == Condition::Lost("t1 was deleted".into()));
            let again = followed.wire.again();
            assert_eq!(again.mac, Some(followed.wire.mac()));
            drop(followed);
            assert_as(&before, "after it");
            let again = Followed::of(&again);
            assert_eq!(again.wire.link(), "t1");
            assert!(run("ip address show t1").contains("172.31.0.1"));
        }
        assert_as(&before, "after it");
    });
}

#[test]
fn a_wire_is_made_again_with_what_was_chosen_for_it() {
    in_namespace("a_wire_is_made_again_with_what_was_chosen_for_it", || {
        let first = Wire::open(&"tap".parse().unwrap(), &Host::new()).unwrap();
        let (again, mac) = (first.again(), first.mac());
        let address = run("ip -4 -o address show wirevm0");
        drop(first);
        // Another one would have its place and the first free subnet now.
        let _other = Wire::open(&"tap".parse().unwrap(), &Host::new()).unwrap();
        let refused = Wire::open(&again, &Host::new()).unwrap_err();
        assert!(refused.to_string().contains("wirevm0"), "{refused}");
        drop(_other);
        let again = Wire::open(&again, &Host::new()).unwrap();
        assert_eq!((again.mac(), again.link()), (mac, "wirevm0"));
        let words = |text: &str| text.split_whitespace().skip(1).take(4).collect::<Vec<_>>().join(" ");
        assert_eq!(words(&run("ip -4 -o address show wirevm0")), words(&address));
    });
}

#[test]
fn a_bridge_that_is_made_again_gets_its_port_back() {
    in_namespace("a_bridge_that_is_made_again_gets_its_port_back", || {
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        let before = settled();
        let mut followed = Followed::open("bridge=br0,isolated=on,mac=02:00:00:00:00:01");
        let as_port = || {
            let port = run("bridge -d link show dev wirevm0");
            let stations = run("bridge fdb show dev wirevm0");
            let has = |text: &str, word: &str| text.contains(word);
            (
                has(&port, "isolated on"),
                has(&port, "learning off"),
                has(&stations, "02:00:00:00:00:01 sticky master br0 static"),
            )
        };
        let rules = || {
            let listed = std::process::Command::new("nft").args(["list", "tables"]).output();
            listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        };
        let (port, tables) = (as_port(), rules());
        assert_eq!(
            port,
            (true, true, true),
            "{}{}",
            run("bridge -d link show dev wirevm0"),
            run("bridge -d fdb show")
        );
        for round in 0..5 {
            run("ip link del br0");
            followed.until_down("br0 is gone");
            run("ip link add br0 type bridge");
            // It is its maker's to set up.
            let said = followed.until(|condition| *condition == Condition::Down("br0 is down".into()));
            assert!(
                said.iter().any(|said| said == "br0 is there again, and wirevm0 is a port of it"),
                "{said:?}"
            );
            run("ip link set br0 up");
            followed.until_up();
            assert_eq!((as_port(), rules()), (port, tables.clone()), "round {round}");
        }
        // The guest is told of no more than that.
        assert!(followed.wire.take_notices().is_empty());
        drop(followed);
        let after = settled();
        assert_eq!(before.lines().count(), after.lines().count(), "{before}\n{after}");
        assert!(run("ip link show br0").contains(",UP"), "it is as its maker left it");
        assert!(records().is_empty(), "{:?}", records());
    });
}

#[test]
fn a_bridge_is_joined_that_was_made_again_before_anybody_looked() {
    in_namespace("a_bridge_is_joined_that_was_made_again_before_anybody_looked", || {
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        let mut followed = Followed::open("bridge=br0");
        shell("ip link del br0 && ip link add br0 type bridge && ip link set br0 up");
        let said = followed.until(|_| run("bridge link show dev wirevm0").contains("master br0"));
        assert_eq!(said.last().map(String::as_str), Some("br0 is there again, and wirevm0 is a port of it"));
        assert_eq!(*followed.wire.condition(), Condition::Up);
    });
}

#[test]
fn a_port_that_is_taken_out_by_hand_stays_out() {
    in_namespace("a_port_that_is_taken_out_by_hand_stays_out", || {
        let mut followed = Followed::open("bridge=br0");
        run("ip link set wirevm0 nomaster");
        followed.until_down(
            "wirevm0 was taken out of br0; to put it back: sudo ip link set dev wirevm0 master br0",
        );
        run("ip link set br0 down");
        run("ip link set br0 up");
        thread::sleep(Duration::from_millis(20));
        followed.hear();
        assert!(!run("ip link show wirevm0").contains("master"), "somebody took it out");
        run("ip link set wirevm0 master br0");
        followed.until_up();
        run("ip link set br0 down");
        followed.until_down("br0 is down");
        run("ip link set br0 up");
        followed.until_up();
    });
}

#[test]
fn an_uplink_that_is_plugged_in_again_has_the_hosts_addresses_at_the_end() {
    in_namespace("an_uplink_that_is_plugged_in_again_has_the_hosts_addresses_at_the_end", || {
        without_dad();
        nic();
        run("ip address add 172.31.0.1/24 dev nic");
        run("ip route add default via 172.31.0.254");
        let mut followed = Followed::open("bridge=br0,uplink=nic");
        run("ip link set far down");
        followed.until_down("nic has no carrier");
        run("ip link set far up");
        followed.until_up();
        run("ip link set nic down");
        followed.until_down("the uplink nic is down");
        run("ip link set nic up");
        followed.until_up();
        for _ in 0..3 {
            run("ip link del nic");
            followed.until_down("the uplink nic is gone");
            assert!(run("ip address show br0").contains("172.31.0.1/24"), "the host keeps its address");
            nic();
            followed.until_up();
            assert!(run("ip link show nic").contains("master br0"));
        }
        drop(followed);
        assert!(run("ip address show nic").contains("172.31.0.1/24"), "{}", run("ip address"));
        assert!(run("ip route").contains("default via 172.31.0.254 dev nic"), "{}", run("ip route"));
        assert!(!run("ip link").contains("br0"));
        assert!(records().is_empty(), "{:?}", records());
    });
}

#[test]
fn a_macvtap_is_up_while_its_nic_is() {
    in_namespace("a_macvtap_is_up_while_its_nic_is", || {
        nic();
        let mut followed = Followed::open("macvtap=nic");
        run("ip link set nic down");
        followed.until_down("nic is down");
        run("ip link set nic up");
        followed.until_up();
        run("ip link set far down");
        followed.until_down("nic has no carrier");
        run("ip link set far up");
        followed.until_up();
        run("ip link del wirevm0");
        followed.until(|condition| matches!(condition, Condition::Lost(_)));
        let again = followed.wire.again();
        drop(followed);
        let mut followed = Followed::of(&again);
        run("ip link del nic");
        followed.until_down("nic is gone, and wirevm0 with it");
        nic();
        followed.until(|condition| matches!(condition, Condition::Lost(_)));
        drop(followed);
        assert!(records().is_empty(), "{:?}", records());
    });
}

#[test]
fn the_guests_connections_leave_by_a_link_that_came_later() {
    in_namespace("the_guests_connections_leave_by_a_link_that_came_later", || {
        let forwards = |link: &str| {
            std::fs::read_to_string(format!(
                "/proc/thread-self/net/../../sys/net/ipv4/conf/{link}/forwarding"
            ))
            .or_else(|_| std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{link}/forwarding")))
            .unwrap()
        };
        nic();
        run("ip address add 172.30.0.1/24 dev nic");
        run("ip route add default via 172.30.0.254");
        let mut wire = match Wire::open(&"tap,nat,host=172.31.0.1/24".parse().unwrap(), &Host::new()) {
            Err(error) => return namespace::skip("the_guests_connections_leave", &error.to_string()),
            Ok(wire) => wire,
        };
        let watch = wire.watch().unwrap();
        let mut followed = Followed { wire, watch };
        assert_eq!(forwards("nic").trim(), "1");
        run("ip link add vpn type veth peer name vpn-far");
        run("ip link set vpn-far up");
        run("ip link set vpn up");
        run("ip address add 10.8.0.2/24 dev vpn");
        run("ip route replace default via 10.8.0.1");
        let end = Instant::now() + Duration::from_secs(10);
        let mut said = Vec::new();
        while forwards("vpn").trim() != "1" && Instant::now() < end {
            followed.hear();
            said.extend(followed.wire.take_notices());
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(said, ["the guest's connections leave by vpn too"]);
        let rules = std::process::Command::new("nft").args(["list", "ruleset"]).output();
        if let Ok(rules) = rules {
            let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
            assert!(rules.contains("\"vpn\"") && rules.contains("\"nic\""), "{rules}");
        }
        // Nobody else's rules are there any more, and ours are.
        let _ = std::process::Command::new("nft").args(["flush", "ruleset"]).status();
        if let Ok(tables) = std::process::Command::new("nft").args(["list", "tables"]).output() {
            let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
            assert!(tables.contains("wirevm-wirevm0"), "{tables}");
        }
        drop(followed);
        assert_eq!((forwards("nic").trim(), forwards("vpn").trim()), ("0", "0"));
        assert!(records().is_empty(), "{:?}", records());
    });
}

#[test]
fn a_tap_of_somebodys_is_theirs_to_make_again() {
    in_namespace("a_tap_of_somebodys_is_theirs_to_make_again", || {
        let make = || {
            run("ip tuntap add dev own mode tap vnet_hdr");
            run("ip address add 172.31.0.1/24 dev own");
            run("ip link set own up");
        };
        make();
        let mut followed = Followed::open("tap=own");
        run("ip link del own");
        followed.until_down("own was deleted; the guest is on it again when there is one of that name");
        make();
        followed.until(|condition| matches!(condition, Condition::Lost(_)));
        let again = followed.wire.again();
        drop(followed);
        let followed = Followed::of(&again);
        assert_eq!(run("ip -o -4 address show dev own").lines().count(), 1, "its addresses are its owner's");
        drop(followed);
        assert!(run("ip address show dev own").contains("172.31.0.1/24"));
    });
}

#[test]
fn links_that_are_renamed_are_named_so_for_the_next_wire() {
    in_namespace("links_that_are_renamed_are_named_so_for_the_next_wire", || {
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        nic();
        for (spec, link) in [("bridge=br0", "br0"), ("macvtap=nic", "nic")] {
            let mut followed = Followed::open(spec);
            run(&format!("ip link set {link} down"));
            run(&format!("ip link set {link} name lan0"));
            run("ip link set lan0 up");
            followed.until(|_| run("ip link show lan0").contains(",UP"));
            followed.wire.look(&net::News::of_all());
            let again = followed.wire.again().to_string();
            assert!(again.contains("=lan0,"), "{again}");
            drop(followed);
            run("ip link set lan0 down");
            run(&format!("ip link set lan0 name {link}"));
            run(&format!("ip link set {link} up"));
        }
    });
}

#[test]
fn an_uplink_that_two_wires_join_again_stays_for_the_one_that_stays() {
    in_namespace("an_uplink_that_two_wires_join_again_stays_for_the_one_that_stays", || {
        without_dad();
        nic();
        run("ip address add 172.31.0.1/24 dev nic");
        let [mut first, mut second] = [(); 2].map(|()| Followed::open("bridge=br0,uplink=nic"));
        run("ip link del nic");
        first.until_down("the uplink nic is gone");
        second.until_down("the uplink nic is gone");
        nic();
        first.until_up();
        second.until_up();
        drop(first);
        assert!(run("ip link show nic").contains("master br0"), "the second one has it still");
        assert!(run("ip address show br0").contains("172.31.0.1/24"));
        drop(second);
        assert!(run("ip address show nic").contains("172.31.0.1/24"), "{}", run("ip address"));
        assert!(!run("ip link").contains("br0") && records().is_empty(), "{:?}", records());
    });
}

#[test]
fn an_uplink_that_is_somebody_elses_port_now_stays_that() {
    in_namespace("an_uplink_that_is_somebody_elses_port_now_stays_that", || {
        without_dad();
        nic();
        run("ip address add 172.31.0.1/24 dev nic");
        let mut followed = Followed::open("bridge=br0,uplink=nic");
        run("ip link del br0");
        followed.until_down("br0 is gone");
        shell(
            "ip link add br0 type bridge && ip link set nic master br0 && ip address add 172.31.0.1/24 dev br0 && ip link set br0 up",
        );
        followed.until_up();
        drop(followed);
        assert!(run("ip link show nic").contains("master br0"), "{}", run("ip -d link show nic"));
        assert!(
            !run("ip address show nic").contains("172.31.0.1"),
            "its owner gave the address to the bridge"
        );
        assert!(run("ip address show br0").contains("172.31.0.1/24"));
        assert!(records().is_empty(), "{:?}", records());
    });
}

#[test]
fn a_link_that_two_guests_follow_passes_on_until_both_are_gone() {
    in_namespace("a_link_that_two_guests_follow_passes_on_until_both_are_gone", || {
        let forwards = || run("sysctl -n net.ipv4.conf.vpn.forwarding").trim().to_owned();
        let open = |host| Wire::open(&format!("tap,nat,host={host}").parse().unwrap(), &Host::new());
        let mut both = Vec::new();
        for host in ["172.31.0.1/24", "172.31.1.1/24"] {
            let mut wire = match open(host) {
                Err(error) => return namespace::skip("two guests follow", &error.to_string()),
                Ok(wire) => wire,
            };
            let watch = wire.watch().unwrap();
            both.push(Followed { wire, watch });
        }
        run("ip link add vpn type veth peer name vpn-far");
        run("ip link set vpn-far up");
        run("ip link set vpn up");
        run("ip address add 10.8.0.2/24 dev vpn");
        run("ip route add default via 10.8.0.1");
        for followed in &mut both {
            let end = Instant::now() + Duration::from_secs(10);
            let mut said = Vec::new();
            while said.is_empty() && Instant::now() < end {
                followed.hear();
                followed.wire.look(&net::News::default());
                said.extend(followed.wire.take_notices().into_iter().filter(|said| said.contains("vpn")));
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(said, ["the guest's connections leave by vpn too"]);
        }
        both.remove(0);
        assert_eq!(forwards(), "1", "the second one needs it");
        both.clear();
        assert_eq!(forwards(), "0");
        assert!(records().is_empty(), "{:?}", records());
    });
}

#[test]
fn news_that_was_lost_is_news_of_all() {
    in_namespace("news_that_was_lost_is_news_of_all", || {
        let mut followed = Followed::open("tap=t0,host=172.31.0.1/24");
        shell("for i in $(seq 3000); do echo link set lo alias a$i; done | ip -batch -");
        run("ip link set t0 down");
        shell("for i in $(seq 3000); do echo link set lo alias a$i; done | ip -batch -");
        followed.until_down("t0 is down");
    });
}
