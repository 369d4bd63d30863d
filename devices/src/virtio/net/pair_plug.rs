//! What is plugged into a pair, whatever state it is in: a link that goes down and up, and another wire.

use std::io;
use std::mem::replace;

use event_manager::EventOps;
use net::{IovBuffer, Unplugged};
use vm_memory::VolatileSlice;

use super::mailbox::Exchanged;
use super::pair_life::{PairLife, State, unwatch, watch};
use super::queue_pair::{HostEnd, QueuePair};

impl PairLife {
    /// Does something to a pair with a driver that may have it watch other events. It hears whether the pair is at work.
    pub(super) fn rewire<T>(
        &mut self,
        ops: &mut EventOps,
        work: impl FnOnce(&mut QueuePair, bool) -> T,
    ) -> Option<T> {
        match &mut self.state {
            State::Running(pair) => {
                unwatch(pair.watched(), ops);
                let result = work(pair, true);
                if let Err(error) = watch(pair, ops) {
                    log::error!("{}: cannot wait for events: {error}", self.name);
                    pair.end();
                }
                Some(result)
            }
            State::Paused(pair) => Some(work(pair, false)),
            State::Idle(_) | State::Ended(_) | State::Between => None,
        }
    }

    /// Takes `end` in place of what is plugged in now.
    fn put_in(&mut self, end: Box<HostEnd>, ops: &mut EventOps) -> Exchanged {
        match &mut self.state {
            State::Idle(old) => {
                let mut end = end;
                let set = end
                    .backend
                    .set_filter(&self.filter)
                    .and_then(|()| end.backend.set_enabled(self.number == 0));
                if let Err(error) = set {
                    return Err((end, error));
                }
                return Ok(Box::new(replace(old, *end)));
            }
            State::Ended(pair) => return Ok(Box::new(pair.put_aside(*end))),
            State::Running(_) | State::Paused(_) | State::Between => {}
        }
        let mut end = end;
        let mut barred = None;
        let done = self.rewire(ops, |pair, runs| {
            barred = end.carrier.take_if(|carrier| !pair.may_have(carrier));
            pair.exchange(*end, runs)
        });
        match done.expect("it is running or paused") {
            Ok(mut old) => {
                old.carrier = old.carrier.or_else(|| replace(&mut self.barred, barred));
                Ok(Box::new(old))
            }
            Err((mut end, error)) => {
                end.carrier = end.carrier.or(barred);
                Err((Box::new(end), error))
            }
        }
    }

    /// Whether the pair could have `end` in place of what it has beside, while the link is down: it has it for a moment.
    fn try_on(&mut self, end: Box<HostEnd>, ops: &mut EventOps) -> Exchanged {
        let done = self.rewire(ops, |pair, runs| pair.try_on(*end, runs));
        match done {
            Some(done) => done.map(Box::new).map_err(|(end, error)| (Box::new(end), error)),
            None => unreachable!("it is running or paused"),
        }
    }

    /// The link is up or down.
    pub(super) fn set_link(&mut self, up: bool, ops: &mut EventOps) -> io::Result<()> {
        match (up, self.beside.take()) {
            (false, None) => {
                let nothing = HostEnd { backend: Box::new(Unplugged::new()?), carrier: None };
                let end = self.put_in(Box::new(nothing), ops).map_err(|(_, error)| error)?;
                self.beside = Some(end);
            }
            (true, Some(mut end)) => {
                // What came while the link was down is lost, as on any wire.
                end.backend.drain();
                if let Err((end, error)) = self.put_in(end, ops) {
                    self.beside = Some(end);
                    return Err(error);
                }
            }
            (_, beside) => self.beside = beside,
        }
        Ok(())
    }

    pub(super) fn exchange(&mut self, end: Box<HostEnd>, ops: &mut EventOps) -> Exchanged {
        let mut end = end;
        let has_driver = matches!(self.state, State::Running(_) | State::Paused(_));
        if let State::Running(pair) | State::Paused(pair) = &self.state
            && let Err(error) = pair.check(&end)
        {
            return Err((end, error));
        }
        if has_driver && self.beside.is_some() {
            // Later there is nobody to tell that it cannot be.
            end = self.try_on(end, ops)?;
        }
        let mut old = match self.beside.take() {
            // It waits for the link.
            Some(old) => {
                self.beside = Some(end);
                old
            }
            None => self.put_in(end, ops)?,
        };
        if self.number == 0 {
            // As it was found: its link may stay in somebody's hand.
            old.backend.set_carrier(true);
        }
        self.show_carrier();
        Ok(old)
    }

    /// Shows on the host's link whether there is somebody at the guest's end.
    pub(super) fn show_carrier(&mut self) {
        if self.number > 0 {
            return;
        }
        let present = self.present && !self.cut;
        match (&mut self.beside, &mut self.state) {
            (Some(end), _) => end.backend.set_carrier(present),
            (None, State::Idle(end)) => end.backend.set_carrier(present),
            (None, State::Running(pair) | State::Paused(pair) | State::Ended(pair)) => {
                pair.backend_mut().set_carrier(present);
            }
            (None, State::Between) => {}
        }
    }

    /// Leaves the carrier of the host's link as it was found: its end may stay in somebody's hand.
    pub(super) fn give_carrier_back(&mut self) {
        (self.present, self.cut) = (true, false);
        self.show_carrier();
    }

    pub(super) fn send(&mut self, frames: Vec<Vec<u8>>) {
        let backend = match &mut self.state {
            State::Running(pair) | State::Paused(pair) | State::Ended(pair) => pair.backend_mut(),
            State::Idle(end) => &mut *end.backend,
            State::Between => return,
        };
        for mut frame in frames {
            let mut buffers = IovBuffer::new();
            let mut iov = buffers.start();
            if !iov.push(VolatileSlice::from(&mut frame[..])) {
                continue;
            }
            // What is lost is what a cable loses.
            if let Err(error) = backend.send(&iov) {
                log::debug!("{}: cannot announce the guest: {error}", self.name);
            }
        }
    }
}
