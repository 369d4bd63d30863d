//! Images that are not raw: a guest would see their tables as its disk, and overwrite them.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// A format by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) name: &'static str,
    /// What makes a raw image of it.
    by: By,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// `qemu-img`, by its name of the format.
    QemuImg(&'static str),
    /// A program that writes what it unpacks to its output.
    Unpack(&'static str),
}

use By::{QemuImg, Unpack};

/// Where in a file which bytes tell a format.
const MAGIC: &[(u64, &[u8], &str, By)] = &[
    (0, b"QFI\xfb", "qcow2 image", QemuImg("qcow2")),
    (0, b"QED\0", "QED image", QemuImg("qed")),
    (0, b"KDMV", "VMDK image", QemuImg("vmdk")),
    (0, b"COWD", "VMDK image", QemuImg("vmdk")),
    (0, b"# Disk DescriptorFile", "VMDK image", QemuImg("vmdk")),
    (0x40, b"\x7f\x10\xda\xbe", "VDI image", QemuImg("vdi")),
    (0, b"vhdxfile", "VHDX image", QemuImg("vhdx")),
    (0, b"conectix", "VHD image", QemuImg("vpc")),
    (0, b"WithoutFreeSpace", "Parallels image", QemuImg("parallels")),
    (0, b"WithouFreSpacExt", "Parallels image", QemuImg("parallels")),
    (0, b"\x1f\x8b\x08", "file in gzip", Unpack("gzip")),
    (0, b"\xfd7zXZ\0", "file in xz", Unpack("xz")),
    (0, b"\x28\xb5\x2f\xfd", "file in zstd", Unpack("zstd")),
    (0, b"BZh", "file in bzip2", Unpack("bzip2")),
];

/// A VHD of a fixed size is raw, but for this at the start of its last sector.
const FOOTER: &[u8] = b"conectix";

/// The format of a file of so many bytes, if it is a known one that is not raw.
pub(crate) fn of(file: &File, bytes: u64) -> Option<Format> {
    let has = |offset: u64, magic: &[u8]| {
        let mut found = vec![0; magic.len()];
        file.read_exact_at(&mut found, offset).is_ok() && found == magic
    };
    let known = MAGIC.iter().find(|(offset, magic, ..)| has(*offset, magic));
    let known = known.map(|(_, _, name, by)| Format { name, by: *by });
    let footer = || bytes.checked_sub(512).is_some_and(|last| has(last, FOOTER));
    known.or_else(|| footer().then_some(Format { name: "VHD image", by: QemuImg("vpc") }))
}

impl Format {
    /// The command that makes the raw image `raw` of `path`.
    pub(crate) fn to_raw(self, path: &str, raw: &str) -> String {
        match self.by {
            QemuImg(format) => format!("qemu-img convert -f {format} -O raw {path} {raw}"),
            Unpack(program) => format!("{program} -dc {path} >{raw}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_bytes() {
        let path = std::env::temp_dir().join(format!("wirevm-format-{}", std::process::id()));
        let of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            of(&File::open(&path).unwrap(), bytes.len() as u64)
        };
        for (offset, magic, name, _) in MAGIC {
            let mut bytes = vec![0; 1024];
            bytes[*offset as usize..][..magic.len()].copy_from_slice(magic);
            assert_eq!(of(&bytes).unwrap().name, *name);
        }
        let mut fixed = vec![0; 2048];
        fixed[1536..][..8].copy_from_slice(FOOTER);
        assert_eq!(of(&fixed).unwrap().name, "VHD image");
        for raw in [&[0; 2048][..], b"x", b"QFI", &[0x55; 512]] {
            assert_eq!(of(raw), None);
        }
        std::fs::remove_file(path).unwrap();
        let qcow2 = Format { name: "qcow2 image", by: QemuImg("qcow2") };
        assert_eq!(qcow2.to_raw("a.qcow2", "a.raw"), "qemu-img convert -f qcow2 -O raw a.qcow2 a.raw");
    }
}
