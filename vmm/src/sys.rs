//! The few system calls for which no crate has a safe name.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Pid;

/// Which side of a fork this is.
pub(crate) enum Forked {
    /// The new process.
    Child,
    /// The old one, and the new one's id.
    Parent(Pid),
}

/// Makes a second process of this one.
///
/// # Errors
/// There are no processes left; or this process has several threads, of which only one would be in the new one, with locks that
/// the others hold.
pub(crate) fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() != 1) {
        return Err(io::Error::other("the process has several threads"));
    }
    // SAFETY: there is one thread, so that the child has all that there was, as it was.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Pid::from_raw(pid).expect("fork(2) returns a process"))),
    }
}

/// A descriptor that is readable when one of `signals` came for this process, which are blocked from now on (signalfd(2)): in this
/// thread, and those that it starts. A SIGHUP that was ignored when the program started (nohup(1)) stays so; the others do not,
/// for a shell has a script's jobs in the background ignore SIGINT and SIGQUIT, and means nothing by it.
pub(crate) fn signalfd(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: it writes the whole set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: written just now.
    let mut set = unsafe { set.assume_init() };
    for &signal in signals {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: it only asks, and writes the whole action where it does not fail.
        let ignored = signal == libc::SIGHUP
            && unsafe {
                libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
                    && action.assume_init().sa_sigaction == libc::SIG_IGN
            };
        if !ignored {
            // SAFETY: `set` is initialised, and `signal` is one.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
    }
    // SAFETY: both sets are valid, or null where none is asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    // SAFETY: a new descriptor, for a set that is valid.
    match unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: nobody else has it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Blocks no signal, for a program that is about to begin in the calling thread: it would keep what is blocked.
///
/// # Errors
/// None that the kernel knows for these arguments.
pub(crate) fn unblock_signals() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: it writes the whole set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set is written just now, and the old one is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The signals that a signalfd has now, by their numbers.
pub(crate) fn take_signals(fd: impl std::os::fd::AsFd) -> Vec<i32> {
    let mut bytes = [0; 16 * SIGNAL_LEN];
    let len = rustix::io::read(fd, &mut bytes).unwrap_or(0);
    // Its first field is the number (signalfd(2)).
    let number = |info: &[u8]| info.first_chunk().map(|number| i32::from_ne_bytes(*number));
    bytes[..len].chunks_exact(SIGNAL_LEN).filter_map(number).collect()
}

/// How many bytes a read of a signalfd takes for each signal.
pub(crate) const SIGNAL_LEN: usize = size_of::<libc::signalfd_siginfo>();

unsafe extern "C" {
    /// Where the program begins in memory, and where its code ends: the linker's symbols, which are addresses alone. Between them are
    /// headers, constants and code, which are the file's, and nothing that is written.
    static __executable_start: u8;
    static etext: u8;
}

/// Takes the pages of the program's code out of this process: most were needed for the start alone. Those that are needed again come
/// back from the page cache, a fault for each sixteen.
pub(crate) fn forget_start() {
    // On x86-64.
    let page = 4096;
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let (start, end) = (start.addr().next_multiple_of(page), end.addr() / page * page);
    if start < end {
        // SAFETY: what is mapped there is the program's file, read-only and private: a page that is taken out is read again as it was.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// Has all threads of this process share one heap. glibc otherwise gives each thread that allocates one of its own, of which pages
/// stay resident; here threads allocate at their start and end alone.
pub(crate) fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator's.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Bytes of a file to be locked: where they start, and how many; 0 for all up to the end, wherever that is.
pub(crate) type Bytes = (i64, i64);

/// Locks bytes of an open file, for a writer or a reader, without a wait (fcntl(2), open file description locks): false where another
/// open file has a lock that excludes this one.
///
/// # Errors
/// Its file system has no such locks.
pub(crate) fn lock_open_file(file: &File, writes: bool, bytes: Bytes) -> io::Result<bool> {
    match ofd_lock(file, libc::F_OFD_SETLK, writes, bytes) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether another open file has a lock on these bytes.
///
/// # Errors
/// As for [`lock_open_file`].
pub(crate) fn is_locked(file: &File, bytes: Bytes) -> io::Result<bool> {
    Ok(ofd_lock(file, libc::F_OFD_GETLK, true, bytes)?.l_type != libc::F_UNLCK as libc::c_short)
}

fn ofd_lock(file: &File, command: libc::c_int, writes: bool, bytes: Bytes) -> io::Result<libc::flock> {
    // SAFETY: zeroes are a lock, of no process.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = if writes { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    (lock.l_start, lock.l_len) = bytes;
    // SAFETY: it reads and writes `lock`, and touches no memory of ours otherwise.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        0 => Ok(lock),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has a write past the limit of a file's size (setrlimit(2)) fail, in place of ending the process: the guest that wrote hears of it.
pub(crate) fn survive_file_size_limit() {
    // SAFETY: to ignore a signal calls nothing of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Ends this process at once: nothing of it is dropped.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: it does not return, and touches no memory of ours.
    unsafe { libc::_exit(status) }
}

/// Closes all descriptors but these and 0, 1 and 2, which are `nothing` from now on. Called by a process that was just forked, and
/// never returns to who owns what is closed here.
///
/// # Errors
/// The kernel refuses what it never refuses.
pub(crate) fn keep_only(mut kept: Vec<RawFd>, nothing: &OwnedFd) -> io::Result<()> {
    rustix::stdio::dup2_stdin(nothing)?;
    rustix::stdio::dup2_stdout(nothing)?;
    rustix::stdio::dup2_stderr(nothing)?;
    kept.extend([0, 1, 2, nothing.as_raw_fd()]);
    kept.sort_unstable();
    kept.dedup();
    let ends = kept.iter().skip(1).map(|&fd| fd as libc::c_uint).chain([libc::c_uint::MAX]);
    for (first, next) in kept.iter().map(|&fd| fd as libc::c_uint + 1).zip(ends) {
        if first < next {
            let last = if next == libc::c_uint::MAX { next } else { next - 1 };
            // SAFETY: nobody in this process uses what is closed: its owners are on the stack of who forked, which is never
            // returned to.
            if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Has the process that `command` starts do this before it becomes the program.
pub(crate) fn before_exec(
    command: &mut Command,
    before: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: it is the keeper or the doctor that starts programs, which has one thread then: the new process has all that there was, as it was.
    unsafe { command.pre_exec(before) };
}

/// Whether this process may have io_uring, and its kernel has any (io_uring_setup(2)). None is made.
pub(crate) fn has_io_uring() -> bool {
    // SAFETY: the kernel reads no parameters at address 0, and says that (EFAULT) where it would have.
    let made = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null_mut::<libc::c_void>()) };
    made < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Gives the calling process, which has one thread, namespaces of its own (unshare(2)).
///
/// # Errors
/// It has no right to, or there are too many.
pub(crate) fn unshare(namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: what the process had in memory stays as it was; the callers ask for no flag by which threads would part.
    match unsafe { libc::unshare(namespaces) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has nobody in this mount namespace change what is at `directory`, where something is mounted, and below it (mount_setattr(2)).
///
/// # Errors
/// It has no right to, or the kernel is before Linux 5.12.
pub(crate) fn make_mounts_read_only(directory: &Path) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    // `struct mount_attr` of `linux/mount.h`: what to set, what to clear, how to propagate, a user namespace.
    const MOUNT_ATTR_RDONLY: u64 = 1;
    const AT_RECURSIVE: libc::c_int = 0x8000;
    let attributes = [MOUNT_ATTR_RDONLY, 0, 0, 0];
    let len = size_of_val(&attributes);
    // SAFETY: the path is a string, and the attributes are as long as it says; both are only read.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            AT_RECURSIVE,
            attributes.as_ptr(),
            len,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the program that comes next have no descriptor of `first` and above.
///
/// # Errors
/// The kernel is before Linux 5.11, and `/proc` is not there.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: it closes nothing in this program.
    match unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) }
    {
        0 => Ok(()),
        // It knows no such call, or not this flag of it.
        _ => close_each_on_exec_from(first),
    }
}

/// The same, one by one.
fn close_each_on_exec_from(first: u32) -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(number) = number.filter(|number| *number >= first as i32) {
            // SAFETY: it changes a flag that only exec(2) looks at. What was closed since then is no descriptor, and no harm.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};

    use super::*;

    #[test]
    fn what_is_open_ends_with_exec_on_a_kernel_that_marks_them_one_by_one() {
        // Numbers that no other test's descriptors have.
        let [below, at, above] =
            [700, 710, 720].map(|number| fcntl_dupfd_cloexec(io::stderr(), number).unwrap());
        let first = at.as_raw_fd() as u32;
        for fd in [&below, &at, &above] {
            fcntl_setfd(fd, FdFlags::empty()).unwrap();
        }
        close_each_on_exec_from(first).unwrap();
        let marked = [&below, &at, &above].map(|fd| fcntl_getfd(fd).unwrap() == FdFlags::CLOEXEC);
        assert_eq!(marked, [false, true, true]);
    }
}
