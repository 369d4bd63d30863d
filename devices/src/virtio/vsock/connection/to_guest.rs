//! From the host to the guest: what a connection has to say, a packet at a time. Bytes go from the socket into the guest's buffers.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::Instant;

use net::Iov;

use super::{Connection, FAREWELL, Stage, owed};
use crate::virtio::vsock::packet::{Header, NEITHER, NO_RECEIVE, NO_SEND, op};

/// The most bytes in a packet, as the guest's driver expects.
const PAYLOAD_MAX: usize = 64 << 10;

impl Connection {
    /// Whether there may be something for the guest.
    pub(in crate::virtio::vsock) fn has_word(&self) -> bool {
        match self.stage {
            Stage::Greeting(_) | Stage::Asked | Stage::Draining => false,
            Stage::Requested => self.owed & owed::REQUEST != 0,
            Stage::Open | Stage::Closing => {
                self.owed != 0
                    || self.inbound.is_due()
                    || self.sends() && (self.outbound.room() > 0 || !self.asked_for_credit)
            }
        }
    }

    /// There may be bytes for the guest.
    fn sends(&self) -> bool {
        matches!(self.stage, Stage::Open)
            && self.readable
            && !self.read_all
            && self.guest_closed & NO_RECEIVE == 0
    }

    /// The next packet for the guest, without its addresses; its payload is in `body` then.
    pub(in crate::virtio::vsock) fn packet(&mut self, body: &mut Iov<'_>) -> Option<Header> {
        let (op, flags, len) = self.word(body)?;
        let mut header = Header { op, flags, len, ..Header::default() };
        self.inbound.tell(&mut header);
        self.owed &= !owed::CREDIT;
        Some(header)
    }

    fn word(&mut self, body: &mut Iov<'_>) -> Option<(u16, u32, u32)> {
        let owed = &mut self.owed;
        let mut owes = |bit: u8| {
            let owes = *owed & bit != 0;
            *owed &= !bit;
            owes
        };
        if owes(owed::REQUEST) {
            self.requested = true;
            return Some((op::REQUEST, 0, 0));
        }
        if owes(owed::RESPONSE) {
            return Some((op::RESPONSE, 0, 0));
        }
        if owes(owed::SHUTDOWN) {
            if self.host_closed == NEITHER {
                self.stage = Stage::Closing;
                self.deadline = Some(Instant::now() + FAREWELL);
            }
            return Some((op::SHUTDOWN, self.host_closed, 0));
        }
        if self.sends() {
            match self.outbound.room() as usize {
                0 if !self.asked_for_credit => {
                    self.asked_for_credit = true;
                    return Some((op::CREDIT_REQUEST, 0, 0));
                }
                0 => {}
                room => {
                    body.truncate(room.min(PAYLOAD_MAX));
                    if let Some(len) = self.receive(body) {
                        self.outbound.send(len);
                        return Some((op::RW, 0, len));
                    }
                    // It may have found the end.
                    if self.owed & owed::SHUTDOWN != 0 {
                        return self.word(body);
                    }
                }
            }
        }
        let due = self.owed & owed::CREDIT != 0 || self.inbound.is_due();
        due.then_some((op::CREDIT_UPDATE, 0, 0))
    }

    /// Reads what the program has sent straight into the guest's memory.
    fn receive(&mut self, body: &Iov<'_>) -> Option<u32> {
        let received = loop {
            match net::receive_bytes(self.socket.as_ref()?.as_fd(), body) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received,
            }
        };
        match received {
            Ok(len @ 1..) => return Some(len as u32),
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            // Its end; or the program has closed with bytes unread.
            Ok(_) | Err(_) => {
                self.read_all = true;
                self.close_host(if self.hung_up { NEITHER } else { NO_SEND });
                self.end_if_said();
            }
        }
        None
    }
}
