//! Two processes: what the one that runs the guest may do, and what becomes of the other when one is killed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::netns::Netns;
use harness::{TempDir, Vm, guest, handmade, need, puts, wirevm};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

const SOON: Duration = Duration::from_secs(30);

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

/// The lines `Name: value` of a file of `/proc`.
fn lines(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// The threads of a process: name and what its status says.
fn threads(pid: u32) -> Vec<(String, BTreeMap<String, String>)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    // KVM has a thread of its own in each process with a VM.
    let ours = |(name, _): &(String, _)| !name.starts_with("kvm-");
    let mut threads: Vec<_> = tasks
        .flatten()
        .map(|task| lines(&task.path().join("status")))
        .map(|status| (status.get("Name").cloned().unwrap_or_default(), status))
        .filter(ours)
        .collect();
    threads.sort_by(|(one, _), (other, _)| one.cmp(other));
    threads
}

fn is_there(pid: u32) -> bool {
    // A thread that is a zombie has let go of what it had open, but the first one is a zombie before the others have.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    // proc_pid_stat(5): the name in brackets, the state.
    stats.filter_map(|stat| stat.rsplit(") ").next()?.chars().next()).any(|state| !"ZX".contains(state))
}

#[track_caller]
fn goes(pid: u32) {
    let until = Instant::now() + SOON;
    while is_there(pid) {
        assert!(Instant::now() < until, "the process {pid} does not go");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A guest that runs, with a tap, on a host whose links were `before`.
fn start(host: &Netns, dir: &TempDir, args: &[&str]) -> Vm {
    let kernel = handmade::kernel(dir, forever());
    let common = ["run", "--kernel", kernel.to_str().unwrap(), "--net", "tap,host=172.31.0.1/24,queues=2"];
    let mut vm = Vm::start_in(host, &[&common[..], args].concat());
    vm.expect("running\n", SOON);
    vm
}

#[test]
fn the_process_that_runs_the_guest_has_no_right_and_each_thread_a_filter() {
    let (host, dir) = (need!(Netns::with_own_run()), TempDir::new());
    for (args, user) in [(&[][..], "65534"), (&["--user", "12345"], "12345")] {
        let vm = start(&host, &dir, args);
        let threads = threads(vm.machine_pid());
        let names: Vec<_> = threads.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["balloon", "net0-0", "net0-1", "rng", "vcpu0", "vsock", "wirevm"]);
        for (name, status) in &threads {
            let ids = [user; 4].join("\t");
            // The main thread makes threads, and has a filter more, by which it makes nothing else.
            let filters = if name == "wirevm" { "2" } else { "1" };
            for (key, value) in [
                ("Uid", ids.as_str()),
                ("Gid", &ids),
                ("Groups", ""),
                ("CapEff", "0000000000000000"),
                ("CapPrm", "0000000000000000"),
                ("CapInh", "0000000000000000"),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
                ("Seccomp_filters", filters),
            ] {
                assert_eq!(status.get(key).map(String::as_str), Some(value), "{key} of {name}");
            }
        }
        // The other one has the rights, and one thread.
        let keeper = lines(Path::new(&format!("/proc/{}/status", vm.pid())));
        assert_eq!((keeper["Threads"].as_str(), keeper["Seccomp"].as_str()), ("1", "0"));
        assert_ne!(keeper["CapEff"], "0000000000000000");
    }
    let vm = start(&host, &dir, &["--sandbox", "off"]);
    for (name, status) in threads(vm.machine_pid()) {
        assert_eq!((status["Seccomp"].as_str(), status["Uid"].starts_with("0\t")), ("0", true), "{name}");
    }
}

#[test]
fn each_thread_has_its_cpu_and_is_shown() {
    let (host, dir) = (need!(Netns::with_own_run()), TempDir::new());
    let allowed = lines(Path::new("/proc/thread-self/status"))["Cpus_allowed_list"].clone();
    let cpu: String =
        allowed.chars().rev().take_while(char::is_ascii_digit).collect::<Vec<_>>().iter().rev().collect();
    let mut vm =
        start(&host, &dir, &["--name", "web", "--cpus", "2", "--cpu-affinity", &format!("{cpu}:{cpu}")]);
    let shown = host.sh(&format!("{} show web", harness::wirevm_path().display()));
    for (name, status) in threads(vm.machine_pid()) {
        // Threads of NICs are born before the vCPUs, and do not have theirs.
        let wanted = if name.starts_with("vcpu") { &cpu } else { &allowed };
        assert_eq!(&status["Cpus_allowed_list"], wanted, "{name}");
        let line = format!("{}, {name}, on CPU {wanted}\n", status["Pid"]);
        assert!(shown.contains(&line), "{line}is not in:\n{shown}");
    }
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
    let kernel = handmade::kernel(&dir, forever());
    for (list, words) in [
        (
            "0",
            "--cpu-affinity 0: there is one CPU for each vCPU, and these are 2\n  try:   take --cpus 1, or name",
        ),
        ("1023:0", "CPU 1023 is offline, is not there, or is not ours to use"),
        ("0,1", "expected numbers of CPUs below 1024"),
    ] {
        let output = wirevm()
            .args(["run", "--cpus", "2", "--cpu-affinity", list, "--kernel"])
            .arg(&kernel)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{said}");
    }
}

#[test]
fn what_confines_it_is_said_and_has_no_path() {
    let (host, dir) = (need!(Netns::with_own_run()), TempDir::new());
    let mut vm = start(&host, &dir, &["-v"]);
    // The guest may be quicker than the machine's word that it runs.
    vm.expect_message("is confined: ", SOON);
    let messages = vm.messages();
    let said = messages.lines().find(|line| line.contains("is confined: "));
    let said = said.unwrap_or_else(|| panic!("{messages}"));
    assert!(said.contains("user 65534, no capability, no path (") && said.contains("seccomp"), "{said}");
    if said.contains("an empty root") {
        let root = fs::read_dir(format!("/proc/{}/root", vm.machine_pid())).expect("root may look");
        assert_eq!(root.count(), 0);
    }
}

#[test]
fn when_the_machine_is_killed_the_host_is_as_before_and_it_is_said() {
    let (host, dir) = (need!(Netns::with_own_run()), TempDir::new());
    let before = host.everything();
    for (signal, name) in [(Signal::KILL, "SIGKILL"), (Signal::SEGV, "SIGSEGV")] {
        let mut vm = start(&host, &dir, &[]);
        let machine = Pid::from_raw(vm.machine_pid() as i32).unwrap();
        // Rust's own handler steps aside at the first, and a fault comes again.
        for _ in 0..if signal == Signal::SEGV { 2 } else { 1 } {
            kill_process(machine, signal).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        vm.ends_with(1, SOON);
        let said = format!("error: the process that runs the guest was killed by {name}\n");
        assert!(vm.messages().starts_with(&said), "{}", vm.state());
        host.has_everything_as(&before, name);
    }
}

#[test]
fn whenever_the_machine_is_killed_the_host_is_as_before() {
    let (host, dir) = (need!(Netns::with_own_run()), TempDir::new());
    let before = host.everything();
    let kernel = handmade::kernel(&dir, forever());
    for step in 0..24 {
        let args = ["run", "--kernel", kernel.to_str().unwrap(), "--net", "tap,nat", "--net", "bridge=br0"];
        let mut vm = Vm::start_in(&host, &args);
        let until = Instant::now() + SOON;
        let machine = loop {
            // `nsenter` has no child; what it becomes has one once the machine is forked.
            if let Some(pid) = vm.try_machine_pid() {
                break pid;
            }
            assert!(Instant::now() < until, "there is no machine\n{}", vm.state());
        };
        std::thread::sleep(Duration::from_millis(step));
        kill_process(Pid::from_raw(machine as i32).unwrap(), Signal::KILL).unwrap();
        vm.ends_with(1, SOON);
        assert!(vm.messages().contains("was killed by SIGKILL"), "after {step} ms\n{}", vm.state());
        host.has_everything_as(&before, &format!("killed after {step} ms"));
    }
}

#[test]
fn when_the_keeper_is_killed_the_machine_goes_and_the_next_one_takes_back() {
    let (host, dir) = (need!(Netns::with_own_run()), TempDir::new());
    let before = host.everything();
    let mut vm = start(&host, &dir, &["--net", "bridge=br0"]);
    let machine = vm.machine_pid();
    vm.signal(Signal::KILL);
    vm.wait(SOON);
    goes(machine);
    assert!(host.sh("ip link show br0").contains("br0"), "what outlives it is there");
    let mut vm = start(&host, &dir, &[]);
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
    host.has_everything_as(&before, "after the next one");
}

#[test]
fn what_a_keeper_becomes_that_panicked_takes_back_and_has_failed() {
    let (host, dir) = (need!(Netns::with_own_run()), TempDir::new());
    let before = host.everything();
    let mut vm = start(&host, &dir, &["--name", "web", "--net", "bridge=br0"]);
    vm.signal(Signal::KILL);
    vm.wait(SOON);
    let done = host.command(harness::wirevm_path().to_str().unwrap()).arg("take-back").output().unwrap();
    assert_eq!((done.status.code(), done.stderr.as_slice()), (Some(1), &b""[..]));
    host.has_everything_as(&before, "taken back");
    assert!(!host.sh("ls -R /run/wirevm").contains("web"), "nothing says that the machine is there");
}

#[test]
fn who_is_killed_can_be_started_again_at_once() {
    let (host, dir) = (need!(Netns::with_own_run()), TempDir::new());
    let mut last = start(&host, &dir, &["--name", "web"]);
    for _ in 0..20 {
        last.signal(Signal::KILL);
        // The same name, the same address.
        last = start(&host, &dir, &["--name", "web"]);
    }
    last.signal(Signal::TERM);
    last.ends_with(0, SOON);
}

#[test]
fn a_signal_to_all_of_the_job_ends_it_in_order() {
    let (host, dir) = (need!(Netns::with_own_run()), TempDir::new());
    let before = host.everything();
    let kernel = handmade::kernel(&dir, forever());
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        let mut command = host.command(harness::wirevm_path().to_str().unwrap());
        command.args(["-v", "run", "--net", "tap", "--kernel"]).arg(&kernel).process_group(0);
        let mut vm = Vm::start(&mut command);
        vm.expect("running\n", SOON);
        // As a terminal's Ctrl-C, and as a shell's kill of a job.
        kill_process_group(Pid::from_raw(vm.pid() as i32).unwrap(), signal).unwrap();
        vm.ends_with(0, SOON);
        assert!(vm.messages().contains("ended by SIG"), "{}", vm.state());
        host.has_everything_as(&before, &format!("{signal:?}"));
    }
}

#[test]
fn who_is_to_ignore_hangups_does() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, forever());
    let mut command = std::process::Command::new("nohup");
    command.arg(harness::wirevm_path()).args(["run", "--kernel"]).arg(kernel);
    let mut vm = Vm::start(&mut command);
    vm.expect("running\n", SOON);
    vm.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_there(vm.pid()), "{}", vm.state());
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
}

#[test]
fn a_job_of_a_script_ends_at_an_interrupt() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, forever());
    for (name, signal) in [("INT", Signal::INT), ("QUIT", Signal::QUIT)] {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("trap '' {name}; exec \"$0\" run --kernel \"$1\"")]);
        let mut vm = Vm::start(command.arg(harness::wirevm_path()).arg(&kernel));
        vm.expect("running\n", SOON);
        vm.signal(signal);
        vm.ends_with(0, SOON);
    }
}

#[test]
fn a_user_that_cannot_be_is_refused() {
    for (args, word) in [(["--user", "0"], "--user"), (["--sandbox", "some"], "--sandbox")] {
        let output = wirevm().args(["run", "--kernel", "x"]).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(word));
    }
}
