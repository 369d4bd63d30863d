//! What goes wrong with a bridge.

use std::fmt;

use super::kind_of;
use crate::host::netlink::Refusal;
use crate::text::word;

/// What goes wrong with a bridge. Where the host refused, its reason is the source and not in the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// There is a link of the bridge's name, of another kind.
    #[error("cannot join a tap to {name}: it is {}, not a bridge", kind_of(kind))]
    NotABridge {
        /// The link.
        name: String,
        /// Its kind as `ip -d link` says it; empty for hardware.
        kind: String,
    },
    /// The link cannot be a bridge's uplink.
    #[error("uplink={uplink}: {problem}")]
    BadUplink {
        /// The link.
        uplink: String,
        /// Why not.
        problem: UplinkProblem,
    },
    /// The bridge has no VLANs.
    #[error("vlan={vlan}: {bridge} does not filter VLANs")]
    NoVlans {
        /// The VLAN.
        vlan: u16,
        /// The bridge.
        bridge: String,
    },
    /// The kernel refuses the rules for what the guest sends.
    #[error("cannot guard the bridge from what the guest sends at {port}")]
    Guard {
        /// The guest's port.
        port: String,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
}

impl BridgeError {
    /// What a person can do about it, where we know.
    pub(crate) fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::NotABridge { name, .. } => {
                format!(
                    "name a bridge or none that exists; to have {name} in a bridge: bridge=br0,uplink={name}"
                )
            }
            Self::BadUplink { problem, .. } => problem.remedy(),
            Self::NoVlans { bridge, .. } => {
                format!("let it filter: sudo ip link set dev {bridge} type bridge vlan_filtering 1")
            }
            Self::Guard { port, refusal } => match refusal.errno()? {
                libc::EEXIST => {
                    let remove = format!("sudo nft delete table netdev wirevm-{port}");
                    format!("somebody made a table of that name: {remove}, where nobody needs it; or guard=off")
                }
                // No netlink for it, no nftables behind it, no such family, hook or expression.
                libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT => {
                    "have the kernel do it by nftables: sudo modprobe nf_tables (CONFIG_NF_TABLES_NETDEV); or guard=off, which \
                     trusts the guest"
                        .to_owned()
                }
                _ => return None,
            },
        })
    }
}

/// Why a link cannot be a bridge's uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkProblem {
    /// There is none of that name.
    Absent,
    /// It is no Ethernet.
    NotEthernet,
    /// It is Wi-Fi: an access point takes frames from the one address that it knows.
    Wireless,
    /// It is a bridge itself.
    Bridge,
    /// It is a part of another link already.
    Port {
        /// The name of that link.
        of: String,
        /// Its kind: `bridge`, `bond`...
        kind: String,
    },
    /// It carries frames of one Ethernet address alone, its own.
    OneAddress {
        /// The name of the macvlan or ipvlan that it is, or is on.
        on: String,
        /// The kind of that: `macvlan`, `ipvlan`...
        kind: String,
        /// The link itself is it.
        itself: bool,
    },
    /// A macvlan or macvtap takes its frames.
    Shared {
        /// The name of that link.
        with: String,
    },
    /// A route leads over it and others, or by a nexthop object.
    Route {
        /// The route, as `ip route` says it.
        route: String,
    },
}

impl fmt::Display for UplinkProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no such link"),
            Self::NotEthernet => f.write_str("it is no Ethernet"),
            Self::Wireless => {
                f.write_str("it is Wi-Fi, and an access point takes no frames from a second address")
            }
            Self::Bridge => f.write_str("it is a bridge itself"),
            Self::Port { of, kind } => write!(f, "it is a part of the {kind} {of} already"),
            Self::OneAddress { on, kind, itself } => {
                let which = if *itself {
                    format!("it is {}", kind_of(kind))
                } else {
                    format!("it is on the {kind} {on}")
                };
                write!(f, "{which}, which carries no frames of a second address")
            }
            Self::Shared { with } => write!(f, "{with} is on it and takes its frames"),
            Self::Route { route } => {
                write!(
                    f,
                    "a route leads over it and others, or by a nexthop object ({route}), and cannot be moved"
                )
            }
        }
    }
}

impl UplinkProblem {
    pub(crate) fn remedy(&self) -> String {
        match self {
            Self::Absent => "name a NIC of the host: ip link".to_owned(),
            Self::NotEthernet => "use a wired NIC, a bond or a VLAN; or route: --net tap,nat".to_owned(),
            Self::Wireless => {
                "route instead: --net tap,nat reaches what the host reaches, Wi-Fi included".to_owned()
            }
            Self::Bridge => "use it instead of the other: --net bridge=THAT".to_owned(),
            Self::Port { of, kind } if kind == "bridge" => {
                format!("use that bridge: --net bridge={}", word(of))
            }
            Self::Port { of, .. } => format!("use all of it: uplink={}", word(of)),
            Self::OneAddress { on, kind, itself: true } if kind.starts_with("macv") => {
                format!("give the guest an address beside it: --net macvtap={}", word(on))
            }
            Self::OneAddress { .. } => {
                "route instead: --net tap,nat reaches what the host reaches".to_owned()
            }
            Self::Shared { with } => {
                format!("use another NIC, or remove it: sudo ip link del dev {}", word(with))
            }
            Self::Route { .. } => "give the host a route over this NIC alone".to_owned(),
        }
    }
}
