//! Disks made by the tools that make real ones, read, and then broken.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const KERNEL: &[u8] = b"a kernel, as far as anybody here looks";

/// A directory that goes with its value.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("boot-disk-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file of the tree that becomes a disk.
    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path("tree").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn link(&self, target: &str, name: &str) {
        let path = self.path("tree").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// A file system of that tree, made with these options of mke2fs.
    fn ext4(&self, mib: u64, options: &[&str]) -> Option<Vec<u8>> {
        let image = self.path("image");
        let _ = fs::remove_file(&image);
        let mut all = vec!["-q", "-F", "-d"];
        let (tree, image_name, size) = (self.path("tree"), image.to_str().unwrap(), format!("{mib}M"));
        all.push(tree.to_str().unwrap());
        all.extend(options);
        all.extend([image_name, &size]);
        run("mke2fs", &all, b"")?;
        Some(fs::read(image).unwrap())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a program of the host with `input`; `None` where there is none, which is a test that skips.
fn run(program: &str, args: &[&str], input: &[u8]) -> Option<String> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(|place| Path::new(place).join(program));
    let Some(path) = places.iter().find(|path| path.exists()) else {
        eprintln!("skipped: this host has no {program}");
        return None;
    };
    let mut command = Command::new(path);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Some(said)
}

macro_rules! need {
    ($tool:expr) => {
        match $tool {
            Some(made) => made,
            None => return,
        }
    };
}

mod by_hand;

fn found(disk: &Vec<u8>) -> Result<Found, Error> {
    find(disk, disk.len() as u64)
}

/// A Debian root without a boot loader.
fn debian() -> Dir {
    let dir = Dir::new();
    dir.put("boot/vmlinuz-6.1.0-30-amd64", KERNEL);
    dir.put("boot/vmlinuz-6.1.0-9-amd64", "an old one");
    dir.put("boot/initrd.img-6.1.0-30-amd64", vec![7; 3 << 20]);
    dir.put("etc/os-release", "ID=debian\n");
    dir.put("usr/sbin/init", "");
    dir.link("boot/vmlinuz-6.1.0-30-amd64", "vmlinuz");
    dir
}

/// A GPT with sectors of this length, whose partitions have these types and contents; each begins at a multiple of a MiB.
fn gpt(sector: u64, partitions: &[(&str, &[u8])]) -> Vec<u8> {
    let lens = partitions.iter().map(|(_, content)| (content.len() as u64).next_multiple_of(MIB));
    let len = lens.clone().sum::<u64>() + 2 * MIB;
    let mut disk = vec![0; len as usize];
    let (mut entries, mut at) = (vec![0; 128 * 128], MIB);
    for (index, ((kind, content), len)) in partitions.iter().zip(lens).enumerate() {
        disk[at as usize..][..content.len()].copy_from_slice(content);
        let entry = &mut entries[index * 128..][..128];
        let hex = kind.replace('-', "");
        let bytes = |i: usize| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap();
        for (to, from) in [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15].into_iter().enumerate() {
            entry[to] = bytes(from);
        }
        entry[16..32].copy_from_slice(&[index as u8 + 1; 16]);
        entry[32..40].copy_from_slice(&(at / sector).to_le_bytes());
        entry[40..48].copy_from_slice(&((at + len) / sector - 1).to_le_bytes());
        at += len;
    }
    let last = len / sector - 1;
    for (lba, other, place) in [(1, last, 2), (last, 1, last - 128 * 128 / sector)] {
        let mut header = vec![0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..16].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
        for (at, value) in [(24, lba), (32, other), (72, place)] {
            header[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        }
        let sum = |bytes: &[u8]| {
            let mut crc = flate2::Crc::new();
            crc.update(bytes);
            crc.sum().to_le_bytes()
        };
        header[80..88].copy_from_slice(&[128, 0, 0, 0, 128, 0, 0, 0]);
        header[88..92].copy_from_slice(&sum(&entries));
        let crc = sum(&header);
        header[16..20].copy_from_slice(&crc);
        disk[(place * sector) as usize..][..entries.len()].copy_from_slice(&entries);
        disk[(lba * sector) as usize..][..92].copy_from_slice(&header);
    }
    disk[446 + 4] = 0xee;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

const ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
const BOOT: &str = "bc13c2ff-59e6-4262-a352-b275fd6f7172";
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

const UUID: [&str; 2] = ["-U", "01234567-89ab-cdef-0123-456789abcdef"];

#[test]
fn a_root_is_found_in_every_kind_of_file_system_and_table() {
    let dir = debian();
    for options in [
        &["-t", "ext4"][..],
        &["-t", "ext2", "-b", "1024"],
        &["-t", "ext3", "-b", "2048"],
        &["-t", "ext4", "-b", "4096", "-O", "^64bit,^metadata_csum,^flex_bg", "-I", "128"],
        &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode", "-g", "1024"],
        &["-t", "ext4", "-O", "bigalloc", "-C", "16384"],
        &["-t", "ext4", "-b", "1024", "-O", "sparse_super2", "-E", "num_backup_sb=1"],
    ] {
        let root = need!(dir.ext4(24, &[options, &UUID].concat()));
        let kernel = |disk: &Vec<u8>| {
            let found = found(disk).unwrap_or_else(|error| panic!("{options:?}: {error}"));
            assert_eq!(
                (&found.kernel[..], found.initrd.as_ref().map(Vec::len)),
                (KERNEL, Some(3 << 20)),
                "{options:?}"
            );
            assert_eq!(found.initrd.unwrap(), vec![7; 3 << 20]);
            assert_eq!(found.title, "vmlinuz-6.1.0-30-amd64");
            found.cmdline.with(None, "console=ttyS0")
        };
        let cmdline = "root=UUID=01234567-89ab-cdef-0123-456789abcdef rw console=ttyS0";
        assert_eq!(kernel(&root), cmdline);
        for sector in [512, 4096] {
            let mut disk = gpt(sector, &[(LINUX, &[0; 10]), (ROOT, &root)]);
            assert_eq!(kernel(&disk), cmdline);
            // The second header, where the first is broken.
            disk[sector as usize + 17] ^= 1;
            assert_eq!(kernel(&disk), cmdline);
            let last = disk.len() - sector as usize;
            disk[last + 17] ^= 1;
            assert!(matches!(found(&disk), Err(Error::Table { .. })));
        }
    }
}

#[test]
fn a_kernel_without_an_initrd_finds_its_root_by_the_partition() {
    let dir = debian();
    fs::remove_file(dir.path("tree/boot/initrd.img-6.1.0-30-amd64")).unwrap();
    let root = need!(dir.ext4(8, &["-t", "ext4"]));
    let argument = |disk: &Vec<u8>| found(disk).unwrap().cmdline.root.unwrap();
    assert_eq!(argument(&root), "root=/dev/vda");
    let partuuid = "root=PARTUUID=02020202-0202-0202-0202-020202020202";
    assert_eq!(argument(&gpt(512, &[(LINUX, &[0]), (LINUX, &root)])), partuuid);
}

#[test]
fn what_sfdisk_makes_is_read() {
    let dir = debian();
    fs::remove_file(dir.path("tree/boot/initrd.img-6.1.0-30-amd64")).unwrap();
    let root = need!(dir.ext4(8, &["-t", "ext4"]));
    let image = dir.path("disk");
    let argument = |script: &str, at: u64| {
        let mut disk = vec![0; 32 << 20];
        fs::write(&image, &disk).unwrap();
        run("sfdisk", &["-q", image.to_str().unwrap()], script.as_bytes())?;
        disk = fs::read(&image).unwrap();
        disk[(at * MIB) as usize..][..root.len()].copy_from_slice(&root);
        Some(found(&disk).unwrap_or_else(|error| panic!("{script}: {error}")).cmdline.root.unwrap())
    };
    let gpt = format!(
        "label: gpt\nstart=1MiB, size=2MiB, type={ESP}\nstart=4MiB, size=10MiB, type={ROOT}, uuid=11111111-2222-3333-4444-555555555555\n"
    );
    assert_eq!(need!(argument(&gpt, 4)), "root=PARTUUID=11111111-2222-3333-4444-555555555555");
    let mbr = "label: dos\nlabel-id: 0xabcd1234\nstart=1MiB, size=10MiB, type=83\n";
    assert_eq!(need!(argument(mbr, 1)), "root=PARTUUID=abcd1234-01");
    let logical = "label: dos\nlabel-id: 0xabcd1234\nstart=1MiB, size=2MiB, type=83\nstart=3MiB, size=28MiB, type=5\n\
                   start=4MiB, size=2MiB, type=83\nstart=8MiB, size=10MiB, type=83\n";
    assert_eq!(need!(argument(logical, 8)), "root=PARTUUID=abcd1234-06");
}

#[test]
fn extended_partitions_that_go_round_end() {
    let mut disk = vec![0; MIB as usize];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[446 + 4] = 5;
    disk[446 + 8] = 8;
    disk[446 + 12] = 100;
    let own = 8 * 512;
    // Its next is itself.
    disk[own + 446 + 4] = 0x83;
    disk[own + 446 + 8] = 1;
    disk[own + 446 + 12] = 1;
    disk[own + 462 + 4] = 5;
    disk[own + 510..own + 512].copy_from_slice(&[0x55, 0xaa]);
    assert!(matches!(found(&disk), Err(Error::Nothing)));
    let source = Source::new(&disk, disk.len() as u64);
    assert_eq!(table::partitions(source.whole()).unwrap().unwrap().len(), table::PARTITIONS_MAX - 5);
}

#[test]
fn a_boot_partition_has_the_entry_and_the_root_is_another() {
    let boot = Dir::new();
    boot.put("vmlinuz-6.11", KERNEL);
    boot.put("initramfs-6.11.img", "abc");
    boot.put(
        "loader/entries/m-6.11.conf",
        "title Fedora\nlinux /vmlinuz-6.11\ninitrd /initramfs-6.11.img\noptions $kernelopts quiet\n",
    );
    boot.put("grub2/grubenv", "# GRUB Environment Block\nkernelopts=root=UUID=77 rootflags=subvol=root \n");
    let boot = need!(boot.ext4(8, &["-t", "ext4"]));
    // The root is of a kind that is not read, but is not needed.
    let mut btrfs = vec![0; 2 << 20];
    btrfs[0x1_0040..][..8].copy_from_slice(b"_BHRfS_M");
    let disk = gpt(512, &[(LINUX, &boot), (ROOT, &btrfs)]);
    let found_there = found(&disk).unwrap();
    assert_eq!((&found_there.kernel[..], found_there.initrd.as_deref()), (KERNEL, Some(&b"abc"[..])));
    assert_eq!(
        found_there.cmdline.with(None, "console=ttyS0"),
        "root=UUID=77 rootflags=subvol=root quiet console=ttyS0"
    );
    let error = found(&gpt(512, &[(ROOT, &btrfs)])).unwrap_err();
    assert_eq!(error.to_string(), "its root is btrfs, which wirevm cannot read");
    assert_eq!(error.remedy(), "give --kernel and --initrd, and root=... with --cmdline");
}

#[test]
fn grubs_menu_counts_before_what_lies_around() {
    let dir = debian();
    dir.put("boot/vmlinuz-5", KERNEL);
    dir.put("boot/one", "1");
    dir.put("boot/two", "22222");
    let menu = "set default=\"1\"\nmenuentry 'first' {\n linux /boot/none\n}\nmenuentry 'second' {\n\
                linux (hd0,gpt1)/boot/vmlinuz-5 root=/dev/sda1 ro console=tty0 console=ttyS0\n initrd /boot/one /boot/two\n}\n";
    dir.put("boot/grub/grub.cfg", menu);
    let root = need!(dir.ext4(16, &[&["-t", "ext4"][..], &UUID].concat()));
    let second = found(&root).unwrap();
    assert_eq!((&second.title[..], second.initrd.as_deref()), ("second", Some(&b"1\0\0\x0022222"[..])));
    assert_eq!(
        second.cmdline.with(Some("x"), ""),
        format!("root=UUID={} ro console=tty0 console=ttyS0 x", UUID[1])
    );
    dir.put("boot/grub/grub.cfg", menu.replace("\"1\"", "\"0\""));
    let root = need!(dir.ext4(16, &["-t", "ext4"]));
    let error = found(&root).unwrap_err();
    assert_eq!(error.to_string(), "its boot entry \"first\" names /boot/none, which is not there");
}

#[test]
fn an_esp_with_systemd_boot_is_read() {
    let dir = debian();
    let esp = dir.path("esp");
    for (sectors, bits) in [("4096", "12"), ("32768", "16"), ("81920", "32")] {
        let _ = fs::remove_file(&esp);
        let kib = (sectors.parse::<u64>().unwrap() / 2).to_string();
        need!(run("mkfs.fat", &["-F", bits, "-s", "1", "-C", esp.to_str().unwrap(), &kib], b""));
        let conf = "title A\nlinux /Debian-With-A-Long-Name/linux\ninitrd /Debian-With-A-Long-Name/initrd.img-6.1\noptions ro\n";
        fs::write(dir.path("conf"), conf).unwrap();
        fs::write(dir.path("big"), [9; 300_001]).unwrap();
        fs::write(dir.path("linux"), KERNEL).unwrap();
        let image = ["-i", esp.to_str().unwrap()];
        need!(run(
            "mmd",
            &[&image[..], &["::/loader", "::/loader/entries", "::/Debian-With-A-Long-Name"]].concat(),
            b""
        ));
        for (file, to) in [
            ("linux", "Debian-With-A-Long-Name/linux"),
            ("big", "Debian-With-A-Long-Name/initrd.img-6.1"),
            ("conf", "loader/entries/0123456789abcdef-6.1.conf"),
        ] {
            let (from, to) = (dir.path(file), format!("::/{to}"));
            need!(run("mcopy", &[&image[..], &[from.to_str().unwrap(), &to]].concat(), b""));
        }
        let esp = fs::read(&esp).unwrap();
        let root = need!(dir.ext4(16, &[&["-t", "ext4"][..], &UUID].concat()));
        let there = found(&gpt(512, &[(ESP, &esp), (LINUX, &root)])).unwrap();
        assert_eq!((&there.title[..], &there.kernel[..]), ("A", KERNEL), "FAT{bits}");
        assert_eq!(there.initrd.unwrap(), [9; 300_001]);
        assert_eq!(there.cmdline.root.unwrap(), format!("root=UUID={}", UUID[1]));
        // As a disk of its own, its boot sector is no partition table.
        assert_eq!(found(&esp).unwrap().cmdline.root, None);
    }
}

#[test]
fn the_journal_of_a_guest_that_was_killed_is_read() {
    let dir = debian();
    for (options, open) in [("^metadata_csum,^64bit", "jo"), ("metadata_csum,64bit", "jo -c")] {
        need!(dir.ext4(24, &["-t", "ext4", "-b", "1024", "-O", options]));
        let image = dir.path("image");
        let name = image.to_str().unwrap();
        let place = need!(run("debugfs", &["-R", "bmap /boot/vmlinuz-6.1.0-30-amd64 0", name], b""))
            .trim()
            .to_owned();
        let newer = dir.path("newer");
        let kernel = || found(&fs::read(&image).unwrap()).unwrap().kernel;
        let write = |commands: &str| run("debugfs", &["-w", "-f", "-", name], commands.as_bytes());
        let mut expected = KERNEL.to_vec();
        // The second begins with the journal's magic, which is written otherwise.
        for content in [b"newer", b"\xc0\x3b\x39\x98!"] {
            fs::write(&newer, [&content[..], &[0; 1019]].concat()).unwrap();
            need!(write(&format!("{open}\njw -b {place} {}\njc\n", newer.display())));
            expected[..5].copy_from_slice(content);
            expected[5..].fill(0);
            assert_eq!(kernel(), expected, "{options}");
        }
        need!(write(&format!("{open}\njw -r {place}\njc\n")));
        assert_eq!(kernel(), KERNEL, "revoked");
        // Two tags and a revocation are paid for.
        let disk = fs::read(&image).unwrap();
        let open_within = |room: u64| {
            let source = Source::new(&disk, disk.len() as u64);
            source.room.set(room);
            ext4::Ext4::open(source.whole()).map(drop)
        };
        open_within(2 * 128 + 64).unwrap();
        for room in [2 * 128 + 63, 127, 0] {
            assert!(matches!(open_within(room), Err(Error::TooMuch { .. })), "{room}");
        }
    }
}

#[test]
fn file_systems_of_one_disk_share_the_room() {
    let dir = Dir::new();
    let esp = dir.path("esp");
    need!(run("mkfs.fat", &["-F", "16", "-s", "1", "-C", esp.to_str().unwrap(), "16384"], b""));
    let esp = fs::read(&esp).unwrap();
    let source = Source::new(&esp, esp.len() as u64);
    let before = source.room.get();
    let first = fat::Fat::open(source.whole()).unwrap();
    let table = before - source.room.get();
    assert!(table > 4085 * 2, "{table}");
    source.room.set(2 * table - 1);
    let second = fat::Fat::open(source.whole()).unwrap();
    assert!(matches!(fat::Fat::open(source.whole()), Err(Error::TooMuch { .. })));
    drop((first, second));
}

#[test]
fn a_file_system_of_more_bytes_than_can_be_counted_is_broken() {
    let dir = debian();
    let mut disk = need!(dir.ext4(24, &["-t", "ext4", "-b", "4096", "-O", "64bit"]));
    for (high, sound) in [(0, true), (0xf_ffff, true), (0x10_0000, false), (u32::MAX, false)] {
        disk[1024 + 0x150..][..4].copy_from_slice(&u32::to_le_bytes(high));
        assert_eq!(found(&disk).is_ok(), sound, "{high:#x}");
    }
}

#[test]
fn symbolic_links_stay_inside_and_end() {
    let dir = debian();
    dir.link("/../..//boot/./vmlinuz-6.1.0-30-amd64", "boot/vmlinuz-7");
    dir.link(&format!("{}/boot/vmlinuz-7", "/boot/../".repeat(20)), "boot/vmlinuz-8");
    let root = need!(dir.ext4(16, &["-t", "ext4"]));
    assert_eq!(found(&root).unwrap().kernel, KERNEL);
    dir.link("vmlinuz-9b", "boot/vmlinuz-9");
    dir.link("/boot/vmlinuz-9", "boot/vmlinuz-9b");
    let root = need!(dir.ext4(16, &["-t", "ext4"]));
    assert_eq!(
        found(&root).unwrap_err().to_string(),
        "its ext4 file system is broken: its symbolic links lead round in circles"
    );
}

#[test]
fn what_is_too_large_or_no_file_is_refused() {
    let dir = debian();
    let huge = fs::File::create(dir.path("tree/boot/vmlinuz-9")).unwrap();
    huge.set_len(FILES_MAX + 1).unwrap();
    let root = need!(dir.ext4(16, &["-t", "ext4"]));
    assert!(matches!(found(&root), Err(Error::TooLong { size, .. }) if size == FILES_MAX + 1));
    fs::remove_file(dir.path("tree/boot/vmlinuz-9")).unwrap();
    fs::create_dir(dir.path("tree/boot/vmlinuz-9")).unwrap();
    let root = need!(dir.ext4(16, &["-t", "ext4"]));
    assert!(matches!(found(&root), Err(Error::NotAFile { .. })));
}

#[test]
fn a_file_with_holes_has_zeros_there() {
    let dir = debian();
    let mut sparse = fs::File::create(dir.path("tree/boot/initrd.img-6.1.0-30-amd64")).unwrap();
    sparse.set_len(5 << 20).unwrap();
    sparse.write_all(b"first").unwrap();
    for kind in ["ext2", "ext4"] {
        let root = need!(dir.ext4(16, &["-t", kind, "-b", "1024"]));
        let mut expected = vec![0; 5 << 20];
        expected[..5].copy_from_slice(b"first");
        assert_eq!(found(&root).unwrap().initrd.unwrap(), expected, "{kind}");
    }
}

#[test]
fn what_is_no_disk_is_named() {
    let text = |bytes: &[u8]| {
        let mut disk = vec![0; 1 << 20];
        disk[..bytes.len()].copy_from_slice(bytes);
        let error = found(&disk).unwrap_err();
        (error.to_string(), error.remedy())
    };
    assert_eq!(text(b"LUKS\xba\xbe").0, "its root is LUKS (encrypted), which wirevm cannot read");
    assert_eq!(text(b"").0, "it has neither a partition table nor a file system that wirevm knows");
    assert!(matches!(find(&Vec::new(), 0), Err(Error::Empty)));
    for len in [1, 511, 512, 513, 4096] {
        assert!(matches!(found(&vec![0; len]), Err(Error::Nothing)), "{len}");
    }
    // As long as it is said to be, and no more of it can be read.
    assert!(matches!(find(&vec![0; 100], 1 << 30), Err(Error::Read { .. })));
    let dir = Dir::new();
    dir.put("etc/hosts", "");
    let empty = need!(dir.ext4(8, &["-t", "ext4"]));
    assert!(matches!(found(&empty), Err(Error::NoKernel { .. })));
}

#[test]
fn a_directory_of_very_many_names_is_too_much() {
    let dir = debian();
    let dense = dir.path("tree/boot/loader/entries");
    fs::create_dir_all(&dense).unwrap();
    for index in 0..4_100 {
        fs::hard_link(dir.path("tree/usr/sbin/init"), dense.join(format!("{index}"))).unwrap();
    }
    let root = need!(dir.ext4(16, &["-t", "ext4"]));
    let error = found(&root).unwrap_err();
    assert_eq!(error.to_string(), "the disk has too much in one directory");
}

/// A tree of extents, each node of which has the same child as often as it can: 4 * 340^4 of them.
#[test]
fn a_tree_that_points_into_itself_is_too_much() {
    let dir = debian();
    let mut root = need!(dir.ext4(8, &["-t", "ext4", "-b", "4096", "-O", "^metadata_csum"]));
    let name = dir.path("image");
    let inode = need!(run("debugfs", &["-R", "imap /boot", name.to_str().unwrap()], b""));
    // "Inode 12 is part of block group 0\n\tlocated at block 34, offset 0x0b00"
    let mut words = inode.split([' ', ',', '\n']).skip_while(|word| *word != "block").skip(1);
    words.find(|word| *word == "block").expect("it says where");
    let block: usize = words.next().unwrap().parse().unwrap();
    let offset = usize::from_str_radix(words.find_map(|word| word.strip_prefix("0x")).unwrap(), 16).unwrap();
    let map = block * 4096 + offset + 0x28;
    let node = |entries: u16, depth: u16, child: u32| {
        let mut node = [0xf30a_u16, entries, entries, depth, 0, 0].map(u16::to_le_bytes).concat();
        for _ in 0..entries {
            node.extend([0, child, 0].map(u32::to_le_bytes).concat());
        }
        node
    };
    let last = root.len() / 4096 - 1;
    root[map - 0x28 + 4..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
    root[map..map + 60].copy_from_slice(&node(4, 5, last as u32));
    for depth in 0..5 {
        let at = (last - (4 - depth)) * 4096;
        // Of the last, extents of no block.
        let child = if depth == 0 { 0 } else { last as u32 - 5 + depth as u32 };
        let node = node(340, depth as u16, child);
        root[at..at + node.len()].copy_from_slice(&node);
    }
    let error = found(&root).unwrap_err();
    assert_eq!(error.to_string(), "the disk has too much to look through");
}

/// Small disks to be broken, made once.
fn whole_disks() -> Vec<Vec<u8>> {
    let dir = Dir::new();
    dir.put("boot/vmlinuz-6", KERNEL);
    dir.put("boot/initrd.img-6", vec![7; 20_000]);
    dir.put(
        "boot/loader/entries/a.conf",
        "linux /boot/vmlinuz-6\ninitrd /boot/initrd.img-6\noptions $kernelopts",
    );
    dir.put("boot/grub/grub.cfg", "menuentry a {\nlinux /vmlinuz\n}\n");
    dir.put("boot/grub/grubenv", "# GRUB Environment Block\nkernelopts=ro\n");
    dir.link("boot/vmlinuz-6", "vmlinuz");
    let made = || {
        let ext4 = dir.ext4(2, &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"])?;
        let ext2 = dir.ext4(1, &["-t", "ext2", "-b", "1024"])?;
        let journal = dir.ext4(4, &["-t", "ext4", "-b", "1024", "-J", "size=1"]).and_then(|_| {
            let (image, block) = (dir.path("image"), dir.path("block"));
            fs::write(&block, [1; 1024]).unwrap();
            let commands = format!("jo\njw -b 900,901,902 {}\njw -r 901\njc\n", block.display());
            run("debugfs", &["-w", "-f", "-", image.to_str().unwrap()], commands.as_bytes())?;
            Some(fs::read(image).unwrap())
        });
        Some([Some(gpt(512, &[(BOOT, &[0]), (ROOT, &ext4)])), Some(ext4), Some(ext2), journal])
    };
    let fat = crate::seed::image(&[("vmlinuz-6", KERNEL.to_vec()), ("initrd.img-6", vec![7; 20_000])]);
    made().into_iter().flatten().flatten().chain([fat]).collect()
}

#[test]
fn a_broken_disk_is_found_out_or_boots() {
    let disks = whole_disks();
    for disk in &disks {
        assert_eq!(found(disk).unwrap().kernel, KERNEL);
    }
    // Where there is something: bytes of an empty file system change nothing.
    let places: Vec<Vec<usize>> = disks
        .iter()
        .map(|disk| (0..disk.len()).filter(|&at| disk[at] != 0 && disk[at] != 7).collect())
        .collect();
    let change = (any::<prop::sample::Index>(), prop_oneof![Just(0), Just(0xff), Just(1), any::<u8>()]);
    let changes = prop::collection::vec(change, 1..12);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(1500)
    });
    let strategy = (0..disks.len(), changes, prop::option::weighted(0.2, any::<prop::sample::Index>()));
    runner
        .run(&strategy, |(which, changes, cut)| {
            let mut disk = disks[which].clone();
            for (place, value) in changes {
                let at = places[which][place.index(places[which].len())];
                // Also what lies beside: a length's other bytes.
                let at = (at + usize::from(value & 3)).min(disk.len() - 1);
                disk[at] = value;
            }
            let len = cut.map_or(disk.len(), |cut| cut.index(disk.len()));
            disk.truncate(len);
            match found(&disk) {
                Ok(found) => prop_assert!(found.kernel.len() as u64 <= FILES_MAX),
                Err(error) => prop_assert!(!error.remedy().is_empty() && !error.to_string().is_empty()),
            }
            Ok(())
        })
        .unwrap();
}

/// Over a real disk where the environment names one.
#[test]
fn a_real_disk_boots() {
    let Some(path) = std::env::var_os("WIREVM_TEST_DISK") else {
        eprintln!("skipped: WIREVM_TEST_DISK names no disk");
        return;
    };
    let file = fs::File::open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    let found = find(&file, len).unwrap_or_else(|error| panic!("{error}"));
    println!("{found:?}");
    assert_eq!(&found.kernel[0x202..0x206], b"HdrS", "a bzImage");
}
