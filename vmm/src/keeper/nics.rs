//! NICs: the wires that the machine's configuration asks for, opened on the host.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::thread;

use devices::virtio::net::run_on;
use net::{NetConfig, VhostMode, Wire};
use vmm::MachineConfig;
use vmm::config::Transport;

use crate::error::{Error, NicError};
use crate::protocol::{self, Channel, FilterAnswer, FilterRequest, FromMachine, MAX_DESCRIPTORS, ToMachine};

/// One NIC, as the keeper knows it.
pub(crate) struct Nic {
    pub(crate) wire: Wire,
    /// By which the guest's driver asks for another address or other frames.
    asks: Channel<FilterAnswer, FilterRequest>,
}

/// The wires of `machine`, ready to be opened.
///
/// # Errors
/// Two cannot be together, or one does not go with the machine.
pub(crate) fn resolve(machine: &MachineConfig) -> Result<Vec<NetConfig>, Error> {
    check_distinct(&machine.net)?;
    check_cpu_affinity(machine)?;
    let mut resolved = Vec::new();
    for (index, config) in machine.net.iter().enumerate() {
        let mut config = config.for_guest(machine.cpus).map_err(|error| nic_error(index, config, error))?;
        config.vhost = carrier(index, config.vhost, machine.transport)?;
        try_cpus(&config.affinity, |cpu, source| Error::Affinity { index, cpu, source })?;
        resolved.push(config);
    }
    Ok(resolved)
}

/// The numbers of the guest's own links that are in our network namespace.
pub(super) fn links_here(nics: &[Nic]) -> Vec<u32> {
    let here = std::fs::metadata("/proc/self/ns/net").map(|found| found.ino());
    let own = |nic: &Nic| {
        let of_nic = |link: &net::WireLink| link.name == nic.wire.link();
        let link = nic.wire.links().iter().find(|link| of_nic(link))?.clone();
        link.index.filter(|_| here.as_ref().is_ok_and(|here| *here == link.namespace))
    };
    nics.iter().filter_map(own).collect()
}

impl Nic {
    /// Opens the wire of the NIC `index`, and gives the machine its part of it.
    ///
    /// # Errors
    /// It cannot be opened: what was changed until then is changed back. Or the machine is gone.
    pub(crate) fn open(
        index: usize,
        config: &NetConfig,
        host: &net::Host,
        machine: &Channel<ToMachine, FromMachine>,
    ) -> Result<Self, Error> {
        let wire = Wire::open(config, host).map_err(|error| nic_error(index, config, error))?;
        log::info!(
            "NIC {index} ({}): {}, MAC {}, MTU {}, queues {}{}",
            config.wire.kind(),
            wire.link(),
            wire.mac(),
            wire.mtu(),
            wire.queues(),
            if wire.carried() { ", carried by vhost-net" } else { "" }
        );
        for notice in wire.notices() {
            log::warn!("NIC {index}: {notice}");
        }
        let given = |source| Error::Host { what: "give a NIC to the process that runs the guest", source };
        let cable = wire.cable().map_err(given)?;
        let (asks, theirs) = Channel::pair().map_err(given)?;
        let nic = protocol::Nic {
            cable: cable.spec,
            affinity: config.affinity.clone(),
            poll: config.poll.as_micros().try_into().unwrap_or(u64::MAX),
            carried: wire.carried(),
        };
        let descriptors: Vec<_> = cable.descriptors.iter().map(AsFd::as_fd).chain([theirs.as_fd()]).collect();
        debug_assert!(descriptors.len() <= MAX_DESCRIPTORS);
        machine.send_with(&ToMachine::Nic(Box::new(nic)), &descriptors).map_err(given)?;
        Ok(Self { wire, asks })
    }

    /// The socket of what the guest's driver asks.
    pub(crate) fn asks(&self) -> &Channel<FilterAnswer, FilterRequest> {
        &self.asks
    }

    /// Answers what it asked; false once nobody asks any more.
    pub(crate) fn answer(&mut self) -> bool {
        // One at a time: who has taken the machine over may ask without end.
        let request = match self.asks.try_receive() {
            Ok(Some((FilterRequest(filter), _))) => filter,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
            Ok(None) | Err(_) => return false,
        };
        let answer = self.wire.set_filter(&request);
        let answer = answer.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        self.asks.try_send(&FilterAnswer(answer)).is_ok()
    }
}

/// Who carries the frames of a NIC on this transport: by MMIO each interrupt has a reason that only we can write.
fn carrier(index: usize, vhost: VhostMode, transport: Transport) -> Result<VhostMode, Error> {
    match (vhost, transport) {
        (VhostMode::On, Transport::Mmio) => Err(Error::VhostByMmio { index }),
        (VhostMode::Auto, Transport::Mmio) => {
            log::warn!("NIC {index}: wirevm's own threads carry the frames: vhost-net takes --transport pci");
            Ok(VhostMode::Off)
        }
        (vhost, _) => Ok(vhost),
    }
}

fn nic_error(index: usize, config: &NetConfig, error: net::Error) -> Error {
    Error::Nic(NicError { index, kind: config.wire.kind().word(), error })
}

fn check_cpu_affinity(machine: &MachineConfig) -> Result<(), Error> {
    let (affinity, cpus) = (&machine.cpu_affinity, machine.cpus);
    if !affinity.is_empty() && affinity.len() != cpus as usize {
        return Err(Error::CpuAffinityCount { affinity: affinity.clone(), cpus });
    }
    try_cpus(affinity, |cpu, source| Error::CpuAffinity { cpu, source })
}

/// Tries each CPU, on a thread of its own: where one is wrong, that is said before the host is changed.
fn try_cpus(cpus: &[u16], error: impl Fn(u16, std::io::Error) -> Error) -> Result<(), Error> {
    for &cpu in cpus {
        let tried = thread::scope(|scope| scope.spawn(|| run_on(cpu)).join());
        tried
            .map_err(|_| Error::Bug("the trial of a CPU".to_owned()))?
            .map_err(|source| error(cpu, source))?;
    }
    Ok(())
}

/// Refuses two NICs with one MAC or one end on the host, which would otherwise fail later and in stranger words.
fn check_distinct(configs: &[NetConfig]) -> Result<(), Error> {
    let (mut macs, mut claims) = (HashMap::new(), HashMap::new());
    for (index, config) in configs.iter().enumerate() {
        if let Some(mac) = config.mac
            && let Some(first) = macs.insert(mac, index)
        {
            return Err(Error::SameTwice { what: format!("the MAC {mac}"), first, second: index });
        }
        for claim in config.claims() {
            match claims.entry(claim) {
                Entry::Vacant(free) => drop(free.insert(index)),
                Entry::Occupied(taken) => {
                    let first = *taken.get();
                    return Err(Error::SameTwice { what: taken.remove_entry().0, first, second: index });
                }
            }
        }
    }
    Ok(())
}
