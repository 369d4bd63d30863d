//! A disk of any content: what it boots is found, or an error, after a bounded number of reads and with bounded memory.
//!
//! The input is a sparse disk: flags, its length, and then blocks of which each has its number, a length, and so many bytes.
#![no_main]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use boot::disk::{FILES_MAX, ReadAt, find};
use fuzz::{Input, Seeds, bounded, scratch};

fuzz::target!(seeds, run);

const BLOCK: usize = 1024;
/// Kernel and initrd, and what leads to them.
const MEMORY: usize = FILES_MAX as usize + (64 << 20);

#[derive(Default)]
struct Disk {
    len: u64,
    blocks: BTreeMap<u64, [u8; BLOCK]>,
    reads: Cell<u32>,
}

impl Disk {
    fn write(&mut self, bytes: &[u8], offset: u64) {
        for (at, byte) in (offset..).zip(bytes) {
            let block = self.blocks.entry(at / BLOCK as u64).or_insert([0; BLOCK]);
            block[(at % BLOCK as u64) as usize] = *byte;
        }
    }

    /// Gives the GPT's headers, for sectors of this length, their checksums, so that mutations get further than that.
    fn seal(&mut self, sector: u64) {
        let crc = |bytes: &[u8]| {
            let mut crc = flate2::Crc::new();
            crc.update(bytes);
            crc.sum().to_le_bytes()
        };
        for header_at in [sector, self.len.saturating_sub(sector)] {
            let mut header = [0; 92];
            if self.read_exact_at(&mut header, header_at).is_err() || &header[..8] != b"EFI PART" {
                continue;
            }
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
            let place = u64::from_le_bytes(header[72..80].try_into().unwrap()).saturating_mul(sector);
            let len = word(80).saturating_mul(word(84)).min(1 << 16);
            let mut entries = vec![0; len as usize];
            if self.read_exact_at(&mut entries, place).is_ok() {
                header[88..92].copy_from_slice(&crc(&entries));
            }
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            header[16..20].fill(0);
            let sum = crc(&header);
            header[16..20].copy_from_slice(&sum);
            self.write(&header, header_at);
        }
    }
}

impl ReadAt for Disk {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads.set(self.reads.get() + 1);
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.fill(0);
        let size = BLOCK as u64;
        for (number, block) in self.blocks.range(offset / size..end.div_ceil(size)) {
            let start = number * size;
            let (from, to) = (start.max(offset), (start + size).min(end));
            if from < to {
                let bytes = &block[(from - start) as usize..(to - start) as usize];
                buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(bytes);
            }
        }
        Ok(())
    }
}

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let mut disk = Disk { len: u64::from(input.u32()) << (flags >> 4), ..Disk::default() };
    while !input.is_empty() {
        let (number, len) = (u64::from(input.u32()), usize::from(input.u16()) % (BLOCK + 1));
        let block = disk.blocks.entry(number).or_insert([0; BLOCK]);
        let bytes = input.bytes(len);
        block[..bytes.len()].copy_from_slice(bytes);
    }
    if flags & 1 != 0 {
        disk.seal(if flags & 2 != 0 { 4096 } else { 512 });
    }
    disk.reads.set(0);
    match bounded(MEMORY, || find(&disk, disk.len)) {
        Ok(found) => {
            let initrd = found.initrd.as_ref().map_or(0, Vec::len);
            assert!(!found.kernel.is_empty() || found.kernel_path.len() > 1);
            assert!(found.kernel.len() as u64 + initrd as u64 <= FILES_MAX + 64);
            found.cmdline.with(None, "console=ttyS0");
            found.cmdline.with(Some("quiet -- x"), "console=ttyS0");
        }
        Err(error) => assert!(!error.remedy().is_empty() && !error.to_string().is_empty()),
    }
    // What `source.rs` lets be read: 768 MiB, of which each read costs 32 KiB more.
    assert!(disk.reads.get() <= 24 << 10, "{} reads", disk.reads.get());
}

/// The input that is this disk.
fn sparse(flags: u8, disk: &[u8]) -> Vec<u8> {
    let mut input = vec![flags];
    input.extend((disk.len() as u32).to_le_bytes());
    for (number, block) in disk.chunks(BLOCK).enumerate() {
        let len = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if len > 0 {
            input.extend((number as u32).to_le_bytes());
            input.extend((len as u16).to_le_bytes());
            input.extend(&block[..len]);
        }
    }
    input
}

/// Runs a program of the host with `input`; whether it is there.
fn tool(program: &str, args: &[&str], input: &str) -> bool {
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.args(args).env("PATH", path).env("SOURCE_DATE_EPOCH", "1").env("E2FSPROGS_FAKE_TIME", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else {
        eprintln!("no {program}: there are fewer seeds");
        return false;
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait().unwrap().success()
}

fn seeds() -> Seeds {
    let directory = scratch("disk");
    let (tree, image) = (directory.join("tree"), directory.join("image"));
    let put = |name: &str, bytes: &[u8]| {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    put("boot/vmlinuz-6", b"a kernel");
    put("boot/initrd.img-6", &[7; 3000]);
    put("etc/os-release", b"ID=debian\n");
    put("usr/sbin/init", b"");
    symlink("boot/vmlinuz-6", tree.join("vmlinuz")).unwrap();
    let ext4 = |kib: u32, options: &[&str], commands: &str| {
        let _ = fs::remove_file(&image);
        let (size, image) = (format!("{kib}k"), image.to_str().unwrap());
        let fixed = [
            "-U",
            "01234567-89ab-cdef-0123-456789abcdef",
            "-E",
            "hash_seed=01234567-89ab-cdef-0123-456789abcdef",
        ];
        let args =
            [&["-q", "-F", "-d", tree.to_str().unwrap()], &fixed[..], options, &[image, &size]].concat();
        let made = tool("mke2fs", &args, "");
        let made = made && (commands.is_empty() || tool("debugfs", &["-w", "-f", "-", image], commands));
        made.then(|| fs::read(image).unwrap())
    };
    let small = ["-b", "1024", "-N", "32"];
    let with = |options: &[&'static str]| [&small[..], options].concat();
    let mut disks = vec![
        ("ext4", ext4(1024, &with(&["-t", "ext4"]), "")),
        ("ext2", ext4(512, &with(&["-t", "ext2"]), "")),
        (
            "ext4-plain",
            ext4(
                512,
                &with(&["-t", "ext4", "-O", "^64bit,^metadata_csum,^flex_bg,^has_journal", "-I", "128"]),
                "",
            ),
        ),
        (
            "ext4-meta-bg",
            ext4(1024, &with(&["-t", "ext4", "-O", "meta_bg,^resize_inode,^has_journal", "-g", "256"]), ""),
        ),
        (
            "ext4-bigalloc",
            ext4(1024, &with(&["-t", "ext4", "-O", "bigalloc,^has_journal", "-C", "4096"]), ""),
        ),
        ("ext4-4096", ext4(1024, &["-b", "4096", "-N", "32", "-t", "ext4", "-O", "^has_journal"], "")),
    ];
    put("one", &[1; 1024]);
    let block = tree.join("one");
    let commands = format!("jo\njw -b 900,901,902 {}\njw -r 901\njc\n", block.display());
    disks.push((
        "ext4-journal",
        ext4(2048, &["-b", "1024", "-N", "32", "-t", "ext4", "-J", "size=1"], &commands),
    ));
    // A loader's entries, GRUB's menu, and a hashed directory.
    put(
        "boot/loader/entries/a.conf",
        b"title a\nversion 6\nlinux /boot/vmlinuz-6\ninitrd /boot/initrd.img-6\noptions $kernelopts quiet\n",
    );
    put("boot/loader/loader.conf", b"default a\ntimeout 3\n");
    put("boot/grub/grubenv", b"# GRUB Environment Block\nsaved_entry=a\nkernelopts=root=/dev/sda1 ro\n####");
    disks.push(("bls", ext4(512, &with(&["-t", "ext2"]), "")));
    fs::remove_dir_all(tree.join("boot/loader")).unwrap();
    put(
        "boot/grub/grub.cfg",
        b"set default=\"${saved_entry}\"\nif [ x = y ] ; then\nfi\nsubmenu 'more' {\nmenuentry 'a' --class b $menuentry_id_option 'a' {\n\tsearch --fs-uuid x\n\tlinux /boot/vmlinuz-6 root=UUID=1 ro \"a b\"\n\tinitrd /boot/initrd.img-6 /boot/initrd.img-6\n}\n}\n",
    );
    disks.push(("grub", ext4(512, &with(&["-t", "ext2"]), "")));
    let files = [("vmlinuz-6", b"a kernel".to_vec()), ("initrd.img-6", vec![7; 3000])];
    disks.push(("fat12", Some(boot::seed::image(&files))));
    let fat = |kind: &str, kib: u32| {
        let _ = fs::remove_file(&image);
        fs::File::create(&image).unwrap().set_len(u64::from(kib) << 10).unwrap();
        let path = image.to_str().unwrap();
        tool("mkfs.fat", &["-F", kind, "-s", "1", "-i", "01234567", "--invariant", path], "")
            .then(|| fs::read(&image).unwrap())
    };
    disks.extend([("fat16", fat("16", 2560)), ("fat32", fat("32", 34_000))]);
    let mut seeds = Seeds::new();
    for (name, disk) in disks {
        let Some(disk) = disk else { continue };
        if ["ext2", "grub", "fat12"].contains(&name) {
            seeds.push((format!("{name}-gpt"), sparse(1, &gpt(512, &disk))));
            seeds.push((format!("{name}-gpt-4096"), sparse(3, &gpt(4096, &disk))));
            seeds.push((format!("{name}-mbr"), sparse(0, &mbr(&disk))));
        }
        seeds.push((name.into(), sparse(0, &disk)));
    }
    fs::remove_dir_all(Path::new(&directory)).unwrap();
    seeds
}

/// Behind 32 KiB with a GPT of eight entries, of which one is a Linux root. The checksums come when it is taken apart.
fn gpt(sector: u64, content: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; (32 << 10) + content.len() + 2 * sector as usize];
    let at = (32 << 10) / sector;
    let mut entry = [0; 128];
    entry[..16].copy_from_slice(&[
        0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
    ]);
    entry[16..32].fill(1);
    entry[32..40].copy_from_slice(&at.to_le_bytes());
    entry[40..48].copy_from_slice(&(at + content.len() as u64 / sector - 1).to_le_bytes());
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..16].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
    for (at, value) in [(24, 1), (32, disk.len() as u64 / sector - 1), (72, 2)] {
        header[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    header[80..88].copy_from_slice(&[8, 0, 0, 0, 128, 0, 0, 0]);
    disk[sector as usize..][..92].copy_from_slice(&header);
    disk[2 * sector as usize..][..128].copy_from_slice(&entry);
    disk[446 + 4] = 0xee;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[32 << 10..][..content.len()].copy_from_slice(content);
    disk
}

/// Behind 32 KiB with an MBR, as the first logical partition of an extended one.
fn mbr(content: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 32 << 10];
    let sectors = content.len() as u32 / 512;
    for (at, kind, first, len) in [(0, 5_u8, 1_u32, sectors + 63), (512, 0x83, 63, sectors)] {
        let entry = &mut disk[at + 446..][..16];
        entry[4] = kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..16].copy_from_slice(&len.to_le_bytes());
        disk[at + 510..][..2].copy_from_slice(&[0x55, 0xaa]);
    }
    disk.extend(content);
    disk
}
