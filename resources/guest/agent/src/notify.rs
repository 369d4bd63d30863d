//! The host is told that the guest is up, as systemd tells it (sd_notify(3) over vsock): once, when the network was tried.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use wirevm_agent::NOTIFY_PORT;

use crate::sys::Forked;
use crate::{log, sys};

/// Starts the process that waits for that; `ready` ends then.
pub(crate) fn start(ready: &OwnedFd) {
    match sys::fork() {
        Ok(Forked::Child) => {
            let mut fds = [PollFd::new(ready, PollFlags::empty())];
            while let Err(Errno::INTR) = poll(&mut fds, None) {}
            // A host that does not listen has nobody who waits.
            let _ = sys::connect_to_host(NOTIFY_PORT).map(|host| rustix::io::write(&host, b"READY=1\n"));
            sys::exit_now(0);
        }
        Ok(Forked::Parent(_)) => {}
        Err(why) => log(format_args!("cannot start a process: {why}")),
    }
}
