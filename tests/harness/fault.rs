//! Faults where the host is changed: a system call that is refused, or before which the process is killed.
//!
//! A filter of seccomp(2) has the kernel ask us about each system call that could change the host's wiring or write about it,
//! which is every place where a start can fail or end.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc::channel;
use std::{io, thread};

/// What happens at the chosen system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails for want of memory, which nobody expects and nobody takes for anything else.
    Refuse,
    /// The process is killed instead.
    Kill,
}

/// Runs `work` on a thread of its own with a fault at its change number `at`, from 1. False where it makes fewer.
///
/// # Panics
/// The kernel has no such filters, or this user may not have one; or `work` panics.
pub fn with_fault<T: Send>(fault: Fault, at: usize, work: impl FnOnce() -> T + Send) -> (T, bool) {
    let (sender, listener) = channel();
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            sender.send(listen().expect("a filter of system calls")).expect("somebody waits");
            work()
        });
        let listener = listener.recv().expect("a listener");
        let reached = attend(&listener, fault, at);
        (thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), reached)
    })
}

const CALLS: [i64; 12] = [
    libc::SYS_writev,
    libc::SYS_ioctl,
    libc::SYS_write,
    libc::SYS_openat,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mkdir,
    libc::SYS_mknodat,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_flock,
    libc::SYS_bind,
];

/// Has this thread and those that it starts ask before each of [`CALLS`]; whoever has the returned descriptor answers.
fn listen() -> io::Result<OwnedFd> {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load_number = statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0);
    let is = |(index, call): (usize, &i64)| {
        let ask = (CALLS.len() - index) as u8;
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, ask, 0, *call as u32)
    };
    let answer = |action| statement(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    let mut program = vec![load_number];
    program.extend(CALLS.iter().enumerate().map(is));
    program.extend([libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_USER_NOTIF].map(answer));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until after the call, and returns a new descriptor.
    unsafe {
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        let fd = libc::syscall(libc::SYS_seccomp, mode, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
        match fd {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as i32)),
        }
    }
}

/// Lets every call of the threads pass but the chosen one, until they have ended.
fn attend(listener: &OwnedFd, fault: Fault, at: usize) -> bool {
    let mut changes = 0;
    loop {
        let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: all zeroes is a seccomp_notif, as the kernel wants it, and both calls write what is passed.
        let asked = unsafe {
            libc::poll(&mut poll, 1, -1);
            if poll.revents & libc::POLLIN == 0 {
                return changes >= at;
            }
            let mut asked: libc::seccomp_notif = std::mem::zeroed();
            let got = libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut asked);
            if got == -1 {
                continue;
            }
            asked
        };
        changes += usize::from(is_change(&asked.data));
        let chosen = changes == at && is_change(&asked.data);
        if chosen && fault == Fault::Kill {
            // SAFETY: it takes two numbers, and this process does not go on.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        let (error, flags) = match chosen {
            true => (-libc::ENOMEM, 0),
            false => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        };
        let mut answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error, flags };
        // SAFETY: the kernel reads the answer.
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &mut answer) };
    }
}

/// Whether a call changes the host or a record.
fn is_change(call: &libc::seccomp_data) -> bool {
    match i64::from(call.nr) {
        libc::SYS_openat => call.args[2] & libc::O_CREAT as u64 != 0,
        // A netlink message that asks changes nothing.
        libc::SYS_writev => {
            // SAFETY: the thread that asks is of this process, and waits for us in a call with this argument.
            let first = unsafe { &*(call.args[1] as *const libc::iovec) };
            first.iov_len >= 16 && message_changes(first.iov_base as *const u8)
        }
        _ => true,
    }
}

/// Whether the netlink message (or the first of several) changes something (rtnetlink(7): the third of each four asks).
fn message_changes(message: *const u8) -> bool {
    // SAFETY: the thread that sends it is of this process, and waits for us; a message has a header of 16 bytes.
    let kind = unsafe { message.add(4).cast::<u16>().read_unaligned() };
    // Those of nftables change within a batch alone, which begins with 16.
    (16..256).contains(&kind) && kind % 4 != 2
}
