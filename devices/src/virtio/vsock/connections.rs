//! All connections: by their ports, by the events of their sockets, and by whose turn it is.
//!
//! **Invariant: a guest costs bounded memory.** There are at most [`MAX`] connections, half-open ones included, and each keeps no more
//! than it has promised to take: [`WIDE`] for the first [`WIDE_MAX`] of them, [`NARROW`] for the others; 64 MiB in all.
//!
//! **Invariant: nobody stalls another.** Each connection that has something for the guest says one packet in its turn, and one whose end
//! does not read is left alone until that does.

mod programs;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use net::Iov;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::HOST_CID;
use super::connection::{Connection, Fate, Ports, Stage};
use super::host::HostEnd;
use super::packet::{Header, TYPE_STREAM, op};

/// How many connections there can be.
pub(super) const MAX: usize = 1024;
/// How many bytes of the guest's a connection keeps, and how many connections keep more.
const NARROW: u32 = 32 << 10;
const WIDE: u32 = 256 << 10;
const WIDE_MAX: usize = 128;
/// How many requests of the guest's wait for the host's answer.
const ASKED_MAX: usize = 64;
/// How many resets wait for the guest before what it sends waits, too: it must make room for them.
const RESETS_MAX: usize = 256;
/// Ports of the host's end of connections that its programs make: from here on, above all that a program would name.
const FIRST_PORT: u32 = 1 << 30;

/// The events of a connection have its id, which is above every other token: its slot, and a serial number above that.
pub(super) const FIRST_ID: u64 = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 16;

/// For what a socket is watched: each edge is noted, and used up later.
const EDGES: EventSet =
    EventSet::IN.union(EventSet::OUT).union(EventSet::READ_HANG_UP).union(EventSet::EDGE_TRIGGERED);

/// All connections of a guest.
pub(super) struct Connections {
    guest_cid: u64,
    epoll: Epoll,
    host: HostEnd,
    slots: Vec<Option<(u64, Connection)>>,
    by_ports: BTreeMap<Ports, usize>,
    serial: u64,
    /// Whose turn it is to say something to the guest.
    turns: VecDeque<usize>,
    /// Connections that the guest is to forget, or that it thinks it has.
    resets: VecDeque<Ports>,
    wide: usize,
    asked: usize,
    next_port: u32,
    /// There may be programs at the socket; and when to look again, where there were no descriptors.
    accepts: bool,
    rests: Option<Instant>,
    /// No later than the first deadline.
    deadline: Option<Instant>,
}

impl Connections {
    /// None yet. Sockets are watched by `epoll`.
    pub(super) fn new(guest_cid: u64, host: HostEnd, epoll: Epoll) -> Self {
        Self {
            guest_cid,
            epoll,
            host,
            slots: Vec::new(),
            by_ports: BTreeMap::new(),
            serial: 0,
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            wide: 0,
            asked: 0,
            next_port: FIRST_PORT,
            accepts: true,
            rests: None,
            deadline: None,
        }
    }

    pub(super) fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// Closes all of them: there is no driver any more.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.by_ports.clear();
        self.turns.clear();
        self.resets.clear();
        (self.wide, self.asked, self.deadline) = (0, 0, self.rests);
    }

    /// Whether what the guest sends is to wait until it has made room for what it is told.
    pub(super) fn is_full(&self) -> bool {
        self.resets.len() >= RESETS_MAX
    }

    /// Does what a packet of the guest's says.
    pub(super) fn hear(&mut self, header: &Header, body: &Iov<'_>) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            // It is not for us, or from somebody else: there is nobody to answer.
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let slot = self.by_ports.get(&ports).copied();
        if header.kind != TYPE_STREAM {
            return self.refuse(header, ports);
        }
        match (slot, header.op) {
            (Some(slot), _) => {
                let Some((_, connection)) = &mut self.slots[slot] else { return };
                // What claims to have more than there is lies.
                let fate = match header.op == op::RW && body.len() < header.len as usize {
                    true => Fate::Reset,
                    false => connection.hear(header, body),
                };
                self.follow(slot, fate);
            }
            (None, op::REQUEST) => self.ask(header, ports),
            (None, _) => self.refuse(header, ports),
        }
    }

    /// Tells the guest that there is no such connection.
    fn refuse(&mut self, header: &Header, ports: Ports) {
        if header.op != op::RST {
            self.resets.push_back(ports);
        }
    }

    /// The guest wants a port of the host's.
    fn ask(&mut self, header: &Header, ports: Ports) {
        let promise = self.next_promise();
        let asked = self.asked < ASKED_MAX;
        let Some(slot) = asked.then(|| self.insert(Connection::asked(ports, header, promise))).flatten()
        else {
            return self.refuse(header, ports);
        };
        self.asked += 1;
        self.by_ports.insert(ports, slot);
        let id = self.id(slot);
        if self.host.ports.connect(id, ports.host).is_err() {
            self.follow(slot, Fate::Reset);
        }
    }

    /// The next packet for the guest, by turns; its payload is in `body` then. None where the connection whose turn it was has nothing to
    /// say: there may be others, for which `body` is to be gathered anew.
    pub(super) fn packet(&mut self, body: &mut Iov<'_>) -> Option<Header> {
        if let Some(ports) = self.resets.pop_front() {
            return Some(self.address(Header { op: op::RST, ..Header::default() }, ports));
        }
        while let Some(slot) = self.turns.pop_front() {
            let Some(Some((_, connection))) = self.slots.get_mut(slot) else { continue };
            connection.waits_for_turn = false;
            let (packet, ports) = (connection.packet(body), connection.ports);
            self.follow(slot, Fate::Goes);
            // One that says nothing may have cut `body` to the credit that it has: the next one wants a whole one.
            return packet.map(|header| self.address(header, ports));
        }
        None
    }

    /// Whether there may be one.
    pub(super) fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    fn address(&self, header: Header, ports: Ports) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: TYPE_STREAM,
            ..header
        }
    }

    fn next_promise(&self) -> u32 {
        if self.wide < WIDE_MAX { WIDE } else { NARROW }
    }

    /// Its slot; none where there are too many.
    fn insert(&mut self, connection: Connection) -> Option<usize> {
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(free) => free,
            None if self.slots.len() < MAX => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return None,
        };
        self.wide += usize::from(connection.promise() == WIDE);
        self.serial += 1;
        self.note_deadline(connection.deadline);
        self.slots[slot] = Some((self.serial, connection));
        Some(slot)
    }

    fn id(&self, slot: usize) -> u64 {
        let serial = self.slots[slot].as_ref().map_or(0, |(serial, _)| *serial);
        serial << SLOT_BITS | slot as u64
    }

    fn slot_of(&self, id: u64) -> Option<usize> {
        let slot = (id & (FIRST_ID - 1)) as usize;
        let (serial, _) = self.slots.get(slot)?.as_ref()?;
        (*serial == id >> SLOT_BITS).then_some(slot)
    }

    /// Has the events of its socket noted; what has happened by now is an event as well.
    fn watch(&mut self, slot: usize) {
        let event = EpollEvent::new(EDGES, self.id(slot));
        let socket = self.slots[slot].as_ref().and_then(|(_, connection)| connection.socket());
        let watched = socket.map(|socket| self.epoll.ctl(ControlOperation::Add, socket.as_raw_fd(), event));
        if watched.is_some_and(|watched| watched.is_err()) {
            self.follow(slot, Fate::Reset);
        }
    }

    /// Does what becomes of a connection.
    fn follow(&mut self, slot: usize, fate: Fate) {
        let Some((_, connection)) = &mut self.slots[slot] else { return };
        match fate {
            Fate::Goes => {
                if connection.has_word() && !connection.waits_for_turn {
                    connection.waits_for_turn = true;
                    self.turns.push_back(slot);
                }
                let deadline = connection.deadline;
                self.note_deadline(deadline);
                debug_assert!(self.turns.len() <= self.slots.len(), "each has one turn");
            }
            Fate::Over | Fate::Reset => {
                if let Stage::Asked = connection.stage {
                    self.asked -= 1;
                }
                self.remove(slot, fate == Fate::Reset);
            }
        }
    }

    /// Removes a connection, and has the guest told where it is to be; what the guest has sent is not lost.
    fn remove(&mut self, slot: usize, tell: bool) {
        let Some((serial, mut connection)) = self.slots[slot].take() else { return };
        if self.by_ports.get(&connection.ports) == Some(&slot) {
            self.by_ports.remove(&connection.ports);
        }
        if std::mem::take(&mut connection.waits_for_turn) {
            self.turns.retain(|turn| *turn != slot);
        }
        if tell && connection.is_known() {
            self.resets.push_back(connection.ports);
        }
        if tell && connection.drain() {
            self.note_deadline(connection.deadline);
            self.slots[slot] = Some((serial, connection));
        } else {
            self.wide -= usize::from(connection.promise() == WIDE);
        }
    }

    fn note_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = self.deadline.into_iter().chain(deadline).min();
    }

    /// When something is to be done although nothing happens, or before that.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Ends what has had its time.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.rests.take_if(|until| *until <= now);
        self.deadline = self.rests;
        for slot in 0..self.slots.len() {
            let Some((_, connection)) = &self.slots[slot] else { continue };
            match connection.deadline {
                Some(deadline) if deadline <= now => self.follow(slot, Fate::Reset),
                deadline => self.note_deadline(deadline),
            }
        }
    }

    /// Time has stood still for so long.
    pub(super) fn postpone(&mut self, time: Duration) {
        let connections = self.slots.iter_mut().flatten();
        let deadlines = connections.filter_map(|(_, connection)| connection.deadline.as_mut());
        deadlines.chain(&mut self.rests).chain(&mut self.deadline).for_each(|deadline| *deadline += time);
    }
}

#[cfg(test)]
mod tests;
