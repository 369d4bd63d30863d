//! Taking back what the dead have left.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::PathBuf;

use super::journal::{Line, Lock, Record, boot, warn};
use super::wait::Patience;
use super::{Change, Host, Namespace, NamespaceId, Netlink, Step, line_at};
use crate::Error;

/// The reason that each step of [`clean`] is told with.
const WHY: &str = "left by a wirevm that is gone";

/// Takes back what wirevm processes have left that ended without doing it themselves, the last change first, and tells `host` each
/// step. [`Wire::open`](crate::Wire::open) begins with it.
///
/// What they made is known by their records, and each link by its number and name and namespace: what anybody else made
/// since is not touched. A change that cannot be taken back is logged and stays recorded, for the next time, and so is one of
/// which nobody here can tell whether it is there still.
///
/// Returns the steps.
///
/// # Errors
/// There is no place for records.
pub fn clean(host: &Host) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    clean_under(&Lock::take(host)?, &mut |step| {
        host.tell(&step);
        steps.push(step);
    });
    Ok(steps)
}

/// What [`clean`] would do.
///
/// # Errors
/// There is no place for records, or one cannot be read: nobody knows what it would undo.
pub fn left_over(host: &Host) -> Result<Vec<Step>, Error> {
    let lock = Lock::take(host)?;
    let mut lines = Vec::new();
    let (records, unreadable) = lock.left()?;
    if let Some(error) = unreadable.into_iter().next() {
        return Err(error);
    }
    for mut record in records {
        lines.extend(record.lines()?);
    }
    order(&mut lines);
    let mut places = Places::default();
    lines.retain(|line| !matches!(places.try_in(line, |_| ()), Ok(None)));
    Ok(lines.iter().map(|line| Step { command: places.command(line), why: WHY }).collect())
}

pub(super) fn clean_under(lock: &Lock, made: &mut dyn FnMut(Step)) {
    let (records, unreadable) = lock.left().unwrap_or_else(|error| (Vec::new(), vec![error]));
    unreadable.iter().for_each(warn);
    let mut lines: Vec<(usize, Line)> = Vec::new();
    let mut read = Vec::new();
    for mut record in records {
        match record.lines() {
            Ok(found) => {
                let all = found.len();
                lines.extend(found.into_iter().map(|line| (read.len(), line)));
                read.push((record, Vec::new(), all));
            }
            Err(error) => warn(&error),
        }
    }
    lines.sort_by_key(|(_, line)| std::cmp::Reverse(line.at));
    let (mut places, mut patience) = (Places::default(), Patience::default());
    for (record, line) in lines {
        match replay(&mut places, &mut patience, &line) {
            Replayed::Made => {
                made(Step { command: places.command(&line), why: WHY });
                if !read[record].1.is_empty() && line.undo.is_to_be_repeated() {
                    read[record].1.insert(0, line);
                }
            }
            Replayed::Nothing => {}
            Replayed::Refused => read[record].1.insert(0, line),
        }
    }
    for (record, failed, all) in read {
        replace(lock, record, &failed, all);
    }
}

/// Has the lines, what is left of the `all` of `record`, in a journal for the next time: the name of what is shared is wanted by
/// the next who makes it.
fn replace(lock: &Lock, record: Record, lines: &[Line], all: usize) {
    if lines.len() == all && all > 0 && record.is_journal() {
        return;
    }
    match keep(lock, lines) {
        Ok(()) => record.remove(),
        Err(error) => warn(&error),
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

/// Undoes the lines of a record that is ours alone, and deletes it. Without the lock nothing can be kept of it but all.
pub(super) fn undo(lock: Option<&Lock>, mut record: Record) {
    let mut lines = match record.lines() {
        Ok(lines) => lines,
        Err(error) => return warn(&error),
    };
    let all = lines.len();
    order(&mut lines);
    let (mut places, mut patience) = (Places::default(), Patience::default());
    let mut one_failed = false;
    lines.retain(|line| {
        let replayed = replay(&mut places, &mut patience, line);
        one_failed |= matches!(replayed, Replayed::Refused);
        let again = one_failed && line.undo.is_to_be_repeated();
        matches!(replayed, Replayed::Refused) || again && matches!(replayed, Replayed::Made)
    });
    lines.reverse();
    match lock {
        Some(lock) => replace(lock, record, &lines, all),
        None if lines.is_empty() => record.remove(),
        None => {}
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

fn replay(places: &mut Places, patience: &mut Patience, line: &Line) -> Replayed {
    let tried = places.try_in(line, |netlink| patience.once_free(|| line.undo.make_as_undo(netlink)));
    let command = places.command(line);
    match tried {
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
            log::warn!("cannot tell whether a change is there still, to undo it ({command}): {error}");
            Replayed::Refused
        }
    }
}

/// The namespaces of the lines; none where it is gone.
#[derive(Default)]
struct Places(HashMap<NamespaceId, Option<Place>>);

struct Place {
    namespace: Namespace,
    /// Where it was found.
    path: PathBuf,
    netlink: Netlink,
}

impl Places {
    /// Runs `call` where the line says; none where it is sure that nothing of it is left.
    ///
    /// # Errors
    /// It cannot be told, or the namespace cannot be entered.
    fn try_in<T: Send>(
        &mut self,
        line: &Line,
        call: impl FnOnce(&mut Netlink) -> T + Send,
    ) -> io::Result<Option<T>> {
        if line.boot != boot()? {
            return Ok(None);
        }
        let place = match self.0.entry(line.namespace) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let found = Namespace::find(line.namespace)?;
                let place = |(namespace, path)| Place { namespace, path, netlink: Netlink::new() };
                unknown.insert(found.map(place))
            }
        };
        let Some(Place { namespace, netlink, .. }) = place else { return Ok(None) };
        let tried = namespace.run(|| match line.undo.is_of_the_same_links(netlink) {
            Ok(true) => Ok(Some(call(netlink))),
            Ok(false) => Ok(None),
            Err(refusal) => Err(io::Error::other(refusal)),
        });
        tried?
    }

    /// The command of the line for where it is to be run.
    fn command(&self, line: &Line) -> String {
        let command = line.undo.command();
        match self.0.get(&line.namespace) {
            // The names of namespaces are the same in each of them.
            _ if matches!(line.undo, Change::DeleteNamespace { .. }) => command,
            Some(Some(place)) => line_at(&place.path, &command),
            _ => format!("# in a network namespace that is out of sight: {command}"),
        }
    }
}
