//! `vhost=on|off|auto`

use std::fmt;
use std::str::FromStr;

/// Whether the kernel (vhost-net) carries the frames, or wirevm's own threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VhostMode {
    /// Our own threads.
    #[default]
    Off,
    /// The kernel.
    On,
    /// The kernel, if the host has vhost-net.
    Auto,
}

impl FromStr for VhostMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            "auto" => Ok(Self::Auto),
            _ => Err("it is on, off or auto (on if the host has vhost-net)"),
        }
    }
}

impl fmt::Display for VhostMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Auto => "auto",
        })
    }
}
