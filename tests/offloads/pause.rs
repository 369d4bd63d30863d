//! A NIC that is paused under traffic, between two real stacks, whoever carries its frames.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use devices::virtio::net::PairState;

use super::{GUEST, HOST, World};
use crate::driver::{F_CSUM, F_GUEST_CSUM, LINUX};

const PAUSES: u32 = 200;
/// Datagrams on the way at once: fewer than any queue holds, so that a lost one was not lost for want of room.
const WINDOW: u32 = 32;
const PATIENCE: Duration = Duration::from_secs(10);

/// Datagrams go from the host to the guest and back while the NIC is paused again and again: each comes back once.
pub(crate) fn each_frame_passes_once(mut world: World) {
    world.driver.start(LINUX | F_CSUM | F_GUEST_CSUM);
    let pauses = Arc::<AtomicU32>::default();
    let bind = |netns: &harness::netns::Netns, to: &'static str| {
        let socket =
            netns.spawn(move || UdpSocket::bind((to, 7000))).join().expect("no panic").expect("a port");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket
    };
    let (host, guest) = (bind(&world.host, HOST[0]), bind(&world.guest, GUEST));
    let echo = std::thread::spawn(move || {
        let mut datagram = [0; 64];
        // Until the empty one.
        while let Ok((len @ 1.., from)) = guest.recv_from(&mut datagram) {
            guest.send_to(&datagram[..len], from).expect("it is sent back");
        }
    });
    let counted = Arc::clone(&pauses);
    let client = std::thread::spawn(move || {
        host.connect((GUEST, 7000)).expect("a route");
        let mut first = 0;
        while counted.load(Ordering::Relaxed) < PAUSES {
            // Alone, the first one makes the neighbours known.
            let count = if first == 0 { 1 } else { WINDOW };
            for at in first..first + count {
                host.send(&at.to_le_bytes()).expect("it is sent");
            }
            let mut back: Vec<_> = (0..count)
                .map(|_| {
                    let mut number = [0; 4];
                    host.recv(&mut number).expect("a frame is lost");
                    u32::from_le_bytes(number)
                })
                .collect();
            back.sort_unstable();
            assert!(back.into_iter().eq(first..first + count), "a frame is there twice");
            first += count;
        }
        host.send(&[]).expect("it is sent");
        first
    });
    let handle = world.handle.clone();
    let counted = Arc::clone(&pauses);
    let pauser = std::thread::spawn(move || {
        for at in 0..PAUSES {
            let states = handle.pause().expect("it is paused");
            std::thread::sleep(Duration::from_micros(u64::from(at * 37 % 500)));
            assert_eq!(handle.pause().expect("it is paused"), states, "positions move while it is paused");
            assert!(matches!(states[..], [PairState::Active(_)]), "{states:?}");
            handle.resume().expect("it goes on");
            std::thread::sleep(Duration::from_micros(u64::from(at * 61 % 3000)));
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    world.driver.pump("the datagrams", || client.is_finished() && echo.is_finished() && pauser.is_finished());
    pauser.join().expect("no panic");
    assert!(client.join().expect("no panic") > WINDOW);
    echo.join().expect("no panic");
}

#[test]
fn each_frame_passes_once_however_often_the_nic_is_paused() {
    each_frame_passes_once(harness::need!(World::new()));
}
