//! What a thread that makes a forbidden system call comes to: the kernel does not make it, and raises SIGSYS instead
//! (seccomp(2), `SECCOMP_RET_TRAP`). The handler says which call, in which thread, and ends the process.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Where to say it: a signal's handler has nothing but statics. The process has one guest, and one keeper.
static KEEPER: AtomicI32 = AtomicI32::new(-1);

/// From now on, a forbidden call is told to the keeper, at the other end of `channel`, which stays open as long as the process.
///
/// # Errors
/// Never, as far as is known.
pub(crate) fn tell(channel: BorrowedFd<'_>) -> io::Result<()> {
    KEEPER.store(channel.as_raw_fd(), Ordering::Release);
    // SAFETY: zeroes are an action: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = forbidden as *const () as usize;
    // On the thread's own stack for signals, in case it is its stack that is broken.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does only what a handler may.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `siginfo_t` of a SIGSYS, as far as it is needed (sigaction(2); libc has no name for these fields).
#[repr(C)]
#[allow(dead_code)] // the layout is the kernel's
struct Forbidden {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    padding: libc::c_int,
    address: *mut libc::c_void,
    call: libc::c_int,
    architecture: libc::c_uint,
}

/// Why a SIGSYS came: a filter (`asm-generic/siginfo.h`).
const SYS_SECCOMP: libc::c_int = 1;

extern "C" fn forbidden(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a `siginfo_t`, whose first fields these are for this signal.
    let Forbidden { code, call, .. } = unsafe { info.cast::<Forbidden>().read() };
    if code != SYS_SECCOMP {
        // Somebody has sent it.
        // SAFETY: it does not return.
        unsafe { libc::_exit(1) }
    }
    let mut name = [0_u8; 16];
    // SAFETY: it writes 16 bytes at most, with a zero at the end.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let mut message = Text { bytes: [0; 128], len: 0 };
    message.push(b"{\"Forbidden\":{\"call\":");
    message.number(call.unsigned_abs());
    message.push(b",\"thread\":\"");
    // Names are wirevm's own; a thread that has been taken over may have set another.
    for &byte in name.iter().take_while(|&&byte| byte != 0) {
        message.push(&[if byte.is_ascii_alphanumeric() || byte == b'-' { byte } else { b'?' }]);
    }
    message.push(b"\"}}");
    let keeper = KEEPER.load(Ordering::Acquire);
    // SAFETY: the bytes are there, and the descriptor is open as long as the process. What is not sent, the keeper does not hear:
    // the status says that it failed.
    unsafe { libc::send(keeper, message.bytes.as_ptr().cast(), message.len, libc::MSG_NOSIGNAL) };
    // SAFETY: it does not return.
    unsafe { libc::_exit(1) }
}

/// A message on the stack: a handler may not allocate.
struct Text {
    bytes: [u8; 128],
    len: usize,
}

impl Text {
    fn push(&mut self, more: &[u8]) {
        let end = self.bytes.len().min(self.len + more.len());
        let more = &more[..end - self.len];
        self.bytes[self.len..end].copy_from_slice(more);
        self.len = end;
    }

    fn number(&mut self, mut number: u32) {
        let mut digits = [0; 10];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.push(&digits[at..]);
    }
}
