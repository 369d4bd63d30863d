//! What the loop watches of the host's network: one socket for each network namespace that a wire is in.

use std::os::fd::AsRawFd;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events};
use net::{News, Watch};

use super::nic_table::Nics;
use super::watch::Retry;

/// The watched namespaces.
#[derive(Default)]
pub(super) struct WireWatches {
    watches: Vec<Watched>,
    retry: Retry,
}

struct Watched {
    namespace: u64,
    watch: Watch,
    token: u32,
}

impl WireWatches {
    /// Has the loop watch the namespaces that `nics` are in now, under tokens from `first` on, and no others. Those that are new: what
    /// happened in them before is not known.
    pub(super) fn set(
        &mut self,
        nics: &mut Nics,
        first: u32,
        ops: &mut EventOps,
    ) -> Result<Vec<u64>, event_manager::Error> {
        let wanted: Vec<_> =
            nics.iter().filter_map(|nic| nic.wire.as_ref()).map(net::Wire::namespace).collect();
        let mut kept = Vec::new();
        for watched in self.watches.drain(..) {
            if wanted.contains(&watched.namespace) {
                kept.push(watched);
            } else {
                ops.remove(events(&watched.watch, watched.token))?;
            }
        }
        self.watches = kept;
        let mut new = Vec::new();
        if !self.retry.is_due() {
            return Ok(new);
        }
        let mut failed = false;
        for wire in nics.iter_mut().filter_map(|nic| nic.wire.as_mut()) {
            let namespace = wire.namespace();
            if self.watches.iter().any(|watched| watched.namespace == namespace) {
                continue;
            }
            let watch = match wire.watch() {
                Ok(watch) => watch,
                Err(error) => {
                    failed = true;
                    if self.retry.failed() {
                        log::warn!("the link does not follow {} yet: {}", wire.link(), error.with_cause());
                    }
                    continue;
                }
            };
            let taken = |token| self.watches.iter().any(|watched| watched.token == token);
            let token = (first..).find(|token| !taken(*token)).unwrap_or(first);
            ops.add(events(&watch, token))?;
            self.watches.push(Watched { namespace, watch, token });
            new.push(namespace);
        }
        if !failed {
            self.retry.done();
        }
        Ok(new)
    }

    /// When [`set`](Self::set) is to be called again although nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry.deadline()
    }

    /// The news that the event of `token` is about, and of which namespace.
    pub(super) fn news(&mut self, token: u32) -> Option<(u64, News)> {
        let watched = self.watches.iter_mut().find(|watched| watched.token == token)?;
        Some((watched.namespace, watched.watch.news()?))
    }
}

fn events(watch: &Watch, token: u32) -> Events {
    Events::with_data_raw(watch.as_raw_fd(), token, EventSet::IN)
}
