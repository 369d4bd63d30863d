//! Interrupts that the driver has held (`VIRTIO_NET_F_NOTF_COAL`): when they go out, and that none is lost.

mod rig;

use std::sync::atomic::Ordering;

use devices::virtio::mock::MockRing;
use devices::virtio::queue::{F_EVENT_IDX, F_RING_RESET};
use proptest::prelude::*;

use rig::*;

const OK: u8 = 0;
const ERR: u8 = 1;
const FEATURES: u64 = COMMANDS | F_NOTF_COAL | F_RING_RESET;
/// As long as it can be: longer than a busy machine keeps a test waiting.
const LONG: u32 = u32::MAX;

/// A rig that holds interrupts like that, and has room to receive into; its driver wants every interrupt.
fn held(features: u64, max_packets: u32, max_usecs: u32) -> Rig {
    let mut rig = Rig::started(features);
    rig.post(128, 2048);
    for which in [TX_SET, RX_SET] {
        assert_eq!(rig.command(&coalesce(which, max_packets, max_usecs), &[2]), OK);
    }
    want(&mut rig);
    rig
}

fn want(rig: &mut Rig) {
    rig.tx.want_interrupts(true);
    rig.rx.want_interrupts(true);
}

/// Interrupts for used buffers so far.
fn interrupts(rig: &Rig) -> u64 {
    rig.counters.interrupts.load(Ordering::Relaxed)
}

#[track_caller]
fn interrupted(rig: &mut Rig, times: u64) {
    // The turn that used the last frame is over once the thread has done something else.
    assert_eq!(rig.command(&[0xff, 0xff], &[]), ERR);
    assert_eq!(interrupts(rig), times);
}

/// Moves so many frames, one after the other, and takes none back.
fn send(rig: &mut Rig, frames: u16) {
    for _ in 0..frames {
        let used = rig.tx.pending();
        assert!(rig.send(&frame(60, 1), &[], false));
        rig.peer.recv().unwrap();
        wait("it to be used", || rig.tx.pending() == used + 1);
    }
}

fn receive(rig: &mut Rig, frames: u16) {
    for _ in 0..frames {
        let used = rig.rx.pending();
        rig.peer.send(&frame(60, 1)).unwrap();
        wait("it to be used", || rig.rx.pending() == used + 1);
    }
}

fn reap(ring: &mut MockRing) {
    while ring.reap().is_some() {}
    ring.want_interrupts(true);
}

#[test]
fn so_many_packets_take_one_interrupt() {
    for features in [FEATURES, FEATURES & !F_EVENT_IDX] {
        let mut rig = held(features, 4, LONG);
        for round in 0..3 {
            send(&mut rig, 3);
            interrupted(&mut rig, 2 * round);
            send(&mut rig, 1);
            interrupted(&mut rig, 2 * round + 1);
            reap(&mut rig.tx);

            receive(&mut rig, 3);
            interrupted(&mut rig, 2 * round + 1);
            receive(&mut rig, 1);
            interrupted(&mut rig, 2 * round + 2);
            reap(&mut rig.rx);
        }
    }
}

#[test]
fn one_packet_has_its_interrupt_in_time() {
    for usecs in [1, 50, 3000] {
        let mut rig = held(FEATURES, 1000, usecs);
        for round in 0..20 {
            send(&mut rig, 1);
            wait("an interrupt", || interrupts(&rig) == 2 * round + 1);
            reap(&mut rig.tx);
            receive(&mut rig, 1);
            wait("an interrupt", || interrupts(&rig) == 2 * round + 2);
            reap(&mut rig.rx);
        }
    }
}

#[test]
fn a_hold_ends_where_the_driver_would_wait_for_nothing() {
    // Half of the ring is used.
    let mut rig = held(FEATURES, 1000, LONG);
    send(&mut rig, 127);
    interrupted(&mut rig, 0);
    send(&mut rig, 1);
    interrupted(&mut rig, 1);

    // The driver has posted no more.
    let mut rig = Rig::started(PLAIN | F_EVENT_IDX | F_CTRL_VQ | F_NOTF_COAL);
    assert_eq!(rig.command(&coalesce(RX_SET, 1000, LONG), &[2]), OK);
    rig.post(3, 2048);
    receive(&mut rig, 2);
    interrupted(&mut rig, 0);
    receive(&mut rig, 1);
    interrupted(&mut rig, 1);
}

#[test]
fn who_wants_no_interrupt_has_none_and_what_was_looked_at_needs_none() {
    let mut rig = held(FEATURES, 4, LONG);
    rig.tx.want_interrupts(false);
    rig.rx.want_interrupts(false);
    send(&mut rig, 9);
    receive(&mut rig, 9);
    reap(&mut rig.tx);
    reap(&mut rig.rx);
    send(&mut rig, 3);
    receive(&mut rig, 3);
    interrupted(&mut rig, 0);
    reap(&mut rig.tx);
    reap(&mut rig.rx);
    for which in [TX_SET, RX_SET] {
        assert_eq!(rig.command(&coalesce(which, 0, 0), &[2]), OK);
    }
    interrupted(&mut rig, 0);
    send(&mut rig, 1);
    interrupted(&mut rig, 1);
}

#[test]
fn other_limits_hold_at_once() {
    let mut rig = held(FEATURES, 15, LONG);
    send(&mut rig, 10);
    receive(&mut rig, 10);
    assert_eq!(rig.command(&coalesce(TX_SET, 11, LONG), &[2]), OK);
    interrupted(&mut rig, 0);
    assert_eq!(rig.command(&coalesce(TX_SET, 8, LONG), &[2]), OK);
    interrupted(&mut rig, 1);
    assert_eq!(rig.command(&coalesce(RX_SET, 0, 0), &[2]), OK);
    interrupted(&mut rig, 2);
}

#[test]
fn a_reset_of_the_device_forgets_them_and_one_of_a_queue_keeps_them() {
    let mut rig = held(FEATURES, 4, LONG);
    send(&mut rig, 3);
    rig.reset_queue(TX);
    rig.renew_queue(TX, 256);
    send(&mut rig, 3);
    receive(&mut rig, 3);
    // The limits are those of before, and packets are counted anew.
    interrupted(&mut rig, 0);
    rig.reset_queue(RX);
    // A ring that is reset is not touched, and nothing is due for it.
    assert_eq!(rig.command(&coalesce(RX_SET, 0, 0), &[2]), OK);
    interrupted(&mut rig, 0);
    assert_eq!(rig.command(&coalesce(RX_SET, 4, LONG), &[2]), OK);
    rig.renew_queue(RX, 256);
    rig.post(64, 2048);
    send(&mut rig, 1);
    interrupted(&mut rig, 1);
    receive(&mut rig, 3);
    interrupted(&mut rig, 1);

    rig.start(FEATURES, 256);
    rig.post(64, 2048);
    send(&mut rig, 1);
    interrupted(&mut rig, 2);
    receive(&mut rig, 1);
    interrupted(&mut rig, 3);
}

#[test]
fn a_paused_nic_holds_nothing_and_goes_on_as_before() {
    let mut rig = held(FEATURES, 4, LONG);
    send(&mut rig, 3);
    receive(&mut rig, 3);
    rig.handle.pause().unwrap();
    assert_eq!(interrupts(&rig), 2, "the driver has heard of all that was used");
    reap(&mut rig.tx);
    reap(&mut rig.rx);
    rig.handle.resume().unwrap();
    send(&mut rig, 3);
    receive(&mut rig, 3);
    interrupted(&mut rig, 2);
    send(&mut rig, 1);
    interrupted(&mut rig, 3);
}

#[test]
fn a_nic_that_moves_to_another_wire_holds_interrupts_there() {
    let mut rig = held(FEATURES, 4, LONG);
    let (backend, peer) = net::SocketBackend::pair().unwrap();
    peer.socket().set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    rig.handle.swap(vec![Box::new(backend.with_offloads(ALL))], Vec::new()).unwrap();
    rig.peer = peer;
    let before = interrupts(&rig);
    send(&mut rig, 3);
    interrupted(&mut rig, before);
    send(&mut rig, 1);
    interrupted(&mut rig, before + 1);
}

#[test]
fn what_makes_no_sense_is_an_error_and_changes_nothing() {
    let mut rig = held(FEATURES, 4, LONG);
    let whole = coalesce(TX_SET, 0, 0);
    let longer = [&whole[..], &[0]].concat();
    let of_a_queue = [&[6, 2, 1, 0, 0, 0][..], &[0; 8]].concat();
    for command in [&whole[..9], &whole[..6], &whole[..2], &whole[..1], &longer, &of_a_queue, &[6, 3, 1, 0]] {
        assert_eq!(rig.command(command, &[]), ERR, "{command:x?}");
    }
    send(&mut rig, 3);
    interrupted(&mut rig, 0);
    send(&mut rig, 1);
    interrupted(&mut rig, 1);

    let mut rig = Rig::started(COMMANDS);
    assert_eq!(rig.command(&coalesce(TX_SET, 4, LONG), &[2]), ERR, "it was not negotiated");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..Default::default() })]

    /// Whatever the limits, whenever they change: each frame that a driver waits for has its interrupt.
    #[test]
    fn no_interrupt_is_lost(
        steps in proptest::collection::vec((0u8..2, 0u32..6, 0u32..2000, 1u16..6), 1..12),
    ) {
        let mut rig = held(FEATURES, 0, 0);
        for (which, packets, usecs, frames) in steps {
            prop_assert_eq!(rig.command(&coalesce(which, packets, usecs), &[]), OK);
            let before = interrupts(&rig);
            if which == TX_SET { send(&mut rig, frames) } else { receive(&mut rig, frames) }
            wait("an interrupt", || interrupts(&rig) > before);
            reap(&mut rig.tx);
            reap(&mut rig.rx);
            rig.post(frames.into(), 2048);
        }
    }
}
