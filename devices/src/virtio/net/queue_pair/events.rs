//! Which event wakes what.

use event_manager::{EventSet, Events};

use super::counters::count;
use super::{Next, PairParts, QueuePair};

const RX_KICK: u32 = 0;
const TX_KICK: u32 = 1;
const HOST: u32 = 2;
const CONTROL_KICK: u32 = 3;
const RX_RELAY: u32 = 4;
const TX_RELAY: u32 = 5;
const CARRIER: u32 = 6;
const ASKED: u32 = 7;
/// The first number that is free, for who watches more.
pub(in crate::virtio::net) const FREE: u32 = 8;

/// An edge-triggered eventfd tells of every write without ever being read: a system call saved for each kick. Its counter would
/// take centuries to fill.
pub(in crate::virtio::net) const EDGE: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);

impl QueuePair {
    /// All events that the pair waits for while it runs.
    pub(in crate::virtio::net) fn watched(&self) -> Vec<Events> {
        let PairParts { rx, tx, backend, carrier, control, .. } = &self.parts;
        let mut all = match carrier {
            None => vec![
                Events::with_data(&*rx.kick, RX_KICK, EDGE),
                Events::with_data(&*tx.kick, TX_KICK, EDGE),
                self.host_event(),
            ],
            // The kernel waits for the kicks and the host.
            Some(carrier) => {
                let events = carrier.events();
                let mut all = vec![
                    Events::with_data(&events.relays[0], RX_RELAY, EDGE),
                    Events::with_data(&events.relays[1], TX_RELAY, EDGE),
                    Events::with_data(&events.error, CARRIER, EDGE),
                ];
                all.extend(backend.asked_fd().map(|asked| Events::with_data(&asked, ASKED, EDGE)));
                all
            }
        };
        all.extend(
            control.as_ref().map(|control| Events::with_data(&*control.queue().kick, CONTROL_KICK, EDGE)),
        );
        all
    }

    fn host_event(&self) -> Events {
        let out = if self.watches_out { EventSet::OUT } else { EventSet::empty() };
        Events::with_data(&self.parts.backend.fd(), HOST, EDGE | out)
    }

    /// The event that is to be watched in another way, once the host has no room: for room as well, and from then on for good. A
    /// descriptor that is always writable would otherwise wake the thread for each frame that it has read by then, as epoll(7)
    /// tells all that is true when something becomes so.
    pub(in crate::virtio::net) fn watches_more(&mut self) -> Option<Events> {
        if self.transmit != Next::Host || self.watches_out {
            return None;
        }
        self.watches_out = true;
        Some(self.host_event())
    }

    /// Notes what an event allows; the frames move in [`process`](Self::process).
    pub(in crate::virtio::net) fn note(&mut self, events: Events) {
        let set = events.event_set();
        let failed = set.intersects(EventSet::ERROR | EventSet::HANG_UP);
        let wake = |next: &mut Next, waits: Next| {
            if *next == waits {
                *next = Next::Work;
            }
        };
        match events.data() {
            RX_KICK => {
                count(&self.parts.counters.kicks, 1);
                wake(&mut self.receive, Next::Driver);
            }
            TX_KICK => {
                count(&self.parts.counters.kicks, 1);
                wake(&mut self.transmit, Next::Driver);
            }
            CONTROL_KICK => self.commanded = true,
            ASKED => self.asked = true,
            RX_RELAY => self.relay(self.parts.rx.index),
            TX_RELAY => self.relay(self.parts.tx.index),
            CARRIER => self.carrier_failed(),
            _ => {
                if failed || set.contains(EventSet::IN) {
                    wake(&mut self.receive, Next::Host);
                }
                if failed || set.contains(EventSet::OUT) {
                    wake(&mut self.transmit, Next::Host);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use net::SocketBackend;
    use vm_memory::{GuestAddress, GuestMemoryMmap};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::virtio::device::ActiveQueue;
    use crate::virtio::mock::{MockRing, NoInterrupts};
    use crate::virtio::net::queue_pair::ReceiveSpace;
    use crate::virtio::queue::{F_VERSION_1, VirtQueue};

    fn pair() -> QueuePair {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let queue = |index, base| {
            let ring = MockRing::new(&memory, base, 8, false);
            let ring = VirtQueue::new(ring.setup(), F_VERSION_1, &memory).unwrap();
            ActiveQueue { index, ring, kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()) }
        };
        QueuePair::new(PairParts {
            name: "test".into(),
            memory: memory.clone(),
            accepted: F_VERSION_1,
            interrupt: Arc::new(NoInterrupts),
            rx: queue(0, 0x1000),
            tx: queue(1, 0x2000),
            backend: Box::new(SocketBackend::pair().unwrap().0),
            space: ReceiveSpace::new(F_VERSION_1, None),
            carrier: None,
            control: None,
            enabled: true,
            offloads: net::Offloads::default(),
            filter: net::RxFilter::new(net::Mac::random().unwrap()),
            poll: Some(std::time::Duration::ZERO),
            rate: None,
            counters: Arc::default(),
            broken: Arc::default(),
        })
    }

    #[test]
    fn room_at_the_host_is_watched_for_once_there_was_none() {
        let mut pair = pair();
        let watched = |pair: &QueuePair| {
            let host = pair.watched().into_iter().find(|events| events.data() == HOST);
            host.expect("it is watched").event_set()
        };
        assert!(pair.watches_more().is_none());
        assert_eq!(watched(&pair), EDGE);
        pair.transmit = Next::Host;
        let more = pair.watches_more().expect("there is no room");
        assert_eq!((more.data(), more.event_set()), (HOST, EDGE | EventSet::OUT));
        // It stays so when the pair is watched anew, as after a pause.
        assert!(pair.watches_more().is_none());
        pair.transmit = Next::Ring;
        assert_eq!(watched(&pair), EDGE | EventSet::OUT);
        // Of another wire nothing is known.
        pair.take_end(Box::new(SocketBackend::pair().unwrap().0));
        assert_eq!(watched(&pair), EDGE);
    }

    #[test]
    fn the_host_s_descriptor_wakes_who_waits_for_the_host() {
        for (set, receive, transmit) in [
            (EventSet::IN, Next::Work, Next::Host),
            (EventSet::OUT, Next::Host, Next::Work),
            // What is wrong, the next call says.
            (EventSet::ERROR, Next::Work, Next::Work),
            (EventSet::HANG_UP, Next::Work, Next::Work),
        ] {
            let mut pair = pair();
            let event = Events::with_data(&pair.parts.backend.fd(), HOST, set);
            (pair.receive, pair.transmit) = (Next::Host, Next::Host);
            pair.note(event);
            assert_eq!((pair.receive, pair.transmit), (receive, transmit), "{set:?}");
            (pair.receive, pair.transmit) = (Next::Driver, Next::Driver);
            pair.note(event);
            assert_eq!((pair.receive, pair.transmit), (Next::Driver, Next::Driver), "{set:?}");
        }
    }
}
