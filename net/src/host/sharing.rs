//! What several wirevm of one network namespace share: made by the first, and undone when the last one leaves, alive or dead.

use super::belongings::Moved;
use super::identity::Kept;
use super::journal::Lock;
use super::{Change, LinkId, Undo, Wiring, clean};
use crate::Error;

impl Wiring {
    /// Takes part in `what`, which several wirevm of this network namespace share: made by `make` where nobody has it, and
    /// undone when the last one leaves, alive or dead. True where it was made now.
    ///
    /// # Errors
    /// Those of `make`, whose changes are then taken back, or of the record.
    pub(crate) fn share(
        &mut self,
        what: &str,
        make: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        if self.join(what)? {
            return Ok(false);
        }
        let lock = self.lock.as_ref().expect("joining has taken the lock");
        let shared = lock.new_shared(self.namespace.id(), what)?;
        let own_record = self.record.replace(shared);
        let own_undo = std::mem::take(&mut self.undo);
        let made = make(self);
        if made.is_err() {
            self.take_back();
        }
        self.undo = own_undo;
        let shared = std::mem::replace(&mut self.record, own_record).expect("put there above");
        match made.and_then(|()| shared.share()) {
            Ok(()) => self.undo.push(Undo::Shared(shared)),
            Err(error) => {
                clean::undo(self.lock.as_ref(), shared);
                return Err(error);
            }
        }
        Ok(true)
    }

    /// Has other wirevm wait that change the host, until the lock is [released](Self::release_lock): what is looked at holds meanwhile.
    ///
    /// # Errors
    /// There is no place for it, or this process was asked to end.
    pub(crate) fn take_lock(&mut self) -> Result<(), Error> {
        if self.lock.is_none() {
            self.lock = Some(Lock::take(&self.host)?);
        }
        Ok(())
    }

    /// Takes part in `what` where somebody has it; true if so.
    ///
    /// # Errors
    /// Those of the record.
    pub(crate) fn join(&mut self, what: &str) -> Result<bool, Error> {
        self.take_lock()?;
        if self.has_shared(what) {
            return Ok(true);
        }
        let lock = self.lock.as_ref().expect("just taken");
        let id = self.namespace.id();
        let joined = lock.join(id, what)?.or_else(|| lock.join_elsewhere(id, what));
        let found = joined.is_some();
        self.undo.extend(joined.map(Undo::Shared));
        Ok(found)
    }

    /// True where we take part in `what`.
    pub(crate) fn has_shared(&self, what: &str) -> bool {
        self.undo.iter().any(|undo| matches!(undo, Undo::Shared(record) if record.is_of(what)))
    }

    /// The names, after `prefix`, of what is shared in this namespace.
    ///
    /// # Errors
    /// The records cannot be listed.
    pub(crate) fn shared(&self, prefix: &str) -> Result<Vec<String>, Error> {
        self.lock.as_ref().map_or(Ok(vec![]), |lock| lock.shared(self.namespace.id(), prefix))
    }

    /// The last move to `link` that is to be taken back by this wiring, or by the last of those who share it.
    pub(crate) fn moved_to(&mut self, link: &LinkId) -> Option<Moved> {
        let moved = |kept: &Kept| match &kept.undo {
            Change::Moved(moved) if moved.to.index == link.index => Some((**moved).clone()),
            _ => None,
        };
        self.undo.iter_mut().rev().find_map(|undo| match undo {
            Undo::Change(kept, _) => moved(kept),
            Undo::Shared(record) => {
                let lines = record.lines().unwrap_or_default();
                lines.iter().rev().find_map(|line| moved(&line.kept()))
            }
        })
    }
}
