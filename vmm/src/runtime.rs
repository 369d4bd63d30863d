//! Where running machines are found: a directory for each, below the runtime directory.
//!
//! ```text
//! /run/wirevm/vm/NAME/lock      held (flock(2)) as long as the machine is there; the pids of keeper and machine
//!                     control   its socket
//!                     vsock     where programs of the host find ports of its guest
//!                     vsock_P   where the guest finds the program that listens at port P of the host, and has made this
//! /run/wirevm/vm/NAME.log       what a detached machine said; it stays until the name is used again
//! ```
//!
//! **Invariant: a machine is there while its lock is held**, whatever else is left of it: the kernel lets go of a lock whatever
//! becomes of who held it, and a process id may be another process's by now.
//!
//! Each directory is opened once, and what is in it by its descriptor ([`Directory`]): nobody can exchange it meanwhile.

mod holder;
mod vsock;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use net::{Directory, Opening};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

pub(crate) use self::holder::Holder;
pub(crate) use self::vsock::connect_vsock;
pub use self::vsock::{VsockPorts, vsock_socket};

/// The longest name in bytes.
const NAME_MAX: usize = 64;

/// Why a machine cannot have a name, or cannot be found by it.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// It is no name.
    #[error("{name:?} is no name for a machine: {why}")]
    Invalid {
        /// What was given.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// A machine that runs has it.
    #[error("a machine named {name} runs already{}", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Taken {
        /// The name.
        name: String,
        /// Its process, as far as it says.
        pid: Option<u32>,
    },
    /// No machine has it.
    #[error("no machine named {name} runs")]
    Unknown {
        /// The name.
        name: String,
        /// Those that run.
        running: Vec<String>,
    },
    /// There is no place for machines.
    #[error("cannot keep track of running machines")]
    Place(#[source] net::Error),
    /// Its directory is no use.
    #[error("cannot use {}", path.display())]
    Directory {
        /// The directory, or the file in it.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl NameError {
    /// What the user can do about it.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Invalid { .. } => {
                "use letters, digits, dots, dashes and underscores, 64 at most, and begin with a letter or digit".into()
            }
            Self::Taken { name, .. } => format!("use another name, or stop that one: wirevm stop {name}"),
            Self::Unknown { running, .. } if running.is_empty() => "no machine runs: wirevm run starts one".into(),
            Self::Unknown { running, .. } => format!("these run: {}", running.join(", ")),
            Self::Place(error) => return error.remedy(),
            Self::Directory { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "it is another user's machine: ask as that user, or as root".into()
            }
            Self::Directory { .. } => "set WIREVM_RUNTIME_DIR to a directory that you alone can write to".into(),
        })
    }
}

/// Says why `name` cannot be a machine's.
///
/// # Errors
/// It cannot.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let refused = |why| Err(NameError::Invalid { name: name.to_owned(), why });
    match name.as_bytes() {
        [] => refused("it is empty"),
        bytes if bytes.len() > NAME_MAX => refused("it is longer than 64 bytes"),
        [first, ..] if !first.is_ascii_alphanumeric() => {
            refused("it does not begin with a letter or a digit")
        }
        bytes if bytes.contains(&b'/') => refused("it has a slash"),
        bytes if !bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte)) => {
            refused("it has a character that is not a letter, a digit, a dot, a dash or an underscore")
        }
        _ => Ok(()),
    }
}

/// The directory of all machines below the runtime directory, which is there while one is.
const MACHINES: &str = "vm";

fn runtime_directory() -> Result<Directory, NameError> {
    Directory::runtime().map_err(NameError::Place)
}

/// The directory of all machines; none where no machine was ever there.
fn machines() -> Result<Option<Directory>, NameError> {
    let runtime = runtime_directory()?;
    match runtime.open(MACHINES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NameError::Directory { path: runtime.path().join(MACHINES), source }),
        Ok(machines) => Ok(Some(machines)),
    }
}

/// The place of a machine that this process keeps. Dropped, it is gone.
#[derive(Debug)]
pub struct Place {
    name: String,
    directory: Directory,
    /// All machines', and the one that this is in.
    all: Directory,
    runtime: Directory,
    /// Held as long as this is open.
    _lock: File,
}

impl Place {
    /// Takes the place of `name`, or of the first `vm0`, `vm1`... that is free, for this process and the one that runs the guest,
    /// `machine`.
    ///
    /// # Errors
    /// The name is none, or is a running machine's, or there is no place.
    pub fn take(name: Option<&str>, machine: u32) -> Result<Self, NameError> {
        sweep()?;
        let runtime = runtime_directory()?;
        if let Some(name) = name {
            check_name(name)?;
            return Self::of(&runtime, name, machine);
        }
        let mut number = 0;
        loop {
            match Self::of(&runtime, &format!("vm{number}"), machine) {
                Err(NameError::Taken { .. }) => number += 1,
                taken => return taken,
            }
        }
    }

    fn of(runtime: &Directory, name: &str, machine: u32) -> Result<Self, NameError> {
        let path = runtime.path().join(MACHINES).join(name);
        let failed = |source| NameError::Directory { path: path.clone(), source };
        let mut looks = 0;
        loop {
            let all = runtime.make(MACHINES).map_err(failed)?;
            let directory = match all.make(name) {
                // Who was the last one has just gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                made => made.map_err(failed)?,
            };
            let mut lock = match directory.file("lock", Opening::Any) {
                // Who had the name has just gone, with the directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(failed)?,
            };
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                // Who looks whether the machine runs holds the lock for a moment, shared.
                Err(Errno::WOULDBLOCK) if flock(&lock, FlockOperation::NonBlockingLockShared).is_ok() => {
                    continue;
                }
                Err(Errno::WOULDBLOCK) => match pids_in(&lock).map(|(keeper, _)| keeper) {
                    // Who has not said yet who it is may be about to remove what a dead one left.
                    None if looks < 100 => {
                        looks += 1;
                        std::thread::sleep(Duration::from_millis(1));
                        continue;
                    }
                    pid => return Err(NameError::Taken { name: name.to_owned(), pid }),
                },
                locked => locked.map_err(|error| failed(error.into()))?,
            }
            if lock.metadata().map_err(failed)?.nlink() == 0 {
                continue;
            }
            // What a dead one has left. A program may listen already at a port that the guest will want.
            for name in ["control", vsock::SOCKET] {
                let _ = directory.remove_file(name);
            }
            // For who is told that the name is taken, and for who finds that we were killed.
            let told = lock.set_len(0).and_then(|()| write!(lock, "{} {machine}", std::process::id()));
            told.map_err(failed)?;
            let runtime = runtime.again().map_err(failed)?;
            return Ok(Self { name: name.to_owned(), directory, all, runtime, _lock: lock });
        }
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Listens at its socket, which nobody but this user can connect to.
    ///
    /// # Errors
    /// There is no socket to be had.
    pub fn listen(&self) -> io::Result<UnixListener> {
        let listener = UnixListener::bind(short(&self.directory, "control"))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

/// Removes the places of machines that were killed, once nothing of them holds a link any more.
///
/// # Errors
/// There is no place for machines.
pub fn sweep() -> Result<(), NameError> {
    if let Some(all) = machines()? {
        wait_for_orphans(&all);
        sweep_in(&runtime_directory()?, &all);
    }
    Ok(())
}

/// How long a machine may take to end after its keeper was killed; it is a matter of milliseconds.
const ORPHANS: Duration = Duration::from_secs(1);

/// Waits for machines whose keeper was killed, and which are about to end: until then their links are there, with addresses.
///
/// Others that sweep at the same time wait here, too, for the text of a lock stays until its place goes.
fn wait_for_orphans(all: &Directory) {
    let names = all.names().unwrap_or_default().into_iter();
    let locks = names.filter_map(|name| all.open(&name).ok()?.file("lock", Opening::Existing).ok());
    let killed = |(keeper, _): &(u32, u32)| !is_alive(*keeper) || is_being_killed(*keeper);
    let until = Instant::now() + ORPHANS;
    for (keeper, machine) in locks.filter_map(|lock| pids_in(&lock).filter(killed)) {
        while (is_alive(keeper) || is_alive(machine)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// True where the process has a SIGKILL before it, or is about to end: whoever sent it may be back before that.
fn is_being_killed(pid: u32) -> bool {
    /// Of `include/linux/sched.h`.
    const PF_EXITING: u64 = 4;
    let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let (status, stat) = (read("status"), read("stat"));
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    };
    let kill = 1 << (libc::SIGKILL - 1);
    // proc_pid_stat(5): the flags are the seventh word behind the name.
    let flags = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(6)?.parse::<u64>().ok());
    status.lines().any(|line| pending(line) & kill != 0) || flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

/// True while a thread of the process has not let go of what it had open: a zombie has, but the first thread may be one before
/// the others.
fn is_alive(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    // proc_pid_stat(5): the name in brackets, then the state.
    stats.any(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with(['Z', 'X'])))
}

fn sweep_in(runtime: &Directory, all: &Directory) {
    for name in all.names().unwrap_or_default() {
        // What is no machine's, or one's that runs, stays.
        let Ok(directory) = all.open(&name) else { continue };
        let Ok(lock) = directory.file("lock", Opening::Existing) else { continue };
        let (Ok(all), Ok(runtime)) = (all.again(), runtime.again()) else { return };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && lock.metadata().is_ok_and(|found| found.nlink() > 0)
        {
            // For who waits for the name.
            let _ = lock.set_len(0);
            drop(Place { name, directory, all, runtime, _lock: lock });
        }
    }
    let _ = runtime.remove_directory(MACHINES);
}

impl Drop for Place {
    fn drop(&mut self) {
        self.remove_vsock();
        // The lock's file goes while it is held: who waits for it finds that it has no name any more.
        for name in ["control", "lock"] {
            let _ = self.directory.remove_file(name);
        }
        let _ = self.all.remove_directory(&self.name);
        // Of the last one. Logs keep it, and others.
        let _ = self.runtime.remove_directory(MACHINES);
    }
}

/// The log of the detached machine `name`, which may have ended: to be read, and to be written to at its end.
///
/// # Errors
/// The name is none, there is no place, or no log.
pub fn log(name: &str, opening: Opening) -> Result<File, NameError> {
    check_name(name)?;
    let runtime = runtime_directory()?;
    let file = format!("{name}.log");
    let opened = runtime.open(MACHINES).and_then(|all| {
        let log = all.file(&file, opening)?;
        rustix::fs::fcntl_setfl(&log, OFlags::APPEND)?;
        Ok(log)
    });
    opened.map_err(|source| NameError::Directory { path: runtime.path().join(MACHINES).join(file), source })
}

/// The pids of keeper and machine.
fn pids_in(lock: &File) -> Option<(u32, u32)> {
    let mut text = String::new();
    lock.take(32).read_to_string(&mut text).ok()?;
    let (keeper, machine) = text.split_once(' ')?;
    Some((keeper.parse().ok()?, machine.parse().ok()?))
}

/// A path to `name` in an open directory that is short enough for a socket's (unix(7)), however long the directory's is.
fn short(directory: &Directory, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd()).into()
}

/// The names of the machines that run, in order.
///
/// # Errors
/// There is no place for machines.
pub fn running() -> Result<Vec<String>, NameError> {
    let Some(all) = machines()? else { return Ok(Vec::new()) };
    let names = all.names().map_err(|source| NameError::Directory { path: all.path().to_owned(), source })?;
    let mut names: Vec<_> = names.into_iter().filter(|name| is_running(&all, name)).collect();
    names.sort();
    Ok(names)
}

fn is_running(all: &Directory, name: &str) -> bool {
    held_lock(all, name).is_some()
}

/// The lock of the machine `name`, where one runs.
fn held_lock(all: &Directory, name: &str) -> Option<File> {
    let lock = all.open(name).and_then(|directory| directory.file("lock", Opening::Existing)).ok()?;
    // Shared, so that two who look at once do not see each other.
    (flock(&lock, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)).then_some(lock)
}

/// Where the machine `name` listens while it runs.
///
/// # Errors
/// The name is none, or there is no place.
pub fn socket(name: &str) -> Result<PathBuf, NameError> {
    check_name(name)?;
    Ok(runtime_directory()?.path().join(MACHINES).join(name).join("control"))
}

/// Connects to the machine `name`, and says which one that is.
///
/// # Errors
/// No such machine runs.
pub(crate) fn connect(name: &str) -> Result<(UnixStream, Holder), NameError> {
    check_name(name)?;
    let Some(all) = machines()? else { return Err(unknown(name)) };
    let failed = |source| NameError::Directory { path: all.path().join(name), source };
    let directory = match all.open(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown(name)),
        opened => opened.map_err(failed)?,
    };
    let pids = directory.file("lock", Opening::Existing).ok().as_ref().and_then(pids_in);
    match UnixStream::connect(short(&directory, "control")) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Err(unknown(name))
        }
        connected => Ok((connected.map_err(failed)?, Holder { name: name.to_owned(), pids })),
    }
}

fn unknown(name: &str) -> NameError {
    NameError::Unknown { name: name.to_owned(), running: running().unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_word() {
        for name in ["vm0", "a", "web.example-1_x", &"x".repeat(64)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "a/b", "..", ".hidden", "-v", "a b", "a\n", "ä", &"x".repeat(65)] {
            let error = check_name(name).unwrap_err();
            assert!(
                error.remedy().is_some() && error.to_string().contains("no name for a machine"),
                "{name:?}"
            );
        }
    }

    /// No process has it.
    const NOBODY: u32 = u32::MAX;

    /// A runtime directory of a test's own, which goes with it; all in it is to be gone before.
    struct Scratch(Directory);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("wirevm-test-{name}-{}", std::process::id()));
            Self(Directory::at(&path).unwrap())
        }

        fn all(&self) -> Directory {
            self.0.make(MACHINES).unwrap()
        }

        fn is_empty(&self) -> bool {
            self.0.names().unwrap().is_empty()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir(self.0.path());
        }
    }

    impl std::ops::Deref for Scratch {
        type Target = Directory;

        fn deref(&self) -> &Directory {
            &self.0
        }
    }

    #[test]
    fn a_name_is_one_machine_s_while_it_lives_and_free_after() {
        let runtime = Scratch::new("place");
        let place = Place::of(&runtime, "web", NOBODY).unwrap();
        let _listener = place.listen().unwrap();
        let taken = Place::of(&runtime, "web", NOBODY).unwrap_err();
        assert_eq!(
            taken.to_string(),
            format!("a machine named web runs already (pid {})", std::process::id())
        );
        assert!(is_running(&runtime.all(), "web"));
        drop(place);
        assert!(runtime.is_empty());
        // A dead one has left its directory and its socket, and nobody holds its lock.
        let all = runtime.all();
        let web = all.make("web").unwrap();
        write!(web.file("lock", Opening::New).unwrap(), "1").unwrap();
        drop(UnixListener::bind(web.path().join("control")).unwrap());
        drop(UnixListener::bind(web.path().join("vsock")).unwrap());
        assert!(!is_running(&all, "web"));
        let place = Place::of(&runtime, "web", NOBODY).unwrap();
        place.listen().unwrap();
        place.listen_for_vsock().unwrap();
        drop(place);
        assert!(runtime.is_empty());
    }

    #[test]
    fn ports_of_the_host_are_sockets_in_the_machine_s_place_and_go_with_it() {
        let runtime = Scratch::new("vsock");
        let place = Place::of(&runtime, "web", NOBODY).unwrap();
        let listener = place.listen_for_vsock().unwrap();
        let path = place.directory.path().to_owned();
        assert_eq!(fs::metadata(path.join("vsock")).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(path.join("vsock")).unwrap();
        listener.accept().unwrap();
        let ports = place.vsock_ports().unwrap();
        let refused = |port| ports.connect(port).map(drop).unwrap_err().raw_os_error();
        assert_eq!(refused(7), Some(libc::ENOENT));
        let at = |port: u32| path.join(format!("vsock_{port}"));
        let program = UnixListener::bind(at(7)).unwrap();
        let mut stream = UnixStream::from(ports.connect(7).unwrap());
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        program.accept().unwrap();
        // Nobody waits for a program that lets nobody in.
        let full = std::iter::repeat_with(|| ports.connect(7)).find_map(Result::err);
        assert_eq!(full.unwrap().raw_os_error(), Some(libc::EAGAIN));
        drop(program);
        assert_eq!(refused(7), Some(libc::ECONNREFUSED));
        // A link leads nowhere, and a file is no socket.
        std::os::unix::fs::symlink("vsock", at(8)).unwrap();
        fs::write(at(9), "").unwrap();
        for port in [8, 9] {
            assert_eq!(ports.connect(port).unwrap_err().to_string(), "it is no socket");
        }
        drop(place);
        assert!(runtime.is_empty());
    }

    #[test]
    fn what_the_dead_left_goes_and_the_living_stay() {
        let runtime = Scratch::new("sweep");
        let lives = Place::of(&runtime, "lives", NOBODY).unwrap();
        let died = Place::of(&runtime, "died", NOBODY).unwrap();
        drop(died.listen().unwrap());
        // As after SIGKILL: nobody holds the lock.
        let died = std::mem::ManuallyDrop::new(died);
        flock(&died._lock, FlockOperation::Unlock).unwrap();
        let all = runtime.all();
        sweep_in(&runtime, &all);
        assert!(is_running(&all, "lives") && all.open("died").is_err());
        drop(lives);
        assert!(runtime.is_empty());
    }

    #[test]
    fn who_sweeps_waits_for_the_machine_of_a_dead_keeper_alone() {
        let runtime = Scratch::new("orphans");
        let mut child = std::process::Command::new("sleep").arg("0.1").spawn().unwrap();
        let lives = Place::of(&runtime, "lives", std::process::id()).unwrap();
        let mut died = Place::of(&runtime, "died", child.id()).unwrap();
        died._lock.set_len(0).unwrap();
        io::Seek::rewind(&mut died._lock).unwrap();
        write!(died._lock, "{NOBODY} {}", child.id()).unwrap();
        wait_for_orphans(&runtime.all());
        assert!(!is_alive(child.id()) && is_alive(std::process::id()));
        child.wait().unwrap();
        drop((lives, died));
    }

    #[test]
    fn who_looks_takes_no_name() {
        let runtime = Scratch::new("looks");
        let stop = std::sync::atomic::AtomicBool::new(false);
        let taken = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let _ = runtime.open(MACHINES).is_ok_and(|all| is_running(&all, "web"));
                    }
                });
            }
            let taken = (0..500).try_for_each(|_| Place::of(&runtime, "web", NOBODY).map(drop));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            taken
        });
        taken.unwrap();
    }

    #[test]
    fn many_at_once_have_each_its_own() {
        let runtime = Scratch::new("race");
        let take = || {
            let mut number = 0;
            loop {
                match Place::of(&runtime, &format!("vm{number}"), NOBODY) {
                    Err(NameError::Taken { .. }) => number += 1,
                    taken => return taken.unwrap(),
                }
            }
        };
        for _ in 0..50 {
            let places: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let mut names: Vec<_> = places.iter().map(Place::name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), 4, "{names:?}");
            std::thread::scope(|scope| {
                places.into_iter().for_each(|place| drop(scope.spawn(|| drop(place))))
            });
        }
        assert!(runtime.is_empty());
    }

    #[test]
    fn a_later_machine_of_a_name_is_another() {
        let scratch = Scratch::new("holder");
        let all = scratch.all();
        let own = all.make("vm").unwrap();
        let mut lock = own.file("lock", Opening::New).unwrap();
        lock.write_all(b"10 11").unwrap();
        let holder = |pids| Holder { name: "vm".to_owned(), pids };
        let first = holder(Some((10, 11)));
        assert!(!first.is_in(&all), "nobody has the lock");
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(first.is_in(&all) && holder(None).is_in(&all));
        lock.set_len(0).unwrap();
        io::Seek::rewind(&mut lock).unwrap();
        lock.write_all(b"12 13").unwrap();
        assert!(!first.is_in(&all) && holder(Some((12, 13))).is_in(&all));
        own.remove_file("lock").unwrap();
        assert!(!holder(None).is_in(&all));
        all.remove_directory("vm").unwrap();
        scratch.0.remove_directory(MACHINES).unwrap();
    }
}
