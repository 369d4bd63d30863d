//! Host to guest.
//!
//! One read a frame. What was tried on a tap of Linux 6.18 and left out, in processor time of a small frame: io_uring, by 32 reads at
//! once, 0.90 of it, but each read under way needs the room of the largest frame, of which a ring has five; `IFF_NAPI` costs what is
//! sent 1.35 to 1.65 times as much; a queue of 4,000 or 16,000 frames at the tap changes nothing.

use std::io;

use net::HEADER_LEN;
use vm_memory::VolatileSlice;

use super::burst::{BATCH, BURST};
use super::counters::count;
use super::rate::{Allowance, Way};
use super::receive_space::{InHand, Room, fill, gather};
use super::shortage::Shortage;
use super::{Next, PairParts, QueuePair};
use crate::virtio::queue::Error;

impl QueuePair {
    /// Host to guest. The room for the largest frame is gathered once; each frame takes the chains it fills from the front, and what
    /// is left at the end stays [in hand](super::receive_space::InHand). True: the driver was interrupted.
    ///
    /// No more than `most` frames, and no more than a burst.
    pub(super) fn receive(&mut self, most: u64) -> Result<bool, Error> {
        let PairParts { memory, rx, backend, counters, interrupt, space: wanted, rate, .. } = &mut self.parts;
        let allowed = match rate.as_ref().map_or(Ok(Allowance::FULL), |rate| rate.allow(Way::Received)) {
            Ok(allowed) => allowed,
            Err(at) => {
                count(&counters.rx_rate_waits, 1);
                self.receive = Next::Tokens(at);
                // Another frame may not come before the interrupt for those before is due.
                return if self.rx_coalescer.is_held() { self.signal_received() } else { Ok(false) };
            }
        };
        let rings = rx.ring.map(memory)?;
        let InHand { buffers, posted } = &mut self.in_hand;
        let (shortage, coalescer) = (&mut self.shortage, &mut self.rx_coalescer);
        let overflow = VolatileSlice::from(&mut self.overflow[..]);
        let (mut used, mut shown, mut frames, mut told, mut bytes) = (0, 0, 0, 0, 0);
        let (mut dropped, mut calls) = (0, 0);
        let (mut next, mut interrupted) = (Next::Work, false);
        let mut space = buffers.resume(memory);
        if space.is_empty() {
            posted.drain(..).for_each(|_| rx.ring.undo_pop());
        }
        let most = most.min(allowed.frames);
        while used < BURST && bytes < allowed.bytes && frames < most {
            if used >= shown + BATCH {
                let more = frames - told;
                interrupted |= coalescer.signal(rx, &rings, &**interrupt, counters, more, false)?;
                (shown, told) = (used, frames);
            }
            let received = match gather(&mut rx.ring, &rings, *wanted, &mut space, posted)? {
                Room::Enough if shortage.is_none() => {
                    calls += 1;
                    backend.recv(&mut space)
                }
                room => match shortage.receive(room, &mut space, overflow, &mut **backend, &mut calls) {
                    Some(received) => received,
                    None => {
                        next = Next::Ring;
                        break;
                    }
                },
            };
            match received {
                Ok(len) if len >= HEADER_LEN && len <= space.len() && wanted.suits(&mut space) => {
                    used += u64::from(fill(&mut rx.ring, &rings, len, &mut space, posted));
                    frames += 1;
                    bytes += (len - HEADER_LEN) as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    next = Next::Host;
                    break;
                }
                // Lost as on a wire; the chains are as good as before for the next one.
                lost => {
                    if let Err(error) = lost {
                        counters.count_unread(&error);
                    }
                    dropped += 1;
                    used += 1;
                }
            }
        }
        space.keep();
        // A host end that only ever fails (a deleted tap) is left alone until its descriptor says something new.
        if dropped == BURST {
            next = Next::Host;
        }
        if !shortage.is_none() && self.overflow.is_empty() {
            self.overflow = Shortage::overflow();
        }
        self.receive = next;
        if let Some(rate) = rate {
            rate.settle(Way::Received, allowed, bytes, frames);
        }
        count(&counters.rx_frames, frames);
        count(&counters.rx_bytes, bytes);
        count(&counters.rx_dropped, dropped);
        count(&counters.calls, calls);
        let (more, dry) = (frames - told, next == Next::Ring);
        Ok(coalescer.signal(rx, &rings, &**interrupt, counters, more, dry)? || interrupted)
    }
}
