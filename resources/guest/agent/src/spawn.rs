//! How a command starts: as whom, where, with which variables, on which streams.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags, fchown, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use wirevm_agent::frame::FromAgent;
use wirevm_agent::request::Command;
use wirevm_agent::{STATUS_FAILED, STATUS_NOT_EXECUTABLE, STATUS_NOT_FOUND};

use crate::user::User;
use crate::{relay, sys};

/// Where programs are looked for if nothing else is said.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that runs, in a process group and session of its own, and our ends of its streams, which do not block.
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) outputs: [Option<OwnedFd>; 2],
}

/// The command's ends.
struct Streams {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Starts a command, or says what the host is told.
pub(crate) fn start(command: &Command) -> Result<Started, FromAgent> {
    let failed = |text: String| FromAgent::Failed { status: STATUS_FAILED, text };
    let Some((program, arguments)) = command.argv.split_first() else {
        return Err(failed("there is no command".to_owned()));
    };
    let user = User::find(command.user.as_deref()).map_err(failed)?;
    let cwd = command.cwd.as_deref().unwrap_or(OsStr::new("/"));
    std::env::set_current_dir(cwd).map_err(|why| {
        failed(format!("cannot change to the directory {}: {why}", Path::new(cwd).display()))
    })?;
    let (mut started, streams) =
        streams(command, &user).map_err(|why| failed(format!("cannot make the command's streams: {why}")))?;

    let mut process = std::process::Command::new(program);
    process.args(arguments).env_clear().env("PATH", PATH).env("HOME", &user.home);
    for variable in &command.env {
        let bytes = variable.as_bytes();
        match bytes.iter().position(|&byte| byte == b'=') {
            Some(at @ 1..) => {
                process.env(OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..]));
            }
            _ => return Err(failed(format!("{} is no KEY=VALUE", Path::new(variable).display()))),
        }
    }
    process
        .stdin(Stdio::from(streams.stdin))
        .stdout(Stdio::from(streams.stdout))
        .stderr(Stdio::from(streams.stderr));
    let on_terminal = started.terminal.is_some();
    // SAFETY: this process has one thread, so that the child may do what it likes.
    unsafe { process.pre_exec(move || prepare(on_terminal, &user)) };
    match process.spawn() {
        Ok(child) => {
            started.pid = Pid::from_child(&child);
            Ok(started)
        }
        Err(why) => Err(not_started(program, &why)),
    }
}

/// Makes the command's process what it is to be; runs in it.
fn prepare(on_terminal: bool, user: &User) -> io::Result<()> {
    rustix::process::setsid()?;
    if on_terminal {
        rustix::process::ioctl_tiocsctty(io::stdin())?;
    }
    // Process 1 is spared, and what it starts is not.
    let score = "/proc/self/oom_score_adj";
    if std::fs::read(score).is_ok_and(|score| score.starts_with(b"-")) {
        let _ = std::fs::write(score, "0");
    }
    user.become_it()?;
    // The session's own is not the command's.
    sys::unblock_signals();
    // Where the session's process is killed, nobody waits for the command any more.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

fn streams(command: &Command, user: &User) -> io::Result<(Started, Streams)> {
    let pid = rustix::process::getpid();
    if let Some(window) = command.terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = openpt(flags)?;
        unlockpt(&terminal)?;
        let end = ioctl_tiocgptpeer(&terminal, flags)?;
        relay::set_size(&terminal, window);
        give(&end, user);
        let _ = rustix::fs::fchmod(&end, Mode::RUSR | Mode::WUSR | Mode::WGRP);
        unblock(&terminal)?;
        let started = Started {
            pid,
            stdin: Some(terminal.try_clone()?),
            outputs: [Some(terminal.try_clone()?), None],
            terminal: Some(terminal),
        };
        return Ok((started, Streams { stdin: end.try_clone()?, stdout: end.try_clone()?, stderr: end }));
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let ((stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr)) = (pipe()?, pipe()?, pipe()?);
    for end in [&stdin, &stdout, &stderr] {
        give(end, user);
    }
    for end in [&to_stdin, &from_stdout, &from_stderr] {
        unblock(end)?;
    }
    let started = Started {
        pid,
        terminal: None,
        stdin: Some(to_stdin),
        outputs: [Some(from_stdout), Some(from_stderr)],
    };
    Ok((started, Streams { stdin, stdout, stderr }))
}

/// So that its user can open `/dev/stdout`.
fn give(end: &OwnedFd, user: &User) {
    let _ = fchown(end, Some(user.uid), Some(user.gid));
}

fn unblock(fd: &OwnedFd) -> io::Result<()> {
    fcntl_setfd(fd.as_fd(), FdFlags::CLOEXEC)?;
    Ok(fcntl_setfl(fd, OFlags::NONBLOCK)?)
}

/// Says why a command does not start, as a shell does.
fn not_started(program: &OsStr, why: &io::Error) -> FromAgent {
    let name = Path::new(program).display();
    let (status, text) = match why.kind() {
        io::ErrorKind::NotFound if program.as_bytes().contains(&b'/') && Path::new(program).exists() => {
            let text =
                format!("cannot execute {name}: the interpreter or the loader that it names is not there");
            (STATUS_NOT_EXECUTABLE, text)
        }
        io::ErrorKind::NotFound => (STATUS_NOT_FOUND, format!("there is no command {name}")),
        _ => (STATUS_NOT_EXECUTABLE, format!("cannot execute {name}: {why}")),
    };
    FromAgent::Failed { status, text }
}
