//! The console: a 16550A over [`vm_superio::Serial`], eight byte-wide registers.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{Error, SerialEvents};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{BusDevice, low_byte};

/// A serial port whose interrupt is an eventfd and whose output is whatever was given.
///
/// Output goes byte by byte, flushed, from the vCPU that wrote it: where the output blocks, so does that vCPU, as on a line
/// with flow control, and each that writes after it; nobody else does. What cannot be written is lost, as on a line that was
/// pulled out.
pub struct Serial {
    /// Locked before `uart` where both are, so that bytes go out in the order in which they were written.
    output: Mutex<Box<dyn Write + Send>>,
    /// Never held while the output blocks: whoever has input for the guest, or ends the run, must not wait for that.
    uart: Mutex<Uart>,
    space: EventFd,
}

/// The UART keeps a byte that it sends until it is taken out for the output.
type Uart = vm_superio::Serial<Irq, Space, Vec<u8>>;

impl Serial {
    /// How many ports it spans.
    pub const LEN: u64 = 8;

    /// A port that raises `irq` and writes to `output`.
    ///
    /// # Errors
    /// Where no eventfd can be made.
    pub fn new(irq: EventFd, output: Box<dyn Write + Send>) -> io::Result<Self> {
        let space = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let uart = Uart::with_events(Irq(irq), Space(space.try_clone()?), Vec::new());
        Ok(Self { output: Mutex::new(output), uart: Mutex::new(uart), space })
    }

    /// How many bytes of input there is room for.
    pub fn input_space(&self) -> usize {
        self.uart().fifo_capacity()
    }

    /// Gives the guest input and returns how many bytes of it were taken: no more than there is room for, and none while
    /// the guest has the port looped back on itself.
    ///
    /// # Errors
    /// Where the interrupt cannot be raised; the input was taken then.
    pub fn enqueue(&self, input: &[u8]) -> io::Result<usize> {
        match self.uart().enqueue_raw_bytes(input) {
            Ok(taken) => Ok(taken),
            Err(Error::Trigger(error) | Error::IOError(error)) => Err(error),
            Err(Error::FullFifo) => Ok(0),
        }
    }

    /// Readable once the guest has read all its input: a loop that ran out of room goes on then. Whoever waits reads it
    /// empty, and asks [`input_space`](Self::input_space) after that, not before.
    pub fn space_event(&self) -> &EventFd {
        &self.space
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        unpoisoned(&self.uart)
    }

    /// Writes a register, and returns the byte that goes out for it, if one does.
    fn set(&self, offset: u8, byte: u8) -> Option<u8> {
        let mut uart = self.uart();
        if let Err(error) = uart.write(offset, byte) {
            log::debug!("serial port: {error:?}");
        }
        uart.writer_mut().pop()
    }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A vCPU that panicked in here left a register or two behind, which no other vCPU is worse off for.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0..Self::LEN, [byte, ..]) = (offset, data) {
            *byte = self.uart().read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, low_byte(data)) {
            // The register that sends.
            (0, Some(byte)) => {
                let mut output = unpoisoned(&self.output);
                if let Some(sent) = self.set(0, byte)
                    && let Err(error) = output.write_all(&[sent]).and_then(|()| output.flush())
                {
                    log::debug!("serial port: {error}");
                }
            }
            (1..Self::LEN, Some(byte)) => drop(self.set(offset as u8, byte)),
            _ => {}
        }
    }
}

struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells that the input is used up.
struct Space(EventFd);

impl SerialEvents for Space {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // The counter cannot come near its end, at which alone a write fails.
        let _ = self.0.write(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serial() -> (Serial, EventFd, Output) {
        let (irq, output) = (EventFd::new(EFD_NONBLOCK).unwrap(), Output::default());
        (Serial::new(irq.try_clone().unwrap(), Box::new(output.clone())).unwrap(), irq, output)
    }

    fn byte(serial: &Serial, offset: u64) -> u8 {
        let mut data = [0xff];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn what_the_guest_writes_comes_out() {
        let (serial, _, output) = serial();
        for letter in b"hello" {
            serial.write(0, &[*letter]);
        }
        serial.write(8, b"x");
        serial.write(0, b"");
        serial.write(0, b"!\x07");
        assert_eq!(*output.0.lock().unwrap(), b"hello!", "of a write of 16 bits, the low byte");
        assert_eq!(byte(&serial, 1), 0, "the other is no write to the next register");
        let mut wide = [0xff; 2];
        serial.read(5, &mut wide);
        assert_eq!(wide, [0x60, 0xff]);
    }

    #[test]
    fn input_interrupts_and_room_is_told_when_it_is_used_up() {
        let (serial, irq, _) = serial();
        serial.write(1, &[1]);
        let room = serial.input_space();
        let line = vec![b'x'; room + 10];
        assert_eq!(serial.enqueue(&line).unwrap(), room);
        assert_eq!(serial.enqueue(&line).unwrap(), 0, "a full buffer takes nothing, and that is no error");
        assert_eq!(irq.read().unwrap(), 1);
        for _ in 1..room {
            assert_eq!(byte(&serial, 0), b'x');
        }
        assert!(serial.space_event().read().is_err(), "not used up yet");
        byte(&serial, 0);
        serial.space_event().read().unwrap();
        assert_eq!(serial.input_space(), room);
    }

    #[test]
    fn an_output_that_blocks_holds_up_nobody_but_writers() {
        struct Stalled(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>);
        impl Write for Stalled {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.send(()).unwrap();
                self.1.recv().unwrap();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (writes, is_writing) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let serial = Arc::new(Serial::new(irq, Box::new(Stalled(writes, may_go_on))).unwrap());
        let of_vcpu = serial.clone();
        let vcpu = std::thread::spawn(move || of_vcpu.write(0, b"x"));
        is_writing.recv().unwrap();
        let other = std::thread::spawn(move || {
            let room = serial.input_space();
            (room, serial.enqueue(b"y").unwrap(), byte(&serial, 5) & 1)
        });
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !other.is_finished() && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(other.is_finished(), "who has input waits for the output");
        let (room, taken, ready) = other.join().unwrap();
        assert_eq!((room > 0, taken, ready), (true, 1, 1));
        go_on.send(()).unwrap();
        vcpu.join().unwrap();
    }

    #[test]
    fn an_output_that_fails_loses_bytes_and_no_more() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let serial = Serial::new(EventFd::new(EFD_NONBLOCK).unwrap(), Box::new(Broken)).unwrap();
        serial.write(0, b"x");
        assert_eq!(byte(&serial, 5) & 0x20, 0x20, "still ready for the next byte");
    }
}
