//! One connection: a stream of the guest's at one end, a socket of the host's at the other.
//!
//! **Invariant: what waits here is bounded.** To the guest, bytes go straight from the socket into its buffers, so that nothing waits
//! but in the kernel. To the host, what the socket has no room for waits here, and is never more than we promised the guest to take.
//!
//! **Invariant: the guest hears of each end once.** What is to be told is a bit, not an entry of a queue.
//!
//! | file | what |
//! |---|---|
//! | `connection.rs` | its life, and how each end closes |
//! | `to_host.rs` | bytes of the guest's, on their way to the program |
//! | `to_guest.rs` | packets for the guest |

mod to_guest;
mod to_host;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use net::Iov;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::credit::{Inbound, Outbound};
use super::greeting::{Greeting, Heard};
use super::packet::{Header, NEITHER, NO_RECEIVE, NO_SEND, op};

/// How long a program has for its line, and the host to answer the guest.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the guest has to accept: a busy one, of whom many want something at once, takes its time.
const ACCEPT: Duration = Duration::from_secs(30);
/// How long the guest has to forget a connection of which both ends have closed.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a program may read nothing of what is left of a connection that the guest has forgotten.
const DRAIN: Duration = Duration::from_secs(30);

/// What a connection is called on the wire: by the port at each end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// Where a connection is in its life.
#[derive(Debug)]
pub(super) enum Stage {
    /// A program of the host is to say which port it wants.
    Greeting(Greeting),
    /// The guest wants a port of the host's: who listens there is being asked.
    Asked,
    /// The guest is to accept.
    Requested,
    /// Bytes go both ways, or the way that is not closed yet.
    Open,
    /// The guest was told that the host's end is closed: it is to forget the connection.
    Closing,
    /// The guest has forgotten it, and the host has not read all yet.
    Draining,
}

/// What is to be told to the guest.
mod owed {
    pub(super) const REQUEST: u8 = 1;
    pub(super) const RESPONSE: u8 = 2;
    pub(super) const SHUTDOWN: u8 = 4;
    pub(super) const CREDIT: u8 = 8;
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Goes,
    /// It is over, and the guest knows.
    Over,
    /// It is over, and the guest is to hear that.
    Reset,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ports: Ports,
    pub(super) stage: Stage,
    /// Until when it is to get on.
    pub(super) deadline: Option<Instant>,
    /// It is among those that may have something for the guest.
    pub(super) waits_for_turn: bool,
    socket: Option<OwnedFd>,
    /// There may be bytes, or room, at the socket: edges that are not used up.
    readable: bool,
    writable: bool,
    /// The program has closed its end both ways.
    hung_up: bool,
    /// It sends no more, and all that it sent is read.
    read_all: bool,
    inbound: Inbound,
    outbound: Outbound,
    /// From the guest to the host.
    waiting: VecDeque<u8>,
    owed: u8,
    /// The request has reached the guest.
    requested: bool,
    /// The guest was asked for credit, and has not given any.
    asked_for_credit: bool,
    /// What the guest does no more.
    guest_closed: u32,
    /// The same of the host, as the guest is to be told.
    host_closed: u32,
    /// The host's program has been told that the guest sends no more.
    told_end: bool,
}

impl Connection {
    fn new(stage: Stage, ports: Ports, socket: Option<OwnedFd>, promise: u32) -> Self {
        Self {
            ports,
            stage,
            deadline: Some(Instant::now() + PATIENCE),
            waits_for_turn: false,
            socket,
            readable: false,
            writable: true,
            hung_up: false,
            read_all: false,
            inbound: Inbound::new(promise),
            outbound: Outbound::default(),
            waiting: VecDeque::new(),
            owed: 0,
            requested: false,
            asked_for_credit: false,
            guest_closed: 0,
            host_closed: 0,
            told_end: false,
        }
    }

    /// Of a program that has connected to the VM's socket.
    pub(super) fn greeted(socket: OwnedFd, promise: u32) -> Self {
        Self::new(Stage::Greeting(Greeting::default()), Ports { host: 0, guest: 0 }, Some(socket), promise)
    }

    /// Of a guest's request.
    pub(super) fn asked(ports: Ports, request: &Header, promise: u32) -> Self {
        let mut connection = Self::new(Stage::Asked, ports, None, promise);
        connection.outbound.hear(request);
        connection
    }

    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// How many bytes of the guest's it may keep.
    pub(super) fn promise(&self) -> u32 {
        self.inbound.promise()
    }

    /// What there is of the program's line, as long as it has not said all of it.
    pub(super) fn greet(&mut self) -> Option<Heard> {
        match (&mut self.stage, &self.socket) {
            (Stage::Greeting(greeting), Some(socket)) => Some(greeting.read(socket.as_fd())),
            _ => None,
        }
    }

    /// The program has said which port of the guest it wants.
    pub(super) fn request(&mut self, ports: Ports) {
        self.ports = ports;
        self.stage = Stage::Requested;
        self.owed |= owed::REQUEST;
        self.deadline = Some(Instant::now() + ACCEPT);
    }

    /// Whether the guest has heard of it.
    pub(super) fn is_known(&self) -> bool {
        match self.stage {
            Stage::Greeting(_) | Stage::Draining => false,
            Stage::Requested => self.requested,
            Stage::Asked | Stage::Open | Stage::Closing => true,
        }
    }

    /// Somebody listens at the port that the guest wants.
    pub(super) fn accept(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
        self.readable = true;
        self.owed |= owed::RESPONSE;
        self.open();
    }

    fn open(&mut self) {
        self.stage = Stage::Open;
        self.deadline = None;
    }

    /// What an event of the socket says.
    pub(super) fn note(&mut self, readable: bool, writable: bool, hung_up: bool) -> Fate {
        self.readable |= readable | hung_up;
        self.writable |= writable | hung_up;
        self.hung_up |= hung_up;
        match self.stage {
            Stage::Requested if hung_up && self.requested => return Fate::Reset,
            Stage::Requested if hung_up => return Fate::Over,
            Stage::Open if hung_up && (self.read_all || self.guest_closed & NO_RECEIVE != 0) => {
                self.close_host(NEITHER);
            }
            _ => {}
        }
        self.flush()
    }

    /// The host's end is closed, this way or both.
    fn close_host(&mut self, flags: u32) {
        if self.host_closed | flags != self.host_closed {
            self.host_closed |= flags;
            self.owed |= owed::SHUTDOWN;
        }
        if flags & NO_RECEIVE != 0 {
            // Nobody reads it.
            self.inbound.forward(self.waiting.len() as u32);
            self.waiting = VecDeque::new();
        }
    }

    /// Does what the guest says. `body` is what is behind the header.
    pub(super) fn hear(&mut self, header: &Header, body: &Iov<'_>) -> Fate {
        self.outbound.hear(header);
        if self.outbound.room() > 0 {
            self.asked_for_credit = false;
        }
        match (header.op, &self.stage) {
            (op::RST, _) => Fate::Over,
            (op::RESPONSE, Stage::Requested) if self.requested => self.answer_program(),
            (op::RW, Stage::Open | Stage::Closing) => self.deliver(body),
            (op::SHUTDOWN, Stage::Open | Stage::Closing) => self.close_guest(header.flags),
            (op::CREDIT_UPDATE, _) => Fate::Goes,
            (op::CREDIT_REQUEST, Stage::Open | Stage::Closing) => {
                self.owed |= owed::CREDIT;
                Fate::Goes
            }
            // It does not keep to the protocol.
            _ => Fate::Reset,
        }
    }

    /// Tells the program that the guest has accepted.
    fn answer_program(&mut self) -> Fate {
        let Some(socket) = &self.socket else { return Fate::Reset };
        let line = format!("OK {}\n", self.ports.host);
        // There is room for it, for nothing else was written.
        match send(socket, line.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) if sent == line.len() => {
                self.readable = true;
                self.open();
                Fate::Goes
            }
            _ => Fate::Reset,
        }
    }

    /// Where neither end sends any more, there is nothing left to receive either.
    fn end_if_said(&mut self) {
        if self.told_end && self.host_closed & NO_SEND != 0 {
            self.close_host(NEITHER);
        }
    }

    /// The guest's end is closed, this way or both.
    fn close_guest(&mut self, flags: u32) -> Fate {
        self.guest_closed |= flags & NEITHER;
        if self.guest_closed == NEITHER {
            // The guest forgets it, and what it has sent reaches the program all the same.
            return Fate::Reset;
        }
        if self.guest_closed & NO_RECEIVE != 0 {
            self.shut(Shutdown::Read);
            if self.hung_up {
                self.close_host(NEITHER);
            }
        }
        self.flush()
    }

    fn shut(&self, how: Shutdown) {
        // One that is closed has heard.
        let _ = self.socket.as_ref().map(|socket| shutdown(socket, how));
    }

    /// The guest has forgotten it. True: it is not over, for the program has not read all, and has its time for that now.
    pub(super) fn drain(&mut self) -> bool {
        let had_its_time = matches!(self.stage, Stage::Draining);
        let drains = !had_its_time && self.guest_closed & NO_SEND != 0 && !self.waiting.is_empty();
        if drains {
            self.stage = Stage::Draining;
            self.owed = 0;
            self.deadline = Some(Instant::now() + DRAIN);
        }
        drains
    }
}
