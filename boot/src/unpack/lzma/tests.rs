//! What a window reaches, and what a chunk must be, to the byte.

use super::*;
use crate::unpack::tests::{Digests, packed, sample};

fn window(dictionary: usize, bytes: &[u8]) -> Window {
    let mut window = Window::default();
    window.begin(dictionary);
    bytes.iter().for_each(|byte| window.push(*byte));
    window
}

#[test]
fn nothing_is_reached_beyond_a_reset_or_the_dictionary() {
    let mut window = window(4096, b"ab");
    assert_eq!((window.back(0), window.back(1), window.back(2)), (b'b', b'a', 0));
    window.reset();
    assert_eq!((window.back(0), window.repeat(0, 1)), (0, Err(Corrupt)));
    window.push(b'c');
    assert_eq!((window.back(0), window.back(1), window.back(2), window.back(3)), (b'c', 0, 0, 0));
    for distance in [1, 2, 3, 4, usize::MAX] {
        assert_eq!(window.repeat(distance, 1), Err(Corrupt), "{distance}");
    }
    assert_eq!((window.repeat(0, 2), window.rest()), (Ok(()), &b"abccc"[..]));

    let mut window = self::window(4096, &sample(5000));
    assert_eq!(window.repeat(4096, 1), Err(Corrupt));
    assert_eq!((window.repeat(4095, 2), &window.rest()[5000..]), (Ok(()), &sample(5000)[904..906]));
}

#[test]
fn a_window_keeps_its_dictionary_and_moves_it_once_in_a_while() {
    let bytes = sample(300_000);
    // What is kept is never less than 64 KiB.
    for (dictionary, keep) in [(4096, 0x1_0000), (100_000, 100_000)] {
        let mut window = window(dictionary, &bytes[..2 * keep - 1]);
        window.trim();
        assert_eq!(window.rest(), &bytes[..2 * keep - 1], "nobody took it yet");
        window.take(2 * keep - 1);
        window.trim();
        assert_eq!(window.bytes.len(), 2 * keep - 1);
        window.push(bytes[2 * keep - 1]);
        window.trim();
        let rest = &bytes[2 * keep - 1..2 * keep];
        assert_eq!((window.bytes.len(), window.rest()), (2 * keep, rest), "nobody took it yet");
        window.take(1);
        window.trim();
        assert_eq!((window.bytes.len(), window.rest()), (keep, &b""[..]));
        let from = 2 * keep - dictionary;
        assert_eq!((window.repeat(dictionary - 1, 3), window.rest()), (Ok(()), &bytes[from..from + 3]));
    }
    let mut window = window(4096, &[7; 0x1_fff0]);
    window.reset();
    (0..16).for_each(|_| window.push(8));
    window.take(0x2_0000);
    window.trim();
    assert_eq!((window.back(15), window.back(16), window.repeat(16, 1)), (8, 0, Err(Corrupt)));
}

/// The one chunk that xz makes of these bytes: its properties, and its content.
fn chunk(bytes: &[u8]) -> (u8, Vec<u8>) {
    let raw = packed("xz", &["-c", "--format=raw", "--lzma2=preset=0"], bytes);
    assert_eq!((raw[0], raw.last()), (0xe0, Some(&0)), "one chunk, and the end");
    let len = usize::from(u16::from_be_bytes([raw[3], raw[4]])) + 1;
    assert_eq!(raw.len(), 6 + len + 1);
    (raw[5], raw[6..6 + len].to_vec())
}

fn decode(properties: u8, input: &[u8], size: usize) -> Result<Vec<u8>, Corrupt> {
    let mut window = window(1 << 20, b"");
    State::new(properties)?.chunk(input, size, 0, &mut window)?;
    Ok(window.rest().to_vec())
}

#[test]
fn a_chunk_is_used_up_exactly() {
    for len in [30, 100, 1000, 5000] {
        let bytes = sample(len);
        let (properties, input) = chunk(&bytes);
        assert!(decode(properties, &input, len).unwrap() == bytes);
        for more in [0, 1, 0xff] {
            let input = [&input[..], &[more]].concat();
            assert_eq!(decode(properties, &input, len), Err(Corrupt), "{len} bytes, and {more}");
        }
        assert_eq!(decode(properties, &input[..input.len() - 1], len), Err(Corrupt), "{len} bytes");
        assert_eq!(decode(properties, b"", len), Err(Corrupt));
        let mut other = input.clone();
        *other.last_mut().unwrap() ^= 1;
        assert_eq!(decode(properties, &other, len), Err(Corrupt), "{len} bytes, the last is another");
        assert_eq!(decode(properties, &input, len - 1), Err(Corrupt));
        assert_eq!(decode(properties, &input, len + 1), Err(Corrupt));
    }
}

#[test]
fn a_literal_can_be_what_the_match_would_go_on_with() {
    // The longest match leaves one byte of what is repeated, which is too short for another.
    for last in [0, 1, 0x7f, 0x80, 0xff] {
        let noise: Vec<u8> = Digests::default().take(400).collect();
        let repeated = [&noise[..273], &[last]].concat();
        let bytes = [&repeated[..], &repeated, &noise[300..]].concat();
        let (properties, input) = chunk(&bytes);
        assert!(decode(properties, &input, bytes.len()).is_ok_and(|out| out == bytes), "{last:#x}");
    }
}

#[test]
fn a_state_that_is_reset_has_its_properties_and_has_learned_nothing() {
    for (pb, lp) in (0..=4).flat_map(|pb| (0..=4).map(move |lp| (pb, lp))) {
        for lc in 0..=4 - lp {
            let mut state = State::new((pb * 45 + lp * 9 + lc) as u8).ok().unwrap();
            (state.state, state.rep[0], state.literal[0][1]) = (7, 3, 1);
            state.reset().ok().unwrap();
            assert_eq!((state.lc, state.lp, state.pb), (lc, lp, pb));
            assert_eq!((state.state, state.rep[0], state.literal[0][1]), (0, 0, HALF));
            assert_eq!(state.literal.len(), 1 << (lc + lp));
        }
    }
}
