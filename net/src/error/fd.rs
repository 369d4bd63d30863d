//! Why an inherited descriptor is refused, in words.

use std::fmt;
use std::io;
use std::os::fd::RawFd;

/// An inherited descriptor that is no use.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the descriptor {fd}: {problem}")]
pub struct FdError {
    /// Its number.
    pub fd: RawFd,
    /// Why not.
    pub problem: FdProblem,
    /// The kernel's reason, where it gave one.
    pub source: Option<io::Error>,
}

/// Why a descriptor is none that we can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FdProblem {
    /// There is none of that number.
    Closed,
    /// It is one that wirevm itself opened.
    Ours,
    /// It is something else: what `/proc/self/fd` says of it.
    Other(String),
    /// It is `/dev/net/tun`, and no link.
    Unattached,
    /// It is a tun, with this name.
    Layer3(String),
    /// It was attached to the tap of this name without the header that we speak, or with packet information before it.
    Flags(String),
    /// It does not take a setting.
    Setting(&'static str),
    /// It is one of a NIC's descriptors, and of another link than the first of them.
    OtherLink {
        /// The name of its link.
        link: String,
        /// The number of the first.
        first: RawFd,
    },
    /// It is one of a NIC's descriptors, and a duplicate of another of them, so that the two are one queue.
    Duplicate(RawFd),
}

impl fmt::Display for FdProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("it is not open"),
            Self::Ours => f.write_str("it is wirevm's own, and was not inherited"),
            Self::Other(what) => write!(f, "it is {what}, not a tap or macvtap"),
            Self::Unattached => f.write_str("it is /dev/net/tun, attached to no link"),
            Self::Layer3(link) => write!(f, "it is the tun {link} (layer 3), not a tap"),
            Self::Flags(link) => {
                write!(f, "the tap {link} was opened without IFF_VNET_HDR or without IFF_NO_PI")
            }
            Self::Setting(what) => write!(f, "it does not take or tell its {what}"),
            Self::OtherLink { link, first } => {
                write!(f, "it is a queue of {link}, and the descriptor {first} is one of another link")
            }
            Self::Duplicate(other) => {
                write!(f, "it is a duplicate of the descriptor {other}, and no queue more")
            }
        }
    }
}

impl FdProblem {
    /// What a person can do about it.
    pub(crate) fn remedy(&self, fd: RawFd) -> Option<String> {
        Some(match self {
            Self::Closed | Self::Ours | Self::Other(_) => format!(
                "have who starts wirevm open it, and leave it open: sh -c 'wirevm run ... --net fd={fd} {fd}<>/dev/tapN'"
            ),
            Self::Unattached | Self::Flags(_) => {
                "attach it with TUNSETIFF and IFF_TAP | IFF_NO_PI | IFF_VNET_HDR before".to_owned()
            }
            Self::Layer3(link) => format!("open a tap instead, or let wirevm open the tun: --net tun={link}"),
            Self::OtherLink { .. } => {
                format!("give the queues of one link to a NIC, and others to another one: --net fd={fd}")
            }
            Self::Duplicate(_) => {
                "open the device once for each queue: a tap with IFF_MULTI_QUEUE".to_owned()
            }
            Self::Setting(_) => return None,
        })
    }
}
