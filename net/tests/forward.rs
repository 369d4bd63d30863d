//! `forward=`: ranges of ports, and ports of one address of the host.

mod namespace;

use std::io;
use std::net::UdpSocket;

use namespace::machine::{SHORT, talk, talk_udp};
use namespace::wire::{open, opened};
use namespace::world::{guest_of_both, world};
use namespace::{in_namespace, run, state};
use net::{Error, NatError};

const HOSTS: &str = "tap,host=172.31.0.1/24,host=fd00::1/64,guest=fd00::2,nat";

#[test]
fn each_port_of_a_range_leads_to_its_own() {
    in_namespace("each_port_of_a_range_leads_to_its_own", || {
        let world = world();
        let before = run("nft list ruleset");
        let ports = "forward=8000-8010:8000-8010,forward=9000-9010:80-90,forward=7000-7001:90-91/udp";
        let mut opened = opened(&format!("{HOSTS},{ports}"));
        let guest = guest_of_both(&mut opened);
        for (host, port) in [(8000, 8000), (8010, 8010), (9000, 80), (9004, 84), (9010, 90)] {
            let server = guest.serve(&format!("0.0.0.0:{port}"));
            world.talk(&format!("192.0.2.1:{host}")).unwrap_or_else(|error| panic!("{host}: {error}"));
            assert_eq!(server.visitor(), "192.0.2.2", "{host}");
            let server = guest.serve(&format!("0.0.0.0:{port}"));
            talk(format!("127.0.0.1:{host}").parse().unwrap())
                .unwrap_or_else(|error| panic!("{host}: {error}"));
            assert_eq!(server.visitor(), "172.31.0.1", "{host}");
        }
        let server = guest.serve_udp("0.0.0.0:91");
        talk_udp("192.0.2.1:7001".parse().unwrap()).unwrap();
        assert_eq!(server.visitor(), "172.31.0.1");
        for beyond in [7999, 8011, 8999, 9011] {
            let refused = world.talk(&format!("192.0.2.1:{beyond}")).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{beyond}");
        }
        drop((guest, opened));
        assert_eq!(run("nft list ruleset"), before);
    });
}

#[test]
fn a_port_of_one_address_is_not_anothers() {
    in_namespace("a_port_of_one_address_is_not_anothers", || {
        let world = world();
        run("ip address add 192.0.2.5/24 dev eth0");
        let ports = "forward=192.0.2.5:8080:80,forward=[2001:db8::1]:8080:80";
        let mut opened = opened(&format!("{HOSTS},{ports}"));
        let guest = guest_of_both(&mut opened);
        for (to, at, seen) in [
            ("192.0.2.5:8080", "172.31.0.2:80", "192.0.2.2"),
            ("[2001:db8::1]:8080", "[fd00::2]:80", "2001:db8::2"),
        ] {
            let server = guest.serve(at);
            world.talk(to).unwrap_or_else(|error| panic!("{to}: {error}"));
            assert_eq!(server.visitor(), seen, "{to}");
            let server = guest.serve(at);
            talk(to.parse().unwrap()).unwrap_or_else(|error| panic!("the host to {to}: {error}"));
            assert!(["172.31.0.1", "fd00::1"].contains(&server.visitor().as_str()), "{to}");
        }
        let refused = world.talk("192.0.2.1:8080").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        // It is free for somebody else.
        let _theirs = UdpSocket::bind("192.0.2.5:8080").unwrap();
        let _others = std::net::TcpListener::bind("192.0.2.1:8080").unwrap();
    });
}

#[test]
fn a_port_of_the_loopback_is_the_hosts_own() {
    in_namespace("a_port_of_the_loopback_is_the_hosts_own", || {
        let world = world();
        let mut opened = opened(&format!("{HOSTS},forward=udp:127.0.0.1:5353:53"));
        let guest = guest_of_both(&mut opened);
        let server = guest.serve_udp("0.0.0.0:53");
        talk_udp("127.0.0.1:5353".parse().unwrap()).unwrap();
        assert_eq!(server.visitor(), "172.31.0.1");

        // A neighbour can send to that address, if it wants to.
        world.commands(&[
            "ip address flush dev lo",
            "sysctl -qw net.ipv4.conf.eth0.route_localnet=1",
            "ip route add 127.0.0.1/32 via 192.0.2.1 src 192.0.2.2",
        ]);
        let socket = guest.run(|| UdpSocket::bind("0.0.0.0:53").unwrap());
        socket.set_read_timeout(Some(SHORT)).unwrap();
        for to in ["127.0.0.1:5353", "192.0.2.1:5353"] {
            world.run(move || UdpSocket::bind("192.0.2.2:0").unwrap().send_to(b"hello", to).unwrap());
        }
        assert_eq!(socket.recv(&mut [0; 5]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn what_cannot_be_taken_is_refused() {
    in_namespace("what_cannot_be_taken_is_refused", || {
        let _world = world();
        let _theirs = UdpSocket::bind("127.0.0.1:8005").unwrap();
        let before = state();
        for (hosts, ports, words, remedy) in [
            (HOSTS, "192.0.2.77:80:80", "tcp port 80 of 192.0.2.77", "ip -brief address"),
            (HOSTS, "[2001:db8::77]:80:80", "tcp port 80 of 2001:db8::77", "ip -brief address"),
            (HOSTS, "udp:8000-8010:1-11", "udp port 8005 of the host", "sport = :8005"),
            ("tap,host=172.31.0.1/24,nat", "[2001:db8::1]:80:80", "no address of IPv6", "host="),
            ("tap,host=fd00::1/64,nat", "192.0.2.1:80:80", "no address of IPv4", "host="),
        ] {
            let error = open(&format!("{hosts},forward={ports}")).unwrap_err();
            assert!(error.to_string().contains(words), "{ports}: {error}");
            assert!(error.remedy().unwrap().contains(remedy), "{ports}: {error:?}");
            assert_eq!(state(), before);
        }
        // Another wirevm, with a port of one address or of all.
        let _ours = opened(&format!("{HOSTS},forward=192.0.2.1:9000-9009:1-10"));
        for ports in ["9009:80", "192.0.2.1:9000:80"] {
            let error = open(&format!("tap,host=172.31.1.1/24,nat,forward={ports}")).unwrap_err();
            assert!(matches!(error, Error::Nat(NatError::PortTaken { .. })), "{error:?}");
        }
        drop(opened("tap,host=172.31.1.1/24,nat,forward=127.0.0.1:9009:80"));
    });
}
