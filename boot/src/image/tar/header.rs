//! The header of 512 bytes.

use super::until_nul;

pub(super) const BLOCK: usize = 512;

/// A header, by fields.
pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK]);

impl Header<'_> {
    /// Whether its checksum is right: the sum of its bytes, that of the checksum taken as blanks. Old programs took bytes as signed.
    pub(super) fn is_valid(&self) -> bool {
        let sum = |value: fn(u8) -> i64| -> i64 {
            let blanks = 8 * i64::from(b' ');
            self.0
                .iter()
                .enumerate()
                .map(|(i, b)| if (148..156).contains(&i) { 0 } else { value(*b) })
                .sum::<i64>()
                + blanks
        };
        let told = number(&self.0[148..156]);
        told == Some(sum(i64::from)) || told == Some(sum(|byte| i64::from(byte as i8)))
    }

    /// With its prefix, where it has one by POSIX.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        match until_nul(&self.0[345..500]) {
            // GNU's own format has "ustar  " there, and other things in the prefix's place.
            prefix @ [_, ..] if self.0[257..263] == *b"ustar\0" => [prefix, b"/", name].concat(),
            _ => name.to_vec(),
        }
    }

    pub(super) fn mode(&self) -> Option<i64> {
        number(&self.0[100..108])
    }

    pub(super) fn uid(&self) -> Option<u64> {
        number(&self.0[108..116])?.try_into().ok()
    }

    pub(super) fn gid(&self) -> Option<u64> {
        number(&self.0[116..124])?.try_into().ok()
    }

    pub(super) fn size(&self) -> Option<u64> {
        number(&self.0[124..136])?.try_into().ok()
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        number(&self.0[136..148])
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn link(&self) -> &[u8] {
        until_nul(&self.0[157..257])
    }

    /// Major and minor.
    pub(super) fn device(&self) -> (Option<u64>, Option<u64>) {
        let part = |from| number(&self.0[from..from + 8]).and_then(|number| number.try_into().ok());
        (part(329), part(337))
    }

    /// Of a sparse file of GNU's old kind: its size with holes.
    pub(super) fn real_size(&self) -> Option<u64> {
        number(&self.0[483..495])?.try_into().ok()
    }
}

/// A number: octal digits, or by GNU's extension binary of two's complement, marked in the first bit. Nothing at all is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // The mark is no part of the number: its sign is the bit below.
        let top = i128::from((first << 1) as i8 >> 1);
        let value =
            rest.iter().try_fold(top, |value, byte| value.checked_mul(256)?.checked_add((*byte).into()))?;
        return value.try_into().ok();
    }
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add((digit - b'0').into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Header, number};

    #[test]
    fn a_prefix_is_of_a_name_by_posix_only() {
        let name = |magic: &[u8], prefix: &[u8]| {
            let mut block = [0; BLOCK];
            block[..4].copy_from_slice(b"name");
            block[257..257 + magic.len()].copy_from_slice(magic);
            block[345..345 + prefix.len()].copy_from_slice(prefix);
            String::from_utf8(Header(&block).name()).unwrap()
        };
        assert_eq!(name(b"ustar\x0000", b"a/b"), "a/b/name");
        assert_eq!(name(b"ustar\x0000", &[b'p'; 155]), "p".repeat(155) + "/name");
        assert_eq!(name(b"ustar\x0000", b""), "name");
        // GNU's format has times there, and that of Unix V7 nothing.
        assert_eq!(name(b"ustar  \0", b"14712345670\x0014712345671"), "name");
        assert_eq!(name(b"", b"a/b"), "name");
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777777\0"), Some(0o777_7777_7777));
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(b"-1\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0x54, 0x0b, 0xe4, 0]), Some(10_000_000_000));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
