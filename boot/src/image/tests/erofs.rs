//! EROFS images are read back by the format's description, and have what the trees had.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;
use crate::image::span::unnamed;
use crate::image::write::Output;

/// Writes the tree as EROFS and compares what is in it.
pub(super) fn read_back(tree: &Tree) -> u64 {
    let (file, len) = written(tree);
    let mut got = Listing::new();
    let root = Disk(&file).nid_of_root();
    Disk(&file).list(root, root, "", &mut got);
    let want = listing(tree);
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (path, node) in &want {
        assert!(
            got[path] == *node,
            "{path}: {:?} {}, not {:?} {}",
            got[path].meta,
            got[path].links,
            node.meta,
            node.links
        );
    }
    len
}

fn written(tree: &Tree) -> (File, u64) {
    let file = unnamed(&std::env::temp_dir()).unwrap();
    let mut out = Output::new(&file);
    crate::image::erofs::write(tree, "IMAGE", "cache", &mut out).unwrap();
    let len = out.finish().unwrap();
    assert_eq!((len % 4096, file.metadata().unwrap().len()), (0, len));
    assert_eq!(u64::from(Disk(&file).u32(1024 + 36)) * 4096, len);
    (file, len)
}

struct Disk<'a>(&'a File);

impl Disk<'_> {
    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.bytes(at, 2).try_into().unwrap())
    }

    fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap())
    }

    fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }

    fn nid_of_root(&self) -> u64 {
        assert_eq!((self.u32(1024), self.bytes(1024 + 12, 1)), (0xe0f5_e1e2, vec![12]));
        self.u16(1024 + 14).into()
    }

    fn list(&self, nid: u64, parent: u64, path: &str, listing: &mut Listing) {
        let at = nid * 32;
        let format = self.u16(at);
        let (mode, large) = (self.u16(at + 4), format & 1 == 1);
        let mut meta = Meta { mode: mode & 0o7777, ..Meta::default() };
        let (size, links);
        if large {
            size = self.u64(at + 8);
            (meta.uid, meta.gid) = (self.u32(at + 24), self.u32(at + 28));
            meta.mtime = (self.u64(at + 32) as i64, self.u32(at + 40));
            links = self.u32(at + 44);
        } else {
            size = self.u32(at + 8).into();
            (meta.uid, meta.gid) = (self.u16(at + 24).into(), self.u16(at + 26).into());
            meta.mtime = (self.u64(1024 + 24) as i64, self.u32(1024 + 32));
            links = self.u16(at + 6).into();
        }
        let core = if large { 64 } else { 32 };
        assert!(at % 4096 + core <= 4096, "{path}: its inode crosses a block");
        let attributes = match self.u16(at + 2) {
            0 => 0,
            words => 12 + 4 * (u64::from(words) - 1),
        };
        let mut entry = at + core + 12;
        while entry < at + core + attributes {
            let head = self.bytes(entry, 2);
            let prefix = [
                "",
                "user.",
                "system.posix_acl_access",
                "system.posix_acl_default",
                "trusted.",
                "",
                "security.",
            ];
            let name = [prefix[head[1] as usize].as_bytes(), &self.bytes(entry + 4, head[0].into())].concat();
            let value = self.bytes(entry + 4 + u64::from(head[0]), self.u16(entry + 2).into());
            entry = (entry + 4 + u64::from(head[0]) + value.len() as u64).next_multiple_of(4);
            meta.xattrs.push((name.into(), value.into()));
        }
        meta.xattrs.sort();
        let data = || {
            let block = u64::from(self.u32(at + 16)) * 4096;
            match format >> 1 {
                0 => self.bytes(block, size as usize),
                2 => {
                    let (tail, inline) = (size % 4096, at + core + attributes);
                    assert_eq!(
                        at / 4096,
                        (inline + tail - 1) / 4096,
                        "{path}: what is inline crosses a block"
                    );
                    [self.bytes(block, (size - tail) as usize), self.bytes(inline, tail as usize)].concat()
                }
                other => panic!("{path}: layout {other}"),
            }
        };
        let device = || {
            let device = self.u32(at + 16);
            (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00)
        };
        let what = match mode >> 12 {
            0o4 => What::Directory,
            0o10 => What::File(data()),
            0o12 => What::Symlink(data()),
            0o2 => What::Device('c', device().0, device().1),
            0o6 => What::Device('b', device().0, device().1),
            0o1 => What::Fifo,
            0o14 => What::Socket,
            other => panic!("{path}: type {other}"),
        };
        let directory = what == What::Directory;
        listing.insert(path.into(), Node { what, meta, links });
        if directory {
            let mut before: Option<Vec<u8>> = None;
            for block in data().chunks(4096) {
                let word = |at: usize| usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
                let count = word(8) / 12;
                for i in 0..count {
                    let nid = u64::from_le_bytes(block[i * 12..i * 12 + 8].try_into().unwrap());
                    let end = if i + 1 < count { word((i + 1) * 12 + 8) } else { block.len() };
                    let name = block[word(i * 12 + 8)..end].split(|byte| *byte == 0).next().unwrap().to_vec();
                    assert!(before.as_ref().is_none_or(|before| *before < name), "{path}: not in order");
                    match &name[..] {
                        b"." => assert_eq!(nid, at / 32),
                        b".." => assert_eq!(nid, parent),
                        name => {
                            let child = format!("{path}/{}", String::from_utf8_lossy(name));
                            self.list(nid, at / 32, &child, listing);
                            let kind = [1, 2, 3, 4, 5, 6, 7][match listing[&child].what {
                                What::File(_) => 0,
                                What::Directory => 1,
                                What::Device('c', ..) => 2,
                                What::Device(..) => 3,
                                What::Fifo => 4,
                                What::Socket => 5,
                                What::Symlink(_) => 6,
                            }];
                            assert_eq!(block[i * 12 + 10], kind, "{child}: type");
                        }
                    }
                    before = Some(name);
                }
            }
        }
    }
}

#[test]
fn every_size_has_its_place() {
    let mut tar = Tar::default();
    // Around where the tail fits beside inode and block, with small inodes and large ones, with attributes and without.
    for size in (0..5).chain(4020..4070).chain(4090..4100).chain([8191, 8192, 8193, 12_288]) {
        let content: Vec<u8> = (0..size).map(|i| (i % 251) as u8 | 1).collect();
        tar = tar.file(&format!("plain{size}"), &content);
        tar = tar.pax(&[("uid", b"100000")]).file(&format!("large{size}"), &content);
        let value = vec![b'v'; size % 97];
        tar = tar.pax(&[("SCHILY.xattr.user.v", &value), ("SCHILY.xattr.security.capability", b"12345")]);
        tar = tar.file(&format!("attributes{size}"), &content);
        let target = vec![b'x'; size.clamp(1, 4095)];
        tar = tar.pax(&[("linkpath", &target)]).symlink(&format!("link{size}"), "");
    }
    tar = tar.pax(&[("SCHILY.xattr.user.big", &[b'b'; 60_000])]).file("big attribute", b"text");
    tar = tar.pax(&[("SCHILY.xattr.system.posix_acl_access", b"acl")]).directory("acl");
    for i in 0..2000 {
        tar = tar.file(&format!("many/{i}{}", "n".repeat(i % 60)), b"");
    }
    tar = tar
        .file("many/!before the dot", b"")
        .file("many/-", b"")
        .link("hard", "plain4030")
        .link("harder", "hard");
    let image = load(&tar.end()).unwrap();
    read_back(&image.tree);
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let archive = Tar::default().file("a", b"1").pax(&[("mtime", b"99")]).file("b", b"2").end();
    let read = |file: &File| Disk(file).bytes(0, file.metadata().unwrap().len() as usize);
    let [first, second] = [0, 1].map(|_| read(&written(&load(&archive).unwrap().tree).0));
    assert!(first == second);
}

#[test]
fn a_file_without_bytes_is_not_opened() {
    let root = Directory::new();
    let path = root.file("d/empty", b"");
    let image = open(root.path()).unwrap();
    std::fs::remove_file(path).unwrap();
    written(&image.tree);
}

/// By the programs of erofs-utils, where they are.
#[test]
fn fsck_finds_no_fault() {
    let root = Directory::new();
    let archive =
        Tar::default().directory("d").file("d/f", &[7; 9000]).symlink("l", "d").link("h", "d/f").end();
    let (file, _) = written(&load(&archive).unwrap().tree);
    let mut copy = File::create(root.path().join("image")).unwrap();
    std::io::Seek::rewind(&mut &file).unwrap();
    std::io::copy(&mut &file, &mut copy).unwrap();
    match std::process::Command::new("fsck.erofs").arg(root.path().join("image")).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => eprintln!("skipped: no fsck.erofs (erofs-utils)"),
    }
}
