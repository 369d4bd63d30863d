//! What goes wrong with a link of the tun driver: a tap or a tun.

use std::io;

use super::{ROOT, kind_of, list, not_permitted};
use crate::host::holders::Holder;
use crate::host::tun_settings::{DEVICE, TunMode};

/// What goes wrong with a link of the tun driver: a tap or a tun. Where the host refused, its reason is the source and not in the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunTapError {
    /// The tun driver's device does not open.
    #[error("cannot open {DEVICE}")]
    Open {
        /// The reason.
        source: io::Error,
    },
    /// A new link, named by the kernel, cannot be made.
    #[error("cannot make a {mode}")]
    Make {
        /// A tap or a tun.
        mode: TunMode,
        /// How many queues it shall have.
        queues: u16,
        /// The reason.
        source: io::Error,
    },
    /// There is no link of that name, and we have no right to make it.
    #[error("cannot make the {mode} {name}")]
    MakeNamed {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// How many queues it shall have.
        queues: u16,
        /// The reason.
        source: io::Error,
    },
    /// The link exists, but only its owner may attach to it.
    #[error("cannot attach to the {mode} {name}")]
    NotOurs {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// How many queues we attach.
        queues: u16,
        /// The user id of its owner, where it has one.
        owner: Option<u32>,
        /// The reason.
        source: io::Error,
    },
    /// Somebody is attached to the link.
    #[error("cannot attach to the {mode} {name}: {} holds it", list(holders))]
    Busy {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// By whom, as far as we may look.
        holders: Vec<Holder>,
        /// The reason.
        source: io::Error,
    },
    /// The link is of the multi-queue sort and we are not, or the other way round.
    #[error("cannot attach to the {mode} {name}: it is {}, and we attach {}", sort(*queues == 1), count(*queues))]
    Queues {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// How many queues we attach.
        queues: u16,
        /// The reason.
        source: io::Error,
    },
    /// A queue after the first does not attach.
    #[error("cannot attach one more queue to {name}")]
    Queue {
        /// The link.
        name: String,
        /// The reason.
        source: io::Error,
    },
    /// There is a link of that name, of another kind.
    #[error("cannot attach to {name}: it is {}, not a {mode}", kind_of(kind))]
    OtherKind {
        /// What was wanted, a tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// `tap`, `tun`, or its kind as `ip -d link` says it; empty for hardware.
        kind: String,
        /// The reason.
        source: io::Error,
    },
    /// A refusal that we have no words for.
    #[error("cannot attach to the {mode} {name}")]
    Attach {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// The reason.
        source: io::Error,
    },
    /// The link is attached, but does not take a setting.
    #[error("cannot set or ask the {what} of the {mode} {name}")]
    Setting {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// What is set.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
}

impl TunTapError {
    /// What a person can do about it, where we know.
    pub(crate) fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Open { source } => match source.kind() {
                io::ErrorKind::NotFound => format!(
                    "load the tun driver (sudo modprobe tun); in a container, give it the device {DEVICE}"
                ),
                io::ErrorKind::PermissionDenied => format!(
                    "let everyone open it, as most distributions do (sudo chmod 0666 {DEVICE}): what it may do there is \
                     asked again"
                ),
                _ => "load the tun driver: sudo modprobe tun".to_owned(),
            },
            Self::Make { mode, queues, source } if not_permitted(source) => {
                let queues_key = if *queues > 1 { format!(",queues={queues}") } else { String::new() };
                let own = own(*mode, &format!("{mode}0"), *queues);
                format!("{ROOT}, or once: {own}; then use --net {mode}={mode}0{queues_key}")
            }
            Self::MakeNamed { mode, name, queues, .. } => {
                format!("{ROOT}, or once: {}", own(*mode, name, *queues))
            }
            Self::NotOurs { mode, name, queues, owner, .. } => {
                let owner = match owner {
                    Some(uid) => format!("it belongs to the user of id {uid}"),
                    None => "it has no owner".to_owned(),
                };
                let del = if *queues > 1 { " multi_queue" } else { "" };
                format!(
                    "{owner}: {ROOT}, or make it yours: sudo ip tuntap del dev {name} mode {mode}{del}; {}",
                    own(*mode, name, *queues)
                )
            }
            Self::Busy { mode, .. } => {
                format!("use another {mode}, or --net {mode} for a new one; a {mode} has one holder")
            }
            Self::Queues { mode, name, queues, .. } => {
                let (easy, del) = match queues {
                    1 => ("give it more: queues=2", " multi_queue"),
                    _ => ("drop queues=", ""),
                };
                format!(
                    "{easy}; or recreate it: sudo ip tuntap del dev {name} mode {mode}{del}; {}",
                    own(*mode, name, *queues)
                )
            }
            Self::OtherKind { mode, .. } => format!("use another name, or --net {mode} for a new {mode}"),
            _ => return None,
        })
    }
}

/// The line that makes a tap or tun which its user may attach to.
fn own(mode: TunMode, name: &str, queues: u16) -> String {
    let multi_queue = if queues > 1 { " multi_queue" } else { "" };
    format!(
        "sudo ip tuntap add dev {name} mode {mode} user $USER{multi_queue} vnet_hdr && sudo ip link set dev {name} up"
    )
}

/// What a link of the tun driver is by its queues.
fn sort(multi_queue: bool) -> &'static str {
    if multi_queue { "a multi_queue one" } else { "one without multi_queue" }
}

fn count(queues: u16) -> String {
    if queues == 1 { "one queue".to_owned() } else { format!("{queues} queues") }
}
