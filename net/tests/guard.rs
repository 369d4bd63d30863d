//! A guest is held to its own addresses: what is sent under others is dropped, and the host's tables do not fill.

mod namespace;

use std::net::{IpAddr, UdpSocket};

use namespace::guest::send;
use namespace::machine::SHORT;
use namespace::wire::open_all_told as open;
use namespace::world::{guest_of_both, world};
use namespace::{as_user, child as be_child, in_namespace, own_tun_device, run};

#[test]
fn child() {
    be_child();
}

/// What the guard of a link has dropped.
fn dropped(link: &str) -> u64 {
    let rules = run(&format!("nft list table netdev wirevm-{link}"));
    let counts = rules.split("counter packets ").skip(1);
    counts.map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_guest_sends_under_its_own_addresses_only() {
    in_namespace("a_guest_sends_under_its_own_addresses_only", || {
        let world = world();
        // So that an answer has a way back, if something were to come.
        for to in ["172.31.0.0/24", "198.51.100.0/24"] {
            world.commands(&[&format!("ip route add {to} via 192.0.2.1")]);
        }
        world.commands(&["ip -6 route add fd00::/16 via 2001:db8::1"]);
        for (spec, masked) in [
            ("tap,host=172.31.0.1/24,host=fd00::1/64,nat", true),
            ("tap,host=172.31.0.1/24,host=fd00::1/64", false),
            ("tun,host=172.31.0.1/24,host=fd00::1/64", false),
            ("tap,host=172.31.0.1/24,host=fd00::1/64,nat,guard=off", true),
        ] {
            let guarded = !spec.contains("guard=off");
            if !masked {
                // The host is somebody's router, so that all would leave.
                run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
            }
            let (mut opened, _) = open(spec);
            assert_eq!(opened.notices, [""; 0], "{spec}");
            let link = opened.link.clone();
            let guest = guest_of_both(&mut opened);
            // First, so that whoever is on the way is known.
            let own = world.serve_udp("192.0.2.2:54");
            guest.talk_udp("192.0.2.2:54").unwrap();
            assert_eq!(own.visitor(), if masked { "192.0.2.1" } else { "172.31.0.2" }, "{spec}");
            let own = world.serve_udp("[2001:db8::2]:54");
            guest.talk_udp("[2001:db8::2]:54").unwrap();
            let expected = if masked { "2001:db8::1" } else { "fd00::" };
            assert!(own.visitor().starts_with(expected), "{spec}");
            let others = ["172.31.0.77", "198.51.100.9", "8.8.8.8", "fd01::9", "2001:db8:99::1"];
            for other in others {
                let (to, prefix) =
                    if other.contains(':') { ("[2001:db8::2]:53", 128) } else { ("192.0.2.2:53", 32) };
                let nodad = if prefix == 128 { " nodad" } else { "" };
                guest.commands(&[&format!("ip address add {other}/{prefix} dev lo{nodad}")]);
                let server = world.run(move || UdpSocket::bind(to).unwrap());
                server.set_read_timeout(Some(SHORT / 3)).unwrap();
                let from: IpAddr = other.parse().unwrap();
                guest.run(move || UdpSocket::bind((from, 0)).unwrap().send_to(b"hello", to).unwrap());
                let heard = server.recv_from(&mut [0; 5]);
                match (guarded, &heard) {
                    (true, Err(_)) => {}
                    // Whoever routes for others behind NAT has them masked too.
                    (false, Ok((_, from))) => {
                        assert!(
                            ["192.0.2.1", "2001:db8::1"].contains(&from.ip().to_string().as_str()),
                            "{from}"
                        );
                    }
                    _ => panic!("{spec}: from {other}: {heard:?}"),
                }
            }
            if guarded {
                assert!(dropped(&link) >= others.len() as u64, "{}", run("nft list ruleset"));
            } else {
                assert!(!run("nft list ruleset").contains("netdev"));
            }
            drop((guest, opened));
            run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
            assert_eq!(run("nft list ruleset"), "", "{spec}");
        }
    });
}

/// The address of the host's end.
fn host_mac(link: &str) -> [u8; 6] {
    let shown = run(&format!("ip link show {link}"));
    let mac = shown.split("link/ether ").nth(1).unwrap()[..17].split(':');
    let mac: Vec<u8> = mac.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    mac.try_into().unwrap()
}

/// The host's neighbours on a link.
fn neighbours(link: &str) -> usize {
    run(&format!("ip neighbour show dev {link} nud all"))
        .lines()
        .filter(|line| !line.contains("NOARP"))
        .count()
}

#[test]
fn a_guest_has_few_of_the_hosts_neighbours() {
    in_namespace("a_guest_has_few_of_the_hosts_neighbours", || {
        let _world = world();
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        let mac = [2, 0, 0, 0, 0, 1];
        for spec in
            ["tap,host=172.31.0.1/30,host=fd00::1/64", "tap,host=172.31.0.1/16,host=fd00::1/64,dhcp=off"]
        {
            let (mut opened, _) = open(&format!("{spec},mac=02:00:00:00:00:01"));
            let link = opened.link.clone();
            let host = host_mac(&link);
            for n in 0..1000_u16 {
                let [a, b] = n.to_be_bytes();
                // ARP from one of many, for the host.
                let arp = [
                    &[0xff; 6][..],
                    &mac,
                    &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
                    &mac,
                    &[172, 31, a + 1, b],
                    &[0; 6],
                    &[172, 31, 0, 1],
                ];
                send(&mut opened, &arp.concat());
                // An echo request from one of many, for the host; and from the guest for one of many beside it.
                let of = |last: [u8; 2]| [&[0xfd, 0][..], &[0; 12], &last].concat();
                for (from, to) in [([a + 1, b], [0, 1]), ([0, 2], [a + 1, b])] {
                    let icmp = [128, 0, 0, 0, 0, 0, 0, 0];
                    let (from, to) = (of(from), of(to));
                    let mut sum: u32 = [&from[..], &to, &[0, 8, 0, 58], &icmp]
                        .concat()
                        .chunks(2)
                        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
                        .sum();
                    while sum > 0xffff {
                        sum = (sum & 0xffff) + (sum >> 16);
                    }
                    let mut icmp = icmp;
                    icmp[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
                    let frame =
                        [&host[..], &mac, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 58, 64], &from, &to, &icmp];
                    send(&mut opened, &frame.concat());
                }
            }
            let known = neighbours(&link);
            assert!(known <= 64 * 3, "{spec}: {known} neighbours");
            assert!(known > 10, "{spec}: the guest's frames arrive: {known}");
            assert!(dropped(&link) > 1000, "{spec}");
        }
    });
}

#[test]
fn who_may_not_guard_says_so() {
    in_namespace("who_may_not_guard_says_so", || {
        own_tun_device(Some(0o666));
        run("ip tuntap add dev tap0 mode tap vnet_hdr user 65534");
        run("ip address add 172.31.0.1/24 dev tap0");
        run("ip link set tap0 up");
        for (spec, told) in
            [("tap=tap0,host=172.31.0.1/24", true), ("tap=tap0,host=172.31.0.1/24,guard=off", false)]
        {
            let notices = as_user(65534, || open(spec).0.notices.join("\n"));
            assert_eq!(notices.contains("may send under any address"), told, "{spec}: {notices}");
            assert_eq!(notices.contains("CAP_NET_ADMIN; or say guard=off"), told, "{spec}: {notices}");
        }
    });
}

#[test]
fn the_address_is_asked_for_and_the_link_is_the_users() {
    in_namespace("the_address_is_asked_for_and_the_link_is_the_users", || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        run("ip address add 10.9.0.1/24 dev tap0");
        let before = run("nft list ruleset");
        let (opened, _) = open("tap=tap0,host=172.31.0.1/24");
        let rules = run("nft list table netdev wirevm-tap0");
        for words in ["ip saddr 172.31.0.2 accept", "ip saddr 10.9.0.0/24", "udp dport 67 accept"] {
            assert!(rules.contains(words), "{words}: {rules}");
        }
        drop(opened);
        assert_eq!(run("nft list ruleset"), before);
    });
}

/// How many connections the guest may have.
fn limit_of(told: &[String]) -> Option<u32> {
    let limit = told.iter().find_map(|line| line.split("ct count over ").nth(1));
    // On each of 256 lists.
    limit.map(|rest| 256 * rest.split(' ').next().unwrap().parse::<u32>().unwrap())
}

#[test]
fn a_guest_has_few_of_the_hosts_connections() {
    in_namespace("a_guest_has_few_of_the_hosts_connections", || {
        let _world = world();
        let count = || run("sysctl -n net.netfilter.nf_conntrack_count").trim().parse::<u32>().unwrap();
        let most = |spec: &str| {
            let (mut opened, told) = open(&format!("{spec},mac=02:00:00:00:00:01"));
            let limit = limit_of(&told);
            let host = host_mac(&opened.link);
            for n in 0..limit.unwrap_or(0) * 5 / 4 {
                let ([a, b], port) =
                    (((n >> 14) as u16).to_be_bytes(), ((n & 0x3fff) as u16 + 1024).to_be_bytes());
                let ip = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 172, 31, 0, 2, 192, 0, 2, 2];
                let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
                let mut ip = ip;
                ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
                let udp = [port[0], port[1], a, b + 9, 0, 8, 0, 0];
                send(&mut opened, &[&host[..], &[2, 0, 0, 0, 0, 1], &[8, 0], &ip, &udp].concat());
            }
            (limit, count())
        };
        // None of them ends meanwhile.
        run("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=3600");
        let (limit, seen) = most("tap,host=172.31.0.1/24,nat");
        let most = limit.unwrap();
        assert!((1024..=32768).contains(&most), "{most}");
        // The lists fill by chance, and the host has some of its own.
        assert!((most * 9 / 10..most + 50).contains(&seen), "{most}: {seen}");
        // The host tracks connections now, and so for a guest without NAT too.
        assert_eq!(limit_of(&open("tap,host=172.31.0.1/24").1), limit);
        assert_eq!(limit_of(&open("tap,host=172.31.0.1/24,nat,guard=off").1), None);
        assert_eq!(run("nft list ruleset"), "");
    });
}
