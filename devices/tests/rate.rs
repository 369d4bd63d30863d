//! A NIC that is held to a rate: its frames wait, and each goes once.
//!
//! Times are asserted in one direction: no sooner than the rate allows, however slow the machine is.

mod rig;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::net::{PairState, VirtioNet};
use net::{Backend, HEADER_LEN, RateLimits, SocketBackend, SocketPeer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use rig::*;

/// Half a minute a frame of 60 kB, so that the next one waits for longer than any test takes.
const SLOW: &str = "rate=16k,burst=5";

fn limits(text: &str) -> RateLimits {
    text.parse().unwrap()
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// How many units a rate allows until now.
struct Clock {
    began: Instant,
    per_second: f64,
    burst: f64,
}

impl Clock {
    fn new(per_second: u32, burst: Duration) -> Self {
        let burst = f64::from(per_second) * burst.as_secs_f64();
        Self { began: Instant::now(), per_second: per_second.into(), burst }
    }

    /// `count` and one more piece of `last` may have gone by now.
    fn allows(&self, count: u32, last: u32) {
        let most = self.per_second * self.began.elapsed().as_secs_f64() + self.burst + f64::from(last);
        assert!(f64::from(count) <= most, "{count} of {most}");
    }
}

fn assert_silent(peer: &SocketPeer) {
    peer.socket().set_nonblocking(true).unwrap();
    assert!(peer.recv().is_err(), "a frame came");
    peer.socket().set_nonblocking(false).unwrap();
}

#[test]
fn what_the_guest_sends_goes_later_and_once() {
    for (text, per_second, unit) in [("pps=1k,burst=5", 1000, 1), ("rate=8M:16k,burst=5", 1_000_000, 1000)] {
        let mut rig = Rig::started(LINUX);
        let clock = Clock::new(per_second, Duration::from_millis(5));
        rig.handle.set_rate(&limits(text)).unwrap();
        let sent: Vec<_> = (0..100).map(|seed| frame(1000, seed)).collect();
        for frame in &sent {
            assert!(rig.send(frame, &[], false));
        }
        for (number, frame) in sent.iter().enumerate() {
            assert_same(&rig.peer.recv().unwrap(), frame);
            clock.allows(unit * (number as u32 + 1), unit);
        }
        wait("the buffers", || rig.tx.pending() == 100);
        assert_silent(&rig.peer);
        assert_eq!(rig.dropped(), (0, 0));
        assert!(read(&rig.counters.tx_rate_waits) > 0 && read(&rig.counters.rx_rate_waits) == 0);
    }
}

#[test]
fn what_the_guest_receives_comes_later_and_once() {
    for (text, per_second, unit) in
        [("pps=off:1k,burst=5", 1000, 1), ("rate=16k:8M,burst=5", 1_000_000, 1000)]
    {
        let mut rig = Rig::started(LINUX);
        rig.post(200, 2048);
        let clock = Clock::new(per_second, Duration::from_millis(5));
        rig.handle.set_rate(&limits(text)).unwrap();
        let sent: Vec<_> = (0..50).map(|seed| frame(1000, seed)).collect();
        sent.iter().for_each(|frame| rig.peer.send(frame).unwrap());
        for (number, frame) in sent.iter().enumerate() {
            assert_same(&rig.received().0, frame);
            clock.allows(unit * (number as u32 + 1), unit);
        }
        thread::sleep(Duration::from_millis(2));
        assert_eq!((rig.receive(), rig.dropped()), (None, (0, 0)));
        assert!(read(&rig.counters.rx_rate_waits) > 0 && read(&rig.counters.tx_rate_waits) == 0);
    }
}

/// A rig with two large frames on the transmit ring, one of which is gone, and the other one waits for half a minute.
fn waiting() -> Rig {
    let mut rig = Rig::new();
    // Before there is a driver.
    rig.handle.set_rate(&limits(SLOW)).unwrap();
    rig.start(LINUX, 256);
    for seed in 0..2 {
        assert!(rig.send(&frame(60_000, seed), &[], false));
    }
    assert_same(&rig.peer.recv().unwrap(), &frame(60_000, 0));
    wait("the second to wait", || read(&rig.counters.tx_rate_waits) > 0);
    rig
}

#[test]
fn a_rate_that_changes_holds_for_what_waits() {
    for text in ["off", "rate=100M", "rate=off:16k"] {
        let mut rig = waiting();
        // Slower for the other direction alone, and as slow for this one.
        rig.handle.set_rate(&limits("rate=16k:17k,burst=5")).unwrap();
        assert_same(&rig.peer.recv().unwrap(), &frame(60_000, 1));
        assert!(rig.send(&frame(60_000, 2), &[], false));
        thread::sleep(Duration::from_millis(5));
        assert_silent(&rig.peer);
        rig.handle.set_rate(&limits(text)).unwrap();
        assert_same(&rig.peer.recv().unwrap(), &frame(60_000, 2));
        rig.check();
    }
}

#[test]
fn what_waits_wakes_nobody() {
    let mut rig = waiting();
    let before = read(&rig.counters.calls);
    for seed in 2..12 {
        assert!(rig.send(&frame(60, seed), &[], false));
    }
    thread::sleep(Duration::from_millis(100));
    let calls = read(&rig.counters.calls) - before;
    assert!(calls <= 20, "{calls} system calls while there was nothing to do");
    assert_silent(&rig.peer);
    // The other direction is not held up.
    rig.post(1, 2048);
    rig.handle.set_rate(&limits("rate=16k:100M,burst=5")).unwrap();
    rig.peer.send(&frame(100, 7)).unwrap();
    assert_same(&rig.received().0, &frame(100, 7));
}

#[test]
fn a_nic_is_paused_and_reset_while_its_frames_wait() {
    let mut rig = waiting();
    for _ in 0..3 {
        let states = rig.handle.pause().unwrap();
        let [PairState::Active(pair)] = states[..] else { panic!("{states:?}") };
        assert_eq!(pair.transmit.next_avail, 1, "the second frame is on the ring");
        rig.handle.resume().unwrap();
        thread::sleep(Duration::from_millis(2));
        assert_silent(&rig.peer);
    }
    // A link that goes down and up has it wait all the same.
    rig.handle.set_link(false).unwrap();
    rig.handle.set_link(true).unwrap();
    assert_silent(&rig.peer);
    // The next driver owes what the one before took, and its frames are others.
    rig.start(LINUX, 256);
    assert!(rig.send(&frame(60, 9), &[], false));
    thread::sleep(Duration::from_millis(5));
    assert_silent(&rig.peer);
    rig.handle.set_rate(&RateLimits::default()).unwrap();
    assert_same(&rig.peer.recv().unwrap(), &frame(60, 9));
    assert_silent(&rig.peer);
    rig.check();
}

const PAIRS: u32 = 4;
const RING: u64 = 64;

#[test]
fn all_pairs_of_a_nic_have_one_rate() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let (mut backends, mut peers): (Vec<Box<dyn Backend>>, _) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let (socket, peer) = SocketBackend::pair().unwrap();
        backends.push(Box::new(socket.with_offloads(ALL)));
        peers.push(peer);
    }
    let nic = VirtioNet::new(config("shared", None), backends, Vec::new()).unwrap();
    let (handle, counters) = (nic.handle(), nic.counters());
    let device = MmioTransport::new(Box::new(nic), memory.clone(), EventFd::new(0).unwrap()).unwrap();
    let clock = Clock::new(2000, Duration::from_millis(5));
    handle.set_rate(&limits("pps=2k,burst=5")).unwrap();
    let mmio = MockMmio::new(&device);
    assert!(mmio.negotiate(COMMANDS | F_MQ));
    let at = |index: u32| 0x1_0000 * (6 + u64::from(index));
    let mut rings: Vec<_> =
        (0..2 * PAIRS).map(|index| MockRing::new(&memory, at(index), RING as u16, true)).collect();
    for (index, ring) in rings.iter().enumerate() {
        assert!(mmio.set_queue(index as u32, ring.setup()));
    }
    assert!(mmio.set_queue(2 * PAIRS, MockRing::new(&memory, at(2 * PAIRS), 64, true).setup()));
    mmio.start();
    assert!(!mmio.needs_reset());
    let bytes = [&[0; HEADER_LEN][..], &[7; 60]].concat();
    memory.write_slice(&bytes, GuestAddress(CHAIN_DATA)).unwrap();
    for pair in 0..PAIRS as usize {
        for _ in 0..RING {
            rings[2 * pair + 1].add(&[Buffer::readable(CHAIN_DATA, bytes.len() as u32)]).unwrap();
        }
        rings[2 * pair + 1].publish();
        mmio.kick(2 * pair as u32 + 1);
    }
    let sent = || counters.iter().map(|pair| read(&pair.tx_frames)).sum::<u64>();
    let all = u64::from(PAIRS) * RING;
    wait("all frames", || {
        let now = sent();
        clock.allows(now as u32, PAIRS);
        now == all
    });
    for peer in &peers {
        peer.socket().set_nonblocking(true).unwrap();
        assert_eq!(std::iter::from_fn(|| peer.recv().ok()).count() as u64, RING);
    }
    drop(device);
}
