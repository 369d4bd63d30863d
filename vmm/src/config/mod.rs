//! What a virtual machine is made of, as plain data: the command line, the control socket and a Rust test all speak it.

mod disk;
mod guest;
mod identity;
mod memory;
mod share;
mod size;
mod vsock;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use net::NetConfig;
use serde::{Deserialize, Serialize};

pub use self::disk::DiskConfig;
pub use self::guest::{GuestConfig, RootConfig};
pub use self::identity::{Credential, HOSTNAME, NOTIFY_SOCKET, Uuid};
pub use self::memory::{HugePages, MemoryConfig};
pub use self::share::ShareConfig;
pub use self::size::{argument, size};
pub use self::vsock::VsockConfig;

/// A virtual machine: what it boots, what it has, and how it ends.
///
/// ```
/// use vmm::MachineConfig;
///
/// let config = MachineConfig {
///     initrd: Some("initrd.img".into()),
///     cpus: 2,
///     net: vec!["tap,nat".parse()?],
///     ..MachineConfig::new("vmlinuz")
/// };
/// let json = serde_json::to_string(&config).unwrap();
/// assert_eq!(serde_json::from_str::<MachineConfig>(&json).unwrap(), config);
/// # Ok::<(), net::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// What it is called while it runs; none for a name that wirevm makes up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The guest's kernel: a bzImage, or an ELF vmlinux. None where what it boots brings one, or the host's own is to be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The guest's root and what runs in it, where wirevm makes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestConfig>,
    /// The kernel's command line.
    #[serde(default = "default_cmdline")]
    pub cmdline: String,
    /// How many vCPUs the guest has, 1 or more.
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// The host's CPU for the thread of each vCPU; empty for any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu_affinity: Vec<u16>,
    /// The guest's memory.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// Its UUID; none for a random one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Its serial number; none for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_number: Option<String>,
    /// What systemd in the guest is told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<Credential>,
    /// Whether it has a device that gives it random bytes of the host.
    #[serde(default = "yes")]
    pub rng: bool,
    /// Whether its guest gives back memory that it does not use (virtio-balloon). Huge pages are never given back.
    #[serde(default = "yes")]
    pub balloon: bool,
    /// Whether programs of the guest and of the host have sockets to each other.
    #[serde(default)]
    pub vsock: VsockConfig,
    /// Its disks, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// Directories of the host that it can mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareConfig>,
    /// A directory with what cloud-init is told (NoCloud); its guest gets it as one more disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<PathBuf>,
    /// Its NICs, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetConfig>,
    /// How the guest finds its virtio devices.
    #[serde(default)]
    pub transport: Transport,
    /// Where its serial port goes.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// How long the guest has to power itself off once it is asked to end, in seconds.
    #[serde(default = "default_stop_timeout")]
    pub stop_timeout: u64,
    /// Whether the process that runs the guest is confined: no capability, no path, few system calls.
    #[serde(default = "yes")]
    pub sandbox: bool,
    /// The user that this process becomes where wirevm was started as root.
    #[serde(default = "default_user")]
    pub user: u32,
    /// Whether systemd-machined is told that the machine is there.
    #[serde(default)]
    pub register: bool,
}

/// A user and group that owns nothing: `nobody` on most systems.
pub const NOBODY: u32 = 65534;
/// What the kernel's command line is unless somebody says otherwise.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";
/// Seconds that a guest has to power itself off.
pub const DEFAULT_STOP_TIMEOUT: u64 = 10;

fn default_cmdline() -> String {
    DEFAULT_CMDLINE.to_owned()
}

fn default_cpus() -> u32 {
    1
}

fn default_stop_timeout() -> u64 {
    DEFAULT_STOP_TIMEOUT
}

fn default_user() -> u32 {
    NOBODY
}

fn yes() -> bool {
    true
}

impl MachineConfig {
    /// A machine that boots `kernel`, with one vCPU, the default memory, and nothing else.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            name: None,
            kernel: Some(kernel.into()),
            initrd: None,
            guest: None,
            cmdline: default_cmdline(),
            cpus: default_cpus(),
            cpu_affinity: Vec::new(),
            memory: MemoryConfig::default(),
            uuid: None,
            serial_number: None,
            credentials: Vec::new(),
            rng: yes(),
            balloon: yes(),
            vsock: VsockConfig::default(),
            disks: Vec::new(),
            shares: Vec::new(),
            seed: None,
            net: Vec::new(),
            transport: Transport::default(),
            console: ConsoleConfig::default(),
            stop_timeout: default_stop_timeout(),
            sandbox: yes(),
            user: default_user(),
            register: false,
        }
    }

    /// What systemd in the guest is told: what the user says; and unless that says otherwise, the host's name by the machine's, where the
    /// user has named the machine, and where to say that the guest is up.
    pub fn all_credentials(&self) -> impl Iterator<Item = Credential> {
        let named = self.credentials.iter().any(|credential| credential.name() == HOSTNAME);
        let hostname = self.name.as_deref().filter(|_| !named).and_then(Credential::hostname);
        let has = |name: &str| self.credentials.iter().any(|credential| credential.name() == name);
        let notify = (self.vsock == VsockConfig::On && !has(NOTIFY_SOCKET)).then(Credential::notify_socket);
        self.credentials.iter().cloned().chain(hostname).chain(notify)
    }

    /// How long the guest has to power itself off.
    pub fn stop_timeout(&self) -> Duration {
        Duration::from_secs(self.stop_timeout)
    }

    /// Where its serial port goes where nobody says that.
    pub fn usual_console(&self) -> ConsoleConfig {
        if self.guest.is_some() { ConsoleConfig::None } else { ConsoleConfig::Stdio }
    }

    /// How many virtio devices it has beside its NICs: each takes a place that a NIC could have.
    pub fn devices_beside_nics(&self) -> usize {
        let on = [self.rng, self.has_balloon(), self.vsock != VsockConfig::Off, self.seed.is_some()];
        on.into_iter().filter(|on| *on).count() + self.disks.len() + self.shares.len()
    }

    /// Whether there is a balloon.
    pub fn has_balloon(&self) -> bool {
        self.balloon && self.memory.huge_pages.is_none()
    }

    /// The words of `wirevm run` that make this machine.
    pub fn to_args(&self) -> Vec<String> {
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut args = Vec::new();
        let mut option = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        if let Some(kernel) = &self.kernel {
            option("kernel", path(kernel));
        }
        if let Some(name) = &self.name {
            option("name", name.clone());
        }
        if let Some(initrd) = &self.initrd {
            option("initrd", path(initrd));
        }
        option("cmdline", self.cmdline.clone());
        option("cpus", self.cpus.to_string());
        if !self.cpu_affinity.is_empty() {
            option("cpu-affinity", net::write_cpus(&self.cpu_affinity));
        }
        option("memory", self.memory.to_string());
        if let Some(uuid) = self.uuid {
            option("uuid", uuid.to_string());
        }
        if let Some(number) = &self.serial_number {
            option("serial-number", number.clone());
        }
        self.credentials.iter().for_each(|credential| option("credential", credential.to_string()));
        option("rng", if self.rng { "on" } else { "off" }.to_owned());
        option("balloon", if self.balloon { "on" } else { "off" }.to_owned());
        option("vsock", self.vsock.to_string());
        self.disks.iter().for_each(|disk| option("disk", disk.to_string()));
        self.shares.iter().for_each(|share| option("share", share.to_string()));
        if let Some(seed) = &self.seed {
            option("seed", path(seed));
        }
        self.net.iter().for_each(|net| option("net", net.to_string()));
        option("transport", self.transport.to_string());
        if self.console != self.usual_console() {
            option("console", self.console.to_string());
        }
        option("stop-timeout", self.stop_timeout.to_string());
        option("sandbox", if self.sandbox { "on" } else { "off" }.to_owned());
        option("user", self.user.to_string());
        if self.register {
            args.push("--register".to_owned());
        }
        if let Some(guest) = &self.guest {
            args.extend(guest.to_args());
            if !guest.command.is_empty() {
                args.push("--".to_owned());
                args.extend(guest.command.iter().cloned());
            }
        }
        args
    }
}

/// The other end of the guest's serial port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleConfig {
    /// The terminal, or whatever standard input and output are.
    #[default]
    Stdio,
    /// Nowhere: what the guest said last is kept for who attaches, and shown where it crashes.
    None,
    /// A file that is written, and emptied first.
    File(PathBuf),
}

impl FromStr for ConsoleConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "none" => Ok(Self::None),
            "" => Err("name a file, or stdio, or none".into()),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl fmt::Display for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::None => f.write_str("none"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The transport of every virtio device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A PCI bus, with an interrupt for each queue.
    #[default]
    Pci,
    /// MMIO windows that ACPI lists.
    Mmio,
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pci" => Ok(Self::Pci),
            "mmio" => Ok(Self::Mmio),
            _ => Err("it is pci or mmio".into()),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pci => "pci",
            Self::Mmio => "mmio",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_machine_is_a_named_host_unless_somebody_says_otherwise() {
        let told = |name: Option<&str>, credentials: &[&str]| -> Vec<String> {
            let config = MachineConfig {
                name: name.map(str::to_owned),
                credentials: credentials.iter().map(|text| text.parse().unwrap()).collect(),
                ..MachineConfig::new("vmlinuz")
            };
            config.all_credentials().map(|credential| credential.to_string()).collect()
        };
        let notify = "vmm.notify_socket=vsock-stream:2:1023";
        assert_eq!(told(None, &["a=b"]), ["a=b", notify]);
        assert_eq!(told(Some("web_1"), &["a=b"]), ["a=b", "system.hostname=web-1", notify]);
        assert_eq!(told(Some("web"), &["system.hostname=other"]), ["system.hostname=other", notify]);
        assert_eq!(told(None, &["vmm.notify_socket=vsock:2:9"]), ["vmm.notify_socket=vsock:2:9"]);
        let off = MachineConfig { vsock: VsockConfig::Off, ..MachineConfig::new("vmlinuz") };
        assert_eq!(off.all_credentials().count(), 0, "there is no vsock");
    }

    #[test]
    fn a_machine_is_plain_data() {
        let config = MachineConfig {
            name: Some("web".into()),
            net: vec!["tap=tap0,host=172.31.0.1/24".parse().unwrap(), "bridge=br0".parse().unwrap()],
            memory: "1G,hugepages=2M,shared=on".parse().unwrap(),
            uuid: Some("2f1c0d3e-8a4b-4c5d-9e6f-708192a3b4c5".parse().unwrap()),
            serial_number: Some("7".into()),
            seed: Some("seed".into()),
            disks: vec!["root.raw".parse().unwrap(), "a,,b,ro,serial=7".parse().unwrap()],
            credentials: vec!["system.hostname=web".parse().unwrap(), "key=@/etc/key".parse().unwrap()],
            vsock: VsockConfig::Vhost(Some(5)),
            shares: vec!["/srv/data,ro".parse().unwrap(), ".:here".parse().unwrap()],
            transport: Transport::Mmio,
            console: ConsoleConfig::File("/tmp/console".into()),
            ..MachineConfig::new("vmlinuz")
        };
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<MachineConfig>(&json).unwrap(), config, "{json}");
        let least: MachineConfig = serde_json::from_str(r#"{"kernel":"vmlinuz"}"#).unwrap();
        assert_eq!(least, MachineConfig::new("vmlinuz"));
        let unknown = serde_json::from_str::<MachineConfig>(r#"{"kernel":"vmlinuz","colour":"red"}"#);
        assert!(unknown.unwrap_err().to_string().contains("colour"));
    }
}
