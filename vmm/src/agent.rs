//! The agent in a guest: where its program is on this host, and how a machine's agent is reached.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::client::{ClientError, connect_vsock};
use crate::runtime::NameError;

/// The agent's program.
const PROGRAM: &str = "wirevm-agent";
/// The variable that names another.
const VARIABLE: &str = "WIREVM_AGENT";

/// How long a guest may take to accept a connection: as long as its device waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its program is not on this host.
    #[error("the agent for guests, wirevm-agent, is not there: looked for {}", paths(looked_for))]
    NoProgram {
        /// Where it was looked for.
        looked_for: Vec<PathBuf>,
    },
    /// There is no such machine.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The machine has no vsock.
    #[error("the machine {name} has no vsock, by which its guest's agent is reached")]
    NoVsock {
        /// The machine.
        name: String,
    },
    /// Nobody in the guest accepts the connection.
    #[error("no agent answers in the guest of {name} (vsock port {port})")]
    NotThere {
        /// The machine.
        name: String,
        /// The port.
        port: u32,
    },
    /// The connection failed.
    #[error("cannot connect to the agent in the guest of {name}")]
    Connection {
        /// The machine.
        name: String,
        /// The reason.
        source: io::Error,
    },
}

impl AgentError {
    /// What the user can do about it.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::NoProgram { .. } => {
                format!("make build builds it beside wirevm; or set {VARIABLE} to its path")
            }
            Self::Name(error) => return error.remedy(),
            Self::NoVsock { .. } => "start the machine with --vsock on, which is the default".into(),
            Self::NotThere { .. } => {
                "a guest that has just started may not have it yet; one with an init of its own needs a service that runs: wirevm-agent --serve"
                    .into()
            }
            Self::Connection { .. } => return None,
        })
    }
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The agent's program on this host: `$WIREVM_AGENT`, else `wirevm-agent` beside the running program, else in `../lib/wirevm` from
/// there.
///
/// # Errors
/// There is none.
pub fn find() -> Result<PathBuf, AgentError> {
    let program = std::env::current_exe().unwrap_or_default();
    find_from(std::env::var_os(VARIABLE).map(PathBuf::from), program.parent().unwrap_or(Path::new("/")))
}

fn find_from(named: Option<PathBuf>, beside: &Path) -> Result<PathBuf, AgentError> {
    let looked_for = match named {
        Some(named) => vec![named],
        None => vec![beside.join(PROGRAM), beside.join("../lib/wirevm").join(PROGRAM)],
    };
    let found = looked_for.iter().find(|path| path.is_file()).cloned();
    found.ok_or(AgentError::NoProgram { looked_for })
}

/// Connects to the agent in the guest of the machine `name`, which listens on this vsock port.
///
/// # Errors
/// No such machine runs, or no agent is in its guest.
pub fn connect(name: &str, port: u32) -> Result<UnixStream, AgentError> {
    connect_vsock(name, port, CONNECT_TIMEOUT).map_err(|error| {
        let name = name.to_owned();
        match error {
            ClientError::Name(error) => error.into(),
            ClientError::NoVsock { .. } => AgentError::NoVsock { name },
            // One without a driver yet, whose sockets the host's kernel carries, says nothing.
            ClientError::PortRefused { .. } | ClientError::PortSilent { .. } => {
                AgentError::NotThere { name, port }
            }
            ClientError::Connection(source) => AgentError::Connection { name, source },
            error => AgentError::Connection { name, source: io::Error::other(error) },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_where_it_is_named_or_beside() {
        let dir = std::env::temp_dir().join(format!("wirevm-find-{}", std::process::id()));
        let (bin, lib) = (dir.join("bin"), dir.join("lib/wirevm"));
        for made in [&bin, &lib] {
            std::fs::create_dir_all(made).unwrap();
        }
        let none = find_from(None, &bin).unwrap_err();
        assert!(
            none.to_string().contains("bin/wirevm-agent, ") && none.to_string().contains("lib/wirevm/"),
            "{none}"
        );
        assert!(none.remedy().unwrap().contains("make build"));
        std::fs::write(lib.join(PROGRAM), "").unwrap();
        assert_eq!(find_from(None, &bin).unwrap(), bin.join("../lib/wirevm").join(PROGRAM));
        std::fs::write(bin.join(PROGRAM), "").unwrap();
        assert_eq!(find_from(None, &bin).unwrap(), bin.join(PROGRAM));
        assert!(find_from(Some(dir.join("other")), &bin).is_err(), "what is named is meant");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
