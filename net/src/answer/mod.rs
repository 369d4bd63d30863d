//! What a guest asks of its wire and we answer ourselves: its addresses, its router, its neighbours.

pub(crate) mod autoconf;
pub(crate) mod dhcp;
pub(crate) mod listener;
pub(crate) mod neighbour;
pub(crate) mod relay;
pub(crate) mod resolver;
pub(crate) mod router;

use crate::HEADER_LEN;

/// The longest answer: a DHCP message that every client takes.
pub(crate) const ANSWER_MAX: usize = HEADER_LEN + 14 + 576;

/// What becomes of a frame that may be a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is not for us.
    Pass,
    /// It ends here without an answer.
    Silent,
    /// The answer is ready, with this length.
    Reply(usize),
}

/// An Ethernet address as its octets.
pub(crate) mod octets {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use smoltcp::wire::EthernetAddress;

    pub(crate) fn serialize<S: Serializer>(address: &EthernetAddress, to: S) -> Result<S::Ok, S::Error> {
        address.0.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<EthernetAddress, D::Error> {
        <[u8; 6]>::deserialize(from).map(EthernetAddress)
    }
}
