//! Guest to host.

use std::io;

use net::{HEADER_LEN, Sent};

use super::burst::BATCH;
use super::counters::count;
use super::merge::Merge;
use super::rate::{Allowance, Way};
use super::{Next, PairParts, QueuePair};
use crate::virtio::queue::Error;

/// The largest frame, header included: 64 KiB of packet behind an Ethernet header with a VLAN tag.
pub(super) const MAX_FRAME: usize = HEADER_LEN + 18 + 65536;

impl QueuePair {
    /// Guest to host. Each frame is done, deferred, or ends the burst. True: the driver wants an interrupt for the last of it.
    pub(super) fn transmit(&mut self) -> Result<bool, Error> {
        let PairParts { memory, tx, backend, counters, interrupt, rate, .. } = &mut self.parts;
        let allowed = match rate.as_ref().map_or(Ok(Allowance::FULL), |rate| rate.allow(Way::Sent)) {
            Ok(allowed) => allowed,
            Err(at) => {
                count(&counters.tx_rate_waits, 1);
                self.transmit = Next::Tokens(at);
                return Ok(false);
            }
        };
        let rings = tx.ring.map(memory)?;
        let coalescer = &mut self.tx_coalescer;
        let (mut frames, mut bytes, mut dropped, mut too_long, mut calls, mut told) = (0, 0, 0, 0, 0, 0);
        let (mut merged, mut packets) = (0, 0);
        let mut next = Next::Work;
        let mut frame = self.iov.start();
        let mut ahead = self.merge.as_deref_mut().map(Merge::start);
        let mut used = 0;
        while used < allowed.frames {
            if used - told >= BATCH {
                coalescer.signal(tx, &rings, &**interrupt, counters, used - told, false)?;
                told = used;
            }
            if bytes >= allowed.bytes {
                break;
            }
            let ring = &mut tx.ring;
            let chain = match ahead.as_mut().and_then(|ahead| ahead.take(&mut frame)) {
                Some(chain) => chain,
                None => {
                    let Some(chain) = ring.next_ahead(&rings)? else {
                        next = Next::Ring;
                        break;
                    };
                    frame.clear();
                    ring.readable(&rings, chain, &mut frame)?;
                    chain
                }
            };
            // A frame without a whole header is none (§5.1.6.2.1 says that the driver sets its fields).
            if frame.len() < HEADER_LEN {
                return Err(Error::TooShort(chain.head));
            }
            let packet = match &mut ahead {
                Some(ahead) => {
                    let left = Allowance { bytes: allowed.bytes - bytes, frames: allowed.frames - used };
                    ahead.gather(ring, &rings, (chain, &frame), &left)
                }
                None => None,
            };
            let count = packet.as_ref().map_or(1, |packet| packet.frames);
            // The host's kernel is not to allocate for a "frame" of gigabytes.
            let sent = if frame.len() > MAX_FRAME {
                too_long += 1;
                Err(io::ErrorKind::InvalidInput.into())
            } else {
                calls += 1;
                backend.send(match (&packet, &ahead) {
                    (Some(_), Some(ahead)) => ahead.packet(),
                    _ => &frame,
                })
            };
            match sent {
                Ok(sent) => {
                    frames += count;
                    bytes += match &packet {
                        Some(packet) => {
                            (merged, packets) = (merged + count, packets + 1);
                            packet.bytes
                        }
                        None => (frame.len() - HEADER_LEN) as u64,
                    };
                    // No event says that the backend has an answer.
                    if sent == Sent::Answered && self.receive == Next::Host {
                        self.receive = Next::Work;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    (0..count).for_each(|_| ring.undo_pop());
                    next = Next::Host;
                    break;
                }
                Err(error) => {
                    if let (Some(packet), Some(ahead)) = (&packet, &mut ahead)
                        && ahead.is_refusal(packet, &error)
                    {
                        (0..count).for_each(|_| ring.undo_pop());
                        ahead.put_back(ring);
                        continue;
                    }
                    (0..count).for_each(|_| counters.count_refused(&error));
                    dropped += count;
                }
            }
            match (&packet, &ahead) {
                (Some(packet), Some(ahead)) => {
                    ahead.heads(packet).iter().for_each(|head| ring.push_used(&rings, *head, 0));
                }
                _ => ring.push_used(&rings, chain.head, 0),
            }
            used += count;
        }
        if let Some(mut ahead) = ahead {
            ahead.put_back(&mut tx.ring);
        }
        self.transmit = next;
        if let Some(rate) = rate {
            rate.settle(Way::Sent, allowed, bytes, frames);
        }
        count(&counters.tx_frames, frames);
        count(&counters.tx_bytes, bytes);
        count(&counters.tx_dropped, dropped);
        count(&counters.tx_too_long, too_long);
        count(&counters.tx_merged, merged);
        count(&counters.tx_packets, packets);
        count(&counters.calls, calls);
        tx.ring.show(&rings)?;
        let wanted = tx.ring.wants_interrupt(&rings)?;
        if wanted {
            coalescer.add(frames + dropped - told);
        }
        Ok(wanted)
    }
}
