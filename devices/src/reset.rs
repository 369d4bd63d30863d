//! How a guest ends: the i8042's, the chipset's and ACPI's reset, ACPI power off, the power button, and the panic device.
//!
//! Each of these is a register or two, and each tells the machine through an [`EventSink`], which is called on the vCPU
//! that wrote and must not block.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::log_once::LogOnce;
use crate::{BusDevice, GuestEvent, low_byte};

/// Who hears what the guest asked of the machine.
pub type EventSink = Arc<dyn Fn(GuestEvent) + Send + Sync>;

/// The keyboard controller, of which only the reset line is there (ports 0x60 to 0x64).
///
/// Its status says "nothing to read, ready for a command", so a guest that resets through it does not wait. Port 0x61, in
/// the middle, belongs to the timer and stays silent.
pub struct I8042 {
    sink: EventSink,
    /// The next byte on the data port is for the output port, whose lowest bit is the reset line.
    output_port: AtomicBool,
}

impl I8042 {
    /// Its first port.
    pub const PORT: u64 = 0x60;
    /// How many ports it spans.
    pub const LEN: u64 = 5;
    /// Offset of the data port (0x60).
    pub const DATA: u64 = 0;
    /// Offset of the status and command port (0x64).
    pub const COMMAND: u64 = 4;
    /// The command that pulses the reset line.
    pub const COMMAND_RESET: u8 = 0xfe;
    /// The command after which a data byte sets the output port.
    pub const COMMAND_WRITE_OUTPUT_PORT: u8 = 0xd1;

    /// A controller that says [`GuestEvent::Reset`] to `sink`.
    pub fn new(sink: EventSink) -> Self {
        Self { sink, output_port: AtomicBool::new(false) }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (Self::DATA | Self::COMMAND, [byte, ..]) = (offset, data) {
            *byte = 0;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, low_byte(data)) {
            (Self::COMMAND, Some(command)) => {
                self.output_port.store(command == Self::COMMAND_WRITE_OUTPUT_PORT, Ordering::Relaxed);
                if command == Self::COMMAND_RESET {
                    (self.sink)(GuestEvent::Reset);
                }
            }
            (Self::DATA, Some(byte)) if self.output_port.swap(false, Ordering::Relaxed) && byte & 1 == 0 => {
                (self.sink)(GuestEvent::Reset);
            }
            _ => {}
        }
    }
}

/// The reset control register (port 0xcf9), which chipsets have amid the ports of PCI configuration.
pub struct ResetControl {
    sink: EventSink,
    value: AtomicU8,
}

impl ResetControl {
    /// Its port.
    pub const PORT: u64 = 0xcf9;
    /// How many ports it spans.
    pub const LEN: u64 = 1;
    /// The bit that resets (`RST_CPU`). Those beside it say how thoroughly, which is the same here.
    pub const RESET: u8 = 1 << 2;

    /// A register that says [`GuestEvent::Reset`] to `sink`.
    pub fn new(sink: EventSink) -> Self {
        Self { sink, value: AtomicU8::new(0) }
    }
}

impl BusDevice for ResetControl {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, [byte, ..]) = (offset, data) {
            *byte = self.value.load(Ordering::Relaxed);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (0, Some(value)) = (offset, low_byte(data)) else { return };
        self.value.store(value & !Self::RESET, Ordering::Relaxed);
        if value & Self::RESET != 0 {
            (self.sink)(GuestEvent::Reset);
        }
    }
}

/// The ACPI registers of a hardware-reduced machine (ACPI 6.5 §4.8.3.7): sleep control and status, reset, and the Generic
/// Event Device's (§5.6.9) with the power button.
///
/// One block of [`Self::LEN`] ports, each register one byte wide.
pub struct AcpiPower {
    sink: EventSink,
    /// What the Generic Event Device has to tell, until it is read.
    events: AtomicU8,
    irq: EventFd,
}

impl AcpiPower {
    /// How many ports it spans.
    pub const LEN: u64 = 4;
    /// Offset of the sleep control register, which the FADT names.
    pub const SLEEP_CONTROL: u64 = 0;
    /// Offset of the sleep status register, which the FADT names. It reads zero: nothing here ever woke up.
    pub const SLEEP_STATUS: u64 = 1;
    /// Offset of the reset register, which the FADT names.
    pub const RESET: u64 = 2;
    /// Offset of the event register, which the Generic Event Device's method reads: the events since the last read.
    pub const EVENTS: u64 = 3;

    /// Sleep control: the bit that starts the sleep (`SLP_EN`).
    pub const SLP_EN: u8 = 1 << 5;
    /// Sleep control: where the three bits of the sleep type stand (`SLP_TYP`).
    pub const SLP_TYP_SHIFT: u8 = 2;
    /// The sleep type of S5, power off, as the DSDT's `_S5` says it.
    pub const SLP_TYP_S5: u8 = 5;
    const SLP_TYP: u8 = 7 << Self::SLP_TYP_SHIFT;
    const SLEEP_S5: u8 = Self::SLP_EN | Self::SLP_TYP_S5 << Self::SLP_TYP_SHIFT;
    /// What the reset register wants to be written (`RESET_VALUE`).
    pub const RESET_VALUE: u8 = 1;
    /// In the event register: the power button was pressed.
    pub const EVENT_POWER_BUTTON: u8 = 1 << 0;
    /// In the event register: the registers of the PCI bus's hot plug ask something ([`HotPlug`](crate::pci::hotplug::HotPlug)).
    pub const EVENT_SLOTS: u8 = 1 << 1;

    /// Registers that tell `sink`, and a Generic Event Device whose interrupt is `irq`.
    pub fn new(sink: EventSink, irq: EventFd) -> Self {
        Self { sink, events: AtomicU8::new(0), irq }
    }

    /// Presses the power button: a guest that listens powers itself off.
    ///
    /// # Errors
    /// Where the interrupt cannot be raised.
    pub fn press(&self) -> io::Result<()> {
        self.interrupt(Self::EVENT_POWER_BUTTON)
    }

    /// Has the guest look at the slots of the PCI bus.
    ///
    /// # Errors
    /// Where the interrupt cannot be raised.
    pub fn point_to_slots(&self) -> io::Result<()> {
        self.interrupt(Self::EVENT_SLOTS)
    }

    fn interrupt(&self, event: u8) -> io::Result<()> {
        // Release, and Acquire in `read`: the guest reads the register because of the interrupt.
        self.events.fetch_or(event, Ordering::Release);
        self.irq.write(1)
    }
}

impl BusDevice for AcpiPower {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let [byte, ..] = data else { return };
        match offset {
            Self::SLEEP_CONTROL | Self::SLEEP_STATUS | Self::RESET => *byte = 0,
            Self::EVENTS => *byte = self.events.swap(0, Ordering::Acquire),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(value) = low_byte(data) else { return };
        match offset {
            // S5 is the only sleep that the tables name; another type is not one to guess at.
            Self::SLEEP_CONTROL if value & (Self::SLP_EN | Self::SLP_TYP) == Self::SLEEP_S5 => {
                (self.sink)(GuestEvent::PowerOff);
            }
            Self::RESET if value == Self::RESET_VALUE => (self.sink)(GuestEvent::Reset),
            _ => {}
        }
    }
}

/// The panic device (QEMU `docs/specs/pvpanic.rst`, Linux `drivers/misc/pvpanic`): one port, by which the guest's kernel
/// says that it panicked.
pub struct Pvpanic {
    sink: EventSink,
    crashed: LogOnce,
}

impl Pvpanic {
    /// Its usual port.
    pub const PORT: u64 = 0x505;
    /// How many ports it spans.
    pub const LEN: u64 = 1;
    /// The guest panicked, and nothing more will come of it.
    pub const PANICKED: u8 = 1 << 0;
    /// The guest panicked and now runs its crash kernel, which ends the machine in its own time: no event.
    pub const CRASH_LOADED: u8 = 1 << 1;

    /// A device that says [`GuestEvent::Panic`] to `sink`.
    pub fn new(sink: EventSink) -> Self {
        Self { sink, crashed: LogOnce::default() }
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, [byte, ..]) = (offset, data) {
            *byte = Self::PANICKED | Self::CRASH_LOADED;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (0, Some(events)) = (offset, low_byte(data)) else { return };
        if events & Self::CRASH_LOADED != 0 {
            log::log!(self.crashed.level(), "the guest panicked and started its crash kernel");
        }
        if events & Self::PANICKED != 0 {
            (self.sink)(GuestEvent::Panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn sink() -> (EventSink, Arc<Mutex<Vec<GuestEvent>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&seen);
        (Arc::new(move |event| into.lock().unwrap().push(event)), seen)
    }

    fn byte(device: &dyn BusDevice, offset: u64) -> u8 {
        let mut data = [0xff];
        device.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn the_keyboard_controller_resets_by_command_and_by_output_port() {
        let (sink, seen) = sink();
        let i8042 = I8042::new(sink);
        assert_eq!(byte(&i8042, I8042::COMMAND) & 0b10, 0, "ready for a command");
        assert_eq!(byte(&i8042, 1), 0xff, "port 0x61 is the timer's");
        i8042.write(I8042::COMMAND, &[0xaa]);
        i8042.write(I8042::DATA, &[0]);
        i8042.write(I8042::COMMAND, &[0xaa, 0xfe]);
        i8042.write(3, &[0xfe]);
        assert!(seen.lock().unwrap().is_empty());

        i8042.write(I8042::COMMAND, &[I8042::COMMAND_RESET, 0]);
        assert_eq!(*seen.lock().unwrap(), [GuestEvent::Reset]);

        i8042.write(I8042::COMMAND, &[I8042::COMMAND_WRITE_OUTPUT_PORT]);
        i8042.write(I8042::DATA, &[0x01]);
        i8042.write(I8042::DATA, &[0x00]);
        assert_eq!(
            seen.lock().unwrap().len(),
            1,
            "the reset line stayed up, and the command was for one byte"
        );
        i8042.write(I8042::COMMAND, &[I8042::COMMAND_WRITE_OUTPUT_PORT]);
        i8042.write(I8042::DATA, &[0x02]);
        assert_eq!(seen.lock().unwrap().len(), 2);
    }

    #[test]
    fn the_chipset_resets_by_one_bit() {
        let (sink, seen) = sink();
        let control = ResetControl::new(sink);
        control.write(0, &[2]);
        control.write(0, &[0xfb]);
        control.write(0, &[]);
        assert_eq!(byte(&control, 0), 0xfb);
        assert!(seen.lock().unwrap().is_empty());
        // As Linux does it: what kind, then that it is meant.
        control.write(0, &[2]);
        control.write(0, &[6]);
        assert_eq!((*seen.lock().unwrap()).as_slice(), [GuestEvent::Reset]);
        assert_eq!(byte(&control, 0), 2);
    }

    #[test]
    fn acpi_powers_off_on_s5_only_and_resets_on_its_value_only() {
        let (sink, seen) = sink();
        let acpi = AcpiPower::new(sink, EventFd::new(EFD_NONBLOCK).unwrap());
        let s5 = AcpiPower::SLP_TYP_S5 << AcpiPower::SLP_TYP_SHIFT;
        for register in [AcpiPower::SLEEP_CONTROL, AcpiPower::SLEEP_STATUS, AcpiPower::RESET] {
            assert_eq!(byte(&acpi, register), 0, "there is nothing to read");
        }
        acpi.write(AcpiPower::SLEEP_CONTROL, &[s5]);
        acpi.write(AcpiPower::SLEEP_CONTROL, &[AcpiPower::SLP_EN]);
        acpi.write(AcpiPower::SLEEP_STATUS, &[0x80]);
        acpi.write(AcpiPower::RESET, &[0]);
        acpi.write(AcpiPower::RESET, &[]);
        assert!(seen.lock().unwrap().is_empty());
        acpi.write(AcpiPower::SLEEP_CONTROL, &[s5 | AcpiPower::SLP_EN]);
        acpi.write(AcpiPower::RESET, &[AcpiPower::RESET_VALUE]);
        assert_eq!(*seen.lock().unwrap(), [GuestEvent::PowerOff, GuestEvent::Reset]);
    }

    #[test]
    fn the_power_button_interrupts_and_is_read_once() {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let acpi = AcpiPower::new(sink().0, irq.try_clone().unwrap());
        assert_eq!(byte(&acpi, AcpiPower::EVENTS), 0);
        acpi.press().unwrap();
        assert_eq!(irq.read().unwrap(), 1);
        assert_eq!(byte(&acpi, AcpiPower::EVENTS), AcpiPower::EVENT_POWER_BUTTON);
        assert_eq!(byte(&acpi, AcpiPower::EVENTS), 0);
        acpi.point_to_slots().unwrap();
        acpi.press().unwrap();
        assert_eq!((irq.read().unwrap(), byte(&acpi, AcpiPower::EVENTS)), (2, 0b11));
    }

    #[test]
    fn a_panic_is_told_and_a_crash_kernel_is_left_alone() {
        let (sink, seen) = sink();
        let pvpanic = Pvpanic::new(sink);
        assert_eq!(byte(&pvpanic, 0), 0b11);
        pvpanic.write(0, &[Pvpanic::CRASH_LOADED]);
        assert!(seen.lock().unwrap().is_empty());
        pvpanic.write(0, &[Pvpanic::PANICKED]);
        assert_eq!(*seen.lock().unwrap(), [GuestEvent::Panic]);
    }
}
