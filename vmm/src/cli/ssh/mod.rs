//! `wirevm ssh`: this host's ssh, over a connection to the guest that `proxy.rs` makes.

pub(crate) mod proxy;
mod words;

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::{ArgAction, Args};
use vmm::client::ClientError;

use self::words::Words;
use super::machines;
use crate::report;

/// Log in to a machine's guest, or run a command there, by this host's ssh: over vsock if a program of the guest accepts
/// there, else at an address of its NICs.
#[derive(Debug, Args)]
#[command(override_usage = USAGE, after_help = EXIT_STATUS, disable_help_flag = true, disable_version_flag = true)]
pub(crate) struct Ssh {
    /// Print help; -h is ssh's
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,

    /// The machine's name, with the guest's user before it; options are ssh's
    #[arg(value_name = "[USER@]NAME", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

const USAGE: &str = "wirevm ssh [SSH-OPTION]... [USER@]NAME [SSH-OPTION]... [COMMAND [ARGUMENT]...]";

const EXIT_STATUS: &str = "\
Exit status: the command's, and 255 if ssh or wirevm failed";

/// Of ssh's own failures.
const STATUS_FAILED: u8 = 255;

/// What to do where ssh is not there.
pub(crate) const PACKAGES: &str =
    "install it: the package openssh-client (Debian, Ubuntu) or openssh-clients (Fedora)";

/// What stands behind the machine's name, so that no host has the same to ssh: neither in its configuration nor among its keys.
const SUFFIX: &str = ".wirevm";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum SshError {
    /// No machine is named.
    #[error("wirevm ssh is to be told a machine's name")]
    NoName,
    /// The machine does not run, or does not answer.
    #[error(transparent)]
    Machine(#[from] ClientError),
    /// This host has no client.
    #[error("this host has no program ssh")]
    NoSsh,
    /// Nothing in the guest accepts.
    #[error("cannot connect to port {port} of the guest of {name} {}", ways(tried))]
    Nowhere {
        name: String,
        port: u16,
        /// The addresses that were tried after vsock.
        tried: Vec<IpAddr>,
        /// Why the last one was none.
        #[source]
        why: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something of this host's.
    #[error("cannot {what}")]
    Host { what: &'static str, source: io::Error },
}

fn ways(tried: &[IpAddr]) -> String {
    match tried {
        [] => "over vsock, and the host knows no address of it".to_owned(),
        tried => {
            let tried: Vec<_> = tried.iter().map(ToString::to_string).collect();
            format!("over vsock, nor at {}", tried.join(", "))
        }
    }
}

impl SshError {
    fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::NoName => format!("its form is: {USAGE}"),
            Self::Machine(error) => return error.remedy(),
            Self::NoSsh => PACKAGES.into(),
            Self::Nowhere { name, .. } => format!(
                "run sshd in the guest: systemd 256 and later has it listen on vsock, and --ssh-key FILE lets root in. A guest that has just \
                 started may not have it yet; without it there is: wirevm exec {name} -t -- sh"
            ),
            Self::Host { .. } => return None,
        })
    }
}

/// `wirevm ssh`: becomes ssh.
pub(crate) fn run(args: &Ssh, verbose: u8) -> ExitCode {
    let Err(error) = become_ssh(&args.words, verbose);
    failed(&error)
}

fn failed(error: &SshError) -> ExitCode {
    report::error(error, error.remedy().as_deref());
    report::finish(None);
    ExitCode::from(STATUS_FAILED)
}

/// `verbose`: so many times `-v` stood before the first word, which is ssh's option, too.
fn become_ssh(words: &[OsString], verbose: u8) -> Result<std::convert::Infallible, SshError> {
    let Words { options, user, name, command } = Words::of(words).ok_or(SshError::NoName)?;
    // What is wrong with the name is better said before ssh begins.
    machines::connect(&name)?;
    let program = std::env::current_exe();
    let program = program.map_err(|source| SshError::Host { what: "find this program", source })?;
    let mut ssh = Command::new("ssh");
    ssh.args((0..verbose).map(|_| "-v"));
    // The first one that ssh is told of an option holds: the user's.
    ssh.args(options);
    ssh.arg("-o").arg(proxy_command(&program, &name));
    for ours in [
        // It has ssh speak on the connection itself, so that nobody copies.
        "ProxyUseFdpass=yes",
        // Machines of one name come and go, each with a key of its own: one that was kept would be wrong.
        "UserKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=no",
        // Else it says each time that it has not seen the key before.
        "LogLevel=ERROR",
        &format!("HostKeyAlias={name}{SUFFIX}"),
    ] {
        ssh.args(["-o", ours]);
    }
    let mut destination = user.map(|user| [user, b"@"].concat()).unwrap_or_default();
    destination.extend_from_slice(name.as_bytes());
    destination.extend_from_slice(SUFFIX.as_bytes());
    ssh.arg(OsString::from_vec(destination));
    if !command.is_empty() {
        ssh.arg("--").args(command);
    }
    let source = ssh.exec();
    Err(match source.kind() {
        io::ErrorKind::NotFound => SshError::NoSsh,
        _ => SshError::Host { what: "start ssh", source },
    })
}

/// The option by which ssh starts this program, in words of its shell's and with percent signs as ssh reads them (ssh_config(5)).
fn proxy_command(program: &Path, name: &str) -> OsString {
    let mut option = b"ProxyCommand='".to_vec();
    for &byte in program.as_os_str().as_bytes() {
        match byte {
            b'\'' => option.extend_from_slice(b"'\\''"),
            b'%' => option.extend_from_slice(b"%%"),
            byte => option.push(byte),
        }
    }
    option.extend_from_slice(format!("' ssh-proxy {name}{SUFFIX} %p").as_bytes());
    OsString::from_vec(option)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_and_ssh_read_the_program_s_path_as_it_is() {
        let option = proxy_command(Path::new("/o'p t/100%/wirevm"), "web");
        assert_eq!(option, r"ProxyCommand='/o'\''p t/100%%/wirevm' ssh-proxy web.wirevm %p");
    }
}
