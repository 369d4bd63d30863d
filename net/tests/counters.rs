//! What the host counts of a wire is what went over it, seen from the guest, each test in a network namespace of its own.

mod namespace;

use namespace::guest::{SOON, recv, send};
use namespace::wire::opened;
use namespace::{in_namespace, run};
use net::{Opened, Tally, WireCounters};

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A frame to everybody, of a protocol that nobody speaks.
fn frame(from: [u8; 6]) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &from, &[0x88, 0xb5]].concat();
    frame.resize(100, 0);
    frame
}

/// What was counted while `work` was done.
fn counted(opened: &mut Opened, work: impl FnOnce(&mut Opened)) -> (Tally, Tally, u64) {
    let before = opened.wire.counters();
    work(opened);
    let after = opened.wire.counters();
    let (was, is) = (before.link.unwrap(), after.link.unwrap());
    let less = |is: Tally, was: Tally| Tally {
        frames: is.frames - was.frames,
        bytes: is.bytes - was.bytes,
        dropped: is.dropped - was.dropped,
    };
    (less(is.sent, was.sent), less(is.received, was.received), after.guarded - before.guarded)
}

#[test]
fn what_the_guest_sends_is_sent_whatever_the_link_calls_it() {
    in_namespace("what_the_guest_sends_is_sent_whatever_the_link_calls_it", || {
        // Nobody but the guest says a word.
        run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        run("ip link add far type veth peer near");
        run("ip link set far up");
        run("ip link set near up");
        for spec in ["tap,mac=02:00:00:00:00:01,host=172.31.0.1/24", "macvtap=near,mac=02:00:00:00:00:01"] {
            let mut opened = opened(spec);
            let (sent, _, guarded) =
                counted(&mut opened, |guest| (0..5).for_each(|_| send(guest, &frame(GUEST))));
            assert_eq!((sent.frames, sent.bytes, guarded), (5, 500, 0), "{spec}");
        }
        let mut opened = opened("tap=tap0,host=172.31.0.1/24,mac=02:00:00:00:00:01");
        let (_, received, _) = counted(&mut opened, |guest| {
            run("ip neighbour add 172.31.0.9 lladdr 02:00:00:00:00:01 dev tap0");
            let to = std::net::UdpSocket::bind("172.31.0.1:0").unwrap();
            for _ in 0..3 {
                to.send_to(&[7; 58], "172.31.0.9:9").unwrap();
                recv(guest, SOON, |frame| frame.ends_with(&[7; 58])).unwrap();
            }
        });
        assert_eq!((received.frames, received.bytes), (3, 300));
    });
}

#[test]
fn what_a_guard_drops_is_counted() {
    in_namespace("what_a_guard_drops_is_counted", || {
        let mut opened = opened("bridge=br0,mac=02:00:00:00:00:01");
        let (sent, _, guarded) = counted(&mut opened, |guest| {
            (0..4).for_each(|_| send(guest, &frame([2, 0, 0, 0, 0, 9])));
            send(guest, &frame(GUEST));
        });
        assert_eq!((sent.frames, guarded), (5, 4));
    });
}

#[test]
fn a_link_that_is_gone_counts_nothing() {
    in_namespace("a_link_that_is_gone_counts_nothing", || {
        let mut opened = opened("bridge=br0,guard=off");
        assert!(opened.wire.counters().link.is_some());
        run(&format!("ip link del {}", opened.link));
        assert_eq!(opened.wire.counters(), WireCounters::default());
    });
}
