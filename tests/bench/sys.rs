//! The system calls that no safe wrapper has: a stopwatch for `KVM_RUN`, by seccomp and ptrace.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// `KVM_RUN` of `linux/kvm.h`: `_IO(0xae, 0x80)`.
const KVM_RUN: u32 = 0xae80;

/// Turns -1 into the error that `errno` names.
fn checked<T: Copy + Into<i64>>(result: T) -> io::Result<T> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Moves this thread, and the processes that it will start, to a new network namespace.
pub(crate) fn new_network_namespace() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET takes no memory and changes this thread only.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    Ok(())
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
        let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
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
