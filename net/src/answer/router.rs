//! wirevm as the guest's IPv6 router, as far as to say so: router advertisement (RFC 4861, RFC 8106), from which the guest
//! makes its own address (RFC 4862). The host is what routes.

mod message;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::pread;
use serde::{Deserialize, Serialize};
use smoltcp::wire::{EthernetAddress, NdiscPrefixInfoFlags};

use self::message::Asker;
use crate::answer::octets;
use crate::answer::{ANSWER_MAX, Verdict};
use crate::{Domain, HostV6};

pub(crate) use self::message::may_be_solicitation;

/// For how long the host is the guest's router, in seconds: the most that the field can say (RFC 8319 §4). All else in the
/// advertisement is for ever.
const LIFETIME: u16 = u16::MAX;

/// After how long the guest must hear of its router again: half of that time.
pub(crate) const AGAIN: Duration = Duration::from_secs(LIFETIME as u64 / 2);

/// The prefix that a guest on Ethernet can make its own address of, in bits (RFC 4862 §5.5.3, RFC 2464 §4).
const SLAAC_PREFIX: u8 = 64;

/// What the guest is told.
///
/// The subnet's prefix is told as on the link. Where that is a /64, the guest makes its address of it; where it is shorter,
/// of the /64 in it that has the host's address; where it is longer no guest can, and [`has_slaac`](Self::has_slaac) says
/// so. The host is a default router only while it forwards: else its own neighbour advertisements, without the R flag,
/// would take the route away again (RFC 4861 §7.2.5).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Router {
    #[serde(with = "octets")]
    mac: EthernetAddress,
    /// Link-local, as RFC 4861 §6.1.2 wants.
    address: Ipv6Addr,
    /// All options, ready to be sent.
    options: Vec<u8>,
    slaac: bool,
    /// Not plain data: it is given anew (`with_forwarding`).
    #[serde(skip)]
    forwarding: Option<Arc<File>>,
}

impl Router {
    /// The least MTU of a link with IPv6, in bytes (RFC 8200 §5).
    pub(crate) const MTU_MIN: u16 = 1280;

    /// For the subnet of `host`, from the link with the Ethernet address `mac` and the link-local `address`. `mtu` is in
    /// bytes. Of `dns` the first three are told, as many as resolvers look at, and the domains of `search` to look in. Without
    /// `slaac` the guest is to make no address of it.
    ///
    /// None where the MTU is too small for IPv6.
    pub fn new(
        mac: [u8; 6],
        address: Ipv6Addr,
        host: HostV6,
        mtu: u16,
        dns: &[Ipv6Addr],
        search: &[Domain],
        slaac: bool,
    ) -> Option<Self> {
        let (on_link, autonomous) = (NdiscPrefixInfoFlags::ON_LINK, NdiscPrefixInfoFlags::ADDRCONF);
        let mac = EthernetAddress(mac);
        let mut options = message::Options::default();
        options.push_link(mac, mtu);
        match host.prefix() {
            // Nobody else is in the subnet of the host alone.
            128 => {}
            _ if !slaac => options.push_prefix(host, on_link),
            SLAAC_PREFIX => options.push_prefix(host, on_link | autonomous),
            prefix if prefix < SLAAC_PREFIX => {
                options.push_prefix(host, on_link);
                let in_it = HostV6::new(host.address(), SLAAC_PREFIX);
                in_it.ok().into_iter().for_each(|host| options.push_prefix(host, on_link | autonomous));
            }
            _ => options.push_prefix(host, on_link),
        }
        options.push_dns(&dns[..dns.len().min(3)]);
        options.push_search(search);
        let (options, slaac) = (options.into_bytes(), slaac && host.prefix() <= SLAAC_PREFIX);
        (mtu >= Self::MTU_MIN).then_some(Self { mac, address, options, slaac, forwarding: None })
    }

    /// The same with a way to look whether the host forwards: the link's setting `net.ipv6.conf.LINK.forwarding`, read anew for
    /// each advertisement; none where it does not forward.
    #[must_use]
    pub(crate) fn with_forwarding(self, forwarding: Option<File>) -> Self {
        Self { forwarding: forwarding.map(Arc::new), ..self }
    }

    /// True where the guest makes its address of what it is told: it shall, and the prefix has 64 bits at most.
    pub fn has_slaac(&self) -> bool {
        self.slaac
    }

    /// Answers `frame`, whole and with its header, into `answer`.
    pub(crate) fn answer(&self, frame: &[u8], answer: &mut [u8; ANSWER_MAX]) -> Verdict {
        match message::asker(frame, self.address) {
            Some(asker) => Verdict::Reply(self.emit(asker, self.lifetime(), answer)),
            None => Verdict::Pass,
        }
    }

    /// Tells it unasked, to all on the link; returns the length of the frame.
    pub(crate) fn advertise(&self, answer: &mut [u8; ANSWER_MAX]) -> usize {
        self.emit(Asker::ALL, self.lifetime(), answer)
    }

    /// For how many seconds the host is a router: not at all, where it does not forward.
    fn lifetime(&self) -> u16 {
        let mut setting = [b'0'];
        let read = self.forwarding.as_ref().map(|file| pread(file, &mut setting, 0));
        if matches!(read, Some(Ok(1))) && setting != *b"0" { LIFETIME } else { 0 }
    }
}
