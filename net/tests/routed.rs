//! The routed tap: its subnet, and a real kernel as the guest that is told of it, each test in namespaces of its own.

mod namespace;

use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use namespace::wire::{open_run, open_told};
use namespace::{elsewhere, in_namespace, run, skip, state};
use net::{Backend, IovBuffer, Sent, Tap};
use vm_memory::VolatileSlice;

/// The addresses that the host was given, in the order that they were told.
fn addresses(told: &[String]) -> Vec<String> {
    let words = told.iter().map(|line| line.split(' ').collect::<Vec<_>>());
    words.filter(|words| words[..3] == ["ip", "address", "add"]).map(|words| words[3].to_owned()).collect()
}

fn has_ipv6(name: &str) -> bool {
    let has = std::fs::metadata("/proc/net/if_inet6").is_ok();
    if !has {
        skip(name, "this kernel has no IPv6");
    }
    has
}

#[test]
fn a_new_tap_gets_a_subnet_that_nobody_has() {
    in_namespace("a_new_tap_gets_a_subnet_that_nobody_has", || {
        run("ip link set lo up");
        let before = state();
        let (first, told) = open_told("tap");
        let got = addresses(&told);
        assert_eq!(got[0], "172.30.0.1/30", "{told:?}");
        let mut all = vec![got];
        let (second, told) = open_told("tap,mtu=1400");
        all.push(addresses(&told));
        assert_eq!(all[1][0], "172.30.0.5/30");
        // A way to a part of it, in a table that is not the main one.
        run("ip route add 172.30.0.0/25 dev lo table 77");
        let (third, told) = open_told("tap=named");
        all.push(addresses(&told));
        assert_eq!(all[2][0], "172.30.0.129/30");
        if has_ipv6("a_new_tap_gets_a_subnet_that_nobody_has (IPv6)") {
            for got in &all {
                assert!(got[1].starts_with("fd") && got[1].ends_with("::1/64"), "{got:?}");
            }
            assert_ne!(all[0][1], all[1][1]);
        }
        let (small, told) = open_told("tap,mtu=1279");
        assert_eq!(addresses(&told).len(), 1, "too small for IPv6: {told:?}");
        drop((first, second, third, small));
        run("ip route del 172.30.0.0/25 dev lo table 77");
        assert_eq!(state(), before);

        run("ip link add far type veth peer name end");
        run("ip link set far up");
        run("ip route add 172.31.0.0/24 dev far");
        let opened =
            |spec: &str| net::open(&spec.parse().unwrap(), &net::Host::new()).unwrap().notices.join("\n");
        assert!(opened("tap,host=172.31.0.1/24").contains("the host routes 172.31.0.0/24 over far too"));
        assert_eq!(opened("tap,host=172.31.0.1/25"), "", "the longer prefix wins");
        run("ip link del far");

        let (_bare, told) = open_told("tap,dhcp=off");
        assert_eq!(addresses(&told), [""; 0], "what is off needs nothing");
        run("ip tuntap add dev his mode tap vnet_hdr");
        let (_his, told) = open_run("tap=his");
        assert_eq!(told, ["ip link set dev his up"], "who made it addresses it");
    });
}

#[test]
fn a_host_without_a_free_subnet_says_so() {
    in_namespace("a_host_without_a_free_subnet_says_so", || {
        run("ip link set lo up");
        for range in ["172.16.0.0/12", "10.0.0.0/8", "192.168.0.0/16"] {
            run(&format!("ip route add unreachable {range}"));
        }
        let before = state();
        let error = net::open(&"tap".parse().unwrap(), &net::Host::new()).unwrap_err();
        assert!(error.to_string().contains("subnet for wirevm0"), "{error}");
        assert!(error.remedy().unwrap().contains("host="));
        assert_eq!(state(), before);
    });
}

/// Carries one frame from one backend to another; false where there is none.
fn carry(from: &mut dyn Backend, to: &mut dyn Backend) -> bool {
    let mut frame = vec![0; 70_000];
    let mut room = IovBuffer::new();
    let mut space = room.start();
    assert!(space.push(VolatileSlice::from(&mut frame[..])));
    let Ok(len) = from.recv(&mut space) else { return false };
    drop(space);
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(&mut frame[..len])));
    matches!(to.send(&iov), Ok(Sent::Gone | Sent::Answered))
}

/// Runs `guest` where the only link is `guest0`, the other end of the wire.
fn with_guest<T: Send + 'static>(backend: &mut dyn Backend, guest: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, tap) = mpsc::channel();
    let guest = elsewhere(move || {
        // Seconds of waiting, where a setting can be changed.
        for (setting, value) in [("accept_dad", "0"), ("router_solicitation_delay", "0")] {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/default/{setting}"), value);
        }
        sender.send(Tap::open(Some(&"guest0".parse().unwrap())).unwrap()).unwrap();
        run("ip link set guest0 address 02:00:00:00:00:01 up");
        guest()
    });
    let mut tap = tap.recv().unwrap();
    while !guest.is_finished() {
        let moved = carry(&mut tap, backend) | carry(backend, &mut tap);
        if !moved {
            thread::sleep(Duration::from_millis(1));
        }
    }
    guest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Asks until the answer is as `wanted`, for some seconds, and returns the last one.
fn wait_for(mut ask: impl FnMut() -> String, wanted: impl Fn(&str) -> bool) -> String {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = ask();
        if wanted(&answer) || Instant::now() > end {
            return answer;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// What a guest knows some seconds after its link came up: its addresses and its routes.
fn guest_configures_itself() -> String {
    let settled = |text: &str| text.contains(" fd00::") && !text.contains("tentative");
    let addresses = wait_for(|| run("ip -6 address show dev guest0"), settled);
    addresses + &run("ip -6 route show dev guest0")
}

#[test]
fn a_guest_makes_its_ipv6_address_of_what_it_is_told() {
    const NAME: &str = "a_guest_makes_its_ipv6_address_of_what_it_is_told";
    if !has_ipv6(NAME) {
        return;
    }
    in_namespace(NAME, || {
        let (mut opened, _) = open_told("tap,host=fd00::1/64,mtu=1400,mac=02:00:00:00:00:01");
        let host = UdpSocket::bind("[fd00::1]:0").unwrap();
        let to = host.local_addr().unwrap();
        let (said, from) = with_guest(opened.backends[0].as_mut(), move || {
            let said = guest_configures_itself();
            let socket = UdpSocket::bind("[::]:0").unwrap();
            let sent = socket.send_to(b"hello", to);
            // The neighbour has to be found first.
            thread::sleep(Duration::from_millis(200));
            (said, sent.map(|_| socket.local_addr().unwrap().port()))
        });
        assert!(said.contains("inet6 fd00::ff:fe00:1/64 scope global dynamic"), "{said}");
        assert!(said.contains("fd00::/64 proto kernel"), "{said}");
        assert!(!said.contains("default via"), "the host does not forward: {said}");
        host.set_nonblocking(true).unwrap();
        let (len, peer) = host.recv_from(&mut [0; 64]).unwrap();
        let guest: SocketAddr = format!("[fd00::ff:fe00:1]:{}", from.unwrap()).parse().unwrap();
        assert_eq!((len, peer), (5, guest));
    });
}

#[test]
fn a_host_that_forwards_is_the_router() {
    const NAME: &str = "a_host_that_forwards_is_the_router";
    if !has_ipv6(NAME) {
        return;
    }
    in_namespace(NAME, || {
        let (mut opened, _) = open_told("tap,host=fd00::1/64,mtu=1400,mac=02:00:00:00:00:01");
        if let Err(error) = std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1") {
            return skip(NAME, &format!("no setting of the kernel can be changed: {error}"));
        }
        let address = run("ip -6 -br address show dev wirevm0 scope link");
        let address = address.split_whitespace().nth(2).and_then(|word| word.split('/').next());
        let said = with_guest(opened.backends[0].as_mut(), guest_configures_itself);
        let route = format!("default via {} proto ra", address.unwrap());
        let line =
            said.lines().find(|line| line.contains(&route)).unwrap_or_else(|| panic!("{route}: {said}"));
        let words: Vec<_> = line.split_whitespace().collect();
        let after = |key| words.iter().skip_while(|word| **word != key).nth(1).copied().unwrap_or_default();
        assert_eq!((after("mtu"), after("hoplimit")), ("1400", "64"), "{line}");
        let expires: u32 = after("expires").trim_end_matches("sec").parse().unwrap();
        assert!((65_000..=65_535).contains(&expires), "{line}");
    });
}

#[test]
fn a_prefix_that_is_no_slash_64_is_told_as_it_is() {
    const NAME: &str = "a_prefix_that_is_no_slash_64_is_told_as_it_is";
    if !has_ipv6(NAME) {
        return;
    }
    in_namespace(NAME, || {
        let (mut long, _) = open_told("tap,host=fd00::1/112,mac=02:00:00:00:00:01");
        let told = &long.notices;
        assert!(
            told.len() == 1 && told[0].contains("fd00::1/112") && told[0].contains("by hand"),
            "{told:?}"
        );
        let on_link = |text: &str| text.contains("fd00::/112");
        let said = with_guest(long.backends[0].as_mut(), move || {
            wait_for(|| run("ip -6 route show dev guest0"), on_link) + &run("ip -6 address show dev guest0")
        });
        assert!(on_link(&said) && !said.contains("inet6 fd00"), "{said}");
        drop(long);

        let (mut short, _) = open_told("tap,host=fd00:0:0:7::1/48,mac=02:00:00:00:00:01");
        let said = with_guest(short.backends[0].as_mut(), || {
            let settled = |text: &str| text.contains("fd00:0:0:7:");
            wait_for(|| run("ip -6 address show dev guest0"), settled) + &run("ip -6 route show dev guest0")
        });
        assert!(said.contains("inet6 fd00::7:0:ff:fe00:1/64") && said.contains("fd00::/48 proto"), "{said}");
        assert_eq!(short.notices, [""; 0]);
    });
}

#[test]
fn nothing_is_told_where_dhcp_is_off() {
    in_namespace("nothing_is_told_where_dhcp_is_off", || {
        let (opened, _) = open_told("tap,host=172.31.0.1/24,host=fd00::1/64,dhcp=off");
        assert!(opened.backends[0].vhost_fd().is_some(), "there is nobody in front of the tap");
        let (answering, _) = open_told("tap,host=172.31.1.1/24");
        assert!(answering.backends[0].vhost_fd().is_none(), "the kernel would carry the questions past us");
    });
}
