//! Network namespaces (network_namespaces(7)): which one we are in, and how to do something in another one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::{Change, Netlink, Step, Wiring};
use crate::{Error, NetnsName, sys};

/// Where `ip netns` has its names.
const DIRECTORY: &str = "/run/netns";

fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// The namespace of the thread that looks.
const HERE: &str = "/proc/thread-self/ns/net";

/// Which network namespace: no two that exist at once have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct NamespaceId {
    pub(crate) dev: u64,
    pub(crate) inode: u64,
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
        Self::open(Path::new(HERE))
    }

    /// The one that `path` stands for: `/proc/PID/ns/net`, or what such a file is mounted on.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let found = file.metadata()?;
        Ok(Self { file, id: NamespaceId { dev: found.dev(), inode: found.ino() } })
    }

    /// The namespace `id`, where this process can find it: its own, one with a process in it, or one that is mounted
    /// somewhere, as `ip netns` does. A namespace that none of these shows is gone, with every link that it had.
    pub(crate) fn find(id: NamespaceId) -> Option<Self> {
        let at = |path: &Path| Self::open(path).ok().filter(|found| found.id == id);
        if let Some(here) = at(Path::new(HERE)) {
            return Some(here);
        }
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        // proc_pid_mountinfo(5): the fourth word is the root, here `net:[INODE]`, the fifth the mount point.
        let root = format!("net:[{}]", id.inode);
        let mut points = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(3);
            (words.next()? == root).then(|| words.next()).flatten()
        });
        let mounted = points.find_map(|point| at(Path::new(point)));
        let processes = || fs::read_dir("/proc").into_iter().flatten().flatten();
        mounted.or_else(|| processes().find_map(|process| at(&process.path().join("ns/net"))))
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
        match Self::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // A file that nothing is mounted on is none: setns(2) would refuse it with bare words.
            Ok(found) if !found.is_namespace()? => {
                Err(io::Error::other(format!("{} is a file, and no namespace", path.display())))
            }
            other => other.map(Some),
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
        if Self::here().is_ok_and(|here| here.id == self.id) {
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

    /// As [`run`](Self::run), for a `call` that tells steps: each is told on this thread, while the other one waits.
    pub(crate) fn run_telling<T: Send>(
        &self,
        tell: &mut dyn FnMut(&Step),
        call: impl FnOnce(&mut dyn FnMut(&Step)) -> T + Send,
    ) -> io::Result<T> {
        let (steps, told_steps) = mpsc::channel::<Step>();
        let (told, wait) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let inside = move || {
                self.enter()?;
                Ok(call(&mut |step| {
                    // An error says that `tell` panicked, which goes on once this thread is done.
                    let _ = steps.send(step.clone()).map(|()| wait.recv());
                }))
            };
            let thread = scope.spawn(inside);
            // Ends when `call` has, which owns the other end.
            for step in told_steps {
                tell(&step);
                let _ = told.send(());
            }
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// The namespace `name`, made where there is none. One that we made goes with the last wirevm that is in it; its links go
/// with it, once nobody else holds it.
pub(crate) fn join(
    wiring: &mut Wiring,
    name: &NetnsName,
    tell: &mut dyn FnMut(&Step),
) -> Result<Namespace, Error> {
    let error = |source| Error::Namespace { name: Some(name.to_string()), source };
    let what = format!("netns-{name}");
    let found = Namespace::named(name).map_err(error)?;
    // Where there is none, a record tells of one that somebody has deleted.
    if let Some(found) = found {
        wiring.join(&what)?;
        return Ok(found);
    }
    let made = Namespace::new().map_err(error)?;
    let mount = |wiring: &mut Wiring, tell: &mut dyn FnMut(&Step)| {
        let undo = Change::DeleteNamespace { name: name.to_string(), id: made.id };
        let command = format!("ip netns add {name}");
        let mount = |_: &mut Netlink| Ok(made.mount(name.as_str())?);
        wiring.make_by(mount, command, Some(undo), "the host's end is apart from all else in it", tell)
    };
    if !wiring.share(&what, tell, mount)? {
        // Somebody deleted the one that another wirevm made, and is still in: this one is ours alone.
        mount(wiring, tell)?;
    }
    Ok(made)
}

/// Takes the name away from the namespace `id`, and leaves another one that has the name now.
pub(super) fn delete(name: &str, id: NamespaceId) -> io::Result<()> {
    let path = path_of(name);
    let found = Namespace::open(&path)?;
    if found.id == id {
        rustix::mount::unmount(&path, UnmountFlags::DETACH)?;
    } else if found.is_namespace()? {
        return Ok(());
    }
    // Also where it ended between making the file and mounting on it.
    fs::remove_file(&path)
}

/// The line that does in the namespace `name` what `command` does here.
pub(crate) fn line_in(name: &NetnsName, command: &str) -> String {
    match command.split_once(' ') {
        Some((program @ ("ip" | "bridge"), rest)) => format!("{program} -n {name} {rest}"),
        _ => format!("ip netns exec {name} {command}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_said_for_its_namespace() {
        let name = "vpn".parse().unwrap();
        for (here, there) in [
            ("ip link set dev tap0 up", "ip -n vpn link set dev tap0 up"),
            ("bridge vlan add dev tap0 vid 5", "bridge -n vpn vlan add dev tap0 vid 5"),
            ("sysctl -w net.ipv4.ip_forward=1", "ip netns exec vpn sysctl -w net.ipv4.ip_forward=1"),
        ] {
            assert_eq!(line_in(&name, here), there);
        }
    }
}
