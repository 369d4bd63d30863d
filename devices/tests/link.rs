//! A NIC whose link goes down and up, and that moves to another wire, while its driver runs.

mod rig;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use devices::BusDevice;
use devices::virtio::mock::Buffer;
use devices::virtio::queue::F_EVENT_IDX;
use net::{Backend, Offloads, RxFilter, SocketBackend, SocketPeer};

use rig::*;

const STATUS: u64 = 0x100 + 6;
const LINK_UP: u8 = 1;
const ANNOUNCE: u8 = 2;
const INTERRUPT_STATUS: u32 = 0x060;
const INTERRUPT_ACK: u32 = 0x064;
const CONFIG_CHANGED: u32 = 2;
const OK: u8 = 0;
const RING: u16 = 256;

fn status(rig: &Rig) -> u8 {
    let mut byte = [0];
    rig.device.read(STATUS, &mut byte);
    byte[0]
}

/// True where the driver was told since it last looked that the configuration changed.
fn told(rig: &Rig) -> bool {
    let reasons = rig.mmio().read(INTERRUPT_STATUS);
    rig.mmio().write(INTERRUPT_ACK, reasons);
    reasons & CONFIG_CHANGED != 0
}

fn lost(rig: &Rig) -> u64 {
    rig.counters.tx_dropped.load(Ordering::Relaxed)
}

fn wire() -> (Box<dyn Backend>, SocketPeer) {
    let (socket, peer) = SocketBackend::pair().unwrap();
    peer.socket().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (Box::new(socket.with_offloads(ALL)), peer)
}

/// Nothing comes out at `peer`.
fn assert_silent(peer: &SocketPeer) {
    peer.socket().set_nonblocking(true).unwrap();
    assert!(peer.recv().is_err(), "a frame came");
    peer.socket().set_nonblocking(false).unwrap();
}

#[test]
fn what_is_sent_while_the_link_is_down_is_lost_and_the_driver_knows() {
    let mut rig = Rig::started(LINUX | F_STATUS);
    rig.check();
    told(&rig);
    assert_eq!(status(&rig), LINK_UP);
    for _ in 0..3 {
        rig.handle.set_link(false).unwrap();
        assert!(status(&rig) == 0 && told(&rig) && !rig.handle.is_up());
        rig.handle.set_link(false).unwrap();
        assert!(!told(&rig), "it is told of a change alone");
        let before = lost(&rig);
        rig.reap_tx();
        for number in 0..5 {
            assert!(rig.send(&frame(60, number), &[], false));
        }
        wait("the frames to be gone", || lost(&rig) == before + 5);
        assert_eq!(rig.reap_tx(), 5);
        assert_silent(&rig.peer);
        rig.peer.send(&frame(61, 9)).unwrap();
        thread::sleep(Duration::from_millis(2));
        assert_eq!(rig.receive(), None);
        rig.handle.set_link(true).unwrap();
        assert!(status(&rig) == LINK_UP && told(&rig));
        // What came meanwhile is lost, too: the next frame is the first.
        rig.check();
    }
}

#[test]
fn a_link_is_down_for_whoever_starts_then_and_a_driver_that_goes_leaves_it_so() {
    let mut rig = Rig::new();
    rig.handle.set_link(false).unwrap();
    rig.start(LINUX | F_STATUS, RING);
    assert_eq!(status(&rig), 0);
    assert!(rig.send(&frame(60, 0), &[], false));
    wait("the frame to be gone", || lost(&rig) == 1);
    rig.mmio().reset();
    rig.start(LINUX | F_STATUS, RING);
    assert!(rig.send(&frame(60, 0), &[], false));
    wait("the frame to be gone", || lost(&rig) == 2);
    rig.handle.set_link(true).unwrap();
    rig.check();
    rig.mmio().reset();
    rig.handle.set_link(false).unwrap();
    rig.handle.set_link(true).unwrap();
    rig.start(LINUX, RING);
    rig.check();
}

#[test]
fn a_paused_nic_keeps_what_its_link_became() {
    let mut rig = Rig::started(LINUX);
    rig.handle.pause().unwrap();
    rig.handle.set_link(false).unwrap();
    assert!(rig.send(&frame(60, 0), &[], false));
    thread::sleep(Duration::from_millis(2));
    assert_eq!(lost(&rig), 0, "it is paused");
    rig.handle.resume().unwrap();
    wait("the frame to be gone", || lost(&rig) == 1);
    rig.handle.pause().unwrap();
    rig.handle.set_link(true).unwrap();
    rig.handle.resume().unwrap();
    rig.check();
}

#[test]
fn a_nic_moves_under_traffic_and_each_frame_goes_out_once() {
    let mut rig = Rig::started(LINUX);
    let mut peers: Vec<SocketPeer> = Vec::new();
    let (mut sent, mut arrived) = (0_u64, 0_u64);
    let number = |frame: &[u8]| u64::from_le_bytes(frame[12..20].try_into().unwrap());
    for _ in 0..50 {
        for _ in 0..40 {
            let mut bytes = frame(60, 0);
            bytes[12..20].copy_from_slice(&sent.to_le_bytes());
            // A thread that is not scheduled sends nothing between two moves.
            wait("room on the ring", || {
                rig.reap_tx();
                rig.send(&bytes, &[], false)
            });
            sent += 1;
        }
        let (backend, peer) = wire();
        rig.handle.swap(vec![backend], Vec::new()).unwrap();
        peers.push(std::mem::replace(&mut rig.peer, peer));
        // The old one is closed: what has not come out of it goes out at the new one.
        let old = peers.last().unwrap();
        while let Ok(bytes) = old.recv() {
            if bytes.is_empty() {
                break;
            }
            assert_eq!(number(&bytes), arrived, "a frame is lost, doubled or before its turn");
            arrived += 1;
        }
    }
    while arrived < sent {
        assert_eq!(number(&rig.peer.recv().unwrap()), arrived);
        arrived += 1;
    }
    assert_eq!(lost(&rig), 0);
    rig.reap_tx();
    rig.check();
}

#[test]
fn the_new_wire_is_as_the_driver_had_the_old_one() {
    let mut rig = Rig::started(COMMANDS);
    // VIRTIO_NET_CTRL_RX_PROMISC, and no segments any more.
    assert_eq!(rig.command(&[0, 0, 1], &[]), OK);
    assert_eq!(rig.command(&offloads_set(F_GUEST_CSUM), &[]), OK);
    let wanted = (rig.peer.accepted(), rig.peer.filter());
    assert!(wanted.1.as_ref().is_some_and(|filter: &RxFilter| filter.promiscuous));
    for down in [false, true] {
        rig.handle.set_link(!down).unwrap();
        let (backend, peer) = wire();
        rig.handle.swap(vec![backend], Vec::new()).unwrap();
        rig.handle.set_link(true).unwrap();
        assert_eq!((peer.accepted(), peer.filter()), wanted, "down {down}");
        rig.peer = peer;
        rig.reap_tx();
        rig.check();
    }
}

/// A wire that takes no offloads.
struct Refusing(SocketBackend);

impl Backend for Refusing {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
    fn offloads(&self) -> Offloads {
        ALL
    }
    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }
}

#[test]
fn a_move_that_fails_leaves_the_nic_where_it_is() {
    let mut rig = Rig::started(LINUX);
    let refusing = || Box::new(Refusing(SocketBackend::pair().unwrap().0)) as Box<dyn Backend>;
    for (paused, down) in [(false, false), (true, false), (false, true), (true, true)] {
        if down {
            rig.handle.set_link(false).unwrap();
        }
        if paused {
            rig.handle.pause().unwrap();
        }
        let error = rig.handle.swap(vec![refusing()], Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let error = rig.handle.swap(vec![wire().0, wire().0], Vec::new()).unwrap_err();
        assert!(error.to_string().contains("1 queue pairs, and the wire 2"), "{error}");
        rig.handle.resume().unwrap();
        rig.handle.set_link(true).unwrap();
        rig.check();
        rig.reap_tx();
    }
}

#[test]
fn a_nic_without_a_driver_and_one_whose_driver_broke_it_move_too() {
    let mut rig = Rig::new();
    let (backend, peer) = wire();
    rig.handle.swap(vec![backend], Vec::new()).unwrap();
    rig.peer = peer;
    rig.start(LINUX, RING);
    rig.check();
    // A chain that is too short for its header.
    rig.tx.add(&[Buffer::readable(CHAIN_DATA, 4)]).unwrap();
    rig.kick_tx();
    wait("the end", || rig.mmio().needs_reset());
    let (backend, peer) = wire();
    rig.handle.swap(vec![backend], Vec::new()).unwrap();
    rig.peer = peer;
    rig.start(LINUX, RING);
    rig.check();
}

#[test]
fn the_guest_is_announced_by_its_driver_or_else_by_us() {
    let told_frames = || vec![frame(42, 1), frame(86, 2)];
    let mut rig = Rig::started(COMMANDS | F_STATUS | F_GUEST_ANNOUNCE);
    told(&rig);
    rig.handle.announce(told_frames()).unwrap();
    assert!(status(&rig) == LINK_UP | ANNOUNCE && told(&rig));
    assert_silent(&rig.peer);
    // VIRTIO_NET_CTRL_ANNOUNCE_ACK.
    assert_eq!(rig.command(&[3, 0], &[]), OK);
    assert_eq!(status(&rig), LINK_UP);
    rig.handle.announce(told_frames()).unwrap();
    rig.start(COMMANDS | F_STATUS, RING);
    assert_eq!(status(&rig), LINK_UP, "the next driver was not asked");
    assert_ne!(rig.command(&[3, 0], &[]), OK, "it did not accept the command");
    rig.handle.announce(told_frames()).unwrap();
    for wanted in told_frames() {
        assert_eq!(rig.peer.recv().unwrap(), wanted);
    }
}

#[test]
fn what_the_driver_leaves_to_the_host_is_done_on_a_wire_that_cannot() {
    let mut rig = Rig::started(LINUX);
    let (socket, peer) = SocketBackend::pair().unwrap();
    peer.socket().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    rig.handle.swap(vec![Box::new(socket)], Vec::new()).unwrap();
    assert_eq!(peer.accepted(), Some(Offloads::default()), "it is asked for nothing that it cannot");
    // UDP over IPv4 with a partial checksum: that of the pseudo header, as Linux leaves it.
    let mut sent = frame(0, 0);
    (sent[0], sent[6], sent[8]) = (1, 34, 6);
    sent.extend([[2, 0, 0, 0, 0, 2], MAC].concat());
    sent.extend([8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let pseudo = 0x0a00_u32 + 1 + 0x0a00 + 2 + 17 + 12;
    sent.extend([0, 7, 0, 7, 0, 12]);
    sent.extend((pseudo as u16).to_be_bytes());
    sent.extend([1, 2, 3, 4]);
    assert!(rig.send(&sent, &[], false));
    let got = peer.recv().unwrap();
    let words = got[12 + 34..].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.sum::<u32>() + pseudo;
    assert_eq!((got[0], got.len(), (sum & 0xffff) + (sum >> 16)), (0, sent.len(), 0xffff));
}

/// A frame that found too little room is one of the wire that it came by.
#[test]
fn a_frame_that_waits_for_room_does_not_outlive_its_wire() {
    let mut rig = Rig::started(LINUX & !F_EVENT_IDX);
    rig.post(1, 512);
    rig.peer.send(&frame(2000, 7)).unwrap();
    // Until it was read, in vain.
    wait("the frame to be read", || {
        let calls = rig.counters.calls.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(30));
        calls == rig.counters.calls.load(Ordering::Relaxed)
    });
    rig.handle.set_link(false).unwrap();
    rig.post(64, 2048);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.receive(), None, "the link is down");
    rig.handle.set_link(true).unwrap();
    let next = frame(100, 8);
    rig.peer.send(&next).unwrap();
    assert_same(&rig.received().0, &next);
}
