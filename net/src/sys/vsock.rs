//! Streams to guests whose sockets the host's kernel carries (vsock(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::checked;
use super::packet::set_option;

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD` (`linux/vm_sockets.h`).
const CONNECT_TIMEOUT: libc::c_int = 6;

/// Connects to the program that listens at `port` in the guest with that CID, which is one of the host's kernel
/// ([`open_vhost_vsock`](crate::open_vhost_vsock)). The stream blocks, and has no timeout.
///
/// # Errors
/// `ECONNRESET` where no program does, `ETIMEDOUT` where the guest does not answer within `timeout`, `ENODEV` where there is no guest
/// with that CID.
pub fn connect_vsock(cid: u32, port: u32, timeout: Duration) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Zero would be the kernel's default.
    let timeout = timeout.clamp(Duration::from_millis(1), Duration::from_secs(3600));
    let timeout =
        libc::timeval { tv_sec: timeout.as_secs() as libc::time_t, tv_usec: timeout.subsec_micros().into() };
    // SAFETY: the option reads one timeval.
    unsafe { set_option(socket.as_fd(), libc::AF_VSOCK, CONNECT_TIMEOUT, &timeout) }?;
    let address = libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes, which is the length of the address.
    checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } as isize)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nobody_listens_there_is_an_error() {
        // A CID that no guest has.
        let error = connect_vsock(u32::MAX - 1, 22, Duration::from_millis(10)).unwrap_err();
        assert!(error.raw_os_error().is_some_and(|errno| errno != libc::EINVAL), "{error}");
    }
}
