//! Frames and the host: where a NIC's frames go, and the host's wiring that takes them there.
//!
//! **Invariant: this crate knows frames and the host, never a guest.** There is no virtqueue here, no KVM, and no
//! guest-physical address: guest memory arrives as an [`Iov`], a list of buffers that somebody else may be writing. (`vhost.rs`
//! alone is told where rings are, to hand them on to the host's kernel.)
//!
//! **Invariant: one frame format.** Every frame that crosses [`Backend`], both ways, starts with the 12-byte
//! `virtio_net_hdr_v1` (virtio 1.2 §5.1.6). No header length travels through an interface.
//!
//! **Invariant: what we change on the host we change back**, in reverse order, when a [`Wire`] is dropped, and what was
//! there already is neither done nor undone.
//!
//! **Invariant: `unsafe` is in `iov.rs`, `sys.rs`, `sys/` and `vhost.rs`, and nowhere else.**
//!
//! # Map
//! - `lib.rs`: [`Backend`] and what it speaks of. `wire.rs`: [`Wire`], the host half of a NIC, and the only match over the kinds of
//!   wire; `cable.rs`: what of it goes to the process that runs the guest.
//! - `config.rs` and `config/`: the grammar of `--net`. `address.rs`, `subnet.rs`: names and addresses that make sense.
//!   `error/`: [`Error`], an enum for each kind of wire.
//! - `bridge.rs`: the tap on a bridge. `tap.rs`, `tun.rs`, `macvtap.rs`, `fd.rs`, `socket.rs`: the backends; `queue.rs`: a
//!   further queue of one. `tuntap.rs`: the links of the tun driver under two of them. `macvtap/make.rs`: making a macvtap, and the host's place beside it.
//!   `neighbour.rs`: answers ARP and neighbour discovery where there is no Ethernet. `autoconf.rs`: `dhcp.rs` and
//!   `router.rs` in front of one, which tell the guest its addresses; `listener.rs`: their ear where the kernel carries the frames.
//! - `vhost.rs`: vhost-net, the carrier that is not ours.
//! - `routed.rs`: the subnet that host and guest share. `resolver.rs`: the host's DNS servers.
//! - `host/mod.rs`: the host's plumbing, [`Step`] and undo. `host/change.rs`: each change. `host/context.rs`: [`Host`], what the process gives every wire. `host/deferred_undo.rs`: what is taken back later. `host/journal.rs`, `host/clean.rs`:
//!   the records that outlive us, and undoing those of the dead. `host/fd_reserve.rs`: descriptors for that. `host/wait.rs`: one at a time. `host/namespace.rs`: network namespaces.
//!   `host/netlink.rs` and `host/netlink/`, `host/nft.rs`: the only users of the netlink crates. `host/sysfs.rs`: a link's
//!   device. `host/holders.rs`: who holds a tap.
//! - `host/nat.rs`: NAT. `host/forwarding.rs`: that the kernel passes packets on. `host/firewall.rs`: what others' rules drop.
//!   `host/probe.rs`: which kinds of link this kernel makes.
//! - `filter.rs`: which frames a NIC receives. `iov.rs`: guest buffers. `sys.rs`: ioctls, `readv`, `writev`; `sys/packet.rs`: packet sockets.
//!
//! A frame's way out is [`Backend::send`] → `sys::writev`, and in is [`Backend::recv`] → `sys::readv`: no allocation, no
//! lock, and no copy. (io_uring was measured beside them on a tap: 64 frames of 64 or 1514 bytes in one submission cost 1 to 3%
//! more of the thread's time for each frame, both ways. A frame is half a microsecond's work of the kernel's, and the system call
//! is the least of it.)
#![deny(unsafe_code)]

mod address;
mod autoconf;
mod bridge;
mod cable;
mod config;
mod dhcp;
mod error;
mod fd;
mod filter;
mod host;
mod iov;
mod listener;
mod macvtap;
mod neighbour;
mod queue;
mod resolver;
mod routed;
mod router;
mod socket;
mod subnet;
mod sys;
mod tap;
mod text;
mod tun;
mod tuntap;
mod vhost;
mod wire;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use address::{LinkName, Mac, NetnsName};
pub use autoconf::Autoconf;
pub use cable::{Ask, Cable, CableSpec, Plugged};
pub use config::{
    BridgeConfig, FdConfig, Forward, Key, Kind, MTU, MacvtapConfig, MacvtapMode, NetConfig, Protocol, Queues,
    Repeat, TapConfig, TunConfig, VhostMode, WireConfig, WireKind, keys, kinds,
};
pub use dhcp::Lease;
pub use error::{
    BridgeError, ChangeKind, Error, FdError, FdProblem, HostError, MacvtapError, NatError, ParentProblem,
    SpecError, TunTapError, UplinkProblem, VhostError, too_many_files,
};
pub use filter::{Addresses, RxFilter};
pub use host::firewall::{Finding, bridged_notices, findings};
pub use host::holders::Holder;
pub use host::netlink::Refusal;
pub use host::probe::link_kinds;
pub use host::{Host, Step, clean, left_over, runtime_directory};
pub use iov::{Iov, IovBuffer, prefetch};
pub use macvtap::Macvtap;
pub use router::Router;
pub use socket::{SocketBackend, SocketPeer};
pub use subnet::{HostAddress, HostV4, HostV6};
pub use sys::take_turns;
pub use tap::Tap;
pub use tuntap::TunMode;
pub use vhost::{Carrying, Ring, Vhost};
pub use wire::{Hop, Opened, Role, Wire, WireLink, open};

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

impl std::fmt::Debug for dyn Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("fd", &self.fd()).finish_non_exhaustive()
    }
}
