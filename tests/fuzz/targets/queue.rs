//! A virtqueue whose rings have any content, before and between the device's looks: each look ends with a chain within guest memory, with
//! nothing, or with an error, and what is used is shown.
#![no_main]

use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, QueueSetup, VirtQueue};
use fuzz::{Input, Seeds, bounded};
use net::IovBuffer;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fuzz::target!(seeds, run);

/// Two regions, and a hole between them.
const REGION: usize = 0x8000;
const SECOND: u64 = 0x1_0000;

fn run(data: &[u8]) {
    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), REGION), (GuestAddress(SECOND), REGION)]).unwrap();
    bounded(1 << 20, || play(&memory, &mut Input::new(data)));
}

fn play(memory: &GuestMemoryMmap, input: &mut Input<'_>) {
    let mut accepted = F_VERSION_1;
    let flags = input.u8();
    accepted |= if flags & 1 != 0 { F_EVENT_IDX } else { 0 };
    accepted |= if flags & 2 != 0 { F_INDIRECT_DESC } else { 0 };
    let setup = if flags & 4 != 0 {
        QueueSetup {
            size: input.u16(),
            desc_table: input.u64(),
            avail_ring: input.u64(),
            used_ring: input.u64(),
        }
    } else {
        QueueSetup {
            size: 1 << (flags >> 4 & 7),
            desc_table: 0x1000,
            avail_ring: 0x3000,
            used_ring: SECOND + 0x1000,
        }
    };
    let Ok(mut queue) = VirtQueue::new(&setup, accepted, memory) else { return };
    let rings = queue.map(memory).expect("a checked queue is in memory");
    let (size, mut space) = (queue.size(), IovBuffer::new());
    let mut popped = Vec::new();
    while !input.is_empty() {
        match input.u8() % 10 {
            0 | 1 => {
                let [at, addr, len] = [input.u8(), input.u8(), input.u8()].map(u64::from);
                let (flags, next) = (input.u8(), input.u8());
                let addr = match addr {
                    0xff => input.u64(),
                    0xfe => REGION as u64 - 8,
                    0xfd => SECOND - 8,
                    addr => addr << 9,
                };
                let len = if len == 0xff { input.u32() } else { len as u32 * 16 };
                let descriptor = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &[flags, 0, next, 0]].concat();
                let table =
                    if at & 0x80 != 0 { 0x4000 + 16 * (at & 0x7f) } else { 16 * at + setup.desc_table };
                let _ = memory.write_slice(&descriptor, GuestAddress(table));
            }
            2 => {
                let (slot, head) = (u64::from(input.u8()), input.u16());
                let _ = memory.write_obj(head, GuestAddress(setup.avail_ring + 4 + 2 * slot));
            }
            3 => {
                let by = u16::from(input.u8());
                let index: u16 = memory.read_obj(GuestAddress(setup.avail_ring + 2)).unwrap_or(0);
                let _ = memory.write_obj(index.wrapping_add(by), GuestAddress(setup.avail_ring + 2));
            }
            4 => {
                let (at, value) = (u64::from(input.u16()), input.u16());
                let _ = memory.write_obj(value, GuestAddress(at & !1));
            }
            5 => drop(queue.has_more(&rings)),
            6 => drop(queue.arm(&rings)),
            7 => {
                let before = queue.state().next_avail;
                if let Ok(Some(_)) = queue.pop(&rings) {
                    queue.undo_pop();
                }
                assert_eq!(queue.state().next_avail, before);
            }
            8 => {
                let chain = if input.u8() & 1 == 0 { queue.pop(&rings) } else { queue.next_ahead(&rings) };
                let Ok(Some(chain)) = chain else { continue };
                let mut iov = space.start();
                let way = input.u8() % 3;
                let walked = match way {
                    0 => queue.readable(&rings, chain, &mut iov),
                    1 => queue.writable(&rings, chain, &mut iov),
                    _ => queue.gather(&rings, chain, |buffer, _| {
                        assert!(buffer.len() <= 2 * REGION);
                        Ok(())
                    }),
                };
                if let Ok(walked) = walked {
                    assert!((1..=size).contains(&walked), "a chain of {walked} in a table of {size}");
                    popped.push(chain.head);
                }
            }
            _ => {
                let (len, pushed) = (u32::from(input.u16()), !popped.is_empty());
                popped.drain(..).for_each(|head| queue.push_used(&rings, head, len));
                let next = queue.state().next_used;
                if queue.publish(&rings).is_ok() && pushed {
                    let shown: u16 = memory.read_obj(GuestAddress(setup.used_ring + 2)).unwrap();
                    assert_eq!(shown, next);
                }
            }
        }
    }
}

fn seeds() -> Seeds {
    // A descriptor, its head, the index, a pop, what is used.
    let honest = [0, 0, 0x20, 4, 0, 0, 2, 0, 0, 0, 3, 1, 8, 0, 0, 9, 16, 0];
    let chained = [0, 0, 0x20, 4, 1, 1, 0, 1, 0x30, 4, 2, 0, 2, 0, 0, 0, 3, 1, 8, 1, 2, 9, 16, 0];
    let indirect =
        [0, 0, 0x20, 2, 4, 0, 0, 0x80, 0x30, 4, 1, 1, 0, 0x81, 0x31, 4, 2, 0, 2, 0, 0, 0, 3, 1, 8, 0, 2, 9];
    let with = |flags: u8, bytes: &[u8]| [&[flags], bytes].concat();
    vec![
        ("honest".into(), with(0x70, &honest)),
        ("event-idx".into(), with(0x71, &[&honest[..], &honest].concat())),
        ("chained".into(), with(0x40, &chained)),
        ("indirect".into(), with(0x73, &indirect)),
        ("setup".into(), with(4, &[&[16, 0][..], &[0, 16, 0, 0, 0, 0, 0, 0].repeat(3), &honest].concat())),
    ]
}
