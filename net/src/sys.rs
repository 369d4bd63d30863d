//! The system calls of this crate that no safe wrapper has: frames in and out, the ioctls of `/dev/net/tun`
//! (kernel `Documentation/networking/tuntap.rst`, `linux/if_tun.h`), and random bytes; in `ethtool.rs`, a link's features; in
//! `packet.rs`, packet sockets; in `route.rs`, a route that was learned; in `vsock.rs`, streams to guests.
#![allow(unsafe_code)]

pub(crate) mod ethtool;
pub(crate) mod packet;
pub(crate) mod route;
pub(crate) mod vsock;

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::Iov;

/// The path of vhost-net.
pub(crate) const VHOST_DEVICE: &str = "/dev/vhost-net";

/// The descriptor is attached to an interface that is deleted: the wire is gone for good.
pub(crate) fn wire_is_gone() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADFD)
}

/// The frame is larger than the space for it, and is lost.
fn frame_too_large() -> io::Error {
    io::Error::from_raw_os_error(libc::EMSGSIZE)
}

/// Turns -1 into the error that `errno` names.
fn checked(result: isize) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

/// Has the waits of the calling thread end when they should: usually the kernel lets the short ones last 50 microseconds longer, to
/// end several at once (`PR_SET_TIMERSLACK`, prctl(2)).
///
/// # Errors
/// `EPERM` where a filter of system calls forbids it.
pub fn wait_exactly() -> io::Result<()> {
    // SAFETY: it takes a number, of nanoseconds.
    checked(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0) } as isize).map(drop)
}

/// Makes the system call `readv` or `writev`. The C library's functions of the name are points where a thread can be cancelled,
/// and to say so they make two locked exchanges for each frame.
///
/// # Safety
/// As for the system call: the buffers are mapped, and nobody has a reference to those that it writes.
unsafe fn vectored(call: libc::c_long, fd: BorrowedFd<'_>, iovecs: &[libc::iovec]) -> isize {
    // SAFETY: the caller's.
    unsafe { libc::syscall(call, fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len()) as isize }
}

/// Writes one frame, as `writev(2)` on a tap takes it.
pub(crate) fn writev(fd: BorrowedFd<'_>, frame: &Iov<'_>) -> io::Result<usize> {
    let iovecs = frame.as_iovecs();
    // SAFETY: the iovecs point to mapped guest memory that outlives `frame` (see `Iov::push`), there are at most IOV_MAX,
    // and the kernel only reads them. That the guest writes the bytes meanwhile can change the frame and nothing else.
    checked(unsafe {
        match iovecs {
            // The kernel has no array to fetch and to check.
            [only] => libc::syscall(libc::SYS_write, fd.as_raw_fd(), only.iov_base, only.iov_len) as isize,
            _ => vectored(libc::SYS_writev, fd, iovecs),
        }
    })
}

/// The largest frame with its header for which a driver leaves room (virtio 1.3, §5.1.6.3.1).
const LARGEST: usize = crate::HEADER_LEN + 65550;

/// Reads one frame, as `readv(2)` on a tap gives it.
///
/// A tap cuts a frame that is larger than the space and says nothing: it answers the length of the space. So the read
/// has one byte more than the space, of our own, and a frame that reaches it is `EMSGSIZE`. A space of
/// [`IovBuffer::MAX`](crate::IovBuffer::MAX) buffers leaves no room for that byte, and one for more than [`LARGEST`] needs none;
/// there a frame that fills the space to its last byte counts as cut.
pub(crate) fn readv(fd: BorrowedFd<'_>, space: &mut Iov<'_>) -> io::Result<usize> {
    let len = space.len();
    if len > LARGEST {
        let iovecs = space.as_iovecs();
        // SAFETY: as in `writev`. The kernel writes guest memory, which Rust never sees as a reference.
        let read = checked(unsafe {
            match iovecs {
                [only] => libc::syscall(libc::SYS_read, fd.as_raw_fd(), only.iov_base, only.iov_len) as isize,
                _ => vectored(libc::SYS_readv, fd, iovecs),
            }
        })?;
        return if read < len { Ok(read) } else { Err(frame_too_large()) };
    }
    let mut spill = 0;
    let (read, spilled) = space.with_spill(&mut spill, |iovecs, has_spill| {
        // SAFETY: as in `writev`, and `spill` outlives the call. The kernel writes guest memory, which Rust never sees as
        // a reference.
        let read = unsafe { vectored(libc::SYS_readv, fd, iovecs) };
        (read, if has_spill { len + 1 } else { len })
    });
    match checked(read)? {
        read if read >= spilled => Err(frame_too_large()),
        read => Ok(read),
    }
}

/// Sends one frame as one message of a socket.
pub(crate) fn sendmsg(fd: BorrowedFd<'_>, frame: &Iov<'_>) -> io::Result<usize> {
    let iovecs = frame.as_iovecs();
    // SAFETY: all zeroes is a `msghdr` without name, control data or buffers.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len();
    // SAFETY: as in `writev`; sendmsg does not write through `msg_iov`.
    checked(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_NOSIGNAL) })
}

/// Receives one frame as one message of a socket; a larger one than the space is `EMSGSIZE`, and lost.
pub(crate) fn recvmsg(fd: BorrowedFd<'_>, space: &mut Iov<'_>) -> io::Result<usize> {
    let len = space.len();
    let iovecs = space.as_iovecs();
    // SAFETY: as in `sendmsg`.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len();
    // SAFETY: as in `readv`; the iovecs themselves are only read.
    let read = checked(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, libc::MSG_TRUNC) })?;
    if read > len { Err(frame_too_large()) } else { Ok(read) }
}

/// Receives bytes of a stream socket into `space`, from its front on: how many; none at the stream's end.
pub(crate) fn recv_bytes(fd: BorrowedFd<'_>, space: &Iov<'_>) -> io::Result<usize> {
    // SAFETY: as in `readv`; the iovecs themselves are only read.
    checked(unsafe { vectored(libc::SYS_readv, fd, space.as_iovecs()) })
}

/// What the kernel says of an attached interface: its name, and the `IFF_*` flags of `linux/if_tun.h`.
pub(crate) struct Attached {
    pub(crate) name: String,
    pub(crate) flags: i32,
}

/// `TUNSETIFF`: makes the interface, or attaches to it where it exists, with exactly these `IFF_*` flags. `name` may be
/// a template with `%d`. The caller has checked that it is shorter than `IFNAMSIZ`.
pub(crate) fn tun_set_iff(fd: BorrowedFd<'_>, name: &str, flags: i32) -> io::Result<()> {
    let mut request = ifreq();
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut request) } as isize)?;
    Ok(())
}

/// `TUNGETIFF`: what `fd` is attached to.
pub(crate) fn tun_get_iff(fd: BorrowedFd<'_>) -> io::Result<Attached> {
    let mut request = ifreq();
    // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &mut request) } as isize)?;
    let name = request.ifr_name.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
    // SAFETY: TUNGETIFF fills the `ifru_flags` of the union, and `ifreq()` has initialised all of it.
    let flags = unsafe { request.ifr_ifru.ifru_flags } as u16;
    Ok(Attached { name: String::from_utf8(name).unwrap_or_default(), flags: i32::from(flags) })
}

/// `TUNSETVNETHDRSZ`: the length in bytes of the header before each frame.
pub(crate) fn tun_set_vnet_hdr_len(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let len = len as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &len) } as isize)?;
    Ok(())
}

/// `TUNGETVNETHDRSZ`: the length in bytes of the header before each frame.
pub(crate) fn tun_vnet_hdr_len(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut len: libc::c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &mut len) } as isize)?;
    Ok(len as usize)
}

/// `TUNSETOFFLOAD`: what the reader of frames accepts, as `TUN_F_*` flags; `EINVAL` names one the kernel does not have.
pub(crate) fn tun_set_offload(fd: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } as isize)?;
    Ok(())
}

/// `TUNSETCARRIER`: whether there is somebody at this end of the link. A macvtap has no such thing, and Linux before 5.0.
pub(crate) fn tun_set_carrier(fd: BorrowedFd<'_>, present: bool) -> io::Result<()> {
    let present = libc::c_int::from(present);
    // SAFETY: TUNSETCARRIER reads one int.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETCARRIER, &raw const present) } as isize)?;
    Ok(())
}

/// `TUNSETQUEUE`: has the link bring frames to this queue again, or to its others; `EINVAL` where it does that already.
pub(crate) fn tun_set_queue(fd: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    let mut request = ifreq();
    let flags = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: TUNSETQUEUE reads one `ifreq`, which `request` is.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &request) } as isize)?;
    Ok(())
}

/// The time since the boot, also while the host slept: one clock for all processes (`CLOCK_BOOTTIME`).
pub(crate) fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Puts the thread into a new, empty network namespace (unshare(2)).
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET takes no memory and changes this thread only.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) } as isize)?;
    Ok(())
}

/// `SO_NETNS_COOKIE`: the number of the network namespace that `socket` was made in, which no other has until the next boot;
/// `ENOPROTOOPT` before Linux 5.14.
pub(crate) fn network_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    let (to, len) = ((&raw mut cookie).cast(), &raw mut len);
    // SAFETY: the kernel writes at most `len` bytes at `to`, which is the length of `cookie`.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, to, len) };
    checked(result as isize)?;
    Ok(cookie)
}

/// `TUNSETSNDBUF`: how many bytes of frames may be on their way at once.
pub(crate) fn tun_set_sndbuf(fd: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETSNDBUF reads one int.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETSNDBUF, &bytes) } as isize)?;
    Ok(())
}

/// `SIOCGIFHWADDR` on the descriptor of a tap or macvtap: its link's Ethernet address.
pub(crate) fn hardware_address(fd: BorrowedFd<'_>) -> io::Result<[u8; 6]> {
    let mut request = ifreq();
    // SAFETY: SIOCGIFHWADDR writes one `ifreq`, which `request` is.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFHWADDR, &mut request) } as isize)?;
    // SAFETY: SIOCGIFHWADDR fills the `ifru_hwaddr` of the union, and `ifreq()` has initialised all of it.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
    Ok(std::array::from_fn(|at| data[at] as u8))
}

/// `SIOCSIFHWADDR` on the descriptor of a tap or macvtap: gives its link another Ethernet address.
pub(crate) fn set_hardware_address(fd: BorrowedFd<'_>, mac: [u8; 6]) -> io::Result<()> {
    let mut request = ifreq();
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(mac) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
    // SAFETY: SIOCSIFHWADDR reads one `ifreq`, which `request` is.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFHWADDR, &request) } as isize)?;
    Ok(())
}

/// Takes over a descriptor of a tap, tun or macvtap that the process was started with, and says what it is attached to: from
/// now on it is ours, and closed when we start another one.
///
/// None where it is close-on-exec, and so was opened since. `EBADF` where there is none of that number; any other error is
/// that of [`tun_get_iff`], and nothing is taken over.
pub(crate) fn take_inherited(fd: RawFd) -> io::Result<Option<(OwnedFd, Attached)>> {
    // SAFETY: F_GETFD takes no memory.
    let flags = checked(unsafe { libc::fcntl(fd, libc::F_GETFD) } as isize)? as libc::c_int;
    if flags & libc::FD_CLOEXEC != 0 {
        return Ok(None);
    }
    // SAFETY: it is open, and for the length of the call nobody closes what nobody owns (see below).
    let attached = tun_get_iff(unsafe { BorrowedFd::borrow_raw(fd) })?;
    // SAFETY: F_SETFD takes no memory.
    checked(unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) } as isize)?;
    // SAFETY: nobody in this process owns it: it is of the tun or macvtap driver, and those that we opened ourselves, and
    // those that were taken over before, are close-on-exec.
    Ok(Some((unsafe { OwnedFd::from_raw_fd(fd) }, attached)))
}

/// Has no call on `fd` wait.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// True where both descriptors are of one open file: its flags are theirs together, so one is turned over and back, in the
/// hand of nobody else who would see that.
pub(crate) fn is_same_file(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> io::Result<bool> {
    let (flags, before) = (rustix::fs::fcntl_getfl(a)?, rustix::fs::fcntl_getfl(b)?);
    rustix::fs::fcntl_setfl(a, flags ^ rustix::fs::OFlags::NONBLOCK)?;
    let after = rustix::fs::fcntl_getfl(b);
    rustix::fs::fcntl_setfl(a, flags)?;
    Ok(after? != before)
}

/// An empty `ifreq`.
fn ifreq() -> libc::ifreq {
    // SAFETY: all zeroes is an `ifreq` with an empty name; every variant of its union is plain integers or a null pointer.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// Fills `bytes` from the kernel's random number generator, `getrandom(2)`.
pub(crate) fn random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the kernel writes at most `bytes.len()` bytes to `bytes`.
    let filled = checked(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) })?;
    // Up to 256 bytes come whole or not at all (getrandom(2)); we ask for a handful.
    debug_assert_eq!(filled, bytes.len());
    Ok(())
}

/// Only what comes in by the link of that index comes to `socket`, and what it sends leaves by that one (`SO_BINDTOIFINDEX`, socket(7)).
pub(crate) fn bind_to_link(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let (value, len) = ((&raw const index).cast(), size_of_val(&index) as libc::socklen_t);
    let (level, option) = (libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX);
    // SAFETY: the option reads one int, which `index` has the size of.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, len) } as isize).map(drop)
}

/// What iptables reads of its table `filter`, for IPv4 or IPv6 (`linux/netfilter_ipv4/ip_tables.h`): `IPT_SO_GET_INFO`, and
/// then `IPT_SO_GET_ENTRIES`.
pub(crate) fn iptables_filter(fd: BorrowedFd<'_>, ipv6: bool) -> io::Result<(Vec<u8>, Vec<u8>)> {
    const GET_INFO: libc::c_int = 64;
    const GET_ENTRIES: libc::c_int = 65;
    let level = if ipv6 { libc::SOL_IPV6 } else { libc::SOL_IP };
    let get = |what, buffer: &mut [u8]| {
        let mut len = buffer.len() as libc::socklen_t;
        let (to, len) = (buffer.as_mut_ptr().cast(), &raw mut len);
        // SAFETY: the kernel reads and writes at most `len` bytes at `to`, which is the length of the buffer.
        checked(unsafe { libc::getsockopt(fd.as_raw_fd(), level, what, to, len) } as isize)
    };
    // Both begin with the table's name in 32 bytes. `ipt_getinfo` is 84 bytes long and ends with the entries' size in bytes.
    let mut info = vec![0; 84];
    info[..6].copy_from_slice(b"filter");
    get(GET_INFO, &mut info)?;
    let size: [u8; 4] = info[80..84].try_into().expect("four bytes");
    // `ipt_get_entries`: the name, the size, four bytes of padding, the entries.
    let mut entries = vec![0; 40 + u32::from_ne_bytes(size) as usize];
    entries[..6].copy_from_slice(b"filter");
    entries[32..36].copy_from_slice(&size);
    get(GET_ENTRIES, &mut entries)?;
    Ok((info, entries.split_off(40)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use vm_memory::VolatileSlice;

    use super::*;
    use crate::IovBuffer;

    /// What a datagram of `sent` bytes is, read into buffers of these lengths, each apart from the next; a datagram is cut as a tap
    /// cuts a frame.
    fn read(sent: usize, buffers: &[usize]) -> io::Result<usize> {
        let (host, guest) = UnixDatagram::pair().unwrap();
        host.send(&vec![7; sent]).unwrap();
        let mut memory = vec![0; buffers.iter().sum::<usize>() + buffers.len()];
        let (all, mut room, mut at) = (VolatileSlice::from(&mut memory[..]), IovBuffer::new(), 0);
        let mut space = room.start();
        for len in buffers {
            assert!(space.push(all.subslice(at, *len).unwrap()));
            at += len + 1;
        }
        let read = readv(guest.as_fd(), &mut space);
        drop(space);
        if let Ok(read) = read {
            assert_eq!(memory.iter().filter(|byte| **byte == 7).count(), read);
        }
        read
    }

    #[test]
    fn a_frame_that_is_cut_is_lost_however_much_room_there_is() {
        for buffers in [&[LARGEST + 1][..], &[40000, LARGEST - 39999], &[LARGEST], &[40000, LARGEST - 40000]]
        {
            let room = buffers.iter().sum::<usize>();
            for sent in [1, 40001, LARGEST - 1, LARGEST] {
                assert_eq!(read(sent, buffers).unwrap(), sent, "into {buffers:?}");
            }
            for sent in [room + 1, room + 2, room + 5000] {
                let error = read(sent, buffers).expect_err("it does not fit");
                assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{sent} into {buffers:?}");
            }
        }
    }
}
