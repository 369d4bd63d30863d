//! A disk with the mock driver: what it offers, what it does, and what it answers where the host cannot.

mod disk_rig;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;

use devices::virtio::DeviceThreads;
use devices::virtio::block::{DiskQueueState, Medium};
use devices::virtio::mock::Buffer;
use devices::virtio::queue::{F_VERSION_1, QueueState};
use disk_rig::*;
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_getfl, fcntl_setfl, memfd_create};
use vm_memory::{Bytes, GuestAddress};

/// Has the file read and written past the host's cache, so that it takes a moment; false where its file system cannot.
fn go_direct(file: &File) -> bool {
    fcntl_setfl(file, fcntl_getfl(file).unwrap() | OFlags::DIRECT).is_ok()
}

/// A disk on that file, which takes a moment where that can be.
fn slow(file: &File, async_io: bool) -> Rig {
    let direct = go_direct(file).then_some(512);
    Rig::with(Medium { direct, ..medium(file, SECTORS * 512) }, async_io, 1)
}

#[test]
fn a_driver_reads_and_writes_what_is_in_the_file() {
    for async_io in BOTH {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let file = file(&bytes);
        let mut rig = Rig::on(&file, async_io);
        assert_eq!(rig.read(0, 3), bytes[..3 * SECTOR]);
        assert_eq!(rig.read(SECTORS - 1, 1), bytes[bytes.len() - SECTOR..]);
        let more = pattern(5 * SECTOR, 2);
        assert_eq!(rig.write(7, &more), OK);
        assert_eq!(rig.ask(FLUSH, 0, &[], 0), (OK, vec![], 1));
        let mut found = vec![0; more.len()];
        file.read_exact_at(&mut found, 7 * SECTOR as u64).unwrap();
        assert_eq!(found, more);
        assert_eq!(rig.read(6, 1), bytes[6 * SECTOR..][..SECTOR], "the sector before is as it was");
        let counters = &rig.handle.counters()[0];
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((read(&counters.reads), read(&counters.read_bytes)), (3, 5 * 512));
        assert_eq!((read(&counters.writes), read(&counters.written_bytes)), (1, 5 * 512));
        assert_eq!((read(&counters.flushes), read(&counters.errors)), (1, 0));
    }
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    for async_io in BOTH {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let file = file(&bytes);
        let mut rig = Rig::on(&file, async_io);
        for cuts in [&[][..], &[1, 2, 3, 15], &[8], &[16, 17, 600], &[20, 1039]] {
            let more = pattern(2 * SECTOR, cuts.len() as u64);
            let (status, _, len) = rig.ask_in_pieces(OUT, 9, &more, 0, cuts, &[]);
            assert_eq!((status, len), (OK, 1), "{cuts:?}");
            let (status, read, len) = rig.ask_in_pieces(IN, 9, &[], 2 * SECTOR, cuts, cuts);
            assert_eq!((status, len), (OK, 1025), "{cuts:?}");
            assert_eq!(read, more, "{cuts:?}");
        }
    }
}

#[test]
fn its_serial_number_is_cut_to_what_there_is_room_for() {
    let file = file(&[0; 512]);
    let mut rig = Rig::with(medium(&file, 512), true, 1);
    let (status, id, len) = rig.ask_in_pieces(GET_ID, 0, &[], 20, &[16], &[3, 20]);
    assert_eq!((status, id.as_slice(), len), (OK, &b"serial-7\0\0\0\0\0\0\0\0\0\0\0\0"[..], 21));
    let (_, id, _) = rig.ask(GET_ID, 0, &[], 3);
    assert_eq!(id, b"ser");
    let (_, id, _) = rig.ask(GET_ID, 0, &[], 24);
    assert_eq!(id[20..], [NONE; 4]);
}

#[test]
fn what_it_offers_is_what_its_medium_can_do() {
    let file = file(&[0; 65536]);
    let rig = Rig::with(Medium { logical_block: 4096, ..medium(&file, 65536) }, false, 4);
    let all = LINUX | F_MQ | 1 << 1 | 1 << 2 | 1 << 6 | 1 << 10;
    assert_eq!(rig.mmio().features(), all);
    assert_eq!((rig.config(0, 8), rig.config(8, 4), rig.config(12, 4)), (128, 1 << 16, 254));
    assert_eq!(rig.config(20, 4), 4096);
    assert_eq!((rig.config(24, 1), rig.config(26, 2), rig.config(32, 1), rig.config(34, 2)), (0, 1, 1, 4));
    assert_eq!((rig.config(36, 4), rig.config(40, 4), rig.config(44, 4)), (1 << 21, 16, 8));
    assert_eq!((rig.config(48, 4), rig.config(52, 4), rig.config(56, 1)), (1 << 16, 1, 1));
    let rig = Rig::with(Medium { discards: false, ..medium(&file, 65536) }, false, 1);
    assert_eq!(rig.mmio().features() & (F_DISCARD | F_WRITE_ZEROES | F_MQ), F_WRITE_ZEROES);
    assert_eq!((rig.config(24, 1), rig.config(26, 2), rig.config(36, 4), rig.config(56, 1)), (3, 8, 0, 0));
    let rig = Rig::with(Medium { read_only: true, ..medium(&file, 65536) }, false, 1);
    let read_only = LINUX & !(F_FLUSH | F_CONFIG_WCE | F_DISCARD | F_WRITE_ZEROES) | 1 << 5;
    assert_eq!(rig.mmio().features() & (LINUX | 1 << 5), read_only);
}

#[test]
fn a_disk_that_is_read_only_takes_no_write() {
    for async_io in BOTH {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let file = file(&bytes);
        let mut rig = Rig::with(Medium { read_only: true, ..medium(&file, SECTORS * 512) }, async_io, 1);
        assert_eq!(rig.write(0, &[7; 512]), IOERR);
        assert_eq!(rig.range(DISCARD, 0, 8, 0), UNSUPP);
        assert_eq!(rig.range(WRITE_ZEROES, 0, 8, 0), UNSUPP);
        assert_eq!(rig.read(0, 1), bytes[..512]);
        // Nor has it limits for what it does not take, or a cache that could be switched off.
        let limits = [36, 40, 44, 48, 52].map(|at| rig.config(at, 4));
        assert_eq!((limits, rig.config(56, 1)), ([0; 5], 0));
        let before = rig.config(32, 1);
        devices::BusDevice::write(&rig.bus, 0x100 + 32, &[0]);
        assert_eq!(rig.config(32, 1), before);
    }
}

#[test]
fn what_makes_no_sense_is_an_error_and_changes_nothing() {
    for async_io in BOTH {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let file = file(&bytes);
        let mut rig = Rig::on(&file, async_io);
        let one = [7; 512];
        for (what, kind, sector, sent, room, status) in [
            ("a sector past the end", IN, SECTORS, &[][..], 512, IOERR),
            ("an end past the end", IN, SECTORS - 1, &[], 1024, IOERR),
            ("a sector past all", IN, u64::MAX, &[], 512, IOERR),
            ("an offset that wraps", IN, u64::MAX / 512 + 1, &[], 512, IOERR),
            ("an odd length", IN, 0, &[], 511, IOERR),
            ("nothing to read", IN, 0, &[], 0, IOERR),
            ("a read that sends", IN, 0, &one, 512, IOERR),
            ("a write past the end", OUT, SECTORS, &one, 0, IOERR),
            ("a write of an odd length", OUT, 0, &one[1..], 0, IOERR),
            ("a write of nothing", OUT, 0, &[], 0, IOERR),
            ("a write with room", OUT, 0, &one, 512, IOERR),
            ("a type of old", 2, 0, &[], 512, UNSUPP),
            ("a type of nobody", 4711, 0, &one, 512, UNSUPP),
            ("a secure erase", 14, 0, &range(0, 8, 0), 0, UNSUPP),
            ("a discard of nothing", DISCARD, 0, &[], 0, IOERR),
            ("half a range", DISCARD, 0, &range(0, 8, 0)[..8], 0, IOERR),
            ("more than a range", DISCARD, 0, &[&range(0, 8, 0)[..], &[0]].concat(), 0, IOERR),
            ("a discard past the end", DISCARD, 0, &range(SECTORS, 1, 0), 0, IOERR),
            ("a discard whose end is past the end", DISCARD, 0, &range(SECTORS - 2, 3, 0), 0, IOERR),
            ("zeroes past the end", WRITE_ZEROES, 0, &range(1, SECTORS as u32, 0), 0, IOERR),
            ("a discard that wraps", DISCARD, 0, &range(u64::MAX, 1, 0), 0, IOERR),
            ("a discard of too much", DISCARD, 0, &range(0, u32::MAX, 0), 0, IOERR),
            ("a discard that says to unmap", DISCARD, 0, &range(0, 8, 1), 0, UNSUPP),
            ("a flag of nobody", WRITE_ZEROES, 0, &range(0, 8, 2), 0, UNSUPP),
            ("too many ranges", WRITE_ZEROES, 0, &[range(0, 8, 0), range(8, 8, 0)].concat(), 0, IOERR),
            ("far too many ranges", DISCARD, 0, &range(0, 1, 0).repeat(17), 0, IOERR),
        ] {
            let (answer, _, len) = rig.ask(kind, sector, sent, room);
            assert_eq!((answer, len), (status, if room == 0 { 1 } else { 0 }), "{what}");
        }
        let mut all = vec![0; bytes.len()];
        file.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(all, bytes);
        assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
        rig.check();
    }
}

#[test]
fn a_header_that_is_too_short_is_an_error() {
    let file = file(&[0; 512 * SECTORS as usize]);
    let mut rig = Rig::on(&file, true);
    for len in [1, 15] {
        rig.memory.write_obj(NONE, GuestAddress(ROOM)).unwrap();
        rig.rings[0].add(&[Buffer::readable(SENT, len), Buffer::writable(ROOM, 1)]).unwrap();
        rig.finish(0);
        assert_eq!(rig.memory.read_obj::<u8>(GuestAddress(ROOM)).unwrap(), IOERR);
    }
    // With room for what it seems to ask for, none of which is written.
    rig.memory.write_slice(&[NONE; 513], GuestAddress(ROOM)).unwrap();
    rig.memory.write_slice(&[0; 15], GuestAddress(SENT)).unwrap();
    rig.rings[0].add(&[Buffer::readable(SENT, 15), Buffer::writable(ROOM, 513)]).unwrap();
    assert_eq!(rig.finish(0), 0);
    let mut room = [0; 513];
    rig.memory.read_slice(&mut room, GuestAddress(ROOM)).unwrap();
    assert!(room[..512].iter().all(|&byte| byte == NONE) && room[512] == IOERR);
    rig.memory.write_obj(NONE, GuestAddress(ROOM)).unwrap();
    rig.rings[0].add(&[Buffer::writable(ROOM, 1)]).unwrap();
    rig.finish(0);
    assert_eq!(rig.memory.read_obj::<u8>(GuestAddress(ROOM)).unwrap(), IOERR);
    rig.check();
}

#[test]
fn a_request_of_more_than_any_may_have_is_an_error() {
    let file = file(&[]);
    file.set_len(1 << 40).unwrap();
    for async_io in BOTH {
        let mut rig = Rig::with(medium(&file, 1 << 40), async_io, 1);
        rig.memory.write_slice(&[0; 16], GuestAddress(SENT)).unwrap();
        // All of memory again and again: 10 GB.
        let mut buffers = vec![Buffer::readable(SENT, 16)];
        buffers.extend([Buffer::writable(0x20_0000, 0x20_0000); 500]);
        buffers.push(Buffer::writable(ROOM, 1));
        rig.rings[0].add_indirect(TABLE, &buffers).unwrap();
        assert_eq!(rig.finish(0), 0);
        assert_eq!(rig.memory.read_obj::<u8>(GuestAddress(ROOM)).unwrap(), IOERR);
        rig.check();
    }
}

#[test]
fn a_chain_that_is_broken_stops_the_queue_until_a_reset() {
    for async_io in BOTH {
        let file = file(&[0; 512 * SECTORS as usize]);
        let mut rig = Rig::on(&file, async_io);
        let header = Buffer::readable(SENT, 16);
        for what in
            ["a loop", "no status", "a buffer past memory", "the wrong order", "a head past the table"]
        {
            rig.memory.write_slice(&[0; 16], GuestAddress(SENT)).unwrap();
            let ring = &mut rig.rings[0];
            match what {
                "a loop" => {
                    let head = ring.add(&[header]).unwrap();
                    ring.lie_descriptor(head, header, 1, head);
                }
                "no status" => _ = ring.add(&[header]).unwrap(),
                "a buffer past memory" => {
                    let far = Buffer::writable(MEMORY - 511, 512);
                    ring.add(&[header, far, Buffer::writable(ROOM, 1)]).unwrap();
                }
                "the wrong order" => _ = ring.add(&[Buffer::writable(ROOM, 1), header]).unwrap(),
                _ => ring.lie_available(4711),
            }
            rig.kick(0);
            wait(what, || rig.mmio().needs_reset());
            rig.start(LINUX);
            rig.check();
        }
    }
}

#[test]
fn a_file_that_became_shorter_is_an_error_for_what_is_gone() {
    for async_io in BOTH {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let file = file(&bytes);
        let mut rig = Rig::on(&file, async_io);
        file.set_len(10 * 512 + 100).unwrap();
        assert_eq!(rig.read(8, 2), bytes[8 * SECTOR..10 * SECTOR]);
        for (sector, sectors) in [(10, 1), (9, 2), (20, 4)] {
            let (status, _, len) = rig.ask(IN, sector, &[], sectors * SECTOR);
            assert_eq!((status, len), (IOERR, 0), "{sector}");
        }
        // Written anew, they are there again.
        assert_eq!(rig.write(20, &[9; 512]), OK);
        assert_eq!(rig.read(20, 1), [9; 512]);
    }
}

#[test]
fn a_host_that_is_full_is_an_error_for_what_found_no_room() {
    for async_io in BOTH {
        let fd = memfd_create("full", MemfdFlags::ALLOW_SEALING).unwrap();
        let file = File::from(fd);
        file.set_len(8 * 512).unwrap();
        // It cannot grow, which a write past its end finds as it would a full disk.
        fcntl_add_seals(&file, SealFlags::GROW).unwrap();
        let mut rig = Rig::on(&file, async_io);
        assert_eq!(rig.write(0, &[1; 512]), OK);
        assert_eq!(rig.write(8, &[2; 512]), IOERR);
        assert_eq!(rig.read(0, 1), [1; 512]);
        assert!(rig.handle.counters()[0].errors.load(Ordering::Relaxed) == 1);
    }
}

#[test]
fn what_is_discarded_or_zeroed_reads_as_zeroes_and_takes_no_room() {
    for async_io in BOTH {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let file = file(&bytes);
        let mut rig = Rig::on(&file, async_io);
        let before = file.metadata().unwrap().blocks();
        assert_eq!(rig.range(DISCARD, 64, 64, 0), OK);
        assert!(file.metadata().unwrap().blocks() < before, "there is a hole");
        assert_eq!(rig.read(64, 64), vec![0; 64 * SECTOR]);
        assert_eq!(rig.read(63, 1), bytes[63 * SECTOR..64 * SECTOR]);
        for (sector, flags) in [(128, 0), (136, 1)] {
            assert_eq!(rig.range(WRITE_ZEROES, sector, 7, flags), OK);
            assert_eq!(rig.read(sector, 7), vec![0; 7 * SECTOR]);
            let next = (sector as usize + 7) * SECTOR;
            assert_eq!(rig.read(sector + 7, 1), bytes[next..next + SECTOR]);
        }
        let ranges = [range(0, 8, 0), range(16, 8, 0)].concat();
        assert_eq!(rig.ask_in_pieces(DISCARD, 0, &ranges, 0, &[5, 16, 21, 40], &[]).0, OK);
        assert_eq!((rig.read(0, 8), rig.read(16, 8)), (vec![0; 8 * SECTOR], vec![0; 8 * SECTOR]));
        assert_eq!(rig.read(8, 8), bytes[8 * SECTOR..16 * SECTOR]);
        assert_eq!(rig.handle.counters()[0].discards.load(Ordering::Relaxed), 4);
        assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
    }
}

#[test]
fn a_host_that_cannot_give_back_after_all_does_not_support_it() {
    // A file that has no way to make holes, and one that is not open for writing.
    let options = |write| File::options().read(true).write(write).open("/proc/self/comm").unwrap();
    for (file, status) in [(options(true), UNSUPP), (options(false), IOERR)] {
        let mut rig = Rig::on(&file, false);
        assert_eq!(rig.range(DISCARD, 0, 8, 0), status);
    }
}

#[test]
fn a_host_without_holes_writes_zeroes_by_hand() {
    let fd = memfd_create("zeroes", MemfdFlags::empty()).unwrap();
    let file = File::from(fd);
    let bytes = pattern(SECTORS as usize * SECTOR, 1);
    file.write_all_at(&bytes, 0).unwrap();
    let mut rig = Rig::on(&file, true);
    // A file in memory has holes, and cannot zero a range that it keeps.
    for flags in [0, 1] {
        assert_eq!(rig.range(WRITE_ZEROES, 8, 100, flags), OK);
        assert_eq!(rig.read(8, 100), vec![0; 100 * SECTOR]);
        assert_eq!(rig.read(108, 1), bytes[108 * SECTOR..109 * SECTOR]);
        file.write_all_at(&bytes, 0).unwrap();
    }
}

#[test]
fn an_overlay_takes_what_is_written_and_the_file_stays_as_it_is() {
    let bytes = pattern(SECTORS as usize * SECTOR, 1);
    let base = file(&bytes);
    let overlay = Some(holes());
    let mut rig = Rig::with(Medium { overlay, ..medium(&base, SECTORS * 512) }, true, 2);
    let mut model = bytes.clone();
    for (sector, sectors) in [(5u64, 3usize), (9, 1), (100, 64), (7, 4), (SECTORS - 1, 1)] {
        let more = pattern(sectors * SECTOR, sector + 7);
        model[sector as usize * SECTOR..][..more.len()].copy_from_slice(&more);
        assert_eq!(rig.write(sector, &more), OK);
    }
    assert_eq!(rig.range(DISCARD, 50, 60, 0), OK);
    model[50 * SECTOR..110 * SECTOR].fill(0);
    assert_eq!(rig.range(WRITE_ZEROES, 0, 2, 0), OK);
    model[..2 * SECTOR].fill(0);
    assert_eq!(rig.ask(FLUSH, 0, &[], 0).0, OK);
    assert!(rig.read(0, SECTORS as usize) == model);
    let mut below = vec![0; bytes.len()];
    base.read_exact_at(&mut below, 0).unwrap();
    assert!(below == bytes, "the file below is as it was");
}

#[test]
fn memory_that_the_file_does_not_take_is_copied() {
    for async_io in BOTH {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let file = file(&bytes);
        // What is aligned goes without a copy, what is not by one: the bytes are the same.
        if !go_direct(&file) {
            return println!("skipped: no direct I/O in the directory for temporary files");
        }
        let mut rig = Rig::with(Medium { direct: Some(512), ..medium(&file, SECTORS * 512) }, async_io, 1);
        // Which memory it takes is the file system's to say; an odd address is none.
        for cuts in [&[16][..], &[16, 17, 1000], &[3]] {
            let more = pattern(20 * SECTOR, cuts[0] as u64);
            assert_eq!(rig.ask_in_pieces(OUT, 11, &more, 0, cuts, &[]).0, OK);
            let (status, read, _) = rig.ask_in_pieces(IN, 11, &[], 20 * SECTOR, &[16], cuts);
            assert_eq!((status, read == more), (OK, true));
        }
        assert_eq!(rig.range(WRITE_ZEROES, 11, 3, 0), OK);
        assert_eq!(rig.read(11, 3), vec![0; 3 * SECTOR]);
    }
}

#[test]
fn queues_work_side_by_side_and_each_is_reset_alone() {
    for async_io in BOTH {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let file = file(&bytes);
        let mut rig = Rig::with(medium(&file, SECTORS * 512), async_io, 3);
        rig.memory.write_slice(&[0; 16], GuestAddress(SENT)).unwrap();
        let read = |rig: &mut Rig, queue: usize| {
            let room = ROOM + 0x1000 * queue as u64;
            rig.memory.write_slice(&[NONE; 513], GuestAddress(room)).unwrap();
            let chain = [Buffer::readable(SENT, 16), Buffer::writable(room, 513)];
            rig.rings[queue].add(&chain).unwrap();
            assert_eq!(rig.finish(queue), 513);
            assert_eq!(rig.memory.read_obj::<[u8; 8]>(GuestAddress(room)).unwrap(), bytes[..8]);
        };
        (0..3).for_each(|queue| read(&mut rig, queue));
        for _ in 0..3 {
            // Queue 1 alone.
            rig.mmio().write(0x30, 1);
            rig.mmio().write(0xc0, 1);
            assert_eq!((rig.mmio().read(0x44), rig.mmio().read(0xc0)), (0, 0));
            read(&mut rig, 2);
            rig.rings[1] = rig.ring(1);
            assert!(rig.mmio().set_queue(1, rig.rings[1].setup()));
            (0..3).for_each(|queue| read(&mut rig, queue));
        }
    }
}

#[test]
fn a_reset_in_the_middle_of_requests_leaves_memory_alone_afterwards() {
    for async_io in BOTH {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let file = file(&bytes);
        let mut rig = slow(&file, async_io);
        for round in 0..30 {
            rig.memory.write_slice(&[0; 16], GuestAddress(SENT)).unwrap();
            for slot in 0..100u64 {
                let room = ROOM + 0x2_0000 * (slot % 20);
                let chain = [Buffer::readable(SENT, 16), Buffer::writable(room, 0x1_0001)];
                rig.rings[0].add(&chain).unwrap();
            }
            rig.kick(0);
            rig.mmio().reset();
            rig.memory.write_slice(&vec![0x5a; 0x40_0000], GuestAddress(ROOM)).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(2));
            let mut found = vec![0; 0x40_0000];
            rig.memory.read_slice(&mut found, GuestAddress(ROOM)).unwrap();
            assert!(found.iter().all(|byte| *byte == 0x5a), "round {round}: something wrote after the reset");
            rig.start(LINUX);
        }
        rig.check();
    }
}

#[test]
fn a_pause_answers_what_was_taken_and_takes_no_more() {
    for async_io in BOTH {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let file = file(&bytes);
        let mut rig = slow(&file, async_io);
        rig.check();
        for round in 1..20u16 {
            let add = |rig: &mut Rig| {
                rig.memory.write_slice(&[0; 16], GuestAddress(SENT)).unwrap();
                let chain = [Buffer::readable(SENT, 16), Buffer::writable(ROOM, 0x1_0001)];
                rig.rings[0].add(&chain).unwrap();
                rig.kick(0);
            };
            (0..40).for_each(|_| add(&mut rig));
            let state = rig.handle.stop_queues().unwrap()[0];
            let DiskQueueState::Active(QueueState { next_avail, next_used }) = state else {
                panic!("{state:?}")
            };
            assert_eq!(next_avail, next_used, "round {round}: nothing is in hand");
            let pending = rig.rings[0].pending();
            add(&mut rig);
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert_eq!(rig.rings[0].pending(), pending, "round {round}: nothing is taken meanwhile");
            rig.handle.resume().unwrap();
            (0..41).for_each(|_| _ = rig.reap(0));
        }
        // A driver that starts meanwhile waits as well.
        rig.mmio().reset();
        assert_eq!(rig.handle.stop_queues().unwrap(), [DiskQueueState::Idle]);
        rig.start(LINUX);
        rig.memory.write_slice(&[0; 16], GuestAddress(SENT)).unwrap();
        rig.rings[0].add(&[Buffer::readable(SENT, 16), Buffer::writable(ROOM, 513)]).unwrap();
        rig.kick(0);
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(rig.rings[0].pending(), 0);
        rig.handle.resume().unwrap();
        assert_eq!(rig.reap(0), 513);
    }
}

#[test]
fn a_driver_that_keeps_its_ring_full_does_not_hold_a_message_off() {
    for async_io in BOTH {
        let file = file(&[0; SECTORS as usize * SECTOR]);
        let mut rig = Rig::on(&file, async_io);
        rig.memory.write_slice(&[0; 16], GuestAddress(SENT)).unwrap();
        let handle = rig.handle.clone();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let asks = std::thread::spawn(move || {
            for _ in 0..50 {
                handle.stop_queues().unwrap();
                handle.resume().unwrap();
            }
            stopped.store(true, Ordering::Relaxed);
        });
        wait("messages", || {
            for _ in 0..200 {
                while rig.rings[0].reap().is_some() {}
                while rig.rings[0].add(&[Buffer::readable(SENT, 16), Buffer::writable(ROOM, 513)]).is_some() {
                }
                rig.kick(0);
            }
            stop.load(Ordering::Relaxed)
        });
        asks.join().unwrap();
    }
}

#[test]
fn without_a_cache_each_write_is_on_the_medium_before_it_is_answered() {
    for async_io in BOTH {
        let file = file(&[0; SECTORS as usize * SECTOR]);
        let mut rig = Rig::on(&file, async_io);
        let mut found = [0; 512];
        // Whether the host syncs cannot be seen here; that the ways with and without work can.
        for (features, writeback) in [(F_VERSION_1, 1), (LINUX, 0), (LINUX, 1), (LINUX & !F_CONFIG_WCE, 1)] {
            rig.start(features);
            use devices::BusDevice;
            rig.bus.write(0x100 + 32, &[writeback]);
            assert_eq!(rig.config(32, 1), u64::from(writeback));
            assert_eq!(rig.write(1, &[writeback + 3; 512]), OK);
            file.read_exact_at(&mut found, 512).unwrap();
            assert_eq!(found, [writeback + 3; 512]);
            assert_eq!(rig.range(WRITE_ZEROES, 1, 1, 0), OK);
        }
        rig.mmio().reset();
        assert_eq!(rig.config(32, 1), 1, "a reset forgets it");
    }
}

#[test]
fn the_guest_is_interrupted_for_what_it_waits_for() {
    for async_io in BOTH {
        let file = file(&[0; SECTORS as usize * SECTOR]);
        let mut rig = Rig::on(&file, async_io);
        rig.rings[0].want_interrupts(true);
        rig.read(0, 1);
        wait("an interrupt", || rig.irq.read().is_ok());
        rig.rings[0].want_interrupts(false);
        rig.read(0, 1);
        assert!(rig.irq.read().is_err());
    }
}
