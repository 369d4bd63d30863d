//! `--detach`: the command returns once the guest runs, and the keeper goes on without a terminal.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitOptions, setsid, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use vmm::runtime;

use crate::report;
use crate::sys::{self, Forked};

/// Which process this is.
pub(crate) enum Detached {
    /// The one that the user waits for: it is done.
    Command(ExitCode),
    /// The one that goes on.
    Keeper(Ready),
}

/// The way to tell who waits that the guest runs.
#[derive(Debug)]
pub(crate) struct Ready(OwnedFd);

/// Goes on in a session of its own, in which no terminal sends signals. Called while there is one thread.
///
/// # Errors
/// There are no descriptors or processes left.
pub(crate) fn detach() -> io::Result<Detached> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork()? {
        Forked::Parent(keeper) => {
            drop(write);
            let mut name = String::new();
            let heard = File::from(read).read_to_string(&mut name);
            if heard.is_ok() && !name.is_empty() {
                report::answer(&name);
                return Ok(Detached::Command(ExitCode::SUCCESS));
            }
            // It has said why.
            let status = waitpid(Some(keeper), WaitOptions::empty()).ok().flatten();
            let status = status.and_then(|(_, status)| status.exit_status());
            Ok(Detached::Command(
                status.and_then(|status| u8::try_from(status).ok()).map_or(ExitCode::FAILURE, ExitCode::from),
            ))
        }
        Forked::Child => {
            drop(read);
            setsid()?;
            Ok(Detached::Keeper(Ready(write)))
        }
    }
}

impl Ready {
    /// Lets go of standard input, of which the machine has what it wants by now.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn leave_stdin(&self) -> io::Result<()> {
        Ok(dup2_stdin(OpenOptions::new().read(true).write(true).open("/dev/null")?)?)
    }

    /// Says that the machine `name` runs. What wirevm says from now on goes to its log, beside what the guest says.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn tell(self, name: &str) -> io::Result<()> {
        let log = runtime::log(name, net::Opening::Existing).map_err(io::Error::other)?;
        dup2_stdout(&log)?;
        dup2_stderr(&log)?;
        report::reopen();
        // Who waited may be gone.
        let _ = File::from(self.0).write_all(format!("{name}\n").as_bytes());
        Ok(())
    }
}
