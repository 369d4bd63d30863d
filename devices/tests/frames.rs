//! Frames both ways through the whole device: mock driver, rings, pair, socket.

mod rig;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use devices::BusDevice;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::net::VirtioNet;
use devices::virtio::queue::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_RESET, F_VERSION_1};
use net::{Backend, HEADER_LEN, Iov, Offloads, Sent, SocketBackend, SocketPeer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use rig::*;

const FEATURES: [u64; 3] = [PLAIN, PLAIN | F_EVENT_IDX | F_INDIRECT_DESC, LINUX];

#[test]
fn frames_go_out_however_they_are_cut() {
    for features in FEATURES {
        let mut rig = Rig::started(features);
        let indirect = features & F_INDIRECT_DESC != 0;
        let cuts: [&[usize]; 5] = [&[], &[12], &[5, 12, 13], &[12, 26, 800], &[1, 2, 3, 4, 5, 6, 7, 8]];
        for (seed, cuts) in cuts.into_iter().enumerate() {
            for indirect in [false, indirect] {
                let frame = frame(1514, seed as u64);
                assert!(rig.send(&frame, cuts, indirect));
                assert_eq!(rig.peer.recv().unwrap(), frame, "{cuts:?}");
                wait("the buffers", || rig.reap_tx() == 1);
            }
        }
        let large = frame(65550, 9);
        assert!(rig.send(&large, &[12, 4096, 40000], false));
        assert_eq!(rig.peer.recv().unwrap(), large);
        // Counted at the end of a burst, so perhaps after the wire has it.
        wait("the count", || rig.counters.tx_frames.load(Ordering::Relaxed) == 11);
        assert_eq!(rig.dropped(), (0, 0));
    }
}

#[test]
fn frames_come_in_and_take_as_many_chains_as_they_need() {
    for features in [LINUX, LINUX & !F_EVENT_IDX] {
        let mut rig = Rig::started(features);
        rig.post(256, 1536);
        for (len, want) in [(60, 1), (1524, 1), (1525, 2), (9014, 6), (65550, 43), (60, 1), (40000, 27)] {
            let sent = frame(len, want);
            rig.peer.send(&sent).unwrap();
            let (got, chains) = rig.received();
            assert_same(&got, &sent);
            assert_eq!(u64::from(chains), want, "{len} bytes");
            rig.post(256, 1536);
        }
        assert_eq!(rig.dropped(), (0, 0));
    }
}

#[test]
fn without_mergeable_buffers_a_frame_is_one_chain() {
    let mut rig = Rig::started(LINUX & !F_MRG_RXBUF);
    let pieces = |base| -> Vec<_> { (0..18).map(|i| Buffer::writable(base + 4096 * i, 4096)).collect() };
    rig.post_chain(pieces(CHAIN_DATA), false);
    rig.post_chain(pieces(CHAIN_DATA + 0x10_0000), true);
    for len in [65550, 60] {
        let sent = frame(len, 3);
        rig.peer.send(&sent).unwrap();
        let (got, chains) = rig.received();
        assert_same(&got, &sent);
        assert_eq!((chains, got[10]), (1, 1));
    }
}

#[test]
fn a_small_ring_takes_small_frames() {
    // Eight buffers of 1.5 KiB are less than a large frame needs, and all that this driver can ever post.
    let mut rig = Rig::new();
    rig.start(LINUX, 8);
    for seed in 0..20 {
        rig.post(8, 1536);
        let sent = frame(3000, seed);
        rig.peer.send(&sent).unwrap();
        assert_same(&rig.received().0, &sent);
    }
}

#[test]
fn a_frame_waits_for_the_room_it_may_need() {
    let mut rig = Rig::started(LINUX);
    rig.post(20, 1536);
    let sent = frame(60000, 1);
    rig.peer.send(&sent).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(rig.receive().is_none());
    for _ in 0..5 {
        rig.post(5, 1536);
    }
    assert_same(&rig.received().0, &sent);
    assert_eq!(rig.dropped(), (0, 0), "nothing was lost for want of buffers");
}

#[test]
fn a_driver_that_posts_little_receives_what_fits() {
    // Without F_MTU, whatever the MTU; with large frames, of which none ever fits.
    for (features, count) in [(PLAIN | F_MRG_RXBUF, 4), (LINUX, 4), (LINUX | F_MTU, 32)] {
        let mut rig = Rig::started(features);
        rig.post(count, 2048);
        // It posts again when most is used.
        for seed in 1..3 * count as u64 {
            let sent = frame(100, seed);
            rig.peer.send(&sent).unwrap();
            assert_same(&rig.received().0, &sent);
            if rig.rx.free() == 255 {
                rig.post(count - 1, 2048);
            }
        }
        assert_eq!(rig.dropped(), (0, 0), "{features:#x}");
    }
}

#[test]
fn a_frame_that_does_not_fit_waits_for_more_and_those_behind_it_do() {
    let mut rig = Rig::started(LINUX);
    rig.post(4, 2048);
    let sent: Vec<_> =
        [(100, 1), (20000, 2), (60, 3), (65550, 4), (60, 5)].map(|(len, seed)| frame(len, seed)).into();
    sent.iter().for_each(|frame| rig.peer.send(frame).unwrap());
    assert_same(&rig.received().0, &sent[0]);
    // One after the other, at any pace of the device's thread.
    for frame in &sent[1..] {
        let mut got = None;
        wait("the frame", || {
            rig.post(3, 2048);
            got = rig.receive();
            got.is_some()
        });
        assert_same(&got.unwrap().0, frame);
    }
    assert_eq!(rig.dropped(), (0, 0));
}

#[test]
fn a_frame_for_which_no_room_comes_is_lost_and_holds_up_nothing() {
    let mut rig = Rig::started(LINUX);
    rig.post(4, 2048);
    rig.peer.send(&frame(20000, 1)).unwrap();
    let small = frame(60, 2);
    rig.peer.send(&small).unwrap();
    assert_same(&rig.received().0, &small);
    assert_eq!(rig.dropped(), (0, 1));
}

#[test]
fn many_small_buffers_are_used_as_far_as_one_frame_can() {
    // Chains of 100 buffers of 64 bytes: a frame can have 1024 buffers, so ten of eleven chains, and that is not the room
    // of a large frame.
    let mut rig = Rig::started(LINUX);
    for chain in 0..11 {
        let base = CHAIN_DATA + 0x1_0000 * chain;
        rig.post_chain((0..100).map(|i| Buffer::writable(base + 128 * i, 64)).collect(), true);
    }
    // That makes 64000 bytes: not a byte of the eleventh chain is used.
    rig.peer.send(&frame(65000, 1)).unwrap();
    wait("the loss", || rig.dropped() == (0, 1));
    let sent = frame(20000, 1);
    rig.peer.send(&sent).unwrap();
    assert_same(&rig.received().0, &sent);
}

#[test]
fn a_host_that_is_full_keeps_frames_on_the_ring() {
    for features in FEATURES {
        let mut rig = Rig::started(features);
        let total = 1000;
        let mut sent = 0;
        // Nobody reads: the socket fills, then the ring.
        while rig.send(&frame(1000, sent), &[12], false) {
            sent += 1;
            thread::sleep(Duration::from_micros(20));
            rig.reap_tx();
            if sent == total {
                break;
            }
        }
        assert!(sent < total, "the socket never filled");
        for seed in 0..sent {
            assert_eq!(rig.peer.recv().unwrap(), frame(1000, seed), "frame {seed} of {sent}");
        }
        rig.reap_tx();
        rig.check();
        assert_eq!(rig.dropped(), (0, 0));
    }
}

#[test]
fn a_driver_without_buffers_keeps_frames_on_the_host() {
    for features in FEATURES {
        let mut rig = Rig::started(features);
        rig.peer.socket().set_nonblocking(true).unwrap();
        let mut sent = 0;
        while sent < 5000 && rig.peer.send(&frame(1000, sent)).is_ok() {
            sent += 1;
        }
        assert!(sent > 10);
        let mut got = 0;
        while got < sent {
            rig.post(60, 2048);
            wait("frames", || rig.rx.pending() > 0);
            while let Some((bytes, _)) = rig.receive() {
                assert_same(&bytes, &frame(1000, got));
                got += 1;
            }
        }
        assert_eq!(rig.dropped(), (0, 0));
    }
}

#[test]
fn a_frame_too_large_for_its_chain_is_lost_and_counted() {
    let mut rig = Rig::started(PLAIN);
    rig.post(4, 1526);
    rig.peer.send(&frame(3000, 1)).unwrap();
    let good = frame(1514, 2);
    rig.peer.send(&good).unwrap();
    assert_same(&rig.received().0, &good);
    wait("the count", || rig.dropped() == (0, 1));
    assert_eq!(rig.counters.rx_too_long.load(Ordering::Relaxed), 1);
}

#[test]
fn a_frame_larger_than_any_packet_is_lost_and_counted() {
    let mut rig = Rig::started(PLAIN);
    assert!(rig.send(&frame(70000, 1), &[], false));
    wait("its buffers", || rig.reap_tx() == 1);
    rig.check();
    assert_eq!(rig.dropped(), (1, 0));
    assert_eq!(rig.counters.tx_too_long.load(Ordering::Relaxed), 1);
    assert!(rig.counters.kicks.load(Ordering::Relaxed) > 0);
}

/// Linux asks before each frame for an interrupt once three quarters of what is on the ring are used, and so, of a ring that
/// is empty, at the next one: as many interrupts as pings are what it asks for.
#[test]
fn a_driver_of_event_indices_is_interrupted_where_it_asked_and_nowhere_else() {
    let mut rig = Rig::started(PLAIN | F_EVENT_IDX);
    let mut sent = 0;
    for (ahead, frames, expected) in [(1, 1, 1), (1, 1, 1), (48, 64, 1), (1, 9, 1), (65, 64, 0), (1, 1, 1)] {
        let before = rig.counters.interrupts.load(Ordering::Relaxed);
        rig.tx.want_interrupt_after(ahead);
        for _ in 0..frames {
            rig.send(&frame(60, sent), &[], false);
            sent += 1;
            wait("the frame", || {
                rig.tx.pending() > 0 && rig.counters.tx_frames.load(Ordering::Relaxed) == sent
            });
            rig.peer.recv().unwrap();
        }
        wait("all of them", || usize::from(rig.tx.pending()) == frames);
        // Only then does the pair decide; and of what it must not do, it gets the time.
        let raised = || rig.counters.interrupts.load(Ordering::Relaxed) - before;
        wait("the interrupt", || raised() >= expected);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(raised(), expected, "of {frames} frames, asked for at number {ahead}");
        assert_eq!(rig.reap_tx(), frames);
    }
}

#[test]
fn interrupts_come_when_the_driver_wants_them() {
    for features in FEATURES {
        let mut rig = Rig::started(features);
        let frames = |rig: &Rig| rig.counters.tx_frames.load(Ordering::Relaxed);
        for (wanted, seed) in [(false, 0), (true, 1), (false, 2)] {
            rig.tx.want_interrupts(wanted);
            let _ = rig.irq.read();
            rig.send(&frame(60, seed), &[], false);
            wait("the frame", || frames(&rig) == seed + 1 && rig.reap_tx() == 1);
            if wanted {
                wait("the interrupt", || rig.irq.read().is_ok());
                assert_eq!(rig.mmio().read(0x60), 1);
                rig.mmio().write(0x64, 1);
                assert_eq!(rig.mmio().read(0x60), 0);
            } else {
                thread::sleep(Duration::from_millis(5));
                assert!(rig.irq.read().is_err(), "an interrupt that was not wanted");
            }
        }
    }
}

/// Ends a thread that loops until then.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_reset_under_traffic_gets_everything_back_any_number_of_times() {
    let mut rig = Rig::new();
    let stop = AtomicBool::new(false);
    let wire = rig.peer.socket().try_clone().unwrap();
    wire.set_nonblocking(true).unwrap();
    thread::scope(|scope| {
        // Also when an assertion fails: the scope waits for the wire.
        let _stop = Stop(&stop);
        // The wire floods and drains without regard for the guest.
        scope.spawn(|| {
            let mut sink = vec![0; 1 << 16];
            while !stop.load(Ordering::Relaxed) {
                let _ = wire.send(&frame(1000, 7));
                let _ = wire.recv(&mut sink);
            }
        });
        for round in 0..12 {
            let features = FEATURES[round % 3];
            rig.start(features, if round % 2 == 0 { 256 } else { 64 });
            let mut got = 0;
            wait("a hundred frames", || {
                rig.post(64, 2048);
                rig.send(&frame(1000, 1), &[12], false);
                rig.reap_tx();
                while let Some((bytes, _)) = rig.receive() {
                    assert_same(&bytes, &frame(1000, 7));
                    got += 1;
                }
                got >= 100
            });
            let began = Instant::now();
            rig.mmio().reset();
            assert!(began.elapsed() < Duration::from_secs(5), "a reset waits for a burst at most");
            let _ = rig.irq.read();
            let before = rig.rx.pending();
            thread::sleep(Duration::from_millis(2));
            assert_eq!(rig.rx.pending(), before, "the device writes after its reset");
            assert!(rig.irq.read().is_err() && rig.mmio().status() == 0);
        }
    });
    assert_eq!(rig.dropped(), (0, 0));
}

#[test]
fn what_the_driver_does_not_accept_is_turned_off() {
    let mut rig = Rig::new();
    let none = Offloads::default();
    assert_eq!(rig.peer.accepted(), None);
    for (features, want) in [
        (PLAIN, none),
        (LINUX, Offloads { uso: false, ..ALL }),
        (LINUX & !F_GUEST_TSO6, Offloads { uso: false, tso6: false, ..ALL }),
        (LINUX | F_GUEST_USO4, Offloads { uso: false, ..ALL }),
        (LINUX | F_GUEST_USO4 | F_GUEST_USO6, ALL),
        // Large packets need checksums (§5.1.3.1), so without the one there are none of the others.
        (LINUX & !F_GUEST_CSUM, none),
    ] {
        rig.start(features, 256);
        assert_eq!(rig.peer.accepted(), Some(want), "{features:#x}");
        rig.check();
    }
}

#[test]
fn a_frame_that_the_driver_cannot_read_is_lost_and_counted() {
    // As it may wait on the host since a driver that could: flags and type of segments.
    const NONE: u8 = 0;
    const TCPV4: u8 = 1;
    const TCPV6: u8 = 4;
    const UDP_L4: u8 = 5;
    let with = |flags, kind| {
        let mut frame = frame(200, 7);
        (frame[0], frame[1]) = (flags, kind);
        frame
    };
    let all = [(1, NONE), (1, TCPV4), (1, TCPV6), (1, UDP_L4)];
    for (features, takes) in [
        (PLAIN, &[][..]),
        (LINUX, &all[..3]),
        (LINUX & !F_GUEST_TSO4, &[all[0], all[2]]),
        (LINUX | F_GUEST_USO4 | F_GUEST_USO6, &all),
    ] {
        let mut rig = Rig::started(features);
        rig.post(64, 2048);
        for (lost, &(flags, kind)) in all.iter().filter(|frame| !takes.contains(frame)).enumerate() {
            rig.peer.send(&with(flags, kind)).unwrap();
            wait("the loss", || rig.dropped() == (0, lost as u64 + 1));
        }
        for &(flags, kind) in takes {
            rig.peer.send(&with(flags, kind)).unwrap();
            assert_same(&rig.received().0, &with(flags, kind));
        }
        // DATA_VALID is of a driver that takes checksums; another one is not told.
        rig.peer.send(&with(2, NONE)).unwrap();
        let told = if features & F_GUEST_CSUM == 0 { 0 } else { 2 };
        assert_same(&rig.received().0, &with(told, NONE));
    }
}

#[test]
fn only_what_the_backend_can_is_offered() {
    let rig = Rig::new();
    let control = F_NOTF_COAL | F_CTRL_VQ | F_CTRL_RX | F_CTRL_RX_EXTRA | F_CTRL_MAC_ADDR | F_GUEST_ANNOUNCE;
    let always =
        F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_MAC | F_MTU | F_STATUS | F_MRG_RXBUF | control;
    let always = always | F_IN_ORDER | F_RING_RESET | F_SPEED_DUPLEX;
    let large = F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO4 | F_HOST_TSO6;
    let uso = F_HOST_USO | F_GUEST_USO4 | F_GUEST_USO6;
    let checksums = F_CSUM | F_GUEST_CSUM | F_CTRL_GUEST_OFFLOADS;
    assert_eq!(rig.mmio().features(), always | checksums | large | uso);

    let features = |offloads| {
        let (backend, peer) = SocketBackend::pair().unwrap();
        Rig::with(Box::new(backend.with_offloads(offloads)), peer).mmio().features()
    };
    assert_eq!(features(Offloads::default()), always);
    assert_eq!(features(Offloads { csum: false, ..ALL }), always, "large packets need checksums");
    let half = Offloads { csum: true, tso4: true, ..Default::default() };
    assert_eq!(features(half), always | checksums | F_GUEST_TSO4 | F_HOST_TSO4);
}

#[test]
fn the_configuration_is_the_nics() {
    let rig = Rig::new();
    let mut config = [0xff; 20];
    rig.device.read(0x100, &mut config);
    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..12], [1, 0, 1, 0, 0x28, 0x23], "up, one pair, 9000");
    assert_eq!(config[12..], [0x10, 0x27, 0, 0, 1, 0xff, 0xff, 0xff], "10 Gbit/s, full duplex, no more");
    rig.device.write(0x100, &[9]);
    let mut mtu = [0; 2];
    rig.device.read(0x10a, &mut mtu);
    assert_eq!(u16::from_le_bytes(mtu), MTU);
    rig.device.read(u64::MAX, &mut mtu);
}

#[test]
fn a_wire_that_is_gone_does_not_spin() {
    let Rig { device, memory, peer, counters, mut rx, tx, irq, .. } = Rig::started(LINUX);
    drop(peer);
    rx.add(&[Buffer::writable(CHAIN_DATA, 4096); 20]).unwrap();
    rx.publish();
    MockMmio::new(&device).kick(RX);
    let dropped = || counters.rx_dropped.load(Ordering::Relaxed);
    wait("the failure", || dropped() > 0);
    thread::sleep(Duration::from_millis(50));
    let before = dropped();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(dropped(), before, "the pair tries on and on");
    device.reset();
    drop((memory, tx, irq));
}

#[test]
fn an_activation_that_fails_leaves_the_device_as_it_was() {
    let mut rig = Rig::new();
    for missing in [RX, TX] {
        let mmio = rig.mmio();
        assert!(mmio.negotiate(LINUX));
        let ring = if missing == RX { &rig.tx } else { &rig.rx };
        assert!(mmio.set_queue(1 - missing, ring.setup()));
        mmio.start();
        assert!(mmio.needs_reset());
    }
    rig.start(LINUX, 256);
    rig.check();
}

/// A host end that answers every frame itself, as a tun answers ARP, and whose descriptor never says a word.
struct Echo {
    wire: SocketBackend,
    answers: VecDeque<Vec<u8>>,
}

impl Backend for Echo {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wire.fd()
    }

    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        let mut bytes = vec![0; frame.len()];
        frame.read_at(0, &mut bytes);
        self.answers.push_back(bytes);
        Ok(Sent::Answered)
    }

    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        let frame = self.answers.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        assert!(frame.len() >= HEADER_LEN);
        Ok(space.write_at(0, &frame))
    }

    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_frame_that_the_backend_answers_is_received_without_an_event() {
    let (wire, peer) = SocketBackend::pair().unwrap();
    let mut rig = Rig::with(Box::new(Echo { wire, answers: VecDeque::new() }), peer);
    rig.start(PLAIN | F_EVENT_IDX, 256);
    rig.post(64, 2048);
    for seed in 0..100 {
        let sent = frame(500, seed);
        while !rig.send(&sent, &[], false) {
            rig.reap_tx();
        }
        assert_same(&rig.received().0, &sent);
        rig.post(64, 2048);
    }
}

/// Waits for a moment that differs from round to round, to meet the device at each point of its way to sleep.
fn jitter(round: u64) {
    for _ in 0..(round * 7919) % 6000 {
        std::hint::spin_loop();
    }
}

#[test]
fn a_frame_added_while_the_device_falls_asleep_is_not_forgotten() {
    for features in [PLAIN, PLAIN | F_EVENT_IDX] {
        let mut rig = Rig::started(features);
        for round in 0..5000 {
            rig.send(&frame(60, 0), &[], false);
            jitter(round);
            rig.send(&frame(60, 1), &[], false);
            rig.peer.recv().unwrap();
            rig.peer.recv().unwrap();
            rig.reap_tx();
        }
    }
}

#[test]
fn an_interrupt_asked_for_while_the_device_works_is_not_forgotten() {
    for features in [PLAIN, PLAIN | F_EVENT_IDX] {
        let mut rig = Rig::started(features);
        for round in 0..5000 {
            rig.tx.want_interrupts(false);
            let _ = rig.irq.read();
            rig.send(&frame(60, 0), &[], false);
            jitter(round);
            // As a driver goes to sleep: the wish, then a last look.
            rig.tx.want_interrupts(true);
            if rig.tx.pending() == 0 {
                wait("the interrupt", || rig.irq.read().is_ok());
            }
            wait("the buffer", || rig.reap_tx() == 1);
            rig.peer.recv().unwrap();
        }
    }
}

#[test]
fn one_kick_is_enough_for_more_frames_than_a_burst() {
    let mut rig = Rig::started(PLAIN | F_EVENT_IDX);
    let bytes = frame(60, 1);
    rig.memory.write_slice(&bytes, GuestAddress(CHAIN_DATA)).unwrap();
    for _ in 0..150 {
        rig.tx.add(&[Buffer::readable(CHAIN_DATA, bytes.len() as u32)]).unwrap();
    }
    rig.kick_tx();
    // Nobody reads the wire, so that nothing but the pair itself can wake the pair.
    wait("all of them", || rig.tx.pending() == 150);
}

/// A host end that refuses its offloads once.
struct Refusing(SocketBackend, bool);

impl Backend for Refusing {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        self.0.send(frame)
    }

    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        self.0.recv(space)
    }

    fn offloads(&self) -> Offloads {
        self.0.offloads()
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        if std::mem::replace(&mut self.1, false) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.0.set_offloads(accepted)
    }
}

#[test]
fn all_pairs_start_or_none() {
    let (first, _peer) = SocketBackend::pair().unwrap();
    let (second, peer) = SocketBackend::pair().unwrap();
    let backends: Vec<Box<dyn Backend>> = vec![Box::new(first), Box::new(Refusing(second, true))];
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let nic = VirtioNet::new(config("test", None), backends, Vec::new()).unwrap();
    let irq = EventFd::new(0).unwrap();
    let device = MmioTransport::new(Box::new(nic), memory.clone(), irq).unwrap();
    let mmio = MockMmio::new(&device);
    for works in [false, true] {
        let mut rings: Vec<_> =
            (1..5).map(|number| MockRing::new(&memory, 0x1_0000 * number, 64, false)).collect();
        assert!(mmio.negotiate(PLAIN | F_CTRL_VQ | F_MQ));
        for (index, ring) in rings.iter().enumerate() {
            assert!(mmio.set_queue(index as u32, ring.setup()));
        }
        mmio.start();
        assert_eq!(mmio.needs_reset(), !works);
        for index in [1, 3] {
            rings[index].add(&[Buffer::readable(CHAIN_DATA, 72)]).unwrap();
            rings[index].publish();
            mmio.kick(index as u32);
        }
        if works {
            wait("both pairs", || rings[1].pending() == 1 && rings[3].pending() == 1);
            assert_eq!(peer.recv().unwrap().len(), 72);
        } else {
            thread::sleep(Duration::from_millis(20));
            assert_eq!((rings[1].pending(), rings[3].pending()), (0, 0), "one of two pairs runs");
        }
    }
}

#[test]
fn the_shortest_and_the_longest_frame_go_and_longer_ones_are_counted() {
    // A header, and 64 KiB behind an Ethernet header with a tag.
    const MOST: usize = HEADER_LEN + 18 + 65536;
    let mut rig = Rig::started(PLAIN);
    for len in [0, MOST - HEADER_LEN] {
        let whole = frame(len, 3);
        assert!(rig.send(&whole, &[], false));
        assert!(rig.peer.recv().unwrap() == whole, "{len}");
    }
    assert!(rig.send(&frame(MOST - HEADER_LEN + 1, 3), &[], false));
    wait("the frames", || rig.tx.pending() == 3);
    assert_eq!(rig.counters.tx_too_long.load(Ordering::Relaxed), 1);
    assert!(!rig.mmio().needs_reset());
    rig.check();
}

#[test]
fn a_buffer_may_have_room_for_no_more_than_the_header() {
    let mut rig = Rig::started(LINUX);
    rig.post_chain(vec![Buffer::writable(CHAIN_DATA, HEADER_LEN as u32)], false);
    rig.post_chain(vec![Buffer::writable(CHAIN_DATA + 4096, 2048)], false);
    let into = frame(100, 9);
    rig.peer.send(&into).unwrap();
    let (received, chains) = rig.received();
    assert_same(&received, &into);
    assert_eq!(chains, 2);
    // Less is none.
    rig.post_chain(vec![Buffer::writable(CHAIN_DATA, HEADER_LEN as u32 - 1)], false);
    wait("the reset", || rig.mmio().needs_reset());
}

#[test]
fn room_in_more_buffers_than_a_frame_may_have_is_none() {
    let mut rig = Rig::started(LINUX);
    let pieces: Vec<_> = (0..1025).map(|piece| Buffer::writable(CHAIN_DATA + 4 * piece, 2)).collect();
    rig.rx.add_indirect(CHAIN_DATA + 0x1_0000, &pieces).unwrap();
    rig.kick_rx();
    rig.peer.send(&frame(100, 1)).unwrap();
    wait("the reset", || rig.mmio().needs_reset());
}

/// A host's end that answers each frame by itself, and whose descriptor says nothing of that.
struct Answers {
    silent: SocketBackend,
    _other: SocketPeer,
    answers: VecDeque<Vec<u8>>,
}

impl Backend for Answers {
    fn fd(&self) -> BorrowedFd<'_> {
        self.silent.fd()
    }
    fn send(&mut self, sent: &Iov<'_>) -> io::Result<Sent> {
        let mut bytes = vec![0; sent.len()];
        sent.read_at(0, &mut bytes);
        self.answers.push_back(bytes);
        Ok(Sent::Answered)
    }
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        let answer = self.answers.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        space.write_at(0, &answer);
        Ok(answer.len())
    }
    fn offloads(&self) -> Offloads {
        self.silent.offloads()
    }
    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.silent.set_offloads(accepted)
    }
}

#[test]
fn what_the_wire_answers_by_itself_the_guest_gets_at_once() {
    let [(silent, _other), (_, peer)] = [(); 2].map(|()| SocketBackend::pair().unwrap());
    let mut rig = Rig::with(Box::new(Answers { silent, _other, answers: Default::default() }), peer);
    rig.start(PLAIN, 256);
    rig.post(8, 2048);
    for seed in 0..20 {
        // It waits for the host by now.
        thread::sleep(Duration::from_millis(5));
        let question = frame(80, seed);
        assert!(rig.send(&question, &[], false));
        assert_same(&rig.received().0, &question);
        rig.post(1, 2048);
        rig.reap_tx();
    }
}
