//! Checksums and segments in software, against those that the kernel makes of the same frames: what is forwarded to a tap whose
//! reader accepts no offloads must be whole.

mod frames;
mod namespace;
mod packets;

use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;

use namespace::{in_namespace, run, shell, skip};
use net::{Backend, Offloads, SoftOffload, Tap};
use packets::{GUEST, packets};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true, uso: true };
const NONE: Offloads = Offloads { csum: false, tso4: false, tso6: false, uso: false };
const CSUM: Offloads = Offloads { csum: true, ..NONE };

/// A tap that is said to do less than it can.
struct Less {
    tap: Tap,
    can: Offloads,
}

impl Backend for Less {
    fn fd(&self) -> BorrowedFd<'_> {
        self.tap.fd()
    }

    fn offloads(&self) -> Offloads {
        self.can
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.tap.set_offloads(accepted)
    }
}

/// A bridge with a tap that the kernel does all the work of, some that it does less of, and one whose reader accepts only whole
/// frames.
struct Bridge {
    all: Tap,
    less: Vec<(Offloads, Box<dyn Backend>)>,
    reader: Tap,
}

impl Bridge {
    fn new(less: &[Offloads]) -> Self {
        run("ip link add br0 type bridge mcast_snooping 0");
        // A firewall would have the bridge drop and trim what is no good packet.
        shell("for it in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $it ] || echo 0 >$it; done");
        run("ip link set br0 up");
        let mut taps = 0;
        let mut tap = || {
            let tap = Tap::open(Some(&format!("tap{taps}").parse().unwrap())).unwrap();
            run(&format!("ip link set tap{taps} mtu 65521 txqueuelen 10000 master br0 up"));
            taps += 1;
            tap
        };
        let (all, reader) = (tap(), tap());
        let less = less.iter().map(|can| {
            let wire = Less { tap: tap(), can: *can };
            (*can, SoftOffload::wrap(Box::new(wire), ALL))
        });
        Self { less: less.collect(), all, reader }
    }

    /// What comes out of the bridge when a frame goes in by this port, of which 0 does all: nothing where it is refused.
    fn pass(&mut self, port: usize, frame: &[u8]) -> Vec<Vec<u8>> {
        let backend = if port == 0 { &mut self.all } else { &mut *self.less[port - 1].1 };
        let refused = frames::send(backend, frame).is_err();
        // What comes last; its type is one for experiments.
        let end = [&[0; 12][..], &[0xff; 6], &GUEST, &[0x88, 0xb5], &[0; 46]].concat();
        frames::send(backend, &end).unwrap();
        let mut out = vec![];
        loop {
            let frame = frames::recv_where(&mut self.reader, |frame| frame[18..24] == GUEST);
            if frame == end {
                break;
            }
            out.push(frame);
        }
        assert!(!refused || out.is_empty(), "refused, and forwarded");
        out
    }
}

/// Runs a test against the kernel, or says that it skips: kernels before this one take fewer datagrams and more lies.
fn against_kernel(name: &'static str, test: impl FnOnce() + Send + 'static) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|byte: char| !byte.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    if [numbers.next(), numbers.next()] < [Some(6), Some(12)] {
        return skip(name, "the kernel is older than 6.12");
    }
    in_namespace(name, test);
}

fn runner() -> TestRunner {
    TestRunner::new(Config { failure_persistence: None, ..Config::default() })
}

#[test]
fn segments_and_checksums_are_the_kernels() {
    against_kernel("segments_and_checksums_are_the_kernels", || {
        let cans = [NONE, CSUM, Offloads { tso4: true, ..CSUM }, Offloads { tso6: true, uso: true, ..CSUM }];
        let bridge = RefCell::new(Bridge::new(&cans));
        let many = (packets(9..64_000), any::<bool>());
        let tested = runner().run(&many, |((packet, size), whole)| {
            let mut bridge = bridge.borrow_mut();
            let frame = if whole { packet.whole(size) } else { packet.partial() };
            let same = |frame| packet.canonical(frame);
            let kernels: Vec<_> = bridge.pass(0, &frame).into_iter().map(same).collect();
            prop_assert_eq!(
                kernels.len(),
                if whole { packet.payload.len().div_ceil(size.into()) } else { 1 }
            );
            for port in 1..=cans.len() {
                let ours: Vec<_> = bridge.pass(port, &frame).into_iter().map(same).collect();
                prop_assert!(ours == kernels, "{:?}: {:?} and {:?}", cans[port - 1], ours, kernels);
            }
            Ok(())
        });
        tested.unwrap();
    });
}

/// A lie about a packet: which field, and what it says.
#[derive(Clone, Copy, Debug)]
enum Lie {
    CsumStart(u16),
    CsumOffset(u16),
    Kind(u8),
    Size(u16),
    /// A byte of the headers, behind the Ethernet addresses.
    Byte(usize, u8),
    /// Bytes of the frame that are not there, or more than its headers say.
    Cut(usize),
    Pad(usize),
}

fn lies() -> impl Strategy<Value = Lie> {
    prop_oneof![
        (0..120u16).prop_map(Lie::CsumStart),
        (0..30u16).prop_map(Lie::CsumOffset),
        proptest::sample::select(vec![0, 1, 4, 5, 0x81, 0x84, 0x85]).prop_map(Lie::Kind),
        (0..70u16).prop_map(Lie::Size),
        any::<u16>().prop_map(Lie::Size),
        (0..100usize, any::<u8>()).prop_map(|(at, byte)| Lie::Byte(at, byte)),
        (1..1000usize).prop_map(Lie::Cut),
        (1..1000usize).prop_map(Lie::Pad),
    ]
}

#[test]
fn what_the_kernel_makes_of_a_lie_is_made_of_it() {
    against_kernel("what_the_kernel_makes_of_a_lie_is_made_of_it", || {
        let cans = [NONE, CSUM];
        let bridge = RefCell::new(Bridge::new(&cans));
        let many = (packets(9..3000), vec(lies(), 1..3));
        let tested = runner().run(&many, |((packet, size), lies)| {
            let mut bridge = bridge.borrow_mut();
            let mut frame = packet.whole(size);
            frame[2..4].fill(0);
            for lie in lies {
                match lie {
                    Lie::CsumStart(at) => frame[6..8].copy_from_slice(&at.to_le_bytes()),
                    Lie::CsumOffset(at) => frame[8..10].copy_from_slice(&at.to_le_bytes()),
                    Lie::Kind(kind) => frame[1] = kind,
                    Lie::Size(size) => frame[4..6].copy_from_slice(&size.to_le_bytes()),
                    Lie::Byte(at, byte) => {
                        let at = 24 + at % (packet.headers_len() - 12);
                        if let Some(to) = frame.get_mut(at) {
                            *to = byte;
                        }
                    }
                    Lie::Cut(len) => frame.truncate(frame.len().saturating_sub(len).max(26)),
                    Lie::Pad(len) => frame.resize(frame.len() + len, 0xaa),
                }
            }
            let field = |at: usize| u16::from_le_bytes([frame[at], frame[at + 1]]);
            let cut = frame[1] != 0;
            // What ours alone loses: segments that are too small, and a single one whose headers lie.
            let may_lose = |kernels: &[Vec<u8>]| cut && (field(4) < 8 || kernels.len() == 1);
            // And what the kernel's alone: a single one that is larger with its TCP options.
            let may_pass = |ours: &[Vec<u8>]| cut && ours.len() == 1;
            let same = |frame| packet.canonical(frame);
            let kernels: Vec<_> = bridge.pass(0, &frame).into_iter().map(same).collect();
            for port in 1..=cans.len() {
                let ours: Vec<_> = bridge.pass(port, &frame).into_iter().map(same).collect();
                let right = ours == kernels
                    || ours.is_empty() && may_lose(&kernels)
                    || kernels.is_empty() && may_pass(&ours);
                let head = &frame[..frame.len().min(100)];
                prop_assert!(right, "{:?}: {ours:?} and {kernels:?} of {head:?}", cans[port - 1]);
            }
            Ok(())
        });
        tested.unwrap();
    });
}
