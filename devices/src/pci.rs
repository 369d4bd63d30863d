//! The PCI bus as far as every PC has one: a host bridge at 0:0.0, reached through the port mechanism (PCI Local Bus 3.0
//! §3.2.2.3.2). Linux takes a machine without any for broken, and says so.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::BusDevice;

/// The configuration ports: an address and the four bytes of data behind it.
#[derive(Debug, Default)]
pub struct HostBridge {
    address: AtomicU32,
}

/// Its configuration header (§6.1) in words, from offset 0; what follows is zero.
///
/// Vendor and device are those of QEMU's generic host bridge, which operating systems leave alone; the class is host bridge.
const HEADER: [u32; 3] = [0x0008_1b36, 0, 0x0600_0000];

impl HostBridge {
    /// Its first port.
    pub const PORT: u64 = 0xcf8;
    /// How many ports it spans.
    pub const LEN: u64 = 8;
    /// Offset of the address register, which takes 32 bits at once and nothing less.
    const ADDRESS: u64 = 0;
    /// Offset of the data, any width.
    const DATA: u64 = 4;
    /// In the address: reach into configuration space.
    const ENABLE: u32 = 1 << 31;

    /// The configuration word that the address selects: ones where there is no device.
    fn word(&self) -> u32 {
        let address = self.address.load(Ordering::Relaxed);
        match (address & Self::ENABLE != 0, (address >> 8) & 0xffff) {
            (true, 0) => HEADER.get((address as usize & 0xfc) / 4).copied().unwrap_or(0),
            _ => u32::MAX,
        }
    }
}

impl BusDevice for HostBridge {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            Self::ADDRESS if data.len() == 4 => {
                data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
            }
            Self::DATA.. => {
                let bytes = self.word().to_le_bytes();
                let from = (offset - Self::DATA) as usize;
                if let Some(bytes) = bytes.get(from..from + data.len()) {
                    data.copy_from_slice(bytes);
                }
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Self::ADDRESS, Ok(address)) = (offset, data.try_into()) {
            // Two bits are hard-wired to zero, for only words are addressed.
            self.address.store(u32::from_le_bytes(address) & !3, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bridge: &HostBridge, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xff; len];
        bridge.read(offset, &mut data);
        data
    }

    #[test]
    fn the_bus_has_a_host_bridge_and_nothing_else() {
        let bridge = HostBridge::default();
        assert_eq!(read(&bridge, 4, 4), [0xff; 4], "no access without the enable bit");

        bridge.write(0, &0x8000_0000u32.to_le_bytes());
        assert_eq!(
            read(&bridge, 0, 4),
            0x8000_0000u32.to_le_bytes(),
            "the address reads back, as a probe expects"
        );
        assert_eq!(read(&bridge, 4, 4), [0x36, 0x1b, 0x08, 0]);
        assert_eq!(read(&bridge, 6, 2), [0x08, 0]);
        assert_eq!(read(&bridge, 7, 2), [0xff; 2], "an access past the four bytes reaches nothing");

        bridge.write(0, &0x8000_000bu32.to_le_bytes());
        assert_eq!(read(&bridge, 4, 4), [0, 0, 0, 6], "the class; the address' low bits do not count");
        bridge.write(0, &0x8000_00fcu32.to_le_bytes());
        assert_eq!(read(&bridge, 4, 4), [0; 4]);
        for elsewhere in [0x8000_0800u32, 0x8000_0100, 0x8001_0000] {
            bridge.write(0, &elsewhere.to_le_bytes());
            assert_eq!(read(&bridge, 4, 4), [0xff; 4], "{elsewhere:#x}");
        }
    }

    #[test]
    fn what_is_no_access_to_the_address_changes_nothing() {
        let bridge = HostBridge::default();
        bridge.write(0, &0x8000_0000u32.to_le_bytes());
        bridge.write(3, &[1]);
        bridge.write(4, &[0; 4]);
        bridge.write(0, &[0; 2]);
        assert_eq!(read(&bridge, 0, 4), 0x8000_0000u32.to_le_bytes());
        assert_eq!(read(&bridge, 0, 1), [0xff]);
    }
}
