//! What is taken back later than all else, or earlier: after the last descriptor of a link is closed, which may be before or after the
//! wiring goes.

use super::identity::{Found, Kept, Marker};
use super::journal::{Line, Record};
use super::take_back::{find, is_undone};
use super::wait::Patience;
use super::{Change, Host, Namespace, Netlink, Wiring};
use crate::Error;
use crate::error::HostError;

/// Undos with a record of their own, where there is a place for records. Dropped, in any network namespace, it is all taken back.
#[derive(Debug)]
pub(crate) struct DeferredUndo {
    namespace: Namespace,
    record: Option<Record>,
    host: Host,
    undo: Vec<Kept>,
}

impl Wiring {
    /// Begins such, in the wiring's network namespace.
    ///
    /// # Errors
    /// Its record cannot be made.
    pub(crate) fn deferred_undo(&self) -> Result<DeferredUndo, Error> {
        let namespace =
            self.namespace.again().map_err(|source| HostError::Namespace { name: None, source })?;
        let record = self.lock.as_ref().map(|lock| lock.new_journal()).transpose()?;
        Ok(DeferredUndo { namespace, record, host: self.host.clone(), undo: Vec::new() })
    }
}

impl DeferredUndo {
    /// Keeps the undo of a change that is about to be made.
    ///
    /// # Errors
    /// It cannot be recorded; then the change is not to be made.
    pub(crate) fn keep(&mut self, undo: Change) -> Result<(), Error> {
        let asked = |refusal| HostError::Ask { what: "the link that is to be changed".to_owned(), refusal };
        let kept = Marker::default().mark(&mut Netlink::new(), undo).map_err(asked)?;
        if let Some(record) = &mut self.record {
            record.write(&Line::new(self.namespace.id(), kept.clone())?)?;
        }
        self.undo.push(kept);
        Ok(())
    }

    /// Forgets it all: nothing was changed.
    pub(crate) fn discard(mut self) {
        self.undo.clear();
    }
}

impl Drop for DeferredUndo {
    /// Without the lock, which whoever opens the link has while that fails: nobody else reads a record that is held.
    fn drop(&mut self) {
        self.host.reserve().release();
        let undone = self.namespace.run(|| {
            let (mut netlink, mut marker) = (Netlink::new(), Marker::default());
            let mut patience = Patience::default();
            self.undo.iter().rev().all(|kept| match find(&mut marker, &mut netlink, kept) {
                Some(Found::Same(now)) => {
                    is_undone(&now, patience.once_free(|| now.make_as_undo(&mut netlink)))
                }
                Some(Found::Gone) => true,
                Some(Found::Unsure(_)) | None => false,
            })
        });
        match (undone, self.record.take()) {
            (Ok(true), Some(record)) => record.remove(),
            // For `clean` by somebody who can.
            (Ok(_), _) => {}
            (Err(error), _) => {
                log::warn!("cannot enter the network namespace to take back what was changed there: {error}");
            }
        }
    }
}
