//! How, and for how long, the pair's thread waits.

use std::time::{Duration, Instant};

use super::counters::count;
use super::{Next, PairParts, QueuePair};

/// How often the driver's ring is looked at before the host is asked again.
const LOOKS: u32 = 16;
/// How often it is looked at for an answer: some microseconds, of which a driver that polls needs one or two.
const ANSWER_LOOKS: u32 = 48;

impl QueuePair {
    /// For how long its thread polls before it sleeps; none where it finds out. The kernel polls by itself.
    pub(in crate::virtio::net) fn poll(&self) -> Option<Duration> {
        if self.parts.carrier.is_none() { self.parts.poll } else { Some(Duration::ZERO) }
    }

    /// True if it waits for the driver or the host, and not for a time.
    pub(in crate::virtio::net) fn waits_for_frames(&self) -> bool {
        let timed = |next| matches!(next, Next::Tokens(_) | Next::Kernel | Next::Reset);
        !timed(self.transmit) && !timed(self.receive)
    }

    /// True if the driver has to post before it receives more.
    pub(in crate::virtio::net) fn is_dry(&self) -> bool {
        self.receive == Next::Ring
    }

    /// Looks at the driver's ring for about as long as a system call takes, until there is something: it costs less than to ask
    /// for events all the time.
    pub(in crate::virtio::net) fn look_for_a_moment(&self) {
        self.look_often(LOOKS);
    }

    /// The same, for about as long as a driver that polls takes to answer.
    pub(super) fn look_for_an_answer(&self) {
        self.look_often(ANSWER_LOOKS);
    }

    fn look_often(&self, looks: u32) {
        let PairParts { memory, tx, .. } = &self.parts;
        let Ok(rings) = tx.ring.map(memory) else { return };
        for _ in 0..looks {
            if self.transmit != Next::Ring || !matches!(tx.ring.has_more(&rings), Ok(false)) {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// How long a thread without work may sleep at most, if not for ever. A [held](Self::interrupt_due) interrupt has a timer beside it.
    pub(in crate::virtio::net) fn waits(&self) -> Option<Duration> {
        let owed = self.owed.map(|owed| owed.saturating_duration_since(Instant::now()));
        let tokens = [self.transmit, self.receive].into_iter().filter_map(|next| match next {
            Next::Tokens(at) => Some(at.saturating_duration_since(Instant::now())),
            _ => None,
        });
        let shortage = self.shortage.waits().filter(|_| !matches!(self.receive, Next::Tokens(_)));
        let refill = self.refill.waits().filter(|_| self.receive == Next::Driver);
        self.look_again.into_iter().chain(owed).chain(tokens).chain(shortage).chain(refill).min()
    }

    /// Counts a system call by which its thread waits.
    pub(in crate::virtio::net) fn count_wait(&self) {
        count(&self.parts.counters.calls, 1);
    }

    /// The time of [`waits`](Self::waits) is over, and nothing happened.
    pub(in crate::virtio::net) fn waited(&mut self) {
        self.asked = self.look_again.is_some();
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use event_manager::{EventSet, Events};
    use net::{Backend, Iov, Offloads, Sent};

    use super::super::double::{self, DATA};
    use super::super::{IN_VAIN, ONCE_IN};
    use super::*;
    use crate::virtio::device::Interrupt;
    use crate::virtio::mock::Buffer;

    /// An end that notes what it is asked for.
    struct Noted(Box<dyn Backend>, Arc<Mutex<Vec<&'static str>>>);

    impl Backend for Noted {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.fd()
        }

        fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
            self.1.lock().unwrap().push("send");
            self.0.send(frame)
        }

        fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
            self.1.lock().unwrap().push("recv");
            self.0.recv(space)
        }

        fn offloads(&self) -> Offloads {
            self.0.offloads()
        }

        fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
            self.0.set_offloads(accepted)
        }
    }

    /// Counts the interrupts of queues.
    struct Interrupts(AtomicU32);

    impl Interrupt for Interrupts {
        fn queue(&self, _: u16) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn config(&self) -> io::Result<()> {
            Ok(())
        }

        fn needs_reset(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a pair asks its end for in one turn, for which two frames wait and an answer is there, and how often it interrupts.
    fn turn_of_two(wants_interrupts: bool) -> (Vec<&'static str>, u32) {
        let (mut pair, [mut rx, mut tx], peer) = double::pair();
        rx.want_interrupts(wants_interrupts);
        tx.want_interrupts(false);
        for at in 0..3 {
            rx.add(&[Buffer::writable(DATA + 2048 * at, 2048)]).unwrap();
        }
        rx.publish();
        pair.process();
        pair.arm();
        assert_eq!((pair.transmit, pair.receive), (Next::Driver, Next::Host));

        let (calls, interrupts) = (Arc::default(), Arc::new(Interrupts(AtomicU32::new(0))));
        let own = pair.take_end(Box::new(net::SocketBackend::pair().unwrap().0));
        pair.take_end(Box::new(Noted(own.backend, Arc::clone(&calls))));
        pair.parts.interrupt = Arc::clone(&interrupts) as Arc<dyn Interrupt>;
        (0..2).for_each(|_| peer.send(&[0; 72]).unwrap());
        tx.add(&[Buffer::readable(DATA + 8192, 72)]).unwrap();
        tx.publish();
        pair.note(Events::with_data(&pair.parts.backend.fd(), 2, EventSet::IN));
        pair.process();
        assert!(rx.reap().is_some() && rx.reap().is_some());
        let calls = calls.lock().unwrap().clone();
        (calls, interrupts.0.load(Ordering::Relaxed))
    }

    #[test]
    fn the_answer_to_the_first_frame_goes_out_before_the_next_is_asked_for() {
        assert_eq!(turn_of_two(false), (vec!["recv", "send", "recv", "recv"], 0));
        // Who waits for an interrupt has one for both, and answers later.
        assert_eq!(turn_of_two(true), (vec!["recv", "recv", "recv"], 1));
    }

    #[test]
    fn an_answer_is_looked_for_seldom_where_none_came_until_one_does() {
        let (mut pair, [mut rx, mut tx], peer) = double::pair();
        rx.want_interrupts(false);
        let mut turn = |answers: bool| {
            rx.add(&[Buffer::writable(DATA, 2048)]).unwrap();
            rx.publish();
            pair.wake();
            pair.process();
            pair.arm();
            assert_eq!((pair.transmit, pair.receive), (Next::Driver, Next::Host));
            peer.send(&[0; 72]).unwrap();
            pair.note(Events::with_data(&pair.parts.backend.fd(), 2, EventSet::IN));
            if answers {
                tx.add(&[Buffer::readable(DATA, 72)]).unwrap();
                tx.publish();
            }
            pair.process();
            assert!(rx.reap().is_some());
            if answers {
                assert_eq!(peer.recv().unwrap().len(), 72, "in the same turn");
                while tx.reap().is_some() {}
            }
            pair.transmit == Next::Ring
        };
        for number in 0..2 * ONCE_IN {
            assert_eq!(turn(false), number < IN_VAIN || number % ONCE_IN == 0, "{number}");
        }
        turn(true);
        for number in 0..IN_VAIN + 1 {
            assert_eq!(turn(false), number < IN_VAIN, "{number}");
        }
    }
}
