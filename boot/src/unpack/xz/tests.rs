//! Streams made by hand, one thing wrong with each.

use super::*;
use crate::unpack::tests::{packed, sample};

/// A block, and what the index has of it.
struct Block {
    bytes: Vec<u8>,
    unpadded: usize,
    out: usize,
}

/// A block of `text` as it is, with the header's `fields` from the flags on, and without a check.
fn block(fields: &[u8], text: &[u8]) -> Block {
    let len = (1 + fields.len()).next_multiple_of(4);
    let mut bytes = vec![0; len];
    bytes[0] = (len / 4) as u8;
    bytes[1..=fields.len()].copy_from_slice(fields);
    bytes.extend(crc32(&bytes));
    bytes.push(1);
    bytes.extend((text.len() as u16 - 1).to_be_bytes());
    bytes.extend(text);
    bytes.push(0);
    let unpadded = bytes.len();
    bytes.resize(unpadded.next_multiple_of(4), 0);
    Block { bytes, unpadded, out: text.len() }
}

/// The fields of a header with a dictionary of 4 KiB, and no sizes.
const FIELDS: [u8; 4] = [0, LZMA2, 1, 0];

fn number(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn summed(bytes: &[u8]) -> Vec<u8> {
    [bytes, &crc32(bytes)].concat()
}

fn head(flags: [u8; 2]) -> Vec<u8> {
    [&MAGIC[..], &summed(&flags)].concat()
}

fn index(count: usize, blocks: &[Block]) -> Vec<u8> {
    let sizes = blocks.iter().flat_map(|block| [number(block.unpadded), number(block.out)].concat());
    let mut index: Vec<u8> = [0].into_iter().chain(number(count)).chain(sizes).collect();
    index.resize(index.len().next_multiple_of(4), 0);
    summed(&index)
}

fn foot(backward: u32, flags: [u8; 2]) -> Vec<u8> {
    let body = [&backward.to_le_bytes()[..], &flags].concat();
    [&crc32(&body)[..], &body, b"YZ"].concat()
}

/// A whole stream without checks.
fn stream(blocks: &[Block]) -> Vec<u8> {
    let index = index(blocks.len(), blocks);
    let bytes: Vec<u8> = blocks.iter().flat_map(|block| block.bytes.clone()).collect();
    [head([0, 0]), bytes, index.clone(), foot(index.len() as u32 / 4 - 1, [0, 0])].concat()
}

fn read(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    Decoder::new(bytes).read_to_end(&mut out).map_err(|error| error.to_string())?;
    Ok(out)
}

#[test]
fn each_field_of_a_streams_header_is_looked_at() {
    let good = stream(&[block(&FIELDS, b"text")]);
    assert_eq!(read(&good).unwrap(), b"text");
    for at in (0..6).chain(8..12) {
        let mut broken = good.clone();
        broken[at] ^= 1;
        assert_eq!(read(&broken).unwrap_err(), "no xz stream begins where one should", "byte {at}");
    }
    // Each of these tells the same at its end.
    for flags in [[1, 0], [0x80, 4], [0, 2], [0, 11], [0, 0x10]] {
        let mut other = good.clone();
        other[..12].copy_from_slice(&head(flags));
        let end = other.len() - 12;
        other.truncate(end);
        other.extend(foot(1, flags));
        assert_eq!(read(&other).unwrap_err(), "the xz stream is of a kind that is not known", "{flags:?}");
    }
}

#[test]
fn each_field_of_a_streams_end_is_looked_at() {
    let good = stream(&[block(&FIELDS, b"text")]);
    let (body, end) = good.split_at(good.len() - 12);
    let with = |end: &[u8]| read(&[body, end].concat());
    let backward = u32::from_le_bytes(*end[4..].first_chunk().unwrap());
    assert_eq!(with(&foot(backward, [0, 0])).unwrap(), b"text");
    for (backward, flags) in [
        (backward + 1, [0, 0]),
        (backward - 1, [0, 0]),
        (backward | 1 << 31, [0, 0]),
        (backward, [0, 1]),
        (backward, [1, 0]),
    ] {
        let error = with(&foot(backward, flags)).unwrap_err();
        assert_eq!(error, "the xz stream's end is corrupt", "{backward} {flags:?}");
    }
    for at in 0..12 {
        let mut broken = end.to_vec();
        broken[at] ^= 1;
        assert_eq!(with(&broken).unwrap_err(), "the xz stream's end is corrupt", "byte {at}");
    }
}

#[test]
fn the_index_counts_the_blocks_that_there_were() {
    let text = sample(300);
    for blocks in [0, 1, 127, 128, 300] {
        let blocks: Vec<Block> = text[..blocks].iter().map(|byte| block(&FIELDS, &[*byte])).collect();
        assert!(read(&stream(&blocks)).unwrap() == text[..blocks.len()], "{} blocks", blocks.len());
        for count in [blocks.len() + 1, blocks.len() + 128, blocks.len().wrapping_sub(1) & 0xffff] {
            let mut bytes: Vec<u8> =
                [&head([0, 0])[..], &blocks.iter().flat_map(|block| block.bytes.clone()).collect::<Vec<_>>()]
                    .concat();
            bytes.extend(index(count, &blocks));
            let error = read(&bytes).unwrap_err();
            assert_eq!(error, "the xz index counts other blocks than there are", "{count}");
        }
    }
    let mut endless = head([0, 0]);
    endless.push(0);
    endless.extend([0x80; 20]);
    assert_eq!(read(&endless).unwrap_err(), "a number in the xz index is too long");
}

#[test]
fn padding_is_zeros_in_fours_behind_a_stream() {
    let stream = stream(&[block(&FIELDS, b"text")]);
    for (padding, good) in [(0, true), (1, false), (3, false), (4, true), (6, false), (8, true)] {
        let padding = vec![0; padding];
        let between = [&stream[..], &padding, &stream].concat();
        let behind = [&stream[..], &padding].concat();
        let len = padding.len();
        assert_eq!(read(&between).ok(), good.then(|| b"texttext".to_vec()), "{len} bytes between");
        assert_eq!(read(&behind).ok(), good.then(|| b"text".to_vec()), "{len} bytes behind");
        let before = read(&[&padding[..], &stream].concat());
        assert_eq!(before.is_ok(), padding.is_empty(), "{len} bytes before");
    }
    assert!(read(&[&stream[..], &[0, 0, 0, 1], &stream].concat()).is_err());
}

#[test]
fn a_dictionary_has_a_limit_and_sizes_in_a_header_have_none() {
    for (dictionary, good) in
        [(0, true), (27, true), (28, true), (29, false), (39, false), (40, false), (255, false)]
    {
        let read = read(&stream(&[block(&[0, LZMA2, 1, dictionary], b"text")]));
        let refused = "the xz data needs a dictionary of more than 64 MiB".to_owned();
        assert_eq!(read, if good { Ok(b"text".to_vec()) } else { Err(refused) }, "{dictionary}");
    }
    for (fields, good) in [
        (&[0x40, 8, LZMA2, 1, 0][..], true),
        (&[0x80, 4, LZMA2, 1, 0], true),
        (&[0xc0, 0x88, 0x80, 0, 0x84, 0, LZMA2, 1, 0], true),
        (&[0xc0, 8, LZMA2, 1, 0], false),
        (&[0x40, LZMA2, 1, 0], false),
        (&[0x40, 0xff, 0xff, 0xff], false),
        (&[1, LZMA2, 1, 0, 3, 1, 0], false),
        (&[0x20, LZMA2, 1, 0], false),
    ] {
        assert_eq!(read(&stream(&[block(fields, b"text")])).is_ok(), good, "{fields:x?}");
    }
    // Programs tell the sizes where they pack many blocks at once.
    let bytes = sample(300_000);
    let packed = packed("xz", &["-c", "-T2", "--block-size=70000"], &bytes);
    assert_eq!(packed[13], 0xc0, "both sizes");
    assert!(read(&packed).unwrap() == bytes);
}
