//! `queues=N|auto`

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::keys::number;

/// How many queue pairs a NIC has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queues {
    /// So many, within [`Queues::RANGE`].
    Number(u16),
    /// As many as the guest has vCPUs.
    Auto,
}

impl Queues {
    /// How many there can be. The kernel's drivers take 256 for a link; but each costs a thread and some ten descriptors, and
    /// a process has 1024 of those unless somebody gave it more.
    pub const RANGE: RangeInclusive<u16> = 1..=64;

    /// The number for a guest with so many vCPUs.
    #[must_use]
    pub fn of(self, cpus: u32) -> Self {
        match self {
            Self::Auto => Self::Number(u16::try_from(cpus).map_or(*Self::RANGE.end(), Self::clamp)),
            number => number,
        }
    }

    fn clamp(number: u16) -> u16 {
        number.clamp(*Self::RANGE.start(), *Self::RANGE.end())
    }

    /// The number; one, where nobody has said how many vCPUs there are.
    pub fn number(self) -> u16 {
        match self {
            Self::Number(number) => number,
            Self::Auto => 1,
        }
    }
}

/// One.
impl Default for Queues {
    fn default() -> Self {
        Self::Number(1)
    }
}

impl FromStr for Queues {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            text => {
                let valid = number(text).filter(|queues| Self::RANGE.contains(queues));
                valid
                    .map(Self::Number)
                    .ok_or("there are 1 to 64 queues, or auto: as many as the guest has vCPUs")
            }
        }
    }
}

impl fmt::Display for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Auto => f.write_str("auto"),
        }
    }
}
