//! What a service manager hears (sd_notify(3)): that the guest runs, and that it is being stopped.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The socket of the service manager, if one waits.
#[derive(Debug)]
pub(crate) struct Notify(Option<(UnixDatagram, SocketAddr)>);

impl Notify {
    /// Who is named by `NOTIFY_SOCKET`.
    pub(crate) fn from_env() -> Self {
        let socket = || {
            let name = env::var_os("NOTIFY_SOCKET")?;
            Some((UnixDatagram::unbound().ok()?, address(&name)?))
        };
        Self(socket())
    }

    /// Says `state`, lines of `NAME=VALUE`. A manager that does not listen misses it.
    pub(crate) fn say(&self, state: &str) {
        if let Some((socket, manager)) = &self.0
            && let Err(error) = socket.send_to_addr(state.as_bytes(), manager)
        {
            log::debug!("cannot tell the service manager {state:?}: {error}");
        }
    }
}

/// A path, or behind an `@` the name of an abstract socket.
fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_named_by_a_path_or_an_abstract_name() {
        for name in ["/no/such/socket", "@wirevm-test-notify"] {
            assert!(address(OsStr::new(name)).is_some(), "{name}");
        }
        for name in ["", "relative", "vsock:2:1"] {
            assert!(address(OsStr::new(name)).is_none(), "{name}");
        }
        let name = format!("wirevm-test-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let address = address(OsStr::new(&format!("@{name}"))).unwrap();
        Notify(Some((UnixDatagram::unbound().unwrap(), address))).say("READY=1");
        let mut said = [0; 64];
        let len = manager.recv(&mut said).unwrap();
        assert_eq!(&said[..len], b"READY=1");
        Notify(None).say("READY=1");
    }
}
