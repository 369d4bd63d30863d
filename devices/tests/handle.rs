//! The threads of a NIC, which are there before its driver and after it, and what they are asked by message.

mod rig;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use devices::virtio::mailbox::ThreadHook;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::net::{Handle, VirtioNet};
use net::{Backend, Iov, Offloads, Sent, SocketBackend, SocketPeer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use rig::*;

const PAIRS: usize = 3;

/// The numbers of this process's threads whose names begin so.
fn threads(name: &str) -> BTreeMap<String, String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let named = tasks.filter_map(|task| {
        let path = task.unwrap().path();
        let name = fs::read_to_string(path.join("comm")).ok()?.trim().to_owned();
        Some((name, path.display().to_string()))
    });
    named.filter(|(thread, _)| thread.starts_with(name)).collect()
}

/// A wire that waits in `set_offloads` for as long as it is shut.
struct Gate {
    socket: SocketBackend,
    shut: Arc<AtomicBool>,
    waits: Arc<AtomicBool>,
}

impl Backend for Gate {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        self.socket.send(frame)
    }
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        self.socket.recv(space)
    }
    fn offloads(&self) -> Offloads {
        self.socket.offloads()
    }
    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        while self.shut.load(Ordering::Relaxed) {
            self.waits.store(true, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
        self.socket.set_offloads(accepted)
    }
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.socket.set_enabled(enabled)
    }
}

/// A NIC of several pairs, whose first can be held in the middle of a command.
struct Nic {
    memory: GuestMemoryMmap,
    device: MmioTransport,
    handle: Handle,
    peers: Vec<SocketPeer>,
    shut: Arc<AtomicBool>,
    waits: Arc<AtomicBool>,
    control: MockRing,
}

impl Nic {
    fn new(name: &str) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let (shut, waits) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (mut backends, mut peers): (Vec<Box<dyn Backend>>, _) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            let (socket, peer) = SocketBackend::pair().unwrap();
            let shut = if pair == 0 { Arc::clone(&shut) } else { Arc::default() };
            let waits = Arc::clone(&waits);
            backends.push(Box::new(Gate { socket: socket.with_offloads(ALL), shut, waits }));
            peers.push(peer);
        }
        let nic = VirtioNet::new(config(name, None), backends, Vec::new()).unwrap();
        let handle = nic.handle();
        let device = MmioTransport::new(Box::new(nic), memory.clone(), EventFd::new(0).unwrap()).unwrap();
        let control = MockRing::new(&memory, 0x3_0000, 64, true);
        Self { memory, device, handle, peers, shut, waits, control }
    }

    /// Starts a driver; false where the device cannot.
    fn start(&mut self) -> bool {
        let mmio = MockMmio::new(&self.device);
        assert!(mmio.negotiate(COMMANDS | F_MQ));
        self.control = MockRing::new(&self.memory, 0x3_0000, 64, true);
        for index in 0..2 * PAIRS as u32 {
            let ring = MockRing::new(&self.memory, 0x1_0000 * (6 + u64::from(index)), 64, true);
            assert!(mmio.set_queue(index, ring.setup()));
        }
        assert!(mmio.set_queue(2 * PAIRS as u32, self.control.setup()));
        mmio.start();
        !mmio.needs_reset()
    }

    fn send_command(&mut self, command: &[u8]) {
        self.memory.write_slice(command, GuestAddress(COMMAND)).unwrap();
        let buffers = [Buffer::readable(COMMAND, command.len() as u32), Buffer::writable(ANSWER, 1)];
        self.control.add(&buffers).unwrap();
        self.control.publish();
        MockMmio::new(&self.device).kick(2 * PAIRS as u32);
    }
}

#[test]
fn no_driver_makes_or_ends_a_thread() {
    let mut nic = Nic::new("life");
    wait("the threads", || threads("life-").len() == PAIRS);
    assert_eq!(nic.handle.pairs(), PAIRS);
    let born = threads("life-");
    assert!(nic.handle.thread_names().eq(born.keys()), "{born:?}");
    for _ in 0..3 {
        assert!(nic.start());
        assert_eq!(threads("life-"), born);
        nic.device.reset();
        assert_eq!(threads("life-"), born);
    }
    drop(nic);
    assert_eq!(threads("life-"), BTreeMap::new());
}

/// Has the calling thread fail, with `EPERM`, in what a confined vCPU may not do: make threads, descriptors or events, place a
/// thread, or ask anything of a device.
fn confine() {
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let denied = [
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_dup,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_eventfd2,
        libc::SYS_ioctl,
        libc::SYS_openat,
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setscheduler,
        libc::SYS_socket,
    ];
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |offset: u32| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let equal = |k: u32, jt: u8, jf: u8| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, k);
    let answer = |k: u32| step(libc::BPF_RET | libc::BPF_K, 0, 0, k);
    // `seccomp_data`: the number of the call, and at 24 its second argument.
    let mut filter = vec![load(0)];
    filter.extend(denied.iter().flat_map(|&call| [equal(call as u32, 0, 1), answer(EPERM)]));
    filter.extend([equal(libc::SYS_fcntl as u32, 0, 3), load(24)]);
    filter.extend([equal(libc::F_DUPFD_CLOEXEC as u32, 0, 1), answer(EPERM)]);
    filter.push(answer(libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which is there for the call.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_vcpu_that_may_make_nothing_starts_and_resets_the_nic() {
    let mut nic = Nic::new("vcpu");
    thread::scope(|scope| {
        scope.spawn(|| {
            confine();
            assert!(EventFd::new(0).is_err(), "it is not confined");
            for _ in 0..3 {
                assert!(nic.start(), "the NIC cannot start");
                nic.send_command(&[4, 0, PAIRS as u8, 0]);
                wait("the pairs", || nic.control.reap().is_some());
                assert!(nic.peers.iter().all(SocketPeer::is_enabled));
                nic.device.reset();
            }
        });
    });
}

#[test]
fn a_hook_runs_on_each_thread_and_its_error_comes_back() {
    let mut nic = Nic::new("hook");
    for driver in [false, true] {
        if driver {
            assert!(nic.start());
        }
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let hook: ThreadHook = {
            let seen = Arc::clone(&seen);
            Arc::new(move |name| {
                assert_eq!(thread::current().name(), Some(name));
                seen.lock().unwrap().push(name.to_owned());
                if name == "hook-1" { Err(io::Error::other("not this one")) } else { Ok(()) }
            })
        };
        assert_eq!(nic.handle.confine(&hook).unwrap_err().to_string(), "not this one");
        let mut names = seen.lock().unwrap().clone();
        names.sort();
        assert_eq!(names, ["hook-0", "hook-1", "hook-2"], "all have run it");
        let nothing: ThreadHook = Arc::new(|_| Ok(()));
        nic.handle.confine(&nothing).unwrap();
    }
}

#[test]
fn a_handle_outlives_its_device_and_says_so() {
    let nic = Nic::new("gone");
    let handle = nic.handle.clone();
    drop(nic);
    let nothing: ThreadHook = Arc::new(|_| Ok(()));
    assert_eq!(handle.confine(&nothing).unwrap_err().to_string(), "the thread gone-0 has ended");
    assert_eq!(handle.counters().len(), PAIRS);
}

#[test]
fn a_thread_that_panics_is_lost_and_nobody_waits_for_it() {
    let mut nic = Nic::new("panic");
    assert!(nic.start());
    let hook: ThreadHook = Arc::new(|name| if name == "panic-2" { panic!("on purpose") } else { Ok(()) });
    assert_eq!(nic.handle.confine(&hook).unwrap_err().to_string(), "the thread panic-2 has ended");
    nic.send_command(&offloads_set(F_GUEST_CSUM));
    wait("the answer", || nic.control.reap().is_some());
    assert!(!nic.start(), "a NIC starts though one of its backends is lost");
}

#[test]
fn a_pair_that_stops_before_the_one_with_the_control_queue_answers_it() {
    let mut nic = Nic::new("stop");
    assert!(nic.start());
    nic.send_command(&[4, 0, PAIRS as u8, 0]);
    wait("the pairs", || nic.control.reap().is_some());
    let negotiated = nic.peers[1].accepted();
    nic.shut.store(true, Ordering::Relaxed);
    nic.send_command(&offloads_set(F_GUEST_CSUM));
    wait("the first pair to be in the middle of the command", || nic.waits.load(Ordering::Relaxed));
    thread::scope(|scope| {
        let reset = scope.spawn(|| nic.device.reset());
        wait("the others to stop", || nic.peers[1..].iter().all(|peer| !peer.is_enabled()));
        assert!(!reset.is_finished(), "the first pair has stopped in the middle of a command");
        nic.shut.store(false, Ordering::Relaxed);
        wait("the reset", || reset.is_finished());
    });
    assert_eq!(nic.peers[2].accepted(), negotiated, "a pair without a driver does what its driver says");
}
