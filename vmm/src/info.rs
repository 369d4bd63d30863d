//! What a running machine says of itself.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::MachineConfig;

/// A running machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// What it is called.
    pub name: String,
    /// Where it is in its life.
    pub state: MachineState,
    /// The process that has the host's side of it, and ends it when it is told to.
    pub pid: u32,
    /// The process that runs the guest.
    pub machine_pid: u32,
    /// The threads of this process, in the order of their birth.
    #[serde(default)]
    pub threads: Vec<ThreadInfo>,
    /// What it is made of.
    pub config: MachineConfig,
    /// The guest's memory in bytes.
    pub memory: u64,
    /// Its socket device, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockInfo>,
    /// Its NICs, in order.
    pub nics: Vec<NicInfo>,
    /// When it was started, in seconds since 1970.
    pub started: u64,
    /// For how many seconds it has been there.
    pub uptime: u64,
    /// Which wirevm runs it.
    pub version: String,
}

/// The states of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Its guest does not run yet.
    Built,
    /// Its guest runs.
    Running,
    /// Its guest stands still.
    Paused,
    /// Its guest has ended.
    Ended,
}

impl MachineState {
    /// The state in a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ended => "ended",
        }
    }
}

/// A thread of the process that runs the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadInfo {
    /// Its number on the host, as taskset(1) and chrt(1) take it.
    pub id: u32,
    /// What it is: `vcpu0`, `net0-1` (the second queue pair of the first NIC), `vhost-...`.
    pub name: String,
    /// The CPUs of the host that it may run on, as a list: `0-3,7`.
    pub cpus: String,
}

/// The sockets between a machine's guest and the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockInfo {
    /// The guest's address.
    pub cid: u32,
    /// Where programs of the host ask for a port of the guest (`CONNECT PORT`), and, with `_PORT` behind it, where they listen for the
    /// guest. None where the host's kernel carries what goes over them: there it is AF_VSOCK.
    pub socket: Option<PathBuf>,
}

/// A NIC of a running machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicInfo {
    /// What it is called: `nic0` is the first.
    pub name: String,
    /// What it is made of, as `--net` takes it.
    pub spec: String,
    /// The kind of wire: the spec's first word.
    pub kind: String,
    /// The host's link at the guest's end of the wire.
    pub link: String,
    /// The guest's Ethernet address.
    pub mac: String,
    /// The guest's addresses, as far as they are the wire's to say: what `guest=` names, and of IPv4 what DHCP tells.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The MTU in bytes.
    pub mtu: u16,
    /// How many queue pairs it has.
    pub queues: usize,
    /// Who carries its frames: `wirevm` or `vhost-net`.
    pub carrier: String,
    /// Whether the guest's link is up.
    #[serde(default = "yes")]
    pub up: bool,
    /// What it is up by: `follow` the wire, or `up` or `down` by hand.
    #[serde(default)]
    pub link_mode: String,
    /// Why frames do not get through the wire, if they do not.
    #[serde(default)]
    pub why_down: Option<String>,
    /// Every link of the host that it uses: name, index, the inode of its network namespace, and role.
    pub links: serde_json::Value,
    /// The way of a frame from the guest.
    pub hops: serde_json::Value,
}

fn yes() -> bool {
    true
}

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// It is in another state.
    State {
        /// Which.
        state: MachineState,
    },
    /// It has ended, with the exit status of its `wirevm run`.
    Ended {
        /// The exit status.
        status: u8,
    },
}
