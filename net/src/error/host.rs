//! What the host refuses, or does not have.

use std::io;
use std::path::PathBuf;

use super::vhost::OWN_THREADS;
use super::{ROOT, not_permitted};
use crate::host::netlink::Refusal;
use crate::text::word;
use crate::{HostAddress, Mac};

/// What the host refuses, or does not have. Where the host refused, its reason is the source and not in the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The random number generator gave no MAC.
    #[error("cannot make a random Ethernet address")]
    RandomMac {
        /// The reason.
        source: io::Error,
    },
    /// A link on the way carries less than is asked for.
    #[error("mtu={mtu}: {link} carries {limit} bytes at most")]
    MtuLimit {
        /// What is asked for, in bytes.
        mtu: u16,
        /// The link.
        link: String,
        /// Its MTU, in bytes.
        limit: u32,
    },
    /// The host does not say what we must know.
    #[error("cannot ask for {what}")]
    Ask {
        /// What.
        what: String,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
    /// The link that we attached to is not there any more.
    #[error("the link {name} is gone")]
    LinkGone {
        /// The link.
        name: String,
    },
    /// The host refuses a change.
    #[error("cannot change the host's wiring ({command})")]
    Step {
        /// What sort of change.
        kind: ChangeKind,
        /// The `ip(8)` line that does the same.
        command: String,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
    /// The host routes to every subnet that we would take.
    #[error("cannot find a subnet for {link}: the host has routes to all private ones that we take from")]
    NoFreeSubnet {
        /// The link.
        link: String,
    },
    /// The directory of records is no place for them.
    #[error("cannot use {} to record what to take back", path.display())]
    Runtime {
        /// The directory, or the file in it.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The undo of a change is none that the records may have.
    #[error("cannot record how to take a change back ({command}): {why}")]
    Unrecordable {
        /// The `ip(8)` line that does the undo.
        command: String,
        /// Why not.
        why: String,
    },
    /// Somebody asked this process to end while it waited for another one ([`Host::ended_by`](crate::Host::ended_by)).
    #[error("asked to end while another wirevm was changing the host's network")]
    Ended,
    /// Another process changes the host, and this one waits no longer ([`Host::set_patience`](crate::Host::set_patience)).
    #[error("{holder} is changing the host's network: it holds {}", path.display())]
    Busy {
        /// Who has the lock.
        holder: String,
        /// The lock.
        path: PathBuf,
    },
    /// There are not enough descriptors for an undo.
    #[error("cannot hold descriptors ready to take back what would be changed")]
    Reserve {
        /// The reason.
        source: io::Error,
    },
    /// A network namespace cannot be entered or asked for.
    #[error("cannot enter the network namespace{}", name.iter().map(|name| format!(" {name}")).collect::<String>())]
    Namespace {
        /// Its name, where it has one.
        name: Option<String>,
        /// The reason.
        source: io::Error,
    },
    /// The guest's address is in use on another link of the host, or by it.
    #[error("guest={guest}: {on} has it at one of its ends already")]
    GuestTaken {
        /// The guest's address.
        guest: std::net::IpAddr,
        /// The other link.
        on: String,
    },
    /// A link on the way of the guest's frames has its Ethernet address, or another guest there.
    #[error("mac={mac}: {by} has this address")]
    MacTaken {
        /// The address.
        mac: Mac,
        /// The link, or whose address it is.
        by: String,
    },
    /// Another link of the host has the address, or a part of its subnet.
    #[error("host={address}: {on} has {theirs} already")]
    AddressTaken {
        /// What we would have given our link.
        address: HostAddress,
        /// The other link.
        on: String,
        /// Its address.
        theirs: String,
    },
}

impl HostError {
    /// What a person can do about it, where we know.
    pub(crate) fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::MtuLimit { mtu, link, .. } => {
                let link = word(link);
                format!("take a smaller one, or, if all behind it can: sudo ip link set dev {link} mtu {mtu}")
            }
            Self::LinkGone { .. } => "somebody deleted it meanwhile: try again".to_owned(),
            Self::Step { kind, command, refusal } => return kind.remedy(command, refusal),
            Self::Busy { .. } => "try again once it is done; if it never is, stop it".to_owned(),
            Self::NoFreeSubnet { .. } => "choose one: host=ADDRESS/LENGTH; or none: dhcp=off".to_owned(),
            Self::Runtime { .. } => {
                "set WIREVM_RUNTIME_DIR to a directory that you alone can write to, in none that others can"
                    .to_owned()
            }
            Self::Namespace { source, .. } if not_permitted(source) => {
                "run it as root: network namespaces need CAP_SYS_ADMIN".to_owned()
            }
            Self::MacTaken { .. } => "use another one, or drop mac= for a random one".to_owned(),
            Self::GuestTaken { on, .. } => {
                format!("choose another one; ip address show dev {} tells why", word(on))
            }
            Self::AddressTaken { on, theirs, .. } => {
                let on = word(on);
                format!(
                    "choose a subnet apart from {theirs}, or free it: sudo ip address del {theirs} dev {on}"
                )
            }
            _ => return None,
        })
    }
}

/// What sort of change of the host, as far as it decides what to do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeKind {
    /// A new macvtap or macvlan.
    Macvlan,
    /// A new bridge without VLANs.
    Bridge,
    /// A bridge's VLANs, or a new one with them.
    BridgeVlans,
    /// The name of a network namespace.
    NamespaceName,
    /// A port that joins a bridge.
    Join,
    /// A route over another link.
    Route,
    /// A link's new address.
    Address,
    /// That the host passes packets on.
    Forwarding {
        /// Of IPv6; else of IPv4.
        ipv6: bool,
    },
    /// A value under `/proc/sys`.
    Sysctl,
    /// A queue or rule that holds a guest to a rate.
    Rate,
    /// Any other.
    Other,
}

impl ChangeKind {
    /// What to do where the host refuses such a change, which `command` does.
    fn remedy(self, command: &str, refusal: &Refusal) -> Option<String> {
        Some(match (self, refusal.errno()?) {
            (Self::Macvlan, libc::EOPNOTSUPP) => "load the driver: sudo modprobe macvtap".to_owned(),
            (Self::BridgeVlans, libc::EOPNOTSUPP) => {
                "take a kernel that has VLANs on bridges (CONFIG_BRIDGE_VLAN_FILTERING), or drop vlan=".to_owned()
            }
            (Self::Bridge, libc::EOPNOTSUPP) => "load the driver: sudo modprobe bridge".to_owned(),
            (Self::Forwarding { ipv6 }, libc::EROFS | libc::EACCES) => format!(
                "/proc/sys is not ours to write, as in a container: start it with --sysctl {}=1 (docker, podman), or run wirevm outside \
                 of it",
                if ipv6 { "net.ipv6.conf.all.forwarding" } else { "net.ipv4.ip_forward" }
            ),
            (Self::Sysctl, libc::EROFS | libc::EACCES) => format!(
                "/proc/sys is not ours to write, as in a container: run wirevm outside of it, or do it there beforehand: sudo {command}"
            ),
            (Self::NamespaceName, libc::EROFS) => {
                "have /run writable, where namespaces have their names, or name one that exists: ip netns list".to_owned()
            }
            (Self::Join, libc::EBUSY) => {
                "something takes its frames that is not seen from here, such as a macvlan in another network namespace, as Docker's \
                 macvlan networks make (docker network ls; ip -all netns exec ip link): remove it, or use another NIC, or macvtap= on it"
                    .to_owned()
            }
            (Self::Join, libc::EINVAL | libc::EOPNOTSUPP | libc::ELOOP) => {
                "no bridge takes a link of that kind: use a wired NIC, a bond or a VLAN; or route: --net tap,nat".to_owned()
            }
            (Self::Join, libc::EXFULL) => "the bridge has as many ports as there can be (1023): use another one".to_owned(),
            (Self::Route, libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL) => {
                "the bridge cannot have this route of the uplink: take it away while the guest runs (ip route del), or have it in \
                 the host's configuration on a bridge of your own"
                    .to_owned()
            }
            (Self::Address, libc::EACCES) => {
                "the link has no IPv6: sudo sysctl -w net.ipv6.conf.default.disable_ipv6=0, or drop that host=".to_owned()
            }
            (Self::Rate, libc::EOPNOTSUPP | libc::ENOENT) => format!(
                "load what the kernel keeps a rate by (sudo modprobe -a ifb sch_tbf nft_fwd_netdev nft_limit); or {OWN_THREADS}"
            ),
            (Self::Rate, libc::EPERM) => format!("{ROOT}; or {OWN_THREADS}"),
            (_, libc::EPERM) => format!("{ROOT}, or do it beforehand: sudo {command}"),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_refused_change_has_a_remedy() {
        for (errno, kind, remedy) in [
            (libc::EROFS, ChangeKind::Sysctl, "outside of it, or do it there beforehand: sudo ip x"),
            (libc::EROFS, ChangeKind::Forwarding { ipv6: false }, "--sysctl net.ipv4.ip_forward=1 "),
            (libc::EROFS, ChangeKind::Forwarding { ipv6: true }, "--sysctl net.ipv6.conf.all.forwarding=1 "),
            (libc::EROFS, ChangeKind::NamespaceName, "/run"),
            (libc::EOPNOTSUPP, ChangeKind::BridgeVlans, "CONFIG_BRIDGE_VLAN_FILTERING"),
            (libc::EOPNOTSUPP, ChangeKind::Bridge, "modprobe bridge"),
            (libc::EACCES, ChangeKind::Address, "disable_ipv6=0"),
            (libc::EBUSY, ChangeKind::Join, "macvlan in another network namespace"),
            (libc::EINVAL, ChangeKind::Join, "tap,nat"),
            (libc::EOPNOTSUPP, ChangeKind::Join, "tap,nat"),
            (libc::EXFULL, ChangeKind::Join, "another one"),
            (libc::EHOSTUNREACH, ChangeKind::Route, "ip route del"),
            (libc::EMFILE, ChangeKind::Other, "ulimit"),
            (libc::EOPNOTSUPP, ChangeKind::Rate, "modprobe -a ifb sch_tbf"),
            (libc::ENOENT, ChangeKind::Rate, "vhost=off"),
            (libc::EPERM, ChangeKind::Rate, "CAP_NET_ADMIN; or take vhost=off"),
            (libc::EPERM, ChangeKind::Other, "sudo ip x"),
        ] {
            let refusal = io::Error::from_raw_os_error(errno).into();
            let error = Error::from(HostError::Step { kind, command: "ip x".to_owned(), refusal });
            assert!(error.remedy().is_some_and(|found| found.contains(remedy)), "{error}");
            assert!(error.with_cause().contains(&io::Error::from_raw_os_error(errno).to_string()));
        }
    }
}
