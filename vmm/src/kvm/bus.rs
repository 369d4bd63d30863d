//! The port and the MMIO bus: which device answers at an address.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::BusDevice;

/// A map from address ranges to devices, complete before the first vCPU runs and never changed after.
#[derive(Default)]
pub(crate) struct Bus {
    /// By base address: length and device.
    ranges: BTreeMap<u64, (u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Puts `device` at `[base, base + len)`.
    ///
    /// # Panics
    /// Where two ranges overlap: addresses come from `boot::layout`, never from the user or the guest.
    pub(crate) fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) {
        let before = self.ranges.range(..base + len).next_back();
        assert!(before.is_none_or(|(b, (l, _))| b + l <= base), "two devices at {base:#x}");
        self.ranges.insert(base, (len, device));
    }

    /// Reads; an address where nothing is reads as ones.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// Writes; nothing happens where nothing is.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    /// The device that has all of `[address, address + len)`, and the offset into it.
    fn find(&self, address: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let (base, (size, device)) = self.ranges.range(..=address).next_back()?;
        let offset = address - base;
        (offset.checked_add(len as u64)? <= *size).then_some((&**device, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Reads its offset, remembers what was written.
    #[derive(Default)]
    struct Probe(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = offset as u8;
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn a_device_sees_offsets_and_the_rest_reads_as_ones() {
        let probe = Arc::new(Probe::default());
        let mut bus = Bus::default();
        bus.insert(0x100, 8, probe.clone());
        bus.insert(0x108, 8, Arc::new(Probe::default()));

        let read = |address, len: usize| {
            let mut data = vec![0; len];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x107, 1), [7]);
        assert_eq!(read(0x108, 2), [0, 0xff], "the second device, at its offset 0");
        assert_eq!(read(0xff, 1), [0xff]);
        assert_eq!(read(0x110, 1), [0xff]);
        assert_eq!(read(0x106, 4), [0xff; 4], "an access that leaves the device reaches none");
        assert_eq!(read(u64::MAX, 1), [0xff]);

        bus.write(0x103, &[1, 2]);
        bus.write(0x107, &[1, 2]);
        assert_eq!(*probe.0.lock().unwrap(), [(3, vec![1, 2])]);
    }

    #[test]
    #[should_panic(expected = "two devices at 0x10c")]
    fn ranges_do_not_overlap() {
        let mut bus = Bus::default();
        bus.insert(0x108, 8, Arc::new(Probe::default()));
        bus.insert(0x10c, 8, Arc::new(Probe::default()));
    }
}
