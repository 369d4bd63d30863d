//! What the loop watches of the guest's DNS: the relay of each wire that has one.

use std::os::fd::{AsRawFd, OwnedFd};

use event_manager::{Error, EventOps, EventSet, Events};

use super::nics::Nic;

/// The watched relays, of each NIC.
#[derive(Default)]
pub(super) struct DnsWatches {
    watched: Vec<Option<Watched>>,
}

struct Watched {
    /// Which of the NIC's wires it is of.
    number: u32,
    /// A duplicate: the loop lets go of it after its wire is gone.
    relay: OwnedFd,
}

impl DnsWatches {
    /// Has the loop watch the relays that `nics` have now, each under its NIC's token from `first` on.
    pub(super) fn set(&mut self, nics: &[Nic], first: u32, ops: &mut EventOps) -> Result<(), Error> {
        self.watched.resize_with(nics.len(), || None);
        for ((nic, watched), token) in nics.iter().zip(&mut self.watched).zip(first..) {
            let relay = nic.wire.as_ref().and_then(net::Wire::dns);
            let is_that = |watched: &Watched| relay.is_some() && watched.number == nic.number();
            if watched.as_ref().is_some_and(is_that) {
                continue;
            }
            if let Some(old) = watched.take() {
                ops.remove(events(&old.relay, token))?;
            }
            let Some(relay) = relay else { continue };
            match relay.try_clone_to_owned() {
                Ok(relay) => {
                    ops.add(events(&relay, token))?;
                    *watched = Some(Watched { number: nic.number(), relay });
                }
                Err(error) => log::warn!("the guest's DNS queries are not handed on: {error}"),
            }
        }
        Ok(())
    }
}

fn events(relay: &OwnedFd, token: u32) -> Events {
    Events::with_data_raw(relay.as_raw_fd(), token, EventSet::IN)
}
