//! The metrics of a route, as ip-route(8) says them (`linux/rtnetlink.h`, `RTAX_*`).

use super::route::split;

const RTAX_LOCK: u16 = 1;
const RTAX_CC_ALGO: u16 = 16;
const RTAX_FEATURES: u16 = 12;
/// Of the features, explicit congestion notification (RFC 3168).
const RTAX_FEATURE_ECN: u32 = 1;

/// How the number of a metric is written.
enum Form {
    Plain,
    /// In milliseconds, of which the kernel counts so many parts.
    Milliseconds(u32),
    /// The same of whole ones; ip(8) locks it in any case, and takes no word for that.
    Locked,
}

use Form::{Locked, Milliseconds, Plain};

/// Each metric that is a number, and its word.
const NUMBERS: [(u16, &str, Form); 14] = [
    (2, "mtu", Plain),
    (3, "window", Plain),
    (4, "rtt", Milliseconds(8)),
    (5, "rttvar", Milliseconds(4)),
    (6, "ssthresh", Plain),
    (7, "cwnd", Plain),
    (8, "advmss", Plain),
    (9, "reordering", Plain),
    (10, "hoplimit", Plain),
    (11, "initcwnd", Plain),
    (13, "rto_min", Locked),
    (14, "initrwnd", Plain),
    (15, "quickack", Plain),
    (17, "fastopen_no_cookie", Plain),
];

/// The words and values of what `RTA_METRICS` has in it. Of a number that is locked, the kernel learns no other by itself.
pub(super) fn words(metrics: &[u8]) -> Vec<(&'static str, String)> {
    let metrics = split(metrics);
    let value = |kind| metrics.iter().find(|(found, _)| *found == kind).map(|(_, value)| &value[..]);
    let number = |kind| value(kind).and_then(|value| Some(u32::from_ne_bytes(value.try_into().ok()?)));
    let locked = number(RTAX_LOCK).unwrap_or_default();
    let mut words = Vec::new();
    for (kind, word, form) in NUMBERS {
        let Some(number) = number(kind) else { continue };
        let said = match form {
            Plain => number.to_string(),
            Milliseconds(parts) => format!("{}ms", number / parts),
            Locked => format!("{number}ms"),
        };
        let is_said = locked & (1 << kind) != 0 && !matches!(form, Locked);
        words.push((word, if is_said { format!("lock {said}") } else { said }));
    }
    if number(RTAX_FEATURES).is_some_and(|features| features & RTAX_FEATURE_ECN != 0) {
        words.push(("features", "ecn".to_owned()));
    }
    // Ends with a zero.
    if let Some(name) = value(RTAX_CC_ALGO).and_then(|name| std::str::from_utf8(name).ok()) {
        let lock = if locked & (1 << RTAX_CC_ALGO) != 0 { "lock " } else { "" };
        words.push(("congctl", format!("{lock}{}", crate::text::word(name.trim_end_matches('\0')))));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = [(4 + value.len() as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn metrics_are_said_as_ip_takes_them() {
        let number = |kind, value: u32| attribute(kind, &value.to_ne_bytes());
        let metrics = [
            number(RTAX_LOCK, 1 << 2 | 1 << 13),
            number(2, 1400),
            number(4, 80),
            number(11, 20),
            number(13, 200),
            number(RTAX_FEATURES, 1),
            attribute(RTAX_CC_ALGO, b"reno\0"),
        ]
        .concat();
        let words: Vec<_> = words(&metrics).iter().map(|(word, value)| format!("{word} {value}")).collect();
        assert_eq!(
            words.join(" "),
            "mtu lock 1400 rtt 10ms initcwnd 20 rto_min 200ms features ecn congctl reno"
        );
        for bytes in [&metrics[..3], &metrics[..9], &[4, 0, 2, 0], &[0; 8]] {
            super::words(bytes);
        }
    }
}
