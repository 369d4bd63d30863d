//! A command's streams, between it and the connection, until it ends or the host goes.
//!
//! A host that does not read stalls the command's output alone: what the host sends is always read.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, waitpid};
use rustix::termios::{Winsize, tcsetwinsize};
use wirevm_agent::STATUS_FAILED;
use wirevm_agent::frame::{FromAgent, Message, STDIN_WINDOW, ToAgent, Window};

use crate::init::TERMINATE;
use crate::session::{Connection, Gone, timespec};
use crate::spawn::Started;
use crate::sys;

/// Bytes for the host that may wait here.
const OUT_MAX: usize = 64 << 10;
/// Bytes that are read of an output at once.
const PIECE: usize = 16 << 10;
/// Bytes of output that are read after the command's end: as many as a pipe can hold. What others write that it left behind is not
/// waited for.
const REST_MAX: usize = 1 << 20;
/// How long a command has to end by itself after a SIGHUP.
const HANGUP: Duration = Duration::from_secs(2);

pub(crate) struct Relay {
    connection: Connection,
    /// For the host.
    out: Vec<u8>,
    pid: Pid,
    terminal: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    /// For the command.
    input: Vec<u8>,
    input_ends: bool,
    /// The last of its lines has no end yet.
    line_begun: bool,
    /// Standard output, or the terminal, and standard error.
    outputs: [Option<OwnedFd>; 2],
    rest: usize,
    /// Readable when this process is told to end (SIGTERM), with all others.
    told: OwnedFd,
    /// When the command is killed, which was told, too.
    killed_at: Option<Instant>,
}

impl Relay {
    pub(crate) fn new(connection: Connection, started: Started, told: OwnedFd) -> Self {
        let Started { pid, terminal, stdin, outputs } = started;
        Self {
            connection,
            out: Vec::new(),
            pid,
            terminal,
            stdin,
            input: Vec::new(),
            input_ends: false,
            line_begun: false,
            outputs,
            rest: REST_MAX,
            told,
            killed_at: None,
        }
    }

    /// Relays until the host has the command's end.
    pub(crate) fn run(mut self) -> Result<(), Gone> {
        let end = match pidfd_open(self.pid, PidfdFlags::empty()) {
            Ok(end) => end,
            Err(why) => {
                kill(self.pid, None);
                let text = format!("cannot watch the command: {why}");
                return self.connection.finish(self.out, &FromAgent::Failed { status: STATUS_FAILED, text });
            }
        };
        FromAgent::Credit(STDIN_WINDOW).encode(&mut self.out);
        match self.until_end(&end) {
            Ok(()) => {
                let last = match waitpid(Some(self.pid), WaitOptions::empty()) {
                    Ok(Some((_, status))) => last_frame(status),
                    _ => FromAgent::Failed {
                        status: STATUS_FAILED,
                        text: "the command's status is lost".to_owned(),
                    },
                };
                self.connection.finish(self.out, &last)
            }
            Err(Gone) => {
                // A command that writes finds nobody who reads.
                let pid = self.pid;
                drop(self);
                kill(pid, Some(&end));
                Err(Gone)
            }
        }
    }

    fn until_end(&mut self, end: &OwnedFd) -> Result<(), Gone> {
        let mut ended = false;
        // It may have come with the request.
        self.take_frames()?;
        loop {
            let room = self.out.len() < OUT_MAX;
            let out = if self.out.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let mut fds =
                vec![PollFd::new(&self.connection.socket, out), PollFd::new(&self.told, PollFlags::IN)];
            if !ended {
                fds.push(PollFd::new(end, PollFlags::IN));
            }
            if let (Some(stdin), false) = (&self.stdin, self.input.is_empty()) {
                fds.push(PollFd::new(stdin, PollFlags::OUT));
            }
            fds.extend(
                self.outputs.iter().flatten().filter(|_| room).map(|fd| PollFd::new(fd, PollFlags::IN)),
            );
            // What is left of the output is not waited for.
            let left = match (ended && room, self.killed_at) {
                (true, _) => Some(Duration::ZERO),
                (false, Some(at)) if !ended => Some(at.saturating_duration_since(Instant::now())),
                (false, _) => None,
            };
            let _ = poll(&mut fds, left.map(timespec).as_ref());
            let (host, told) = (fds[0].revents(), !fds[1].revents().is_empty());
            let command = !ended && !fds[2].revents().is_empty();
            drop(fds);

            if told && !sys::take_signals(&self.told).is_empty() {
                self.killed_at.get_or_insert(Instant::now() + TERMINATE);
            }
            if !ended && self.killed_at.is_some_and(|at| at <= Instant::now()) {
                sys::kill_group(self.pid, libc::SIGKILL);
                self.killed_at = None;
            }
            if host.intersects(PollFlags::OUT) {
                self.connection.send_some(&mut self.out)?;
            }
            if host.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.connection.receive()?;
                self.take_frames()?;
            }
            ended |= command;
            self.feed();
            if self.out.len() < OUT_MAX {
                self.read_outputs(ended);
                if ended && self.outputs.iter().all(Option::is_none) {
                    return Ok(());
                }
            }
        }
    }

    fn take_frames(&mut self) -> Result<(), Gone> {
        while let Some(message) = self.connection.next()? {
            match message {
                ToAgent::Stdin(bytes) => {
                    if self.input.len() + bytes.len() > STDIN_WINDOW as usize {
                        return Err(Gone);
                    }
                    if self.stdin.is_some() && !self.input_ends {
                        self.line_begun = bytes.last().is_some_and(|byte| !b"\n\r".contains(byte));
                        self.input.extend(bytes);
                    }
                }
                ToAgent::StdinEnd => self.end_input(),
                ToAgent::Signal(signal @ 1..=64) => sys::kill_group(self.pid, signal.into()),
                ToAgent::Window(window) => {
                    if let Some(terminal) = &self.terminal {
                        set_size(terminal, window);
                    }
                }
                ToAgent::Signal(_) | ToAgent::Part(_) | ToAgent::Request(_) => {}
            }
        }
        Ok(())
    }

    /// The end of standard input is a key on a terminal; behind a begun line, that key sends the line.
    fn end_input(&mut self) {
        if self.terminal.is_some() && !self.input_ends {
            self.input.extend_from_slice(if self.line_begun { b"\x04\x04" } else { b"\x04" });
        }
        self.input_ends = true;
    }

    /// Gives the command of its input what it takes.
    fn feed(&mut self) {
        if let (Some(stdin), false) = (&self.stdin, self.input.is_empty()) {
            match rustix::io::write(stdin, &self.input) {
                Ok(len) => {
                    self.input.drain(..len);
                    FromAgent::Credit(len as u32).encode(&mut self.out);
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                // It reads no more; without credit the host sends no more.
                Err(_) => {
                    self.input.clear();
                    self.stdin = None;
                }
            }
        }
        if self.input_ends && self.input.is_empty() {
            self.stdin = None;
        }
    }

    fn read_outputs(&mut self, ended: bool) {
        let mut chunk = [0; PIECE];
        for (at, output) in self.outputs.iter_mut().enumerate() {
            let Some(fd) = output else { continue };
            match rustix::io::read(&*fd, &mut chunk) {
                Ok(len @ 1..) => {
                    let bytes = chunk[..len].to_vec();
                    let frame = if at == 0 { FromAgent::Stdout(bytes) } else { FromAgent::Stderr(bytes) };
                    frame.encode(&mut self.out);
                    if ended {
                        self.rest = self.rest.saturating_sub(len);
                        if self.rest == 0 {
                            *output = None;
                        }
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if !ended => {}
                // The end, of a terminal told as EIO.
                _ => *output = None,
            }
        }
    }
}

/// Ends the command's process group, and waits for the command.
fn kill(pid: Pid, end: Option<&OwnedFd>) {
    sys::kill_group(pid, libc::SIGHUP);
    // One that is stopped hears it only so.
    sys::kill_group(pid, libc::SIGCONT);
    let until = Instant::now() + HANGUP;
    while let Some(end) = end {
        let left = timespec(until.saturating_duration_since(Instant::now()));
        if poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&left)) != Err(Errno::INTR) {
            break;
        }
    }
    // Also the rest of the group, whose name is taken as long as nobody has waited for the command.
    sys::kill_group(pid, libc::SIGKILL);
    let _ = waitpid(Some(pid), WaitOptions::empty());
}

pub(crate) fn set_size(terminal: &OwnedFd, window: Window) {
    let size = Winsize { ws_row: window.rows, ws_col: window.columns, ws_xpixel: 0, ws_ypixel: 0 };
    let _ = tcsetwinsize(terminal, size);
}

fn last_frame(status: WaitStatus) -> FromAgent {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => FromAgent::Exited(code as u8),
        (None, Some(signal)) => FromAgent::Killed(signal as u8),
        (None, None) => {
            FromAgent::Failed { status: STATUS_FAILED, text: "the command's status is lost".to_owned() }
        }
    }
}
