//! Part 4: one guest on each wire, to and from the same machine of the LAN behind the host's NIC.
//!
//! The guest starts the traffic, since behind a NAT nobody else can; its console is silent while exits are counted.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use harness::netns::Netns;
use harness::{TempDir, Vm, wirevm};

use crate::Options;
use crate::guest::{CMDLINE, Kernel};
use crate::report::{Row, Table};
use crate::rounds::{Turns, take_turns};
use crate::traffic;

/// As the README names it; its `--net`; and what the guest types for its address, at 10.0.0.2 or behind a router.
const WIRES: [(&str, &str, &str); 6] = [
    ("tap", "tap,host=10.0.1.1/24,dhcp=off", ROUTED),
    ("tap,nat", "tap,nat,host=10.0.1.1/24,dhcp=off", ROUTED),
    ("bridge=br0,uplink=eth0", "bridge=br0,uplink=eth0", FLAT),
    ("macvtap=eth0", "macvtap=eth0", FLAT),
    ("macvtap=eth0,mode=passthru", "macvtap=eth0,mode=passthru", FLAT),
    ("tun", "tun,host=10.0.1.1/24,guest=10.0.1.2,dhcp=off", ROUTED),
];
const ROUTED: &str = "ip addr add 10.0.1.2/24 dev eth0 && ip route add default via 10.0.1.1";
const FLAT: &str = "ip addr add 10.0.0.2/24 dev eth0";
const LAN: &str = "10.0.0.9";
const MEMORY: &str = "256M";
const BOOT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(12);
const TCP_SECONDS: u32 = 5;
const PINGS: u32 = 100;

/// What is measured of a wire, in the order of the columns.
const FIGURES: [&str; 6] =
    ["TCP out, Mbit/s", "TCP in, Mbit/s", "exits/MiB out", "exits/MiB in", "ping, ms", "exits/ping"];

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    harness::stock::can_run()?;
    let kernel = Kernel::all().into_iter().next().ok_or("there is no kernel: run make setup")?;
    let rounds = options.rounds(3);
    let files = TempDir::new();
    let kernel = kernel.copied(&files)?;
    let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let (image, initrd) = (path(&kernel.image), path(&kernel.bench_initrd));
    let args = ["run", "--kernel", &image, "--initrd", &initrd, "--memory", MEMORY, "--cmdline", CMDLINE];
    let names = WIRES.map(|(name, ..)| name.to_owned());
    let kept = options.out.as_deref().map(|out| out.join("wires.rounds"));
    let Turns { figures, failures } = take_turns(rounds, &names, kept.as_deref(), |at| {
        let (_, net, address) = WIRES[at];
        measure(&[&args[..], &["--net", net]].concat(), address).map(|figures| figures.map(Some))
    });
    let row =
        |((name, ..), cells): ((&str, _, _), _)| Row { what: name.to_owned(), unit: "", cells, goal: None };
    let says = format!(
        "from and to a machine behind the host's NIC; TCP: iperf3, one stream, {TCP_SECONDS} s; ping: the average of {PINGS}"
    );
    Ok(Table {
        title: format!("Wires: kernel {}, 1 vCPU, {MEMORY}, median of {rounds} (min-max)", kernel.name),
        columns: FIGURES.map(str::to_owned).to_vec(),
        rows: WIRES.into_iter().zip(figures).map(row).collect(),
        notes: [says].into_iter().chain(failures).collect(),
    })
}

/// A host that routes between its NIC `eth0` and its guests, and the machine behind that NIC.
fn world() -> Result<(Netns, Netns), String> {
    let (host, lan) = (Netns::new()?, Netns::new()?);
    host.sh(&format!(
        "sysctl -qw net.ipv4.ip_forward=1 && ip link add eth0 type veth peer name eth0 netns {} && ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up",
        lan.pid()
    ));
    lan.sh(&format!(
        "ip addr add {LAN}/24 dev eth0 && ip link set eth0 up && ip route add 10.0.1.0/24 via 10.0.0.1"
    ));
    Ok((host, lan))
}

fn measure(args: &[&str], address: &str) -> Result<[f64; FIGURES.len()], String> {
    let (host, lan) = world()?;
    let program = wirevm();
    let mut inside = host.command(program.get_program().to_str().expect("a path in UTF-8"));
    let mut vm = Vm::start(inside.args(args));
    vm.expect("guest# ", BOOT);
    vm.sh(address, SOON);
    // Also what the guest does late in its boot is done then.
    vm.sh(&format!("for i in 1 2 3 4 5 6 7 8 9; do ping -c 1 -W 2 {LAN} >/dev/null && break; done"), SOON);
    let mut server = lan.command("iperf3");
    let mut server =
        server.arg("-s").stdout(std::process::Stdio::null()).spawn().map_err(|e| format!("iperf3: {e}"))?;
    let measured = drive(&mut vm).map_err(|error| format!("{error}\n{}", vm.state()));
    let _ = server.kill();
    let _ = server.wait();
    measured
}

fn drive(vm: &mut Vm) -> Result<[f64; FIGURES.len()], String> {
    thread::sleep(Duration::from_secs(2));
    let (_, idle) = traffic::exits_during(|| {
        thread::sleep(IDLE);
        Ok(())
    })?;
    let idle = idle / IDLE.as_secs_f64();
    let (ping, ping_exits) = in_silence(vm, idle, &format!("ping -q -c {PINGS} -i 0.02 {LAN}"), 3)?;
    let [_, average] = traffic::round_trip(&ping)?;
    let mut tcp = |options: &str| {
        let command = format!("iperf3 -c {LAN} -t {TCP_SECONDS} -i 0 -f k {options}");
        let (said, exits) = in_silence(vm, idle, &command, TCP_SECONDS + 1)?;
        let mbits = traffic::mbits(&said)?;
        Ok::<_, String>((mbits, exits / traffic::mib(mbits, TCP_SECONDS)))
    };
    let ((out, out_exits), (into, into_exits)) = (tcp("")?, tcp("-R")?);
    Ok([out, into, out_exits, into_exits, average, ping_exits / f64::from(PINGS)])
}

/// Runs a command of about so many seconds in the guest, and returns what it says and the exits over those of an idle guest.
/// It begins when the console has fallen silent, and is asked for what it said when it is over.
fn in_silence(vm: &mut Vm, idle: f64, command: &str, seconds: u32) -> Result<(String, f64), String> {
    vm.sh(
        &format!("rm -f /tmp/said; (sleep 1; {command} >/tmp/saying 2>&1; mv /tmp/saying /tmp/said) & true"),
        SOON,
    );
    let begin = Instant::now();
    let (_, exits) = traffic::exits_during(|| {
        thread::sleep(Duration::from_secs(u64::from(seconds) + 3));
        Ok(())
    })?;
    let exits = exits - idle * begin.elapsed().as_secs_f64();
    let said =
        vm.sh("for i in 1 2 3 4 5 6 7 8 9; do [ -e /tmp/said ] && break; sleep 1; done; cat /tmp/said", SOON);
    Ok((said, exits))
}
