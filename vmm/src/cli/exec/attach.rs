//! `wirevm attach`: the process by which a run has its guest's main command. Nobody types it.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use clap::Args;
use vmm::agent::{self, AgentError};
use wirevm_agent::PORT;
use wirevm_agent::request::{Command, Request};

use super::{ExecError, finish, relay, terminal_variables, window};

/// How often a guest that is not up yet is asked.
const AGAIN: Duration = Duration::from_millis(10);

/// Attach to the main command of a machine's guest
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Give the command a terminal
    #[arg(long)]
    terminal: bool,

    /// The machine's name
    name: String,
}

/// Waits for the guest's agent, for as long as the machine is there, and runs the main command.
pub(crate) fn run(args: &Attach) -> ExitCode {
    let stream = loop {
        match agent::connect(&args.name, PORT) {
            // A guest that is not up: it has no driver yet, or no agent.
            Err(AgentError::NotThere { .. }) => sleep(AGAIN),
            result => break result.map_err(ExecError::from),
        }
    };
    let command = Command {
        env: terminal_variables(args.terminal),
        terminal: args.terminal.then(window),
        ..Command::default()
    };
    finish(stream.and_then(|stream| relay::exec(stream, &Request::Main(command), args.terminal)))
}
