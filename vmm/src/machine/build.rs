//! Builds the machine, runs it, and takes it apart again.
//!
//! Taking apart goes in one order: vCPUs stop, devices stop. It is the same after the guest's end, a failed start and a panic of one
//! of our threads.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::Builder;

use boot::layout;
use devices::pci::hotplug::HotPlug;
use devices::reset::{AcpiPower, EventSink, I8042, Pvpanic, ResetControl};
use devices::rtc::Rtc;
use devices::serial::Serial;
use devices::virtio::VirtioDevice;
use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_CAP_X2APIC_API, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    KVM_PMU_CAP_DISABLE, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS,
    kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use rustix::process::Pid;
use vm_memory::GuestMemoryMmap;
use vmm::MachineConfig;
use vmm::config::{DEFAULT_CMDLINE, Transport};

use crate::error::Error;
use crate::kvm::bus::Bus;
use crate::kvm::cpuid::Processor;
use crate::kvm::gate::Gate;
use crate::kvm::irq::{self, irqfd};
use crate::kvm::memory;
use crate::kvm::pci_bus::PciBus;
use crate::kvm::transport::{self, Devices};
use crate::kvm::vcpu::{Shared, Vcpu};
use crate::machine::Identity;
use crate::machine::disk::{Disk, DiskError};
use crate::machine::ending::{Ending, Outcome};
use crate::machine::events::{Loop, Machine};
use crate::machine::nic::Nic;
use crate::machine::others::{self, Opened, Others};
use crate::machine::output::Output;
use crate::machine::sandbox::{self, Filters, Thread};
use crate::machine::slots::Slots;
use crate::machine::vcpus::Vcpus;
use crate::protocol::{Channel, FromMachine, ToMachine};
use crate::sys;
use crate::timings::Timings;

// Two crates that do not know each other describe the same registers.
const _: () = {
    assert!(layout::SLEEP_STATUS as u64 - layout::SLEEP_CONTROL as u64 == AcpiPower::SLEEP_STATUS);
    assert!(layout::RESET as u64 - layout::SLEEP_CONTROL as u64 == AcpiPower::RESET);
    assert!(layout::GED as u64 - layout::SLEEP_CONTROL as u64 == AcpiPower::EVENTS);
    assert!(layout::RESET_VALUE == AcpiPower::RESET_VALUE);
    assert!(layout::GED_POWER_BUTTON == AcpiPower::EVENT_POWER_BUTTON);
    assert!(layout::SLEEP_S5 == AcpiPower::SLP_TYP_S5 << AcpiPower::SLP_TYP_SHIFT | AcpiPower::SLP_EN);
    assert!(layout::I8042_DATA as u64 == I8042::PORT && layout::PVPANIC as u64 == Pvpanic::PORT);
    assert!(layout::RTC as u64 == Rtc::PORT && layout::RTC_LEN as u64 == Rtc::LEN);
    assert!(layout::RTC_CENTURY == Rtc::CENTURY);
};

/// What the keeper gave.
pub(super) struct Given<'a> {
    pub(super) channel: &'a Arc<Channel<FromMachine, ToMachine>>,
    /// Kernel and initrd, or why they cannot be opened.
    pub(super) files: Result<boot::Files, boot::Error>,
    /// The disks, or why one cannot be opened.
    pub(super) disks: Result<Vec<Disk>, DiskError>,
    pub(super) output: OwnedFd,
    pub(super) input: OwnedFd,
    /// The connection to the back end of each share.
    pub(super) shares: Vec<UnixStream>,
    pub(super) keeper: Pid,
    pub(super) identity: Identity,
}

/// Whether there are devices that somebody asked for: what each guest has beside them, it can do without.
fn needs_devices(config: &MachineConfig) -> bool {
    let MachineConfig { net, disks, shares, seed, guest, .. } = config;
    !(net.is_empty() && disks.is_empty() && shares.is_empty() && seed.is_none() && guest.is_none())
}

/// Runs a guest to its end, and tells `timings` of each step.
///
/// # Errors
/// The machine cannot be built, or failed.
pub(super) fn run(config: &MachineConfig, given: Given<'_>, timings: Timings) -> Result<Outcome, Error> {
    let channel = given.channel;
    let kvm = Kvm::new().map_err(|e| Error::OpenKvm(e.into()))?;
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm_error("say which CPUID it supports"))?;
    let processor = Processor::new(&supported, config.cpus, kvm.check_extension(Cap::TscDeadlineTimer));
    check_limits(&kvm, &processor, config)?;
    timings.reached("KVM opened");
    // Declared in the order in which they must go, last first. What is not to be had leaves the host's network alone.
    let memory = memory::map(&config.memory)?;
    timings.reached("guest memory mapped");
    let files = given.files?;
    let disks = given.disks?;
    // What the files hold is looked at without a right.
    let confined = match config.sandbox {
        true => Some(sandbox::lock(config.user, given.keeper).map_err(Error::Confine)?),
        false => {
            sandbox::end_with(given.keeper).map_err(|_| Error::NoKeeper)?;
            None
        }
    };
    timings.reached("machine confined");
    // Before the host is changed: who writes to a pipe takes the time that it likes.
    let images = files.read(config.memory.bytes)?;
    let wanted = (config.cmdline != DEFAULT_CMDLINE).then_some(&config.cmdline[..]);
    let cmdline = images.cmdline(wanted, DEFAULT_CMDLINE);
    if let Some(title) = images.title() {
        log::info!("the disk boots {title}, with {cmdline}");
    }
    if let Some(word) = boot::leaves_acpi_out(&cmdline) {
        log::warn!(
            "the guest's command line has {word}, so it gets no ACPI tables, and has no power button: wirevm stop ends it at once"
        );
    }
    if config.transport == Transport::Pci && needs_devices(config) && boot::looks_for_no_pci(&cmdline) {
        log::warn!(
            "the guest's command line has pci=off, and its devices are on the PCI bus (--transport mmio has none)"
        );
    }
    let opened = Opened { disks, back_ends: others::connect(config, given.shares)? };
    tell(channel, &FromMachine::Accepted)?;

    let places = transport::places(config.transport, config.net.len() + config.devices_beside_nics());
    let acpi =
        boot::AcpiConfig { cpus: config.cpus, virtio_mmio: &places, pci: config.transport == Transport::Pci };
    let smbios = boot::SmbiosConfig {
        uuid: given.identity.uuid.0,
        serial: config.serial_number.as_deref().unwrap_or_default(),
        strings: &given.identity.credentials,
    };
    let how = boot::Config { cmdline: &cmdline, acpi, smbios, generation: given.identity.generation };
    // Side by side, and beside the keeper's plumbing: none needs another, and KVM waits for milliseconds until no reader of the
    // memory that it had before is left (SRCU).
    let load = || {
        let entry = boot::load(&memory, images, &how)?;
        timings.reached("kernel loaded");
        let filters = confined.is_some().then(|| Filters::new().map(Arc::new)).transpose();
        Ok::<_, Error>((entry, filters.map_err(Error::Confine)?))
    };
    let make = || Hardware::new(&kvm, config, given.output, opened, channel, &memory, timings);
    let (hardware, loaded) = run_parallel("load", load, make)?;
    let Hardware { nics, others, bus, registers, vm, ports, mmio, serial, power, ending } = hardware?;
    let (entry, filters) = loaded?;

    let gate = Gate::new();
    let shared =
        Shared { ports, mmio, memory, ending: ending.clone(), gate, filters: filters.clone(), timings };
    let shared = Arc::new(shared);
    let mut vcpus = (0..config.cpus)
        .map(|id| Vcpu::new(&vm, id, &processor, shared.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    vcpus[0].enter_at(&entry)?;
    timings.reached("vCPUs made");

    let events = Loop::new()?;
    let vcpus = Vcpus::start(vcpus, &config.cpu_affinity, shared)?;
    if let Some(filters) = &filters {
        nics.iter().try_for_each(|nic| nic.confine(filters)).map_err(Error::Confine)?;
        others.confine(filters).map_err(Error::Confine)?;
        filters.enter(Thread::Main).map_err(Error::Confine)?;
    }
    vcpus.wait_until_confined()?;
    sys::forget_start();
    let confined = confined.map_or("nothing (--sandbox off)".to_owned(), |lock| lock.to_string());
    tell(channel, &FromMachine::Running { confined })?;
    vcpus.go_on();
    let slots = bus.map(|bus| Slots::new(bus, registers, power.clone(), vm.clone(), filters));
    let machine = Machine::new(
        Arc::clone(channel),
        vcpus,
        nics,
        others,
        slots,
        vm,
        serial,
        power,
        ending.clone(),
        given.input,
    );
    let (vcpus, nics) = events.attend(machine)?;
    vcpus.end()?;
    nics.iter().for_each(Nic::log_counters);
    Ok(ending.outcome().expect("the machine is attended until the end"))
}

fn tell(channel: &Channel<FromMachine, ToMachine>, message: &FromMachine) -> Result<(), Error> {
    channel.send(message).map_err(|_| Error::NoKeeper)
}

/// The machine but for its vCPUs and what is in its memory, in the order in which its parts must go, last first.
struct Hardware {
    nics: Vec<Nic>,
    others: Others,
    bus: Option<PciBus>,
    registers: Arc<HotPlug>,
    vm: Arc<VmFd>,
    ports: Bus,
    mmio: Bus,
    serial: Arc<Serial>,
    power: Arc<AcpiPower>,
    ending: Arc<Ending>,
}

impl Hardware {
    fn new(
        kvm: &Kvm,
        config: &MachineConfig,
        output: OwnedFd,
        opened: Opened,
        channel: &Arc<Channel<FromMachine, ToMachine>>,
        memory: &GuestMemoryMmap,
        timings: Timings,
    ) -> Result<Self, Error> {
        let ending = Arc::new(Ending::new().map_err(host("make an eventfd"))?);
        let stop_output = ending.event().try_clone().map_err(host("duplicate an eventfd"))?;
        let vm = Arc::new(new_vm(kvm, memory, timings)?);
        irq::set_up_pics(&vm, transport::level_lines(config.transport))
            .map_err(|source| Error::Kvm { what: "set up the interrupt controllers", source })?;
        timings.reached("VM made");
        let sink: EventSink = {
            let ending = ending.clone();
            Arc::new(move |event| ending.guest(event))
        };
        let output = Box::new(Output::new(output, stop_output));
        let serial = Serial::new(irqfd(&vm, layout::COM1_GSI)?, output).map_err(host("make an eventfd"))?;
        let serial = Arc::new(serial);
        let power = Arc::new(AcpiPower::new(sink.clone(), irqfd(&vm, layout::GED_GSI)?));
        let mut ports = Bus::default();
        ports.insert(layout::COM1.into(), Serial::LEN, serial.clone());
        ports.insert(I8042::PORT, I8042::LEN, Arc::new(I8042::new(sink.clone())));
        ports.insert(layout::SLEEP_CONTROL.into(), AcpiPower::LEN, power.clone());
        ports.insert(Pvpanic::PORT, Pvpanic::LEN, Arc::new(Pvpanic::new(sink.clone())));
        ports.insert(Rtc::PORT, Rtc::LEN, Arc::new(Rtc::new()));
        let reset = Arc::new(ResetControl::new(sink));

        let (mut nics, sockets) = Nic::receive_all(channel)?;
        timings.reached("wires received");
        let mut mmio = Bus::default();
        let (others, made) = Others::new(config, sockets, opened, channel)?;
        assert_eq!(made.len(), config.devices_beside_nics());
        let nic = |nic: &mut Nic| Box::new(nic.take_device()) as Box<dyn VirtioDevice>;
        let devices = Devices { nics: nics.iter_mut().map(nic).collect(), others: made };
        let bus = transport::attach(config.transport, &vm, memory, devices, reset, &mut ports, &mut mmio)?;
        let registers = Arc::new(HotPlug::new().map_err(host("make an eventfd"))?);
        if bus.is_some() {
            ports.insert(layout::HOTPLUG.into(), HotPlug::LEN, registers.clone());
        }
        timings.reached("devices made");
        Ok(Self { nics, others, bus, registers, vm, ports, mmio, serial, power, ending })
    }
}

/// What can be refused before anything is made.
fn check_limits(kvm: &Kvm, processor: &Processor, config: &MachineConfig) -> Result<(), Error> {
    let limit = kvm.get_nr_vcpus();
    if config.cpus as usize > limit {
        return Err(Error::TooManyCpus { wanted: config.cpus, limit });
    }
    let limit = interruptible_cpus(kvm.check_extension_int(Cap::X2ApicApi) as u32);
    if config.cpus > limit {
        return Err(Error::CpusOutOfReach { wanted: config.cpus, limit });
    }
    let limit = layout::MAX_MEMORY.min(processor.address_limit() - layout::HOLE_LEN);
    if config.memory.bytes > limit {
        return Err(Error::MemoryTooLarge { bytes: config.memory.bytes, limit });
    }
    let (limit, others) = (transport::limit(config.transport), config.devices_beside_nics());
    if others > limit {
        let (disks, shares) = (config.disks.len(), config.shares.len());
        let room = |wanted: usize| (limit + wanted).saturating_sub(others);
        return Err(match disks >= shares {
            true => Error::TooManyDisks { wanted: disks, limit: room(disks) },
            false => Error::TooManyShares { wanted: shares, limit: room(shares) },
        });
    }
    let limit = limit - others;
    if config.net.len() > limit {
        return Err(Error::TooManyNics { wanted: config.net.len(), limit });
    }
    Ok(())
}

/// How many vCPUs interrupts reach, where KVM knows these flags of [`KVM_CAP_X2APIC_API`]. A message and a line of KVM's IOAPIC have
/// 8 bits for the destination (only an IOAPIC of our own would read the extended destination ID, `KVM_FEATURE_MSI_EXT_DEST_ID`), the
/// highest value of which is every vCPU to a KVM that is not told otherwise.
fn interruptible_cpus(flags: u32) -> u32 {
    if flags & X2APIC_IDS == X2APIC_IDS { 256 } else { 255 }
}

/// A VM with KVM's own interrupt controllers and timer.
fn new_vm(kvm: &Kvm, memory: &GuestMemoryMmap, timings: Timings) -> Result<VmFd, Error> {
    let vm = kvm.create_vm().map_err(kvm_error("create a VM"))?;
    // First, while the VM has nothing else: KVM waits until no reader of what it had before is left (SRCU).
    memory::register(&vm, memory)?;
    timings.reached("memory given to KVM");
    for (capability, flags, what) in CAPABILITIES {
        if let Err(error) = enable(&vm, capability, flags) {
            log::info!("{what}: {error}");
        }
    }
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm_error("place its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(kvm_error("place its TSS"))?;
    vm.create_irq_chip().map_err(kvm_error("create the interrupt controllers"))?;
    // For kernels without ACPI; the dummy speaker answers port 0x61 in the kernel.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(kvm_error("create the timer"))?;
    Ok(vm)
}

/// APIC IDs have 32 bits, and 255 is one of them to a vCPU in x2APIC mode.
const X2APIC_IDS: u32 = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;

/// What KVM has off or on for the sake of its older callers: the capability, its flags, and what is the case without.
const CAPABILITIES: [(u32, u32, &str); 2] = [
    (
        KVM_CAP_PMU_CAPABILITY,
        KVM_PMU_CAP_DISABLE,
        "KVM does not switch its performance counters off, of which the guest is not told",
    ),
    (KVM_CAP_X2APIC_API, X2APIC_IDS, "a message to APIC ID 255 reaches every vCPU"),
];

fn enable(vm: &VmFd, capability: u32, flags: u32) -> std::io::Result<()> {
    // Of each of these, a bit for each flag that KVM knows.
    if vm.check_extension_raw(capability.into()) as u32 & flags != flags {
        return Err(std::io::ErrorKind::Unsupported.into());
    }
    let cap = kvm_enable_cap { cap: capability, args: [flags.into(), 0, 0, 0], ..Default::default() };
    Ok(vm.enable_cap(&cap)?)
}

/// Runs `here` on this thread and `there` on one called `name`, and gives what both say once both are done.
///
/// # Errors
/// There is no thread to be had, and then neither ran.
fn run_parallel<H, T: Send>(
    name: &str,
    there: impl FnOnce() -> T + Send,
    here: impl FnOnce() -> H,
) -> Result<(H, T), Error> {
    std::thread::scope(|scope| {
        let thread = Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, there)
            .map_err(host("start a thread"))?;
        let here = here();
        Ok((here, thread.join().map_err(|_| Error::Bug(format!("the thread {name}")))?))
    })
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
    fn no_more_vcpus_than_interrupts_reach() {
        for (flags, limit) in [(0, 255), (1, 255), (2, 255), (3, 256), (0xff, 256)] {
            assert_eq!(interruptible_cpus(flags), limit, "{flags:#x}");
        }
        let error = Error::CpusOutOfReach { wanted: 300, limit: 256 };
        assert_eq!(error.to_string(), "300 vCPUs are more than the 256 that interrupts reach");
        assert_eq!(error.remedy().unwrap(), "give --cpus 256 or fewer");
    }

    #[test]
    fn what_runs_in_parallel_has_its_name() {
        let (here, there) =
            run_parallel("other", || std::thread::current().name().map(str::to_owned), || 1).unwrap();
        assert_eq!((here, there.as_deref()), (1, Some("other")));
    }
}
