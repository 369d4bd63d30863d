//! Numbers of bytes, for people and for the command line.

/// A number of bytes as a person writes it, in the largest unit that divides it.
pub fn size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// A number of bytes as `--memory` takes it; less than 1 KiB of it is left out.
pub fn argument(bytes: u64) -> String {
    let units = [(40, 'T'), (30, 'G'), (20, 'M')];
    let (shift, unit) =
        units.into_iter().find(|(shift, _)| bytes.is_multiple_of(1 << shift)).unwrap_or((10, 'K'));
    format!("{}{unit}", bytes >> shift)
}
