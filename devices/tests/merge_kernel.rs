//! What the guest sends as one packet and frame by frame, through a real kernel: what comes out is the same.

#[path = "../../net/tests/namespace/mod.rs"]
mod namespace;
#[path = "../../net/tests/packets/mod.rs"]
mod packets;
mod rig;
#[path = "../../net/tests/trains/mod.rs"]
mod trains;

use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use namespace::{in_namespace, run, shell};
use net::{Backend, HEADER_LEN, IovBuffer, Offloads, Tap};
use packets::GUEST;
use proptest::test_runner::{Config, TestRunner};
use rig::burst::Burst;
use trains::{canonical, train, trains};
use vm_memory::VolatileSlice;

const NONE: Offloads = Offloads { csum: false, tso4: false, tso6: false, uso: false };
/// Larger than any frame here: a bridge loses a single one that is longer than the MTU.
const MTU: u16 = 65521;

/// A tap as a NIC has it, to which frames go as one or not.
struct Port {
    tap: Tap,
    coalesce: bool,
}

impl Backend for Port {
    fn fd(&self) -> BorrowedFd<'_> {
        self.tap.fd()
    }

    fn offloads(&self) -> Offloads {
        self.tap.offloads()
    }

    fn merges(&self) -> (Offloads, u16) {
        (if self.coalesce { self.tap.offloads() } else { NONE }, MTU)
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.tap.set_offloads(accepted)
    }
}

/// A bridge with a tap by which frames go as they are, one by which some go as one, and one whose reader accepts only whole frames.
struct Bridge {
    ways: [Burst; 2],
    reader: Tap,
}

impl Bridge {
    fn new() -> Self {
        run("ip link add br0 type bridge mcast_snooping 0");
        // A firewall would have the bridge drop and trim what is no good packet.
        shell("for it in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $it ] || echo 0 >$it; done");
        run("ip link set br0 up");
        let tap = |number: usize| {
            let tap = Tap::open(Some(&format!("tap{number}").parse().unwrap())).unwrap();
            run(&format!("ip link set tap{number} mtu {MTU} txqueuelen 10000 master br0 up"));
            tap
        };
        let reader = tap(2);
        let way = |coalesce: bool| Burst::new(Box::new(Port { tap: tap(coalesce.into()), coalesce }));
        Self { ways: [way(false), way(true)], reader }
    }

    /// What comes out of the bridge when frames go in.
    fn pass(&mut self, coalesce: bool, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        // What comes last; its type is one for experiments.
        let end = [&[0; HEADER_LEN][..], &[0xff; 6], &GUEST, &[0x88, 0xb5], &[0; 46]].concat();
        let way = &mut self.ways[usize::from(coalesce)];
        way.send(frames);
        way.send(std::slice::from_ref(&end));
        let mut out = vec![];
        loop {
            let frame = receive(&mut self.reader);
            if frame == end {
                return out;
            }
            out.push(frame);
        }
    }
}

/// The next frame of the guest's; the kernel sends frames of its own, too.
fn receive(reader: &mut Tap) -> Vec<u8> {
    let until = Instant::now() + Duration::from_secs(5);
    let (mut frame, mut room) = (vec![0; 70_000], IovBuffer::new());
    loop {
        let mut iov = room.start();
        assert!(iov.push(VolatileSlice::from(&mut frame[..])));
        match reader.recv(&mut iov) {
            Ok(len) => {
                drop(iov);
                if frame[18..24] == GUEST {
                    frame.truncate(len);
                    return frame;
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                assert!(Instant::now() < until, "no frame came");
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }
}

#[test]
fn frames_leave_the_kernel_as_the_guest_sent_them() {
    in_namespace("frames_leave_the_kernel_as_the_guest_sent_them", || {
        let bridge = RefCell::new(Bridge::new());
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
        let tested = runner.run(&trains(), |frames| {
            let mut bridge = bridge.borrow_mut();
            let [one_by_one, together] = [false, true].map(|coalesce| {
                bridge.pass(coalesce, &frames).into_iter().map(canonical).collect::<Vec<_>>()
            });
            proptest::prop_assert!(one_by_one == together, "{:?}\nand\n{:?}", one_by_one, together);
            Ok(())
        });
        tested.unwrap();
        let bridge = bridge.into_inner();
        let merged = bridge.ways.each_ref().map(|way| way.counters.tx_merged.load(Ordering::Relaxed));
        assert!(merged[0] == 0 && merged[1] > 1000, "{merged:?}");
    });
}

#[test]
fn a_tap_takes_each_kind_as_one() {
    in_namespace("a_tap_takes_each_kind_as_one", || {
        let mut bridge = Bridge::new();
        let can = Tap::open(None).unwrap().offloads();
        for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
            let (packet, frames) = train(v6, tcp, 32, 64);
            let whole: Vec<_> = packet.segments(64).iter().map(packets::Packet::plain).collect();
            let before = bridge.ways[1].counters.tx_packets.load(Ordering::Relaxed);
            let out: Vec<_> = bridge.pass(true, &frames).into_iter().map(canonical).collect();
            assert!(out == whole.into_iter().map(canonical).collect::<Vec<_>>(), "IPv6 {v6}, TCP {tcp}");
            let kind = if tcp { can.tso4 && can.tso6 } else { can.uso };
            let counters = &bridge.ways[1].counters;
            assert_eq!(counters.tx_packets.load(Ordering::Relaxed) - before, u64::from(kind));
        }
    });
}
