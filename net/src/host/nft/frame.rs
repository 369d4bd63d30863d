//! Questions about a frame where it arrives, in the words and the encoding of `nft` for the family `netdev`.

use std::fmt;

use netlink_bindings::nftables::{CmpOps, MetaKeys, PayloadBase};

use super::expression::{Expressions, compare, meta, payload};

/// A question about a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FrameMatch {
    /// It is an ICMPv6 message of this type.
    Icmpv6(Icmpv6),
}

/// A type of ICMPv6 messages (RFC 4861 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icmpv6 {
    RouterAdvertisement = 134,
    Redirect = 137,
}

impl fmt::Display for FrameMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icmpv6(kind) => write!(f, "icmpv6 type {kind}"),
        }
    }
}

impl fmt::Display for Icmpv6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RouterAdvertisement => "nd-router-advert",
            Self::Redirect => "nd-redirect",
        })
    }
}

impl FrameMatch {
    pub(super) fn encode<'a>(&self, list: Expressions<'a>) -> Expressions<'a> {
        match self {
            Self::Icmpv6(kind) => {
                let list = protocol(list, ETH_P_IPV6);
                let list = compare(meta(list, MetaKeys::L4Proto), CmpOps::Eq, &[libc::IPPROTO_ICMPV6 as u8]);
                compare(payload(list, PayloadBase::TransportHeader, 0, 1), CmpOps::Eq, &[*kind as u8])
            }
        }
    }
}

/// `linux/if_ether.h`.
const ETH_P_IPV6: u16 = 0x86dd;

/// Asks for the packet's protocol, behind any tag.
fn protocol(list: Expressions<'_>, protocol: u16) -> Expressions<'_> {
    compare(meta(list, MetaKeys::Protocol), CmpOps::Eq, &protocol.to_be_bytes())
}
