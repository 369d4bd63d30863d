//! A driver that polls, and answers at once: its answer is looked for, and takes no kick.

mod rig;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use devices::virtio::mock::Buffer;
use devices::virtio::queue::F_EVENT_IDX;
use net::HEADER_LEN;
use vm_memory::{Bytes, GuestAddress};

use rig::*;

const TRIPS: u64 = 200;
/// On a machine that is busy otherwise, the two threads may seldom run at once.
const TRIES: usize = 50;
const LEN: u32 = HEADER_LEN as u32 + 60;

/// Has the host ask so often, one question after the other, and the driver answer each of them. How many answers took a kick.
fn kicks(features: u64, wants_interrupts: bool) -> u64 {
    let mut rig = Rig::started(features);
    rig.rx.want_interrupts(wants_interrupts);
    rig.tx.want_interrupts(false);
    rig.post(256, 2048);
    rig.memory.write_slice(&frame(60, 1), GuestAddress(CHAIN_DATA)).unwrap();
    let (over, peer) = (AtomicBool::new(false), rig.peer.socket().try_clone().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let question = frame(60, 2);
            let mut answer = [0; 128];
            for _ in 0..TRIPS {
                std::thread::sleep(Duration::from_micros(100));
                peer.send(&question).unwrap();
                assert_eq!(peer.recv(&mut answer).unwrap(), LEN as usize);
            }
            over.store(true, Ordering::Relaxed);
        });
        let mut kicks = 0;
        while !over.load(Ordering::Relaxed) {
            if rig.rx.reap().is_some() {
                if wants_interrupts {
                    rig.rx.want_interrupts(true);
                }
                while rig.tx.reap().is_some() {}
                rig.tx.add(&[Buffer::readable(CHAIN_DATA, LEN)]).unwrap();
                if rig.tx.publish() {
                    rig.mmio().kick(TX);
                    kicks += 1;
                }
            }
            std::hint::spin_loop();
        }
        kicks
    })
}

#[test]
fn an_answer_of_a_driver_that_polls_takes_no_kick() {
    for features in [PLAIN, PLAIN | F_EVENT_IDX] {
        let mut tries = Vec::new();
        while tries.iter().all(|&kicks| kicks > TRIPS / 2) {
            assert!(tries.len() < TRIES, "{TRIPS} answers took so many kicks: {tries:?}");
            tries.push(kicks(features, false));
        }
    }
}

#[test]
fn a_driver_that_waits_for_interrupts_is_asked_for_kicks() {
    for features in [PLAIN, PLAIN | F_EVENT_IDX] {
        // But for the few times that it is looked for in vain, or more of them happen to be there.
        let tries: Vec<_> = (0..5).map(|_| kicks(features, true)).collect();
        assert!(tries.iter().any(|&kicks| kicks > TRIPS / 2), "{TRIPS} answers took so few kicks: {tries:?}");
    }
}
