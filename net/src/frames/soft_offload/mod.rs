//! Checksums and segmentation in software, for a wire that can do less than the guest's driver leaves to the host.
//!
//! A driver negotiates once which work it leaves to the host (`VIRTIO_NET_F_CSUM`, `HOST_TSO4`, `HOST_TSO6`, `HOST_USO`), and that
//! stays true when its NIC moves to a wire whose host end lacks some of it. [`SoftOffload::wrap`] goes in front of everything else that
//! is on such a wire, because it reads Ethernet frames: a tun behind it gets segments like any other frame, and shifts `csum_start`.
//!
//! **To the host**, how a segment is sent depends on the wire:
//! - If the wire finishes checksums, the segment keeps a partial one. Its headers are in a scratch buffer, and its payload goes out of
//!   guest memory without being read here. UDP segmentation on a kernel before 6.2 is this case.
//! - If not, computing the checksum reads the payload anyway, so the segment (or the whole frame, if only its checksum is missing) is
//!   copied to the scratch buffer first. So the bytes that were summed are the bytes that are sent, whatever the guest writes meanwhile.
//!
//! **To the guest** there is nothing to do. A wire brings only what [`Backend::set_offloads`] asked for, and we never ask for more than
//! the wire can do: the host's kernel finishes the rest before the frame arrives here.
//!
//! **The frames are those that the Linux kernel would make**, byte for byte (`tcp_gso_segment`, `__udp_gso_segment`,
//! `skb_checksum_help`). The IPv4 identification counts up; FIN and PSH are only in the last segment, CWR only in the first; lengths,
//! TCP sequence numbers and checksums are each segment's own; everything else is copied, IP and TCP options, extension headers and VLAN
//! tags included. The driver's partial checksum is adjusted to the segment's length, not computed anew. As in the kernel, a frame is
//! dropped, with an error, if its headers are not what its virtio-net header says: another protocol; `csum_start` or `csum_offset` not
//! those of the transport header; `gso_size` 0; headers longer than the frame; an IPv6 fragment; more than 128 datagrams.
//!
//! **Where we differ from the kernel:**
//! - `hdr_len` is ignored: it is only a hint (virtio 1.3 §5.1.6.2.2).
//! - A packet to be cut whose checksum is not left to the host is dropped; Linux would still cut TCP. Drivers must not send it
//!   (§5.1.6.2.1).
//! - A packet whose payload fits one segment is sent; Linux drops it if payload and TCP options together do not fit.
//! - TCP segments of less than 8 bytes are dropped: no stack sends them, and one frame would become up to 65000.
//! - UDP fragmentation (`GSO_UDP`), tunnels and accurate ECN are dropped: no NIC of ours offers them.
//!
//! If the wire is full in the middle of a packet, the rest goes out when the caller sends the frame again (`Begun`). If the wire
//! refuses a segment, the rest of the packet is dropped.
//!
//! Header bytes in guest memory are read once, and only the copy is used. The exception is a frame that needs nothing from us: the wire
//! reads it anew, so a guest that changes it in between can hand the wire work that it cannot do. The wire must refuse that by itself.

pub(super) mod checksum;
mod header;
mod segments;

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use vm_memory::VolatileSlice;

use self::header::Header;
use self::segments::Segments;
use crate::{Backend, HEADER_LEN, Iov, IovBuffer, Offloads, RxFilter, Sent};

/// The largest frame in bytes, virtio-net header included: a packet of 64 KiB behind an Ethernet header with a VLAN tag.
const FRAME_MAX: usize = HEADER_LEN + 18 + 65536;
/// The smallest `csum_start` that the kernel takes.
const CSUM_START_MIN: usize = 20;

/// A wire with the offloads that it lacks done in software.
///
/// vhost-net cannot carry the frames of such a wire, so there is no [`vhost_fd`](Backend::vhost_fd).
///
/// The scratch memory, 64 KiB for a frame and 16 KiB for its buffers, is allocated once.
pub struct SoftOffload {
    wire: Box<dyn Backend>,
    /// What the wire can do itself.
    can: Offloads,
    /// The frame or segment to be sent, or its headers.
    scratch: Box<[u8]>,
    buffers: IovBuffer,
    begun: Begun,
}

/// A packet of which the wire took some segments before it said "not now". The caller sends the same frame again, and it goes on with
/// the next segment, so that none is sent twice. If the caller sends another frame instead, because the driver was restarted or the
/// NIC moved, the rest is dropped.
struct Begun {
    /// Segments that the wire took; 0 if there is no such packet.
    segments: usize,
    /// Length of the frame and its first bytes, by which it is recognised: usually the packet's identification or sequence number is
    /// among them. Another frame that is alike in all of these loses its first segments, as on a wire.
    len: usize,
    head: [u8; Self::HEAD],
}

impl Begun {
    /// To the end of the TCP header behind a VLAN tag and IPv6.
    const HEAD: usize = HEADER_LEN + 18 + 40 + 20;

    /// The next segment to send of the frame of `len` bytes that starts with `head`.
    fn next(&self, head: &[u8], len: usize) -> usize {
        let known = self.len == len && self.head.iter().zip(head).all(|(a, b)| a == b);
        if known { self.segments } else { 0 }
    }
}

impl SoftOffload {
    /// Does in software what `wire` lacks of `accepted`. A wire that lacks nothing is returned as it is, and costs nothing.
    ///
    /// `accepted` is what the driver accepted. Give what the NIC offers if another driver may start on this wire, as after a reboot of
    /// the guest: it may accept more.
    pub fn wrap(wire: Box<dyn Backend>, accepted: Offloads) -> Box<dyn Backend> {
        let can = wire.offloads();
        // Without checksums the others mean nothing, on either side.
        let (can, accepted) = (can.only(can), accepted.only(accepted));
        if accepted.only(can) == accepted {
            return wire;
        }
        let begun = Begun { segments: 0, len: 0, head: [0; Begun::HEAD] };
        Box::new(Self { wire, can, scratch: vec![0; FRAME_MAX].into(), buffers: IovBuffer::new(), begun })
    }

    /// Finishes the checksum of a frame, and sends it.
    fn finish(&mut self, header: &Header, frame: &Iov<'_>) -> io::Result<Sent> {
        let (start, at, len) = (header.sums_from(), header.sum_at(), frame.len());
        if usize::from(header.csum_start) < CSUM_START_MIN || at + 2 > len || len > FRAME_MAX {
            return Err(lost());
        }
        let copy = &mut self.scratch[..len];
        frame.read_at(0, copy);
        copy[..HEADER_LEN].fill(0);
        // The kernel does this whatever the protocol, although 0 means "no checksum" only in UDP.
        let sum = nonzero(!checksum::sum(&copy[start..]));
        segments::put(copy, at, sum);
        send_copy(&mut *self.wire, &mut self.buffers, copy)
    }

    /// Cuts a packet into segments, and sends them.
    fn cut(&mut self, header: &Header, frame: &Iov<'_>) -> io::Result<Sent> {
        let (gso, len) = (header.gso().ok_or_else(lost)?, frame.len());
        if len > FRAME_MAX {
            return Err(lost());
        }
        let seen = (header.sums_from() + segments::TRANSPORT_MAX).min(len);
        let seen = &mut self.scratch[..seen];
        frame.read_at(0, seen);
        let segments = Segments::of(&seen[HEADER_LEN..], len - HEADER_LEN, header, gso).ok_or_else(lost)?;
        if segments.count() == 1 {
            return if self.can.csum {
                send_behind(
                    &mut *self.wire,
                    &mut self.buffers,
                    &mut header.csum_only(),
                    frame,
                    HEADER_LEN..len,
                )
            } else {
                self.finish(header, frame)
            };
        }
        let first = self.begun.next(seen, len);
        self.begun.segments = 0;
        let mut head = [0; Begun::HEAD];
        head.iter_mut().zip(&*seen).for_each(|(to, from)| *to = *from);
        let mut all = Sent::Gone;
        for index in first..segments.count() {
            match self.send_segment(&segments, index, header, frame) {
                Ok(Sent::Gone) => {}
                Ok(Sent::Answered) => all = Sent::Answered,
                Err(error) => {
                    if error.kind() == io::ErrorKind::WouldBlock {
                        self.begun = Begun { segments: index, len, head };
                    }
                    return Err(error);
                }
            }
        }
        Ok(all)
    }

    /// Sends one segment. The scratch buffer has the headers of the packet or of another segment.
    fn send_segment(
        &mut self,
        segments: &Segments,
        index: usize,
        header: &Header,
        frame: &Iov<'_>,
    ) -> io::Result<Sent> {
        let (front, behind) = self.scratch.split_at_mut(HEADER_LEN + segments.headers_len());
        let piece = segments.write(index, &mut front[HEADER_LEN..]);
        let payload = HEADER_LEN + piece.start..HEADER_LEN + piece.end;
        if self.can.csum {
            front[..HEADER_LEN].copy_from_slice(&header.csum_only());
            return send_behind(&mut *self.wire, &mut self.buffers, front, frame, payload);
        }
        let len = front.len() + payload.len();
        frame.read_at(payload.start, &mut behind[..payload.len()]);
        let copy = &mut self.scratch[..len];
        copy[..HEADER_LEN].fill(0);
        let sum = !checksum::sum(&copy[header.sums_from()..]);
        segments::put(copy, header.sum_at(), if segments.zero_is_none() { nonzero(sum) } else { sum });
        send_copy(&mut *self.wire, &mut self.buffers, copy)
    }
}

/// Sends `front` and behind it the bytes of `frame` in `range`.
fn send_behind(
    wire: &mut dyn Backend,
    buffers: &mut IovBuffer,
    front: &mut [u8],
    frame: &Iov<'_>,
    range: Range<usize>,
) -> io::Result<Sent> {
    let len = front.len() + range.len();
    let (mut all, _) = buffers.start_behind(VolatileSlice::from(front), frame, range.start);
    all.truncate(len);
    // With `front` there are more buffers than one system call takes.
    if all.len() < len {
        return Err(lost());
    }
    wire.send(&all)
}

/// Sends a frame that is in our memory.
fn send_copy(wire: &mut dyn Backend, buffers: &mut IovBuffer, frame: &mut [u8]) -> io::Result<Sent> {
    let mut all = buffers.start();
    if !all.push(VolatileSlice::from(frame)) {
        return Err(lost());
    }
    wire.send(&all)
}

/// A checksum that does not say "no checksum": 0 and all ones are the same number.
fn nonzero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

/// The frame is dropped.
fn lost() -> io::Error {
    io::ErrorKind::InvalidInput.into()
}

impl Backend for SoftOffload {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wire.fd()
    }

    #[inline]
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        let mut header = [0; HEADER_LEN];
        if frame.read_at(0, &mut header) < HEADER_LEN {
            return Err(lost());
        }
        let header = Header::read(&header);
        if header.is_cut() {
            match header.gso() {
                Some(gso) if gso.is_in(self.can) => self.wire.send(frame),
                _ => self.cut(&header, frame),
            }
        } else if header.needs_csum() && !self.can.csum {
            self.finish(&header, frame)
        } else {
            self.wire.send(frame)
        }
    }

    #[inline]
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        self.wire.recv(space)
    }

    /// All of them: what the wire lacks is done here.
    fn offloads(&self) -> Offloads {
        Offloads { csum: true, tso4: true, tso6: true, uso: true }
    }

    /// Asks the wire only for what it can do, because a link refuses the rest. A driver that accepts more loses nothing.
    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.wire.set_offloads(accepted.only(self.can))
    }

    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        self.wire.set_filter(filter)
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.wire.set_enabled(enabled)
    }

    fn set_carrier(&mut self, present: bool) {
        self.wire.set_carrier(present);
    }

    fn drain(&mut self) {
        self.wire.drain();
    }

    // `vhost_fd` stays none: the kernel would carry the frames past us.
}
