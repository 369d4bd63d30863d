//! The command line. The doc comments below and in `args.rs` are the user's help.

pub(crate) mod args;
pub(crate) mod exec;
mod listen_fds;
pub(crate) mod machines;
pub(crate) mod net;
mod net_args;
mod net_help;
mod net_plug;
mod net_rate;
mod net_show;
mod screen;
mod table;

use std::path::PathBuf;

use ::net::NetConfig;
use clap::{ArgAction, Args, Parser, Subcommand};
use vmm::MachineConfig;
use vmm::config::{
    ConsoleConfig, Credential, DEFAULT_CMDLINE, DEFAULT_STOP_TIMEOUT, DiskConfig, MemoryConfig, NOBODY,
    ShareConfig, Transport, Uuid, VsockConfig,
};

/// A minimal KVM hypervisor whose subject is the NIC: boots a Linux guest and wires its network card with one option.
#[derive(Debug, Parser)]
#[command(name = "wirevm", version, propagate_version = true, after_help = EXIT_STATUS)]
pub(crate) struct Cli {
    /// Say more: -v what is done, -vv details
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_STATUS: &str = "\
Exit status of run:
  0  the guest powered off or rebooted, or was ended from outside
  1  wirevm could not start, or failed
  2  the command line makes no sense
  3  the guest crashed";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(display_name = "wirevm")]
    Run(Box<Run>),
    #[command(display_name = "wirevm")]
    Ls(Ls),
    /// Say what a running machine is and has
    #[command(display_name = "wirevm")]
    Show(Machine),
    #[command(display_name = "wirevm")]
    Stop(Stop),
    /// Have a machine stand still: its vCPUs and its queues, with nothing lost
    #[command(display_name = "wirevm")]
    Pause(Machine),
    /// Have a paused machine go on
    #[command(display_name = "wirevm")]
    Resume(Machine),
    /// Wait for a machine's end, and end with the exit status of its run
    #[command(display_name = "wirevm")]
    Wait(Machine),
    #[command(display_name = "wirevm")]
    Exec(Exec),
    #[command(display_name = "wirevm")]
    Console(Console),
    #[command(display_name = "wirevm")]
    Logs(Logs),
    #[command(display_name = "wirevm")]
    Metrics(Metrics),
    #[command(display_name = "wirevm")]
    Net(Net),
    #[command(display_name = "wirevm")]
    Doctor(Doctor),
    #[command(display_name = "wirevm")]
    Explain(Explain),
    /// What a wirevm becomes that panicked
    #[command(hide = true)]
    TakeBack,
}

/// Boot a guest, and stay until it ends. The guest's serial port is this terminal (Ctrl-A h tells its keys).
#[derive(Debug, Args)]
#[command(after_help = run_help())]
pub(crate) struct Run {
    /// The guest's kernel: a bzImage (vmlinuz), or an ELF vmlinux; also in gzip, also from a pipe. Without it, that of the first disk
    #[arg(long, value_name = "FILE", required_unless_present = "disk")]
    pub(crate) kernel: Option<PathBuf>,

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

    /// Sockets between guest and host (virtio-vsock), over Unix sockets of the host; vhost: over the host's own AF_VSOCK
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

    /// A network card, KIND[=WHERE][,KEY=VALUE]...; once for each
    #[arg(long, value_name = "SPEC", value_parser = parse_net)]
    pub(crate) net: Vec<NetConfig>,

    /// How the guest finds its devices: on a PCI bus, with an interrupt for each queue, or by MMIO alone
    #[arg(long, value_name = "pci|mmio", default_value = "pci")]
    pub(crate) transport: Transport,

    /// Where the guest's serial port goes: stdio, or a file to write
    #[arg(long, value_name = "stdio|FILE", default_value = "stdio")]
    pub(crate) console: ConsoleConfig,

    /// What the machine is called while it runs: letters, digits, dots, dashes and underscores
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Return once the guest runs, and print its name; its console goes to a log (wirevm logs NAME)
    #[arg(long, conflicts_with = "console")]
    pub(crate) detach: bool,

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

impl From<&Run> for MachineConfig {
    fn from(run: &Run) -> Self {
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
            net: run.net.clone(),
            transport: run.transport,
            console: run.console.clone(),
            kernel: run.kernel.clone(),
        }
    }
}

// No line is longer than a terminal's 80 columns, or clap would have it go on at the left.
const MEMORY_HELP: &str = "\
Memory:
  hugepages=on|2M|1G     huge pages that the host has reserved; on: of its
                         default size
  mergeable=on           KSM may merge its pages with equal ones; not with the
                         other two
  shared=on              a file in memory (memfd) that other processes can map";

const DISK_HELP: &str = "\
Disks:
  ro                     the guest cannot write
  snapshot=on            what the guest writes is lost at its end
  serial=TEXT            its serial number, up to 20 characters
  direct                 past the host's page cache
  queues=N               queues, with a thread each; for guests of many vCPUs
  format=raw             a raw image, whatever it begins with";

/// What stands below the options of `run`.
fn run_help() -> String {
    format!("{MEMORY_HELP}\n{DISK_HELP}\n{}", net_help())
}

/// Say what this host can do, and how to mend what it cannot. Exits 0 where a guest can run.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print nothing, and look at KVM alone; the exit status tells
    #[arg(short, long, conflicts_with_all = ["json", "clean"])]
    pub(crate) quiet: bool,

    /// Print what was found as JSON, and what was taken back
    #[arg(long)]
    pub(crate) json: bool,

    /// First clean up after killed wirevm processes
    #[arg(long)]
    pub(crate) clean: bool,
}

/// Draw how a wire is wired, what can reach what over it, and when to choose it; alone, compare them all.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The wire
    pub(crate) wire: Option<Wire>,
}

/// The wires that can be explained, by the words of --net.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Wire {
    Tap,
    Bridge,
    Macvtap,
    Tun,
}

/// A CPU of the host for each of some threads.
#[derive(Clone, Debug)]
pub(crate) struct CpuList(Vec<u16>);

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

use self::args::{Console, Logs, Ls, Machine, Metrics, Stop};
use self::exec::Exec;
use self::listen_fds::ListenFds;
use self::net_args::Net;
use self::net_help::net_help;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_tables_of_the_help_keep_their_columns() {
        let mut command = Cli::command().term_width(80);
        assert!(command.render_help().to_string().contains(EXIT_STATUS));
        let run = command.find_subcommand("run").unwrap();
        let help = run.clone().term_width(80).render_help().to_string();
        assert!(help.contains(&run_help()), "{help}");
    }
}
