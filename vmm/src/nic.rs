//! NICs: the wires that the command line asks for, joined to the devices that the guest sees.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use devices::virtio::net::{Counters, NetDeviceConfig, VirtioNet, run_on};
use net::{NetConfig, VhostMode, Wiring};

use crate::cli::{Run, Transport};
use crate::error::{Error, NicError};
use crate::report;

/// One NIC, and what was changed on the host for it.
pub(crate) struct Nic {
    /// The link on the host.
    link: String,
    /// Until the machine takes it.
    device: Option<VirtioNet>,
    counters: Vec<Arc<Counters>>,
    /// Frames of the guest for which the wire has no way.
    ignored: Arc<AtomicU64>,
    /// Dropped, it changes the host back.
    _wiring: Wiring,
}

impl Nic {
    /// Opens the wire of each NIC in order, for the guest of `args`. With `--explain`, each change of the host is printed as it
    /// is made.
    ///
    /// # Errors
    /// The first that cannot be opened, or two that cannot be together; what was changed until then is changed back.
    pub(crate) fn open_all(args: &Run) -> Result<Vec<Self>, Error> {
        check_distinct(&args.net)?;
        let mut resolved = Vec::new();
        for (index, config) in args.net.iter().enumerate() {
            let mut config = config.for_guest(args.cpus).map_err(|error| nic_error(index, config, error))?;
            config.vhost = carrier(index, config.vhost, args.transport)?;
            check_affinity(index, &config.affinity)?;
            resolved.push(config);
        }
        resolved.iter().enumerate().map(|(index, config)| Self::open(index, config, args.explain)).collect()
    }

    fn open(index: usize, config: &NetConfig, explain: bool) -> Result<Self, Error> {
        let mut tell = |step: &net::Step| {
            if explain {
                report::print(&format!("{step}\n"));
            }
        };
        let opened = net::open(config, &mut tell).map_err(|error| nic_error(index, config, error))?;
        let carried = !opened.vhosts.is_empty();
        log::info!(
            "NIC {index} ({}): {}, MAC {}, MTU {}, queues {}{}",
            config.wire.kind(),
            opened.link,
            opened.mac,
            opened.mtu,
            opened.backends.len(),
            if carried { ", carried by vhost-net" } else { "" }
        );
        for notice in &opened.notices {
            log::warn!("NIC {index}: {notice}");
        }
        let device = NetDeviceConfig {
            name: format!("net{index}"),
            mac: opened.mac,
            mtu: Some(opened.mtu),
            affinity: config.affinity.clone(),
        };
        let device = VirtioNet::new(device, opened.backends, opened.vhosts)
            .map_err(|source| Error::Host { what: "spawn the threads of a NIC", source })?
            .with_poll(config.poll);
        Ok(Self {
            link: opened.link,
            // The kernel counts on the link alone.
            counters: if carried { Vec::new() } else { device.counters() },
            device: Some(device),
            ignored: opened.ignored,
            _wiring: opened.wiring,
        })
    }

    /// The device that the guest sees.
    ///
    /// # Panics
    /// The second time.
    pub(crate) fn take_device(&mut self) -> VirtioNet {
        self.device.take().expect("a NIC goes into one machine")
    }

    /// Logs what went over the wire.
    pub(crate) fn log_counters(&self) {
        for counters in &self.counters {
            let [sent, sent_bytes, lost, received, received_bytes, received_lost, interrupts, calls] = [
                &counters.tx_frames,
                &counters.tx_bytes,
                &counters.tx_dropped,
                &counters.rx_frames,
                &counters.rx_bytes,
                &counters.rx_dropped,
                &counters.interrupts,
                &counters.calls,
            ]
            .map(|counter| counter.load(Ordering::Relaxed));
            log::info!(
                "{}: sent {sent} frames ({sent_bytes} bytes, {lost} lost), received {received} ({received_bytes} bytes, \
                 {received_lost} lost), {interrupts} interrupts, {calls} system calls",
                self.link
            );
        }
        let ignored = self.ignored.load(Ordering::Relaxed);
        if ignored > 0 {
            log::info!(
                "{}: {ignored} of the frames sent were neither IP nor about neighbours, and went nowhere",
                self.link
            );
        }
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
    Error::Nic(NicError { index, kind: config.wire.kind(), error })
}

/// Tries each CPU, on a thread of its own: a queue pair's thread only warns of one that it cannot have.
fn check_affinity(index: usize, cpus: &[u16]) -> Result<(), Error> {
    for &cpu in cpus {
        let tried = thread::scope(|scope| scope.spawn(|| run_on(cpu)).join());
        tried
            .map_err(|_| Error::Bug("the trial of a CPU".to_owned()))?
            .map_err(|source| Error::Affinity { index, cpu, source })?;
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
