//! Which system calls each kind of thread may make, and why.
//!
//! The table is all that there is: what is not in it, no thread of the machine does after the guest's first instruction.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// The kinds of threads of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thread {
    /// Its loop: the keeper's messages, the console's input, the end.
    Main,
    /// One for each vCPU.
    Vcpu,
    /// One for each pair of a NIC's queues, and one for each other device.
    Queue,
    /// The socket device's.
    Vsock,
    /// One for each queue of a disk.
    Disk,
}

impl Thread {
    #[cfg(test)]
    const ALL: [Self; 5] = [Self::Main, Self::Vcpu, Self::Queue, Self::Vsock, Self::Disk];
}

/// A system call that some threads may make.
struct Call {
    number: i64,
    threads: &'static [Thread],
    only: Only,
    /// What for.
    #[allow(dead_code)] // for who reads the table
    why: &'static str,
}

/// With which arguments.
enum Only {
    /// Any.
    Any,
    /// Of the argument of that index (32 bits), one of these.
    Values(u8, &'static [u64]),
    /// Where the argument of that index (32 bits) is this process.
    Ourselves(u8),
}

use Only::{Any, Ourselves, Values};
use Thread::{Disk, Main, Queue, Vcpu, Vsock};

const ALL: &[Thread] = &[Main, Vcpu, Queue, Vsock, Disk];
/// What a queue's thread does, and so the thread that such threads are born of: a filter is inherited.
const BORN: &[Thread] = &[Main, Queue];
/// What threads of devices do, but those of disks.
const DEVICE: &[Thread] = &[Main, Queue, Vsock];
/// Who waits for events.
const WAIT: &[Thread] = &[Main, Queue, Vsock, Disk];

/// How a thread is made, and not a process (clone(2)): memory, descriptors and signals are shared. The C library makes threads with these.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

const fn call(number: i64, threads: &'static [Thread], only: Only, why: &'static str) -> Call {
    Call { number, threads, only, why }
}

const CALLS: &[Call] = &[
    // What every Rust program does.
    call(libc::SYS_futex, ALL, Any, "locks, channels, joins"),
    call(libc::SYS_mmap, ALL, Any, "the heap"),
    call(libc::SYS_munmap, ALL, Any, "the heap, and a thread's stack at its end"),
    call(libc::SYS_mremap, ALL, Any, "the heap"),
    call(libc::SYS_mprotect, ALL, Any, "the heap"),
    call(libc::SYS_madvise, ALL, Any, "the heap, and a thread's stack at its end"),
    call(libc::SYS_brk, ALL, Any, "the heap"),
    call(libc::SYS_getrandom, ALL, Any, "the seeds of hash tables"),
    call(libc::SYS_clock_gettime, ALL, Any, "the time, on hosts whose clock takes a system call"),
    call(libc::SYS_gettimeofday, ALL, Any, "the same"),
    call(libc::SYS_clock_nanosleep, ALL, Any, "a wait"),
    call(libc::SYS_nanosleep, ALL, Any, "a wait"),
    call(libc::SYS_sched_yield, ALL, Any, "a lock that spins for a moment"),
    call(libc::SYS_restart_syscall, ALL, Any, "the kernel goes on with a wait after a stop"),
    call(libc::SYS_rt_sigreturn, ALL, Any, "the end of a signal's handler"),
    call(libc::SYS_rt_sigprocmask, ALL, Any, "a thread's end, and its abort"),
    call(
        libc::SYS_rt_sigaction,
        ALL,
        Values(0, &[libc::SIGSEGV as u64, libc::SIGBUS as u64]),
        "a crash: Rust's look whether a stack is full steps aside",
    ),
    call(libc::SYS_sigaltstack, ALL, Any, "a thread's end"),
    call(libc::SYS_exit, ALL, Any, "a thread's end"),
    call(libc::SYS_exit_group, ALL, Any, "the process's end"),
    call(libc::SYS_getpid, ALL, Any, "a signal to a thread of ours"),
    call(libc::SYS_gettid, ALL, Any, "the same"),
    call(libc::SYS_tgkill, ALL, Ourselves(0), "the signal that stops a vCPU, and an abort"),
    call(
        libc::SYS_prctl,
        ALL,
        Values(0, &[libc::PR_GET_NAME as u64]),
        "the name of a thread that does what is forbidden",
    ),
    call(libc::SYS_close, ALL, Any, "what is dropped"),
    // Threads of a NIC that is plugged in while the guest runs. They have the main thread's filter under their own.
    call(libc::SYS_clone, &[Main], Values(0, &[THREAD]), "such a thread"),
    call(libc::SYS_clone3, &[Main], Any, "answered like by a kernel without it: see `no_clone3`"),
    call(libc::SYS_set_robust_list, &[Main], Any, "its birth"),
    call(libc::SYS_rseq, &[Main], Any, "the same"),
    call(
        libc::SYS_prctl,
        &[Main],
        Values(
            0,
            &[libc::PR_SET_NAME as u64, libc::PR_SET_TIMERSLACK as u64, libc::PR_SET_NO_NEW_PRIVS as u64],
        ),
        "its name, how exactly it waits, and before its filter",
    ),
    call(libc::SYS_sched_getaffinity, &[Main], Any, "its stack's place"),
    call(libc::SYS_sched_setaffinity, &[Main], Any, "its CPU"),
    call(libc::SYS_seccomp, &[Main], Any, "its filter"),
    call(libc::SYS_epoll_create1, &[Main], Any, "what it waits with"),
    call(libc::SYS_timerfd_create, &[Main], Any, "the same"),
    // Descriptors that are there.
    call(libc::SYS_read, ALL, Any, "eventfds, the console's input, frames"),
    call(libc::SYS_write, ALL, Any, "eventfds, the console's output, frames"),
    call(libc::SYS_readv, DEVICE, Any, "frames; bytes of sockets"),
    call(libc::SYS_writev, BORN, Any, "frames"),
    call(libc::SYS_pread64, BORN, Any, "whether the host forwards, for router advertisements"),
    call(libc::SYS_poll, ALL, Any, "a wait for room in the console's pipe"),
    call(libc::SYS_ppoll, ALL, Any, "the same; a wait for the back end of a share"),
    call(
        libc::SYS_sendmsg,
        ALL,
        Any,
        "messages to the keeper, and to the back end of a share; bytes of the guest's sockets",
    ),
    call(libc::SYS_sendto, ALL, Any, "the message that a call was forbidden; bytes of the guest's sockets"),
    call(libc::SYS_accept4, &[Vsock], Any, "programs that want a port of the guest"),
    call(libc::SYS_shutdown, &[Vsock], Any, "the guest has closed its end one way"),
    call(libc::SYS_recvmsg, DEVICE, Any, "messages of the keeper, and answers of the back end of a share"),
    call(libc::SYS_epoll_wait, WAIT, Any, "a wait for events"),
    call(libc::SYS_epoll_pwait, WAIT, Any, "a wait for events"),
    call(libc::SYS_epoll_ctl, WAIT, Any, "other events to wait for"),
    call(libc::SYS_timerfd_settime, BORN, Any, "an interrupt that its driver has held (coalescing)"),
    call(libc::SYS_dup, ALL, Any, "eventfds of a queue that starts"),
    call(
        libc::SYS_eventfd2,
        ALL,
        Any,
        "the same; a carrier's, a link's that is down, a NIC's that is plugged in",
    ),
    call(
        libc::SYS_fcntl,
        ALL,
        Values(1, &[libc::F_GETFD as u64, libc::F_DUPFD_CLOEXEC as u64]),
        "a descriptor that is dropped, in a debug build; eventfds of a queue",
    ),
    // Disks.
    call(
        libc::SYS_io_uring_enter,
        &[Disk],
        Any,
        "what is read, written and flushed, by a ring that takes nothing else",
    ),
    call(libc::SYS_preadv2, &[Disk], Any, "what is read, without such a ring"),
    call(libc::SYS_pwritev2, &[Disk], Any, "what is written, the same"),
    call(libc::SYS_fdatasync, &[Disk], Any, "what is flushed, the same"),
    call(libc::SYS_pread64, &[Disk], Any, "what is read into memory that the file does not take (O_DIRECT)"),
    call(libc::SYS_pwrite64, &[Disk], Any, "what is written out of it, and zeroes"),
    call(libc::SYS_fallocate, &[Disk], Any, "what is discarded, and zeroes"),
    // The machine.
    call(libc::SYS_ioctl, &[Vcpu], Values(1, VCPU_IOCTLS), "the guest, its interrupts and notifications"),
    call(libc::SYS_ioctl, &[Main], Values(1, MAIN_IOCTLS), "whether the guest hears; NICs that come and go"),
    call(libc::SYS_ioctl, &[Vsock, Disk], Values(1, &[LINE]), "interrupts of a driver without MSI-X"),
    call(libc::SYS_ioctl, BORN, Values(1, QUEUE_IOCTLS), "a tap's queue and offloads; vhost-net; interrupts"),
];

/// `linux/kvm.h`.
const VCPU_IOCTLS: &[u64] = &[
    0xae80,      // KVM_RUN
    0x8090_ae81, // KVM_GET_REGS, to say where a guest crashed
    0x8138_ae83, // KVM_GET_SREGS
    0xc018_ae85, // KVM_TRANSLATE
    0x4020_ae76, // KVM_IRQFD, as the guest masks and moves vectors
    0x4040_ae79, // KVM_IOEVENTFD, as it moves a BAR
    0x4008_ae6a, // KVM_SET_GSI_ROUTING
    0x4008_ae61, // KVM_IRQ_LINE, as the driver of a function without MSI-X reads why it was interrupted
    0xaead,      // KVM_KVMCLOCK_CTRL, after a pause
];

/// The same.
const MAIN_IOCTLS: &[u64] = &[
    0xc208_ae62, // KVM_GET_IRQCHIP
    0x4020_ae76, // KVM_IRQFD, as devices go, at the end or before
    0x4040_ae79, // KVM_IOEVENTFD, the same
    0x4008_ae6a, // KVM_SET_GSI_ROUTING, the same
    0x4008_ae61, // KVM_IRQ_LINE, the same
    0x8008_af00, // VHOST_GET_FEATURES, of another wire or NIC
];

/// `KVM_IRQ_LINE`, `linux/kvm.h`.
const LINE: u64 = 0x4008_ae61;

/// `linux/kvm.h`, `linux/if_tun.h` and `linux/vhost.h`.
const QUEUE_IOCTLS: &[u64] = &[
    LINE,        // for a driver without MSI-X
    0x4004_54d0, // TUNSETOFFLOAD
    0x4004_54d9, // TUNSETQUEUE
    0x4004_54e2, // TUNSETCARRIER
    0x8004_54d2, // TUNGETIFF, whether a link is gone
    0xaf01,      // VHOST_SET_OWNER
    0x4008_af00, // VHOST_SET_FEATURES
    0x4008_af03, // VHOST_SET_MEM_TABLE
    0x4008_af10, // VHOST_SET_VRING_NUM
    0x4028_af11, // VHOST_SET_VRING_ADDR
    0x4008_af12, // VHOST_SET_VRING_BASE
    0xc008_af12, // VHOST_GET_VRING_BASE
    0x4008_af20, // VHOST_SET_VRING_KICK
    0x4008_af21, // VHOST_SET_VRING_CALL
    0x4008_af22, // VHOST_SET_VRING_ERR
    0x4008_af23, // VHOST_SET_VRING_BUSYLOOP_TIMEOUT
    0x4008_af30, // VHOST_NET_SET_BACKEND
    0x4004_af61, // VHOST_VSOCK_SET_RUNNING
];

/// The filter of a kind of thread.
fn program(thread: Thread) -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in CALLS.iter().filter(|call| call.threads.contains(&thread)) {
        let own = [u64::from(std::process::id())];
        let (index, values) = match call.only {
            Any => (0, &[][..]),
            Values(index, values) => (index, values),
            Ourselves(index) => (index, &own[..]),
        };
        let rule = |&value| {
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
                .and_then(|condition| SeccompRule::new(vec![condition]))
        };
        let found = values.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
        rules.entry(call.number).or_default().extend(found);
    }
    let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

/// What clone3(2) makes is in memory, where no filter looks. So it is as on a kernel that does not have it, and the C library takes
/// clone(2).
fn no_clone3() -> Result<BpfProgram, seccompiler::Error> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, absent, TargetArch::x86_64)?.try_into()?)
}

/// The filter of each kind of thread.
#[derive(Debug)]
pub(crate) struct Filters {
    no_clone3: BpfProgram,
    main: BpfProgram,
    vcpu: BpfProgram,
    queue: BpfProgram,
    vsock: BpfProgram,
    disk: BpfProgram,
}

impl Filters {
    /// Compiles them, which takes a part of a millisecond of the start: beside something that waits.
    ///
    /// # Errors
    /// The table makes no sense.
    pub(crate) fn new() -> io::Result<Self> {
        let of = |thread| program(thread).map_err(io::Error::other);
        let no_clone3 = no_clone3().map_err(io::Error::other)?;
        Ok(Self {
            no_clone3,
            main: of(Main)?,
            vcpu: of(Vcpu)?,
            queue: of(Queue)?,
            vsock: of(Vsock)?,
            disk: of(Disk)?,
        })
    }

    /// Confines the calling thread to the calls of its kind, for good.
    ///
    /// # Errors
    /// The kernel has no seccomp filters, or no memory for one.
    pub(crate) fn enter(&self, thread: Thread) -> io::Result<()> {
        let programs = match thread {
            Main => &[&self.no_clone3, &self.main][..],
            Vcpu => &[&self.vcpu],
            Queue => &[&self.queue],
            Vsock => &[&self.vsock],
            Disk => &[&self.disk],
        };
        programs.iter().try_for_each(|program| apply_filter(program)).map_err(io::Error::other)
    }
}

/// Whether this kernel has such filters, tried on a thread that ends at once.
pub(crate) fn can_be() -> bool {
    let try_it = || Filters::new().and_then(|filters| filters.enter(Main)).is_ok();
    std::thread::spawn(try_it).join().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::machine::sandbox;
    use crate::protocol::{Channel, FromMachine, ToMachine};

    /// Tells a process that it is a child of [`each_filter_ends_what_is_not_in_it`], and what to do.
    const CHILD: &str = "WIREVM_TEST_FORBIDDEN";

    /// What such a thread may not do: the system call, and something that makes it.
    fn forbidden(thread: Thread) -> Vec<(i64, fn())> {
        let mut all: Vec<(i64, fn())> = vec![
            (libc::SYS_openat, || drop(std::fs::File::open("/"))),
            // What comes first of an exec: SIGPIPE is as it was. The filter looks at which signal.
            (libc::SYS_rt_sigaction, || drop(Command::new("/bin/true").exec())),
            (libc::SYS_socket, || drop(std::os::unix::net::UnixDatagram::unbound())),
            (libc::SYS_setresuid, || {
                let _ = rustix::thread::set_thread_res_uid(None, None, None);
            }),
            // The filter looks at the request.
            (libc::SYS_ioctl, || {
                let _ = rustix::io::ioctl_fionread(io::stdin());
            }),
        ];
        all.push(match thread {
            // Threads are made, and no process. It is that call where the C library does not find the other.
            Main => (libc::SYS_clone, || drop(Command::new("/bin/true").spawn())),
            Vcpu | Queue | Vsock | Disk => (libc::SYS_clone3, || drop(std::thread::spawn(|| ()))),
        });
        if matches!(thread, Vcpu | Disk) {
            all.push((libc::SYS_readv, || {
                let (mut byte, stdin) = ([0], io::stdin());
                let _ = rustix::io::readv(stdin, &mut [io::IoSliceMut::new(&mut byte)]);
            }));
        }
        all
    }

    /// That child; nothing in any other process. Its standard input is the channel to the keeper.
    #[test]
    fn child() {
        let Some(what) = std::env::var_os(CHILD) else { return };
        let what = what.into_string().unwrap();
        let (kind, number) = what.split_once(' ').unwrap();
        let thread = *Thread::ALL.iter().find(|thread| format!("{thread:?}") == kind).unwrap();
        let call = forbidden(thread).into_iter().find(|(call, _)| call.to_string() == number).unwrap().1;
        sandbox::tell_forbidden_calls(io::stdin().as_fd()).unwrap();
        let body = move || {
            Filters::new().unwrap().enter(thread).unwrap();
            // What is allowed goes on as before.
            assert_eq!(vec![1_u8; 1 << 20].len(), 1 << 20);
            if thread == Main {
                let born = std::thread::Builder::new().name("net1-0".to_owned());
                let own = || Filters::new().unwrap().enter(Queue).unwrap();
                born.spawn(own).unwrap().join().unwrap();
            }
            call();
            crate::sys::exit_now(7);
        };
        std::thread::Builder::new().name("net0-0".to_owned()).spawn(body).unwrap().join().unwrap();
    }

    #[test]
    fn each_filter_ends_what_is_not_in_it() {
        for thread in Thread::ALL {
            for (number, _) in forbidden(thread) {
                let (keeper, machine) = Channel::<ToMachine, FromMachine>::pair().unwrap();
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["--exact", "machine::sandbox::filter::tests::child", "--nocapture"]);
                command.env(CHILD, format!("{thread:?} {number}")).stdin(Stdio::from(OwnedFd::from(machine)));
                let output = command.output().unwrap();
                drop(command);
                let said = String::from_utf8_lossy(&output.stderr);
                let told = keeper.receive().unwrap().map(|(message, _)| message);
                if matches!(number, libc::SYS_clone | libc::SYS_clone3) {
                    // A thread is made with all signals blocked, so that the kernel ends the process without the handler.
                    assert_eq!(
                        (output.status.signal(), told),
                        (Some(libc::SIGSYS), None),
                        "{thread:?}: {said}"
                    );
                    continue;
                }
                assert_eq!(output.status.code(), Some(1), "{thread:?} {number}: {said}");
                let forbidden = FromMachine::Forbidden { call: number, thread: "net0-0".to_owned() };
                assert_eq!(told, Some(forbidden), "{thread:?} {number}: {said}");
            }
        }
    }

    #[test]
    fn each_call_has_a_reason_and_the_requests_are_the_kernels() {
        assert!(CALLS.iter().all(|call| !call.why.is_empty() && !call.threads.is_empty()));
        // `kvm-bindings` has no numbers of requests: by their parts, as linux/ioctl.h puts them together.
        let request = |direction: u64, size: usize, number: u64| {
            direction << 30 | (size as u64) << 16 | 0xae00 | number
        };
        let regs = size_of::<kvm_bindings::kvm_regs>();
        let sregs = size_of::<kvm_bindings::kvm_sregs>();
        assert!(
            VCPU_IOCTLS.contains(&request(2, regs, 0x81)) && VCPU_IOCTLS.contains(&request(2, sregs, 0x83))
        );
        assert!(VCPU_IOCTLS.contains(&request(3, size_of::<kvm_bindings::kvm_translation>(), 0x85)));
        assert!(VCPU_IOCTLS.contains(&request(1, size_of::<kvm_bindings::kvm_irqfd>(), 0x76)));
        assert!(VCPU_IOCTLS.contains(&request(1, size_of::<kvm_bindings::kvm_ioeventfd>(), 0x79)));
        assert!(VCPU_IOCTLS.contains(&request(1, size_of::<kvm_bindings::kvm_irq_routing>(), 0x6a)));
        assert!(MAIN_IOCTLS.contains(&request(3, size_of::<kvm_bindings::kvm_irqchip>(), 0x62)));
        for ioctl in [libc::TUNSETOFFLOAD, libc::TUNSETQUEUE, libc::TUNGETIFF, libc::TUNSETCARRIER] {
            assert!(QUEUE_IOCTLS.contains(&ioctl), "{ioctl:#x}");
        }
    }
}
