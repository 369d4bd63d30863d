//! NAT: a guest that is a namespace at the other end of the tap, the host's namespace, and the world behind another link.

mod namespace;

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::process::Command;

use namespace::machine::{Guest, Machine, SHORT, talk, talk_udp};
use namespace::world::{guest, guest_of_both, world};
use namespace::{
    as_user, child as be_child, holding, in_namespace, kill, killed_at, leave, own_run_directory,
    own_tun_device, records, run, state,
};
use net::{Error, NatError, Opened};

#[test]
fn child() {
    be_child();
}

/// Opens, and returns the lines told.
fn open(spec: &str) -> (Opened, Vec<String>) {
    namespace::wire::open_all_told(spec)
}

fn refused(spec: &str) -> Error {
    net::open(&spec.parse().unwrap(), &net::Host::new()).expect_err(spec)
}

/// A guest at fd00::2 with the host as its router.
fn guest_v6(opened: &mut Opened) -> Guest {
    let guest = Guest::on(opened);
    guest.commands(&["ip address add fd00::2/64 dev eth0 nodad", "ip -6 route add default via fd00::1"]);
    guest
}

/// What NAT may change of the host.
fn everything() -> String {
    let switches = run("sysctl -a -r net.ipv[46].conf.*.(forwarding|accept_ra|route_localnet)$");
    format!("{}\n{}\n{switches}", state(), run("nft list ruleset"))
}

#[test]
fn a_guest_reaches_the_world_under_the_hosts_address() {
    in_namespace("a_guest_reaches_the_world_under_the_hosts_address", || {
        let world = world();
        let before = everything();
        let (mut opened, _) = open("tap,host=172.31.0.1/24,nat");
        let guest = guest(&mut opened);
        for at in ["192.0.2.2:80", "203.0.113.7:80"] {
            let server = world.serve(at);
            guest.talk(at).unwrap();
            assert_eq!(server.visitor(), "192.0.2.1", "{at}");
        }
        let server = world.serve_udp("203.0.113.7:53");
        guest.talk_udp("203.0.113.7:53").unwrap();
        assert_eq!(server.visitor(), "192.0.2.1");
        // Not masqueraded where it needs not be: towards the host itself.
        let here = TcpListener::bind("172.31.0.1:80").unwrap();
        let server = std::thread::spawn(move || here.accept().unwrap().1.ip().to_string());
        let _ = guest.talk("172.31.0.1:80");
        assert_eq!(server.join().unwrap(), "172.31.0.2");
        drop(guest);
        drop(opened);
        assert_eq!(everything(), before);
    });
}

/// Another network of the host: 10.50.0.2 and fd5a::2, which have the host as their router, as the world has for them and for
/// the guests.
fn internal(world: &Machine) -> Machine {
    let internal = Machine::new();
    internal.commands(&["sysctl -qw net.ipv6.conf.default.accept_dad=0"]);
    internal.plug("int0", "int0");
    run("ip address add 10.50.0.1/24 dev int0");
    run("ip address add fd5a::1/64 dev int0 nodad");
    internal.commands(&[
        "ip address add 10.50.0.2/24 dev int0",
        "ip address add fd5a::2/64 dev int0 nodad",
        "ip route add default via 10.50.0.1",
        "ip -6 route add default via fd5a::1",
    ]);
    for to in ["10.50.0.0/24", "172.31.0.0/24"] {
        world.commands(&[&format!("ip route add {to} via 192.0.2.1")]);
    }
    for to in ["fd5a::/64", "fd00::/64"] {
        world.commands(&[&format!("ip -6 route add {to} via 2001:db8::1")]);
    }
    internal
}

const WORLD: [&str; 2] = ["192.0.2.2:80", "[2001:db8::2]:80"];
const INTERNAL: [&str; 2] = ["10.50.0.2:80", "[fd5a::2]:80"];

#[test]
fn the_host_is_a_router_for_its_guests_only() {
    in_namespace("the_host_is_a_router_for_its_guests_only", || {
        let world = world();
        let internal = internal(&world);
        let before = everything();
        let (mut opened, _) = open("tap,host=172.31.0.1/24,host=fd00::1/64,nat,forward=8080:80");
        let guest = guest_of_both(&mut opened);
        // Each of them answers, and the guest reaches both: what does not reach them is not passed on.
        for at in INTERNAL {
            let server = internal.serve(at);
            assert!(world.try_to_talk(at).is_err(), "the world reaches {at}");
            guest.talk(at).unwrap_or_else(|error| panic!("{at}: {error}"));
            assert!(["10.50.0.1", "fd5a::1"].contains(&server.visitor().as_str()), "{at}");
        }
        for at in WORLD {
            let server = world.serve(at);
            assert!(internal.try_to_talk(at).is_err(), "the internal network reaches {at}");
            guest.talk(at).unwrap_or_else(|error| panic!("{at}: {error}"));
            assert!(["192.0.2.1", "2001:db8::1"].contains(&server.visitor().as_str()), "{at}");
        }
        // The host's neighbours know the way to the guest, and are let to its ports by forward= only.
        for at in ["172.31.0.2:80", "[fd00::2]:80"] {
            let server = guest.serve(at);
            assert!(world.try_to_talk(at).is_err() && internal.try_to_talk(at).is_err(), "{at}");
            talk(at.parse().unwrap()).unwrap();
            server.visitor();
        }
        let server = guest.serve("0.0.0.0:80");
        world.talk("192.0.2.1:8080").unwrap();
        assert_eq!(server.visitor(), "192.0.2.2");
        drop(guest);
        drop(opened);
        assert_eq!(everything(), before);
    });
}

#[test]
fn who_was_passed_on_before_still_is() {
    in_namespace("who_was_passed_on_before_still_is", || {
        let world = world();
        let internal = internal(&world);
        run("sysctl -qw net.ipv4.conf.eth0.forwarding=1 net.ipv4.conf.int0.forwarding=1");
        run("sysctl -qw net.ipv6.conf.all.forwarding=1");
        let (mut opened, _) = open("tap,host=172.31.0.1/24,host=fd00::1/64,nat");
        let guest = guest_of_both(&mut opened);
        for at in INTERNAL {
            let server = internal.serve(at);
            world.talk(at).unwrap_or_else(|error| panic!("{at}: {error}"));
            assert!(["192.0.2.2", "2001:db8::2"].contains(&server.visitor().as_str()), "{at}");
        }
        // The guest's own ports are not of before.
        let server = guest.serve("172.31.0.2:80");
        assert!(world.try_to_talk("172.31.0.2:80").is_err());
        talk("172.31.0.2:80".parse().unwrap()).unwrap();
        server.visitor();
    });
}

#[test]
fn guests_reach_each_other_by_forwarded_ports_only() {
    in_namespace("guests_reach_each_other_by_forwarded_ports_only", || {
        let _world = world();
        let (mut first, _) = open("tap,host=172.31.0.1/24,nat,forward=8080:80");
        let first = (guest(&mut first), first);
        let (mut second, _) = open("tap,host=172.31.1.1/24,nat");
        let second = (Guest::on(&mut second), second);
        second.0.commands(&["ip address add 172.31.1.2/24 dev eth0", "ip route add default via 172.31.1.1"]);
        let server = first.0.serve("0.0.0.0:80");
        assert!(second.0.try_to_talk("172.31.0.2:80").is_err());
        second.0.talk("172.31.1.1:8080").unwrap();
        server.visitor();
    });
}

#[test]
fn a_link_that_is_renamed_passes_no_more_on_than_before() {
    in_namespace("a_link_that_is_renamed_passes_no_more_on_than_before", || {
        let world = world();
        let internal = internal(&world);
        let (mut opened, _) = open("tap,host=172.31.0.1/24,nat");
        let guest = guest(&mut opened);
        for (from, to) in [("eth0", "lan0"), ("wirevm0", "guest0")] {
            run(&format!("ip link set dev {from} name {to}"));
        }
        let server = internal.serve("10.50.0.2:80");
        assert!(world.try_to_talk("10.50.0.2:80").is_err());
        guest.talk("10.50.0.2:80").unwrap();
        assert_eq!(server.visitor(), "10.50.0.1");
        let server = guest.serve("172.31.0.2:80");
        assert!(world.try_to_talk("172.31.0.2:80").is_err());
        talk("172.31.0.2:80".parse().unwrap()).unwrap();
        server.visitor();
    });
}

#[test]
fn without_nat_a_guest_stays_with_the_host() {
    in_namespace("without_nat_a_guest_stays_with_the_host", || {
        let world = world();
        let (mut opened, _) = open("tap,host=172.31.0.1/24");
        let guest = guest(&mut opened);
        let _server = world.run(|| TcpListener::bind("192.0.2.2:80").unwrap());
        assert!(guest.try_to_talk("192.0.2.2:80").is_err());
    });
}

#[test]
fn ports_of_the_host_lead_into_the_guest() {
    in_namespace("ports_of_the_host_lead_into_the_guest", || {
        let world = world();
        let before = everything();
        let (mut opened, _) = open("tap,host=172.31.0.1/24,nat,forward=8080:80,forward=udp:5353:53");
        let guest = guest(&mut opened);
        // The world is seen as who it is; the host and the guest itself by the host's address on the link.
        for (from, to, seen) in [
            ("world", "192.0.2.1:8080", "192.0.2.2"),
            ("host", "127.0.0.1:8080", "172.31.0.1"),
            ("host", "127.0.0.5:8080", "172.31.0.1"),
            ("host", "192.0.2.1:8080", "172.31.0.1"),
            ("host", "172.31.0.1:8080", "172.31.0.1"),
            ("guest", "192.0.2.1:8080", "172.31.0.1"),
            ("guest", "172.31.0.1:8080", "172.31.0.1"),
        ] {
            let server = guest.serve("0.0.0.0:80");
            let said = match from {
                "world" => world.talk(to),
                "host" => talk(to.parse().unwrap()),
                _ => guest.talk(to),
            };
            said.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
            assert_eq!(server.visitor(), seen, "{from} to {to}");
        }
        for (from, to, seen) in
            [("world", "192.0.2.1:5353", "192.0.2.2"), ("host", "127.0.0.1:5353", "172.31.0.1")]
        {
            let server = guest.serve_udp("0.0.0.0:53");
            let said = if from == "world" { world.talk_udp(to) } else { talk_udp(to.parse().unwrap()) };
            said.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
            assert_eq!(server.visitor(), seen, "{from} to {to}");
        }
        // The same port of another host is not taken, nor another protocol's of this one.
        let server = world.serve("192.0.2.2:8080");
        guest.talk("192.0.2.2:8080").unwrap();
        assert_eq!(server.visitor(), "192.0.2.1");
        assert_eq!(world.talk("192.0.2.1:5353").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        drop(guest);
        drop(opened);
        assert_eq!(everything(), before);
    });
}

#[test]
fn a_guest_does_not_reach_what_listens_on_loopback() {
    in_namespace("a_guest_does_not_reach_what_listens_on_loopback", || {
        let _world = world();
        let (mut opened, _) = open("tap,host=172.31.0.1/24,nat,forward=8080:80");
        let guest = guest(&mut opened);
        let here = UdpSocket::bind("127.0.0.1:9999").unwrap();
        here.set_read_timeout(Some(SHORT)).unwrap();
        // Its own loopback is down, so that it can send there.
        guest.commands(&[
            "sysctl -qw net.ipv4.conf.eth0.route_localnet=1",
            "ip route add 127.0.0.1/32 via 172.31.0.1",
        ]);
        guest.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", "127.0.0.1:9999").unwrap());
        assert_eq!(here.recv(&mut [0; 5]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn ipv6_leaves_under_the_hosts_address() {
    in_namespace("ipv6_leaves_under_the_hosts_address", || {
        let world = world();
        let before = everything();
        let (mut opened, _) = open("tap,host=fd00::1/64,nat");
        let guest = guest_v6(&mut opened);
        for at in ["[2001:db8::2]:80", "[2001:db8:7::7]:80"] {
            let server = world.serve(at);
            guest.talk(at).unwrap_or_else(|error| panic!("{at}: {error}"));
            assert_eq!(server.visitor(), "2001:db8::1", "{at}");
        }
        // Else the guest would forget its default router (RFC 4861 §7.2.5).
        let neighbour = guest.run(|| run("ip -6 neighbour show fd00::1"));
        assert!(neighbour.contains(" router "), "{neighbour}");
        drop(guest);
        drop(opened);
        assert_eq!(everything(), before);
    });
}

#[test]
fn the_host_goes_on_listening_to_its_ipv6_routers() {
    in_namespace("the_host_goes_on_listening_to_its_ipv6_routers", || {
        let _world = world();
        // One that was told to forward by itself, and one that listens to nobody.
        for (link, switch) in [("on", "forwarding=1"), ("deaf", "accept_ra=0")] {
            run(&format!("ip link add {link} type veth peer name {link}-far"));
            run(&format!("sysctl -qw net.ipv6.conf.{link}.{switch}"));
        }
        let before = everything();
        let (opened, _) = open("tap,host=fd00::1/64,nat");
        let value = |key: &str| run(&format!("sysctl -n net.ipv6.conf.{key}")).trim().to_owned();
        // From Linux 6.17 on only the links that it takes pass on; before, the whole host, which would be deaf to routers.
        let whole = !std::path::Path::new("/proc/sys/net/ipv6/conf/all/force_forwarding").exists();
        let (forwards, accepts) = if whole { ("1", "2") } else { ("0", "1") };
        assert_eq!((value("all.forwarding").as_str(), value("eth0.accept_ra").as_str()), (forwards, accepts));
        assert_eq!(value("deaf.accept_ra"), "0");
        drop(opened);
        assert_eq!(everything(), before);
    });
}

#[test]
fn ports_of_the_host_lead_into_the_guest_by_ipv6() {
    in_namespace("ports_of_the_host_lead_into_the_guest_by_ipv6", || {
        let world = world();
        let (mut opened, _) = open("tap,host=fd00::1/64,mac=02:00:00:00:00:01,nat,forward=8080:80");
        let guest = guest_v6(&mut opened);
        guest.commands(&["ip address add fd00::ff:fe00:1/64 dev eth0 nodad"]);
        for (from, to, seen) in [
            ("world", "[2001:db8::1]:8080", "2001:db8::2"),
            ("host", "[2001:db8::1]:8080", "fd00::1"),
            ("guest", "[2001:db8::1]:8080", "fd00::1"),
        ] {
            let server = guest.serve("[::]:80");
            let said = match from {
                "world" => world.talk(to),
                "host" => talk(to.parse().unwrap()),
                _ => guest.talk(to),
            };
            said.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
            assert_eq!(server.visitor(), seen, "{from} to {to}");
        }
        // A packet from ::1 could go nowhere; so it is refused at once.
        let own = talk("[::1]:8080".parse().unwrap());
        assert_eq!(own.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn the_lines_give_the_same_table_by_hand() {
    in_namespace("the_lines_give_the_same_table_by_hand", || {
        let _world = world();
        let ports = "8080:80 udp:5353:53 127.0.0.1:7000-7002:7000-7002 8000-8010:9000-9010 [2001:db8::1]:8000-8002:80-82";
        let ports = ports.replace(' ', ",forward=");
        let spec = format!("tap,host=172.31.0.1/28,host=fd00::1/60,nat,forward={ports}");
        let (opened, lines) = open(&spec);
        let tables =
            || ["inet", "netdev"].map(|family| run(&format!("nft -s list table {family} wirevm-wirevm0")));
        let ours = tables();
        drop(opened);
        let by_hand = Machine::new().run(move || {
            run("ip link add wirevm0 type bridge");
            run("ip link add eth0 type bridge");
            for line in lines.iter().filter(|line| line.starts_with("nft ")) {
                let done = Command::new("sh").args(["-ec", line]).output().unwrap();
                assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
            }
            tables()
        });
        for (ours, by_hand) in ours.into_iter().zip(by_hand) {
            // Ours has an owner, with whom it goes; the one by hand stays.
            let (first, rest) = ours.split_once("\n\n").unwrap();
            assert!(first.contains("flags owner"), "{first}");
            assert_eq!(rest, by_hand.split_once('\n').unwrap().1);
        }
    });
}

#[test]
fn other_rules_are_left_alone() {
    in_namespace("other_rules_are_left_alone", || {
        run("nft add table inet theirs");
        run("nft add chain inet theirs forward { type filter hook forward priority 0; policy accept; }");
        run("nft add rule inet theirs forward counter");
        let before = everything();
        let (opened, _) = open("tap,host=172.31.0.1/24,nat");
        let (second, _) = open("tap,host=172.31.1.1/24,nat,forward=8080:80");
        // Nor do others touch ours.
        run("nft flush ruleset");
        assert!(run("nft list ruleset").contains("table inet wirevm-wirevm0"));
        run("nft add table inet theirs");
        run("nft add chain inet theirs forward { type filter hook forward priority 0; policy accept; }");
        run("nft add rule inet theirs forward counter");
        drop(opened);
        assert!(run("nft list ruleset").contains("table inet wirevm-wirevm1"));
        drop(second);
        assert_eq!(everything(), before);
    });
}

#[test]
fn a_table_of_that_name_is_somebodys() {
    in_namespace("a_table_of_that_name_is_somebodys", || {
        run("nft add table inet wirevm-wirevm0");
        let before = everything();
        let error = refused("tap,host=172.31.0.1/24,nat");
        assert!(
            matches!(&error, Error::Nat(NatError::Nft { table, .. }) if table == "wirevm-wirevm0"),
            "{error:?}"
        );
        assert!(error.remedy().unwrap().contains("nft delete table inet wirevm-wirevm0"));
        assert_eq!(everything(), before);
    });
}

#[test]
fn a_port_in_use_is_refused() {
    in_namespace("a_port_in_use_is_refused", || {
        run("ip link set lo up");
        let _theirs = (TcpListener::bind("127.0.0.1:8080").unwrap(), UdpSocket::bind("[::]:5353").unwrap());
        let before = everything();
        for (spec, words, remedy) in [
            ("forward=8080:80", "tcp port 8080", "ss -tanp 'sport = :8080'"),
            ("forward=udp:5353:53", "udp port 5353", "ss -uanp 'sport = :5353'"),
        ] {
            let error = refused(&format!("tap,host=172.31.0.1/24,nat,{spec}"));
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.remedy().unwrap().contains(remedy), "{error:?}");
        }
        assert_eq!(everything(), before);
        // Of the other protocol it is free; but not for a second one.
        let _ours = open("tap,host=172.31.0.1/24,nat,forward=udp:8080:80");
        let error = refused("tap,host=172.31.1.1/24,nat,forward=udp:8080:80");
        assert!(matches!(error, Error::Nat(NatError::PortTaken { .. })), "{error:?}");
    });
}

#[test]
fn without_rights_nat_says_so() {
    in_namespace("without_rights_nat_says_so", || {
        own_tun_device(Some(0o666));
        run("ip tuntap add dev tap0 mode tap vnet_hdr user 65534");
        run("ip address add 172.31.0.1/24 dev tap0");
        run("ip link set tap0 up");
        let error = as_user(65534, || refused("tap=tap0,host=172.31.0.1/24,nat"));
        assert!(matches!(error, Error::Nat(NatError::Nft { .. })), "{error:?}");
        assert!(error.remedy().unwrap().contains("CAP_NET_ADMIN"));
    });
}

#[test]
fn a_guest_without_a_dns_server_is_told_of() {
    in_namespace("a_guest_without_a_dns_server_is_told_of", || {
        own_run_directory();
        run("mount -t tmpfs tmpfs /etc");
        for (text, is_told) in [("# nobody\n", true), ("nameserver 192.0.2.53\n", false)] {
            std::fs::write("/etc/resolv.conf", text).unwrap();
            for spec in ["tap,nat", "tap", "tap,nat,dhcp=off,host=172.31.0.1/24"] {
                let notices = open(spec).0.notices.join("\n");
                let expected = is_told && spec == "tap,nat";
                assert_eq!(notices.contains("told of no DNS server"), expected, "{spec}: {notices}");
            }
        }
    });
}

fn forwarding(link: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{link}/forwarding")).unwrap().trim().to_owned()
}

#[test]
fn the_last_one_that_needs_forwarding_switches_it_off() {
    in_namespace("the_last_one_that_needs_forwarding_switches_it_off", || {
        let _world = world();
        let before = everything();
        let (first, told) = open("tap,host=172.31.0.1/24,nat");
        assert!(told.contains(&"sysctl -w net.ipv4.conf.eth0.forwarding=1".to_owned()), "{told:?}");
        let second = holding("tap,host=172.31.1.1/24,nat");
        drop(first);
        assert_eq!(forwarding("eth0"), "1");
        let (third, told) = open("tap,host=172.31.0.1/24,nat");
        assert!(!told.iter().any(|line| line.contains("eth0.forwarding")), "it is on already: {told:?}");
        leave(second);
        assert_eq!(forwarding("eth0"), "1");
        // Somebody switches it off meanwhile: the next one needs it again.
        run("sysctl -qw net.ipv4.conf.eth0.forwarding=0");
        let (fourth, _) = open("tap,host=172.31.1.1/24,nat");
        assert_eq!(forwarding("eth0"), "1");
        drop((third, fourth));
        assert_eq!((everything(), records()), (before, vec![]));
    });
}

#[test]
fn forwarding_that_was_on_stays_on() {
    in_namespace("forwarding_that_was_on_stays_on", || {
        let _world = world();
        run("sysctl -qw net.ipv4.conf.eth0.forwarding=1");
        let (opened, _) = open("tap,host=172.31.0.1/24,nat");
        drop(opened);
        assert_eq!(forwarding("eth0"), "1");
        // As Docker does when it starts: from then on others rely on it.
        run("sysctl -qw net.ipv4.conf.eth0.forwarding=0");
        let (opened, _) = open("tap,host=172.31.0.1/24,nat");
        run("sysctl -qw net.ipv4.ip_forward=1");
        drop(opened);
        assert_eq!(forwarding("eth0"), "1");
    });
}

#[test]
fn links_with_guests_behind_them_are_not_switched_on() {
    in_namespace("links_with_guests_behind_them_are_not_switched_on", || {
        let _world = world();
        let (isolated, _) = open("tap=alone,host=172.31.9.1/24");
        run("ip link add br0 type bridge");
        run("ip address add 172.31.8.1/24 dev br0");
        run("ip link set br0 up");
        let (_opened, _) = open("tap,host=172.31.0.1/24,nat");
        assert_eq!(["eth0", "alone", "br0"].map(forwarding), ["1", "0", "0"]);
        // Unless there is a router behind it.
        run("ip route add 198.51.100.0/24 via 172.31.8.2");
        let (_second, _) = open("tap,host=172.31.1.1/24,nat");
        assert_eq!(["eth0", "alone", "br0"].map(forwarding), ["1", "0", "1"]);
        drop(isolated);
    });
}

#[test]
fn a_host_that_leads_nowhere_is_told() {
    in_namespace("a_host_that_leads_nowhere_is_told", || {
        let notices = |spec| open(spec).0.notices.concat();
        assert!(notices("tap,host=172.31.0.1/24,nat").contains("no link of the host leads anywhere else"));
        run("sysctl -qw net.ipv4.ip_forward=1");
        assert_eq!(notices("tap,host=172.31.0.1/24,nat"), "", "each link that comes will pass on");
    });
}

#[test]
fn of_a_killed_one_nothing_stays() {
    in_namespace("of_a_killed_one_nothing_stays", || {
        let _world = world();
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        // A link has its queue's discipline from the first time that it is up.
        run("ip link set tap0 up");
        run("ip link set tap0 down");
        let before = everything();
        let spec = "tap=tap0,host=172.31.0.1/24,nat,forward=8080:80";
        let mut step = 1;
        while killed_at(spec, step) {
            // The rules go at once.
            assert_eq!(run("nft list ruleset"), "", "step {step}");
            net::clean(&net::Host::new()).unwrap();
            assert_eq!((everything(), records()), (before.clone(), vec![]), "step {step}");
            step += 1;
        }
        assert!(step > 10, "{step} steps");
        kill(holding("tap,host=172.31.0.1/24,nat"));
        assert_eq!(forwarding("eth0"), "1", "this needs the next wirevm");
        drop(open("tap"));
        assert_eq!((everything(), records()), (before, vec![]));
    });
}

#[test]
fn a_tap_with_addresses_needs_no_host() {
    in_namespace("a_tap_with_addresses_needs_no_host", || {
        let world = world();
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        let error = refused("tap=tap0,nat");
        assert!(matches!(error, Error::Nat(NatError::NothingToMasquerade { .. })), "{error:?}");
        run("ip address add 172.31.0.1/24 dev tap0");
        let (mut opened, _) = open("tap=tap0,nat");
        let guest = guest(&mut opened);
        let server = world.serve("192.0.2.2:80");
        guest.talk("192.0.2.2:80").unwrap();
        assert_eq!(server.visitor(), "192.0.2.1");
    });
}

#[test]
fn in_another_namespace_all_of_it_is_there() {
    in_namespace("in_another_namespace_all_of_it_is_there", || {
        let world = world();
        // What leads to the world is there, and not here.
        let other = format!("wirevm-test-{}", std::process::id());
        run(&format!("ip netns add {other}"));
        run(&format!("ip link set eth0 netns {other}"));
        let there = |command: &str| run(&format!("ip netns exec {other} {command}"));
        there("ip address add 192.0.2.1/24 dev eth0");
        there("ip link set eth0 up");
        let here = everything();
        let (mut opened, _) = open(&format!("tap,host=172.31.0.1/24,nat,forward=8080:80,netns={other}"));
        assert_eq!(everything(), here);
        let guest = guest(&mut opened);
        let server = world.serve("192.0.2.2:80");
        let talked = guest.talk("192.0.2.2:80");
        let rules = there("nft list ruleset");
        drop((guest, opened));
        let left = there("nft list ruleset");
        let forwarding = there("sysctl -n net.ipv4.conf.eth0.forwarding");
        run(&format!("ip netns del {other}"));
        talked.unwrap();
        assert_eq!(server.visitor(), "192.0.2.1");
        assert!(rules.contains("dnat ip to 172.31.0.2:80"), "{rules}");
        assert_eq!((left.as_str(), forwarding.trim()), ("", "0"));
    });
}

#[test]
fn what_is_of_no_connection_does_not_leave() {
    in_namespace("what_is_of_no_connection_does_not_leave", || {
        let world = world();
        let (mut opened, _) = open("tap,host=172.31.0.1/24,nat");
        let guest = guest(&mut opened);
        // An answer to an echo that nobody asked for, which conntrack takes for nothing.
        world.commands(&[
            "nft add table inet count",
            "nft add chain inet count in { type filter hook prerouting priority -300; }",
            "nft add rule inet count in icmp type echo-reply counter",
        ]);
        guest.run(|| {
            let socket = rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::RAW,
                Some(rustix::net::ipproto::ICMP),
            )
            .unwrap();
            let to: std::net::SocketAddr = "192.0.2.2:0".parse().unwrap();
            rustix::net::sendto(
                &socket,
                &[0, 0, 0xff, 0xff, 0, 0, 0, 0],
                rustix::net::SendFlags::empty(),
                &to,
            )
            .unwrap();
        });
        // What is sent afterwards is there.
        let server = world.serve_udp("192.0.2.2:53");
        guest.talk_udp("192.0.2.2:53").unwrap();
        server.visitor();
        let seen = world.run(|| run("nft list table inet count"));
        assert!(seen.contains("packets 0 "), "{seen}");
        let rules = run("nft list table inet wirevm-wirevm0");
        assert!(rules.lines().any(|line| line.contains("ct state invalid counter packets 1 ")), "{rules}");
    });
}
