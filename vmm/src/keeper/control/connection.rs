//! One client: what it has sent and not yet been answered, and what it has not read yet.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use event_manager::EventSet;
use serde::Deserialize;
use serde_json::{Value, json};
use vmm::info::Event;

use super::ControlError;
use crate::keeper::sink::Sink;

/// The longest call in bytes.
const CALL_MAX: usize = 64 << 10;
/// How long a call may take to arrive.
const PATIENCE: Duration = Duration::from_secs(5);

/// A call.
#[derive(Debug, Deserialize)]
pub(super) struct Call {
    pub(super) method: String,
    #[serde(default)]
    pub(super) parameters: Value,
    #[serde(default)]
    pub(super) oneway: bool,
    #[serde(default)]
    pub(super) more: bool,
    #[serde(default)]
    pub(super) upgrade: bool,
}

/// What a client wants next.
pub(super) enum Step {
    Nothing,
    Call(Call),
    /// Keys for the console.
    Typed(Vec<u8>),
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Calls,
    /// The guest's console.
    Console {
        writes: bool,
    },
}

/// Who is told of events, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subscription {
    /// `io.wirevm.Machine.Subscribe`.
    Events,
    /// `io.wirevm.Machine.Wait`: of the end.
    End,
    /// `io.systemd.MachineInstance.SubscribeEvents`: all, or those of these names.
    Systemd(Option<Vec<String>>),
}

pub(super) struct Connection {
    from: File,
    to: Sink,
    mode: Mode,
    read: Vec<u8>,
    /// When the call that is arriving must be whole.
    until: Option<Instant>,
    /// A call is being answered: the next one waits.
    busy: bool,
    /// The answer is not wanted.
    oneway: bool,
    subscription: Option<Subscription>,
    /// It sends nothing more. What it has sent is still answered.
    ended: bool,
    /// Nothing more is read, and once all is written, it is over.
    closing: bool,
    over: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let to = Sink::shared(stream.as_fd())?;
        Ok(Self {
            from: OwnedFd::from(stream).into(),
            to,
            mode: Mode::Calls,
            read: Vec::new(),
            until: None,
            busy: false,
            oneway: false,
            subscription: None,
            ended: false,
            closing: false,
            over: false,
        })
    }

    /// Reads what there is, within bounds.
    pub(super) fn read(&mut self, now: Instant) {
        let mut chunk = [0; 4096];
        while !self.ended && self.read.len() <= CALL_MAX {
            match self.from.read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(len) => self.read.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.ended = true,
            }
        }
        if self.closing {
            // What comes behind the end is not looked at.
            self.read.clear();
        }
        if self.mode == Mode::Calls && !self.read.is_empty() && self.until.is_none() {
            self.until = Some(now + PATIENCE);
        }
    }

    /// What is to be done for it now.
    pub(super) fn step(&mut self) -> Step {
        if self.over || self.closing || self.busy || self.read.is_empty() {
            return Step::Nothing;
        }
        if let Mode::Console { writes } = self.mode {
            let typed = std::mem::take(&mut self.read);
            return if writes { Step::Typed(typed) } else { Step::Nothing };
        }
        let Some(end) = self.read.iter().position(|&byte| byte == 0) else {
            if self.read.len() > CALL_MAX {
                self.fail("the call is longer than 64 KiB");
            }
            return Step::Nothing;
        };
        let message: Vec<_> = self.read.drain(..=end).collect();
        // What is behind it has its own time.
        self.until = (!self.read.is_empty()).then(|| Instant::now() + PATIENCE);
        match serde_json::from_slice::<Call>(&message[..end]) {
            Ok(call) => {
                (self.busy, self.oneway) = (true, call.oneway);
                Step::Call(call)
            }
            Err(_) => {
                self.fail("this is no varlink call: a JSON object with a method, ended by a NUL");
                Step::Nothing
            }
        }
    }

    /// Answers the call in hand.
    pub(super) fn reply(&mut self, answer: Result<Value, ControlError>) {
        self.busy = false;
        if !self.oneway {
            self.send(&match answer {
                Ok(parameters) => json!({ "parameters": parameters }),
                Err(error) => error.to_json(),
            });
        }
    }

    /// Answers the call in hand, whose answers go on.
    fn continue_with(&mut self, parameters: &Value) {
        self.send(&json!({ "parameters": parameters, "continues": true }));
    }

    /// Has it told of what happens. The call in hand is not answered yet.
    pub(super) fn subscribe(&mut self, subscription: Subscription) {
        if let Subscription::Systemd(_) = subscription {
            // So that the caller knows that it misses nothing from now on.
            self.continue_with(&json!({ "event": "READY" }));
        }
        self.subscription = Some(subscription);
    }

    /// Tells it what happened, if it wants to hear it.
    pub(super) fn tell(&mut self, event: &Event) {
        match (self.subscription.clone(), event) {
            (Some(Subscription::End), Event::Ended { status }) => self.reply(Ok(json!({ "status": status }))),
            (Some(Subscription::Events), event) => {
                let parameters = json!({ "event": event });
                match event {
                    Event::Ended { .. } => self.reply(Ok(parameters)),
                    Event::State { .. } => self.continue_with(&parameters),
                }
            }
            (Some(Subscription::Systemd(filter)), event) => {
                let name = match event {
                    Event::State { state } => state.word().to_uppercase(),
                    Event::Ended { .. } => "SHUTDOWN".to_owned(),
                };
                let is_wanted = filter.is_none_or(|names| names.contains(&name));
                let parameters = json!({ "event": name, "data": event });
                match event {
                    // The last one, wanted or not: the stream has an end.
                    Event::Ended { .. } => self.reply(Ok(if is_wanted { parameters } else { json!({}) })),
                    Event::State { .. } if is_wanted => self.continue_with(&parameters),
                    Event::State { .. } => {}
                }
            }
            (Some(Subscription::End) | None, _) => {}
        }
    }

    /// From now on the connection is the console.
    pub(super) fn become_console(&mut self, writes: bool, history: &[u8]) {
        self.reply(Ok(json!({})));
        (self.mode, self.until) = (Mode::Console { writes }, None);
        self.show(history);
    }

    /// Shows what the guest said. Who reads too slowly loses some of it, and is told.
    pub(super) fn show(&mut self, output: &[u8]) {
        self.to.write(output);
    }

    pub(super) fn is_console(&self) -> bool {
        matches!(self.mode, Mode::Console { .. })
    }

    pub(super) fn writes(&self) -> bool {
        self.mode == Mode::Console { writes: true }
    }

    /// Whether nothing is open: no call, no stream of events, no console, no answer that is still to be read.
    pub(super) fn is_idle(&self) -> bool {
        self.mode == Mode::Calls && !self.busy && self.read.is_empty() && !self.to.is_waiting()
    }

    fn send(&mut self, message: &Value) {
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write(&bytes);
        // A message with a hole is none.
        self.over |= self.to.has_lost();
    }

    /// Says what is wrong, and ends the connection.
    pub(super) fn fail(&mut self, reason: &str) {
        if self.mode == Mode::Calls {
            let error = ControlError::Failed(reason.to_owned());
            self.send(&error.to_json());
        }
        self.read = Vec::new();
        (self.closing, self.until) = (true, None);
    }

    /// Writes what it has room for.
    pub(super) fn flush(&mut self) {
        self.to.flush();
    }

    /// What the loop is to watch it for.
    pub(super) fn wants(&self) -> EventSet {
        // The end of what it sends is readable for ever.
        let deaf = self.read.len() > CALL_MAX || self.closing || self.ended;
        let read = if deaf { EventSet::empty() } else { EventSet::IN };
        if self.to.is_waiting() { read | EventSet::OUT } else { read }
    }

    /// Ends the connection: the client has closed it, and reads no answer.
    pub(super) fn hang_up(&mut self) {
        self.over = true;
    }

    /// Whether nothing is left to be done for it, after the last [`step`](Self::step).
    pub(super) fn is_over(&self) -> bool {
        self.over || (self.closing || self.ended && !self.busy) && !self.to.is_waiting()
    }

    /// When its call must be whole.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.until.filter(|_| !self.busy)
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.from.as_raw_fd()
    }
}

/// Says why a client is not served, if it has room for that.
pub(super) fn refuse(stream: UnixStream, reason: &str) {
    if let Ok(mut connection) = Connection::new(stream) {
        connection.fail(reason);
    }
}
