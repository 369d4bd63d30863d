//! The words of `wirevm run`, and the machine that they mean.

use std::path::{Path, PathBuf};

use ::net::NetConfig;
use clap::{ArgAction, ArgGroup, Args};
use rustix::thread::{CapabilitySet, capabilities};
use vmm::MachineConfig;
use vmm::config::{
    ConsoleConfig, Credential, DEFAULT_CMDLINE, DEFAULT_STOP_TIMEOUT, DiskConfig, GuestConfig, MemoryConfig,
    NOBODY, RootConfig, ShareConfig, Transport, Uuid, VsockConfig,
};

use super::exec;
use super::listen_fds::ListenFds;
use super::net_help::net_help;

/// Boot a guest, and stay until it ends. The guest's serial port is this terminal (Ctrl-A h tells its keys).
#[derive(Debug, Args)]
#[command(after_help = run_help())]
#[command(group = ArgGroup::new("boots").args(["kernel", "disk", "image", "root"]).required(true).multiple(true))]
pub(crate) struct Run {
    /// The guest's kernel: a bzImage (vmlinuz), or an ELF vmlinux; also in gzip, also from a pipe. Without it that of the first disk,
    /// or for --image and --root this host's own
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// Make the guest's root of an image, which is a directory, a tar archive, an OCI layout, or what podman save writes; - is standard input
    #[arg(long, value_name = "IMAGE", group = "guest_root", conflicts_with = "initrd")]
    pub(crate) image: Option<PathBuf>,

    /// Have a directory of this host as the guest's root (virtio-fs); what the guest writes there stays in its memory
    #[arg(long, value_name = "DIR", group = "guest_root", conflicts_with = "initrd")]
    pub(crate) root: Option<PathBuf>,

    /// With --root: a directory in it to which the guest may write; once for each
    #[arg(long, value_name = "DIR", requires = "root", conflicts_with = "image")]
    pub(crate) rw: Vec<PathBuf>,

    /// Where the modules of the kernel are; without it /lib/modules, or what lies beside the kernel
    #[arg(long, value_name = "DIR", requires = "guest_root")]
    pub(crate) modules: Option<PathBuf>,

    /// A variable for the command, with a value or with the one that it has here; once for each
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = parse_variable, requires = "guest_root")]
    pub(crate) env: Vec<String>,

    /// The guest's directory that the command begins in
    #[arg(short = 'w', long, value_name = "DIR", requires = "guest_root")]
    pub(crate) workdir: Option<String>,

    /// The command to run in it, and its arguments; without it the image's own, or a shell. Its end is the guest's
    #[arg(last = true, value_name = "COMMAND", requires = "guest_root")]
    pub(crate) command: Vec<String>,

    /// The guest's initial RAM disk; also from a pipe
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,

    /// The kernel's command line; without --kernel, what stands behind the disk's own
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_CMDLINE)]
    pub(crate) cmdline: String,

    /// How many vCPUs the guest has
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpus: u32,

    /// The host's CPU for the thread of each vCPU
    #[arg(long, value_name = "CPU[:CPU]...", value_parser = parse_cpu_list)]
    pub(crate) cpu_affinity: Option<CpuList>,

    /// How much memory the guest has, SIZE[,KEY=VALUE]...: a number with K, M, G or T; without a letter it is MiB
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub(crate) memory: MemoryConfig,

    /// The machine's UUID, which its guest sees; without it, a random one
    #[arg(long, value_name = "UUID")]
    pub(crate) uuid: Option<Uuid>,

    /// The machine's serial number, which its guest sees
    #[arg(long, value_name = "TEXT", value_parser = parse_serial_number)]
    pub(crate) serial_number: Option<String>,

    /// A credential for systemd in the guest, such as system.hostname=web; once for each
    #[arg(long, value_name = "NAME=VALUE|NAME=@FILE")]
    pub(crate) credential: Vec<Credential>,

    /// A file of public keys by which root of the guest is let in over SSH, if systemd is its init (the credential ssh.authorized_keys.root)
    #[arg(long, value_name = "FILE")]
    pub(crate) ssh_key: Option<PathBuf>,

    /// A device that gives the guest random bytes of the host (virtio-rng)
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = parse_switch, action = ArgAction::Set)]
    pub(crate) rng: bool,

    /// Have the guest give memory back that it does not use (virtio-balloon, free page reporting); never huge pages
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = parse_switch, action = ArgAction::Set)]
    pub(crate) balloon: bool,

    /// Sockets between guest and host (virtio-vsock), over Unix sockets of the host; vhost: over the host's own AF_VSOCK, by which
    /// every user of the host can connect to the guest's agent, and so be root there
    #[arg(long, value_name = "on|off|vhost[=CID]", default_value = "on")]
    pub(crate) vsock: VsockConfig,

    /// A disk, FILE[,KEY=VALUE]...: a raw image or a block device; once for each
    #[arg(long, value_name = "FILE")]
    pub(crate) disk: Vec<DiskConfig>,

    /// A directory of the host that the guest can mount, DIR[:TAG][,ro] (virtio-fs); once for each
    #[arg(long, value_name = "DIR[:TAG][,ro]")]
    pub(crate) share: Vec<ShareConfig>,

    /// A directory with user-data and more for cloud-init (NoCloud), which the guest gets as a disk
    #[arg(long, value_name = "DIR")]
    pub(crate) seed: Option<PathBuf>,

    /// A network card, KIND[=WHERE][,KEY=VALUE]...; once for each. With --image and --root it is tap,nat unless this says, and none is none
    #[arg(long, value_name = "SPEC", value_parser = parse_net_arg)]
    pub(crate) net: Vec<NetArg>,

    /// How the guest finds its devices: on a PCI bus, with an interrupt for each queue, or by MMIO alone
    #[arg(long, value_name = "pci|mmio", default_value = "pci")]
    pub(crate) transport: Transport,

    /// Where the guest's serial port goes: stdio, a file to write, or nowhere; with --image and --root nowhere unless this says
    #[arg(long, value_name = "stdio|none|FILE")]
    pub(crate) console: Option<ConsoleConfig>,

    /// What the machine is called while it runs: letters, digits, dots, dashes and underscores
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Return once the guest runs, and print its name; its console goes to a log (wirevm logs NAME)
    #[arg(long, conflicts_with = "console")]
    pub(crate) detach: bool,

    /// With --detach: return when the guest says that it is up (by wirevm's agent, or by systemd 254 or later), and fail if it does not
    /// within so many seconds
    #[arg(long, value_name = "SECONDS", requires = "detach")]
    pub(crate) wait_ready: Option<u64>,

    /// How long the guest has to power itself off when it is asked to end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_STOP_TIMEOUT)]
    pub(crate) stop_timeout: u64,

    /// Confine the process that runs the guest: no capability, no path, few system calls. Off is for debugging
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = parse_switch, action = ArgAction::Set)]
    pub(crate) sandbox: bool,

    /// The user (and group) id that this process becomes where wirevm is started as root
    #[arg(long, value_name = "UID", default_value_t = NOBODY, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) user: u32,

    /// Tell systemd-machined that the machine is there, so that machinectl lists it
    #[arg(long)]
    pub(crate) register: bool,

    /// Print each change to the host's network as the command (ip, nft, sysctl) that would do the same
    #[arg(long)]
    pub(crate) explain: bool,

    /// Print when each step of the start is done, in milliseconds since wirevm began
    #[arg(long)]
    pub(crate) timings: bool,
}

impl Run {
    /// The machine that is meant. One whose guest is made for a command has a NIC where nobody speaks of any and this process may make one.
    pub(crate) fn machine(&self) -> MachineConfig {
        let mut config = MachineConfig::from(self);
        if config.guest.is_some() && self.net.is_empty() {
            let allowed =
                capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
            match (allowed, Path::new("/dev/net/tun").exists()) {
                (true, true) => config.net.extend("tap,nat".parse()),
                (false, _) => log::warn!(
                    "the guest has no NIC: to make a tap takes CAP_NET_ADMIN (as root it has tap,nat; --net says which, and --net none none)"
                ),
                (true, false) => log::warn!("the guest has no NIC: there is no /dev/net/tun (modprobe tun)"),
            }
        }
        config
    }

    fn guest(&self) -> Option<GuestConfig> {
        let image = self.image.clone().map(RootConfig::Image);
        Some(GuestConfig {
            root: image.or_else(|| self.root.clone().map(RootConfig::Directory))?,
            modules: self.modules.clone(),
            command: self.command.clone(),
            env: self.env.clone(),
            directory: self.workdir.clone(),
            writable: self.rw.clone(),
        })
    }
}

impl From<&Run> for MachineConfig {
    fn from(run: &Run) -> Self {
        let guest = run.guest();
        Self {
            name: run.name.clone(),
            stop_timeout: run.stop_timeout,
            sandbox: run.sandbox,
            user: run.user,
            register: run.register,
            initrd: run.initrd.clone(),
            cmdline: run.cmdline.clone(),
            cpus: run.cpus,
            cpu_affinity: run.cpu_affinity.clone().map(|list| list.0).unwrap_or_default(),
            memory: run.memory,
            uuid: run.uuid,
            serial_number: run.serial_number.clone(),
            credentials: run
                .credential
                .iter()
                .cloned()
                .chain(run.ssh_key.iter().map(Credential::ssh_key))
                .collect(),
            rng: run.rng,
            balloon: run.balloon,
            vsock: run.vsock,
            disks: run.disk.clone(),
            shares: run.share.clone(),
            seed: run.seed.clone(),
            net: run.net.iter().filter_map(NetArg::nic).cloned().collect(),
            transport: run.transport,
            console: run.console.clone().unwrap_or(match guest {
                None => ConsoleConfig::Stdio,
                Some(_) => ConsoleConfig::None,
            }),
            guest,
            kernel: run.kernel.clone(),
        }
    }
}

// No line is longer than a terminal's 80 columns, or clap would have it go on at the left.
pub(super) const MEMORY_HELP: &str = "\
Memory:
  hugepages=on|2M|1G     huge pages that the host has reserved; on: of its
                         default size
  mergeable=on           KSM may merge its pages with equal ones; not with the
                         other two
  shared=on              a file in memory (memfd) that other processes can map";

pub(super) const DISK_HELP: &str = "\
Disks:
  ro                     the guest cannot write
  snapshot=on            what the guest writes is lost at its end
  serial=TEXT            its serial number, up to 20 characters
  direct                 past the host's page cache
  queues=N               queues, with a thread each; for guests of many vCPUs
  format=raw             a raw image, whatever it begins with";

/// What stands below the options of `run`.
pub(super) fn run_help() -> String {
    format!("{MEMORY_HELP}\n{DISK_HELP}\n{}", net_help())
}

/// A NIC, or that there is to be none.
#[derive(Clone, Debug)]
pub(crate) enum NetArg {
    None,
    Nic(Box<NetConfig>),
}

impl NetArg {
    fn nic(&self) -> Option<&NetConfig> {
        match self {
            Self::None => None,
            Self::Nic(nic) => Some(nic),
        }
    }
}

fn parse_net_arg(text: &str) -> Result<NetArg, String> {
    match text {
        "none" => Ok(NetArg::None),
        text => parse_net(text).map(|nic| NetArg::Nic(Box::new(nic))),
    }
}

/// A CPU of the host for each of some threads.
#[derive(Clone, Debug)]
pub(crate) struct CpuList(Vec<u16>);

fn parse_variable(text: &str) -> Result<String, String> {
    let variable = exec::parse_variable(text)?.into_string();
    variable.map_err(|_| "its value is not in UTF-8".into())
}

fn parse_cpu_list(text: &str) -> Result<CpuList, &'static str> {
    ::net::parse_cpus(text).map(CpuList)
}

fn parse_serial_number(text: &str) -> Result<String, &'static str> {
    match text.is_empty() || text.len() > 64 || text.contains(char::is_control) {
        true => Err("it is 1 to 64 characters of text"),
        false => Ok(text.to_owned()),
    }
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off".into()),
    }
}

fn parse_net(text: &str) -> Result<NetConfig, String> {
    ListenFds::from_env().resolve(text)?.parse().map_err(|error: ::net::Error| match error.remedy() {
        Some(remedy) => format!("{error}\n  try:   {remedy}"),
        None => error.to_string(),
    })
}
