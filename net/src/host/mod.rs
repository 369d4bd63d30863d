//! The host's plumbing: each change is made by netlink, can say itself as the `ip(8)` line that does the same, and knows
//! its undo.
//!
//! **Invariant: what was there already is neither done nor undone**, and what we change is changed back in reverse order,
//! whatever of it fails. A link that goes away with its backend takes all with it, and needs no undo; every other undo is
//! in a record before its change is made (`journal.rs`), so that [`clean`] can do it when we cannot.

pub(crate) mod announce;
pub(crate) mod belongings;
mod change;
mod clean;
mod context;
mod datagrams;
mod deferred_undo;
pub(crate) mod directory;
mod fd_reserve;
pub(crate) mod finding;
pub(crate) mod firewall;
pub(crate) mod forwarding;
pub(crate) mod free_subnet;
pub(crate) mod guard;
pub(crate) mod holders;
mod identity;
mod in_use;
mod journal;
mod link_settings;
mod mac_taken;
mod namespace;
mod nat;
pub(crate) mod netlink;
pub(crate) mod nft;
mod peer;
mod port_guard;
pub(crate) mod probe;
pub(crate) mod rate;
pub(crate) mod settings;
mod sharing;
mod siblings;
mod sysctl;
pub(crate) mod sysfs;
mod take_back;
pub(crate) mod tun_settings;
mod wait;
pub(crate) mod watch;
pub(crate) mod wire_link;

use std::fmt;

pub(crate) use change::Change;
pub use clean::{LeftOver, clean, left_over};
pub use context::Host;
pub(crate) use deferred_undo::DeferredUndo;
pub(crate) use journal::Lock;
pub(crate) use namespace::{Namespace, NamespaceId, join as join_namespace, line_at, line_in};
pub(crate) use netlink::{
    Link, LinkAddress, LinkId, LinkNeighbour, LinkRoute, Netlink, NewMacvlan, Refusal, Tun, VlanMember,
};
pub(crate) use peer::Peer;
pub(crate) use sysctl::Sysctl;

use self::identity::{Kept, Marker};
use self::journal::{Line, Record};
use self::siblings::Beacon;
use self::wire_link::{Role, WireLink};
use crate::error::{ChangeKind, HostError};
use crate::{Error, HostAddress, NetnsName};

/// One change of the host that was just made, as a person would have typed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The `ip(8)` line that does the same.
    pub command: String,
    /// What for, in a few words.
    pub why: &'static str,
}

/// The line, and why as a comment of the shell: what is printed can be run.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<56} # {}", self.command, self.why)
    }
}

/// What was changed on the host for a wire, to be taken back when this is dropped.
///
/// It and the backends may be dropped in any order and in any network namespace.
#[must_use = "dropping it takes the host's wiring back at once"]
pub(crate) struct Wiring {
    netlink: Netlink,
    marker: Marker,
    /// The numbers of the guests' ends that are ports of a bridge for us.
    own_ports: Vec<u32>,
    /// Where our records are, for other wirevm in the namespace.
    _beacon: Option<Beacon>,
    namespace: Namespace,
    /// In the order of the changes.
    undo: Vec<Undo>,
    /// Where the undo of the next change is recorded: a journal of our own, made when it is wanted, or within
    /// [`share`](Self::share) the shared record.
    record: Option<Record>,
    /// Held while the host is changed. None where this user has no place for it, and so none for records.
    lock: Option<Lock>,
    host: Host,
    /// The name of the namespace, where it is not the process's own: steps and errors name it.
    netns: Option<NetnsName>,
    /// What the user should know, though nothing is wrong: each a sentence.
    notices: Vec<String>,
    /// Goes with its descriptors.
    nat: Option<nat::Nat>,
    /// The rules for what the guest sends; they go with their sockets.
    guard: Vec<nft::OwnTable>,
    /// What was changed elsewhere, and is taken back after all this: the namespace itself.
    outer: Option<Box<Wiring>>,
}

/// What to take back.
#[derive(Debug)]
enum Undo {
    /// A change of our own, recorded after so many bytes of the record.
    Change(Kept, u64),
    /// Our part in what several share: the last one undoes it.
    Shared(Record),
}

impl Wiring {
    /// Begins to change the `host`, in the thread's network namespace, which has the name `netns` where it is not the process's own:
    /// waits for other wirevm that do, and takes back what
    /// the dead have left. From then on the others wait, until [`release_lock`](Self::release_lock).
    ///
    /// # Errors
    /// The lock is not to be had although there is a place for it, the namespace cannot be asked for, or there are not enough
    /// descriptors to take back what would be changed.
    pub(crate) fn begin(host: &Host, netns: Option<&NetnsName>) -> Result<Self, Error> {
        let lock = match Lock::take(host) {
            Ok(lock) => Some(lock),
            // A user without a place for records may still have a tap, which needs none.
            Err(error) if error.is_no_place() => {
                log::debug!("no records: {error}");
                None
            }
            Err(error) => return Err(error),
        };
        if let Some(lock) = &lock {
            clean::clean_under(lock, &mut |step| log::info!("{step}"));
        }
        host.reserve().hold().map_err(|source| HostError::Reserve { source })?;
        let namespace = Namespace::here().map_err(|source| HostError::Namespace { name: None, source })?;
        let beacon = lock.as_ref().and_then(|lock| {
            let told = lock.beacon();
            told.inspect_err(|error| log::debug!("others do not see where our records are: {error}")).ok()
        });
        Ok(Self {
            netlink: Netlink::new(),
            marker: Marker::default(),
            own_ports: Vec::new(),
            _beacon: beacon,
            namespace,
            undo: Vec::new(),
            record: None,
            lock,
            host: host.clone(),
            netns: netns.cloned(),
            notices: Vec::new(),
            nat: None,
            guard: Vec::new(),
            outer: None,
        })
    }

    /// Looks at, and changes, the host in the wiring's network namespace.
    ///
    /// # Errors
    /// It cannot be entered any more.
    pub(crate) fn inside<T: Send>(&mut self, work: impl FnOnce(&mut Self) -> T + Send) -> Result<T, Error> {
        let failed = |source| HostError::Namespace { name: None, source };
        let namespace = self.namespace.again().map_err(failed)?;
        Ok(namespace.run(|| work(self)).map_err(failed)?)
    }

    /// The inode of its network namespace.
    pub(crate) fn namespace_inode(&self) -> u64 {
        self.namespace.id().inode
    }

    /// Says that the host is as it shall be: others may change it.
    pub(crate) fn release_lock(&mut self) {
        self.lock = None;
        self.marker.close();
    }

    /// Says that a port of a bridge is the guest's end of this wire.
    pub(crate) fn has_port(&mut self, port: &LinkId) {
        self.own_ports.push(port.index);
    }

    /// `id` of this namespace as a link of a wire.
    pub(crate) fn wire_link(&self, id: &LinkId, role: Role) -> WireLink {
        let (name, namespace) = (id.name.clone(), self.namespace.id().inode);
        WireLink { name, index: Some(id.index), namespace, role }
    }

    /// Has `outer` taken back after all of this.
    pub(crate) fn within(&mut self, outer: Self) {
        self.outer = Some(Box::new(outer));
    }

    /// Tells a change that was just made.
    pub(crate) fn tell(&self, command: String, why: &'static str) {
        self.host.tell(&Step { command: self.line(command), why });
    }

    /// The command for where the process is.
    fn line(&self, command: String) -> String {
        self.netns.as_ref().map_or(command.clone(), |name| line_in(name, &command))
    }

    /// Keeps a sentence that the user should know.
    pub(crate) fn notice(&mut self, sentence: String) {
        self.notices.push(sentence);
    }

    /// What was [kept](Self::notice) for the user.
    pub(crate) fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// The name of the network namespace, where it is not the process's own.
    pub(crate) fn netns(&self) -> Option<&NetnsName> {
        self.netns.as_ref()
    }

    pub(crate) fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// The link of that name; an error where there is none (any more).
    pub(crate) fn link(&mut self, name: &str) -> Result<Link, Error> {
        Ok(self.find_link(name)?.ok_or_else(|| HostError::LinkGone { name: name.to_owned() })?)
    }

    /// The link of that name, where there is one.
    pub(crate) fn find_link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let asked = |refusal| HostError::Ask { what: format!("the link {name}"), refusal };
        Ok(self.netlink.link(name).map_err(asked)?)
    }

    /// Every link of the namespace.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, Error> {
        let asked = |refusal| HostError::Ask { what: "the host's links".to_owned(), refusal };
        Ok(self.netlink.links().map_err(asked)?)
    }

    /// Sets a value of a link that goes away with its backend or has an undo of its own, where it is not so already; a kernel
    /// without IPv6 has no such values of it.
    pub(crate) fn set_value(&mut self, key: String, value: &str, why: &'static str) -> Result<(), Error> {
        match Sysctl::read(&key) {
            Ok(found) if found != value => self.make(Change::Sysctl(Sysctl::new(&key, value)), None, why),
            _ => Ok(()),
        }
    }

    /// Has the host's kernel take no router advertisement from `link`, which is not up yet and goes with its backend or has an
    /// undo of its own: else whoever is at its other end could make himself the host's router and resolver. Where IPv6 is
    /// absent or careful already, nothing is done.
    ///
    /// Where the setting is refused, which is a notice, `/proc/sys` is read-only, as in many containers.
    pub(crate) fn refuse_routers(&mut self, link: &LinkId) {
        let key = format!("net/ipv6/conf/{}/accept_ra", link.name);
        let set = self.set_value(key, "0", "the guest shall not make itself the host's router");
        if let Err(error) = set
            && announce::hears_routers(link)
        {
            self.notice(format!(
                "{link} takes what the guest says as a router: {}. Have it so beforehand: sysctl net.ipv6.conf.default.accept_ra=0, in a \
                 container by its engine's --sysctl",
                error.with_cause()
            ));
        }
    }

    /// Makes a change, and keeps its undo: none where it goes away with a descriptor.
    ///
    /// # Errors
    /// The kernel refuses the change, or its undo cannot be recorded; then it is not made.
    pub(crate) fn make(
        &mut self,
        change: Change,
        undo: Option<Change>,
        why: &'static str,
    ) -> Result<(), Error> {
        self.make_by(|netlink| change.make(netlink), change.kind(), change.command(), undo, why)
    }

    /// As [`make`](Self::make), for a change that is made by `call` and never an undo itself.
    pub(crate) fn make_by(
        &mut self,
        call: impl FnOnce(&mut Netlink) -> Result<(), Refusal>,
        kind: ChangeKind,
        command: String,
        undo: Option<Change>,
        why: &'static str,
    ) -> Result<(), Error> {
        let recorded = undo.map(|undo| self.write_down(undo)).transpose()?;
        if let Err(refusal) = call(&mut self.netlink) {
            if let (Some(record), Some(Undo::Change(_, start))) = (&mut self.record, &recorded) {
                record.cut(*start);
            }
            return Err(HostError::Step { kind, command: self.line(command), refusal }.into());
        }
        self.undo.extend(recorded);
        self.tell(command, why);
        Ok(())
    }

    /// Records the undo of the change that is about to be made.
    fn write_down(&mut self, undo: Change) -> Result<Undo, Error> {
        let record = match &mut self.record {
            Some(record) => record,
            none => {
                // Without a lock there was no place; to ask again says why.
                let lock = match self.lock.take() {
                    Some(lock) => lock,
                    None => Lock::take(&self.host)?,
                };
                none.insert(self.lock.insert(lock).new_journal()?)
            }
        };
        let asked = |refusal| HostError::Ask { what: "the links that are to be changed".to_owned(), refusal };
        let kept = self.marker.mark(&mut self.netlink, undo).map_err(asked)?;
        let start = record.len();
        record.write(&Line::new(self.namespace.id(), kept.clone())?)?;
        Ok(Undo::Change(kept, start))
    }

    /// Keeps the undo of what a change to come will do besides.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub(crate) fn keep(&mut self, undo: Change) -> Result<(), Error> {
        let undo = self.write_down(undo)?;
        self.undo.push(undo);
        Ok(())
    }
}

impl fmt::Debug for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring").field("undo", &self.undo).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_line_for_the_shell() {
        let step = Step { command: "ip link set dev tap0 up".to_owned(), why: "so" }.to_string();
        assert!(step.starts_with("ip link set dev tap0 up  ") && step.ends_with(" # so"), "{step}");
    }
}
