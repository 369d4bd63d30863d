//! A command's streams and signals, between this process's own and the agent, until the command ends.
//!
//! **Invariant: what the agent says costs bounded memory**, and nothing that stalls here stalls the signals.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::isatty;
use wirevm_agent::frame::{Decoder, FromAgent, Message, STDIN_WINDOW, ToAgent};
use wirevm_agent::request::Request;

use super::{ExecError, window};
use crate::keeper::sink::Sink;
use crate::keeper::terminal::{Raw, in_foreground};
use crate::sys;

/// Signals for the command, and two that are for us: the terminal has another size, and this process goes on after a stop.
const SIGNALS: [i32; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGWINCH, libc::SIGCONT];

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;
/// What fails where an output cannot be written.
const WRITE: [&str; 2] = ["write standard output", "write standard error"];
/// The exit status of who writes to a pipe that nobody reads.
const STATUS_PIPE: u8 = 128 + libc::SIGPIPE as u8;

/// Runs a request's command over a connection to an agent, with this process's standard streams, and returns its exit status. On a
/// `terminal`, the one here is raw until then.
pub(super) fn exec(stream: UnixStream, request: &Request, terminal: bool) -> Result<u8, ExecError> {
    let host = |what| move |source| ExecError::Host { what, source };
    let document = request.to_bytes().map_err(ExecError::Request)?;
    let signals = sys::signalfd(&SIGNALS).map_err(host("wait for signals"))?;
    stream.set_nonblocking(true).map_err(host("use the connection"))?;
    let raw = match terminal {
        true => Raw::enter().map_err(host("take the terminal over"))?,
        false => None,
    };
    let sink = |fd: BorrowedFd<'_>, what| Sink::shared(fd).map_err(host(what));
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let outputs = [sink(stdout.as_fd(), WRITE[0])?, sink(stderr.as_fd(), WRITE[1])?];
    let mut to_agent = Vec::new();
    ToAgent::Request(document).encode(&mut to_agent);
    let mut relay = Relay {
        stream,
        raw,
        terminal,
        decoder: Decoder::default(),
        to_agent,
        answered: false,
        unanswered: false,
        credit: 0,
        stdin_is_terminal: isatty(&stdin),
        stdin_ended: false,
        outputs,
        output: None,
    };
    loop {
        if let Some(status) = relay.turn(signals.as_fd())? {
            return Ok(status);
        }
    }
}

/// Output that has not been written yet.
struct Output {
    is_error: bool,
    bytes: Vec<u8>,
    at: usize,
}

struct Relay {
    stream: UnixStream,
    raw: Option<Raw>,
    terminal: bool,
    decoder: Decoder,
    to_agent: Vec<u8>,
    /// The agent has said something since the request.
    answered: bool,
    /// It has said nothing since the last signal for the command.
    unanswered: bool,
    /// Bytes of standard input that the agent has room for.
    credit: u32,
    stdin_is_terminal: bool,
    stdin_ended: bool,
    /// Standard output and error.
    outputs: [Sink; 2],
    /// As long as it waits, nothing more is read from the agent.
    output: Option<Output>,
}

impl Relay {
    /// Waits for something to happen, and does what it takes. The exit status, at the end.
    fn turn(&mut self, signals: BorrowedFd<'_>) -> Result<Option<u8>, ExecError> {
        let stdin = io::stdin();
        let mut of_stream = PollFlags::empty();
        of_stream.set(PollFlags::IN, self.output.is_none());
        of_stream.set(PollFlags::OUT, !self.to_agent.is_empty());
        // To read a terminal in the background would stop us, with all that are in our process group (`SIGTTIN`).
        let takes_input = self.credit > 0
            && !self.stdin_ended
            && self.to_agent.is_empty()
            && (!self.stdin_is_terminal || in_foreground());
        let output = self.output.as_ref().map(|output| self.outputs[usize::from(output.is_error)].as_fd());
        let wanted = [
            Some((signals, PollFlags::IN)),
            Some((self.stream.as_fd(), of_stream)).filter(|_| !of_stream.is_empty()),
            takes_input.then_some((stdin.as_fd(), PollFlags::IN)),
            output.map(|output| (output, PollFlags::OUT)),
        ];
        let mut fds: Vec<_> =
            wanted.iter().flatten().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match poll(&mut fds, None) {
            Err(Errno::INTR) => return Ok(None),
            polled => polled.map_err(|why| ExecError::Host { what: "wait", source: why.into() })?,
        };
        let mut events = fds.iter().map(PollFd::revents);
        let [signal, stream, input, output] =
            wanted.map(|wanted| wanted.and_then(|_| events.next()).unwrap_or(PollFlags::empty()));
        drop(fds);

        if !signal.is_empty()
            && let Some(signal) = self.take_signals(signals)?
        {
            return Ok(Some(128 | signal as u8 & 127));
        }
        if !input.is_empty() {
            self.take_input();
        }
        if stream.intersects(PollFlags::OUT | PollFlags::ERR) {
            self.send()?;
        }
        if !output.is_empty() && !self.write_output()? {
            return Ok(Some(STATUS_PIPE));
        }
        // The connection's end comes after the output that waits.
        if self.output.is_none() && stream.intersects(PollFlags::IN | PollFlags::HUP) {
            self.receive()?;
        }
        self.take_frames()
    }

    /// Passes signals on. One that ends this process: another for the command while the agent says nothing, not even of the request.
    fn take_signals(&mut self, signals: BorrowedFd<'_>) -> Result<Option<i32>, ExecError> {
        for signal in sys::take_signals(signals) {
            match signal {
                libc::SIGWINCH => self.resize(),
                libc::SIGCONT => {
                    // A shell has had the terminal meanwhile, and somebody may have made it another size. Or it is ours only now.
                    let taken = match &self.raw {
                        Some(raw) => raw.resume().map(drop),
                        None if self.terminal => Raw::enter().map(|raw| self.raw = raw),
                        None => Ok(()),
                    };
                    taken.map_err(|source| ExecError::Host { what: "take the terminal over", source })?;
                    self.resize();
                }
                signal if !self.answered || self.unanswered => return Ok(Some(signal)),
                signal => {
                    self.unanswered = true;
                    ToAgent::Signal(signal as u8).encode(&mut self.to_agent);
                }
            }
        }
        Ok(None)
    }

    fn resize(&mut self) {
        if self.terminal {
            ToAgent::Window(window()).encode(&mut self.to_agent);
        }
    }

    fn take_input(&mut self) {
        let mut chunk = [0; CHUNK];
        let room = chunk.len().min(self.credit as usize);
        match rustix::io::read(io::stdin(), &mut chunk[..room]) {
            Ok(len @ 1..) => {
                self.credit -= len as u32;
                ToAgent::Stdin(chunk[..len].to_vec()).encode(&mut self.to_agent);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The end, also where there is nothing to read from.
            _ => {
                self.stdin_ended = true;
                ToAgent::StdinEnd.encode(&mut self.to_agent);
            }
        }
    }

    fn send(&mut self) -> Result<(), ExecError> {
        match self.stream.write(&self.to_agent) {
            Ok(len) => drop(self.to_agent.drain(..len)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // The agent may have said why before it went, which is still to be read.
            Err(_) => self.to_agent.clear(),
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), ExecError> {
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(ExecError::Gone),
            Ok(len) => {
                self.decoder.push(&chunk[..len]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(())
            }
            Err(_) => Err(ExecError::Gone),
        }
    }

    /// Takes what the agent says, until there is output to write.
    fn take_frames(&mut self) -> Result<Option<u8>, ExecError> {
        while self.output.is_none() {
            let Some(message) = self.decoder.next().map_err(|_| ExecError::Nonsense)? else { break };
            (self.answered, self.unanswered) = (true, false);
            match message {
                FromAgent::Stdout(bytes) => self.output = Some(Output { is_error: false, bytes, at: 0 }),
                FromAgent::Stderr(bytes) => self.output = Some(Output { is_error: true, bytes, at: 0 }),
                FromAgent::Credit(bytes) => self.credit = self.credit.saturating_add(bytes).min(STDIN_WINDOW),
                FromAgent::Exited(code) => return Ok(Some(code)),
                FromAgent::Killed(signal) => return Ok(Some(128 | signal & 127)),
                FromAgent::Failed { status, text } => return Err(ExecError::Failed { status, text }),
                FromAgent::Answer(_) => return Err(ExecError::Nonsense),
            }
        }
        Ok(None)
    }

    /// Writes what there is room for. False where nobody reads it.
    fn write_output(&mut self) -> Result<bool, ExecError> {
        let Some(output) = &mut self.output else { return Ok(true) };
        let which = usize::from(output.is_error);
        match self.outputs[which].try_write(&output.bytes[output.at..]) {
            Ok(len) => output.at += len,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
            Err(source) => return Err(ExecError::Host { what: WRITE[which], source }),
        }
        if output.at == output.bytes.len() {
            self.output = None;
        }
        Ok(true)
    }
}
