//! wirevm as the guest's DHCP server (RFC 2131).
//!
//! There is one client and one address for it, so there is no table of leases and nothing expires. The client is the NIC itself, or
//! the first other one that asks before the NIC does: a bridge in the guest with an address of its own. It stays so until it
//! releases the address, or the NIC asks.
//!
//! Messages to everybody or to the host's address are answered, or end here where the RFC wants silence (`DHCPRELEASE`,
//! `DHCPDECLINE`). Not ours are what is not valid DHCP, what a second client behind the guest asks, what is relayed (the source is
//! not the client, `chaddr`), and what the guest says to another server.

mod message;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use smoltcp::wire::{DhcpMessageType, EthernetAddress};

use self::message::{IPV4_LEN, Request, SERVER_PORT};
use crate::answer::octets;
use crate::answer::{ANSWER_MAX, Verdict};
use crate::{Domain, HostV4, Mac};

/// What the guest is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lease {
    #[serde(with = "octets")]
    client: EthernetAddress,
    #[serde(with = "octets")]
    server: EthernetAddress,
    guest: Ipv4Addr,
    host: HostV4,
    mtu: u16,
    /// The octets of the resolvers' addresses, one after the other.
    dns: Vec<u8>,
    /// The search domains as RFC 3397 has them.
    search: Vec<u8>,
    /// Shared by all queue pairs of the NIC.
    #[serde(skip)]
    other: OtherClient,
}

/// The client that is not the NIC, if that is the one that has the address.
#[derive(Clone, Debug, Default)]
struct OtherClient(Arc<AtomicU64>);

impl OtherClient {
    const NOBODY: u64 = 0;

    /// True where `client`, which is not the NIC, is the one, or becomes it.
    fn is(&self, client: EthernetAddress) -> bool {
        let [a, b, c, d, e, f] = client.0;
        let own = u64::from_be_bytes([0, 1, a, b, c, d, e, f]);
        match self.0.compare_exchange(Self::NOBODY, own, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                log::info!(
                    "the guest's DHCP client is {client}, not the NIC: it gets the address, and no other than the NIC will"
                );
                true
            }
            Err(known) => known == own,
        }
    }

    fn forget(&self) {
        self.0.store(Self::NOBODY, Ordering::Relaxed);
    }
}

/// So many resolvers have room in a message beside the longest search list.
const DNS_MAX: usize = 3;

impl Lease {
    /// For the NIC `mac`, the address after `host`, and `host` as its router and server, whose link has the Ethernet
    /// address `host_mac`; `mtu` is in bytes. None where the subnet has no other address.
    pub fn new(mac: Mac, host: HostV4, host_mac: [u8; 6], mtu: u16) -> Option<Self> {
        Some(Self::to(mac, host.guest()?, host, host_mac, mtu))
    }

    /// The same with the address `guest`.
    pub(crate) fn to(mac: Mac, guest: Ipv4Addr, host: HostV4, host_mac: [u8; 6], mtu: u16) -> Self {
        let (client, server) = (EthernetAddress(mac.octets()), EthernetAddress(host_mac));
        Self {
            client,
            server,
            guest,
            host,
            mtu,
            dns: Vec::new(),
            search: Vec::new(),
            other: OtherClient::default(),
        }
    }

    /// With the first three of these resolvers.
    #[must_use]
    pub fn with_dns(self, dns: &[Ipv4Addr]) -> Self {
        Self { dns: dns.iter().take(DNS_MAX).flat_map(Ipv4Addr::octets).collect(), ..self }
    }

    /// With these search domains.
    #[must_use]
    pub fn with_search(self, search: &[Domain]) -> Self {
        Self { search: search.iter().flat_map(Domain::octets).collect(), ..self }
    }

    /// From now on for the NIC `mac`: the guest has changed its address.
    pub(crate) fn set_client(&mut self, mac: Mac) {
        self.client = EthernetAddress(mac.octets());
    }

    /// The guest's address.
    pub fn guest(&self) -> Ipv4Addr {
        self.guest
    }
}

/// True where `bytes`, a frame's from its Ethernet type on, may be a DHCP request: IPv4 without options, whole, UDP to
/// port 67.
#[inline]
pub(crate) fn may_be_request(bytes: &[u8]) -> bool {
    const SERVER: [u8; 2] = SERVER_PORT.to_be_bytes();
    // The Ethernet type, the IPv4 header, the UDP ports.
    let Some(bytes) = bytes.first_chunk::<{ 2 + IPV4_LEN + 4 }>() else { return false };
    // More fragments, or an offset; "don't fragment" is allowed.
    let fragment = bytes[8] & 0x3f != 0 || bytes[9] != 0;
    bytes[..3] == [0x08, 0x00, 0x45] && bytes[11] == 17 && bytes[24..] == SERVER && !fragment
}

impl Lease {
    /// Answers `frame`, whole and with its header, into `reply`.
    pub(crate) fn answer(&self, frame: &[u8], reply: &mut [u8; ANSWER_MAX]) -> Verdict {
        let verdict = message::with_request(frame, self, |request| {
            Some(match self.decide(request)? {
                Some(kind) => Verdict::Reply(self.emit(request, kind, reply)),
                None => Verdict::Silent,
            })
        });
        verdict.unwrap_or(Verdict::Pass)
    }

    /// RFC 2131 §4.3: the kind of answer; none inside for silence, none outside for a message to another server.
    fn decide(&self, request: &Request<'_>) -> Option<Option<DhcpMessageType>> {
        let to_another = request.server.is_some_and(|server| server != self.host.address());
        let verdict = |right| Some(if right { DhcpMessageType::Ack } else { DhcpMessageType::Nak });
        Some(match request.kind {
            DhcpMessageType::Discover => Some(DhcpMessageType::Offer),
            _ if to_another => return None,
            // Selecting our offer, or after a reboot; renewing or rebinding.
            DhcpMessageType::Request => verdict(request.wanted.or(request.address)? == self.guest),
            // It has its address from elsewhere and asks for the rest; the answer goes to that address.
            DhcpMessageType::Inform => request.address.map(|_| DhcpMessageType::Ack),
            DhcpMessageType::Decline => {
                log::warn!("the guest declines {}: somebody else answers for it", self.guest);
                None
            }
            DhcpMessageType::Release => {
                self.other.forget();
                None
            }
            _ => return None,
        })
    }
}
