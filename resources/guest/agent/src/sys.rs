//! The system calls for which no crate has a safe name.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

/// Which side of a fork this is.
pub(crate) enum Forked {
    Child,
    Parent(Pid),
}

/// Makes a second process of this one, which has one thread.
pub(crate) fn fork() -> io::Result<Forked> {
    // SAFETY: the agent never starts a thread, so that the child has all that there was, as it was.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Pid::from_raw(pid).ok_or(io::ErrorKind::Other)?)),
    }
}

/// Ends this process at once.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: it does not return, and touches no memory of ours.
    unsafe { libc::_exit(status) }
}

/// Whether this is process 1, of the guest or of a container.
pub(crate) fn is_init() -> bool {
    rustix::process::getpid().is_init()
}

/// A descriptor that is readable when one of `signals` came, which are blocked from now on.
pub(crate) fn signalfd(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let set = signal_set(signals);
    set_mask(&set)?;
    // SAFETY: a new descriptor, for a set that is valid.
    owned(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
}

/// Blocks no signal.
pub(crate) fn unblock_signals() {
    let _ = set_mask(&signal_set(&[]));
}

fn signal_set(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: it writes the whole set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: written just now.
    let mut set = unsafe { set.assume_init() };
    for &signal in signals {
        // SAFETY: `set` is initialised; a number that is no signal is refused.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

fn set_mask(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is valid, and the old one is not asked for.
    match unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The signals that a signalfd has now, by their numbers.
pub(crate) fn take_signals(fd: &OwnedFd) -> Vec<i32> {
    const LEN: usize = size_of::<libc::signalfd_siginfo>();
    let mut bytes = [0; 16 * LEN];
    let len = rustix::io::read(fd, &mut bytes).unwrap_or(0);
    // Its first field is the number.
    let number = |info: &[u8]| info.first_chunk().map(|number| i32::from_ne_bytes(*number));
    bytes[..len].chunks_exact(LEN).filter_map(number).collect()
}

/// Sends a signal, also one without a name, to a process group.
pub(crate) fn kill_group(group: Pid, signal: i32) {
    // SAFETY: it touches no memory of ours. A group that is gone is no failure.
    unsafe { libc::kill(-group.as_raw_pid(), signal) };
}

/// Sends a signal to all processes but this one, of the guest.
pub(crate) fn kill_all(signal: i32) {
    // SAFETY: it touches no memory of ours.
    unsafe { libc::kill(-1, signal) };
}

/// Listens on vsock.
pub(crate) fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor.
    let socket = owned(unsafe {
        libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    })?;
    let address = libc::sockaddr_vm { svm_port: port, svm_cid: libc::VMADDR_CID_ANY, ..no_vsock_address() };
    // SAFETY: the address is of this type and length.
    let bound =
        unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) };
    checked(bound)?;
    // SAFETY: it touches no memory of ours.
    checked(unsafe { libc::listen(socket.as_raw_fd(), 256) })?;
    Ok(socket)
}

/// Connects to a port of the host.
pub(crate) fn connect_to_host(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor.
    let socket = owned(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    let address = libc::sockaddr_vm { svm_port: port, svm_cid: libc::VMADDR_CID_HOST, ..no_vsock_address() };
    // SAFETY: the address is of this type and length.
    let connected = unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32)
    };
    checked(connected)?;
    Ok(socket)
}

fn no_vsock_address() -> libc::sockaddr_vm {
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut address: libc::sockaddr_vm = unsafe { MaybeUninit::zeroed().assume_init() };
    address.svm_family = libc::AF_VSOCK as u16;
    address
}

/// Accepts a connection on vsock. None inside for one that does not come from the host: anybody in the guest may connect to the guest.
pub(crate) fn accept_vsock(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut address = no_vsock_address();
    let mut len = size_of_val(&address) as u32;
    // SAFETY: the address has room for so many bytes.
    let connection = owned(unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut len,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    })?;
    Ok((address.svm_cid == libc::VMADDR_CID_HOST).then_some(connection))
}

/// A socket on which ioctls are called that are about network interfaces.
pub(crate) fn any_socket() -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor.
    owned(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })
}

/// A netlink socket of this protocol that hears of these groups.
pub(crate) fn netlink(protocol: i32, groups: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a new descriptor.
    let socket = owned(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) })?;
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut address: libc::sockaddr_nl = unsafe { MaybeUninit::zeroed().assume_init() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_groups = groups;
    // SAFETY: the address is of this type and length.
    checked(unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32)
    })?;
    Ok(socket)
}

/// Has a socket send and receive by this interface alone.
pub(crate) fn bind_to_interface(socket: impl AsFd, name: &str) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the name is of this length.
    checked(unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_ptr().cast(), name.len() as u32)
    })
}

/// What an ioctl sets of an interface.
#[derive(Clone, Copy)]
pub(crate) enum Setting {
    Address(Ipv4Addr),
    Netmask(Ipv4Addr),
    Mtu(u16),
    Up,
}

/// Sets this of the interface `name` (netdevice(7)).
pub(crate) fn set_interface(socket: &OwnedFd, name: &str, setting: Setting) -> io::Result<()> {
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    put_name(&mut request.ifr_name, name)?;
    let call = match setting {
        Setting::Address(address) => {
            request.ifr_ifru.ifru_addr = socket_address(address);
            libc::SIOCSIFADDR
        }
        Setting::Netmask(mask) => {
            request.ifr_ifru.ifru_netmask = socket_address(mask);
            libc::SIOCSIFNETMASK
        }
        Setting::Mtu(mtu) => {
            request.ifr_ifru.ifru_mtu = i32::from(mtu);
            libc::SIOCSIFMTU
        }
        Setting::Up => {
            // SAFETY: the kernel writes the flags, which are numbers.
            checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
            // SAFETY: written just now.
            unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16 };
            libc::SIOCSIFFLAGS
        }
    };
    // SAFETY: the request is what this call takes.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), call, &raw mut request) })
}

/// Adds a route by the interface `name`, to `to`/`mask` over `gateway`, which is on the link itself where it is 0.0.0.0.
pub(crate) fn add_route(
    socket: &OwnedFd,
    name: &str,
    to: Ipv4Addr,
    mask: Ipv4Addr,
    gateway: Ipv4Addr,
) -> io::Result<()> {
    let mut device = [0; libc::IFNAMSIZ];
    put_name(&mut device, name)?;
    // SAFETY: all fields are numbers and a pointer, for which zero is a value.
    let mut route: libc::rtentry = unsafe { MaybeUninit::zeroed().assume_init() };
    route.rt_dst = socket_address(to & mask);
    route.rt_genmask = socket_address(mask);
    route.rt_gateway = socket_address(gateway);
    route.rt_dev = device.as_mut_ptr();
    route.rt_flags = libc::RTF_UP;
    if !gateway.is_unspecified() {
        route.rt_flags |= libc::RTF_GATEWAY;
    }
    if mask == Ipv4Addr::BROADCAST {
        route.rt_flags |= libc::RTF_HOST;
    }
    // SAFETY: the route is what this call takes, and the name that it points to lives on.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw mut route) })
}

fn put_name(to: &mut [libc::c_char; libc::IFNAMSIZ], name: &str) -> io::Result<()> {
    if name.len() >= to.len() || name.bytes().any(|byte| byte == 0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    to.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte as libc::c_char);
    Ok(())
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    data[2..6].copy_from_slice(&address.octets().map(|byte| byte as libc::c_char));
    libc::sockaddr { sa_family: libc::AF_INET as u16, sa_data: data }
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    match fd {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: it is new, and nobody else has it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

fn checked(result: i32) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
