//! Frames by the kernel: a NIC on a bridge with a tap from which the test reads and writes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use devices::virtio::mock::{Buffer, MockRing};
use devices::virtio::net::{NetDeviceConfig, VirtioNet};
use devices::virtio::queue::{
    F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_RESET, F_VERSION_1, VirtQueue,
};
use devices::virtio::{Activation, ActiveQueue, VirtioDevice};
use net::{Backend, HEADER_LEN, IovBuffer, Offloads, Opened, SocketBackend, Tap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::interrupts::Interrupts;
use crate::namespace::{in_namespace, run, skip, wire};
use crate::rig::*;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);
/// Of the rings and of how frames lie in them: what the kernel has to know.
const CARRIERS: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_IN_ORDER | F_MRG_RXBUF;
/// Of experiments, which nobody answers.
const TYPE: [u8; 2] = [0x88, 0xb5];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const WIRE: &str = "bridge=br0,guard=off";

/// The other end of the bridge.
struct Peer(Tap);

impl Peer {
    fn new() -> Self {
        // The host says nothing of its own.
        run("sysctl -q net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        run("ip link add br0 type bridge mcast_snooping 0");
        run("ip link set br0 up");
        let tap = Tap::open(Some(&"peer".parse().unwrap())).unwrap();
        run("ip link set peer master br0 up");
        Self(tap)
    }

    /// A frame to the guest, without its header.
    fn send(&mut self, frame: &[u8]) {
        let mut bytes = [&[0; HEADER_LEN], frame].concat();
        let mut room = IovBuffer::new();
        let mut iov = room.start();
        assert!(iov.push(VolatileSlice::from(&mut bytes[..])));
        self.0.send(&iov).unwrap();
    }

    /// The next frame of the guest's, if one comes in that time.
    fn receive_within(&mut self, time: Duration) -> Option<Vec<u8>> {
        let until = Instant::now() + time;
        loop {
            let (mut bytes, mut room) = (vec![0; 70_000], IovBuffer::new());
            let mut iov = room.start();
            assert!(iov.push(VolatileSlice::from(&mut bytes[..])));
            match self.0.recv(&mut iov) {
                Ok(_) if Instant::now() > until => return None,
                Ok(len) => {
                    drop(iov);
                    if bytes[HEADER_LEN..][..6] == OTHER && bytes[HEADER_LEN + 12..][..2] == TYPE {
                        return Some(bytes[HEADER_LEN..len].to_vec());
                    }
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    if Instant::now() > until {
                        return None;
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        }
    }
}

fn into(guest: [u8; 6], seed: u8) -> Vec<u8> {
    [&guest[..], &OTHER, &TYPE, &[seed; 50]].concat()
}

fn out(guest: [u8; 6], seed: u8) -> Vec<u8> {
    [&OTHER[..], &guest, &TYPE, &[seed; 50]].concat()
}

/// The next frame that the guest receives from the test, if one comes in that time.
fn received(rig: &mut Rig, time: Duration) -> Option<Vec<u8>> {
    let until = Instant::now() + time;
    loop {
        match rig.receive() {
            Some((frame, _)) if frame[HEADER_LEN + 12..][..2] == TYPE => {
                return Some(frame[HEADER_LEN..].to_vec());
            }
            Some(_) => {}
            None if Instant::now() > until => return None,
            None => std::thread::sleep(Duration::from_micros(100)),
        }
    }
}

fn send(rig: &mut Rig, frame: &[u8]) {
    while rig.reap_tx() > 0 {}
    assert!(rig.send(&[&[0; HEADER_LEN], frame].concat(), &[], false));
}

/// A frame of the guest's, sent again until it comes: the bridge hears up to a second late that there is a driver, and loses what is sent
/// before. No copy of it is on its way then.
#[track_caller]
fn check_out(rig: &mut Rig, peer: &mut Peer, seed: u8) {
    let until = Instant::now() + LONG;
    for sent in 0.. {
        send(rig, &out(MAC, seed));
        if peer.receive_within(SHORT) == Some(out(MAC, seed)) {
            while sent > 0 && peer.receive_within(SHORT).is_some() {}
            return;
        }
        assert!(Instant::now() < until, "no frame of the guest's comes out");
    }
}

/// The same each way. Whether our own thread carried them.
#[track_caller]
fn check(rig: &mut Rig, peer: &mut Peer, seed: u8) -> bool {
    let (before, until) = (moved(rig), Instant::now() + LONG);
    check_out(rig, peer, seed);
    for sent in 0.. {
        peer.send(&into(MAC, seed));
        if received(rig, SHORT) == Some(into(MAC, seed)) {
            while sent > 0 && received(rig, SHORT).is_some() {}
            break;
        }
        assert!(Instant::now() < until, "no frame comes to the guest");
    }
    let moved = moved(rig) - before;
    assert_ne!(moved, 1, "one carries both ways");
    moved > 0
}

/// How many frames our own thread has moved.
fn moved(rig: &Rig) -> u64 {
    let counters = &rig.counters;
    counters.tx_frames.load(Ordering::Relaxed) + counters.rx_frames.load(Ordering::Relaxed)
}

fn nic(opened: &mut Opened) -> Rig {
    let (backends, vhosts) = (std::mem::take(&mut opened.backends), std::mem::take(&mut opened.vhosts));
    let nic = VirtioNet::new(config("test", Some(MTU)), backends, vhosts).unwrap();
    Rig::of(nic, SocketBackend::pair().unwrap().1)
}

/// A bridge, a wire on it whose frames the kernel carries, and a NIC; none without vhost-net.
fn in_lab(name: &'static str, test: impl FnOnce(Peer, Opened, Rig) + Send + 'static) {
    in_namespace(name, move || {
        if let Err(error) = std::fs::metadata("/dev/vhost-net") {
            return skip(name, &format!("no /dev/vhost-net: {error}"));
        }
        let peer = Peer::new();
        let mut opened = wire::opened(&format!("{WIRE},vhost=on"));
        assert_eq!(opened.vhosts.len(), 1);
        let rig = nic(&mut opened);
        test(peer, opened, rig);
    });
}

/// Moves the NIC to another wire on the bridge, which lives as long as what comes back.
fn swap(rig: &Rig, vhost: &str) -> Result<Opened, String> {
    let mut opened = wire::opened(&format!("{WIRE},vhost={vhost}"));
    let (backends, vhosts) = (std::mem::take(&mut opened.backends), std::mem::take(&mut opened.vhosts));
    rig.handle.swap(backends, vhosts).map(|()| opened).map_err(|error| error.to_string())
}

#[test]
fn the_kernel_carries_frames_and_our_thread_none() {
    in_lab("the_kernel_carries_frames_and_our_thread_none", |mut peer, _wire, mut rig| {
        for features in [LINUX, PLAIN] {
            rig.start(features, 256);
            rig.post(64, 2048);
            (0..5).for_each(|seed| assert!(!check(&mut rig, &mut peer, seed)));
            assert_eq!(moved(&rig), 0);
            assert_ne!(rig.irq.read().unwrap_or(0), 0, "no interrupt came");
        }
    });
}

#[test]
fn it_offers_what_the_kernel_knows_of_rings_and_the_wire_of_frames() {
    in_lab("it_offers_what_the_kernel_knows_of_rings_and_the_wire_of_frames", |_peer, _wire, rig| {
        let by_vhost = rig.mmio().features();
        let mut other = wire::opened(&format!("{WIRE},vhost=off"));
        assert!(other.vhosts.is_empty());
        let by_us = nic(&mut other).mmio().features();
        let vhost = wire::opened(&format!("{WIRE},vhost=on")).vhosts[0].features();
        // The kernel holds no interrupt back.
        assert_eq!((by_us & F_NOTF_COAL, by_vhost & F_NOTF_COAL), (F_NOTF_COAL, 0));
        assert_eq!((by_us ^ by_vhost) & !CARRIERS, F_NOTF_COAL);
        for bit in [F_VERSION_1, F_EVENT_IDX, F_INDIRECT_DESC, F_IN_ORDER, F_MRG_RXBUF] {
            assert_eq!(by_vhost & bit, by_us & vhost & bit, "{bit:#x}");
        }
        assert_eq!(by_vhost & LINUX, LINUX);
    });
}

#[test]
fn a_paused_nic_moves_nothing_and_loses_nothing() {
    in_lab("a_paused_nic_moves_nothing_and_loses_nothing", |mut peer, _wire, mut rig| {
        rig.start(LINUX, 256);
        rig.post(64, 2048);
        check(&mut rig, &mut peer, 1);
        for seed in 2..6 {
            rig.handle.pause().unwrap();
            send(&mut rig, &out(MAC, seed));
            peer.send(&into(MAC, seed));
            assert_eq!(peer.receive_within(SHORT), None);
            assert_eq!(received(&mut rig, SHORT), None);
            rig.handle.resume().unwrap();
            assert_eq!(peer.receive_within(LONG), Some(out(MAC, seed)));
            assert_eq!(received(&mut rig, LONG), Some(into(MAC, seed)));
        }
        assert_eq!(moved(&rig), 0);
    });
}

#[test]
fn nothing_passes_a_link_that_is_down() {
    in_lab("nothing_passes_a_link_that_is_down", |mut peer, _wire, mut rig| {
        rig.start(LINUX, 256);
        rig.post(64, 2048);
        check(&mut rig, &mut peer, 1);
        rig.handle.set_link(false).unwrap();
        send(&mut rig, &out(MAC, 2));
        peer.send(&into(MAC, 2));
        assert_eq!((peer.receive_within(SHORT), received(&mut rig, SHORT)), (None, None));
        rig.handle.set_link(true).unwrap();
        check(&mut rig, &mut peer, 3);
    });
}

#[test]
fn a_driver_that_breaks_a_ring_is_asked_for_a_reset() {
    in_lab("a_driver_that_breaks_a_ring_is_asked_for_a_reset", |mut peer, _wire, mut rig| {
        rig.start(LINUX, 256);
        rig.post(64, 2048);
        check(&mut rig, &mut peer, 1);
        rig.tx.lie_available(999);
        rig.kick_tx();
        wait("the reset", || rig.mmio().needs_reset());
        // The other ring is left alone as well.
        peer.send(&into(MAC, 2));
        assert_eq!(received(&mut rig, SHORT), None);
        rig.start(LINUX, 256);
        rig.post(64, 2048);
        check(&mut rig, &mut peer, 3);
        assert!(!rig.mmio().needs_reset());
        // After a reset as well.
        rig.mmio().reset();
        peer.send(&into(MAC, 4));
        assert_eq!(received(&mut rig, SHORT), None);
    });
}

#[test]
fn a_nic_moves_to_the_kernel_and_back() {
    in_lab("a_nic_moves_to_the_kernel_and_back", |mut peer, _wire, mut rig| {
        rig.start(LINUX, 256);
        rig.post(64, 2048);
        check(&mut rig, &mut peer, 1);
        let mut wires = Vec::new();
        for round in 0..3 {
            wires.push(swap(&rig, "off").unwrap());
            assert!(check(&mut rig, &mut peer, 10 + round));
            wires.push(swap(&rig, "on").unwrap());
            assert!(!check(&mut rig, &mut peer, 20 + round));
        }
    });
}

#[test]
fn what_the_kernel_does_not_know_of_a_driver_our_thread_does() {
    let name = "what_the_kernel_does_not_know_of_a_driver_our_thread_does";
    in_lab(name, move |mut peer, _wire, rig| {
        drop(rig);
        let mut opened = wire::opened(&format!("{WIRE},vhost=off"));
        let mut rig = nic(&mut opened);
        if wire::opened(&format!("{WIRE},vhost=on")).vhosts[0].features() & F_IN_ORDER != 0 {
            return skip(name, "vhost-net has VIRTIO_F_IN_ORDER here");
        }
        // Where it runs already, there is nobody to tell that it is another wire.
        for up in [true, false] {
            rig.handle.set_link(up).unwrap();
            rig.start(LINUX | F_IN_ORDER, 256);
            assert_eq!(swap(&rig, "on").unwrap_err(), "vhost-net does not have all that the driver accepted");
        }
        rig.handle.set_link(true).unwrap();
        // But this wire was there before its driver.
        rig.mmio().reset();
        let _wire = swap(&rig, "on").unwrap();
        rig.start(LINUX | F_IN_ORDER, 256);
        rig.post(64, 2048);
        assert!(check(&mut rig, &mut peer, 2));
        // Also when its link was down for a while.
        rig.handle.set_link(false).unwrap();
        rig.handle.set_link(true).unwrap();
        assert!(check(&mut rig, &mut peer, 3));
        // The next driver accepts no more than that.
        rig.start(LINUX, 256);
        rig.post(64, 2048);
        assert!(!check(&mut rig, &mut peer, 4));
    });
}

#[test]
fn it_moves_to_the_kernel_while_its_link_is_down_it_is_paused_or_has_ended() {
    let name = "it_moves_to_the_kernel_while_its_link_is_down_it_is_paused_or_has_ended";
    in_lab(name, |mut peer, _wire, mut rig| {
        let mut wires = Vec::new();
        rig.start(LINUX, 256);
        rig.post(64, 2048);
        check(&mut rig, &mut peer, 1);
        for (round, vhost) in (0..).zip(["off", "on", "on", "off"]) {
            rig.handle.set_link(false).unwrap();
            wires.push(swap(&rig, vhost).unwrap());
            send(&mut rig, &out(MAC, 10));
            peer.send(&into(MAC, 10));
            assert_eq!((peer.receive_within(SHORT), received(&mut rig, SHORT)), (None, None));
            rig.handle.set_link(true).unwrap();
            assert_eq!(check(&mut rig, &mut peer, 20 + round), vhost == "off");
        }
        for (round, vhost) in (0..).zip(["on", "on", "off", "on"]) {
            rig.handle.pause().unwrap();
            wires.push(swap(&rig, vhost).unwrap());
            send(&mut rig, &out(MAC, 30 + round));
            assert_eq!(peer.receive_within(SHORT), None);
            rig.handle.resume().unwrap();
            assert_eq!(peer.receive_within(LONG), Some(out(MAC, 30 + round)));
            assert_eq!(check(&mut rig, &mut peer, 40 + round), vhost == "off");
        }
        for vhost in ["off", "on"] {
            rig.tx.lie_available(999);
            rig.kick_tx();
            wait("the reset", || rig.mmio().needs_reset());
            wires.push(swap(&rig, vhost).unwrap());
            peer.send(&into(MAC, 50));
            assert_eq!(received(&mut rig, SHORT), None);
            rig.start(LINUX, 256);
            rig.post(64, 2048);
            assert_eq!(check(&mut rig, &mut peer, 51), vhost == "off");
        }
    });
}

#[test]
fn while_a_queue_is_reset_our_thread_has_the_other() {
    in_lab("while_a_queue_is_reset_our_thread_has_the_other", |mut peer, _wire, mut rig| {
        rig.start(LINUX | F_RING_RESET, 256);
        rig.post(64, 2048);
        check(&mut rig, &mut peer, 1);
        let mut wires = Vec::new();
        for round in 0..2 {
            rig.reset_queue(TX);
            peer.send(&into(MAC, 10));
            assert_eq!(received(&mut rig, LONG), Some(into(MAC, 10)));
            assert_eq!(moved(&rig), 3 * round + 1);
            rig.renew_queue(TX, 128);
            check(&mut rig, &mut peer, 11);
            rig.reset_queue(RX);
            send(&mut rig, &out(MAC, 12));
            assert_eq!(peer.receive_within(LONG), Some(out(MAC, 12)));
            // Nor does the kernel of a wire that comes meanwhile have it.
            wires.push(swap(&rig, "on").unwrap());
            send(&mut rig, &out(MAC, 13));
            assert_eq!(peer.receive_within(LONG), Some(out(MAC, 13)));
            rig.renew_queue(RX, 64);
            rig.post(32, 2048);
            assert!(!check(&mut rig, &mut peer, 14));
            assert_eq!(moved(&rig), 3 * round + 3);
        }
    });
}

#[test]
fn a_driver_comes_back_under_a_flood() {
    in_lab("a_driver_comes_back_under_a_flood", |mut peer, _wire, mut rig| {
        rig.start(LINUX, 256);
        rig.post(64, 2048);
        check(&mut rig, &mut peer, 1);
        // A second tap, from which another thread floods the guest.
        let flood = Tap::open(Some(&"flood".parse().unwrap())).unwrap();
        run("ip link set flood master br0 up");
        // While the bridge does not know where the guest is, the flood is everybody's, and leaves the test no room.
        run("bridge link set dev peer flood off");
        run("bridge fdb replace 02:00:00:00:00:09 dev peer master static");
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let flooding = std::thread::spawn(move || {
            let (mut flood, mut frame) = (Peer(flood), into(MAC, 77));
            frame[11] = 8;
            while !ends.load(Ordering::Relaxed) {
                flood.send(&frame);
            }
        });
        for round in 0..50 {
            rig.start([LINUX, PLAIN][usize::from(round % 2)], 256);
            rig.post(200, 2048);
            check_out(&mut rig, &mut peer, round);
            for _ in 0..300 {
                assert!(received(&mut rig, LONG).is_some(), "round {round}");
                rig.post(1, 2048);
            }
            rig.mmio().reset();
        }
        over.store(true, Ordering::Relaxed);
        flooding.join().unwrap();
    });
}

#[test]
fn each_queue_interrupts_for_itself_and_where_it_is_routed_to() {
    in_lab("each_queue_interrupts_for_itself_and_where_it_is_routed_to", |mut peer, _wire, rig| {
        drop(rig);
        let mut opened = wire::opened(&format!("{WIRE},vhost=on"));
        let (backends, vhosts) = (std::mem::take(&mut opened.backends), std::mem::take(&mut opened.vhosts));
        let mut nic = VirtioNet::new(config("test", None), backends, vhosts).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let interrupts = Arc::new(Interrupts::new());
        let mut rings = [0x1000, 0x4000].map(|base| MockRing::new(&memory, base, 64, false));
        let kicks = [0, 1].map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        let queues = (0..).zip(&rings).zip(&kicks).map(|((index, ring), kick)| ActiveQueue {
            index,
            ring: VirtQueue::new(ring.setup(), PLAIN, &memory).unwrap(),
            kick: Arc::clone(kick),
        });
        let queues = queues.collect();
        nic.activate(Activation {
            memory: memory.clone(),
            accepted: PLAIN,
            interrupt: Arc::clone(&interrupts) as _,
            queues,
        })
        .unwrap();
        let mut used = [0; 2];
        let mut turn = |queue: usize| {
            let buffer = [Buffer::writable(0x1_0000, 2048), Buffer::readable(0x2_0000, 12 + 64)][queue];
            memory
                .write_slice(&[&[0; HEADER_LEN][..], &out(MAC, 1)].concat(), GuestAddress(0x2_0000))
                .unwrap();
            rings[queue].add(&[buffer]).unwrap();
            rings[queue].publish();
            kicks[queue].write(1).unwrap();
            if queue == 0 {
                peer.send(&into(MAC, 1));
            }
            wait("a chain", || rings[queue].reap().is_some());
            used[queue] += 1;
        };
        turn(0);
        interrupts.wait("the receive queue's", |seen| seen.counted() == [1, 0]);
        turn(1);
        interrupts.wait("the transmit queue's", |seen| seen.counted() == [1, 1]);
        interrupts.by_event.store(true, Ordering::SeqCst);
        nic.rerouted();
        for queue in [0, 1] {
            turn(queue);
            let mut seen = [false; 2];
            interrupts.wait("the eventfd", |interrupts| {
                seen = interrupts.events();
                seen[queue]
            });
            assert!(!seen[1 - queue]);
        }
        assert_eq!(interrupts.counted(), [1, 1]);
    });
}

#[test]
fn what_the_guest_asks_of_the_wire_itself_is_answered() {
    in_lab("what_the_guest_asks_of_the_wire_itself_is_answered", |_peer, _wire, rig| {
        drop(rig);
        let mut opened = wire::opened("tap=tap9,host=172.31.0.1/24,vhost=on");
        let guest = opened.mac.octets();
        let (backends, vhosts) = (std::mem::take(&mut opened.backends), std::mem::take(&mut opened.vhosts));
        let config = NetDeviceConfig { mac: opened.mac, ..config("test", None) };
        let mut rig =
            Rig::of(VirtioNet::new(config, backends, vhosts).unwrap(), SocketBackend::pair().unwrap().1);
        rig.start(LINUX, 256);
        rig.post(64, 2048);
        for turn in 0..3 {
            // DHCPDISCOVER (RFC 2131), and what it is answered with.
            send(&mut rig, &discover(guest, turn));
            let offer = loop {
                let (frame, _) = rig.received();
                let frame = frame[HEADER_LEN..].to_vec();
                if frame.len() > 300 && frame[12..14] == [8, 0] && frame[34..38] == [0, 67, 0, 68] {
                    break frame;
                }
            };
            assert_eq!((offer[42], &offer[46..50], &offer[70..76]), (2, &[7, 7, 7, turn][..], &guest[..]));
            assert_eq!(offer[58..61], [172, 31, 0]);
        }
        assert_eq!(moved(&rig), 0);
    });
}

fn discover(guest: [u8; 6], turn: u8) -> Vec<u8> {
    let mut bootp = vec![1, 1, 6, 0, 7, 7, 7, turn, 0, 0, 0x80, 0];
    bootp.resize(28, 0);
    bootp.extend(guest);
    bootp.resize(236, 0);
    bootp.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    bootp.resize(300, 0);
    let lens = [8 + bootp.len(), 28 + bootp.len()].map(|len| (len as u16).to_be_bytes());
    let udp = [&[0, 68, 0, 67][..], &lens[0], &[0, 0]].concat();
    let mut ip =
        [&[0x45, 0][..], &lens[1], &[0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]].concat();
    let sum: u32 = ip.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    [&[0xff; 6][..], &guest, &[8, 0], &ip, &udp, &bootp].concat()
}

#[test]
fn a_wire_of_another_number_of_queues_is_refused() {
    in_lab("a_wire_of_another_number_of_queues_is_refused", |mut peer, _wire, mut rig| {
        rig.start(LINUX, 256);
        rig.post(64, 2048);
        let [mut one, mut other] = [(); 2].map(|()| wire::opened(&format!("{WIRE},vhost=on")));
        let mut vhosts = std::mem::take(&mut one.vhosts);
        vhosts.append(&mut other.vhosts);
        let error = rig.handle.swap(std::mem::take(&mut one.backends), vhosts).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        check(&mut rig, &mut peer, 1);
        assert_eq!(moved(&rig), 0);
        // Nor one that does less than the driver was offered, for the kernel does nothing of it.
        let (socket, _other_end) = SocketBackend::pair().unwrap();
        let error = rig.handle.swap(
            vec![Box::new(socket)],
            std::mem::take(&mut wire::opened(&format!("{WIRE},vhost=on")).vhosts),
        );
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::Unsupported);
        check(&mut rig, &mut peer, 2);
    });
}

/// A wire that is asked something of, and wants to look again after a while, so often.
struct Asked {
    wire: Box<dyn Backend>,
    event: OwnedFd,
    looked: Arc<AtomicU32>,
    again: Arc<AtomicU32>,
}

impl Backend for Asked {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wire.fd()
    }
    fn offloads(&self) -> Offloads {
        self.wire.offloads()
    }
    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.wire.set_offloads(accepted)
    }
    fn vhost_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wire.vhost_fd()
    }
    fn asked_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }
    fn answer(&mut self) -> Option<Duration> {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        self.looked.fetch_add(1, Ordering::SeqCst);
        let left = self.again.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.is_ok().then_some(Duration::from_millis(20))
    }
}

#[test]
fn a_wire_that_wants_to_look_again_does() {
    in_lab("a_wire_that_wants_to_look_again_does", |mut peer, _wire, rig| {
        drop(rig);
        let mut opened = wire::opened(&format!("{WIRE},vhost=on"));
        let (wire, vhosts) = (opened.backends.remove(0), std::mem::take(&mut opened.vhosts));
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        let (asks, looked, again) =
            (event.try_clone().unwrap(), Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        let backend = Asked { wire, event, looked: Arc::clone(&looked), again: Arc::clone(&again) };
        let nic = VirtioNet::new(config("test", Some(MTU)), vec![Box::new(backend)], vhosts).unwrap();
        let mut rig = Rig::of(nic, SocketBackend::pair().unwrap().1);
        rig.start(LINUX, 256);
        rig.post(64, 2048);
        assert!(!check(&mut rig, &mut peer, 1));
        let before = looked.load(Ordering::SeqCst);
        for turn in 1..4 {
            again.store(3, Ordering::SeqCst);
            rustix::io::write(&asks, &1_u64.to_ne_bytes()).unwrap();
            wait("its last look", || looked.load(Ordering::SeqCst) >= before + 4 * turn);
            std::thread::sleep(SHORT);
            assert_eq!(looked.load(Ordering::SeqCst), before + 4 * turn);
        }
    });
}
