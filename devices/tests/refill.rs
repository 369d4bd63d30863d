//! A driver that has posted nothing to receive into: the host's frames wake nobody meanwhile, and it is asked for a kick when most of its
//! ring is posted; one that posts less gets its frames all the same.

mod rig;

use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use devices::virtio::queue::F_EVENT_IDX;
use net::RateLimits;
use vm_memory::{Bytes, GuestAddress};

use rig::*;

const SIZE: u16 = 256;
/// Of a ring of that size.
const MOST: u16 = 192;
/// Fewer than the socket has room for.
const FRAMES: u64 = 100;
/// A thread that is woken sleeps again by then.
const TURN: Duration = Duration::from_micros(300);

fn calls(rig: &Rig) -> u64 {
    rig.counters.calls.load(Ordering::Relaxed)
}

/// Has the host send frames, one by one, and returns how many system calls the pair's thread made of it.
fn flood(rig: &Rig) -> u64 {
    let before = calls(rig);
    for seed in 0..FRAMES {
        rig.peer.send(&frame(60, seed)).unwrap();
        sleep(TURN);
    }
    calls(rig) - before
}

/// They are all there, in order.
fn take_flood(rig: &mut Rig) {
    for seed in 0..FRAMES {
        assert_same(&rig.received().0, &frame(60, seed));
    }
}

/// With the how manieth chain from the last one that it knew the device wants a kick.
fn asked_for(rig: &Rig, known: u16) -> u16 {
    let avail_event = rig.rx.setup().used_ring + 4 + 8 * u64::from(SIZE);
    let event: u16 = rig.memory.read_obj(GuestAddress(avail_event)).unwrap();
    event.wrapping_sub(known) + 1
}

#[test]
fn frames_wake_nobody_while_there_is_nothing_posted() {
    for features in [PLAIN, PLAIN | F_EVENT_IDX, LINUX] {
        let mut rig = Rig::started(features);
        // It has asked for more than a buffer, and then for one.
        sleep(Duration::from_millis(20));
        let made = flood(&rig);
        assert!(made < FRAMES / 4, "{made} system calls for {FRAMES} frames that cannot be received");
        rig.post(SIZE.into(), 2048);
        take_flood(&mut rig);
        // The host's frames are events again.
        rig.post(SIZE.into(), 2048);
        for seed in 0..20 {
            rig.peer.send(&frame(100, seed)).unwrap();
            assert_same(&rig.received().0, &frame(100, seed));
        }
    }
}

#[test]
fn frames_wake_nobody_while_the_rate_has_nothing_left() {
    let limits = |text: &str| text.parse::<RateLimits>().unwrap();
    let mut rig = Rig::started(LINUX);
    rig.handle.set_rate(&limits("rate=100M:16k,burst=5")).unwrap();
    rig.post(SIZE.into(), 4096);
    // Half a minute's.
    rig.peer.send(&frame(60_000, 1)).unwrap();
    assert_same(&rig.received().0, &frame(60_000, 1));
    let made = flood(&rig);
    assert!(made < FRAMES / 4, "{made} system calls for {FRAMES} frames that are not due");
    rig.handle.set_rate(&RateLimits::default()).unwrap();
    take_flood(&mut rig);
    rig.check();
}

#[test]
fn a_driver_is_asked_for_a_kick_with_most_of_the_ring() {
    let mut rig = Rig::started(PLAIN | F_EVENT_IDX);
    let mut asked = Vec::new();
    // The wish stands for some milliseconds, in which this thread may not run.
    for turn in 1..=50 {
        rig.post(1, 2048);
        rig.peer.send(&frame(60, turn)).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while rig.rx.pending() == 0 {
            assert!(Instant::now() < end, "no frame came");
        }
        for _ in 0..20 {
            if asked_for(&rig, turn as u16) == MOST {
                return;
            }
            asked.push(asked_for(&rig, turn as u16));
            sleep(Duration::from_micros(50));
        }
        rig.receive().unwrap();
        // What it was asked for then.
        sleep(Duration::from_millis(10));
    }
    panic!("it was never asked for {MOST}, but for {asked:?}");
}

#[test]
fn a_driver_that_posts_little_gets_its_frames_and_is_asked_for_as_little() {
    let mut rig = Rig::started(PLAIN | F_EVENT_IDX);
    rig.peer.send(&frame(60, 0)).unwrap();
    for posted in 1..=20 {
        rig.post(1, 2048);
        assert_same(&rig.received().0, &frame(60, posted - 1));
        rig.peer.send(&frame(60, posted)).unwrap();
    }
    // There is a frame, so that it is dry as soon as it has seen that.
    sleep(Duration::from_millis(10));
    assert_eq!(asked_for(&rig, 20), 1);
    rig.post(1, 2048);
    assert_same(&rig.received().0, &frame(60, 20));
    rig.check();
}

#[test]
fn a_driver_that_posts_most_of_the_ring_kicks_once() {
    let mut rig = Rig::started(LINUX);
    sleep(Duration::from_millis(20));
    let kicks = |rig: &Rig| rig.counters.kicks.load(Ordering::Relaxed);
    let before = kicks(&rig);
    rig.post(SIZE.into(), 2048);
    for seed in 0..FRAMES {
        rig.peer.send(&frame(60, seed)).unwrap();
    }
    take_flood(&mut rig);
    assert_eq!(kicks(&rig) - before, 1);
}
