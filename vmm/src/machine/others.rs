//! The devices beside the NICs, and the threads that they have.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::virtio::balloon::VirtioBalloon;
use devices::virtio::block::Handle;
use devices::virtio::fs::VirtioFs;
use devices::virtio::mailbox::ThreadHook;
use devices::virtio::rng::VirtioRng;
use devices::virtio::vhost_user::{BackEnd, PATIENCE};
use devices::virtio::{DeviceThreads, VirtioDevice};
use vmm::MachineConfig;
use vmm::config::ShareConfig;

use crate::error::Error;
use crate::kvm::memory;
use crate::machine::disk::Disk;
use crate::machine::sandbox::{Filters, Thread};
use crate::machine::vsock::SocketDevice;
use crate::protocol::{Channel, DiskCounters, FromMachine, ToMachine};

/// What they are made of that is had before the host is changed.
pub(super) struct Opened {
    pub(super) disks: Vec<Disk>,
    /// That of each share.
    pub(super) back_ends: Vec<BackEnd>,
}

/// Takes up the connection to the back end of each share.
///
/// # Errors
/// One of them is no back end of a file system.
pub(super) fn connect(config: &MachineConfig, shares: Vec<UnixStream>) -> Result<Vec<BackEnd>, Error> {
    let each = |(share, socket): (&ShareConfig, UnixStream)| {
        BackEnd::over(socket, VirtioFs::QUEUES, PATIENCE)
            .map_err(|source| Error::BackEnd { tag: share.tag.clone(), source })
    };
    config.shares.iter().zip(shares).map(each).collect()
}

/// Their threads, each with what confines it.
pub(super) struct Others {
    threads: Vec<(Box<dyn DeviceThreads>, Thread)>,
    disks: Vec<Handle>,
}

impl Others {
    /// Makes the devices that `config` says, [so many](MachineConfig::devices_beside_nics), and their threads; the socket device is there
    /// already. They are in the guest's sight in this order.
    ///
    /// # Errors
    /// There are not enough threads or descriptors.
    pub(super) fn new(
        config: &MachineConfig,
        sockets: Option<SocketDevice>,
        opened: Opened,
        keeper: &Arc<Channel<FromMachine, ToMachine>>,
    ) -> Result<(Self, Vec<Box<dyn VirtioDevice>>), Error> {
        let failed = |source| Error::Host { what: "make a device", source };
        let mut threads: Vec<(Box<dyn DeviceThreads>, Thread)> = Vec::new();
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
        let mut handles = Vec::new();
        for disk in opened.disks {
            let disk = disk.device().map_err(failed)?;
            handles.push(disk.handle());
            threads.push((Box::new(disk.handle()), Thread::Disk));
            devices.push(Box::new(disk));
        }
        for (number, (share, back_end)) in config.shares.iter().zip(opened.back_ends).enumerate() {
            let keeper = Arc::clone(keeper);
            // Where there is no keeper any more, this process ends, and with it that one.
            let end = move || drop(keeper.send(&FromMachine::ShareLost { share: number }));
            let fs = VirtioFs::new(&format!("share{number}"), &share.tag, back_end, Box::new(end));
            let fs = fs.map_err(failed)?;
            threads.push((fs.threads(), Thread::Queue));
            devices.push(Box::new(fs));
        }
        Ok((Self { threads, disks: handles }, devices))
    }

    /// Confines them.
    pub(super) fn confine(&self, filters: &Arc<Filters>) -> io::Result<()> {
        self.threads.iter().try_for_each(|(threads, kind)| {
            let (filters, kind) = (Arc::clone(filters), *kind);
            let hook: ThreadHook = Arc::new(move |_: &str| filters.enter(kind));
            threads.confine(&hook)
        })
    }

    /// Has none touch guest memory.
    pub(super) fn pause(&self) -> io::Result<()> {
        self.threads.iter().try_for_each(|(threads, _)| threads.pause())
    }

    /// Lets them go on.
    pub(super) fn resume(&self) -> io::Result<()> {
        self.threads.iter().try_for_each(|(threads, _)| threads.resume())
    }

    /// What went to and from each disk, by all of its queues.
    pub(super) fn count_disks(&self) -> Vec<DiskCounters> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let of_disk = |disk: &Handle| {
            disk.counters().iter().fold(DiskCounters::default(), |sum, queue| DiskCounters {
                reads: sum.reads + read(&queue.reads),
                read_bytes: sum.read_bytes + read(&queue.read_bytes),
                writes: sum.writes + read(&queue.writes),
                written_bytes: sum.written_bytes + read(&queue.written_bytes),
                flushes: sum.flushes + read(&queue.flushes),
                discards: sum.discards + read(&queue.discards),
                errors: sum.errors + read(&queue.errors),
            })
        };
        self.disks.iter().map(of_disk).collect()
    }
}
