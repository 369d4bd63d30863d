//! The host's end of the guest's sockets: in a machine's place, `vsock` is where programs ask for a port of the guest, and `vsock_PORT`
//! is made by a program that listens at a port of the host.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use net::Directory;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, chmodat, fstat, openat};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{NameError, Place, check_name, machines, runtime_directory, short, unknown};

/// The socket that programs connect to.
pub(super) const SOCKET: &str = "vsock";
/// What the sockets of programs that listen begin with.
const LISTENING: &str = "vsock_";

/// The ports of the host, as a machine's guest sees them: each is a socket in the machine's place.
#[derive(Debug)]
pub struct VsockPorts(Directory);

impl Place {
    /// Listens where programs ask for a port of the guest. Nobody but this user can connect.
    ///
    /// # Errors
    /// There is no socket to be had.
    pub fn listen_for_vsock(&self) -> io::Result<UnixListener> {
        let listener = UnixListener::bind(short(&self.directory, SOCKET))?;
        // Nobody else gets into the directory meanwhile.
        chmodat(&self.directory, SOCKET, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// The ports of the host.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn vsock_ports(&self) -> io::Result<VsockPorts> {
        Ok(VsockPorts(self.directory.again()?))
    }

    /// Removes the socket, and those of programs: nobody finds a way to the guest by them any more.
    pub(super) fn remove_vsock(&self) {
        let names = self.directory.names().unwrap_or_default().into_iter();
        for name in names.filter(|name| name == SOCKET || name.starts_with(LISTENING)) {
            let _ = self.directory.remove_file(&name);
        }
    }
}

impl VsockPorts {
    /// Connects to the program that listens at `port`, and does not wait: a Unix socket connects at once or not at all. The stream does
    /// not block.
    ///
    /// # Errors
    /// `ENOENT` or `ECONNREFUSED` where none does, `EAGAIN` where it has too many before this one; what is there is no socket.
    pub fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        // No link is followed, out of the directory or within it.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = openat(&self.0, format!("{LISTENING}{port}"), flags, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Socket {
            return Err(io::Error::other("it is no socket"));
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // What was opened, whatever has its name by now.
        connect(&stream, &SocketAddrUnix::new(format!("/proc/self/fd/{}", found.as_fd().as_raw_fd()))?)?;
        Ok(stream)
    }
}

/// Where programs ask for a port of the guest of the machine `name`, while it runs.
///
/// # Errors
/// The name is none, or there is no place.
pub fn vsock_socket(name: &str) -> Result<PathBuf, NameError> {
    check_name(name)?;
    Ok(runtime_directory()?.path().join(super::MACHINES).join(name).join(SOCKET))
}

/// Connects there; none where the machine has no such socket. To connect, and to write, take no longer than `timeout`.
///
/// # Errors
/// No such machine runs.
pub(crate) fn connect_vsock(name: &str, timeout: Duration) -> Result<Option<UnixStream>, NameError> {
    check_name(name)?;
    let Some(all) = machines()? else { return Err(unknown(name)) };
    let failed = |source| NameError::Directory { path: all.path().join(name), source };
    let directory = match all.open(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown(name)),
        opened => opened.map_err(failed)?,
    };
    // A paused machine lets nobody in.
    let connected = || -> io::Result<UnixStream> {
        let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&stream, Timeout::Send, Some(timeout.max(Duration::from_millis(1))))?;
        connect(&stream, &SocketAddrUnix::new(short(&directory, SOCKET))?)?;
        Ok(stream.into())
    };
    match connected() {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && super::is_running(&all, name) => Ok(None),
        // Nobody listens at the socket any more: the process that ran the guest is gone, and its keeper is about to be.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Err(unknown(name))
        }
        Err(error) => Err(failed(error)),
    }
}
