//! The process that the user starts: it may change the host, and never touches guest memory.
//!
//! It forks the machine before it starts a thread, and wires the host while the machine loads the kernel. Then one thread and one
//! loop have all that is not the guest's: the wires and what the guest asks of them, console and terminal, signals, and the end. It
//! survives the machine: however that ends, the wiring is taken back, the terminal given back, and what happened said.

mod attached;
mod child;
mod console;
mod control;
mod core;
mod counters;
pub(crate) mod detach;
mod dns_watches;
mod events;
pub(crate) mod guest;
mod guest_words;
pub(crate) mod jail;
mod keyboard;
mod metrics;
mod move_spec;
mod nic_table;
mod nics;
mod notify;
mod register;
pub(crate) mod shares;
pub(crate) mod signals;
pub(crate) mod sink;
mod stopping;
pub(crate) mod terminal;
pub(crate) mod virtiofsd;
mod vsock;
mod watch;
mod wire_watches;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{fstat, stat};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use vmm::MachineConfig;
use vmm::config::ConsoleConfig;
use vmm::runtime::{self, Place};

use self::child::{Child, Death};
use self::console::Console;
use self::control::Server;
use self::detach::Ready;
use self::events::Keeper;
use self::guest::Prepared;
use self::keyboard::Keyboard;
use self::nics::Nic;
use self::shares::Shares;
use self::signals::Signals;
use self::sink::Sink;
use self::vsock::Vsock;
use crate::error::{Error, NicError};
use crate::machine::{self, Birth, Identity};
use crate::panics;
use crate::protocol::{Channel, End, Failure, FromMachine, ToMachine};
use crate::report;
use crate::sys::{self, Forked};
use crate::timings::Timings;

/// How a run is to be told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Telling {
    /// Each change of the host, as a command.
    pub(crate) explain: bool,
    /// In the background: the command returns when the guest says that it is up, or after that time.
    pub(crate) wait_ready: Option<Duration>,
    pub(crate) timings: Timings,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The guest's end, or one from outside.
    Guest(End),
    /// The end of the command that the run is for, with this exit status.
    Command(u8),
    /// The machine's failure.
    Failed(Failure),
    /// It ended without a word.
    Died(Death),
}

impl Ended {
    /// Whether it ended as a guest should.
    fn is_good(&self) -> bool {
        match self {
            Self::Command(status) => *status != wirevm_agent::STATUS_FAILED,
            Self::Guest(end) => !matches!(end, End::Crash(_)),
            Self::Failed(_) | Self::Died(_) => false,
        }
    }

    /// The exit status that the help names for it.
    fn status(&self) -> u8 {
        match self {
            Self::Command(status) => *status,
            Self::Guest(End::Crash(_)) => 3,
            Self::Guest(_) => 0,
            Self::Failed(_) | Self::Died(_) => 1,
        }
    }
}

/// Room for keys in the pipe to the machine: a page. What waits there has left standard input, and is lost with the guest.
const KEYS: usize = 4096;

/// Runs a guest, and turns its end into the exit status that the help names.
pub(crate) fn run(config: &MachineConfig, telling: Telling, ready: Option<Ready>) -> ExitCode {
    // While signals end the process as they usually do: an image takes its time, and nothing is to be given back yet.
    let prepared = match guest::prepare(config) {
        Ok(prepared) => prepared,
        Err(error) => {
            let code = failed(&Error::Guest(error));
            report::finish(None);
            return code;
        }
    };
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(source) => return failed(&Error::Host { what: "listen to signals", source }),
    };
    let mut asked = false;
    let ended = start(prepared, telling, &signals, ready).and_then(|keeper| keeper.attend(&mut asked));
    let code = match ended {
        Ok(ended @ (Ended::Guest(_) | Ended::Command(_) | Ended::Failed(_))) => {
            match &ended {
                Ended::Guest(End::Crash(failure)) | Ended::Failed(failure) => report::failure(failure),
                _ if signals.ends() > 0 => log::info!("ended by {}", signals.last()),
                ended => log::debug!("the end: {ended:?}"),
            }
            ExitCode::from(ended.status())
        }
        Ok(Ended::Died(death)) => failed(&match death {
            Death::Signal(signal) => Error::Killed(child::signal_name(signal)),
            Death::Exit(status) => Error::Vanished(status),
        }),
        // Before the guest began, as after it.
        Err(Error::Nic(NicError { error, .. })) if error.is_ended() => {
            log::info!("ended by {}", signals.last());
            ExitCode::SUCCESS
        }
        Err(Error::Over) if signals.ends() > 0 => {
            log::info!("ended by {}", signals.last());
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    };
    // A reader who stalls keeps nothing from ending that was asked to.
    if !asked && signals.ends() == 0 {
        report::finish(Some(signals.as_fd()));
    }
    code
}

fn failed(error: &Error) -> ExitCode {
    match error {
        // In its own words.
        Error::Machine(failure) => report::failure(failure),
        error => report::error(error, error.remedy().as_deref()),
    }
    ExitCode::FAILURE
}

/// Starts the machine and wires the host: what is returned has only to be attended.
fn start(
    prepared: Prepared,
    telling: Telling,
    signals: &Signals,
    ready: Option<Ready>,
) -> Result<Keeper, Error> {
    let Telling { explain, wait_ready, timings } = telling;
    let Prepared { config, held } = prepared;
    let config = &config;
    let host = |what| move |source: std::io::Error| Error::Host { what, source };
    let pipes = host("make a pipe to the process that runs the guest");
    let (channel, theirs) = Channel::<ToMachine, FromMachine>::pair().map_err(&pipes)?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(std::io::Error::from);
    let (console, output) = pipe().map_err(&pipes)?;
    let (input, keys) = pipe().map_err(&pipes)?;
    // As little as there can be; where that is refused, it is as before.
    let _ = fcntl_setpipe_size(&keys, KEYS);
    // Before the child, so that this one is gone when a start that fails gives links back: it has their descriptors, too.
    let mut nics = Vec::new();
    let identity = Identity::of(config)?;
    let (mut shares, sockets) = Shares::start(&config.shares, &config.memory).map_err(Error::Share)?;
    let with_shared_memory = shares.memory_for(config);
    let config = with_shared_memory.as_ref().unwrap_or(config);
    let mut child = match fork(config, theirs, [output, input], sockets, identity, timings)? {
        Forked::Parent(pid) => Child::new(pid).map_err(host("watch the process that runs the guest"))?,
        Forked::Child => unreachable!("the machine's life has no end that returns"),
    };
    wait_until_accepted(&channel, signals, &mut child)
        .map_err(|error| shares.why().map_or(error, Error::Share))?;
    drop(held);
    if let Some(ready) = &ready {
        ready.leave_stdin().map_err(host("go on without the terminal"))?;
    }

    panics::take_back_after();
    // What is not to be had leaves the host's network alone.
    let place = Place::take(config.name.as_deref(), child.id()).map_err(Error::Name)?;
    let server = Server::new(place.listen().map_err(host("listen at the machine's socket"))?);
    let wires = nics::resolve(config)?;
    let vsock = Vsock::open(config.vsock, &place, &channel);
    let vsock = or_its_own_reason(vsock, &channel, &mut child)?;
    let shown = match &config.console {
        _ if ready.is_some() => {
            let log = runtime::log(place.name(), net::Opening::Any).map_err(Error::Name)?;
            Sink::log(log).map_err(host("write to the machine's log"))?
        }
        ConsoleConfig::Stdio => {
            Sink::shared(std::io::stdout().as_fd()).map_err(host("write to standard output"))?
        }
        ConsoleConfig::None => Sink::create(Path::new("/dev/null"))?,
        ConsoleConfig::File(path) => Sink::create(path)?,
    };
    let console = Console::new(console, shown);
    let ends = signals.clone();
    let tell = move |step: &net::Step| {
        if explain {
            report::print(&format!("{step}\n"));
        }
    };
    let wiring = net::Host::new().telling(tell).ended_by(move || ends.ends());
    for (number, (spec, wire)) in config.net.iter().zip(&wires).enumerate() {
        let opened = Nic::open(number, spec, wire, &wiring)
            .and_then(|(nic, given)| given.send(&channel).map(|()| nic));
        nics.push(or_its_own_reason(opened, &channel, &mut child)?);
    }
    if config.register {
        register::register(place.name(), &nics::links_here(&nics))?;
    }
    timings.reached("host plumbing done");
    let started = channel.send(&ToMachine::Start).map_err(host("start the guest"));
    or_its_own_reason(started, &channel, &mut child)?;
    let stdio = config.console == ConsoleConfig::Stdio
        && config.guest.is_none()
        && ready.is_none()
        && !stdin_is_read(config);
    let keyboard = Keyboard::new(keys, stdio).map_err(host("take over the terminal"))?;
    Ok(Keeper::new(core::Parts {
        config: config.clone(),
        signals: signals.clone(),
        channel,
        child,
        console,
        keyboard,
        nics,
        vsock,
        shares,
        server,
        host: wiring,
        place,
        ready,
        wait_ready,
    }))
}

/// Whether standard input is the kernel or the initrd (`--kernel /dev/stdin`), and so no keyboard.
fn stdin_is_read(config: &MachineConfig) -> bool {
    let stdin = fstat(std::io::stdin()).map(|file| (file.st_dev, file.st_ino));
    let is_stdin = |path: &PathBuf| stat(path).map(|file| (file.st_dev, file.st_ino)) == stdin;
    stdin.is_ok() && [&config.kernel, &config.initrd].into_iter().flatten().any(is_stdin)
}

/// Forks the machine, which gets its ends of channel and pipes and does not return.
fn fork(
    config: &MachineConfig,
    channel: Channel<FromMachine, ToMachine>,
    [output, input]: [OwnedFd; 2],
    shares: Vec<UnixStream>,
    identity: Identity,
    timings: Timings,
) -> Result<Forked, Error> {
    let keeper = rustix::process::getpid();
    let forked =
        sys::fork().map_err(|source| Error::Host { what: "fork the process that runs the guest", source })?;
    if let Forked::Child = forked {
        machine::main(config, Birth { channel, output, input, shares, keeper, identity, timings });
    }
    Ok(forked)
}

/// Waits until the machine has all that can be refused before the host is changed.
fn wait_until_accepted(
    channel: &Channel<ToMachine, FromMachine>,
    signals: &Signals,
    child: &mut Child,
) -> Result<(), Error> {
    loop {
        let mut fds = [PollFd::new(channel, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.map_err(|e| Error::Host { what: "wait for events", source: e.into() })?,
        };
        if signals.ends() > 0 {
            return Err(Error::Over);
        }
        match channel.try_receive() {
            Ok(Some((FromMachine::Accepted, _))) => return Ok(()),
            Ok(Some((FromMachine::Print(text), _))) => report::print(&text),
            Ok(Some((FromMachine::Failed(failure), _))) => return Err(Error::Machine(failure)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return Err(died(child)),
        }
    }
}

/// What `result` says; but where the machine has failed meanwhile, that is the reason.
fn or_its_own_reason<T>(
    result: Result<T, Error>,
    channel: &Channel<ToMachine, FromMachine>,
    child: &mut Child,
) -> Result<T, Error> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    let broken = |source: &std::io::Error| matches!(source.kind(), BrokenPipe | ConnectionReset);
    match result {
        Err(Error::Host { source, .. }) if broken(&source) => loop {
            match channel.receive() {
                Ok(Some((FromMachine::Print(text), _))) => report::print(&text),
                Ok(Some((FromMachine::Failed(failure), _))) => return Err(Error::Machine(failure)),
                Ok(Some((FromMachine::Forbidden { call, thread }, _))) => {
                    return Err(Error::Forbidden { call: machine::sandbox::call_name(call), thread });
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Err(died(child)),
            }
        },
        result => result,
    }
}

/// The machine is gone without a word.
fn died(child: &mut Child) -> Error {
    of_death(child.wait())
}

fn of_death(death: Death) -> Error {
    match death {
        Death::Signal(libc::SIGSYS) => Error::KilledBySandbox,
        Death::Signal(signal) => Error::Killed(child::signal_name(signal)),
        Death::Exit(status) => Error::Vanished(status),
    }
}
