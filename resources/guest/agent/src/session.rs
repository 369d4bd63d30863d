//! A connection: a process that reads what the host wants, does it, and ends with it.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use wirevm_agent::frame::{Decoder, FromAgent, Message, ToAgent};
use wirevm_agent::request::{Command, Request};
use wirevm_agent::{DOCUMENT_MAX, STATUS_FAILED};

use crate::relay::Relay;
use crate::server::{self, Context, POWER_OFF};
use crate::{spawn, sys};

/// How long the host may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to close the connection, once it has the last frame. As long as it likes for the main command, whose output it
/// may still read: the connection ends with the guest, which ends with this.
const LINGER: Duration = Duration::from_secs(5);

/// A connection, and what came and was not looked at yet.
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) decoder: Decoder,
    /// How long the host may take to close it.
    linger: Option<Duration>,
}

/// The host has closed the connection, or says what makes no sense.
pub(crate) struct Gone;

impl Connection {
    /// Takes what has come, without waiting.
    pub(crate) fn receive(&mut self) -> Result<(), Gone> {
        let mut chunk = [0; 16 << 10];
        match rustix::io::read(&self.socket, &mut chunk) {
            Ok(0) => Err(Gone),
            Ok(len) => {
                self.decoder.push(&chunk[..len]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(_) => Err(Gone),
        }
    }

    /// The next frame of what has come.
    pub(crate) fn next(&mut self) -> Result<Option<ToAgent>, Gone> {
        self.decoder.next().map_err(|_| Gone)
    }

    /// Sends some of `bytes`, without waiting, and takes it out.
    pub(crate) fn send_some(&self, bytes: &mut Vec<u8>) -> Result<(), Gone> {
        match send(&self.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(len) => drop(bytes.drain(..len)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Err(Gone),
        }
        Ok(())
    }

    /// Waits until the connection is ready for this, and `until` at most.
    fn wait(&self, flags: PollFlags, until: Option<Instant>) -> Result<(), Gone> {
        let left = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        match poll(&mut [PollFd::new(&self.socket, flags)], left.as_ref()) {
            Ok(0) => Err(Gone),
            _ => Ok(()),
        }
    }

    /// Sends the last frame after `bytes`, and waits until the host has it.
    pub(crate) fn finish(mut self, mut bytes: Vec<u8>, last: &FromAgent) -> Result<(), Gone> {
        last.encode(&mut bytes);
        while !bytes.is_empty() {
            // The host may be slow, and tells by closing when it does not want more.
            self.wait(PollFlags::IN | PollFlags::OUT, None)?;
            self.send_some(&mut bytes)?;
            self.skip()?;
            if !bytes.is_empty() {
                self.wait(PollFlags::OUT, None)?;
            }
        }
        let _ = shutdown(&self.socket, Shutdown::Write);
        let until = self.linger.map(|linger| Instant::now() + linger);
        loop {
            self.wait(PollFlags::IN, until)?;
            self.skip()?;
        }
    }

    /// Takes what comes, and drops it.
    fn skip(&mut self) -> Result<(), Gone> {
        self.receive()?;
        while self.next()?.is_some() {}
        Ok(())
    }

    fn request(&mut self) -> Result<Result<Request, String>, Gone> {
        let until = Instant::now() + REQUEST_TIMEOUT;
        let mut document = Vec::new();
        loop {
            while let Some(message) = self.next()? {
                let last = matches!(message, ToAgent::Request(_));
                let (ToAgent::Part(part) | ToAgent::Request(part)) = message else { return Err(Gone) };
                document.extend(part);
                if document.len() > DOCUMENT_MAX {
                    return Ok(Err(format!("the request is longer than {DOCUMENT_MAX} bytes")));
                }
                if last {
                    return Ok(
                        Request::parse(&document).map_err(|why| format!("the request makes no sense: {why}"))
                    );
                }
            }
            self.wait(PollFlags::IN, Some(until))?;
            self.receive()?;
        }
    }
}

pub(crate) fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }
}

fn failed(text: impl Into<String>) -> FromAgent {
    FromAgent::Failed { status: STATUS_FAILED, text: text.into() }
}

/// Does what the host wants on this connection. That the host is gone is no failure.
pub(crate) fn run(socket: OwnedFd, context: &Context) {
    let mut connection = Connection { socket, decoder: Decoder::default(), linger: Some(LINGER) };
    let Ok(request) = connection.request() else { return };
    let boot = |answer: FromAgent| match &context.boot {
        Ok(()) => answer,
        Err(why) => failed(why.as_str()),
    };
    let _ = match request {
        Err(why) => connection.finish(Vec::new(), &failed(why)),
        Ok(Request::Exec(command)) => exec(connection, context, command),
        Ok(Request::Main(command)) => main(connection, context, command),
        Ok(Request::Ready) => match wait_until_ready(&mut connection, context) {
            Ok(()) => connection.finish(Vec::new(), &boot(FromAgent::Answer(Vec::new()))),
            Err(gone) => Err(gone),
        },
        Ok(Request::PowerOff) => power_off(connection, context),
        Ok(Request::Version) => {
            let version = env!("CARGO_PKG_VERSION").as_bytes().to_vec();
            connection.finish(Vec::new(), &FromAgent::Answer(version))
        }
    };
}

fn exec(connection: Connection, context: &Context, command: Command) -> Result<(), Gone> {
    if let Err(why) = &context.boot {
        return connection.finish(Vec::new(), &failed(why.as_str()));
    }
    // From now on a command runs, which has its time when all processes are told to end, and whose end the host is told.
    let told = match sys::signalfd(&[libc::SIGTERM]) {
        Ok(told) => told,
        Err(why) => return connection.finish(Vec::new(), &failed(format!("cannot wait for signals: {why}"))),
    };
    match spawn::start(&merged(&context.command, command)) {
        Ok(started) => Relay::new(connection, started, told).run(),
        Err(last) => connection.finish(Vec::new(), &last),
    }
}

/// Runs the main command, whose end is the guest's: process 1 sees it by the end of this process.
fn main(mut connection: Connection, context: &Context, mut command: Command) -> Result<(), Gone> {
    if context.command.argv.is_empty() {
        return connection.finish(Vec::new(), &failed("the guest has no main command"));
    }
    if rustix::io::read(&context.main, &mut [0; 1]) != Ok(1) {
        return connection.finish(Vec::new(), &failed("the guest's main command is attached to already"));
    }
    let pid = rustix::process::getpid().as_raw_pid();
    let _ = rustix::io::write(&context.tell, &pid.to_ne_bytes());
    wait_until_ready(&mut connection, context)?;
    command.argv.clone_from(&context.command.argv);
    connection.linger = None;
    exec(connection, context, command)
}

/// Waits until the network was tried.
fn wait_until_ready(connection: &mut Connection, context: &Context) -> Result<(), Gone> {
    loop {
        let mut fds =
            [PollFd::new(&context.ready, PollFlags::empty()), PollFd::new(&connection.socket, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        let ready: [bool; 2] = [0, 1].map(|at: usize| !fds[at].revents().is_empty());
        if ready[0] {
            return Ok(());
        }
        if ready[1] {
            connection.receive()?;
        }
    }
}

fn power_off(connection: Connection, context: &Context) -> Result<(), Gone> {
    let answer = match (context.powers_off, sys::is_init()) {
        (false, _) => failed("this agent serves on a Unix socket, and powers nothing off"),
        (true, true) => {
            let told = rustix::io::write(&context.tell, &POWER_OFF.to_ne_bytes());
            told.map_or_else(
                |why| failed(format!("cannot tell process 1: {why}")),
                |_| FromAgent::Answer(Vec::new()),
            )
        }
        (true, false) => server::ask_init_to_power_off().map_or_else(
            |why| failed(format!("cannot run poweroff: {why}")),
            |()| FromAgent::Answer(Vec::new()),
        ),
    };
    connection.finish(Vec::new(), &answer)
}

/// A command with what it does not say as the configuration has it.
fn merged(defaults: &Command, command: Command) -> Command {
    Command {
        env: defaults.env.iter().cloned().chain(command.env).collect::<Vec<OsString>>(),
        cwd: command.cwd.or_else(|| defaults.cwd.clone()),
        user: command.user.or_else(|| defaults.user.clone()),
        ..command
    }
}
