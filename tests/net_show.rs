//! `wirevm net show`: what went over the NICs of a machine that runs.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::netns::Netns;
use harness::{TempDir, Vm, guest, handmade, need, puts, wirevm};
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

/// A machine with two NICs, and who asks it.
struct World {
    vm: Vm,
    netns: Netns,
    dir: TempDir,
}

impl World {
    fn new() -> Result<Self, String> {
        let netns = Netns::new()?;
        let dir = TempDir::new();
        let kernel = handmade::kernel(&dir, forever());
        std::fs::create_dir(dir.path("run")).unwrap();
        std::fs::set_permissions(dir.path("run"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        let mut command = netns.command(harness::wirevm_path().to_str().unwrap());
        command.args([
            "run",
            "--name",
            "web",
            "--net",
            "tap=tap0,host=172.31.0.1/24",
            "--net",
            "bridge=br0",
            "--kernel",
        ]);
        command.arg(kernel).env("WIREVM_RUNTIME_DIR", dir.path("run")).stdin(Stdio::null());
        let mut vm = Vm::start(&mut command);
        vm.expect("running\n", SOON);
        Ok(Self { vm, netns, dir })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = wirevm();
        command.args(["net", "show", "web"]).args(args).env("WIREVM_RUNTIME_DIR", self.dir.path("run"));
        command.stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        assert!(status.success(), "{args:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// How many frames for the guest found the link of its first NIC full.
    fn lost(&self) -> u64 {
        self.json(&["nic0"])["nics"][0]["host"]["received"]["dropped"].as_u64().unwrap()
    }
}

#[test]
fn a_machine_says_what_went_over_its_nics() {
    let world = need!(World::new());
    let all = world.json(&[]);
    let nics = all["nics"].as_array().unwrap();
    let named = nics
        .iter()
        .map(|nic| [&nic["name"], &nic["link"], &nic["carrier"]].map(|word| word.as_str().unwrap()));
    let named: Vec<_> = named.collect();
    assert_eq!(named[0], ["nic0", "tap0", "wirevm"], "{all}");
    assert_eq!(named[1][0], "nic1", "{all}");
    let queue = &nics[0]["queues"][0];
    for (way, causes) in [
        ("sent", &["host_down", "link_down", "refused", "too_long"][..]),
        ("received", &["no_buffer", "too_long", "unfit", "unread"]),
    ] {
        assert_eq!(queue[way]["frames"], 0, "the guest has no driver: {all}");
        assert!(queue[way]["dropped"].as_object().unwrap().keys().eq(causes), "{all}");
    }
    // No driver takes them: they stay in the link's queue until that is full.
    let before = world.lost();
    world.netns.sh("ip link set tap0 txqueuelen 2");
    world.netns.sh("ip neighbour add 172.31.0.9 lladdr 02:00:00:00:00:09 dev tap0");
    world.netns.sh("ping -c 5 -i 0.1 -W 1 172.31.0.9 || true");
    assert!(world.lost() >= before + 3, "{}", world.ok(&[]));
    let page = world.ok(&["nic0"]);
    let starts: Vec<_> = page.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(starts, ["nic0", "SENT", "queue", "link"], "{page}");

    let refused = world.command(&["nic7"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("the machine has nic0, nic1"), "{said}");
}

#[test]
fn who_watches_hears_of_it_until_the_machine_ends() {
    let mut world = need!(World::new());
    let watch = |args: &[&str]| world.command(args).stdout(Stdio::piped()).spawn().unwrap();
    let (mut json, mut page) = (watch(&["nic0", "--watch", "--json"]), watch(&["--watch", "1"]));
    let mut lines = BufReader::new(json.stdout.take().unwrap()).lines().map(Result::unwrap);
    let at: Vec<_> = lines
        .by_ref()
        .take(2)
        .map(|line| serde_json::from_str::<Value>(&line).unwrap()["at"].as_u64().unwrap())
        .collect();
    assert!(at[0] < at[1], "{at:?}");
    let mut rates = BufReader::new(page.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(rates.find(|line| line.contains("SENT/s")).is_some());
    // It waits for long, and ends at once all the same.
    let mut late = watch(&["--watch", "3600"]);
    // A reader that leaves ends it, too.
    let mut unread = watch(&["--watch", "1"]);
    drop(unread.stdout.take());
    assert!(unread.wait().unwrap().success());
    world.vm.signal(Signal::TERM);
    world.vm.ends_with(0, SOON);
    // To the end: one that is not read may wait for its reader.
    let _ = (lines.count(), rates.count());
    for watcher in [&mut json, &mut page, &mut late] {
        assert!(watcher.wait().unwrap().success());
    }
}

#[test]
fn a_nic_is_held_to_a_rate_while_it_runs() {
    let world = need!(World::new());
    let net = |word: &str, args: &[&str]| {
        let mut command = wirevm();
        command.args(["net", word]).args(args).env("WIREVM_RUNTIME_DIR", world.dir.path("run"));
        command.stdin(Stdio::null()).output().unwrap()
    };
    let limit = |args: &[&str]| net("rate", args);
    let specs = || {
        let mut command = wirevm();
        command.args(["show", "web", "--json"]).env("WIREVM_RUNTIME_DIR", world.dir.path("run"));
        let info: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        let of_wires = [0, 1].map(|nic| info["nics"][nic]["spec"].as_str().unwrap().to_owned());
        let of_config = [0, 1].map(|nic| info["config"]["net"][nic].as_str().unwrap().to_owned());
        [of_wires, of_config].concat()
    };
    let before = specs();
    assert!(before.iter().all(|spec| !spec.contains("rate=")), "{before:?}");
    for (limits, said) in
        [("rate=20M:100M,pps=10000", ",rate=20M:100M,pps=10k"), ("pps=7,burst=5", ",pps=7,burst=5")]
    {
        let done = limit(&["web", "nic0", limits]);
        assert!(done.status.success() && done.stdout.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
        let now = specs();
        assert!(now[0].contains(said) && now[2].contains(said), "{now:?}");
        assert_eq!((&now[1], &now[3]), (&before[1], &before[3]), "the other one is as it was");
    }
    let done: Value = serde_json::from_slice(&limit(&["web", "nic0", "off", "--json"]).stdout).unwrap();
    assert_eq!(done["limits"], "off");
    assert_eq!(specs(), before);
    // A move keeps it, unless it says otherwise.
    for (spec, rate) in
        [("rate=1M", Some(",rate=1M")), ("bridge=br1", Some(",rate=1M")), ("bridge=br0,rate=off", None)]
    {
        let moved = net("move", &["web", "nic1", spec]);
        assert!(moved.status.success(), "{spec}: {}", String::from_utf8_lossy(&moved.stderr));
        let now = specs();
        assert_eq!(now[1].contains(",rate="), rate.is_some(), "{spec}: {now:?}");
        assert!(rate.is_none_or(|rate| now[1].contains(rate) && now[3].contains(rate)), "{spec}: {now:?}");
    }
    for (args, status, word) in [
        (["web", "nic7", "rate=1M"], 1, "nic0, nic1"),
        (["web", "nic0", "rate=1"], 2, "16k to 1000G"),
        (["web", "nic0", "50M"], 2, "rate=100M"),
        (["none", "nic0", "off"], 1, "none"),
    ] {
        let refused = limit(&args);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(status) && said.contains(word), "{args:?}: {said}");
    }
}

/// Stock Linux guests.
mod stock {
    use super::*;
    use harness::stock;
    use harness::traffic::Noise;

    const COMMAND: Duration = Duration::from_secs(60);
    const TRANSFER: Duration = Duration::from_secs(240);
    /// Bits per second that the guest sends and receives.
    const RATES: [u64; 2] = [4_000_000, 8_000_000];
    /// The largest frame, without its virtio header.
    const FRAME: u64 = 65_550;

    /// Ends a thread that loops until then, also where an assertion fails.
    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// What a machine has counted: when, and the bytes and the waits of each direction.
    struct Sample {
        at: u64,
        bytes: [u64; 2],
        waits: [u64; 2],
    }

    fn sample(netns: &Netns, name: &str) -> Sample {
        let mut command = netns.command(harness::wirevm_path().to_str().unwrap());
        let output = command.args(["net", "show", name, "nic0", "--json"]).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let queue = &said["nics"][0]["queues"][0];
        let both = |what: &str| ["sent", "received"].map(|way| queue[way][what].as_u64().unwrap());
        Sample { at: said["at"].as_u64().unwrap(), bytes: both("bytes"), waits: both("rate_waits") }
    }

    #[test]
    fn a_guest_moves_no_more_than_its_rate_allows() {
        let kernel = need!(stock::fastest());
        let netns = need!(Netns::new());
        let net = "tap,host=172.31.0.1/24,rate=4M:8M";
        let mut vm = kernel.boot(&netns, "wirevm.dhcp", &["--name", "rated", "--net", net]);
        let noise = Noise::serve(&netns, [172, 31, 0, 1].into(), 2 << 20);
        // Counters are read before the time is, so the time of the sample before them is no later.
        let (began, before) = (sample(&netns, "rated").at, sample(&netns, "rated"));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let at_end = Over(&over);
            let watcher = scope.spawn(|| {
                loop {
                    let last = over.load(Ordering::Relaxed);
                    let now = sample(&netns, "rated");
                    let micros = now.at - began;
                    for ((rate, is), was) in RATES.into_iter().zip(now.bytes).zip(before.bytes) {
                        let most = rate / 8 * (micros + 10_000) / 1_000_000 + FRAME;
                        assert!(
                            is - was <= most,
                            "{} bytes of {most} in {micros} us at {rate} bit/s",
                            is - was
                        );
                    }
                    if last {
                        return assert!(now.waits.iter().all(|waits| *waits > 0), "{:?}", now.waits);
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
            });
            vm.sh(&noise.guest_commands(), TRANSFER);
            drop(at_end);
            watcher.join().unwrap();
        });
        noise.check().unwrap_or_else(|why| panic!("{why}\n{}", vm.state()));

        // Nothing waits any more for a rate that is off.
        let mut command = netns.command(harness::wirevm_path().to_str().unwrap());
        assert!(command.args(["net", "rate", "rated", "nic0", "off"]).status().unwrap().success());
        let before = sample(&netns, "rated").waits;
        let noise = Noise::serve(&netns, [172, 31, 0, 1].into(), 8 << 20);
        vm.sh(&noise.guest_commands(), TRANSFER);
        noise.check().unwrap_or_else(|why| panic!("{why}\n{}", vm.state()));
        assert_eq!(sample(&netns, "rated").waits, before);
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
    }

    /// What vhost-net carries is counted on the link, both ways.
    #[test]
    fn what_the_kernel_carries_is_counted_on_the_link() {
        let kernel = need!(stock::fastest());
        if !std::path::Path::new("/dev/vhost-net").exists() {
            harness::skip!("there is no /dev/vhost-net");
        }
        let netns = need!(Netns::new());
        let net = "tap,host=172.31.0.1/24,vhost=on";
        let mut vm = kernel.boot(&netns, "wirevm.dhcp", &["--name", "carried", "--net", net]);
        let asked = |args: &[&str]| {
            let mut command = netns.command(harness::wirevm_path().to_str().unwrap());
            command.args(["net", args[0], "carried", "nic0"]).args(&args[1..]).output().unwrap()
        };
        let frames = || {
            let nic = serde_json::from_slice::<Value>(&asked(&["show", "--json"]).stdout).unwrap()["nics"][0]
                .clone();
            assert_eq!(nic["carrier"], "vhost-net", "{nic}");
            ["sent", "received"].map(|way| nic["host"][way]["frames"].as_u64().unwrap())
        };
        let before = frames();
        vm.sh("ping -c 5 -i 0.2 -W 10 172.31.0.1", COMMAND);
        let after = frames();
        assert!(after[0] >= before[0] + 5 && after[1] >= before[1] + 5, "{before:?} {after:?}");
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
    }

    /// The same where the kernel carries the frames and keeps the rate, on a tap of somebody's that is as it was afterwards.
    #[test]
    fn a_guest_that_the_kernel_carries_moves_no_more_than_its_rate_allows() {
        let kernel = need!(stock::fastest());
        if !std::path::Path::new("/dev/vhost-net").exists() {
            harness::skip!("there is no /dev/vhost-net");
        }
        let netns = need!(Netns::new());
        netns.sh("ip tuntap add dev tap0 mode tap vnet_hdr");
        // The kernel gives a link its own queue, of number 0, when it is first up.
        let state = || netns.sh("tc qdisc show | grep -v ' 0: '; ip -br link; nft list tables");
        let before = state();
        let net = "tap=tap0,host=172.31.0.1/24,vhost=on,pps=100k";
        let mut vm = kernel.boot(&netns, "wirevm.dhcp", &["--name", "carried", "--net", net]);
        let asked = |args: &[&str]| {
            let mut command = netns.command(harness::wirevm_path().to_str().unwrap());
            let done = command.args(["net", args[0], "carried", "nic0"]).args(&args[1..]).output().unwrap();
            assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
            serde_json::from_slice::<Value>(&done.stdout).unwrap_or_default()
        };
        let carrier = || asked(&["show", "--json"])["nics"][0]["carrier"].as_str().unwrap().to_owned();
        let rules = "nft list table netdev wirevm-tap0_rate";
        assert!(netns.sh(rules).contains("limit rate over 100000/second burst 1000 packets"));
        // Of what goes both ways, one is limited, and holds up the other.
        let holds = |vm: &mut Vm| {
            let (rate, len) = (4_000_000 / 8, 1 << 20);
            let noise = Noise::serve(&netns, [172, 31, 0, 1].into(), len);
            let began = std::time::Instant::now();
            vm.sh(&noise.guest_commands(), TRANSFER);
            let micros = began.elapsed().as_micros() as usize;
            noise.check().unwrap_or_else(|why| panic!("{why}\n{}", vm.state()));
            let most = rate * (micros + 10_000) / 1_000_000 + FRAME as usize;
            assert!(len <= most, "{len} bytes of {most} in {micros} us");
        };
        for limits in ["rate=4M:off", "rate=off:4M"] {
            asked(&["rate", limits]);
            holds(&mut vm);
        }
        assert_eq!(carrier(), "vhost-net");
        // A move takes it along: to wirevm's threads, and back.
        let has_queue = || netns.sh("tc qdisc show dev tap0").contains("tbf 7769:");
        assert!(has_queue());
        asked(&["move", "vhost=off"]);
        assert!(carrier() == "wirevm" && !has_queue());
        holds(&mut vm);
        assert!(sample(&netns, "carried").waits[1] > 0);
        asked(&["move", "vhost=on"]);
        assert!(carrier() == "vhost-net" && has_queue());
        holds(&mut vm);
        asked(&["rate", "off"]);
        assert!(!has_queue() && netns.try_sh(rules).is_err());

        // What is left of one that is killed is taken back.
        asked(&["rate", "rate=4M"]);
        assert!(has_queue() && netns.sh("ip -br link show type ifb").contains("wirevm"));
        vm.signal(Signal::KILL);
        vm.wait(COMMAND);
        let until = std::time::Instant::now() + COMMAND;
        while state() != before && std::time::Instant::now() < until {
            netns
                .command(harness::wirevm_path().to_str().unwrap())
                .args(["doctor", "--clean"])
                .output()
                .unwrap();
        }
        assert_eq!(state(), before);
    }
}
