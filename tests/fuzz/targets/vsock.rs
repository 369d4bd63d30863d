//! A guest that says anything on its sockets, and programs of the host that come, go, write and read meanwhile: the device takes it, gives
//! each byte once and in order, and an honest connection works after it.
#![no_main]

#[path = "../../../devices/tests/vsock/rig.rs"]
#[allow(dead_code)]
mod rig;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use devices::virtio::mock::Buffer;
use fuzz::{Input, Seeds, bounded};
use rig::*;

fuzz::target!(seeds, run);

const MEMORY_MAX: usize = 32 << 20;
const STEPS_MAX: usize = 60;
/// Ports that the fuzzed part has none of.
const HONEST: u32 = 0x7777_0000;

fn run(data: &[u8]) {
    bounded(MEMORY_MAX, || play(&mut Input::new(data)));
}

fn play(input: &mut Input<'_>) {
    let mut rig = Rig::started();
    rig.ports.open.lock().unwrap().extend([0, 1, 2, 3, 53]);
    if input.u8() & 1 == 0 {
        rig.post(64);
    }
    let (mut programs, mut hosts, mut paused, mut lied) = (Vec::<UnixStream>::new(), vec![0], false, false);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 16 {
            0..=5 => {
                let how = input.u8();
                let guest = if how & 1 == 0 { u32::from(input.u8() % 4) } else { input.u32() & 0x3fff_ffff };
                let host = match input.u8() {
                    which @ 0..128 => hosts[usize::from(which) % hosts.len()],
                    which @ 128..=250 => u32::from(which % 5),
                    _ => input.u32(),
                };
                let mut packet = Packet::new(u16::from(input.u8() % 9), guest, host);
                packet.flags = if how & 2 == 0 { u32::from(input.u8() & 3) } else { input.u32() };
                packet.buf_alloc = if how & 4 == 0 { 64 << 10 } else { input.u32() };
                packet.fwd_cnt = if how & 8 == 0 { 0 } else { input.u32() };
                let payload =
                    vec![packet.op as u8; usize::from(input.u8()) * if how & 16 == 0 { 1 } else { 16 }];
                packet.len = if how & 32 == 0 { payload.len() as u32 } else { input.u32() };
                if how & 64 != 0 {
                    (packet.kind, packet.src_cid, packet.dst_cid) =
                        (input.u8().into(), u64::from(input.u8() % 5), u64::from(input.u8() % 5));
                }
                if has_room(&mut rig, paused) {
                    rig.send_as(&packet.bytes(), &payload);
                }
            }
            6 | 7 => {
                let line = match input.u8() % 8 {
                    0 => input.bytes(25).to_vec(),
                    1 => b"CONNECT 4294967295\nahead".to_vec(),
                    port => format!("CONNECT {}\n", port & 3).into_bytes(),
                };
                let mut program = UnixStream::connect(&rig.socket).unwrap();
                program.set_nonblocking(true).unwrap();
                let _ = program.write_all(&line);
                programs.push(program);
            }
            8 => {
                if let Some(program) = some(&mut programs, input) {
                    let _ = program.write(&vec![b'x'; usize::from(input.u8()) * 64]);
                }
            }
            9 => {
                if let Some(program) = some(&mut programs, input) {
                    let _ = program.read(&mut vec![0; usize::from(input.u8()) * 64]);
                }
            }
            10 => {
                let how = input.pick(&[Shutdown::Write, Shutdown::Read, Shutdown::Both]);
                if let Some(program) = some(&mut programs, input) {
                    let _ = program.shutdown(how);
                }
            }
            11 => {
                let which = usize::from(input.u8());
                if which < programs.len() {
                    programs.swap_remove(which);
                }
            }
            12 => {
                let count = u16::from(input.u8() % 16).min(rig.rx.free());
                rig.post(count);
            }
            13 => receive(&mut rig, &mut hosts, lied),
            14 => match input.u8() % 4 {
                0 => {
                    paused = !paused;
                    if paused { rig.threads.pause().unwrap() } else { rig.threads.resume().unwrap() }
                }
                1 => {
                    rig.start();
                    (lied, hosts) = (false, vec![0]);
                }
                _ => {
                    let mut silent = rig.ports.silent.lock().unwrap();
                    *silent = !*silent;
                }
            },
            _ => {
                lied = true;
                let ring = if input.u8() & 1 == 0 { &mut rig.rx } else { &mut rig.tx };
                let (index, flags, next) =
                    (u16::from(input.u8() % 8), u16::from(input.u8() & 7), u16::from(input.u8() % 9));
                let addr = if flags & 4 != 0 { 0x30_0000 } else { 0x20_0000 + u64::from(input.u16()) };
                let len = if next & 1 == 0 { u32::from(input.u16()) } else { input.u32() };
                ring.lie_descriptor(index, Buffer::readable(addr, len), flags, next);
                ring.lie_available(if len & 1 == 0 { index } else { len as u16 });
                ring.publish();
                let which = input.u8() & 1;
                rig.mmio().kick(which.into());
            }
        }
    }
    if paused {
        rig.threads.resume().unwrap();
    }
    *rig.ports.silent.lock().unwrap() = false;
    if lied {
        rig.start();
        rig.post(64);
    } else {
        rig.post(rig.rx.free().min(64));
        // What it is told may well be more than it had room for.
        while rig.receive_within(Duration::from_micros(200)).is_some() {}
        assert!(!rig.mmio().needs_reset(), "packets broke a ring");
    }
    honest(&mut rig);
}

/// Whether another packet can be sent; a device that has no room for its answers takes none.
fn has_room(rig: &mut Rig, paused: bool) -> bool {
    let end = Instant::now() + Duration::from_millis(2);
    while rig.tx.free() < 2 {
        while rig.tx.reap().is_some() {}
        if paused || Instant::now() > end {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

fn some<'a>(programs: &'a mut [UnixStream], input: &mut Input<'_>) -> Option<&'a mut UnixStream> {
    let which = usize::from(input.u8());
    let len = programs.len();
    (len > 0).then(|| &mut programs[which % len])
}

/// Takes what is there for the guest, and notes the host's ports.
fn receive(rig: &mut Rig, hosts: &mut Vec<u32>, lied: bool) {
    // The mock's books are of an honest driver.
    if lied {
        return;
    }
    while let Some((packet, _)) = rig.receive_within(Duration::from_micros(100)) {
        if packet.op == REQUEST && hosts.len() < 64 {
            hosts.push(packet.src_port);
        }
    }
}

/// A connection is made and refused as at first, and what is said on it arrives, both ways.
fn honest(rig: &mut Rig) {
    let mut program = rig.program(&format!("CONNECT {HONEST}\n"));
    let host = await_packet(rig, REQUEST).src_port;
    rig.send(Packet::new(RESPONSE, HONEST, host), b"");
    let line = format!("OK {host}\n");
    let mut said = vec![0; line.len()];
    program.read_exact(&mut said).unwrap();
    assert_eq!(said, line.as_bytes());
    rig.send(Packet::new(RW, HONEST, host), b"to the host");
    let mut said = [0; 11];
    program.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"to the host");
    program.write_all(b"to the guest").unwrap();
    assert_eq!(await_packet(rig, RW).len, 12);
    rig.send(Packet::new(REQUEST, HONEST, HONEST), b"");
    await_packet(rig, RST);
}

/// The next packet for the honest port, which is of this kind.
fn await_packet(rig: &mut Rig, op: u16) -> Packet {
    for _ in 0..100_000 {
        let (packet, _) = rig.receive();
        if packet.dst_port == HONEST && packet.op != CREDIT_UPDATE {
            assert_eq!(packet.op, op);
            return packet;
        }
    }
    panic!("the device says more than there is to say");
}

fn seeds() -> Seeds {
    let request = [0, 0, 1, 129, 1, 0, 0];
    let data = [0, 0, 1, 129, 5, 0, 100];
    let shutdown = [0, 0, 1, 129, 4, 3, 0];
    let credit = [0, 12, 1, 129, 6, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0];
    let connect = [6, 2, 13];
    let accept = [0, 0, 2, 1, 2, 0, 0];
    let from_guest = [&request[..], &[13], &data, &credit, &[9, 0, 2], &shutdown, &[13]].concat();
    let from_host =
        [&connect[..], &accept, &[8, 0, 9, 13, 0, 0, 2, 1, 5, 0, 50, 10, 0, 0, 13, 11, 0, 13]].concat();
    let lies = [
        0, 64, 1, 129, 1, 0, 0, 7, 3, 2, 0, 32, 1, 129, 5, 0, 100, 255, 255, 0, 0, 15, 1, 0, 0, 0, 0, 0, 44,
        0, 1,
    ];
    let pauses = [&[14, 0][..], &request, &[14, 0, 13, 14, 2], &request, &[14, 1], &request, &[13]].concat();
    let seeds = [("guest", from_guest), ("host", from_host), ("lies", lies.to_vec()), ("pauses", pauses)];
    seeds
        .into_iter()
        .flat_map(|(name, bytes)| {
            [0, 1].map(|flag: u8| (format!("{name}-{flag}"), [&[flag], &bytes[..]].concat()))
        })
        .collect()
}
