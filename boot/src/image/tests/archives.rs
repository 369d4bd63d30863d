//! Tar archives: of the host's `tar` in all its formats, and by hand.

use super::*;

/// A tree with something of everything, and what the host says of it.
fn made() -> Directory {
    let root = Directory::new();
    let long = "n".repeat(255);
    run(
        &root,
        &format!(
            "mkdir root && cd root && mkdir -p a/b big 'd d' && echo hello >a/hello && ln a/hello a/b/hard && ln -s ../hello a/b/sym
             ln -s /etc/x absolute && mkfifo fifo && cp /bin/sh sh && chmod 4755 sh && chmod 1777 a && echo long >{long}
             p=deep; for i in 1 2 3 4 5 6 7 8 9; do p=$p/{}; done; mkdir -p $p; echo deep >$p/f
             ln -s {} longlink; : >empty; : >./-x; : >'!x'
             truncate -s 3M sparse; for at in 4096 1000000 1999999; do printf data | dd of=sparse bs=1 seek=$at conv=notrunc status=none; done
             truncate -s 2M hole; printf begin >begin; truncate -s 300K begin
             for i in $(seq 60); do printf x | dd of=many bs=1 seek=$((i * 8192)) conv=notrunc status=none; done
             touch -d '1960-01-02 03:04:05.6' a/hello; touch -d '2100-01-02 03:04:05' 'd d'
             head -c 4096 /dev/urandom >block; head -c 70000 /dev/urandom >blocks",
            "d".repeat(60),
            "x/".repeat(100),
        ),
    );
    root
}

/// As a tree of a directory, without what an archive's format cannot tell.
fn of_directory(root: &Directory, path: &str, whole_seconds: bool) -> Listing {
    let mut listing = listing(&open(&root.path().join(path)).unwrap().tree);
    for node in listing.values_mut() {
        if whole_seconds {
            node.meta.mtime.1 = 0;
        }
    }
    listing
}

#[test]
fn what_tar_packs_is_what_the_directory_has() {
    let root = made();
    for (options, whole_seconds) in [
        ("--format=posix", false),
        ("--format=posix --sparse", false),
        ("--format=posix --sparse --sparse-version=0.0", false),
        ("--format=posix --sparse --sparse-version=0.1", false),
        ("--format=gnu", true),
        ("--format=gnu --sparse", true),
    ] {
        for pack in ["", "| gzip -c", "| zstd -qc", "| xz -0c"] {
            if !pack.is_empty() && options != "--format=gnu --sparse" {
                continue;
            }
            run(&root, &format!("tar {options} -C root -cf - . {pack} >archive"));
            let image = open(&root.path().join("archive")).unwrap();
            let want = of_directory(&root, "root", whole_seconds);
            let got = listing(&image.tree);
            assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{options}");
            for (path, node) in &want {
                assert!(
                    got[path] == *node,
                    "{options} {pack}: {path} is {:?} {}",
                    got[path].meta,
                    got[path].links
                );
            }
        }
    }
    let listing = of_directory(&root, "root", false);
    assert_eq!(listing["/sh"].meta.mode, 0o4755);
    assert_eq!((listing["/a/hello"].links, listing["/a/hello"].meta.mtime), (2, (-315_521_755, 600_000_000)));
    assert_eq!(&content(&listing, "/sparse")[999_999..1_000_005], b"\0data\0");
    assert_eq!(content(&listing, "/sparse").len(), 3 << 20);
}

#[test]
fn old_formats_have_what_they_can_tell() {
    let root = Directory::new();
    run(
        &root,
        "mkdir -p root/a; echo x >root/a/f; ln root/a/f root/g; ln -s f root/a/l; mkdir -p root/p/$(printf 'd%.0s' $(seq 90)); echo y >root/p/ddd",
    );
    for format in ["v7", "ustar"] {
        run(&root, &format!("tar --format={format} -C root -cf archive ."));
        let got = listing(&open(&root.path().join("archive")).unwrap().tree);
        let want = of_directory(&root, "root", true);
        assert!(got == want, "{format}: {:?}", got.keys());
    }
    // A name that needs ustar's prefix.
    let name = format!("root/{0}/{0}", "d".repeat(90));
    run(&root, &format!("mkdir -p {name}; echo z >{name}/z; tar --format=ustar -C root -cf archive ."));
    assert_eq!(
        content(&listing(&open(&root.path().join("archive")).unwrap().tree), &format!("{}/z", &name[4..])),
        b"z\n"
    );
}

#[test]
fn ten_gigabytes_of_holes_cost_nothing() {
    use std::os::unix::fs::MetadataExt;
    let root = Directory::new();
    run(
        &root,
        "mkdir root cache && truncate -s 10G root/sparse && printf end | dd of=root/sparse bs=1 seek=9999999999 conv=notrunc status=none
         tar --sparse -C root -cf archive .",
    );
    let cache = crate::image::Cache::at(root.path().join("cache/x")).unwrap();
    for source in ["archive", "root"] {
        let path = root.path().join(source);
        let made = crate::image::root(&path, crate::image::Format::Erofs, &cache, Limits::default()).unwrap();
        let metadata = made.file.metadata().unwrap();
        assert!(
            metadata.len() > 10 << 30 && metadata.blocks() < 2048,
            "{source}: {} blocks",
            metadata.blocks()
        );
        let error =
            crate::image::root(&path, crate::image::Format::Cpio, &cache, Limits::default()).unwrap_err();
        assert!(matches!(error, Error::TooLargeForCpio { size: 10_737_418_240, .. }), "{error}");
        let words = format!("sparse of the image {} has 10737418240 bytes, ", path.display());
        assert!(error.to_string().starts_with(&words), "{error}");
    }
}

#[test]
fn attributes_of_files_go_with_them() {
    let archive = Tar::default()
        .pax(&[
            ("SCHILY.xattr.user.note", b"a\0b\n"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("path", b"renamed"),
            ("uid", b"70000"),
            ("mtime", b"5.25"),
        ])
        .file("x", b"text")
        .file("y", b"")
        .end();
    let listing = listing(&load(&archive).unwrap().tree);
    let meta = &listing["/renamed"].meta;
    let value = |name: &[u8], value: &[u8]| (name.into(), value.into());
    assert_eq!(meta.xattrs, [value(b"security.capability", b"\x01\0\0\x02"), value(b"user.note", b"a\0b\n")]);
    assert_eq!((meta.uid, meta.gid, meta.mtime, meta.mode), (70000, 2, (5, 250_000_000), 0o644));
    assert!(listing["/y"].meta.xattrs.is_empty() && listing["/y"].meta.mtime == (15, 0));
}

#[test]
fn names_are_taken_from_the_root() {
    let archive = Tar::default()
        .directory("./")
        .file("/absolute", b"1")
        .file("a/./b//c", b"2")
        .file("x/../y", b"3")
        .symlink("out", "/../../..")
        .file("out/in", b"4")
        .symlink("away", "to/there")
        .file("away/file", b"5")
        .link("hard", "/a/b/c")
        .raw(b"null", b'3', b"", "0", b"")
        .raw(b"disk", b'4', b"", "0", b"")
        .raw(b"fifo", b'6', b"", "0", b"")
        .file("twice", b"first")
        .file("twice", b"second")
        .directory("file/")
        .file("file", b"6")
        .end();
    let image = load(&archive).unwrap();
    let all = listing(&image.tree);
    assert_eq!(
        names(&image),
        [
            "/a",
            "/a/b",
            "/a/b/c",
            "/absolute",
            "/away",
            "/disk",
            "/fifo",
            "/file",
            "/hard",
            "/in",
            "/null",
            "/out",
            "/to",
            "/to/there",
            "/to/there/file",
            "/twice",
            "/y"
        ]
    );
    assert_eq!(
        (content(&all, "/twice"), content(&all, "/in"), all["/hard"].links),
        (&b"second"[..], &b"4"[..], 2)
    );
    assert_eq!(all["/null"].what, What::Device('c', 7, 300));
    assert_eq!((&all["/disk"].what, &all["/fifo"].what), (&What::Device('b', 7, 300), &What::Fifo));
    // In a plain archive these are names like others.
    assert_eq!(
        names(&load(&Tar::default().file("a", b"").file(".wh.a", b"").end()).unwrap()),
        ["/.wh.a", "/a"]
    );
}

#[test]
fn directories_that_only_names_tell_of_are_roots_and_open_to_all() {
    let all = listing(&load(&Tar::default().file("a/b/f", b"").end()).unwrap().tree);
    for path in ["", "/a", "/a/b"] {
        assert_eq!(all[path].meta, Meta { mode: 0o755, ..Meta::default() }, "{path}");
    }
}

#[test]
fn links_on_the_way_lead_on_from_where_they_stand() {
    let archive = Tar::default()
        .symlink("dots", ".//./a/./b//")
        .file("dots/f", b"1")
        .symlink("slashes", "//a///c/")
        .file("slashes/./f", b"2")
        // Of what is not there yet nothing is looked up at the root, though that has such a name.
        .directory("there")
        .symlink("away", "to/there")
        .file("away/f", b"3")
        .symlink("back", "new/x/../there")
        .file("back/f", b"4")
        .end();
    let image = load(&archive).unwrap();
    let all = listing(&image.tree);
    let files: Vec<_> = all
        .iter()
        .filter_map(|(path, node)| match &node.what {
            What::File(bytes) => Some((&path[..], &bytes[..])),
            _ => None,
        })
        .collect();
    let want: [(&str, &[u8]); 4] =
        [("/a/b/f", b"1"), ("/a/c/f", b"2"), ("/new/there/f", b"4"), ("/to/there/f", b"3")];
    assert_eq!(files, want);
    let directories = ["", "/a", "/a/b", "/a/c", "/new", "/new/there", "/there", "/to", "/to/there"];
    let got: Vec<_> =
        all.iter().filter(|(_, node)| node.what == What::Directory).map(|(path, _)| &path[..]).collect();
    assert_eq!(got, directories);
    assert_eq!(image.tree.find(b"./dots/..//b/f"), image.tree.find(b"a/b/f"));
}

#[test]
fn labels_are_no_files_and_old_directories_are() {
    let archive = Tar::default()
        .raw(b"a label", b'V', b"", "0", b"")
        .raw(b"old/", 0, b"", "0", b"")
        .file("old/f", b"1")
        .raw(b"new/", b'0', b"", "0", b"")
        .file("new/f", b"2")
        .raw(b"contiguous", b'7', b"", "1", b"3")
        .end();
    let all = listing(&load(&archive).unwrap().tree);
    let paths: Vec<_> = all.keys().collect();
    assert_eq!(paths, ["", "/contiguous", "/new", "/new/f", "/old", "/old/f"]);
    assert_eq!((&all["/old"].what, &all["/new"].what), (&What::Directory, &What::Directory));
    assert_eq!(content(&all, "/contiguous"), b"3");
}

#[test]
fn a_directory_is_read_without_following_links() {
    let root = made();
    run(&root, "ln -s / root/host");
    let names = names(&open(&root.path().join("root")).unwrap());
    assert!(names.contains(&"/host".into()) && !names.iter().any(|name| name.starts_with("/host/")));
    // What is mounted in it is an empty directory.
    if let Ok(image) = open(Path::new("/sys/fs")) {
        assert!(image.tree.find(b"cgroup").is_none_or(|id| image.tree.entries(id).unwrap().is_empty()));
    }
    let empty = Directory::new();
    assert!(told(open(empty.path()).unwrap_err(), empty.path()).starts_with("the image IMAGE has no files"));
}

#[test]
fn a_file_of_a_directory_that_changes_is_noticed() {
    let root = Directory::new();
    let path = root.file("file", b"text");
    let image = open(root.path()).unwrap();
    std::fs::write(&path, b"other text").unwrap();
    let id = image.tree.find(b"file").unwrap();
    let Kind::File(content) = &image.tree.inode(id).kind else { panic!("no file") };
    let error = copy_content(content, 0, 4, &mut Vec::new()).unwrap_err().of("IMAGE", content, "cache");
    assert_eq!(error.to_string(), "file of the image IMAGE changed while it was read");
}

#[test]
fn a_device_has_a_number_as_linux_has_them() {
    for (major, minor, has) in [(0o7777, 0o3777777, true), (0o10000, 0, false), (0, 0o4000000, false)] {
        for kind in *b"34" {
            let mut tar = Tar::default().raw(b"device", kind, b"", "0", b"");
            let mut header: [u8; 512] = std::mem::take(&mut tar.0).try_into().unwrap();
            header[329..336].copy_from_slice(format!("{major:07o}").as_bytes());
            header[337..344].copy_from_slice(format!("{minor:07o}").as_bytes());
            tar.seal(header);
            let loaded = load(&tar.end());
            match loaded {
                Ok(image) if has => {
                    let letter = if kind == b'3' { 'c' } else { 'b' };
                    assert_eq!(listing(&image.tree)["/device"].what, What::Device(letter, major, minor));
                }
                Err(error) if !has => assert!(format!("{error:?}").contains("device number"), "{error:?}"),
                _ => panic!("{major:o} {minor:o}: {}", loaded.is_ok()),
            }
        }
    }
}
