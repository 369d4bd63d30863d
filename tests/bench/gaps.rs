//! Part 6: how long a guest is cut off while its wire changes: a bridge made again, a move, a link that goes down and up.
//!
//! A machine of the LAN pings the guest all the while. A gap is the time between two answers beyond the interval at which it asks.

use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use harness::netns::Netns;
use harness::{TempDir, Vm, wirevm};

use crate::Options;
use crate::guest::{CMDLINE, Kernel};
use crate::report::{Row, Table};
use crate::rounds::{Turns, take_turns};

const NAME: &str = "gaps";
const GUEST: &str = "10.0.0.2";
const MEMORY: &str = "256M";
const BOOT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);
/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(5);
/// How often each thing is done in a round, and how long the guest is left in peace before and after.
const TIMES: u32 = 5;
const PEACE: Duration = Duration::from_millis(700);

/// What is done, and what does it; a line that starts with `net` is a command of wirevm's, another one the host's shell's.
const CHANGES: [(&str, &[&str]); 6] = [
    ("nothing", &["true"]),
    (
        "the bridge is made again",
        &[
            "ip link del br0; ip link add br0 address 02:00:00:00:00:aa type bridge forward_delay 0; ip link set br0 up; ip link set wan master br0",
        ],
    ),
    ("the link goes down and up", &["net link gaps nic0 down", "net link gaps nic0 follow"]),
    ("the tap loses its carrier and has it again", &["ip link set br0 down; ip link set br0 up"]),
    ("a move to a macvtap and back", &["net move gaps nic0 macvtap=nic", "net move gaps nic0 bridge=br0"]),
    ("a move to vhost-net and back", &["net move gaps nic0 vhost=on", "net move gaps nic0 vhost=off"]),
];
const FIGURES: [&str; 2] = ["longest gap, ms", "answers lost"];

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    harness::stock::can_run()?;
    let kernel = Kernel::all().into_iter().next().ok_or("there is no kernel: run make setup")?;
    let rounds = options.rounds(3);
    let files = TempDir::new();
    let kernel = kernel.copied(&files)?;
    let names = CHANGES.map(|(name, _)| name.to_owned());
    let kept = options.out.as_deref().map(|out| out.join("gaps.rounds"));
    let Turns { figures, failures } = take_turns(rounds, &names, kept.as_deref(), |at| {
        measure(&kernel, CHANGES[at].1).map(|figures| figures.map(Some))
    });
    let row = |((name, _), cells): ((&str, _), _)| Row { what: name.to_owned(), unit: "", cells, goal: None };
    let says = format!(
        "{TIMES} times each; a machine of the LAN pings every {} ms; what is lost is of all {TIMES}",
        INTERVAL.as_millis()
    );
    Ok(Table {
        title: format!("Gaps: kernel {}, 1 vCPU, {MEMORY}, median of {rounds} (min-max)", kernel.name),
        columns: FIGURES.map(str::to_owned).to_vec(),
        rows: CHANGES.into_iter().zip(figures).map(row).collect(),
        notes: [says].into_iter().chain(failures).collect(),
    })
}

/// A bridge `br0` and a NIC `nic` of the host that lead to one switch of the LAN.
fn world() -> Result<(Netns, Netns), String> {
    let (host, lan) = (Netns::with_own_run()?, Netns::new()?);
    lan.try_sh(
        "ip link add sw type bridge forward_delay 0; ip link set sw up; ip address add 10.0.0.9/24 dev sw",
    )?;
    let far = lan.pid();
    host.try_sh(&format!(
        "ip link add br0 address 02:00:00:00:00:aa type bridge forward_delay 0; ip link set br0 up
         for nic in wan nic; do ip link add $nic type veth peer name $nic-far netns {far}; ip link set $nic up; done
         ip link set wan master br0"
    ))?;
    lan.try_sh("for nic in wan nic; do ip link set $nic-far master sw; ip link set $nic-far up; done")?;
    Ok((host, lan))
}

fn measure(kernel: &Kernel, change: &[&str]) -> Result<[f64; FIGURES.len()], String> {
    let (host, lan) = world()?;
    let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let (image, initrd, program) =
        (path(&kernel.image), path(&kernel.bench_initrd), path(Path::new(wirevm().get_program())));
    let mut inside = host.command(&program);
    inside.args(["run", "--name", NAME, "--kernel", &image, "--initrd", &initrd, "--memory", MEMORY]);
    let mut vm = Vm::start(inside.args(["--cmdline", CMDLINE, "--net", "bridge=br0"]));
    vm.expect("guest# ", BOOT);
    vm.sh(&format!("ip link set eth0 up; ip addr add {GUEST}/24 dev eth0; ping -c 1 -W 20 10.0.0.9"), SOON);
    thread::sleep(Duration::from_secs(1));
    let interval = INTERVAL.as_secs_f64().to_string();
    let pinging = lan.command("ping").args(["-D", "-i", &interval, GUEST]).stdout(Stdio::piped()).spawn();
    let pinging = pinging.map_err(|error| format!("ping: {error}"))?;
    let done = (0..TIMES).try_for_each(|_| {
        thread::sleep(PEACE);
        change.iter().try_for_each(|line| match line.strip_prefix("net ") {
            Some(_) => host.try_sh(&format!("{program} {line} >/dev/null")).map(drop),
            None => host.try_sh(line).map(drop),
        })
    });
    thread::sleep(PEACE);
    let said = stop(pinging)?;
    done.map_err(|error| format!("{error}\n{}", vm.state()))?;
    read(&said).ok_or_else(|| format!("ping says {said:?}"))
}

/// Ends ping as Ctrl-C does, which has it say what was lost.
fn stop(pinging: Child) -> Result<String, String> {
    let pid = rustix::process::Pid::from_child(&pinging);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).map_err(|error| error.to_string())?;
    let output = pinging.wait_with_output().map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The longest gap in milliseconds, and how many answers are missing, by the lines `[SECONDS] 64 bytes from ... icmp_seq=N ...`.
fn read(said: &str) -> Option<[f64; FIGURES.len()]> {
    let answer = |line: &str| {
        let time: f64 = line.strip_prefix('[')?.split(']').next()?.parse().ok()?;
        let number: u64 = line.split("icmp_seq=").nth(1)?.split_whitespace().next()?.parse().ok()?;
        Some((time, number))
    };
    let answers: Vec<_> = said.lines().filter_map(answer).collect();
    let (first, last) = (answers.first()?.1, answers.iter().map(|answer| answer.1).max()?);
    let gap = answers.windows(2).map(|pair| pair[1].0 - pair[0].0).fold(0.0, f64::max);
    let lost = (last - first + 1).saturating_sub(answers.len() as u64);
    Some([(gap - INTERVAL.as_secs_f64()).max(0.0) * 1000.0, lost as f64])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_what_is_beyond_the_interval() {
        let said = "PING\n[10.000] 64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=1 ms\n\
                    [10.005] 64 bytes from 10.0.0.2: icmp_seq=2 ttl=64 time=1 ms\n\
                    [10.050] 64 bytes from 10.0.0.2: icmp_seq=11 ttl=64 time=1 ms\n";
        let [gap, lost] = read(said).unwrap();
        assert!((gap - 40.0).abs() < 0.01 && lost == 8.0, "{gap} {lost}");
        assert_eq!(read("PING"), None);
    }
}
