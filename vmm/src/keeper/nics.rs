//! NICs: the wires that the machine's configuration asks for, opened on the host.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;

use devices::virtio::net::run_on;
use net::{CableSpec, LinkMode, Mac, NetConfig, RateLimits, VhostMode, Wire};
use vmm::MachineConfig;
use vmm::config::Transport;

use super::control::ControlError;
use super::core::Stage;
use crate::error::{Error, NicError};
use crate::protocol::{self, Channel, FilterAnswer, FilterRequest, FromMachine, MAX_DESCRIPTORS, ToMachine};

/// One NIC, as the keeper knows it.
pub(crate) struct Nic {
    /// Its number: `nic0` is 0.
    pub(crate) number: usize,
    /// As the user wants it.
    pub(crate) spec: NetConfig,
    /// None for a moment, in which it moves to one that cannot be beside the one before.
    pub(crate) wire: Option<Wire>,
    /// What its wire was made of last.
    pub(crate) config: NetConfig,
    /// Which of its wires that is.
    nth: u32,
    /// The one that it moves to.
    pub(super) next: Option<Wire>,
    /// What its link is up by.
    pub(crate) mode: LinkMode,
    /// As its driver was told.
    pub(crate) up: bool,
    /// The MTU that the guest was told, and how many queue pairs its NIC has: they stay.
    pub(crate) mtu: u16,
    pub(crate) pairs: usize,
    pub(crate) mac: Mac,
    /// By which the guest's driver asks for another address or other frames.
    asks: Channel<FilterAnswer, FilterRequest>,
    /// The loop watches that.
    pub(super) watched: bool,
    /// Where it is on its way into the guest and out of it.
    pub(super) stage: Stage,
}

/// What the machine gets of a NIC.
pub(crate) struct Given {
    nic: protocol::Nic,
    cable: Vec<OwnedFd>,
    asks: OwnedFd,
}

/// The wires of `machine`, ready to be opened.
///
/// # Errors
/// Two cannot be together, or one does not go with the machine.
pub(crate) fn resolve(machine: &MachineConfig) -> Result<Vec<NetConfig>, Error> {
    check_distinct(&machine.net.iter().enumerate().collect::<Vec<_>>())?;
    check_cpu_affinity(machine)?;
    machine.net.iter().enumerate().map(|(number, config)| resolve_one(number, config, machine)).collect()
}

/// The wire of one NIC of `machine`, likewise.
///
/// # Errors
/// It does not go with the machine.
pub(crate) fn resolve_one(
    number: usize,
    config: &NetConfig,
    machine: &MachineConfig,
) -> Result<NetConfig, Error> {
    let mut config = config.for_guest(machine.cpus).map_err(|error| nic_error(number, config, error))?;
    config.vhost = carrier(number, config.vhost, machine.transport)?;
    try_cpus(&config.affinity, |cpu, source| Error::Affinity { index: number, cpu, source })?;
    Ok(config)
}

/// The numbers of the guest's own links that are in our network namespace.
pub(super) fn links_here(nics: &[Nic]) -> Vec<u32> {
    let here = std::fs::metadata("/proc/self/ns/net").map(|found| found.ino());
    let own = |nic: &Nic| {
        let wire = nic.wire.as_ref()?;
        let of_nic = |link: &&net::WireLink| link.name == wire.link();
        let link = wire.links().iter().find(of_nic)?.clone();
        link.index.filter(|_| here.as_ref().is_ok_and(|here| *here == link.namespace))
    };
    nics.iter().filter_map(own).collect()
}

impl Nic {
    /// Opens the wire of NIC `number`, which is `spec` in the user's words and `config` as it [was resolved](resolve). What the machine
    /// gets of it comes back, too.
    ///
    /// # Errors
    /// It cannot be opened: what was changed until then is changed back.
    pub(crate) fn open(
        number: usize,
        spec: &NetConfig,
        config: &NetConfig,
        host: &net::Host,
    ) -> Result<(Self, Given), Error> {
        let wire = Wire::open(config, host).map_err(|error| nic_error(number, config, error))?;
        tell(number, &wire);
        let cable = wire.cable().map_err(given)?;
        let (asks, theirs) = Channel::pair().map_err(given)?;
        let nic = described(number, &wire, cable.spec, 0);
        let nic_given = Given { nic, cable: cable.descriptors, asks: theirs.into() };
        let (mtu, pairs, mac) = (wire.mtu(), wire.queues(), wire.mac());
        let (config, mode) = (wire.config().clone(), config.link);
        let nic = Self {
            number,
            spec: spec.clone(),
            wire: Some(wire),
            config,
            nth: 0,
            next: None,
            mode,
            up: true,
            mtu,
            pairs,
            mac,
            asks,
            watched: false,
            stage: Stage::In,
        };
        Ok((nic, nic_given))
    }

    /// What it is called.
    pub(crate) fn name(&self) -> String {
        format!("nic{}", self.number)
    }

    /// Gives the machine the wire that the NIC moves to.
    ///
    /// # Errors
    /// The machine does not listen, or there are no descriptors left; then it does not move.
    pub(super) fn give_next(
        &mut self,
        wire: Wire,
        machine: &Channel<ToMachine, FromMachine>,
    ) -> io::Result<()> {
        tell(self.number, &wire);
        let cable = wire.cable()?;
        let nic = described(self.number, &wire, cable.spec, self.nth + 1);
        let descriptors: Vec<_> = cable.descriptors.iter().map(AsFd::as_fd).collect();
        let order = ToMachine::Swap { nic: self.number, wire: Some(Box::new(nic)) };
        machine.try_send_with(&order, &descriptors)?;
        self.next = Some(wire);
        Ok(())
    }

    /// The machine has it on the next wire: gives the one before back.
    pub(super) fn has_moved(&mut self) -> Option<Wire> {
        let next = self.next.take()?;
        self.nth += 1;
        self.config = next.config().clone();
        self.wire.replace(next)
    }

    /// Who carries its frames, in a word.
    pub(crate) fn carrier(&self) -> &'static str {
        if self.wire.as_ref().is_some_and(Wire::carried) { "vhost-net" } else { "wirevm" }
    }

    /// Holds it to these limits on the host where vhost-net carries its frames, and notes them.
    ///
    /// # Errors
    /// The host refuses.
    pub(super) fn hold_to(&mut self, limits: RateLimits) -> Result<(), net::Error> {
        self.wire.as_mut().map_or(Ok(()), |wire| wire.hold_to(limits))?;
        self.config.rate = limits;
        Ok(())
    }

    /// The socket of what the guest's driver asks.
    pub(crate) fn asks(&self) -> &Channel<FilterAnswer, FilterRequest> {
        &self.asks
    }

    /// Which of its wires it has.
    pub(super) fn nth(&self) -> u32 {
        self.nth
    }

    /// Answers what it asked; false once nobody asks any more.
    pub(crate) fn answer(&mut self) -> bool {
        // One at a time: who has taken the machine over may ask without end.
        let request = match self.asks.try_receive() {
            Ok(Some((request, _))) => request,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Ok(None) | Err(_) => return false,
        };
        let FilterRequest { wire, filter } = request;
        let asked = if wire == self.nth { &mut self.wire } else { &mut self.next };
        // A wire that has gone meanwhile brings nothing.
        let answer = asked.as_mut().map_or(Ok(()), |wire| wire.set_filter(&filter));
        let answer = answer.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        self.asks.try_send(&FilterAnswer(answer)).is_ok()
    }
}

/// What a client hears of a wire that cannot be.
pub(super) fn refused(error: &net::Error) -> ControlError {
    ControlError::Refused { reason: error.with_cause(), remedy: error.remedy() }
}

/// Says what there is to say of a wire that was just made.
fn tell(index: usize, wire: &Wire) {
    log::info!(
        "NIC {index} ({}): {}, MAC {}, MTU {}, queues {}{}",
        wire.config().wire.kind(),
        wire.link(),
        wire.mac(),
        wire.mtu(),
        wire.queues(),
        if wire.carried() { ", carried by vhost-net" } else { "" }
    );
    for notice in wire.notices() {
        log::warn!("NIC {index}: {notice}");
    }
}

/// What the machine hears of a wire.
fn described(number: usize, wire: &Wire, cable: CableSpec, nth: u32) -> protocol::Nic {
    let config = wire.config();
    protocol::Nic {
        number,
        cable,
        affinity: config.affinity.clone(),
        poll: config.poll.map(|poll| poll.as_micros().try_into().unwrap_or(u64::MAX)),
        carried: wire.carried(),
        // What the kernel carries, the host's link holds to it.
        rate: if wire.carried() { RateLimits::default() } else { config.rate },
        wire: nth,
    }
}

impl Given {
    /// Gives it to the machine before that runs, and waits while it has too much to read.
    ///
    /// # Errors
    /// The machine is gone.
    pub(super) fn send(self, machine: &Channel<ToMachine, FromMachine>) -> Result<(), Error> {
        let descriptors = descriptors(&self.cable, &self.asks);
        machine.send_with(&ToMachine::Nic(Box::new(self.nic)), &descriptors).map_err(given)
    }

    /// Gives it to the machine while that runs, for its guest, and does not wait.
    ///
    /// # Errors
    /// The machine is gone, or has too much to read.
    pub(super) fn plug(self, machine: &Channel<ToMachine, FromMachine>) -> Result<(), Error> {
        let descriptors = descriptors(&self.cable, &self.asks);
        machine.try_send_with(&ToMachine::Plug(Box::new(self.nic)), &descriptors).map_err(given)
    }
}

/// As the machine takes them.
fn descriptors<'a>(cable: &'a [OwnedFd], asks: &'a OwnedFd) -> Vec<BorrowedFd<'a>> {
    let descriptors: Vec<_> = cable.iter().chain([asks]).map(AsFd::as_fd).collect();
    debug_assert!(descriptors.len() <= MAX_DESCRIPTORS);
    descriptors
}

fn given(source: io::Error) -> Error {
    Error::Host { what: "give a NIC to the process that runs the guest", source }
}

/// Who carries the frames of a NIC on this transport: by MMIO each interrupt has a reason that only we can write.
pub(super) fn carrier(index: usize, vhost: VhostMode, transport: Transport) -> Result<VhostMode, Error> {
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
fn try_cpus(cpus: &[u16], error: impl Fn(u16, io::Error) -> Error) -> Result<(), Error> {
    for &cpu in cpus {
        let tried = thread::scope(|scope| scope.spawn(|| run_on(cpu)).join());
        tried
            .map_err(|_| Error::Bug("the trial of a CPU".to_owned()))?
            .map_err(|source| error(cpu, source))?;
    }
    Ok(())
}

/// Refuses two NICs with one MAC or one end on the host, which would otherwise fail later and in stranger words. Each comes with its
/// number.
///
/// # Errors
/// There are such two.
pub(super) fn check_distinct(configs: &[(usize, &NetConfig)]) -> Result<(), Error> {
    let mut macs = HashMap::new();
    for (index, &(second, config)) in configs.iter().enumerate() {
        if let Some(mac) = config.mac
            && let Some(first) = macs.insert(mac, second)
        {
            return Err(Error::SameTwice { what: format!("the MAC {mac}"), first, second });
        }
        let mut before = configs[..index].iter();
        if let Some((first, what)) = before.find_map(|(first, other)| Some((*first, other.conflict(config)?)))
        {
            return Err(Error::SameTwice { what, first, second });
        }
    }
    Ok(())
}
