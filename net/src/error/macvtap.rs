//! What goes wrong with a macvtap.

use std::fmt;
use std::io;

use super::{ROOT, list};
use crate::HostAddress;
use crate::host::holders::Holder;
use crate::text::word;

/// What goes wrong with a macvtap. Where the host refused, its reason is the source and not in the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MacvtapError {
    /// There is no link to make a macvtap on.
    #[error("there is no link {name} to make a macvtap on")]
    NoParent {
        /// The name.
        name: String,
    },
    /// The link cannot have a macvtap.
    #[error("cannot make a macvtap on {parent}: {problem}")]
    BadParent {
        /// The link.
        parent: String,
        /// Why not.
        problem: ParentProblem,
    },
    /// A key that goes with a new link is given for one that exists.
    #[error("{key}=: {name} is a macvtap that exists, with a {key} of its own")]
    Adopted {
        /// The link.
        name: String,
        /// The key.
        key: &'static str,
    },
    /// The NIC itself has all of the subnet, so that the host would go on to seek the guest there.
    #[error("host={address}: {on} itself has {theirs}, and cannot reach its macvtaps")]
    WholeSubnet {
        /// What we would have given our link.
        address: HostAddress,
        /// The NIC.
        on: String,
        /// Its address.
        theirs: String,
    },
    /// The character device of a macvtap does not open, or is not found.
    #[error("cannot open the device of the macvtap {name}")]
    Open {
        /// The macvtap.
        name: String,
        /// The number in the name of its device.
        index: u32,
        /// The reason.
        source: io::Error,
    },
    /// Somebody has the device of a macvtap open, and would get a share of the guest's frames.
    #[error("cannot attach to the macvtap {name}: {} holds it", list(holders))]
    Busy {
        /// The macvtap.
        name: String,
        /// By whom.
        holders: Vec<Holder>,
    },
    /// The macvtap is attached, but does not take a setting.
    #[error("cannot set or ask the {what} of the macvtap {name}")]
    Setting {
        /// The macvtap.
        name: String,
        /// What is set.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
}

impl MacvtapError {
    /// What a person can do about it, where we know.
    pub(crate) fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::NoParent { .. } => "name a NIC of the host, or a macvtap that exists: ip link".to_owned(),
            Self::BadParent { problem, .. } => problem.remedy(),
            Self::Adopted { key, .. } => format!("drop {key}=, or name the NIC for a new one"),
            Self::WholeSubnet { theirs, .. } => format!(
                "take the part of {theirs} that the guests' addresses are in, by a longer prefix: the host then reaches \
                 that part beside them, and the rest as before"
            ),
            Self::Open { index, source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    format!(
                        "{ROOT} and CAP_SYS_ADMIN, or make its device yours: sudo chown $USER /dev/tap{index}"
                    )
                }
                io::ErrorKind::NotFound => {
                    "mount sysfs, or run it as root: it says which device is the link's".to_owned()
                }
                _ => return None,
            },
            Self::Busy { .. } => "use another one, or macvtap=NIC for a new one".to_owned(),
            _ => return None,
        })
    }
}

/// Why a link cannot have a macvtap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentProblem {
    /// It is no Ethernet.
    NotEthernet,
    /// It is Wi-Fi: an access point takes frames from the one address that it knows.
    Wireless,
    /// It carries frames of one Ethernet address alone.
    OneAddress {
        /// The name of the macvlan or ipvlan that it is, or is on.
        on: String,
        /// The kind of that: `macvlan`, `ipvlan`...
        kind: String,
    },
    /// It is a port of another link, which takes all frames from it.
    Port {
        /// The name of that link.
        of: String,
        /// Its kind: `bridge`, `bond`...
        kind: String,
    },
    /// It has a link in mode `passthru`, which has all of it.
    Taken {
        /// The name of that link.
        by: String,
    },
    /// It has another macvlan or macvtap, and mode `passthru` needs all of it.
    Shared {
        /// The name of that link.
        with: String,
    },
}

impl fmt::Display for ParentProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEthernet => f.write_str("it is no Ethernet"),
            Self::Wireless => {
                f.write_str("it is Wi-Fi, and an access point takes no frames from a second address")
            }
            Self::OneAddress { on, kind } => {
                write!(f, "the {kind} {on} carries no frames of a second address")
            }
            Self::Port { of, kind } => {
                write!(f, "it is a port of the {kind} {of}, which takes all its frames")
            }
            Self::Taken { by } => write!(f, "{by} has all of it (mode passthru)"),
            Self::Shared { with } => write!(f, "mode passthru takes all of it, and {with} is on it already"),
        }
    }
}

impl ParentProblem {
    pub(crate) fn remedy(&self) -> String {
        match self {
            Self::NotEthernet => "use a wired NIC, a bond, a VLAN or a bridge".to_owned(),
            Self::Wireless => {
                "route instead: --net tap,nat reaches what the host reaches, Wi-Fi included".to_owned()
            }
            Self::OneAddress { .. } => {
                "route instead: --net tap,nat reaches what the host reaches".to_owned()
            }
            Self::Port { of, kind } if kind == "bridge" => {
                format!("use the bridge: --net bridge={}", word(of))
            }
            Self::Port { of, .. } => format!("use all of it: --net macvtap={}", word(of)),
            Self::Taken { by } | Self::Shared { with: by } => {
                format!("use another NIC, or remove it: sudo ip link del dev {}", word(by))
            }
        }
    }
}
