//! Taking back what the dead have left.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::PathBuf;

use super::identity::{Found, Marker};
use super::in_use::InUse;
use super::journal::{Line, Lock, Record, boot, warn};
use super::wait::Patience;
use super::{Change, Host, Namespace, NamespaceId, Netlink, Step, line_at};
use crate::Error;

/// The reason that each step of [`clean`] is told with.
const WHY: &str = "left by a wirevm that is gone";

/// Takes back what wirevm processes have left that ended without doing it themselves, the last change first, and tells `host` each
/// step. [`Wire::open`](crate::Wire::open) begins with it.
///
/// What they made is known by their records, and each link by its namespace, its number, and what else tells it from others (see
/// `identity.rs`), whatever name it has by now: what anybody else made since is not touched. A change that cannot be taken back is
/// logged and stays recorded, for the next time, and so is one of
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

/// What wirevm processes have left that ended without taking it back themselves.
#[derive(Debug)]
pub struct LeftOver {
    /// What [`clean`] would do.
    pub steps: Vec<Step>,
    /// Records that cannot be read: nobody knows what they would undo.
    pub unreadable: Vec<Error>,
}

impl LeftOver {
    /// True where there is nothing.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.unreadable.is_empty()
    }
}

/// What is left over.
///
/// # Errors
/// There is no place for records.
pub fn left_over(host: &Host) -> Result<LeftOver, Error> {
    let lock = Lock::take(host)?;
    let (mut lines, mut places) = (Vec::new(), Places::default());
    let (records, mut unreadable) = lock.left()?;
    for mut record in records {
        match record.lines() {
            Ok(found) => lines.extend(renewed(&mut places, &found).unwrap_or(found)),
            Err(error) => unreadable.push(error),
        }
    }
    order(&mut lines);
    let steps = lines.iter().filter_map(|line| {
        let now = match places.try_in(line, |_, now| now.clone()) {
            Ok(None) => return None,
            Ok(Some(now)) => now,
            Err(_) => line.undo.clone(),
        };
        Some(Step { command: places.command(line, &now), why: WHY })
    });
    Ok(LeftOver { steps: steps.collect(), unreadable })
}

pub(super) fn clean_under(lock: &Lock, made: &mut dyn FnMut(Step)) {
    let (records, unreadable) = lock.left().unwrap_or_else(|error| (Vec::new(), vec![error]));
    unreadable.iter().for_each(warn);
    let mut readable = Vec::new();
    for mut record in records {
        match record.lines() {
            Ok(found) => readable.push((record, found)),
            Err(error) => warn(&error),
        }
    }
    let (mut places, mut patience) = (Places::default(), Patience::default());
    let in_use = InUse::of(&readable, &mut places);
    let mut lines: Vec<(usize, Line)> = Vec::new();
    let mut read = Vec::new();
    for (record, found) in readable.into_iter().filter(|(record, _)| !in_use.has(record)) {
        let found = renewed(&mut places, &found).unwrap_or(found);
        let all = found.len();
        lines.extend(found.into_iter().map(|line| (read.len(), line)));
        read.push((record, Vec::new(), all));
    }
    lines.sort_by_key(|(_, line)| std::cmp::Reverse(line.at));
    for (record, line) in lines {
        match replay(&mut places, &mut patience, &line) {
            Replayed::Made(now) => {
                made(Step { command: places.command(&line, &now), why: WHY });
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

/// The lines without a move whose bridge is gone, if its NIC is a port of somebody else's bridge now: what the host had on the NIC is
/// that one's affair, and the NIC stays where it is.
fn elsewhere(places: &mut Places, lines: &[Line], mark: &Line) -> Option<Vec<Line>> {
    let Change::Moved(moved) = &mark.undo else { return None };
    let leave = lines.iter().find(|line| matches!(&line.undo, Change::Leave(..)) && moved.has(&line.undo))?;
    let master = places.try_in(leave, |netlink, now| match now {
        Change::Leave(nic, _) => netlink.link_by_index(nic.index).ok()??.master,
        _ => None,
    });
    let is_port = matches!(master, Ok(Some(Some(_))));
    is_port.then(|| lines.iter().filter(|line| !moved.has(&line.undo)).cloned().collect())
}

/// The lines with the undos of each move that was made whole as the links are now; none where there is no such move, or one of its
/// links is gone, or it is undone in part: then what the lines say is all that is known.
fn renewed(places: &mut Places, lines: &[Line]) -> Option<Vec<Line>> {
    let mark = lines.iter().find(|line| matches!(line.undo, Change::Moved(_)))?;
    let undos = places.try_in(mark, |netlink, now| match now {
        Change::Moved(moved) => Some((moved.clone(), moved.undos(netlink))),
        _ => None,
    });
    let (moved, undos) = match undos {
        Ok(Some(Some((moved, Ok(Some(undos)))))) => (moved, undos),
        Ok(Some(Some((moved, Err(refusal))))) => {
            log::warn!("cannot ask for what moved to {}: {refusal}", moved.to);
            return None;
        }
        Ok(None) => return elsewhere(places, lines, mark),
        Ok(_) | Err(_) => return None,
    };
    let start = lines.iter().find(|line| moved.has(&line.undo)).map_or(mark.at, |line| line.at);
    let undos = (start..).zip(undos).map(|(at, undo)| mark.of_the_same_links(at, undo));
    let rest = lines.iter().filter(|line| !moved.has(&line.undo)).cloned();
    let mut renewed: Vec<_> = rest.chain(undos).collect();
    renewed.sort_by_key(|line| line.at);
    Some(renewed)
}

/// Undoes the lines of a record that is ours alone, and deletes it. Without the lock nothing can be kept of it but all.
pub(super) fn undo(lock: Option<&Lock>, mut record: Record) {
    let lines = match record.lines() {
        Ok(lines) => lines,
        Err(error) => return warn(&error),
    };
    let (mut places, mut patience) = (Places::default(), Patience::default());
    let mut lines = renewed(&mut places, &lines).unwrap_or(lines);
    let all = lines.len();
    order(&mut lines);
    let mut one_failed = false;
    lines.retain(|line| {
        let replayed = replay(&mut places, &mut patience, line);
        one_failed |= matches!(replayed, Replayed::Refused);
        let again = one_failed && line.undo.is_to_be_repeated();
        matches!(replayed, Replayed::Refused) || again && matches!(replayed, Replayed::Made(_))
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
    /// By the names that its links have now.
    Made(Change),
    /// It was not there any more.
    Nothing,
    Refused,
}

fn replay(places: &mut Places, patience: &mut Patience, line: &Line) -> Replayed {
    let tried =
        places.try_in(line, |netlink, now| (patience.once_free(|| now.make_as_undo(netlink)), now.clone()));
    match tried {
        Ok(Some((Ok(()), now))) => {
            log::debug!("undone: {}", places.command(line, &now));
            Replayed::Made(now)
        }
        Ok(None) => Replayed::Nothing,
        Ok(Some((Err(refusal), now))) if now.is_done(&refusal) => Replayed::Nothing,
        Ok(Some((Err(refusal), now))) => {
            let command = places.command(line, &now);
            log::warn!("cannot undo a change of the host ({command}): {refusal}");
            Replayed::Refused
        }
        Err(error) => {
            let command = places.command(line, &line.undo);
            log::warn!("cannot tell whether a change is there still, to undo it ({command}): {error}");
            Replayed::Refused
        }
    }
}

/// The namespaces of the lines; none where it is gone.
#[derive(Default)]
pub(super) struct Places(HashMap<NamespaceId, Option<Place>>);

struct Place {
    namespace: Namespace,
    /// Where it was found.
    path: PathBuf,
    netlink: Netlink,
    marker: Marker,
}

impl Places {
    /// Runs `call` where the line says, with its undo for the links by the names that they have now; none where it is sure that
    /// nothing of it is left.
    ///
    /// # Errors
    /// It cannot be told, or the namespace cannot be entered.
    pub(super) fn try_in<T: Send>(
        &mut self,
        line: &Line,
        call: impl FnOnce(&mut Netlink, &Change) -> T + Send,
    ) -> io::Result<Option<T>> {
        if line.boot != boot()? {
            return Ok(None);
        }
        let place = match self.0.entry(line.namespace) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let found = Namespace::find(line.namespace)?;
                let place = |(namespace, path)| {
                    let (netlink, marker) = (Netlink::new(), Marker::default());
                    Place { namespace, path, netlink, marker }
                };
                unknown.insert(found.map(place))
            }
        };
        let Some(Place { namespace, netlink, marker, .. }) = place else { return Ok(None) };
        let tried = namespace.run(|| match marker.find(netlink, &line.kept()) {
            Ok(Found::Same(now)) => Ok(Some(call(netlink, &now))),
            Ok(Found::Gone) => Ok(None),
            Ok(Found::Unsure(why)) => Err(io::Error::other(why)),
            Err(refusal) => Err(io::Error::other(refusal)),
        });
        tried?
    }

    /// The command of the line's undo, as it is `now`, for where it is to be run.
    fn command(&self, line: &Line, now: &Change) -> String {
        let command = now.command();
        match self.0.get(&line.namespace) {
            // The names of namespaces are the same in each of them.
            _ if matches!(line.undo, Change::DeleteNamespace { .. }) => command,
            Some(Some(place)) => line_at(&place.path, &command),
            _ => format!("# in a network namespace that is out of sight: {command}"),
        }
    }
}
