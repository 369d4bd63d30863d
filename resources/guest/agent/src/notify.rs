//! The host is told that the guest is up, as systemd tells it (sd_notify(3) over vsock): once, when the network was tried.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use wirevm_agent::NOTIFY_PORT;

use crate::server::Context;
use crate::sys::Forked;
use crate::{log, sys};

/// Starts the process that waits for that.
pub(crate) fn start(context: &mut Context) {
    match sys::fork() {
        Ok(Forked::Child) => {
            // Its copy would have it wait for itself.
            drop(context.not_ready.take());
            let mut fds = [PollFd::new(&context.ready, PollFlags::empty())];
            while let Err(Errno::INTR) = poll(&mut fds, None) {}
            // A host that does not listen has nobody who waits.
            let _ = sys::connect_to_host(NOTIFY_PORT).map(|host| rustix::io::write(&host, b"READY=1\n"));
            sys::exit_now(0);
        }
        Ok(Forked::Parent(_)) => {}
        Err(why) => log(format_args!("cannot start a process: {why}")),
    }
}
