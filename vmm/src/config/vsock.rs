//! Sockets between programs of the guest and programs of the host.

use std::fmt;
use std::str::FromStr;

net::serde_as_text!(VsockConfig);

/// Whether the guest has a socket device, and who carries what goes over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VsockConfig {
    /// There is none.
    Off,
    /// wirevm: the host's end of each port is a Unix socket.
    #[default]
    On,
    /// The host's kernel (vhost-vsock): the host's end is AF_VSOCK, and the guest has this address there, or the first that is free.
    Vhost(Option<u32>),
}

impl VsockConfig {
    /// The least address of a guest (virtio 1.2 §5.10.4), and the greatest: the one above is `VMADDR_CID_ANY`.
    pub const CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;
}

impl FromStr for VsockConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            "vhost" => Ok(Self::Vhost(None)),
            _ => {
                let cid = text.strip_prefix("vhost=").ok_or("it is on, off, vhost or vhost=CID")?;
                let cid = cid.parse().ok().filter(|cid| Self::CIDS.contains(cid));
                Ok(Self::Vhost(Some(cid.ok_or("a guest's CID is a number from 3 to 4294967294")?)))
            }
        }
    }
}

impl fmt::Display for VsockConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On => f.write_str("on"),
            Self::Vhost(None) => f.write_str("vhost"),
            Self::Vhost(Some(cid)) => write!(f, "vhost={cid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_word_and_a_number_at_most() {
        for text in ["on", "off", "vhost", "vhost=3", "vhost=4294967294"] {
            assert_eq!(text.parse::<VsockConfig>().unwrap().to_string(), text);
        }
        for text in ["", "yes", "vhost=", "vhost=2", "vhost=4294967295", "vhost=-1", "on=3"] {
            assert!(text.parse::<VsockConfig>().is_err(), "{text}");
        }
    }
}
