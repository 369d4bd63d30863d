//! What a guest may send into a bridge, each test in a network namespace of its own: another guest looks at what arrives.

mod namespace;

use std::net::{Ipv4Addr, Ipv6Addr};

use namespace::guest::{NEVER, SOON, recv, send};
use namespace::settled::{assert_as, settled, until_up, without_dad};
use namespace::wire::{open, opened};
use namespace::{child as be_child, holding, in_namespace, kill, run};
use net::Opened;

#[test]
fn child() {
    be_child();
}

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ALL: [u8; 6] = [0xff; 6];

fn frame(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

fn v4(address: &str) -> [u8; 4] {
    address.parse::<Ipv4Addr>().unwrap().octets()
}

fn v6(address: &str) -> [u8; 16] {
    address.parse::<Ipv6Addr>().unwrap().octets()
}

/// A packet of IPv4 (RFC 791) to everybody.
fn ipv4(from: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = 20 + payload.len() as u8;
    let mut header = [&[0x45, 0, 0, len, 0, 0, 0, 0, 64, protocol, 0, 0][..], &v4(from), &[255; 4]].concat();
    let words = header.chunks(2).map(|word| u32::from(u16::from_be_bytes(word.try_into().unwrap())));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame(ALL, OWN, 0x0800, &[&header[..], payload].concat())
}

/// A packet of IPv6 (RFC 8200) to all nodes.
fn ipv6(from: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let header =
        [&[0x60, 0, 0, 0, 0, payload.len() as u8, next, 255][..], &v6(from), &v6("ff02::1")].concat();
    frame([0x33, 0x33, 0, 0, 0, 1], OWN, 0x86dd, &[&header[..], payload].concat())
}

/// A datagram of UDP.
fn udp(from: u16, to: u16) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 16, 0, 0], &[0; 8]].concat()
}

/// An announcement of ARP (RFC 5227 §3).
fn arp(mac: [u8; 6], from: &str) -> Vec<u8> {
    let address = v4(from);
    frame(ALL, OWN, 0x0806, &[&[0, 1, 8, 0, 6, 4, 0, 2][..], &mac, &address, &ALL, &address].concat())
}

/// A neighbour advertisement (RFC 4861 §4.4).
fn advertises(address: &str) -> Vec<u8> {
    ipv6("fe80::99", 58, &[&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &v6(address)].concat())
}

/// A bridge of somebody's with the host on it, who has routers there.
fn a_host() {
    without_dad();
    run("ip link add br0 type bridge mcast_snooping 0");
    run("ip link add nic type veth peer name lan");
    run("ip link set nic master br0");
    for link in ["br0", "nic", "lan"] {
        run(&format!("ip link set {link} up"));
    }
    until_up("br0");
    run("ip address add 10.0.0.1/24 dev br0");
    run("ip route add default via 10.0.0.254");
    if std::fs::metadata("/proc/net/if_inet6").is_ok() {
        run("ip address add fd00::1/64 dev br0 nodad");
        run("ip -6 route add default via fd00::fe dev br0");
    }
}

/// Whether the other guest gets the frame that this one sends.
fn passes(guest: &mut Opened, other: &mut Opened, sent: &[u8]) -> bool {
    let mark = frame(ALL, OWN, 0x88b5, b"mark");
    send(guest, sent);
    send(guest, &mark);
    // Where bridged packets pass the rules for routed ones, the kernel cuts off what pads them.
    let is_sent = |frame: &[u8]| frame.len() >= 34 && sent.starts_with(frame);
    let got = recv(other, SOON, |frame| is_sent(frame) || frame == mark).expect("the mark at least");
    if got == mark {
        return false;
    }
    assert!(recv(other, SOON, |frame| frame == mark).is_some());
    true
}

#[test]
fn what_belongs_to_others_is_dropped_where_the_guest_sends_it() {
    in_namespace("what_belongs_to_others_is_dropped_where_the_guest_sends_it", || {
        a_host();
        let tagged = |kind| frame(ALL, OWN, kind, &[0, 7, 0x88, 0xb5, 1, 2, 3]);
        // A header of options for each hop, in front.
        let hidden = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &[134, 0, 0, 0], &[0; 12]].concat();
        let bad = [
            ("another's Ethernet address", frame(ALL, OTHER, 0x88b5, b"x")),
            ("a spanning tree", frame([1, 0x80, 0xc2, 0, 0, 0], OWN, 0x0027, &[0x42, 0x42, 3])),
            ("Cisco's", frame([1, 0, 0x0c, 0xcc, 0xcc, 0xcd], OWN, 0x0032, &[0xaa, 0xaa, 3])),
            ("a tag", tagged(0x8100)),
            ("a service tag", tagged(0x88a8)),
            (
                "a router advertisement",
                ipv6("fe80::99", 58, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]),
            ),
            ("one behind options", ipv6("fe80::99", 0, &hidden)),
            ("a redirect", ipv6("fe80::99", 58, &[137, 0, 0, 0, 0, 0, 0, 0])),
            ("a redirect of IPv4", ipv4("10.0.0.5", 1, &[5, 1, 0, 0, 10, 0, 0, 9])),
            ("a DHCP server", ipv4("10.0.0.5", 17, &udp(67, 68))),
            ("a DHCPv6 server", ipv6("fe80::99", 17, &udp(547, 546))),
            ("another's address in ARP", arp(OTHER, "10.0.0.5")),
            ("the host's address in ARP", arp(OWN, "10.0.0.1")),
            ("the router's", arp(OWN, "10.0.0.254")),
            ("a packet from the host", ipv4("10.0.0.1", 17, &udp(1000, 1000))),
            ("a packet from the router", ipv4("10.0.0.254", 17, &udp(1000, 1000))),
        ];
        let of_ipv6 = [
            ("the host's address in an advertisement", advertises("fd00::1")),
            ("the router's in one", advertises("fd00::fe")),
            ("a packet from the host's", ipv6("fd00::1", 17, &udp(1000, 1000))),
        ];
        let good = [
            ("ARP", arp(OWN, "10.0.0.5")),
            ("a packet", ipv4("10.0.0.5", 17, &udp(1000, 1000))),
            ("a DHCP client", ipv4("0.0.0.0", 17, &udp(68, 67))),
            ("a DHCPv6 client", ipv6("fe80::99", 17, &udp(546, 547))),
            ("an advertisement", advertises("fd00::5")),
            ("a router's solicitation", ipv6("fe80::99", 58, &[133, 0, 0, 0, 0, 0, 0, 0])),
            ("what nobody knows", frame(ALL, OWN, 0x88b5, b"x")),
        ];
        let has_ipv6 = std::fs::metadata("/proc/net/if_inet6").is_ok();
        let bad: Vec<_> = bad.into_iter().chain(of_ipv6.into_iter().filter(|_| has_ipv6)).collect();
        let mut other = opened("bridge=br0");
        for (guard, guarded) in [("", true), (",guard=on", true), (",guard=off", false)] {
            let mut guest = opened(&format!("bridge=br0,mac=02:00:00:00:00:01{guard}"));
            for (what, sent) in &bad {
                assert_eq!(passes(&mut guest, &mut other, sent), !guarded, "{what}, {guard}");
            }
            for (what, sent) in &good {
                assert!(passes(&mut guest, &mut other, sent), "{what}, {guard}");
            }
        }
    });
}

#[test]
fn nobody_takes_the_place_of_a_guest_in_the_bridges_table() {
    in_namespace("nobody_takes_the_place_of_a_guest_in_the_bridges_table", || {
        a_host();
        let mut guest = opened("bridge=br0,mac=02:00:00:00:00:01");
        let mut other = opened("bridge=br0,mac=02:00:00:00:00:02");
        let mut lan = opened("macvtap=lan");
        let entry = run(&format!("bridge fdb show dev {}", guest.link));
        let is_placed =
            |line: &str| ["02:00:00:00:00:01", "static", "sticky"].iter().all(|word| line.contains(word));
        assert!(entry.lines().any(is_placed), "{entry}");
        let port = run(&format!("bridge -d link show dev {}", guest.link));
        assert!(port.contains("learning off") && port.contains("guard on"), "{port}");
        // From the LAN, as if the guest were there.
        let stolen = frame(OTHER, OWN, 0x88b5, b"stolen");
        send(&mut lan, &stolen);
        assert!(recv(&mut other, SOON, |frame| frame == stolen).is_some());
        let to_guest = frame(OWN, OTHER, 0x88b5, b"hello");
        send(&mut other, &to_guest);
        assert!(recv(&mut guest, SOON, |frame| frame == to_guest).is_some(), "it is where it was");
    });
}

#[test]
fn isolated_guests_reach_all_but_each_other() {
    in_namespace("isolated_guests_reach_all_but_each_other", || {
        a_host();
        let mut first = opened("bridge=br0,mac=02:00:00:00:00:01,isolated=on");
        let mut second = opened("bridge=br0,isolated=on");
        let mut third = opened("bridge=br0,guard=off");
        let hello = frame(ALL, OWN, 0x88b5, b"hello");
        send(&mut first, &hello);
        assert!(recv(&mut third, SOON, |frame| frame == hello).is_some());
        assert!(recv(&mut second, NEVER, |frame| frame == hello).is_none());
        let answer = frame(OWN, third.mac.octets(), 0x88b5, b"answer");
        send(&mut third, &answer);
        assert!(recv(&mut first, SOON, |frame| frame == answer).is_some());
        drop((first, second, third));
        run("bridge link set dev nic isolated on");
        let notices = opened("bridge=br0,isolated=on").notices;
        assert!(
            notices.len() == 1 && notices[0].contains("bridge link set dev nic isolated off"),
            "{notices:?}"
        );
        assert_eq!(opened("bridge=br0").notices, [""; 0]);
    });
}

#[test]
fn a_guard_goes_with_its_wirevm_and_must_be_where_it_is_asked_for() {
    in_namespace("a_guard_goes_with_its_wirevm_and_must_be_where_it_is_asked_for", || {
        a_host();
        let before = settled();
        let rules = || run("nft list ruleset");
        let guest = opened("bridge=br0");
        assert!(rules().contains("table netdev wirevm-wirevm0"), "{}", rules());
        drop(guest);
        assert_eq!(rules(), "");
        kill(holding("bridge=br0,isolated=on"));
        assert_eq!(rules(), "");
        assert_as(&before, "after both");
        // As where the kernel refuses the rules.
        run("nft add table netdev wirevm-wirevm0");
        let error = open("bridge=br0,guard=on").unwrap_err();
        assert_eq!(error.to_string(), "cannot guard the bridge from what the guest sends at wirevm0");
        assert!(error.remedy().unwrap().contains("nft delete table netdev wirevm-wirevm0"), "{error:?}");
        assert_as(&before, "after the refusal");
        drop(opened("bridge=br0"));
    });
}
