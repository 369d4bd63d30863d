//! A machine's serial number, UUID and any strings for its guest: the tables are refused for their length, or a guest that goes through
//! them finds each string, and the end.
#![no_main]

use boot::layout::{SMBIOS, SMBIOS_LEN};
use boot::{AcpiConfig, Config, Error, Files, SmbiosConfig, load};
use fuzz::{Input, MemoryFile, Seeds, bounded};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fuzz::target!(seeds, run);

const MEMORY: u64 = 32 << 20;

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (uuid, serial, times) = (input.array(), input.u8() % 40, 1 + usize::from(input.u8() % 8));
    let serial = String::from_utf8_lossy(input.bytes(serial.into())).replace('\0', "0");
    let text = String::from_utf8_lossy(input.rest()).replace('\0', "0");
    let strings: Vec<String> = text.split('\n').map(|string| string.repeat(times)).collect();
    let config = SmbiosConfig { uuid, serial: &serial, strings: &strings };
    let kernel = MemoryFile::new(&kernel());
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    let images = Files::open(&kernel.path(), None).unwrap().read(MEMORY).unwrap();
    let acpi = AcpiConfig { cpus: 1, virtio_mmio: &[], pci: false };
    let config = Config { cmdline: "", acpi, smbios: config, generation: [1; 16] };
    let room = 2 * text.len() * times + (2 << 20);
    match bounded(room, || load(&memory, images, &config)) {
        Ok(_) => check(&memory, &config.smbios),
        Err(Error::SmbiosTooLarge { len, room }) => {
            assert!(len > room && room == SMBIOS_LEN);
            assert!(strings.iter().map(String::len).sum::<usize>() * 3 > SMBIOS_LEN as usize);
        }
        Err(error) => panic!("{error}"),
    }
}

/// Reads the tables as a guest does (SMBIOS 3.7 §5.2.2, §6.1).
fn check(memory: &GuestMemoryMmap, config: &SmbiosConfig<'_>) {
    let bytes = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    };
    let entry =
        (0xf_0000..0x10_0000).step_by(16).map(|at| bytes(at, 24)).find(|entry| entry.starts_with(b"_SM3_"));
    let entry = entry.expect("there is an entry point");
    assert_eq!(entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    let len = u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize;
    let table = bytes(SMBIOS, len);
    let (mut at, mut handle, mut found, mut end) = (0, 0_u16, Vec::new(), false);
    while at < len {
        assert!(!end, "something is behind the end");
        let (kind, formatted) = (table[at], usize::from(table[at + 1]));
        assert_eq!(table[at + 2..at + 4], handle.to_le_bytes());
        let header = &table[at..at + formatted];
        at += formatted;
        let mut strings = Vec::new();
        while table[at] != 0 {
            let end = at + table[at..].iter().position(|byte| *byte == 0).unwrap();
            strings.push(std::str::from_utf8(&table[at..end]).unwrap());
            at = end + 1;
        }
        at += if strings.is_empty() { 2 } else { 1 };
        handle += 1;
        match kind {
            1 => {
                let serial = usize::from(header[7]);
                assert_eq!(if serial == 0 { "" } else { strings[serial - 1] }, config.serial);
                assert_eq!(header[16..24], config.uuid[8..]);
            }
            11 => {
                assert_eq!(usize::from(header[4]), strings.len());
                found.extend(strings);
            }
            127 => end = true,
            _ => {}
        }
    }
    assert!(end && at == len);
    assert!(config.strings.iter().filter(|string| !string.is_empty()).eq(found));
}

/// The least vmlinux that there is (ELF-64 Object File Format): a page at 16 MiB.
fn kernel() -> Vec<u8> {
    let start = 16_u64 << 20;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(0x1000, 0);
    elf[16..20].copy_from_slice(&[2, 0, 62, 0]);
    elf[24..32].copy_from_slice(&start.to_le_bytes());
    elf[32] = 64;
    elf[54..58].copy_from_slice(&[56, 0, 1, 0]);
    elf[64] = 1;
    for (at, value) in [(8, 0), (16, start), (24, start), (32, 0x1000), (40, 0x1000)] {
        elf[64 + at..][..8].copy_from_slice(&u64::to_le_bytes(value));
    }
    elf
}

fn seeds() -> Seeds {
    let with = |serial: &str, times: u8, text: &str| {
        [&[0x5a; 16][..], &[serial.len() as u8, times], serial.as_bytes(), text.as_bytes()].concat()
    };
    vec![
        ("none".into(), with("", 0, "")),
        ("credentials".into(), with("S-1", 0, "io.systemd.credential:a=b\nio.systemd.credential:c=d\n")),
        ("many".into(), with("S", 0, &"x\n".repeat(600))),
        ("large".into(), with("S", 7, &"0123456789abcdef".repeat(2000))),
    ]
}
