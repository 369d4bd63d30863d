//! Directories of the host in the guest: what is refused, whose processes are there and when they are gone, and a guest that uses them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use harness::netns::Netns;
use harness::{TempDir, Vm, as_nobody, guest, handmade, need, puts, wirevm, wirevm_path};
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(30);

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

/// What a fake one answers to `--help`.
const HELP: &str = "[ \"$1\" != --help ] || { echo '--fd=FDNUM -o source=PATH'; exit; }";

/// A program in place of `virtiofsd`.
fn fake(dir: &TempDir, script: &str) -> PathBuf {
    let path = dir.file("virtiofsd", format!("#!/bin/sh\n{HELP}\n{script}\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Whether this host has a real one, as `wirevm doctor` says.
fn virtiofsd() -> Result<(), String> {
    let doctor = wirevm().args(["doctor", "--json"]).stdin(Stdio::null()).output().expect("wirevm starts");
    let found = String::from_utf8_lossy(&doctor.stdout).contains("shares directories with guests by");
    if found { Ok(()) } else { Err("there is no virtiofsd".into()) }
}

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in words.iter().chain(&["\n  try:   "]) {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
}

#[test]
fn what_cannot_be_shared_is_refused() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, forever());
    let file = dir.file("file", "");
    let here = dir.path("").to_str().unwrap().trim_end_matches('/').to_owned();
    let refuse = |program: &Path, args: &[&str]| {
        let mut command = wirevm();
        command.args(["run", "--kernel"]).arg(&kernel).args(args).env("WIREVM_VIRTIOFSD", program);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let works = fake(&dir, "exit 0");
    let share = |what: &str| format!("{what}:tag");
    for (args, words) in [
        (
            &["--share", &share(&format!("{here}/absent"))][..],
            &["absent", "No such file", "name a directory"][..],
        ),
        (&["--share", &share(file.to_str().unwrap())], &["file", "not a directory", "name a directory"]),
        (&["--share", &share(&here), "--share", "/:tag"], &["two directories", "\"tag\"", "DIR:TAG"]),
        (&["--share", &share(&here), "--memory", "64M,mergeable=on"], &["mergeable", "drop mergeable="]),
    ] {
        refused(&refuse(&works, args), words);
    }
    let shared = share(&here);
    let args = ["--share", shared.as_str()];
    refused(&refuse(&dir.path("absent"), &args), &["cannot start", "absent", "No such file"]);
    refused(&refuse(Path::new("/bin/true"), &args), &["/bin/true is no virtiofsd", "WIREVM_VIRTIOFSD"]);
    let ends = fake(&dir, "echo 'no sandbox here' >&2; exit 3");
    refused(&refuse(&ends, &args), &["has ended with status 3", "cause: no sandbox here"]);
    // It takes the connection, and then closes it.
    let deaf = fake(&dir, "exit 0");
    refused(&refuse(&deaf, &args), &["the virtiofsd of the share tag is of no use", "closed the connection"]);

    let usage =
        wirevm().args(["run", "--kernel", "x", "--share", &format!("{here}:{}", "x".repeat(37))]).output();
    let usage = usage.unwrap();
    assert_eq!(usage.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&usage.stderr).contains("36 bytes"));

    let closed = dir.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let mut nobody = as_nobody(Command::new("setpriv"), &dir);
    nobody.args(["run", "--kernel"]).arg(&kernel).args(["--share", closed.to_str().unwrap()]);
    let output = nobody.env("WIREVM_VIRTIOFSD", &works).stdin(Stdio::null()).output().unwrap();
    refused(&output, &["cannot share", "Permission denied", "may read"]);
}

/// All processes of `virtiofsd` that a keeper started, by its group: as (process, its parent).
fn of_group(group: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_in = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // proc_pid_stat(5): the name in brackets, the state, the parent, the group.
        let words: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        words.len() > 2 && !"ZX".contains(words[0]) && words[2] == group.to_string()
    };
    pids.filter(is_in).collect()
}

/// The first processes that share directories for `vm`.
fn sharers(vm: &Vm) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let keeper = vm.pid().to_string();
    let is_one = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(&keeper)
            && name.trim() != "wirevm"
    };
    pids.filter(is_one).collect()
}

#[track_caller]
fn all_go(groups: &[u32]) {
    let until = Instant::now() + SOON;
    while groups.iter().any(|group| !of_group(*group).is_empty()) {
        assert!(Instant::now() < until, "{groups:?} do not go");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn nothing_is_left_of_virtiofsd_however_the_run_ends() {
    need!(virtiofsd());
    let (host, dir, shared) = (need!(Netns::with_own_run()), TempDir::new(), TempDir::new());
    let kernel = handmade::kernel(&dir, forever());
    let (kernel, here) = (kernel.to_str().unwrap(), shared.path(""));
    let here = here.to_str().unwrap();
    let args =
        ["run", "--kernel", kernel, "--share", &format!("{here}:a"), "--share", &format!("{here}:b,ro")];
    type End = fn(&Vm);
    let ends: [(&str, End); 4] = [
        ("asked", |vm| vm.signal(Signal::TERM)),
        ("the keeper is killed", |vm| kill(vm.pid())),
        ("the machine is killed", |vm| kill(vm.machine_pid())),
        ("all is killed", |vm| {
            let machine = vm.machine_pid();
            kill(vm.pid());
            kill_process(Pid::from_raw(machine as i32).unwrap(), Signal::KILL).ok();
        }),
    ];
    for (how, end) in ends {
        let mut vm = Vm::start_in(&host, &args);
        vm.expect("running\n", SOON);
        let groups = sharers(&vm);
        assert_eq!(groups.len(), 2, "{how}\n{}", vm.state());
        assert!(groups.iter().all(|group| !of_group(*group).is_empty()));
        // In sessions of their own, without the user's terminal or any descriptor of wirevm's.
        for pid in &groups {
            let fds: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().collect();
            let tun = fds.iter().filter_map(|fd| fs::read_link(fd.path()).ok());
            assert!(!tun.clone().any(|path| path.to_string_lossy().contains("kvm")), "{how}");
        }
        end(&vm);
        vm.wait(SOON);
        all_go(&groups);
    }
    let left: Vec<_> = fs::read_dir(std::env::temp_dir()).unwrap().flatten().collect();
    assert!(
        !left.iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".wirevm-")),
        "{left:?}"
    );
}

#[test]
fn a_machine_goes_on_without_its_virtiofsd_and_pauses_with_it() {
    need!(virtiofsd());
    let (host, dir, shared) = (need!(Netns::with_own_run()), TempDir::new(), TempDir::new());
    let kernel = handmade::kernel(&dir, forever());
    let share = format!("{}:data", shared.path("").display());
    for transport in ["pci", "mmio"] {
        let args = [
            "run",
            "--name",
            "web",
            "--kernel",
            kernel.to_str().unwrap(),
            "--share",
            &share,
            "--transport",
            transport,
        ];
        let mut vm = Vm::start_in(&host, &args);
        vm.expect("running\n", SOON);
        let machine = vm.machine_pid();
        let tasks = fs::read_dir(format!("/proc/{machine}/task")).unwrap().flatten();
        let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        let thread =
            statuses.into_iter().find(|status| status.starts_with("Name:\tshare0\n")).expect("a thread");
        assert!(thread.contains("Seccomp:\t2\n"), "{thread}");
        let memory = fs::read_to_string(format!("/proc/{machine}/maps")).unwrap();
        assert!(memory.contains("/memfd:wirevm"), "{memory}");
        let wirevm = wirevm_path();
        host.sh(&format!("{0} pause web && {0} resume web", wirevm.display()));
        let groups = sharers(&vm);
        kill(groups[0]);
        vm.expect_message("the virtiofsd of the share data has ended with SIGKILL", SOON);
        vm.expect_message("the share data: its back end is lost, and the guest gets errors", SOON);
        all_go(&groups);
        host.sh(&format!("{0} pause web && {0} resume web", wirevm.display()));
        vm.signal(Signal::TERM);
        vm.ends_with(0, SOON);
    }
}

/// It takes up the connection, says what nobody asked for, and stays.
const IDLE_TALK: &str = r#"exec perl -e '
open L, "+<&=0"; accept S, L or die;
sub take { my $b = ""; while (length $b < $_[0]) { sysread S, $b, $_[0] - length $b, length $b or exit } $b }
my %answer = (1 => 1 << 32 | 1 << 30, 15 => 0);
while (1) {
    my ($request, $flags, $length) = unpack "V3", take 12;
    take $length if $length;
    syswrite S, pack "V3 Q<", $request, 5, 8, $answer{$request} if exists $answer{$request};
    if ($request == 3) { syswrite S, "x"; sleep 1000 }
}'"#;

#[test]
fn one_that_is_of_no_use_is_killed_for_it_has_the_guests_memory() {
    let (host, dir, shared) = (need!(Netns::with_own_run()), TempDir::new(), TempDir::new());
    let perl = Command::new("perl").arg("-v").output().map(drop);
    need!(perl.map_err(|error| format!("there is no perl: {error}")));
    let (kernel, fake) = (handmade::kernel(&dir, forever()), fake(&dir, IDLE_TALK));
    let (fake, share) =
        (format!("WIREVM_VIRTIOFSD={}", fake.display()), format!("{}:data", shared.path("").display()));
    let args = ["run", "--kernel", kernel.to_str().unwrap(), "--share", &share];
    let mut vm = Vm::start_by(&host, &["env", &fake], &args);
    vm.expect("running\n", SOON);
    vm.expect_message(
        "the share data: its back end is lost, and the guest gets errors once it has ended",
        SOON,
    );
    vm.expect_message("the virtiofsd of the share data does not do its work, and is killed", SOON);
    vm.expect_message("the virtiofsd of the share data has ended with SIGKILL", SOON);
    all_go(&sharers(&vm));
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
}

mod stock {
    use super::*;
    use harness::stock::{self, BOOT};

    /// A thousand files are some thousand requests, each of them an exit and an interrupt or two.
    const COMMAND: Duration = Duration::from_secs(300);

    #[test]
    fn a_guest_reads_and_writes_a_directory_of_the_host() {
        need!(virtiofsd());
        for kernel in need!(stock::debian()) {
            let (netns, dir) = (need!(Netns::new()), TempDir::new());
            let [data, fixed] = ["data", "fixed"].map(|name| dir.path(name));
            [&data, &fixed].into_iter().for_each(|path| fs::create_dir(path).unwrap());
            fs::write(data.join("greeting"), "hello\n").unwrap();
            fs::write(fixed.join("fixed"), "as it was\n").unwrap();
            let noise: Vec<u8> =
                (0..4 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            fs::write(data.join("noise"), &noise).unwrap();
            let shares = [format!("{}:data", data.display()), format!("{}:fixed,ro", fixed.display())];
            let args = [
                "--share",
                &shares[0],
                "--share",
                &shares[1],
                "--memory",
                "256M",
                "--cpus",
                "2",
                "--name",
                "share-test",
            ];
            let mut vm = kernel.boot(&netns, "wirevm.more", &args);
            vm.sh(
                "mkdir /data /fixed && mount -t virtiofs data /data && mount -t virtiofs fixed /fixed",
                COMMAND,
            );
            assert_eq!(vm.sh("cat /data/greeting /fixed/fixed", COMMAND), "hello\nas it was\n");
            // Large ones, both ways.
            vm.sh("cp /data/noise /dev/shm/noise && cp /dev/shm/noise /data/copy && sync", COMMAND);
            assert!(fs::read(data.join("copy")).unwrap() == noise, "{}: other bytes", kernel.name);
            let sum = vm.sh("md5sum </dev/shm/noise", COMMAND);
            assert_eq!(sum, vm.sh("md5sum </data/copy", COMMAND));
            // Many small ones, as many as say something of the queue, and with one kernel more.
            let many = if kernel.name == "6.12" { 1000 } else { 50 };
            let make = format!(
                "mkdir /data/many && i=0; while [ $i -lt {many} ]; do echo $i >/data/many/$i; i=$((i+1)); done"
            );
            vm.sh(&make, COMMAND);
            let number = |at: u32| fs::read_to_string(data.join("many").join(at.to_string())).unwrap();
            assert!((0..many).all(|at| number(at) == format!("{at}\n")));
            assert_eq!(vm.sh("ls /data/many | wc -l", COMMAND).trim(), many.to_string());
            vm.sh("mv /data/many/7 /data/seven && ln -s seven /data/link && rm -r /data/many", COMMAND);
            assert_eq!(fs::read_to_string(data.join("link")).unwrap(), "7\n");
            assert!(!data.join("many").exists());
            // A machine that stands still for a moment, in the middle of it.
            vm.type_in("(cp /dev/shm/noise /data/again; sync; echo done >/data/done) &\n");
            let wirevm = wirevm_path();
            netns.sh(&format!("{0} pause share-test && {0} resume share-test", wirevm.display()));
            vm.sh("wait; cmp /data/again /dev/shm/noise", COMMAND);
            assert!(fs::read(data.join("again")).unwrap() == noise, "{}: other bytes", kernel.name);
            // What the host changes.
            fs::write(data.join("late"), "from the host\n").unwrap();
            assert_eq!(vm.sh("cat /data/late", COMMAND), "from the host\n");
            // What may not be changed.
            for change in ["echo x >/fixed/fixed", "echo x >/fixed/new", "rm /fixed/fixed", "mkdir /fixed/d"]
            {
                let refused = vm.shell(change, COMMAND);
                assert!(refused.status != 0 && refused.text.contains("Read-only"), "{change}: {refused:?}");
            }
            assert_eq!(fs::read_to_string(fixed.join("fixed")).unwrap(), "as it was\n");
            assert_eq!(fs::read_dir(&fixed).unwrap().count(), 1);

            // Its driver comes again.
            vm.sh("umount /fixed && d=$(ls /sys/bus/virtio/drivers/virtiofs | grep virtio | tail -n 1) && cd /sys/bus/virtio/drivers/virtiofs && echo $d >unbind && echo $d >bind && cd / && mount -t virtiofs fixed /fixed && cat /fixed/fixed", COMMAND);

            // A virtiofsd that is gone: errors, and no guest that hangs.
            sharers(&vm).into_iter().for_each(kill);
            vm.expect_message("the share data: its back end is lost", COMMAND);
            let gone = vm.shell("ls /data/; cat /data/never", COMMAND);
            assert!(gone.status != 0 && gone.text.contains("not connected"), "{gone:?}\n{}", vm.state());
            vm.type_in("poweroff\n");
            vm.ends_with(0, COMMAND);
        }
    }

    #[test]
    fn a_user_without_rights_shares_what_is_his() {
        need!(virtiofsd());
        let kernel = need!(stock::newest());
        let dir = TempDir::new();
        let data = dir.path("data");
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::chown(&data, Some(65534), Some(65534)).unwrap();
        let runtime = dir.path("run");
        fs::create_dir(&runtime).unwrap();
        std::os::unix::fs::chown(&runtime, Some(65534), Some(65534)).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
        for read_only in ["", ",ro"] {
            let mut command = as_nobody(Command::new("setpriv"), &dir);
            command.args(kernel.args("wirevm.more")).env("XDG_RUNTIME_DIR", &runtime);
            command.arg("--share").arg(format!("{}:data{read_only}", data.display()));
            let mut vm = Vm::start(&mut command);
            vm.expect_from_shell("guest# ", BOOT);
            vm.sh("mkdir /data && mount -t virtiofs data /data", COMMAND);
            match read_only {
                "" => drop(vm.sh("echo mine >/data/file && chmod 640 /data/file && cat /data/file", COMMAND)),
                _ => {
                    let refused = vm.shell("echo x >/data/file", COMMAND);
                    assert!(refused.text.contains("Read-only"), "{refused:?}");
                }
            }
            use std::os::unix::fs::MetadataExt;
            let file = fs::metadata(data.join("file")).unwrap();
            assert_eq!((file.uid(), file.mode() & 0o777), (65534, 0o640));
            vm.type_in("poweroff\n");
            vm.ends_with(0, COMMAND);
        }
    }
}
