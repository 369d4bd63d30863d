//! Frames and the host: where a NIC's frames go, and the host's wiring that takes them there.
//!
//! **Invariant: this crate knows frames and the host, never a guest.** There is no virtqueue here, no KVM, and no
//! guest-physical address: guest memory arrives as an [`Iov`], a list of buffers that somebody else may be writing.
//!
//! **Invariant: one frame format.** Every frame that crosses [`Backend`], both ways, starts with the 12-byte
//! `virtio_net_hdr_v1` (virtio 1.2 §5.1.6). No header length travels through an interface.

#![deny(unsafe_code)]

mod iov;
mod socket;
mod sys;

pub use iov::{Iov, IovBuffer};
pub use socket::{SocketBackend, SocketPeer};

use std::io;
use std::os::fd::BorrowedFd;

/// Length in bytes of `virtio_net_hdr_v1`, with which every frame starts (virtio 1.2 §5.1.6).
pub const HEADER_LEN: usize = 12;

/// The host end of one queue pair: where its frames go.
///
/// Nothing blocks. "Not now" is [`io::ErrorKind::WouldBlock`], and [`fd`](Self::fd) tells when to try again. A refusal
/// that loses the frame as a wire would (the link is down, the host's queue is full) is any other error: the caller
/// counts it and goes on with the next frame. One of them is for good: `EBADFD`, when the host's end is deleted.
pub trait Backend: Send {
    /// The descriptor to poll, edge-triggered: readable when [`recv`](Self::recv) has a frame, writable when
    /// [`send`](Self::send) can take one again.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Sends one whole frame, header first.
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent>;

    /// Receives one whole frame into `space`, header first, and returns its length in bytes with the header. A frame
    /// larger than the space is an error and is lost. `num_buffers` of the header is left for the caller to fill.
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize>;

    /// What the host end can do, whatever was last set.
    fn offloads(&self) -> Offloads;

    /// Says what the guest accepts in the frames it receives: from now on the host finishes checksums and segments for
    /// all that is not in `accepted`.
    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()>;

    /// The descriptor that vhost-net can carry frames on in our place, if this kind has one.
    fn vhost_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What became of a frame handed to [`Backend::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The host has it.
    Gone,
    /// The backend answered it itself, and [`Backend::recv`] has the answer now: no event on the descriptor will say so.
    Answered,
}

/// Work that one side of the wire may leave to the other: unfinished checksums, and packets larger than the MTU
/// (`VIRTIO_NET_F_*CSUM`, `*TSO4`, `*TSO6`, `*USO*`; `TUN_F_*` on the host's side).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums may be partial; without it the others mean nothing.
    pub csum: bool,
    /// TCP over IPv4 in packets of up to 64 KiB.
    pub tso4: bool,
    /// TCP over IPv6 in packets of up to 64 KiB.
    pub tso6: bool,
    /// UDP over IPv4 and IPv6 in packets of up to 64 KiB; Linux has the two together or not at all.
    pub uso: bool,
}
