//! Frames and the host: where a NIC's frames go, and the host's wiring that takes them there.
//!
//! **Invariant: this crate knows frames and the host, never a guest.** There is no virtqueue here, no KVM, and no
//! guest-physical address: guest memory arrives as an [`Iov`], a list of buffers that somebody else may be writing. (`wire/vhost.rs`
//! alone is told where rings are, to hand them on to the host's kernel.)
//!
//! **Invariant: one frame format.** Every frame that crosses [`Backend`], both ways, starts with the 12-byte
//! `virtio_net_hdr_v1` (virtio 1.2 §5.1.6). No header length travels through an interface.
//!
//! **Invariant: what we change on the host we change back**, in reverse order, when a [`Wire`] is dropped, and what was
//! there already is neither done nor undone.
//!
//! **Invariant: `unsafe` is in `frames/iov.rs`, `sys.rs`, `sys/`, `wire/vhost.rs` and `wire/vhost/`, and nowhere else.**
//!
//! # Map
//! - `frames/`: [`Backend`] and what it speaks of. `iov.rs`: guest buffers. `filter.rs`: which frames a NIC receives. `queue.rs`: a
//!   further queue of a link. `socket.rs`: a wire between two processes. `stream.rs`: bytes that are no frames. `merge/`: several frames as one packet. `unplugged.rs`: no wire. `soft_offload/`: checksums and
//!   segments for a wire that can do less than the guest's driver leaves to it.
//! - `wire/`: [`Wire`], the host half of a NIC, and the only match over the kinds of wire; a file for each kind makes it (`made.rs`)
//!   and has its descriptors: `tap.rs`, `bridge.rs`, `macvtap.rs`, `tun.rs`, `fd.rs`; `tuntap.rs`, the links of the tun driver.
//!   `cable.rs`: what of it goes to the process that runs the guest. `routed.rs`: the subnet that host and guest share.
//!   `counters.rs`: what the host counts. `vhost.rs`: vhost-net, the carrier that is not ours; `vhost/vsock.rs`: its sibling for sockets; `rate.rs`: the rate of what that carries. `one_address.rs`: links that no second
//!   address passes. `look.rs`: whether frames get through, and how a wire is made whole again.
//! - `answer/`: what a guest asks and we answer. `autoconf.rs`: `dhcp.rs` and `router.rs` in front of a backend, which tell the guest
//!   its addresses; `listener.rs`: their ear where the kernel carries the frames. `neighbour.rs`: ARP and neighbour discovery where
//!   there is no Ethernet. `resolver.rs`: the host's DNS servers; `relay.rs`: what
//!   the guest asks those on the host's loopback.
//! - `host/`: the host's plumbing, [`Step`] and undo. `context.rs`: [`Host`], what the process gives every wire. `change.rs`: each change.
//!   `deferred_undo.rs`: what is taken back later. `directory.rs`: where records are. `journal.rs`, `clean.rs`: the records that
//!   outlive us, and undoing those of the dead.
//!   `fd_reserve.rs`: descriptors for that. `wait.rs`: one at a time. `namespace.rs`: network namespaces. `netlink.rs` and
//!   `netlink/`, `nft.rs`: the only users of the netlink crates. `sysfs.rs`: a link's device. `holders.rs`: who holds a tap.
//!   `identity.rs`: which link an undo is for. `in_use.rs`: bridges that others use. `siblings.rs`: other runtime directories.
//!   `nat.rs`: NAT. `guard.rs`: that a guest sends under its own addresses. `rate.rs`: that it moves no more than its rate. `forwarding.rs`: that the kernel passes packets on.
//!   `firewall.rs`: what others' rules drop.
//!   `belongings.rs`: what moves from an uplink to its bridge. `announce.rs`: how the neighbours hear of it.
//!   `link_settings.rs`: how a link is set. `take_back.rs`: the undo. `settings.rs`, `finding.rs`: what the doctor is told. `probe.rs`:
//!   which kinds of link this kernel makes. `watch.rs`: news of links and routes. `sharing.rs`: what several wirevm share. `port_guard.rs`: what a guest may not send into a bridge. `mac_taken.rs`: that its
//!   address is free. `tun_settings.rs`: how a link of the tun driver is left. `datagrams.rs`: whether datagrams come together.
//! - `config.rs` and `config/`: the grammar of `--net`. `address.rs`, `subnet.rs`: names and addresses that make sense. `error/`:
//!   [`Error`], an enum for each kind of wire.
//! - `sys.rs`: ioctls, `readv`, `writev`; `sys/ethtool.rs`: a link's features; `sys/packet.rs`: packet sockets; `sys/route.rs`: a route that was learned;
//!   `sys/vsock.rs`: streams to guests whose sockets the kernel carries.
//!
//! A frame's way out is [`Backend::send`] → `sys::writev`, and in is [`Backend::recv`] → `sys::readv`: no allocation, no
//! lock, and no copy. (io_uring was measured beside them on a tap: 64 frames of 64 or 1514 bytes in one submission cost 1 to 3%
//! more of the thread's time for each frame, both ways. A frame is half a microsecond's work of the kernel's, and the system call
//! is the least of it.)
#![deny(unsafe_code)]

mod address;
mod answer;
mod config;
mod error;
mod frames;
mod host;
mod subnet;
mod sys;
mod text;
mod wire;

pub use address::{LinkName, Mac, NetnsName};
pub use answer::autoconf::Autoconf;
pub use answer::dhcp::Lease;
pub use answer::router::Router;
pub use config::LinkMode;
pub use config::affinity::{parse_cpus, write_cpus};
pub use config::{
    BridgeConfig, DnsConfig, Domain, FdConfig, Forward, Key, Kind, MTU, MacvtapConfig, MacvtapMode,
    NetConfig, Protocol, Queues, RateLimit, RateLimits, Repeat, TapConfig, TunConfig, VhostMode, VlanRange,
    Vlans, WireConfig, WireKind, keys, kinds,
};
pub use error::{
    BridgeError, ChangeKind, Error, FdError, FdProblem, HostError, MacvtapError, NatError, ParentProblem,
    SpecError, TunTapError, UplinkProblem, VhostError, too_many_files,
};
pub use frames::filter::{Addresses, RxFilter};
pub use frames::iov::{Iov, IovBuffer, prefetch};
pub use frames::merge::{FrameHead, Kinds, Run};
pub use frames::socket::{SocketBackend, SocketPeer};
pub use frames::soft_offload::SoftOffload;
pub use frames::stream::{receive_bytes, send_bytes};
pub use frames::unplugged::Unplugged;
pub use frames::{Backend, HEADER_LEN, Offloads, Sent};
pub use host::directory::{Directory, Opening};
pub use host::finding::Finding;
pub use host::firewall::bridged_notices;
pub use host::holders::Holder;
pub use host::netlink::{LinkCounters, Neighbour, Refusal, Tally, neighbours};
pub use host::probe::link_kinds;
pub use host::settings::findings;
pub use host::tun_settings::TunMode;
pub use host::watch::{News, Watch};
pub use host::wire_link::{Role, WireLink};
pub use host::{Host, LeftOver, Step, clean, left_over};
pub use subnet::{HostAddress, HostV4, HostV6};
pub use sys::vsock::connect_vsock;
pub use sys::wait_exactly;
pub use text::{printable, printable_lines};
pub use wire::cable::{Ask, Cable, Plugged};
pub use wire::cable_spec::CableSpec;
pub use wire::counters::WireCounters;
pub use wire::look::Condition;
pub use wire::macvtap::Macvtap;
pub use wire::tap::Tap;
pub use wire::vhost::vsock::{VhostVsockError, open_vhost_vsock};
pub use wire::vhost::{Carrying, Ring, Vhost};
pub use wire::{Hop, Opened, Wire, open};
