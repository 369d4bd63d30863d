//! What can go wrong, and what a person can do about it: an enum for each kind of wire, and one for the host. The text says what we
//! tried, and on what; where the host refused, its reason is the source and not in the text. The remedy belongs to the variant.

mod bridge;
mod fd;
mod host;
mod macvtap;
mod nat;
mod spec;
mod tuntap;
mod vhost;

use std::io;
use std::iter;

use rustix::process::{Resource, getrlimit};

pub use self::bridge::{BridgeError, UplinkProblem};
pub use self::fd::{FdError, FdProblem};
pub use self::host::{ChangeKind, HostError};
pub use self::macvtap::{MacvtapError, ParentProblem};
pub use self::nat::NatError;
pub use self::spec::SpecError;
pub use self::tuntap::TunTapError;
pub use self::vhost::VhostError;
use crate::host::holders::Holder;
use crate::host::netlink::Refusal;

/// What can go wrong with a wire.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The `--net` makes no sense.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A tap or a tun.
    #[error(transparent)]
    TunTap(#[from] TunTapError),
    /// A macvtap.
    #[error(transparent)]
    Macvtap(#[from] MacvtapError),
    /// A bridge.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// An inherited descriptor.
    #[error(transparent)]
    Fd(#[from] FdError),
    /// NAT.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// vhost-net.
    #[error(transparent)]
    Vhost(#[from] VhostError),
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// How a person gets the rights for most of it.
pub(crate) const ROOT: &str = "run it as root, or with CAP_NET_ADMIN";

impl Error {
    pub(crate) fn value(key: &str, value: String, why: &'static str) -> Self {
        SpecError::Value { key: key.to_owned(), value, why, remedy: None }.into()
    }

    /// True where the command line is at fault, whatever the host.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Spec(_))
    }

    /// True where somebody asked this process to end while it waited for another one.
    pub fn is_ended(&self) -> bool {
        matches!(self, Self::Host(HostError::Ended))
    }

    /// True where somebody has on the host what a wire wants for itself: another wire may have it, which is to go.
    pub fn is_taken(&self) -> bool {
        use HostError::{AddressTaken, GuestTaken, MacTaken};
        matches!(self, Self::Host(MacTaken { .. } | AddressTaken { .. } | GuestTaken { .. }))
            || matches!(self, Self::Nat(NatError::PortTaken { .. }))
    }

    /// True where another process held the lock for too long.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Host(HostError::Busy { .. }))
    }

    /// True where there is no directory for records that is ours to write.
    pub(crate) fn is_no_place(&self) -> bool {
        use io::ErrorKind::{NotADirectory, NotFound, Other, PermissionDenied, ReadOnlyFilesystem};
        let none = [NotADirectory, NotFound, Other, PermissionDenied, ReadOnlyFilesystem];
        matches!(self, Self::Host(HostError::Runtime { source, .. }) if none.contains(&source.kind()))
    }

    /// True for a change that was refused since what it would write to is read-only, as `/proc/sys` in many containers.
    pub(crate) fn is_read_only(&self) -> bool {
        let Self::Host(HostError::Step { refusal, .. }) = self else { return false };
        refusal.errno() == Some(libc::EROFS)
    }

    /// Itself and its cause, for a notice.
    pub fn with_cause(&self) -> String {
        let cause = std::error::Error::source(self).map(|cause| format!(": {cause}"));
        format!("{self}{}", cause.unwrap_or_default())
    }

    /// What a person can do about it, where we know.
    pub fn remedy(&self) -> Option<String> {
        too_many_files(self).or_else(|| match self {
            Self::Spec(error) => error.remedy(),
            Self::TunTap(error) => error.remedy(),
            Self::Macvtap(error) => error.remedy(),
            Self::Bridge(error) => error.remedy(),
            Self::Fd(error) => error.problem.remedy(error.fd),
            Self::Nat(error) => error.remedy(),
            Self::Vhost(error) => error.remedy(),
            Self::Host(error) => error.remedy(),
        })
    }
}

/// What a person can do where `error` or a cause of it is that there are too many open files; none where it is not.
pub fn too_many_files(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let errno = |error: &(dyn std::error::Error + 'static)| {
        let refusal = error.downcast_ref().and_then(Refusal::errno);
        refusal.or_else(|| error.downcast_ref().and_then(io::Error::raw_os_error))
    };
    let mut causes = iter::successors(Some(error), |error| error.source());
    Some(match causes.find_map(|cause| errno(cause).filter(|&errno| [libc::EMFILE, libc::ENFILE].contains(&errno)))? {
        libc::EMFILE => {
            let limit = getrlimit(Resource::Nofile).current;
            let limit = limit.map(|limit| format!(" above {limit}")).unwrap_or_default();
            format!(
                "raise the limit of open files{limit} (ulimit -Hn and -n; LimitNOFILE= of a systemd unit), or ask for fewer \
                 queue pairs (queues=) or ports (forward=)"
            )
        }
        _ => "the whole host has too many open files: sudo sysctl -w fs.file-max=NUMBER, with more than there is".to_owned(),
    })
}

fn not_permitted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

fn list(holders: &[Holder]) -> String {
    match holders {
        [] => "a process that we may not look into".to_owned(),
        some => some.iter().map(Holder::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn kind_of(kind: &str) -> String {
    match kind {
        "" => "a network interface".to_owned(),
        "tap" => "a tap (layer 2)".to_owned(),
        "tun" => "a tun (layer 3)".to_owned(),
        kind if kind.starts_with('i') => format!("an {kind}"),
        kind => format!("a {kind}"),
    }
}
