//! Frames: the seam between a NIC and its wire.
//!
//! A frame's way out is [`Backend::send`], and in is [`Backend::recv`]: no allocation, no lock, and no copy, except where
//! `soft_offload/` does what a wire cannot.

pub(crate) mod filter;
pub(crate) mod iov;
pub(crate) mod merge;
pub(crate) mod queue;
pub(crate) mod socket;
pub(crate) mod soft_offload;
pub(crate) mod stream;
pub(crate) mod unplugged;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::filter::RxFilter;
use self::iov::Iov;
use crate::sys;

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
    ///
    /// The default writes it to [`fd`](Self::fd), which is right for a descriptor that takes frames as they are.
    #[inline]
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        sys::writev(self.fd(), frame).map(|_| Sent::Gone)
    }

    /// Receives one whole frame into `space`, header first, and returns its length in bytes with the header. A frame
    /// larger than the space is an error and is lost. `num_buffers` of the header is left for the caller to fill.
    ///
    /// The default reads it from [`fd`](Self::fd).
    #[inline]
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        sys::readv(self.fd(), space)
    }

    /// What the host end can do, whatever was last set.
    fn offloads(&self) -> Offloads;

    /// As which kinds of packets [`send`](Self::send) takes several frames at once, and the MTU in bytes of frames that may be among
    /// them ([`Run`](crate::Run)).
    ///
    /// The default is none, which is right for a wire that does not cut them.
    fn merges(&self) -> (Offloads, u16) {
        Default::default()
    }

    /// Says what the guest accepts in the frames it receives: from now on the host finishes checksums and segments for
    /// all that is not in `accepted`.
    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()>;

    /// Says which frames the guest's NIC receives, and under which address: a change that takes effect whole or not at all.
    /// It is not on the path of a frame, and may allocate.
    ///
    /// The default does nothing, which is right for a wire that brings every frame to its other end, as a tap does.
    ///
    /// # Errors
    /// The host refuses, and all is as before: another link has the address, for one.
    fn set_filter(&mut self, _filter: &RxFilter) -> io::Result<()> {
        Ok(())
    }

    /// Says whether the host may bring frames here, which it does from the start. A wire with several queues spreads frames
    /// over those that are enabled, and a guest may want fewer than there are; what waited here when it is disabled is lost.
    /// A frame can be sent all the same.
    ///
    /// The default does nothing, which is right for the only queue of a wire.
    ///
    /// # Errors
    /// The host refuses, and all is as before.
    fn set_enabled(&mut self, _enabled: bool) -> io::Result<()> {
        Ok(())
    }

    /// Says on the host's link whether there is somebody at the guest's end of the wire (its carrier). What the link has of its own
    /// beside that, as being set down, stays as it is.
    ///
    /// The default does nothing, which is right for a link that has its carrier from another one, as a macvtap.
    fn set_carrier(&mut self, _present: bool) {}

    /// Loses what waits here for the guest: it is in a form that a driver before took, and perhaps not the next one.
    ///
    /// The default reads it from [`fd`](Self::fd).
    fn drain(&mut self) {
        queue::drain(self.fd());
    }

    /// The descriptor that vhost-net can carry frames on in our place, if this kind has one.
    fn vhost_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// While vhost-net carries the frames: the descriptor to poll, edge-triggered, that is readable when the guest may have asked
    /// something that this end [answers](Self::answer) itself. None where it answers nothing.
    fn asked_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Answers what the guest asked, while vhost-net carries the frames. Returns after how long this is to be called again although
    /// nothing is asked; none for not at all.
    fn answer(&mut self) -> Option<Duration> {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

impl Offloads {
    /// Those of them that `can` has, too.
    #[must_use]
    pub fn only(self, can: Self) -> Self {
        let csum = self.csum && can.csum;
        Self {
            csum,
            tso4: csum && self.tso4 && can.tso4,
            tso6: csum && self.tso6 && can.tso6,
            uso: csum && self.uso && can.uso,
        }
    }
}

impl std::fmt::Debug for dyn Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("fd", &self.fd()).finish_non_exhaustive()
    }
}
