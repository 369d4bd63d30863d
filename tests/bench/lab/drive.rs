//! One guest: booted, measured, and killed.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use harness::Vm;
use harness::netns::Netns;

use super::count::{Calls, Counts, Way};
use super::{FIGURES, Seen, requests};
use crate::guest::Guest;
use crate::memory::Resident;
use crate::traffic;
use crate::vmm::Vmm;

pub(super) const TAP: &str = "bench0";
const HOST: &str = "172.31.0.1";
const GUEST: [u8; 4] = [172, 31, 0, 2];
const ECHO_PORT: u16 = 7;
/// From the start to the shell of the guest's init, at the slowest.
const BOOT: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(60);
/// A guest that does nothing has rhythms of its own: of windows of 12 seconds, every other one has a fifth more exits, under each VMM.
const IDLE: Duration = Duration::from_secs(24);
const TCP_SECONDS: u32 = 4;
const UDP_SECONDS: u32 = 3;
const UDP_BYTES: u32 = 64;
const ASKING: Duration = Duration::from_secs(3);
/// Where system calls are counted nothing is timed, and it may be short.
const COUNTED_SECONDS: u32 = 1;
const PINGS: u32 = 100;
const MIB: f64 = 1048576.0;

/// What a reader must know, a line each.
pub(super) fn notes() -> Vec<String> {
    let text = format!(
        "TCP: iperf3, {TCP_SECONDS} s; also with 4 streams 1 vCPU and 1 queue pair, for the lab has 2 processors\n\
         UDP: iperf3 sends as fast as it can for {UDP_SECONDS} s; counted is what arrives, and the rest is lost\n\
         request/response: 1 byte each way over one connection; ping: the average of {PINGS}, from the host\n\
         exits: all that KVM counts, less those of an idle guest; a frame is one that the tap counts\n\
         system calls: all of the VMM's process, KVM_RUN too, in runs of their own\n\
         resident: over the guest's own memory, after all that\n\
         goal: the figure over the peer's of the same round, turned so that more than 1 is better, beside the peer that does\n\
         best: wirevm ahead of each user-space path, wirevm with vhost level (0.95 or more) with vhost under each other"
    );
    text.lines().map(str::to_owned).collect()
}

pub(super) fn measure(
    vmm: &Vmm,
    guest: &Guest<'_>,
    host: &Netns,
    calls: Option<&Calls>,
) -> Result<Seen, String> {
    // A new one for each guest, without offloads that the last one's VMM switched on.
    host.try_sh(&format!(
        "ip link del {TAP} 2>/dev/null
         ip tuntap add dev {TAP} mode tap vnet_hdr && ip addr add {HOST}/24 dev {TAP} && ip link set {TAP} up"
    ))?;
    let command = vmm.command(guest);
    let begin = Instant::now();
    let mut inside = host.command(command.get_program().to_str().expect("a path in UTF-8"));
    inside.args(command.get_args());
    let (mut vm, _terminal) = vmm.start(&mut inside);
    if !vm.shows("guest# ", BOOT) {
        // What it says as it ends comes a moment later.
        thread::sleep(Duration::from_millis(200));
        let said = format!("{}\n{}", vm.messages(), vm.console());
        let seconds = begin.elapsed().as_secs_f64();
        return Err(format!("no shell after {seconds:.0} s: {}\n{}", reason(&said), vm.state()));
    }
    let mut seen = Seen([None; FIGURES.len()]);
    seen.set("start to the shell of init", begin.elapsed().as_secs_f64());
    vm.sh(&format!("ip addr add {}/24 dev eth0; (iperf3 -s >/dev/null 2>&1 &)", guest_address()), SOON);
    vm.sh(&requests::guest_command(ECHO_PORT), SOON);
    let mut drive = Drive { vm, host, idle: 0.0, seen };
    let driven = drive.all(guest, calls);
    driven.map_err(|error| format!("{error}\n{}", drive.vm.state()))?;
    Ok(drive.seen)
}

/// The line that says most of what a VMM said that did not start a guest.
fn reason(said: &str) -> &str {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines.clone().find(|line| line.to_lowercase().contains("error"));
    error.or_else(|| lines.next_back()).unwrap_or("it said nothing on its standard output")
}

fn guest_address() -> String {
    GUEST.map(|byte| byte.to_string()).join(".")
}

/// A guest that is up.
struct Drive<'a> {
    vm: Vm,
    host: &'a Netns,
    /// Its exits per second when nothing happens.
    idle: f64,
    seen: Seen,
}

impl Drive<'_> {
    fn all(&mut self, guest: &Guest<'_>, calls: Option<&Calls>) -> Result<(), String> {
        // Also what the guest does late in its boot is done then.
        let ip = guest_address();
        let answers =
            format!("for i in 1 2 3 4 5 6 7 8 9; do ping -c 1 -W 2 {ip} >/dev/null && exit; done; exit 1");
        traffic::shell(self.host, &answers)?;
        thread::sleep(Duration::from_secs(2));

        let (_, counts) = self.counting(|_| {
            thread::sleep(IDLE);
            Ok(())
        })?;
        self.idle = counts.exits / IDLE.as_secs_f64();
        self.seen.set("exits, idle", self.idle);
        let (said, counts) =
            self.counting(|drive| traffic::shell(drive.host, &format!("ping -q -c {PINGS} -i 0.02 {ip}")))?;
        self.seen.set("ping", traffic::round_trip(&said)?[1]);
        self.seen.set("exits, ping", counts.exits / f64::from(PINGS));
        self.tcp()?;
        self.udp()?;
        let ((answers, took), counts) = self.counting(|drive| drive.ask(ASKING))?;
        self.seen.set("TCP request/response", f64::from(answers) / took.as_secs_f64());
        self.seen.set("exits, request/response", counts.exits / f64::from(answers));
        // A peer may have the guest's memory in parts.
        if let Ok(resident) = Resident::of(self.vm.pid(), guest.memory_mib << 20) {
            self.seen.set("resident", resident.all as f64 / MIB);
        }
        calls.map_or(Ok(()), |calls| self.system_calls(calls))
    }

    fn tcp(&mut self) -> Result<(), String> {
        for way in Way::BOTH {
            let (said, counts) = self.counting(|drive| drive.iperf3(way, TCP_SECONDS, ""))?;
            self.seen.set(&format!("TCP, {}", way.name()), traffic::mbits(&said)?);
            let mib = counts.moved(way).bytes / MIB;
            self.seen.set(&format!("exits, TCP, {}", way.name()), counts.exits / mib);
        }
        for way in Way::BOTH {
            let said = self.iperf3(way, TCP_SECONDS, "-P 4")?;
            self.seen.set(&format!("TCP, 4 streams, {}", way.name()), traffic::mbits(&said)?);
        }
        Ok(())
    }

    fn udp(&mut self) -> Result<(), String> {
        for way in Way::BOTH {
            let (said, counts) = self.counting(|drive| drive.iperf3(way, UDP_SECONDS, &udp_options()))?;
            let per_second = traffic::mbits(&said)? * 1e6 / 8.0 / f64::from(UDP_BYTES);
            self.seen.set(&format!("UDP, 64 bytes, {}", way.name()), per_second / 1e3);
            self.seen.set(&format!("UDP lost, {}", way.name()), traffic::lost(&said)?);
            self.seen
                .set(&format!("exits, UDP, {}", way.name()), counts.exits / frames(way, &counts, &said)?);
        }
        Ok(())
    }

    /// Runs of their own, for to be counted makes a system call slow.
    fn system_calls(&mut self, calls: &Calls) -> Result<(), String> {
        for way in Way::BOTH {
            let (counts, made) = self.calls_of(calls, |drive| drive.iperf3(way, COUNTED_SECONDS, ""))?;
            let mib = counts.moved(way).bytes / MIB;
            self.seen.set(&format!("system calls, TCP, {}", way.name()), made / mib);
        }
        for way in Way::BOTH {
            let mut said = String::new();
            let (counts, made) = self.calls_of(calls, |drive| {
                said = drive.iperf3(way, COUNTED_SECONDS, &udp_options())?;
                Ok(())
            })?;
            let frames = frames(way, &counts, &said)?;
            self.seen.set(&format!("system calls, UDP, {}", way.name()), made / frames);
        }
        let mut answers = 0;
        let (_, made) = self.calls_of(calls, |drive| {
            answers = drive.ask(Duration::from_secs(COUNTED_SECONDS.into()))?.0;
            Ok(())
        })?;
        self.seen.set("system calls, request/response", made / f64::from(answers));
        Ok(())
    }

    /// What is counted while `work` runs, and the VMM's system calls meanwhile.
    fn calls_of<T>(
        &mut self,
        calls: &Calls,
        work: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<(Counts, f64), String> {
        calls.during(|| {
            let (_, counts) = self.counting(work)?;
            Ok((counts, calls.of(self.vm.pid())?))
        })
    }

    /// Runs `work`, and returns what is counted meanwhile; of exits, those of an idle guest are taken off.
    fn counting<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<(T, Counts), String> {
        let (begin, before) = (Instant::now(), Counts::now(self.host, TAP)?);
        let result = work(self)?;
        let mut counts = Counts::now(self.host, TAP)?.since(before);
        counts.exits -= self.idle * begin.elapsed().as_secs_f64();
        Ok((result, counts))
    }

    /// What iperf3 says on the host.
    fn iperf3(&self, way: Way, seconds: u32, options: &str) -> Result<String, String> {
        let reverse = if way == Way::GuestToHost { "-R" } else { "" };
        let ip = guest_address();
        traffic::shell(self.host, &format!("iperf3 -c {ip} -t {seconds} -i 0 -f k {reverse} {options}"))
    }

    fn ask(&self, during: Duration) -> Result<(u32, Duration), String> {
        let server = SocketAddr::from((GUEST, ECHO_PORT));
        let asking = self.host.spawn(move || requests::ask(server, during));
        asking.join().expect("it does not panic")
    }
}

/// How many frames of one datagram each the VMM moved. The tap counts a packet of several that the guest sent once; and of those
/// for the guest, iperf3 knows also what the host could not queue.
fn frames(way: Way, counts: &Counts, said: &str) -> Result<f64, String> {
    match way {
        Way::HostToGuest => Ok(counts.moved(way).frames),
        Way::GuestToHost => traffic::datagrams(said).map(|(_, all)| all),
    }
}

fn udp_options() -> String {
    format!("-u -b 0 -l {UDP_BYTES}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_error_else_the_last_word() {
        assert_eq!(reason("so\nError: no tap\r\n  cause: x\n"), "Error: no tap");
        assert_eq!(reason("vmm: no such option\nsee vmm --help\n \n"), "see vmm --help");
        assert_eq!(reason("\n"), "it said nothing on its standard output");
    }
}
