//! Network namespaces that a test makes, and that go with it.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace; it goes when the last clone is dropped, or with the test's process.
#[derive(Clone)]
pub struct Netns(Arc<Holder>);

/// The process that keeps the namespace: it waits for the end of its standard input, which ends with us at the latest.
struct Holder {
    child: Child,
    /// It has a `/run` of its own too.
    own_run: bool,
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Netns {
    /// Makes one with `lo` up, or says why not: it takes root.
    pub fn new() -> Result<Self, String> {
        Self::make(false)
    }

    /// The same, with an empty `/run` for all that runs in it: the namespaces that `ip netns` names are its own.
    pub fn with_own_run() -> Result<Self, String> {
        Self::make(true)
    }

    fn make(own_run: bool) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".into());
        }
        let mount = if own_run { "mount -t tmpfs run /run &&" } else { "" };
        let mut child = Command::new("unshare")
            .args(if own_run { &["--net", "--mount"][..] } else { &["--net"] })
            .args(["sh", "-c", &format!("{mount} ip link set lo up && echo ready && exec cat")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start unshare: {e}"))?;
        let mut ready = [0; 6];
        let made = child.stdout.take().expect("piped").read_exact(&mut ready);
        let netns = Self(Arc::new(Holder { child, own_run }));
        made.map_err(|_| "this machine makes no network namespaces".to_owned())?;
        Ok(netns)
    }

    /// The process that holds it, as `ip link` takes a namespace.
    pub fn pid(&self) -> u32 {
        self.0.child.id()
    }

    /// A command that runs in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid()));
        if self.0.own_run {
            command.arg(format!("--mount=/proc/{}/ns/mnt", self.pid()));
        }
        command.args(["--", program]);
        command
    }

    /// Runs `work` on a thread in it: a socket that it opens is one of this namespace.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).expect("its holder lives");
        std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may");
            work()
        })
    }

    /// Runs a shell command in it that must succeed, and returns what it printed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.try_sh(script).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Runs a shell command in it, and returns what it printed, or how it failed.
    pub fn try_sh(&self, script: &str) -> Result<String, String> {
        let mut command = self.command("sh");
        let output = command.args(["-c", script]).stdin(Stdio::null()).output().expect("nsenter runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => Ok(text),
            false => Err(format!("{script:?} failed with {}\n{text}{errors}", output.status)),
        }
    }

    /// Fails unless links, addresses and routes are as [`Self::state`] told before, or become so at once: the kernel tells a
    /// lost carrier a moment late.
    #[track_caller]
    pub fn is_as(&self, before: &str) {
        let until = Instant::now() + Duration::from_secs(3);
        while self.state() != before && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        let now = self.state();
        assert!(now == before, "the links are not as before\n--- before\n{before}\n--- now\n{now}");
    }

    /// Links, addresses and routes, without what changes by itself (counters, lifetimes).
    pub fn state(&self) -> String {
        self.sh("ip -d link; ip addr; ip route; ip -6 route; ip neigh | sed 's/ [A-Z]*$//'")
    }
}
