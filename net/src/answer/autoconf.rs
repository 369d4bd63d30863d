//! The guest's configuration, answered in front of a backend: DHCP ([`Lease`]) and router advertisement ([`Router`]), so
//! that any distribution comes up without configuration.
//!
//! What the guest sends is hostile: a frame that may be a question is copied once, and only the copy is looked at, for the
//! guest may still write the original.
//!
//! Where the kernel carries the frames (vhost-net), no question comes by here: a [`Listener`] on the host's link hears them.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::answer::dhcp::{self, Lease};
use crate::answer::listener::Listener;
use crate::answer::router::{self, Router};
use crate::answer::{ANSWER_MAX, Verdict};
use crate::{Backend, HEADER_LEN, Iov, Offloads, RxFilter, Sent};

/// A question is one unfragmented Ethernet frame; what is larger is none.
const QUESTION_MAX: usize = HEADER_LEN + 14 + 1500;
/// Questions that are answered in one go: a guest that asks without end is not the only work of its thread.
const QUESTIONS: usize = 16;

/// A backend with the guest's configuration in front of it.
///
/// Questions that are for us end here, answered or not; every other frame goes through as it is. An answer goes to this
/// guest and nowhere else, for it only ever comes out of [`recv`](Backend::recv). One waits at most: who asks again wants
/// the newest.
///
/// A guest asks for a router once, but must hear of it again before the advertisement's lifetime ends. There is no timer:
/// that is looked at when the guest has received all there was, by whatever queue, for the guest that renews its DHCP lease,
/// looks for a neighbour or talks at all receives something in half of that time. With a listener, who waits for it is told when.
pub struct Autoconf<B> {
    backend: B,
    lease: Option<Lease>,
    router: Option<Arc<Router>>,
    /// The wire's: the guest may ask by one queue and talk by another.
    due: Arc<Due>,
    /// Where the kernel carries the frames of all queues; then it is of the first.
    listener: Option<Listener>,
    answer: [u8; ANSWER_MAX],
    /// Bytes of `answer` that wait to be received; 0 for none.
    waits: usize,
}

/// When a guest must hear of its router again.
struct Due {
    start: Instant,
    /// In nanoseconds after `start`, more than 0; 0 before the guest has asked. Whoever moves it on advertises.
    at: AtomicU64,
}

impl Due {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64 + 1
    }

    /// True once the guest has asked.
    fn is_set(&self) -> bool {
        self.at.load(Ordering::Relaxed) != 0
    }

    /// The guest hears of its router now.
    fn set(&self) {
        self.at.store(self.now() + AGAIN, Ordering::Relaxed);
    }

    /// How long until it is time; none before the guest has asked.
    fn left(&self) -> Option<Duration> {
        let at = self.at.load(Ordering::Relaxed);
        (at != 0).then(|| Duration::from_nanos(at.saturating_sub(self.now())))
    }

    /// True where it is time, for one who asks.
    fn take(&self) -> bool {
        let (at, now) = (self.at.load(Ordering::Relaxed), self.now());
        let moved = || self.at.compare_exchange(at, now + AGAIN, Ordering::Relaxed, Ordering::Relaxed);
        at != 0 && at <= now && moved().is_ok()
    }
}

/// After so many nanoseconds.
const AGAIN: u64 = router::AGAIN.as_nanos() as u64;

/// The queues of a wire, `first` and `others`, with answers to DHCP, if there is a `lease`, and to router solicitations, if there
/// is a `router`, in front of each; or, with a `listener`, beside all of them.
///
/// `spare` are the ways out for pairs past the last queue.
pub(crate) fn in_front<A: Backend + 'static, B: Backend + 'static, C: Backend + 'static>(
    first: A,
    others: Vec<B>,
    spare: Vec<C>,
    lease: Option<Lease>,
    router: Option<Router>,
    listener: Option<Listener>,
) -> Vec<Box<dyn Backend>> {
    let (answers, listens) = (lease.is_some() || router.is_some(), listener.is_some());
    let front = Autoconf { listener, ..Autoconf::new(first, lease, router) };
    let asked = answers && !listens;
    let others: Vec<_> = others.into_iter().map(|other| beside(&front, other, asked)).collect();
    let spare: Vec<_> = spare.into_iter().map(|other| beside(&front, other, asked)).collect();
    let first: Box<dyn Backend> = if answers { Box::new(front) } else { Box::new(front.backend) };
    std::iter::once(first).chain(others).chain(spare).collect()
}

/// `other` with the answers of `front` before it, where it is `asked`.
fn beside<A: Backend, B: Backend + 'static>(front: &Autoconf<A>, other: B, asked: bool) -> Box<dyn Backend> {
    if asked { Box::new(front.beside(other)) } else { Box::new(other) }
}

/// What a frame may be, by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Question {
    Dhcp,
    Router,
}

impl<B: Backend> Autoconf<B> {
    /// Puts answers to DHCP, if there is a `lease`, and to router solicitations, if there is a `router`, in front of
    /// `backend`.
    pub fn new(backend: B, lease: Option<Lease>, router: Option<Router>) -> Self {
        let due = Arc::new(Due { start: Instant::now(), at: AtomicU64::new(0) });
        let router = router.map(Arc::new);
        Self { backend, lease, router, due, listener: None, answer: [0; ANSWER_MAX], waits: 0 }
    }

    /// The same in front of another queue of the wire.
    pub(crate) fn beside<C: Backend>(&self, backend: C) -> Autoconf<C> {
        let (lease, router, due) = (self.lease.clone(), self.router.clone(), Arc::clone(&self.due));
        Autoconf { backend, lease, router, due, listener: None, answer: [0; ANSWER_MAX], waits: 0 }
    }

    /// Looks at a frame that may be a question. Apart, so that the path of every other frame stays small.
    #[cold]
    fn ask(&mut self, question: Question, frame: &Iov<'_>) -> Verdict {
        let mut copy = [0; QUESTION_MAX];
        if frame.len() > copy.len() {
            return Verdict::Pass;
        }
        let len = frame.read_at(0, &mut copy);
        self.reply(question, &copy[..len])
    }

    /// Makes the answer to a frame, where it is a question.
    fn reply(&mut self, question: Question, frame: &[u8]) -> Verdict {
        let verdict = match (question, &self.lease, &self.router) {
            (Question::Dhcp, Some(lease), _) => lease.answer(frame, &mut self.answer),
            (Question::Router, _, Some(router)) => router.answer(frame, &mut self.answer),
            _ => Verdict::Pass,
        };
        if let Verdict::Reply(len) = verdict {
            self.waits = len;
            if question == Question::Router {
                self.due.set();
            }
        }
        verdict
    }

    /// Receives what waits.
    #[cold]
    fn take_answer(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        let len = std::mem::take(&mut self.waits);
        if space.len() < len {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        Ok(space.write_at(0, &self.answer[..len]))
    }

    /// Sends what waits, by the listener. What is lost, the guest asks for again.
    fn send_answer(&mut self) {
        let len = std::mem::take(&mut self.waits);
        if let Some(listener) = &self.listener
            && let Err(error) = listener.send(&self.answer[..len])
        {
            log::debug!("cannot answer the guest: {error}");
        }
    }

    /// Lets `time` pass.
    #[cfg(test)]
    pub(crate) fn elapse(&mut self, time: Duration) {
        if self.due.is_set() {
            let at = self.due.at.load(Ordering::Relaxed).saturating_sub(time.as_nanos() as u64);
            self.due.at.store(at.max(self.due.now()), Ordering::Relaxed);
        }
    }

    /// Has the guest hear of its router, where it is time; false where it is not.
    fn advertise_again(&mut self) -> bool {
        match &self.router {
            Some(router) if self.due.take() => {
                self.waits = router.advertise(&mut self.answer);
                true
            }
            _ => false,
        }
    }
}

/// What the frame may be: one look at a few bytes.
#[inline]
fn question(frame: &Iov<'_>) -> Option<Question> {
    // The Ethernet type, the IPv6 header, the type of ICMPv6; or the IPv4 header and the ports of UDP.
    let mut bytes = [0; 2 + 40 + 1];
    let len = frame.read_at(TYPE_AT, &mut bytes);
    question_at(&bytes[..len])
}

/// Where the Ethernet type is.
const TYPE_AT: usize = HEADER_LEN + 12;

/// What a frame may be that goes on with `bytes` from its Ethernet type on.
#[inline]
fn question_at(bytes: &[u8]) -> Option<Question> {
    if dhcp::may_be_request(bytes) {
        Some(Question::Dhcp)
    } else if router::may_be_solicitation(bytes) {
        Some(Question::Router)
    } else {
        None
    }
}

impl<B: Backend> Backend for Autoconf<B> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.backend.fd()
    }

    #[inline]
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        if let Some(question) = question(frame) {
            match self.ask(question, frame) {
                Verdict::Pass => {}
                Verdict::Silent => return Ok(Sent::Gone),
                Verdict::Reply(_) => return Ok(Sent::Answered),
            }
        }
        self.backend.send(frame)
    }

    #[inline]
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        if self.waits != 0 {
            return self.take_answer(space);
        }
        match self.backend.recv(space) {
            Err(error)
                if self.due.is_set()
                    && error.kind() == io::ErrorKind::WouldBlock
                    && self.advertise_again() =>
            {
                self.take_answer(space)
            }
            result => result,
        }
    }

    fn offloads(&self) -> Offloads {
        self.backend.offloads()
    }

    fn merges(&self) -> (Offloads, u16) {
        self.backend.merges()
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.backend.set_offloads(accepted)
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.backend.set_enabled(enabled)
    }

    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        self.backend.set_filter(filter)?;
        if let Some(lease) = &mut self.lease {
            lease.set_client(filter.mac);
        }
        Ok(())
    }

    fn set_carrier(&mut self, present: bool) {
        self.backend.set_carrier(present);
    }

    fn drain(&mut self) {
        self.waits = 0;
        self.backend.drain();
    }

    /// None without a listener: the kernel would carry the guest's questions past us.
    fn vhost_fd(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().and_then(|_| self.backend.vhost_fd())
    }

    fn asked_fd(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(Listener::fd)
    }

    fn answer(&mut self) -> Option<Duration> {
        for _ in 0..QUESTIONS {
            let mut frame = [0; QUESTION_MAX + 1];
            let len = match self.listener.as_ref()?.recv(&mut frame) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.due.is_set() && self.advertise_again() {
                        self.send_answer();
                    }
                    return self.due.left();
                }
                // The link was set down: it is told once, and there may be more.
                Err(_) => continue,
            };
            let asked =
                (len <= QUESTION_MAX).then(|| frame.get(TYPE_AT..len).and_then(question_at)).flatten();
            if let Some(question) = asked
                && let Verdict::Reply(_) = self.reply(question, &frame[..len])
            {
                self.send_answer();
            }
        }
        Some(Duration::ZERO)
    }
}
