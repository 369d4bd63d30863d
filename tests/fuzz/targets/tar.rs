//! An image that is a tar archive of any content, plain or packed: the outcome is an error, or a root in both formats.
#![no_main]

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use fuzz::tar::{Tar, seal_all};
use fuzz::{Seeds, root};

fuzz::target!(seeds, run);

/// The first byte says whether headers get their checksums, and whether the archive is packed.
fn run(data: &[u8]) {
    let Some((flags, archive)) = data.split_first() else { return };
    let mut archive = archive.to_vec();
    if flags & 1 != 0 {
        seal_all(&mut archive);
    }
    if flags & 2 != 0 {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&archive).unwrap();
        archive = packed.finish().unwrap();
    }
    root::make(&archive);
}

fn seeds() -> Seeds {
    let plain = Tar::default()
        .raw("./", b'5', "", b"")
        .file("f", b"text")
        .raw("d", b'5', "", b"")
        .file("d/f", &[7; 700])
        .raw("l", b'2', "d", b"")
        .file("l/through", b"")
        .raw("h", b'1', "d/f", b"")
        .raw("c", b'3', "", b"")
        .raw("b", b'4', "", b"")
        .raw("p", b'6', "", b"");
    let pax = Tar::default()
        .raw("g", b'g', "", b"18 comment=global\n")
        .pax(&[("path", "a/long/path"), ("mtime", "1.5"), ("SCHILY.xattr.user.a", "b"), ("uid", "70000")])
        .file("x", b"x")
        .pax(&[("linkpath", "x")])
        .raw("y", b'1', "", b"");
    let sparse = Tar::default()
        .pax(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "n"),
            ("GNU.sparse.realsize", "100"),
        ])
        .file("s", &[&b"1\n96\n4\n"[..], &[0; 505], b"data"].concat())
        .pax(&[("GNU.sparse.map", "0,4,96,4"), ("GNU.sparse.size", "100")])
        .file("t", b"12345678");
    let long = Tar::default()
        .raw("././@LongLink", b'L', "", &[&[b'n'; 150][..], &[0]].concat())
        .raw("././@LongLink", b'K', "", &[&[b'k'; 150][..], &[0]].concat())
        .raw("short", b'2', "", b"");
    let mut gnu = Tar::default().raw("old", b'S', "", b"data").end();
    gnu[257..265].copy_from_slice(b"ustar  \0");
    gnu[386..397].copy_from_slice(b"00000000140");
    gnu[398..409].copy_from_slice(b"00000000004");
    gnu[483..494].copy_from_slice(b"00000000144");
    seal_all(&mut gnu);
    let mut seeds = Seeds::new();
    for (name, archive) in [
        ("plain", plain.end()),
        ("pax", pax.end()),
        ("sparse", sparse.end()),
        ("long", long.end()),
        ("gnu", gnu),
    ] {
        for flags in [0_u8, 1, 3] {
            seeds.push((format!("{name}-{flags}"), [&[flags], &archive[..]].concat()));
        }
    }
    seeds
}
