//! A guest that advertises itself as a router: the host does not listen, on any link that it has towards a guest.

mod namespace;

use std::net::Ipv6Addr;
use std::thread;
use std::time::{Duration, Instant};

use namespace::guest::{NEVER, SOON, recv, send};
use namespace::wire::{open, opened};
use namespace::{in_namespace, run, skip};
use net::Opened;

/// A router advertisement (RFC 4861 §4.2) to all nodes: a default router for half an hour, and a prefix to make addresses of.
fn advertisement(from: [u8; 6]) -> Vec<u8> {
    let (router, all): (Ipv6Addr, Ipv6Addr) = ("fe80::1".parse().unwrap(), "ff02::1".parse().unwrap());
    let prefix: Ipv6Addr = "fd66::".parse().unwrap();
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    message.extend(from);
    message.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    message.extend(prefix.octets());
    let pseudo = [&router.octets()[..], &all.octets(), &[0, 0, 0, message.len() as u8, 0, 0, 0, 58]].concat();
    let words = [&pseudo[..], &message].concat();
    let mut sum: u32 =
        words.chunks(2).map(|word| u32::from(u16::from_be_bytes(word.try_into().unwrap()))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let ethernet = [&[0x33, 0x33, 0, 0, 0, 1][..], &from, &[0x86, 0xdd]].concat();
    let ip = [0x60, 0, 0, 0, 0, message.len() as u8, 58, 255];
    [&ethernet[..], &ip, &router.octets(), &all.octets(), &message].concat()
}

fn advertise(guest: &mut Opened) {
    let frame = advertisement(guest.mac.octets());
    send(guest, &frame);
}

/// Advertises until the host has learned of a router, or so long.
fn heard(router: &mut Opened, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while learned().is_empty() && Instant::now() < end {
        advertise(router);
        thread::sleep(Duration::from_millis(10));
    }
    !learned().is_empty()
}

/// What the host has learned of a router.
fn learned() -> String {
    let routes = run("ip -6 route show proto ra");
    let addresses = run("ip -6 -o address show to fd66::/64");
    routes + &addresses
}

#[test]
fn no_guest_is_a_router_of_the_host() {
    const NAME: &str = "no_guest_is_a_router_of_the_host";
    if std::fs::metadata("/proc/net/if_inet6").is_err() {
        return skip(NAME, "this kernel has no IPv6; the lab's has");
    }
    // The wire, and the link by which the host would hear its guest. On a tun, wirevm does not even pass it on.
    for (spec, link, passes) in [
        ("tap,host=172.31.0.1/24,host=fd00::1/64", "wirevm0", true),
        ("tap", "wirevm0", true),
        ("tap,host=172.31.0.1/24,nat", "wirevm0", true),
        ("bridge=br0,guard=off", "br0", true),
        // Here it is the guard, whatever the bridge listens to.
        ("bridge=br0", "br0", false),
        ("bridge=br0,uplink=nic", "br0", false),
        ("macvtap=nic,host=172.31.0.1/24", "wirevm1", true),
        ("macvtap=nic,host=fd00::1/64", "wirevm1", true),
        ("tun,host=fd00::1/64", "wirevm0", false),
    ] {
        in_namespace(NAME, move || {
            run("ip link add nic type veth peer wire");
            // The LAN, where a router may be heard.
            run("sysctl -qw net.ipv6.conf.wire.disable_ipv6=1");
            run("ip link set nic up");
            run("ip link set wire up");
            let mut guest = opened(spec);
            for _ in 0..3 {
                advertise(&mut guest);
            }
            thread::sleep(NEVER);
            assert_eq!(learned(), "", "{spec}");
            // It would, but for this switch.
            run(&format!("sysctl -qw net.ipv6.conf.{link}.accept_ra=1"));
            heard(&mut guest, if passes { SOON } else { NEVER });
            assert_eq!(learned().contains("default via fe80::1"), passes, "{spec}");
        });
    }
}

#[test]
fn on_a_bridge_the_host_hears_the_lans_router_and_no_guest() {
    const NAME: &str = "on_a_bridge_the_host_hears_the_lans_router_and_no_guest";
    if std::fs::metadata("/proc/net/if_inet6").is_err() {
        return skip(NAME, "this kernel has no IPv6; the lab's has");
    }
    let with = "bridge=br0,uplink=nic";
    // Whoever joins first, also a bridge that somebody made.
    for (made, specs, listens) in [
        (false, ["bridge=br0", with], false),
        (false, [with, "bridge=br0"], true),
        (false, [with, with], true),
        (true, [with, "bridge=br0"], true),
        (true, ["bridge=br0", "bridge=br0"], true),
    ] {
        in_namespace(NAME, move || {
            let what = format!("{specs:?}, somebody's: {made}");
            run("ip link add nic type veth peer wire");
            run("sysctl -qw net.ipv6.conf.wire.disable_ipv6=1");
            run("ip link set nic up");
            run("ip link set wire up");
            if made {
                run("ip link add br0 type bridge");
                run("ip link set br0 up");
            }
            if specs[0] == specs[1] && made {
                run("ip link set nic master br0");
            }
            let mut guests = specs.map(opened);
            let said = |guest: &Opened| guest.notices.iter().any(|notice| notice.contains("accept_ra"));
            assert!(!guests.iter().any(said), "{what}: {:?}", guests[0].notices);
            for guest in &mut guests {
                assert!(!heard(guest, NEVER), "{what}: {}", learned());
            }
            let [first, second] = &mut guests;
            advertise(first);
            let is_advertisement = |frame: &[u8]| frame.get(54) == Some(&134);
            assert!(recv(second, NEVER, is_advertisement).is_none(), "{what}: nor does the other guest");
            let mut router = opened("macvtap=wire");
            assert_eq!(heard(&mut router, if listens { SOON } else { NEVER }), listens, "{what}");
            assert!(recv(second, SOON, is_advertisement).is_some(), "{what}: the LAN's router is heard");
        });
    }
}

#[test]
fn where_the_guest_is_not_guarded_it_is_said() {
    const NAME: &str = "where_the_guest_is_not_guarded_it_is_said";
    if std::fs::metadata("/proc/net/if_inet6").is_err() {
        return skip(NAME, "this kernel has no IPv6; the lab's has");
    }
    in_namespace(NAME, || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        run("ip link add br0 type bridge");
        run("ip link add nic type veth peer wire");
        let of = |spec: &str| opened(spec).notices.iter().filter(|said| said.contains("accept_ra=0")).count();
        let uplink = "bridge=br1,uplink=nic";
        assert_eq!(of("tap=tap0"), 1, "a tap of somebody's");
        for spec in ["bridge=br0", uplink] {
            assert_eq!((of(spec), of(&format!("{spec},guard=off"))), (0, 1), "{spec}");
        }
        assert_eq!(
            (of("tap"), of("bridge=br1,guard=off")),
            (0, 0),
            "these are wirevm's own, and listen to none"
        );
        // As where the kernel refuses the rules.
        run("nft add table netdev wirevm-wirevm0");
        let notices = opened("bridge=br0").notices;
        assert!(
            notices[0].starts_with("cannot guard the bridge from what the guest sends at wirevm0: "),
            "{notices:?}"
        );
        assert!(notices[1].contains("accept_ra=0"), "{notices:?}");
        for (key, value, listens) in [("accept_ra", "0", 0), ("accept_ra", "2", 1), ("disable_ipv6", "1", 0)]
        {
            run(&format!("sysctl -qw net.ipv6.conf.br0.{key}={value}"));
            assert_eq!(of("bridge=br0,guard=off"), listens, "{key}={value}");
        }
    });
}

#[test]
fn of_somebodys_link_he_says_himself() {
    const NAME: &str = "of_somebodys_link_he_says_himself";
    if std::fs::metadata("/proc/net/if_inet6").is_err() {
        return skip(NAME, "this kernel has no IPv6; the lab's has");
    }
    in_namespace(NAME, || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        run("ip link add br0 type bridge");
        for (spec, link) in [("tap=tap0", "tap0"), ("bridge=br0", "br0")] {
            let _guest = open(spec).unwrap();
            assert_eq!(run(&format!("sysctl -n net.ipv6.conf.{link}.accept_ra")), "1\n", "{spec}");
        }
    });
}
