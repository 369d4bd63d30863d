//! Bridges that wirevm made and others use: they stay, with all that they took over from their uplinks, for as long as a port of
//! somebody else's is on them.

use std::thread;
use std::time::{Duration, Instant};

use super::clean::Places;
use super::journal::{Line, Record};
use super::{LinkId, Netlink, Refusal, Undo, Wiring};

/// How long a port may be about to go: the tap of a process that has just been killed.
const GOING: Duration = Duration::from_millis(200);

/// The number of each bridge whose record is to be undone and which somebody else uses.
#[derive(Debug, Default)]
pub(super) struct InUse(Vec<u32>);

impl InUse {
    /// True where the record is that of such a bridge, or of its uplink: it stays.
    pub(super) fn has(&self, record: &Record) -> bool {
        record.bridge().is_some_and(|(bridge, _)| self.0.contains(&bridge))
    }

    /// Of records that we hold alone, with their lines.
    pub(super) fn of(records: &[(Record, Vec<Line>)], places: &mut Places) -> Self {
        let mut found = Self::default();
        for (record, lines) in records {
            let (Some((bridge, None)), Some(line)) = (record.bridge(), lines.first()) else { continue };
            let uplinks = record.uplinks();
            if let Ok(Some(Ok(others))) = places.try_in(line, |netlink, _| others(netlink, bridge, &uplinks))
            {
                found.add(bridge, others);
            }
        }
        found
    }

    fn add(&mut self, bridge: u32, others: Option<(LinkId, Vec<LinkId>)>) {
        if let Some((link, ports)) = others {
            let ports: Vec<_> = ports.iter().map(LinkId::to_string).collect();
            let (ports, is) = (ports.join(", "), if ports.len() > 1 { "are ports" } else { "is a port" });
            log::warn!(
                "{link} stays, with what it has from its uplink: {ports} {is} of it and not of this wirevm; once it has no such: \
                 wirevm doctor --clean"
            );
            self.0.push(bridge);
        }
    }
}

/// The bridge of that number and its ports, where it has others than these.
fn others(
    netlink: &mut Netlink,
    bridge: u32,
    ours: &[u32],
) -> Result<Option<(LinkId, Vec<LinkId>)>, Refusal> {
    let end = Instant::now() + GOING;
    loop {
        let links = netlink.links()?;
        let is_other = |link: &&super::Link| link.master == Some(bridge) && !ours.contains(&link.id.index);
        let ports: Vec<_> = links.iter().filter(is_other).map(|link| link.id.clone()).collect();
        let own = links.iter().find(|link| link.id.index == bridge);
        match own {
            Some(_) if !ports.is_empty() && Instant::now() < end => thread::sleep(Duration::from_millis(5)),
            Some(own) if !ports.is_empty() => return Ok(Some((own.id.clone(), ports))),
            _ => return Ok(None),
        }
    }
}

impl Wiring {
    /// The bridges that nobody of us needs any more but somebody else does. The thread is in the wiring's namespace.
    pub(super) fn bridges_in_use(&mut self) -> InUse {
        let mut found = InUse::default();
        for undo in &self.undo {
            let Undo::Shared(record) = undo else { continue };
            let Some((bridge, None)) = record.bridge() else { continue };
            if !record.take_over() {
                // Another one of us is on it: its uplinks may be ours alone all the same.
                let _ = record.share();
                continue;
            }
            let ours = [record.uplinks(), self.own_ports.clone()].concat();
            match others(&mut self.netlink, bridge, &ours) {
                Ok(others) => found.add(bridge, others),
                Err(refusal) => log::debug!("cannot ask for the ports of a bridge: {refusal}"),
            }
        }
        found
    }
}
