//! What this host can do, found out by trying.

mod guests;
mod host;
mod knobs;

use std::error::Error as _;
use std::fmt::Write;
use std::iter;
use std::path::Path;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress};

use net::Finding;

use crate::cli::Doctor;
use crate::error::Error;
use crate::kvm::memory;
use crate::machine::sandbox::{self, PathsConfined};
use crate::report;
use vmm::config::MemoryConfig;

/// A processor runs more of a guest's kernel than this in a second, an emulator far less.
const NATIVE: f64 = 20e6;
/// How often the loop is run at most: five runs of an emulator take 50 ms.
const RUNS: usize = 5;
/// How often the two instructions of the loop are executed in a run.
const TURNS: u32 = 5_000;

/// How KVM runs a guest's kernel.
pub(crate) enum Speed {
    /// On the processor.
    Native(f64),
    /// By an emulator, in so many instructions a second: Linux would take minutes, or fail at an instruction that the
    /// emulator does not know.
    Emulated(f64),
    /// Not even a loop of two instructions.
    Broken(String),
}

/// Judges by runs of the loop, each as long as it took or why it did not end. One that is fast enough settles it: any other
/// may have been interrupted, and the first also pays for the way into the guest.
fn judge(runs: impl Iterator<Item = Result<Duration, String>>) -> Speed {
    let mut best = 0.0_f64;
    for took in runs {
        let took = match took {
            Ok(took) => took.max(Duration::from_nanos(1)),
            Err(why) => return Speed::Broken(why),
        };
        best = best.max(f64::from(2 * TURNS) / took.as_secs_f64());
        if best >= NATIVE {
            return Speed::Native(best);
        }
    }
    Speed::Emulated(best)
}

/// Measures how fast KVM runs ring 0: a loop in a throw-away VM. And how long it took to get so far: to make the VM, and what its
/// first run took more than the fastest one.
///
/// # Errors
/// KVM is absent, or refuses.
fn measure() -> Result<(Speed, Duration), Error> {
    // mov ecx, TURNS; again: dec ecx; jnz again; hlt
    let mut code = vec![0xb9];
    code.extend(TURNS.to_le_bytes());
    code.extend([0x49, 0x75, 0xfd, 0xf4]);

    let kvm = |what| move |e: kvm_ioctls::Error| Error::Kvm { what, source: e.into() };
    let dev = Kvm::new().map_err(|e| Error::OpenKvm(e.into()))?;
    let guest = memory::map(&MemoryConfig::plain(1 << 20))?;
    guest.write_slice(&code, GuestAddress(0x1000)).expect("a page of the memory just mapped");
    // After the memory, so that it is dropped before it.
    let start = Instant::now();
    let vm = dev.create_vm().map_err(kvm("create a VM"))?;
    let made = start.elapsed();
    // Where Intel's older processors keep what they need to run real and unpaged code.
    vm.set_tss_address(boot::layout::KVM_TSS as usize).map_err(kvm("place its TSS"))?;
    memory::register(&vm, &guest)?;
    let mut vcpu = vm.create_vcpu(0).map_err(kvm("create a vCPU"))?;

    // Flat 32-bit protected mode: real mode is emulated on some processors that run Linux well.
    let mut sregs = vcpu.get_sregs().map_err(kvm("read a vCPU's registers"))?;
    let flat = |type_, selector| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(0xb, 0x8);
    (sregs.ds, sregs.es, sregs.ss) = (flat(0x3, 0x10), flat(0x3, 0x10), flat(0x3, 0x10));
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs).map_err(kvm("set a vCPU's registers"))?;
    let start_of_loop = kvm_regs { rip: 0x1000, rflags: 0x2, ..Default::default() };
    let mut run = || {
        vcpu.set_regs(&start_of_loop).map_err(|e| format!("the vCPU's registers cannot be set: {e}"))?;
        let start = Instant::now();
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => Ok(start.elapsed()),
            Ok(exit) => Err(format!("the vCPU ended with {exit:?}")),
            Err(e) => Err(e.to_string()),
        }
    };
    let mut times = Vec::new();
    let runs = iter::repeat_with(&mut run).take(RUNS).inspect(|run| times.extend(run.as_ref().ok().copied()));
    let speed = judge(runs);
    // One more, where the first was enough.
    if times.len() == 1 {
        times.extend(run().ok());
    }
    let first = times.first().zip(times.iter().min()).map(|(first, best)| *first - *best);
    Ok((speed, made + first.unwrap_or_default()))
}

/// What KVM here is, as a line, and how long it takes to start. Only a good one runs guests.
fn kvm() -> (Finding, Option<Duration>) {
    let measured = measure();
    let start = measured.as_ref().ok().map(|(_, start)| *start);
    (kvm_as(measured.map(|(speed, _)| speed)), start)
}

fn kvm_as(speed: Result<Speed, Error>) -> Finding {
    let finding =
        |good, state: String, remedy: Option<String>| Finding { what: "KVM".into(), good, state, remedy };
    match speed {
        Ok(Speed::Native(speed)) => {
            let speed = format!("{:.0} million instructions a second", speed / 1e6);
            finding(true, format!("runs a guest's kernel on the processor ({speed})"), None)
        }
        Ok(Speed::Emulated(speed)) => finding(
            false,
            format!("emulates a guest's kernel ({:.1} million instructions a second): no Linux runs", speed / 1e6),
            Some("a host with VT-x or AMD-V; in a virtual machine, one with nested virtualization; or make lab".into()),
        ),
        Ok(Speed::Broken(why)) => finding(false, format!("cannot run a guest's kernel: {why}"), None),
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            finding(false, format!("{error}{cause}"), error.remedy())
        }
    }
}

/// What the process that runs the guest can be confined by here.
fn sandbox() -> Finding {
    let paths = sandbox::paths_can_be_confined();
    let filters = sandbox::filters_can_be();
    let root = rustix::process::geteuid().is_root();
    let user = if root { "a user of its own" } else { "this user (as root, one of its own)" };
    let state = match filters {
        true => format!(
            "confines the process that runs the guest: {user}, no capability, {paths}, seccomp filters"
        ),
        false => format!(
            "cannot confine the process that runs the guest by seccomp; {user}, no capability, {paths}"
        ),
    };
    let remedy = match (filters, paths) {
        (false, _) => Some("take a kernel with CONFIG_SECCOMP_FILTER; or, for guests that you trust, --sandbox off".into()),
        (true, PathsConfined::FilterAlone) => {
            Some("switch Landlock on (CONFIG_SECURITY_LANDLOCK, and landlock in lsm= of the kernel's command line)".into())
        }
        (true, _) => None,
    };
    Finding { what: "sandbox".into(), good: filters, state, remedy }
}

/// Everything that is looked at, KVM first.
fn examine() -> Vec<Finding> {
    let (kvm, start) = kvm();
    let mut findings = vec![kvm, host::rights(), host::device("/dev/net/tun", "taps and tuns", "tun", true)];
    findings.push(sandbox());
    findings.extend(net::link_kinds());
    findings.push(host::device("/dev/vhost-net", "vhost=on", "vhost_net", false));
    findings.push(host::device("/dev/vhost-vsock", "--vsock vhost", "vhost_vsock", false));
    findings.extend(guests::findings());
    findings.extend(net::findings());
    findings.push(host::reverse_path(Path::new("/proc/sys/net/ipv4/conf")));
    findings.extend(knobs::findings(start));
    findings.extend(host::wireless(Path::new("/sys/class/net")));
    findings.extend(host::left_over());
    findings
}

/// Says what was found, as the options ask; true where a guest can run.
pub(crate) fn run(args: &Doctor) -> bool {
    if args.quiet {
        return kvm().0.good;
    }
    let mut cleaned = Vec::new();
    if args.clean {
        let json = args.json;
        let host = net::Host::new().telling(move |step| {
            if !json {
                report::answer(&format!(
                    "{step}
"
                ));
            }
        });
        if let Err(error) = vmm::runtime::sweep() {
            report::error(&error, error.remedy().as_deref());
            return false;
        }
        match net::clean(&host) {
            Ok(steps) => cleaned.extend(steps.into_iter().map(|step| step.command)),
            Err(error) => {
                report::error(&error, error.remedy().as_deref());
                return false;
            }
        }
    }
    let findings = examine();
    let cleaned = args.clean.then_some(&cleaned[..]);
    match args.json {
        true => report::answer_json(&json(&findings, cleaned)),
        false => report::answer(&lines(&findings)),
    }
    findings[0].good
}

/// One object; with what was taken back, where that was asked for.
fn json(findings: &[Finding], cleaned: Option<&[String]>) -> serde_json::Value {
    let findings: Vec<_> = findings
        .iter()
        .map(|Finding { what, good, state, remedy }| {
            serde_json::json!({ "what": what, "good": good, "state": state, "try": remedy })
        })
        .collect();
    let mut object = serde_json::json!({ "findings": findings });
    if let Some(cleaned) = cleaned {
        object["cleaned"] = cleaned.into();
    }
    object
}

fn lines(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { what, good, state, remedy } in findings {
        let _ = writeln!(text, "{}  {what:<16} {state}", if *good { "good" } else { "BAD " });
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "      {:<16} try: {remedy}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict on runs that took so many microseconds, and how many of them were looked at.
    fn judged(runs: &[u64]) -> (Speed, usize) {
        let mut looked_at = 0;
        let runs = runs.iter().inspect(|_| looked_at += 1).map(|&took| Ok(Duration::from_micros(took)));
        (judge(runs), looked_at)
    }

    #[test]
    fn one_run_at_the_speed_of_a_processor_settles_it() {
        assert!(matches!(judged(&[10]), (Speed::Native(_), 1)));
        assert!(matches!(judged(&[9_000, 4_000, 12_000, 8_000, 100, 9_000]), (Speed::Native(_), 5)));
        let (speed, looked_at) = judged(&[18_000, 9_000, 10_000]);
        assert!(matches!(speed, Speed::Emulated(speed) if (1e6..1.2e6).contains(&speed)));
        assert_eq!(looked_at, 3, "an emulator is asked as often as may be");
        let broken = [Ok(Duration::from_millis(9)), Err("so".to_owned())];
        assert!(matches!(judge(broken.into_iter()), Speed::Broken(why) if why == "so"));
    }

    #[test]
    fn findings_are_lines_for_a_person_and_json_for_a_program() {
        let findings = [
            Finding { what: "KVM".into(), good: true, state: "runs".into(), remedy: None },
            Finding {
                what: "tun".into(),
                good: false,
                state: "is \"gone\"".into(),
                remedy: Some("modprobe tun".into()),
            },
        ];
        assert_eq!(
            lines(&findings),
            "good  KVM              runs\nBAD   tun              is \"gone\"\n                       try: modprobe tun\n"
        );
        assert_eq!(
            json(&findings, None).to_string(),
            r#"{"findings":[{"good":true,"state":"runs","try":null,"what":"KVM"},{"good":false,"state":"is \"gone\"","try":"modprobe tun","what":"tun"}]}"#
        );
        let cleaned = ["ip link del dev br0".to_owned()];
        assert_eq!(
            json(&[], Some(&cleaned)).to_string(),
            r#"{"cleaned":["ip link del dev br0"],"findings":[]}"#
        );
        assert_eq!(json(&[], Some(&[])).to_string(), r#"{"cleaned":[],"findings":[]}"#);
    }
}
