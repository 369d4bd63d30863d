//! The ioctl that adds a route of IPv6: it alone can say that the route was learned (`linux/ipv6_route.h`).

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::checked;

const SIOCADDRT: libc::c_ulong = 0x890b;

// `linux/route.h`, `linux/ipv6_route.h`.
const RTF_UP: u32 = 1;
const RTF_GATEWAY: u32 = 2;
pub(crate) const RTF_DEFAULT: u32 = 0x0001_0000;
/// Learned from a router.
pub(crate) const RTF_ADDRCONF: u32 = 0x0004_0000;
const RTF_EXPIRES: u32 = 0x0040_0000;

/// `struct in6_rtmsg`.
#[repr(C)]
struct RouteRequest {
    to: [u8; 16],
    from: [u8; 16],
    gateway: [u8; 16],
    kind: u32,
    to_len: u16,
    from_len: u16,
    metric: u32,
    /// With `RTF_EXPIRES`, in hundredths of a second.
    info: libc::c_ulong,
    flags: u32,
    link: libc::c_int,
}

/// Adds a default route by `gateway` over the link of that index, as learned from a router: with `RTF_ADDRCONF` and the other
/// `flags` of an advertisement's. It goes after so many `seconds`.
///
/// Needs `CAP_NET_ADMIN`; in the thread's network namespace.
pub(crate) fn add_learned_default(
    link: u32,
    gateway: Ipv6Addr,
    metric: u32,
    seconds: Option<u32>,
    flags: u32,
) -> io::Result<()> {
    let given = RTF_UP | RTF_GATEWAY | RTF_DEFAULT | RTF_ADDRCONF | flags;
    let request = RouteRequest {
        to: [0; 16],
        from: [0; 16],
        gateway: gateway.octets(),
        kind: 0,
        to_len: 0,
        from_len: 0,
        metric,
        info: libc::c_ulong::from(seconds.unwrap_or_default()) * 100,
        flags: if seconds.is_some() { given | RTF_EXPIRES } else { given },
        link: link as libc::c_int,
    };
    let socket = socket_with(AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: SIOCADDRT on a socket of IPv6 reads one `in6_rtmsg`, whose layout `request` has.
    checked(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCADDRT, &request) } as isize)?;
    Ok(())
}
