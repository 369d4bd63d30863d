//! A machine for a Rust test: started, waited for, asked, and stopped.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::MachineConfig;
use crate::client::{Client, ClientError, connect_vsock, end_of};
use crate::config::ConsoleConfig;
use crate::info::MachineInfo;
use crate::runtime::Holder;

/// Why a machine did not start, or not do what was wanted.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The program is not to be found, or not to be started.
    #[error("cannot start {}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The machine did not start.
    #[error("the machine did not start: {}", said.trim_end())]
    Start {
        /// What wirevm said.
        said: String,
    },
    /// A call failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The console does not show what was waited for.
    #[error("the console does not show {text:?}; it shows\n{console}")]
    NotShown {
        /// What was waited for.
        text: String,
        /// What it shows.
        console: String,
    },
}

/// A running machine. Dropped, it is ended, and waited for.
///
/// The program `wirevm` is the one that the environment variable `WIREVM` names, else the one of `PATH`.
///
/// ```no_run
/// use std::time::Duration;
/// use vmm::{MachineConfig, Vm};
///
/// let mut vm = Vm::start(&MachineConfig {
///     initrd: Some("initrd.img".into()),
///     net: vec!["tap,host=172.31.0.1/24".parse()?],
///     ..MachineConfig::new("vmlinuz")
/// })?;
/// vm.wait_for("login: ", Duration::from_secs(60))?;
/// let ping = std::process::Command::new("ping").args(["-c", "1", "172.31.0.2"]).status()?;
/// assert!(ping.success(), "{}", vm.console());
/// vm.stop()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Vm {
    name: String,
    /// Who has that name as long as this one runs.
    holder: Option<Holder>,
    console: UnixStream,
    /// What the guest has said.
    said: Vec<u8>,
    /// How much of it was waited for.
    seen: usize,
    stopped: bool,
}

impl Vm {
    /// Starts a machine in the background, and returns once its guest runs. Its console is this object's.
    ///
    /// # Errors
    /// It does not start: what wirevm said is in the error.
    pub fn start(config: &MachineConfig) -> Result<Self, VmError> {
        let program = std::env::var_os("WIREVM").unwrap_or_else(|| OsString::from("wirevm"));
        Self::start_by(Command::new(program), config)
    }

    /// The same by `command`, which ends with the program: to start it elsewhere (`ip netns exec`), or otherwise.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_by(mut command: Command, config: &MachineConfig) -> Result<Self, VmError> {
        // A detached machine's console is its log and its socket.
        let console = match &config.console {
            ConsoleConfig::Stdio | ConsoleConfig::None => config.usual_console(),
            file => file.clone(),
        };
        let config = MachineConfig { console, ..config.clone() };
        command.args(["run", "--detach"]).args(config.to_args()).stdin(Stdio::null());
        let program = PathBuf::from(command.get_program());
        let output = command.output().map_err(|source| VmError::Program { program, source })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            return Err(VmError::Start { said: text(&output.stderr) });
        }
        let name = text(&output.stdout).trim().to_owned();
        let client = Client::connect(&name)?;
        let holder = client.holder().cloned();
        let (said, console) = client.console(true)?;
        Ok(Self { name, holder, console, said, seen: 0, stopped: false })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A connection of its own for other calls.
    ///
    /// # Errors
    /// It has ended, and maybe another has its name.
    pub fn client(&self) -> Result<Client, VmError> {
        let client = Client::connect(&self.name)?;
        if client.holder() == self.holder.as_ref() { Ok(client) } else { Err(ClientError::Gone.into()) }
    }

    /// What it is, and what it has.
    ///
    /// # Errors
    /// It has ended.
    pub fn info(&self) -> Result<MachineInfo, VmError> {
        Ok(self.client()?.info()?)
    }

    /// Connects to the program that listens at `port` in its guest.
    ///
    /// # Errors
    /// None does, or none accepts within `timeout`.
    pub fn connect_vsock(&self, port: u32, timeout: Duration) -> Result<UnixStream, VmError> {
        Ok(connect_vsock(&self.name, port, timeout)?)
    }

    /// Reads what the guest says until it says `text`, and returns all that it said since the last time.
    ///
    /// # Errors
    /// It does not within `timeout`, or ends before.
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> Result<String, VmError> {
        let until = end_of(timeout);
        loop {
            let found =
                self.said[self.seen..].windows(text.len().max(1)).position(|at| at == text.as_bytes());
            if let Some(at) = found {
                let end = self.seen + at + text.len();
                let said = String::from_utf8_lossy(&self.said[self.seen..end]).into_owned();
                self.seen = end;
                return Ok(said);
            }
            if !self.read(until) {
                return Err(VmError::NotShown { text: text.to_owned(), console: self.console() });
            }
        }
    }

    /// Reads some of the console; false once there is no more, or time is up.
    fn read(&mut self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || self.console.set_read_timeout(Some(left)).is_err() {
            return false;
        }
        let mut chunk = [0; 4096];
        match self.console.read(&mut chunk) {
            Ok(0) => false,
            Ok(len) => {
                self.said.extend_from_slice(&chunk[..len]);
                true
            }
            Err(error) => error.kind() == std::io::ErrorKind::Interrupted,
        }
    }

    /// All that the guest has said, as far as it was read.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }

    /// Types `text` on the guest's console.
    ///
    /// # Errors
    /// It has ended.
    pub fn type_in(&mut self, text: &str) -> Result<(), VmError> {
        Ok(self.console.write_all(text.as_bytes()).map_err(ClientError::Connection)?)
    }

    /// Has the guest stand still.
    ///
    /// # Errors
    /// It has ended, or stands still already.
    pub fn pause(&self) -> Result<(), VmError> {
        Ok(self.client()?.pause()?)
    }

    /// Has the guest go on.
    ///
    /// # Errors
    /// It has ended, or was not paused.
    pub fn resume(&self) -> Result<(), VmError> {
        Ok(self.client()?.resume()?)
    }

    /// Has the guest power itself off, ends it if it does not in the time that its configuration gives it, and waits. Returns the
    /// exit status.
    ///
    /// # Errors
    /// It had ended before.
    pub fn stop(mut self) -> Result<u8, VmError> {
        self.end(false)
    }

    /// Waits for the machine's end by itself, and returns the exit status.
    ///
    /// # Errors
    /// It had ended before.
    pub fn wait(mut self) -> Result<u8, VmError> {
        self.stopped = true;
        let status = self.client()?.wait();
        self.gone(status)
    }

    fn end(&mut self, force: bool) -> Result<u8, VmError> {
        self.stopped = true;
        let status = self.client()?.stop_and_wait(None, force);
        self.gone(status)
    }

    /// Waits until nothing of it is left, once it has ended with `status`.
    fn gone(&self, status: Result<u8, ClientError>) -> Result<u8, VmError> {
        if matches!(status, Ok(_) | Err(ClientError::Gone)) {
            self.holder.iter().for_each(Holder::wait_until_gone);
        }
        Ok(status?)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.stopped {
            // It may have ended by itself.
            let _ = self.end(true);
        }
    }
}
