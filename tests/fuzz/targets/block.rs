//! A disk's driver: one that asks, whose disk is as a plain array would be, or one whose rings and registers have any content. Whatever it
//! does, the file is as long as it was, and after a reset the disk works.
#![no_main]

#[path = "../../../devices/tests/disk_rig/mod.rs"]
mod disk_rig;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use devices::BusDevice;
use devices::virtio::DeviceThreads;
use devices::virtio::block::Medium;
use devices::virtio::mock::Buffer;
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use disk_rig::*;
use fuzz::{Input, Seeds, bounded};
use vm_memory::{Bytes, GuestAddress};

fuzz::target!(seeds, run);

/// What the device may allocate, with the copies of a medium that takes what is aligned alone.
const MEMORY_MAX: usize = 32 << 20;
const STEPS_MAX: usize = 40;

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let bytes = pattern(SECTORS as usize * SECTOR, 1);
    let base = file(&bytes);
    let medium = Medium {
        overlay: (flags & 4 != 0).then(holes),
        direct: (flags & 8 != 0).then_some(64),
        discards: flags & 16 == 0,
        read_only: flags & 2 != 0 && flags & 32 != 0,
        ..medium(&base, SECTORS * SECTOR as u64)
    };
    let overlaid = medium.overlay.is_some();
    let read_only = medium.read_only;
    bounded(MEMORY_MAX, || {
        let mut rig = Rig::with(medium, flags & 1 != 0, 1);
        if flags & 2 == 0 {
            asks(&mut rig, &mut input, bytes.clone());
        } else {
            lies(&mut rig, &mut input);
            rig.mmio().reset();
            rig.start(LINUX & rig.mmio().features());
            if read_only { drop(rig.read(3, 2)) } else { rig.check() }
        }
    });
    assert_eq!(base.metadata().unwrap().len(), bytes.len() as u64);
    if overlaid || read_only {
        let mut found = vec![0; bytes.len()];
        base.read_exact_at(&mut found, 0).unwrap();
        assert!(found == bytes, "the file below is written to");
    }
}

/// A driver that makes sense to the device, or errs in what it asks.
fn asks(rig: &mut Rig, input: &mut Input<'_>, mut model: Vec<u8>) {
    for number in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let how = input.u8();
        let kind = if how & 0x80 == 0 {
            input.pick(&[IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES])
        } else {
            input.u32()
        };
        let sector = if how & 0x40 == 0 { input.u8().into() } else { input.u64() };
        let sectors = u32::from(input.u8() % 12);
        let odd = if how & 0x20 == 0 { 0 } else { usize::from(input.u16() % 512) };
        let range_flags = if how & 0x10 == 0 { 0 } else { input.u32() };
        let cuts: Vec<usize> = (0..how & 7).map(|_| usize::from(input.u16() % 5000)).collect();
        let len = sectors as usize * SECTOR + odd;
        let (sent, room) = match kind {
            OUT => (pattern(len, number as u64), 0),
            DISCARD | WRITE_ZEROES => (range(sector, sectors, range_flags), 0),
            IN => (Vec::new(), len),
            // Which is as long as it is.
            GET_ID => (Vec::new(), 20),
            _ => (Vec::new(), 0),
        };
        let mut cuts = cuts;
        cuts.sort_unstable();
        cuts.dedup();
        cuts.retain(|cut| *cut > 0);
        let before = model.clone();
        let offered = |feature: u64| rig.features & feature != 0;
        let (discards, zeroes) = (offered(F_DISCARD), offered(F_WRITE_ZEROES));
        let there = sector.checked_add(sectors.into()).is_some_and(|end| end <= SECTORS);
        let place = || sector as usize * SECTOR..(sector as usize + sectors as usize) * SECTOR;
        let expected = match kind {
            IN | OUT if !there || odd > 0 || sectors == 0 => 1,
            OUT => {
                model[place()].copy_from_slice(&sent);
                OK
            }
            DISCARD if !discards || range_flags != 0 => UNSUPP,
            WRITE_ZEROES if !zeroes || range_flags > 1 => UNSUPP,
            DISCARD | WRITE_ZEROES if !there => 1,
            DISCARD | WRITE_ZEROES => {
                model[place()].fill(0);
                OK
            }
            IN | FLUSH | GET_ID => OK,
            _ => UNSUPP,
        };
        let (answer, found, _) = rig.ask_in_pieces(kind, sector, &sent, room, &cuts, &cuts);
        assert_eq!(answer, expected, "request {number}: {kind} of {sectors} at {sector}");
        if (kind, answer) == (IN, OK) {
            assert!(found == before[sector as usize * SECTOR..][..len], "what is read is not what is there");
        }
    }
    assert!(rig.read(0, SECTORS as usize) == model);
}

/// A driver that does anything.
fn lies(rig: &mut Rig, input: &mut Input<'_>) {
    let (mut avail, mut paused) = (0_u16, false);
    for _ in 0..2 * STEPS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 12 {
            // The table of descriptors, or one for indirect ones.
            how @ 0..=2 => {
                let (index, place) = (u16::from(input.u8() % 32), input.u8());
                let addr = match place % 8 {
                    0..=2 => SENT + 16 * u64::from(place >> 3),
                    3 | 4 => ROOM + 512 * u64::from(place >> 3),
                    5 => TABLE + 16 * u64::from(place >> 3),
                    6 => MEMORY - u64::from(place >> 3),
                    _ => input.u64(),
                };
                let len = match input.u8() {
                    len @ 0..64 => u32::from(len) * 16,
                    len @ 64..192 => u32::from(len - 64) * 512 + 1,
                    _ => input.u32(),
                };
                let (flags, next) = (u16::from(input.u8()) & 0x107, u16::from(input.u8() % 34));
                let buffer = Buffer { addr, len, writable: false };
                if how < 2 {
                    rig.rings[0].lie_descriptor(index, buffer, flags, next);
                } else {
                    let bytes = [
                        &addr.to_le_bytes()[..],
                        &len.to_le_bytes(),
                        &flags.to_le_bytes(),
                        &next.to_le_bytes(),
                    ];
                    rig.memory
                        .write_slice(&bytes.concat(), GuestAddress(TABLE + 16 * u64::from(index)))
                        .unwrap();
                }
            }
            3 => {
                let at = SENT + 16 * u64::from(input.u8() % 32);
                let kind = if input.u8() & 1 == 0 {
                    input.pick(&[IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES])
                } else {
                    input.u32()
                };
                let sector = if kind & 2 == 0 { u64::from(input.u8()) } else { input.u64() };
                let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
                rig.memory.write_slice(&header, GuestAddress(at)).unwrap();
            }
            4 => {
                let (at, bytes) = (u64::from(input.u16()), input.bytes(16));
                rig.memory.write_slice(bytes, GuestAddress(SENT + at)).unwrap();
            }
            5 | 6 => {
                let head = input.u8();
                rig.rings[0].lie_available(if head < 0xf0 {
                    u16::from(head % 32)
                } else {
                    u16::from(head) << 8
                });
                avail = avail.wrapping_add(1);
            }
            7 => {
                rig.rings[0].publish();
                rig.bus.kicks()[0].write(1).unwrap();
                if !paused {
                    settle(rig, avail);
                }
            }
            8 => {
                rig.rings[0].lie_avail_idx(input.u16());
                rig.bus.kicks()[0].write(1).unwrap();
            }
            9 => {
                paused = !paused;
                if paused { rig.handle.pause().unwrap() } else { rig.handle.resume().unwrap() }
            }
            10 => {
                rig.mmio().reset();
                let features = LINUX & rig.mmio().features();
                rig.start(if input.u8() & 1 == 0 {
                    features
                } else {
                    features & !F_EVENT_IDX & !F_INDIRECT_DESC
                });
                avail = 0;
            }
            _ => {
                let (offset, value, len) =
                    (u64::from(input.u8()) * 4, input.u32(), usize::from(input.u8() % 9));
                let mut data = u64::from(value).to_le_bytes();
                if value & 1 == 0 {
                    rig.bus.write(offset, &data[..len]);
                } else {
                    rig.bus.read(offset, &mut data[..len]);
                }
            }
        }
    }
    if paused {
        rig.handle.resume().unwrap();
    }
}

/// Waits until all is used or the device asks for a reset; not for long, as a driver's own ring may be where the device was told to write.
fn settle(rig: &Rig, avail: u16) {
    let used = rig.rings[0].setup().used_ring + 2;
    let end = Instant::now() + Duration::from_millis(2);
    while rig.memory.read_obj::<u16>(GuestAddress(used)).unwrap() != avail
        && !rig.mmio().needs_reset()
        && Instant::now() < end
    {
        std::thread::yield_now();
    }
}

fn seeds() -> Seeds {
    let mut asked = Vec::new();
    for (kind, sector) in [(1, 3), (0, 3), (4, 3), (0, 2), (5, 250), (2, 0), (3, 0), (1, 255)] {
        asked.extend([2, kind, sector, 2, 100, 0, 0, 2]);
    }
    let failing =
        [0x80, 77, 0, 0, 0, 9, 1, 0x40, 0, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0x20, 1, 5, 1, 7, 0];
    // A header, a place for what is read, a status; shown, and taken.
    let lied = [
        3, 0, 0, 0, 5, 0, 0, 0, 1, 1, 1, 0, 1, 3, 128, 3, 2, 0, 2, 11, 65, 2, 0, 5, 0, 7, 9, 5, 0, 7, 9, 10,
        1, 11, 20, 1, 0, 0, 0, 4,
    ];
    let indirect = [3, 0, 0, 0, 5, 2, 0, 0, 1, 1, 1, 2, 1, 3, 65, 2, 2, 0, 0, 5, 2, 4, 0, 5, 0, 7, 8, 200, 0];
    let with = |flags: u8, bytes: &[u8]| [&[flags], bytes].concat();
    (0..32)
        .flat_map(|flags: u8| {
            let pair = if flags & 2 == 0 { [&asked[..], &failing] } else { [&lied[..], &indirect] };
            [with(flags, pair[0]), with(flags, pair[1])]
        })
        .enumerate()
        .map(|(number, seed)| (format!("{number}"), seed))
        .collect()
}
