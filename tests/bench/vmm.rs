//! The VMMs that are compared.

use std::path::Path;
use std::process::{Command, Stdio};

use harness::{Terminal, Vm, wirevm};

use crate::guest::{CMDLINE, Guest};
use crate::peer::Peer;

/// A VMM in one configuration; with `vhost` it is the kernel's vhost-net that carries the frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Vmm {
    Wirevm { vhost: bool },
    Qemu { machine: Machine, vhost: bool },
    Peer(Peer),
}

/// A machine of `qemu-system-x86_64 -M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// Made for such guests; its NIC is on virtio-mmio.
    Microvm,
    /// Its NIC is on virtio-pci.
    Q35,
}

impl Vmm {
    /// All that can run here, and what a reader must know of others.
    pub(crate) fn all() -> (Vec<Self>, Vec<String>) {
        let (peers, mut notes) = Peer::all();
        let kernel_can = std::fs::exists("/dev/vhost-net").unwrap_or(false);
        let wirevm_can = wirevm_knows("vhost=");
        if !kernel_can {
            notes.push("there is no /dev/vhost-net, so no column has the kernel's".to_owned());
        } else if !wirevm_can {
            notes.push("this wirevm does not know --net vhost=".to_owned());
        }
        let mut vmms = Vec::new();
        for vhost in [false, true] {
            vmms.extend((!vhost || kernel_can && wirevm_can).then_some(Self::Wirevm { vhost }));
        }
        for machine in [Machine::Microvm, Machine::Q35] {
            for vhost in [false, true] {
                vmms.extend((!vhost || kernel_can).then_some(Self::Qemu { machine, vhost }));
            }
        }
        vmms.extend(peers.into_iter().map(Self::Peer));
        (vmms, notes)
    }

    pub(crate) fn name(&self) -> String {
        let name = match self {
            Self::Wirevm { .. } => "wirevm",
            Self::Qemu { machine: Machine::Microvm, .. } => "qemu microvm",
            Self::Qemu { machine: Machine::Q35, .. } => "qemu q35",
            Self::Peer(peer) => return peer.name.clone(),
        };
        format!("{name}{}", if self.vhost() { ", vhost" } else { "" })
    }

    pub(crate) fn vhost(&self) -> bool {
        match self {
            Self::Wirevm { vhost } | Self::Qemu { vhost, .. } => *vhost,
            Self::Peer(peer) => peer.vhost,
        }
    }

    /// Starts `guest` with its console on standard input and output.
    pub(crate) fn command(&self, guest: &Guest<'_>) -> Command {
        match self {
            Self::Wirevm { vhost } => wirevm_command(*vhost, guest),
            Self::Qemu { machine, vhost } => qemu_command(*machine, *vhost, guest),
            Self::Peer(peer) => {
                let words = peer.command(guest);
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]);
                command
            }
        }
    }

    /// Runs `command`, one of [`Self::command`]. The terminal, if there is one, is to live as long.
    pub(crate) fn start(&self, command: &mut Command) -> (Vm, Option<Terminal>) {
        match self {
            // Some VMMs start on a terminal alone.
            Self::Peer(_) => {
                let (vm, terminal) = Vm::start_before_terminal(command);
                (vm, Some(terminal))
            }
            _ => (Vm::start(command), None),
        }
    }

    /// Has the program and its libraries read from the disk. A peer may be a script, which is not asked what it does not know.
    pub(crate) fn warm_up(&self) {
        if matches!(self, Self::Peer(_)) {
            return;
        }
        let program =
            self.command(&Guest { kernel: "".as_ref(), initrd: "".as_ref(), memory_mib: 1, tap: None });
        let mut command = Command::new(program.get_program());
        let command =
            command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = command.status();
    }
}

fn wirevm_command(vhost: bool, guest: &Guest<'_>) -> Command {
    let mut command = wirevm();
    command.args(["run", "--memory", &format!("{}M", guest.memory_mib), "--cmdline", CMDLINE]);
    command.args([Path::new("--kernel"), guest.kernel]);
    command.args([Path::new("--initrd"), guest.initrd]);
    let net = guest.tap.map_or("tap".to_owned(), |tap| format!("tap={tap}"));
    command.arg("--net").arg(net + if vhost { ",vhost=on" } else { "" });
    command
}

fn qemu_command(machine: Machine, vhost: bool, guest: &Guest<'_>) -> Command {
    let (machine, device) = match machine {
        Machine::Microvm => ("microvm", "virtio-net-device,netdev=net"),
        // Without the ROM that would boot from the network.
        Machine::Q35 => ("q35", "virtio-net-pci,netdev=net,romfile="),
    };
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", machine, "-accel", "kvm", "-smp", "1"]);
    // Where KVM has no such register of the processor's, QEMU would end.
    command.args(["-cpu", "host,-arch-capabilities"]);
    command.args(["-m", &format!("{}M", guest.memory_mib)]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-serial", "stdio", "-append", CMDLINE]);
    command.args([Path::new("-kernel"), guest.kernel]);
    command.args([Path::new("-initrd"), guest.initrd]);
    let mut netdev = "tap,id=net,script=no,downscript=no".to_owned();
    netdev += &guest.tap.map_or(String::new(), |tap| format!(",ifname={tap}"));
    netdev += if vhost { ",vhost=on" } else { "" };
    command.args(["-netdev", &netdev, "-device", device]);
    command
}

fn wirevm_knows(word: &str) -> bool {
    let help = wirevm().args(["run", "--help"]).stdin(Stdio::null()).output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains(word))
}
