//! What goes wrong with NAT.

use std::io;

use super::ROOT;
use crate::host::forwarding::LOOPBACK_BEFOREHAND;
use crate::host::netlink::Refusal;
use crate::{Forward, Protocol};

/// What goes wrong with NAT. Where the host refused, its reason is the source and not in the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NatError {
    /// The port is already in use on the host.
    #[error("forward={forward}: cannot take {} port {port} of {}", forward.protocol, owner(forward))]
    PortTaken {
        /// The ports.
        forward: Forward,
        /// The port of the host.
        port: u16,
        /// The reason.
        source: io::Error,
    },
    /// The guest has no address of the family of the host's.
    #[error("forward={forward}: the guest on {link} has no address of IPv{}", if forward.address.is_some_and(|address| address.is_ipv6()) { 6 } else { 4 })]
    NoGuestAddress {
        /// The ports.
        forward: Forward,
        /// The link.
        link: String,
    },
    /// The kernel routes nothing from 127.0.0.1, and `/proc/sys` is read-only.
    #[error(
        "forward={forward}: 127.0.0.1 does not lead into the guest, for the kernel routes nothing from there, and /proc/sys is read-only"
    )]
    Loopback {
        /// The ports.
        forward: Forward,
    },
    /// The host has no address on the link, and so no subnet there.
    #[error("nat: the host has no address on {link}, and so no subnet whose addresses it could translate")]
    NothingToMasquerade {
        /// The link.
        link: String,
    },
    /// The kernel refuses the rules for NAT.
    #[error("cannot make the nftables table inet {table} for NAT")]
    Nft {
        /// The table.
        table: String,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
}

impl NatError {
    /// What a person can do about it, where we know.
    pub(crate) fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::PortTaken { forward, port, source } => port_remedy(forward, *port, source)?,
            Self::NoGuestAddress { .. } => {
                "add host= of that family, and the guest gets one; or name an address of the host of the other family".to_owned()
            }
            Self::Loopback { .. } => LOOPBACK_BEFOREHAND.to_owned(),
            Self::NothingToMasquerade { .. } => "give it one: host=ADDRESS/LENGTH".to_owned(),
            Self::Nft { table, refusal } => match refusal.errno()? {
                libc::EPERM => ROOT.to_owned(),
                libc::EEXIST => format!(
                    "somebody made a table of that name: sudo nft delete table inet {table}, where nobody needs it"
                ),
                // No netlink for it, no nftables behind it, no such family, kind of chain or expression.
                libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT => {
                    "have the kernel do NAT by nftables: sudo modprobe -a nf_tables nft_chain_nat nft_masq nft_nat nft_fib_inet \
                     nft_ct; or drop nat, and have the host route the guest's subnet"
                        .to_owned()
                }
                _ => return None,
            },
        })
    }
}

/// Whose the ports are.
fn owner(forward: &Forward) -> String {
    forward.address.map_or("the host".to_owned(), |address| address.to_string())
}

/// What to do where a port of the host cannot be taken.
fn port_remedy(forward: &Forward, port: u16, source: &io::Error) -> Option<String> {
    let Forward { protocol, address, guest_port, count, .. } = forward;
    let socket = match protocol {
        Protocol::Tcp => 't',
        Protocol::Udp => 'u',
    };
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            let another = match count {
                1 => format!("another one, forward={protocol}:PORT:{guest_port}"),
                _ => "a range without it".to_owned(),
            };
            Some(format!("take {another}; who has it: sudo ss -{socket}anp 'sport = :{port}'"))
        }
        io::ErrorKind::AddrNotAvailable => Some(format!(
            "name an address that the host has (ip -brief address), or none for every one{}",
            address.map(|address| format!(": {address} is not there, or not usable yet")).unwrap_or_default()
        )),
        io::ErrorKind::PermissionDenied => {
            Some("run it as root or with CAP_NET_BIND_SERVICE, or take a port from 1024 on".to_owned())
        }
        _ => None,
    }
}
