//! wirevm as the guest's DHCP server (RFC 2131), so that any distribution comes up without configuration.
//!
//! There is one client, the NIC itself, and one address for it, so there is no table of leases and nothing expires. What
//! the guest sends is hostile: the frame is copied once, and only the copy is looked at, for the guest may still write the
//! original.

mod message;
#[cfg(test)]
mod tests;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use smoltcp::wire::{DhcpMessageType, EthernetAddress};

use self::message::{IPV4_LEN, REPLY_MAX, REQUEST_MAX, Request, SERVER_PORT};
use crate::{Backend, HEADER_LEN, HostV4, Iov, Mac, Offloads, RxFilter, Sent};

/// What the guest is told.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    client: EthernetAddress,
    server: EthernetAddress,
    guest: Ipv4Addr,
    host: HostV4,
    mtu: u16,
}

impl Lease {
    /// For the NIC `mac`, the address after `host`, and `host` as its router and server, whose link has the Ethernet
    /// address `host_mac`; `mtu` is in bytes. None where the subnet has no other address.
    pub fn new(mac: Mac, host: HostV4, host_mac: [u8; 6], mtu: u16) -> Option<Self> {
        Some(Self::to(mac, host.guest()?, host, host_mac, mtu))
    }

    /// The same with the address `guest`.
    pub(crate) fn to(mac: Mac, guest: Ipv4Addr, host: HostV4, host_mac: [u8; 6], mtu: u16) -> Self {
        let (client, server) = (EthernetAddress(mac.octets()), EthernetAddress(host_mac));
        Self { client, server, guest, host, mtu }
    }

    /// The guest's address.
    pub fn guest(&self) -> Ipv4Addr {
        self.guest
    }
}

/// A backend with a DHCP server in front of it, for the one NIC at its other end.
///
/// The guest's DHCP messages to everybody or to the host's address are answered, or end here where the RFC wants silence
/// (`DHCPRELEASE`, `DHCPDECLINE`). Every other frame goes through as it is: also what is not valid DHCP, what another
/// client behind the guest asks (a bridge in the guest: `chaddr` or the source is not this NIC's), what is relayed, and
/// what the guest says to another server. An answer goes to this guest and nowhere else, for it only ever comes out of
/// [`recv`](Backend::recv).
///
/// One answer waits at most: a client that asks again wants the newest.
pub struct Dhcp<B> {
    backend: B,
    lease: Lease,
    reply: [u8; REPLY_MAX],
    /// Bytes of `reply` that wait to be received; 0 for none.
    reply_len: usize,
}

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is not for us.
    Pass,
    /// It ends here without an answer.
    Silent,
    /// The answer is ready, with this length.
    Reply(usize),
}

impl<B: Backend> Dhcp<B> {
    /// Puts a server that gives `lease` in front of `backend`.
    pub fn new(backend: B, lease: Lease) -> Self {
        Self { backend, lease, reply: [0; REPLY_MAX], reply_len: 0 }
    }

    /// Looks at a frame that may be DHCP. Apart, so that the path of every other frame stays small.
    #[cold]
    fn answer(&mut self, frame: &Iov<'_>) -> Verdict {
        let mut copy = [0; REQUEST_MAX];
        if frame.len() > copy.len() {
            return Verdict::Pass;
        }
        let len = frame.read_at(0, &mut copy);
        let verdict = self.lease.answer(&copy[..len], &mut self.reply);
        if let Verdict::Reply(len) = verdict {
            self.reply_len = len;
        }
        verdict
    }
}

/// True where the frame is IPv4 without options, whole, UDP to port 67, by its first bytes: one look at a few of them.
#[inline]
fn may_be_dhcp(frame: &Iov<'_>) -> bool {
    const SERVER: [u8; 2] = SERVER_PORT.to_be_bytes();
    // The Ethernet type, the IPv4 header, the UDP ports.
    let mut bytes = [0; 2 + IPV4_LEN + 4];
    if frame.read_at(HEADER_LEN + 12, &mut bytes) < bytes.len() {
        return false;
    }
    // More fragments, or an offset; "don't fragment" is allowed.
    let fragment = bytes[8] & 0x3f != 0 || bytes[9] != 0;
    bytes[..3] == [0x08, 0x00, 0x45] && bytes[11] == 17 && bytes[24..] == SERVER && !fragment
}

impl<B: Backend> Backend for Dhcp<B> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.backend.fd()
    }

    #[inline]
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        if may_be_dhcp(frame) {
            match self.answer(frame) {
                Verdict::Pass => {}
                Verdict::Silent => return Ok(Sent::Gone),
                Verdict::Reply(_) => return Ok(Sent::Answered),
            }
        }
        self.backend.send(frame)
    }

    #[inline]
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        if self.reply_len == 0 {
            return self.backend.recv(space);
        }
        let len = std::mem::take(&mut self.reply_len);
        if space.len() < len {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        Ok(space.write_at(0, &self.reply[..len]))
    }

    fn offloads(&self) -> Offloads {
        self.backend.offloads()
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.backend.set_offloads(accepted)
    }

    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        self.backend.set_filter(filter)?;
        // The one client is the NIC, whatever its driver calls it.
        self.lease.client = EthernetAddress(filter.mac.octets());
        Ok(())
    }

    // `vhost_fd` stays none: the kernel would carry the guest's questions past us.
}

impl Lease {
    /// Answers `frame`, whole and with its header, into `reply`.
    fn answer(&self, frame: &[u8], reply: &mut [u8; REPLY_MAX]) -> Verdict {
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
            DhcpMessageType::Release => None,
            _ => return None,
        })
    }
}
