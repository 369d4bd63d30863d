use vm_memory::{Bytes, GuestAddress};

use super::*;

/// Pushes the ranges of `memory`.
fn push_all<'m>(iov: &mut Iov<'m>, memory: VolatileSlice<'m>, ranges: &[std::ops::Range<usize>]) {
    for range in ranges {
        assert!(iov.push(memory.subslice(range.start, range.len()).unwrap()));
    }
}

#[test]
fn bytes_are_found_across_buffers() {
    let mut bytes = *b"abc-defg";
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    push_all(&mut iov, VolatileSlice::from(&mut bytes[..]), &[0..3, 4..8]);
    assert_eq!((iov.len(), iov.buffers(), iov.is_empty()), (7, 2, false));

    let mut out = [0; 4];
    assert_eq!(iov.read_at(2, &mut out), 4);
    assert_eq!(&out, b"cdef");
    assert_eq!(iov.read_at(6, &mut out), 1, "only one byte is left");
    assert_eq!(iov.read_at(7, &mut out), 0);

    assert_eq!(iov.write_at(1, b"XYZ"), 3);
    drop(iov);
    assert_eq!(&bytes, b"aXY-Zefg");
}

#[test]
fn buffers_leave_at_both_ends() {
    let mut bytes = *b"abc-defg-h";
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    push_all(&mut iov, VolatileSlice::from(&mut bytes[..]), &[0..3, 4..8, 9..10]);
    iov.truncate(7);
    assert_eq!((iov.len(), iov.buffers()), (7, 2));
    iov.truncate(6);
    iov.consume(3);
    assert_eq!((iov.len(), iov.buffers()), (3, 1));
    let mut out = [0; 4];
    assert_eq!(iov.read_at(0, &mut out), 3);
    assert_eq!(&out, b"def\0", "the second buffer is the first now");
    iov.consume(1);
    assert_eq!((iov.read_at(0, &mut out), &out[..2], iov.len()), (2, &b"ef"[..], 2), "and a part of it");
    iov.consume(9);
    assert!(iov.is_empty() && iov.buffers() == 0);
}

#[test]
fn buffers_one_behind_the_other_are_one() {
    let mut bytes = *b"abcdefghi-";
    let memory = VolatileSlice::from(&mut bytes[..]);
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    push_all(&mut iov, memory, &[0..3, 3..3, 3..6, 6..7, 8..9, 7..8]);
    assert_eq!((iov.len(), iov.buffers()), (9, 3), "back is not behind");
    let mut out = [0; 9];
    assert_eq!(iov.read_at(0, &mut out), 9);
    assert_eq!(&out, b"abcdefgih");
    iov.truncate(5);
    assert_eq!((iov.len(), iov.buffers()), (5, 1));
    iov.consume(3);
    assert!(iov.push(memory.subslice(9, 1).unwrap()));
    assert_eq!((iov.read_at(0, &mut out), &out[..3], iov.buffers()), (3, &b"de-"[..], 2));
}

#[test]
fn room_that_is_consumed_is_room_again() {
    let mut bytes = [0; 2 * IovBuffer::MAX + 2];
    let memory = VolatileSlice::from(&mut bytes[..]);
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    let capacity = iov.entries.capacity();
    let byte = |at: usize| memory.subslice(2 * at, 1).unwrap();
    assert!((0..IovBuffer::MAX).all(|at| iov.push(byte(at))));
    assert!(!iov.push(byte(IovBuffer::MAX)));
    iov.consume(1);
    let mut spill = 0;
    assert_eq!(iov.with_spill(&mut spill, |all, spilled| (all.len(), spilled)), (IovBuffer::MAX, true));
    assert!(iov.push(byte(IovBuffer::MAX)) && !iov.push(byte(0)));
    assert_eq!((iov.len(), iov.buffers()), (IovBuffer::MAX, IovBuffer::MAX));
    for _ in 0..3 {
        iov.consume(1);
        let spilled = iov.with_spill(&mut spill, |all, spilled| (all.len(), spilled));
        assert_eq!(spilled, (IovBuffer::MAX, true));
        assert!(iov.push(byte(0)));
    }
    assert_eq!(iov.entries.capacity(), capacity, "nothing is allocated on the way of a frame");
}

#[test]
fn a_view_has_another_front() {
    let mut bytes = *b"abc-defg";
    let (mut room, mut scratch) = (IovBuffer::new(), IovBuffer::new());
    for (skip, rest) in [(0, "abcdefg"), (2, "cdefg"), (3, "defg"), (5, "fg"), (7, ""), (9, "")] {
        let mut front = *b"XY";
        let mut iov = room.start();
        push_all(&mut iov, VolatileSlice::from(&mut bytes[..]), &[0..3, 8..8, 4..8]);
        let (view, whole) = scratch.start_behind(VolatileSlice::from(&mut front[..]), &iov, skip);
        let mut out = [0; 16];
        let len = view.read_at(0, &mut out);
        assert_eq!((&out[..len], view.len(), whole), (format!("XY{rest}").as_bytes(), len, true));
    }
}

#[test]
fn a_view_of_a_full_iov_has_its_last_buffer_no_more() {
    let (mut bytes, mut front) = ([0; 2], [0; 1]);
    let slice = VolatileSlice::from(&mut bytes[..]);
    let (mut room, mut scratch) = (IovBuffer::new(), IovBuffer::new());
    let mut iov = room.start();
    for _ in 0..IovBuffer::MAX {
        assert!(iov.push(slice));
    }
    let front = VolatileSlice::from(&mut front[..]);
    let (view, whole) = scratch.start_behind(front, &iov, 1);
    assert_eq!((view.buffers(), view.len(), whole), (IovBuffer::MAX, 2 * IovBuffer::MAX - 2, false));
    drop(view);
    let (view, whole) = scratch.start_behind(front, &iov, 2);
    assert_eq!((view.buffers(), view.len(), whole), (IovBuffer::MAX, 2 * IovBuffer::MAX - 1, true));
}

#[test]
fn a_full_iov_says_so() {
    let mut byte = [0u8];
    let slice = VolatileSlice::from(&mut byte[..]);
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    for _ in 0..IovBuffer::MAX {
        assert!(iov.push(slice));
    }
    assert!(!iov.push(slice));
    assert_eq!(iov.buffers(), IovBuffer::MAX);
    let mut spill = 0;
    assert_eq!(iov.with_spill(&mut spill, |all, spilled| (all.len(), spilled)), (IovBuffer::MAX, false));
    assert_eq!(iov.buffers(), IovBuffer::MAX, "nothing was taken for it");
}

#[test]
fn a_frame_is_appended_from_an_offset_on() {
    let (mut headers, mut bytes) = (*b"XY", *b"abc-defg");
    let (mut room, mut other) = (IovBuffer::new(), IovBuffer::new());
    for (skip, rest, buffers) in
        [(0, "abcdefg", 3), (2, "cdefg", 3), (3, "defg", 2), (6, "g", 2), (7, "", 1), (9, "", 1)]
    {
        let memory = VolatileSlice::from(&mut bytes[..]);
        let mut frame = other.start();
        push_all(&mut frame, memory, &[0..3, 8..8, 4..8]);
        let mut packet = room.start();
        assert!(packet.push(VolatileSlice::from(&mut headers[..])) && packet.append(&frame, skip));
        let mut out = [0; 16];
        let len = packet.read_at(0, &mut out);
        assert_eq!((&out[..len], packet.len()), (format!("XY{rest}").as_bytes(), len), "{skip}");
        assert_eq!(packet.buffers(), buffers, "{skip}: none without a byte");
        packet.clear();
        assert!(packet.is_empty() && packet.buffers() == 0 && packet.read_at(0, &mut out) == 0);
        assert!(packet.append(&frame, 0), "there is room again");
        assert_eq!(packet.len(), 7);
    }
}

#[test]
fn what_is_cleared_was_consumed_too() {
    let mut bytes = *b"abcdef";
    let memory = VolatileSlice::from(&mut bytes[..]);
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    push_all(&mut iov, memory, &[0..1, 2..3, 4..5]);
    iov.consume(2);
    iov.clear();
    push_all(&mut iov, memory, &[3..4, 4..5]);
    let mut out = [0; 4];
    assert_eq!((iov.read_at(0, &mut out), &out[..2]), (2, &b"de"[..]));
}

#[test]
fn one_buffer_is_left_to_a_header_when_frames_are_appended() {
    let mut byte = [7];
    let slice = VolatileSlice::from(&mut byte[..]);
    let (mut room, mut other) = (IovBuffer::new(), IovBuffer::new());
    for (own, more, fits) in [
        (IovBuffer::MAX - 4, 3, true),
        (IovBuffer::MAX - 4, 4, false),
        (3, IovBuffer::MAX - 4, true),
        (4, IovBuffer::MAX - 4, false),
        (0, IovBuffer::MAX - 1, true),
        (IovBuffer::MAX, 0, false),
    ] {
        let (mut packet, mut frame) = (room.start(), other.start());
        assert!((0..own).all(|_| packet.push(slice)) && (0..more).all(|_| frame.push(slice)));
        assert_eq!(packet.append(&frame, 0), fits, "{own} and {more}");
        let expected = if fits { own + more } else { own };
        assert_eq!((packet.buffers(), packet.len()), (expected, expected), "{own} and {more}");
    }
}

#[test]
fn no_pointer_stays_in_a_room_that_may_go_to_another_thread() {
    let mut bytes = [0; 2];
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(&mut bytes[..])));
    drop(iov);
    assert!(room.entries.is_empty());
}

#[test]
fn any_memory_can_be_asked_for_ahead() {
    let mut bytes = b"0123456789".repeat(30);
    let memory = VolatileSlice::from(&mut bytes[..]);
    for (at, len) in [(0, 300), (1, 0), (7, 1), (63, 2), (64, 64), (299, 1)] {
        prefetch(&memory.subslice(at, len).unwrap());
    }
    assert_eq!(bytes, b"0123456789".repeat(30), "nothing changes");
}

#[test]
fn what_is_kept_goes_on_where_its_memory_is() {
    let memory = |start| GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(start), 0x2000)]).unwrap();
    let (ours, other) = (memory(0), memory(0x10000));
    let mut room = IovBuffer::new();
    let mut iov = room.resume(&ours);
    assert!(iov.is_empty(), "nothing was kept");
    for at in [0x1000, 0, 0x1ff0] {
        assert!(iov.push(ours.get_slice(GuestAddress(at), 16).unwrap()));
    }
    iov.consume(20);
    iov.keep();

    let mut iov = room.resume(&ours);
    assert_eq!((iov.len(), iov.buffers()), (28, 2));
    assert_eq!(iov.write_at(0, &[7; 28]), 28);
    assert!(iov.push(ours.get_slice(GuestAddress(0x800), 1).unwrap()), "it can be more");
    iov.consume(12);
    iov.keep();
    let filled = |at, len| {
        let mut bytes = vec![0; len];
        ours.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    };
    assert_eq!((filled(0, 5), filled(16, 1)), (vec![0, 0, 0, 0, 7], vec![0]));
    assert_eq!((filled(0x1ff0, 16), filled(0x1000, 1)), (vec![7; 16], vec![0]));

    let iov = room.resume(&ours);
    assert_eq!((iov.len(), iov.buffers()), (17, 2));
    // One that is not kept is over.
    drop(iov);
    assert!(room.resume(&ours).is_empty());

    let mut iov = room.start();
    assert!(iov.push(ours.get_slice(GuestAddress(0), 16).unwrap()));
    iov.keep();
    assert!(room.resume(&other).is_empty(), "it is of another memory");
    assert!(room.resume(&ours).is_empty(), "and forgotten");
    // One buffer may be of two regions whose mappings happen to lie side by side: it is gathered anew.
    let (mut iov, end) = (room.start(), ours.get_slice(GuestAddress(0x1ff0), 16).unwrap());
    assert!(iov.push(end));
    iov.entries[0].iov_len += 1;
    iov.keep();
    assert!(room.resume(&ours).is_empty());
    let mut iov = room.start();
    assert!(iov.push(end));
    iov.keep();
    assert!(room.start().is_empty());
    assert!(room.resume(&ours).is_empty(), "a frame was started");
}
