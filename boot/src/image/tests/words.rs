//! What is said to the user of each fault, and how names are shown.

use std::io::{self, ErrorKind};

use super::*;
use crate::image::fault::{Fault, shown};

#[test]
fn each_error_has_its_remedy() {
    let image = || "i".to_owned();
    let io = |kind: ErrorKind| io::Error::from(kind);
    let read_file = |kind| Error::ReadFile { image: image(), path: "p".into(), source: io(kind) };
    let cache = |kind| Error::Cache { path: "/c".into(), source: io(kind) };
    let digest = crate::image::Digest([0; 32]);
    for (error, remedy) in [
        (
            Error::Open { image: image(), source: io(ErrorKind::NotFound) },
            "give a directory, a tar archive, ",
        ),
        (
            Error::Open { image: image(), source: io(ErrorKind::PermissionDenied) },
            "copy the image to a local",
        ),
        (Error::Read { image: image(), source: io(ErrorKind::NotFound) }, "copy the image to a local disk"),
        (read_file(ErrorKind::PermissionDenied), "run as the user whose files these are, or as root; "),
        (read_file(ErrorKind::NotFound), "copy the directory to a local disk"),
        (Error::FileChanged { image: image(), path: "p".into() }, "try again when nothing writes to it"),
        (Error::Changed { image: image() }, "try again when nothing writes to it"),
        (Error::Empty { image: image() }, "check the command that made it"),
        (Error::NoFiles { image: image() }, "give an image that has at least the program"),
        (Error::NotAnImage { image: image(), looks_like: "x", instead: "do that" }, "do that"),
        (
            Error::Unpack { image: image(), part: "p".into(), source: io(ErrorKind::Other) },
            "fetch or save the",
        ),
        (
            Error::WrongDigest { image: image(), part: "p".into(), found: digest },
            "fetch or save the image again",
        ),
        (Error::Missing { image: image(), part: "p".into() }, "fetch or save the image again"),
        (
            Error::Archive { image: image(), part: "p".into(), source: Fault::Climbs { name: "n".into() } },
            "make the archive again with `tar -C ROOT",
        ),
        (Error::TooLarge { image: image(), limit: 1 }, "give it as a disk (--disk)"),
        (
            Error::Malformed { image: image(), part: "p".into(), problem: "q".into() },
            "save it again with `docker save`",
        ),
        (Error::OtherPlatform { image: image(), found: Vec::new() }, "fetch the one for this machine"),
        (Error::Several { image: image(), found: Vec::new() }, "save one image alone"),
        (cache(ErrorKind::StorageFull), "make room there, or set XDG_CACHE_HOME"),
        (cache(ErrorKind::PermissionDenied), "set XDG_CACHE_HOME to a directory that you can write to"),
        (Error::NoCache, "set XDG_CACHE_HOME to a directory that you can write to"),
        (Error::CacheNotOurs { path: "/c".into() }, "remove /c, or set XDG_CACHE_HOME"),
        (Error::CacheIsLink { path: "/c".into() }, "put a directory in place of /c, or"),
        (Error::TooLargeForCpio { image: image(), name: "n".into(), size: 1 }, "use a kernel with erofs"),
        (Error::TooLargeForErofs { image: image() }, "leave out its largest sparse files"),
    ] {
        assert!(error.remedy().starts_with(remedy), "{error:?}: {}", error.remedy());
    }
}

#[test]
fn each_fault_has_its_remedy() {
    let name = || "n".to_owned();
    for (fault, remedy) in [
        (Fault::Read { at: 0, source: ErrorKind::Other.into() }, "copy the image to a local disk"),
        (Fault::Truncated { at: 0, what: "it" }, "fetch or make it again: the copy is not complete"),
        (Fault::Volumes { name: name() }, "join the volumes: "),
        (Fault::TooMany { limit: 0 }, "give it as a disk (--disk)"),
        (Fault::TooLarge { limit: 0 }, "give it as a disk (--disk)"),
        (Fault::TooMuchMetadata { limit: 0 }, "give it as a disk (--disk)"),
        (Fault::Climbs { name: name() }, "make the archive again with `tar -C ROOT -c .`"),
        (Fault::NoHeader { at: 0 }, "make the archive again, with GNU tar or bsdtar; "),
        (Fault::Name { name: name() }, "make the archive again, with GNU tar or bsdtar; "),
        (Fault::RootNotADirectory, "make the archive again, with GNU tar or bsdtar; "),
    ] {
        assert!(fault.remedy().starts_with(remedy), "{fault:?}: {}", fault.remedy());
    }
}

#[test]
fn names_are_shown_up_to_200_bytes() {
    let name = |len: usize| "n".repeat(len);
    for len in [0, 1, 199, 200] {
        assert_eq!(shown(name(len).as_bytes()), name(len));
    }
    for len in [201, 1000] {
        assert_eq!(shown(name(len).as_bytes()), name(200) + "...");
    }
    assert_eq!(shown(b"a\0\n\x7f\xff\xc2\x9b"), "a\\u{0}\\n\\u{7f}\u{fffd}\\u{9b}");
}
