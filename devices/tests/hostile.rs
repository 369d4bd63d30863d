//! Drivers that lie: the pair stops, DEVICE_NEEDS_RESET is set, and a reset brings the NIC back.

mod rig;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use devices::BusDevice;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, QueueSetup};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use rig::*;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const TABLE: u64 = CHAIN_DATA + 0x10_0000;
const END: u64 = MEMORY as u64;
const INDIRECT_ONLY: u64 = PLAIN | F_INDIRECT_DESC;

/// Lies on queue `index` of a running NIC, and expects it to stop, to say so once, and to work after a reset.
#[track_caller]
fn lie(what: &str, features: u64, index: u32, lie: impl Fn(&mut MockRing)) {
    let mut rig = Rig::started(features);
    // An honest frame each way, which leaves both rings empty.
    assert!(rig.send(&frame(60, 0), &[], false));
    rig.peer.recv().unwrap();
    rig.post(1, 2048);
    rig.peer.send(&frame(60, 0)).unwrap();
    rig.received();
    let _ = rig.irq.read();
    rig.mmio().write(0x64, 3);
    // Only a configuration change interrupts from here on.
    rig.rx.want_interrupts(false);
    rig.tx.want_interrupts(false);
    let generation = rig.mmio().read(0xfc);
    let ring = if index == RX { &mut rig.rx } else { &mut rig.tx };
    lie(ring);
    rig.mmio().kick(index);
    // A receive ring is read when a frame wants it.
    rig.peer.send(&frame(60, 1)).unwrap();
    wait(what, || rig.mmio().needs_reset());
    wait("the interrupt", || rig.irq.read().is_ok());
    assert_eq!(rig.mmio().read(0x60) & 2, 2, "{what}: a configuration change");
    assert_ne!(rig.mmio().read(0xfc), generation, "{what}: another generation");

    // The frame that nobody took is still there.
    rig.start(features, 256);
    rig.post(1, 2048);
    let _ = rig.received();
    rig.check();
}

/// A chain of one descriptor, which then becomes another.
fn one(ring: &mut MockRing, buffer: Buffer, flags: u16, next: u16) {
    let head = ring.add(&[buffer]).unwrap();
    ring.lie_descriptor(head, buffer, flags, next);
    ring.publish();
}

/// Keeps the warnings of one lie, which no other test tells.
struct Broken;

static BROKEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl log::Log for Broken {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        if record.level() <= log::Level::Warn && text.contains("descriptor 4711 ") {
            BROKEN.lock().unwrap().push(text);
        }
    }
    fn flush(&self) {}
}

#[test]
fn a_driver_that_breaks_its_ring_again_and_again_is_named_once() {
    log::set_logger(&Broken).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let mut rig = Rig::started(PLAIN);
    for _ in 0..3 {
        rig.tx.lie_available(4711);
        rig.tx.publish();
        rig.mmio().kick(TX);
        wait("the end of the pair", || rig.mmio().needs_reset());
        rig.start(PLAIN, 256);
    }
    let broken = BROKEN.lock().unwrap();
    assert!(matches!(&broken[..], [one] if one.contains("the driver broke its ring")), "{broken:?}");
}

#[test]
fn chains_that_lie_stop_the_pair() {
    for (index, flags) in [(RX, WRITE), (TX, 0)] {
        let good = Buffer { addr: CHAIN_DATA, len: 2048, writable: index == RX };
        let at = |addr, len| Buffer { addr, len, ..good };
        lie("a loop", PLAIN, index, |ring| {
            let head = ring.add(&[good]).unwrap();
            ring.lie_descriptor(head, good, flags | NEXT, head);
            ring.publish();
        });
        lie("a next past the table", PLAIN, index, |ring| one(ring, good, flags | NEXT, 256));
        lie("a buffer past memory", PLAIN, index, |ring| one(ring, at(END - 100, 2048), flags, 0));
        lie("a length past memory", PLAIN, index, |ring| one(ring, at(CHAIN_DATA, u32::MAX), flags, 0));
        lie("an address that wraps", PLAIN, index, |ring| one(ring, at(u64::MAX - 100, 2048), flags, 0));
        lie("the wrong direction", PLAIN, index, |ring| one(ring, good, flags ^ WRITE, 0));
        lie("less than a header", PLAIN, index, |ring| one(ring, at(CHAIN_DATA, 11), flags, 0));
        lie("nothing at all", PLAIN, index, |ring| one(ring, at(CHAIN_DATA, 0), flags, 0));
        lie("an indirect table not negotiated", PLAIN, index, |ring| one(ring, at(TABLE, 16), INDIRECT, 0));
        for len in [0, 17, u32::MAX - 15] {
            lie("an indirect table of odd length", INDIRECT_ONLY, index, |ring| {
                one(ring, at(TABLE, len), INDIRECT, 0)
            });
        }
        lie("an indirect table past memory", INDIRECT_ONLY, index, |ring| {
            one(ring, at(END, 16), INDIRECT, 0)
        });
        lie("an indirect table that goes on", INDIRECT_ONLY, index, |ring| {
            one(ring, at(TABLE, 16), INDIRECT | NEXT, 1)
        });
        lie("more buffers than a frame can have", INDIRECT_ONLY, index, |ring| {
            ring.add_indirect(TABLE, &[Buffer { len: 1, ..good }; 1025]).unwrap();
            ring.publish();
        });
    }
}

#[test]
fn available_rings_that_lie_stop_the_pair() {
    for features in [PLAIN, PLAIN | F_EVENT_IDX] {
        lie("a head past the table", features, TX, |ring| {
            ring.lie_available(256);
            ring.publish();
        });
        lie("an index that jumps", features, TX, |ring| ring.lie_avail_idx(1000));
        lie("an index that goes back", features, TX, |ring| ring.lie_avail_idx(0));
        lie("an index that jumps, to receive", features, RX, |ring| ring.lie_avail_idx(5000));
    }
}

#[test]
fn setups_that_lie_never_start() {
    let mut rig = Rig::new();
    let (rx, tx) = (*rig.rx.setup(), *rig.tx.setup());
    for size in [0, 3, 512, 0xffff] {
        let mmio = rig.mmio();
        assert!(mmio.negotiate(PLAIN));
        assert!(!mmio.set_queue(RX, &QueueSetup { size, ..rx }), "a queue of {size} is ready");
    }
    for bad in [
        QueueSetup { size: 256, ..Default::default() },
        QueueSetup { desc_table: rx.desc_table + 1, ..rx },
        QueueSetup { avail_ring: rx.avail_ring + 1, ..rx },
        QueueSetup { used_ring: rx.used_ring + 2, ..rx },
        QueueSetup { desc_table: END, ..rx },
        QueueSetup { used_ring: u64::MAX - 3, ..rx },
    ] {
        let _ = rig.irq.read();
        let mmio = rig.mmio();
        assert!(mmio.negotiate(PLAIN) && mmio.set_queue(RX, &bad) && mmio.set_queue(TX, &tx));
        mmio.start();
        assert!(mmio.needs_reset(), "{bad:x?}");
        assert_eq!(mmio.read(0x60), 2);
        rig.irq.read().unwrap();
        mmio.kick(RX);
    }
    rig.start(PLAIN, 256);
    rig.check();
}

/// Words that are likelier to mean something to a ring than any others.
fn word() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..8, 250u16..260, any::<u16>(), Just(NEXT), Just(WRITE), Just(INDIRECT)]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0x1_0000u64..0x1_2000, 0..END + 0x1000, any::<u64>(), Just(END - 1)]
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let len = prop_oneof![0u32..64, 1000u32..3000, any::<u32>(), Just(160)];
    (address(), len, 0u16..8, word())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Whatever is in the rings: no panic, an end in bounded time, and a NIC that works after a reset.
    #[test]
    fn rings_of_any_content_do_no_harm(
        features in prop_oneof![Just(PLAIN), Just(INDIRECT_ONLY), Just(LINUX)],
        descriptors in proptest::collection::vec(descriptor(), 1..40),
        heads in proptest::collection::vec(word(), 1..40),
        indices in (word(), word()),
    ) {
        let mut rig = Rig::started(features);
        for ring in [&mut rig.rx, &mut rig.tx] {
            for (index, (addr, len, flags, next)) in descriptors.iter().enumerate() {
                ring.lie_descriptor(index as u16, Buffer::readable(*addr, *len), *flags, *next);
            }
            for head in &heads {
                ring.lie_available(*head);
            }
            ring.publish();
        }
        for _ in 0..4 {
            rig.peer.send(&frame(1000, 1)).unwrap();
            rig.mmio().kick(RX);
            rig.mmio().kick(TX);
        }
        rig.rx.lie_avail_idx(indices.0);
        rig.tx.lie_avail_idx(indices.1);
        rig.mmio().kick(RX);
        rig.mmio().kick(TX);
        recovers(&mut rig)?;
    }

    /// Whatever is written to the registers: no panic, an end in bounded time, and a NIC that works after a reset.
    #[test]
    fn registers_take_anything(
        accesses in proptest::collection::vec(access(), 1..200),
        prepared: bool,
    ) {
        let mut rig = Rig::new();
        if prepared {
            rig.start(LINUX, 256);
        }
        for (offset, value, len, read) in accesses {
            let mut data = value.to_le_bytes();
            if read {
                rig.device.read(offset, &mut data[..len]);
            } else {
                rig.device.write(offset, &data[..len]);
            }
        }
        recovers(&mut rig)?;
    }
}

/// One access to a register, mostly one that exists, of mostly the right width.
fn access() -> impl Strategy<Value = (u64, u64, usize, bool)> {
    let offset = prop_oneof![
        4 => (0u64..0x42).prop_map(|register| 4 * register),
        2 => Just(0x70u64),
        1 => any::<u64>(),
    ];
    let value =
        prop_oneof![0u64..16, (0u32..64).prop_map(|bit| 1 << bit), any::<u64>(), 0x1_0000u64..0x3_0000];
    let len = prop_oneof![8 => Just(4usize), 1 => 0usize..=8];
    (offset, value, len, any::<bool>())
}

fn recovers(rig: &mut Rig) -> Result<(), TestCaseError> {
    let began = Instant::now();
    MockMmio::new(&rig.device).reset();
    prop_assert!(began.elapsed() < Duration::from_secs(5), "the reset took too long");
    // What was left on the wire is for nobody.
    rig.peer.socket().set_nonblocking(true).unwrap();
    while rig.peer.recv().is_ok() {}
    rig.peer.socket().set_nonblocking(false).unwrap();
    rig.memory.write_slice(&[0; 0x2_0000], GuestAddress(0x1_0000)).unwrap();
    rig.start(PLAIN, 256);
    let sent = frame(77, 7);
    prop_assert!(rig.send(&sent, &[], false));
    prop_assert_eq!(rig.peer.recv().unwrap(), sent);
    rig.post(16, 2048);
    let last = frame(99, 9);
    rig.peer.send(&last).unwrap();
    // Frames of before may still wait on the host; this one is the last.
    while rig.received().0[12..] != last[12..] {}
    Ok(())
}
