//! Images made here, in code, and by the programs of the host; and what becomes of them.

mod archives;
mod bounds;
mod caching;
mod directories;
mod engines;
mod entries;
mod erofs;
mod hostile;
mod initramfs;
mod model;
mod reading;
mod words;

use std::collections::BTreeMap;
use std::path::Path;

use super::error::Error;
use super::limits::Limits;
use super::source::{Image, Source};
use super::tree::{Content, Id, Kind, Meta, ROOT, Tree};
use super::write::copy_content;
use crate::testing::{Directory, Scratch};

/// A tar archive, being made.
#[derive(Clone, Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    /// A header: whatever it is given, with the right checksum, and then `content` with its padding.
    pub(super) fn raw(mut self, name: &[u8], kind: u8, link: &[u8], size: &str, content: &[u8]) -> Self {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name);
        header[100..107].copy_from_slice(if kind == b'5' { b"0000755" } else { b"0000644" });
        header[108..115].copy_from_slice(b"0000001");
        header[116..123].copy_from_slice(b"0000002");
        header[124..124 + size.len()].copy_from_slice(size.as_bytes());
        header[136..147].copy_from_slice(b"00000000017");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link);
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[329..336].copy_from_slice(b"0000007");
        header[337..344].copy_from_slice(b"0000454");
        self.seal(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Adds a header as it is, with its checksum.
    pub(super) fn seal(&mut self, mut header: [u8; 512]) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(header);
    }

    /// A header of the right size.
    pub(super) fn sized(self, name: &str, kind: u8, content: &[u8]) -> Self {
        self.raw(name.as_bytes(), kind, b"", &format!("{:011o}", content.len()), content)
    }

    pub(super) fn file(self, name: &str, content: &[u8]) -> Self {
        self.sized(name, b'0', content)
    }

    pub(super) fn directory(self, name: &str) -> Self {
        self.raw(name.as_bytes(), b'5', b"", "0", b"")
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(name.as_bytes(), b'2', target.as_bytes(), "0", b"")
    }

    pub(super) fn link(self, name: &str, target: &str) -> Self {
        self.raw(name.as_bytes(), b'1', target.as_bytes(), "0", b"")
    }

    /// A pax header for what follows.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.records(b'x', records)
    }

    /// A pax header of this kind.
    pub(super) fn records(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let digits = if rest + 1 < 10 {
                1
            } else if rest + 2 < 100 {
                2
            } else if rest + 3 < 1000 {
                3
            } else {
                5
            };
            content.extend(format!("{:0digits$} {key}=", rest + digits).bytes());
            content.extend(*value);
            content.push(b'\n');
        }
        self.sized("pax", kind, &content)
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// What a file is, with all its bytes; hard links of each other have the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) what: What,
    pub(super) meta: Meta,
    pub(super) links: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Device(char, u32, u32),
    Fifo,
    Socket,
}

pub(super) type Listing = BTreeMap<String, Node>;

/// All that a tree has, by paths; the root is the empty one.
pub(super) fn listing(tree: &Tree) -> Listing {
    fn add(tree: &Tree, id: Id, path: &str, names: &[u32], listing: &mut Listing) {
        let inode = tree.inode(id);
        let mut links = names[id.0 as usize];
        let what = match &inode.kind {
            Kind::Directory(entries) => {
                let directories = entries.values().filter(|child| tree.entries(child.id).is_some()).count();
                links = 2 + directories as u32;
                What::Directory
            }
            Kind::File(content) => What::File(bytes(content)),
            Kind::Symlink(target) => What::Symlink(target.to_vec()),
            Kind::CharacterDevice(major, minor) => What::Device('c', *major, *minor),
            Kind::BlockDevice(major, minor) => What::Device('b', *major, *minor),
            Kind::Fifo => What::Fifo,
            Kind::Socket => What::Socket,
        };
        listing.insert(path.into(), Node { what, meta: inode.meta.clone(), links });
        for (name, child) in tree.entries(id).into_iter().flatten() {
            let name = String::from_utf8_lossy(name);
            add(tree, child.id, &format!("{path}/{name}"), names, listing);
        }
    }
    fn count(tree: &Tree, id: Id, names: &mut [u32]) {
        for child in tree.entries(id).into_iter().flat_map(|entries| entries.values()) {
            names[child.id.0 as usize] += 1;
            count(tree, child.id, names);
        }
    }
    let mut names = vec![0; tree.ids()];
    count(tree, ROOT, &mut names);
    let mut listing = Listing::new();
    add(tree, ROOT, "", &names, &mut listing);
    listing
}

pub(super) fn bytes(content: &Content) -> Vec<u8> {
    let mut bytes = Vec::new();
    copy_content(content, 0, content.size(), &mut bytes).unwrap();
    bytes
}

/// The names of a tree, without the root.
pub(super) fn names(image: &Image) -> Vec<String> {
    listing(&image.tree).into_keys().filter(|path| !path.is_empty()).collect()
}

pub(super) fn open(path: &Path) -> Result<Image, Error> {
    open_within(path, Limits::default())
}

pub(super) fn open_within(path: &Path, limits: Limits) -> Result<Image, Error> {
    Source::open(path, &std::env::temp_dir(), limits)?.load()
}

/// The image in a file with these bytes.
pub(super) fn load(bytes: &[u8]) -> Result<Image, Error> {
    open(Scratch::new(bytes).path())
}

/// What is said of it: the error, its causes and the remedy, with the file's name as IMAGE.
pub(super) fn said(bytes: &[u8]) -> String {
    let file = Scratch::new(bytes);
    told(open(file.path()).expect_err("taken"), file.path())
}

pub(super) fn told(error: Error, path: &Path) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    format!("{text} | {}", error.remedy()).replace(&path.display().to_string(), "IMAGE")
}

pub(super) fn content<'a>(listing: &'a Listing, path: &str) -> &'a [u8] {
    match &listing.get(path).unwrap_or_else(|| panic!("no {path}")).what {
        What::File(bytes) => bytes,
        other => panic!("{path} is {other:?}"),
    }
}

/// Runs a program of the host in a directory.
pub(super) fn run(directory: &Directory, command: &str) {
    let output = std::process::Command::new("sh")
        .args(["-ec", command])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}
