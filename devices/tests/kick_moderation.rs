//! A thread that is woken for each frame holds kicks off, so that frames come together.

mod rig;

use std::sync::atomic::Ordering;

use devices::virtio::mock::Buffer;
use devices::virtio::net::run_on;
use devices::virtio::queue::F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

use rig::*;

/// Fewer than the ring has entries and the socket has room for.
const FRAMES: u16 = 128;
/// On a machine that is busy otherwise, a thread may sleep for longer than counts, or get its frames together by chance.
const TRIES: usize = 50;
const IN_A_ROW: usize = 3;

/// Sends so many frames one by one, as a guest does that has one processor with the pair's thread: a kick stops it until the thread
/// sleeps, and nothing else does. How many kicks woke the thread.
fn kicks(cpu: u16) -> u64 {
    let mut rig = Rig::on(cpu);
    rig.start(PLAIN | F_EVENT_IDX, 256);
    rig.tx.want_interrupts(false);
    rig.memory.write_slice(&frame(60, 1), GuestAddress(CHAIN_DATA)).unwrap();
    for sent in 1..=FRAMES {
        rig.tx.add(&[Buffer::readable(CHAIN_DATA, 72)]).unwrap();
        if rig.tx.publish() {
            rig.mmio().kick(TX);
            while rig.tx.pending() < sent {
                std::thread::yield_now();
            }
        }
    }
    wait("all to be used", || rig.tx.pending() == FRAMES);
    (0..FRAMES).for_each(|_| assert_eq!(rig.peer.recv().unwrap().len(), 72));
    rig.counters.kicks.load(Ordering::Relaxed)
}

#[test]
fn single_frames_in_quick_succession_take_fewer_than_half_as_many_kicks() {
    let cpus = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..1024).rev().find(|&cpu| cpus.is_set(cpu)).unwrap() as u16;
    run_on(cpu).unwrap();
    let mut tries = Vec::new();
    while tries.len() < TRIES {
        tries.push(kicks(cpu));
        if tries.len() >= IN_A_ROW
            && tries.iter().rev().take(IN_A_ROW).all(|&kicks| kicks < u64::from(FRAMES) / 2)
        {
            return;
        }
    }
    panic!("{FRAMES} frames took so many kicks: {tries:?}");
}
