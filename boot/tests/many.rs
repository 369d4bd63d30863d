//! An image of 200,000 files takes a bounded amount of memory. Alone in its program, so that the peak is this test's.

use std::fs::File;
use std::io::{BufWriter, Write};

use boot::image::{Cache, Format, Limits, root};

const FILES: u32 = 200_000;
/// In KiB: about half a KiB a file. The archive itself has a hundred million bytes.
const PEAK_MAX: u64 = 100 << 10;

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn header(name: &str, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[156] = b'0';
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

#[test]
fn two_hundred_thousand_files_take_little_memory() {
    let directory = std::env::temp_dir().join(format!("boot-test-many-{}", std::process::id()));
    let cache = Cache::at(directory.clone()).unwrap();
    let path = directory.join("archive");
    let mut archive = BufWriter::new(File::create(&path).unwrap());
    for i in 0..FILES {
        let name = format!("usr/share/directory-{}/file-of-some-name-{i}", i / 100);
        archive.write_all(&header(&name, 0)).unwrap();
    }
    archive.write_all(&[0; 1024]).unwrap();
    archive.into_inner().unwrap();
    let made = root(&path, Format::Erofs, &cache, Limits::default());
    let peak = peak();
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(made.unwrap().file.metadata().unwrap().len() > u64::from(FILES) * 32);
    assert!(peak < PEAK_MAX, "{peak} KiB");
}
