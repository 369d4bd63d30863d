//! What can keep a machine from starting or end it, and what the user can do about it.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use vmm::client::ClientError;
use vmm::config::{argument, size};
use vmm::runtime::NameError;

use crate::keeper::shares::ShareError;
use crate::kvm::hugepages::{self, Pool};
use crate::machine::DiskError;
use crate::protocol::Failure;

/// Why the VMM could not start, or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot open /dev/kvm")]
    OpenKvm(#[source] io::Error),
    #[error("KVM cannot {what}")]
    Kvm { what: &'static str, source: io::Error },
    #[error("{wanted} vCPUs are more than the {limit} that KVM recommends on this host")]
    TooManyCpus { wanted: u32, limit: usize },
    #[error(transparent)]
    Guest(crate::keeper::guest::Error),
    #[error("the guest has not said within {seconds} s that it is up")]
    NotUp { seconds: u64 },
    #[error("nothing says what the guest is to boot")]
    NoKernel,
    #[error("{wanted} vCPUs are more than the {limit} that interrupts reach")]
    CpusOutOfReach { wanted: u32, limit: u32 },
    #[error("{} NICs are more than the {limit} that fit", wanted)]
    TooManyNics { wanted: usize, limit: usize },
    #[error("{} disks are more than the {limit} that fit", wanted)]
    TooManyDisks { wanted: usize, limit: usize },
    #[error("{} shares are more than the {limit} that fit", wanted)]
    TooManyShares { wanted: usize, limit: usize },
    #[error("slot {slot} of the PCI bus is taken")]
    SlotTaken { slot: usize },
    #[error(
        "the guest does not listen for devices that come and go: it is not up yet, or its kernel has no driver for ACPI's event device"
    )]
    Deaf,
    #[error("the guest stands still")]
    StandsStill,
    #[error("the guest cannot use it, as it says by status {status:#x}")]
    Refused { status: u16 },
    #[error("the guest keeps it, as it says by status {status:#x}")]
    Kept { status: u16 },
    #[error("cannot map {} of guest memory", size(*bytes))]
    MapMemory { bytes: u64, source: vm_memory::mmap::MmapRegionError },
    #[error("cannot map {} of guest memory in {needed} huge pages of {}", size(*bytes), size(pool.page))]
    HugePagesShort { bytes: u64, needed: u64, pool: Pool, source: vm_memory::mmap::MmapRegionError },
    #[error("this host has no huge pages{}", page.map(|page| format!(" of {}", size(page))).unwrap_or_default())]
    NoHugePages { page: Option<u64> },
    #[error("{} of memory are not a whole number of huge pages of {}", size(*bytes), size(*page))]
    UnevenHugePages { bytes: u64, page: u64 },
    #[error("cannot have guest memory merged")]
    Mergeable(#[source] io::Error),
    #[error("cannot make a file of {} in memory for the guest", size(*bytes))]
    MemoryFile { bytes: u64, source: io::Error },
    #[error("{} of memory are more than the {} that a guest can address here", size(*bytes), size(*limit))]
    MemoryTooLarge { bytes: u64, limit: u64 },
    #[error(transparent)]
    Boot(#[from] boot::Error),
    #[error(transparent)]
    Seed(#[from] boot::seed::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Nic(NicError),
    /// What a client gave in place of a `--net`.
    #[error(transparent)]
    Spec(net::Error),
    #[error(transparent)]
    Name(NameError),
    #[error(transparent)]
    Vsock(net::VhostVsockError),
    #[error("cannot register with systemd-machined")]
    Register(#[source] ClientError),
    #[error("NIC {index}: affinity={cpu}: CPU {cpu} is offline, is not there, or is not ours to use")]
    Affinity { index: usize, cpu: u16, source: io::Error },
    #[error(
        "--cpu-affinity {}: there is one CPU for each vCPU, and these are {cpus}",
        net::write_cpus(affinity)
    )]
    CpuAffinityCount { affinity: Vec<u16>, cpus: u32 },
    #[error("--cpu-affinity: CPU {cpu} is offline, is not there, or is not ours to use")]
    CpuAffinity { cpu: u16, source: io::Error },
    #[error("NIC {index}: vhost=on goes with --transport pci alone")]
    VhostByMmio { index: usize },
    #[error("NIC {first} and NIC {second} both have {what}")]
    SameTwice { what: String, first: usize, second: usize },
    #[error("cannot open {} for the console", path.display())]
    OpenConsole { path: PathBuf, source: io::Error },
    #[error("the console {} is a pipe that nobody reads", path.display())]
    ConsoleUnread { path: PathBuf },
    #[error("cannot {what}")]
    Host { what: &'static str, source: io::Error },
    #[error("cannot confine the process that runs the guest")]
    Confine(#[source] io::Error),
    #[error("the guest has ended")]
    Over,
    #[error("the process that changes the host is gone")]
    NoKeeper,
    #[error("{}", .0.error)]
    Machine(Failure),
    #[error("the process that runs the guest was killed by {0}")]
    Killed(String),
    #[error(
        "the process that runs the guest was killed by SIGSYS: it made a system call that its sandbox forbids"
    )]
    KilledBySandbox,
    #[error("the process that runs the guest ended without a word, with status {0}")]
    Vanished(i32),
    #[error("the process that runs the guest says what makes no sense")]
    Nonsense(#[source] io::Error),
    #[error(
        "the process that runs the guest made a system call that its sandbox forbids: {call}, in its thread {thread}"
    )]
    Forbidden { call: String, thread: String },
    #[error("cannot read {} for the credential {name}", file.display())]
    Credential { name: String, file: PathBuf, source: io::Error },
    #[error(transparent)]
    Share(ShareError),
    #[error("the virtiofsd of the share {tag} is of no use")]
    BackEnd { tag: String, source: devices::virtio::vhost_user::Error },
    #[error("{0} panicked; this is a bug in wirevm")]
    Bug(String),
}

/// How a guest can crash; each ends `wirevm run` with status 3.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Crash {
    #[error("the guest crashed: vCPU {vcpu} took a triple fault{at}")]
    TripleFault { vcpu: u32, at: Where },
    #[error("the guest's kernel panicked, as its console says above")]
    Panic,
    #[error("KVM gave up on vCPU {vcpu}: internal error, suberror {suberror}{at}")]
    KvmInternal { vcpu: u32, suberror: u32, at: Where },
    #[error("the processor refused to enter vCPU {vcpu}: reason {reason:#x}{at}")]
    EntryFailed { vcpu: u32, reason: u64, at: Where },
    #[error("KVM ended vCPU {vcpu} in a way that wirevm does not know: {exit}{at}")]
    Unexpected { vcpu: u32, exit: String, at: Where },
}

/// Where the guest stood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Where(pub(crate) Option<Position>);

/// A vCPU's position in its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) rip: u64,
    pub(crate) rsp: u64,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    /// Code bytes at `rip`, where its page is mapped.
    pub(crate) code: Vec<u8>,
}

impl Position {
    /// True at a processor's first instruction: on AMD a triple fault resets the vCPU, and where it stood is lost.
    pub(crate) fn is_reset(&self) -> bool {
        self.rip == 0xfff0 && self.cr0 & 1 == 0
    }
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Position { rip, rsp, cr0, cr2, cr3, code }) = &self.0 else { return Ok(()) };
        write!(f, " at rip {rip:#x} (rsp {rsp:#x}, cr0 {cr0:#x}, cr2 {cr2:#x}, cr3 {cr3:#x}")?;
        if !code.is_empty() {
            write!(f, ", code")?;
            code.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
        }
        write!(f, ")")
    }
}

/// What went wrong with one NIC's wire. It speaks for the wire's error, and so has that one's source.
#[derive(Debug)]
pub(crate) struct NicError {
    pub(crate) index: usize,
    pub(crate) kind: &'static str,
    pub(crate) error: net::Error,
}

impl fmt::Display for NicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, kind, error } = self;
        write!(f, "NIC {index} ({kind}): {error}")
    }
}

impl std::error::Error for NicError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl Error {
    /// What the user can do about it, if anything.
    pub(crate) fn remedy(&self) -> Option<String> {
        if let Some(remedy) = net::too_many_files(self) {
            return Some(remedy);
        }
        Some(match self {
            Self::OpenKvm(e) => match e.raw_os_error() {
                Some(libc::ENOENT) => "load the module (modprobe kvm_intel or kvm_amd), and switch virtualization on in \
                     the firmware; in a virtual machine or container, ask for nested virtualization or --device /dev/kvm"
                    .into(),
                Some(libc::EACCES | libc::EPERM) => kvm_right(),
                Some(libc::EBUSY) => "another hypervisor (VirtualBox, VMware) holds the processor; stop it".into(),
                _ => "wirevm doctor says what this host can do".into(),
            },
            Self::Kvm { .. } => "wirevm doctor says what this host can do".into(),
            Self::Guest(error) => return error.remedy(),
            Self::NotUp { .. } => "give it longer (--wait-ready); it says so by wirevm's agent, or by systemd 254 or later, over vsock".into(),
            Self::NoKernel => "give it a kernel (--kernel FILE), or a disk that has one (--disk FILE)".into(),
            Self::TooManyCpus { limit, .. } => format!("give --cpus {limit} or fewer"),
            Self::CpusOutOfReach { limit, .. } => format!("give --cpus {limit} or fewer"),
            Self::TooManyNics { limit, .. } => format!("give --net {limit} times at the most"),
            Self::TooManyDisks { limit, .. } => format!("give --disk {limit} times at the most"),
            Self::TooManyShares { limit, .. } => format!("give --share {limit} times at the most"),
            Self::MapMemory { .. } => "give less with --memory, or raise the limit (ulimit -v)".into(),
            Self::HugePagesShort { needed, pool, .. } => format!(
                "{} are free; reserve more ({}), give less with --memory, or drop hugepages=",
                pool.available(),
                pool.reserve(*needed)
            ),
            Self::NoHugePages { .. } => match hugepages::sizes() {
                sizes if sizes.is_empty() => {
                    "take a kernel with CONFIG_HUGETLBFS, or drop hugepages=".into()
                }
                sizes => format!("it has {sizes}; take hugepages=on, another size, or none"),
            },
            Self::UnevenHugePages { bytes, page } => {
                format!("give --memory {}", argument(bytes.next_multiple_of(*page)))
            }
            Self::Mergeable(_) => "take a kernel with CONFIG_KSM, or drop mergeable=".into(),
            Self::MemoryFile { .. } => "raise the limit (ulimit -f), or drop shared=".into(),
            Self::MemoryTooLarge { limit, .. } => format!("give --memory {} or less", argument(*limit)),
            Self::Boot(e) => return e.remedy(),
            Self::Seed(seed) => seed.remedy(),
            Self::Disk(disk) => disk.remedy(),
            Self::Nic(nic) => return nic.error.remedy(),
            Self::Spec(error) => return error.remedy(),
            Self::Name(error) => return error.remedy(),
            Self::Vsock(error) => return error.remedy(),
            Self::Register(ClientError::Connection(_)) => {
                "it takes systemd 256 or later, with systemd-machined (the package systemd-container) started; or drop --register"
                    .into()
            }
            Self::Register(_) => "run as root, under a name that machinectl list does not have; or drop --register".into(),
            Self::CpuAffinityCount { affinity, cpus } => {
                let count = affinity.len();
                // An example of a few; hundreds of numbers say nothing more.
                let example = match *cpus {
                    cpus @ ..=8 => format!(": {}", net::write_cpus(&vec![affinity[0]; cpus as usize])),
                    _ => String::new(),
                };
                format!("take --cpus {count}, or name {cpus} CPUs, one perhaps more than once{example}")
            }
            Self::CpuAffinity { .. } => online("--cpu-affinity"),
            Self::Affinity { .. } => online("affinity="),
            Self::VhostByMmio { .. } => {
                "drop --transport mmio, or take vhost=auto or off: wirevm's own threads then carry the frames".into()
            }
            Self::SameTwice { .. } => "give each --net its own; without mac= and a name, wirevm chooses".into(),
            Self::ConsoleUnread { path } => format!("start its reader first: cat {}", path.display()),
            Self::OpenConsole { .. } => "name a file that you may write, in a directory that exists".into(),
            Self::Confine(_) => "take a kernel with CONFIG_SECCOMP_FILTER; or, for a guest that you trust, --sandbox off".into(),
            Self::Machine(failure) => return failure.remedy.clone(),
            Self::Forbidden { .. } => "a guest may have taken it over; if not, it is a bug in wirevm: report it, and until it is mended, for a guest that you \
                 trust, run with --sandbox off"
                .into(),
            Self::KilledBySandbox | Self::Killed(_) | Self::Vanished(_) | Self::Nonsense(_) => return None,
            Self::Deaf => "wait until the guest is up, or take a kernel with CONFIG_ACPI".into(),
            Self::SlotTaken { .. } | Self::StandsStill | Self::Refused { .. } | Self::Kept { .. } => return None,
            Self::Credential { .. } => {
                "name a file that you may read: --credential NAME=@FILE, and for ssh.authorized_keys.root --ssh-key FILE".into()
            }
            Self::Share(error) => return error.remedy(),
            Self::BackEnd { .. } => "is it a virtiofsd? wirevm -v says which one it is".into(),
            Self::Host { .. } | Self::Over | Self::NoKeeper | Self::Bug(_) => return None,
        })
    }
}

impl Crash {
    /// What the user can do about it, if anything.
    pub(crate) fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::KvmInternal { .. } | Self::EntryFailed { .. } => Some(
                "wirevm doctor measures whether this KVM runs a guest's kernel on the processor or emulates it; \
                 one that emulates it cannot run Linux",
            ),
            Self::TripleFault { .. } => Some(
                "add earlyprintk=ttyS0 to --cmdline to see how far the kernel came; is it built for x86-64?",
            ),
            Self::Panic | Self::Unexpected { .. } => None,
        }
    }
}

/// How a user gets at /dev/kvm: by its group, if that may use it.
fn kvm_right() -> String {
    let owner = std::fs::metadata("/dev/kvm").map(|kvm| (kvm.mode(), kvm.gid())).unwrap_or_default();
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    right_by_group(owner, &groups)
}

/// The same, where the device has this mode and group, and `groups` is `/etc/group`.
fn right_by_group((mode, gid): (u32, u32), groups: &str) -> String {
    let name = groups.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(gid)).then(|| fields[0].to_owned())
    });
    match name {
        Some(group) if gid != 0 && mode & 0o060 == 0o060 => {
            format!("join its group (sudo usermod -aG {group} $USER, then log in again), or run as root")
        }
        _ => "run as root, or open it to every user until the next boot (sudo chmod 666 /dev/kvm)".into(),
    }
}

/// What to do about a CPU that cannot be had.
fn online(option: &str) -> String {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let online = online.trim();
    format!("take one that is online ({online}) and in the cpuset of this process, or drop {option}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_gets_at_kvm_by_its_group_where_that_may_use_it() {
        let groups = "root:x:0:\nbroken\nvirt:x:104:me\n";
        assert!(right_by_group((0o20660, 104), groups).contains("usermod -aG virt $USER"));
        for none in [(0o20600, 104), (0o20640, 104), (0o20660, 0), (0o20660, 7), (0, 0)] {
            let remedy = right_by_group(none, groups);
            assert!(!remedy.contains("usermod") && remedy.contains("chmod 666"), "{none:?}: {remedy}");
        }
    }
}
