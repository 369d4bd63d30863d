//! `uplink=`: a NIC of the host joins the bridge, and its addresses and routes move there and back. The NIC is a veth whose
//! other end is in a namespace of its own, the LAN.

mod namespace;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use namespace::guest::{SOON, recv, send};
use namespace::settled::{settled, until_up, without_dad};
use namespace::wire::{clean, open, open_told};
use namespace::{
    child as be_child, enter, holding, in_namespace, kill, killed_at, leave, own_run_directory, records, run,
    shell,
};

#[test]
fn child() {
    be_child();
}

/// The addresses and routes of the NIC that are of some sort each.
const V4: [&str; 12] = [
    "address add 10.9.0.2/24 broadcast 10.9.0.255 dev eth1",
    "address add 10.9.0.3/24 dev eth1",
    "address add 10.9.0.4/24 dev eth1 label eth1:web",
    "address add 10.8.0.1/24 dev eth1 metric 50 noprefixroute",
    "address add 10.7.0.1 peer 10.7.0.2/32 scope link dev eth1",
    "address add 10.6.0.1/24 dev eth1 valid_lft 3000 preferred_lft 2000",
    "route add default via 10.9.0.1 dev eth1 proto static src 10.9.0.3 metric 100",
    "route add 10.77.0.0/16 via 10.9.0.1 dev eth1 mtu 1400 advmss 1300 table 100",
    "route add 10.8.0.0/24 dev eth1 proto dhcp scope link src 10.8.0.1 metric 50",
    "route add 192.0.2.1/32 dev eth1 scope link",
    "route add 198.51.100.0/24 via 192.0.2.1 dev eth1",
    "route add 203.0.113.0/24 via 192.0.2.99 dev eth1 onlink tos 0x10",
];
const V6: [&str; 8] = [
    "address add fd09::2/64 dev eth1",
    "address add fd09::3/64 dev eth1",
    "address add fd08::1/64 dev eth1 noprefixroute nodad",
    "address add fd07::1/64 dev eth1 valid_lft 3000 preferred_lft 2000",
    "-6 route add default via fd09::1 dev eth1 proto static metric 10",
    "-6 route add default via fe80::1 dev eth1 proto ra metric 1024 expires 1800 pref high",
    "-6 route add 2001:db8:1::/48 dev eth1 metric 5 mtu 1300",
    "-6 route add 2001:db8:2::/48 via 2001:db8:1::9 dev eth1 src fd09::3",
];

/// A NIC `eth1` with addresses and routes of every sort, and the LAN behind it, where 10.9.0.1 is. Another link has routes too.
fn a_host() {
    own_run_directory();
    without_dad();
    run("ip netns add lan");
    run("ip link add eth1 type veth peer name lan0 netns lan");
    run("ip -n lan address add 10.9.0.1/24 dev lan0");
    run("ip -n lan link set lan0 up");
    run("ip link set lo up");
    run("ip link add other type veth peer name far");
    run("ip address add 10.1.0.1/24 dev other");
    for link in ["other", "far", "eth1"] {
        run(&format!("ip link set {link} up"));
    }
    let ipv6 = std::fs::exists("/proc/sys/net/ipv6").unwrap_or_default();
    for line in V4.into_iter().chain(V6.into_iter().filter(|_| ipv6)) {
        until_up("eth1");
        run(&format!("ip {line}"));
    }
}

/// A bridge `br1` with a port.
fn a_bridge() {
    run("ip link add br1 type bridge");
    run("ip link add in type veth peer name out");
    for line in ["br1 up", "in master br1", "in up", "out up"] {
        run(&format!("ip link set {line}"));
    }
    until_up("br1");
}

/// The state without lifetimes, which go down by themselves, and counters.
fn host() -> String {
    let state = settled() + &run("ip route show table 100") + &run("ip -6 route show");
    let lifetime = |word: &str| word.ends_with("sec") && word.starts_with(|c: char| c.is_ascii_digit());
    let words = state.split_inclusive([' ', '\n']);
    words.map(|word| if lifetime(word.trim()) { "SECONDS " } else { word }).collect()
}

#[track_caller]
fn assert_host(before: &str, when: &str) {
    let now = host();
    let only = |a: &str, b: &str, sign: &str| -> String {
        a.lines()
            .filter(|line| !b.lines().any(|l| l == *line))
            .map(|line| format!("{sign} {line}\n"))
            .collect()
    };
    let order = before.lines().zip(now.lines()).find(|(before, now)| before != now);
    let differ = only(before, &now, "-") + &only(&now, before, "+") + &format!("first: {order:?}");
    assert!(now == before, "{when}: the host is not as before:\n{differ}");
    assert_eq!(records(), [""; 0], "{when}");
}

/// Addresses and routes of a link, as if its name were LINK.
fn ways(link: &str) -> String {
    let addresses = run(&format!("ip address show dev {link}"));
    // Without what the kernel makes by itself, and the lines about the link itself.
    let addresses = addresses.lines().filter(|line| line.contains("inet") && !line.contains("fe80::"));
    let routes: String = ["ip route show table all dev", "ip -6 route show table all dev"]
        .map(|c| run(&format!("{c} {link}")))
        .concat();
    let routes = routes.lines().filter(|line| !line.contains("table local") && !line.contains("fe80::/64"));
    let mut lines: Vec<_> = addresses.chain(routes).map(|line| line.trim().replace(link, "LINK")).collect();
    lines.sort();
    let seconds = |word: &str| if word.ends_with("sec") { "SECONDS" } else { word }.to_owned();
    lines.iter().map(|line| line.split(' ').map(seconds).collect::<Vec<_>>().join(" ") + "\n").collect()
}

#[test]
fn what_a_route_is_told_with_makes_the_same_route() {
    const METRICS: &str = "mtu lock 1400 window 1000 rtt 10ms rttvar 5ms ssthresh lock 9 cwnd lock 7 advmss lock 1300 \
        reordering lock 4 hoplimit lock 8 initcwnd lock 20 rto_min 200ms initrwnd lock 9 quickack 1 features ecn \
        congctl lock reno realm 3/4";
    in_namespace("what_a_route_is_told_with_makes_the_same_route", || {
        run("ip link add eth1 type veth peer name far");
        run("ip link set far up");
        run("ip link set eth1 up");
        run("ip address add 10.9.0.2/24 dev eth1");
        until_up("eth1");
        run(&format!("ip route add 10.77.0.0/16 via 10.9.0.1 dev eth1 {METRICS}"));
        let route = || run("ip route show 10.77.0.0/16").replace("dev br0", "dev eth1");
        let before = route();
        let (opened, told) = open_told("bridge=br0,uplink=eth1");
        assert_eq!(
            route().split_whitespace().collect::<Vec<_>>(),
            before.split_whitespace().collect::<Vec<_>>()
        );
        let line = told.iter().find(|line| line.contains("append 10.77.0.0/16")).expect("it moves");
        run("ip route del 10.77.0.0/16");
        run(line);
        assert_eq!(
            route().split_whitespace().collect::<Vec<_>>(),
            before.split_whitespace().collect::<Vec<_>>()
        );
        drop(opened);
        assert_eq!(route(), before);
    });
}

#[test]
fn addresses_and_routes_move_and_come_back() {
    in_namespace("addresses_and_routes_move_and_come_back", || {
        a_host();
        run("ping -c 1 -W 5 10.9.0.1");
        let before = host();
        let ways_before = ways("eth1");
        let (opened, _) = open_told("bridge=br0,uplink=eth1");
        assert_eq!(ways("br0"), ways_before);
        assert_eq!(ways("eth1"), "", "nothing is left there");
        let link = |name: &str| run(&format!("ip link show {name}"));
        let ether = |name: &str| link(name).split("link/ether ").nth(1).unwrap()[..17].to_owned();
        assert!(link("eth1").contains("master br0"));
        assert_eq!(ether("br0"), ether("eth1"), "the neighbours know it");
        run("ping -c 1 -W 5 10.9.0.1");
        assert!(
            opened.notices.iter().any(|notice| notice.contains("10.6.0.1 has a lifetime")),
            "{:?}",
            opened.notices
        );
        drop(opened);
        assert_host(&before, "after it");
        run("ping -c 1 -W 5 10.9.0.1");
    });
}

#[test]
fn the_lines_do_the_same_by_hand() {
    in_namespace("the_lines_do_the_same_by_hand", || {
        a_host();
        let (opened, told) = open_told("bridge=br0,uplink=eth1");
        let moved = ways("br0");
        drop(opened);
        told.iter().for_each(|line| shell(line));
        // By hand, an IPv6 address that is used at once says so for ever.
        let plain = |text: &str| text.replace(" nodad", "");
        assert_eq!(plain(&ways("br0")), plain(&moved));
        // And the kernel leaves the route of an address that has an end, which has an end too.
        let left: Vec<_> =
            ways("eth1").lines().filter(|line| !line.starts_with("fd07::/64")).map(str::to_owned).collect();
        assert_eq!(left, [""; 0]);
    });
}

#[test]
fn a_guest_reaches_the_lan_under_its_own_mac() {
    in_namespace("a_guest_reaches_the_lan_under_its_own_mac", || {
        a_host();
        let mut guest = open("bridge=br0,uplink=eth1,mac=02:00:00:00:00:01").unwrap();
        let mac = guest.mac.octets();
        let request = [
            &[0xff; 6][..],
            &mac,
            &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1],
            &mac,
            &[10, 9, 0, 50, 0, 0, 0, 0, 0, 0, 10, 9, 0, 1],
        ]
        .concat();
        send(&mut guest, &request);
        let is_reply = |frame: &[u8]| frame.get(12..22) == Some(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2]);
        let reply = recv(&mut guest, SOON, is_reply).expect("the machine behind the uplink answers");
        assert_eq!(reply[..6], mac);
        assert!(run("ip -n lan neigh show 10.9.0.50").contains("02:00:00:00:00:01"));
    });
}

#[test]
fn whenever_it_is_killed_the_host_comes_back() {
    in_namespace("whenever_it_is_killed_the_host_comes_back", || {
        a_host();
        let before = host();
        let mut step = 1;
        while killed_at("bridge=br0,uplink=eth1", step) {
            clean();
            assert_host(&before, &format!("killed at step {step}"));
            step += 1;
        }
        assert!(step > 20, "{step}");
        assert_host(&before, "after it");
        kill(holding("bridge=br0,uplink=eth1"));
        leave(holding("tap,host=10.66.0.1/24"));
        assert_host(&before, "cleaned by the next one");
    });
}

#[test]
fn a_step_that_fails_takes_all_back() {
    in_namespace("a_step_that_fails_takes_all_back", || {
        a_host();
        a_bridge();
        run("ip address add 10.7.0.1 peer 10.7.0.2/32 dev br1");
        let before = host();
        let error = open("bridge=br1,uplink=eth1").unwrap_err();
        assert!(error.to_string().contains("ip address add 10.7.0.1 peer 10.7.0.2/32"), "{error}");
        assert_host(&before, "after it");
        // Two links with one subnet are in another order after a move, so not here.
        run("ip address del 10.7.0.1 peer 10.7.0.2/32 dev br1");
        let before = host();
        let error = open("bridge=br0,uplink=eth1,mtu=9000").unwrap_err();
        assert_eq!(error.to_string(), "mtu=9000: eth1 carries 1500 bytes at most");
        assert_host(&before, "after it");
    });
}

#[test]
fn several_share_the_uplink() {
    in_namespace("several_share_the_uplink", || {
        a_host();
        let before = host();
        let joined = || run("ip link show eth1").contains("master br0");
        let first = holding("bridge=br0,uplink=eth1");
        let second = holding("bridge=br0,uplink=eth1");
        let third = holding("bridge=br0");
        leave(first);
        assert!(joined());
        kill(second);
        clean();
        assert!(joined(), "who is on the bridge keeps its way out");
        leave(third);
        assert_host(&before, "after the last");

        // A bridge that was there loses the uplink, and stays; an uplink that was there stays.
        a_bridge();
        let before = host();
        leave(holding("bridge=br1,uplink=eth1"));
        assert_host(&before, "the bridge was there");
        run("ip link set far master br1");
        let before = host();
        leave(holding("bridge=br1,uplink=far"));
        assert_host(&before, "the port was there");
    });
}

#[test]
fn what_is_no_uplink_is_refused() {
    in_namespace("what_is_no_uplink_is_refused", || {
        a_host();
        run("ip link add br1 type bridge");
        run("ip link set far master br1");
        run("ip link add link other name mv0 type macvlan mode bridge");
        run("ip tuntap add dev tun0 mode tun");
        run("ip link add in type veth peer name out");
        run("ip link set in up");
        run("ip link set out up");
        run("ip route add 10.55.0.0/16 nexthop dev in nexthop dev eth1");
        let before = host();
        for (nic, words, remedy) in [
            ("none", "there is no such link", "ip link"),
            ("lo", "no Ethernet", "--net tap,nat"),
            ("tun0", "no Ethernet", "--net tap,nat"),
            ("br1", "a bridge itself", "--net bridge="),
            ("far", "a part of the bridge br1 already", "--net bridge=br1"),
            ("other", "mv0 is on it", "ip link del dev mv0"),
            ("in", "a route leads over it and others", "ip route replace 10.55.0.0/16 dev in"),
        ] {
            let error = open(&format!("bridge=br0,uplink={nic}")).unwrap_err();
            assert!(error.to_string().contains(words), "{nic}: {error}");
            assert!(error.remedy().unwrap().contains(remedy), "{nic}: {error:?}");
        }
        assert_host(&before, "after the refusals");
    });
}

#[test]
fn the_host_stays_reachable() {
    in_namespace("the_host_stays_reachable", || {
        a_host();
        let stop = Arc::new(AtomicBool::new(false));
        let echo = UdpSocket::bind("10.9.0.2:7777").unwrap();
        echo.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let server = {
            let stop = stop.clone();
            thread::spawn(move || {
                let mut buffer = [0; 16];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((len, from)) = echo.recv_from(&mut buffer) {
                        let _ = echo.send_to(&buffer[..len], from);
                    }
                }
            })
        };
        // Asks without a pause, and notes the longest time between two answers.
        let client = {
            let stop = stop.clone();
            thread::spawn(move || {
                enter("lan");
                let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
                socket.connect("10.9.0.2:7777").unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                let (mut last, mut longest, mut answers) = (Instant::now(), Duration::ZERO, 0);
                while !stop.load(Ordering::Relaxed) {
                    let _ = socket.send(b"?");
                    if socket.recv(&mut [0; 16]).is_ok() {
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                        answers += 1;
                    }
                }
                (longest.max(last.elapsed()), answers)
            })
        };
        thread::sleep(Duration::from_millis(200));
        let mut opening = Vec::new();
        for _ in 0..2 {
            let start = Instant::now();
            let opened = open("bridge=br0,uplink=eth1").unwrap();
            opening.push(start.elapsed());
            // Long enough to see a neighbour that is not found: the kernel asks again after a second.
            thread::sleep(Duration::from_millis(1100));
            drop(opened);
            thread::sleep(Duration::from_millis(1100));
        }
        stop.store(true, Ordering::Relaxed);
        server.join().unwrap();
        let (longest, answers) = client.join().unwrap();
        println!("longest silence {longest:?}, {answers} answers; opening took {opening:?}");
        // Some ten milliseconds are the kernel's; the rest is for a machine that has other things to do. A neighbour that is
        // asked for in vain, or an address that is asked for itself, would take a second.
        assert!(answers > 100 && longest < Duration::from_millis(700), "{longest:?}, {answers} answers");
    });
}
