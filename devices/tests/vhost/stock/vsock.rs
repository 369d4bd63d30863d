//! Sockets by the kernel.
#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::virtio::mock::{Buffer, MockRing};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, VirtQueue};
use devices::virtio::vsock::{TYPE_VSOCK, VhostVsock};
use devices::virtio::{Activation, ActiveQueue, VirtioDevice};
use net::{Vhost, open_vhost_vsock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::interrupts::Interrupts;
use crate::namespace::skip;
use crate::packet::*;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);
const SIZE: u16 = 16;
const PLACE: u64 = 4096;
const RX_DATA: u64 = 0x1_0000;
const TX_DATA: u64 = 0x4_0000;
/// The guest's port.
const PORT: u32 = 1024;

struct Guest {
    device: VhostVsock,
    cid: u32,
    memory: GuestMemoryMmap,
    interrupts: Arc<Interrupts>,
    rx: MockRing,
    tx: MockRing,
    kicks: [Arc<EventFd>; 2],
}

impl Guest {
    /// A device without a driver, or none.
    fn new(test: &str) -> Option<Self> {
        let _ = Command::new("modprobe").arg("vhost_vsock").stderr(Stdio::null()).status();
        let (fd, cid) = match open_vhost_vsock(None) {
            Ok(opened) => opened,
            Err(error) => {
                skip(test, &format!("{error}: {}", error.remedy().unwrap_or_default()));
                return None;
            }
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Some(Self {
            device: VhostVsock::new(Vhost::of_vsock(fd).unwrap(), cid).unwrap(),
            cid,
            interrupts: Arc::new(Interrupts::new()),
            rx: MockRing::new(&memory, 0x1000, SIZE, false),
            tx: MockRing::new(&memory, 0x4000, SIZE, false),
            memory,
            kicks: [Arc::new(event()), Arc::new(event())],
        })
    }

    fn started(test: &str) -> Option<Self> {
        let mut guest = Self::new(test)?;
        guest.start().unwrap();
        Some(guest)
    }

    /// A driver with new rings, and room for eight packets.
    fn start(&mut self) -> io::Result<()> {
        self.rx = MockRing::new(&self.memory, 0x1000, SIZE, false);
        self.tx = MockRing::new(&self.memory, 0x4000, SIZE, false);
        self.start_in(&self.memory.clone())?;
        self.post(8);
        Ok(())
    }

    fn start_in(&mut self, memory: &GuestMemoryMmap) -> io::Result<()> {
        let queue = |index: u16, ring: &MockRing| ActiveQueue {
            index,
            ring: VirtQueue::new(ring.setup(), F_VERSION_1, &self.memory).unwrap(),
            kick: Arc::clone(&self.kicks[usize::from(index)]),
        };
        self.device.activate(Activation {
            memory: memory.clone(),
            accepted: F_VERSION_1,
            interrupt: Arc::clone(&self.interrupts) as _,
            queues: vec![queue(0, &self.rx), queue(1, &self.tx)],
        })
    }

    fn post(&mut self, packets: u16) {
        for _ in 0..packets {
            let head = self.rx.add(&[Buffer::writable(0, 0)]).unwrap();
            self.rx.lie_descriptor(
                head,
                Buffer::writable(RX_DATA + PLACE * u64::from(head), PLACE as u32),
                2,
                0,
            );
        }
        self.rx.publish();
        self.kicks[0].write(1).unwrap();
    }

    /// The next packet and its payload, if one comes in that time.
    fn receive_within(&mut self, time: Duration) -> Option<(Packet, Vec<u8>)> {
        let until = Instant::now() + time;
        loop {
            if let Some((head, len)) = self.rx.reap() {
                let mut bytes = vec![0; len as usize];
                self.memory.read_slice(&mut bytes, GuestAddress(RX_DATA + PLACE * u64::from(head))).unwrap();
                self.post(1);
                let packet = Packet::parse(&bytes);
                assert_eq!((packet.src_cid, packet.dst_cid), (2, self.cid.into()));
                return Some((packet, bytes.split_off(HEADER)));
            }
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// The next packet that does this: not what the kernel says of credit, or of a program that has ended.
    #[track_caller]
    fn expect(&mut self, op: u16) -> (Packet, Vec<u8>) {
        loop {
            let received = self.receive_within(LONG).expect("the kernel says nothing");
            if received.0.op == op {
                return received;
            }
            assert!([RST, SHUTDOWN, CREDIT_UPDATE].contains(&received.0.op), "{received:?}");
        }
    }

    /// Takes what is on its way.
    fn drain(&mut self) {
        while self.receive_within(SHORT).is_some() {}
    }

    fn send(&mut self, op: u16, host: u32, payload: &[u8]) {
        let len = payload.len() as u32;
        let mut bytes = Packet { src_cid: self.cid.into(), len, ..Packet::new(op, PORT, host) }.bytes();
        bytes.extend(payload);
        while self.tx.reap().is_some() {}
        let head = self.tx.add(&[Buffer::readable(0, 0)]).unwrap();
        let at = TX_DATA + PLACE * u64::from(head);
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        self.tx.lie_descriptor(head, Buffer::readable(at, bytes.len() as u32), 0, 0);
        self.tx.publish();
        self.kicks[1].write(1).unwrap();
    }

    /// A program of the host that connects to the guest's port.
    fn program(&self) -> UnixStream {
        // SAFETY: no memory is named.
        let fd = unsafe {
            libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: it is new, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: zeroes are an address.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as u16;
        (address.svm_cid, address.svm_port) = (self.cid, PORT);
        // SAFETY: the address is as long as is said.
        let connected = unsafe {
            libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32)
        };
        assert_eq!((connected, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EINPROGRESS)));
        // It has no address that this type would ask for: it is read and written alone.
        UnixStream::from(socket)
    }

    /// Such a program once it is connected, and its port.
    fn connected(&mut self) -> (UnixStream, u32) {
        let program = self.program();
        let (request, payload) = self.expect(REQUEST);
        let host = request.src_port;
        assert_eq!((request.dst_port, payload.len()), (PORT, 0));
        self.send(RESPONSE, host, b"");
        let long = Timespec { tv_sec: LONG.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&program, PollFlags::OUT)], Some(&long)).unwrap(), 1);
        program.set_nonblocking(false).unwrap();
        (program, host)
    }

    /// A byte each way, on a stream of its own.
    #[track_caller]
    fn check(&mut self) {
        let (mut program, host) = self.connected();
        self.send(RW, host, b"from the guest");
        let mut said = [0; 14];
        program.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"from the guest");
        program.write_all(b"to it").unwrap();
        let (packet, payload) = self.expect(RW);
        assert_eq!((packet.src_port, packet.dst_port, &payload[..]), (host, PORT, &b"to it"[..]));
    }
}

#[test]
fn it_is_a_socket_device() {
    let Some(mut guest) = Guest::new("it_is_a_socket_device") else { return };
    let device = &mut guest.device;
    assert_eq!((device.device_type(), device.queue_max_sizes()), (TYPE_VSOCK, &[128, 128, 8][..]));
    // Streams and, as Linux has them since 5.14, packets in sequence.
    let features = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | 3;
    assert_eq!(device.features(), features);
    let mut config = [0xaa; 10];
    device.read_config(0, &mut config);
    assert_eq!(config, [&guest.cid.to_le_bytes()[..], &[0; 4], &[0xaa; 2]].concat()[..]);
}

#[test]
fn a_stream_passes_and_each_queue_interrupts_for_itself() {
    let Some(mut guest) = Guest::started("a_stream_passes_and_each_queue_interrupts_for_itself") else {
        return;
    };
    let waits = guest.program();
    let host = guest.expect(REQUEST).0.src_port;
    guest.interrupts.wait("room was used", |interrupts| interrupts.counted()[0] > 0);
    assert_eq!(guest.interrupts.counted()[1], 0, "nothing was sent");
    let before = guest.interrupts.counted()[0];
    guest.send(RST, host, b"");
    guest.interrupts.wait("a packet was sent", |interrupts| interrupts.counted()[1] > 0);
    assert_eq!(guest.interrupts.counted()[0], before, "nothing came");
    drop(waits);
    guest.check();
    assert_eq!(guest.interrupts.events(), [false; 2]);
    assert_eq!(guest.interrupts.resets.load(Ordering::SeqCst), 0);
}

#[test]
fn interrupts_go_where_they_are_routed_to() {
    let Some(mut guest) = Guest::started("interrupts_go_where_they_are_routed_to") else { return };
    guest.check();
    guest.interrupts.by_event.store(true, Ordering::SeqCst);
    guest.device.rerouted();
    guest.drain();
    let (before, _) = (guest.interrupts.counted(), guest.interrupts.events());
    guest.check();
    let mut seen = [false; 2];
    guest.interrupts.wait("both eventfds", |interrupts| {
        let events = interrupts.events();
        seen = [seen[0] | events[0], seen[1] | events[1]];
        seen == [true; 2]
    });
    assert_eq!(guest.interrupts.counted(), before);
    // And back.
    guest.interrupts.by_event.store(false, Ordering::SeqCst);
    guest.device.rerouted();
    guest.check();
    guest
        .interrupts
        .wait("both queues", |interrupts| (0..2).all(|queue| interrupts.counted()[queue] > before[queue]));
}

#[test]
fn a_paused_device_moves_nothing_and_loses_nothing() {
    let Some(mut guest) = Guest::started("a_paused_device_moves_nothing_and_loses_nothing") else { return };
    let threads = guest.device.threads();
    let (mut program, host) = guest.connected();
    guest.drain();
    for _ in 0..2 {
        // Once more is as once.
        threads.pause().unwrap();
    }
    program.write_all(b"hello").unwrap();
    while guest.tx.reap().is_some() {}
    guest.send(RW, host, b"while paused");
    assert_eq!(guest.receive_within(SHORT), None);
    assert!(guest.tx.reap().is_none());
    threads.resume().unwrap();
    assert_eq!(guest.expect(RW).1, b"hello");
    let mut said = [0; 12];
    program.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"while paused");
    threads.resume().unwrap();
    guest.check();
    // A driver that comes while it is paused waits as well.
    threads.pause().unwrap();
    guest.device.reset();
    guest.start().unwrap();
    let program = guest.program();
    assert_eq!(guest.receive_within(SHORT), None);
    threads.resume().unwrap();
    guest.expect(REQUEST);
    drop(program);
}

#[test]
fn a_driver_that_breaks_a_ring_is_asked_for_a_reset_and_the_next_is_served() {
    let name = "a_driver_that_breaks_a_ring_is_asked_for_a_reset_and_the_next_is_served";
    let Some(mut guest) = Guest::started(name) else { return };
    guest.check();
    guest.drain();
    assert_eq!(guest.interrupts.resets.load(Ordering::SeqCst), 0);
    guest.tx.lie_available(SIZE + 7);
    guest.tx.publish();
    guest.kicks[1].write(1).unwrap();
    guest.interrupts.wait("a reset", |interrupts| interrupts.resets.load(Ordering::SeqCst) == 1);
    // The rings are left alone, the other one as well.
    let program = guest.program();
    assert_eq!(guest.receive_within(SHORT), None);
    drop(program);
    guest.device.reset();
    guest.start().unwrap();
    // The one that waited is told of, or not, as it was with the kernel's patience.
    guest.drain();
    guest.check();
    assert_eq!(guest.interrupts.resets.load(Ordering::SeqCst), 1);
}

#[test]
fn nothing_is_touched_after_a_reset() {
    let Some(mut guest) = Guest::started("nothing_is_touched_after_a_reset") else { return };
    guest.check();
    guest.drain();
    guest.device.reset();
    let program = guest.program();
    assert_eq!(guest.receive_within(SHORT), None);
    drop(program);
    // Once more is as once.
    guest.device.reset();
    guest.start().unwrap();
    guest.drain();
    guest.check();
}

#[test]
fn where_the_kernel_refuses_a_driver_another_can_start() {
    let Some(mut guest) = Guest::new("where_the_kernel_refuses_a_driver_another_can_start") else { return };
    // More regions than it is told of.
    let pieces: Vec<_> = (0..65).map(|at| (GuestAddress(at << 21), 1 << 20)).collect();
    let many = GuestMemoryMmap::from_ranges(&pieces).unwrap();
    assert_eq!(guest.start_in(&many).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    guest.start().unwrap();
    guest.check();
}

#[test]
fn its_thread_can_be_confined_and_outlives_a_signal() {
    let Some(mut guest) = Guest::started("its_thread_can_be_confined_and_outlives_a_signal") else { return };
    extern "C" fn nothing(_: libc::c_int) {}
    let (thread, name) = (Arc::new(AtomicI32::new(0)), Arc::new(Mutex::new(String::new())));
    let (of, called) = (Arc::clone(&thread), Arc::clone(&name));
    let threads = guest.device.threads();
    let hook = move |name: &str| {
        // SAFETY: it takes no memory.
        of.store(unsafe { libc::gettid() }, Ordering::SeqCst);
        *called.lock().unwrap() = name.to_owned();
        Err(io::Error::from_raw_os_error(libc::EDOM))
    };
    let refused = threads.confine(&(Arc::new(hook) as _)).unwrap_err();
    assert_eq!((refused.raw_os_error(), &**name.lock().unwrap()), (Some(libc::EDOM), "vsock"));
    // SAFETY: the handler does nothing, and the thread is one of this process, asleep by now or soon.
    unsafe {
        libc::signal(libc::SIGUSR1, nothing as *const () as libc::sighandler_t);
        std::thread::sleep(SHORT);
        assert_eq!(
            libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.load(Ordering::SeqCst), libc::SIGUSR1),
            0
        );
    }
    std::thread::sleep(SHORT);
    guest.interrupts.by_event.store(false, Ordering::SeqCst);
    guest.check();
    threads.pause().unwrap();
    threads.resume().unwrap();
}
