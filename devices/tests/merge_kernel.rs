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
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use namespace::{in_namespace, run, shell, wire};
use net::{Backend, HEADER_LEN, IovBuffer, Mac, Offloads, Tap};
use packets::GUEST;
use proptest::test_runner::{Config, TestRunner};
use rig::burst::Burst;
use trains::{canonical, repair, train, trains};
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

/// Datagrams of the guest to the host's port 5000, 24 of 100 bytes each.
fn datagrams(guest: Mac, host: [u8; 6], from: [u8; 4], to: [u8; 4]) -> Vec<Vec<u8>> {
    let (packet, mut frames) = train(false, false, 24, 100);
    for frame in &mut frames {
        let headers = [&host[..], &guest.octets()].concat();
        frame[HEADER_LEN..][..12].copy_from_slice(&headers);
        frame[HEADER_LEN + 26..][..8].copy_from_slice(&[from, to].concat());
        frame[HEADER_LEN + 36..][..2].copy_from_slice(&5000_u16.to_be_bytes());
        repair(&packet, frame);
    }
    frames
}

/// Sends datagrams of the guest by the wire `spec`, to a socket of the host; as how many packets they went.
fn to_socket(spec: &str, host: [u8; 6], from: [u8; 4], to: [u8; 4]) -> u64 {
    let mut opened = wire::opened(spec);
    let mut burst = Burst::new(opened.backends.remove(0));
    let socket = UdpSocket::bind((Ipv4Addr::from(to), 5000)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let frames = datagrams(opened.mac, host, from, to);
    burst.send(&frames);
    for frame in &frames {
        let mut bytes = [0; 200];
        let (len, sender) = socket.recv_from(&mut bytes).unwrap();
        assert!(bytes[..len] == frame[HEADER_LEN + 42..] && sender.ip() == Ipv4Addr::from(from));
    }
    let frames = burst.counters.tx_merged.load(Ordering::Relaxed);
    let packets = burst.counters.tx_packets.load(Ordering::Relaxed);
    assert_eq!(frames, 24 * packets);
    packets
}

#[test]
fn each_kind_of_wire_takes_packets() {
    in_namespace("each_kind_of_wire_takes_packets", || {
        let can = u64::from(Tap::open(None).unwrap().offloads().uso);
        run("ip link set lo up");
        let (guest, host) = ([10, 0, 0, 2], [10, 0, 0, 1]);
        for (key, packets) in [("", can), (",coalesce=on", can), (",coalesce=off", 0)] {
            let spec = format!("tun=t0,host=10.0.0.1/30{key}");
            assert_eq!(to_socket(&spec, [2, 0, 0, 0, 0, 9], guest, host), packets, "{spec}");
        }
        run("ip link add br0 address 02:00:00:00:00:09 type bridge");
        run("ip address add 10.0.0.1/30 dev br0");
        run("ip link set br0 up");
        let packets = to_socket("bridge=br0", [2, 0, 0, 0, 0, 9], guest, host);
        assert_eq!(packets, can, "a bridge");
        run("ip link del br0");
        run("ip link add nic type veth peer name other address 02:00:00:00:00:09");
        run("ip address add 10.0.0.1/30 dev other");
        run("ip link set nic up");
        run("ip link set other up");
        let packets = to_socket("macvtap=nic", [2, 0, 0, 0, 0, 9], guest, host);
        assert_eq!(packets, can, "a macvtap");
    });
}
