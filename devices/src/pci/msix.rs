//! MSI-X (PCI Local Bus 3.0 §6.8.2): a table of messages, one for each vector, and masks on them.
//!
//! A vector's event is an eventfd. While the vector is open, whoever reads that eventfd sends the message. While it is
//! masked nobody does, and the eventfd itself is the pending bit: open again, it is read, and the message goes out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::routes::EventRoutes;
pub use super::routes::Message;
use crate::lent;
use crate::log_once::LogOnce;

/// The capability's ID.
pub const CAPABILITY: u8 = 0x11;
/// Message control, in the capability behind ID and pointer: the bits that can be written.
pub const CONTROL_WRITABLE: u16 = ENABLE | FUNCTION_MASK;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of an entry of the table: address, data, vector control.
pub const ENTRY_LEN: u64 = 16;
/// In vector control.
const MASKED: u32 = 1 << 0;

/// The vectors from the side of the device, which takes no lock to raise one.
pub struct Vectors {
    events: Vec<EventFd>,
    enabled: AtomicBool,
    /// Another process has some of the eventfds.
    lent: AtomicBool,
}

impl Vectors {
    /// So many of them, which is 1 to 2048.
    ///
    /// # Errors
    /// Where their eventfds cannot be made.
    pub fn new(count: u16) -> io::Result<Self> {
        let events =
            (0..count).map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)).collect::<io::Result<_>>()?;
        Ok(Self { events, enabled: AtomicBool::new(false), lent: AtomicBool::new(false) })
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.events.len() as u16
    }

    /// Whether the driver uses MSI-X.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// What raises a vector; none where there is no such one.
    pub fn event(&self, vector: u16) -> Option<&EventFd> {
        self.events.get(usize::from(vector))
    }

    /// The same, for another process.
    pub(crate) fn lend(&self, vector: u16) -> Option<&EventFd> {
        self.lent.store(true, Ordering::Relaxed);
        self.event(vector)
    }

    /// Raises a vector; nothing happens where there is no such one.
    ///
    /// # Errors
    /// The eventfd's.
    pub fn raise(&self, vector: u16) -> io::Result<()> {
        let Some(event) = self.event(vector) else { return Ok(()) };
        if self.lent.load(Ordering::Relaxed) { lent::raise(event) } else { event.write(1) }
    }

    /// Forgets what is pending.
    pub fn clear(&self) {
        self.events.iter().for_each(lent::clear);
    }
}

/// The table and what the guest set in it.
pub struct Table {
    vectors: Arc<Vectors>,
    entries: Vec<Entry>,
    function_masked: bool,
    refused: LogOnce,
}

struct Entry {
    message: Message,
    masked: bool,
    /// What the vector sends at present.
    open: Option<Message>,
}

impl Table {
    /// The table as a reset leaves it: every vector masked.
    pub fn new(vectors: Arc<Vectors>) -> Self {
        let entry = || Entry { message: Message::default(), masked: true, open: None };
        let entries = (0..vectors.count()).map(|_| entry()).collect();
        Self { vectors, entries, function_masked: false, refused: LogOnce::default() }
    }

    /// The guest wrote message control.
    pub fn set_control(&mut self, control: u16, routes: &dyn EventRoutes) {
        let enable = control & ENABLE != 0;
        if enable && !self.vectors.enabled() {
            // Left by a driver that switched MSI-X off meanwhile.
            self.vectors.clear();
        }
        self.function_masked = control & FUNCTION_MASK != 0;
        self.vectors.enabled.store(enable, Ordering::Release);
        for vector in 0..self.entries.len() {
            self.update(vector, routes);
        }
    }

    /// The guest reads the table at `offset`: four or eight bytes, aligned.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let Some((vector, from)) = place(offset, data.len()) else { return };
        if let Some(entry) = self.entries.get(vector) {
            data.copy_from_slice(&entry.bytes()[from..from + data.len()]);
        }
    }

    /// The guest writes the table at `offset`: four or eight bytes, aligned.
    pub fn write(&mut self, offset: u64, data: &[u8], routes: &dyn EventRoutes) {
        let Some((vector, from)) = place(offset, data.len()) else { return };
        if let Some(entry) = self.entries.get_mut(vector) {
            let mut bytes = entry.bytes();
            bytes[from..from + data.len()].copy_from_slice(data);
            entry.set(bytes);
            self.update(vector, routes);
        }
    }

    /// The guest reads the pending bits at `offset`: four or eight bytes, aligned.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        if place(offset, data.len()).is_none() {
            return;
        }
        data.fill(0);
        let first = 8 * offset as usize;
        let vectors = self.entries.iter().zip(&self.vectors.events).skip(first).take(8 * data.len());
        for (number, (entry, event)) in vectors.enumerate() {
            if entry.open.is_none() && lent::is_pending(event) {
                data[number / 8] |= 1 << (number % 8);
            }
        }
    }

    /// Has the vector send what it now should.
    fn update(&mut self, vector: usize, routes: &dyn EventRoutes) {
        let entry = &mut self.entries[vector];
        let sends = self.vectors.enabled() && !self.function_masked && !entry.masked;
        let wanted = sends.then_some(entry.message);
        if wanted == entry.open {
            return;
        }
        let event = &self.vectors.events[vector];
        if entry.open.take().is_some() {
            routes.close(vector as u16, event);
        }
        if let Some(message) = wanted {
            match routes.open(vector as u16, event, message) {
                Ok(()) => entry.open = Some(message),
                Err(error) => log::log!(self.refused.level(), "MSI-X vector {vector} stays masked: {error}"),
            }
        }
    }
}

impl Entry {
    fn bytes(&self) -> [u8; ENTRY_LEN as usize] {
        let mut bytes = [0; ENTRY_LEN as usize];
        bytes[..8].copy_from_slice(&self.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.message.data.to_le_bytes());
        bytes[12..].copy_from_slice(&if self.masked { MASKED } else { 0 }.to_le_bytes());
        bytes
    }

    fn set(&mut self, bytes: [u8; ENTRY_LEN as usize]) {
        let value = u128::from_le_bytes(bytes);
        // The low two bits of an address are always zero.
        self.message = Message { address: value as u64 & !3, data: (value >> 64) as u32 };
        self.masked = (value >> 96) as u32 & MASKED != 0;
    }
}

/// The entry at `offset` and the offset into it, where an access of `len` bytes is one that the specification allows.
fn place(offset: u64, len: usize) -> Option<(usize, usize)> {
    let good = matches!(len, 4 | 8) && offset.is_multiple_of(len as u64);
    good.then_some(((offset / ENTRY_LEN) as usize, (offset % ENTRY_LEN) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_that_another_process_fills_or_empties_has_nobody_wait() {
        let vectors = Vectors::new(1).unwrap();
        let event = vectors.lend(0).unwrap();
        lent::block(event);
        event.write(u64::MAX - 1).unwrap();
        vectors.raise(0).unwrap();
        vectors.clear();
        vectors.clear();
        assert!(!lent::is_pending(event));
    }

    #[test]
    fn each_vector_has_its_own_pending_bit() {
        let vectors = Arc::new(Vectors::new(150).unwrap());
        let table = Table::new(Arc::clone(&vectors));
        for vector in [0, 9, 64, 70, 129, 149] {
            vectors.raise(vector).unwrap();
        }
        let pending = |offset, len: usize| {
            let mut data = [0xff; 8];
            table.read_pending(offset, &mut data[..len]);
            (0..8 * len).filter(|bit| data[bit / 8] & 1 << (bit % 8) != 0).collect::<Vec<_>>()
        };
        assert_eq!((pending(0, 8), pending(8, 8), pending(16, 8)), (vec![0, 9], vec![0, 6], vec![1, 21]));
        assert_eq!((pending(0, 4), pending(4, 4), pending(8, 4)), (vec![0, 9], vec![], vec![0, 6]));
        assert_eq!((pending(16, 4), pending(20, 4), pending(24, 8)), (vec![1, 21], vec![], vec![]));
        // No access of another size or place.
        assert_eq!(pending(2, 2).len(), 16);
    }
}
