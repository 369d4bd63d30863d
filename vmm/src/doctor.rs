//! What this host can do, found out by trying.

use std::error::Error as _;
use std::fmt::Write;
use std::time::{Duration, Instant};
use std::{fs, io, iter};

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress};

use net::Finding;

use crate::cli::Doctor;
use crate::error::Error;
use crate::memory_config::MemoryConfig;
use crate::{memory, report};

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

/// Measures how fast KVM runs ring 0: a loop in a throw-away VM.
///
/// # Errors
/// KVM is absent, or refuses.
pub(crate) fn measure() -> Result<Speed, Error> {
    // mov ecx, TURNS; again: dec ecx; jnz again; hlt
    let mut code = vec![0xb9];
    code.extend(TURNS.to_le_bytes());
    code.extend([0x49, 0x75, 0xfd, 0xf4]);

    let kvm = |what| move |e: kvm_ioctls::Error| Error::Kvm { what, source: e.into() };
    let dev = Kvm::new().map_err(|e| Error::OpenKvm(e.into()))?;
    let guest = memory::map(&MemoryConfig::plain(1 << 20))?;
    guest.write_slice(&code, GuestAddress(0x1000)).expect("a page of the memory just mapped");
    // After the memory, so that it is dropped before it.
    let vm = dev.create_vm().map_err(kvm("create a VM"))?;
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
    let run = || {
        vcpu.set_regs(&start_of_loop).map_err(|e| format!("the vCPU's registers cannot be set: {e}"))?;
        let start = Instant::now();
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => Ok(start.elapsed()),
            Ok(exit) => Err(format!("the vCPU ended with {exit:?}")),
            Err(e) => Err(e.to_string()),
        }
    };
    Ok(judge(iter::repeat_with(run).take(RUNS)))
}

/// What KVM here is, as a line. Only a good one runs guests.
fn kvm() -> Finding {
    let finding =
        |good, state: String, remedy: Option<String>| Finding { what: "KVM".into(), good, state, remedy };
    match measure() {
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

/// The rights that making links takes.
fn rights() -> Finding {
    const CAP_NET_ADMIN: u32 = 12;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let good = effective & 1 << CAP_NET_ADMIN != 0;
    let state = if good { "may make and change links" } else { "may not make or change links" };
    let remedy = "run as root; or take a tap made for you (sudo ip tuntap add tap0 mode tap user $USER vnet_hdr), or an fd";
    Finding {
        what: "CAP_NET_ADMIN".into(),
        good,
        state: state.into(),
        remedy: (!good).then(|| remedy.into()),
    }
}

/// A device node that something needs.
fn device(path: &str, what: &str, module: &str, needed: bool) -> Finding {
    let opened = fs::OpenOptions::new().read(true).write(true).open(path);
    let (good, state, remedy) = match opened {
        Ok(_) => (true, format!("can be opened: {what}"), None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let remedy = Some(format!("modprobe {module}; in a container, --device {path}"));
            (!needed, format!("is not there: no {what}"), remedy)
        }
        Err(e) => (
            !needed,
            format!("cannot be opened: {e}"),
            Some("run as root, or be given the right to it".into()),
        ),
    };
    Finding { what: path.into(), good, state, remedy }
}

/// Links that can be no bridge's port and no macvtap's parent.
fn wireless() -> Vec<Finding> {
    let links = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let wireless =
        links.filter(|link| link.path().join("phy80211").exists() || link.path().join("wireless").exists());
    wireless
        .map(|link| Finding {
            what: link.file_name().to_string_lossy().into_owned(),
            good: true,
            state:
                "is Wi-Fi, which carries one MAC address: no bridge and no macvtap on it; take tap,nat or tun"
                    .into(),
            remedy: None,
        })
        .collect()
}

/// Whether replies that come by another link than the one they would be answered on are dropped.
fn reverse_path() -> Finding {
    let strict = |link: &str| {
        fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"))
            .is_ok_and(|value| value.trim() == "1")
    };
    let strict = strict("all") || strict("default");
    let state = match strict {
        true => "is strict: a guest's packets that come back by another link than they went are dropped",
        false => "does not keep a guest's packets from coming back by another link",
    };
    let remedy =
        strict.then(|| "sysctl -w net.ipv4.conf.all.rp_filter=2, where guests have several ways out".into());
    Finding { what: "rp_filter".into(), good: true, state: state.into(), remedy }
}

/// What wirevm processes that are gone have left behind.
fn left_over() -> Vec<Finding> {
    let finding = |good, state: String, remedy| Finding { what: "left-overs".into(), good, state, remedy };
    let clean = || Some("wirevm doctor --clean".to_owned());
    match net::left_over() {
        Ok(steps) if steps.is_empty() => vec![finding(true, "none".into(), None)],
        Ok(steps) => steps
            .iter()
            .map(|step| finding(false, format!("a dead wirevm's; undone by: {}", step.command), clean()))
            .collect(),
        Err(error) => vec![finding(true, format!("cannot be looked for: {error}"), None)],
    }
}

/// Everything that is looked at, KVM first.
fn examine() -> Vec<Finding> {
    let mut findings = vec![kvm(), rights(), device("/dev/net/tun", "taps and tuns", "tun", true)];
    findings.extend(net::link_kinds());
    findings.push(device("/dev/vhost-net", "vhost=on", "vhost_net", false));
    findings.extend(net::findings());
    findings.push(reverse_path());
    findings.extend(wireless());
    findings.extend(left_over());
    findings
}

/// Says what was found, as the options ask; true where a guest can run.
pub(crate) fn run(args: &Doctor) -> bool {
    if args.quiet {
        return kvm().good;
    }
    let mut cleaned = Vec::new();
    if args.clean
        && let Err(error) = net::clean(&mut |step| {
            if !args.json {
                report::answer(&format!("{step}\n"));
            }
            cleaned.push(step.command.clone());
        })
    {
        report::error(&error, error.remedy().as_deref());
        return false;
    }
    let findings = examine();
    let cleaned = args.clean.then_some(&cleaned[..]);
    report::answer(&if args.json { json(&findings, cleaned) + "\n" } else { lines(&findings) });
    findings[0].good
}

/// One object; with what was taken back, where that was asked for.
fn json(findings: &[Finding], cleaned: Option<&[String]>) -> String {
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
    object.to_string()
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
            json(&findings, None),
            r#"{"findings":[{"good":true,"state":"runs","try":null,"what":"KVM"},{"good":false,"state":"is \"gone\"","try":"modprobe tun","what":"tun"}]}"#
        );
        let cleaned = ["ip link del dev br0".to_owned()];
        assert_eq!(json(&[], Some(&cleaned)), r#"{"cleaned":["ip link del dev br0"],"findings":[]}"#);
        assert_eq!(json(&[], Some(&[])), r#"{"cleaned":[],"findings":[]}"#);
    }

    #[test]
    fn a_device_that_is_absent_is_bad_only_where_it_is_needed() {
        let needed = device("/dev/no-such-device", "nothing", "nothing", true);
        assert!(!needed.good && needed.remedy.unwrap().contains("modprobe nothing"));
        assert!(device("/dev/no-such-device", "nothing", "nothing", false).good);
        assert!(device("/dev/null", "nothing", "nothing", true).good);
    }
}
