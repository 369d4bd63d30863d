//! Packet sockets (packet(7)): what a link receives, and the frames of it that a filter lets through.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::checked;

/// What a packet socket can have a link receive (packet(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    /// Everything.
    Promiscuous,
    /// Every group.
    AllMulticast,
    /// One group.
    Multicast([u8; 6]),
}

/// Has the link of that index receive this as long as `socket`, a packet socket, is open.
pub(crate) fn join(socket: BorrowedFd<'_>, index: u32, membership: Membership) -> io::Result<()> {
    set_membership(socket, libc::PACKET_ADD_MEMBERSHIP, index, membership)
}

/// Takes back what [`join`] did.
pub(crate) fn leave(socket: BorrowedFd<'_>, index: u32, membership: Membership) -> io::Result<()> {
    set_membership(socket, libc::PACKET_DROP_MEMBERSHIP, index, membership)
}

fn set_membership(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    index: u32,
    membership: Membership,
) -> io::Result<()> {
    let (kind, address) = match membership {
        Membership::Promiscuous => (libc::PACKET_MR_PROMISC, None),
        Membership::AllMulticast => (libc::PACKET_MR_ALLMULTI, None),
        Membership::Multicast(address) => (libc::PACKET_MR_MULTICAST, Some(address)),
    };
    let mut request = libc::packet_mreq {
        mr_ifindex: index as libc::c_int,
        mr_type: kind as libc::c_ushort,
        mr_alen: address.map_or(0, |address| address.len() as libc::c_ushort),
        mr_address: [0; 8],
    };
    request.mr_address[..6].copy_from_slice(&address.unwrap_or_default());
    // SAFETY: both options read one `packet_mreq`, which `request` is.
    unsafe { set_option(socket, libc::SOL_PACKET, option, &request) }
}

/// An instruction of a classic BPF program (kernel `Documentation/networking/filter.rst`).
pub(crate) type Instruction = libc::sock_filter;

/// `SO_ATTACH_FILTER`: only frames for which `program` returns more than 0 come to `socket`.
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_ptr().cast_mut() };
    // SAFETY: SO_ATTACH_FILTER reads one `sock_fprog` and as many instructions as it says, and writes none.
    unsafe { set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program) }
}

/// Has each frame to and from `socket` start with a `virtio_net_hdr` of 10 bytes (`PACKET_VNET_HDR`).
pub(crate) fn set_vnet_hdr(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option reads one int.
    unsafe { set_option(socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &on) }
}

/// What the host sends on the link does not come to `socket` (`PACKET_IGNORE_OUTGOING`, Linux 4.20).
pub(crate) fn ignore_outgoing(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option reads one int.
    unsafe { set_option(socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &on) }
}

/// Binds `socket` to the link of that index, from which all frames come then, and to which what is written goes.
pub(crate) fn bind(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::c_ushort,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index as libc::c_int,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: bind reads one address of the length that is given.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } as isize)?;
    Ok(())
}

/// setsockopt(2).
///
/// # Safety
/// The option reads a `T`, and what it points to is there.
pub(super) unsafe fn set_option<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let len = size_of_val(value) as libc::socklen_t;
    // SAFETY: the caller's; the kernel reads `len` bytes, which is the length of the value.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len) };
    checked(result as isize)?;
    Ok(())
}
