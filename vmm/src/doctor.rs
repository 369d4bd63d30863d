//! What this host can do, found out by trying.

use std::time::{Duration, Instant};

use kvm_bindings::kvm_segment;
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress};

use crate::error::Error;
use crate::memory;

/// A processor runs more of a guest's kernel than this in a second, an emulator far less.
const NATIVE: f64 = 20e6;

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

/// Measures how fast KVM runs ring 0: a loop in a throw-away VM, about 30 ms where it is emulated. The best of three counts,
/// for the first also pays for the way into the guest, and any may be interrupted.
///
/// # Errors
/// KVM is absent, or refuses.
pub(crate) fn measure() -> Result<Speed, Error> {
    const TURNS: u32 = 5_000;
    // mov ecx, TURNS; again: dec ecx; jnz again; hlt
    let mut code = vec![0xb9];
    code.extend(TURNS.to_le_bytes());
    code.extend([0x49, 0x75, 0xfd, 0xf4]);

    let kvm = |what| move |e: kvm_ioctls::Error| Error::Kvm { what, source: e.into() };
    let dev = Kvm::new().map_err(|e| Error::OpenKvm(e.into()))?;
    let guest = memory::map(1 << 20)?;
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
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let mut regs = vcpu.get_regs().map_err(kvm("read a vCPU's registers"))?;
        (regs.rip, regs.rflags) = (0x1000, 0x2);
        vcpu.set_regs(&regs).map_err(kvm("set a vCPU's registers"))?;
        let start = Instant::now();
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => best = best.min(start.elapsed()),
            Ok(exit) => return Ok(Speed::Broken(format!("the vCPU ended with {exit:?}"))),
            Err(e) => return Ok(Speed::Broken(e.to_string())),
        }
    }
    let speed = f64::from(2 * TURNS) / best.max(Duration::from_nanos(1)).as_secs_f64();
    Ok(if speed >= NATIVE { Speed::Native(speed) } else { Speed::Emulated(speed) })
}

/// Prints what was found, unless `quiet`; true where a guest can run.
pub(crate) fn run(quiet: bool) -> bool {
    let (good, text) = match measure() {
        Ok(Speed::Native(speed)) => (
            true,
            format!(
                "runs a guest's kernel on the processor ({:.0} million instructions a second)",
                speed / 1e6
            ),
        ),
        Ok(Speed::Emulated(speed)) => (
            false,
            format!(
                "emulates a guest's kernel ({:.1} million instructions a second): Linux does not run\n         \
                 use a host with VT-x or AMD-V, in a virtual machine one with nested virtualization on; or the lab",
                speed / 1e6
            ),
        ),
        Ok(Speed::Broken(why)) => (false, format!("cannot run a guest's kernel: {why}")),
        Err(error) => {
            if !quiet {
                crate::report::error(&error, error.remedy().as_deref());
            }
            return false;
        }
    };
    if !quiet {
        println!("{}  /dev/kvm {text}", if good { "good" } else { "bad " });
    }
    good
}
