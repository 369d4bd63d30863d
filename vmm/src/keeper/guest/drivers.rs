//! The guest's kernel, and which of its modules the guest gets.

use std::path::{Path, PathBuf};

use boot::modules::{self, Modules};
use vmm::MachineConfig;
use vmm::config::Transport;

use super::Error;
use super::root::Root;

/// A kernel, and where its modules are.
pub(super) struct Drivers {
    kernel: PathBuf,
    modules: Modules,
    /// There is a directory of modules: what is in none of its lists, the kernel lacks. Without one, all may be in the kernel.
    known: bool,
}

/// Modules to be loaded, unpacked, in order.
pub(super) struct Unpacked(Vec<(String, Vec<u8>)>);

/// Those that every guest likes to have, where its kernel has them.
const WELCOME: [&str; 6] = ["virtio_rng", "virtio_balloon", "button", "evdev", "af_packet", "ptp_kvm"];

impl Drivers {
    /// Those of `kernel`, or of the host's own kernel: in `given`, or where they usually are.
    pub(super) fn find(kernel: Option<&Path>, given: Option<&Path>) -> Result<Self, Error> {
        let kernel = kernel.map_or_else(modules::default_kernel, |kernel| Ok(kernel.to_owned()))?;
        let version = modules::kernel_version(&kernel)?;
        let directory = modules::directory(&kernel, version.as_deref(), given)?;
        let known = directory.is_some();
        let modules = directory.map_or_else(|| Ok(Modules::none()), |directory| Modules::open(&directory))?;
        Ok(Self { kernel, modules, known })
    }

    pub(super) fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// Whether the kernel certainly has all of these.
    pub(super) fn has(&self, names: &[&str]) -> Result<bool, Error> {
        Ok(self.known && self.modules.resolve(names)?.absent.is_empty())
    }

    /// The modules that this machine's guest needs, and those that it likes to have.
    ///
    /// # Errors
    /// The kernel lacks one that it needs, or a file cannot be read.
    pub(super) fn load(&self, config: &MachineConfig, root: &Root) -> Result<Unpacked, Error> {
        let bus = match config.transport {
            Transport::Pci => "virtio_pci",
            Transport::Mmio => "virtio_mmio",
        };
        let nic: &[&str] = if config.net.is_empty() { &[] } else { &["virtio_net"] };
        let needed: [(&[&str], &str); 4] = [
            (&[bus], "finds no device"),
            (root.modules(), "has no root"),
            (&["vmw_vsock_virtio_transport"], "cannot be reached by wirevm"),
            (nic, "has no network"),
        ];
        for (names, what) in needed {
            let absent = self.modules.resolve(names)?.absent;
            if self.known && !absent.is_empty() {
                let (kernel, missing) = (self.kernel.clone(), absent.join(", "));
                return Err(Error::NoModule { kernel, missing, what });
            }
        }
        let wanted: Vec<_> =
            needed.iter().flat_map(|(names, _)| names.iter()).chain(&WELCOME).copied().collect();
        let resolution = self.modules.resolve(&wanted)?;
        log::debug!(
            "{}: {:?} are in the kernel, and {:?} nowhere",
            self.kernel.display(),
            resolution.built_in,
            resolution.absent
        );
        let objects = modules::read_all(&resolution.load)?;
        Ok(Unpacked(resolution.load.into_iter().map(|module| module.name).zip(objects).collect()))
    }
}

impl Unpacked {
    /// As the archive of the initrd has them.
    pub(super) fn archived(&self) -> Vec<modules::Loaded<'_>> {
        self.0.iter().map(|(name, object)| modules::Loaded { name, object }).collect()
    }

    /// Where the agent finds them.
    pub(super) fn paths(&self) -> Vec<std::ffi::OsString> {
        modules::paths(&self.archived()).map(Into::into).collect()
    }
}
