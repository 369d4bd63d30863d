//! What the first look lets through, and what a listener takes.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use super::*;
use crate::frames::queue::Queue;
use crate::{Offloads, RxFilter};

/// A question is no longer, header included.
const QUESTION_MAX: usize = HEADER_LEN + 14 + 1500;
/// A packet socket's header has no number of buffers.
const SHORTER: usize = 2;

#[test]
fn the_first_look_lets_through_what_may_be_a_solicitation_alone() {
    let whole = &solicitation(GUEST, ALL_ROUTERS, &SLLA)[HEADER_LEN + 12..];
    assert!(may_be_solicitation(whole) && may_be_solicitation(&whole[..43]));
    assert!((0..43).all(|len| !may_be_solicitation(&whole[..len])), "the type is not there");
    for (at, value) in [(0, 8), (1, 0), (8, 17), (42, 135)] {
        let mut other = whole.to_vec();
        other[at] = value;
        assert!(!may_be_solicitation(&other), "{at}");
    }
}

#[test]
fn a_solicitation_that_is_cut_goes_to_the_host_as_it_is() {
    let (backend, peer) = SocketBackend::pair().unwrap();
    let mut backend = Autoconf::new(backend, None, Some(router("fd00::1/64", None)));
    let whole = solicitation(GUEST, ALL_ROUTERS, &SLLA);
    for len in 2..whole.len() {
        assert_eq!(send(&mut backend, &whole[..len]), Sent::Gone, "{len}");
        assert_eq!(peer.recv().unwrap(), whole[..len]);
    }
}

/// A wire of one queue that has a listener, and answers to router solicitations.
fn listening(first: impl Backend + 'static, socket: impl Into<OwnedFd>) -> Box<dyn Backend> {
    let (listener, router) = (Listener::over(socket.into()), router("fd00::1/64", None));
    let none = Vec::<SocketBackend>::new;
    autoconf::in_front(first, none(), none(), None, Some(router), Some(listener)).remove(0)
}

fn received(socket: &UnixDatagram) -> Option<Advert> {
    let mut reply = [0; 2000];
    match socket.recv(&mut reply[SHORTER..]) {
        Ok(len) => Some(Advert::parse(&reply[..SHORTER + len])),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            None
        }
    }
}

#[test]
fn a_listener_takes_no_question_that_is_longer_than_a_frame() {
    let (listens, guest) = UnixDatagram::pair().unwrap();
    listens.set_nonblocking(true).unwrap();
    guest.set_nonblocking(true).unwrap();
    let mut queue = listening(SocketBackend::pair().unwrap().0, listens);
    let mut asked = solicitation(GUEST, ALL_ROUTERS, &SLLA);
    for (len, answered) in
        [(asked.len(), true), (QUESTION_MAX, true), (QUESTION_MAX + 1, false), (QUESTION_MAX + 500, false)]
    {
        asked.resize(len, 0);
        guest.send(&asked[SHORTER..]).unwrap();
        queue.answer();
        assert_eq!(received(&guest).is_some(), answered, "{len}");
    }
}

#[test]
fn the_time_until_the_guest_must_hear_again_passes() {
    let (listens, guest) = UnixDatagram::pair().unwrap();
    listens.set_nonblocking(true).unwrap();
    let mut queue = listening(SocketBackend::pair().unwrap().0, listens);
    guest.send(&solicitation(GUEST, ALL_ROUTERS, &SLLA)[SHORTER..]).unwrap();
    let first = queue.answer().expect("it has asked");
    let pause = Duration::from_millis(5);
    std::thread::sleep(pause);
    let second = queue.answer().expect("it has asked");
    assert!(second + pause <= first, "{first:?}, and then {second:?}");
}

#[test]
fn a_listener_whose_link_was_set_down_hears_what_comes_next() {
    // The one socket at hand that tells an error once: of UDP, whose other end was not there.
    let guest = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listens = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (at, from) = (guest.local_addr().unwrap(), listens.local_addr().unwrap());
    listens.connect(at).unwrap();
    listens.set_nonblocking(true).unwrap();
    drop(guest);
    listens.send(b"nobody is there").unwrap();
    let guest = UdpSocket::bind(at).unwrap();
    guest.connect(from).unwrap();
    guest.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    guest.send(&solicitation(GUEST, ALL_ROUTERS, &SLLA)[SHORTER..]).unwrap();
    let mut queue = listening(SocketBackend::pair().unwrap().0, listens);
    queue.answer();
    let mut reply = [0; 2000];
    let len = guest.recv(&mut reply[SHORTER..]).unwrap();
    assert_eq!(Advert::parse(&reply[..SHORTER + len]).to, TO_GUEST);
}

#[test]
fn the_kernel_carries_frames_only_where_a_listener_hears_the_questions() {
    let queue = || Queue::new(File::open("/dev/null").unwrap().into(), None, Offloads::default());
    let (listens, _guest) = UnixDatagram::pair().unwrap();
    let listening = listening(queue(), listens);
    let fd = listening.vhost_fd().map(|fd| std::os::fd::AsRawFd::as_raw_fd(&fd));
    assert_eq!(fd, Some(std::os::fd::AsRawFd::as_raw_fd(&listening.fd())));
    let answering = Autoconf::new(queue(), None, Some(router("fd00::1/64", None)));
    assert!(answering.vhost_fd().is_none());
}

/// A wire that keeps what it is told.
struct Told(SocketBackend, std::sync::mpsc::Sender<String>);

impl Backend for Told {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.fd()
    }

    fn offloads(&self) -> Offloads {
        self.0.offloads()
    }

    fn merges(&self) -> (Offloads, u16) {
        (Offloads { uso: true, ..Offloads::default() }, 1400)
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.1.send(format!("csum {}", accepted.csum)).map_err(io::Error::other)
    }

    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        self.1.send(format!("mac {}", filter.mac)).map_err(io::Error::other)
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.1.send(format!("enabled {enabled}")).map_err(io::Error::other)
    }

    fn set_carrier(&mut self, present: bool) {
        self.1.send(format!("carrier {present}")).unwrap();
    }
}

#[test]
fn everything_but_questions_is_the_wires() {
    let (backend, peer) = SocketBackend::pair().unwrap();
    let (to, told) = std::sync::mpsc::channel();
    let mut backend = Autoconf::new(Told(backend, to), None, Some(router("fd00::1/64", None)));
    backend.set_filter(&RxFilter::new("02:00:00:00:00:07".parse().unwrap())).unwrap();
    backend.set_enabled(false).unwrap();
    backend.set_carrier(true);
    backend.set_carrier(false);
    backend.set_offloads(Offloads { csum: true, ..Offloads::default() }).unwrap();
    let expected = ["mac 02:00:00:00:00:07", "enabled false", "carrier true", "carrier false", "csum true"];
    assert_eq!(told.try_iter().collect::<Vec<_>>(), expected);
    assert_eq!(backend.merges(), (Offloads { uso: true, ..Offloads::default() }, 1400));

    // An answer that waits, and what came from the host, are lost with the driver that they were for.
    assert_eq!(send(&mut backend, &solicitation(GUEST, ALL_ROUTERS, &SLLA)), Sent::Answered);
    peer.send(&[7; 60]).unwrap();
    backend.drain();
    assert!(is_empty(&mut backend));
    peer.send(&[8; 60]).unwrap();
    assert_eq!(recv(&mut backend).unwrap(), [8; 60]);
}
