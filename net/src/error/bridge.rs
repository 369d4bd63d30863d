//! What goes wrong with a bridge.

use std::fmt;

use super::kind_of;
use crate::host::netlink::Refusal;
use crate::host::nft::Table;
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
        /// It could be a bridge's uplink.
        can_join: bool,
    },
    /// A VLAN link of the host takes the VLAN's frames from a port before the bridge does.
    #[error(
        "vlan={vlan}: {by} takes that VLAN's frames from its NIC before a bridge can: the guest would receive none"
    )]
    VlanTaken {
        /// The VLAN.
        vlan: u16,
        /// The VLAN link.
        by: String,
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
    #[error("vlan={vlans}: {bridge} does not filter VLANs")]
    NoVlans {
        /// The VLANs, as `vlan=` has them.
        vlans: String,
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
            Self::NotABridge { name, can_join: true, .. } => {
                format!(
                    "name a bridge or none that exists; to have {name} in a bridge: bridge=br0,uplink={name}"
                )
            }
            Self::NotABridge { .. } => {
                "name a bridge (ip link show type bridge) or none that exists".to_owned()
            }
            Self::VlanTaken { vlan, by } => format!(
                "take that link for the uplink, and drop vlan=: bridge=br{vlan},uplink={by}; or remove it: sudo ip link del dev {by}",
                by = word(by)
            ),
            Self::BadUplink { problem, uplink } => problem.remedy(uplink),
            Self::NoVlans { bridge, .. } => {
                format!("let it filter: sudo ip link set dev {bridge} type bridge vlan_filtering 1")
            }
            Self::Guard { port, refusal } => match refusal.errno()? {
                libc::EEXIST => {
                    let remove = format!("sudo nft delete table netdev {}", Table::name_for(port));
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
    /// A link on it takes its frames: a macvlan, an ipvlan, a macsec.
    Shared {
        /// The name of that link.
        with: String,
        /// Its kind.
        kind: String,
    },
    /// It is of a kind that no bridge takes.
    Kind {
        /// Its kind: `vrf`...
        kind: String,
    },
    /// A route leads over it and others, or by a nexthop object.
    Route {
        /// The route, as `ip route` says it.
        route: String,
        /// The line that has it lead over this link alone.
        over_link_alone: String,
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
            Self::Shared { with, kind } => write!(f, "the {kind} {with} is on it and takes its frames"),
            Self::Kind { kind } => write!(f, "no bridge takes a {kind} for a port"),
            Self::Route { route, .. } => {
                write!(
                    f,
                    "a route leads over it and others, or by a nexthop object ({route}), and cannot be moved"
                )
            }
        }
    }
}

impl UplinkProblem {
    /// What a person can do about it, where `uplink` is the link.
    pub(crate) fn remedy(&self, uplink: &str) -> String {
        let nic = word(uplink);
        match self {
            Self::Absent => "name a NIC of the host: ip link".to_owned(),
            Self::NotEthernet | Self::Kind { .. } => {
                "use a wired NIC, a bond or a VLAN; or route: --net tap,nat".to_owned()
            }
            Self::Wireless => {
                "route instead: --net tap,nat reaches what the host reaches, Wi-Fi included".to_owned()
            }
            Self::Bridge => format!("use it instead of the other: --net bridge={nic}"),
            Self::Port { of, kind } => Self::leave(kind, &word(of), &nic),
            Self::Shared { with, kind } if kind == "macsec" => {
                format!("use the {kind} itself, whose frames it protects: uplink={}", word(with))
            }
            Self::OneAddress { on, kind, itself: true } if kind.starts_with("macv") => {
                format!("give the guest an address beside it: --net macvtap={}", word(on))
            }
            Self::OneAddress { .. } => {
                "route instead: --net tap,nat reaches what the host reaches".to_owned()
            }
            Self::Shared { with, .. } => {
                format!("use another NIC, or remove it: sudo ip link del dev {}", word(with))
            }
            Self::Route { over_link_alone, .. } => {
                format!("have it lead over {nic} alone while the guest runs: sudo {over_link_alone}")
            }
        }
    }

    /// What to do with the uplink `nic`, which is a part of `of`.
    fn leave(kind: &str, of: &str, nic: &str) -> String {
        match kind {
            "bridge" => format!("use that bridge: --net bridge={of}"),
            "bond" | "team" => format!("use all of it: uplink={of}"),
            "vrf" => format!(
                "have a bridge of your own in {of} and {nic} in that bridge, and use that: sudo ip link add br0 type bridge; \
                     sudo ip link set br0 master {of} up; sudo ip link set {nic} master br0; --net bridge=br0"
            ),
            "openvswitch" => format!(
                "give the guest a tap, and that to Open vSwitch: sudo ip tuntap add tap0 mode tap; sudo ovs-vsctl add-port \
                     $(sudo ovs-vsctl port-to-br {nic}) tap0; --net tap=tap0"
            ),
            _ => {
                format!("take it out of {of}: sudo ip link set dev {nic} nomaster; or use another NIC")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_master_of_an_uplink_has_a_remedy_of_its_own() {
        for (kind, wanted) in [
            ("bridge", "--net bridge=up0"),
            ("bond", "uplink=up0"),
            ("vrf", "sudo ip link set eth1 master br0"),
            ("openvswitch", "ovs-vsctl"),
            ("hsr", "sudo ip link set dev eth1 nomaster"),
        ] {
            let problem = UplinkProblem::Port { of: "up0".to_owned(), kind: kind.to_owned() };
            let remedy = problem.remedy("eth1");
            assert!(remedy.contains(wanted), "{kind}: {remedy}");
        }
    }
}
