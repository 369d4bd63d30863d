//! The agent as the init of a small system: in namespaces of its own, with a root of busybox.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::agent::{agent_path, exec_at, output, wait_for_socket};
use harness::netns::Netns;
use harness::{TempDir, need, stock};
use wirevm_agent::config::Config;
use wirevm_agent::frame::{Decoder, FromAgent, Message, ToAgent};
use wirevm_agent::request::{self, Request};

use super::text;

const SOON: Duration = Duration::from_secs(30);

/// That system.
struct Guest {
    dir: TempDir,
    child: Child,
}

impl Guest {
    fn start(config: &[u8]) -> Result<Self, String> {
        Netns::new()?;
        let busybox = stock::resources().join("busybox");
        if !busybox.exists() {
            return Err("there is no busybox: run make setup".to_owned());
        }
        let dir = TempDir::new();
        for made in ["bin", "etc", "proc", "sys", "dev", "run", "tmp", ".wirevm"] {
            fs::create_dir(dir.path(made)).unwrap();
        }
        fs::copy(agent_path(), dir.path("init")).unwrap();
        fs::copy(busybox, dir.path("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "echo", "hostname", "id", "ip", "kill", "mount", "poweroff", "sleep", "stat", "ps",
            "ls",
        ] {
            symlink("busybox", dir.path("bin").join(applet)).unwrap();
        }
        dir.file("etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n");
        dir.file("etc/group", "web:x:34:\nlog:x:50:web\n");
        dir.file(".wirevm/config", config);
        // A debug build needs the host's libraries.
        let libraries =
            "for d in /lib /lib64 /usr/lib; do mkdir -p \"$0$d\"; mount --rbind $d \"$0$d\"; done";
        let script = format!(
            "{libraries}; exec env -i WIREVM_AGENT_UNIX=/agent PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot \"$0\" /init quiet"
        );
        let child = Command::new("unshare")
            .args([
                "--pid",
                "--mount",
                "--net",
                "--uts",
                "--ipc",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                &script,
            ])
            .arg(dir.path(""))
            .stdin(Stdio::null())
            .stderr(fs::File::create(dir.path("messages")).unwrap())
            .spawn()
            .map_err(|why| format!("cannot start unshare: {why}"))?;
        let guest = Self { dir, child };
        wait_for_socket(&guest.socket());
        Ok(guest)
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path("agent")
    }

    fn sh(&self, script: &str) -> String {
        let (status, out, err) = text(&output(&mut exec_at(&self.socket(), &[], &["sh", "-c", script]), b""));
        assert_eq!(status, Some(0), "{script}\n{out}{err}");
        out
    }

    /// The last frame that the agent answers to a request, and the output before it.
    fn ask(&self, request: &Request) -> (FromAgent, String) {
        let (last, said, _) = self.ask_and_stay(request);
        (last, said)
    }

    /// The same, with the connection, which is open.
    fn ask_and_stay(&self, request: &Request) -> (FromAgent, String, UnixStream) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut bytes = Vec::new();
        ToAgent::Request(request.to_bytes().unwrap()).encode(&mut bytes);
        std::io::Write::write_all(&mut stream, &bytes).unwrap();
        let (mut decoder, mut said) = (Decoder::default(), String::new());
        loop {
            let mut chunk = [0; 4096];
            let len = std::io::Read::read(&mut stream, &mut chunk).expect("an answer");
            assert_ne!(len, 0, "an answer");
            decoder.push(&chunk[..len]);
            while let Some(frame) = decoder.next::<FromAgent>().unwrap() {
                match frame {
                    FromAgent::Stdout(bytes) => said.push_str(&String::from_utf8_lossy(&bytes)),
                    FromAgent::Stderr(_) | FromAgent::Credit(_) => {}
                    last => return (last, said, stream),
                }
            }
        }
    }

    #[track_caller]
    fn ends(&mut self) {
        let until = Instant::now() + SOON;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "it goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("{}", fs::read_to_string(self.dir.path("messages")).unwrap_or_default());
        }
        // Never through a mount that is left over.
        assert!(!Path::new(&self.dir.path("proc/self")).exists());
    }
}

fn config() -> Config {
    Config { hostname: Some("guest".into()), ..Config::default() }
}

#[test]
fn an_init_mounts_what_each_system_has_and_powers_off_when_told() {
    let mut guest = need!(Guest::start(&config().to_bytes().unwrap()));
    assert_eq!(guest.sh("hostname"), "guest\n");
    let mounts = guest.sh("cat /proc/mounts");
    for mounted in [
        "/proc proc",
        "/sys sysfs",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/run tmpfs",
        "/tmp tmpfs",
        "/sys/fs/cgroup cgroup2",
    ] {
        assert!(mounts.contains(&format!(" {mounted} ")), "{mounted}\n{mounts}");
    }
    assert!(guest.sh("ip link show lo").contains("UP"), "lo is up");
    assert_eq!(
        guest.sh("stat -c %a /tmp /dev/shm; ls -l /dev/fd/0 >/dev/null && echo fd"),
        "1777\n1777\nfd\n"
    );
    // Where this test may ask for that.
    let spared = Command::new("sh")
        .args(["-c", "echo -1000 > /proc/self/oom_score_adj"])
        .stderr(Stdio::null())
        .status();
    let own = if spared.is_ok_and(|status| status.success()) { "-1000" } else { "0" };
    assert_eq!(guest.sh("cat /proc/1/oom_score_adj /proc/self/oom_score_adj"), format!("{own}\n0\n"));
    assert_eq!(guest.ask(&Request::Ready).0, FromAgent::Answer(Vec::new()));
    assert_eq!(guest.ask(&Request::Version).0, FromAgent::Answer(env!("CARGO_PKG_VERSION").into()));
    let (refused, _) = guest.ask(&Request::Main(request::Command::default()));
    assert_eq!(refused, FromAgent::Failed { status: 125, text: "the guest has no main command".into() });
    // Orphans are taken: no zombie is left.
    guest.sh("(sleep 0.1 &) ; (sh -c 'sleep 0.1 & exit' &); sleep 0.5");
    assert!(!guest.sh("ps -o stat").contains('Z'));
    assert_eq!(guest.ask(&Request::PowerOff).0, FromAgent::Answer(Vec::new()));
    guest.ends();
    let mut guest = Guest::start(&config().to_bytes().unwrap()).unwrap();
    // The words of busybox's own.
    let _ = output(&mut exec_at(&guest.socket(), &[], &["poweroff"]), b"");
    guest.ends();
}

#[test]
fn nobody_but_process_1_has_what_the_agent_listens_by() {
    // With the processes that look after the network.
    let guest = need!(Guest::start(&Config { network: true, ..config() }.to_bytes().unwrap()));
    let sockets = guest.sh("cat /proc/net/unix");
    let listens =
        |line: &&str| line.split_whitespace().nth(3) == Some("00010000") && line.ends_with(" /agent");
    let listener = sockets.lines().find(listens).expect("it listens").split_whitespace().nth(6).unwrap();
    // The session that runs this is one of them.
    let files = guest.sh("ls -l /proc/[0-9]*/fd || :");
    let mut process = "";
    let mut who = Vec::new();
    for line in files.lines() {
        match line.strip_suffix("/fd:") {
            Some(directory) => process = directory,
            None if line.ends_with(&format!("socket:[{listener}]")) => who.push(process),
            None => {}
        }
    }
    assert_eq!(who, ["/proc/1"], "{files}");
    assert_eq!(guest.ask(&Request::Ready).0, FromAgent::Answer(Vec::new()));
}

#[test]
fn the_main_command_starts_with_its_client_and_its_end_is_the_guest_s() {
    let command = request::Command {
        argv: ["sh", "-c", "echo $A $B; id -u; pwd; exit 6"].map(Into::into).into(),
        env: ["A=1", "B=2"].map(Into::into).into(),
        cwd: Some("/etc".into()),
        user: Some("web".into()),
        terminal: None,
    };
    let mut guest = need!(Guest::start(&Config { command, ..config() }.to_bytes().unwrap()));
    // Its directory, user and variables are those of other commands, too, which can have others.
    assert_eq!(guest.sh("id -G; pwd; echo $A $HOME"), "34 50\n/etc\n1 /srv\n");
    let other = &["-u", "0", "-w", "/", "-e", "A=9"];
    let (_, out, _) =
        text(&output(&mut exec_at(&guest.socket(), other, &["sh", "-c", "id -u; pwd; echo $A $B"]), b""));
    assert_eq!(out, "0\n/\n9 2\n");
    let attach = Request::Main(request::Command { env: vec!["B=3".into()], ..request::Command::default() });
    let (last, said, slow) = guest.ask_and_stay(&attach);
    assert_eq!((last, said.as_str()), (FromAgent::Exited(6), "1 3\n33\n/etc\n"));
    // Whoever has not read all of it yet has the guest wait: for more than the five seconds of other connections.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(guest.sh("echo still here"), "still here\n");
    drop(slow);
    guest.ends();
}

#[test]
fn a_command_has_its_time_at_power_off_and_its_end_is_told() {
    let script = "trap 'sleep 0.5; echo last; echo saved >/etc/saved; exit 4' TERM; echo begun >/etc/begun; \
        while :; do sleep 0.1; done";
    let command =
        request::Command { argv: ["sh", "-c", script].map(Into::into).into(), ..request::Command::default() };
    let mut guest = need!(Guest::start(&Config { command, ..config() }.to_bytes().unwrap()));
    let exec = Request::Exec(request::Command {
        argv: ["sh", "-c", "trap '' TERM; echo begun >/etc/other; while :; do sleep 0.1; done"]
            .map(Into::into)
            .into(),
        ..request::Command::default()
    });
    std::thread::scope(|scope| {
        let main = scope.spawn(|| guest.ask(&Request::Main(request::Command::default())));
        // One that does not hear it ends, too.
        let deaf = scope.spawn(|| guest.ask(&exec));
        let until = Instant::now() + SOON;
        while !(guest.dir.path("etc/begun").exists() && guest.dir.path("etc/other").exists()) {
            assert!(Instant::now() < until, "the commands do not begin");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(guest.ask(&Request::PowerOff).0, FromAgent::Answer(Vec::new()));
        assert_eq!(main.join().unwrap(), (FromAgent::Exited(4), "last\n".to_owned()));
        drop(deaf.join());
    });
    assert_eq!(fs::read_to_string(guest.dir.path("etc/saved")).unwrap(), "saved\n");
    guest.ends();
}

#[test]
fn a_guest_that_cannot_start_says_why() {
    let root = wirevm_agent::config::Root::VirtioFs { tag: "none".into(), overlay: true };
    let command = request::Command { argv: vec!["true".into()], ..request::Command::default() };
    let config = Config { root, command, modules: vec!["/none.ko".into()], ..config() };
    for (bytes, words) in [
        (
            config.to_bytes().unwrap(),
            &["cannot mount none (virtiofs) as the root", "modules that could not be loaded: /none.ko"][..],
        ),
        (b"wirevm config 0\0".to_vec(), &["cannot use /.wirevm/config", "another version"]),
    ] {
        let mut guest = need!(Guest::start(&bytes));
        for request in [Request::Ready, Request::Exec(config.command.clone())] {
            let (FromAgent::Failed { status: 125, text }, _) = guest.ask(&request) else {
                panic!("{request:?}")
            };
            for words in words {
                assert!(text.contains(words), "{text}");
            }
        }
        guest.ask(&Request::PowerOff);
        guest.ends();
    }
}

#[test]
fn processes_that_are_killed_end_neither_the_agent_nor_the_guest() {
    let guest = need!(Guest::start(&config().to_bytes().unwrap()));
    // All but process 1: those of the sessions, of the network, and the killer.
    let killed = output(&mut exec_at(&guest.socket(), &[], &["sh", "-c", "kill -9 -1"]), b"");
    assert_ne!(killed.status.code(), Some(0));
    assert_eq!(guest.sh("echo still here"), "still here\n");
    // To the kernel, signals from inside are nothing to process 1 that it does not ask for.
    guest.sh("kill -9 1; kill -SEGV 1; kill -HUP 1");
    assert_eq!(guest.sh("echo still here"), "still here\n");
}
