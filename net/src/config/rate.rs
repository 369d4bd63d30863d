//! `rate=off|BITS[:BITS]`, `pps=off|FRAMES[:FRAMES]`, `burst=MILLISECONDS`: what a NIC may send and receive in a second.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::keys::number;

/// Bits or frames per second that can be a limit: less is an outage, and more no host can do.
const VALUES: RangeInclusive<u64> = 1..=1_000_000_000_000;
/// The least rate: a frame of 64 KiB takes half a minute.
const LEAST_BITS: u64 = 16_000;
/// Of less, a thread that sleeps whole milliseconds would lose a part each time.
const BURSTS: RangeInclusive<u32> = 5..=1000;

/// What a NIC may send and receive. Each direction is held to its limits by itself, the NIC as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// From the guest.
    pub sent: RateLimit,
    /// To the guest.
    pub received: RateLimit,
    /// How much of it may go at once after a pause: what the rate makes of so long a time.
    pub burst: Duration,
}

/// The limits of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Bits per second of frames, from the Ethernet header on.
    pub bits: Option<NonZeroU64>,
    /// Frames per second; a large one that is not segmented yet is one.
    pub frames: Option<NonZeroU64>,
}

impl RateLimits {
    /// The time of [`burst`](Self::burst) where nobody says it: long enough for a thread that wakes a few milliseconds late, and a
    /// hundredth of a second, so that no second has more than a hundredth too much.
    pub const BURST: Duration = Duration::from_millis(10);

    /// True where nothing is limited.
    pub fn is_off(&self) -> bool {
        (self.sent, self.received) == (RateLimit::default(), RateLimit::default())
    }

    /// Of the values of the three keys.
    pub(super) fn new(
        rate: Option<Pair>,
        pps: Option<Pair>,
        burst: Option<Duration>,
    ) -> Result<Self, &'static str> {
        let ([sent_bits, received_bits], [sent_frames, received_frames]) =
            (rate.unwrap_or_default(), pps.unwrap_or_default());
        let this = Self {
            sent: RateLimit { bits: sent_bits, frames: sent_frames },
            received: RateLimit { bits: received_bits, frames: received_frames },
            burst: burst.unwrap_or(Self::BURST),
        };
        match burst {
            Some(_) if this.is_off() => Err("there is neither a rate= nor a pps= that it could be of"),
            _ => Ok(this),
        }
    }
}

impl Default for RateLimits {
    fn default() -> Self {
        Self { sent: RateLimit::default(), received: RateLimit::default(), burst: Self::BURST }
    }
}

/// A limit for what is sent, and one for what is received.
pub(super) type Pair = [Option<NonZeroU64>; 2];

pub(super) fn parse_rate(text: &str) -> Result<Pair, &'static str> {
    let why = "it is bits per second, 16k to 1000G, for both ways or SENT:RECEIVED, or off";
    let pair = pair(text).ok_or(why)?;
    let enough = |bits: &NonZeroU64| bits.get() >= LEAST_BITS;
    if pair.iter().flatten().all(enough) { Ok(pair) } else { Err(why) }
}

pub(super) fn parse_pps(text: &str) -> Result<Pair, &'static str> {
    pair(text).ok_or("it is frames per second, for both ways or SENT:RECEIVED, or off")
}

pub(super) fn parse_burst(text: &str) -> Result<Duration, &'static str> {
    let millis = number(text).filter(|millis| BURSTS.contains(millis));
    millis
        .map(|millis| Duration::from_millis(millis.into()))
        .ok_or("it is a number of milliseconds, 5 to 1000")
}

fn pair(text: &str) -> Option<Pair> {
    match text.split_once(':') {
        Some((sent, received)) => Some([limit(sent)?, limit(received)?]),
        None => limit(text).map(|both| [both; 2]),
    }
}

/// One limit: nothing where it makes no sense.
fn limit(text: &str) -> Option<Option<NonZeroU64>> {
    if text == "off" {
        return Some(None);
    }
    let (digits, unit) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 1_000),
        b'M' => (&text[..text.len() - 1], 1_000_000),
        b'G' => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let value = number::<u64>(digits).filter(|_| !digits.is_empty())?.checked_mul(unit)?;
    VALUES.contains(&value).then(|| NonZeroU64::new(value))
}

/// The same as keys, `rate=20M:100M,burst=5`; `off` where nothing is limited. What is not named is not limited.
impl FromStr for RateLimits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::default());
        }
        let (mut rate, mut pps, mut burst) = (None, None, None);
        for item in text.split(',') {
            let refused = |why: &str| format!("{item}: {why}");
            let (key, value) = item.split_once('=').ok_or_else(|| {
                format!(
                    "{item:?} is none of off, rate=100M, rate=20M:100M (sent:received), pps=10k, burst=10"
                )
            })?;
            let again = match key {
                "rate" => rate.replace(parse_rate(value).map_err(refused)?).is_some(),
                "pps" => pps.replace(parse_pps(value).map_err(refused)?).is_some(),
                "burst" => burst.replace(parse_burst(value).map_err(refused)?).is_some(),
                _ => return Err(format!("there is no {key}=, but rate=, pps= and burst=")),
            };
            if again {
                return Err(format!("{key}= is given twice"));
            }
        }
        Self::new(rate, pps, burst).map_err(|why| format!("burst=: {why}"))
    }
}

impl fmt::Display for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off() {
            return f.write_str("off");
        }
        let mut comma = "";
        let Self { sent, received, burst } = self;
        for (key, pair) in [("rate", [sent.bits, received.bits]), ("pps", [sent.frames, received.frames])] {
            if pair != [None, None] {
                write!(f, "{comma}{key}={}", words(pair))?;
                comma = ",";
            }
        }
        if *burst == Self::BURST { Ok(()) } else { write!(f, "{comma}burst={}", burst.as_millis()) }
    }
}

fn words([sent, received]: Pair) -> String {
    let word = |limit: Option<NonZeroU64>| match limit.map(NonZeroU64::get) {
        None => "off".to_owned(),
        Some(value) if value % 1_000_000_000 == 0 => format!("{}G", value / 1_000_000_000),
        Some(value) if value % 1_000_000 == 0 => format!("{}M", value / 1_000_000),
        Some(value) if value % 1_000 == 0 => format!("{}k", value / 1_000),
        Some(value) => value.to_string(),
    };
    if sent == received { word(sent) } else { format!("{}:{}", word(sent), word(received)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str) -> RateLimits {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn a_limit_is_for_both_ways_or_each_has_its_own() {
        let both = limits("rate=100M");
        assert_eq!((both.sent.bits, both.received.bits), (NonZeroU64::new(100_000_000), both.sent.bits));
        let each = limits("rate=off:1G,pps=10k:7,burst=20");
        assert_eq!((each.sent.bits, each.received.bits), (None, NonZeroU64::new(1_000_000_000)));
        assert_eq!((each.sent.frames, each.received.frames), (NonZeroU64::new(10_000), NonZeroU64::new(7)));
        assert_eq!(each.burst, Duration::from_millis(20));
        assert!(limits("off").is_off() && limits("rate=off").is_off() && !each.is_off());
    }

    #[test]
    fn limits_are_said_as_they_are_read() {
        for text in
            ["off", "rate=100M", "rate=20M:100M", "rate=off:1500k", "pps=12345", "rate=1G,pps=1k,burst=5"]
        {
            assert_eq!(limits(text).to_string(), text);
        }
        assert_eq!(limits("rate=1000k:1M,burst=10").to_string(), "rate=1M");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_does() {
        for (text, word) in [
            ("", "rate=100M"),
            ("50M", "rate=100M"),
            ("rate=", "16k"),
            ("rate=15k", "16k"),
            ("rate=M", "16k"),
            ("rate=2000G", "16k"),
            ("rate=99999999999999999999", "16k"),
            ("rate=1M:", "16k"),
            ("rate=1M:2M:3M", "16k"),
            ("rate=+1M", "16k"),
            ("pps=0", "frames"),
            ("rate=1M,burst=4", "milliseconds"),
            ("rate=1M,burst=1001", "milliseconds"),
            ("burst=10", "neither"),
            ("rate=1M,rate=2M", "twice"),
            ("speed=1M", "rate="),
        ] {
            let why = text.parse::<RateLimits>().unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }
}
