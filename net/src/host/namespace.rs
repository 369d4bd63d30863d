//! Network namespaces (network_namespaces(7)): which one we are in, and how to do something in another one.

use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::{Change, Netlink, Wiring};
use crate::error::{ChangeKind, HostError};
use crate::text::word;
use crate::{Error, NetnsName, sys};

/// Where `ip netns` has its names.
const DIRECTORY: &str = "/run/netns";

fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// The namespace of the thread that looks.
const HERE: &str = "/proc/thread-self/ns/net";

/// Which network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct NamespaceId {
    /// Of its file, with `inode`: no two namespaces that exist at once have the same. The next one soon has those of one that
    /// is gone.
    pub(crate) dev: u64,
    pub(crate) inode: u64,
    /// No two of one boot have the same (`SO_NETNS_COOKIE`, socket(7)); none before Linux 5.14.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cookie: Option<u64>,
    /// The inode of its [`SEEN`]. No two namespaces that exist at once have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seen: Option<u64>,
}

/// What everybody may look at in `/proc/PID`: it tells that a process is not in a namespace where its file may not be looked at.
const SEEN: &str = "net/dev";

impl NamespaceId {
    /// True where both are of one namespace, as far as can be told: a cookie that is not known is any.
    fn is_of_the_same(self, other: Self) -> bool {
        let is_another = |(own, other)| own != other;
        (self.dev, self.inode) == (other.dev, other.inode)
            && !self.cookie.zip(other.cookie).is_some_and(is_another)
    }
}

impl From<Metadata> for NamespaceId {
    /// By its file alone.
    fn from(file: Metadata) -> Self {
        Self { dev: file.dev(), inode: file.ino(), cookie: None, seen: None }
    }
}

/// As in the name of a file, without a dash.
impl fmt::Display for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inode)?;
        self.cookie.map_or(Ok(()), |cookie| write!(f, ".{cookie}"))
    }
}

/// The cookie of the namespace that the thread is in, and its inode of [`SEEN`]; none where the kernel has no such.
fn marks_here() -> io::Result<(Option<u64>, Option<u64>)> {
    let cookie = match sys::network_cookie(UnixDatagram::unbound()?.as_fd()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => None,
        cookie => Some(cookie?),
    };
    let seen = fs::metadata(Path::new("/proc/thread-self").join(SEEN));
    Ok((cookie, seen.ok().map(|file| file.ino())))
}

/// A network namespace, which stays as long as this is held.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
    id: NamespaceId,
}

impl Namespace {
    /// The thread's own.
    pub(crate) fn here() -> io::Result<Self> {
        let mut here = Self::unmarked(Path::new(HERE))?;
        (here.id.cookie, here.id.seen) = marks_here()?;
        Ok(here)
    }

    /// The one that `path` stands for: `/proc/PID/ns/net`, or what such a file is mounted on.
    fn unmarked(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let id = file.metadata()?.into();
        Ok(Self { file, id })
    }

    /// With what tells it from the next one with its file: a socket has the cookie of the namespace that it was made in.
    ///
    /// # Errors
    /// It may not be entered.
    fn marked(mut self) -> io::Result<Self> {
        (self.id.cookie, self.id.seen) = self.run(marks_here)??;
        Ok(self)
    }

    /// The namespace `id`, and where it was found: our own, one with a process in it, or one that is mounted somewhere, as `ip netns`
    /// does. None
    /// where none of these is it: then it is gone, with every link that it had.
    ///
    /// # Errors
    /// Something is not to be looked at, and so it may be there: the processes of others, without `CAP_SYS_PTRACE`.
    pub(crate) fn find(id: NamespaceId) -> io::Result<Option<(Self, PathBuf)>> {
        // Two that exist differ in their files: only one of them is opened.
        let is_at = |path: &Path| Ok::<_, io::Error>(id.is_of_the_same(fs::metadata(path)?.into()));
        let is_it = |path: &Path| {
            let found = Self::unmarked(path)?.marked()?;
            Ok(found.id.is_of_the_same(id).then(|| (found, path.to_owned())))
        };
        if is_at(Path::new(HERE))? {
            return is_it(Path::new(HERE));
        }
        // proc_pid_mountinfo(5): the fourth word is the root, here `net:[INODE]`, the fifth the mount point.
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let root = format!("net:[{}]", id.inode);
        for line in mounts.lines() {
            let mut words = line.split(' ').skip(3);
            if let Some(point) = words.next().filter(|&word| word == root).and_then(|_| words.next())
                && is_at(Path::new(point))?
            {
                return is_it(Path::new(point));
            }
        }
        let mut hidden = None;
        for process in fs::read_dir("/proc")? {
            let process = process?;
            if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
                continue;
            }
            let path = process.path();
            let seen = fs::metadata(path.join(SEEN)).ok().map(|file| file.ino());
            if id.seen.zip(seen).is_some_and(|(own, other)| own != other) {
                continue;
            }
            match is_at(&path.join("ns/net")) {
                Ok(true) => return is_it(&path.join("ns/net")),
                Ok(false) => {}
                // It has ended.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
                Err(error) => hidden = Some(error),
            }
        }
        hidden.map_or(Ok(None), Err)
    }

    /// A new, empty one, which has no name yet.
    fn new() -> io::Result<Self> {
        let made = || {
            sys::unshare_network()?;
            Self::here()
        };
        thread::scope(|scope| scope.spawn(made).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The one that `ip netns` calls `name`; none where there is none.
    pub(crate) fn named(name: &NetnsName) -> io::Result<Option<Self>> {
        let path = path_of(name.as_str());
        match Self::unmarked(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // A file that nothing is mounted on is none: setns(2) would refuse it with bare words.
            Ok(found) if !found.is_namespace()? => {
                Err(io::Error::other(format!("{} is a file, and no namespace", path.display())))
            }
            found => found?.marked().map(Some),
        }
    }

    fn is_namespace(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstatfs(&self.file)?.f_type == libc::NSFS_MAGIC)
    }

    /// A second handle on the same one.
    pub(crate) fn again(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, id: self.id })
    }

    pub(crate) fn id(&self) -> NamespaceId {
        self.id
    }

    /// Runs `call` inside: on this thread where it is inside already, else on one of its own, so that this thread never
    /// leaves its namespace (it may not have the right to come back).
    ///
    /// # Errors
    /// Those of setns(2).
    pub(crate) fn run<T: Send>(&self, call: impl FnOnce() -> T + Send) -> io::Result<T> {
        if fs::metadata(HERE).is_ok_and(|here| self.id.is_of_the_same(here.into())) {
            return Ok(call());
        }
        let inside = || {
            self.enter()?;
            Ok(call())
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Gives it a name, as `ip netns add` does: a file of that name which it is mounted on.
    fn mount(&self, name: &str) -> io::Result<()> {
        DirBuilder::new().mode(0o755).recursive(true).create(DIRECTORY)?;
        let path = path_of(name);
        OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path)?;
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::mount::mount_bind(own, &path).inspect_err(|_| drop(fs::remove_file(&path)))?;
        Ok(())
    }

    /// Moves this thread, which is about to end, inside.
    fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?)
    }
}

/// The namespace `name`, made where there is none. One that we made goes with the last wirevm that is in it; its links go
/// with it, once nobody else holds it.
pub(crate) fn join(wiring: &mut Wiring, name: &NetnsName) -> Result<Namespace, Error> {
    let error = |source| HostError::Namespace { name: Some(name.to_string()), source };
    let what = format!("netns-{name}");
    let found = Namespace::named(name).map_err(error)?;
    // Where there is none, a record tells of one that somebody has deleted.
    if let Some(found) = found {
        wiring.join(&what)?;
        return Ok(found);
    }
    let made = Namespace::new().map_err(error)?;
    let mount = |wiring: &mut Wiring| {
        let undo = Change::DeleteNamespace { name: name.to_string(), id: made.id };
        let command = format!("ip netns add {name}");
        let mount = |_: &mut Netlink| Ok(made.mount(name.as_str())?);
        wiring.make_by(
            mount,
            ChangeKind::NamespaceName,
            command,
            Some(undo),
            "the host's end is apart from all else in it",
        )
    };
    if !wiring.share(&what, mount)? {
        // Somebody deleted the one that another wirevm made, and is still in: this one is ours alone.
        mount(wiring)?;
    }
    Ok(made)
}

/// Takes the name away from the namespace `id`, and leaves another one that has the name now.
pub(super) fn delete(name: &str, id: NamespaceId) -> io::Result<()> {
    let path = path_of(name);
    let found = Namespace::unmarked(&path)?;
    if found.is_namespace()? {
        if !found.id.is_of_the_same(id) || !found.marked()?.id.is_of_the_same(id) {
            return Ok(());
        }
        rustix::mount::unmount(&path, UnmountFlags::DETACH)?;
    }
    // Also where it ended between making the file and mounting on it.
    fs::remove_file(&path)
}

/// The line that does what `command` does here in the namespace that was found at `path`.
pub(crate) fn line_at(path: &Path, command: &str) -> String {
    let name = path.strip_prefix(DIRECTORY).ok().and_then(Path::to_str).and_then(|name| name.parse().ok());
    match (name, command.strip_prefix("# ")) {
        _ if path == Path::new(HERE) => command.to_owned(),
        (Some(name), _) => line_in(&name, command),
        (None, Some(rest)) => format!("# in {}: {rest}", word(&path.to_string_lossy())),
        (None, None) => format!("nsenter --net={} {command}", word(&path.to_string_lossy())),
    }
}

/// The line that does in the namespace `name` what `command` does here.
pub(crate) fn line_in(name: &NetnsName, command: &str) -> String {
    match command.split_once(' ') {
        Some(("#", rest)) => format!("# in {name}: {rest}"),
        Some((program @ ("ip" | "bridge"), rest)) => format!("{program} -n {name} {rest}"),
        _ => format!("ip netns exec {name} {command}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_told_by_its_cookie_from_the_next_one_with_its_file() {
        let id = |inode, cookie| NamespaceId { dev: 4, inode, cookie, seen: None };
        let own = id(4026532177, Some(7));
        assert!(own.is_of_the_same(own) && own.is_of_the_same(id(4026532177, None)));
        assert!(!own.is_of_the_same(id(4026532177, Some(8))) && !own.is_of_the_same(id(4026532178, Some(7))));
        assert_eq!(
            (own.to_string(), id(4026532177, None).to_string()),
            ("4026532177.7".into(), "4026532177".into())
        );
    }

    #[test]
    fn a_line_is_said_for_where_its_namespace_is() {
        let process = "nsenter --net=/proc/7/ns/net";
        for (path, line, comment) in [
            (HERE, "ip link del dev br0".to_owned(), "# attach"),
            ("/run/netns/vpn", "ip -n vpn link del dev br0".to_owned(), "# in vpn: attach"),
            ("/proc/7/ns/net", format!("{process} ip link del dev br0"), "# in /proc/7/ns/net: attach"),
        ] {
            assert_eq!(line_at(Path::new(path), "ip link del dev br0"), line);
            assert_eq!(line_at(Path::new(path), "# attach"), comment);
        }
    }

    #[test]
    fn a_line_is_said_for_its_namespace() {
        let name = "vpn".parse().unwrap();
        for (here, there) in [
            ("ip link set dev tap0 up", "ip -n vpn link set dev tap0 up"),
            ("# attach to tap0", "# in vpn: attach to tap0"),
            ("bridge vlan add dev tap0 vid 5", "bridge -n vpn vlan add dev tap0 vid 5"),
            ("sysctl -w net.ipv4.ip_forward=1", "ip netns exec vpn sysctl -w net.ipv4.ip_forward=1"),
        ] {
            assert_eq!(line_in(&name, here), there);
        }
    }
}
