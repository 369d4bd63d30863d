//! XXH64 with the seed 0, of which zstd's frames have the lower half (RFC 8878, 3.1.1; the algorithm: xxHash fast digest, 0.1.1).

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;
const P4: u64 = 0x85eb_ca77_c2b2_ae63;
const P5: u64 = 0x27d4_eb2f_1656_67c5;
/// In bytes: four words, one for each sum.
const STRIPE: usize = 32;

/// The hash of what came so far.
pub(super) struct Xxh64 {
    sums: [u64; 4],
    /// What is no whole stripe yet.
    rest: [u8; STRIPE],
    len: u64,
}

impl Default for Xxh64 {
    fn default() -> Self {
        let sums = [P1.wrapping_add(P2), P2, 0, P1.wrapping_neg()];
        Self { sums, rest: [0; STRIPE], len: 0 }
    }
}

fn round(sum: u64, word: u64) -> u64 {
    sum.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

impl Xxh64 {
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let at = self.len as usize % STRIPE;
            let (now, later) = bytes.split_at(bytes.len().min(STRIPE - at));
            self.rest[at..at + now.len()].copy_from_slice(now);
            self.len += now.len() as u64;
            bytes = later;
            if self.len.is_multiple_of(STRIPE as u64) {
                for (sum, word) in self.sums.iter_mut().zip(self.rest.as_chunks().0) {
                    *sum = round(*sum, u64::from_le_bytes(*word));
                }
            }
        }
    }

    pub(super) fn sum(&self) -> u64 {
        let mut hash = P5;
        if self.len >= STRIPE as u64 {
            let turned = self.sums.iter().zip([1, 7, 12, 18]).map(|(sum, by)| sum.rotate_left(by));
            hash = turned.fold(0, u64::wrapping_add);
            for sum in self.sums {
                hash = (hash ^ round(0, sum)).wrapping_mul(P1).wrapping_add(P4);
            }
        }
        hash = hash.wrapping_add(self.len);
        let (words, rest) = self.rest[..self.len as usize % STRIPE].as_chunks();
        for word in words {
            let word = round(0, u64::from_le_bytes(*word));
            hash = (hash ^ word).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        }
        let (halves, bytes) = rest.as_chunks();
        for half in halves {
            let half = u64::from(u32::from_le_bytes(*half)).wrapping_mul(P1);
            hash = (hash ^ half).rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        }
        for byte in bytes {
            hash = (hash ^ u64::from(*byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
        }
        hash = (hash ^ hash >> 33).wrapping_mul(P2);
        hash = (hash ^ hash >> 29).wrapping_mul(P3);
        hash ^ hash >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes_come_out_however_the_bytes_come() {
        for (text, hash) in [
            (&b""[..], 0xef46_db37_51d8_e999),
            (b"a", 0xd24e_c4f1_a98c_6e5b),
            (b"abc", 0x44bc_2cf5_ad77_0999),
        ] {
            let mut xxh = Xxh64::default();
            xxh.update(text);
            assert_eq!(xxh.sum(), hash, "{text:?}");
        }
        let bytes: Vec<u8> = (0..=255).collect();
        let mut whole = Xxh64::default();
        whole.update(&bytes);
        for piece in [1, 7, 31, 32, 33, 100] {
            let mut xxh = Xxh64::default();
            bytes.chunks(piece).for_each(|piece| xxh.update(piece));
            assert_eq!(xxh.sum(), whole.sum(), "{piece}");
        }
    }
}
