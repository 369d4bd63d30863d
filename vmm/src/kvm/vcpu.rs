//! One vCPU and its thread.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use boot::{Entry, Segment};
use devices::virtio::net::run_on;
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_run, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::error::{Crash, Error, Position, Where};
use crate::kvm::bus::Bus;
use crate::kvm::cpuid::Processor;
use crate::kvm::gate::{Gate, Next};
use crate::machine::ending::{Ending, Outcome};
use crate::machine::sandbox::{Filters, Thread};
use crate::timings::Timings;

/// Exits to user space by what the guest did: the price of a device in user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exits {
    pub(crate) port: u64,
    pub(crate) mmio: u64,
    pub(crate) other: u64,
}

impl fmt::Display for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, mmio, other } = self;
        write!(f, "{} exits ({port} port, {mmio} MMIO, {other} other)", port + mmio + other)
    }
}

/// The same while the vCPU runs. Only its thread writes, so that anybody can read at any time.
#[derive(Default)]
struct Counted {
    port: AtomicU64,
    mmio: AtomicU64,
    other: AtomicU64,
}

impl Counted {
    fn now(&self) -> Exits {
        let [port, mmio, other] =
            [&self.port, &self.mmio, &self.other].map(|counter| counter.load(Ordering::Relaxed));
        Exits { port, mmio, other }
    }
}

/// Adds without a locked instruction: there is one writer.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// What every vCPU's thread shares.
pub(crate) struct Shared {
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) ending: Arc<Ending>,
    /// When they run.
    pub(crate) gate: Gate,
    /// Each thread confines itself before the guest's first instruction.
    pub(crate) filters: Option<Arc<Filters>>,
    pub(crate) timings: Timings,
}

/// A vCPU that is ready to run: the first at the kernel's entry, the others waiting for INIT and SIPI.
pub(crate) struct Vcpu {
    id: u32,
    fd: VcpuFd,
    shared: Arc<Shared>,
    exits: Arc<Counted>,
}

/// Memory types by MTRR: enabled (bit 11), all of memory write-back (6), as firmware leaves them.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// Fast string operations, which Linux looks for on Intel.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRING: u64 = 1;

impl Vcpu {
    /// Creates vCPU `id`.
    pub(crate) fn new(vm: &VmFd, id: u32, processor: &Processor, shared: Arc<Shared>) -> Result<Self, Error> {
        let fd = vm.create_vcpu(id.into()).map_err(kvm("create a vCPU"))?;
        fd.set_cpuid2(&processor.vcpu(id)).map_err(kvm("set a vCPU's CPUID"))?;
        for (index, data) in [(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK), (MSR_MISC_ENABLE, FAST_STRING)] {
            let msr = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]);
            // KVM may know a register not, which the guest then finds out itself.
            if fd.set_msrs(&msr.expect("one entry")).map_err(kvm("set a vCPU's MSRs"))? == 0 {
                log::debug!("KVM does not take MSR {index:#x}");
            }
        }
        Ok(Self { id, fd, shared, exits: Arc::default() })
    }

    /// Puts the vCPU at the kernel's entry.
    pub(crate) fn enter_at(&mut self, entry: &Entry) -> Result<(), Error> {
        let mut sregs = self.fd.get_sregs().map_err(kvm("read a vCPU's registers"))?;
        for (ours, theirs) in [
            (&entry.cs, &mut sregs.cs),
            (&entry.data, &mut sregs.ds),
            (&entry.data, &mut sregs.es),
            (&entry.data, &mut sregs.fs),
            (&entry.data, &mut sregs.gs),
            (&entry.data, &mut sregs.ss),
            (&entry.tr, &mut sregs.tr),
        ] {
            *theirs = segment(ours);
        }
        (sregs.gdt.base, sregs.gdt.limit) = (entry.gdt.base, entry.gdt.limit);
        (sregs.idt.base, sregs.idt.limit) = (entry.idt.base, entry.idt.limit);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (entry.cr0, entry.cr3, entry.cr4, entry.efer);
        self.fd.set_sregs(&sregs).map_err(kvm("set a vCPU's registers"))?;
        let mut regs = self.fd.get_regs().map_err(kvm("read a vCPU's registers"))?;
        (regs.rip, regs.rsp, regs.rflags) = (entry.rip, entry.rsp, entry.rflags);
        (regs.rsi, regs.rbx) = (entry.rsi, entry.rbx);
        self.fd.set_regs(&regs).map_err(kvm("set a vCPU's registers"))
    }

    /// Starts the thread, on that CPU of the host or on any.
    pub(crate) fn start(self, cpu: Option<u16>) -> Result<Running, Error> {
        let (id, shared, exits) = (self.id, self.shared.clone(), self.exits.clone());
        let name = format!("vcpu{id}");
        let thread = Builder::new()
            .name(name.clone())
            .spawn(move || {
                // The keeper has tried that it can; it may have gone offline since.
                if let Some((cpu, Err(error))) = cpu.map(|cpu| (cpu, run_on(cpu))) {
                    log::warn!("{name} cannot run on CPU {cpu}, and runs on any: {error}");
                }
                if let Some(filters) = &shared.filters {
                    filters.enter(Thread::Vcpu).expect("the main thread tried that the kernel can");
                }
                self.run();
            })
            .map_err(|source| Error::Host { what: "start a vCPU's thread", source })?;
        Ok(Running { id, thread, exits })
    }

    /// Runs the guest until somebody ends it.
    fn run(mut self) {
        let run: *const kvm_run = self.fd.get_kvm_run();
        let shared = self.shared.clone();
        let mut began = false;
        loop {
            match shared.gate.pass() {
                Next::Leave => return,
                Next::Run { paused: false } => {}
                Next::Run { paused: true } if began => self.went_on(),
                Next::Run { paused: true } => {
                    began = true;
                    // The others wait in KVM for their INIT.
                    if self.id == 0 {
                        shared.timings.reached("first KVM_RUN");
                    }
                }
            }
            let crash = match self.fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => {
                    count(&self.exits.port);
                    for item in data.chunks_exact(port_width(run)) {
                        shared.ports.write(port.into(), item);
                    }
                    continue;
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    count(&self.exits.port);
                    for item in data.chunks_exact_mut(port_width(run)) {
                        shared.ports.read(port.into(), item);
                    }
                    continue;
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    count(&self.exits.mmio);
                    shared.mmio.read(address, data);
                    continue;
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    count(&self.exits.mmio);
                    shared.mmio.write(address, data);
                    continue;
                }
                Ok(VcpuExit::Intr) => {
                    count(&self.exits.other);
                    continue;
                }
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                    count(&self.exits.other);
                    continue;
                }
                Ok(VcpuExit::Shutdown) => Crash::TripleFault {
                    vcpu: self.id,
                    at: Where(self.position().filter(|at| !at.is_reset())),
                },
                Ok(VcpuExit::InternalError) => {
                    // SAFETY: the exit reason says that this is the union's live field; `run` is mapped as long as `fd`.
                    let suberror = unsafe { (*run).__bindgen_anon_1.internal.suberror };
                    Crash::KvmInternal { vcpu: self.id, suberror, at: Where(self.position()) }
                }
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    Crash::EntryFailed { vcpu: self.id, reason, at: Where(self.position()) }
                }
                Ok(exit) => {
                    let exit = format!("{exit:?}");
                    Crash::Unexpected { vcpu: self.id, exit, at: Where(self.position()) }
                }
                Err(e) => {
                    Crash::Unexpected { vcpu: self.id, exit: e.to_string(), at: Where(self.position()) }
                }
            };
            return shared.ending.end(Outcome::Crash(crash));
        }
    }

    /// Tells the guest that it stood still, so that its watchdog does not take that for a lock-up (`KVM_KVMCLOCK_CTRL`).
    fn went_on(&self) {
        // A guest without kvmclock is not told.
        if let Err(error) = self.fd.kvmclock_ctrl() {
            log::debug!("vCPU {} is not told of the pause: {error}", self.id);
        }
    }

    /// Where the vCPU stands, as far as KVM tells.
    fn position(&self) -> Option<Position> {
        let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) else { return None };
        let mut code = vec![0; 8];
        let address =
            self.fd.translate_gva(regs.rip).ok().filter(|t| t.valid != 0).map(|t| t.physical_address);
        if address.is_none_or(|a| self.shared.memory.read_slice(&mut code, GuestAddress(a)).is_err()) {
            code.clear();
        }
        let (cr0, cr2, cr3) = (sregs.cr0, sregs.cr2, sregs.cr3);
        Some(Position { rip: regs.rip, rsp: regs.rsp, cr0, cr2, cr3, code })
    }
}

/// The width in bytes of each item of a port exit: a string instruction brings several at once.
fn port_width(run: *const kvm_run) -> usize {
    // SAFETY: called only on a port exit, when `io` is the union's live field; `run` is mapped as long as the vCPU's fd,
    // which the caller holds.
    let width = unsafe { (*run).__bindgen_anon_1.io.size };
    usize::from(width.max(1))
}

fn segment(ours: &Segment) -> kvm_segment {
    kvm_segment {
        base: ours.base,
        limit: ours.limit,
        selector: ours.selector,
        type_: ours.type_,
        present: ours.present,
        dpl: ours.dpl,
        db: ours.db,
        s: ours.s,
        l: ours.l,
        g: ours.g,
        ..Default::default()
    }
}

/// Names what was asked of KVM in an error.
fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |e| Error::Kvm { what, source: e.into() }
}

/// A vCPU's thread.
pub(crate) struct Running {
    id: u32,
    thread: JoinHandle<()>,
    exits: Arc<Counted>,
}

impl Running {
    /// Lets [`Self::kick`] get a thread out of `KVM_RUN`; once a process.
    pub(crate) fn prepare_kicks() -> Result<(), Error> {
        extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), nothing)
            .map_err(|e| Error::Host { what: "handle the signal that stops a vCPU", source: e.into() })
    }

    /// Gets the thread out of `KVM_RUN`, if it is in there just now.
    pub(crate) fn kick(&self) {
        // One that has ended is not in there.
        let _ = self.thread.kill(SIGRTMIN());
    }

    /// How the guest has used the vCPU, so far.
    pub(crate) fn exits(&self) -> Exits {
        self.exits.now()
    }

    /// Waits for the thread, which is to leave, and says how the guest used it.
    pub(crate) fn join(self) -> Result<Exits, Error> {
        // A signal that comes between the look at the gate and KVM_RUN is lost, so there is another until the thread has gone.
        while !self.thread.is_finished() {
            self.kick();
            std::thread::sleep(Duration::from_micros(200));
        }
        self.thread.join().map_err(|_| Error::Bug(format!("vCPU {}", self.id)))?;
        Ok(self.exits.now())
    }
}
