//! `link=`: what the guest's link is by.

use std::fmt;
use std::str::FromStr;

/// Whether the guest's link is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkMode {
    /// While frames get through the wire, as far as the host can tell.
    #[default]
    Follow,
    /// Always.
    Up,
    /// Never, as if the cable were unplugged.
    Down,
}

impl LinkMode {
    /// Its word on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Follow => "follow",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for LinkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for LinkMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "follow" => Ok(Self::Follow),
            "up" => Ok(Self::Up),
            "down" => Ok(Self::Down),
            _ => Err("it is follow, up or down"),
        }
    }
}
