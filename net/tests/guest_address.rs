//! `guest=`: the guest has the address that the user chose, and no other.

mod frames;
mod namespace;

use std::net::UdpSocket;

use frames::{discover, recv_where, router_solicitation, send};
use namespace::machine::{Guest, SHORT};
use namespace::wire::{open, opened};
use namespace::world::world;
use namespace::{in_namespace, run, state};
use net::{HEADER_LEN, Sent};

/// Where the addresses are in a DHCP message, and the prefix's flags in an advertisement's first prefix option.
const YIADDR: usize = HEADER_LEN + 14 + 20 + 8 + 16;
const ADVERTISEMENT: usize = HEADER_LEN + 14 + 40;

#[test]
fn a_guest_is_told_the_address_that_was_chosen() {
    in_namespace("a_guest_is_told_the_address_that_was_chosen", || {
        let mac = "mac=02:00:00:00:00:01";
        let mut chosen = opened(&format!("tap,host=172.31.0.1/24,guest=172.31.0.9/24,{mac}"));
        assert_eq!(chosen.notices, [""; 0]);
        let backend = chosen.backends[0].as_mut();
        assert_eq!(send(backend, &discover()).unwrap(), Sent::Answered);
        let offer = recv_where(backend, |frame| frame[HEADER_LEN + 12..][..2] == [8, 0]);
        assert_eq!(offer[YIADDR..][..4], [172, 31, 0, 9]);
        drop(chosen);

        // Type 3, 4 units of 8 octets, the prefix's length, on the link, and autonomous or not (RFC 4861 §4.6.2).
        for (guest, flags) in [("", 0xc0), ("guest=fd00::9,", 0x80)] {
            let mut told = opened(&format!("tap,host=fd00::1/64,{guest}{mac}"));
            assert_eq!(told.notices.iter().any(|notice| notice.contains("fd00::9/64")), flags == 0x80);
            let backend = told.backends[0].as_mut();
            assert_eq!(send(backend, &router_solicitation()).unwrap(), Sent::Answered);
            let is_advertisement = |frame: &[u8]| frame.get(ADVERTISEMENT) == Some(&134);
            let advertisement = recv_where(backend, is_advertisement);
            let option = [3, 4, 64, flags];
            assert!(advertisement.windows(4).any(|four| four == option), "{guest}: {advertisement:02x?}");
        }
    });
}

#[test]
fn a_guest_sends_from_and_is_forwarded_to_the_address_that_was_chosen() {
    in_namespace("a_guest_sends_from_and_is_forwarded_to_the_address_that_was_chosen", || {
        let world = world();
        let before = state();
        for (hosts, at, prefix, router, others) in [
            ("host=172.31.0.1/24,guest=172.31.0.9", "172.31.0.9", 24, "172.31.0.1", "172.31.0.2"),
            ("host=fd00::1/64,guest=fd00::9", "fd00::9", 64, "fd00::1", "fd00::2"),
        ] {
            let mut opened = opened(&format!("tap,{hosts},nat,forward=8080:80"));
            let guest = Guest::on(&mut opened);
            let optimistic = if at.contains(':') { " nodad" } else { "" };
            let add = |address: &str| format!("ip address add {address}/{prefix} dev eth0{optimistic}");
            let family = if at.contains(':') { "-6" } else { "-4" };
            guest.commands(&[&add(at), &format!("ip {family} route add default via {router}"), &add(others)]);
            let bracketed = |address: &str, port| {
                let address: std::net::IpAddr = address.parse().unwrap();
                std::net::SocketAddr::new(address, port).to_string()
            };
            let server = guest.serve(&bracketed(at, 80));
            let (host, visitor) =
                if at.contains(':') { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "192.0.2.2") };
            world.talk(&bracketed(host, 8080)).unwrap_or_else(|error| panic!("{hosts}: {error}"));
            assert_eq!(server.visitor(), visitor);

            let here = UdpSocket::bind(bracketed(router, 5000)).unwrap();
            here.set_read_timeout(Some(SHORT)).unwrap();
            let to = bracketed(router, 5000);
            for (from, arrives) in [(at, true), (others, false)] {
                let (from, to) = (bracketed(from, 0), to.clone());
                guest.run(move || UdpSocket::bind(from).unwrap().send_to(b"hello", to).unwrap());
                assert_eq!(here.recv(&mut [0; 5]).is_ok(), arrives, "{hosts}: {arrives}");
            }
            drop((guest, opened));
            assert_eq!(state(), before);
        }
    });
}

#[test]
fn an_address_of_the_host_is_not_the_guests() {
    in_namespace("an_address_of_the_host_is_not_the_guests", || {
        run("ip link add far type veth peer name end");
        run("ip address add 172.31.0.9/32 dev far");
        let before = state();
        for kind in ["tap", "tun"] {
            let error = open(&format!("{kind},host=172.31.0.1/24,guest=172.31.0.9")).unwrap_err();
            assert_eq!(error.to_string(), "guest=172.31.0.9: far has it at one of its ends already");
            assert!(error.remedy().unwrap().contains("ip address show dev far"));
            assert_eq!(state(), before);
        }
    });
}
