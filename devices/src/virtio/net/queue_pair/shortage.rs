//! Receiving while the driver has posted less than the largest frame takes.
//!
//! A descriptor of the host hands over a whole frame or loses what does not fit, and does not say beforehand how long the next one
//! is. So a pair that has little room for a moment waits until the driver has posted more, which costs nothing. A driver may never
//! do so: one that posts little at any time, or posts again only when most is used. So the pair waits for [`REFILL`] at most, and
//! then reads frames with memory of its own behind the room. One that fits the room is where it belongs, without a copy. One that
//! does not is held, and copied into what the driver posts next; it is lost where that does not come within [`HELD`]. These are the
//! only payloads that a pair copies.
//!
//! Once it was waited for in vain, there is no further wait until a frame did not fit: a driver that posts little pays for one.

use std::io;
use std::time::{Duration, Instant};

use net::{Backend, Iov};
use vm_memory::VolatileSlice;

use super::receive_space::{LARGE_ROOM, Room};

/// How long a driver may take to post more: the least that epoll_wait(2) can wait.
const REFILL: Duration = Duration::from_millis(1);
/// How long a frame waits for a driver to make room. A Linux driver without memory tries again after half a second.
const HELD: Duration = Duration::from_secs(1);

/// What a pair does for want of room.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    /// Until when it waits for the driver, if it does.
    until: Option<Instant>,
    /// It has waited in vain, and waits no more.
    lazy: bool,
    /// A frame that did not fit: empty where there is none.
    held: Vec<u8>,
}

impl Shortage {
    /// Memory to have behind too little room, made when it first may be needed.
    pub(super) fn overflow() -> Vec<u8> {
        vec![0; LARGE_ROOM]
    }

    /// True while there is nothing to wait for.
    pub(super) fn is_none(&self) -> bool {
        self.until.is_none()
    }

    /// How long it waits still.
    pub(super) fn waits(&self) -> Option<Duration> {
        Some(self.until?.saturating_duration_since(Instant::now()))
    }

    /// True once it has waited long enough.
    pub(super) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Loses the frame that waits.
    pub(super) fn forget(&mut self) {
        (self.until, self.held) = (None, Vec::new());
    }

    /// Receives a frame into `space`, which has this `room`, by `overflow` behind it, or from what is held. None where the driver
    /// is to post more first.
    #[cold]
    pub(super) fn receive<'m>(
        &mut self,
        room: Room,
        space: &mut Iov<'m>,
        overflow: VolatileSlice<'m>,
        backend: &mut dyn Backend,
        calls: &mut u64,
    ) -> Option<io::Result<usize>> {
        if !self.held.is_empty() {
            return self.deliver(room, space);
        }
        if room == Room::Nothing {
            self.until = None;
            return None;
        }
        if room == Room::Short && !self.lazy {
            if !self.is_over() {
                self.until.get_or_insert_with(|| Instant::now() + REFILL);
                return None;
            }
            self.lazy = true;
        }
        self.until = None;
        let len = space.len();
        // A frame has no more buffers than there are now: it has to do with those.
        let _ = room == Room::Short && space.push(overflow);
        *calls += 1;
        let received = backend.recv(space);
        space.truncate(len);
        match received {
            Ok(whole) if whole > len => {
                self.held.resize(whole, 0);
                space.read_at(0, &mut self.held[..len]);
                overflow.copy_to(&mut self.held[len..]);
                self.lazy = false;
                self.until = Some(Instant::now() + HELD);
                None
            }
            received => Some(received),
        }
    }

    /// Gives the frame that is held, once it fits.
    fn deliver(&mut self, room: Room, space: &mut Iov<'_>) -> Option<io::Result<usize>> {
        let len = self.held.len();
        let result = if len <= space.len() {
            space.write_at(0, &self.held);
            Ok(len)
        } else if room == Room::Enough {
            Err(io::ErrorKind::FileTooLarge.into())
        } else if self.is_over() {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            return None;
        };
        self.forget();
        Some(result)
    }
}
