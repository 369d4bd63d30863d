//! The devices beside the NICs, and the threads that they have.

use std::io;
use std::sync::Arc;

use devices::virtio::balloon::VirtioBalloon;
use devices::virtio::mailbox::ThreadHook;
use devices::virtio::rng::VirtioRng;
use devices::virtio::{DeviceThreads, VirtioDevice};
use vmm::MachineConfig;

use crate::error::Error;
use crate::kvm::memory;
use crate::machine::sandbox::{Filters, Thread};
use crate::machine::vsock::SocketDevice;

/// Their threads, each with what confines it.
pub(super) struct Others(Vec<(Box<dyn DeviceThreads>, Thread)>);

impl Others {
    /// Makes the devices that `config` says, [so many](MachineConfig::devices_beside_nics), and their threads; the socket device is there
    /// already. They are in the guest's sight in this order.
    ///
    /// # Errors
    /// There are not enough threads or descriptors.
    pub(super) fn new(
        config: &MachineConfig,
        sockets: Option<SocketDevice>,
    ) -> Result<(Self, Vec<Box<dyn VirtioDevice>>), Error> {
        let failed = |source| Error::Host { what: "make a device", source };
        let mut threads = Vec::new();
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        if config.rng {
            let rng = VirtioRng::new().map_err(failed)?;
            threads.push((rng.threads(), Thread::Queue));
            devices.push(Box::new(rng));
        }
        if config.has_balloon() {
            let shared = config.memory.shared;
            let balloon = VirtioBalloon::new(Box::new(move |memory| memory::discard(memory, shared)));
            let balloon = balloon.map_err(failed)?;
            threads.push((balloon.threads(), Thread::Queue));
            devices.push(Box::new(balloon));
        }
        if let Some(SocketDevice { device, threads: own, kind }) = sockets {
            threads.push((own, kind));
            devices.push(device);
        }
        Ok((Self(threads), devices))
    }

    /// Confines them.
    pub(super) fn confine(&self, filters: &Arc<Filters>) -> io::Result<()> {
        self.0.iter().try_for_each(|(threads, kind)| {
            let (filters, kind) = (Arc::clone(filters), *kind);
            let hook: ThreadHook = Arc::new(move |_: &str| filters.enter(kind));
            threads.confine(&hook)
        })
    }

    /// Has none touch guest memory.
    pub(super) fn pause(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|(threads, _)| threads.pause())
    }

    /// Lets them go on.
    pub(super) fn resume(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|(threads, _)| threads.resume())
    }
}
