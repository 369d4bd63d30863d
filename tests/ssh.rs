//! `wirevm ssh`: the host's ssh, and how it gets into a guest.

use std::fs::{self, File, Permissions};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use harness::netns::Netns;
use harness::{TempDir, Vm, guest, handmade, need, puts, skip, wirevm, wirevm_path};
use rustix::fs::{FlockOperation, flock};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use vmm::MachineConfig;
use vmm::info::{MachineInfo, MachineState, NicInfo, VsockInfo};

const SOON: Duration = Duration::from_secs(30);

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

/// A machine called `web` that is played: there is its place with a socket that tells of it, and no guest.
struct Played {
    dir: TempDir,
    _lock: File,
}

impl Played {
    fn new(nics: Vec<NicInfo>) -> Self {
        let dir = TempDir::new();
        for part in ["run", "run/vm", "run/vm/web"] {
            fs::create_dir(dir.path(part)).unwrap();
            fs::set_permissions(dir.path(part), Permissions::from_mode(0o700)).unwrap();
        }
        let mut lock = File::create(dir.path("run/vm/web/lock")).unwrap();
        write!(lock, "{0} {0}", std::process::id()).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let info = MachineInfo {
            name: "web".to_owned(),
            state: MachineState::Running,
            pid: 1,
            machine_pid: 2,
            threads: Vec::new(),
            config: MachineConfig::new("vmlinuz"),
            memory: 1 << 20,
            vsock: Some(VsockInfo { cid: 3, socket: Some("vsock".into()) }),
            nics,
            started: 0,
            uptime: 0,
            version: String::new(),
        };
        let control = UnixListener::bind(dir.path("run/vm/web/control")).unwrap();
        let answer = json!({ "parameters": { "machine": info } });
        std::thread::spawn(move || {
            for mut client in control.incoming().map_while(Result::ok) {
                let answer = format!("{answer}\0");
                std::thread::spawn(move || {
                    let mut byte = [1];
                    while client.read(&mut byte).is_ok_and(|len| len == 1) {
                        if byte == [0] {
                            let _ = client.write_all(answer.as_bytes());
                        }
                    }
                });
            }
        });
        Self { dir, _lock: lock }
    }

    /// Has its guest accept one connection over vsock, and give this answer to the question for a port, or none, and close it then.
    /// Returns the question, and the guest's end.
    fn accepts(&self, answer: &'static str) -> std::thread::JoinHandle<(String, UnixStream)> {
        let listener = UnixListener::bind(self.dir.path("run/vm/web/vsock")).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            let asked = line(&mut stream);
            stream.write_all(answer.as_bytes()).unwrap();
            if answer.is_empty() {
                stream.shutdown(Shutdown::Both).unwrap();
            }
            (asked, stream)
        })
    }

    fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).env("WIREVM_RUNTIME_DIR", self.dir.path("run")).stdin(Stdio::null());
        command
    }

    /// `wirevm ssh-proxy web.wirevm PORT`, and the connection that it gives to ssh.
    fn proxy(&self, port: u16) -> Result<OwnedFd, String> {
        connection_of(&mut self.command(&wirevm_path(), &["ssh-proxy", "web.wirevm", &port.to_string()]))
    }

    /// A program `ssh` that prints its arguments, and is all that there is in a directory.
    fn path_with_ssh(&self) -> PathBuf {
        let path = self.dir.path("bin");
        fs::create_dir(&path).unwrap();
        let script = self.dir.file("bin/ssh", "#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit 7\n");
        fs::set_permissions(script, Permissions::from_mode(0o755)).unwrap();
        path
    }
}

/// A line, and nothing behind it.
fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && stream.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Takes the connection that a proxy hands over on standard output; else what it says.
fn connection_of(proxy: &mut Command) -> Result<OwnedFd, String> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = proxy.stdout(OwnedFd::from(theirs)).stderr(Stdio::piped()).spawn().unwrap();
    proxy.stdout(Stdio::null());
    let output = child.wait_with_output().unwrap();
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(255));
        return Err(said(&output));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [1];
    let came = recvmsg(&ours, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::empty()).unwrap();
    assert_eq!(came.bytes, 1);
    let Some(RecvAncillaryMessage::ScmRights(mut descriptors)) = ancillary.drain().next() else {
        panic!("there is no descriptor")
    };
    Ok(descriptors.next().unwrap())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A NIC with these links, which are in this test's network namespace unless another inode is named.
fn nic(mac: &str, addresses: &[&str], links: &[u32], namespace: u64) -> NicInfo {
    let link = |index: &u32| json!({ "name": "x", "index": index, "namespace": namespace, "role": "guest" });
    let links: Vec<Value> = links.iter().map(link).collect();
    serde_json::from_value(json!({
        "name": "nic0", "spec": "tap", "kind": "tap", "link": "x", "mac": mac, "addresses": addresses, "mtu": 1500,
        "queues": 1, "carrier": "wirevm", "links": links, "hops": [],
    }))
    .unwrap()
}

fn here() -> u64 {
    fs::metadata("/proc/self/ns/net").unwrap().ino()
}

#[test]
fn ssh_is_told_the_user_s_options_before_those_of_wirevm() {
    let played = Played::new(Vec::new());
    let path = played.path_with_ssh();
    let run = |args: &[&str]| {
        let mut command = played.command(&wirevm_path(), &["ssh"]);
        command.args(args).env("PATH", &path).output().unwrap()
    };
    let output = run(&["-p", "2222", "root@web", "-o", "LogLevel=INFO", "ls", "-l", "--", "a b"]);
    let told = String::from_utf8(output.stdout.clone()).unwrap();
    let proxy = format!("ProxyCommand='{}' ssh-proxy web.wirevm %p", wirevm_path().display());
    let wanted = [
        "-p",
        "2222",
        "-o",
        "LogLevel=INFO",
        "-o",
        &proxy,
        "-o",
        "ProxyUseFdpass=yes",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "LogLevel=ERROR",
        "-o",
        "HostKeyAlias=web.wirevm",
        "root@web.wirevm",
        "--",
        "ls",
        "-l",
        "--",
        "a b",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), wanted, "{}", said(&output));
    assert_eq!(output.status.code(), Some(7), "the exit status is ssh's");
    let told = |args: &[&str]| {
        let output = run(args);
        assert_eq!(output.status.code(), Some(7), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(told(&["web"]).last().unwrap(), "web.wirevm");
    // Also those that wirevm has by the same letters.
    for (args, options) in [
        (&["-v", "web"][..], &["-v", "-o"][..]),
        (&["-vv", "-4", "web"], &["-v", "-v", "-4", "-o"]),
        (&["-4v", "web", "-v"], &["-4v", "-v", "-o"]),
        (&["-vN", "web"], &["-vN", "-o"]),
        (&["-V", "web"], &["-V", "-o"]),
        (&["-h", "web"], &["-h", "-o"]),
    ] {
        assert_eq!(told(args)[..options.len()], *options, "{args:?}");
    }
    let help = run(&["--help"]);
    let text = String::from_utf8_lossy(&help.stdout);
    assert!(help.status.success() && text.contains("wirevm ssh [SSH-OPTION]..."), "{text}");
}

#[test]
fn what_keeps_ssh_from_a_machine_is_said_before_it_begins() {
    let played = Played::new(Vec::new());
    let empty = TempDir::new();
    for (args, words) in [
        (&["web"][..], ["error: this host has no program ssh\n", "openssh-client"]),
        (&["wep"], ["no machine named wep runs", "these run: web"]),
        (&["../web"], ["is no name for a machine", "letters, digits"]),
        (&["-l", "root"], ["is to be told a machine's name", "wirevm ssh [SSH-OPTION]..."]),
    ] {
        let mut command = played.command(&wirevm_path(), &["ssh"]);
        let output = command.args(args).env("PATH", empty.path("")).output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(255), "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{word:?} is not in:\n{said}"));
    }
}

#[test]
fn a_guest_is_reached_over_vsock_first() {
    // The address would do, too.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let played = Played::new(vec![nic("02:00:00:00:00:01", &["127.0.0.1"], &[1], here())]);
    let guest = played.accepts("OK 1073741824\n");
    let mut ssh = UnixStream::from(played.proxy(port).unwrap());
    let (asked, mut guest) = guest.join().unwrap();
    assert_eq!(asked, format!("CONNECT {port}\n"));
    // ssh speaks on the connection itself, and each way ends by itself.
    guest.write_all(b"SSH-2.0-guest\n").unwrap();
    ssh.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(line(&mut ssh), "SSH-2.0-guest\n");
    ssh.write_all(b"SSH-2.0-host\n").unwrap();
    ssh.shutdown(Shutdown::Write).unwrap();
    let mut came = String::new();
    guest.read_to_string(&mut came).unwrap();
    assert_eq!(came, "SSH-2.0-host\n");
    guest.write_all(b"bye\n").unwrap();
    assert_eq!(line(&mut ssh), "bye\n");
}

#[test]
fn a_guest_that_refuses_on_vsock_is_reached_where_its_wire_says_it_is() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let nics = vec![
        // Nobody answers at the first one's.
        nic("02:00:00:00:00:01", &["127.0.0.2"], &[1], here()),
        nic("02:00:00:00:00:03", &["127.0.0.1"], &[1], here()),
    ];
    let played = Played::new(nics);
    let guest = played.accepts("");
    let ssh = TcpStream::from(played.proxy(port).unwrap());
    guest.join().unwrap();
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(ssh.local_addr().unwrap(), peer);

    let elsewhere = Played::new(vec![nic("02:00:00:00:00:01", &["127.0.0.1"], &[1], here() + 1)]);
    let why = elsewhere.proxy(port).unwrap_err();
    assert!(why.contains("over vsock, and the host knows no address of it"), "{why}");
}

#[test]
fn a_guest_that_gets_its_address_elsewhere_is_reached_where_the_host_knows_it() {
    let (host, lan) = (need!(Netns::new()), need!(Netns::new()));
    let set_up = format!("ip link add n0 type veth peer name n1 && ip link set n1 netns {}", lan.pid());
    need!(host.try_sh(&set_up).map_err(|_| "this machine makes no veth".to_owned()));
    host.sh("ip address add 10.9.0.1/24 dev n0; ip link set n0 up");
    lan.sh("ip link set n1 address 02:00:00:00:00:09 up; ip address add 10.9.0.9/24 dev n1");
    let listener = lan.spawn(|| TcpListener::bind("10.9.0.9:22").unwrap()).join().unwrap();
    let index: u32 = host.sh("ip -o link show n0").split(':').next().unwrap().parse().unwrap();
    let namespace = fs::metadata(format!("/proc/{}/ns/net", host.pid())).unwrap().ino();
    let proxy = |links: &[u32]| {
        let played = Played::new(vec![nic("02:00:00:00:00:09", &[], links, namespace)]);
        let mut command = host.command(wirevm_path().to_str().unwrap());
        command.args(["ssh-proxy", "web", "22"]).env("WIREVM_RUNTIME_DIR", played.dir.path("run"));
        connection_of(&mut command)
    };
    let unknown = proxy(&[index]).unwrap_err();
    assert!(unknown.contains("the host knows no address of it"), "{unknown}");
    // The host has spoken with it.
    drop(host.spawn(|| TcpStream::connect("10.9.0.9:22").unwrap()).join().unwrap());
    let ssh = TcpStream::from(proxy(&[index]).unwrap());
    assert_eq!(ssh.peer_addr().unwrap().ip(), "10.9.0.9".parse::<IpAddr>().unwrap());
    // On another link of the host it is another station.
    let another = proxy(&[index + 1]).unwrap_err();
    assert!(another.contains("the host knows no address of it"), "{another}");
    drop(listener);
}

#[test]
fn where_nothing_answers_the_ways_and_a_remedy_are_said() {
    let played = Played::new(vec![nic("02:00:00:00:00:01", &["127.0.0.1", "127.0.0.2"], &[1], here())]);
    let guest = played.accepts("");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let why = played.proxy(port).unwrap_err();
    guest.join().unwrap();
    for words in [
        &*format!(
            "cannot connect to port {port} of the guest of web over vsock, nor at 127.0.0.1, 127.0.0.2\n"
        ),
        "Connection refused",
        "try:",
        "--ssh-key",
        "systemd 256",
        "wirevm exec web",
    ] {
        assert!(why.contains(words), "{words:?} is not in:\n{why}");
    }
    let none = Played::new(Vec::new());
    let guest = none.accepts("");
    let why = none.proxy(22).unwrap_err();
    guest.join().unwrap();
    assert!(why.contains("no program of the guest accepts at its port 22"), "{why}");
    // Nobody is there to take the connection.
    fs::remove_file(none.dir.path("run/vm/web/vsock")).unwrap();
    let _guest = none.accepts("OK 1\n");
    let output = none.command(&wirevm_path(), &["ssh-proxy", "web", "22"]).output().unwrap();
    let said = said(&output);
    assert!(output.status.code() == Some(255) && said.contains("hand the connection over"), "{said}");
}

#[test]
fn the_host_s_own_ssh_speaks_to_the_guest() {
    if Command::new("ssh").arg("-V").output().is_err() {
        skip!("there is no ssh");
    }
    let played = Played::new(Vec::new());
    let guest = played.accepts("OK 1073741824\n");
    let mut command = played.command(&wirevm_path(), &["ssh", "-F", "none", "root@web", "true"]);
    let ssh = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (asked, mut guest) = guest.join().unwrap();
    let banner = line(&mut guest);
    drop(guest);
    let output = ssh.wait_with_output().unwrap();
    assert_eq!(asked, "CONNECT 22\n");
    assert!(banner.starts_with("SSH-2.0-"), "{banner:?}\n{}", said(&output));
    assert_eq!(output.status.code(), Some(255));
}

#[test]
fn a_machine_tells_the_addresses_that_its_wires_give() {
    let host = need!(Netns::new());
    let dir = TempDir::new();
    fs::create_dir(dir.path("run")).unwrap();
    fs::set_permissions(dir.path("run"), Permissions::from_mode(0o700)).unwrap();
    let mut run = host.command(wirevm_path().to_str().unwrap());
    run.args(["run", "--name", "web", "--kernel"]).arg(handmade::kernel(&dir, forever()));
    for spec in ["tap,host=172.31.0.1/24", "tap", "tap,host=172.31.2.1/24,guest=172.31.2.7", "bridge=br0"] {
        run.args(["--net", spec]);
    }
    let mut vm = Vm::start(run.env("WIREVM_RUNTIME_DIR", dir.path("run")).stdin(Stdio::null()));
    vm.expect("running\n", SOON);
    let show = |args: &[&str]| {
        let mut show = wirevm();
        show.args(["show", "web"]).args(args).env("WIREVM_RUNTIME_DIR", dir.path("run"));
        String::from_utf8(show.output().unwrap().stdout).unwrap()
    };
    let shown: Value = serde_json::from_str(&show(&["--json"])).unwrap();
    let of = |nic: usize| shown["nics"][nic]["addresses"].clone();
    assert_eq!([of(0), of(2), of(3)], [json!(["172.31.0.2"]), json!(["172.31.2.7"]), json!([])]);
    let chosen: IpAddr = of(1)[0].as_str().unwrap().parse().unwrap();
    assert!(chosen.is_ipv4(), "{shown}");
    let page = show(&[]);
    assert!(page.contains("\n           the guest has 172.31.0.2\n") && !page.contains("\n\n"), "{page}");
}
