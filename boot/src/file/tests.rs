//! What is opened, read and loaded, and what is refused.

use std::error::Error as _;
use std::io::Write;
use std::os::fd::AsRawFd;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;
use crate::testing::{Scratch, bytes, memory};

fn open_error(path: &Path) -> Error {
    Opened::open(Role::Kernel, path).expect_err("opened")
}

fn source(role: Role, file: &Scratch) -> Source {
    Opened::open(role, file.path()).unwrap().read_pipe(0).unwrap()
}

/// What comes of a pipe into which these bytes were written.
fn piped(bytes: &[u8], limit: u64) -> Result<Source, Error> {
    let (read, mut write) = io::pipe().unwrap();
    write.write_all(bytes).unwrap();
    drop(write);
    let path = format!("/proc/self/fd/{}", read.as_raw_fd());
    Opened::open(Role::Kernel, Path::new(&path)).unwrap().read_pipe(limit)
}

#[test]
fn a_pipe_is_as_good_as_a_file_and_has_an_end() {
    let source = piped(b"0123456789", 10).unwrap();
    let memory = memory(64);
    assert_eq!(source.size, 10);
    source.load("image", 2, 5, &memory, 0x1ff_fffe).unwrap();
    assert_eq!(bytes(&memory, 0x1ff_fffd, 7), b"\x0023456\0");
    assert_eq!(source.peek(8, &mut [0; 9]).unwrap(), b"89");
    assert_eq!(source.peek(u64::MAX, &mut [0; 9]).unwrap(), b"");
    assert_eq!(source.read("image", 9, 1).unwrap(), b"9");
    for error in
        [source.load("image", 6, 5, &memory, 0).unwrap_err(), source.read("image", 6, 5).unwrap_err()]
    {
        assert!(matches!(error, Error::Truncated { end: 11, size: 10, .. }), "{error}");
    }
    let error = piped(b"0123456789", 9).unwrap_err();
    assert!(matches!(error, Error::TooLong { limit: 9, .. }), "{error}");
    assert!(matches!(piped(b"", 9).unwrap_err(), Error::Empty { .. }));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn gzip_is_unpacked_as_far_as_it_may_go() {
    let long = vec![7; 100_000];
    let packed = gzip(&long);
    let twice = [packed.clone(), gzip(b"more")].concat();
    let in_a_file = |bytes: &[u8]| source(Role::Kernel, &Scratch::new(bytes));
    let in_a_pipe = |bytes: &[u8]| piped(bytes, 1 << 20).unwrap();
    for source in [&in_a_file as &dyn Fn(&[u8]) -> Source, &in_a_pipe] {
        let unpacked = source(&packed).gunzip(100_000).unwrap();
        assert_eq!((unpacked.size, unpacked.read("image", 0, 100_000).unwrap() == long), (100_000, true));
        let error = source(&packed).gunzip(99_999).unwrap_err();
        assert!(matches!(error, Error::TooLong { limit: 99_999, how: "unpacked", .. }), "{error}");
        assert_eq!(source(&twice).gunzip(u64::MAX).unwrap().read("image", 99_999, 5).unwrap(), b"\x07more");
        assert!(matches!(source(&gzip(b"")).gunzip(9).unwrap_err(), Error::Empty { .. }));
        let mut wrong = packed.clone();
        let check = wrong.len() - 8;
        wrong[check] ^= 1;
        for broken in [&wrong[..], &packed[..packed.len() - 1], &packed[..5], b"\x1f\x8b\x08garbage...."] {
            let error = source(broken).gunzip(u64::MAX).unwrap_err();
            assert!(matches!(error, Error::Unpack { .. }), "{error}");
        }
    }
}

#[test]
fn a_missing_file_is_named_and_its_cause_kept() {
    let error = open_error(Path::new("/nonexistent/vmlinuz"));
    assert_eq!(error.to_string(), "cannot open the kernel /nonexistent/vmlinuz");
    assert!(error.source().unwrap().to_string().contains("No such file"));
    assert_eq!(error.remedy().unwrap(), "check the path given with --kernel");
}

#[test]
fn what_is_no_file_is_said() {
    let socket = std::env::temp_dir().join(format!("wirevm-boot-socket-{}", std::process::id()));
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (path, is) in
        [("/".as_ref(), "a directory"), ("/dev/null".as_ref(), "a device"), (&*socket, "a socket")]
    {
        let error = open_error(path);
        assert!(matches!(error, Error::NotAFile { kind, .. } if kind == is), "{error}");
    }
    // A pipe can be a kernel, and no disk.
    let (pipe, _) = io::pipe().unwrap();
    let pipe = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    for (path, is) in [
        ("/".as_ref(), "a directory"),
        ("/dev/null".as_ref(), "a device"),
        (&*socket, "a socket"),
        (pipe.as_ref(), "a pipe"),
    ] {
        let error = open_disk(path).expect_err("opened");
        assert!(matches!(error, Error::NotAFile { kind, .. } if kind == is), "{error}");
    }
    drop(listener);
    fs::remove_file(&socket).unwrap();
}

#[test]
fn a_disk_is_as_long_as_its_file() {
    for len in [0, 1, 100_000] {
        let (mut file, found) = open_disk(Scratch::new(&vec![7; len]).path()).unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!((found, bytes.len()), (len as u64, len));
    }
}

#[test]
fn what_cannot_be_read_is_an_error_and_not_its_end() {
    // A directory can be opened, and not be read.
    let content = Content::File(File::open("/").unwrap());
    let source = Source { role: Role::Initrd, path: "/".into(), size: 10, content };
    for error in [
        source.peek(0, &mut [0; 10]).unwrap_err(),
        source.read("image", 0, 10).unwrap_err(),
        source.load("image", 0, 10, &memory(64), 0).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "cannot read the initrd /");
    }
    assert!(matches!(source.gunzip(10).unwrap_err(), Error::Unpack { .. }));
}

/// As a network's file system may, /proc gives a page and less at a time.
#[test]
fn a_file_that_comes_in_pieces_is_loaded_to_its_length_and_no_further() {
    let path = Path::new("/proc/kallsyms");
    let Ok(all) = fs::read(path) else { return eprintln!("skipped: no {}", path.display()) };
    let first = File::open(path).unwrap().read(&mut [0; 20_000]).unwrap();
    if all.len() < 20_000 || first >= 10_000 {
        return eprintln!("skipped: {} comes at once", path.display());
    }
    let content = Content::File(File::open(path).unwrap());
    let source = Source { role: Role::Initrd, path: path.into(), size: 20_000, content };
    let memory = memory(64);
    source.load("image", 100, 10_000, &memory, 0x1000).unwrap();
    assert!(bytes(&memory, 0x1000, 10_001) == [&all[100..10_100], &[0]].concat());
    assert!(source.read("image", 100, 10_000).unwrap() == all[100..10_100]);
}

#[test]
fn an_empty_file_is_refused() {
    let file = Scratch::new(b"");
    assert!(matches!(open_error(file.path()), Error::Empty { .. }));
}

#[test]
fn bytes_go_where_they_belong() {
    let file = Scratch::new(b"0123456789");
    let memory = memory(64);
    let source = source(Role::Initrd, &file);
    source.load("image", 2, 5, &memory, 0x1ff_fffe).unwrap();
    assert_eq!(bytes(&memory, 0x1ff_fffd, 7), b"\x0023456\0");
    let error = source.load("image", 6, 5, &memory, 0).unwrap_err();
    assert!(matches!(error, Error::Truncated { end: 11, size: 10, .. }), "{error}");
    let error = source.load("image", u64::MAX, 5, &memory, 0).unwrap_err();
    assert!(matches!(error, Error::Truncated { end: u64::MAX, .. }), "{error}");
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let file = Scratch::new(&[7; 8192]);
    let memory = memory(64);
    let source = source(Role::Kernel, &file);
    File::options().write(true).open(file.path()).unwrap().set_len(100).unwrap();
    for error in
        [source.load("image", 0, 8192, &memory, 0).unwrap_err(), source.read("image", 0, 8192).unwrap_err()]
    {
        assert!(matches!(error, Error::Truncated { end: 8192, size: 100, .. }), "{error}");
    }
}
