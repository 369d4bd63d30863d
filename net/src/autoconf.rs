//! The guest's configuration, answered in front of a backend: DHCP ([`Lease`]) and router advertisement ([`Router`]), so
//! that any distribution comes up without configuration.
//!
//! What the guest sends is hostile: a frame that may be a question is copied once, and only the copy is looked at, for the
//! guest may still write the original.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::dhcp::{self, Lease};
use crate::router::{self, Router};
use crate::{Backend, HEADER_LEN, Iov, Offloads, RxFilter, Sent};

/// A question is one unfragmented Ethernet frame; what is larger is none.
const QUESTION_MAX: usize = HEADER_LEN + 14 + 1500;
/// The longest answer: a DHCP message that every client takes.
pub(crate) const ANSWER_MAX: usize = HEADER_LEN + 14 + 576;

/// What becomes of a frame that may be a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is not for us.
    Pass,
    /// It ends here without an answer.
    Silent,
    /// The answer is ready, with this length.
    Reply(usize),
}

/// A backend with the guest's configuration in front of it.
///
/// Questions that are for us end here, answered or not; every other frame goes through as it is. An answer goes to this
/// guest and nowhere else, for it only ever comes out of [`recv`](Backend::recv). One waits at most: who asks again wants
/// the newest.
///
/// A guest asks for a router once, but must hear of it again before the advertisement's lifetime ends. There is no timer:
/// that is looked at when the guest has received all there was, for the guest that renews its DHCP lease, looks for a
/// neighbour or talks at all receives something in half of that time.
pub struct Autoconf<B> {
    backend: B,
    lease: Option<Lease>,
    router: Option<Router>,
    /// When the guest must hear of its router again; none before it asked.
    due: Option<Instant>,
    answer: [u8; ANSWER_MAX],
    /// Bytes of `answer` that wait to be received; 0 for none.
    waits: usize,
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
        Self { backend, lease, router, due: None, answer: [0; ANSWER_MAX], waits: 0 }
    }

    /// Looks at a frame that may be a question. Apart, so that the path of every other frame stays small.
    #[cold]
    fn ask(&mut self, question: Question, frame: &Iov<'_>) -> Verdict {
        let mut copy = [0; QUESTION_MAX];
        if frame.len() > copy.len() {
            return Verdict::Pass;
        }
        let len = frame.read_at(0, &mut copy);
        let verdict = match (question, &self.lease, &self.router) {
            (Question::Dhcp, Some(lease), _) => lease.answer(&copy[..len], &mut self.answer),
            (Question::Router, _, Some(router)) => router.answer(&copy[..len], &mut self.answer),
            _ => Verdict::Pass,
        };
        if let Verdict::Reply(len) = verdict {
            self.waits = len;
            if question == Question::Router {
                self.due = Some(Instant::now() + router::AGAIN);
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

    /// Lets `time` pass.
    #[cfg(test)]
    pub(crate) fn elapse(&mut self, time: std::time::Duration) {
        let now = Instant::now();
        self.due = self.due.map(|due| due.checked_sub(time).map_or(now, |due| due.max(now)));
    }

    /// Has the guest hear of its router, where it is time; false where it is not.
    fn advertise_again(&mut self) -> bool {
        let now = Instant::now();
        match (self.due, &self.router) {
            (Some(due), Some(router)) if due <= now => {
                self.waits = router.advertise(&mut self.answer);
                self.due = Some(now + router::AGAIN);
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
    let len = frame.read_at(HEADER_LEN + 12, &mut bytes);
    if dhcp::may_be_request(&bytes[..len]) {
        Some(Question::Dhcp)
    } else if router::may_be_solicitation(&bytes[..len]) {
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
                if self.due.is_some()
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

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.backend.set_offloads(accepted)
    }

    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        self.backend.set_filter(filter)?;
        if let Some(lease) = &mut self.lease {
            lease.set_client(filter.mac);
        }
        Ok(())
    }

    // `vhost_fd` stays none: the kernel would carry the guest's questions past us.
}
