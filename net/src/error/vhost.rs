//! What goes wrong with vhost-net.

use std::io;

use super::not_permitted;
use crate::sys::VHOST_DEVICE as DEVICE;
use crate::text::word;

/// What goes wrong with vhost-net. Where the host refused, its reason is the source and not in the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhostError {
    /// The device of vhost-net does not open.
    #[error("cannot open {DEVICE}")]
    Open {
        /// The reason.
        source: io::Error,
    },
    /// The guest's questions, which the kernel would carry past us, cannot be heard.
    #[error("cannot hear the guest's DHCP on {link}, whose frames vhost-net carries")]
    Listen {
        /// The link.
        link: String,
        /// The reason.
        source: io::Error,
    },
    /// The host's link, where a rate would be kept, cannot be seen.
    #[error(
        "cannot hold the guest to a rate: its frames are vhost-net's, and the link {link} is in another network namespace"
    )]
    Unseen {
        /// The link.
        link: String,
    },
    /// Somebody has given the host's link a queue of his own.
    #[error("cannot hold the guest to a rate: {link} has a {kind} queue of somebody's own at its root")]
    Queue {
        /// The link.
        link: String,
        /// What `tc qdisc` calls it.
        kind: String,
    },
}

/// Whoever has no way to have the kernel keep a rate.
pub(crate) const OWN_THREADS: &str = "take vhost=off: wirevm's own threads keep the rate";

impl VhostError {
    /// What a person can do about it, where we know.
    pub(crate) fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Open { source } => match source.kind() {
                io::ErrorKind::PermissionDenied => format!(
                    "join the group that owns it, or run as root (sudo chown :kvm {0}; sudo chmod 0660 {0}); or take vhost=off",
                    DEVICE
                ),
                _ => "load the module (sudo modprobe vhost_net), or take vhost=auto or off: wirevm's own threads then carry \
                     the frames"
                    .to_owned(),
            },
            Self::Listen { source, .. } if not_permitted(source) => {
                "run it as root, or with CAP_NET_RAW; or take dhcp=off, or vhost=off".to_owned()
            }
            Self::Unseen { .. } => OWN_THREADS.to_owned(),
            Self::Queue { link, .. } => {
                format!("{OWN_THREADS}; or, where nobody needs it: sudo tc qdisc del dev {} root", word(link))
            }
            _ => return None,
        })
    }
}
