//! The process that runs the guest: KVM, guest memory, vCPUs, devices, and every frame.
//!
//! It is forked by the keeper, and has no right over the host: what it was not given as a descriptor, it does not have.
//!
//! # States
//! ```text
//!             Start              Pause
//!   Built ─────────► Running ◄──────────► Paused
//!     │                 │      Resume        │
//!     └─────────────────┴─────────┬──────────┘
//!                                 ▼
//!                             Ended(why)
//! ```
//! - *Built*: the vCPUs' threads wait before their first `KVM_RUN`; every thread is confined.
//! - *Running*: they are in `KVM_RUN`, and the queues move frames.
//! - *Paused*: they wait outside of it, and each queue has said its positions and touches neither ring nor backend. Nothing is
//!   reset: frames wait in the host's queue and on the rings, kicks in their eventfds.
//! - *Ended*: vCPUs are joined, then the devices' threads; then the process ends, and with it its last hold on a tap.

mod build;
mod disk;
pub(crate) mod ending;
mod events;
mod nic;
mod others;
mod output;
pub(crate) mod sandbox;
mod slots;
pub(crate) mod vcpus;
mod vsock;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};
use vmm::MachineConfig;
use vmm::config::{Credential, Uuid};

use crate::error::Error;
use crate::machine::disk::Disk;
pub(crate) use crate::machine::disk::DiskError;
use crate::machine::ending::Outcome;
use crate::protocol::{Channel, End, Failure, FromMachine, ToMachine};
use crate::report;
use crate::sys;
use crate::timings::Timings;

/// What the keeper gives the machine at its birth.
pub(crate) struct Birth {
    pub(crate) channel: Channel<FromMachine, ToMachine>,
    /// Where the guest's serial port writes to: a pipe that does not block.
    pub(crate) output: OwnedFd,
    /// What is typed for it: the same.
    pub(crate) input: OwnedFd,
    /// The connection to the back end of each share.
    pub(crate) shares: Vec<UnixStream>,
    pub(crate) keeper: Pid,
    pub(crate) identity: Identity,
    pub(crate) timings: Timings,
}

/// What the machine tells its guest of itself.
pub(crate) struct Identity {
    uuid: Uuid,
    /// Strings of SMBIOS.
    credentials: Vec<String>,
    /// Of this run alone.
    generation: [u8; 16],
}

impl Identity {
    /// What `config` says, and random for the rest. Files are read here, by the user's rights.
    ///
    /// # Errors
    /// A credential's file cannot be read.
    pub(crate) fn of(config: &MachineConfig) -> Result<Self, Error> {
        let read = |credential: Credential| {
            credential.oem_string().map_err(|source| {
                let file = credential.file().map(Path::to_path_buf).unwrap_or_default();
                Error::Credential { name: credential.name().to_owned(), file, source }
            })
        };
        let random = || -> Result<[u8; 16], Error> {
            let mut bytes = [0; 16];
            // As many come whole or not at all.
            getrandom(&mut bytes, GetRandomFlags::empty())
                .map_err(|error| Error::Host { what: "get random numbers", source: error.into() })?;
            Ok(bytes)
        };
        let uuid = config.uuid.map_or_else(|| random().map(Uuid::random), Ok)?;
        let credentials = config.all_credentials().map(read).collect::<Result<_, _>>()?;
        Ok(Self { uuid, credentials, generation: random()? })
    }
}

/// Lives the machine's life.
pub(crate) fn main(config: &MachineConfig, birth: Birth) -> ! {
    let channel = Arc::new(birth.channel);
    report::send_to_keeper(Arc::clone(&channel));
    sys::share_one_heap();
    sys::survive_file_size_limit();
    let run = || {
        let mut kept = vec![channel.as_raw_fd(), birth.output.as_raw_fd(), birth.input.as_raw_fd()];
        // First, for a file may be named by a descriptor that is the keeper's (/dev/stdin, a shell's <(...)).
        let files = match (&config.kernel, config.disks.first()) {
            (Some(kernel), _) => boot::Files::open(kernel, config.initrd.as_deref()),
            (None, Some(disk)) => boot::Files::on_disk(&disk.file),
            (None, None) => return Err(Error::NoKernel),
        };
        kept.extend(birth.shares.iter().map(AsRawFd::as_raw_fd));
        kept.extend(files.iter().flat_map(boot::Files::descriptors).map(|fd| fd.as_raw_fd()));
        let mut disks = Disk::open_all(&config.disks);
        if let (Some(directory), Ok(disks)) = (&config.seed, &mut disks) {
            disks.push(seed(config, directory, &birth.identity)?);
        }
        kept.extend(disks.iter().flatten().flat_map(Disk::descriptors).map(|fd| fd.as_raw_fd()));
        nothing()
            .and_then(|nothing| sys::keep_only(kept, &nothing))
            .map_err(|source| Error::Host { what: "close what is the keeper's", source })?;
        sandbox::tell_forbidden_calls(channel.as_fd())
            .map_err(|source| Error::Host { what: "handle a signal", source })?;
        let (output, input) = (birth.output, birth.input);
        let shares = birth.shares;
        build::run(
            config,
            build::Given {
                channel: &channel,
                files,
                disks,
                output,
                input,
                shares,
                keeper: birth.keeper,
                identity: birth.identity,
            },
            birth.timings,
        )
    };
    let last = match run() {
        Ok(Outcome::PowerOff) => FromMachine::Ended(End::PowerOff),
        Ok(Outcome::Reset) => FromMachine::Ended(End::Reset),
        Ok(Outcome::Stopped) => FromMachine::Ended(End::Stopped),
        Ok(Outcome::Crash(crash)) => {
            FromMachine::Ended(End::Crash(Failure::new(&crash, crash.remedy().map(str::to_owned))))
        }
        Err(error) => failed(&error),
    };
    // The keeper may be gone, and nobody else wants to know.
    let _ = channel.send(&last);
    sys::exit_now(0)
}

/// The disk with what cloud-init is told.
fn seed(config: &MachineConfig, directory: &Path, identity: &Identity) -> Result<Disk, Error> {
    let hostname = config.name.as_deref().unwrap_or("wirevm");
    let image = boot::seed::read(directory, &identity.uuid.to_string(), hostname)?;
    Disk::in_memory(&config.disks, &image)
        .map_err(|source| Error::Host { what: "make a disk in memory", source })
}

fn failed(error: &Error) -> FromMachine {
    FromMachine::Failed(Failure::new(error, error.remedy()))
}

/// Where nothing is to be read, and what is written goes nowhere.
fn nothing() -> io::Result<OwnedFd> {
    match OpenOptions::new().read(true).write(true).open("/dev/null") {
        Ok(null) => Ok(null.into()),
        // In a root without devices: a socket whose other end is closed.
        Err(_) => Ok(UnixStream::pair()?.0.into()),
    }
}
