//! Network namespaces that a test makes, and that go with it.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

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
        let open =
            |kind: &str| File::open(format!("/proc/{}/ns/{kind}", self.pid())).expect("its holder lives");
        let (net, mounts) = (open("net"), self.0.own_run.then(|| open("mnt")));
        std::thread::spawn(move || {
            if let Some(mounts) = mounts {
                // SAFETY: from here on this thread has a working directory of its own, which is all.
                unsafe { unshare_unsafe(UnshareFlags::FS) }.expect("anybody may");
                move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount)).expect("root may");
            }
            move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may");
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

    /// All that wirevm could change: links, addresses, routes, VLANs, rules, switches, and the names and records in `/run`;
    /// without what changes by itself. Its `/run` must be its [own](Self::with_own_run).
    pub fn everything(&self) -> String {
        const SCRIPT: &str = "
            of() { ip $1 -d link; ip $1 address; ip $1 neigh show nud permanent; ip $1 route show table all; ip $1 -6 route show table all; }
            of; bridge vlan show; bridge fdb show | grep static | sort; nft list ruleset
            cd /proc/sys/net && grep -rs . ipv4/conf ipv4/ip_forward ipv6/conf | grep -Ev 'secret|tun./addr_gen' | sort
            ls -d /run/netns/* /run/wirevm/* 2>&- | grep -v /lock$
            for name in $(ls /run/netns 2>&-); do echo $name; of \"-n $name\"; done";
        let text = self.sh(SCRIPT);
        // What a set has learned of a guest's frames comes and goes with them; a route that expires has a link.
        let text = text.lines().filter(|line| !line.contains(" expires ") || line.contains(" dev "));
        let line = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let passes = |word: &str| word.ends_with("_timer") || word == "expires";
            let lasts = |word: &str| word.ends_with("sec") && word.starts_with(|c: char| c.is_ascii_digit());
            let stays = |&(at, word): &(usize, &&str)| !lasts(word) && (at == 0 || !passes(words[at - 1]));
            words.iter().enumerate().filter(stays).map(|(_, word)| *word).collect::<Vec<_>>().join(" ") + "\n"
        };
        // A kernel makes up its mind how a tun gets an address of IPv6 when somebody is attached to it.
        text.map(line).collect::<String>().replace("addrgenmode random", "addrgenmode eui64")
    }

    /// Waits until [`Self::everything`] stays as it is: the kernel tells of carriers a moment late, and for a second that an
    /// address is tentative (without a carrier, for ever).
    pub fn settled(&self) -> String {
        let until = Instant::now() + Duration::from_secs(3);
        let mut last = self.everything();
        loop {
            std::thread::sleep(Duration::from_millis(300));
            let now = self.everything();
            if now == last && (!now.contains(" tentative") || Instant::now() > until) {
                return now;
            }
            last = now;
        }
    }

    /// Fails with the lines that differ unless [`Self::everything`] is as `before`, or soon becomes so.
    #[track_caller]
    pub fn has_everything_as(&self, before: &str, when: &str) {
        self.compare(before, when, str::to_owned);
    }

    /// As [`Self::has_everything_as`], where a part was put back late: in another order then, and the kernel clears up some
    /// of a NIC that is down (its promiscuity) only when it is up again.
    #[track_caller]
    pub fn has_each_as(&self, before: &str, when: &str) {
        self.compare(before, when, |text| {
            let mut lines: Vec<_> =
                text.lines().map(|line| line.replace("promiscuity 1", "promiscuity 0")).collect();
            lines.sort();
            lines.join("\n")
        });
    }

    #[track_caller]
    fn compare(&self, before: &str, when: &str, view: impl Fn(&str) -> String) {
        let before = view(before);
        let until = Instant::now() + Duration::from_secs(5);
        let mut now = view(&self.everything());
        while now != before && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
            now = view(&self.everything());
        }
        // A text of thousands of lines, hundreds of times.
        if now == before {
            return;
        }
        let only = |a: &str, b: &str, sign| -> String {
            let lines = a.lines().filter(|line| !b.lines().any(|other| other == *line));
            lines.map(|line| format!("{sign} {line}\n")).collect()
        };
        let order = before.lines().zip(now.lines()).find(|(before, now)| before != now);
        let differ = only(&before, &now, '-') + &only(&now, &before, '+');
        panic!("{when}: the host is not as before\n{differ}first: {order:?}");
    }
}
