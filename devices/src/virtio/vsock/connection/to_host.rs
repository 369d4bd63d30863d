//! From the guest to the host: bytes go from the guest's buffers into the socket, and wait here where that has no room.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Instant;

use net::Iov;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send};

use super::{Connection, DRAIN, Fate, Stage};
use crate::virtio::vsock::packet::{NO_RECEIVE, NO_SEND};

impl Connection {
    /// Hands bytes of the guest's to the program, or keeps them until it has room.
    pub(super) fn deliver(&mut self, body: &Iov<'_>) -> Fate {
        let len = body.len() as u32;
        if self.guest_closed & NO_SEND != 0 || !self.inbound.take(len) {
            return Fate::Reset;
        }
        let mut sent = 0;
        match &self.socket {
            Some(socket) if self.host_closed & NO_RECEIVE == 0 => {
                if self.waiting.is_empty() && self.writable && len > 0 {
                    match net::send_bytes(socket.as_fd(), body) {
                        Ok(bytes) => sent = bytes,
                        Err(error) => self.note_refusal(error.raw_os_error()),
                    }
                }
            }
            _ => self.close_host(NO_RECEIVE),
        }
        if self.host_closed & NO_RECEIVE != 0 {
            self.inbound.forward(len);
            return Fate::Goes;
        }
        self.inbound.forward(sent as u32);
        if sent < body.len() {
            // All that it may ever be, at once: to grow by doubling could take twice that.
            if self.waiting.capacity() == 0 {
                self.waiting.reserve_exact(self.inbound.promise() as usize);
            }
            let mut rest = vec![0; body.len() - sent];
            let read = body.read_at(sent, &mut rest);
            self.waiting.extend(&rest[..read]);
        }
        self.flush()
    }

    /// The socket took no bytes: "not now", or never again.
    fn note_refusal(&mut self, errno: Option<i32>) {
        match errno.map(Errno::from_raw_os_error) {
            Some(Errno::AGAIN) => self.writable = false,
            Some(Errno::INTR) => {}
            _ => self.close_host(NO_RECEIVE),
        }
    }

    /// Hands the program what waits for it, as far as there is room.
    pub(super) fn flush(&mut self) -> Fate {
        while self.writable && !self.waiting.is_empty() {
            let Some(socket) = &self.socket else { break };
            let sent = send(socket, self.waiting.as_slices().0, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            match sent {
                Ok(sent) => {
                    self.waiting.drain(..sent);
                    self.inbound.forward(sent as u32);
                    if let Stage::Draining = self.stage {
                        self.deadline = Some(Instant::now() + DRAIN);
                    }
                }
                Err(errno) => self.note_refusal(Some(errno.raw_os_error())),
            }
        }
        if !self.waiting.is_empty() {
            return Fate::Goes;
        }
        if self.waiting.capacity() > 0 {
            self.waiting = VecDeque::new();
        }
        if let Stage::Draining = self.stage {
            return Fate::Over;
        }
        if self.guest_closed & NO_SEND != 0 && !std::mem::replace(&mut self.told_end, true) {
            self.shut(Shutdown::Write);
            self.end_if_said();
        }
        Fate::Goes
    }
}
