//! Frames of a burst that go to the host as one packet: what of the ring they take, what is counted, and what happens where the host
//! refuses.

#[path = "../../net/tests/packets/mod.rs"]
mod packets;
mod rig;
#[path = "../../net/tests/trains/mod.rs"]
mod trains;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use devices::virtio::mock::Buffer;
use net::{Backend, HEADER_LEN, Iov, Offloads, Sent, SocketBackend};
use rig::burst::Burst;
use rig::{ALL, CHAIN_DATA, MTU, Rig, wait};
use trains::train;
use vm_memory::{Bytes, GuestAddress};

/// What a host end was sent, and what it answers.
#[derive(Default)]
struct Host {
    sent: Vec<Vec<u8>>,
    /// To the next ones, the last of them first.
    errors: Vec<i32>,
    /// What it answers to packets of several frames, if it takes none.
    refuses: Option<i32>,
    /// How often it did.
    refused: usize,
}

struct End(SocketBackend, Arc<Mutex<Host>>, Offloads);

impl Backend for End {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        let mut host = self.1.lock().unwrap();
        let mut bytes = vec![0; frame.len()];
        assert_eq!(frame.read_at(0, &mut bytes), bytes.len());
        if let Some(error) = host.refuses.filter(|_| bytes[1] != 0) {
            host.refused += 1;
            return Err(io::Error::from_raw_os_error(error));
        }
        match host.errors.pop() {
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None => {
                host.sent.push(bytes);
                Ok(Sent::Gone)
            }
        }
    }

    fn recv(&mut self, _: &mut Iov<'_>) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn offloads(&self) -> Offloads {
        ALL
    }

    fn merges(&self) -> (Offloads, u16) {
        (self.2, MTU)
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

fn end(kinds: Offloads) -> (Box<dyn Backend>, Arc<Mutex<Host>>) {
    let host = Arc::<Mutex<Host>>::default();
    (Box::new(End(SocketBackend::pair().unwrap().0, Arc::clone(&host), kinds)), host)
}

fn burst() -> (Burst, Arc<Mutex<Host>>) {
    let (end, host) = end(ALL);
    (Burst::new(end), host)
}

/// The kinds of what was sent (`gso_type`), and how long each was from its Ethernet header on.
fn sent(host: &Mutex<Host>) -> Vec<(u8, usize)> {
    host.lock().unwrap().sent.drain(..).map(|frame| (frame[1], frame.len() - HEADER_LEN)).collect()
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Frames, bytes and losses of a pair, and of its frames those that went together, as how many packets; system calls.
fn counts(burst: &Burst) -> [u64; 6] {
    let counters = &*burst.counters;
    let all = [&counters.tx_frames, &counters.tx_bytes, &counters.tx_dropped];
    let [frames, bytes, dropped] = all.map(read);
    let [merged, packets, calls] = [&counters.tx_merged, &counters.tx_packets, &counters.calls].map(read);
    [frames, bytes, dropped, merged, packets, calls]
}

/// UDP over IPv4, 142 bytes each.
fn udp(count: usize) -> Vec<Vec<u8>> {
    train(false, false, count, 100).1
}

#[test]
fn a_burst_of_one_flow_is_one_write() {
    let (mut burst, host) = burst();
    burst.send(&udp(32));
    assert_eq!(sent(&host), [(5, 42 + 3200)]);
    assert_eq!(counts(&burst), [32, 32 * 142, 0, 32, 1, 1]);
    // Each kind; and what lies between two goes where it was.
    let mut frames = train(false, true, 3, 100).1;
    frames.extend(train(true, true, 3, 100).1);
    frames.push(rig::frame(60, 1));
    frames.extend(train(true, false, 3, 100).1);
    frames.extend(udp(1));
    burst.send(&frames);
    assert_eq!(sent(&host), [(1, 354), (4, 374), (0, 60), (5, 362), (0, 142)]);
}

#[test]
fn what_a_packet_has_is_what_its_frames_had() {
    let (mut burst, host) = burst();
    let frames = udp(5);
    burst.send(&frames);
    let sent = &host.lock().unwrap().sent[0];
    let payload: Vec<u8> = frames.iter().flat_map(|frame| frame[HEADER_LEN + 42..].to_vec()).collect();
    assert!(sent[HEADER_LEN + 42..] == payload);
    assert_eq!(sent[HEADER_LEN..][..14], frames[0][HEADER_LEN..][..14]);
}

#[test]
fn frames_of_two_flows_in_turn_go_one_by_one() {
    let (mut burst, host) = burst();
    let mut other = udp(20);
    other.iter_mut().for_each(|frame| frame[HEADER_LEN + 37] ^= 1);
    let frames: Vec<_> = udp(20).into_iter().zip(other).flat_map(|(a, b)| [a, b]).collect();
    burst.send(&frames);
    assert!(host.lock().unwrap().sent == frames);
    assert_eq!(counts(&burst)[3..], [0, 0, 40]);
}

#[test]
fn a_host_end_that_does_not_cut_gets_frames() {
    let (end, host) = end(Offloads::default());
    let mut burst = Burst::new(end);
    let frames = udp(8);
    burst.send(&frames);
    assert!(host.lock().unwrap().sent == frames);
}

#[test]
fn a_frame_waits_for_no_other() {
    let (mut burst, host) = burst();
    for frame in udp(4) {
        burst.send(&[frame]);
    }
    assert_eq!(sent(&host), [(0, 142); 4]);
}

#[test]
fn a_full_host_gets_the_packet_later_and_once() {
    let (mut burst, host) = burst();
    host.lock().unwrap().errors = vec![libc::EAGAIN];
    let mut frames = udp(8);
    // One of another flow is taken ahead, and goes back as well.
    frames.push(train(true, false, 1, 100).1.remove(0));
    burst.add(&frames);
    burst.pair.process();
    assert!(sent(&host).is_empty() && burst.tx.reap().is_none());
    assert!(!burst.pair.has_work(), "it waits for the host");
    burst.pair.wake();
    burst.pair.process();
    assert_eq!(sent(&host), [(5, 842), (0, 162)]);
    assert_eq!(std::iter::from_fn(|| burst.tx.reap()).count(), 9);
    assert_eq!(counts(&burst), [9, 8 * 142 + 162, 0, 8, 1, 3]);
}

#[test]
fn a_packet_that_is_lost_is_all_its_frames() {
    let (mut burst, host) = burst();
    host.lock().unwrap().errors = vec![libc::ENOBUFS, libc::EIO];
    let mut frames = udp(8);
    frames.extend(train(true, false, 3, 100).1);
    frames.extend(udp(2));
    burst.send(&frames);
    assert_eq!(sent(&host), [(5, 242)]);
    assert_eq!(counts(&burst), [2, 2 * 142, 11, 2, 1, 3]);
    assert_eq!(read(&burst.counters.tx_host_down), 8);
}

#[test]
fn a_host_that_refuses_a_kind_gets_its_frames() {
    // A kernel that does not know them; a tap that takes few buffers at once.
    for error in [libc::EINVAL, libc::EMSGSIZE] {
        let (mut burst, host) = burst();
        host.lock().unwrap().refuses = Some(error);
        let mut frames = udp(4);
        frames.extend(train(true, true, 1, 100).1);
        burst.send(&frames);
        burst.send(&frames);
        assert!(host.lock().unwrap().sent == [&frames[..], &frames].concat());
        // It was tried once.
        assert_eq!(counts(&burst)[2..], [0, 0, 0, 11]);
        // The other kinds are as they were.
        host.lock().unwrap().refuses = None;
        sent(&host);
        burst.send(&udp(2));
        burst.send(&train(false, true, 2, 100).1);
        assert_eq!(sent(&host), [(0, 142), (0, 142), (1, 254)]);
    }
}

#[test]
fn each_kind_that_is_refused_is_tried_once_and_no_other_for_it() {
    let (mut burst, host) = burst();
    let kinds = [(false, true), (true, true), (false, false)].map(|(v6, tcp)| train(v6, tcp, 3, 100).1);
    host.lock().unwrap().refuses = Some(libc::EINVAL);
    for round in 0..3 {
        for (tried, frames) in (1..).zip(&kinds) {
            burst.send(frames);
            assert!(host.lock().unwrap().sent.drain(..).eq(frames.iter().cloned()));
            assert_eq!(host.lock().unwrap().refused, if round == 0 { tried } else { 3 });
        }
    }
}

#[test]
fn a_rate_counts_each_frame_of_a_packet() {
    // Five frames at once, or 5000 bytes and what is begun.
    for (limits, most) in [("pps=1k,burst=5", 5), ("rate=8M,burst=5", 36)] {
        let (end, host) = end(ALL);
        let mut rig = Rig::with(end, SocketBackend::pair().unwrap().1);
        rig.start(rig::PLAIN, 256);
        rig.handle.set_rate(&limits.parse().unwrap()).unwrap();
        for (number, frame) in udp(100).iter().enumerate() {
            let at = CHAIN_DATA + 256 * number as u64;
            rig.memory.write_slice(frame, GuestAddress(at)).unwrap();
            rig.tx.add(&[Buffer::readable(at, frame.len() as u32)]).unwrap();
        }
        rig.kick_tx();
        wait("the frames", || rig.tx.pending() == 100);
        let frames: Vec<_> = sent(&host).iter().map(|(_, len)| (len - 42) / 100).collect();
        assert!(
            frames.iter().sum::<usize>() == 100 && frames.iter().all(|count| *count <= most),
            "{frames:?}"
        );
        assert!(read(&rig.counters.tx_rate_waits) > 0);
    }
}

#[test]
fn a_broken_chain_behind_others_ends_the_pair_after_them() {
    // A buffer outside guest memory, alone and behind one that is a frame of the same flow.
    let outside = Buffer::readable(1 << 40, 142);
    for behind in [false, true] {
        let (end, host) = end(ALL);
        let mut burst = Burst::new(end);
        let frames = udp(5);
        burst.add(&frames[..4]);
        if behind {
            let whole = burst.place(&frames[4]);
            burst.tx.add(&[whole, outside]).unwrap();
        } else {
            burst.tx.add(&[outside]).unwrap();
        }
        burst.tx.publish();
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| burst.pair.process()));
        assert!(told.is_err(), "the driver is told");
        assert_eq!(sent(&host), [(5, 442)]);
    }
}

#[test]
fn a_wire_that_a_nic_moves_to_gets_what_it_takes() {
    let (first, host) = end(Offloads::default());
    let mut rig = Rig::with(first, SocketBackend::pair().unwrap().1);
    rig.start(rig::PLAIN, 256);
    let burst = |rig: &mut Rig, host: &Mutex<Host>| {
        for (number, frame) in udp(4).iter().enumerate() {
            let at = CHAIN_DATA + 256 * number as u64;
            rig.memory.write_slice(frame, GuestAddress(at)).unwrap();
            rig.tx.add(&[Buffer::readable(at, frame.len() as u32)]).unwrap();
        }
        rig.kick_tx();
        wait("the frames", || rig.tx.pending() == 4);
        assert_eq!(rig.reap_tx(), 4);
        sent(host)
    };
    assert_eq!(burst(&mut rig, &host), [(0, 142); 4]);
    let (second, host) = end(ALL);
    rig.handle.swap(vec![second], Vec::new()).unwrap();
    assert_eq!(burst(&mut rig, &host), [(5, 442)]);
    let (third, host) = end(Offloads { uso: false, ..ALL });
    rig.handle.swap(vec![third], Vec::new()).unwrap();
    assert_eq!(burst(&mut rig, &host), [(0, 142); 4]);
}
