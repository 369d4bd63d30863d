//! NICs that come and go while the guest runs.

use std::fs;
use std::process::Output;
use std::time::{Duration, Instant};

use harness::netns::Netns;
use harness::{TempDir, Vm, guest, handmade, need, puts, wirevm_path};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// Assembly: a guest that hears the event device, whose line (9) it unmasks at the IOAPIC, and says so.
macro_rules! hears {
    () => {
        concat!(
            "mov edi, 0xfec00000\n",
            "mov dword ptr [rdi], 0x22\n",
            "mov dword ptr [rdi + 16], 0x29\n",
            puts!("ready\\n"),
        )
    };
}

/// Assembly: waits until there is a slot to look at (ebx) or to let go (ecx), a bit each.
macro_rules! asked {
    () => {
        "2: mov edx, 0x610\n in eax, dx\n mov ebx, eax\n mov edx, 0x614\n in eax, dx\n mov ecx, eax\n or eax, ebx\n jz 2b\n"
    };
}

/// Assembly: looks at each slot in ebx as a driver does, at its configuration space, and has its word with this status.
macro_rules! looks {
    ($status:literal) => {
        concat!(
            "3: bsf esi, ebx\n jz 4f\n btr ebx, esi\n",
            "mov eax, esi\n shl eax, 11\n or eax, 0x80000000\n mov edx, 0xcf8\n out dx, eax\n",
            "mov edx, 0xcfc\n in eax, dx\n",
            // The event: a look at the bus, or at a slot.
            "mov eax, esi\n shl eax, 27\n mov edi, 0x10000 + ",
            $status,
            "\n test esi, esi\n jnz 5f\n xor edi, edi\n 5: or eax, edi\n",
            "mov edx, 0x61c\n out dx, eax\n jmp 3b\n 4:\n",
        )
    };
}

// Takes what comes and lets go what is asked for.
guest!(willing: hears!(), asked!(), looks!("0"), "mov eax, ecx", "mov edx, 0x618", "out dx, eax", "jmp 2b");
// Cannot use what comes, and keeps what it has.
guest!(unwilling:
    hears!(), asked!(), looks!("0x81"),
    "6: bsf esi, ecx", "jz 2b", "btr ecx, esi",
    "mov eax, esi", "shl eax, 27", "or eax, 0x30082", "mov edx, 0x61c", "out dx, eax", "jmp 6b",
);
// Hears, has seen what is in slot 1, and does nothing.
guest!(idle:
    "mov eax, 0x80000800", "mov edx, 0xcf8", "out dx, eax", "mov edx, 0xcfc", "in eax, dx",
    hears!(), "2: pause", "jmp 2b",
);
// Does not hear.
guest!(deaf: puts!("ready\\n"), "2: pause", "jmp 2b");

/// A machine called `web` in a namespace of its own.
struct World {
    netns: Netns,
    vm: Vm,
    _dir: TempDir,
}

/// Runs `wirevm` there.
fn command(netns: &Netns, args: &[&str]) -> Output {
    let path = wirevm_path();
    let mut command = netns.command(path.to_str().expect("a path in UTF-8"));
    command.args(args).output().expect("it starts")
}

impl World {
    fn new(code: &[u8], args: &[&str]) -> Result<Self, String> {
        let (netns, dir) = (Netns::with_own_run()?, TempDir::new());
        let kernel = handmade::kernel(&dir, code);
        let run = ["run", "--name", "web", "--memory", "64M", "--kernel", kernel.to_str().expect("UTF-8")];
        let mut vm = Vm::start_in(&netns, &[&run, args].concat());
        vm.expect("ready\n", SOON);
        Ok(Self { netns, vm, _dir: dir })
    }

    fn command(&self, args: &[&str]) -> Output {
        command(&self.netns, args)
    }

    /// `wirevm` with these words, which must succeed: what it prints.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}\n{}", self.vm.state());
        String::from_utf8(output.stdout).expect("text")
    }

    /// The same, which must be refused in these words; and nothing changes.
    #[track_caller]
    fn refused(&self, args: &[&str], words: &[&str]) {
        let (before, links) = (self.nics(), self.netns.settled());
        let output = self.command(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}\n{}", self.vm.state());
        for word in words {
            assert!(said.contains(word), "{args:?}: no {word:?} in {said}\n{}", self.vm.state());
        }
        assert_eq!(self.nics(), before, "{args:?}: {said}");
        self.netns.has_everything_as(&links, &format!("{args:?}"));
    }

    fn show(&self) -> Value {
        serde_json::from_str(&self.ok(&["show", "web", "--json"])).expect("JSON")
    }

    /// The names of its NICs, and what it was started with or would be.
    fn nics(&self) -> (Vec<String>, Vec<String>) {
        let info = self.show();
        let list =
            |of: &Value, each: fn(&Value) -> String| of.as_array().into_iter().flatten().map(each).collect();
        (
            list(&info["nics"], |nic| nic["name"].as_str().expect("a name").to_owned()),
            list(&info["config"]["net"], |net| net.to_string()),
        )
    }

    fn names(&self) -> Vec<String> {
        self.nics().0
    }

    /// How many seccomp filters a thread of the process that runs the guest has.
    fn filters(&self, thread: &str) -> Option<String> {
        let tasks =
            fs::read_dir(format!("/proc/{}/task", self.vm.machine_pid())).expect("we are root").flatten();
        let mut statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        let status = statuses.find(|status| status.starts_with(&format!("Name:\t{thread}\n")))?;
        status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:\t")).map(str::to_owned)
    }

    /// What both processes have: descriptors, threads, mappings.
    fn has(&self) -> Vec<usize> {
        let count =
            |pid: u32, what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("we are root").count();
        let maps =
            |pid: u32| fs::read_to_string(format!("/proc/{pid}/maps")).expect("we are root").lines().count();
        let all = |pid| [count(pid, "fd"), count(pid, "task"), maps(pid)];
        [all(self.vm.pid()), all(self.vm.machine_pid())].concat()
    }

    /// Fails unless that is as before, or soon is: a thread is gone a moment after it was joined.
    #[track_caller]
    fn has_no_more_than(&self, before: &[usize], when: &str) {
        let until = Instant::now() + Duration::from_secs(3);
        let more = |now: &[usize]| now.iter().zip(before).any(|(now, before)| now > before);
        let mut now = self.has();
        while more(&now) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            now = self.has();
        }
        assert!(
            !more(&now),
            "{when}: fds, threads, maps of both: {now:?}, before {before:?}\n{}",
            self.vm.state()
        );
    }
}

#[test]
fn nics_come_and_go_and_leave_nothing() {
    let world = need!(World::new(willing(), &["--net", "tap=tap0,host=10.9.0.1/24"]));
    let add = |index: usize| {
        let spec =
            ["tap=tap1,host=10.9.1.1/24", "tap=tap1,queues=2,affinity=0:0", "tun=tun1,host=10.9.1.1/24"]
                [index % 3];
        let nic: Value =
            serde_json::from_str(&world.ok(&["net", "add", "web", spec, "--json"])).expect("JSON");
        assert_eq!(nic["name"], "nic1");
        assert!(world.netns.sh("ip -o link").contains(nic["link"].as_str().expect("a name")));
    };
    let remove = |index: usize| {
        let force: &[_] = if index.is_multiple_of(2) { &[] } else { &["--force"] };
        world.ok(&[&["net", "remove", "web", "nic1"], force].concat());
    };
    // What is made once and kept is there after the first time.
    (0..3).for_each(|index| {
        add(index);
        remove(index);
    });
    let (before, links) = (world.has(), world.netns.settled());
    for index in 0..20 {
        add(index);
        assert_eq!(world.names(), ["nic0", "nic1"]);
        let threads = world.show()["threads"].to_string();
        assert!(threads.contains("net1-0"), "{threads}");
        // The main thread's two, with which it was born, and its own.
        assert_eq!(world.filters("net1-0").as_deref(), Some("3"));
        if index % 3 == 1 {
            assert!(
                threads.contains(r#"{"cpus":"0","id":"#) && threads.contains(r#""name":"net1-1"}"#),
                "{threads}"
            );
        }
        let metrics = world.ok(&["metrics", "web"]);
        assert!(metrics.contains("wirevm_kicks_total{vm=\"web\",nic=\"nic1\",queue=\"0\"} 0"), "{metrics}");
        remove(index);
        assert_eq!(world.names(), ["nic0"]);
        assert!(!world.ok(&["metrics", "web"]).contains("nic1"));
    }
    world.has_no_more_than(&before, "after 20 times");
    world.netns.has_everything_as(&links, "after 20 times");
    assert!(world.vm.messages().is_empty(), "{}", world.vm.state());
}

#[test]
fn a_nic_keeps_its_number_and_a_free_one_is_given_again() {
    let world = need!(World::new(willing(), &["--net", "tap=t0", "--net", "tap=t1"]));
    assert!(world.ok(&["net", "add", "web", "tap=t2"]).starts_with("nic2: tap=t2"));
    world.ok(&["net", "remove", "web", "nic0"]);
    assert_eq!(world.names(), ["nic1", "nic2"]);
    // One that the guest does not give back by itself is its own all the same.
    assert!(world.ok(&["net", "add", "web", "tap=t3"]).starts_with("nic0: tap=t3"));
    let (names, specs) = world.nics();
    assert_eq!(names, ["nic0", "nic1", "nic2"]);
    let order: Vec<_> =
        specs.iter().map(|spec| ["t3", "t1", "t2"].iter().position(|name| spec.contains(name))).collect();
    assert_eq!(order, [Some(0), Some(1), Some(2)], "{specs:?}");
    assert!(world.ok(&["net", "ls", "web"]).contains("nic2"));
    for name in ["nic0", "nic1", "nic2"] {
        world.ok(&["net", "remove", "web", name]);
    }
    assert!(world.names().is_empty());
    assert_eq!(world.netns.sh("ip -o link | grep -c t[0-3]: || true").trim(), "0");
}

#[test]
fn what_cannot_be_plugged_in_or_taken_out_changes_nothing() {
    let world = need!(World::new(willing(), &["--net", "tap=tap0,mac=02:00:00:00:00:07"]));
    for (spec, words) in [
        ("tap=tap0", &["both have", "tap0"][..]),
        ("tap=tap1,mac=02:00:00:00:00:07", &["both have the MAC 02:00:00:00:00:07"]),
        ("tap=tap1,colour=red", &["colour"]),
        ("macvtap=nosuch", &["nosuch"]),
        ("fd=3", &["inherits"]),
        ("tap=tap1,affinity=1000", &["CPU 1000"]),
        ("", &["error"]),
    ] {
        world.refused(&["net", "add", "web", spec], words);
    }
    world.refused(&["net", "remove", "web", "nic7"], &["there is no NIC nic7; the machine has nic0"]);
    world.refused(&["net", "remove", "web", "nic7", "--force"], &["there is no NIC nic7"]);
    world.refused(&["net", "remove", "web", "eth\x1b[0m"], &["there is no NIC eth\\"]);
    world.ok(&["pause", "web"]);
    world.refused(&["net", "add", "web", "tap=tap1"], &["the machine is paused, not running"]);
    world.refused(&["net", "remove", "web", "nic0"], &["the machine is paused, not running"]);
    world.ok(&["resume", "web"]);
    world.ok(&["net", "add", "web", "tap=tap1"]);
    assert!(world.vm.messages().is_empty(), "{}", world.vm.state());
}

#[test]
fn a_guest_that_cannot_be_asked_is_not() {
    let nic = ["--net", "tap=tap0"];
    let world = need!(World::new(deaf(), &nic));
    world.refused(&["net", "add", "web", "tap=tap1"], &["the guest does not listen"]);
    world.refused(&["net", "remove", "web", "nic0"], &["the guest does not listen", "--force"]);
    world.ok(&["net", "remove", "web", "nic0", "--force"]);
    assert!(world.names().is_empty() && world.netns.try_sh("ip link show tap0").is_err());

    let world = need!(World::new(willing(), &[&nic[..], &["--cmdline", "acpi=off"]].concat()));
    world.refused(&["net", "add", "web", "tap=tap1"], &["acpi=off", "no ACPI"]);
    world.refused(&["net", "remove", "web", "nic0"], &["acpi=off", "no ACPI"]);
    world.ok(&["net", "remove", "web", "nic0", "--force"]);

    let world = need!(World::new(willing(), &[&nic[..], &["--transport", "mmio"]].concat()));
    for args in
        [&["add", "web", "tap=tap1"][..], &["remove", "web", "nic0"], &["remove", "web", "nic0", "--force"]]
    {
        world.refused(&[&["net"], args].concat(), &["--transport mmio", "--transport pci"]);
    }
}

#[test]
fn a_guest_that_refuses_has_its_word_passed_on() {
    let world = need!(World::new(unwilling(), &["--net", "tap=tap0"]));
    let refuses = || world.refused(&["net", "add", "web", "tap=tap1"], &["the guest cannot use it", "0x81"]);
    // What is made once and kept is there after the first time.
    refuses();
    let before = world.has();
    refuses();
    world.refused(&["net", "remove", "web", "nic0"], &["the guest keeps it", "0x82", "--force"]);
    world.has_no_more_than(&before, "after refusals");
    world.ok(&["net", "remove", "web", "nic0", "--force"]);
}

#[test]
fn a_guest_that_never_answers_is_not_waited_for() {
    let world = need!(World::new(idle(), &["--net", "tap=tap0"]));
    let links = world.netns.settled();
    std::thread::scope(|scope| {
        let netns = &world.netns;
        let add = scope.spawn(|| command(netns, &["net", "add", "web", "tap=tap1"]));
        while world.netns.try_sh("ip link show tap1").is_err() {}
        // It is not there yet, and there is one at a time.
        assert_eq!(world.names(), ["nic0"]);
        for (args, word) in [
            (&["add", "web", "tap=tap2"][..], "nic1 is being plugged in"),
            (&["remove", "web", "nic1"], "nic1 is being plugged in"),
        ] {
            let said = world.command(&[&["net"], args].concat());
            assert!(String::from_utf8_lossy(&said.stderr).contains(word), "{said:?}");
        }
        let remove = || command(netns, &["net", "remove", "web", "nic0"]);
        let (one, other) = (scope.spawn(remove), scope.spawn(remove));
        let said = |output: Output| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            said
        };
        let added = said(add.join().expect("it ends"));
        assert!(added.contains("has not taken nic1 within 20 s"), "{added}");
        let mut removed = [one, other].map(|thread| said(thread.join().expect("it ends")));
        removed.sort_by_key(|said| said.contains("has not let nic0 go within 20 s"));
        assert!(removed[0].contains("the guest is already asked for nic0"), "{removed:?}");
        assert!(removed[1].contains("has not let nic0 go within 20 s"), "{removed:?}");
        assert!(removed.iter().all(|said| said.contains("--force")), "{removed:?}");
    });
    world.netns.has_everything_as(&links, "after the time is up");
    // It is still asked, and by force it is gone.
    assert_eq!(world.names(), ["nic0"]);
    world.ok(&["net", "remove", "web", "nic0", "--force"]);
    assert!(world.names().is_empty());
    // What the guest has not seen to be gone, it would take the next one in that slot for.
    world.refused(&["net", "add", "web", "tap=tap1"], &["has not taken nic1 within 20 s"]);
}

#[test]
fn a_bus_that_is_full_makes_no_wire() {
    let nics: Vec<_> = (0..28).flat_map(|index| ["--net".to_owned(), format!("tap=t{index}")]).collect();
    let nics: Vec<_> = nics.iter().map(String::as_str).collect();
    let world = need!(World::new(willing(), &nics));
    world.refused(&["net", "add", "web", "tap=more"], &["28 NICs", "no slot is free"]);
    world.ok(&["net", "remove", "web", "nic27", "--force"]);
    assert!(world.ok(&["net", "add", "web", "tap=more"]).starts_with("nic27: "));
}

mod stock {
    use super::*;
    use harness::stock::{self, Stock};

    const COMMAND: Duration = Duration::from_secs(120);

    fn boot(kernel: &Stock, args: &[&str]) -> Result<World, String> {
        let (netns, dir) = (Netns::with_own_run()?, TempDir::new());
        let vm = kernel.boot(&netns, "", &[&["--name", "web"], args].concat());
        Ok(World { netns, vm, _dir: dir })
    }

    /// The guest's commands that bring eth1 up with an address, and hear the host.
    const UP: &str =
        "ip link set eth1 up && ip addr add 172.31.1.2/24 dev eth1 && ping -q -c 1 -w 60 172.31.1.1";

    #[test]
    fn debian_s_kernels_take_nics_by_themselves_and_let_them_go() {
        for kernel in need!(stock::debian()) {
            let mut world = need!(boot(&kernel, &["--net", "tap=tap0,host=172.31.0.1/24"]));
            let before = world.netns.settled();
            for force in [&[][..], &["--force"]] {
                world.ok(&["net", "add", "web", "tap=tap1,host=172.31.1.1/24"]);
                world.vm.sh(UP, COMMAND);
                world.ok(&[&["net", "remove", "web", "nic1"], force].concat());
                // The guest sees by itself that it is gone, and its driver waits for nothing.
                world.vm.sh("while [ -e /sys/class/net/eth1 ]; do sleep 0.1; done", COMMAND);
                world.netns.has_everything_as(&before, &format!("{}: {force:?}", kernel.name));
            }
            // The first one, too.
            world.ok(&["net", "remove", "web", "nic0"]);
            world.vm.sh("! ls /sys/class/net/eth0", COMMAND);
            assert!(world.names().is_empty());
            world.ok(&["stop", "web"]);
        }
    }

    /// A NIC comes, has traffic, and goes in the middle of it: on either carrier, with the guest's word and without.
    fn round(world: &mut World, index: usize) {
        let vhost = ["off", "auto"][index % 2];
        world.ok(&["net", "add", "web", &format!("tap=tap1,host=172.31.1.1/24,vhost={vhost}")]);
        world.vm.sh(&format!("{UP} && (ping -q -i 0.01 -s 1400 172.31.1.1 >/dev/null 2>&1 &)"), COMMAND);
        let force: &[_] = if index % 4 < 2 { &[] } else { &["--force"] };
        world.ok(&[&["net", "remove", "web", "nic1"], force].concat());
        world.vm.sh("while [ -e /sys/class/net/eth1 ]; do sleep 0.1; done; killall ping; true", COMMAND);
    }

    #[test]
    fn a_nic_is_plugged_and_pulled_twenty_times_under_traffic() {
        let mut world = need!(boot(&need!(stock::newest()), &["--net", "tap=tap0,host=172.31.0.1/24"]));
        (0..2).for_each(|index| round(&mut world, index));
        let (before, links) = (world.has(), world.netns.settled());
        (0..20).for_each(|index| round(&mut world, index));
        world.has_no_more_than(&before, "after 20 times");
        world.netns.has_everything_as(&links, "after 20 times");
        assert!(world.vm.messages().is_empty(), "{}", world.vm.state());
    }
}
