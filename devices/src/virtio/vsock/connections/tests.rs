mod ends;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};

use net::IovBuffer;
use vm_memory::VolatileSlice;

use super::*;
use crate::virtio::vsock::GUEST_CID;
use crate::virtio::vsock::host::HostPorts;
use crate::virtio::vsock::packet::{NEITHER, NO_RECEIVE};

/// Every port of the host's is open: the test gets the program's end.
struct Open {
    came: Sender<UnixStream>,
    answers: VecDeque<(u64, Option<OwnedFd>)>,
    fd: UnixStream,
}

impl HostPorts for Open {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn connect(&mut self, id: u64, _port: u32) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        self.answers.push_back((id, Some(ours.into())));
        self.came.send(theirs).map_err(io::Error::other)
    }

    fn answer(&mut self) -> io::Result<(u64, Option<OwnedFd>)> {
        self.answers.pop_front().ok_or(io::ErrorKind::WouldBlock.into())
    }
}

struct Rig {
    all: Connections,
    came: Receiver<UnixStream>,
    socket: std::path::PathBuf,
}

impl Rig {
    fn new(name: &str) -> Self {
        let socket = std::env::temp_dir().join(format!("wirevm-{name}-{}", std::process::id()));
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (sender, came) = channel();
        let ports = Open { came: sender, answers: VecDeque::new(), fd: UnixStream::pair().unwrap().0 };
        let host = HostEnd { listener: listener.into(), ports: Box::new(ports) };
        Self { all: Connections::new(GUEST_CID, host, Epoll::new().unwrap()), came, socket }
    }

    fn hear(&mut self, ports: Ports, header: Header, payload: &mut [u8]) {
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: ports.guest,
            dst_port: ports.host,
            kind: TYPE_STREAM,
            len: payload.len() as u32,
            ..header
        };
        let mut buffer = IovBuffer::new();
        let mut body = buffer.start();
        assert!(body.push(VolatileSlice::from(payload)));
        self.all.hear(&header, &body);
    }

    /// A stream of the guest's to a program, with so much credit, and the program's end.
    fn requested(&mut self, guest: u32, buf_alloc: u32) -> (Ports, UnixStream) {
        let ports = Ports { host: 53, guest };
        self.hear(ports, Header { op: op::REQUEST, buf_alloc, ..Header::default() }, &mut []);
        self.all.take_answers();
        let program = self.came.recv().unwrap();
        program.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (ports, program)
    }

    /// A stream of a program's that the guest has accepted.
    fn accepted(&mut self) -> (Ports, UnixStream) {
        let mut program = UnixStream::connect(&self.socket).unwrap();
        program.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        program.write_all(b"CONNECT 1024\n").unwrap();
        self.all.accept(true);
        let id = self.all.id(self.all.slots.iter().rposition(Option::is_some).unwrap());
        self.all.note(id, EventSet::IN | EventSet::OUT);
        let asked = self.packet().unwrap();
        let ports = Ports { host: asked.src_port, guest: asked.dst_port };
        self.hear(ports, Header { op: op::RESPONSE, buf_alloc: 1 << 16, ..Header::default() }, &mut []);
        let mut line = vec![0; format!("OK {}\n", ports.host).len()];
        program.read_exact(&mut line).unwrap();
        (ports, program)
    }

    /// One turn, into room for a packet.
    fn packet(&mut self) -> Option<Header> {
        let (mut room, mut buffer) = ([0; 4096], IovBuffer::new());
        let mut body = buffer.start();
        assert!(body.push(VolatileSlice::from(&mut room[..])));
        self.all.packet(&mut body)
    }

    fn packets(&mut self) -> Vec<Header> {
        let mut all = Vec::new();
        while self.all.has_packet() {
            all.extend(self.packet());
        }
        all
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[test]
fn a_program_that_reads_nothing_of_the_rest_is_left_once_it_has_had_its_time() {
    let mut rig = Rig::new("drain");
    for begin in [|rig: &mut Rig| rig.requested(1, 0), Rig::accepted] {
        let (ports, mut program) = begin(&mut rig);
        // As much as the device has promised to take: more than the socket does.
        for _ in 0..WIDE / 4096 {
            rig.hear(ports, Header { op: op::RW, ..Header::default() }, &mut [7; 4096]);
        }
        let closed = Header { op: op::SHUTDOWN, flags: NEITHER, ..Header::default() };
        rig.hear(ports, closed, &mut []);
        assert!(rig.packets().iter().any(|packet| packet.op == op::RST));
        assert_eq!(rig.all.wide, 1, "the program has not read all");
        let slot = rig.all.slots.iter().position(Option::is_some).unwrap();
        assert!(matches!(rig.all.slots[slot].as_ref().unwrap().1.stage, Stage::Draining));
        // The first may be one that it had before.
        for _ in 0..3 {
            let due = rig.all.deadline();
            due.into_iter().for_each(|due| rig.all.expire(due));
        }
        assert!(rig.all.slots.iter().all(Option::is_none), "it has had its time");
        assert_eq!((rig.all.wide, rig.packets().len()), (0, 0), "the guest forgot it before");
        let mut rest = Vec::new();
        program.read_to_end(&mut rest).unwrap();
        assert!(!rest.is_empty() && rest.len() < WIDE as usize);
    }
}

#[test]
fn one_with_little_credit_and_nothing_to_say_cuts_no_packet_of_another() {
    let mut rig = Rig::new("turns");
    let (_poor, _silent) = rig.requested(1, 1);
    let (rich, mut program) = rig.requested(2, 1 << 16);
    program.write_all(&[7; 1000]).unwrap();
    let said: Vec<_> = rig.packets().into_iter().filter(|packet| packet.op == op::RW).collect();
    let said: Vec<_> = said.iter().map(|packet| (packet.dst_port, packet.len)).collect();
    assert_eq!(said, [(rich.guest, 1000)]);
}

#[test]
fn who_says_nothing_is_left_after_its_time_and_a_pause_is_not_counted() {
    let mut rig = Rig::new("time");
    let connect = |rig: &mut Rig| {
        let program = UnixStream::connect(&rig.socket).unwrap();
        program.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        rig.all.accept(true);
        std::thread::sleep(Duration::from_millis(2));
        program
    };
    let (mut first, mut second) = (connect(&mut rig), connect(&mut rig));
    let here = |rig: &Rig| rig.all.slots.iter().flatten().count();
    let due = rig.all.deadline().unwrap();
    let tick = Duration::from_millis(1);
    rig.all.expire(due - tick);
    assert_eq!((here(&rig), rig.all.deadline()), (2, Some(due)));
    // It stood still for a while.
    let pause = Duration::from_secs(5);
    rig.all.postpone(pause);
    assert_eq!(rig.all.deadline(), Some(due + pause));
    rig.all.expire(due);
    assert_eq!(here(&rig), 2);
    rig.all.expire(due + pause);
    assert_eq!(here(&rig), 1, "the other came later");
    assert_eq!(first.read(&mut [0; 8]).unwrap(), 0);
    let later = rig.all.deadline().unwrap();
    assert!(later > due + pause);
    rig.all.expire(later);
    assert_eq!((here(&rig), rig.all.deadline()), (0, None));
    assert_eq!(second.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn the_first_connections_keep_more_than_those_behind_them() {
    let mut rig = Rig::new("wide");
    let mut programs: Vec<_> = (0..=WIDE_MAX as u32).map(|guest| rig.requested(guest, 0)).collect();
    let promises = |rig: &Rig| -> Vec<u32> {
        rig.all.slots.iter().flatten().map(|(_, connection)| connection.promise()).collect()
    };
    let all = promises(&rig);
    assert!(all[..WIDE_MAX].iter().all(|&promise| promise == WIDE) && all[WIDE_MAX..] == [NARROW]);
    // One that goes makes room for another.
    let (ports, _) = programs.swap_remove(0);
    rig.hear(ports, Header { op: op::RST, ..Header::default() }, &mut []);
    let _another = rig.requested(5000, 0);
    let all = promises(&rig);
    assert_eq!(all.iter().filter(|&&promise| promise == WIDE).count(), WIDE_MAX);
}

#[test]
fn a_guest_that_receives_no_more_hears_at_once_that_the_program_has_gone() {
    for guest_first in [true, false] {
        let mut rig = Rig::new("gone");
        // Without credit, what the program says stays unread.
        let (ports, mut program) = rig.requested(1, 0);
        program.write_all(b"unread").unwrap();
        let id = rig.all.id(0);
        let closed = Header { op: op::SHUTDOWN, flags: NO_RECEIVE, ..Header::default() };
        if guest_first {
            rig.hear(ports, closed, &mut []);
            rig.packets();
            drop(program);
            rig.all.note(id, EventSet::IN | EventSet::OUT | EventSet::HANG_UP);
        } else {
            drop(program);
            rig.all.note(id, EventSet::IN | EventSet::OUT | EventSet::HANG_UP);
            assert!(rig.packets().iter().all(|packet| packet.op != op::SHUTDOWN), "it has not read all");
            rig.hear(ports, closed, &mut []);
        }
        let said = rig.packets();
        let ends = said.iter().find(|packet| packet.op == op::SHUTDOWN);
        assert_eq!(ends.map(|packet| packet.flags), Some(NEITHER), "{guest_first}: {said:?}");
    }
}
