//! Who connects, and whose processes end.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, wait};
use wirevm_agent::request::Command;

use crate::sys::Forked;
use crate::{log, power, session, sys};

/// Connections at once, more are closed.
const SESSIONS_MAX: usize = 1024;

/// Where the host connects to.
pub(crate) enum Listener {
    Vsock(OwnedFd),
    /// For containers and tests.
    Unix(UnixListener),
}

impl Listener {
    pub(crate) fn vsock(port: u32) -> io::Result<Self> {
        sys::listen_vsock(port).map(Self::Vsock)
    }

    /// At `path`, for this user alone.
    pub(crate) fn unix(path: &Path) -> io::Result<Self> {
        let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = bound?;
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(listener))
    }

    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Vsock(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }

    /// A connection; none inside for one that nobody but the host may have.
    fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Vsock(socket) => sys::accept_vsock(socket),
            Self::Unix(socket) => {
                let (connection, _) = socket.accept()?;
                connection.set_nonblocking(true)?;
                Ok(Some(connection.into()))
            }
        }
    }
}

/// What the sessions know of the agent. They are forked: what they share with it are descriptors.
pub(crate) struct Context {
    /// The main command, with the defaults of all others.
    pub(crate) command: Command,
    /// Why the guest is not up, where it is not.
    pub(crate) boot: Result<(), String>,
    /// Whether a client may power the guest off.
    pub(crate) powers_off: bool,
    /// Ends when the network was tried: whoever tries it holds the other end.
    pub(crate) ready: OwnedFd,
    /// Has one byte, for the session that starts the main command.
    pub(crate) main: OwnedFd,
    /// By which sessions tell process 1.
    pub(crate) tell: OwnedFd,
    told: OwnedFd,
    /// The other end of `ready`, which the server drops when it begins; whoever tries the network has a copy.
    pub(crate) not_ready: Option<OwnedFd>,
}

impl Context {
    pub(crate) fn new(command: Command, boot: Result<(), String>, powers_off: bool) -> io::Result<Self> {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let ((ready, not_ready), (main, token), (told, tell)) =
            (pipe_with(flags)?, pipe_with(flags)?, pipe_with(flags)?);
        if !command.argv.is_empty() {
            rustix::io::write(&token, b"m")?;
        }
        Ok(Self { command, boot, powers_off, ready, main, tell, told, not_ready: Some(not_ready) })
    }
}

/// What a session tells process 1: this, or its process, which has the main command.
pub(crate) const POWER_OFF: i32 = 0;

/// Why the server ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    PowerOff,
    Reboot,
    Halt,
    /// Whoever started it ends it, as a service.
    Stopped,
}

/// Serves until it is told to end. `buttons`: see [`power`].
pub(crate) fn run(listener: Listener, mut context: Context, mut buttons: Vec<OwnedFd>) -> Ended {
    drop(context.not_ready.take());
    let signals = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGUSR2];
    let signals = match sys::signalfd(&signals) {
        Ok(signals) => signals,
        Err(why) => {
            log(format_args!("cannot wait for signals: {why}"));
            return Ended::PowerOff;
        }
    };
    let mut sessions: Vec<Pid> = Vec::new();
    let mut main = None;
    loop {
        let mut fds = vec![
            PollFd::new(&signals, PollFlags::IN),
            PollFd::new(&context.told, PollFlags::IN),
            PollFd::from_borrowed_fd(listener.fd(), PollFlags::IN),
        ];
        fds.extend(buttons.iter().map(|button| PollFd::new(button, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(why) => {
                log(format_args!("cannot wait: {why}"));
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        }
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut gone = fds
            .iter()
            .skip(3)
            .map(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR))
            .collect::<Vec<_>>()
            .into_iter();
        drop(fds);
        if buttons.iter().zip(&ready[3..]).any(|(button, ready)| *ready && power::is_pressed(button)) {
            return Ended::PowerOff;
        }
        buttons.retain(|_| !gone.next().unwrap_or(false));
        // Before the dead are asked for, one of which may have said that after the poll: read whatever that said.
        let mut told = [0; 4];
        while rustix::io::read(&context.told, &mut told) == Ok(told.len()) {
            match i32::from_ne_bytes(told) {
                POWER_OFF => return Ended::PowerOff,
                pid => main = Pid::from_raw(pid),
            }
        }
        if ready[0] {
            for signal in sys::take_signals(&signals) {
                if let Some(ended) = meant(signal) {
                    return ended;
                }
            }
            while let Ok(Some((pid, _))) = wait(WaitOptions::NOHANG) {
                sessions.retain(|session| *session != pid);
                if main == Some(pid) {
                    return Ended::PowerOff;
                }
            }
        }
        if ready[2]
            && let Some(connection) = accept(&listener, sessions.len())
        {
            match sys::fork() {
                Ok(Forked::Child) => {
                    // An agent that follows this one could not listen as long as a session had it.
                    drop(listener);
                    sys::unblock_signals();
                    session::run(connection, &context);
                    sys::exit_now(0);
                }
                Ok(Forked::Parent(pid)) => sessions.push(pid),
                Err(why) => log(format_args!("cannot start a process for a connection: {why}")),
            }
        }
    }
}

/// What a signal means: to process 1 what busybox's poweroff, reboot and halt mean by it, and to a service its end.
fn meant(signal: i32) -> Option<Ended> {
    match (signal, sys::is_init()) {
        (libc::SIGCHLD, _) => None,
        (libc::SIGTERM | libc::SIGINT, false) => Some(Ended::Stopped),
        (_, false) => None,
        (libc::SIGUSR2, true) => Some(Ended::PowerOff),
        (libc::SIGUSR1, true) => Some(Ended::Halt),
        (_, true) => Some(Ended::Reboot),
    }
}

/// A connection for a session, if there may be another one beside these.
fn accept(listener: &Listener, sessions: usize) -> Option<OwnedFd> {
    match listener.accept() {
        Ok(connection) => connection.filter(|_| sessions < SESSIONS_MAX),
        Err(why) if why.kind() == io::ErrorKind::WouldBlock => None,
        Err(why) => {
            log(format_args!("cannot accept a connection: {why}"));
            // Without descriptors or memory this would come again at once.
            std::thread::sleep(std::time::Duration::from_millis(100));
            None
        }
    }
}

/// Runs the `poweroff` of a guest whose init is another.
pub(crate) fn ask_init_to_power_off() -> io::Result<()> {
    // What is blocked here would be blocked there.
    sys::unblock_signals();
    let mut command = std::process::Command::new(OsString::from("poweroff"));
    command.env("PATH", crate::spawn::PATH).spawn().map(drop)
}
