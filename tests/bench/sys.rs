//! The system calls that no safe wrapper has: a stopwatch for `KVM_RUN`, by seccomp and ptrace; processors and their
//! time; frames from and to guest memory; frames into a link.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

/// `KVM_RUN` of `linux/kvm.h`: `_IO(0xae, 0x80)`.
const KVM_RUN: u32 = 0xae80;

/// `PACKET_IGNORE_OUTGOING` of `linux/if_packet.h`.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// Turns -1 into the error that `errno` names.
fn checked<T: Copy + TryInto<i64>>(result: T) -> io::Result<T> {
    if result.try_into().is_ok_and(|result: i64| result < 0) {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Moves this thread, and the processes that it will start, to a new network namespace.
pub(crate) fn new_network_namespace() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET takes no memory and changes this thread only.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    Ok(())
}

/// Whose processor time is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cpu {
    /// All threads of the process of this number.
    Process(u32),
    /// One thread, of this process.
    Thread(u32),
}

impl Cpu {
    /// Time on a processor since it started.
    pub(crate) fn time(self) -> io::Result<Duration> {
        // The clocks of linux/posix-timers.h: the number inverted, whether it is a thread's, and CPUCLOCK_SCHED.
        let clock = match self {
            Self::Process(pid) => !(pid as libc::clockid_t) << 3 | 2,
            Self::Thread(tid) => !(tid as libc::clockid_t) << 3 | 4 | 2,
        };
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: clock_gettime writes one timespec.
        checked(unsafe { libc::clock_gettime(clock, &mut time) })?;
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}

/// The number of this thread.
pub(crate) fn thread_number() -> u32 {
    // SAFETY: gettid cannot fail and takes no memory.
    unsafe { libc::gettid() as u32 }
}

/// The processors that this thread may run on.
pub(crate) fn cores() -> io::Result<Vec<usize>> {
    // SAFETY: all zeroes is a set of no processors.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most that many bytes of the set.
    checked(unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) })?;
    // SAFETY: every number is within the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

/// Keeps a thread of this process on one processor, one of [`cores`].
pub(crate) fn pin(thread: u32, core: usize) -> io::Result<()> {
    // SAFETY: all zeroes is a set of no processors, and `core` is a number within it.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        set
    };
    // SAFETY: the kernel reads that many bytes of the set.
    checked(unsafe { libc::sched_setaffinity(thread as libc::pid_t, size_of_val(&set), &set) })?;
    Ok(())
}

/// Has the link of a tap show its carrier, as a driver of the NIC does, and another one takes away when it goes (`TUNSETCARRIER`).
pub(crate) fn show_carrier(tap: BorrowedFd<'_>) -> io::Result<()> {
    const TUNSETCARRIER: libc::Ioctl = 0x4004_54e2;
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int.
    checked(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETCARRIER, &raw const on) } as isize)?;
    Ok(())
}

/// Buffers in guest memory as the system calls take them, gathered once: this is what a bare loop has and a ring has not.
pub(crate) struct Iovecs<'m>(Vec<libc::iovec>, PhantomData<VolatileSlice<'m>>);

impl<'m> FromIterator<VolatileSlice<'m>> for Iovecs<'m> {
    fn from_iter<T: IntoIterator<Item = VolatileSlice<'m>>>(buffers: T) -> Self {
        let iovec = |buffer: VolatileSlice<'m>| libc::iovec {
            iov_base: buffer.ptr_guard_mut().as_ptr().cast(),
            iov_len: buffer.len(),
        };
        Self(buffers.into_iter().map(iovec).collect(), PhantomData)
    }
}

impl Iovecs<'_> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Writes one frame: all the buffers. By the bare system call, as the NIC, without the C library's points of cancellation.
    pub(crate) fn writev(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: the buffers are guest memory, mapped for as long as `self` lives, and the kernel only reads them.
        checked(unsafe { libc::syscall(libc::SYS_writev, fd.as_raw_fd(), self.0.as_ptr(), self.0.len()) })?;
        Ok(())
    }

    /// Reads one frame into the buffers of `range`, and returns its length.
    pub(crate) fn readv(&self, range: Range<usize>, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let buffers = &self.0[range];
        // SAFETY: as in `writev`; guest memory, which the kernel writes, is nowhere a reference.
        let len = checked(unsafe {
            libc::syscall(libc::SYS_readv, fd.as_raw_fd(), buffers.as_ptr(), buffers.len())
        })?;
        Ok(len as usize)
    }
}

/// A packet socket with these options switched on, for frames of this type on the link of number `index`; 0 is none (packet(7)).
fn packet_socket(index: u32, frames: u16, kind: libc::c_int, options: &[libc::c_int]) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | kind;
    // SAFETY: socket takes no memory; without a protocol it receives nothing yet.
    let fd = checked(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor is new, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    let (option, len) = ((&raw const on).cast(), size_of_val(&on) as libc::socklen_t);
    for &number in options {
        // SAFETY: the option is one int, which `on` is.
        checked(unsafe { libc::setsockopt(fd, libc::SOL_PACKET, number, option, len) })?;
    }
    // SAFETY: all zeroes is an address of no protocol, link or length.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    (address.sll_family, address.sll_protocol) = (libc::AF_PACKET as u16, frames.to_be());
    address.sll_ifindex = index as i32;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads a sockaddr_ll.
    checked(unsafe { libc::bind(fd, (&raw const address).cast(), len) })?;
    Ok(socket)
}

/// Sends one frame.
fn send(socket: &OwnedFd, frame: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads the frame.
    checked(unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) })?;
    Ok(())
}

/// Receives one frame, and returns its length; none where there is none.
fn receive(socket: &OwnedFd, frame: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the kernel writes at most that many bytes of the frame.
    match checked(unsafe { libc::recv(socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) }) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        received => Ok(Some(received? as usize)),
    }
}

/// A packet socket that puts frames, each behind a header of 10 bytes as virtio's, on the way out of a link.
pub(crate) struct LinkSender(OwnedFd);

impl LinkSender {
    /// On the link of number `index`.
    pub(crate) fn new(index: u32) -> io::Result<Self> {
        // Past the link's queueing discipline, which loses frames without a word for as long as the kernel has not seen to a carrier
        // that has just come.
        packet_socket(index, 0, 0, &[libc::PACKET_VNET_HDR, libc::PACKET_QDISC_BYPASS]).map(Self)
    }

    /// Sends one frame.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(&self.0, frame)
    }
}

/// A packet socket that sends frames out of a link, and receives those of its own type.
pub(crate) struct LinkAsker(OwnedFd);

impl LinkAsker {
    /// The type of its frames, one for experiments.
    pub(crate) const KIND: u16 = 0x88b5;

    /// On the link of this name.
    pub(crate) fn new(link: &str) -> io::Result<Self> {
        let any =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
        let index = rustix::net::netdevice::name_to_index(any, link)?;
        // As for `LinkSender`.
        packet_socket(index, Self::KIND, 0, &[libc::PACKET_QDISC_BYPASS]).map(Self)
    }

    /// Sends one frame.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(&self.0, frame)
    }

    /// From now on, waits for a frame for so long.
    pub(crate) fn wait_for(&self, longest: Duration) -> io::Result<()> {
        use rustix::net::sockopt::{Timeout, set_socket_timeout};
        Ok(set_socket_timeout(&self.0, Timeout::Recv, Some(longest))?)
    }

    /// Waits for a frame, and returns its length; none if there was none in time.
    pub(crate) fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        receive(&self.0, frame)
    }
}

/// While it lives, nothing of other threads preempts this one (sched(7)).
pub(crate) struct Unpreempted(());

impl Unpreempted {
    pub(crate) fn new() -> io::Result<Self> {
        Self::set(libc::SCHED_FIFO, 1)?;
        Ok(Self(()))
    }

    fn set(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
        let parameter = libc::sched_param { sched_priority: priority };
        // SAFETY: the kernel reads the parameter; 0 is this thread.
        checked(unsafe { libc::sched_setscheduler(0, policy, &parameter) })?;
        Ok(())
    }
}

impl Drop for Unpreempted {
    fn drop(&mut self) {
        let _ = Self::set(libc::SCHED_OTHER, 0);
    }
}

/// Sleeps until the eventfd or the other descriptor is readable, but not for longer.
pub(crate) fn sleep(event: &EventFd, other: Option<BorrowedFd<'_>>, longest: Duration) -> io::Result<()> {
    let of = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // A negative descriptor is none.
    let mut fds = [of(event.as_raw_fd()), of(other.map_or(-1, |other| other.as_raw_fd()))];
    let timeout = libc::timespec {
        tv_sec: longest.as_secs() as libc::time_t,
        tv_nsec: longest.subsec_nanos() as libc::c_long,
    };
    // SAFETY: the kernel writes what became ready into the two descriptors, and reads the time.
    checked(unsafe { libc::ppoll(fds.as_mut_ptr(), 2, &timeout, std::ptr::null()) })?;
    Ok(())
}

/// A packet socket that takes what comes in on a link, and not what goes out (packet(7)).
pub(crate) struct LinkReceiver(OwnedFd);

impl LinkReceiver {
    /// On the link of number `index`.
    pub(crate) fn new(index: u32) -> io::Result<Self> {
        let all = libc::ETH_P_ALL as u16;
        packet_socket(index, all, libc::SOCK_NONBLOCK, &[PACKET_IGNORE_OUTGOING]).map(Self)
    }

    /// Takes a frame; false where there is none.
    pub(crate) fn receive(&self) -> io::Result<bool> {
        Ok(receive(&self.0, &mut [0; 2048])?.is_some())
    }
}

/// A process that stands at its first `KVM_RUN`; killed when dropped, by the thread that started it.
pub(crate) struct Traced {
    child: Child,
    elapsed: Duration,
}

impl Traced {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From before its fork to its first `KVM_RUN`.
    pub(crate) fn elapsed(&self) -> Duration {
        self.elapsed
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Its threads are ours to wait for too, and the process is gone only after them.
        while wait().is_ok() {}
    }
}

/// Waits for any process or thread that this thread traces; `ECHILD` when there are none.
fn wait() -> io::Result<(libc::pid_t, i32)> {
    let mut status = 0;
    // SAFETY: waitpid writes one int.
    let pid = checked(unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) })?;
    Ok((pid, status))
}

/// A ptrace request without an address.
fn ptrace(request: libc::c_uint, pid: libc::pid_t, data: libc::c_long) -> io::Result<()> {
    // SAFETY: the requests that this file makes take `data` by value and write no memory of ours.
    checked(unsafe { libc::ptrace(request, pid, std::ptr::null_mut::<libc::c_void>(), data) })?;
    Ok(())
}

/// A process and all that come of it.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // proc_pid_stat(5): the name in brackets, the state, the parent.
        stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
    };
    let pairs: Vec<_> = all
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(&pid) = family.get(at) {
        family.extend(pairs.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| *child));
        at += 1;
    }
    family
}

/// Starts `command`, and stops it when the first of its threads calls `KVM_RUN`. This thread may have no other children.
///
/// # Errors
/// It cannot be started, or ends before.
pub(crate) fn until_kvm_run(command: &mut Command) -> io::Result<Traced> {
    let program = kvm_run_filter();
    let prepare = move || {
        ptrace(libc::PTRACE_TRACEME, 0, 0)?;
        // SAFETY: PR_SET_NO_NEW_PRIVS takes no memory.
        checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // Without that flag the kernel would turn off an optimisation of the processor with the filter.
        let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        // SAFETY: the kernel reads one sock_fprog and the filter that it points to, and keeps neither.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
        checked(result)?;
        Ok(())
    };
    // SAFETY: `prepare` makes three system calls and does nothing else that another thread's lock could hinder.
    unsafe { command.pre_exec(prepare) };

    let begin = Instant::now();
    let child = command.spawn()?;
    let main = child.id() as libc::pid_t;
    // Dropped on every error from here on.
    let mut traced = Traced { child, elapsed: Duration::ZERO };
    let mut options = Some(
        libc::PTRACE_O_EXITKILL
            | libc::PTRACE_O_TRACESECCOMP
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK,
    );
    loop {
        let (pid, status) = wait()?;
        if status >> 16 == libc::PTRACE_EVENT_SECCOMP {
            traced.elapsed = begin.elapsed();
            return Ok(traced);
        }
        if libc::WIFSTOPPED(status) {
            // The first stop is that of the exec.
            if let Some(options) = options.take() {
                ptrace(libc::PTRACE_SETOPTIONS, pid, options.into())?;
            }
            let own = status >> 16 != 0 || matches!(libc::WSTOPSIG(status), libc::SIGTRAP | libc::SIGSTOP);
            let signal = if own { 0 } else { libc::WSTOPSIG(status) };
            ptrace(libc::PTRACE_CONT, pid, signal.into())?;
        } else if pid == main {
            return Err(io::Error::other(format!("it ended before KVM_RUN with wait status {status:#x}")));
        }
    }
}

/// Seccomp's answer for each system call: stop at `ioctl(_, KVM_RUN)`, let all else pass (seccomp(2)).
fn kvm_run_filter() -> [libc::sock_filter; 6] {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    [
        step(load, std::mem::offset_of!(libc::seccomp_data, nr) as u32, 0, 0),
        step(equal, libc::SYS_ioctl as u32, 0, 3),
        // The lower half of the second argument.
        step(load, std::mem::offset_of!(libc::seccomp_data, args) as u32 + 8, 0, 0),
        step(equal, KVM_RUN, 0, 1),
        step(answer, libc::SECCOMP_RET_TRACE, 0, 0),
        step(answer, libc::SECCOMP_RET_ALLOW, 0, 0),
    ]
}
