//! NICs whose link goes down and up, and that move to other wires, while their machine runs.

use std::fs;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use harness::another::Another;
use harness::netns::Netns;
use harness::{TempDir, Vm, guest, handmade, need, puts, wirevm_path};
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

guest!(idle: puts!("ready\\n"), "2: mov edx, 0x3fd", "in al, dx", "test al, 1", "jz 2b");

/// What a [`World`] has ([`World::belongings`]).
type Counts = [usize; 5];

/// A machine `vm` in a namespace of its own.
struct World {
    netns: Netns,
    vm: Vm,
    _dir: TempDir,
}

impl World {
    fn new(netns: Netns, nets: &[&str]) -> Self {
        Self::with_descriptors(netns, nets, None)
    }

    /// The same, where each process may have so many descriptors.
    fn with_descriptors(netns: Netns, nets: &[&str], most: Option<usize>) -> Self {
        let dir = TempDir::new();
        let kernel = handmade::kernel(&dir, idle());
        let mut args = vec!["run", "--name", "vm", "--kernel", kernel.to_str().unwrap()];
        nets.iter().for_each(|net| args.extend(["--net", net]));
        let limit = most.map(|most| format!("--nofile={most}"));
        let by: Vec<_> = limit.iter().flat_map(|limit| ["prlimit", limit]).collect();
        let mut vm = Vm::start_by(&netns, &by, &args);
        vm.expect("ready", SOON);
        Self { netns, vm, _dir: dir }
    }

    fn net(&self, args: &[&str]) -> Output {
        wirevm(&self.netns, &[&["net"], args].concat())
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.net(args);
        assert!(output.status.success(), "{args:?}: {}\n{}", errors(&output), self.vm.state());
        String::from_utf8(output.stdout).unwrap()
    }

    /// What is said of a NIC.
    fn nic(&self, number: usize) -> Value {
        let all: Value = serde_json::from_str(&self.ok(&["ls", "vm", "--json"])).unwrap();
        all["machines"][0]["nics"][number].clone()
    }

    /// Waits until the link of the first NIC is so.
    #[track_caller]
    fn until_up(&self, up: bool) {
        let end = Instant::now() + SOON;
        while self.nic(0)["up"] != up {
            assert!(Instant::now() < end, "{}\n{}", self.nic(0), self.vm.state());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Descriptors and threads of both processes, and the regions of memory of the one that runs the guest.
    fn belongings(&self) -> Counts {
        let count = |pid: u32, of: &str| fs::read_dir(format!("/proc/{pid}/{of}")).unwrap().count();
        let keeper = self.keeper();
        let machine = self.machine();
        let maps = fs::read_to_string(format!("/proc/{machine}/maps")).unwrap().lines().count();
        [count(keeper, "fd"), count(keeper, "task"), count(machine, "fd"), count(machine, "task"), maps]
    }

    fn show(&self) -> Value {
        serde_json::from_slice(&wirevm(&self.netns, &["show", "vm", "--json"]).stdout).unwrap()
    }

    fn keeper(&self) -> u32 {
        self.show()["pid"].as_u64().unwrap() as u32
    }

    fn machine(&self) -> u32 {
        self.show()["machine_pid"].as_u64().unwrap() as u32
    }
}

fn wirevm(netns: &Netns, args: &[&str]) -> Output {
    let mut command = netns.command(wirevm_path().to_str().unwrap());
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A bridge, and a NIC with a cable.
fn host() -> Result<Netns, String> {
    let netns = Netns::with_own_run()?;
    netns.sh("ip link add br0 address 02:00:00:00:00:aa type bridge; ip link set br0 up
         ip link add port type veth peer name port-far; ip link set port-far up; ip link set port master br0 up
         ip link add nic type veth peer name far; ip link set far up; ip link set nic up");
    Ok(netns)
}

#[test]
fn the_guests_link_follows_the_wire_and_each_change_is_a_line() {
    let netns = need!(host());
    let world = World::new(netns, &["bridge=br0"]);
    world.until_up(true);
    world.netns.sh("ip link set br0 down");
    world.until_up(false);
    assert_eq!(world.nic(0)["why_down"], "br0 is down");
    world.netns.sh("ip link set br0 up");
    world.until_up(true);
    for _ in 0..20 {
        world.netns.sh("ip link del br0");
        world.until_up(false);
        world.netns.sh("ip link add br0 address 02:00:00:00:00:aa type bridge; ip link set br0 up");
        world.until_up(true);
    }
    let messages = world.vm.messages();
    let lines = |text: &str| messages.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("NIC 0: the link is down: br0 is gone"), 20, "{messages}");
    assert_eq!(lines("NIC 0: br0 is there again"), 20, "{messages}");
    // By hand.
    world.ok(&["link", "vm", "nic0", "down"]);
    world.until_up(false);
    assert!(!world.netns.sh("ip link show wirevm0").contains("LOWER_UP"), "the host sees it");
    world.ok(&["link", "vm", "nic0", "up"]);
    world.netns.sh("ip link set br0 down");
    world.until_up(true);
    assert!(world.netns.sh("ip link show wirevm0").contains("LOWER_UP"));
    world.ok(&["link", "vm", "nic0", "follow"]);
    world.until_up(false);
    world.netns.sh("ip link set br0 up");
    world.until_up(true);
}

#[test]
fn a_link_may_begin_down() {
    let world = World::new(need!(host()), &["tap,link=down"]);
    world.until_up(false);
    world.ok(&["link", "vm", "nic0", "follow"]);
    world.until_up(true);
}

#[test]
fn a_guests_end_that_is_deleted_is_made_again() {
    let netns = need!(host());
    let before = netns.settled();
    let mut world = World::new(netns, &["tap=t0,nat,host=172.31.0.1/24,forward=8080:80", "macvtap=nic"]);
    let (tap, macvtap) = ("t0", world.nic(1)["link"].as_str().unwrap().to_owned());
    let address = || {
        world
            .netns
            .sh("ip -o -4 address show t0; sysctl -n net.ipv4.conf.t0.forwarding")
            .replace(char::is_numeric, "")
    };
    let rules = || world.netns.sh("nft list tables | sort");
    let (had, ruled) = (address(), rules());
    for _ in 0..5 {
        for link in [tap, &macvtap] {
            let index = world.netns.sh(&format!(
                "cat /sys/class/net/{link}/ifindex || ip link show {link} | cut -d: -f1 | head -1"
            ));
            world.netns.sh(&format!("ip link del {link}"));
            let end = Instant::now() + SOON;
            let again = format!("ip link show {link} | cut -d: -f1 | head -1");
            while world.netns.try_sh(&again).map_or(true, |now| now.is_empty() || now == index) {
                assert!(Instant::now() < end, "{}", world.vm.state());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        world.until_up(true);
        assert_eq!((address(), rules()), (had.clone(), ruled.clone()));
    }
    // Its NIC goes with all on it, and comes back.
    world.netns.sh("ip link del nic");
    let end = Instant::now() + SOON;
    while world.nic(1)["up"] == true {
        assert!(Instant::now() < end);
    }
    world.netns.sh("ip link add nic type veth peer name far; ip link set far up; ip link set nic up");
    while world.nic(1)["up"] == false {
        assert!(Instant::now() < end, "{}\n{}", world.nic(1), world.vm.state());
    }
    let netns = world.netns.clone();
    world.vm.type_in("x");
    world.vm.ends_with(0, SOON);
    drop(before);
    assert!(netns.sh("ls /run/wirevm | grep -v ^lock$ || true").trim().is_empty());
    assert!(!netns.sh("ip link; nft list ruleset").contains("wirevm"), "{}", netns.state());
}

#[test]
fn a_nic_moves_between_all_wires_and_nothing_is_left() {
    let netns = need!(host());
    let before = netns.settled();
    let mut world = World::new(netns, &["tap,host=172.31.0.1/24"]);
    let first = "tap,host=172.31.0.1/24";
    let wires = [
        "bridge=br0",
        "macvtap=nic",
        "tun,host=172.31.1.1/24",
        "bridge=br0,isolated=on",
        "macvtap=nic,mode=private",
        "bridge=br1,uplink=nic",
        "tap=t1,nat,host=172.31.2.1/24",
        "guard=off",
        "bridge=br0,guard=off",
        "macvtap=nic,host=172.31.3.1/24",
        first,
        // Not that one: its guard has a table more where the host tracks a connection just then.
        "macvtap=nic",
    ];
    let mut had: Option<Counts> = None;
    for round in 0..6 {
        for spec in wires {
            world.ok(&["move", "vm", "nic0", spec]);
            assert_eq!(world.nic(0)["up"], true, "{spec}: {}", world.nic(0));
        }
        // The last client may have left its connection open for a moment; and a heap grows now and then.
        let end = Instant::now() + SOON;
        let look = || (0..10).map(|_| world.belongings()).min().unwrap();
        let same = |[k, kt, m, mt, maps]: Counts, [k2, kt2, m2, mt2, maps2]: Counts| {
            (k, kt, m, mt) == (k2, kt2, m2, mt2) && maps <= maps2 + 20
        };
        let mut has = look();
        while had.is_some_and(|had| !same(has, had)) && Instant::now() < end {
            has = look();
        }
        if round > 0 {
            let had = *had.get_or_insert(has);
            assert!(same(has, had), "round {round}: {has:?}, {had:?} before\n{}", world.vm.state());
        }
    }
    let netns = world.netns.clone();
    world.vm.type_in("x");
    world.vm.ends_with(0, SOON);
    netns.has_everything_as(&before, "after the end");
}

#[test]
fn a_move_that_cannot_be_says_why_and_changes_nothing() {
    let netns = need!(host());
    netns.sh("ip link add other type veth peer name other-far; ip link set other mtu 1000");
    netns.sh("ip link add 'vrf1' type vrf table 7 2>/dev/null || true");
    let world = World::new(netns, &["bridge=br0,mac=02:00:00:00:00:01"]);
    let before = world.netns.settled();
    for (spec, words) in [
        ("wlan", "unknown"),
        ("", "unknown"),
        ("bridge=br0", "nic0 is on that wire already"),
        ("macvtap=nowhere", "nowhere"),
        ("bridge=lo", "lo"),
        ("bridge=br2,uplink=nowhere", "nowhere"),
        (
            "tap,mac=02:00:00:00:00:02",
            "the guest has the MAC 02:00:00:00:00:01 until its end\n  try:   drop mac=",
        ),
        ("tap,mtu=1400", "the guest was told an MTU of 1500 bytes, and 1400 is less\n  try:   drop mtu="),
        ("macvtap=other", "1000"),
        ("tap,queues=2", "the NIC has 1 queue pairs since its start"),
        ("fd=5", "a machine that runs inherits no descriptors"),
        ("tap,poll=50", "poll= holds from the NIC's start\n  try:   drop poll="),
        ("affinity=0", "affinity= holds from the NIC's start"),
        ("tap,link=down", "which is follow\n  try:   drop link=, and set it by wirevm net link nic0 down"),
        ("tap=br0", "br0"),
        // The same bridge in another way, which fails after the old one is left.
        ("bridge=br0,uplink=nowhere", "nowhere"),
        ("vlan=10", "VLAN"),
    ] {
        let output = world.net(&["move", "vm", "nic0", spec]);
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{spec}: {said}");
        assert!(said.contains(words) && said.lines().count() <= 3, "{spec}: {said}");
        world.until_up(true);
        assert_eq!(
            world.nic(0)["spec"].as_str().unwrap().split(",mtu").next(),
            Some("bridge=br0,mac=02:00:00:00:00:01"),
            "{spec}"
        );
    }
    for (args, words) in [
        (&["move", "vm", "nic1", "tap"][..], "there is no NIC nic1; the machine has nic0"),
        (&["move", "vm", "eth0", "tap"], "there is no NIC eth0; the machine has nic0"),
        (&["link", "vm", "nic7", "down"], "there is no NIC nic7"),
        (&["move", "nobody", "nic0", "tap"], "nobody"),
    ] {
        let output = world.net(args);
        assert!(
            output.status.code() == Some(1) && errors(&output).contains(words),
            "{args:?}: {}",
            errors(&output)
        );
    }
    assert!(wirevm(&world.netns, &["pause", "vm"]).status.success());
    let output = world.net(&["move", "vm", "nic0", "tap"]);
    assert!(errors(&output).contains("the machine is paused, not running"), "{}", errors(&output));
    assert!(wirevm(&world.netns, &["resume", "vm"]).status.success());
    let strip = |text: &str| {
        let lines = text.lines().filter(|line| line.contains("wirevm") || line.contains("br"));
        lines
            .map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned())
            .collect::<Vec<_>>()
            .len()
    };
    assert_eq!(strip(&world.netns.settled()), strip(&before), "{}", world.vm.state());
}

#[test]
fn a_nic_that_has_lost_its_wire_moves_to_another_one() {
    let mut world = World::new(need!(host()), &["tap=tap7,link=up"]);
    // Somebody is faster than the keeper.
    let keeper = world.keeper();
    world.netns.sh(&format!(
        "kill -STOP {keeper}; ip link del tap7; ip link add tap7 type veth peer name tap7-far; kill -CONT {keeper}"
    ));
    world.vm.expect_message("cannot be made again, and is tried until it can", SOON);
    assert_eq!(
        world.nic(0)["why_down"],
        "there is no wire at the moment; wirevm keeps trying to make it again"
    );
    let output = world.net(&["move", "vm", "nic0", "tap=tap7"]);
    assert!(errors(&output).contains("tap7"), "{}", errors(&output));
    world.ok(&["move", "vm", "nic0", "bridge=br0"]);
    world.until_up(true);
    assert!(world.nic(0)["why_down"].is_null(), "{}", world.nic(0));
    // It is that one's, and nothing is made again any more.
    world.netns.sh("ip link del tap7");
    std::thread::sleep(Duration::from_millis(2500));
    assert!(!world.netns.sh("ip link").contains("tap7"), "{}", world.vm.state());
}

#[test]
fn a_move_keeps_what_is_not_said_and_takes_what_is() {
    let world = World::new(need!(host()), &["bridge=br0,rate=10M,burst=50,poll=50"]);
    world.ok(&["move", "vm", "nic0", "tap"]);
    let spec = world.nic(0)["spec"].to_string();
    assert!(["rate=10M", "burst=50", "poll=50"].iter().all(|key| spec.contains(key)), "{spec}");
    world.ok(&["move", "vm", "nic0", "burst=70"]);
    let spec = world.nic(0)["spec"].to_string();
    assert!(["rate=10M", "burst=70"].iter().all(|key| spec.contains(key)), "{spec}");
}

#[test]
fn what_only_the_wire_before_has_is_free_for_the_next() {
    let world = World::new(need!(host()), &["macvtap=nic"]);
    world.netns.sh("ip link add mv0 link nic type macvlan mode bridge; ip link set mv0 up");
    // The guest's address is on that NIC already, by its own wire.
    world.ok(&["move", "vm", "nic0", "macvtap=mv0"]);
    world.until_up(true);
    world.ok(&["move", "vm", "nic0", "macvtap=nic"]);
    world.until_up(true);
}

#[test]
fn nobody_waits_long_for_another_wirevm_while_the_guest_runs() {
    let mut world = World::new(need!(host()), &["bridge=br0", "bridge=late"]);
    let before = world.netns.settled();
    let another = Another::on(&world.netns);
    let output = world.net(&["move", "vm", "nic0", "tap"]);
    let said = errors(&output);
    assert!(said.contains("is changing the host's network: it holds /run/wirevm/lock"), "{said}");
    assert!(said.contains("try:   try again once it is done"), "{said}");
    world.until_up(true);
    assert_eq!(world.netns.settled(), before, "{}", world.vm.state());
    drop(another);
    // What cannot be undone in time is told, and left to the next one.
    let another = Another::on(&world.netns);
    world.ok(&["remove", "vm", "nic1", "--force"]);
    world.vm.expect_message("is left for the next wirevm", SOON);
    drop(another);
    assert!(wirevm(&world.netns, &["doctor", "--clean"]).stdout.len() > 1);
    assert!(!world.netns.sh("ip link").contains("late"), "{}", world.vm.state());
    world.ok(&["move", "vm", "nic0", "tap"]);
    // At its end it has all the time that it is given.
    let another = Another::on(&world.netns);
    world.vm.signal(Signal::TERM);
    world.vm.expect_message("waiting for process ", SOON);
    std::thread::sleep(Duration::from_millis(2500));
    drop(another);
    world.vm.ends_with(0, SOON);
    assert!(!world.netns.sh("ip link").contains("wirevm"), "{}", world.vm.state());
}

#[test]
fn a_move_for_which_there_are_no_descriptors_is_refused_and_another_one_is_not() {
    let world = World::new(need!(host()), &["bridge=br0"]);
    let keeper = world.keeper();
    let limit = |most: usize| {
        let set = world.netns.sh(&format!("prlimit --pid {keeper} --nofile={most}:1024 2>&1 || true"));
        assert!(set.trim().is_empty(), "{set}");
    };
    for more in 0..24 {
        // A client that left has had its descriptor closed.
        std::thread::sleep(Duration::from_millis(20));
        let [has, ..] = world.belongings();
        limit(has + more);
        let to = ["macvtap=nic", "bridge=br0", "tap,nat"][more % 3];
        let output = world.net(&["move", "vm", "nic0", to]);
        limit(1024);
        assert!(
            output.status.success() || errors(&output).starts_with("error: "),
            "{more}: {}",
            errors(&output)
        );
        world.until_up(true);
    }
    world.ok(&["move", "vm", "nic0", "tap,host=172.31.9.1/24"]);
    // Nobody waits for a client that cannot be let in.
    let used = || {
        let stat = fs::read_to_string(format!("/proc/{keeper}/stat")).unwrap();
        let words: Vec<u64> =
            stat.rsplit(')').next().unwrap().split_whitespace().filter_map(|w| w.parse().ok()).collect();
        words[10] + words[11]
    };
    let before = used();
    limit(8);
    assert!(!world.net(&["ls", "vm"]).status.success());
    std::thread::sleep(Duration::from_secs(1));
    assert!(used() - before < 30, "it spins");
    limit(1024);
    world.ok(&["ls", "vm"]);
}

#[test]
fn a_machine_without_room_for_the_descriptors_of_a_move_goes_on() {
    let nets = ["bridge=br0,queues=8"];
    let world = World::new(need!(host()), &nets);
    let [keeper, _, machine, ..] = world.belongings();
    drop(world);
    assert!(machine > keeper + 24, "the keeper has {keeper}, and the machine {machine}");
    let mut refused = 0;
    for more in (0..48).step_by(4) {
        let world = World::with_descriptors(need!(host()), &nets, Some(machine + more));
        let output = world.net(&["move", "vm", "nic0", "tap"]);
        refused += usize::from(errors(&output).contains("Too many open files"));
        world.until_up(true);
    }
    assert!((1..12).contains(&refused), "{refused} of 12");
}

#[test]
fn who_is_killed_in_the_middle_of_a_move_leaves_nothing() {
    let netns = need!(host());
    netns.sh("ip address add 172.31.7.1/24 dev nic; ip route add 10.99.0.0/16 via 172.31.7.2");
    let before = netns.settled();
    for round in 0..12 {
        let mut world = World::new(netns.clone(), &["tap,host=172.31.0.1/24"]);
        let to = ["bridge=br1,uplink=nic", "macvtap=nic", "tap,nat,host=172.31.2.1/24", "tun"][round % 4];
        let mut mover = world.netns.command(wirevm_path().to_str().unwrap());
        let mover = mover.args(["net", "move", "vm", "nic0", to]).stdin(Stdio::null());
        let mut mover = mover.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(3 * round as u64 + 1));
        let pid = if round % 3 == 0 { world.machine() } else { world.keeper() };
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), Signal::KILL)
            .unwrap();
        let _ = mover.wait().unwrap();
        world.vm.wait(SOON);
        drop(world);
        assert!(wirevm(&netns, &["doctor", "--clean"]).stdout.len() > 1);
        netns.has_each_as(&before, &format!("round {round}: {to}"));
    }
}

/// Stock Linux guests.
mod stock {
    use harness::stock::{self, Stock};
    use harness::traffic::Noise;
    use harness::{Variant, variant};

    use super::*;

    const COMMAND: Duration = Duration::from_secs(60);
    const TRANSFER: Duration = Duration::from_secs(300);

    /// A bridge and a NIC that lead to one switch, at which is 172.31.0.1.
    fn lan() -> Result<(Netns, Netns), String> {
        let (host, lan) = (Netns::with_own_run()?, Netns::new()?);
        lan.sh("ip link add sw type bridge forward_delay 0; ip link set sw up; ip address add 172.31.0.1/24 dev sw");
        let far = lan.pid();
        host.sh(&format!(
            "ip link add br0 address 02:00:00:00:00:aa type bridge forward_delay 0; ip link set br0 up
             for nic in wan nic; do ip link add $nic type veth peer name $nic-far netns {far}; ip link set $nic up; done
             ip link set wan master br0"
        ));
        lan.sh("for nic in wan nic; do ip link set $nic-far master sw; ip link set $nic-far up; done");
        Ok((host, lan))
    }

    fn net(netns: &Netns, vm: &Vm, args: &[&str]) {
        let output = wirevm(netns, &[&["net"], args].concat());
        assert!(output.status.success(), "{args:?}: {}\n{}", errors(&output), vm.state());
    }

    #[test]
    fn tcp_lives_while_its_nic_moves_and_its_bridge_is_made_again() {
        let kernel: Stock = need!(stock::newest());
        let (netns, lan) = need!(lan());
        let mut vm = kernel.boot(&netns, "", &["--name", "vm", "--net", "bridge=br0"]);
        vm.sh(
            "ip link set eth0 up; ip address add 172.31.0.2/24 dev eth0; ping -c 1 -W 20 172.31.0.1",
            COMMAND,
        );
        let vhost = netns.sh("test -c /dev/vhost-net && echo yes || true").trim() == "yes"
            && !matches!(variant(), Variant::Mmio);
        let mut wires =
            vec!["macvtap=nic", "bridge=br0,isolated=on", "macvtap=nic,mode=private", "bridge=br0"];
        if vhost {
            wires.extend(["vhost=on", "macvtap=nic,vhost=on", "vhost=off", "bridge=br0,vhost=on"]);
        }
        let (mut moves, mut streams) = (0, 0);
        while moves < 50 {
            let noise = Noise::serve(&lan, [172, 31, 0, 1].into(), 4 << 20);
            vm.type_in(&format!("( {} && echo all-@''back ) &\n", noise.guest_commands()));
            let end = Instant::now() + TRANSFER;
            while !vm.shows("all-@back", Duration::from_millis(200)) {
                assert!(Instant::now() < end, "after {moves} moves\n{}", vm.state());
                net(&netns, &vm, &["move", "vm", "nic0", wires[moves % wires.len()]]);
                netns.sh(
                    "ip link del br0; ip link add br0 address 02:00:00:00:00:aa type bridge forward_delay 0
                     ip link set br0 up; ip link set wan master br0",
                );
                net(&netns, &vm, &["link", "vm", "nic0", "down"]);
                net(&netns, &vm, &["link", "vm", "nic0", "follow"]);
                moves += 1;
                // TCP has to get through, too.
                if moves % 10 == 0 {
                    std::thread::sleep(Duration::from_secs(2));
                }
            }
            noise.check().unwrap_or_else(|why| panic!("{why}\n{}", vm.state()));
            streams += 1;
        }
        println!(
            "note: {moves} moves, as many bridges made again and links set down, under {streams} streams"
        );
        vm.sh("ip link set eth0 down; ip link set eth0 up; ping -c 2 -W 20 172.31.0.1", COMMAND);
        vm.type_in("poweroff\n");
        vm.ends_with(0, TRANSFER);
    }

    #[test]
    fn the_guest_sees_its_link_and_is_announced() {
        let kernel: Stock = need!(stock::newest());
        let (netns, lan) = need!(lan());
        let mut vm = kernel.boot(&netns, "", &["--name", "vm", "--net", "bridge=br0,mac=02:00:00:00:00:01"]);
        vm.sh(
            "ip link set eth0 up; ip address add 172.31.0.2/24 dev eth0; ping -c 1 -W 20 172.31.0.1",
            COMMAND,
        );
        let carrier = |vm: &mut Vm| vm.sh("cat /sys/class/net/eth0/carrier", COMMAND).trim().to_owned();
        assert_eq!(carrier(&mut vm), "1");
        for (down, up) in [
            ("ip link set br0 down", "ip link set br0 up"),
            ("ip link set wirevm0 down", "ip link set wirevm0 up"),
            ("ip link set wirevm0 nomaster", "ip link set wirevm0 master br0"),
        ] {
            netns.sh(down);
            vm.sh(
                "timeout 30 sh -c 'until grep -q 0 /sys/class/net/eth0/carrier; do sleep 0.05; done'",
                COMMAND,
            );
            netns.sh(up);
            vm.sh(
                "timeout 30 sh -c 'until grep -q 1 /sys/class/net/eth0/carrier; do sleep 0.05; done'",
                COMMAND,
            );
            vm.sh("ping -c 1 -W 20 172.31.0.1", COMMAND);
        }
        // The neighbours hear that it is elsewhere, without a word from the guest.
        lan.sh("ip neigh flush all; bridge fdb show br sw | grep 02:00:00:00:00:01 | grep -q wan-far");
        net(&netns, &vm, &["move", "vm", "nic0", "macvtap=nic"]);
        let end = Instant::now() + COMMAND;
        let heard = "bridge fdb show br sw | grep 02:00:00:00:00:01 | grep nic-far";
        while lan.try_sh(heard).is_err() {
            assert!(Instant::now() < end, "{}", vm.state());
        }
        vm.sh("ping -c 1 -W 20 172.31.0.1", COMMAND);
        // The driver goes, and with it the carrier of the host's link.
        net(&netns, &vm, &["move", "vm", "nic0", "bridge=br0"]);
        vm.sh(
            "cd /sys/bus/virtio/drivers/virtio_net && ls -d virtio* > /tmp/dev && cat /tmp/dev > unbind",
            COMMAND,
        );
        assert!(!netns.sh("ip link show wirevm0").contains("LOWER_UP"), "{}", vm.state());
        vm.sh("cat /tmp/dev > /sys/bus/virtio/drivers/virtio_net/bind", COMMAND);
        assert!(netns.sh("ip link show wirevm0").contains("LOWER_UP"), "{}", vm.state());
        vm.type_in("poweroff\n");
        vm.ends_with(0, TRANSFER);
    }
}
