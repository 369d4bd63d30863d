//! Images that are broken, or mean harm: each is refused by its own words.

use proptest::prelude::*;

use super::*;

#[test]
fn what_is_no_archive_is_called_by_its_name() {
    let at = |at: usize, magic: &[u8]| {
        let mut bytes = vec![1; 0x9000];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        bytes
    };
    for (bytes, words, instead) in [
        (at(0, b"QFI\xfb"), "a qcow2 disk", "qemu-img convert -O raw"),
        (at(0, b"KDMV"), "a VMDK disk", "qemu-img convert -O raw"),
        (at(0, b"# Disk DescriptorFile"), "a VMDK disk", "qemu-img convert -O raw"),
        (at(0, b"vhdxfile"), "a VHD disk", "qemu-img convert -O raw"),
        (at(0, b"conectix"), "a VHD disk", "qemu-img convert -O raw"),
        (at(0x8001, b"CD001"), "an ISO 9660 image", "cloud image"),
        (at(512, b"EFI PART"), "a disk with a GPT", "--disk"),
        (at(0x438, b"\x53\xef"), "an ext4 file system", "--disk"),
        (at(1024, b"\xe2\xe1\xf5\xe0"), "an EROFS file system", "--disk"),
        (at(0, b"hsqs"), "a squashfs file system", "--disk"),
        (at(0, b"XFSB"), "an XFS file system", "--disk"),
        (at(510, b"\x55\xaa"), "a disk with boot sector", "--disk"),
        (at(0x202, b"HdrS"), "a Linux kernel", "--kernel"),
        (at(0, b"\x7fELF"), "an ELF program", "--kernel"),
        (at(0, b"070701"), "a cpio archive", "--initrd"),
        (at(0, b"070702"), "a cpio archive", "--initrd"),
        (at(0, b"070707"), "a cpio archive", "--initrd"),
        (at(0, b"!<arch>\n"), "a Debian package", "dpkg -x"),
        (at(0, b"\xed\xab\xee\xdb"), "an RPM package", "rpm2cpio"),
        (at(0, b"PK\x03\x04"), "a zip archive", "tar -C ROOT"),
        (at(0, b"PK\x05\x06"), "a zip archive", "tar -C ROOT"),
        (at(0, b"7z\xbc\xaf"), "a 7-Zip archive", "tar -C ROOT"),
        (at(0, b"\x04\x22\x4d\x18"), "something packed by lz4", "lz4 -d"),
        (at(0, b"\x5d\0\0"), "something packed by lzma", "unlzma"),
        (at(0, b"BZh9"), "something packed by bzip2", "bunzip2"),
        (b"FROM debian\n".repeat(9), "text", "podman save"),
        (vec![1; 600], "nothing known", "OCI layout"),
        (vec![1; 3], "nothing known", "OCI layout"),
    ] {
        let said = said(&bytes);
        assert!(said.contains(&format!("it looks like {words}")) && said.contains(instead), "{said}");
    }
    assert!(said(b"").starts_with("the image IMAGE is empty | "), "{}", said(b""));
    assert!(said(&[0; 1024]).starts_with("the image IMAGE has no files | "));
    let missing = Path::new("/nonexistent/image");
    assert!(told(open(missing).unwrap_err(), missing).contains("wirevm asks no registry"));
    let null = Path::new("/dev/null");
    assert!(told(open(null).unwrap_err(), null).contains("is empty"));
}

#[test]
fn each_fault_of_an_archive_has_its_words() {
    let long = "n".repeat(99) + "/";
    for (archive, words) in [
        (Tar::default().file("a", b"text").0, "cut off: at byte 1024 the archive's end mark is missing"),
        (
            Tar::default().file("a", b"text").end()[..514].to_vec(),
            "cut off: at byte 514 data of a file is missing",
        ),
        (Tar::default().file("a", &[1; 600]).0[..1000].to_vec(), "data of a file is missing"),
        ([Tar::default().file("a", b"").0, vec![b'x'; 512]].concat(), "at byte 512 no header of a file is"),
        ([Tar::default().file("a", b"").0, vec![0; 100]].concat(), "at byte 512 a whole header is missing"),
        (Tar::default().file("../etc/passwd", b"").end(), "../etc/passwd climbs out of the root"),
        (Tar::default().file("a/../../b", b"").end(), "climbs out of the root"),
        (Tar::default().file("", b"").end(), "the file at byte 0 has no name"),
        (Tar::default().pax(&[("path", b"a\0b")]).file("x", b"").end(), "is no name that Linux can give"),
        (Tar::default().pax(&[("path", "n".repeat(256).as_bytes())]).file("x", b"").end(), "is no name that"),
        (
            Tar::default().pax(&[("path", "n/".repeat(2048).as_bytes())]).file("x", b"").end(),
            "is no name that",
        ),
        (
            Tar::default().pax(&[("path", "n/".repeat(1500).as_bytes())]).file("x", b"").end(),
            "is no name that",
        ),
        (Tar::default().file(".", b"").end(), "the root is to become something other"),
        (Tar::default().symlink(".", "x").end(), "the root is to become something other"),
        (Tar::default().file("a", b"").file("a/b", b"").end(), "a/b is to lie in what is not a directory"),
        (
            Tar::default().file("a", b"").file("a/b/c", b"").end(),
            "a/b/c is to lie in what is not a directory",
        ),
        (Tar::default().symlink("l", "l").file("l/b", b"").end(), "lead in a circle on the way to l/b"),
        (Tar::default().symlink("l", "").end(), "l is a symbolic link to nothing"),
        (Tar::default().link("l", "gone").end(), "l is a hard link to gone, which is not there"),
        (Tar::default().directory("d").link("l", "d").end(), "l is a hard link to d"),
        (Tar::default().link("l", "../../x").end(), "l is a hard link to ../../x"),
        (Tar::default().raw(b"a", b'0', b"", "9", b"").end(), "has a size that is no number"),
        (Tar::default().raw(b"a", b'0', b"", "77777777777", b"").end(), "data of a file is missing"),
        (Tar::default().raw(b"a", b'0', b"", "\u{7f}", b"").end(), "has a size that is no number"),
        (
            Tar::default().raw(b"x", b'x', b"", "00040000000", b"").end(),
            "have 8388608 bytes, and more than 1048576",
        ),
        (
            Tar::default().sized("x", b'x', b"9 path=a").file("f", b"").end(),
            "the extended header at byte 0 is malformed",
        ),
        (Tar::default().pax(&[("path", b"x")]).end(), "no header of a file"),
        (
            Tar::default().raw(long.as_bytes(), b'M', b"", "0", b"").end(),
            "is a part of an archive of several volumes",
        ),
        (
            Tar::default().pax(&[("SCHILY.xattr.user.x", &[1; 65536])]).file("f", b"").end(),
            "f has extended attributes",
        ),
    ] {
        let said = said(&archive);
        assert!(said.starts_with("the archive of the image IMAGE is not to be used: "), "{said}");
        assert!(said.contains(words), "{words}: {said}");
    }
    // Control characters of a name do not reach the terminal.
    let said = said(&Tar::default().file("../\x1b[2J", b"").end());
    assert!(said.contains("../\\u{1b}[2J climbs"), "{said}");
}

fn sparse(records: &[(&str, &str)], data: &[u8]) -> Vec<u8> {
    let records: Vec<_> = records.iter().map(|(key, value)| (*key, value.as_bytes())).collect();
    Tar::default().pax(&records).file("s", data).end()
}

#[test]
fn maps_of_holes_are_believed_only_as_far_as_they_are_true() {
    const SIZE: (&str, &str) = ("GNU.sparse.size", "100");
    const ONE: [(&str, &str); 3] =
        [("GNU.sparse.major", "1"), ("GNU.sparse.name", "n"), ("GNU.sparse.realsize", "100")];
    let good = sparse(&[SIZE, ("GNU.sparse.map", "10,4,50,4,100,0")], b"onesmore");
    let listing = listing(&load(&good).unwrap().tree);
    assert_eq!((content(&listing, "/s").len(), &content(&listing, "/s")[9..15]), (100, &b"\0ones\0"[..]));
    let mut data = b"1\n96\n4\n".to_vec();
    data.resize(512, 0);
    data.extend(b"last");
    assert_eq!(&content(&super::listing(&load(&sparse(&ONE, &data)).unwrap().tree), "/n")[95..], b"\0last");
    let huge = format!("0,4,{},4", u64::MAX - 2);
    for (map, data) in [
        ("10,4,12,4", &b"onesmore"[..]),
        ("50,4,10,4", b"onesmore"),
        ("98,4,200,4", b"onesmore"),
        ("10,4", b"onesmore"),
        ("10,4,50", b"ones"),
        (&huge, b"onesmore"),
    ] {
        let said = said(&sparse(&[SIZE, ("GNU.sparse.map", map)], data));
        assert!(said.contains("s has a malformed map of its holes"), "{map}: {said}");
    }
    for data in [
        &b""[..],
        b"1\n",
        b"1\n96\n4\n",
        b"99999999999999999999999\n",
        b"18446744073709551615\n0\n0\n",
        b"x\n",
    ] {
        let said = said(&sparse(&ONE, data));
        assert!(said.contains("malformed map of its holes"), "{said}");
    }
    // One file's holes are not every file's.
    for record in ["GNU.sparse.size", "GNU.sparse.major", "GNU.sparse.map"] {
        let said = said(&Tar::default().records(b'g', &[(record, b"1")]).file("f", b"").end());
        assert!(said.contains("the extended header at byte 0 is malformed"), "{record}: {said}");
    }
    // Old GNU: a map that is said to go on, and does not.
    let mut tar = Tar::default();
    let mut header = [0; 512];
    header[..1].copy_from_slice(b"s");
    header[156] = b'S';
    header[482] = 1;
    header[483..494].copy_from_slice(b"00000000144");
    tar.seal(header);
    assert!(said(&tar.clone().0).contains("cut off"), "{}", said(&tar.0));
    assert!(said(&tar.end()).contains("no header of a file"));
}

#[test]
fn limits_hold() {
    let limits = Limits { entries: 20, data: 10_000, apparent: 1_000_000, metadata: 5000 };
    let within = |archive: &[u8]| {
        let file = Scratch::new(archive);
        open_within(file.path(), limits).map_err(|error| told(error, file.path()))
    };
    let files = |n: usize| (0..n).fold(Tar::default(), |tar, i| tar.file(&format!("f{i}"), b"")).end();
    within(&files(20)).unwrap();
    assert!(within(&files(21)).unwrap_err().contains("it has more than 20 files"));
    let links = (0..20).fold(Tar::default().file("f", b""), |tar, i| tar.link(&format!("l{i}"), "f"));
    assert!(within(&links.end()).unwrap_err().contains("it has more than 20 files"));
    let large = Tar::default().file("a", &[1; 6000]).file("b", &[1; 6000]).end();
    assert!(within(&large).unwrap_err().contains("its files have more than 10000 bytes"));
    let holes = sparse(&[("GNU.sparse.size", "1000001"), ("GNU.sparse.map", "0,4")], b"data");
    assert!(within(&holes).unwrap_err().contains("its files have more than 1000000 bytes"));
    let attributes = Tar::default().pax(&[("SCHILY.xattr.user.x", &[1; 6000])]).file("f", b"").end();
    assert!(
        within(&attributes).unwrap_err().contains("names, links and attributes have more than 5000 bytes")
    );
    let again =
        (0..60).fold(Tar::default(), |tar, _| tar.pax(&[("SCHILY.xattr.user.x", &[1; 100])]).directory("d"));
    assert!(within(&again.end()).unwrap_err().contains("names, links and attributes"));
    // Headers that belong to no file, or to every one.
    let headers = |kind, n, value: &[u8]| {
        (0..n).fold(Tar::default(), |tar, _| tar.records(kind, &[("comment", value)])).file("f", b"").end()
    };
    for kind in [b'x', b'g', b'L', b'K'] {
        let many = within(&headers(kind, 60, &[b'c'; 99])).unwrap_err();
        assert!(many.contains("names, links and attributes have more than 5000 bytes"), "{many}");
        let long = said(&headers(kind, 11, &[b'c'; 99_000]));
        assert!(long.contains(" bytes, and more than 1048576"), "{long}");
    }
    let global = |n| {
        let tar = Tar::default().records(b'g', &[("SCHILY.xattr.user.x", &[1; 400])]);
        (0..n).fold(tar, |tar, _| tar.directory("d")).end()
    };
    within(&global(3)).unwrap();
    assert!(within(&global(10)).unwrap_err().contains("names, links and attributes"));
    let clones = Tar::default().records(b'g', &[("linkpath", &[b'l'; 900])]);
    let clones = (0..10).fold(clones, |tar, n| tar.file(&n.to_string(), b"")).end();
    assert!(within(&clones).unwrap_err().contains("names, links and attributes"));
    // What unpacks to more than all that: twice the limit is what is written at most.
    for pack in ["gzip -c", "zstd -qc", "xz -c"] {
        let root = Directory::new();
        run(&root, &format!("head -c 30000000 /dev/zero | {pack} >bomb"));
        let path = root.path().join("bomb");
        let said = told(open_within(&path, limits).unwrap_err(), &path);
        assert!(said.contains("unpacked, the image IMAGE has more than 10000 bytes"), "{said}");
    }
}

#[test]
fn a_packed_archive_that_is_damaged_is_said() {
    let root = Directory::new();
    run(
        &root,
        "mkdir r; echo x >r/f; tar -C r -c . | gzip -c >a; head -c -5 a >cut; gzip -c a >twice; head -c 9000 /dev/urandom | gzip -c >noise",
    );
    let said = |name: &str| {
        let path = root.path().join(name);
        told(open(&path).unwrap_err(), &path)
    };
    assert!(said("cut").starts_with("cannot unpack it of the image IMAGE: "), "{}", said("cut"));
    assert!(said("twice").contains("an archive packed twice"));
    assert!(said("noise").contains("it looks like nothing known"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// Whatever an archive has, the outcome is an error or a tree; and a file system of it.
    #[test]
    fn no_archive_leads_astray(
        flips in prop::collection::vec((0..9000_usize, any::<u8>()), 0..8),
        cut in 0..12_000_usize,
    ) {
        let mut bytes = Tar::default()
            .directory("./")
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.name", b"n"), ("GNU.sparse.realsize", b"100")])
            .file("s", b"1\n96\n4\n")
            .symlink("l", "d/e")
            .file("l/f", b"text")
            .link("h", "l/f")
            .pax(&[("path", b"d/x"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
            .file("x", &[7; 700])
            .end();
        for (at, byte) in flips {
            let at = at % bytes.len();
            let header = at / 512 * 512;
            bytes[at] = byte;
            // So that more than the checksum is looked at.
            if bytes[header + 257..header + 262] == *b"ustar" {
                bytes[header + 148..header + 156].fill(b' ');
                let sum: u32 = bytes[header..header + 512].iter().map(|byte| u32::from(*byte)).sum();
                bytes[header + 148..header + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
        }
        bytes.truncate(cut.max(512));
        let limits = Limits { entries: 1000, data: 1 << 20, apparent: 1 << 24, metadata: 1 << 20 };
        if let Ok(image) = open_within(Scratch::new(&bytes).path(), limits) {
            prop_assert!(listing(&image.tree).len() > 1);
            erofs::read_back(&image.tree);
        }
    }

    #[test]
    fn no_bytes_lead_astray(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = load(&bytes);
    }
}
