//! The SMBIOS tables (DMTF DSP0134, SMBIOS 3.7): what machine this is, and strings for the guest's system manager.
//!
//! A guest without UEFI searches for the entry point in the last 64 KiB below 1 MiB. The structures are where a PC has its option
//! ROMs, so that nothing of the guest's RAM is taken for them.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Error;
use crate::layout::{SMBIOS, SMBIOS_ENTRY, SMBIOS_LEN};

/// Who the machine is, and what its guest is told besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct SmbiosConfig<'a> {
    /// Its UUID, in the order in which it is written (RFC 9562 §4).
    pub uuid: [u8; 16],
    /// Its serial number; empty for none.
    pub serial: &'a str,
    /// Its OEM strings (type 11), of which systemd reads its credentials. None has a NUL; empty ones are left out.
    pub strings: &'a [String],
}

/// The most strings of one structure: they are numbered by a byte, from 1.
const STRINGS_MAX: usize = 255;
const MAKER: &str = "wirevm";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Writes entry point and structures.
pub(crate) fn write(memory: &GuestMemoryMmap, config: &SmbiosConfig<'_>) -> Result<(), Error> {
    let table = structures(config);
    let len = table.len() as u64;
    if len > SMBIOS_LEN {
        return Err(Error::SmbiosTooLarge { len, room: SMBIOS_LEN });
    }
    let put = |bytes: &[u8], address| {
        let written = memory.write_slice(bytes, GuestAddress(address));
        written.map_err(|source| Error::Memory { what: "SMBIOS tables", address, source })
    };
    put(&table, SMBIOS)?;
    put(&entry_point(len as u32), SMBIOS_ENTRY)
}

/// The 64-bit entry point (§5.2.2) of a table of `len` bytes.
fn entry_point(len: u32) -> [u8; 24] {
    const LEN: u8 = 24;
    let mut entry = [0; LEN as usize];
    entry[..5].copy_from_slice(b"_SM3_");
    // Length; version 3.7, document revision 0; entry point revision 1.
    entry[6..11].copy_from_slice(&[LEN, 3, 7, 0, 1]);
    entry[12..16].copy_from_slice(&len.to_le_bytes());
    entry[16..24].copy_from_slice(&SMBIOS.to_le_bytes());
    // All bytes add up to 0.
    entry[5] = entry.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    entry
}

fn structures(config: &SmbiosConfig<'_>) -> Vec<u8> {
    let mut table = Table::default();

    // BIOS (§7.1): its characteristics are not given, but that it is of a virtual machine. There is none, and so no release of its own.
    let mut bios = Structure::new(0);
    bios.string(MAKER).string(VERSION).word(0).string("").byte(0);
    bios.bytes(&(1_u64 << 3).to_le_bytes()).byte(0).byte(1 << 4);
    // The releases of BIOS and embedded controller: none. Its size in 16 MiB and more: no more.
    bios.bytes(&[0xff; 4]).word(0);
    table.add(bios);

    // System (§7.2), switched on by its button.
    let mut system = Structure::new(1);
    system.string(MAKER).string(MAKER).string(VERSION).string(config.serial);
    // The first three fields of a UUID are little-endian here (§7.2.1).
    let mut uuid = config.uuid;
    [0..4, 4..6, 6..8].into_iter().for_each(|field| uuid[field].reverse());
    system.bytes(&uuid).byte(6).string("").string("");
    table.add(system);

    // Chassis (§7.4), of another kind than all that there are names for, and in a safe state.
    let mut chassis = Structure::new(3);
    chassis.string(MAKER).byte(1).string(VERSION).string(config.serial).string("");
    chassis.bytes(&[3, 3, 3, 2]).bytes(&[0; 8]).string("");
    table.add(chassis);

    // OEM strings (§7.12). The format has no empty ones: they would end the structure.
    let strings: Vec<_> =
        config.strings.iter().map(String::as_str).filter(|string| !string.is_empty()).collect();
    for strings in strings.chunks(STRINGS_MAX) {
        let mut oem = Structure::new(11);
        oem.byte(strings.len() as u8);
        oem.strings.extend(strings);
        table.add(oem);
    }
    table.add(Structure::new(127));
    table.bytes
}

/// The structures one after another.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    handle: u16,
}

impl Table {
    /// Appends a structure with its header (§6.1.2) and its strings (§6.1.3).
    fn add(&mut self, structure: Structure<'_>) {
        let Structure { kind, formatted, strings } = structure;
        let [low, high] = self.handle.to_le_bytes();
        self.bytes.extend([kind, 4 + formatted.len() as u8, low, high]);
        self.bytes.extend(formatted);
        for string in &strings {
            self.bytes.extend(string.as_bytes());
            self.bytes.push(0);
        }
        self.bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        self.handle += 1;
    }
}

/// What is behind a structure's header, in order.
struct Structure<'a> {
    kind: u8,
    formatted: Vec<u8>,
    strings: Vec<&'a str>,
}

impl<'a> Structure<'a> {
    fn new(kind: u8) -> Self {
        Self { kind, formatted: Vec::new(), strings: Vec::new() }
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.formatted.extend(bytes);
        self
    }

    fn byte(&mut self, byte: u8) -> &mut Self {
        self.bytes(&[byte])
    }

    fn word(&mut self, word: u16) -> &mut Self {
        self.bytes(&word.to_le_bytes())
    }

    /// The number of a string; 0 for an empty one, which the format does not have.
    fn string(&mut self, string: &'a str) -> &mut Self {
        if string.is_empty() {
            return self.byte(0);
        }
        self.strings.push(string);
        self.byte(self.strings.len() as u8)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::{bytes, memory};

    /// A structure as a guest reads it: its formatted part with the header, and its strings.
    type Read = (Vec<u8>, Vec<String>);

    /// Reads the table as a guest does: from the entry point, found where it is to be, to the end.
    fn read(config: &SmbiosConfig<'_>) -> BTreeMap<u8, Vec<Read>> {
        let memory = memory(64);
        write(&memory, config).unwrap();
        let found = (0xf_0000_u64..0x10_0000).step_by(16).find(|at| bytes(&memory, *at, 5) == b"_SM3_");
        let entry = bytes(&memory, found.unwrap(), 24);
        assert_eq!(entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let len = u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize;
        let table = bytes(&memory, u64::from_le_bytes(entry[16..24].try_into().unwrap()), len);
        let (mut at, mut all, mut handles) = (0, BTreeMap::<_, Vec<_>>::new(), 0..);
        while at < table.len() {
            let (kind, formatted) = (table[at], usize::from(table[at + 1]));
            assert_eq!(u16::from_le_bytes([table[at + 2], table[at + 3]]), handles.next().unwrap());
            let header = table[at..at + formatted].to_vec();
            at += formatted;
            let mut strings = Vec::new();
            while table[at] != 0 {
                let end = at + table[at..].iter().position(|byte| *byte == 0).unwrap();
                strings.push(String::from_utf8(table[at..end].to_vec()).unwrap());
                at = end + 1;
            }
            at += if strings.is_empty() { 2 } else { 1 };
            all.entry(kind).or_default().push((header, strings));
        }
        assert_eq!(at, table.len());
        assert_eq!(table[len - 6], 127, "the end is the last");
        all
    }

    #[test]
    fn the_machine_says_who_it_is() {
        let uuid = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
        let all = read(&SmbiosConfig { uuid, serial: "S-1", strings: &[] });
        assert_eq!(all.keys().copied().collect::<Vec<_>>(), [0, 1, 3, 127]);
        let (bios, words) = &all[&0][0];
        assert_eq!((bios.len(), &words[0][..]), (0x1a, "wirevm"));
        assert_eq!(bios[0x0a..0x12], 8_u64.to_le_bytes(), "no characteristics are given");
        assert_eq!(bios[0x13] & 0x10, 0x10, "a virtual machine");
        let (system, words) = &all[&1][0];
        assert_eq!((system.len(), words.len()), (0x1b, 4));
        assert_eq!(words[usize::from(system[7]) - 1], "S-1");
        // As dmidecode prints it again: fields of 4, 2 and 2 bytes, little-endian.
        assert_eq!(system[8..24], *b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff");
        let (chassis, words) = &all[&3][0];
        assert_eq!((chassis.len(), &words[usize::from(chassis[7]) - 1][..]), (0x16, "S-1"));
    }

    #[test]
    fn without_a_serial_number_there_is_none() {
        let all = read(&SmbiosConfig::default());
        let (system, words) = &all[&1][0];
        assert_eq!((system[7], words.len()), (0, 3));
    }

    #[test]
    fn an_empty_string_ends_nothing() {
        let strings = ["", "a=b", "", "c=d"].map(str::to_owned);
        let all = read(&SmbiosConfig { strings: &strings, ..SmbiosConfig::default() });
        assert_eq!(all[&11][0].1, ["a=b", "c=d"]);
        let all = read(&SmbiosConfig { strings: &strings[..1], ..SmbiosConfig::default() });
        assert_eq!(all.get(&11), None);
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let strings = vec!["x".repeat(SMBIOS_LEN as usize - 1024)];
        read(&SmbiosConfig { strings: &strings, ..SmbiosConfig::default() });
        // Up to the last byte.
        let with = |len: usize| {
            let strings = ["x".repeat(len)];
            let config = SmbiosConfig { strings: &strings, ..SmbiosConfig::default() };
            (structures(&config).len() as u64, write(&memory(64), &config))
        };
        let most = SMBIOS_LEN as usize - (with(1).0 as usize - 1);
        assert!(matches!(with(most), (SMBIOS_LEN, Ok(()))));
        for more in [1, 2, 5000] {
            let (len, written) = with(most + more);
            let error = written.unwrap_err();
            assert!(matches!(error, Error::SmbiosTooLarge { len: told, .. } if told == len), "{error}");
        }
    }

    proptest! {
        #[test]
        fn every_string_arrives(strings in proptest::collection::vec("[^\\x00]{1,40}", 0..600)) {
            let all = read(&SmbiosConfig { strings: &strings, ..SmbiosConfig::default() });
            let none = Vec::new();
            let oem = all.get(&11).unwrap_or(&none);
            prop_assert!(oem.iter().all(|(formatted, strings)| usize::from(formatted[4]) == strings.len()));
            let read: Vec<_> = oem.iter().flat_map(|(_, strings)| strings.clone()).collect();
            prop_assert_eq!(read, strings);
        }
    }
}
