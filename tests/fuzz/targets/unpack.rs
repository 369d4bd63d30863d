//! Packed kernel modules: xz with any LZMA2 chunks, whose headers have the right checksums, and gzip, zstd and xz of any bytes at all.
//! What they unpack to is bounded by what a module may have, or by their own length.
#![no_main]

use std::io::Write;
use std::process::{Command, Stdio};

use boot::modules::Module;
use fuzz::{Input, MemoryFile, Seeds, bounded};

fuzz::target!(seeds, run);

/// The dictionary, the longest chunk, and what a module may have at most.
const LIMIT: usize = (64 << 20) + (4 << 20) + 2 * (256 << 20);

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let bytes = match input.u8() % 2 {
        0 => xz(input.u8(), input.rest()),
        _ => input.rest().to_vec(),
    };
    let file = MemoryFile::new(&bytes);
    let module = Module { name: "m".into(), path: file.path() };
    if let Ok(object) = bounded(LIMIT, || module.read()) {
        assert!(object.starts_with(b"\x7fELF"));
    }
}

/// A stream, without a check, of one block with these chunks (.xz file format 2 and 3). Nothing comes behind the block.
fn xz(dictionary: u8, chunks: &[u8]) -> Vec<u8> {
    let sum = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum().to_le_bytes()
    };
    let header = [2, 0, 0x21, 1, dictionary % 41, 0, 0, 0];
    [&b"\xfd7zXZ\0\0\0"[..], &sum(&[0, 0]), &header, &sum(&header), chunks].concat()
}

fn seeds() -> Seeds {
    let mut object = b"\x7fELF\x02\x01\x01".to_vec();
    object.resize(64, 0);
    object[16..20].copy_from_slice(&[1, 0, 62, 0]);
    object.extend((0..900_u32).flat_map(|n| (n * n / 7 % 91).to_le_bytes()));
    let mut seeds = vec![
        ("plain".into(), [&[1][..], &object].concat()),
        // Two chunks that are not packed, and the end.
        ("stored".into(), [&[0, 10, 1, 0, 3][..], b"\x7fELF", &[2, 0, 1], b"\x02\x01", &[0]].concat()),
    ];
    for (program, args) in [
        ("xz", &["-9", "--check=crc32"][..]),
        ("xz", &["--lzma2=lc=0,lp=2,pb=0,dict=4096"]),
        ("gzip", &["-9"]),
        ("zstd", &["-19", "-q"]),
        ("zstd", &["-1", "-q"]),
    ] {
        let Some(packed) = pipe(program, args, &object) else { continue };
        let name = format!("{program}-{}", seeds.len());
        if program == "xz" {
            // Behind the headers of stream and block.
            seeds.push((format!("{name}-chunks"), [&[0, 10], &packed[24..]].concat()));
        }
        seeds.push((name, [&[1], &packed[..]].concat()));
    }
    seeds
}

fn pipe(program: &str, args: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new(program)
        .args(args)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(bytes).ok()?;
    child.wait_with_output().ok().map(|output| output.stdout)
}
