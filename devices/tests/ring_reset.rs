//! One queue that is reset and set up anew while the NIC runs (`VIRTIO_F_RING_RESET`), and the order in which chains come back
//! (`VIRTIO_F_IN_ORDER`).

mod rig;

use devices::virtio::mock::{Buffer, MockRing};
use devices::virtio::queue::{F_EVENT_IDX, F_IN_ORDER, F_RING_RESET};
use vm_memory::{Bytes, GuestAddress};

use rig::*;

const FEATURES: [u64; 2] = [COMMANDS | F_RING_RESET, (COMMANDS | F_RING_RESET) & !F_EVENT_IDX];

/// Writes over a ring, so that whoever looks at it breaks it; whether it is as it was written then.
fn spoil(rig: &Rig, ring: &MockRing) -> impl Fn(&Rig) -> bool + use<> {
    let (at, len) = (GuestAddress(ring.setup().desc_table), MockRing::bytes(ring.setup().size) as usize);
    rig.memory.write_slice(&vec![0xee; len], at).unwrap();
    move |rig| {
        let mut bytes = vec![0; len];
        rig.memory.read_slice(&mut bytes, at).unwrap();
        bytes.iter().all(|&byte| byte == 0xee)
    }
}

#[test]
fn a_receive_queue_is_reset_and_the_rest_goes_on() {
    for features in FEATURES {
        let mut rig = Rig::started(features);
        rig.check();
        for size in [64, 256] {
            rig.reset_queue(RX);
            let untouched = spoil(&rig, &rig.rx);
            // Neither kicks nor frames have it touched.
            rig.mmio().kick(RX);
            let waits = frame(1000, 1);
            rig.peer.send(&waits).unwrap();
            for seed in 0..5 {
                let out = frame(100, seed);
                assert!(rig.send(&out, &[], false));
                assert_eq!(rig.peer.recv().unwrap(), out);
            }
            rig.command(&[0, 0, 1], &[2]);
            assert!(untouched(&rig), "{features:#x}");
            rig.renew_queue(RX, size);
            rig.post(size.into(), 2048);
            assert_same(&rig.received().0, &waits);
            rig.check();
        }
        assert!(!rig.mmio().needs_reset());
    }
}

#[test]
fn a_transmit_queue_is_reset_and_the_rest_goes_on() {
    for features in FEATURES {
        let mut rig = Rig::started(features);
        rig.check();
        rig.tx.want_interrupts(true);
        assert!(rig.send(&frame(60, 9), &[], false));
        rig.peer.recv().unwrap();
        rig.reset_queue(TX);
        let untouched = spoil(&rig, &rig.tx);
        rig.mmio().kick(TX);
        rig.post(64, 2048);
        for seed in 0..5 {
            let into = frame(200, seed);
            rig.peer.send(&into).unwrap();
            assert_same(&rig.received().0, &into);
        }
        assert!(untouched(&rig), "{features:#x}");
        rig.renew_queue(TX, 16);
        rig.check();
        assert!(!rig.mmio().needs_reset());
    }
}

#[test]
fn a_control_queue_is_reset_and_the_rest_goes_on() {
    for features in FEATURES {
        let mut rig = Rig::started(features);
        assert_eq!(rig.command(&[0, 0, 1], &[2]), 0);
        rig.reset_queue(CONTROL);
        let untouched = spoil(&rig, &rig.control);
        rig.mmio().kick(CONTROL);
        rig.check();
        assert!(untouched(&rig), "{features:#x}");
        rig.renew_queue(CONTROL, 32);
        assert_eq!(rig.command(&[0, 0, 0], &[2]), 0);
        assert!(!rig.mmio().needs_reset());
    }
}

#[test]
fn a_queue_is_reset_only_where_that_was_negotiated_and_the_device_runs() {
    let mut rig = Rig::started(COMMANDS);
    rig.mmio().write(QUEUE_SEL, RX);
    rig.mmio().write(QUEUE_RESET, 1);
    assert_eq!(rig.mmio().read(QUEUE_READY), 1);
    rig.check();

    rig.start(COMMANDS | F_RING_RESET, 256);
    rig.mmio().write(QUEUE_SEL, 9);
    rig.mmio().write(QUEUE_RESET, 1);
    // What is set up anew is checked as at the start.
    rig.reset_queue(RX);
    let nowhere = devices::virtio::queue::QueueSetup { desc_table: 0x7000_0000, ..*rig.rx.setup() };
    rig.mmio().set_queue(RX, &nowhere);
    assert!(rig.mmio().needs_reset());
    rig.start(COMMANDS | F_RING_RESET, 256);
    rig.check();
}

#[test]
fn a_reset_of_the_device_forgets_that_of_a_queue() {
    let mut rig = Rig::started(COMMANDS | F_RING_RESET);
    rig.reset_queue(RX);
    let waits = frame(300, 7);
    rig.peer.send(&waits).unwrap();
    rig.mmio().reset();
    rig.start(COMMANDS | F_RING_RESET, 256);
    rig.post(8, 2048);
    assert_same(&rig.received().0, &waits);
}

#[test]
fn chains_come_back_in_the_order_in_which_they_were_made_available() {
    let mut rig = Rig::started(LINUX | F_IN_ORDER);
    // Some of them are too long for a frame, and are used as the others are.
    let lens = [100, 90_000, 60, 90_000, 1514, 60];
    let heads: Vec<_> =
        lens.iter().map(|&len| rig.tx.add(&[Buffer::readable(CHAIN_DATA, 12 + len)]).unwrap()).collect();
    rig.kick_tx();
    wait("all to be used", || rig.tx.pending() == 6);
    let back: Vec<_> = std::iter::from_fn(|| rig.tx.reap()).map(|(head, _)| head).collect();
    assert_eq!(back, heads);

    let heads: Vec<_> = (0..60)
        .map(|at| rig.rx.add(&[Buffer::writable(CHAIN_DATA + 0x10_0000 + 2048 * at, 2048)]).unwrap())
        .collect();
    rig.kick_rx();
    [100, 5000, 60, 30000].into_iter().for_each(|len| rig.peer.send(&frame(len, 1)).unwrap());
    wait("all to be used", || rig.rx.pending() == 1 + 3 + 1 + 15);
    let back: Vec<_> = std::iter::from_fn(|| rig.rx.reap()).map(|(head, _)| head).collect();
    assert_eq!(back, heads[..20]);
}
