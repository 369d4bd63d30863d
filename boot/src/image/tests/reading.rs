//! Bytes on their way: out of files that give them in pieces or not at all, and into files with holes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::image::sha256::Digest;
use crate::image::span::{Span, Spool, SpoolError, unnamed};
use crate::image::tree::Sparse;
use crate::image::write::{CopyError, Output, Sink};

/// Gives these in turn, the last first.
struct Stutter(Vec<io::Result<&'static [u8]>>);

impl Stutter {
    fn by(kind: io::ErrorKind) -> Self {
        Self(vec![Ok(b""), Ok(b"est"), Err(kind.into()), Ok(b"t")])
    }
}

impl Read for Stutter {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.pop().unwrap()?;
        buffer[..bytes.len()].copy_from_slice(bytes);
        Ok(bytes.len())
    }
}

#[test]
fn only_what_was_interrupted_is_read_again() {
    let temporary = std::env::temp_dir();
    let mut spool = Spool::new(&temporary, 100);
    let span = spool.append(Stutter::by(io::ErrorKind::Interrupted)).unwrap();
    assert_eq!(bytes(&Content::Whole(span)), b"test");
    let digest = Digest::of_reader(Stutter::by(io::ErrorKind::Interrupted)).unwrap();
    assert_eq!(digest, Digest::of(b"test"));
    let broken = || Stutter::by(io::ErrorKind::ConnectionReset);
    assert!(matches!(spool.append(broken()), Err(SpoolError::Read(_))));
    assert!(Digest::of_reader(broken()).is_err());
}

#[test]
fn what_is_spooled_has_the_length_that_came() {
    let temporary = std::env::temp_dir();
    let mut spool = Spool::new(&temporary, 100);
    let spans = [&b"first"[..], b"", b"third one"].map(|bytes| spool.append(bytes).unwrap());
    assert_eq!(spans.each_ref().map(|span| (span.start, span.len)), [(0, 5), (5, 0), (5, 9)]);
    assert_eq!(bytes(&Content::Whole(spans[2].clone())), b"third one");
}

#[test]
fn what_is_unnamed_is_its_users_alone() {
    let file = unnamed(&std::env::temp_dir()).unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    let flags = rustix::io::fcntl_getfd(&file).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

/// Such files give about a page at a time.
#[test]
fn a_file_that_gives_its_bytes_in_pieces_is_read_whole() {
    let Ok(want) = std::fs::read("/proc/kallsyms") else {
        return eprintln!("skipped: no /proc/kallsyms");
    };
    let len = want.len().min(20_000);
    let span = Span::whole(File::open("/proc/kallsyms").unwrap(), len as u64);
    for at in [0, 1000] {
        let mut got = vec![0; len - at];
        span.read_exact_at(&mut got, at as u64).unwrap();
        assert!(got == want[at..len], "from {at} on");
    }
}

#[test]
fn what_cannot_be_read_is_an_error_and_not_tried_for_ever() {
    let span = Span::whole(File::open("/").unwrap(), 100);
    assert_eq!(span.read_at(&mut [0; 10], 0).unwrap_err().kind(), io::ErrorKind::IsADirectory);
}

#[test]
fn a_file_that_is_cut_while_it_is_copied_is_an_error() {
    let scratch = Scratch::new(&[7; 1000]);
    let content = Content::Whole(Span::whole(File::open(scratch.path()).unwrap(), 1000));
    File::options().write(true).open(scratch.path()).unwrap().set_len(999).unwrap();
    let mut copied = Vec::new();
    copy_content(&content, 0, 999, &mut copied).unwrap();
    assert_eq!(copied, [7; 999]);
    let error = copy_content(&content, 0, 1000, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, CopyError::Read(source) if source.kind() == io::ErrorKind::UnexpectedEof));
}

#[test]
fn each_part_of_a_file_with_holes_is_what_the_whole_has_there() {
    let scratch = Scratch::new(b"before:abcdefghij");
    let file = Span::whole(File::open(scratch.path()).unwrap(), 17);
    let data = file.part(7, 10).unwrap();
    let pieces = vec![(0, 2), (4, 3), (7, 0), (10, 5)];
    let content = Content::Sparse(Box::new(Sparse { data, size: 18, pieces }));
    let whole = b"ab\0\0cde\0\0\0fghij\0\0\0";
    for from in 0..=whole.len() {
        for to in from..=whole.len() {
            let mut got = Vec::new();
            copy_content(&content, from as u64, (to - from) as u64, &mut got).unwrap();
            assert_eq!(got, whole[from..to], "{from} to {to}");
        }
    }
}

#[test]
fn what_is_written_in_any_sizes_is_what_the_file_has() {
    const BUFFER: usize = 256 << 10;
    let sizes = [3, BUFFER, 1, BUFFER - 1, 1, BUFFER - 2, 1, BUFFER + 1, BUFFER, 7, BUFFER * 2, 0, 5];
    for zeros in [0, 1, 5000, (64 << 10) - 1, 64 << 10, (64 << 10) + 1] {
        let file = unnamed(&std::env::temp_dir()).unwrap();
        let (mut out, mut want) = (Output::new(&file), Vec::new());
        for (number, size) in (1..).zip(sizes) {
            for sink in [&mut out as &mut dyn Sink, &mut want] {
                sink.write_all(&vec![number; size]).unwrap();
                sink.zeros(zeros).unwrap();
            }
            assert_eq!(out.at(), want.len() as u64);
        }
        assert_eq!(out.finish().unwrap(), want.len() as u64);
        let got = bytes(&Content::Whole(Span::whole(file, want.len() as u64)));
        assert!(got == want, "with {zeros} zeros between");
    }
}

#[test]
fn small_writes_are_gathered() {
    let file = unnamed(&std::env::temp_dir()).unwrap();
    let mut out = Output::new(&file);
    for _ in 0..1000 {
        out.write_all(b"small").unwrap();
    }
    assert_eq!(file.metadata().unwrap().len(), 0);
    assert_eq!((out.finish().unwrap(), file.metadata().unwrap().len()), (5000, 5000));
}
