//! The answers to those who ask for counters.

use devices::pci::RootComplex;
use serde_json::json;
use vmm::counters::NetCounters;

use super::{Core, Letter};
use crate::keeper::control::{CountersForm, Requests};
use crate::keeper::{counters, metrics};
use crate::protocol::{Counters, DiskCounters, NicCounters};

impl Core {
    /// The machine has counted what went over a NIC.
    pub(super) fn note_counters(&mut self, counted: NicCounters) {
        // Who has taken the machine over may send them without end.
        if self.counted.len() < RootComplex::FUNCTIONS {
            self.counted.push(counted);
        }
    }

    /// The machine has counted its part, the last of which are the exits of each vCPU and the disks.
    pub(super) fn answer_counters(&mut self, exits: Vec<[u64; 3]>, mut disks: Vec<DiskCounters>) {
        disks.truncate(self.config.disks.len());
        let counted = &Counters { nics: std::mem::take(&mut self.counted), exits, disks };
        let waiting = std::mem::take(&mut self.counting);
        if waiting.is_empty() {
            return;
        }
        let at = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let net = counters::of_nics(at, &mut self.nics, counted);
        for (ticket, form) in waiting {
            let answer = match form {
                CountersForm::Metrics => {
                    json!({ "text": metrics::text(&self.info(), &net, counted) })
                }
                CountersForm::Net(None) => json!({ "counters": net }),
                CountersForm::Net(Some(nic)) => {
                    let nics = net.nics.iter().filter(|counted| counted.name == nic).cloned();
                    json!({ "counters": NetCounters { nics: nics.collect(), ..net } })
                }
            };
            self.letters.push(Letter::Answer(ticket, Ok(answer)));
        }
    }
}
