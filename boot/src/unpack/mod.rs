//! Unpacks what comes packed: gzip, zstd and xz, told apart by their first bytes, all as streams.
//!
//! **Invariant:** memory is bounded whatever the input says (xz: a dictionary of at most [`xz::DICTIONARY_MAX`] bytes, zstd: a window
//! of 128 MiB). How much comes out is not bounded here; callers take what they can use.

mod crc64;
mod lzma;
mod xxh64;
mod xz;

use std::fmt;
use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::FrameDecoderError::ReadFrameHeaderError as Header;
use ruzstd::decoding::errors::ReadFrameHeaderError;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use self::xxh64::Xxh64;

/// How bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// RFC 1952
    Gzip,
    /// RFC 8878
    Zstd,
    /// The .xz File Format 1.2
    Xz,
}

impl Packing {
    /// Of a file that begins with `head`, of which four bytes suffice; `None` where it is none of these.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [0xfd, b'7', b'z', b'X', ..] => Some(Self::Xz),
            _ => None,
        }
    }

    /// What `from` has in it.
    pub(crate) fn unpack<'a>(self, from: impl BufRead + 'a) -> Box<dyn Read + 'a> {
        match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(from)),
            Self::Zstd => {
                Box::new(Zstd { from, frame: FrameDecoder::new(), hash: Xxh64::default(), within: false })
            }
            Self::Xz => Box::new(xz::Decoder::new(from)),
        }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        })
    }
}

/// Frames of zstd, one after another, with skippable ones between; each is checked by its checksum, where it has one.
struct Zstd<R> {
    from: R,
    frame: FrameDecoder,
    /// Of what came out of the frame.
    hash: Xxh64,
    /// Whether `frame` is one that was begun.
    within: bool,
}

impl<R: BufRead> Zstd<R> {
    /// Begins the next frame; `false` at the end of the input.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.within {
            if self.from.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.frame.reset(&mut self.from) {
                Ok(()) => (self.within, self.hash) = (true, Xxh64::default()),
                Err(Header(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.from).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Ok(true)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.begin()? {
            while self.frame.can_collect() == 0 && !self.frame.is_finished() {
                self.frame
                    .decode_blocks(&mut self.from, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            }
            match self.frame.read(buffer)? {
                0 if !buffer.is_empty() => {
                    // Of the hash it has the lower half (RFC 8878, 3.1.1).
                    if self.frame.get_checksum_from_data().is_some_and(|sum| sum != self.hash.sum() as u32) {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            "a frame's checksum is wrong",
                        ));
                    }
                    self.within = false;
                }
                n => {
                    self.hash.update(&buffer[..n]);
                    return Ok(n);
                }
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    /// What the program `name` makes of these bytes.
    pub(super) fn packed(name: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut child = Command::new(name)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(bytes).unwrap());
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            output.stdout
        })
    }

    pub(super) fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Packing::of(bytes).expect("no packing").unpack(bytes).read_to_end(&mut out)?;
        Ok(out)
    }

    /// Bytes of every kind: text that repeats near and far, runs, and noise.
    pub(super) fn sample(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut out: Vec<u8> = Vec::with_capacity(len + 300);
        while out.len() < len {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match state >> 30 {
                0 => out.extend(state.to_le_bytes()),
                1 => out.extend(std::iter::repeat_n(state as u8, (state >> 8 & 0xff) as usize)),
                2 => out.extend_from_slice(b"the quick brown fox jumps over the lazy dog"),
                _ => {
                    let from = (state as usize >> 4) % (out.len() + 1);
                    let copy = out[from..out.len().min(from + 200)].to_vec();
                    out.extend(copy);
                }
            }
        }
        out.truncate(len);
        out
    }

    const PROGRAMS: [(&str, &[&str]); 8] = [
        ("gzip", &["-c"]),
        ("zstd", &["-qc"]),
        ("zstd", &["-qc", "-19"]),
        ("xz", &["-c"]),
        ("xz", &["-c", "--check=crc32", "--lzma2=dict=1MiB"]),
        ("xz", &["-c", "--check=none", "--lzma2=preset=0,lc=0,lp=2,pb=0"]),
        ("xz", &["-c", "--check=sha256", "--block-size=70000"]),
        ("xz", &["-c", "--lzma2=preset=1,lc=1,lp=3,pb=1"]),
    ];

    #[test]
    fn what_the_programs_pack_comes_out() {
        for len in [0, 1, 100, 70_000, 3_000_000] {
            let bytes = sample(len);
            for (name, arguments) in PROGRAMS {
                let packed = packed(name, arguments, &bytes);
                assert!(unpacked(&packed).unwrap() == bytes, "{name} {arguments:?}, {len} bytes");
                let twice = [&packed[..], &packed].concat();
                assert!(unpacked(&twice).unwrap() == [&bytes[..], &bytes].concat(), "{name} twice");
            }
        }
        // What does not become smaller, alone and amid what does.
        let noise: Vec<u8> = Digests::default().take(200_000).collect();
        let mixed = [&sample(100_000)[..], &noise, &sample(100_000), &noise[..70_000], b"end"].concat();
        for (name, arguments) in PROGRAMS {
            for bytes in [&noise, &mixed] {
                assert!(unpacked(&packed(name, arguments, bytes)).unwrap() == *bytes, "{name} {arguments:?}");
            }
        }
    }

    /// Noise.
    #[derive(Default)]
    pub(super) struct Digests(u64);

    impl Iterator for Digests {
        type Item = u8;

        fn next(&mut self) -> Option<u8> {
            self.0 = (self.0 ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31);
            Some((self.0 >> 40) as u8)
        }
    }

    #[test]
    fn a_buffer_without_room_takes_nothing_and_ends_nothing() {
        let bytes = sample(300_000);
        for (name, arguments) in PROGRAMS {
            let packed = packed(name, arguments, &bytes);
            let mut from = Packing::of(&packed).unwrap().unpack(&packed[..]);
            let (mut out, mut buffer) = (Vec::new(), vec![0; 7000]);
            loop {
                assert_eq!(from.read(&mut []).unwrap(), 0, "{name} {arguments:?}");
                match from.read(&mut buffer).unwrap() {
                    0 => break,
                    n => out.extend_from_slice(&buffer[..n]),
                }
            }
            assert!(out == bytes, "{name} {arguments:?}");
        }
    }

    #[test]
    fn skippable_frames_are_skipped() {
        let skip = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let frame = packed("zstd", &["-qc"], b"text");
        assert_eq!(unpacked(&[&skip[..], &frame, &skip, &frame].concat()).unwrap(), b"texttext");
        assert!(unpacked(&skip[..9]).is_err());
    }

    #[test]
    fn what_is_cut_off_or_broken_is_an_error() {
        let bytes = sample(30_000);
        for (name, arguments) in PROGRAMS {
            let packed = packed(name, arguments, &bytes);
            for len in (4..packed.len()).step_by(97).chain([packed.len() - 1]) {
                assert!(unpacked(&packed[..len]).is_err(), "{name} {arguments:?} cut at {len}");
            }
        }
        // What does not become smaller is there as it is: no code of the format's own is broken by what breaks it.
        let noise: Vec<u8> = Digests::default().take(30_000).collect();
        for (name, arguments) in PROGRAMS.into_iter().filter(|(_, args)| !args.contains(&"--check=none")) {
            for bytes in [&bytes, &noise] {
                let packed = packed(name, arguments, bytes);
                for at in (12..packed.len()).step_by(101) {
                    let mut broken = packed.clone();
                    broken[at] ^= 0x10;
                    // A match elsewhere can be with the same bytes.
                    let unpacked = unpacked(&broken).is_ok_and(|out| *bytes == noise || out != *bytes);
                    assert!(!unpacked, "{name} {arguments:?} broken at {at}");
                }
            }
        }
    }

    thread_local! {
        static SAMPLES: Vec<Vec<u8>> =
            PROGRAMS.map(|(name, arguments)| packed(name, arguments, &sample(3000))).to_vec();
    }

    proptest! {
        #[test]
        fn no_bytes_lead_astray(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            magic in prop::sample::select(vec![&b"\x1f\x8b\x08"[..], b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0"]),
        ) {
            bytes.splice(..0, magic.iter().copied());
            let mut out = Packing::of(&bytes).unwrap().unpack(&bytes[..]).take(1 << 20);
            let _ = io::copy(&mut out, &mut io::sink());
        }

        #[test]
        fn no_flipped_bits_lead_astray(flips in prop::collection::vec((0..2000_usize, 0..8), 1..4), which in 0..PROGRAMS.len()) {
            let mut bytes = SAMPLES.with(|samples| samples[which].clone());
            for (at, bit) in flips {
                let at = 4 + at % (bytes.len() - 4);
                bytes[at] ^= 1_u8 << bit;
            }
            let mut out = Packing::of(&bytes).unwrap().unpack(&bytes[..]).take(1 << 24);
            let _ = io::copy(&mut out, &mut io::sink());
        }
    }
}
