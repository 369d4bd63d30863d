//! A queue while one driver has it: requests off the ring, to the disk, and back.
//!
//! Requests are taken in the driver's order and done in any. A flush covers the writes that were answered before it was asked for,
//! which is all that a driver may expect (virtio 1.3 §5.2.6.2), so it waits for none of those in flight.
//!
//! ```text
//!            Pause                     the driver broke its ring
//!  Running ─────────► Paused  Running ──────────────────────────► Ended
//!          ◄─────────                    until the queue's reset
//!            Resume
//! ```
//! Neither *Paused* nor *Ended* has anything in flight, and neither touches the ring.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::GuestMemoryMmap;

use super::counters::{Counters, count};
use super::medium::Store;
use super::request::{Id, Limits, Request, Status, Work};
use super::state::DiskQueueState;
use super::thread::{Desk, Message};
use super::uring::{Done, Flight, Operation, Uring};
use crate::log_once::LogOnce;
use crate::virtio::device::Interrupt;
use crate::virtio::queue::{Chain, Error, Mapped, VirtQueue};

/// Requests taken before messages are looked for, so that a driver that adds for ever holds none of them off.
const BURST: usize = 32;
/// Bytes of them, those in flight included: with so many, no more is taken. Who pauses or resets the disk waits for no more than these and
/// the last request.
const BURST_BYTES: u64 = 32 << 20;

/// What the queues of a disk have in common.
pub(super) struct Common {
    pub(super) name: String,
    pub(super) store: Store,
    pub(super) limits: Limits,
    pub(super) id: Id,
    /// What is written is to be on the medium before it is answered.
    pub(super) durable: AtomicBool,
    /// Whether it was said that a driver broke its ring, and that the host refused something.
    pub(super) broken: LogOnce,
    pub(super) refused: LogOnce,
}

/// A queue at work.
pub(super) struct Session<'u, 'm> {
    common: &'u Common,
    counters: &'u Counters,
    index: u16,
    queue: VirtQueue,
    rings: Mapped<'m>,
    interrupt: Arc<dyn Interrupt>,
    requests: Vec<(Request<'m>, Work)>,
    /// Those of them that are not in hand.
    free: Vec<usize>,
    /// None where the thread does all by itself.
    flight: Option<Flight<'u, 'm>>,
    ended: bool,
}

impl<'u, 'm> Session<'u, 'm> {
    /// A queue that a driver has set up.
    ///
    /// # Errors
    /// [`Error::Memory`], which a checked ring does not bring.
    pub(super) fn new(
        common: &'u Common,
        counters: &'u Counters,
        (index, queue): (u16, VirtQueue),
        memory: &'m GuestMemoryMmap,
        interrupt: Arc<dyn Interrupt>,
        uring: Option<&'u mut Uring>,
    ) -> Result<Self, Error> {
        let rings = queue.map(memory)?;
        let flight = uring.map(|uring| Flight::new(uring, memory));
        let (requests, free) = (Vec::new(), Vec::new());
        Ok(Self { common, counters, index, queue, rings, interrupt, requests, free, flight, ended: false })
    }

    /// Works until the driver is gone, or the device.
    pub(super) fn run(mut self, desk: &mut Desk) {
        loop {
            while let Some(message) = desk.mail.pop_front() {
                match message {
                    Message::Stop(reply) => {
                        self.drain();
                        // Nothing of guest memory is held any more as the answer goes out.
                        drop(self);
                        return reply.send(());
                    }
                    Message::Pause(reply) => {
                        desk.paused = true;
                        reply.send(self.pause());
                    }
                    Message::Resume(reply) => {
                        desk.paused = false;
                        reply.send(());
                    }
                    Message::Start(_, reply) => {
                        reply.send(Err(io::Error::other("the queue has a driver already")));
                    }
                }
            }
            if desk.over {
                return;
            }
            let sleeps = desk.paused || self.ended || !self.works();
            if let Err(error) = desk.wait(sleeps) {
                log::error!("{}: cannot wait for events: {error}", self.common.name);
                return self.end();
            }
        }
    }

    /// Does what there is to do, up to a burst of it. False where nothing is left, and an event will say when there is.
    fn works(&mut self) -> bool {
        self.burst().unwrap_or_else(|error| {
            let Common { name, broken, .. } = self.common;
            log::log!(
                broken.level(),
                "{name}: the driver broke its ring, and has to reset the disk: {error}"
            );
            self.end();
            false
        })
    }

    fn burst(&mut self) -> Result<bool, Error> {
        self.arm(false);
        let (mut left, mut performed, mut empty) = (BURST, 0, false);
        while left > 0 && performed + self.bytes_in_flight() < BURST_BYTES {
            let Some(chain) = self.queue.next(&self.rings)? else {
                empty = true;
                break;
            };
            performed += self.take(chain)?;
            left -= 1;
            if self.flight.is_none() {
                self.publish()?;
            }
        }
        self.submit();
        self.reap();
        self.publish()?;
        Ok(match empty {
            // First the events, then another look: whatever comes in between is seen.
            true => !self.queue.arm(&self.rings)? || !self.arm(true),
            // There is room once something is done.
            false if self.bytes_in_flight() >= BURST_BYTES => !self.arm(true),
            false => true,
        })
    }

    fn bytes_in_flight(&self) -> u64 {
        self.flight.as_ref().map_or(0, Flight::bytes)
    }

    /// Does, or gives to the kernel, what the chain asks for; returns of how many bytes it was done.
    fn take(&mut self, chain: Chain) -> Result<u64, Error> {
        let token = self.free.pop().unwrap_or_else(|| {
            self.requests.push((Request::new(), Work::Identify));
            self.requests.len() - 1
        });
        let Self { common, queue, rings, flight, requests, .. } = self;
        let (request, planned) = &mut requests[token];
        request.gather(queue, rings, chain, &common.id)?;
        let work = match request.work(&common.limits) {
            Ok(work) => work,
            Err(status) => {
                self.answer(token, status);
                return Ok(0);
            }
        };
        *planned = work;
        let durable = common.durable.load(Ordering::Relaxed);
        let operation = match work {
            Work::Read { offset } => Some(Operation::Read { offset }),
            Work::Write { offset } => Some(Operation::Write { offset, durable }),
            Work::Flush => Some(Operation::Sync),
            Work::Identify | Work::Discard | Work::WriteZeroes => None,
        };
        if let (Some(flight), Some(operation)) = (flight, operation)
            && common.store.takes(&request.buffers)
        {
            flight.push(token, operation, std::mem::take(&mut request.buffers));
            return Ok(0);
        }
        let bytes = match work {
            Work::Discard | Work::WriteZeroes => request.ranges().map(|range| range.len).sum(),
            _ => request.bytes(),
        };
        self.perform(token);
        Ok(bytes)
    }

    /// Does a request, or what is left of it, here and now.
    fn perform(&mut self, token: usize) {
        let Common { store, durable, .. } = self.common;
        let durable = durable.load(Ordering::Relaxed);
        let (request, work) = &mut self.requests[token];
        // Of what was done already, only the rest is left in its buffers.
        let done = |buffers: u64, whole: u64| whole - buffers;
        let result = match *work {
            Work::Read { offset } => {
                let offset = offset + done(request.buffers.len(), request.bytes());
                store.read(&mut request.buffers, offset)
            }
            Work::Write { offset } => {
                let offset = offset + done(request.buffers.len(), request.bytes());
                store.write(&mut request.buffers, offset, durable)
            }
            Work::Flush => store.flush(),
            Work::Identify => Ok(()),
            Work::Discard => request.ranges().try_for_each(|range| store.discard(range)),
            Work::WriteZeroes => request.ranges().try_for_each(|range| store.write_zeroes(range, durable)),
        };
        self.finish(token, result);
    }

    /// Takes what the kernel has done.
    fn reap(&mut self) {
        while let Some(done) = self.flight.as_mut().and_then(Flight::reap) {
            self.complete(done);
        }
    }

    fn complete(&mut self, Done { token, mut buffers, result }: Done<'m>) {
        let result = result.map(|len| buffers.consume(len));
        let rest = buffers.len();
        self.requests[token].0.buffers = buffers;
        match result {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                self.perform(token);
            }
            Err(error) => self.finish(token, Err(error)),
            // A part is rare, and whether the rest fails shows when it is tried.
            Ok(()) if rest > 0 => self.perform(token),
            Ok(()) => self.finish(token, Ok(())),
        }
    }

    fn finish(&mut self, token: usize, result: io::Result<()>) {
        let (request, work) = &self.requests[token];
        let status = match result {
            Ok(()) => {
                let counters = self.counters;
                match work {
                    Work::Read { .. } => {
                        count(&counters.reads, 1);
                        count(&counters.read_bytes, request.bytes());
                    }
                    Work::Write { .. } => {
                        count(&counters.writes, 1);
                        count(&counters.written_bytes, request.bytes());
                    }
                    Work::Flush => count(&counters.flushes, 1),
                    Work::Discard | Work::WriteZeroes => count(&counters.discards, 1),
                    Work::Identify => {}
                }
                Status::Ok
            }
            // The host said that it can, and cannot there.
            Err(error) if *work == Work::Discard && error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Status::Unsupported
            }
            Err(error) => {
                let Common { name, refused, .. } = self.common;
                log::log!(refused.level(), "{name}: the host cannot {work}, and the guest hears so: {error}");
                Status::IoError
            }
        };
        self.answer(token, status);
    }

    /// Gives a request back.
    fn answer(&mut self, token: usize, status: Status) {
        if status != Status::Ok {
            count(&self.counters.errors, 1);
        }
        let (head, len) = self.requests[token].0.answer(status);
        self.queue.push_used(&self.rings, head, len);
        self.free.push(token);
    }

    fn publish(&mut self) -> Result<(), Error> {
        if self.queue.publish(&self.rings)?
            && let Err(error) = self.interrupt.queue(self.index)
        {
            let Common { name, refused, .. } = self.common;
            log::log!(refused.level(), "{name}: cannot interrupt the guest: {error}");
        }
        Ok(())
    }

    fn submit(&mut self) {
        if let Some(flight) = &mut self.flight
            && let Err(error) = flight.submit()
        {
            self.fall_back(&error);
        }
    }

    /// Goes on without io_uring, which takes no more.
    fn fall_back(&mut self, error: &io::Error) {
        log::warn!("{}: io_uring takes no more, and the thread reads and writes: {error}", self.common.name);
        if let Some(flight) = self.flight.take() {
            let mut done = Vec::new();
            let never = flight.settle(|one| done.push(one));
            done.into_iter().for_each(|one| self.complete(one));
            for (token, buffers) in never {
                self.requests[token].0.buffers = buffers;
                self.perform(token);
            }
        }
    }

    /// Waits until nothing is in flight.
    fn drain(&mut self) {
        self.submit();
        self.reap();
        while let Some(flight) = &mut self.flight
            && flight.in_flight() > 0
        {
            if let Err(error) = flight.wait() {
                self.fall_back(&error);
            }
            self.reap();
        }
    }

    fn arm(&mut self, wanted: bool) -> bool {
        self.flight.as_mut().is_none_or(|flight| flight.arm(wanted))
    }

    fn pause(&mut self) -> DiskQueueState {
        self.drain();
        let published = if self.ended { Ok(()) } else { self.publish() };
        if self.ended || published.is_err() {
            return DiskQueueState::Ended;
        }
        DiskQueueState::Active(self.queue.state())
    }

    fn end(&mut self) {
        self.drain();
        self.ended = true;
        if let Err(error) = self.interrupt.needs_reset() {
            let Common { name, refused, .. } = self.common;
            log::log!(refused.level(), "{name}: cannot interrupt the guest: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::block::medium::Medium;
    use crate::virtio::block::thread::ring;
    use crate::virtio::block::{F_DISCARD, MAX_BYTES, QUEUE_SIZE, SEG_MAX, SERIAL_MAX, SIZE_MAX};
    use crate::virtio::mock::{Buffer, MockRing, NoInterrupts};
    use crate::virtio::queue::{F_INDIRECT_DESC, F_VERSION_1};

    /// What the queues of a disk on that file have in common.
    fn common(file: &File) -> Common {
        let medium = Medium {
            file: file.try_clone().unwrap(),
            bytes: MAX_BYTES,
            read_only: false,
            overlay: None,
            direct: None,
            logical_block: 512,
            physical_block: 512,
            discards: false,
        };
        Common {
            name: "test".into(),
            limits: Limits { bytes: MAX_BYTES, read_only: false, features: F_DISCARD },
            store: Store::new(medium),
            id: [0; SERIAL_MAX],
            durable: AtomicBool::new(false),
            broken: Default::default(),
            refused: Default::default(),
        }
    }

    #[test]
    fn io_uring_is_had_where_it_is_wanted() {
        let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let common = common(&file);
        assert!(ring(&common, false).is_err());
        assert_eq!(ring(&common, true).is_ok(), ring_on(&file).is_some());
    }

    /// A queue of that file with ten requests, as long as they may be: reads of its start, all into the same place.
    fn with_requests(file: &File, uring: Option<&mut Uring>, test: impl FnOnce(Session<'_, '_>, MockRing)) {
        let room = [Buffer::writable(0x8_0000, SIZE_MAX); SEG_MAX as usize];
        with_chains(file, uring, ([0; 16], 10), &room, test);
    }

    /// The same of so many requests with that header and data.
    fn with_chains(
        file: &File,
        uring: Option<&mut Uring>,
        (header, count): ([u8; 16], usize),
        data: &[Buffer],
        test: impl FnOnce(Session<'_, '_>, MockRing),
    ) {
        let common = common(file);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut ring = MockRing::new(&memory, 0x1000, 64, false);
        let queue = VirtQueue::new(ring.setup(), F_VERSION_1 | F_INDIRECT_DESC, &memory).unwrap();
        memory.write_slice(&header, GuestAddress(0x4000)).unwrap();
        memory.write_slice(&[[7; 512], [8; 512]].concat(), GuestAddress(0x8_0000)).unwrap();
        let chain = [&[Buffer::readable(0x4000, 16)], data, &[Buffer::writable(0x4010, 1)]].concat();
        (0..count).for_each(|_| _ = ring.add_indirect(0x1_0000, &chain).unwrap());
        ring.publish();
        let (counters, interrupt) = (Counters::default(), Arc::new(NoInterrupts));
        let session = Session::new(&common, &counters, (0, queue), &memory, interrupt, uring).unwrap();
        test(session, ring);
    }

    fn ring_on(file: &File) -> Option<Uring> {
        Uring::new(file, QUEUE_SIZE).inspect_err(|error| println!("skipped: no io_uring here: {error}")).ok()
    }

    #[test]
    fn no_more_is_taken_than_a_message_may_wait_for() {
        let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MAX_BYTES).unwrap();
        for mut uring in [ring_on(&file), None] {
            with_requests(&file, uring.as_mut(), |mut session, mut ring| {
                session.burst().unwrap();
                let taken = session.queue.state().next_avail;
                assert_eq!(u64::from(taken), BURST_BYTES.div_ceil(MAX_BYTES));
                // All are done in the end, by as many bursts as it takes.
                let mut more = true;
                while session.queue.state().next_avail < 10 {
                    if !more {
                        session.flight.as_mut().unwrap().wait().unwrap();
                    }
                    more = session.burst().unwrap();
                }
                session.drain();
                session.publish().unwrap();
                assert_eq!((0..10).filter(|_| ring.reap().is_some()).count(), 10);
                assert_eq!(session.bytes_in_flight(), 0);
            });
        }
    }

    #[test]
    fn a_queue_that_has_enough_in_flight_sleeps_until_some_is_done() {
        // Nothing is done before there is something in the pipe.
        let (pipe, mut write) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(pipe));
        let Some(mut uring) = ring_on(&file) else { return };
        let done = uring.done().try_clone().unwrap();
        with_requests(&file, Some(&mut uring), |mut session, mut ring| {
            while session.burst().unwrap() {}
            let (taken, bytes) = (session.queue.state().next_avail, session.bytes_in_flight());
            write.write_all(b"some").unwrap();
            let long = Timespec { tv_sec: 10, tv_nsec: 0 };
            let woken = poll(&mut [PollFd::new(&done, PollFlags::IN)], Some(&long)).unwrap();
            // Without this, a session that is dropped waits for more.
            drop(write);
            assert!(taken < 10 && bytes >= BURST_BYTES, "{taken} with {bytes} bytes");
            assert_eq!(woken, 1);
            while session.burst().unwrap() {}
            assert!(session.queue.state().next_avail > taken && ring.reap().is_some());
        });
    }

    #[test]
    fn what_is_given_back_counts_as_if_it_were_written() {
        let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MAX_BYTES).unwrap();
        // All of the disk, each time.
        let header = [11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let sent = [Buffer::readable(0x9_0000, 16)];
        with_chains(&file, None, (header, 10), &sent, |mut session, mut ring| {
            let range = [&[0; 8][..], &((MAX_BYTES / 512) as u32).to_le_bytes(), &[0; 4]].concat();
            session.rings.memory().write_slice(&range, GuestAddress(0x9_0000)).unwrap();
            assert!(session.burst().unwrap());
            assert_eq!(u64::from(session.queue.state().next_avail), BURST_BYTES.div_ceil(MAX_BYTES));
            assert_eq!(session.counters.errors.load(Ordering::Relaxed), 0);
            while session.burst().unwrap() {}
            assert_eq!((0..11).filter(|_| ring.reap().is_some()).count(), 10);
            assert_eq!(session.counters.discards.load(Ordering::Relaxed), 10);
        });
    }

    #[test]
    fn messages_are_looked_for_after_a_burst() {
        let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(1 << 16).unwrap();
        let room = [Buffer::writable(0x8_0000, 512)];
        for mut uring in [ring_on(&file), None] {
            with_chains(&file, uring.as_mut(), ([0; 16], 33), &room, |mut session, mut ring| {
                assert!(session.burst().unwrap());
                assert_eq!(session.queue.state().next_avail, 32);
                session.burst().unwrap();
                assert_eq!(session.queue.state().next_avail, 33);
                session.drain();
                session.publish().unwrap();
                assert_eq!((0..33).filter(|_| ring.reap().is_some()).count(), 33);
                assert!(!session.burst().unwrap(), "there is no more");
            });
        }
    }

    #[test]
    fn a_broken_ring_is_touched_no_more() {
        let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(1 << 16).unwrap();
        let room = [Buffer::writable(0x8_0000, 512)];
        for mut uring in [ring_on(&file), None] {
            with_chains(&file, uring.as_mut(), ([0; 16], 3), &room, |mut session, mut ring| {
                ring.lie_available(4711);
                ring.publish();
                assert!(!session.works());
                assert!(session.ended && session.bytes_in_flight() == 0);
                let before = ring.pending();
                assert!(matches!(session.pause(), DiskQueueState::Ended));
                assert_eq!(ring.pending(), before);
            });
        }
    }

    #[test]
    fn where_io_uring_takes_no_more_the_thread_does_all_by_itself() {
        let mut file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.write_all(&[9; 1024]).unwrap();
        let Ok(mut uring) = Uring::that_takes_nothing(QUEUE_SIZE) else { return };
        let room = [Buffer::writable(0x8_0000, 1024)];
        for drains in [false, true] {
            with_chains(&file, Some(&mut uring), ([0; 16], 10), &room, |mut session, mut ring| {
                if drains {
                    let chain = session.queue.next(&session.rings).unwrap().unwrap();
                    session.take(chain).unwrap();
                    session.drain();
                    session.publish().unwrap();
                } else {
                    assert!(!session.burst().unwrap());
                }
                assert!(session.flight.is_none());
                let done = if drains { 1 } else { 10 };
                assert_eq!(
                    std::iter::from_fn(|| ring.reap()).map(|(_, len)| len).collect::<Vec<_>>(),
                    vec![1025; done]
                );
                assert_eq!(session.counters.read_bytes.load(Ordering::Relaxed), 1024 * done as u64);
                let mut read = [0; 1024];
                session.rings.memory().read_slice(&mut read, GuestAddress(0x8_0000)).unwrap();
                assert!(read == [9; 1024]);
            });
            assert!(uring.is_spent());
        }
    }

    #[test]
    fn of_a_part_the_rest_is_read_where_it_is_and_an_error_is_told() {
        let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MAX_BYTES).unwrap();
        let Some(mut uring) = ring_on(&file) else { return };
        with_requests(&file, Some(&mut uring), |mut session, mut ring| {
            for _ in 0..3 {
                let chain = session.queue.next(&session.rings).unwrap().unwrap();
                assert_eq!(session.take(chain).unwrap(), 0, "the kernel has it");
            }
            session.submit();
            let mut done = Vec::new();
            while done.len() < 3 {
                done.extend(session.flight.as_mut().unwrap().reap());
            }
            let mut complete = |result| session.complete(Done { result, ..done.pop().unwrap() });
            complete(Err(io::Error::from_raw_os_error(libc::EIO)));
            // Another try, and one of the last bytes: both find what is asked for.
            complete(Err(io::Error::from_raw_os_error(libc::EAGAIN)));
            complete(Ok(MAX_BYTES - 512));
            let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            assert_eq!((count(&session.counters.errors), count(&session.counters.reads)), (1, 2));
            session.publish().unwrap();
            let lens: Vec<_> = std::iter::from_fn(|| ring.reap()).map(|(_, len)| u64::from(len)).collect();
            assert_eq!(lens, [0, MAX_BYTES + 1, MAX_BYTES + 1]);
        });
    }

    #[test]
    fn of_a_part_the_rest_is_written_where_it_belongs() {
        let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(1 << 16).unwrap();
        let Some(mut uring) = ring_on(&file) else { return };
        // A write, from the eighth sector on.
        let header = [1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
        let sent = [Buffer::readable(0x8_0000, 1024)];
        with_chains(&file, Some(&mut uring), (header, 10), &sent, |mut session, _| {
            let chain = session.queue.next(&session.rings).unwrap().unwrap();
            session.take(chain).unwrap();
            session.submit();
            let done = loop {
                if let Some(done) = session.flight.as_mut().unwrap().reap() {
                    break done;
                }
            };
            // As if that had been half of it.
            file.set_len(0).unwrap();
            file.set_len(1 << 16).unwrap();
            session.complete(Done { result: Ok(512), ..done });
            let mut found = vec![0; 1 << 16];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 0).unwrap();
            let expected = [vec![0; 4096 + 512], vec![8; 512], vec![0; (1 << 16) - 5120]].concat();
            assert!(found == expected);
        });
    }
}
