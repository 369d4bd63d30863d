use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};

use net::IovBuffer;
use vm_memory::VolatileSlice;

use super::*;
use crate::virtio::vsock::GUEST_CID;
use crate::virtio::vsock::host::HostPorts;
use crate::virtio::vsock::packet::NEITHER;

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
