//! Real taps, each test in a network namespace of its own.

mod frames;
mod namespace;

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use frames::{drain, recv, recv_where, send};
use namespace::wire::{open, open_run, open_told, without_ipv6};
use namespace::{
    as_user, features, header_len, in_namespace, own_tun_device, records, run, set_udp_segment, state,
    warnings,
};
use net::{Backend, Error, HEADER_LEN, LinkName, Offloads, Opened, Sent, Tap, TunTapError};

fn name(name: &str) -> Option<LinkName> {
    Some(name.parse().unwrap())
}

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// An ARP request of the guest, 172.31.0.2, for the host, 172.31.0.1, with its header.
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend([0xff; 6]);
    frame.extend(GUEST);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(GUEST);
    frame.extend([172, 31, 0, 2, 0, 0, 0, 0, 0, 0, 172, 31, 0, 1]);
    frame
}

fn is_arp_reply(frame: &[u8]) -> bool {
    frame.get(HEADER_LEN + 12..HEADER_LEN + 22) == Some(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2])
}

#[test]
fn a_tap_is_made_and_goes() {
    in_namespace("a_tap_is_made_and_goes", || {
        let before = state();
        let (opened, told) = open_told("tap,host=172.31.0.1/24,mtu=9000");
        assert_eq!(opened.link, "wirevm0");
        assert_eq!((opened.mtu, opened.backends.len()), (9000, 1));
        assert_eq!(
            without_ipv6(&told),
            [
                "ip tuntap add dev wirevm0 mode tap vnet_hdr",
                "ip link set dev wirevm0 mtu 9000",
                "ip address add 172.31.0.1/24 dev wirevm0",
                "ip link set dev wirevm0 up",
            ]
        );
        let link = run("ip -d link show wirevm0");
        for word in ["mtu 9000", ",UP", "vnet_hdr on", "pi off"] {
            assert!(link.contains(word), "{word}: {link}");
        }
        assert!(run("ip address show wirevm0").contains("inet 172.31.0.1/24"));

        let (second, _) = open_told("tap");
        assert_eq!((second.link.as_str(), second.mtu), ("wirevm1", 1500), "the link's own MTU");
        let (third, told) = open_told("tap=mine");
        assert_eq!(third.link, "mine");
        assert_eq!(told[0], "ip tuntap add dev mine mode tap vnet_hdr");
        drop((opened, second, third));
        assert_eq!(state(), before);
    });
}

#[test]
fn what_is_told_does_the_same_by_hand() {
    in_namespace("what_is_told_does_the_same_by_hand", || {
        let (opened, told) = open_told("tap,host=172.31.0.1/24,mtu=9000");
        // A tap without a holder has no carrier, its own index, MAC and IPv6, and is persistent: what is left is ours.
        let ours = |text: String| {
            let inet = text.lines().find(|line| line.contains("inet ")).unwrap_or_default().trim().to_owned();
            let words = ["mtu 9000", "type tap", "pi off", "vnet_hdr on", ",UP"];
            (inet, words.map(|word| text.contains(word)))
        };
        let made = ours(run("ip -d address show wirevm0"));
        drop(opened);
        told.iter().for_each(|line| drop(run(line)));
        assert_eq!(ours(run("ip -d address show wirevm0")), made);
        assert_eq!(made.1, [true; 5]);
    });
}

#[test]
fn a_persistent_tap_is_as_before() {
    in_namespace("a_persistent_tap_is_as_before", || {
        // With packet information and without a header: both are overwritten by attaching.
        run("ip tuntap add dev tap0 mode tap pi");
        // A link that is up for the first time gets its queueing discipline, and keeps it.
        run("ip link set tap0 up");
        run("ip link set tap0 down");
        let before = state();
        assert!(before.contains("pi on vnet_hdr off"), "{before}");
        for wire_first in [true, false] {
            let (opened, told) = open_told("tap=tap0,host=172.31.0.1/24,mtu=1400");
            assert_eq!(
                told,
                [
                    "# attach to tap0: TUNSETIFF IFF_TAP|IFF_NO_PI|IFF_VNET_HDR, TUNSETVNETHDRSZ 12",
                    "ip link set dev tap0 mtu 1400",
                    "ip address add 172.31.0.1/24 dev tap0",
                    "ip link set dev tap0 up"
                ],
                "attaching changes nothing that ip could"
            );
            let during = run("ip -d address show tap0");
            for word in ["mtu 1400", "inet 172.31.0.1/24", ",UP", "pi off", "vnet_hdr on"] {
                assert!(during.contains(word), "{word}: {during}");
            }
            let Opened { backends, wire, .. } = opened;
            if wire_first {
                drop(wire);
                drop(backends);
            } else {
                drop(backends);
                drop(wire);
            }
            assert_eq!(state(), before, "wire first: {wire_first}");
        }
    });
}

#[test]
fn what_ip_does_not_tell_of_a_persistent_tap_is_as_before() {
    in_namespace("what_ip_does_not_tell_of_a_persistent_tap_is_as_before", || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        let (len, offloads) = (header_len("tap0"), features("tap0"));
        assert_eq!(len, 10, "the driver's default");
        let mut tap = Tap::open(name("tap0").as_ref()).unwrap();
        assert!(tap.is_persistent());
        tap.set_offloads(tap.offloads()).unwrap();
        assert_ne!(features("tap0"), offloads);
        drop(tap);
        assert_eq!(features("tap0"), offloads, "else the next holder gets unfinished frames unasked");
        assert_eq!(header_len("tap0"), len);
    });
}

#[test]
fn what_was_there_is_neither_done_nor_undone() {
    in_namespace("what_was_there_is_neither_done_nor_undone", || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        run("ip link set tap0 mtu 1400");
        run("ip address add 172.31.0.1/24 dev tap0");
        run("ip link set tap0 up");
        let before = run("ip address show tap0").replace("state DOWN", "").replace("NO-CARRIER,", "");
        let (opened, told) = open_run("tap=tap0,host=172.31.0.1/24,mtu=1400");
        assert_eq!(told, [""; 0]);
        drop(opened);
        let after = run("ip address show tap0");
        for word in ["mtu 1400", "inet 172.31.0.1/24", ",UP"] {
            assert!(after.contains(word) && before.contains(word), "{word}: {after}");
        }
    });
}

#[test]
fn a_tap_deleted_meanwhile_is_not_made_again() {
    in_namespace("a_tap_deleted_meanwhile_is_not_made_again", || {
        warnings();
        let before = state();
        run("ip tuntap add dev tap0 mode tap");
        let mut opened = open("tap=tap0,host=172.31.0.1/24").unwrap();
        run("ip link del tap0");
        let backend = opened.backends[0].as_mut();
        for error in [recv(backend, 2000).unwrap_err(), send(backend, &arp_request()).unwrap_err()] {
            assert_eq!(error.raw_os_error(), Some(libc::EBADFD));
        }
        drop(opened);
        assert_eq!(state(), before);

        // Nor is another one of the same name touched.
        run("ip tuntap add dev tap0 mode tap pi");
        let opened = open("tap=tap0,host=172.31.0.1/24").unwrap();
        run("ip link del tap0");
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        run("ip address add 172.31.0.1/24 dev tap0");
        run("ip link set tap0 up");
        let before = state();
        drop(opened);
        assert_eq!(state(), before);
        assert_eq!(warnings(), [""; 0], "what is gone is no failure");
    });
}

#[test]
fn an_undo_that_fails_is_told_and_the_rest_goes_on() {
    in_namespace("an_undo_that_fails_is_told_and_the_rest_goes_on", || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        // A link has its queue's discipline from the first time that it is up.
        run("ip link set tap0 up");
        run("ip link set tap0 down");
        let before = state();
        let Opened { backends, wire, .. } = open("tap=tap0,host=172.31.0.1/24,mtu=1400,guard=off").unwrap();
        warnings();
        as_user(65534, || drop(wire));
        let told = warnings();
        let undone = [
            "ip link set dev tap0 down",
            "ip address del 172.31.0.1/24 dev tap0",
            "ip link set dev tap0 mtu 1500",
        ];
        assert_eq!(told.len(), undone.len(), "{told:?}");
        for (told, undone) in told.iter().zip(undone) {
            assert!(told.contains(undone) && told.contains("Operation not permitted"), "{told}");
        }
        drop(backends);

        // It is kept for somebody who can.
        let cleaned = net::clean(&net::Host::new()).unwrap();
        assert!(cleaned.iter().map(|step| &step.command).eq(&undone), "{cleaned:?}");
        assert_eq!((state(), records()), (before, vec![]));
    });
}

#[test]
fn a_failed_start_leaves_nothing() {
    in_namespace("a_failed_start_leaves_nothing", || {
        run("ip tuntap add dev tap0 mode tap");
        run("ip link add other type veth peer there");
        run("ip address add 172.31.0.9/16 dev other");
        let before = state();
        for spec in ["tap=tap0,mtu=1400,host=172.31.4.1/24", "tap,mtu=1400,host=172.31.4.1/24"] {
            let error = open(spec).unwrap_err();
            assert_eq!(error.to_string(), "host=172.31.4.1/24: other has 172.31.0.9/16 already");
            assert!(error.remedy().unwrap().contains("172.31.0.9/16"));
            assert_eq!(state(), before, "{spec}");
        }
        let error = open("tap,host=172.31.0.9/24").unwrap_err();
        assert!(error.to_string().contains("other has"), "{error}");
        assert!(open("tap,host=172.30.0.1/24").is_ok(), "a subnet apart");
    });
}

#[test]
fn a_busy_tap_says_by_whom() {
    in_namespace("a_busy_tap_says_by_whom", || {
        let first = open("tap=tap0").unwrap();
        let error = open("tap=tap0").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot attach to the tap tap0: another --net of this command holds it"
        );
        assert!(error.remedy().is_some());
        assert!(
            matches!(&error, Error::TunTap(TunTapError::Busy { source, .. }) if source.raw_os_error() == Some(libc::EBUSY))
        );
        drop(first);

        // Another process, which inherits the descriptor.
        let first = Tap::open(name("tap0").as_ref()).unwrap();
        let fd = first.fd().try_clone_to_owned().unwrap();
        let mut sleep = std::process::Command::new("sleep").arg("60").stdin(fd).spawn().unwrap();
        let held = open("tap=tap0").map(drop);
        drop(first);
        let held = held.unwrap_err().to_string();
        assert!(
            held.ends_with("tap0: another --net of this command holds it"),
            "a child is its parent's: {held}"
        );
        let pid = sleep.id();
        // It has its own name a moment after it is started.
        while std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() != "sleep\n" {
            std::thread::yield_now();
        }
        let error = open("tap=tap0").map(drop);
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        let text = error.unwrap_err().to_string();
        assert_eq!(text, format!("cannot attach to the tap tap0: process {pid} (sleep) holds it"));
    });
}

#[test]
fn what_is_no_tap_of_one_queue_is_named() {
    in_namespace("what_is_no_tap_of_one_queue_is_named", || {
        run("ip tuntap add dev many mode tap multi_queue");
        run("ip tuntap add dev layer3 mode tun");
        run("ip link add here type veth peer there");
        run("ip link add bridge0 type bridge");
        let before = state();
        for (spec, words) in [
            ("tap=many", "multi_queue"),
            ("tap=layer3", "a tun (layer 3), not a tap"),
            ("tap=here", "a veth, not a tap"),
            ("tap=bridge0", "a bridge, not a tap"),
            ("tap=lo", "a network interface, not a tap"),
        ] {
            let error = open(spec).unwrap_err();
            assert!(error.to_string().contains(words), "{spec}: {error}");
            assert!(error.remedy().is_some(), "{spec}: {error}");
        }
        assert_eq!(state(), before);
    });
}

#[test]
fn a_device_that_does_not_open_has_a_remedy() {
    for (name, mode, remedy) in [
        ("a_device_that_does_not_open_has_a_remedy (absent)", None, "modprobe tun"),
        ("a_device_that_does_not_open_has_a_remedy (root's)", Some(0o600), "chmod 0666 /dev/net/tun"),
    ] {
        in_namespace(name, move || {
            own_tun_device(mode);
            let error = as_user(65534, || open("tap").unwrap_err());
            assert_eq!(error.to_string(), "cannot open /dev/net/tun");
            assert!(error.remedy().unwrap().contains(remedy), "{error:?}");
        });
    }
}

#[test]
fn without_rights_there_are_words_and_an_owned_tap_works() {
    in_namespace("without_rights_there_are_words_and_an_owned_tap_works", || {
        let user = 65534;
        own_tun_device(Some(0o666));
        run(&format!("ip tuntap add dev mine mode tap user {user} vnet_hdr"));
        run("ip tuntap add dev theirs mode tap user 1234 vnet_hdr");
        run("ip link set mine up");
        for (spec, words, remedy) in [
            ("tap", "cannot make a tap", "ip tuntap add dev tap0 mode tap user $USER vnet_hdr"),
            ("tap=new", "cannot make the tap new", "ip tuntap add dev new"),
            ("tap=theirs", "cannot attach to the tap theirs", "user of id 1234"),
            (
                "tap=mine,mtu=1400",
                "ip link set dev mine mtu 1400",
                "beforehand: sudo ip link set dev mine mtu 1400",
            ),
        ] {
            let error = as_user(user, move || open(spec).unwrap_err());
            assert!(error.to_string().contains(words), "{spec}: {error}");
            let told = error.remedy().unwrap_or_default();
            assert!(told.contains(remedy), "{spec}: {told}");
        }
        let link = as_user(user, || open("tap=mine").unwrap().link);
        assert_eq!(link, "mine");
    });
}

#[test]
fn frames_pass_both_ways_with_their_header() {
    in_namespace("frames_pass_both_ways_with_their_header", || {
        let mut opened = open("tap,host=172.31.0.1/24,mac=02:00:00:00:00:01").unwrap();
        let backend = opened.backends[0].as_mut();
        assert_eq!(send(backend, &arp_request()).unwrap(), Sent::Gone);
        let reply = recv_where(backend, is_arp_reply);
        assert_eq!(reply.len(), HEADER_LEN + 42);
        assert_eq!(reply[..10], [0; 10], "nothing is left to finish");
        assert_eq!(reply[HEADER_LEN..HEADER_LEN + 6], GUEST);

        drain(backend);
        let error = recv(backend, 2000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn a_frame_larger_than_the_space_is_an_error_and_an_exact_one_is_not() {
    in_namespace("a_frame_larger_than_the_space_is_an_error_and_an_exact_one_is_not", || {
        let mut opened = open("tap,host=172.31.0.1/24,mac=02:00:00:00:00:01").unwrap();
        let backend = opened.backends[0].as_mut();
        let whole = HEADER_LEN + 42;
        // Without IPv6 the kernel has nothing of its own to say.
        let _ = std::fs::write("/proc/thread-self/net/../sys/net/ipv6/conf/all/disable_ipv6", "1");
        std::thread::sleep(Duration::from_millis(50));
        for (space, expected) in
            [(whole, Ok(whole)), (whole - 1, Err(libc::EMSGSIZE)), (20, Err(libc::EMSGSIZE))]
        {
            // A frame of the kernel's own may come first, and be larger.
            let found = (0..20).any(|_| {
                drain(backend);
                send(backend, &arp_request()).unwrap();
                let got = recv(backend, space).map(|frame| frame.len());
                got.map_err(|error| error.raw_os_error().unwrap()) == expected
            });
            assert!(found, "space of {space}");
        }
    });
}

#[test]
fn a_tap_set_down_refuses() {
    in_namespace("a_tap_set_down_refuses", || {
        let mut opened = open("tap,host=172.31.0.1/24").unwrap();
        let backend = opened.backends[0].as_mut();
        run("ip link set wirevm0 down");
        let error = send(backend, &arp_request()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        run("ip link set wirevm0 up");
        assert!(send(backend, &arp_request()).is_ok());
    });
}

#[test]
fn offloads_are_the_guests() {
    in_namespace("offloads_are_the_guests", || {
        let mut tap = Tap::open(None).unwrap();
        assert!(!tap.is_persistent());
        assert!(tap.vhost_fd().is_some());
        let all = Offloads { csum: true, tso4: true, tso6: true, uso: tap.offloads().uso };
        assert_eq!(tap.offloads(), all, "every kernel since 2.6 has these");
        // NETIF_F_HW_CSUM, NETIF_F_TSO, NETIF_F_TSO6.
        let on = |tap: &Tap| [3, 16, 20].map(|bit| features(tap.name()) >> bit & 1 != 0);
        assert_eq!(on(&tap), [false; 3], "none at the start");
        tap.set_offloads(all).unwrap();
        assert_eq!(on(&tap), [true; 3]);
        tap.set_offloads(Offloads { csum: true, tso6: true, ..Offloads::default() }).unwrap();
        assert_eq!(on(&tap), [true, false, true]);
        tap.set_offloads(Offloads { tso4: true, ..Offloads::default() }).unwrap();
        assert_eq!(on(&tap), [false; 3], "segments mean nothing without checksums");
    });
}

#[test]
fn what_the_guest_accepts_it_gets_unfinished() {
    in_namespace("what_the_guest_accepts_it_gets_unfinished", || {
        let mut opened = open("tap,host=172.31.0.1/24,dhcp=off").unwrap();
        run("ip neighbour add 172.31.0.2 lladdr 02:00:00:00:00:01 dev wirevm0");
        let socket = UdpSocket::bind("172.31.0.1:4321").unwrap();
        let backend = opened.backends[0].as_mut();
        let is_ours =
            |frame: &[u8]| frame.get(HEADER_LEN + 34..HEADER_LEN + 36) == Some(&4321u16.to_be_bytes());
        let csum = Offloads { csum: true, ..Offloads::default() };

        socket.send_to(b"hello", "172.31.0.2:5").unwrap();
        assert_eq!(recv_where(backend, is_ours)[..10], [0; 10], "finished");
        backend.set_offloads(csum).unwrap();
        socket.send_to(b"hello", "172.31.0.2:5").unwrap();
        // NEEDS_CSUM, no segments, csum_start of the UDP header, csum_offset of its checksum.
        assert_eq!(recv_where(backend, is_ours)[..10], [1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);

        if backend.offloads().uso {
            backend.set_offloads(Offloads { uso: true, ..csum }).unwrap();
            set_udp_segment(&socket, 1000);
            socket.send_to(&[0; 3000], "172.31.0.2:5").unwrap();
            let frame = recv_where(backend, is_ours);
            // VIRTIO_NET_HDR_GSO_UDP_L4 is 5; gso_size.
            assert_eq!(
                (frame[1], &frame[4..6], frame.len()),
                (5, &1000u16.to_le_bytes()[..], HEADER_LEN + 3042)
            );
        }
    });
}

#[test]
fn the_descriptor_is_not_inherited_and_never_blocks() {
    in_namespace("the_descriptor_is_not_inherited_and_never_blocks", || {
        let tap = Tap::open(None).unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", tap.fd().as_raw_fd())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        let wanted = libc::O_NONBLOCK | libc::O_CLOEXEC;
        assert_eq!(flags & wanted, wanted, "{info}");
    });
}

#[test]
fn the_host_has_an_address_of_each_family() {
    const NAME: &str = "the_host_has_an_address_of_each_family";
    if std::fs::metadata("/proc/net/if_inet6").is_err() {
        return namespace::skip(NAME, "this kernel has no IPv6");
    }
    in_namespace(NAME, || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        run("ip link set tap0 up");
        run("ip link set tap0 down");
        let before = state();
        let (opened, told) = open_run("tap=tap0,host=172.31.0.1/24,host=fd00::1/64");
        assert_eq!(
            told,
            [
                "ip address add 172.31.0.1/24 dev tap0",
                "ip address add fd00::1/64 dev tap0 nodad",
                "ip link set dev tap0 up",
            ]
        );
        let shown = run("ip address show tap0");
        assert!(shown.contains("inet6 fd00::1/64 scope global nodad"), "{shown}");
        assert!(!shown.contains("fd00::1/64 scope global tentative"), "{shown}");
        assert!(open("tap,host=fd00::2/64").unwrap_err().to_string().contains("tap0 has fd00::1/64 already"));
        drop(opened);
        assert_eq!(state(), before);
    });
}
