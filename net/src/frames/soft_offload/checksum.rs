//! The Internet checksum (RFC 1071): 16-bit words added in one's complement.

/// The sum of the big-endian words of `bytes`; an odd last byte is padded with a zero.
#[inline]
pub(in crate::frames) fn sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<4>();
    // The sum of a frame's 32-bit words fits in 64 bits with room to spare, so carries are folded once, at the end.
    let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_be_bytes(last));
    fold(sum)
}

/// Reduces a sum to one word, adding each carry back in.
#[inline]
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// The sum of two words.
#[inline]
pub(in crate::frames) fn add(a: u16, b: u16) -> u16 {
    fold(u64::from(a) + u64::from(b))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sums_are_those_of_the_rfc() {
        // RFC 1071 §3.
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!((sum(&[]), sum(&[0x12]), sum(&[1, 2, 3])), (0, 0x1200, 0x0402));
        assert_eq!((sum(&[0; 1400]), sum(&[0xff; 1 << 16])), (0, 0xffff));
        assert_eq!((add(0xffff, 1), add(0xfffe, 1), fold(0x1_ffff)), (1, 0xffff, 1));
    }

    proptest! {
        #[test]
        fn a_sum_is_that_of_its_words(bytes in vec(any::<u8>(), 0..200)) {
            let word = |pair: &[u8]| u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
            prop_assert_eq!(sum(&bytes), bytes.chunks(2).map(word).fold(0, add));
        }
    }
}
