//! Sockets between programs of the host and programs of the guest.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{TempDir, Vm, guest, handmade, puts, skip, wirevm};
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

/// A place of its own for machines.
struct World {
    dir: TempDir,
    kernel: PathBuf,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new();
        fs::create_dir(dir.path("run")).unwrap();
        fs::set_permissions(dir.path("run"), fs::Permissions::from_mode(0o700)).unwrap();
        let kernel = handmade::kernel(&dir, forever());
        Self { dir, kernel }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = wirevm();
        command.args(args).env("WIREVM_RUNTIME_DIR", self.dir.path("run")).stdin(Stdio::null());
        command
    }

    /// A machine called `web`.
    fn run(&self, args: &[&str]) -> Vm {
        let mut command = self.command(&["run", "--name", "web", "--kernel"]);
        let mut vm = Vm::start(command.arg(&self.kernel).args(args));
        vm.expect("running\n", SOON);
        vm
    }

    fn ask(&self, args: &[&str]) -> String {
        String::from_utf8(self.command(args).output().unwrap().stdout).unwrap()
    }

    fn place(&self, file: &str) -> PathBuf {
        self.dir.path(&format!("run/vm/web/{file}"))
    }
}

#[track_caller]
fn expect_end(mut program: UnixStream) {
    program.set_read_timeout(Some(SOON)).unwrap();
    match program.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("it is not closed: {other:?}"),
    }
}

#[test]
fn a_program_finds_no_port_of_a_guest_without_a_driver() {
    let world = World::new();
    let mut vm = world.run(&[]);
    let socket = world.place("vsock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let shown = world.ask(&["show", "web"]);
    assert!(shown.contains(&format!("vsock      CID 3, {}\n", socket.display())), "{shown}");
    let shown: Value = serde_json::from_str(&world.ask(&["show", "web", "--json"])).unwrap();
    assert_eq!(shown["vsock"]["socket"], socket.to_str().unwrap());
    assert_eq!(shown["vsock"]["cid"], 3);
    // Many, and one that says nothing.
    let _silent = UnixStream::connect(&socket).unwrap();
    for _ in 0..300 {
        let mut program = UnixStream::connect(&socket).unwrap();
        let _ = program.write_all(b"CONNECT 1024\n");
        expect_end(program);
    }
    // One that waits for the guest leaves nothing behind.
    let _listener = UnixListener::bind(world.place("vsock_7")).unwrap();
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
    assert!(!world.dir.path("run/vm").exists(), "{}", vm.state());
}

#[test]
fn a_paused_machine_lets_programs_wait() {
    let world = World::new();
    let _vm = world.run(&[]);
    world.ask(&["pause", "web"]);
    let mut program = UnixStream::connect(world.place("vsock")).unwrap();
    program.write_all(b"CONNECT 1024\n").unwrap();
    program.set_nonblocking(true).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(program.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    program.set_nonblocking(false).unwrap();
    world.ask(&["resume", "web"]);
    expect_end(program);
}

#[test]
fn there_are_no_sockets_where_none_are_wanted() {
    let world = World::new();
    let vm = world.run(&["--vsock", "off"]);
    assert!(!world.place("vsock").exists(), "{}", vm.state());
    assert!(!world.ask(&["show", "web"]).contains("vsock"));
    for (word, why) in [("maybe", "it is on, off, vhost or vhost=CID"), ("vhost=2", "a number from 3")] {
        let output = world.command(&["run", "--kernel", "k", "--vsock", word]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(why), "{said}");
    }
}

#[test]
fn vhost_vsock_that_is_not_there_is_said_before_anything_changes() {
    if std::path::Path::new("/dev/vhost-vsock").exists() {
        skip!("there is /dev/vhost-vsock");
    }
    let world = World::new();
    let mut command = world.command(&["run", "--vsock", "vhost", "--net", "tap", "--explain", "--kernel"]);
    let output = command.arg(&world.kernel).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in ["cannot open /dev/vhost-vsock", "No such file", "modprobe vhost_vsock", "--vsock on"] {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
    assert!(!said.contains("ip tuntap"), "{said}");
    assert!(!world.dir.path("run/vm").exists());
}

#[test]
fn what_a_killed_machine_left_is_no_obstacle() {
    let world = World::new();
    let mut vm = world.run(&[]);
    let listener = UnixListener::bind(world.place("vsock_7")).unwrap();
    vm.signal(Signal::KILL);
    vm.wait(SOON);
    drop(listener);
    assert!(world.place("vsock").exists());
    let mut vm = world.run(&[]);
    let program = UnixStream::connect(world.place("vsock")).unwrap();
    expect_end_after(program, b"CONNECT 1\n");
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
    assert!(!world.dir.path("run/vm").exists(), "{}", vm.state());
}

fn expect_end_after(mut program: UnixStream, line: &[u8]) {
    let _ = program.write_all(line);
    expect_end(program);
}

mod stock {
    use harness::netns::Netns;
    use harness::stock::{self, BOOT};
    use harness::{need, wirevm_path};
    use std::net::Shutdown;
    use vmm::client::ClientError;
    use vmm::{MachineConfig, Vm};

    use super::*;

    const COMMAND: Duration = Duration::from_secs(120);

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8).collect()
    }

    #[track_caller]
    fn echoed(mut stream: UnixStream, len: usize) {
        let said = bytes(len);
        let mut to = stream.try_clone().unwrap();
        let copy = said.clone();
        let writer = std::thread::spawn(move || {
            to.write_all(&copy).unwrap();
            to.shutdown(Shutdown::Write).unwrap();
        });
        stream.set_read_timeout(Some(COMMAND)).unwrap();
        let mut came = Vec::new();
        stream.read_to_end(&mut came).unwrap();
        writer.join().unwrap();
        assert!(came == said, "{} of {len} bytes came back", came.len());
    }

    /// The host's programs are those of the guest: AF_VSOCK is the same on both sides.
    #[test]
    fn vhost_vsock_carries_streams_and_a_cid_is_one_guest_s() {
        let kernel = need!(stock::newest());
        // In the lab it is a module.
        let _ = Command::new("modprobe").arg("vhost_vsock").stderr(Stdio::null()).status();
        if !std::path::Path::new("/dev/vhost-vsock").exists() {
            skip!("there is no /dev/vhost-vsock");
        }
        let (dir, program) = (TempDir::new(), env!("CARGO_BIN_EXE_guest-vsock"));
        need!(stock::add_program(&kernel, program, &dir.path("initrd")));
        let host = need!(Netns::new());
        let config = MachineConfig {
            initrd: Some(dir.path("initrd")),
            cmdline: "console=ttyS0 loglevel=1 panic=-1 wirevm.more".to_owned(),
            vsock: "vhost".parse().unwrap(),
            ..MachineConfig::new(&kernel.kernel)
        };
        let mut vm = Vm::start_by(host.command(wirevm_path().to_str().unwrap()), &config).unwrap();
        let info = vm.info().unwrap().vsock.unwrap();
        assert_eq!(info.socket, None);
        let cid = info.cid.to_string();
        let other = MachineConfig { vsock: format!("vhost={cid}").parse().unwrap(), ..config.clone() };
        let refused = Vm::start_by(host.command(wirevm_path().to_str().unwrap()), &other).unwrap_err();
        let refused = refused.to_string();
        assert!(
            refused.contains(&format!("the CID {cid}")) && refused.contains("--vsock vhost"),
            "{refused}"
        );

        vm.wait_for("guest# ", BOOT).unwrap_or_else(|error| panic!("{error}"));
        vm.type_in("guest-vsock echo 1024 &\n").unwrap();
        vm.wait_for("listening", COMMAND).unwrap_or_else(|error| panic!("{error}"));
        let say =
            |bytes: &str| Command::new(program).args(["say", "1024", bytes, &cid]).output().unwrap().stdout;
        assert_eq!(String::from_utf8_lossy(&say("300000")), "300000 came back\n", "{}", vm.console());
        // What is said meanwhile waits.
        vm.pause().unwrap();
        let said = std::thread::scope(|scope| {
            let said = scope.spawn(|| say("200000"));
            std::thread::sleep(Duration::from_millis(300));
            assert!(!said.is_finished());
            vm.resume().unwrap();
            said.join().unwrap()
        });
        assert_eq!(String::from_utf8_lossy(&said), "200000 came back\n", "{}", vm.console());
        let mut echo = Command::new(program).args(["echo", "53"]).stdout(Stdio::piped()).spawn().unwrap();
        echo.stdout.as_mut().unwrap().read_exact(&mut [0; 9]).unwrap();
        vm.type_in("guest-vsock say 53 100000\n").unwrap();
        let came = vm.wait_for("100000 came back", COMMAND);
        echo.kill().unwrap();
        echo.wait().unwrap();
        came.unwrap_or_else(|error| panic!("{error}"));
        // The library goes by AF_VSOCK here.
        echoed(vm.connect_vsock(1024, COMMAND).unwrap(), 1 << 20);
        let none = vm.connect_vsock(1025, COMMAND).unwrap_err();
        assert!(matches!(none, vmm::VmError::Client(ClientError::PortRefused { port: 1025 })), "{none}");
        vm.pause().unwrap();
        let late = vm.connect_vsock(1024, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(late, vmm::VmError::Client(ClientError::PortSilent { .. })), "{late}");
        vm.resume().unwrap();
        assert_eq!(vm.stop().unwrap(), 0);
    }

    #[test]
    fn programs_of_host_and_guest_talk_over_sockets() {
        let kernel = need!(stock::newest());
        let dir = TempDir::new();
        let program = stock::add_program(&kernel, env!("CARGO_BIN_EXE_guest-vsock"), &dir.path("initrd"));
        need!(program);
        let host = need!(Netns::new());
        let config = MachineConfig {
            initrd: Some(dir.path("initrd")),
            cmdline: "console=ttyS0 loglevel=1 panic=-1 wirevm.more".to_owned(),
            ..MachineConfig::new(&kernel.kernel)
        };
        let mut vm = Vm::start_by(host.command(wirevm_path().to_str().unwrap()), &config).unwrap();
        vm.wait_for("guest# ", BOOT).unwrap_or_else(|error| panic!("{error}"));

        // From the host.
        let refused = vm.connect_vsock(1024, COMMAND).unwrap_err();
        assert!(
            matches!(refused, vmm::VmError::Client(ClientError::PortRefused { port: 1024 })),
            "{refused}\n{}",
            vm.console()
        );
        vm.type_in("guest-vsock echo 1024 &\n").unwrap();
        vm.wait_for("listening", COMMAND).unwrap_or_else(|error| panic!("{error}"));
        echoed(vm.connect_vsock(1024, COMMAND).unwrap(), 1 << 20);
        let streams: Vec<_> = (0..20).map(|_| vm.connect_vsock(1024, COMMAND).unwrap()).collect();
        let threads: Vec<_> =
            streams.into_iter().map(|stream| std::thread::spawn(move || echoed(stream, 50_000))).collect();
        // A pause in the middle loses nothing.
        vm.pause().unwrap();
        let late = vm.connect_vsock(1024, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(late, vmm::VmError::Client(ClientError::PortSilent { .. })), "{late}");
        vm.resume().unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap());

        // From the guest.
        let socket = vm.info().unwrap().vsock.unwrap().socket.unwrap();
        let at = PathBuf::from(format!("{}_53", socket.display()));
        let listener = UnixListener::bind(&at).unwrap();
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut came = Vec::new();
            stream.read_to_end(&mut came).unwrap();
            stream.write_all(&came).unwrap();
            came.len()
        });
        vm.type_in("guest-vsock say 53 700000\n").unwrap();
        vm.wait_for("700000 came back", COMMAND).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(echo.join().unwrap(), 700_000);
        vm.type_in("guest-vsock say 54 1\n").unwrap();
        vm.wait_for("ConnectionReset", COMMAND).unwrap_or_else(|error| panic!("{error}"));
        // A program that is killed in the middle.
        let mut stream = vm.connect_vsock(1024, COMMAND).unwrap();
        vm.type_in("killall -9 guest-vsock\n").unwrap();
        stream.set_read_timeout(Some(COMMAND)).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0)), "{}", vm.console());
        assert_eq!(vm.stop().unwrap(), 0);
        assert!(!at.exists());
    }
}
