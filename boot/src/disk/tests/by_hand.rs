//! Disks of which no byte is made by a tool: where files are looked for, how much they may be, and what is the root.

use super::super::fat::made::Image;
use super::*;

const FILE: u8 = 0x20;
const DIRECTORY: u8 = 0x10;
/// A name is in small letters.
const SMALL: u8 = 0x18;

/// A file system with these files in its root, each of at most one cluster; its UUID begins with `serial`.
fn fat(serial: u16, files: &[(&[u8; 11], &[u8])]) -> Vec<u8> {
    let mut image = Image::new(12, 100, 8);
    let mut entries = Vec::new();
    for (cluster, (name, bytes)) in (3..).zip(files) {
        image.fill(cluster, bytes);
        image.chain(&[cluster], 0xfff);
        let mut entry = image.entry(name, FILE, cluster, bytes.len() as u32);
        entry[12] = SMALL;
        entries.push(entry);
    }
    image.root(&entries);
    image.put(41, &serial.to_le_bytes());
    image.bytes
}

/// A file system with this menu at `/grub/grub.cfg`, and in its root these files of one cluster, with these sizes.
fn with_menu(menu: &str, files: &[(&[u8; 11], u32, &[u8])]) -> Vec<u8> {
    let mut image = Image::new(12, 100, 8);
    image.fill(3, &image.entry(b"GRUB    CFG", FILE, 4, menu.len() as u32));
    image.fill(4, menu.as_bytes());
    let mut entries = vec![image.entry(b"GRUB       ", DIRECTORY, 3, 0)];
    for (cluster, (name, size, bytes)) in (10..).zip(files) {
        image.fill(cluster, bytes);
        image.chain(&[cluster], 0xfff);
        entries.push(image.entry(name, FILE, cluster, *size));
    }
    image.chain(&[3], 0xfff);
    image.chain(&[4], 0xfff);
    image.root(&entries);
    image.bytes
}

const KERNEL_NAME: &[u8; 11] = b"LINUX      ";
const MENU: &str = "menuentry 'a' {\n linux /linux ro\n initrd /one /two\n}\n";

#[test]
fn kernel_and_initrds_have_one_limit_together() {
    let disk = |one: u32, two: u32| {
        let files =
            [(KERNEL_NAME, 5, &b"12345"[..]), (b"ONE        ", one, b"one"), (b"TWO        ", two, b"two")];
        with_menu(MENU, &files)
    };
    let sound = found(&disk(3, 3)).unwrap();
    assert_eq!((&sound.kernel[..], sound.initrd.as_deref()), (&b"12345"[..], Some(&b"one\0two"[..])));
    let most = FILES_MAX as u32;
    for (one, two, path, size, room) in [
        (most - 4, 3, "/one", most - 4, most - 5),
        (3, most - 7, "/two", most - 7, most - 8),
        (u32::MAX, 3, "/one", u32::MAX, most - 5),
    ] {
        let error = found(&disk(one, two)).unwrap_err();
        assert_eq!(error.to_string(), format!("its {path} has {size} bytes, and there is room for {room}"));
    }
    // There is room for it, but it is not there.
    for (one, two) in [(most - 5, 3), (3, most - 8)] {
        assert!(matches!(found(&disk(one, two)), Err(Error::Broken { fs: "FAT", .. })));
    }
}

#[test]
fn a_file_that_an_entry_names_can_be_in_another_file_system() {
    let menu = "menuentry 'a' {\n linux /linux ro\n}\n";
    let own = with_menu(menu, &[(KERNEL_NAME, 3, b"own")]);
    let without = with_menu(menu, &[]);
    let other = fat(0x1234, &[(KERNEL_NAME, b"other")]);
    let kernel = |first: &[u8], second: &[u8]| {
        found(&gpt(512, &[(BOOT, first), (LINUX, second)])).map(|found| found.kernel)
    };
    assert_eq!(kernel(&own, &other).unwrap(), b"own");
    assert_eq!(kernel(&other, &own).unwrap(), b"own");
    assert_eq!(kernel(&without, &other).unwrap(), b"other");
    assert_eq!(kernel(&other, &without).unwrap(), b"other");
    let error = kernel(&without, &fat(0, &[])).unwrap_err();
    assert_eq!(error.to_string(), "its boot entry \"a\" names /linux, which is not there");
}

#[test]
fn the_root_is_the_partition_that_says_so() {
    let kernel: (&[u8; 11], &[u8]) = (b"VMLINUZ    ", KERNEL);
    let with_initrd = fat(0x1111, &[kernel, (b"INITRD  IMG", b"initrd")]);
    let other = fat(0x2222, &[]);
    let root = |partitions: &[(&str, &[u8])]| found(&gpt(512, partitions)).unwrap().cmdline.root;
    let uuid = |serial: &str| Some(format!("root=UUID={serial}-ABCD"));
    assert_eq!(root(&[(BOOT, &with_initrd), (ROOT, &other)]), uuid("2222"));
    assert_eq!(root(&[(ROOT, &other), (BOOT, &with_initrd)]), uuid("2222"));
    assert_eq!(root(&[(ROOT, &with_initrd), (BOOT, &other)]), uuid("1111"));
    assert_eq!(root(&[(BOOT, &with_initrd), (LINUX, &other)]), None);
}

#[test]
fn what_looks_like_a_root_has_both_etc_and_usr() {
    let made = |directories: &[&str], uuid: &str| {
        let dir = Dir::new();
        dir.put("boot/vmlinuz-6", KERNEL);
        dir.put("boot/initrd.img-6", "initrd");
        for name in directories {
            dir.put(&format!("{name}/there"), "");
        }
        dir.ext4(4, &["-t", "ext4", "-O", "^has_journal", "-U", uuid])
    };
    let uuids = [1, 2, 3].map(|n| format!("0000000{n}-89ab-cdef-0123-456789abcdef"));
    let etc = need!(made(&["etc"], &uuids[0]));
    let usr = need!(made(&["usr"], &uuids[1]));
    let both = need!(made(&["etc", "usr"], &uuids[2]));
    let root = |partitions: &[(&str, &[u8])]| found(&gpt(512, partitions)).unwrap().cmdline.root;
    let third = Some(format!("root=UUID={}", uuids[2]));
    assert_eq!(root(&[(LINUX, &etc), (LINUX, &usr), (LINUX, &both)]), third);
    assert_eq!(root(&[(LINUX, &etc), (LINUX, &usr)]), None);
}

#[test]
fn an_error_is_of_the_root_else_of_what_comes_first() {
    let luks = b"LUKS\xba\xbe";
    let error = |partitions: &[(&str, &[u8])]| found(&gpt(512, partitions)).unwrap_err().to_string();
    let of = |kind: &str| format!("its root is {kind}, which wirevm cannot read");
    assert_eq!(error(&[(LINUX, luks), (ROOT, b"XFSB")]), of("xfs"));
    assert_eq!(error(&[(ROOT, b"XFSB"), (LINUX, luks)]), of("xfs"));
    assert_eq!(error(&[(LINUX, luks), (BOOT, b"hsqs")]), of("LUKS (encrypted)"));
    let empty = fat(0, &[]);
    assert_eq!(error(&[(BOOT, &empty), (LINUX, luks), (BOOT, b"hsqs")]), of("LUKS (encrypted)"));
    assert_eq!(
        error(&[(BOOT, &empty), (LINUX, &empty)]),
        "its file systems (FAT, FAT) have no kernel: no /boot/loader/entries, grub.cfg or vmlinuz"
    );
}

#[test]
fn what_was_there_before_a_gpt_is_passed_over_and_an_mbr_is_not() {
    let menu = "menuentry 'a' {\n linux /linux ro\n}\n";
    let now = with_menu(menu, &[(KERNEL_NAME, 3, b"now")]);
    let mut disk = gpt(512, &[(BOOT, &now)]);
    // The boot sector of a FAT file system was at the disk's start.
    disk[..62].copy_from_slice(&now[..62]);
    assert_eq!(found(&disk).unwrap().kernel, b"now");
    // One that is there: what looks like its partitions is the code of its boot sector.
    let mut whole = now;
    whole[446 + 4] = 0x83;
    whole[446 + 8] = 16;
    whole[446 + 12] = 64;
    assert_eq!(found(&whole).unwrap().kernel, b"now");
}

#[test]
fn a_file_of_the_host_is_read_like_bytes_in_memory() {
    let menu = "menuentry 'a' {\n linux /linux ro\n}\n";
    let bytes = gpt(512, &[(BOOT, &with_menu(menu, &[(KERNEL_NAME, 6, b"kernel")]))]);
    let dir = Dir::new();
    fs::write(dir.path("disk"), &bytes).unwrap();
    let file = fs::File::open(dir.path("disk")).unwrap();
    assert_eq!(find(&file, bytes.len() as u64).unwrap(), found(&bytes).unwrap());
    let mut buffer = [0; 4];
    let end = bytes.len() as u64;
    ReadAt::read_exact_at(&file, &mut buffer, 510).unwrap();
    assert_eq!(buffer, [0x55, 0xaa, b'E', b'F']);
    ReadAt::read_exact_at(&file, &mut buffer, end - 4).unwrap();
    assert_eq!(buffer, bytes[bytes.len() - 4..]);
    assert!(ReadAt::read_exact_at(&file, &mut buffer, end - 3).is_err());
    assert!(ReadAt::read_exact_at(&file, &mut buffer, u64::MAX).is_err());
}
