//! What depmod writes and modules say of themselves, whatever it is: those wanted are found with all that they need, each once, or an error
//! says what is wrong. And the version that a kernel says.
//!
//! The input is flags, `modules.dep`, `modules.builtin`, `modules.softdep`, `modules.alias`, a kernel, and modules.
#![no_main]

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use boot::modules::{Modules, kernel_version};
use fuzz::{MemoryFile, Seeds, bounded, join, parts, scratch};

fuzz::target!(seeds, run);

const INDEXES: [&str; 4] = ["modules.dep", "modules.builtin", "modules.softdep", "modules.alias"];
const MODULES: [&str; 4] = ["a", "b", "c-d", "e_generic"];
const MEMORY: usize = 16 << 20;

fn run(data: &[u8]) {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| scratch("modules"));
    let parts = parts(data);
    // Without depmod's index the modules are asked.
    let indexed = parts[0].first().is_some_and(|flags| flags & 1 != 0);
    for (name, part) in INDEXES.iter().zip(&parts[1..]).skip((!indexed).into()) {
        fs::write(directory.join(name), part).unwrap();
    }
    if let Some(kernel) = parts.get(5) {
        let kernel = MemoryFile::new(kernel);
        if let Ok(Some(version)) = bounded(MEMORY, || kernel_version(&kernel.path())) {
            assert!(!version.contains('/') && !version.starts_with('.') && version.len() <= 64);
        }
    }
    for (name, part) in MODULES.iter().zip(parts.iter().skip(6)) {
        fs::write(directory.join(format!("{name}.ko")), part).unwrap();
    }
    bounded(MEMORY + 64 * data.len(), || {
        let Ok(modules) = Modules::open(directory) else { return };
        if let Ok(resolution) = modules.resolve(&["a", "b", "c_d", "e"]) {
            let names: HashSet<_> = resolution.load.iter().map(|module| &module.name).collect();
            assert_eq!(names.len(), resolution.load.len(), "one is loaded twice");
            for wanted in ["a", "b", "c_d", "e"] {
                let is_it = |name: &&str| *name == wanted;
                let told = resolution.built_in.iter().chain(&resolution.absent).map(|name| &name[..]);
                let load = resolution.load.iter().map(|module| &module.name[..]);
                assert!(told.chain(load).any(|name| is_it(&name)), "nothing is said of {wanted}");
            }
        }
    });
    for entry in fs::read_dir(directory).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

/// A relocatable object with this `.modinfo`.
fn object(modinfo: &[u8]) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let (names_at, text_at) = (64, 64 + names.len());
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[16..20].copy_from_slice(&[1, 0, 62, 0]);
    elf[0x28..0x30].copy_from_slice(&((text_at + modinfo.len()) as u64).to_le_bytes());
    elf[0x3a..0x40].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
    elf.extend(names);
    elf.extend(modinfo);
    for (name, at, len) in [(0_u32, 0, 0), (1, text_at, modinfo.len()), (10, names_at, names.len())] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
        elf.extend(header);
    }
    elf
}

fn seeds() -> Seeds {
    let dep = b"kernel/a.ko.xz: kernel/b.ko kernel/c-d.ko\nkernel/b.ko:\nkernel/c-d.ko: kernel/a.ko.xz\n";
    let builtin = b"kernel/drivers/virtio/virtio_pci.ko\nkernel/e.ko\n";
    let soft = b"# said\nsoftdep a pre: e f\nsoftdep b post: a nowhere\n";
    let alias = b"alias e e_generic\nalias f b\n";
    let mut bzimage = vec![0; 0x240];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    bzimage[0x20f] = 2;
    bzimage.extend(b"6.1.0-9-amd64 (builder) #1\0");
    // It stands at 0x200 and what the header says.
    bzimage[0x20e..0x210].copy_from_slice(&0x40_u16.to_le_bytes());
    let vmlinux = b"\x7fELF..Linux version %s..Linux version 6.12.4+deb13 (b)";
    let a = object(b"license=GPL\0depends=b,c-d\0softdep=pre: e post: f\0");
    let b = object(b"depends=\0");
    let indexed = join(&[&[1], dep, builtin, soft, alias, &bzimage]);
    let asked = join(&[&[0], dep, b"", soft, alias, vmlinux, &a, &b, &a, &b]);
    vec![("indexed".into(), indexed), ("asked".into(), asked)]
}
