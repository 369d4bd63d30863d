//! The guest's start and end, where the agent is its init.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, finit_module, reboot, sethostname};
use rustix::time::{ClockId, Timespec, clock_settime};
use wirevm_agent::CONFIG_PATH;
use wirevm_agent::config::{Config, Init};

use crate::server::{Context, Ended, Listener};
use crate::sys::Forked;
use crate::{log, mounts, network, notify, power, root, server, sys};

/// How long processes have to end by themselves once they are told to, as before the guest is powered off.
pub(crate) const TERMINATE: Duration = Duration::from_secs(3);
/// How long the vsock device may take to appear.
const VSOCK: Duration = Duration::from_secs(10);

/// Is the guest's init.
pub(crate) fn run() -> ! {
    let early = mounts::kernel_file_systems(Path::new("/"));
    use_console();
    early.iter().for_each(|why| log(format_args!("{why}")));
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let (config, boot) = match read_config() {
        Ok(config) => {
            let boot = start(&config);
            (config, boot)
        }
        Err(why) => (Config::default(), Err(why)),
    };
    if let Err(why) = &boot {
        log(format_args!("the guest does not start: {why}"));
    }
    let ended = match (&config.init, &boot) {
        (Init::Exec(path), Ok(())) => become_init(path, &config),
        _ => serve(&config, boot),
    };
    end(ended)
}

fn read_config() -> Result<Config, String> {
    match std::fs::read(CONFIG_PATH) {
        Ok(bytes) => Config::parse(&bytes).map_err(|why| format!("cannot use {CONFIG_PATH}: {why}")),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        Err(why) => Err(format!("cannot read {CONFIG_PATH}: {why}")),
    }
}

/// What is said goes to the console from now on, which the kernel did not find before `/dev` was there.
fn use_console() {
    let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") else { return };
    let _ = rustix::stdio::dup2_stdin(&console);
    let _ = rustix::stdio::dup2_stdout(&console);
    let _ = rustix::stdio::dup2_stderr(&console);
}

/// All until the root is there; says what it fails of.
fn start(config: &Config) -> Result<(), String> {
    if let Some(clock) = config.clock {
        set_clock(clock);
    }
    let mut missing = Vec::new();
    for module in &config.modules {
        if let Err(why) = load(Path::new(module)) {
            log(format_args!("cannot load the module {}: {why}", Path::new(module).display()));
            missing.push(Path::new(module).display().to_string());
        }
    }
    root::enter(&config.root).map_err(|why| match missing.is_empty() {
        true => why,
        false => format!("{why}; modules that could not be loaded: {}", missing.join(", ")),
    })?;
    mounts::shares(&config.shares).iter().for_each(|why| log(format_args!("{why}")));
    if let Some(hostname) = &config.hostname
        && let Err(why) = sethostname(hostname.as_encoded_bytes())
    {
        log(format_args!("cannot set the hostname: {why}"));
    }
    network::up_loopback();
    Ok(())
}

fn load(module: &Path) -> std::io::Result<()> {
    let file = std::fs::File::open(module)?;
    match finit_module(&file, c"", 0) {
        // It is there already.
        Err(rustix::io::Errno::EXIST) => Ok(()),
        loaded => Ok(loaded?),
    }
}

/// Sets the wall clock where it is behind the host's at the guest's start: a clock of the hardware knows better.
fn set_clock(host: Duration) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if now < host {
        let time = Timespec { tv_sec: host.as_secs() as i64, tv_nsec: host.subsec_nanos().into() };
        if let Err(why) = clock_settime(ClockId::Realtime, time) {
            log(format_args!("cannot set the clock: {why}"));
        }
    }
}

/// Serves until the guest is to end.
fn serve(config: &Config, boot: Result<(), String>) -> Ended {
    let mut context = match Context::new(config.command.clone(), boot, true) {
        Ok(context) => context,
        Err(why) => {
            log(format_args!("cannot make pipes: {why}"));
            return Ended::PowerOff;
        }
    };
    // Before there is a listener, which is not theirs. The guest is not ready before the server begins.
    if context.boot.is_ok() {
        if config.network {
            network::start(&mut context.not_ready, config.hostname.is_none());
        }
        notify::start(&mut context);
    }
    let listener = match listen(config.port) {
        Ok(listener) => listener,
        Err(why) => {
            log(format_args!("cannot listen on vsock, so that nobody reaches this guest: {why}"));
            return Ended::PowerOff;
        }
    };
    server::run(listener, context, power::buttons())
}

fn listen(port: u32) -> std::io::Result<Listener> {
    // Tests have no vsock, and give a path.
    if let Some(path) = std::env::var_os("WIREVM_AGENT_UNIX") {
        return Listener::unix(Path::new(&path));
    }
    let step = Duration::from_millis(20);
    for _ in 0..VSOCK.as_millis() / step.as_millis() {
        if let Ok(listener) = Listener::vsock(port) {
            return Ok(listener);
        }
        std::thread::sleep(step);
    }
    Listener::vsock(port)
}

/// Serves in a process beside the guest's own init, which this one becomes.
fn become_init(path: &std::ffi::OsStr, config: &Config) -> Ended {
    use std::os::unix::process::CommandExt;
    match sys::fork() {
        Ok(Forked::Child) => {
            let ended = serve(config, Ok(()));
            if ended == Ended::PowerOff {
                let _ = server::ask_init_to_power_off();
            }
            sys::exit_now(0);
        }
        Ok(Forked::Parent(_)) => {}
        Err(why) => log(format_args!("cannot start a process: {why}")),
    }
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    let why = std::process::Command::new(path).exec();
    log(format_args!("cannot execute {}: {why}", Path::new(path).display()));
    Ended::PowerOff
}

/// Ends all processes, and the guest.
fn end(ended: Ended) -> ! {
    sys::kill_all(libc::SIGTERM);
    sys::kill_all(libc::SIGCONT);
    let step = Duration::from_millis(10);
    for _ in 0..TERMINATE.as_millis() / step.as_millis() {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        // Processes of others become process 1's, until there is none.
        if wait(WaitOptions::NOHANG).is_err() {
            break;
        }
        std::thread::sleep(step);
    }
    sys::kill_all(libc::SIGKILL);
    rustix::fs::sync();
    mounts::finish();
    let command = match ended {
        Ended::Reboot => RebootCommand::Restart,
        Ended::Halt => RebootCommand::Halt,
        Ended::PowerOff | Ended::Stopped => RebootCommand::PowerOff,
    };
    if let Err(why) = reboot(command) {
        log(format_args!("cannot end the guest: {why}"));
    }
    // The end of process 1 is the guest's, too, if not a nice one.
    sys::exit_now(1);
}
