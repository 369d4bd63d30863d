//! What modules are found, in which order, by depmod's files and by the modules' own word.

use std::process::Command;

use proptest::prelude::*;

use super::modinfo::{self, Info};
use super::*;
use crate::testing::Directory;

/// A relocatable object with this `.modinfo`, as small as one can be.
fn object(modinfo: &[&str]) -> Vec<u8> {
    object_with(modinfo, 64)
}

/// The same with section headers of `entry` bytes.
fn object_with(modinfo: &[&str], entry: u8) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let text: Vec<u8> = modinfo.iter().flat_map(|text| [text.as_bytes(), b"\0"].concat()).collect();
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[16..20].copy_from_slice(&[1, 0, 62, 0]);
    let (names_at, text_at) = (64, 64 + names.len());
    let table = text_at + text.len();
    elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
    elf[0x3a..0x40].copy_from_slice(&[entry, 0, 3, 0, 2, 0]);
    elf.extend(names);
    elf.extend(&text);
    let section = |name: u32, at: usize, len: usize| {
        let mut header = vec![0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
        header.resize(entry.into(), 0);
        header
    };
    elf.extend(section(0, 0, 0));
    elf.extend(section(1, text_at, text.len()));
    elf.extend(section(10, names_at, names.len()));
    elf
}

fn names(resolution: &Resolution) -> Vec<&str> {
    resolution.load.iter().map(|module| &module.name[..]).collect()
}

fn depmod() -> Directory {
    let root = Directory::new();
    root.file(
        "modules.dep",
        b"kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\nkernel/lib/libcrc32c.ko.xz:\n\
          kernel/net/vmw_vsock_virtio_transport.ko: kernel/net/vsock-common.ko kernel/net/vsock.ko\n\
          kernel/net/vsock.ko:\nkernel/net/vsock-common.ko: kernel/net/vsock.ko\nkernel/crypto/crc32c_generic.ko:\n\
          kernel/crypto/crc32c-intel.ko:\nkernel/a.ko: kernel/b.ko\nkernel/b.ko: kernel/a.ko\nnonsense\n",
    );
    root.file("modules.builtin", b"kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/fuse/fuse.ko\n");
    root.file(
        "modules.softdep",
        b"# said by modules\nsoftdep libcrc32c pre: crc32c\nsoftdep vsock post: erofs nowhere\n",
    );
    root.file(
        "modules.alias",
        b"alias crc32c crc32c_intel\nalias crc32c crc32c_generic\nalias pci:v* virtio_pci\n",
    );
    root
}

#[test]
fn each_comes_after_what_it_needs() {
    let root = depmod();
    let modules = Modules::open(root.path()).unwrap();
    let resolution = modules.resolve(&["erofs", "virtio-pci", "virtio_blk", "erofs"]).unwrap();
    assert_eq!(names(&resolution), ["crc32c_intel", "crc32c_generic", "libcrc32c", "erofs"]);
    assert_eq!(
        (resolution.built_in, resolution.absent),
        (vec!["virtio_pci".into()], vec!["virtio_blk".into()])
    );
    assert_eq!(resolution.load[3].path, root.path().join("kernel/fs/erofs/erofs.ko.xz"));
    let resolution = modules.resolve(&["vmw-vsock-virtio-transport"]).unwrap();
    assert_eq!(
        names(&resolution),
        [
            "vsock",
            "crc32c_intel",
            "crc32c_generic",
            "libcrc32c",
            "erofs",
            "vsock_common",
            "vmw_vsock_virtio_transport"
        ]
    );
    // What needs itself has an end, too.
    assert_eq!(names(&modules.resolve(&["a"]).unwrap()), ["b", "a"]);
}

#[test]
fn an_index_without_end_is_refused() {
    let index = |text: &str| {
        let root = Directory::new();
        root.file("modules.dep", text.as_bytes());
        let modules = Modules::open(root.path()).unwrap();
        modules.resolve(&["m0"]).map(|resolution| resolution.load.len())
    };
    // Each needs the next; deep enough for the end of any stack.
    let chain = |len: usize| (0..len).map(|n| format!("m{n}.ko: m{}.ko\n", n + 1)).collect::<String>();
    let ended = |len: usize| format!("{}m{}.ko:\n", chain(len - 1), len - 1);
    assert_eq!(index(&ended(65)).unwrap(), 65);
    assert!(matches!(index(&ended(66)), Err(Error::NoEnd { .. })));
    assert!(matches!(index(&chain(100)), Err(Error::NoEnd { .. })));
    let error = index(&chain(20_000)).unwrap_err();
    assert!(matches!(error, Error::NoEnd { .. }) && error.remedy().contains("depmod"), "{error}");
    // One needs them all; or what is nowhere, again and again.
    let wide = |len: usize| {
        let all = |end: &str| (1..len).map(|n| format!("m{n}.ko{end}")).collect::<String>();
        format!("m0.ko: {}\n{}", all(" "), all(":\n"))
    };
    assert_eq!(index(&wide(512)).unwrap(), 512);
    for len in [513, 600] {
        assert!(matches!(index(&wide(len)), Err(Error::NoEnd { .. })), "{len}");
    }
    let nowhere = |len: usize| index(&format!("m0.ko: {}", "x.ko ".repeat(len)));
    assert_eq!(nowhere(8191).unwrap(), 1);
    for len in [8192, 10_000] {
        assert!(matches!(nowhere(len), Err(Error::NoEnd { .. })), "{len}");
    }
}

#[test]
fn all_modules_together_have_a_limit() {
    let root = Directory::new();
    let bytes = object(&["depends="]);
    let modules: Vec<_> = ["a", "b", "c"]
        .map(|name| Module { name: name.into(), path: root.file(&format!("{name}.ko"), &bytes) })
        .into();
    let len = bytes.len() as u64;
    assert_eq!(resolve::read_within(&modules, 3 * len).unwrap(), vec![bytes.clone(); 3]);
    assert_eq!(read_all(&modules).unwrap(), vec![bytes; 3]);
    let error = resolve::read_within(&modules, 3 * len - 1).unwrap_err();
    assert!(matches!(error, Error::TooMuch { .. }), "{error}");
}

#[test]
fn a_kernel_without_modules_lacks_all_of_them() {
    let resolution = Modules::none().resolve(&["erofs"]).unwrap();
    assert_eq!(resolution, Resolution { absent: vec!["erofs".into()], ..Resolution::default() });
    assert!(matches!(Modules::open("/nonexistent".as_ref()), Err(Error::Read { .. })));
}

#[test]
fn where_depmod_never_ran_the_modules_are_asked() {
    let root = Directory::new();
    root.file("kernel/fs/erofs.ko", &object(&["license=GPL", "depends=libcrc32c,lz4-x", "name=erofs"]));
    root.file("kernel/lib/libcrc32c.ko", &object(&["depends=", "softdep=pre: crc32c"]));
    root.file("extra/lz4-x.ko", &object(&["depends="]));
    root.file("kernel/crypto/crc32c_generic.ko", &object(&[]));
    root.file("kernel/broken.ko", b"no module");
    root.file("modules.builtin", b"kernel/fuse.ko\n");
    std::os::unix::fs::symlink("/", root.path().join("build")).unwrap();
    let modules = Modules::open(root.path()).unwrap();
    let resolution = modules.resolve(&["erofs", "fuse", "build"]).unwrap();
    assert_eq!(names(&resolution), ["crc32c_generic", "libcrc32c", "lz4_x", "erofs"]);
    assert_eq!((resolution.built_in, resolution.absent), (vec!["fuse".into()], vec!["build".into()]));
    let error = modules.resolve(&["broken"]).unwrap_err();
    assert!(matches!(error, Error::NotAModule { .. }), "{error}");
    assert!(error.remedy().contains("again"));
}

#[test]
fn a_module_is_read_however_it_is_packed() {
    let root = Directory::new();
    let plain = object(&["depends="]);
    let path = root.file("kernel/m.ko", &plain);
    for (program, end) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        assert!(Command::new(program).args(["-k", "-q"]).arg(&path).status().unwrap().success());
        let path = path.with_extension(format!("ko.{end}"));
        let module = Module { name: "m".into(), path: path.clone() };
        assert_eq!(module.read().unwrap(), plain, "{program}");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        let error = module.read().unwrap_err();
        assert!(matches!(error, Error::Unpack { .. }), "{error}");
    }
    for (at, byte) in [(1, 0), (4, 1), (16, 2), (18, 3)] {
        let mut other = plain.clone();
        other[at] = byte;
        let path = root.file("kernel/other.ko", &other);
        let error = Module { name: "other".into(), path }.read().unwrap_err();
        assert!(matches!(error, Error::NotAModule { .. }), "{error}");
    }
}

#[test]
fn files_are_read_up_to_their_limits_and_no_further() {
    let root = Directory::new();
    let plain = object(&["depends="]);
    let len = plain.len() as u64;
    let path = root.file("m.ko", &plain);
    assert!(Command::new("gzip").args(["-k"]).arg(&path).status().unwrap().success());
    for path in [path.clone(), path.with_extension("ko.gz")] {
        for limit in [len, len + 1] {
            assert_eq!(index::read_module(&path, limit).unwrap(), plain, "{path:?} of {limit}");
        }
        for less in [len - 1, len - 2, 1, 0] {
            let error = index::read_module(&path, less).unwrap_err();
            assert!(matches!(error, Error::TooLarge { limit, .. } if limit == less), "{less}: {error}");
        }
    }
    let path = root.file("modules.alias", b"0123456789");
    for limit in [10, 11] {
        assert_eq!(index::read_limited(&path, limit).unwrap().as_deref(), Some(&b"0123456789"[..]));
    }
    for less in [9, 8, 0] {
        let error = index::read_limited(&path, less).unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit, .. } if limit == less), "{less}: {error}");
    }
    assert_eq!(index::read_limited(&root.path().join("nowhere"), 10).unwrap(), None);
}

#[test]
fn an_index_that_cannot_be_read_is_not_one_that_is_not_there() {
    for name in ["modules.dep", "modules.builtin", "modules.softdep", "modules.alias"] {
        let root = Directory::new();
        root.file(&format!("{name}/x"), b"");
        let error = Modules::open(root.path()).unwrap_err();
        assert!(matches!(&error, Error::Read { path, .. } if path.ends_with(name)), "{error}");
    }
}

#[test]
fn only_files_that_are_modules_are_found_and_not_too_deep() {
    let root = Directory::new();
    let (at, beyond) = ("d/".repeat(index::DEPTH_MAX), "d/".repeat(index::DEPTH_MAX + 1));
    for name in ["a.ko", "b.ko.gz", "c.ko.xz", "d.ko.zst", "readme", "e.ko.lz4", &format!("{at}f.ko")] {
        root.file(name, &object(&[]));
    }
    root.file(&format!("{beyond}g.ko"), &object(&[]));
    root.file("h.ko/x", b"a directory");
    std::os::unix::fs::symlink("a.ko", root.path().join("i.ko")).unwrap();
    let all = ["a", "b", "c", "d", "readme", "e", "f", "g", "h", "i"];
    let resolution = Modules::open(root.path()).unwrap().resolve(&all).unwrap();
    assert_eq!(names(&resolution), ["a", "b", "c", "d", "f"]);
    assert_eq!(resolution.absent, ["readme", "e", "g", "h", "i"]);
}

#[test]
fn section_headers_have_the_size_that_the_file_says() {
    let info = Some(Info { needs: vec!["a".into()], ..Info::default() });
    for entry in [64, 65, 72, 255] {
        assert_eq!(modinfo::of(&object_with(&["depends=a"], entry)), info, "{entry}");
    }
    // These hold all that is looked at, and are none of ELF's.
    for entry in [63, 48, 40, 0] {
        assert_eq!(modinfo::of(&object_with(&["depends=a"], entry)), None, "{entry}");
    }
}

#[test]
fn a_directory_that_is_given_is_taken() {
    let root = Directory::new();
    root.file("6.1/modules.dep", b"");
    let found = directory("/boot/vmlinuz".as_ref(), Some("6.1"), Some(root.path())).unwrap();
    assert_eq!(found, Some(root.path().join("6.1")));
}

#[test]
fn what_a_module_says_is_taken_apart() {
    let info =
        modinfo::of(&object(&["depends=a,b-c", "softdep=pre: d e post: f", "softdep=g", "x"])).unwrap();
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(info, Info { needs: list(&["a", "b_c"]), before: list(&["d", "e"]), after: list(&["f"]) });
    assert_eq!(modinfo::of(b"\x7fELF"), None);
}

#[test]
fn the_initrd_has_what_the_agent_needs() {
    let modules = [Loaded { name: "libcrc32c", object: b"one" }, Loaded { name: "erofs", object: b"four" }];
    let archive = initrd(b"#!agent", b"{}", &modules, true);
    assert!(archive.len().is_multiple_of(4));
    let root = Directory::new();
    let path = root.file("archive", &archive);
    let list = Command::new("cpio")
        .args(["-idmv", "--quiet", "--no-preserve-owner", "-D"])
        .arg(root.path())
        .stdin(std::fs::File::open(&path).unwrap())
        .output()
        .unwrap();
    let listed = String::from_utf8(list.stderr).unwrap();
    assert!(list.status.success(), "{listed}");
    for (name, content) in [
        ("init", &b"#!agent"[..]),
        (".wirevm/config", b"{}"),
        (".wirevm/modules/000-libcrc32c.ko", b"one"),
        (".wirevm/modules/001-erofs.ko", b"four"),
    ] {
        assert_eq!(std::fs::read(root.path().join(name)).unwrap(), content, "{listed}");
    }
    // Directories that cpio lacks it makes of itself, so what the archive says of them is looked at, too.
    let list = Command::new("cpio")
        .args(["-itv", "--quiet"])
        .stdin(std::fs::File::open(&path).unwrap())
        .output()
        .unwrap();
    let listed = String::from_utf8(list.stdout).unwrap();
    for (mode, name) in [
        ("drwxr-xr-x", ".wirevm"),
        ("drwxr-xr-x", ".wirevm/modules"),
        ("-rwxr-xr-x", "init"),
        ("-rw-------", ".wirevm/config"),
        ("-rw-r--r--", ".wirevm/modules/000-libcrc32c.ko"),
    ] {
        let line = listed.lines().find(|line| line.ends_with(&format!(" {name}")));
        assert!(line.is_some_and(|line| line.starts_with(mode)), "{name}: {listed}");
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = |name: &str| root.path().join(name).metadata().unwrap().permissions().mode();
    assert_eq!((mode("init"), mode("tmp"), mode("proc")), (0o100_755, 0o041_777, 0o040_755));
}

proptest! {
    #[test]
    fn no_bytes_lead_modinfo_astray(flips in prop::collection::vec((0..400_usize, any::<u8>()), 0..6), len in 0..400_usize) {
        let mut bytes = object(&["depends=a", "softdep=pre: x post: y"]);
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len().saturating_sub(len / 4));
        let _ = modinfo::of(&bytes);
    }

    #[test]
    fn no_index_leads_astray(text in "[a-c:/. \n_-]{0,200}", soft in "(softdep [a-c] (pre|post): [a-c ]{0,5}\n){0,5}") {
        let root = Directory::new();
        root.file("modules.dep", text.as_bytes());
        root.file("modules.softdep", soft.as_bytes());
        let _ = Modules::open(root.path()).unwrap().resolve(&["a", "b", "c"]).unwrap();
    }
}
