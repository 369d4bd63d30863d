//! SHA-256 (FIPS 180-4), by which images name their parts.
//!
//! By hand: the crate `sha2` would bring eight crates for these lines.

use std::fmt;
use std::io::{self, Read};

/// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
#[rustfmt::skip]
const K: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

/// A digest; shown as its 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of 64 hexadecimal digits.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Some(Self(digest))
    }

    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(bytes);
        hash.finish()
    }

    /// Of all that `from` gives.
    pub(crate) fn of_reader(mut from: impl Read) -> io::Result<Self> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(hash.finish()),
                Ok(n) => hash.update(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A digest in the making.
pub(crate) struct Sha256 {
    state: [u32; 8],
    /// The last bytes, which fill no block yet.
    rest: [u8; 64],
    filled: usize,
    /// In bytes.
    length: u64,
}

impl Sha256 {
    pub(crate) fn new() -> Self {
        let state =
            [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];
        Self { state, rest: [0; 64], filled: 0, length: 0 }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.length = self.length.wrapping_add(bytes.len() as u64);
        if self.filled > 0 {
            let n = bytes.len().min(64 - self.filled);
            self.rest[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
            if self.filled < 64 {
                return;
            }
            compress(&mut self.state, &self.rest);
        }
        let (blocks, rest) = bytes.as_chunks::<64>();
        blocks.iter().for_each(|block| compress(&mut self.state, block));
        self.rest[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    pub(crate) fn finish(mut self) -> Digest {
        let bits = self.length.wrapping_mul(8);
        let zeros = (55_usize.wrapping_sub(self.filled)) % 64;
        let mut padding = [0; 72];
        padding[0] = 0x80;
        padding[1 + zeros..9 + zeros].copy_from_slice(&bits.to_be_bytes());
        self.update(&padding[..9 + zeros]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        Digest(digest)
    }
}

fn compress(state: &mut [u32; 8], block: &[u8; 64]) {
    let mut w = [0_u32; 16];
    for (word, bytes) in w.iter_mut().zip(block.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    let mut s = *state;
    // Eight rounds at a time, after which every variable is back in its place: none is moved.
    macro_rules! round {
        ($t:expr, $a:tt $b:tt $c:tt $d:tt $e:tt $f:tt $g:tt $h:tt) => {
            let (e, a) = (s[$e], s[$a]);
            let sum1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let choice = s[$g] ^ (e & (s[$f] ^ s[$g]));
            let t1 =
                s[$h].wrapping_add(sum1).wrapping_add(choice).wrapping_add(K[$t]).wrapping_add(w[$t % 16]);
            let sum0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let majority = (a & s[$b]) | (s[$c] & (a | s[$b]));
            s[$d] = s[$d].wrapping_add(t1);
            s[$h] = t1.wrapping_add(sum0).wrapping_add(majority);
        };
    }
    for t in (0..64).step_by(8) {
        if t >= 16 {
            for i in t..t + 8 {
                let (a, b) = (w[(i + 1) % 16], w[(i + 14) % 16]);
                let s0 = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
                let s1 = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
                w[i % 16] = w[i % 16].wrapping_add(s0).wrapping_add(w[(i + 9) % 16]).wrapping_add(s1);
            }
        }
        round!(t, 0 1 2 3 4 5 6 7);
        round!(t + 1, 7 0 1 2 3 4 5 6);
        round!(t + 2, 6 7 0 1 2 3 4 5);
        round!(t + 3, 5 6 7 0 1 2 3 4);
        round!(t + 4, 4 5 6 7 0 1 2 3);
        round!(t + 5, 3 4 5 6 7 0 1 2);
        round!(t + 6, 2 3 4 5 6 7 0 1);
        round!(t + 7, 1 2 3 4 5 6 7 0);
    }
    for (word, add) in state.iter_mut().zip(s) {
        *word = word.wrapping_add(add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standards_examples_come_out() {
        for (text, digest) in [
            ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
        ] {
            assert_eq!(Digest::of(text.as_bytes()).to_string(), digest);
            assert_eq!(Digest::from_hex(digest), Some(Digest::of(text.as_bytes())));
        }
        let million = vec![b'a'; 1_000_000];
        let digest = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
        assert_eq!(Digest::of(&million).to_string(), digest);
        assert_eq!(Digest::of_reader(&million[..]).unwrap().to_string(), digest);
        assert_eq!(Digest::from_hex(&digest[1..]), None);
        assert_eq!(Digest::from_hex(&digest.replace('c', "g")), None);
    }

    #[test]
    fn how_the_bytes_come_in_does_not_matter() {
        let bytes: Vec<u8> = (0..300_u32).map(|i| i as u8).collect();
        for len in 0..bytes.len() {
            for step in [1, 55, 63, 64, 65] {
                let mut hash = Sha256::new();
                bytes[..len].chunks(step).for_each(|chunk| hash.update(chunk));
                assert_eq!(hash.finish(), Digest::of(&bytes[..len]), "{len} bytes by {step}");
            }
        }
    }
}
