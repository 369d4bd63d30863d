//! Frames of one flow that lie one behind the other, as one packet that the host cuts again: one header and the payload of each, out
//! of guest memory as it is.
//!
//! **Invariant: what leaves the host is what would have left it frame by frame**, byte for byte, but for the IPv4 identification of a
//! packet that may not be fragmented, which means nothing (RFC 6864), and a checksum of TCP that is zero, which Linux writes as all ones
//! of a single frame alone. So frames are merged only where the kernel, cutting the packet
//! (`__udp_gso_segment`, `tcp_gso_segment`), makes each header again as it was:
//! - Ethernet addresses, a VLAN tag, IP addresses, TTL, TOS or traffic class with ECN, flow label and ports are equal; payloads have
//!   one length, of which only the last may have less.
//! - IPv4 has "don't fragment", or identifications that count up. There are no options, fragments or extension headers, and the
//!   header's checksum is right.
//! - TCP is in order, with one acknowledgement, window and options. PSH ends a packet; URG, SYN, FIN, RST and CWR go alone.
//! - The checksum of each is left to the host, with the partial sum of one flow. What has its whole checksum goes alone: to see that
//!   it is right would be to read the payload.
//! - What is no longer than the link's MTU when the wire was made, for a bridge loses a single frame that is longer, and cuts a packet.
//!
//! The functions are inlined into the device's loop, which is compiled for speed where this crate is for size.
//!
//! A frame whose headers say anything else about it goes alone as it came. So do DHCP requests, which a backend answers, and what goes to
//! the usual ports of tunnels.

mod head;

pub use self::head::FrameHead;
use self::head::{Layout, PSH};
use crate::frames::soft_offload::checksum::{add, sum};
use crate::{HEADER_LEN, Offloads};

/// The kinds of packets that a host end cuts: what [`Backend::merges`](crate::Backend::merges) says.
pub type Kinds = Offloads;

/// `VIRTIO_NET_HDR_GSO_*`.
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// The most bytes of a packet from its IP header on.
const PACKET_MAX: usize = 0xffff;

/// Frames that go as one, as far as they are known.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    layout: Layout,
    /// Bytes of payload of each.
    size: usize,
    /// Bytes of payload of all.
    payload: usize,
    frames: usize,
    /// Nothing more can follow.
    closed: bool,
    pushes: bool,
}

impl Run {
    /// The most frames of one packet: the most datagrams that Linux cuts (`UDP_MAX_SEGMENTS`; since 6.9 it is twice as many).
    pub const FRAMES_MAX: usize = 64;

    /// A run of the frame `first`, for a host end that cuts these `kinds` of packets and an MTU in bytes. None where it goes alone.
    #[inline]
    pub fn begin(first: &FrameHead, kinds: Kinds, mtu: u16) -> Option<Self> {
        let layout = Layout::of(first, kinds)?;
        let size = layout.payload_len(first);
        let fits = first.len() - layout.network <= usize::from(mtu);
        let can_lead = fits && layout.can_be_cut(size) && !layout.pushes(first);
        can_lead.then_some(Self { layout, size, payload: size, frames: 1, closed: false, pushes: false })
    }

    /// Has `next` in it, if that goes with `first` and all those between; else all is as before.
    #[inline]
    pub fn add(&mut self, first: &FrameHead, next: &FrameHead) -> bool {
        let Self { layout, size, payload, frames, .. } = *self;
        if self.is_closed() || !layout.continues(first, next, frames, payload) {
            return false;
        }
        let more = layout.payload_len(next);
        if more > size || layout.payload - layout.network + payload + more > PACKET_MAX {
            return false;
        }
        (self.payload, self.frames) = (payload + more, frames + 1);
        self.pushes = layout.pushes(next);
        self.closed = more < size || self.pushes;
        true
    }

    /// How many frames there are.
    #[inline]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// True where nothing can follow.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.closed || self.frames == Self::FRAMES_MAX
    }

    /// Where the payload of each frame begins, which is the length of the headers of all.
    #[inline]
    pub fn headers_len(&self) -> usize {
        self.layout.payload
    }

    /// The kind of packet, alone.
    #[inline]
    pub fn kind(&self) -> Kinds {
        let Layout { is_tcp, is_v6, .. } = self.layout;
        Kinds { csum: false, tso4: is_tcp && !is_v6, tso6: is_tcp && is_v6, uso: !is_tcp }
    }

    /// The headers of all, virtio-net header included: those of `first`, as the kernel is to cut them.
    #[inline]
    pub fn headers(&self, first: &FrameHead) -> [u8; FrameHead::MAX] {
        let Layout { network, transport, payload, is_v6, is_tcp } = self.layout;
        let mut headers = *first.bytes();
        let kind = match (is_tcp, is_v6) {
            (false, _) => GSO_UDP_L4,
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
        };
        headers[1] = kind;
        headers[2..4].copy_from_slice(&((payload - HEADER_LEN) as u16).to_le_bytes());
        headers[4..6].copy_from_slice(&(self.size as u16).to_le_bytes());
        let end = payload + self.payload;
        let mut put = |at: usize, word: u16| headers[at..][..2].copy_from_slice(&word.to_be_bytes());
        let len_from = |at: usize| (end - at) as u16;
        match is_v6 {
            true => put(network + 4, len_from(transport)),
            false => {
                put(network + 2, len_from(network));
                put(network + 10, 0);
            }
        }
        if !is_tcp {
            put(transport + 4, len_from(transport));
        }
        put(self.layout.checksum(), add(self.layout.pseudo_sum(first), len_from(transport)));
        if !is_v6 {
            let sum = !sum(&headers[network..transport]);
            headers[network + 10..][..2].copy_from_slice(&sum.to_be_bytes());
        }
        if self.pushes {
            headers[transport + 13] |= PSH;
        }
        headers
    }
}
