//! What a file is by its content, where it is no image of a root: to say what to do with it instead.

use super::span::Span;

/// As disks are given.
const DISK: &str = "give it as a disk: --disk FILE";
const TAR: &str = "unpack it and pack it with tar: `tar -C ROOT -c . | wirevm run --image -`";

/// What it looks like, and what to do instead.
pub(super) fn other(span: &Span) -> (&'static str, &'static str) {
    let mut head = [0; 4096];
    // What cannot be read was read before, and looks like nothing.
    let len = span.read_at(&mut head, 0).unwrap_or(0);
    let head = &head[..len];
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let mut iso = [0; 5];
    match () {
        () if has(0, b"QFI\xfb") => (
            "a qcow2 disk",
            "make a raw disk of it: `qemu-img convert -O raw FILE disk.raw`, then --disk disk.raw",
        ),
        () if has(0, b"KDMV") || has(0, b"# Disk DescriptorFile") => (
            "a VMDK disk",
            "make a raw disk of it: `qemu-img convert -O raw FILE disk.raw`, then --disk disk.raw",
        ),
        () if has(0, b"vhdxfile") || has(0, b"conectix") => (
            "a VHD disk",
            "make a raw disk of it: `qemu-img convert -O raw FILE disk.raw`, then --disk disk.raw",
        ),
        () if span.read_at(&mut iso, 0x8001).is_ok_and(|n| n == 5) && &iso == b"CD001" => (
            "an ISO 9660 image",
            "an installer's medium is no root: take the distribution's cloud image (--disk) or container",
        ),
        () if has(512, b"EFI PART") => ("a disk with a GPT", DISK),
        () if has(0x438, b"\x53\xef") => ("an ext4 file system", DISK),
        () if has(1024, b"\xe2\xe1\xf5\xe0") => ("an EROFS file system", DISK),
        () if has(0, b"hsqs") => ("a squashfs file system", DISK),
        () if has(0, b"XFSB") => ("an XFS file system", DISK),
        () if has(0, b"\x7fELF") => {
            ("an ELF program or kernel", "give a kernel with --kernel; a program belongs into a directory")
        }
        () if has(0x202, b"HdrS") => ("a Linux kernel", "give it with --kernel"),
        () if has(0, b"070701") || has(0, b"070702") || has(0, b"070707") => {
            ("a cpio archive", "give it with --initrd")
        }
        () if has(0, b"!<arch>") => {
            ("a Debian package or a static library", "unpack a package: `dpkg -x FILE DIRECTORY`")
        }
        () if has(0, b"\xed\xab\xee\xdb") => ("an RPM package", "unpack it: `rpm2cpio FILE | cpio -id`"),
        () if has(0, b"PK\x03\x04") || has(0, b"PK\x05\x06") => ("a zip archive", TAR),
        () if has(0, b"7z\xbc\xaf") => ("a 7-Zip archive", TAR),
        () if has(0, b"BZh") => {
            ("something packed by bzip2", "unpack it: `bunzip2 <FILE | wirevm run --image -`")
        }
        () if has(0, b"\x04\x22\x4d\x18") => {
            ("something packed by lz4", "unpack it: `lz4 -d <FILE | wirevm run --image -`")
        }
        () if has(0, b"\x5d\0\0") => {
            ("something packed by lzma", "unpack it: `unlzma <FILE | wirevm run --image -`")
        }
        // Late: file systems and kernels begin with a boot sector, too.
        () if has(510, b"\x55\xaa") => ("a disk with boot sector and partitions", DISK),
        () if head.iter().all(|byte| (32..127).contains(byte) || byte.is_ascii_whitespace()) => {
            ("text", "give what the image's name stands for: `podman save NAME | wirevm run --image -`")
        }
        () => (
            "nothing known",
            "give a directory, a tar archive (plain, gzip, zstd, xz), an OCI layout, or what `podman save` writes",
        ),
    }
}
