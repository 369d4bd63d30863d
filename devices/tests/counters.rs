//! Why a frame was lost is counted under the right word.

mod rig;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use net::{Backend, Iov, Offloads, Sent, SocketBackend};

use rig::*;

/// A host end that refuses every frame, each with the next of these errors.
struct Refuses {
    socket: SocketBackend,
    errors: Vec<i32>,
}

impl Backend for Refuses {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    fn send(&mut self, _: &Iov<'_>) -> io::Result<Sent> {
        Err(io::Error::from_raw_os_error(self.errors.remove(0)))
    }

    fn offloads(&self) -> Offloads {
        self.socket.offloads()
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.socket.set_offloads(accepted)
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn what_a_link_that_is_down_refuses_is_told_from_other_refusals() {
    let (socket, peer) = SocketBackend::pair().unwrap();
    let errors = vec![libc::EIO, libc::ENOBUFS, libc::ENETDOWN, libc::EBADFD];
    let mut rig = Rig::with(Box::new(Refuses { socket: socket.with_offloads(ALL), errors }), peer);
    rig.start(PLAIN, 256);
    for seed in 0..4 {
        assert!(rig.send(&frame(60, seed), &[], false));
    }
    wait("the losses", || rig.dropped() == (4, 0));
    assert_eq!((read(&rig.counters.tx_host_down), read(&rig.counters.tx_link_down)), (2, 1));
    assert_eq!((read(&rig.counters.tx_too_long), read(&rig.counters.tx_frames)), (0, 0));
}

#[test]
fn a_frame_for_which_no_room_comes_is_told_from_one_that_never_fits() {
    let mut rig = Rig::started(LINUX);
    let counts = |rig: &Rig| {
        let counters = &rig.counters;
        (read(&counters.rx_no_buffer), read(&counters.rx_too_long), read(&counters.rx_unread))
    };
    rig.post(4, 2048);
    rig.peer.send(&frame(20000, 1)).unwrap();
    wait("the loss", || rig.dropped() == (0, 1));
    assert_eq!(counts(&rig), (1, 0, 0));
    // All that the ring can hold.
    rig.start(LINUX, 4);
    rig.post(4, 2048);
    rig.peer.send(&frame(20000, 2)).unwrap();
    wait("the loss", || rig.dropped() == (0, 2));
    assert_eq!(counts(&rig), (1, 1, 0));
}

#[test]
fn each_wait_is_a_system_call() {
    let mut rig = Rig::started(PLAIN);
    rig.tx.want_interrupts(false);
    let before = read(&rig.counters.calls);
    for turn in 1..=20 {
        assert!(rig.send(&frame(60, turn), &[], false));
        rig.peer.recv().unwrap();
        wait("the frame's end", || rig.tx.pending() > 0);
        rig.reap_tx();
        // It sends, and asks for events then, once at least.
        wait("its wait", || read(&rig.counters.calls) >= before + 2 * turn);
    }
}

#[test]
fn the_bytes_of_frames_are_counted_without_their_headers() {
    let mut rig = Rig::started(PLAIN);
    rig.post(16, 2048);
    for (turn, len) in (1..).zip([60, 61, 1000]) {
        rig.peer.send(&frame(len, 1)).unwrap();
        rig.received();
        assert!(rig.send(&frame(len + 7, 1), &[], false));
        rig.peer.recv().unwrap();
        wait("both", || read(&rig.counters.rx_frames) == turn && read(&rig.counters.tx_frames) == turn);
    }
    wait("the bytes", || read(&rig.counters.tx_bytes) == 1121 + 21);
    assert_eq!(read(&rig.counters.rx_bytes), 1121);
}
