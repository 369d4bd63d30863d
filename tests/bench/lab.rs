//! Part 3: whole guests, of the same kernel and initramfs under each VMM, one at a time on the same tap.
//!
//! All traffic is driven from the host, so that no byte crosses the console, and with it no exit, while exits are counted.

use std::time::{Duration, Instant};

use harness::netns::Netns;
use harness::{TempDir, Vm};

use crate::Options;
use crate::guest::{Guest, Kernel};
use crate::memory::Resident;
use crate::report::{Row, Table};
use crate::rounds::{Turns, take_turns};
use crate::traffic;
use crate::vmm::Vmm;

const MEMORY_MIB: u64 = 256;
const TAP: &str = "bench0";
const HOST: &str = "172.31.0.1";
const GUEST: &str = "172.31.0.2";
/// From the start to the shell of the guest's init, at the slowest.
const BOOT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(3);
const TCP_SECONDS: u32 = 5;
const PINGS: u32 = 100;
const MIB: f64 = 1048576.0;

/// What is measured of a guest, in the order of the rows.
const FIGURES: [(&str, &str); 10] = [
    ("start to the shell of init", "s"),
    ("TCP, host to guest", "Mbit/s"),
    ("TCP, guest to host", "Mbit/s"),
    ("exits, host to guest", "per MiB"),
    ("exits, guest to host", "per MiB"),
    ("ping, average", "ms"),
    ("ping, least", "ms"),
    ("exits of a ping", ""),
    ("exits, idle", "per s"),
    ("resident, after all that", "MiB"),
];

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    harness::stock::can_run()?;
    let kernel = Kernel::all().into_iter().next().ok_or("there is no kernel: run make setup")?;
    let rounds = options.rounds(3);
    let files = TempDir::new();
    let kernel = kernel.copied(&files)?;
    let guest =
        Guest { kernel: &kernel.image, initrd: &kernel.bench_initrd, memory_mib: MEMORY_MIB, tap: Some(TAP) };
    let host = Netns::new()?;
    host.sh(&format!(
        "ip tuntap add dev {TAP} mode tap vnet_hdr && ip addr add {HOST}/24 dev {TAP} && ip link set {TAP} up"
    ));
    let (vmms, notes) = Vmm::all();
    for vmm in &vmms {
        vmm.warm_up();
    }

    let names: Vec<_> = vmms.iter().map(|vmm| vmm.name()).collect();
    let Turns { figures, failures } =
        take_turns(rounds, &names, |at| measure(vmms[at], &guest, &host).map(|figures| figures.map(Some)));
    let row = |(index, (what, unit)): (usize, (&str, &'static str))| Row {
        what: what.to_owned(),
        unit,
        cells: figures.iter().map(|of_vmm| of_vmm[index].clone()).collect(),
        goal: None,
    };
    Ok(Table {
        title: format!(
            "Guests: kernel {}, 1 vCPU, {MEMORY_MIB} MiB, one NIC on the same tap, median of {rounds} (min-max)",
            kernel.name
        ),
        columns: names,
        rows: FIGURES.into_iter().enumerate().map(row).collect(),
        notes: vec![
            format!(
                "TCP: iperf3, one stream, {TCP_SECONDS} s; ping: {PINGS} from the host; exits: all that KVM counts"
            ),
            "resident: over the guest's own memory".to_owned(),
        ]
        .into_iter()
        .chain(notes)
        .chain(failures)
        .collect(),
    })
}

fn measure(vmm: Vmm, guest: &Guest<'_>, host: &Netns) -> Result<[f64; FIGURES.len()], String> {
    let command = vmm.command(guest);
    let begin = Instant::now();
    let mut inside = host.command(command.get_program().to_str().expect("a path in UTF-8"));
    let mut vm = Vm::start(inside.args(command.get_args()));
    vm.expect("guest# ", BOOT);
    let boot = begin.elapsed();
    drive(&mut vm, guest, host, boot).map_err(|error| format!("{error}\n{}", vm.state()))
}

/// Measures a guest that is up, which took it `boot`.
fn drive(
    vm: &mut Vm,
    guest: &Guest<'_>,
    host: &Netns,
    boot: Duration,
) -> Result<[f64; FIGURES.len()], String> {
    vm.sh(&format!("ip addr add {GUEST}/24 dev eth0; (iperf3 -s >/dev/null 2>&1 &)"), SOON);
    // Also what the guest does late in its boot is done then.
    let answers =
        format!("for i in 1 2 3 4 5 6 7 8 9; do ping -c 1 -W 2 {GUEST} >/dev/null && exit; done; exit 1");
    traffic::shell(host, &answers)?;
    std::thread::sleep(Duration::from_secs(2));

    let (_, idle) = traffic::exits_during(|| {
        std::thread::sleep(IDLE);
        Ok(())
    })?;
    let idle = idle / IDLE.as_secs_f64();
    let begin = Instant::now();
    let (ping, ping_exits) =
        traffic::exits_during(|| traffic::shell(host, &format!("ping -q -c {PINGS} -i 0.02 {GUEST}")))?;
    let ping_exits = (ping_exits - idle * begin.elapsed().as_secs_f64()) / f64::from(PINGS);
    let [least, average] = traffic::round_trip(&ping)?;
    let (to_guest, to_guest_exits) = tcp(host, "")?;
    let (to_host, to_host_exits) = tcp(host, "-R")?;
    let resident = Resident::of(vm.pid(), guest.memory_mib << 20)?;
    Ok([
        boot.as_secs_f64(),
        to_guest,
        to_host,
        to_guest_exits,
        to_host_exits,
        average,
        least,
        ping_exits,
        idle,
        resident.all as f64 / MIB,
    ])
}

/// Megabits per second, and exits for each MiB.
fn tcp(host: &Netns, options: &str) -> Result<(f64, f64), String> {
    let command = format!("iperf3 -c {GUEST} -t {TCP_SECONDS} -i 0 -f k {options}");
    let (said, exits) = traffic::exits_during(|| traffic::shell(host, &command))?;
    let mbits = traffic::mbits(&said)?;
    Ok((mbits, exits / traffic::mib(mbits, TCP_SECONDS)))
}
