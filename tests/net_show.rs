//! `wirevm net show`: what went over the NICs of a machine that runs.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
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
    assert!(refused.status.code() == Some(1) && said.contains("the machine has nic0 to nic1"), "{said}");
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
