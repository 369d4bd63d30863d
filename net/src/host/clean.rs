//! Taking back what the dead have left.

use std::collections::HashMap;
use std::io;

use super::runtime::{Line, Lock, Record, boot};
use super::{Namespace, NamespaceId, Netlink, Step};
use crate::Error;

/// The reason that each step of [`clean`] is told with.
const WHY: &str = "left by a wirevm that is gone";

/// Takes back what wirevm processes have left that ended without doing it themselves, the last change first, and tells each
/// step. [`open`](crate::open) begins with it.
///
/// What they made is known by their records, and each link by its number and name and namespace: what anybody else made
/// since is not touched. A change that cannot be taken back is logged and stays recorded, for the next time.
///
/// # Errors
/// There is no place for records.
pub fn clean(tell: &mut dyn FnMut(&Step)) -> Result<(), Error> {
    clean_under(&Lock::take()?, tell);
    Ok(())
}

/// What [`clean`] would do.
///
/// # Errors
/// There is no place for records.
pub fn left_over() -> Result<Vec<Step>, Error> {
    let lock = Lock::take()?;
    let mut lines: Vec<Line> = lock.left().iter_mut().flat_map(Record::lines).collect();
    order(&mut lines);
    let mut places = Places::default();
    lines.retain(|line| !matches!(places.try_in(line, |_| ()), Ok(None)));
    Ok(lines.iter().map(|line| Step { command: line.undo.command(), why: WHY }).collect())
}

pub(super) fn clean_under(lock: &Lock, tell: &mut dyn FnMut(&Step)) {
    let mut records = lock.left();
    let mut lines: Vec<(usize, Line)> = Vec::new();
    for (index, record) in records.iter_mut().enumerate() {
        lines.extend(record.lines().into_iter().map(|line| (index, line)));
    }
    lines.sort_by_key(|(_, line)| std::cmp::Reverse(line.at));
    let mut places = Places::default();
    let mut failed: Vec<Vec<Line>> = records.iter().map(|_| Vec::new()).collect();
    for (record, line) in lines {
        match replay(&mut places, &line) {
            Replayed::Made => tell(&Step { command: line.undo.command(), why: WHY }),
            Replayed::Nothing => {}
            Replayed::Refused => failed[record].insert(0, line),
        }
    }
    for (record, failed) in records.into_iter().zip(failed) {
        // In a journal, for the name of what is shared is wanted by the next who makes it.
        match keep(lock, &failed) {
            Ok(()) => record.remove(),
            Err(error) => log::warn!("{error}"),
        }
    }
}

/// Records the lines for the next time.
fn keep(lock: &Lock, lines: &[Line]) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut journal = lock.new_journal()?;
    lines.iter().try_for_each(|line| journal.write(line))
}

/// Undoes the lines of a record that is ours alone, and deletes it.
pub(super) fn undo(lock: Option<&Lock>, mut record: Record) {
    let mut lines = record.lines();
    order(&mut lines);
    let mut places = Places::default();
    lines.retain(|line| matches!(replay(&mut places, line), Replayed::Refused));
    lines.reverse();
    match lock.map_or(Ok(()), |lock| keep(lock, &lines)) {
        Ok(()) => record.remove(),
        Err(error) => log::warn!("{error}"),
    }
}

/// The order to undo in: the last change first.
fn order(lines: &mut [Line]) {
    lines.sort_by_key(|line| std::cmp::Reverse(line.at));
}

enum Replayed {
    Made,
    /// It was not there any more.
    Nothing,
    Refused,
}

fn replay(places: &mut Places, line: &Line) -> Replayed {
    let command = line.undo.command();
    match places.try_in(line, |netlink| line.undo.make_as_undo(netlink)) {
        Ok(Some(Ok(()))) => {
            log::debug!("undone: {command}");
            Replayed::Made
        }
        Ok(None) => Replayed::Nothing,
        Ok(Some(Err(refusal))) if line.undo.is_done(&refusal) => Replayed::Nothing,
        Ok(Some(Err(refusal))) => {
            log::warn!("cannot undo a change of the host ({command}): {refusal}");
            Replayed::Refused
        }
        Err(error) => {
            log::warn!("cannot enter the network namespace to undo a change ({command}): {error}");
            Replayed::Refused
        }
    }
}

/// The namespaces of the lines, each with a socket; none where it is gone.
#[derive(Default)]
struct Places(HashMap<NamespaceId, Option<(Namespace, Netlink)>>);

impl Places {
    /// Runs `call` where the line says; none where nothing of it is left.
    ///
    /// # Errors
    /// Those of setns(2).
    fn try_in<T: Send>(
        &mut self,
        line: &Line,
        call: impl FnOnce(&mut Netlink) -> T + Send,
    ) -> io::Result<Option<T>> {
        if line.boot != boot() {
            return Ok(None);
        }
        let find = || Namespace::find(line.namespace).map(|found| (found, Netlink::new()));
        let Some((namespace, netlink)) = self.0.entry(line.namespace).or_insert_with(find).as_mut() else {
            return Ok(None);
        };
        namespace.run(|| match line.undo.is_of_the_same_links(netlink) {
            Ok(false) => None,
            // Where the kernel does not say, the change itself fails, and says why.
            Ok(true) | Err(_) => Some(call(netlink)),
        })
    }
}
