//! Builds the machine, runs it, and takes it apart again.
//!
//! Taking apart goes in one order: vCPUs stop, devices stop, the host's network is as before, the terminal is given back.
//! It is the same after the guest's end, a signal, a failed start and a panic of one of our threads.

pub(crate) mod ending;
pub(crate) mod nic;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;

use boot::layout;
use devices::reset::{AcpiPower, EventSink, I8042, Pvpanic};
use devices::serial::Serial;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::keeper::console;
use crate::keeper::output;
use crate::kvm::bus::Bus;
use crate::kvm::cpuid::Processor;
use crate::kvm::irq::irqfd;
use crate::kvm::memory;
use crate::kvm::transport;
use crate::kvm::vcpu::{Running, Shared, Vcpu};
use crate::machine::ending::{Ending, Outcome};
use crate::machine::nic::Nic;
use crate::timings::Timings;
use vmm::MachineConfig;
use vmm::config::{ConsoleConfig, Transport};

// Two crates that do not know each other describe the same registers.
const _: () = {
    assert!(layout::SLEEP_STATUS as u64 - layout::SLEEP_CONTROL as u64 == AcpiPower::SLEEP_STATUS);
    assert!(layout::RESET as u64 - layout::SLEEP_CONTROL as u64 == AcpiPower::RESET);
    assert!(layout::GED as u64 - layout::SLEEP_CONTROL as u64 == AcpiPower::EVENTS);
    assert!(layout::RESET_VALUE == AcpiPower::RESET_VALUE);
    assert!(layout::GED_POWER_BUTTON == AcpiPower::EVENT_POWER_BUTTON);
    assert!(layout::SLEEP_S5 == AcpiPower::SLP_TYP_S5 << AcpiPower::SLP_TYP_SHIFT | AcpiPower::SLP_EN);
    assert!(layout::I8042_DATA as u64 == I8042::PORT && layout::PVPANIC as u64 == Pvpanic::PORT);
};

/// Runs a guest to its end, and tells `timings` of each step.
///
/// # Errors
/// The machine cannot be built. What was made by then is undone.
pub(crate) fn run(
    args: &MachineConfig,
    explain: bool,
    signals: &'static EventFd,
    timings: Timings,
) -> Result<Outcome, Error> {
    let kvm = Kvm::new().map_err(|e| Error::OpenKvm(e.into()))?;
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm_error("say which CPUID it supports"))?;
    let processor = Processor::new(&supported, args.cpus, kvm.check_extension(Cap::TscDeadlineTimer));
    check_limits(&kvm, &processor, args)?;
    timings.reached("KVM opened");
    // Declared in the order in which they must go, last first. Memory that is not to be had leaves the host's network alone.
    let memory = memory::map(&args.memory)?;
    timings.reached("guest memory mapped");
    let places = transport::places(args.transport, args.net.len());
    let config = boot::Config {
        kernel: &args.kernel,
        initrd: args.initrd.as_deref(),
        cmdline: &args.cmdline,
        acpi: boot::AcpiConfig {
            cpus: args.cpus,
            virtio_mmio: &places,
            pci: args.transport == Transport::Pci,
        },
    };
    // Side by side: neither needs the other, to wire the host takes a while, and KVM waits for milliseconds until no reader of the
    // memory that it had before is left (SRCU).
    let load = || boot::load(&memory, &config).inspect(|_| timings.reached("kernel loaded"));
    let (body, entry) = beside("load", load, || Body::new(&kvm, args, explain, &memory, timings))?;
    let Body { nics, vm, ports, mmio, serial, power, ending } = body?;
    let entry = entry?;

    let stop = AtomicBool::new(false);
    let shared = Arc::new(Shared { ports, mmio, memory, ending: ending.clone(), stop, timings });
    let mut vcpus = (0..args.cpus)
        .map(|id| Vcpu::new(&vm, id, &processor, shared.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    vcpus[0].enter_at(&entry)?;
    timings.reached("vCPUs made");

    let guest = Guest::start(vcpus, shared)?;
    let console = console::attend(&serial, &power, &ending, signals, args.console == ConsoleConfig::Stdio);
    let joined = guest.join();
    console?;
    joined?;
    nics.iter().for_each(Nic::log_counters);
    Ok(ending.outcome().expect("the console is attended until the end"))
}

/// The machine but for its vCPUs and what is in its memory, in the order in which its parts must go, last first.
struct Body {
    nics: Vec<Nic>,
    vm: Arc<VmFd>,
    ports: Bus,
    mmio: Bus,
    serial: Arc<Serial>,
    power: Arc<AcpiPower>,
    ending: Arc<Ending>,
}

impl Body {
    fn new(
        kvm: &Kvm,
        args: &MachineConfig,
        explain: bool,
        memory: &GuestMemoryMmap,
        timings: Timings,
    ) -> Result<Self, Error> {
        let ending = Arc::new(Ending::new().map_err(host("make an eventfd"))?);
        let stop_output = ending.event().try_clone().map_err(host("duplicate an eventfd"))?;
        // A console that is not to be had leaves the host's network alone.
        let output = output::open(&args.console, stop_output)?;
        let mut nics = Nic::open_all(args, explain)?;
        timings.reached("host plumbing done");
        let vm = Arc::new(new_vm(kvm)?);
        timings.reached("VM made");
        let sink: EventSink = {
            let ending = ending.clone();
            Arc::new(move |event| ending.guest(event))
        };
        let serial = new_serial(&vm, output)?;
        let power = Arc::new(AcpiPower::new(sink.clone(), irqfd(&vm, layout::GED_GSI)?));
        let mut ports = Bus::default();
        ports.insert(layout::COM1.into(), Serial::LEN, serial.clone());
        ports.insert(I8042::PORT, I8042::LEN, Arc::new(I8042::new(sink.clone())));
        ports.insert(layout::SLEEP_CONTROL.into(), AcpiPower::LEN, power.clone());
        ports.insert(Pvpanic::PORT, Pvpanic::LEN, Arc::new(Pvpanic::new(sink)));

        let mut mmio = Bus::default();
        let devices = nics.iter_mut().map(Nic::take_device);
        transport::show(args.transport, &vm, memory, devices, &mut ports, &mut mmio)?;
        timings.reached("devices made");
        memory::register(&vm, memory)?;
        timings.reached("memory given to KVM");
        Ok(Self { nics, vm, ports, mmio, serial, power, ending })
    }
}

/// What can be refused before anything is made.
fn check_limits(kvm: &Kvm, processor: &Processor, args: &MachineConfig) -> Result<(), Error> {
    let limit = kvm.get_nr_vcpus();
    if args.cpus as usize > limit {
        return Err(Error::TooManyCpus { wanted: args.cpus, limit });
    }
    let limit = layout::MAX_MEMORY.min(processor.address_limit() - layout::HOLE_LEN);
    if args.memory.bytes > limit {
        return Err(Error::MemoryTooLarge { bytes: args.memory.bytes, limit });
    }
    let limit = transport::limit(args.transport);
    if args.net.len() > limit {
        return Err(Error::TooManyNics { wanted: args.net.len(), limit });
    }
    Ok(())
}

/// A VM with KVM's own interrupt controllers and timer.
fn new_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    let vm = kvm.create_vm().map_err(kvm_error("create a VM"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm_error("place its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(kvm_error("place its TSS"))?;
    vm.create_irq_chip().map_err(kvm_error("create the interrupt controllers"))?;
    // For kernels without ACPI; the dummy speaker answers port 0x61 in the kernel.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(kvm_error("create the timer"))?;
    Ok(vm)
}

/// Runs `here` on this thread and `there` on one called `name`, and gives what both say once both are done.
///
/// # Errors
/// There is no thread to be had, and then neither ran; or `there` panicked.
fn beside<H, T: Send>(
    name: &str,
    there: impl FnOnce() -> T + Send,
    here: impl FnOnce() -> H,
) -> Result<(H, T), Error> {
    // However it ends, a panic of `here` included, the scope waits for its thread: none is left with what it borrowed.
    std::thread::scope(|scope| {
        let thread = Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, there)
            .map_err(host("start a thread"))?;
        let here = here();
        Ok((here, thread.join().map_err(|_| Error::Bug(format!("the thread {name}")))?))
    })
}

fn new_serial(vm: &VmFd, output: Box<dyn Write + Send>) -> Result<Arc<Serial>, Error> {
    let serial = Serial::new(irqfd(vm, layout::COM1_GSI)?, output).map_err(host("make an eventfd"))?;
    Ok(Arc::new(serial))
}

/// The running vCPUs; they stop when this is dropped, whatever the reason.
struct Guest {
    shared: Arc<Shared>,
    vcpus: Vec<Running>,
}

impl Guest {
    fn start(vcpus: Vec<Vcpu>, shared: Arc<Shared>) -> Result<Self, Error> {
        Running::prepare_kicks()?;
        let mut guest = Self { shared, vcpus: Vec::new() };
        for vcpu in vcpus {
            guest.vcpus.push(vcpu.start()?);
        }
        Ok(guest)
    }

    /// Stops the vCPUs and counts their exits. Every thread is waited for, also after one that panicked.
    fn stop(&mut self) -> Result<(), Error> {
        self.shared.stop.store(true, Ordering::Release);
        let mut result = Ok(());
        for (id, vcpu) in self.vcpus.drain(..).enumerate() {
            match vcpu.join() {
                Ok(exits) => log::info!("vCPU {id}: {exits}"),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    fn join(mut self) -> Result<(), Error> {
        self.stop()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // After `join` there is nothing left to stop.
        let _ = self.stop();
    }
}

fn kvm_error(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |e| Error::Kvm { what, source: e.into() }
}

fn host(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Host { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_panics_beside_is_an_error() {
        let (here, there) =
            beside("other", || std::thread::current().name().map(str::to_owned), || 1).unwrap();
        assert_eq!((here, there.as_deref()), (1, Some("other")));
        let mut ran = false;
        let error = beside("other", || panic!("as a bug would"), || ran = true).unwrap_err();
        assert_eq!(error.to_string(), "the thread other panicked; this is a bug in wirevm");
        assert!(ran);
    }
}
