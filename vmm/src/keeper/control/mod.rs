//! The control socket: clients ask, the keeper does.
//!
//! **Invariant: a client is nobody that the machine waits for.** No call waits for a client, for the guest, or for the machine; one that
//! changes the host waits for another wirevm that does, two seconds at most. What a client sends is bounded before it is looked
//! at, what waits for it is bounded too, and who stalls, floods or talks nonsense loses the connection, and nothing else happens.
//!
//! The framing is varlink's: one JSON object, ended by a NUL, for each call and each answer. Calls of one connection are answered in
//! their order.

mod connection;
mod methods;

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use net::RateLimits;
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde_json::{Value, json};
use vmm::info::{Event, MachineInfo};

use self::connection::{Connection, Step};
pub(crate) use self::methods::ControlError;

/// How many clients there can be at once.
const CLIENTS: usize = 32;
/// After so long without a call, a client gives way to one that there is no room for.
const IDLE: Duration = Duration::from_secs(10);
/// How long nobody is let in who there are no descriptors for.
const REST: Duration = Duration::from_secs(1);
/// The token of the listener; those of the clients follow.
pub(super) const TOKEN: u32 = 0x1000;

/// Which call of which client is still to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    slot: usize,
    /// A slot has other clients in time.
    serial: u64,
}

/// How a client wants counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CountersForm {
    /// All, as text for Prometheus.
    Metrics,
    /// Those of the NICs, or of the one of that name, as [`NetCounters`](vmm::counters::NetCounters).
    Net(Option<String>),
}

/// What the keeper does for a client.
pub(crate) trait Requests {
    /// What the machine is.
    fn info(&self) -> MachineInfo;
    /// Has it end.
    fn stop(&mut self, timeout: Option<Duration>, force: bool);
    /// Has it stand still, and answers the ticket then.
    ///
    /// # Errors
    /// It is in no state for that.
    fn pause(&mut self, ticket: Ticket) -> Result<(), ControlError>;
    /// The same for going on.
    ///
    /// # Errors
    /// It is in no state for that.
    fn resume(&mut self, ticket: Ticket) -> Result<(), ControlError>;
    /// Counts, and answers the ticket then, in this form.
    ///
    /// # Errors
    /// It is in no state for that, or there is no such NIC.
    fn count(&mut self, ticket: Ticket, form: CountersForm) -> Result<(), ControlError>;
    /// Sets what a NIC's link is up by, and answers the ticket then.
    ///
    /// # Errors
    /// There is no such NIC or mode.
    fn net_link(&mut self, ticket: Ticket, nic: &str, mode: &str) -> Result<(), ControlError>;
    /// Moves a NIC to another wire, and answers the ticket then.
    ///
    /// # Errors
    /// There is no such NIC, or it cannot move there; it is where it was.
    fn net_move(&mut self, ticket: Ticket, nic: &str, spec: &str) -> Result<(), ControlError>;
    /// Holds a NIC to these limits, and answers the ticket then.
    ///
    /// # Errors
    /// There is no such NIC, or it cannot be held.
    fn net_rate(&mut self, ticket: Ticket, nic: &str, limits: RateLimits) -> Result<(), ControlError>;
    /// Plugs a NIC in, and answers the ticket once the guest has taken it.
    ///
    /// # Errors
    /// It cannot be, and nothing has changed.
    fn net_add(&mut self, ticket: Ticket, spec: &str) -> Result<(), ControlError>;
    /// Takes a NIC out once the guest lets it go, or at once by force, and answers the ticket then.
    ///
    /// # Errors
    /// It cannot be, and nothing has changed.
    fn net_remove(&mut self, ticket: Ticket, nic: &str, force: bool) -> Result<(), ControlError>;
    /// Types on the guest's console; returns how many keys there was room for.
    fn type_in(&mut self, keys: &[u8]) -> usize;
    /// What the guest said last.
    fn console_history(&self) -> Vec<u8>;
}

/// The socket and its clients.
pub(crate) struct Server {
    listener: UnixListener,
    slots: Vec<Option<Client>>,
    serial: u64,
    /// Until when the socket is left alone, for want of descriptors.
    rests: Option<Instant>,
}

struct Client {
    connection: Connection,
    serial: u64,
    /// What the loop watches it for.
    watched: EventSet,
    /// When it last said something, or was answered.
    active: Instant,
}

impl Server {
    /// Serves those who connect to `listener`, which does not block.
    pub(crate) fn new(listener: UnixListener) -> Self {
        Self { listener, slots: (0..CLIENTS).map(|_| None).collect(), serial: 0, rests: None }
    }

    /// Has the loop watch the socket.
    ///
    /// # Errors
    /// There is no memory left.
    pub(crate) fn init(&self, ops: &mut EventOps) -> Result<(), event_manager::Error> {
        ops.add(Events::with_data(&self.listener, TOKEN, EventSet::IN))
    }

    /// Handles an event of the socket or a client.
    pub(crate) fn process(&mut self, events: Events, ops: &mut EventOps, vm: &mut dyn Requests) {
        let Some(slot) = (events.data() - TOKEN).checked_sub(1) else { return self.accept(ops) };
        let slot = slot as usize;
        let Some(Some(client)) = self.slots.get_mut(slot) else { return };
        client.active = Instant::now();
        let set = events.event_set();
        if set.contains(EventSet::OUT) {
            client.connection.flush();
        }
        if set.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR) {
            client.connection.read(Instant::now());
        }
        self.serve(slot, ops, vm);
        // After that, for a client may ask and not wait for the answer. A hangup is reported until the descriptor is closed, so it
        // cannot be left for later.
        if set.intersects(EventSet::HANG_UP | EventSet::ERROR)
            && let Some(Some(client)) = self.slots.get_mut(slot)
        {
            client.connection.hang_up();
            self.rewatch(slot, ops);
        }
    }

    /// Answers what a client has asked by now, as far as that can be answered.
    fn serve(&mut self, slot: usize, ops: &mut EventOps, vm: &mut dyn Requests) {
        let writes_elsewhere = self.writer().is_some_and(|writer| writer != slot);
        while let Some(Some(client)) = self.slots.get_mut(slot) {
            let ticket = Ticket { slot, serial: client.serial };
            match client.connection.step() {
                Step::Nothing => break,
                Step::Typed(keys) => {
                    // What there is no room for is lost, as on a terminal whose guest reads nothing.
                    vm.type_in(&keys);
                }
                Step::Call(call) => {
                    methods::answer(&mut client.connection, call, ticket, writes_elsewhere, vm)
                }
            }
        }
        self.rewatch(slot, ops);
    }

    /// The client that writes on the console.
    fn writer(&self) -> Option<usize> {
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(|client| client.connection.writes()))
    }

    fn accept(&mut self, ops: &mut EventOps) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    return self.rest(ops);
                }
                Err(_) => return,
            };
            // Who is refused is told why where there is room for it, and gone.
            if !is_allowed(&stream) {
                connection::refuse(stream, "this is another user's machine");
                continue;
            }
            let free = self.slots.iter().position(Option::is_none);
            match free.or_else(|| self.close_idle(ops)) {
                Some(slot) => self.take(stream, slot, ops),
                None => connection::refuse(stream, "there are too many clients"),
            }
        }
    }

    /// Leaves the socket alone for a while: there are no descriptors for who waits there, which would wake the loop without end.
    fn rest(&mut self, ops: &mut EventOps) {
        if ops.modify(Events::with_data(&self.listener, TOKEN, EventSet::empty())).is_ok() {
            self.rests = Some(Instant::now() + REST);
        }
    }

    /// Closes the connection that nothing was asked on for longest, and returns its slot.
    fn close_idle(&mut self, ops: &mut EventOps) -> Option<usize> {
        let idle = self.slots.iter().enumerate().filter_map(|(slot, client)| {
            let client = client.as_ref().filter(|client| client.connection.is_idle())?;
            (client.active.elapsed() >= IDLE).then_some((client.active, slot))
        });
        let (_, slot) = idle.min()?;
        self.slots[slot]
            .as_mut()?
            .connection
            .fail("others want to be served, and nothing was asked here for long");
        self.rewatch(slot, ops);
        self.slots[slot].is_none().then_some(slot)
    }

    fn take(&mut self, stream: UnixStream, slot: usize, ops: &mut EventOps) {
        let Ok(connection) = Connection::new(stream) else { return };
        let token = TOKEN + 1 + slot as u32;
        if ops.add(Events::with_data_raw(connection.as_raw_fd(), token, EventSet::IN)).is_ok() {
            self.serial += 1;
            self.slots[slot] = Some(Client {
                connection,
                serial: self.serial,
                watched: EventSet::IN,
                active: Instant::now(),
            });
        }
    }

    /// Has the loop watch a client for what it can do, or closes the connection.
    fn rewatch(&mut self, slot: usize, ops: &mut EventOps) {
        let Some(place) = self.slots.get_mut(slot) else { return };
        let Some(client) = place else { return };
        let token = TOKEN + 1 + slot as u32;
        let fd = client.connection.as_raw_fd();
        if client.connection.is_over() {
            // Its descriptor is still open, and watched: this cannot fail.
            let _ = ops.remove(Events::with_data_raw(fd, token, client.watched));
            *place = None;
            return;
        }
        let wanted = client.connection.wants();
        if wanted != client.watched && ops.modify(Events::with_data_raw(fd, token, wanted)).is_ok() {
            client.watched = wanted;
        }
    }

    /// Answers a call that was left open; a client that has gone meanwhile misses it.
    pub(crate) fn answer(
        &mut self,
        ticket: Ticket,
        answer: Result<Value, ControlError>,
        ops: &mut EventOps,
        vm: &mut dyn Requests,
    ) {
        let Some(Some(client)) = self.slots.get_mut(ticket.slot) else { return };
        if client.serial == ticket.serial {
            client.active = Instant::now();
            client.connection.reply(answer);
            self.serve(ticket.slot, ops, vm);
        }
    }

    /// Tells those who want to hear of it.
    pub(crate) fn event(&mut self, event: &Event, ops: &mut EventOps) {
        for slot in 0..self.slots.len() {
            if let Some(client) = &mut self.slots[slot] {
                client.connection.tell(event);
                self.rewatch(slot, ops);
            }
        }
    }

    /// Shows those who watch the console what the guest said.
    pub(crate) fn console(&mut self, output: &[u8], ops: &mut EventOps) {
        for slot in 0..self.slots.len() {
            if let Some(client) = &mut self.slots[slot]
                && client.connection.is_console()
            {
                client.connection.show(output);
                self.rewatch(slot, ops);
            }
        }
    }

    /// When the next client's time is up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let clients = self.slots.iter().flatten().filter_map(|client| client.connection.deadline());
        clients.chain(self.rests).min()
    }

    /// Closes the connections of those whose time is up.
    pub(crate) fn expire(&mut self, now: Instant, ops: &mut EventOps) {
        if self.rests.take_if(|at| *at <= now).is_some() {
            // It was watched before.
            let _ = ops.modify(Events::with_data(&self.listener, TOKEN, EventSet::IN));
        }
        for slot in 0..self.slots.len() {
            if let Some(client) = &mut self.slots[slot]
                && client.connection.deadline().is_some_and(|at| at <= now)
            {
                client.connection.fail("the call has no end");
                self.rewatch(slot, ops);
            }
        }
    }

    /// Says what is left to be said, as far as there is room: the machine ends.
    pub(crate) fn finish(&mut self) {
        for client in self.slots.iter_mut().flatten() {
            client.connection.flush();
        }
    }
}

/// Whether the client is this user, or root.
fn is_allowed(stream: &UnixStream) -> bool {
    socket_peercred(stream).is_ok_and(|peer| is_one_of_us(peer.uid.as_raw(), geteuid().as_raw()))
}

fn is_one_of_us(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

/// The answer to `org.varlink.service.GetInfo`.
fn service() -> Value {
    json!({
        "vendor": "wirevm",
        "product": "wirevm",
        "version": env!("CARGO_PKG_VERSION"),
        "url": "",
        "interfaces": methods::INTERFACES.iter().map(|(name, _)| name).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
