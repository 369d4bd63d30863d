//! What the host's side brings: programs at the VM's socket, answers of who knows the host's ports, and events of sockets.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use vmm_sys_util::epoll::EventSet;

use super::{Connections, FIRST_PORT};
use crate::virtio::vsock::connection::{Connection, Fate, Ports, Stage};
use crate::virtio::vsock::greeting::Heard;

/// How many programs are let in before others have their turn.
const ACCEPTS: usize = 32;
/// How long nobody is let in who there are no descriptors for.
const REST: Duration = Duration::from_secs(1);

impl Connections {
    /// Programs may have connected.
    pub(in crate::virtio::vsock) fn note_programs(&mut self) {
        self.accepts = true;
    }

    /// Whether there may be programs to let in.
    pub(in crate::virtio::vsock) fn accepts(&self) -> bool {
        self.accepts && self.rests.is_none()
    }

    /// Lets programs in, if there is a driver that could answer them; else they find the connection closed.
    pub(in crate::virtio::vsock) fn accept(&mut self, has_driver: bool) {
        for _ in 0..ACCEPTS {
            match accept_with(&self.host.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) if has_driver => self.let_in(socket),
                Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.rests = Some(Instant::now() + REST);
                    return self.note_deadline(self.rests);
                }
                Err(_) => {
                    self.accepts = false;
                    return;
                }
            }
        }
    }

    fn let_in(&mut self, socket: OwnedFd) {
        let promise = self.next_promise();
        if let Some(slot) = self.insert(Connection::greeted(socket, promise)) {
            self.watch(slot);
        }
    }

    /// Takes the answers of whoever knows the ports of the host.
    pub(in crate::virtio::vsock) fn take_answers(&mut self) {
        loop {
            match self.host.ports.answer() {
                Ok((id, socket)) => self.answer(id, socket),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn answer(&mut self, id: u64, socket: Option<OwnedFd>) {
        let Some(slot) = self.slot_of(id) else { return };
        let Some((_, connection)) = &mut self.slots[slot] else { return };
        if !matches!(connection.stage, Stage::Asked) {
            return;
        }
        self.asked -= 1;
        let Some(socket) = socket else { return self.remove(slot, true) };
        connection.accept(socket);
        self.watch(slot);
        self.follow(slot, Fate::Goes);
    }

    /// An event of a connection's socket.
    pub(in crate::virtio::vsock) fn note(&mut self, id: u64, set: EventSet) {
        let Some(slot) = self.slot_of(id) else { return };
        let Some((_, connection)) = &mut self.slots[slot] else { return };
        let hung_up = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
        match connection.greet() {
            Some(Heard::Part) if !hung_up => return,
            Some(Heard::Port(port)) => {
                let ports = Ports { host: self.free_port(port), guest: port };
                let Some((_, connection)) = &mut self.slots[slot] else { return };
                connection.request(ports);
                self.by_ports.insert(ports, slot);
            }
            Some(_) => return self.follow(slot, Fate::Over),
            None => {}
        }
        let Some((_, connection)) = &mut self.slots[slot] else { return };
        let fate = connection.note(
            set.intersects(EventSet::IN | EventSet::READ_HANG_UP),
            set.contains(EventSet::OUT),
            hung_up,
        );
        self.follow(slot, fate);
    }

    /// A port of the host's that no connection to that port of the guest has.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port =
                self.next_port.checked_add(1).filter(|&port| port < u32::MAX).unwrap_or(FIRST_PORT);
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }
}
