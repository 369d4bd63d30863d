//! Network namespaces (network_namespaces(7)): which one we are in, and how to do something in another one.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::Step;

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
