//! Which of two versions is newer (UAPI.10, the version format specification).

use std::cmp::Ordering;

/// Compares versions, or names that have versions in them.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (known(a), known(b));
        // What begins with one of these is older than what does not, in this order; the end comes after the first.
        for (index, separator) in b"~-^.".iter().enumerate() {
            if index == 1 && (a.is_empty() || b.is_empty()) {
                return a.len().cmp(&b.len());
            }
            let (rest_a, rest_b) = (a.strip_prefix(&[*separator]), b.strip_prefix(&[*separator]));
            match (rest_a, rest_b) {
                (Some(rest_a), Some(rest_b)) => (a, b) = (rest_a, rest_b),
                (Some(_), None) => return Ordering::Less,
                (None, Some(_)) => return Ordering::Greater,
                (None, None) => {}
            }
        }
        let digits = [a, b].iter().any(|text| text.first().is_some_and(u8::is_ascii_digit));
        let same = |c: &u8| if digits { c.is_ascii_digit() } else { c.is_ascii_alphabetic() };
        let run = |text: &[u8]| text.iter().position(|c| !same(c)).unwrap_or(text.len());
        let ((first, rest_a), (second, rest_b)) = (a.split_at(run(a)), b.split_at(run(b)));
        let order = if digits { number(first).cmp(&number(second)) } else { first.cmp(second) };
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// `text` from the first character on that counts.
fn known(text: &[u8]) -> &[u8] {
    let counts = |c: &u8| c.is_ascii_alphanumeric() || b"-.~^".contains(c);
    &text[text.iter().position(counts).unwrap_or(text.len())..]
}

/// What compares as the number does: how many digits, and which.
fn number(digits: &[u8]) -> (usize, &[u8]) {
    let digits = &digits[digits.iter().position(|c| *c != b'0').unwrap_or(digits.len())..];
    (digits.len(), digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_one_is_greater() {
        // Those of the specification, and names of kernels.
        for order in [
            &["122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1", "123^post1", "123.a-1"][..],
            &["123.1-1", "123a-1", "124-1"],
            &[
                "vmlinuz-5.10.0-9-amd64",
                "vmlinuz-5.10.0-30-amd64",
                "vmlinuz-6.1.0-5-amd64",
                "vmlinuz-6.12.1+deb13-amd64",
            ],
            &["6.9.0", "6.010.0", "6.11"],
        ] {
            for (i, older) in order.iter().enumerate() {
                assert_eq!(compare(older, older), Ordering::Equal);
                for newer in &order[i + 1..] {
                    assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
                    assert_eq!(compare(newer, older), Ordering::Greater, "{older} {newer}");
                }
            }
        }
    }
}
