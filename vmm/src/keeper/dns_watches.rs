//! What the loop watches of the guest's DNS: the relay of each wire that has one.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use event_manager::{Error, EventOps, EventSet, Events};

use super::nic_table::Nics;
use super::watch::Retry;

/// The watched relays, by the number of the NIC.
#[derive(Default)]
pub(super) struct DnsWatches {
    watched: BTreeMap<usize, Watched>,
    retry: Retry,
}

struct Watched {
    /// Which of the NIC's wires it is of.
    wire: u32,
    /// A duplicate: the loop lets go of it after its wire is gone.
    relay: OwnedFd,
}

impl DnsWatches {
    /// Has the loop watch the relays that `nics` have now, each under its NIC's token from `first` on.
    pub(super) fn set(&mut self, nics: &Nics, first: u32, ops: &mut EventOps) -> Result<(), Error> {
        let relay_of = |nic: usize| Some((nics.get(nic)?.nth(), nics.get(nic)?.wire.as_ref()?.dns()?));
        let is_left = |(nic, watched): (&usize, &Watched)| {
            relay_of(*nic).is_none_or(|(wire, _)| wire != watched.wire).then_some(*nic)
        };
        let left: Vec<_> = self.watched.iter().filter_map(is_left).collect();
        for nic in left {
            if let Some(old) = self.watched.remove(&nic) {
                ops.remove(events(&old.relay, first + nic as u32))?;
            }
        }
        if !self.retry.is_due() {
            return Ok(());
        }
        let mut failed = false;
        for nic in nics.numbers() {
            let Some((wire, relay)) = relay_of(nic).filter(|_| !self.watched.contains_key(&nic)) else {
                continue;
            };
            match relay.try_clone_to_owned() {
                Ok(relay) => {
                    ops.add(events(&relay, first + nic as u32))?;
                    self.watched.insert(nic, Watched { wire, relay });
                }
                Err(error) => {
                    failed = true;
                    if self.retry.failed() {
                        log::warn!("the guest's DNS queries are not handed on yet: {error}");
                    }
                }
            }
        }
        if !failed {
            self.retry.done();
        }
        Ok(())
    }

    /// When [`set`](Self::set) is to be called again although nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry.deadline()
    }
}

fn events(relay: &OwnedFd, token: u32) -> Events {
    Events::with_data_raw(relay.as_raw_fd(), token, EventSet::IN)
}
