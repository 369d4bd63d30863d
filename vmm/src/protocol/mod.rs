//! What keeper and machine say to each other.
//!
//! The keeper may change the host and never touches guest memory; the machine touches guest memory and may change nothing. Between
//! them is one socket of messages ([`Channel`]), two pipes of the guest's console, for each NIC a socket by which the guest's driver
//! asks the host for another address or other frames ([`FilterRequest`]), and one by which the guest asks for ports of the host
//! ([`PortRequest`]). A frame, a kick or an interrupt never crosses.
//!
//! Both ends are the same program, forked, so that there is no version: a change of these types changes both. The keeper does not
//! trust the machine all the same: what it reads is bounded, and what makes no sense ends the machine.
//!
//! ```text
//! keeper                             machine
//!                      ◄── Accepted  KVM opened, limits kept, memory mapped: locked in
//! plumbing             ─── Nic ────► one for each, with its descriptors
//!                      ── Vsock ───► likewise, where the guest has such a device
//!                      ─── Start ──►
//!                      ◄── Running   the first KVM_RUN is next
//!   Pause, Resume, PowerButton, Counters, Link, Swap, Stop ──►
//! plumbing             ─── Plug ───► a NIC more, likewise
//!                      ◄── Plugged   the guest has taken it
//!                      ── Unplug ──►
//!                      ◄─ Unplugged  the guest has let it go: its wire can be taken back
//!                      ◄── Ended     why; then it exits
//! ```

mod channel;

use net::{CableSpec, RateLimits, RxFilter};
use serde::{Deserialize, Serialize};

pub(crate) use self::channel::{Channel, MAX_DESCRIPTORS};

/// From the keeper to the machine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToMachine {
    /// The next NIC. With it come the descriptors of its cable, and behind them its socket for [`FilterRequest`].
    Nic(Box<Nic>),
    /// The host's end of the guest's sockets: with it come the listener for programs, and the device's socket for [`PortRequest`]. Or,
    /// with the guest's address there, vhost-vsock.
    Vsock { vhost: Option<u32> },
    /// There is no further NIC: run.
    Start,
    /// A NIC more, for a guest that runs; with descriptors as [`Nic`](Self::Nic). Answered by [`FromMachine::Plugged`] once the guest has
    /// taken it, which may be never.
    Plug(Box<Nic>),
    /// Take this NIC from the guest: once that has let it go, or by force at once. Answered by [`FromMachine::Unplugged`].
    Unplug { number: usize, force: bool },
    /// Stop the vCPUs and the queues where they are; answered by [`FromMachine::Paused`].
    Pause,
    /// Go on; answered by [`FromMachine::Resumed`].
    Resume,
    /// Press the power button; answered by [`FromMachine::PowerButton`].
    PowerButton,
    /// Say what went over the NICs, and how the vCPUs exited; answered by [`FromMachine::Counters`].
    Counters,
    /// Set a NIC's link up or down; answered by [`FromMachine::Linked`].
    Link(Link),
    /// Move a NIC to another wire, whose cable's descriptors come with this; answered by [`FromMachine::Swapped`].
    Swap {
        /// Its number.
        nic: usize,
        /// The wire; none for none at all, until there is another one.
        wire: Option<Box<Nic>>,
    },
    /// Hold a NIC to these limits; answered by [`FromMachine::Rated`].
    Rate { nic: usize, limits: RateLimits },
    /// End now.
    Stop,
}

/// How a NIC's link is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Link {
    /// Its number.
    pub(crate) nic: usize,
    /// Whether frames get through it.
    pub(crate) up: bool,
    /// Whether the host's link shows somebody at the guest's end.
    pub(crate) carrier: bool,
    /// Frames that tell the neighbours where the guest is, each behind its header, for a driver that does not do so. None where
    /// nobody is to be told.
    pub(crate) announcement: Option<Vec<Vec<u8>>>,
}

/// A NIC as the machine needs it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Nic {
    /// Its number among the machine's NICs, from 0.
    pub(crate) number: usize,
    /// What its descriptors are.
    pub(crate) cable: CableSpec,
    /// The host's CPU for the thread of each queue pair; empty for any.
    pub(crate) affinity: Vec<u16>,
    /// How long such a thread looks about for frames before it sleeps, in microseconds; none where it finds out.
    pub(crate) poll: Option<u64>,
    /// The kernel carries its frames.
    pub(crate) carried: bool,
    /// What it is held to.
    pub(crate) rate: RateLimits,
    /// Which of the NIC's wires it is, for what its driver asks of it.
    pub(crate) wire: u32,
}

/// From the machine to the keeper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum FromMachine {
    /// All that can be refused before the host is changed is had.
    Accepted,
    /// The guest runs.
    Running {
        /// How the machine is confined, for `-v`.
        confined: String,
    },
    /// It stands still, or why not.
    Paused(Result<(), String>),
    /// It goes on, or why not.
    Resumed(Result<(), String>),
    /// The power button is pressed. `heard`: the guest has a driver for it.
    PowerButton { heard: bool },
    /// The link of the NIC is as it was asked to be, or why not.
    Linked {
        /// Its number.
        nic: usize,
        /// Whether it is.
        done: Result<(), String>,
    },
    /// The NIC is on the other wire, or why it is on the one before.
    Swapped {
        /// Its number.
        nic: usize,
        /// Whether it is.
        done: Result<(), String>,
    },
    /// The guest has taken a NIC; or why it has not, and then it is gone again.
    Plugged { number: usize, done: Result<(), String> },
    /// A NIC is gone; or why it is not. `unseen`: the guest does not know yet, and until [`Looked`](Self::Looked) no other one can have
    /// its number.
    Unplugged { number: usize, done: Result<(), String>, unseen: bool },
    /// The guest has looked at the bus: it knows which NICs are gone.
    Looked,
    /// Of one NIC, as asked: one message each, for all in one could be too long.
    NicCounters(NicCounters),
    /// As asked, after those of the NICs: the exits of each vCPU, and what went to and from each disk.
    Counters { exits: Vec<[u64; 3]>, disks: Vec<DiskCounters> },
    /// The NIC is held to the limits, or why not.
    Rated { nic: usize, done: Result<(), String> },
    /// The back end of this share, by its number, is of no use any more, and has the guest's memory: it is to end.
    ShareLost { share: usize },
    /// Lines for the user.
    Print(String),
    /// It cannot start, or failed.
    Failed(Failure),
    /// The guest runs no more.
    Ended(End),
    /// A thread made a system call that its sandbox forbids. Sent from the signal's handler, so it is plain text.
    Forbidden { call: i64, thread: String },
}

/// An error in words, for it crosses a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What failed.
    pub(crate) error: String,
    /// Why, the nearest first.
    pub(crate) causes: Vec<String>,
    /// What the user can do.
    pub(crate) remedy: Option<String>,
}

/// Why the guest runs no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum End {
    /// It powered itself off.
    PowerOff,
    /// It reset itself.
    Reset,
    /// It was ended from outside.
    Stopped,
    /// It crashed.
    Crash(Failure),
}

/// What happened so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counters {
    /// Each NIC, in order.
    pub(crate) nics: Vec<NicCounters>,
    /// Exits of each vCPU: port, MMIO, other.
    pub(crate) exits: Vec<[u64; 3]>,
    /// Each disk, in order.
    pub(crate) disks: Vec<DiskCounters>,
}

/// What went to and from one disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct DiskCounters {
    pub(crate) reads: u64,
    pub(crate) read_bytes: u64,
    pub(crate) writes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) flushes: u64,
    pub(crate) discards: u64,
    pub(crate) errors: u64,
}

/// What went over one NIC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct NicCounters {
    /// The NIC's number.
    pub(crate) number: usize,
    /// Each queue pair: what our own threads carried.
    pub(crate) pairs: Vec<PairCounters>,
    /// Frames of the guest for which the wire has no way.
    pub(crate) ignored: u64,
}

/// What went through one queue pair, seen from the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PairCounters {
    pub(crate) tx_frames: u64,
    pub(crate) tx_rate_waits: u64,
    pub(crate) tx_merged: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_dropped: u64,
    pub(crate) tx_too_long: u64,
    pub(crate) tx_link_down: u64,
    pub(crate) tx_host_down: u64,
    pub(crate) rx_frames: u64,
    pub(crate) rx_rate_waits: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) rx_dropped: u64,
    pub(crate) rx_too_long: u64,
    pub(crate) rx_no_buffer: u64,
    pub(crate) rx_unread: u64,
    pub(crate) kicks: u64,
    pub(crate) interrupts: u64,
    pub(crate) calls: u64,
}

/// What a guest's driver asks of the host's link, on the NIC's own socket; answered by a [`FilterAnswer`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FilterRequest {
    /// Which of the NIC's wires.
    pub(crate) wire: u32,
    pub(crate) filter: RxFilter,
}

/// Done, or the errno of the refusal.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FilterAnswer(pub(crate) Result<(), i32>);

/// The guest wants a port of the host's: asked on the socket device's own socket, and answered by a [`PortAnswer`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PortRequest {
    /// By which the answer is known.
    pub(crate) id: u64,
    pub(crate) port: u32,
}

/// With it comes a stream to the program that listens at the port; none where none does.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PortAnswer {
    pub(crate) id: u64,
}

impl Failure {
    /// The words of `error` and its causes.
    pub(crate) fn new(error: &dyn std::error::Error, remedy: Option<String>) -> Self {
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        Self { error: error.to_string(), causes: causes.map(ToString::to_string).collect(), remedy }
    }
}
