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
        Events::with_data(&self.parts.backend.fd(), HOST, self.host_events)
    }

    /// The host's event, where it is to be watched in another way before the thread sleeps.
    ///
    /// For room as well, once the host had none, and from then on for good: a descriptor that is always writable would otherwise
    /// wake the thread for each frame that it has read by then, as epoll(7) tells all that is true when something becomes so.
    ///
    /// For frames no more, once one woke a thread that waits for something else, until it waits for the host again: a guest that is
    /// slower than its host would be stopped for each frame that it has no room for. What came meanwhile is an event then.
    pub(in crate::virtio::net) fn watches_otherwise(&mut self) -> Option<Events> {
        let mut set = self.host_events;
        if self.transmit == Next::Host {
            set.insert(EventSet::OUT);
        }
        let in_vain = std::mem::take(&mut self.woken_in_vain);
        if self.receive == Next::Host {
            set.insert(EventSet::IN);
        } else if in_vain {
            set.remove(EventSet::IN);
        }
        if std::mem::replace(&mut self.host_events, set) == set {
            return None;
        }
        count(&self.parts.counters.calls, 1);
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
                    let sleeps = !matches!(self.receive, Next::Host | Next::Work | Next::Ring);
                    self.woken_in_vain |= sleeps;
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
    use std::time::{Duration, Instant};

    use net::SocketBackend;

    use super::super::double;
    use super::*;

    fn pair() -> QueuePair {
        double::pair().0
    }

    #[test]
    fn room_at_the_host_is_watched_for_once_there_was_none() {
        let mut pair = pair();
        let watched = |pair: &QueuePair| {
            let host = pair.watched().into_iter().find(|events| events.data() == HOST);
            host.expect("it is watched").event_set()
        };
        assert!(pair.watches_otherwise().is_none());
        assert_eq!(watched(&pair), EDGE);
        pair.transmit = Next::Host;
        let more = pair.watches_otherwise().expect("there is no room");
        assert_eq!((more.data(), more.event_set()), (HOST, EDGE | EventSet::OUT));
        // It stays so when the pair is watched anew, as after a pause.
        assert!(pair.watches_otherwise().is_none());
        pair.transmit = Next::Ring;
        assert!(pair.watches_otherwise().is_none());
        assert_eq!(watched(&pair), EDGE | EventSet::OUT);
        // Of another wire nothing is known.
        pair.take_end(Box::new(SocketBackend::pair().unwrap().0));
        assert_eq!(watched(&pair), EDGE);
    }

    #[test]
    fn frames_are_not_watched_for_by_who_sleeps_for_something_else() {
        let frame = |pair: &QueuePair| Events::with_data(&pair.parts.backend.fd(), HOST, EventSet::IN);
        let soon = Instant::now() + Duration::from_secs(1);
        for waits in [Next::Driver, Next::Tokens(soon), Next::Control, Next::Reset] {
            let mut pair = pair();
            pair.receive = waits;
            // As long as none comes, to watch for them costs nothing.
            assert!(pair.watches_otherwise().is_none());
            pair.note(frame(&pair));
            assert_eq!(pair.receive, waits);
            let none = pair.watches_otherwise().expect("one came in vain").event_set();
            assert_eq!(none, EventSet::EDGE_TRIGGERED);
            assert!(pair.watches_otherwise().is_none());
            // It does not wait for the host yet.
            pair.receive = Next::Work;
            assert!(pair.watches_otherwise().is_none());
            pair.receive = Next::Host;
            assert_eq!(pair.watches_otherwise().expect("it waits for frames").event_set(), EDGE);
            assert!(pair.watches_otherwise().is_none());
        }
        // Who looks at the ring sleeps not.
        for looks in [Next::Host, Next::Work, Next::Ring] {
            let mut pair = pair();
            pair.receive = looks;
            pair.note(frame(&pair));
            assert!(pair.watches_otherwise().is_none(), "{looks:?}");
        }
        // One that waits for the host by now is told of the next frame.
        let mut pair = pair();
        pair.receive = Next::Driver;
        pair.note(frame(&pair));
        pair.receive = Next::Host;
        assert!(pair.watches_otherwise().is_none());
        pair.receive = Next::Driver;
        assert!(pair.watches_otherwise().is_none());
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
