//! The end of a wiring: what was changed is changed back, and what cannot be is kept on record.

use super::identity::Found;
use super::*;

impl Wiring {
    /// Makes the undos of each move that is ours alone anew of what is on the links now.
    fn renew(&mut self) {
        let marks = self.undo.iter().filter_map(|undo| match undo {
            Undo::Change(kept, start) if matches!(kept.undo, Change::Moved(_)) => {
                Some((kept.clone(), *start))
            }
            _ => None,
        });
        for (kept, start) in marks.collect::<Vec<_>>() {
            let found = self.marker.find(&mut self.netlink, &kept);
            let Ok(Found::Same(Change::Moved(moved))) = found else { continue };
            let Ok(Some(undos)) = moved.undos(&mut self.netlink) else { continue };
            let is_part = |undo: &Undo| matches!(undo, Undo::Change(kept, _) if moved.has(&kept.undo));
            let at = self.undo.iter().position(is_part).unwrap_or_default();
            self.undo.retain(|undo| !is_part(undo));
            let marks = kept.marks;
            let undos =
                undos.into_iter().map(|undo| Undo::Change(Kept { undo, marks: marks.clone() }, start));
            drop(self.undo.splice(at..at, undos));
        }
    }

    /// Undoes what is left to undo, and returns what cannot be undone, in the order of the changes.
    pub(super) fn take_back(&mut self) -> Vec<Kept> {
        self.renew();
        let mut failed = Vec::new();
        let in_use = self.bridges_in_use();
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Change(kept, start) => {
                    let taken_back = match find(&mut self.marker, &mut self.netlink, &kept) {
                        Some(Found::Same(now)) => is_undone(&now, now.make_as_undo(&mut self.netlink)),
                        // Somebody deleted the link: what we wanted to take back is gone.
                        Some(Found::Gone) => true,
                        Some(Found::Unsure(_)) | None => false,
                    };
                    if !taken_back || !failed.is_empty() && kept.undo.is_to_be_repeated() {
                        failed.insert(0, kept);
                    } else if let Some(record) = &mut self.record
                        && failed.is_empty()
                    {
                        record.cut(start);
                    }
                }
                // On record, for whoever comes when they are free.
                Undo::Shared(record) if in_use.has(&record) => {}
                Undo::Shared(record) if record.take_over() => clean::undo(self.lock.as_ref(), record),
                Undo::Shared(_) => {}
            }
        }
        failed
    }
}

/// Looks for the links of an undo, and says where it cannot be told which they are.
pub(super) fn find(marker: &mut Marker, netlink: &mut Netlink, kept: &Kept) -> Option<Found> {
    let found = marker.find(netlink, kept);
    let told = match &found {
        Ok(Found::Unsure(why)) => why.clone(),
        Err(refusal) => refusal.to_string(),
        Ok(_) => return found.ok(),
    };
    log::warn!("cannot tell whether a change is there still, to undo it ({}): {told}", kept.undo.command());
    found.ok()
}

/// Says what became of an undo; false where it is refused.
pub(super) fn is_undone(change: &Change, made: Result<(), Refusal>) -> bool {
    let command = change.command();
    match made {
        Ok(()) => log::debug!("undone: {command}"),
        // Somebody deleted the link or the address: what we wanted to take back is gone.
        Err(refusal) if change.is_done(&refusal) => {}
        Err(refusal) => {
            log::warn!("cannot undo a change of the host ({command}): {refusal}");
            return false;
        }
    }
    true
}

impl Drop for Wiring {
    fn drop(&mut self) {
        if self.undo.is_empty() && self.record.is_none() {
            return;
        }
        self.host.reserve().release();
        if self.lock.is_none() {
            match Lock::take_to_undo(&self.host) {
                Ok(lock) => self.lock = Some(lock),
                Err(error) if error.is_ended() || error.is_busy() => {
                    log::warn!(
                        "what was changed on the host is left for the next wirevm, or for wirevm doctor --clean"
                    );
                    return;
                }
                Err(error) => log::debug!("undone without the lock: {error}"),
            }
        }
        // What the dead had on what they shared with us goes before it: a NIC that is set down under a macvtap stays promiscuous.
        let shares = self.undo.iter().any(|undo| matches!(undo, Undo::Shared(_)));
        if let Some(lock) = self.lock.as_ref().filter(|_| shares) {
            clean::clean_under(lock, &mut |step| log::info!("{step}"));
        }
        // A second handle, for the first is in what the call takes.
        let failed = self.namespace.again().and_then(|namespace| namespace.run(|| self.take_back()));
        let Some(mut record) = self.record.take() else { return };
        match failed {
            Ok(failed) if failed.is_empty() => record.remove(),
            // For `clean` by somebody who can.
            Ok(failed) => {
                record.cut(0);
                let mut lines = failed.into_iter().map(|kept| Line::new(self.namespace.id(), kept));
                if let Err(error) = lines.try_for_each(|line| record.write(&line?)) {
                    log::warn!("{error}");
                }
            }
            Err(error) => {
                log::warn!("cannot enter the network namespace to take back what was changed there: {error}");
            }
        }
    }
}
