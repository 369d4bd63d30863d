//! A guest's rate, kept on the host's link, each test in a network namespace of its own.

mod namespace;

use std::time::{Duration, Instant};

use namespace::guest::{NEVER, SOON, recv, send};
use namespace::wire::{opened, told};
use namespace::{in_namespace, records, run, skip};
use net::{Opened, RateLimits};

const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const LEN: usize = 1000;
/// More than wait for a rate at once.
const FRAMES: usize = 200;
const A: &str = "02:00:00:00:00:0a";
const B: &str = "02:00:00:00:00:0b";

/// A frame from the guest A to the guest B, of a protocol that nobody speaks.
fn frame() -> Vec<u8> {
    let address = |last| [2, 0, 0, 0, 0, last];
    let mut frame = [&address(0xb)[..], &address(0xa), &ETHERTYPE].concat();
    frame.resize(LEN, 0);
    frame
}

/// Holds a guest to limits; false, and said, where this kernel cannot.
fn holds(name: &str, guest: &mut Opened, limits: &str) -> bool {
    let limits: RateLimits = limits.parse().unwrap();
    match guest.wire.hold_on_host(&limits) {
        Ok(()) => true,
        Err(error) if error.remedy().is_some_and(|remedy| remedy.contains("modprobe")) => {
            skip(name, &error.with_cause());
            false
        }
        Err(error) => panic!("{limits}: {}", error.with_cause()),
    }
}

/// What came of so many frames that were sent at once, and how long that took.
fn passed(a: &mut Opened, b: &mut Opened, frames: usize) -> (usize, Duration) {
    let began = Instant::now();
    (0..frames).for_each(|_| send(a, &frame()));
    let (mut count, mut took) = (0, began.elapsed());
    while recv(b, NEVER, |frame| frame[12..14] == ETHERTYPE).is_some() {
        (count, took) = (count + 1, began.elapsed());
    }
    (count, took)
}

/// How many frames of a guest's were dropped, of those that it sent or of those that it was to receive.
fn dropped(guest: &mut Opened, sends: bool) -> u64 {
    let counters = guest.wire.counters();
    if sends { counters.rate } else { counters.link.unwrap().received.dropped }
}

/// Two guests that reach each other, by such wires.
fn pair(spec: &str) -> [Opened; 2] {
    let mut pair = [A, B].map(|mac| opened(&format!("{spec},mac={mac}")));
    let [a, b] = &mut pair;
    // A bridge forwards at once, but learns first; a veth may take a moment to be up.
    let until = Instant::now() + SOON;
    while Instant::now() < until {
        send(a, &frame());
        if recv(b, NEVER, |frame| frame[12..14] == ETHERTYPE).is_some() {
            return pair;
        }
    }
    panic!("{spec}: nothing passes");
}

#[test]
fn a_guest_sends_and_receives_no_more_than_its_rate() {
    const NAME: &str = "a_guest_sends_and_receives_no_more_than_its_rate";
    in_namespace(NAME, || {
        run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        run("ip link add far type veth peer name near");
        run("ip link set far up");
        run("ip link set near up");
        for spec in ["bridge=br0", "macvtap=near"] {
            let [mut a, mut b] = pair(spec);
            // Each limits one direction of one of the two: bytes in a second, and what may go at once.
            for (sends, limits, rate, burst) in [
                (true, "rate=4M:off", 500_000, 5000),
                (false, "rate=off:4M", 500_000, 5000),
                (true, "pps=500:off", 500 * LEN, 5 * LEN),
                (false, "pps=off:500", 500 * LEN, 5 * LEN),
                // The stricter one holds.
                (true, "rate=4M:off,pps=10k", 500_000, 5000),
                (false, "rate=800M,pps=500,burst=5", 500 * LEN, 3 * LEN),
            ] {
                let limited = if sends { &mut a } else { &mut b };
                if !holds(NAME, limited, limits) {
                    return;
                }
                let before = dropped(limited, sends);
                let (count, took) = passed(&mut a, &mut b, FRAMES);
                let most = rate as f64 * took.as_secs_f64() + (burst + LEN) as f64;
                assert!((count * LEN) as f64 <= most, "{spec},{limits}: {count} frames in {took:?}");
                assert!(count >= 2, "{spec},{limits}: {count} frames");
                let limited = if sends { &mut a } else { &mut b };
                assert_eq!(dropped(limited, sends) - before, (FRAMES - count) as u64, "{spec},{limits}");
                assert!(holds(NAME, limited, "off"));
                assert_eq!(
                    dropped(limited, sends) - before,
                    (FRAMES - count) as u64,
                    "{spec}: none is forgotten"
                );
            }
            let (count, _) = passed(&mut a, &mut b, FRAMES);
            assert_eq!(count, FRAMES, "{spec}: nothing is limited any more");
        }
    });
}

#[test]
fn what_waits_for_its_rate_has_passed_the_guard() {
    const NAME: &str = "what_waits_for_its_rate_has_passed_the_guard";
    in_namespace(NAME, || {
        let mut guest = opened(&format!("tap,host=172.31.0.1/24,mac={A}"));
        assert_eq!(guest.notices, [""; 0]);
        if !holds(NAME, &mut guest, "rate=4M") {
            return;
        }
        // An ARP request from an address that is the host's.
        let mut arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 0xa], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        arp.extend([2, 0, 0, 0, 0, 0xa, 172, 31, 0, 1, 0, 0, 0, 0, 0, 0, 172, 31, 0, 9]);
        let before = guest.wire.counters().guarded;
        (0..3).for_each(|_| send(&mut guest, &arp));
        assert_eq!(guest.wire.counters().guarded, before + 3);
    });
}

#[test]
fn a_link_of_somebodys_is_as_it_was() {
    const NAME: &str = "a_link_of_somebodys_is_as_it_was";
    in_namespace(NAME, || {
        let limits = |text: &str| text.parse::<RateLimits>().unwrap();
        let state = || ["tc qdisc show", "ip -br link", "nft list tables"].map(run);
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        run("ip link set tap0 up");
        let before = state();
        let (host, lines) = told();
        let mut guest = net::open(&"tap=tap0".parse().unwrap(), &host).unwrap();
        lines.lock().unwrap().clear();
        if !holds(NAME, &mut guest, "rate=8M:4M,pps=off:1k") {
            return;
        }
        let told = lines.lock().unwrap().clone();
        let expected = [
            "ip link add name wirevm0 type ifb",
            "ip link set dev wirevm0 addrgenmode none",
            "ip link set dev wirevm0 up",
            "tc qdisc replace dev wirevm0 root handle 7769: tbf rate 8000000bit burst 10000b limit 131072b",
            "tc qdisc add dev tap0 root handle 7769: tbf rate 4000000bit burst 5000b limit 131072b",
            "nft add table netdev wirevm-tap0_rate",
        ];
        let ipv6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
        let expected = expected.into_iter().filter(|line| ipv6 || !line.contains("addrgenmode"));
        assert!(told.iter().map(String::as_str).take(6).eq(expected), "{told:#?}");
        // What is told is what there is.
        assert!(run("tc qdisc show dev tap0").contains("tbf 7769: root refcnt 2 rate 4Mbit burst 5000b"));
        let rules = run("nft list table netdev wirevm-tap0_rate");
        for rule in ["fwd to \"wirevm0\"", "limit rate over 1000/second burst 10 packets counter"] {
            assert!(rules.contains(rule), "{rules}");
        }
        assert!(records().iter().any(|name| name.starts_with("journal-")));
        // Others, off, and on again: one undo each.
        for text in ["rate=1M", "off", "pps=5", "rate=2M:off", "rate=1M"] {
            guest.wire.hold_on_host(&limits(text)).unwrap();
            let is_there = run("tc qdisc show").contains("7769:") || run("nft list tables").contains("_rate");
            assert_eq!(is_there, text != "off");
            assert_eq!(run("ip -br link show type ifb").is_empty(), !text.contains("rate="), "{text}");
        }
        drop(guest);
        assert_eq!(state(), before);
        assert_eq!(records(), [""; 0]);

        // A queue of somebody's own stays.
        run("tc qdisc add dev tap0 root handle 5: pfifo limit 77");
        let before = state();
        let mut guest = opened("tap=tap0");
        let refused = guest.wire.hold_on_host(&limits("rate=off:1M")).unwrap_err();
        assert!(refused.to_string().contains("tap0 has a pfifo queue"), "{refused}");
        assert!(refused.remedy().unwrap().contains("vhost=off"));
        guest.wire.hold_on_host(&limits("rate=1M")).unwrap_err();
        assert!(run("ip -br link show type ifb").is_empty(), "it is refused before anything is made");
        guest.wire.hold_on_host(&limits("rate=1M:off")).unwrap();
        // It is given another one while we hold it: that one stays, too.
        run("tc qdisc del dev tap0 root");
        guest.wire.hold_on_host(&limits("rate=1M")).unwrap();
        run("tc qdisc replace dev tap0 root handle 5: pfifo limit 77");
        guest.wire.hold_on_host(&limits("off")).unwrap();
        drop(guest);
        assert_eq!(state(), before);
    });
}
