//! Machines that have a name: they are listed, shown, watched, paused and stopped by it, and by the library.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use harness::netns::Netns;
use harness::{TempDir, Vm, guest, handmade, need, puts, wirevm, wirevm_path};
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

guest!(echo:
    puts!("ready\\r\\n"),
    "2: mov edx, 0x3fd", "in al, dx", "test al, 1", "jz 2b",
    "mov edx, 0x3f8", "in al, dx", "out dx, al", "cmp al, 'q'", "jne 2b",
);
// Counts without end: a byte of a letter every while.
guest!(counter:
    puts!("ready\\n"), "mov bl, 0",
    "2: mov ecx, 3000", "3: dec ecx", "jnz 3b",
    "mov al, bl", "and al, 15", "add al, 'a'", "mov edx, 0x3f8", "out dx, al", "inc bl", "jmp 2b",
);
guest!(crash: puts!("ready\\r\\n"), "2: mov edx, 0x3fd", "in al, dx", "test al, 1", "jz 2b", "ud2");

/// A place of its own for machines, so that tests do not see each other's.
struct World {
    dir: TempDir,
    kernel: PathBuf,
}

impl World {
    fn new(code: &[u8]) -> Self {
        let dir = TempDir::new();
        fs::create_dir(dir.path("run")).unwrap();
        fs::set_permissions(dir.path("run"), fs::Permissions::from_mode(0o700)).unwrap();
        let kernel = handmade::kernel(&dir, code);
        Self { dir, kernel }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = wirevm();
        command.args(args).env("WIREVM_RUNTIME_DIR", self.dir.path("run")).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Command {
        let mut command = self.command(&["run", "--kernel"]);
        command.arg(&self.kernel).args(args);
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Starts one in the background.
    #[track_caller]
    fn detach(&self, args: &[&str]) -> String {
        let output = self.run(&[&["--detach"], args].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn socket(&self, name: &str) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path(&format!("run/vm/{name}/control"))).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    fn is_empty(&self) -> bool {
        let vms = self.dir.path("run/vm");
        let names = fs::read_dir(vms).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter(|name| !name.to_string_lossy().ends_with(".log")).count() == 0
    }
}

impl Drop for World {
    /// None is left running by a test that failed.
    fn drop(&mut self) {
        let list = self.command(&["ls", "--json"]).output();
        let list = list.ok().and_then(|output| serde_json::from_slice::<Value>(&output.stdout).ok());
        for machine in list.iter().flat_map(|list| list["machines"].as_array().into_iter().flatten()) {
            if let Some(name) = machine["name"].as_str() {
                let _ = self.command(&["stop", "--force", name]).output();
            }
        }
    }
}

#[track_caller]
fn refused(output: &Output, status: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
}

#[test]
fn a_detached_machine_is_listed_shown_and_stopped() {
    let world = World::new(echo());
    assert_eq!(world.ok(&["ls"]).lines().count(), 1);
    let name = world.detach(&["--name", "web", "--cpus", "1", "--memory", "64M"]);
    assert_eq!(
        (name.as_str(), world.detach(&[]).as_str(), world.detach(&[]).as_str()),
        ("web", "vm0", "vm1")
    );
    let list = world.ok(&["ls"]);
    let lines: Vec<_> = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0], ["NAME", "STATE", "PID", "MEMORY", "CPUS", "UPTIME", "NICS"]);
    let names: Vec<_> = lines[1..].iter().map(|line| (line[0], line[1])).collect();
    assert_eq!(names, [("vm0", "running"), ("vm1", "running"), ("web", "running")], "{list}");
    assert_eq!((lines[3][3], lines[3][4]), ("64M", "1"), "{list}");

    let info = world.json(&["show", "web", "--json"]);
    assert_eq!(
        (&info["name"], &info["memory"], &info["config"]["cpus"]),
        (&"web".into(), &(64 << 20).into(), &1.into())
    );
    for pid in ["pid", "machine_pid"] {
        assert!(fs::exists(format!("/proc/{}", info[pid])).unwrap(), "{info}");
    }
    assert!(world.ok(&["show", "web"]).contains("memory     64M\n"));

    world.ok(&["stop", "vm1"]);
    assert!(!fs::exists(world.dir.path("run/vm/vm1")).unwrap());
    world.ok(&["stop", "--force", "vm0"]);
    let stopped = world.json(&["stop", "web", "--json"]);
    assert_eq!(stopped, serde_json::json!({ "name": "web", "status": 0 }));
    assert!(world.is_empty() && world.ok(&["ls"]).lines().count() == 1);
    // What it said is there after its end, until the name is used again.
    assert_eq!(world.ok(&["logs", "web"]), "ready\r\n");
    world.detach(&["--name", "web"]);
    world.ok(&["stop", "web"]);
}

#[test]
fn who_stops_it_always_hears_how_it_ended() {
    let world = World::new(echo());
    for round in 0..20 {
        world.detach(&["--name", "web"]);
        let how: &[_] = if round % 2 == 0 { &["--force"] } else { &[] };
        let stopped = world.json(&[&["stop", "web", "--json"], how].concat());
        assert_eq!(stopped, serde_json::json!({ "name": "web", "status": 0 }), "{round}");
    }
}

#[test]
fn who_stops_one_that_is_killed_is_told() {
    let world = World::new(counter());
    let mut vm = Vm::start(&mut world.run(&["--name", "web"]));
    vm.expect("ready\n", SOON);
    // It answers nothing, but has the call.
    vm.signal(Signal::STOP);
    let stop = world.command(&["stop", "web"]).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + SOON;
    // proc_pid_syscall(5): the number of the call that it waits in.
    let waits_in = || fs::read_to_string(format!("/proc/{}/syscall", stop.id())).unwrap_or_default();
    while !waits_in().starts_with(&format!("{} ", libc::SYS_recvfrom)) {
        assert!(Instant::now() < until, "{}", vm.state());
    }
    vm.signal(Signal::KILL);
    vm.wait(SOON);
    let words = ["the machine is gone without an answer", "wirevm doctor --clean"];
    refused(&stop.wait_with_output().unwrap(), 1, &words);
}

#[test]
fn a_machine_in_the_foreground_has_a_name_too() {
    let world = World::new(echo());
    let mut vm = Vm::start(&mut world.run(&["--name", "front"]));
    vm.expect("ready\r\n", SOON);
    assert_eq!(world.json(&["ls", "--json"])["machines"][0]["name"], "front");
    assert_eq!(world.ok(&["logs", "front"]), "ready\r\n");
    world.ok(&["stop", "front"]);
    vm.ends_with(0, SOON);
    assert!(world.is_empty() && vm.messages().is_empty(), "{}", vm.state());
    assert!(!fs::exists(world.dir.path("run/vm")).unwrap(), "nothing is left");
}

#[test]
fn names_that_cannot_be_are_refused() {
    let world = World::new(echo());
    let long = "x".repeat(65);
    for (name, word) in [
        ("a/b", "slash"),
        ("..", "letter or a digit"),
        ("", "empty"),
        (&long, "64 bytes"),
        ("a b", "character"),
    ] {
        let output = world.run(&["--name", name]).output().unwrap();
        refused(&output, 1, &["is no name for a machine", word, "\n  try:   use letters"]);
    }
    world.detach(&["--name", "web"]);
    refused(
        &world.run(&["--name", "web"]).output().unwrap(),
        1,
        &["a machine named web runs already (pid ", "wirevm stop web"],
    );
    for command in ["show", "stop", "pause", "resume", "wait", "console"] {
        let output = world.command(&[command, "nope"]).output().unwrap();
        refused(&output, 1, &["no machine named nope runs", "try:   these run: web"]);
    }
    world.ok(&["stop", "web"]);
    refused(
        &world.command(&["show", "web"]).output().unwrap(),
        1,
        &["no machine runs: wirevm run starts one"],
    );
}

#[test]
fn a_dead_machine_s_name_is_free() {
    let world = World::new(echo());
    let mut vm = Vm::start(&mut world.run(&["--name", "web"]));
    vm.expect("ready\r\n", SOON);
    vm.signal(Signal::KILL);
    vm.wait(SOON);
    assert!(!world.is_empty(), "what it had is left");
    assert_eq!(world.ok(&["ls"]).lines().count(), 1, "and is not taken for a machine");
    refused(&world.command(&["show", "web"]).output().unwrap(), 1, &["no machine named web runs"]);
    // Until its process is gone, it holds the name.
    let until = Instant::now() + SOON;
    while !world.run(&["--name", "web", "--detach"]).output().unwrap().status.success() {
        assert!(Instant::now() < until);
    }
    world.ok(&["stop", "web"]);
    assert!(world.is_empty());
}

#[test]
fn a_detached_machine_can_have_its_kernel_by_standard_input() {
    let world = World::new(echo());
    let mut command = world.command(&["run", "--kernel", "/dev/stdin", "--detach", "--name", "web"]);
    command.stdin(fs::File::open(&world.kernel).unwrap());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // What it was given it does not hold.
    let pid = world.json(&["show", "web", "--json"])["pid"].as_u64().unwrap();
    let stdin = fs::read_link(format!("/proc/{pid}/fd/0")).unwrap();
    assert_eq!(stdin, std::path::Path::new("/dev/null"));
    world.ok(&["stop", "web", "--force"]);
}

#[test]
fn a_failed_start_leaves_no_name_and_a_detached_one_says_why() {
    let world = World::new(echo());
    let output = world.run(&["--detach", "--name", "web", "--net", "tap=lo"]).output().unwrap();
    refused(&output, 1, &["NIC 0 (tap): cannot attach to lo"]);
    assert!(output.stdout.is_empty() && world.is_empty());
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let world = World::new(counter());
    let mut vm = Vm::start(&mut world.run(&["--name", "web"]));
    vm.expect("ready\nabcdefghijklmnopabc", SOON);
    world.ok(&["pause", "web"]);
    assert_eq!(world.json(&["show", "web", "--json"])["state"], "paused");
    std::thread::sleep(Duration::from_millis(50));
    let before = vm.console();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(vm.console(), before, "it stands still");
    refused(
        &world.command(&["pause", "web"]).output().unwrap(),
        1,
        &["the machine is paused, not running", "try:   let it go on first: wirevm resume"],
    );
    world.ok(&["resume", "web"]);
    refused(&world.command(&["resume", "web"]).output().unwrap(), 1, &["the machine is running, not paused"]);
    let until = Instant::now() + SOON;
    while vm.console().len() < before.len() + 100 {
        assert!(Instant::now() < until, "it goes on\n{}", vm.state());
        std::thread::sleep(Duration::from_millis(5));
    }
    // Nothing is missing, and nothing twice.
    let all = vm.console();
    let letters = all.strip_prefix("ready\n").unwrap();
    assert!(letters.bytes().enumerate().all(|(at, letter)| letter == b'a' + (at % 16) as u8), "{letters}");
    // One that stands still is stopped, too.
    world.ok(&["pause", "web"]);
    world.ok(&["stop", "web"]);
    vm.ends_with(0, SOON);
}

#[test]
fn who_waits_has_the_exit_status() {
    for (code, status) in [(crash(), 3), (echo(), 0)] {
        let world = World::new(code);
        let mut vm = Vm::start(&mut world.run(&["--name", "web"]));
        vm.expect("ready\r\n", SOON);
        let mut wait = Vm::start(&mut world.command(&["wait", "web", "--json"]));
        std::thread::sleep(Duration::from_millis(200));
        vm.type_in("q");
        vm.ends_with(status, SOON);
        wait.ends_with(status, SOON);
        assert!(wait.console().contains(&format!("\"status\":{status}")), "{}", wait.state());
    }
}

#[test]
fn a_console_is_watched_typed_on_and_left() {
    let world = World::new(echo());
    world.detach(&["--name", "web"]);
    let mut watcher = Vm::start(&mut world.command(&["console", "--read-only", "web"]));
    watcher.expect("ready\r\n", SOON);
    let (mut writer, terminal) = Vm::start_on_terminal(&world.command(&["console", "web"]));
    let before = terminal.settings();
    writer.expect("ready\r\n", SOON);
    writer.type_in("hello\x03");
    writer.expect("hello\x03", SOON);
    watcher.expect("hello\x03", SOON);
    assert_ne!(terminal.settings(), before, "it is raw");
    refused(
        &world.command(&["console", "web"]).output().unwrap(),
        1,
        &["somebody writes on the console already"],
    );
    writer.type_in("\x01h");
    writer.expect("Ctrl-A d  leave the console", SOON);
    writer.type_in("\x01d");
    writer.ends_with(0, SOON);
    assert_eq!(terminal.settings(), before);
    // The machine goes on, and its end ends who watches.
    assert_eq!(world.ok(&["logs", "web"]), "ready\r\nhello\x03");
    let mut follower = Vm::start(&mut world.command(&["logs", "--follow", "web"]));
    follower.expect("hello\x03", SOON);
    let mut types = Vm::start(world.command(&["console", "web"]).stdin(Stdio::piped()));
    types.expect("hello", SOON);
    types.type_in("q");
    for vm in [&mut watcher, &mut follower, &mut types] {
        vm.expect("q", SOON);
        vm.ends_with(0, SOON);
    }
    assert!(world.is_empty());
}

#[test]
fn what_clients_do_wrong_disturbs_nobody() {
    let world = World::new(counter());
    let mut vm = Vm::start(&mut world.run(&["--name", "web"]));
    vm.expect("ready\n", SOON);
    let mut garbage = world.socket("web");
    garbage.write_all(b"\x00\xff garbage\0").unwrap();
    let mut said = String::new();
    garbage.read_to_string(&mut said).unwrap();
    assert!(said.contains("io.wirevm.Machine.Failed"), "{said}");
    let mut endless = world.socket("web");
    let _ = endless.write_all(&vec![b'x'; 1 << 20]);
    let mut half = world.socket("web");
    half.write_all(b"{\"method\":").unwrap();
    let many: Vec<_> = (0..200).map(|_| world.socket("web")).collect();
    let mut last = world.socket("web");
    let mut said = String::new();
    last.read_to_string(&mut said).unwrap();
    assert!(said.contains("too many clients"), "{said}");
    drop(many);
    let until = Instant::now() + SOON;
    while !world.command(&["show", "web"]).output().unwrap().status.success() {
        assert!(Instant::now() < until, "{}", vm.state());
    }
    let before = vm.console().len();
    while vm.console().len() < before + 50 {
        assert!(Instant::now() < until, "the guest is held up\n{}", vm.state());
    }
    assert_eq!(vm.messages(), "");
    // Another user's client is told, and no more.
    if rustix::process::geteuid().is_root() {
        for path in ["", "run", "run/vm", "run/vm/web"] {
            fs::set_permissions(world.dir.path(path), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::set_permissions(world.dir.path("run/vm/web/control"), fs::Permissions::from_mode(0o666)).unwrap();
        let path = world.dir.path("run/vm/web/control");
        let script =
            "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nprint(s.recv(4096))";
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "python3", "-c", script])
            .arg(path)
            .output();
        match output {
            Ok(output) if output.status.success() => {
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(said.contains("this is another user's machine"), "{said}");
            }
            _ => println!("skipped: another user's client: there is no python3"),
        }
        // Where others look in, nobody is listened to.
        let refusal = world.command(&["stop", "web"]).output().unwrap();
        refused(&refusal, 1, &["is not for this user alone"]);
        for path in ["run/vm/web", "run/vm", "run"] {
            fs::set_permissions(world.dir.path(path), fs::Permissions::from_mode(0o700)).unwrap();
        }
    }
    world.ok(&["stop", "web"]);
}

#[test]
fn metrics_are_of_one_machine_or_all() {
    let world = World::new(echo());
    world.detach(&["--name", "one"]);
    world.detach(&["--name", "two"]);
    let one = world.ok(&["metrics", "one"]);
    assert!(
        one.contains("wirevm_state{vm=\"one\",state=\"running\"} 1\n") && !one.contains("\"two\""),
        "{one}"
    );
    let exits = one
        .lines()
        .find_map(|line| line.strip_prefix("wirevm_exits_total{vm=\"one\",vcpu=\"0\",kind=\"port\"} "));
    assert!(exits.and_then(|exits| exits.parse::<u64>().ok()).is_some_and(|exits| exits > 0), "{one}");
    let all = world.ok(&["metrics"]);
    assert!(all.contains("{vm=\"one\"") && all.contains("{vm=\"two\""), "{all}");
    assert_eq!(all.matches("# TYPE wirevm_state gauge").count(), 1, "{all}");
}

#[test]
fn a_service_manager_is_told() {
    let world = World::new(echo());
    let path = world.dir.path("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut vm = Vm::start(world.run(&["--name", "web"]).env("NOTIFY_SOCKET", &path));
    let said = || {
        let mut said = [0; 256];
        let len = manager.recv(&mut said).unwrap();
        String::from_utf8_lossy(&said[..len]).into_owned()
    };
    assert!(said().starts_with("READY=1\n"));
    vm.signal(Signal::TERM);
    assert!(said().starts_with("STOPPING=1\n"));
    vm.ends_with(0, SOON);
}

#[test]
fn a_machine_of_the_library_is_not_the_next_one_of_its_name() {
    let dir = TempDir::new();
    let config = vmm::MachineConfig {
        name: Some(format!("again-{}", std::process::id())),
        ..vmm::MachineConfig::new(handmade::kernel(&dir, echo()))
    };
    let start = || vmm::Vm::start_by(wirevm(), &config).unwrap();
    let mut first = start();
    let client = first.client().unwrap();
    first.type_in("q").unwrap();
    client.wait_until_gone();
    let second = start();
    // The name is another's by now.
    client.wait_until_gone();
    assert!(first.client().is_err() && first.info().is_err());
    drop(first);
    assert_eq!(second.info().unwrap().state, vmm::info::MachineState::Running);
    assert_eq!(second.stop().unwrap(), 0);
}

#[test]
fn the_library_starts_asks_and_stops() {
    let host = need!(Netns::new());
    let dir = TempDir::new();
    let config = vmm::MachineConfig {
        net: vec!["tap,host=172.31.0.1/24".parse().unwrap()],
        ..vmm::MachineConfig::new(handmade::kernel(&dir, echo()))
    };
    let program = wirevm_path();
    let program = program.to_str().unwrap();
    let mut vm = vmm::Vm::start_by(host.command(program), &config).unwrap();
    vm.wait_for("ready\r\n", SOON).unwrap();
    vm.type_in("hello").unwrap();
    assert_eq!(vm.wait_for("hello", SOON).unwrap(), "hello");
    let info = vm.info().unwrap();
    assert_eq!(
        (info.config.net.len(), info.nics[0].kind.as_str(), info.name.as_str()),
        (1, "tap", vm.name())
    );
    assert_eq!(info.nics[0].hops[1]["what"], "tap");
    vm.pause().unwrap();
    assert_eq!(vm.info().unwrap().state, vmm::info::MachineState::Paused);
    vm.resume().unwrap();
    let missing = vm.wait_for("no such words", Duration::from_millis(100)).unwrap_err();
    assert!(missing.to_string().contains("ready"), "{missing}");
    let mut other =
        vmm::Vm::start_by(host.command(program), &vmm::MachineConfig { net: vec![], ..config.clone() })
            .unwrap();
    assert_ne!(other.name(), vm.name());
    other.type_in("q").unwrap();
    assert_eq!(other.wait().unwrap(), 0);
    assert_eq!(vm.stop().unwrap(), 0);
    let refused =
        vmm::Vm::start_by(host.command(program), &vmm::MachineConfig::new("/no/such/kernel")).unwrap_err();
    assert!(refused.to_string().contains("/no/such/kernel"), "{refused}");
    assert!(!host.state().contains("wirevm"), "{}", host.state());
}

#[test]
fn machined_is_told_where_it_is_there() {
    let world = World::new(echo());
    let host = need!(Netns::new());
    let listener = std::os::unix::net::UnixListener::bind(world.dir.path("io.systemd.Machine")).unwrap();
    let run = |args: &str| {
        let mut command = host.command("unshare");
        let script = format!(
            "set -e; mount -t tmpfs none /run; mkdir /run/systemd; [ -z \"$3\" ] || ln -s \"$3\" /run/systemd/machine; \
             exec \"$1\" run --kernel \"$2\" --name web --register {args}"
        );
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(wirevm_path()).arg(&world.kernel);
        command.env("WIREVM_RUNTIME_DIR", world.dir.path("run")).stdin(Stdio::null());
        command
    };
    for (answer, status) in [
        (r#"{"parameters":{}}"#, 0),
        (r#"{"error":"io.systemd.Machine.MachineExists"}"#, 1),
        ("no varlink", 1),
    ] {
        let machined = std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let (mut client, _) = listener.accept().unwrap();
                let mut asked = Vec::new();
                while asked.last() != Some(&0) {
                    let mut byte = [0];
                    client.read_exact(&mut byte).unwrap();
                    asked.push(byte[0]);
                }
                client.write_all(format!("{answer}\0").as_bytes()).unwrap();
                asked.pop();
                serde_json::from_slice::<Value>(&asked).unwrap()
            });
            let mut vm = Vm::start(run("--net tap").arg(world.dir.path("")));
            if status == 0 {
                vm.expect("ready\r\n", SOON);
                vm.signal(Signal::TERM);
            }
            vm.ends_with(status, SOON);
            if status != 0 {
                assert!(vm.messages().contains("cannot register with systemd-machined"), "{}", vm.messages());
            }
            asked.join().unwrap()
        });
        assert_eq!(machined["method"], "io.systemd.Machine.Register");
        let told = &machined["parameters"];
        assert_eq!((&told["name"], &told["class"]), (&"web".into(), &"vm".into()));
        assert!(
            told["ifIndices"].as_array().is_some_and(|links| links.len() == 1 && links[0].is_u64()),
            "{told}"
        );
    }
    // Nobody is there.
    let output = run("").arg("").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("drop --register"), "{said}");
}

#[test]
fn a_service_manager_passes_descriptors_by_name() {
    let world = World::new(echo());
    let host = need!(Netns::new());
    host.sh(
        "ip link add far type veth peer v1; ip link add link far name guest type macvtap; ip link set far up",
    );
    let by_name = |spec: &str| {
        // As systemd does: the number of the process that is about to be wirevm, and descriptors from 3 on.
        let script = format!(
            "mount -t sysfs sysfs /sys; mknod \"$2\" c $(cat /sys/class/net/guest/macvtap/tap*/dev | tr : ' '); \
             exec 3</dev/null 4<>\"$2\"; rm \"$2\"; \
             export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=other:lan; exec \"$0\" run --kernel \"$1\" --net {spec}"
        );
        let mut command = host.command("unshare");
        command
            .args(["--mount", "sh", "-c", &script])
            .arg(wirevm_path())
            .arg(&world.kernel)
            .arg(world.dir.path("tap"));
        command.env("WIREVM_RUNTIME_DIR", world.dir.path("run")).stdin(Stdio::null());
        command
    };
    let mut vm = Vm::start(&mut by_name("fd=lan"));
    vm.expect("ready\r\n", SOON);
    let shown = world.json(&["show", "vm0", "--json"]);
    assert_eq!(shown["nics"][0]["spec"].as_str().unwrap().split(',').next(), Some("fd=4"), "{shown}");
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
    let output = by_name("fd=wan").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("other, lan"), "{said}");
}

#[test]
fn systemd_accepts_the_unit() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        harness::skip!("there is no systemd-analyze");
    }
    let dir = TempDir::new();
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/systemd/wirevm@.service");
    let text = fs::read_to_string(unit).unwrap();
    let program = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let program = program.split(' ').next().unwrap();
    // Where it is not installed.
    let here = wirevm_path();
    fs::write(dir.path("wirevm@test.service"), text.replace(program, here.to_str().unwrap())).unwrap();
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(dir.path("wirevm@test.service"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("wirevm@"), "{said}");
}

#[test]
fn the_unit_s_capabilities_are_enough() {
    let world = World::new(echo());
    let host = need!(Netns::new());
    let unit = include_str!("../resources/systemd/wirevm@.service");
    let wanted = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let wanted =
        wanted.split(' ').map(|name| format!(",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()));
    let bounding = format!("-all{}", wanted.collect::<String>());
    host.sh("ip link add far type veth peer v1; ip link set far up");
    let before = host.state();
    let kernel = world.kernel.to_str().unwrap();
    for net in ["tap,nat", "bridge=br0,uplink=far", "macvtap=far", "tun"] {
        let mut command = host.command("setpriv");
        command.args(["--bounding-set", &bounding, "--no-new-privs", "--inh-caps", &bounding]);
        command.arg(wirevm_path()).args(["run", "--kernel", kernel, "--net", net]);
        command.env("WIREVM_RUNTIME_DIR", world.dir.path("run")).stdin(Stdio::null());
        let mut vm = Vm::start(&mut command);
        vm.expect("ready\r\n", SOON);
        vm.signal(Signal::TERM);
        vm.ends_with(0, SOON);
        host.is_as(&before);
    }
}

#[test]
fn a_machine_that_does_not_listen_holds_nobody_up() {
    let world = World::new(echo());
    let mut vm = Vm::start(&mut world.run(&["--name", "web"]));
    vm.expect("ready\r\n", SOON);
    let machine = rustix::process::Pid::from_raw(vm.machine_pid() as i32).unwrap();
    rustix::process::kill_process(machine, Signal::STOP).unwrap();
    // More than a socket holds. Where too many clients are there at once, one is sent away.
    let path = world.dir.path("run/vm/web/control");
    let ask = |mut stream: UnixStream| stream.write_all(b"{\"method\":\"io.wirevm.Machine.Metrics\"}\0");
    let until = Instant::now() + SOON;
    let mut asked = 0;
    while asked < 1000 {
        assert!(Instant::now() < until, "the keeper hears nobody after {asked}");
        match UnixStream::connect(&path).and_then(ask) {
            Ok(()) => asked += 1,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
        // The keeper has time for each.
        std::thread::sleep(Duration::from_micros(500));
    }
    while !world.command(&["show", "web"]).output().unwrap().status.success() {
        assert!(Instant::now() < until, "the keeper hears nobody");
    }
    world.ok(&["stop", "web", "--force"]);
    vm.ends_with(0, SOON);
}
