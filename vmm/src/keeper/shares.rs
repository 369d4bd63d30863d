//! Directories of the host in the guest: a `virtiofsd` for each, which is another process than the keeper, which never touches guest
//! memory, and than the machine, which has no path. The machine's end of its socket is the machine's; here is its process.
//!
//! Nothing is left of one: it is killed with all that it has started at the end of the run, the kernel kills it when the keeper is
//! gone, and it ends by itself when the machine is. Its socket has a name for as long as it takes to connect.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::{Access, access};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, geteuid, getpid, kill_process_group};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::{CapabilitySet, capabilities};
use vmm::MachineConfig;
use vmm::config::{MemoryConfig, ShareConfig};

use super::child::{Child, Death, signal_name};
use super::jail::{Jail, Step};
use super::virtiofsd::{NotFound, PACKAGES, Start, Virtiofsd};

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    #[error("two directories are shared by the tag {0:?}")]
    TagTwice(String),
    #[error("memory that is mergeable cannot be shared, and --share takes that")]
    Mergeable,
    #[error("cannot share {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error(transparent)]
    NotFound(NotFound),
    #[error("cannot make a socket for virtiofsd")]
    Socket(#[source] io::Error),
    #[error("cannot start {program}")]
    Start { program: String, source: io::Error },
    #[error("cannot give virtiofsd a user namespace, without which it takes root")]
    OwnRoot(#[source] io::Error),
    #[error("cannot have {} be read-only for virtiofsd", .0.display())]
    ReadOnly(PathBuf, #[source] io::Error),
    #[error("{program}, for {}, has ended with {death}", directory.display())]
    Ended { program: String, directory: PathBuf, death: String, source: io::Error },
}

impl ShareError {
    /// What the user can do about it.
    pub(crate) fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::TagTwice(_) => "give one another tag: --share DIR:TAG".into(),
            Self::Mergeable => "drop mergeable=".into(),
            Self::Directory(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "name a directory that you may read, or run as root".into()
            }
            Self::Directory(..) => "name a directory that is there".into(),
            Self::NotFound(NotFound::Nowhere | NotFound::Unknown(_)) => PACKAGES.into(),
            Self::NotFound(NotFound::Start(..)) | Self::Start { .. } => {
                "is it a program for this machine, that you may start?".into()
            }
            Self::Socket(_) => "set TMPDIR to a directory that you can write to".into(),
            Self::OwnRoot(_) => "run as root, or allow users their namespaces (sysctl -w kernel.unprivileged_userns_clone=1, user.max_user_namespaces; \
                 on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0)"
                .into(),
            Self::ReadOnly(..) => {
                "take a kernel of Linux 5.12 or later, and in a container the capability SYS_ADMIN; or drop ro".into()
            }
            Self::Ended { .. } => "see what it says; in a container, it may need the capability SYS_ADMIN".into(),
        })
    }
}

/// The processes, in the order of the shares. Dropped, they are gone.
#[derive(Debug, Default)]
pub(super) struct Shares(Vec<Share>);

/// One of them.
#[derive(Debug)]
pub(super) struct Share {
    tag: String,
    directory: PathBuf,
    program: String,
    /// The first of a process group.
    process: Child,
    group: Pid,
    /// What it says.
    said: File,
    /// The last of that.
    words: String,
    ended: bool,
}

/// What came of listening to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// Words, and there may be more.
    Some,
    /// Nothing at present.
    Nothing,
    /// There never is more.
    All,
}

/// How long after its socket is closed a process may be there: the first of two waits for the other.
const LINGERS: Duration = Duration::from_millis(200);
/// How long one that is killed has for its end.
const KILLED: Duration = Duration::from_secs(2);
/// How much of what it said last is kept, in bytes.
const WORDS_MAX: usize = 1024;

impl Shares {
    /// Starts one for each of `shares`; with it comes the machine's end of its socket.
    ///
    /// # Errors
    /// A directory cannot be shared, or there is no `virtiofsd`.
    pub(super) fn start(
        shares: &[ShareConfig],
        memory: &MemoryConfig,
    ) -> Result<(Self, Vec<UnixStream>), ShareError> {
        let (mut started, mut sockets) = (Self::default(), Vec::new());
        if shares.is_empty() {
            return Ok((started, sockets));
        }
        if memory.mergeable {
            return Err(ShareError::Mergeable);
        }
        for (at, share) in shares.iter().enumerate() {
            if shares[..at].iter().any(|other| other.tag == share.tag) {
                return Err(ShareError::TagTwice(share.tag.clone()));
            }
        }
        let directories =
            shares.iter().map(|share| directory(&share.directory)).collect::<Result<Vec<_>, _>>()?;
        let virtiofsd = Virtiofsd::find().map_err(ShareError::NotFound)?;
        for (share, directory) in shares.iter().zip(directories) {
            let (share, socket) = Share::start(share, directory, &virtiofsd)?;
            started.0.push(share);
            sockets.push(socket);
        }
        Ok((started, sockets))
    }

    /// Each process, as a descriptor that is readable once it has ended, and by which what it says is read.
    pub(super) fn watched(&self) -> Vec<[RawFd; 2]> {
        self.0.iter().map(|share| [share.process.as_raw_fd(), share.said.as_raw_fd()]).collect()
    }

    /// What number `at` says is heard: whether it may ever say more.
    pub(super) fn hear(&mut self, at: usize) -> bool {
        self.0.get_mut(at).is_some_and(|share| share.hear() != Heard::All)
    }

    /// Number `at` has ended.
    pub(super) fn ended(&mut self, at: usize) {
        let Some(share) = self.0.get_mut(at) else { return };
        share.hear_last();
        let (death, usual) = words_of(share.wait());
        let Share { tag, words, .. } = share;
        let last = words
            .lines()
            .last()
            .filter(|_| !usual)
            .map(|line| format!("; the last that it said: {line}"))
            .unwrap_or_default();
        // It ends of itself where the machine does.
        let level = if usual { log::Level::Info } else { log::Level::Warn };
        log::log!(level, "the virtiofsd of the share {tag} has ended with {death}{last}");
    }

    /// Number `at` is of no use to the machine, and has the guest's memory as long as it runs.
    pub(super) fn lost(&self, at: usize) {
        let Some(share) = self.0.get(at).filter(|share| !share.ended) else { return };
        log::warn!("the virtiofsd of the share {} does not do its work, and is killed", share.tag);
        share.kill();
    }

    /// Kills all of them, and does not wait for their ends.
    pub(super) fn kill(&self) {
        self.0.iter().for_each(Share::kill);
    }

    /// `config` with memory that other processes can map, where there are shares and it has other memory.
    pub(super) fn memory_for(&self, config: &MachineConfig) -> Option<MachineConfig> {
        if self.0.is_empty() || config.memory.shared {
            return None;
        }
        log::info!("the guest's memory is shared (--memory shared=on) with the virtiofsd of each --share");
        let memory = MemoryConfig { shared: true, ..config.memory };
        Some(MachineConfig { memory, ..config.clone() })
    }

    /// Why the machine could not talk to one of them, where that is because it has ended, or is about to.
    pub(super) fn why(&mut self) -> Option<ShareError> {
        let until = Instant::now() + LINGERS;
        while !self.0.is_empty()
            && !self.0.iter().any(|share| share.process.has_ended())
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let share = self.0.iter_mut().find(|share| !share.ended && share.process.has_ended())?;
        share.hear_last();
        let (death, usual) = words_of(share.wait());
        if usual {
            // For the machine was gone before.
            return None;
        }
        let words = share.words.trim().to_owned();
        let source =
            io::Error::other(if words.is_empty() { "it has said nothing".to_owned() } else { words });
        Some(ShareError::Ended {
            program: share.program.clone(),
            directory: share.directory.clone(),
            death,
            source,
        })
    }
}

impl Drop for Shares {
    /// All of them first, so that none waits for another.
    fn drop(&mut self) {
        self.kill();
    }
}

impl Share {
    fn start(
        config: &ShareConfig,
        directory: PathBuf,
        virtiofsd: &Virtiofsd,
    ) -> Result<(Self, UnixStream), ShareError> {
        let socket = |error: rustix::io::Errno| ShareError::Socket(error.into());
        let (listener, ours) = connection().map_err(ShareError::Socket)?;
        let (said, says) = pipe_with(PipeFlags::CLOEXEC).map_err(socket)?;
        rustix::io::ioctl_fionbio(&said, true).map_err(socket)?;

        let own_root = !geteuid().is_root();
        let namespaces = own_root
            || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        // By the kernel where that can be, for then no bug of virtiofsd's writes.
        let by_mount = config.read_only && (namespaces || !virtiofsd.can_be_read_only());
        // The root is no mount that could be made the root of a namespace: it is that.
        let sandbox = namespaces && directory != Path::new("/");
        let start =
            Start { directory: &directory, namespaces: sandbox, read_only: config.read_only && !by_mount };
        let mut command = virtiofsd.command(&start);
        command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(says);
        let jail = Jail { own_root, read_only: by_mount.then(|| directory.clone()), keeper: getpid() };
        let child = jail.spawn(&mut command);
        // The other end of the pipe is the process's alone.
        drop(command);
        let mut said = File::from(said);
        let child = child.map_err(|source| {
            let mut step = [0];
            let step = said.read(&mut step).ok().and_then(|_| Step::of(step[0]));
            match step {
                Some(Step::OwnRoot) => ShareError::OwnRoot(source),
                Some(Step::ReadOnly) => ShareError::ReadOnly(directory.clone(), source),
                Some(Step::Rest) | None => ShareError::Start { program: virtiofsd.to_string(), source },
            }
        })?;
        let group = Pid::from_child(&child);
        let process = Child::new(group)
            .map_err(|source| ShareError::Start { program: virtiofsd.to_string(), source })?;
        log::info!("{virtiofsd} shares {} by the tag {}", directory.display(), config.tag);
        let (tag, program) = (config.tag.clone(), virtiofsd.to_string());
        let share =
            Self { tag, directory, program, process, group, said, words: String::new(), ended: false };
        Ok((share, ours))
    }

    /// Hears a piece of what it says. Who is shown it are those that asked for more words (`-v`).
    fn hear(&mut self) -> Heard {
        let mut bytes = [0; 1024];
        match self.said.read(&mut bytes) {
            Ok(0) => Heard::All,
            Ok(len) => {
                let text = String::from_utf8_lossy(&bytes[..len]);
                text.lines().for_each(|line| log::info!("the virtiofsd of the share {}: {line}", self.tag));
                self.words.push_str(&text);
                let mut over = self.words.len().saturating_sub(WORDS_MAX);
                while !self.words.is_char_boundary(over) {
                    over += 1;
                }
                self.words.drain(..over);
                Heard::Some
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Heard::Nothing,
            Err(_) => Heard::All,
        }
    }

    /// Hears what a process has said that has ended; others that it started may say more, and are not listened to for ever.
    fn hear_last(&mut self) {
        let _ = (0..64).take_while(|_| self.hear() == Heard::Some).count();
    }

    /// Waits for its end, after which nothing that it has started is left.
    fn wait(&mut self) -> Death {
        self.kill();
        self.ended = true;
        self.process.wait()
    }

    /// Kills it with all that it has started.
    fn kill(&self) {
        if !self.ended {
            // It is there until it is waited for, and the group's number with it.
            let _ = kill_process_group(self.group, Signal::KILL);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.kill();
        // One that waits for a disk, or for a server, ends when that answers: by the kernel, which knows that it is killed.
        if !self.ended && !self.process.ends_within(KILLED) {
            let (id, place) = (self.process.id(), self.directory.display());
            log::warn!(
                "the virtiofsd of {place} is killed, and has not ended yet: process {id} waits for the host's disk"
            );
            self.process.leave();
        }
    }
}

/// In words; and whether it is how it ends when it is not needed any more.
fn words_of(death: Death) -> (String, bool) {
    match death {
        Death::Signal(signal) => (signal_name(signal), false),
        Death::Exit(status) => (format!("status {status}"), status == 0),
    }
}

/// The path of a directory that can be shared.
fn directory(path: &Path) -> Result<PathBuf, ShareError> {
    let failed = |error| ShareError::Directory(path.to_owned(), error);
    let found = fs::canonicalize(path).map_err(failed)?;
    if !fs::metadata(&found).map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    access(&found, Access::READ_OK | Access::EXEC_OK).map_err(|error| failed(error.into()))?;
    Ok(found)
}

/// A socket that listens, as either `virtiofsd` wants it, and the end that is connected to it. Only who listens can be connected to, and
/// only by a name: it is in a directory that nobody else can enter, and both are gone when this returns.
fn connection() -> io::Result<(UnixListener, UnixStream)> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let place = std::env::temp_dir().join(format!(".wirevm-{:016x}", u64::from_ne_bytes(random)));
    DirBuilder::new().mode(0o700).create(&place)?;
    let connect = || {
        let directory = File::open(&place)?;
        // However long the path is, a socket's address has 108 bytes.
        let name = format!("/proc/self/fd/{}/socket", directory.as_raw_fd());
        let listener = UnixListener::bind(&name)?;
        let ours = UnixStream::connect(&name);
        fs::remove_file(&name)?;
        Ok((listener, ours?))
    };
    let connected = connect();
    fs::remove_dir(&place)?;
    connected
}
