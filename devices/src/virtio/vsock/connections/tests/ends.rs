//! How each end of a stream begins, waits and closes.

use std::net::Shutdown;

use super::*;

const NO_SEND: u32 = NEITHER & !NO_RECEIVE;
const NEWS: EventSet = EventSet::IN.union(EventSet::OUT);

impl Rig {
    /// A program that has said this, and that the device has let in and heard.
    fn program(&mut self, line: &str) -> (u64, UnixStream) {
        let mut program = UnixStream::connect(&self.socket).unwrap();
        program.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        program.write_all(line.as_bytes()).unwrap();
        self.all.accept(true);
        let id = self.all.id(self.all.slots.iter().rposition(Option::is_some).unwrap());
        self.all.note(id, NEWS);
        (id, program)
    }

    fn connections(&self) -> usize {
        self.all.slots.iter().flatten().count()
    }

    /// The guest sends almost as much as the device has promised to take, which is more than the program's socket does; how much.
    fn fill(&mut self, ports: Ports) -> usize {
        const COUNT: usize = WIDE as usize / 4096 - 4;
        for number in 0..COUNT as u8 {
            let header = Header { op: op::RW, buf_alloc: 1 << 16, ..Header::default() };
            self.hear(ports, header, &mut [number; 4096]);
        }
        COUNT * 4096
    }

    fn close(&mut self, ports: Ports, flags: u32) {
        let header = Header { op: op::SHUTDOWN, flags, buf_alloc: 1 << 16, ..Header::default() };
        self.hear(ports, header, &mut []);
    }

    /// The flags of each end that the guest is told of, in order.
    fn ends(&mut self) -> Vec<u32> {
        self.packets().iter().filter(|packet| packet.op == op::SHUTDOWN).map(|packet| packet.flags).collect()
    }
}

fn read(program: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    program.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn who_goes_before_it_has_said_all_is_forgotten() {
    let mut rig = Rig::new("part");
    let (id, program) = rig.program("CONN");
    assert_eq!(rig.connections(), 1, "it may say the rest yet");
    drop(program);
    rig.all.note(id, NEWS | EventSet::HANG_UP);
    assert_eq!((rig.connections(), rig.packets().len()), (0, 0));
    // Before the guest has heard of it, it needs not hear of its end either.
    let (id, program) = rig.program("CONNECT 7\n");
    drop(program);
    rig.all.note(id, NEWS | EventSet::HANG_UP);
    assert_eq!((rig.connections(), rig.packets().len()), (0, 0));
    // Afterwards it does.
    let (id, program) = rig.program("CONNECT 7\n");
    assert_eq!(rig.packet().unwrap().op, op::REQUEST);
    assert!(!rig.all.has_packet(), "there is nothing to say until the guest answers");
    rig.all.note(id, NEWS);
    assert_eq!(rig.connections(), 1, "what the program says early waits");
    drop(program);
    rig.all.note(id, NEWS | EventSet::HANG_UP);
    let said: Vec<_> = rig.packets().iter().map(|packet| packet.op).collect();
    assert_eq!((rig.connections(), said), (0, vec![op::RST]));
}

#[test]
fn a_guest_accepts_what_it_has_heard_of_alone() {
    let mut rig = Rig::new("early");
    let (_, mut program) = rig.program("CONNECT 7\n");
    let ports = Ports { host: FIRST_PORT, guest: 7 };
    rig.hear(ports, Header { op: op::RESPONSE, buf_alloc: 1, ..Header::default() }, &mut []);
    assert_eq!(rig.connections(), 0);
    assert_eq!(program.read(&mut [0; 8]).unwrap_or(0), 0, "and not that it is connected");
}

#[test]
fn no_two_programs_have_a_port() {
    let mut rig = Rig::new("ports");
    rig.all.next_port = u32::MAX - 1;
    let _programs: Vec<_> = (0..3).map(|_| rig.program("CONNECT 7\n")).collect();
    let ports: Vec<_> = rig.packets().iter().map(|packet| packet.src_port).collect();
    // The last of all is no port.
    assert_eq!(ports, [u32::MAX - 1, FIRST_PORT, FIRST_PORT + 1]);
    // One that is taken is passed over.
    rig.all.next_port = FIRST_PORT;
    let _another = rig.program("CONNECT 7\n");
    assert_eq!(rig.packet().unwrap().src_port, FIRST_PORT + 2);
}

#[test]
fn nobody_is_let_in_while_there_are_no_descriptors() {
    let mut rig = Rig::new("rests");
    assert!(rig.all.accepts());
    rig.all.accept(true);
    assert!(!rig.all.accepts(), "there is nobody");
    rig.all.note_programs();
    assert!(rig.all.accepts());
    let until = Instant::now();
    (rig.all.rests, rig.all.deadline) = (Some(until), Some(until));
    assert!(!rig.all.accepts());
    rig.all.expire(until - Duration::from_millis(1));
    assert!(!rig.all.accepts());
    rig.all.expire(until);
    assert!(rig.all.accepts() && rig.all.deadline().is_none());
}

#[test]
fn bytes_reach_the_program_in_the_order_in_which_they_came() {
    let mut rig = Rig::new("order");
    let (ports, mut program) = rig.requested(1, 0);
    let sent = rig.fill(ports);
    // There is room again, of which nobody has told.
    let mut all = read(&mut program, 4096);
    rig.hear(ports, Header { op: op::RW, ..Header::default() }, &mut [0xee; 10]);
    let id = rig.all.id(0);
    while all.len() < sent + 10 {
        rig.all.note(id, NEWS);
        let mut some = [0; 4096];
        let len = program.read(&mut some).unwrap();
        all.extend_from_slice(&some[..len]);
    }
    let expected: Vec<u8> = (0..sent).map(|at| (at / 4096) as u8).chain([0xee; 10]).collect();
    assert!(all == expected);
}

#[test]
fn a_program_that_sends_no_more_has_all_that_waits_for_it() {
    let mut rig = Rig::new("half");
    let (ports, mut program) = rig.requested(1, 1 << 16);
    let sent = rig.fill(ports);
    program.shutdown(Shutdown::Write).unwrap();
    let id = rig.all.id(0);
    rig.all.note(id, EventSet::IN | EventSet::READ_HANG_UP);
    assert_eq!(rig.ends(), [NO_SEND]);
    let mut got = 0;
    while got < sent {
        rig.all.note(id, NEWS);
        got += program.read(&mut [0; 4096]).unwrap();
    }
    // The guest's end comes at once, and with it the connection's.
    rig.close(ports, NO_SEND);
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(rig.ends(), [NEITHER]);
}

#[test]
fn where_neither_sends_any_more_the_guest_is_told_so_whoever_was_first() {
    let mut rig = Rig::new("neither");
    let (ports, mut program) = rig.requested(1, 1 << 16);
    rig.close(ports, NO_SEND);
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0, "the program hears it without any event");
    assert_eq!(rig.ends(), [0; 0]);
    program.shutdown(Shutdown::Write).unwrap();
    let id = rig.all.id(0);
    rig.all.note(id, EventSet::IN | EventSet::READ_HANG_UP);
    assert_eq!(rig.ends().last(), Some(&NEITHER));
}

#[test]
fn a_program_that_closes_with_bytes_unread_is_gone() {
    let mut rig = Rig::new("unread");
    let (ports, program) = rig.requested(1, 1 << 16);
    rig.packets();
    rig.hear(ports, Header { op: op::RW, buf_alloc: 1 << 16, ..Header::default() }, &mut [1; 100]);
    // Its socket says so by an error, in place of an end.
    drop(program);
    let id = rig.all.id(0);
    rig.all.note(id, EventSet::IN);
    assert_eq!(rig.ends(), [NO_SEND]);
}

#[test]
fn credit_is_asked_for_each_time_that_there_is_none() {
    let mut rig = Rig::new("credit");
    let (ports, mut program) = rig.requested(1, 0);
    let credit = |rig: &mut Rig, buf_alloc| {
        rig.hear(ports, Header { op: op::CREDIT_UPDATE, buf_alloc, ..Header::default() }, &mut []);
    };
    rig.packets();
    let id = rig.all.id(0);
    program.write_all(b"abcdef").unwrap();
    rig.all.note(id, NEWS);
    let said = |rig: &mut Rig| -> Vec<_> { rig.packets().iter().map(|one| (one.op, one.len)).collect() };
    assert!(said(&mut rig).is_empty() && !rig.all.has_packet(), "it was asked at its first turn");
    credit(&mut rig, 2);
    assert_eq!(said(&mut rig), [(op::RW, 2), (op::CREDIT_REQUEST, 0)]);
    credit(&mut rig, 2);
    assert!(said(&mut rig).is_empty(), "it has given none");
    credit(&mut rig, 3);
    assert_eq!(said(&mut rig), [(op::RW, 1), (op::CREDIT_REQUEST, 0)]);
}

#[test]
fn who_sends_more_than_was_promised_is_left_at_once() {
    let mut rig = Rig::new("more");
    let (ports, mut program) = rig.requested(1, 0);
    let sent = rig.fill(ports);
    rig.packets();
    let mut rest = vec![9; WIDE as usize + 1];
    rig.hear(ports, Header { op: op::RW, ..Header::default() }, &mut rest);
    let said: Vec<_> = rig.packets().iter().map(|packet| packet.op).collect();
    assert_eq!((rig.connections(), said), (0, vec![op::RST]), "and nothing of its is kept");
    let mut all = Vec::new();
    program.read_to_end(&mut all).unwrap();
    assert!(all.len() < sent);
}

#[test]
fn who_reads_some_of_the_rest_has_its_time_again() {
    let mut rig = Rig::new("again");
    let (ports, mut program) = rig.requested(1, 0);
    rig.fill(ports);
    rig.close(ports, NEITHER);
    rig.packets();
    assert_eq!(rig.connections(), 1);
    read(&mut program, 8192);
    let before = Instant::now();
    let id = rig.all.id(0);
    rig.all.note(id, NEWS);
    if let Some((_, connection)) = &rig.all.slots[0] {
        assert!(connection.deadline.is_some_and(|until| until > before), "it is not over");
    }
}
