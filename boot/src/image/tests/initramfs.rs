//! The newc archives, read back by the format's description.

use super::*;
use crate::image::span::unnamed;
use crate::image::write::Output;

/// A header's fields, by their order.
const INODE: usize = 0;
const MODE: usize = 1;
const LINKS: usize = 4;

/// Each member: its name, the fields of its header, its content.
fn members(bytes: &[u8]) -> Vec<(String, [u32; 13], Vec<u8>)> {
    let mut members = Vec::new();
    let mut at = 0;
    loop {
        assert_eq!(&bytes[at..at + 6], b"070701", "at {at}");
        let mut fields = [0; 13];
        for (i, field) in fields.iter_mut().enumerate() {
            let from = at + 6 + i * 8;
            *field = u32::from_str_radix(str::from_utf8(&bytes[from..from + 8]).unwrap(), 16).unwrap();
        }
        let (size, name_len) = (fields[6] as usize, fields[11] as usize);
        let name = String::from_utf8(bytes[at + 110..at + 110 + name_len - 1].to_vec()).unwrap();
        assert_eq!(bytes[at + 110 + name_len - 1], 0);
        let data = (at + 110 + name_len).next_multiple_of(4);
        at = (data + size).next_multiple_of(4);
        if name == "TRAILER!!!" {
            assert_eq!(at, bytes.len());
            return members;
        }
        members.push((name, fields, bytes[data..data + size].to_vec()));
    }
}

fn written(tree: &Tree) -> Vec<u8> {
    let file = unnamed(&std::env::temp_dir()).unwrap();
    let mut out = Output::new(&file);
    crate::image::cpio::write(tree, "IMAGE", "cache", &mut out).unwrap();
    crate::image::cpio::trailer(&mut out).unwrap();
    let len = out.finish().unwrap();
    let mut bytes = vec![0; len as usize];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    bytes
}

#[test]
fn it_has_what_the_tree_has() {
    let archive = Tar::default()
        .directory("./")
        .directory("d")
        .file("d/f", b"text!")
        .link("d/g", "d/f")
        .link("a", "d/f")
        .symlink("l", "d/f")
        .raw(b"null", b'3', b"", "0", b"")
        .file("TRAILER!!!", b"not the end")
        .pax(&[("GNU.sparse.size", b"200000"), ("GNU.sparse.map", b"150000,4")])
        .file("s", b"data")
        .pax(&[("mtime", b"-5")])
        .file("old", b"")
        .end();
    let members = members(&written(&load(&archive).unwrap().tree));
    let names: Vec<_> = members.iter().map(|(name, ..)| &name[..]).collect();
    assert_eq!(names, [".", "./TRAILER!!!", "a", "d", "d/f", "d/g", "l", "null", "old", "s"]);
    let of = |name: &str| members.iter().find(|(other, ..)| other == name).unwrap();
    // The bytes are with the last name; all three are one file of three names.
    for (name, content) in [("a", &b""[..]), ("d/f", b""), ("d/g", b"text!")] {
        let (_, fields, data) = of(name);
        assert_eq!((&data[..], fields[4], fields[0]), (content, 3, of("a").1[0]), "{name}");
    }
    assert_eq!((of("l").1[1], &of("l").2[..]), (0o120_644, &b"d/f"[..]));
    assert_eq!((of("null").1[1], of("null").1[9], of("null").1[10]), (0o020_644, 7, 300));
    assert_eq!((of("d").1[1..6].to_vec(), of("old").1[5]), (vec![0o040_755, 1, 2, 2, 15], 0));
    let sparse = &of("s").2;
    assert_eq!((sparse.len(), &sparse[149_999..150_005]), (200_000, &b"\0data\0"[..]));
}

#[test]
fn an_archive_ends_as_cpio_ends_it() {
    let mut bytes = Vec::new();
    crate::image::cpio::trailer(&mut bytes).unwrap();
    let zeros = "00000000".repeat(4);
    let sizes = "00000000".repeat(6);
    let want = format!("070701{zeros}00000001{sizes}0000000B00000000TRAILER!!!\0\0\0\0");
    assert_eq!(String::from_utf8(bytes).unwrap(), want);
}

#[test]
fn an_archive_in_memory_has_files_of_their_own() {
    let mut memory = crate::image::cpio::Memory::default();
    memory.add("d", 0o040_755, b"");
    memory.add("d/f", 0o100_644, b"text!");
    memory.add("d/g", 0o100_755, b"");
    let members = members(&memory.finish());
    let got: Vec<_> = members
        .iter()
        .map(|(name, fields, bytes)| (&name[..], fields[INODE], fields[MODE], fields[LINKS], &bytes[..]))
        .collect();
    let want: [(&str, u32, u32, u32, &[u8]); 3] =
        [("d", 1, 0o040_755, 1, b""), ("d/f", 2, 0o100_644, 1, b"text!"), ("d/g", 3, 0o100_755, 1, b"")];
    assert_eq!(got, want);
}

/// No other member is a hard link of it, and the kernel makes a file of it that nobody writes to.
#[test]
fn what_is_kept_of_an_image_is_the_last_file_of_its_archive() {
    let root = Directory::new();
    let path = root.file("image", &Tar::default().directory(".wirevm").file("f", b"text").end());
    let cache = crate::image::Cache::at(root.path().join("cache")).unwrap();
    let made = crate::image::root(&path, crate::image::Format::Cpio, &cache, Limits::default()).unwrap();
    let mut bytes = vec![0; made.file.metadata().unwrap().len() as usize];
    std::os::unix::fs::FileExt::read_exact_at(&made.file, &mut bytes, 0).unwrap();
    let members = members(&bytes);
    let names: Vec<_> = members.iter().map(|(name, ..)| &name[..]).collect();
    assert_eq!(names, [".", ".wirevm", "f", ".wirevm/image"]);
    let fields = members[3].1;
    assert_eq!((fields[INODE], fields[MODE], fields[LINKS]), (u32::MAX, 0o100_444, 1));
}
