//! The configuration space of a virtio device: its capabilities (virtio 1.2 §4.1.4), and what they lead to.

use std::sync::Arc;

use super::registers::{BAR_LEN, COMMON, COMMON_LEN, DEVICE, ISR, NOTIFY, NOTIFY_MULTIPLIER, PENDING, TABLE};
use crate::pci::config::{Configuration, Identity};
use crate::pci::msix::{self, Table, Vectors};
use crate::virtio::net::TYPE_NET;

/// Vendor-specific capabilities (§4.1.4), by their `cfg_type`.
const CAPABILITY: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
/// In `struct virtio_pci_cfg_cap`: BAR, offset, length, data.
const CFG_BAR: usize = 4;
const CFG_OFFSET: usize = 8;
const CFG_LENGTH: usize = 12;
const CFG_DATA: usize = 16;

/// Configuration space, and the table that its BAR leads to.
pub(super) struct Space {
    pub(super) config: Configuration,
    pub(super) table: Table,
    /// The offset of the MSI-X capability.
    pub(super) msix: usize,
    /// The offset of the capability for access to the BAR by configuration space.
    access: usize,
    /// Whether each queue's notifications come without an exit.
    pub(super) heard: Vec<bool>,
    /// It is taken out of its slot, and what the guest writes is for nobody.
    pub(super) gone: bool,
}

impl Space {
    pub(super) fn new(device_type: u32, queues: usize, vectors: Arc<Vectors>) -> Self {
        let mut config = Configuration::new(Identity {
            vendor: 0x1af4,
            device: 0x1040 + device_type as u16,
            revision: 1,
            // An Ethernet controller; of what is to come, none of PCI's classes.
            class: if device_type == TYPE_NET { 0x02_0000 } else { 0xff_0000 },
            // §4.1.2.1: 0x40 or more for a device that is not transitional.
            subsystem: (0x1af4, 0x40),
        });
        config.add_bar(BAR_LEN as u32);
        config.add_pin();
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(vectors.count() - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(TABLE as u32).to_le_bytes());
        body[6..].copy_from_slice(&(PENDING as u32).to_le_bytes());
        let msix = config.add_capability(msix::CAPABILITY, &body, &msix::CONTROL_WRITABLE.to_le_bytes());
        let notify = NOTIFY_MULTIPLIER * queues as u64;
        let device = TABLE - DEVICE;
        add(&mut config, CFG_COMMON, COMMON, COMMON_LEN, None, &[]);
        add(&mut config, CFG_NOTIFY, NOTIFY, notify, Some(NOTIFY_MULTIPLIER as u32), &[]);
        add(&mut config, CFG_ISR, ISR, 1, None, &[]);
        add(&mut config, CFG_DEVICE, DEVICE, device, None, &[]);
        let mut writable = [0; CFG_DATA + 2];
        writable[CFG_BAR - 2] = 0xff;
        writable[CFG_OFFSET - 2..].fill(0xff);
        let access = add(&mut config, CFG_PCI, 0, 0, Some(0), &writable);
        Self { config, table: Table::new(vectors), msix, access, heard: vec![false; queues], gone: false }
    }

    /// Where the data of the capability for access is (`pci_cfg_data`).
    pub(super) fn data(&self) -> usize {
        self.access + CFG_DATA
    }

    /// What the guest asks of the capability for access by configuration space (§4.1.4.9), if that makes sense: an offset
    /// into the BAR, and a length.
    pub(super) fn accessed(&self, offset: usize, len: usize) -> Option<(u64, usize)> {
        let (data, config) = (self.data(), &self.config);
        let touched = offset < data + 4 && data < offset + len;
        let [bar] = config.get(self.access + CFG_BAR);
        let at = u64::from(u32::from_le_bytes(config.get(self.access + CFG_OFFSET)));
        let len = u32::from_le_bytes(config.get(self.access + CFG_LENGTH));
        let good =
            matches!(len, 1 | 2 | 4) && at.is_multiple_of(len.into()) && at + u64::from(len) <= BAR_LEN;
        (touched && bar == 0 && good).then_some((at, len as usize))
    }
}

/// Adds `struct virtio_pci_cap` (§4.1.4), with the four bytes that two kinds of it have behind.
fn add(
    config: &mut Configuration,
    kind: u8,
    offset: u64,
    len: u64,
    more: Option<u32>,
    writable: &[u8],
) -> usize {
    let mut body = vec![if more.is_some() { 20 } else { 16 }, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(more.map(u32::to_le_bytes).into_iter().flatten());
    config.add_capability(CAPABILITY, &body, writable)
}
