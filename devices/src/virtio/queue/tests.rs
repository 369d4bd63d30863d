//! The queue against the mock driver, and against one that lies.

use std::cell::RefCell;
use std::sync::mpsc::channel;

use net::IovBuffer;
use proptest::prelude::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;

use super::chain::MAX_TABLE;
use super::*;
use crate::virtio::mock::{Buffer, MockRing};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const SIZE: u16 = 8;
const RING: u64 = 0x1000;
const TABLE: u64 = 0x8000;
const DATA: u64 = 0x9000;
const END: u64 = 0x10000;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), END as usize)]).unwrap()
}

fn ring(features: u64) -> (GuestMemoryMmap, MockRing, VirtQueue) {
    let memory = memory();
    let ring = MockRing::new(&memory, RING, SIZE, features & F_EVENT_IDX != 0);
    let queue = VirtQueue::new(ring.setup(), features, &memory).unwrap();
    (memory, ring, queue)
}

/// Pops the only chain, which is wrong, and says how.
fn wrong(features: u64, lie: impl FnOnce(&mut MockRing)) -> Error {
    let (memory, mut driver, mut queue) = ring(features);
    lie(&mut driver);
    driver.publish();
    let chain = match queue.pop(&queue.map(&memory).unwrap()) {
        Ok(chain) => chain.unwrap(),
        Err(error) => return error,
    };
    queue.gather(&queue.map(&memory).unwrap(), chain, |_, _| Ok(())).unwrap_err()
}

proptest! {
    /// §2.7.7.2 in words: the interrupt is due if the index that the driver named was passed.
    #[test]
    fn need_event_is_whether_the_event_was_passed(old: u16, added in 0u16..300, near in 0u16..600) {
        let event = old.wrapping_sub(150).wrapping_add(near);
        let passed = (0..added).any(|step| old.wrapping_add(step) == event);
        prop_assert_eq!(need_event(event, old.wrapping_add(added), old), passed);
    }
}

#[test]
fn chains_come_and_go_over_the_wrap_of_the_indices() {
    for features in [0, F_EVENT_IDX] {
        let (memory, mut driver, mut queue) = ring(features);
        driver.start_at(65530);
        queue.set_state(QueueState { next_avail: 65530, next_used: 65530 });
        assert!(queue.pop(&queue.map(&memory).unwrap()).unwrap().is_none());
        for round in 0..20u32 {
            let head = driver.add(&[Buffer::readable(DATA, 4), Buffer::readable(DATA + 8, 8)]).unwrap();
            assert!(driver.publish(), "the ring was empty");
            let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
            assert_eq!(chain.head, head);
            let mut room = IovBuffer::new();
            let mut iov = room.start();
            assert_eq!(queue.readable(&queue.map(&memory).unwrap(), chain, &mut iov).unwrap(), 2);
            assert_eq!((iov.len(), iov.buffers()), (12, 2));
            queue.push_used(&queue.map(&memory).unwrap(), head, round);
            assert_eq!(driver.pending(), 0, "written, not shown");
            driver.want_interrupts(true);
            assert!(queue.publish(&queue.map(&memory).unwrap()).unwrap());
            assert!(!queue.publish(&queue.map(&memory).unwrap()).unwrap(), "nothing new");
            assert_eq!(driver.reap(), Some((head, round)));
            assert!(queue.pop(&queue.map(&memory).unwrap()).unwrap().is_none());
        }
        assert_eq!(queue.state(), QueueState { next_avail: 14, next_used: 14 });
    }
}

#[test]
fn empty_means_that_the_driver_kicks_and_busy_that_it_need_not() {
    for features in [0, F_EVENT_IDX] {
        let (memory, mut driver, mut queue) = ring(features);
        assert!(queue.pop(&queue.map(&memory).unwrap()).unwrap().is_none());
        driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
        assert!(driver.publish(), "the queue said that it is empty");
        queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
        driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
        assert!(!driver.publish(), "the queue is being worked on");
        queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
        queue.undo_pop();
        driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
        assert!(!driver.publish(), "there is a chain that waits for the host");
        assert_eq!(
            queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap().head,
            1,
            "what was put back comes first"
        );
        queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
        assert!(queue.pop(&queue.map(&memory).unwrap()).unwrap().is_none());
        driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
        assert!(driver.publish(), "empty once more");
    }
}

#[test]
fn an_interrupt_comes_when_the_driver_wants_it() {
    for features in [0, F_EVENT_IDX] {
        let (memory, mut driver, mut queue) = ring(features);
        for wanted in [true, false, true] {
            let head = driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
            driver.publish();
            driver.want_interrupts(wanted);
            queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
            queue.push_used(&queue.map(&memory).unwrap(), head, 0);
            assert_eq!(queue.publish(&queue.map(&memory).unwrap()).unwrap(), wanted);
            driver.reap().unwrap();
        }
    }
}

#[test]
fn an_interrupt_covers_the_whole_batch() {
    let (memory, mut driver, mut queue) = ring(F_EVENT_IDX);
    driver.want_interrupts(true);
    for _ in 0..3 {
        driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
    }
    driver.publish();
    while let Some(chain) = queue.pop(&queue.map(&memory).unwrap()).unwrap() {
        queue.push_used(&queue.map(&memory).unwrap(), chain.head, 0);
    }
    assert!(queue.publish(&queue.map(&memory).unwrap()).unwrap(), "the first of three was the one asked for");
    assert_eq!(driver.pending(), 3);
}

#[test]
fn indirect_tables_may_end_a_chain_of_descriptors() {
    let (memory, mut driver, mut queue) = ring(F_INDIRECT_DESC);
    let buffers: Vec<_> = (0..20).map(|i| Buffer::writable(DATA + 32 * i, 16)).collect();
    driver.add_indirect(TABLE, &buffers).unwrap();
    driver.add(&[Buffer::readable(DATA, 4), Buffer::readable(TABLE, 32)]).unwrap();
    driver.lie_descriptor(2, Buffer::readable(TABLE, 32), INDIRECT | WRITE, 0);
    driver.publish();
    let mut room = IovBuffer::new();
    let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
    let mut iov = room.start();
    assert_eq!(
        queue.writable(&queue.map(&memory).unwrap(), chain, &mut iov).unwrap(),
        1,
        "longer than the queue, and one descriptor"
    );
    assert_eq!((iov.len(), iov.buffers()), (320, 20));
    drop(iov);

    let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
    let mut seen = Vec::new();
    let walk = queue.gather(&queue.map(&memory).unwrap(), chain, |buffer, writable| {
        seen.push((buffer.len(), writable));
        Ok(())
    });
    // The first table entry goes on to the second, whose `next` leads out of a table of two.
    assert!(matches!(walk, Err(Error::DescriptorIndex(2))), "{walk:?}");
    assert_eq!(seen, [(4, false), (16, true), (16, true)]);
}

#[test]
fn buffers_may_span_regions_and_be_empty() {
    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x8000)]).unwrap();
    let mut driver = MockRing::new(&memory, RING, SIZE, false);
    let mut queue = VirtQueue::new(driver.setup(), 0, &memory).unwrap();
    driver.add(&[Buffer::readable(0x7ff0, 32), Buffer::readable(u64::MAX, 0)]).unwrap();
    driver.publish();
    let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    queue.readable(&queue.map(&memory).unwrap(), chain, &mut iov).unwrap();
    assert_eq!(iov.len(), 32);
}

#[test]
fn a_chain_with_more_buffers_than_a_frame_can_have_is_refused() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40000)]).unwrap();
    let mut driver = MockRing::new(&memory, RING, SIZE, false);
    let mut queue = VirtQueue::new(driver.setup(), F_INDIRECT_DESC, &memory).unwrap();
    let many = |count| vec![Buffer::readable(DATA, 1); count];
    driver.add_indirect(0x10000, &many(IovBuffer::MAX)).unwrap();
    driver.add_indirect(0x20000, &many(IovBuffer::MAX + 1)).unwrap();
    driver.publish();
    let mut room = IovBuffer::new();
    let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
    queue.readable(&queue.map(&memory).unwrap(), chain, &mut room.start()).unwrap();
    let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
    let refused = queue.readable(&queue.map(&memory).unwrap(), chain, &mut room.start());
    assert!(matches!(refused, Err(Error::ChainLength(1) | Error::TooManyBuffers(1))), "{refused:?}");
}

#[test]
fn lies_about_chains_are_told_apart() {
    let data = Buffer::readable(DATA, 16);
    let add = |ring: &mut MockRing, buffer, flags, next| {
        ring.add(&[data]).unwrap();
        ring.lie_descriptor(0, buffer, flags, next);
    };
    macro_rules! wrong {
        ($error:pat, $features:expr, $lie:expr) => {
            let error = wrong($features, $lie);
            assert!(matches!(error, $error), "{error:?}");
        };
    }
    wrong!(Error::ChainLength(0), 0, |ring| add(ring, data, NEXT, 0));
    wrong!(Error::DescriptorIndex(8), 0, |ring| add(ring, data, NEXT, SIZE));
    wrong!(Error::DescriptorIndex(8), 0, |ring| ring.lie_available(SIZE));
    wrong!(Error::Buffer(0, _), 0, |ring| add(ring, Buffer::readable(END - 15, 16), 0, 0));
    wrong!(Error::Buffer(0, _), 0, |ring| add(ring, Buffer::readable(u64::MAX - 3, 16), 0, 0));
    wrong!(Error::Buffer(0, _), 0, |ring| add(ring, Buffer::readable(DATA, u32::MAX), 0, 0));
    wrong!(Error::Direction(0), 0, |ring| {
        ring.add(&[Buffer::writable(DATA, 16), Buffer::readable(DATA, 16)]).unwrap();
    });

    wrong!(Error::Indirect(0), 0, |ring| add(ring, Buffer::readable(TABLE, 16), INDIRECT, 0));
    for (len, flags) in [(0, INDIRECT), (24, INDIRECT), (u32::MAX - 15, INDIRECT), (16, INDIRECT | NEXT)] {
        wrong!(Error::Indirect(0), F_INDIRECT_DESC, |ring| {
            add(ring, Buffer::readable(TABLE, len), flags, 0)
        });
    }
    wrong!(Error::Buffer(0, _), F_INDIRECT_DESC, |ring| {
        add(ring, Buffer::readable(u64::MAX - 7, 16), INDIRECT, 0)
    });
    wrong!(Error::Indirect(0), F_INDIRECT_DESC, |ring| {
        ring.add_indirect(TABLE, &[data]).unwrap();
        // The queue's own table, whose first descriptor is the indirect one: a table in a table.
        add(ring, Buffer::readable(RING, 16), INDIRECT, 0);
        ring.lie_descriptor(0, Buffer::readable(RING, 16), INDIRECT, 0);
    });
}

#[test]
fn a_loop_in_an_indirect_table_ends() {
    // The longest table, all in memory, so that nothing but the loop is wrong.
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let mut driver = MockRing::new(&memory, RING, SIZE, false);
    let mut queue = VirtQueue::new(driver.setup(), F_INDIRECT_DESC, &memory).unwrap();
    driver.add_indirect(TABLE, &[Buffer::readable(DATA, 0)]).unwrap();
    memory.write_obj(Descriptor::new(DATA, 0, NEXT, 0), GuestAddress(TABLE)).unwrap();
    driver.lie_descriptor(0, Buffer::readable(TABLE, 16 * MAX_TABLE as u32), INDIRECT, 0);
    driver.publish();
    let chain = queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
    assert!(matches!(
        queue.gather(&queue.map(&memory).unwrap(), chain, |_, _| Ok(())),
        Err(Error::ChainLength(0))
    ));
}

#[test]
fn an_available_ring_that_lies_is_an_error() {
    let (memory, mut driver, mut queue) = ring(0);
    driver.lie_avail_idx(SIZE + 1);
    assert!(matches!(
        queue.pop(&queue.map(&memory).unwrap()),
        Err(Error::AvailIndex { to: 9, used: 0, size: SIZE })
    ));

    let (memory, mut driver, mut queue) = ring(0);
    driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
    driver.publish();
    queue.pop(&queue.map(&memory).unwrap()).unwrap().unwrap();
    driver.lie_avail_idx(0);
    assert!(matches!(queue.pop(&queue.map(&memory).unwrap()), Err(Error::AvailIndex { to: 0, .. })));

    let (memory, mut driver, mut queue) = ring(0);
    driver.lie_available(SIZE);
    driver.publish();
    let error = queue.pop(&queue.map(&memory).unwrap());
    assert!(matches!(error, Err(Error::DescriptorIndex(8))), "no chain has this head: {error:?}");

    let (memory, mut driver, mut queue) = ring(0);
    for _ in 0..SIZE {
        driver.lie_available(0);
    }
    driver.publish();
    while queue.pop(&queue.map(&memory).unwrap()).unwrap().is_some() {}
    driver.lie_available(0);
    driver.publish();
    let error = queue.pop(&queue.map(&memory).unwrap());
    assert!(matches!(error, Err(Error::AvailIndex { .. })), "nothing was given back: {error:?}");
}

#[test]
fn a_setup_that_makes_no_sense_is_refused() {
    let memory = memory();
    let good = *MockRing::new(&memory, RING, SIZE, true).setup();
    let try_setup = |setup: QueueSetup| VirtQueue::new(&setup, F_EVENT_IDX, &memory).map(drop);
    try_setup(good).unwrap();
    for size in [0, 3, 40000] {
        assert!(matches!(try_setup(QueueSetup { size, ..good }), Err(Error::Size(_))));
    }
    let used = 6 + 8 * u64::from(SIZE);
    try_setup(QueueSetup { used_ring: END - used - 2, ..good }).unwrap();
    for bad in [
        QueueSetup { size: SIZE, ..Default::default() },
        QueueSetup { desc_table: 0, ..good },
        QueueSetup { desc_table: RING + 8, ..good },
        QueueSetup { avail_ring: RING + 1, ..good },
        QueueSetup { used_ring: RING + 2, ..good },
        QueueSetup { desc_table: END, ..good },
        QueueSetup { avail_ring: u64::MAX - 1, ..good },
        QueueSetup { used_ring: END - used + 2, ..good },
    ] {
        assert!(matches!(try_setup(bad), Err(Error::Address(..))), "{bad:x?}");
    }
}

type Hook = Box<dyn FnOnce()>;

thread_local! {
    /// What the other side does while this thread is at its next fence.
    static AT_FENCE: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// The device is between what it has told the driver and what it looks at.
pub(super) fn at_fence() {
    if let Some(hook) = AT_FENCE.take() {
        hook();
    }
}

// Whatever a driver does at the fence, it sees what the device has told, and the device sees what it has done.
#[test]
fn a_device_that_sleeps_and_a_driver_that_adds_do_not_miss_each_other() {
    for features in [0, F_EVENT_IDX] {
        let (memory, mut driver, mut queue) = ring(features);
        let rings = queue.map(&memory).unwrap();
        // The driver was told that the device looks by itself.
        driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
        driver.publish();
        queue.next(&rings).unwrap().unwrap();
        let (tell, told) = channel();
        AT_FENCE.set(Some(Box::new(move || {
            driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
            tell.send(driver.publish()).unwrap();
        })));
        assert!(!queue.arm(&rings).unwrap(), "{features:#x}: the device sleeps on what was added");
        assert_eq!(told.recv(), Ok(true), "{features:#x}: a kick is wanted by then, and the fence is there");
    }
}

#[test]
fn a_kick_is_asked_for_with_a_later_chain_by_index_alone() {
    for start in [0, u16::MAX - 2] {
        for features in [0, F_EVENT_IDX] {
            let (memory, mut driver, mut queue) = ring(features);
            driver.start_at(start);
            queue.set_state(QueueState { next_avail: start, next_used: start });
            let rings = queue.map(&memory).unwrap();
            let by_index = features != 0;
            assert_eq!(queue.kicks_by_index(), by_index);
            // None is none at all, and taken for one.
            for (asked, kicks_with) in [(3, 3), (1, 1), (0, 1)] {
                assert!(queue.arm_after(&rings, asked).unwrap());
                let kicks_with = if by_index { kicks_with } else { 1 };
                for added in 1..=kicks_with {
                    driver.add(&[Buffer::writable(DATA, 4)]).unwrap();
                    assert_eq!(driver.publish(), added == kicks_with, "{added} of {asked}");
                }
                // What is there by then is seen at once; one more is waited for.
                assert!(!queue.arm_after(&rings, asked).unwrap());
                assert_eq!(queue.arm_after(&rings, kicks_with + 1).unwrap(), by_index);
                while let Some(chain) = queue.next(&rings).unwrap() {
                    queue.push_used(&rings, chain.head, 0);
                }
                queue.publish(&rings).unwrap();
                while driver.reap().is_some() {}
            }
        }
    }
}

#[test]
fn a_ring_that_is_looked_at_asks_for_no_kick_until_it_is_armed_again() {
    for start in [0, u16::MAX] {
        for features in [0, F_EVENT_IDX] {
            let (memory, mut driver, mut queue) = ring(features);
            driver.start_at(start);
            queue.set_state(QueueState { next_avail: start, next_used: start });
            let rings = queue.map(&memory).unwrap();
            assert!(queue.arm(&rings).unwrap());
            queue.disarm(&rings).unwrap();
            let mut add = || {
                driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
                driver.publish()
            };
            assert!(!add() && !add(), "{features:#x}");
            assert!(queue.has_more(&rings).unwrap() && !queue.arm(&rings).unwrap());
            while queue.next(&rings).unwrap().is_some() {}
            assert!(queue.arm(&rings).unwrap());
            assert!(add(), "{features:#x}");
        }
    }
}

#[test]
fn a_driver_that_sleeps_and_a_device_that_uses_do_not_miss_each_other() {
    for features in [0, F_EVENT_IDX] {
        let (memory, mut driver, mut queue) = ring(features);
        let rings = queue.map(&memory).unwrap();
        driver.want_interrupts(false);
        driver.add(&[Buffer::readable(DATA, 4)]).unwrap();
        driver.publish();
        let chain = queue.next(&rings).unwrap().unwrap();
        queue.push_used(&rings, chain.head, 0);
        let (tell, told) = channel();
        AT_FENCE.set(Some(Box::new(move || {
            driver.want_interrupts(true);
            tell.send(driver.pending()).unwrap();
        })));
        assert!(queue.publish(&rings).unwrap(), "{features:#x}: the wish of just now is seen");
        assert_eq!(
            told.recv(),
            Ok(1),
            "{features:#x}: what was used is shown by then, and the fence is there"
        );
    }
}

#[test]
fn a_driver_polls_while_it_wants_no_interrupt_for_the_next_chain() {
    for features in [0, F_EVENT_IDX] {
        let (memory, mut driver, mut queue) = ring(features);
        let polled = |queue: &VirtQueue| queue.is_polled(&queue.map(&memory).unwrap()).unwrap();
        for wants in [true, false, true] {
            driver.want_interrupts(wants);
            assert_eq!(polled(&queue), !wants, "features {features:#x}");
            let head = driver.add(&[Buffer::writable(DATA, 4)]).unwrap();
            driver.publish();
            let rings = queue.map(&memory).unwrap();
            queue.pop(&rings).unwrap().unwrap();
            queue.push_used(&rings, head, 4);
            assert_eq!(queue.publish(&rings).unwrap(), wants);
            assert_eq!(driver.reap(), Some((head, 4)));
        }
    }
}
