//! `wirevm exec`: a command in a machine's guest.

pub(crate) mod attach;
mod relay;

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use rustix::termios::tcgetwinsize;
use vmm::agent::{self, AgentError};
use wirevm_agent::frame::Window;
use wirevm_agent::request::{Command, Request};
use wirevm_agent::{Malformed, PORT, STATUS_FAILED, STATUS_NOT_EXECUTABLE, STATUS_NOT_FOUND};

use crate::report;

/// Run a command in a machine's guest, by the agent there; no network is needed for it.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct Exec {
    /// The machine's name
    #[arg(required_unless_present = "unix")]
    name: Option<String>,

    /// Give the command a terminal, and take this one's keys for it
    #[arg(short, long)]
    terminal: bool,

    /// A variable for it, with a value or with the one that it has here; once for each
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = parse_variable)]
    env: Vec<OsString>,

    /// The guest's directory that it begins in
    #[arg(short = 'w', long, value_name = "DIR")]
    workdir: Option<OsString>,

    /// Whom it runs as in the guest, by names or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<OsString>,

    /// Reach an agent that serves on this Unix socket instead of a machine's
    #[arg(long, value_name = "PATH", conflicts_with = "name")]
    unix: Option<PathBuf>,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const EXIT_STATUS: &str = "\
Exit status: the command's, 128 and the signal's number if a signal ended it, and
  125  wirevm or the agent failed
  126  the command cannot be executed
  127  there is no such command";

pub(super) fn parse_variable(text: &str) -> Result<OsString, String> {
    match text.split_once('=') {
        Some(("", _)) => Err("it has no name".into()),
        Some(_) => Ok(text.into()),
        None => {
            let value = std::env::var_os(text).ok_or_else(|| format!("there is no variable {text} here"))?;
            let mut variable = OsString::from(format!("{text}="));
            variable.push(value);
            Ok(variable)
        }
    }
}

/// Why a command has no exit status.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecError {
    /// There is no agent to be had.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Nobody listens at the socket.
    #[error("cannot connect to {}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    /// The command cannot be told.
    #[error("cannot tell the agent the command")]
    Request(#[source] Malformed),
    /// The agent says why, and with which exit status.
    #[error("{text}")]
    Failed { status: u8, text: String },
    /// What the agent says makes no sense.
    #[error("the agent in the guest answers what makes no sense")]
    Nonsense,
    /// The connection has ended.
    #[error("the agent in the guest is gone before the command's end")]
    Gone,
    /// Something of this host's.
    #[error("cannot {what}")]
    Host { what: &'static str, source: io::Error },
}

impl ExecError {
    fn status(&self) -> u8 {
        match self {
            Self::Failed { status: status @ (STATUS_NOT_EXECUTABLE | STATUS_NOT_FOUND), .. } => *status,
            _ => STATUS_FAILED,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Agent(error) => error.remedy(),
            Self::Socket { .. } => Some("what serves there is: wirevm-agent --serve --unix PATH".into()),
            Self::Request(_) => Some("send what is long by standard input".into()),
            Self::Nonsense => Some("is it of another version? wirevm-agent --version tells".into()),
            Self::Gone => Some("whether the machine runs still, wirevm ls tells".into()),
            Self::Failed { .. } | Self::Host { .. } => None,
        }
    }
}

/// `wirevm exec`
pub(crate) fn run(args: &Exec) -> ExitCode {
    let request = Request::Exec(args.request());
    finish(args.connect().and_then(|stream| relay::exec(stream, &request, args.terminal)))
}

/// The command's exit status, or what kept it from having one.
fn finish(done: Result<u8, ExecError>) -> ExitCode {
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let status = error.status();
            report::error(&error, error.remedy().as_deref());
            report::finish(None);
            ExitCode::from(status)
        }
    }
}

impl Exec {
    fn connect(&self) -> Result<UnixStream, ExecError> {
        match &self.unix {
            Some(path) => {
                UnixStream::connect(path).map_err(|source| ExecError::Socket { path: path.clone(), source })
            }
            None => Ok(agent::connect(self.name.as_deref().unwrap_or_default(), PORT)?),
        }
    }

    fn request(&self) -> Command {
        let mut env = terminal_variables(self.terminal);
        env.extend(self.env.iter().cloned());
        Command {
            argv: self.command.clone(),
            env,
            cwd: self.workdir.clone(),
            user: self.user.clone(),
            terminal: self.terminal.then(window),
        }
    }
}

/// What a command on a terminal like the one here is to know of it.
fn terminal_variables(terminal: bool) -> Vec<OsString> {
    let variable = |name: &str| {
        let mut variable = OsString::from(format!("{name}="));
        variable.push(std::env::var_os(name)?);
        Some(variable)
    };
    let names: &[&str] = if terminal { &["TERM", "COLORTERM"] } else { &[] };
    names.iter().filter_map(|name| variable(name)).collect()
}

/// The size of the terminal here; one of a usual size where there is none.
fn window() -> Window {
    let of = |size: rustix::termios::Winsize| Window { rows: size.ws_row, columns: size.ws_col };
    let sizes = [tcgetwinsize(io::stdin()), tcgetwinsize(io::stdout()), tcgetwinsize(io::stderr())];
    let known = sizes.into_iter().flatten().map(of).find(|window| window.rows > 0 && window.columns > 0);
    known.unwrap_or(Window { rows: 24, columns: 80 })
}
